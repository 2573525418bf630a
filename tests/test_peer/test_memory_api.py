"""What does the local API do with each request to the shared memory?

With a real daemon; and, for what a daemon does only when it breaks, with a memory of these tests.
"""

import base64
import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal
from urllib.parse import quote

import pytest
import trio
from test_peer.daemons import Answer, Wire, request, running_peer, short_folder
from trio.testing import MockClock

from covey.identity.errors import Unavailable
from covey.peer.api.routes import make_app
from covey.peer.api.server import KEEP_ALIVE_S, serve_app
from covey.peer.local_mesh import LocalPeer, wait_until
from covey.peer.memory.shared import SharedMemory
from covey.peer.service import Service


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


@pytest.fixture
def wire(peer: LocalPeer) -> Iterator[Wire]:
    with Wire.to(peer) as wire:
        yield wire


def written(wire: Wire, *requests: dict[str, Any]) -> list[Any]:
    answer = wire.ask("POST", "/v1/memory", json.dumps(requests).encode())
    assert answer.status == 201, answer.body
    return items(answer, "EntryList")


def items(answer: Answer, kind: str) -> list[Any]:
    assert answer.status in (200, 201), answer.body
    assert (answer.json["v"], answer.json["kind"]) == (1, kind)
    found: list[Any] = answer.json["items"]
    return found


def note(namespace: str, value: str, **fields: Any) -> dict[str, Any]:
    return {"namespace": namespace, "value": value, **fields}


# What is right


@pytest.mark.end_to_end
def test_what_is_written_is_listed_newest_first_and_shown_by_how_its_id_begins(wire: Wire) -> None:
    first, second = written(wire, note("list/a", "one"), note("list/a", "two"))
    (third,) = written(wire, note("list/b", "three", zone="device", ttl_s=3600))

    listed = items(wire.ask("GET", f"/v1/memory?namespace={quote('list/*')}"), "EntryList")
    assert [one["value"] for one in listed] == ["three", "two", "one"]
    assert [one["id"] for one in listed] == [third["id"], second["id"], first["id"]]
    limited = wire.ask("GET", "/v1/memory?namespace=list/a&limit=1&zone=mesh&author=solo")
    assert [one["value"] for one in limited.json["items"]] == ["two"]
    assert wire.ask("GET", "/v1/memory?zone=device").json["items"] == [third]
    assert 0 < third["expires_ms"] - third["at_ms"] <= 3_600_000
    shown = wire.ask("GET", f"/v1/memory/entries/{first['id'][:12]}").json
    assert (shown["value"], shown["author_name"], shown["state"]) == ("one", "solo", "shown")


# What is written under a key, one request after the other; the type and the value that then stand.
VALUES: dict[str, tuple[list[dict[str, Any]], str, Any]] = {
    "a register has its newest value": (
        [{"type": "register", "value": {"a": 1}}, {"type": "register", "value": [True, "ä"]}],
        "register",
        [True, "ä"],
    ),
    "a shared register has one value without conflict": (
        [{"type": "shared", "value": 1}, {"type": "shared", "value": 2}],
        "shared",
        2,
    ),
    "a set has what was added and not removed": (
        [
            {"type": "set-add", "value": "a"},
            {"type": "set-add", "value": "b"},
            {"type": "set-remove", "value": "a"},
        ],
        "set",
        ["b"],
    ),
    "a counter has the sum": (
        [{"type": "counter", "value": 5}, {"type": "counter", "value": "-2"}],
        "counter",
        3,
    ),
    "a maximum has the greatest": (
        [{"type": "maximum", "value": 9.5}, {"type": "maximum", "value": 2}],
        "maximum",
        9.5,
    ),
    "a minimum has the smallest": (
        [{"type": "minimum", "value": 9.5}, {"type": "minimum", "value": -2}],
        "minimum",
        -2,
    ),
    "a log has its newest lines": (
        [{"type": "log", "value": one, "keep": 2} for one in ("a", "b", "c")],
        "log",
        ["c", "b"],
    ),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize(("requests", "type_", "value"), VALUES.values(), ids=VALUES.keys())
def test_a_key_has_the_value_that_its_type_makes_of_what_was_written(
    wire: Wire, requests: list[dict[str, Any]], type_: str, value: Any
) -> None:
    key = f"P-12/{type_}"
    for one in requests:
        written(wire, {"namespace": "values", "key": key, **one})

    (found,) = items(wire.ask("GET", f"/v1/memory/value?key={key}"), "ValueList")
    assert (found["type"], found["value"], found["conflict"]) == (type_, value, False)
    named = wire.ask("GET", f"/v1/memory/value?namespace=values&zone=mesh&key={key}")
    assert named.json["items"] == [found]
    history = items(wire.ask("GET", f"/v1/memory/history?namespace=val*&key={key}"), "EntryList")
    assert {one["namespace"] for one in history} == {"values"}


@pytest.mark.end_to_end
@pytest.mark.parametrize(("type_", "number"), [("maximum", 9), ("minimum", -9)])
def test_what_was_said_before_is_answered_with_the_entry_that_says_it(
    wire: Wire, type_: str, number: int
) -> None:
    asked = {"namespace": "said", "key": type_, "type": type_}
    (first,) = written(wire, {**asked, "value": number})
    assert written(wire, {**asked, "value": number}, {**asked, "value": 0}) == [first, first]


@pytest.mark.end_to_end
def test_a_note_is_renewed_without_its_text_and_stands_once(wire: Wire) -> None:
    source = {"name": "observations.csv", "sha256": "ab" * 32, "size_bytes": 9, "observations": 14}
    (old,) = written(wire, note("renew/a", "it leaks", sources=[source], ttl_s=60))
    (new,) = written(wire, {"namespace": "renew/a", "renews": old["id"][:16]})
    assert (new["value"], new["sources"]) == ("it leaks", [source])
    assert new["expires_ms"] > old["expires_ms"]
    assert wire.ask("GET", "/v1/memory?namespace=renew/a").json["items"] == [new]


@pytest.mark.end_to_end
def test_the_meshs_own_records_are_listed_without_what_they_say_and_not_forgotten(
    wire: Wire,
) -> None:
    answer = wire.ask("GET", f"/v1/memory?namespace={quote('_mesh/members')}")
    (member,) = items(answer, "EntryList")
    assert member["key"].startswith(f"{member['author']}/")
    assert member["value"] is None

    body = json.dumps({"ids": [member["id"]]}).encode()
    refused = wire.ask("POST", "/v1/memory/forget", body)

    assert refused.status == 400
    assert "covey revoke" in refused.body.decode()


@pytest.mark.end_to_end
def test_recall_answers_with_the_text_and_where_it_is_from(wire: Wire) -> None:
    source = {"name": "observations.csv", "sha256": "ab" * 32, "size_bytes": 9, "observations": 14}
    (one,) = written(wire, note("recall/a", "seals fail after vibration", sources=[source]))
    written(wire, note("recall/b", "seals are blue"))

    def found(query: str) -> Any:
        return wire.ask("GET", f"/v1/memory/recall?q=why+do+seals+fail{query}").json

    wait_until(lambda: len(found("")["hits"]) == 2, "both are in the index")
    best = found("&k=1&namespace=recall/*&author=solo")
    assert [hit["entry"]["id"] for hit in best["hits"]] == [one["id"]]
    assert best["hits"][0]["entry"]["sources"] == [source]
    assert (best["question"], best["hits"][0]["by_words"]) == ("why do seals fail", 1)
    assert "no embedding model" in best["notes"][0]
    assert [hit["entry"]["value"] for hit in found("&namespace=recall/b")["hits"]] == [
        "seals are blue"
    ]


@pytest.mark.end_to_end
def test_what_is_forgotten_is_told_by_events_and_found_nowhere(wire: Wire, peer: LocalPeer) -> None:
    with Wire.to(peer) as listening:
        heard = (event["memory"] for _, event in listening.events() if event["kind"] == "memory")
        (one,) = written(wire, note("forget/a", "gone tomorrow"))
        assert [entry["id"] for entry in next(heard)["added"]] == [one["id"]]
        asked = json.dumps({"ids": [one["id"][:16]]}).encode()
        done = wire.ask("POST", "/v1/memory/forget", asked).json
        assert (done["forgotten"], len(done["records"])) == (1, 1)
        assert next(one for change in heard for one in change["gone"]) == one["id"]
    with Wire.to(peer) as resumed:
        for _, event in resumed.events("?after=0"):
            assert "gone tomorrow" not in json.dumps(event)
            if event["memory"] and one["id"] in event["memory"]["gone"]:
                break

    assert wire.ask("GET", "/v1/memory?namespace=forget/a").json["items"] == []
    states = {
        entry["id"]: (entry["state"], entry["value"])
        for entry in wire.ask("GET", "/v1/memory?namespace=forget/a&all=1").json["items"]
    }
    assert states[one["id"]] == ("forgotten", None)
    assert wire.ask("GET", "/v1/memory/recall?q=tomorrow").json["hits"] == []
    assert b"gone tomorrow" not in exported(wire, "forget/a")


def exported(wire: Wire, namespace: str) -> bytes:
    """Ask for an export, and read its chunks; the connection is ready for the next request."""
    wire.send(request("GET", f"/v1/memory/export?namespace={namespace}"))
    status, headers = wire.head()
    assert (status, headers["content-type"]) == (200, "application/jsonl")
    body = b""
    while (size := int(wire.line(), 16)) > 0:
        chunk = b""
        while len(chunk) < size:
            chunk += wire.line()
        assert len(chunk) == size, "chunks are whole lines"
        assert wire.line() == b"\r\n"
        body += chunk
    assert wire.line() == b"\r\n"
    return body


@pytest.mark.end_to_end
def test_what_belongs_to_the_device_is_neither_exported_nor_taken_in(wire: Wire) -> None:
    written(
        wire,
        note("export/own", "only here") | {"zone": "device"},
    )
    written(wire, note("export/shared", "for all"))
    assert exported(wire, "export/own") == b""

    line = json.loads(exported(wire, "export/shared"))
    for name, zone in (("export/own", "device"), ("export/shared", "mesh")):
        taken = wire.ask(
            "POST",
            "/v1/memory/import",
            json.dumps(line | {"namespace": name, "zone": zone}).encode(),
        )
        why = (
            ["export/own: what belongs to zone device stays on its device"]
            if zone == "device"
            else []
        )
        assert (taken.status, taken.json["refused"]) == (200, why)


@pytest.mark.end_to_end
def test_an_export_can_be_taken_in_again_and_leaves_the_connection_as_it_was(wire: Wire) -> None:
    notes = [note("export/a", f"text {number}") for number in range(250)]
    wrote = [one for start in (0, 100, 200) for one in written(wire, *notes[start : start + 100])]

    whole = exported(wire, "export/a")
    lines = [json.loads(line) for line in whole.splitlines()]
    assert {line["shows"]["id"] for line in lines} == {one["id"] for one in wrote}
    assert exported(wire, "export/nothing") == b""
    taken = wire.ask("POST", "/v1/memory/import", whole)
    assert (taken.status, taken.json["refused"]) == (200, [])
    assert len(exported(wire, "export/a").splitlines()) == 250

    header = bytearray(base64.b64decode(lines[0]["header"]))
    header[-1] ^= 1
    forged = lines[0] | {"header": base64.b64encode(header).decode()}
    refused = wire.ask("POST", "/v1/memory/import", json.dumps(forged).encode())
    assert (refused.status, refused.json["taken"], len(refused.json["refused"])) == (200, 0, 1)


@pytest.mark.end_to_end
def test_the_memory_is_checked_counted_and_compared(wire: Wire) -> None:
    written(wire, note("stats/a", "one"))
    checked = wire.ask("POST", "/v1/memory/verify").json
    assert checked["problems"] == []
    assert checked["entries"] >= checked["payloads"] >= 1
    stats = wire.ask("GET", "/v1/memory/stats").json
    (named,) = [one for one in stats["namespaces"] if one["name"] == "stats/a"]
    assert (named["zone"], named["shown"], named["authors"]) == ("mesh", 1, 1)
    for body in (b"", b"{}", b'{"timeout_s": 1, "audit": true}'):
        assert items(wire.ask("POST", "/v1/memory/sync", body), "ExchangeList") == []


# What is wrong

A = {"namespace": "bad/a", "value": "x"}
LINE = {"zone": "mesh", "namespace": "bad/a", "header": "!", "payload": None}
DEEP = json.loads("[" * 33 + "]" * 33)
LINES = b"\n".join([json.dumps(LINE).encode()] * 1001)
# Method and path; the body; the status; what the problem must say.
BAD: dict[str, tuple[str, Any, int, str]] = {
    "nothing to write": ("POST /v1/memory", [], 400, "length >= 1"),
    "too much at once": ("POST /v1/memory", [A] * 101, 400, "length <= 100"),
    "no list": ("POST /v1/memory", A, 400, "Expected `array`"),
    "an unknown field": ("POST /v1/memory", [A | {"tpye": "note"}], 400, "tpye"),
    "an unknown type": ("POST /v1/memory", [A | {"type": "graph"}], 400, "graph"),
    "a renewal of nothing": ("POST /v1/memory", [A | {"renews": "00000000"}], 404, "covey memory ls"),
    "a renewal of no id": ("POST /v1/memory", [A | {"renews": "x"}], 400, "hexadecimal"),
    "a register nested too deeply": (
        "POST /v1/memory", [A | {"type": "register", "key": "k", "value": DEEP}],
        400, "at most 32 levels",
    ),
    "no namespace": ("POST /v1/memory", [{"value": "x"}], 400, "namespace"),
    "a namespace of covey's own": ("POST /v1/memory", [A | {"namespace": "_mesh/x"}], 400, "own"),
    "a namespace with a wildcard": ("POST /v1/memory", [A | {"namespace": "a/*"}], 400, "wildcard"),
    "a zone that this device is not in": (
        "POST /v1/memory", [A | {"zone": "plant-7"}], 400, "covey invite --zone",
    ),
    "two namespaces at once": (
        "POST /v1/memory", [A, A | {"namespace": "bad/b"}], 400, "one namespace",
    ),
    "a note with a key": ("POST /v1/memory", [A | {"key": "k"}], 400, "--type register"),
    "a counter without a key": ("POST /v1/memory", [A | {"type": "counter"}], 400, "needs a key"),
    "a counter that is no number": (
        "POST /v1/memory", [A | {"type": "counter", "key": "k"}], 400, "whole number",
    ),
    "a text for too long": ("POST /v1/memory", [A | {"ttl_s": 1e9}], 400, "400 days"),
    "a source with a digest that is none": (
        "POST /v1/memory", [A | {"sources": [{"name": "f", "sha256": "zz"}]}], 400, "sha256",
    ),
    "an element that is not there": (
        "POST /v1/memory", [A | {"type": "set-remove", "key": "none"}], 404, "covey memory",
    ),
    "a limit of none": ("GET /v1/memory?limit=0", None, 400, "at least 1"),
    "a limit that is no number": ("GET /v1/memory?limit=ten", None, 400, "limit"),
    "half a limit": ("GET /v1/memory?limit=1.5", None, 400, "whole number"),
    "all that is neither yes nor no": ("GET /v1/memory?all=yes", None, 400, "0 or 1"),
    "a query that is not known": ("GET /v1/memory?nmespace=x", None, 400, "namespace, zone"),
    "an author nobody knows": ("GET /v1/memory?author=nobody", None, 404, "covey peers"),
    "an id that is none": ("GET /v1/memory/entries/xyz", None, 400, "hexadecimal"),
    "an id that nothing has": ("GET /v1/memory/entries/00000000", None, 404, "covey memory ls"),
    "no key to look up": ("GET /v1/memory/value", None, 400, "'key'"),
    "a key that nothing has": ("GET /v1/memory/value?key=none", None, 404, "covey memory ls"),
    "a key without history": ("GET /v1/memory/history?key=none", None, 404, "covey memory ls"),
    "no question": ("GET /v1/memory/recall", None, 400, "'q'"),
    "an empty question": ("GET /v1/memory/recall?q=+", None, 400, "'q'"),
    "no answers wanted": ("GET /v1/memory/recall?q=x&k=0", None, 400, "k is a whole number"),
    "nothing to forget": ("POST /v1/memory/forget", {}, 400, "ids, or an author"),
    "an author to forget nobody knows": (
        "POST /v1/memory/forget", {"author": "nobody"}, 404, "covey peers",
    ),
    "an id to forget that nothing has": (
        "POST /v1/memory/forget", {"ids": ["00000000"]}, 404, "covey memory ls",
    ),
    "no namespace to rule": ("GET /v1/memory/policy", None, 400, "'namespace'"),
    "nothing to rule": ("POST /v1/memory/policy", {}, 400, "namespace"),
    "a writer that is none": (
        "POST /v1/memory/policy", {"namespace": "a", "writers": ["all"]}, 400, "peer:NAME",
    ),
    "room for nothing": ("POST /v1/memory/policy", {"namespace": "a", "entries": 0}, 400, "1 to 10000"),
    "a ttl of nothing": ("POST /v1/memory/policy", {"namespace": "a", "ttl_s": 0}, 400, "1 s to 400 days"),
    "a zone of no name": (
        "POST /v1/memory/policy", {"namespace": "a", "writers": ["zone:"]}, 400, "is no writer",
    ),
    "a policy with a wildcard": ("POST /v1/memory/policy", {"namespace": "a/*"}, 400, "wildcard"),
    "a wait of no time": ("POST /v1/memory/sync", {"timeout_s": 0}, 400, "timeout_s"),
    "a wait without end": ("POST /v1/memory/sync", {"timeout_s": 601}, 400, "at most 600"),
    "a peer nobody knows": ("POST /v1/memory/sync", {"peer": "nobody"}, 404, "covey peers"),
    "an import that is none": ("POST /v1/memory/import", b"time,vibration\n", 400, "the body"),
    "an import that is damaged": ("POST /v1/memory/import", LINE, 400, "damaged"),
    "too long an import": ("POST /v1/memory/import", LINES, 400, "at most 1000"),
    "a wrong method": ("POST /v1/memory/stats", None, 405, "use GET"),
}  # fmt: skip


@pytest.mark.end_to_end
@pytest.mark.parametrize(("asked", "body", "status", "says"), BAD.values(), ids=BAD.keys())
def test_a_wrong_request_is_a_problem_that_says_what_to_do(
    wire: Wire, asked: str, body: Any, status: int, says: str
) -> None:
    method, path = asked.split()
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()

    answer = wire.ask(method, path, data)

    assert (answer.status, answer.headers["content-type"]) == (status, "application/problem+json")
    told = answer.json
    assert told["detail"]
    assert told["remedy"]
    assert "covey tasks" not in told["remedy"]
    assert says in f"{told['detail']}; {told['remedy']}"


# An export that breaks


class Breaking(SharedMemory):
    """A memory whose export ends as a test wants it to."""

    def __init__(self, lines: int, then: Exception | Literal["ends", "goes on"]) -> None:
        self.left = trio.Event()
        self._count, self._then = lines, then

    async def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        """Give some lines, and then fail, end, or go on for ever."""
        try:
            for _ in range(self._count):
                yield b"{}\n"
            while self._then == "goes on":
                yield b"x" * 65536
            if isinstance(self._then, Exception):
                raise self._then
        finally:
            self.left.set()


class Asked(Service):
    """A service that has a memory and nothing else."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory


@asynccontextmanager
async def exporting(memory: SharedMemory) -> AsyncGenerator[trio.SocketStream]:
    """Serve a memory, and ask it for an export."""
    ended = trio.Event()
    with short_folder() as folder:
        place = folder / "api.sock"
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
                app = make_app(Asked(memory))
                await serve_app(app, place, None, "", ended.wait, task_status=task_status)  # type: ignore[arg-type]

            await nursery.start(serve)
            async with await trio.open_unix_socket(str(place)) as stream:
                await stream.send_all(request("GET", "/v1/memory/export"))
                yield stream
            ended.set()


async def test_an_export_that_fails_before_its_first_line_is_a_problem() -> None:
    async with exporting(Breaking(0, Unavailable("the disk; see: covey doctor"))) as stream:
        with trio.fail_after(10):
            said = await stream.receive_some()
    assert said.startswith(b"HTTP/1.1 503 ")
    assert b'"covey:unavailable"' in said


async def test_an_export_that_fails_later_does_not_look_like_a_whole_one() -> None:
    said = b""
    async with exporting(Breaking(3, Unavailable("the disk"))) as stream:
        with trio.fail_after(10):
            while not said.endswith(b"0\r\n\r\n") and (more := await stream.receive_some()):
                said += more
    assert said.startswith(b"HTTP/1.1 200 ")
    assert said.count(b"{}\n") == 3
    assert not said.endswith(b"0\r\n\r\n"), "the end of the last chunk says that it is whole"


async def test_an_export_ends_when_its_reader_has_left() -> None:
    memory = Breaking(3, "goes on")
    async with exporting(memory) as stream:
        await stream.receive_some()
        await stream.aclose()
        with trio.fail_after(10):
            await memory.left.wait()


async def test_a_connection_that_is_idle_after_an_export_is_closed_in_the_end(
    autojump_clock: MockClock,
) -> None:
    said = b""
    async with exporting(Breaking(3, "ends")) as stream:
        while not said.endswith(b"0\r\n\r\n"):
            said += await stream.receive_some()
        with trio.fail_after(KEEP_ALIVE_S + 1):
            assert await stream.receive_some() == b""
