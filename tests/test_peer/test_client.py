"""What does the client do when the daemon answers, errs, restarts, or is gone halfway?"""

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from io import BufferedReader
from pathlib import Path
from types import FrameType

import pytest
from test_peer.daemons import PATIENCE_S, running_peer, short_folder

from covey.peer.client import (
    AlreadyThere,
    AnswerLost,
    BadRequest,
    Client,
    ClientError,
    DaemonNotRunning,
    Denied,
    NotFoundHere,
    TaskFailed,
    UnavailableNow,
    connect,
)
from covey.peer.client.client import PAUSE_S, default_home
from covey.peer.local_mesh import LocalPeer, wait_until
from covey.peer.memory.views import ExportedEntry, WriteRequest

TASK = {
    "id": "00" * 16,
    "skill": "x",
    "state": "done",
    "reason": "",
    "zone": "mesh",
    "submitted_ms": 1,
    "deadline_ms": 2,
    "result": 7,
}


@dataclass(frozen=True, slots=True)
class Deed:
    """What a scripted daemon does once it has read a request."""

    says: bytes = b""
    leaves: bool = False


class Scripted:
    """A daemon that reads each request whole and then does the next thing of its script.

    The last one again for every request after the script's end.
    """

    def __init__(self, path: Path, deeds: list[Deed]) -> None:
        self.path = path
        self.heard: list[str] = []
        self.connections = 0
        self.closed = 0
        self._deeds = deeds
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """End it. A client of the test must have left."""
        self._listening.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listening.close()

    def has_closed(self, count: int) -> bool:
        """Tell whether that many connections were closed."""
        return self.closed == count

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(PATIENCE_S)
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as read, suppress(OSError):
            while (asked := _asked(read)) is not None:
                self.heard.append(asked)
                deed = self._deeds.pop(0) if len(self._deeds) > 1 else self._deeds[0]
                connection.sendall(deed.says)
                if deed.leaves:
                    break
            connection.shutdown(socket.SHUT_RDWR)
        self.closed += 1


def _asked(read: BufferedReader) -> str | None:
    """Read a request; returns its method, path and last event id."""
    first = read.readline().decode().split(" ")[:2]
    if len(first) < 2:
        return None
    length, last = 0, ""
    while (line := read.readline().strip().lower()) != b"":
        name, _, value = line.partition(b": ")
        if name == b"content-length":
            length = int(value)
        elif name == b"last-event-id":
            last = f" after {value.decode()}"
    read.read(length)
    return " ".join(first) + last


LEAVES = Deed(leaves=True)


def answers(body: object, status: int = 200, *, leaves: bool = False) -> Deed:
    return Deed(_answer(body, status), leaves)


def _answer(body: object, status: int) -> bytes:
    data = json.dumps(body).encode()
    return b"HTTP/1.1 %d \r\ncontent-length: %d\r\n\r\n%b" % (status, len(data), data)


def told(*events: tuple[int, str], more: str = "") -> Deed:
    """Tell events, with more fields, and break off."""
    head = b"HTTP/1.1 200 \r\ncontent-type: text/event-stream\r\n\r\n: covey\n\n"
    lines = [
        f'id: {place}\nevent: {kind}\ndata: {{"id":{place},"kind":"{kind}","at_ms":1{more}}}\n\n'.encode()
        for place, kind in events
    ]
    return Deed(head + b"".join(lines), leaves=True)


@contextmanager
def scripted(*deeds: Deed) -> Generator[tuple[Client, Scripted]]:
    with short_folder() as folder:
        daemon = Scripted(folder / "api.sock", list(deeds))
        try:
            with connect(socket_path=daemon.path) as client:
                yield client, daemon
        finally:
            daemon.close()


# A connection that breaks


def test_one_connection_is_kept_for_many_calls() -> None:
    with scripted(answers(TASK)) as (client, daemon):
        for _ in range(3):
            assert client.submit("x").id == TASK["id"]
            assert client.task("last").result == 7
        assert daemon.connections == 1


def test_a_kept_connection_that_was_closed_meanwhile_is_not_used_for_anything() -> None:
    with scripted(answers(TASK, leaves=True)) as (client, daemon):
        calls = (lambda: client.submit("x"), lambda: client.task("last"))
        for number, call in enumerate(calls * 3, start=1):
            call()
            wait_until(partial(daemon.has_closed, number), "the daemon has closed")
        assert daemon.heard == ["POST /v1/tasks", "GET /v1/tasks/last"] * 3, "each was sent once"


REPEATABLE: dict[str, Callable[[Client], object]] = {
    "a question": lambda client: client.task("last"),
    "a task with a key": lambda client: client.submit("x", key="k"),
    "a task with a key, waiting": lambda client: client.run("x", key="k", wait_s=1),
    "a cancel": lambda client: client.cancel("last"),
}


@pytest.mark.parametrize("call", REPEATABLE.values(), ids=REPEATABLE.keys())
def test_what_can_be_repeated_is_repeated_once_where_a_kept_connection_breaks(
    call: Callable[[Client], object],
) -> None:
    with scripted(answers(TASK), LEAVES, answers(TASK)) as (client, daemon):
        client.task("last")
        call(client)
        assert len(daemon.heard) == 3
        assert daemon.heard[1] == daemon.heard[2]
    with scripted(answers(TASK), LEAVES) as (client, daemon):
        client.task("last")
        with pytest.raises(DaemonNotRunning, match="covey up -d"):
            call(client)
        assert len(daemon.heard) == 3, "once, not for ever"


@pytest.mark.parametrize("kept", [True, False])
def test_a_task_without_a_key_is_never_sent_twice(kept: bool) -> None:
    with scripted(*([answers(TASK)] if kept else []), LEAVES) as (client, daemon):
        if kept:
            client.task("last")
        with pytest.raises(AnswerLost, match="covey tasks") as caught:
            client.submit("x")
        assert caught.value.exit_code == 1
        assert daemon.heard.count("POST /v1/tasks") == 1


def test_a_first_connection_that_breaks_is_not_tried_again() -> None:
    with scripted(LEAVES) as (client, daemon):
        with pytest.raises(DaemonNotRunning):
            client.task("last")
        assert len(daemon.heard) == 1


# Errors


@pytest.mark.parametrize(
    ("kind", "error", "code"),
    [
        ("not-found", NotFoundHere, 4),
        ("not-admitted", Denied, 5),
        ("no-token", Denied, 5),
        ("wrong-host", Denied, 5),
        ("conflict", AlreadyThere, 6),
        ("bad-request", BadRequest, 2),
        ("too-large", BadRequest, 2),
        ("unavailable", UnavailableNow, 8),
        ("something-new", ClientError, 1),
    ],
)
def test_a_problem_becomes_the_error_that_a_caller_can_act_on(
    kind: str, error: type[ClientError], code: int
) -> None:
    body = {"type": f"covey:{kind}", "title": "t", "status": 400, "detail": "d", "remedy": "r"}
    with scripted(answers(body, 400)) as (client, _), pytest.raises(error) as caught:
        client.task("last")
    assert type(caught.value) is error
    assert (caught.value.kind, caught.value.remedy, str(caught.value)) == (kind, "r", "d; r")
    assert caught.value.exit_code == code


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 \r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 \r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 502 \r\ncontent-length: 4\r\n\r\nnope",
        b"HTTP/1.1 200 \r\ncontent-length: 99\r\n\r\n{",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"\x00" * 70_000,
    ],
)
def test_an_answer_of_something_else_is_an_error_of_the_client_and_nothing_worse(
    said: bytes,
) -> None:
    with scripted(Deed(said, leaves=True)) as (client, _):
        with pytest.raises(ClientError):
            client.task("last")
        with pytest.raises(ClientError):
            client.submit("x")
        with pytest.raises(ClientError):
            next(client.events(resume_s=0))


def test_no_daemon_is_said_with_how_to_start_one() -> None:
    with short_folder() as folder, connect(home=folder) as client:
        with pytest.raises(DaemonNotRunning, match=r"run/api\.sock; start it with: covey up -d"):
            client.status()
        with pytest.raises(DaemonNotRunning):
            client.submit("x")
        with pytest.raises(DaemonNotRunning):
            next(client.events())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(DaemonNotRunning, match=f"127.0.0.1:{port}"):
            connect(address=("127.0.0.1", port), token="t").status()
    with pytest.raises(ClientError):
        connect(socket_path="/tmp/" + "x" * 200).status()


def test_only_a_finished_task_has_a_result() -> None:
    with scripted(answers(TASK), answers({**TASK, "state": "failed", "reason": "why"})) as (
        client,
        _,
    ):
        assert client.result(client.task("last")) == 7
        with pytest.raises(TaskFailed, match="why"):
            client.result(client.task("last"))


# Events


def test_events_go_on_where_they_broke_off() -> None:
    with scripted(
        told((1, "task"), (2, "task")), LEAVES, told(), told((3, "peer"), (4, "bye"))
    ) as (client, daemon):
        assert [event.id for event in client.events()] == [1, 2, 3, 4]
    first, *others = daemon.heard
    assert first == "GET /v1/events"
    assert others == ["GET /v1/events after 2"] * 3


def test_a_daemon_that_does_not_come_back_ends_the_events_after_a_bounded_number_of_tries() -> None:
    with scripted(told((1, "task")), LEAVES) as (client, daemon):
        heard = client.events(resume_s=0.4)
        assert next(heard).id == 1
        with pytest.raises(DaemonNotRunning):
            next(heard)
    assert 2 <= len(daemon.heard) <= 8, "it pauses between tries"


def test_streams_that_end_at_once_are_not_asked_for_without_pause() -> None:
    with scripted(*[told()] * 5, told((1, "bye"))) as (client, daemon):
        began = time.perf_counter()
        assert [event.kind for event in client.events()] == ["bye"]
    assert len(daemon.heard) == 6
    assert time.perf_counter() - began > 5 * PAUSE_S


def test_a_refused_listener_hears_why() -> None:
    body = {"type": "covey:not-found", "title": "t", "status": 404, "detail": "no task"}
    with (
        scripted(answers(body, 404)) as (client, daemon),
        pytest.raises(NotFoundHere, match="no task"),
    ):
        next(client.events(task="nobody"))
    assert daemon.heard == ["GET /v1/events?task=nobody"]


# The shared memory

LINE = ExportedEntry(zone="mesh", namespace="a", header="AAAA", payload=None)
ENTRY = {
    "id": "ab" * 32,
    "namespace": "a",
    "zone": "mesh",
    "author": "p",
    "author_name": "solo",
    "at_ms": 1,
    "expires_ms": 2,
    "type": "note",
    "lifetime": "normal",
    "state": "shown",
}
ENTRIES = {"v": 1, "kind": "EntryList", "items": [ENTRY]}
WRITES: dict[str, Callable[[Client], object]] = {
    "what is remembered": lambda client: client.remember("a", "x"),
    "what is remembered together": lambda client: client.remember_all(
        [WriteRequest(namespace="a", type="counter", key="k", value=1)]
    ),
    "what is forgotten": lambda client: client.forget("ab"),
}


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES.keys())
def test_what_would_count_twice_is_never_sent_twice(call: Callable[[Client], object]) -> None:
    with scripted(answers(TASK), LEAVES) as (client, daemon):
        client.task("last")
        with pytest.raises(AnswerLost, match="look before you repeat it: covey memory ls"):
            call(client)
        assert len(daemon.heard) == 2


ASKED: dict[str, tuple[Callable[[Client], object], object]] = {
    "a list": (lambda client: client.memory_entries("a"), ENTRIES),
    "an entry": (lambda client: client.memory_entry("ab"), ENTRY),
    "a recall": (lambda client: client.recall("why"), {"question": "", "hits": [], "searched": 0}),
    "an import": (lambda client: client.memory_import([LINE]), {"taken": 1, "refused": []}),
    "a check": (
        lambda client: client.memory_verify(),
        {"entries": 1, "payloads": 1, "certificates": 1, "problems": [], "took_ms": 1},
    ),
}


@pytest.mark.parametrize(("call", "answer"), ASKED.values(), ids=ASKED.keys())
def test_what_changes_nothing_when_it_is_sent_twice_is_repeated_once(
    call: Callable[[Client], object], answer: object
) -> None:
    with scripted(answers(TASK), LEAVES, answers(answer)) as (client, daemon):
        client.task("last")
        call(client)
        assert daemon.heard[1] == daemon.heard[2]
        assert len(daemon.heard) == 3


def test_what_is_asked_is_sent_as_it_was_written() -> None:
    with scripted(answers(ENTRY), answers(ENTRIES)) as (client, daemon):
        client.memory_entry("a/b?c#%\udcff")
        client.memory_entries("plant/*", author="ä b", all_states=True, limit=7)
    assert daemon.heard == [
        "GET /v1/memory/entries/a%2Fb%3Fc%23%25%3F",
        "GET /v1/memory?namespace=plant%2F%2A&author=%C3%A4+b&limit=7&all=1",
    ]


@pytest.mark.parametrize(
    ("lines", "requests"),
    [([], 0), ([LINE] * 1000, 1), ([LINE] * 1001, 2)],
    ids=["nothing", "as many as one request may hold", "one more"],
)
def test_an_import_is_sent_in_as_many_requests_as_it_needs(
    lines: list[ExportedEntry], requests: int
) -> None:
    with scripted(answers({"taken": 5, "refused": ["old"]})) as (client, daemon):
        done = client.memory_import(iter(lines))
    assert daemon.heard == ["POST /v1/memory/import"] * requests
    assert (done.taken, len(done.refused)) == (5 * requests, requests)


def test_long_lines_of_an_import_stay_below_what_the_daemon_takes_at_once() -> None:
    long = ExportedEntry(zone="mesh", namespace="a", header="", payload="A" * 400_000, shows="x")
    with scripted(answers({"taken": 1, "refused": []})) as (client, daemon):
        assert client.memory_import([long] * 5).taken == 3
    assert len(daemon.heard) == 3


def exported(*chunks: bytes, ends: bool) -> Deed:
    head = b"HTTP/1.1 200 \r\ncontent-type: application/jsonl\r\ntransfer-encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return Deed(head + body + (b"0\r\n\r\n" if ends else b""), leaves=True)


def test_an_export_comes_line_by_line_however_it_is_cut() -> None:
    line = b'{"zone":"mesh","namespace":"a","header":"AAAA","payload":null}\n'
    with scripted(exported(line[:9], line[9:] + line, line[:1], line[1:], ends=True)) as (
        client,
        _,
    ):
        assert list(client.memory_export()) == [LINE] * 3


def test_an_export_that_breaks_off_is_an_error_and_not_an_end() -> None:
    line = b'{"zone":"mesh","namespace":"a","header":"AAAA","payload":null}\n'
    with scripted(exported(line, ends=False)) as (client, _):
        lines = client.memory_export()
        with pytest.raises(ClientError):
            list(lines)


def test_watching_the_memory_gives_its_changes_and_passes_over_the_rest() -> None:
    change = ',"memory":{"namespace":"a","zone":"mesh","gone":["ab"]}'
    with scripted(
        told((1, "task"), (2, "peer")), told((3, "memory"), more=change), told((4, "bye"))
    ) as (client, _):
        (seen,) = client.memory_watch()
    assert (seen.namespace, seen.gone) == ("a", ("ab",))


# With a real daemon


@pytest.mark.end_to_end
def test_what_a_program_remembers_it_can_ask_for_in_every_way(peer: LocalPeer) -> None:
    client = peer.client
    note = client.remember("plant/pumps", "P-12: vibration precedes seal failure", ttl_s=3600)
    client.remember("plant/pumps", 3, type="counter", key="failures")
    counts = WriteRequest(namespace="plant/pumps", type="counter", key="failures", value=1)
    assert len(client.remember_all([counts] * 2)) == 2
    assert client.memory_entry(note.id[:12]) == note
    assert note in client.memory_entries("plant/*", author="solo")
    (value,) = client.memory_value("failures")
    assert (value.type, value.value, value.counts[0].added) == ("counter", 5, 5)
    assert client.memory_history("failures", namespace="plant/pumps")[0].type == "counter"
    wait_until(lambda: client.recall("why do seals fail").hits, "it is in the index")
    assert client.recall("seal", k=1, namespace="plant/*").hits[0].entry == note
    lines = list(client.memory_export("plant/pumps"))
    assert client.memory_import(lines).refused == ()
    assert client.forget(note.id).forgotten == 1
    assert client.memory_entry(note.id).state == "forgotten"
    assert client.memory_verify().problems == ()
    assert client.memory_stats().entries >= 3
    assert client.memory_policy("plant/valves").by == ""
    said = client.set_memory_policy("plant/valves", writers=["admin"], entries=9, ttl_s=60)
    assert (said.writers, said.entries, said.ttl_s, said.quota) == (("admin",), 9, 60, 9)
    assert said == client.memory_policy("plant/valves")
    assert client.set_memory_policy("plant/valves").writers is None
    assert client.memory_sync(timeout_s=1) == []


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


@pytest.mark.end_to_end
def test_one_client_serves_before_and_after_the_daemon_restarts(peer: LocalPeer) -> None:
    with connect(home=peer.home) as client:
        before = client.run("covey.echo", {"n": 1}, wait_s=10)
        peer.stop()
        with pytest.raises(DaemonNotRunning):
            client.status()
        peer.start()
        assert client.task(before.id).result == {"n": 1}
        assert client.run("covey.echo", {"n": 2}, wait_s=10).result == {"n": 2}


@pytest.mark.end_to_end
def test_events_of_a_task_survive_a_killed_daemon(peer: LocalPeer) -> None:
    with connect(home=peer.home) as client:
        waiting = client.submit("nobody-can")
        heard = client.events(task=waiting.id)
        first = next(heard).task
        assert first is not None
        assert first.state == "queued"
        peer.kill()
        peer.start()
        peer.client.cancel(waiting.id)
        states = [event.task.state for event in heard if event.task]
        assert states[-1] == "cancelled"


@pytest.mark.end_to_end
def test_silence_is_an_error_where_a_listener_asked_for_it(peer: LocalPeer) -> None:
    with connect(home=peer.home) as client:
        silent = client.events(timeout_s=0.2)
        with pytest.raises(TimeoutError):
            next(silent)


@pytest.mark.end_to_end
@pytest.mark.parametrize("size", [1 << 20, 3 << 20, 30 << 20])
def test_an_input_that_is_too_large_is_refused_with_the_limit(peer: LocalPeer, size: int) -> None:
    with pytest.raises(BadRequest, match=r"over the limit|more than 2097152 bytes"):
        peer.client.submit("covey.echo", {"text": "x" * size})
    assert peer.client.status().name == "solo"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "name", ["a/b", "a?b=c&d", "../../key", "ä €", "\udcff", "x y", "\n", "%", "#"]
)
def test_any_name_can_be_asked_for(peer: LocalPeer, name: str) -> None:
    for call in (peer.client.task, peer.client.cancel):
        with pytest.raises(NotFoundHere):
            call(name)


@pytest.mark.end_to_end
def test_an_interrupted_wait_leaves_a_client_that_works(peer: LocalPeer) -> None:
    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with connect(home=peer.home) as client:
        waiting = client.submit("nobody-can")
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(KeyboardInterrupt):
                client.wait(waiting.id, timeout_s=30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert client.run("covey.echo", {"n": 1}, wait_s=10).result == {"n": 1}
        assert client.cancel(waiting.id).state == "cancelled"


@pytest.mark.parametrize(
    ("variables", "home"),
    [
        ({"COVEY_HOME": "/a/b"}, Path("/a/b")),
        ({"COVEY_HOME": "~/x", "HOME": "/h"}, Path("/h/x")),
        ({"XDG_DATA_HOME": "/d", "HOME": "/h"}, Path("/d/covey")),
        ({"HOME": "/h"}, Path("/h/.local/share/covey")),
    ],
)
def test_the_home_is_found_as_the_commands_find_it(
    variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("COVEY_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert default_home() == home
