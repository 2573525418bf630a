"""Do the commands of the shared memory say what it holds, who says so, and what cannot be promised?

How views are worded; commands on a real daemon; and, for what a lone and healthy daemon does not
answer, commands on a memory of these tests behind the real API.
"""

import base64
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from test_peer.daemons import PATIENCE_S, running_peer, short_folder

from covey.identity.errors import NotAdmitted, Unavailable
from covey.peer.api.routes import make_app
from covey.peer.api.server import serve_app
from covey.peer.cli import memory_text
from covey.peer.cli.group import main
from covey.peer.cli.shell import EXIT_CODES
from covey.peer.local_mesh import LocalPeer, wait_until
from covey.peer.memory.shared import SharedMemory
from covey.peer.memory.views import (
    CountView,
    ElementView,
    EntryView,
    ExchangeView,
    ExportedEntry,
    ForgetRequest,
    ForgetView,
    ImportView,
    NamespaceView,
    PolicyRequest,
    PolicyView,
    RecallHit,
    RecallView,
    SourceView,
    StepView,
    SyncRequest,
    ValueView,
    VerifyView,
    WriteRequest,
)
from covey.peer.service import Service
from covey.peer.views import StatusView, TrafficView

DAY_MS = 86_400_000
NOW_MS = 1_795_600_000_000  # 2026-11-25 09:46:40 in UTC
ENTRY = EntryView(
    id="3f2a9c01be77" + "0" * 52,
    namespace="plant/pumps",
    zone="mesh",
    author="12D3KooWline7",
    author_name="line-7",
    at_ms=NOW_MS - 7 * DAY_MS,
    expires_ms=NOW_MS + 83 * DAY_MS,
    type="note",
    lifetime="normal",
    state="shown",
    value="P-12: rising vibration precedes seal failure by two days",
    sources=(
        SourceView(name="observations.csv", sha256="ab" * 32, size_bytes=1200, observations=14),
    ),
    model="smollm2-135m-instruct",
)


def entry(value: Any = None, type_: str = "note", **fields: Any) -> EntryView:
    bare = {"sources": (), "model": "", "value": value, "type": type_}
    return msgspec.structs.replace(ENTRY, **bare | fields)


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


# How views are worded


@pytest.mark.parametrize(
    ("seconds", "says"),
    [
        (-300, "just now"),
        (4, "just now"),
        (59, "59 seconds ago"),
        (60, "1 minute ago"),
        (7199, "1 hour ago"),
        (2 * 86_400 - 1, "1 day ago"),
        (7 * 86_400, "7 days ago"),
        (90 * 86_400, "90 days ago"),
        (400 * 86_400, "13 months ago"),
        (800 * 86_400, "2 years ago"),
    ],
)
def test_an_age_is_told_in_words(seconds: int, says: str) -> None:
    assert memory_text.ago(NOW_MS - seconds * 1000, NOW_MS) == says


@pytest.mark.parametrize(
    ("one", "says"),
    [
        (entry("a\n text"), "a text"),
        (entry({"at": 42}, "register", key="k"), 'k = {"at":42}'),
        (entry("on", "shared", key="k"), "k = on"),
        (entry("P-12", "element", key="faulty"), "faulty: adds P-12"),
        (entry(-3, "counter", key="k"), "k: -3 in all"),
        (entry(9.8, "maximum", key="k"), "k: at least 9.8"),
        (entry(1, "minimum", key="k"), "k: at most 1"),
        (entry("began", "line", key="shift"), "shift: began"),
        (entry(None, "register", key="k"), "k: register"),
        (entry(None, "removal"), "takes elements out of their set"),
        (entry(None, "forgetting"), "lets entries be forgotten"),
        (entry(None, "of a later version"), "of a later version"),
    ],
)
def test_what_an_entry_says_tells_its_type(one: EntryView, says: str) -> None:
    assert memory_text.what(one) == says


def test_an_answer_tells_text_author_age_score_and_provenance() -> None:
    hit = RecallHit(score=0.03278, entry=ENTRY, by_words=1, by_meaning=2)
    assert memory_text.hit_text(1, hit, NOW_MS, None).splitlines() == [
        "1. P-12: rising vibration precedes seal failure by two days",
        "   line-7, 7 days ago, in plant/pumps; score 0.033 (words 1, meaning 2); 3f2a9c01be77",
        "   from observations.csv (14 observations), worded by smollm2-135m-instruct",
    ]


def test_an_answer_in_conflict_and_a_doubtful_one_say_so() -> None:
    other = entry(51, "shared", key="P-12/limit", author_name="line-3", at_ms=NOW_MS - DAY_MS)
    one = entry(42, "shared", key="P-12/limit", zone="plant-7", doubtful="it is in two places")
    hit = RecallHit(score=0.5, entry=one, conflicts=(other,))
    assert memory_text.hit_text(12, hit, NOW_MS, None).splitlines() == [
        "12. P-12/limit = 42",
        "    line-7, 7 days ago, in plant/pumps (zone plant-7); score 0.500; 3f2a9c01be77",
        "    doubtful: it is in two places",
        "    conflict: line-3, 1 day ago, says: P-12/limit = 51",
    ]


def test_an_answer_fits_a_narrow_terminal_and_loses_nothing() -> None:
    text = memory_text.hit_text(1, RecallHit(score=0.1, entry=ENTRY, by_words=1), NOW_MS, 50)
    assert max(map(len, text.splitlines())) <= 50
    wide = memory_text.hit_text(1, RecallHit(score=0.1, entry=ENTRY, by_words=1), NOW_MS, None)
    assert text.split() == wide.split()


def test_all_that_is_known_of_an_entry_is_shown() -> None:
    one = msgspec.structs.replace(ENTRY, derived_from=("cd" * 16,), method="summarize")
    assert memory_text.entry_text(one, NOW_MS).splitlines() == [
        f"entry      {ENTRY.id}",
        "says       P-12: rising vibration precedes seal failure by two days",
        "type       note, kept as normal",
        "state      shown",
        "in         plant/pumps, zone mesh",
        "author     line-7  12D3KooWline7",
        "written    2026-11-18 09:46, 7 days ago",
        "kept       until 2027-02-16 09:46, for 83 days",
        f"source     observations.csv, 14 observations, 1.2 kB, sha256 {'ab' * 32}",
        "worded by  smollm2-135m-instruct",
        "method     summarize",
        "made from  cdcdcdcdcdcd",
    ]


NO_POLICY = PolicyView(namespace="plant/pumps", zone="mesh", writers=None, quota=10_000)
BY = {"by": "12D3KooWgateway", "by_name": "gateway", "at_ms": NOW_MS - 60_000}
ALL_LIMITS = (
    "admins, members, members of zone east, line-7 may write; 500 entries of each author and "
    "lifetime; texts end after 30 days"
)
POLICIES: dict[str, tuple[dict[str, Any], str, str]] = {
    "none": ({}, "", "none: every member of zone mesh writes, 10,000 entries of each author"),
    "lifted": (
        BY,
        "",
        (
            "none: every member of zone mesh writes, 10,000 entries of each author; "
            "lifted by gateway, 1 minute ago"
        ),
    ),
    "everything": (
        {
            "writers": ("admin", "member", "zone:east", "peer:12D3KooWline7"),
            "writer_names": ("admin", "member", "zone:east", "peer:line-7"),
            "entries": 500,
            "ttl_s": 30 * 86_400,
            **BY,
        },
        ALL_LIMITS,
        f"{ALL_LIMITS}; by gateway, 1 minute ago; for what is written since",
    ),
    "nobody": (
        {"writers": (), **BY},
        "nobody may write",
        "nobody may write; by gateway, 1 minute ago; for what is written since",
    ),
    "a quota alone": (
        {"entries": 1, "zone": "east", **BY},
        "1 entry of each author and lifetime",
        (
            "every member of zone east writes; 1 entry of each author and lifetime; by gateway, "
            "1 minute ago; for what is written since"
        ),
    ),
}


@pytest.mark.parametrize(("fields", "cell", "says"), POLICIES.values(), ids=POLICIES)
def test_a_policy_says_who_writes_how_much_and_by_whose_word(
    fields: dict[str, Any], cell: str, says: str
) -> None:
    view = msgspec.structs.replace(NO_POLICY, **fields)
    assert memory_text.policy_text(view, NOW_MS) == says
    held = NamespaceView(
        name="plant/pumps", zone="mesh", entries=9, shown=7, authors=2, policy=view
    )
    assert memory_text.held(held, NOW_MS) == ["plant/pumps", "mesh", "7", "9", "2", "", cell]


def standing(type_: str, value: Any, **fields: Any) -> ValueView:
    return ValueView(
        namespace="plant/pumps", zone="mesh", key="k", type=type_, value=value, **fields
    )


COUNTS = tuple(
    CountView(author=name, author_name=name, added=added, taken=taken, at_ms=NOW_MS - DAY_MS)
    for name, added, taken in (("line-3", 5, 0), ("line-7", 2, 3))
)
VALUES: dict[str, tuple[ValueView, list[str]]] = {
    "a register": (
        standing("register", 42, entries=(entry(42, "register"), entry(41, "register"))),
        ["k in plant/pumps (register)", "  42   by line-7, 7 days ago; 3f2a9c01be77"],
    ),
    "a conflict": (
        standing("shared", 1, conflict=True, entries=(entry(1, "shared"), entry("b", "shared"))),
        [
            "k in plant/pumps (shared)",
            "  in conflict: 2 values stand, the newest first",
            "  1   by line-7, 7 days ago; 3f2a9c01be77",
            "  b   by line-7, 7 days ago; 3f2a9c01be77",
        ],
    ),
    "a counter with a part that is gone": (
        standing("counter", 4, counts=COUNTS, lapsed=(entry(None, "counter"),)),
        [
            "k in plant/pumps (counter)",
            "  4",
            "    line-3 +5, 1 day ago",
            "    line-7 +2 -3, 1 day ago",
            "  lacking: what line-7 wrote 7 days ago; its text is gone",
        ],
    ),
    "a set": (
        standing("set", ["a"], elements=(ElementView(value="a", added_by=(ENTRY,)),)),
        ["k in plant/pumps (set)", "  a   added by line-7 7 days ago"],
    ),
    "a log": (
        standing("log", ["began"], entries=(entry("began", "line"),)),
        ["k in plant/pumps (log)", "  2026-11-18 09:46  line-7  began"],
    ),
    "a maximum of nothing, and not all of it": (
        standing("maximum", None, complete=False),
        [
            "k in plant/pumps (maximum)",
            "  nothing",
            "  not complete: more stands here than one answer looks at",
        ],
    ),
}


@pytest.mark.parametrize(("value", "says"), VALUES.values(), ids=VALUES.keys())
def test_what_stands_under_a_key_is_shown_with_who_says_so(
    value: ValueView, says: list[str]
) -> None:
    assert memory_text.value_text(value, NOW_MS).splitlines() == says


# Commands


@dataclass(frozen=True, slots=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON object."""
        return json.loads(self.out)


class Terminal(io.TextIOWrapper):
    """Standard input as a person types it."""

    def isatty(self) -> bool:
        """Say that it is a terminal."""
        return True


Run = Callable[..., Ran]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run a command in this process; standard input is no terminal unless `typed` is given."""

    def run(home: Path, *arguments: str, stdin: str = "", typed: str | None = None) -> Ran:
        monkeypatch.setenv("COVEY_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["covey", *arguments])
        kind = io.TextIOWrapper if typed is None else Terminal
        monkeypatch.setattr(sys, "stdin", kind(io.BytesIO((typed or stdin).encode())))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfdbinary.readouterr()
        out, err = said.out.decode(), said.err.decode()
        assert "Traceback" not in out + err
        assert isinstance(ended.value.code, int)
        assert ended.value.code in EXIT_CODES
        return Ran(ended.value.code, out, err)

    return run


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


@pytest.fixture
def observations(tmp_path: Path) -> Path:
    """Raw data, of which nothing may travel."""
    file = tmp_path / "observations.csv"
    file.write_text("".join(f"P-12;{value};SECRETREADING\n" for value in range(14)) + "\n")
    return file


@pytest.mark.end_to_end
def test_a_note_is_remembered_with_its_source_recalled_and_forgotten(
    peer: LocalPeer, run: Run, observations: Path
) -> None:
    text = "P-12: rising vibration precedes seal failure"
    told = run(
        peer.home, "remember", "plant/pumps", text, "--from", str(observations), "--ttl", "90d"
    )
    assert (told.code, told.err) == (
        0,
        "read observations.csv (14 lines) here; its content stays here\n",
    )
    name = told.out[:12]
    assert re.fullmatch(r"[0-9a-f]{12}  in plant/pumps, shared within mesh, until .*\n", told.out)

    question = ("recall", "why do seals fail", "-k", "1", "--namespace", "plant/*")
    wait_until(lambda: run(peer.home, *question).code == 0, "it is in the index")
    told = run(peer.home, *question)
    first, second, third = told.out.splitlines()
    assert first == f"1. {text}"
    assert re.match(rf"   solo, .*, in plant/pumps; score 0\.\d+ \(words 1\); {name}$", second)
    assert third == "   from observations.csv (14 observations)"
    assert told.err.startswith("note: searched by words only: this device has no embedding model")

    assert f"says       {text}\n" in run(peer.home, "memory", "show", name).out
    done = run(peer.home, "memory", "forget", name)
    assert (done.code, done.out[:22]) == (0, "forgot 1 text here; er")
    assert "a hostile one may keep its copy" in done.err
    told = run(peer.home, *question, "--author", "solo")
    assert (told.code, told.out) == (1, "")
    assert "nothing found in plant/* by solo; " in told.err
    assert "held here: covey memory ls" in told.err


@pytest.mark.end_to_end
def test_of_a_source_only_its_name_digest_and_size_go_along(
    peer: LocalPeer, run: Run, observations: Path
) -> None:
    run(peer.home, "remember", "source/a", "a finding", "--from", str(observations))
    line = json.loads(run(peer.home, "memory", "export", "--namespace", "source/a").out)
    payload = base64.b64decode(line["payload"])
    assert b"observations.csv" in payload
    assert str(observations.parent).encode() not in payload
    assert b"SECRETREADING" not in payload
    (source,) = line["shows"]["sources"]
    assert (source["size_bytes"], source["observations"]) == (observations.stat().st_size, 14)


# The text, the options; what `covey memory get` then shows below its heading.
KINDS: dict[str, tuple[list[str], str]] = {
    "a register": (["42", "--type", "register"], r"42   by solo, .*"),
    "a register of text": (["on", "--type", "register"], r"on   by solo, .*"),
    "a shared register": (['{"a":1}', "--type", "shared"], r'\{"a":1\}   by solo, .*'),
    "a set": (["P-12", "--type", "set-add"], r"P-12   added by solo .*"),
    "a counter without a number": (["--type", "counter"], r"1\n    solo \+1, .*"),
    "a counter that goes down": (["--type", "counter", "--", "-3"], r"-3\n    solo \+0 -3, .*"),
    "a maximum": (["9.8", "--type", "maximum"], r"9\.8   by solo, .*"),
    "a minimum": (["7", "--type", "minimum"], r"7   by solo, .*"),
    "a log": (["began", "--type", "log", "--keep", "5"], r".*  solo  began"),
}


@pytest.mark.end_to_end
@pytest.mark.parametrize(("words", "shows"), KINDS.values(), ids=KINDS.keys())
def test_each_type_is_remembered_under_its_key_and_shown(
    peer: LocalPeer, run: Run, words: list[str], shows: str, request: pytest.FixtureRequest
) -> None:
    key = request.node.callspec.id.replace(" ", "-")
    told = run(peer.home, "remember", "kinds", "--key", key, *words)
    assert told.code == 0, told.err
    assert told.out.startswith(f"{key}")
    for place in ([key], ["kinds", key], ["kin*", key, "--zone", "mesh"]):
        got = run(peer.home, "memory", "get", *place)
        assert re.fullmatch(rf"{key} in kinds \(.*\)\n  {shows}\n", got.out), got.out
    history = run(peer.home, "memory", "history", key).out.splitlines()
    assert history[0].split() == ["ID", "WRITTEN", "AUTHOR", "NAMESPACE", "WHAT"]
    assert run(peer.home, "memory", "history", "kinds", key).out.splitlines() == history


@pytest.mark.end_to_end
def test_a_maximum_that_is_not_raised_shows_what_stands(peer: LocalPeer, run: Run) -> None:
    said = [
        run(peer.home, "remember", "kinds", "--key", "peak", "--type", "maximum", text)
        for text in ("9.8", "9.8", "7")
    ]
    assert {one.code for one in said} == {0}
    assert len({one.out for one in said}) == 1
    assert said[0].out.startswith("peak: at least 9.8\n")


@pytest.mark.end_to_end
def test_a_note_is_renewed_where_it_is_and_as_it_is(peer: LocalPeer, run: Run) -> None:
    old = peer.client.remember("renew/a", "it leaks", zone="device", ttl_s=60)
    told = run(peer.home, "remember", "--renew", old.id[:12], stdin="not read")
    assert (told.code, told.err) == (0, "")
    first, second = told.out.splitlines()
    assert first == "it leaks"
    assert "  in renew/a, on this device only, until " in second
    (new,) = peer.client.memory_entries("renew/a")
    assert (new.id[:12], new.value) == (second[:12], "it leaks")
    assert new.expires_ms > old.expires_ms
    told = run(peer.home, "remember", "renew/a", "it drips", "--renew", new.id, "--zone", "device")
    assert told.code == 0
    assert [one.value for one in peer.client.memory_entries("renew/a")] == ["it drips"]


@pytest.mark.end_to_end
def test_without_a_text_standard_input_is_remembered(peer: LocalPeer, run: Run) -> None:
    for words in ([], ["-"]):
        told = run(peer.home, "remember", "stdin/a", *words, "--json", stdin=" from a pipe\n")
        assert (told.json["kind"], told.json["value"]) == ("Entry", "from a pipe")
    for arguments, stdin in ((["remember", "stdin/a"], {}), (["remember", "a"], {"typed": "x"})):
        told = run(peer.home, *arguments, **stdin)
        assert (told.code, told.out) == (2, "")
        assert "to remember" in told.err


@pytest.mark.end_to_end
def test_a_list_shows_the_newest_and_says_that_there_is_more(peer: LocalPeer, run: Run) -> None:
    for number in range(3):
        peer.client.remember("list/a", f"text {number}", zone="device")
    told = run(peer.home, "memory", "ls", "--namespace", "list/*", "--limit", "2")
    heading, first, second = told.out.splitlines()
    assert heading.split() == ["ID", "AGE", "AUTHOR", "NAMESPACE", "WHAT"]
    assert first.endswith("solo    list/a (zone device)  text 2")
    assert second.endswith("text 1")
    assert told.err == "the newest 2; more with: --limit\n"
    run(peer.home, "memory", "forget", first[:12])
    gone = run(peer.home, "memory", "ls", "--namespace", "list/*", "--all").out
    assert "STATE" in gone.splitlines()[0]
    assert re.search(rf"^{first[:12]} .* forgotten +note$", gone, re.MULTILINE)
    empty = run(peer.home, "memory", "ls", "--namespace", "list/nothing")
    assert (empty.code, empty.out) == (0, "")
    assert "covey memory ls --all" in empty.err


@pytest.mark.end_to_end
def test_forgetting_asks_on_a_terminal_and_does_nothing_without_a_yes(
    peer: LocalPeer, run: Run
) -> None:
    name = peer.client.remember("confirm/a", "keep me").id
    asked = run(peer.home, "memory", "forget", name[:12], typed="n\n")
    assert (asked.code, asked.out.strip()) == (130, "")
    assert f"{name[:12]}  solo  confirm/a  keep me" in asked.err
    assert "forget this, everywhere and for good? [y/N]" in asked.err
    assert "nothing was forgotten" in asked.err
    assert peer.client.memory_entry(name).state == "shown"

    author = ("memory", "forget", "--author", "solo", "--namespace", "confirm/*")
    asked = run(peer.home, *author, "--before", "2001-01-02T03:04", typed="n\n")
    assert "all that solo wrote before 2001-01-02 03:04 in confirm/*, everywhere" in asked.err
    run(peer.home, *author, "--before", "1d", "--yes", typed="")
    assert peer.client.memory_entry(name).state == "shown", "it is newer than a day"
    assert run(peer.home, *author, typed="y\n").code == 0
    assert peer.client.memory_entry(name).state == "forgotten"


@pytest.mark.end_to_end
def test_an_admin_says_who_writes_where_and_lifts_it_again(peer: LocalPeer, run: Run) -> None:
    everybody = "every member of zone mesh writes, 10,000 entries of each author"
    assert run(peer.home, "memory", "policy", "rule/a").out == f"none: {everybody}\n"

    limits = ("--writers", "zone:mesh", "--writers", "peer:solo", "--entries", "5", "--ttl", "2d")
    told = run(peer.home, "memory", "policy", "rule/a", *limits)
    assert (told.code, told.err) == (0, "")
    assert told.out == run(peer.home, "memory", "policy", "rule/a").out
    assert told.out == (
        "members of zone mesh, solo may write; 5 entries of each author and lifetime; "
        "texts end after 2 days; by solo, just now; for what is written since\n"
    )
    told = run(peer.home, "remember", "rule/a", "for a week", "--ttl", "7d")
    assert (told.code, told.out) == (5, "")
    assert "a text in rule/a ends after 2 days at the latest, by the policy there since" in told.err
    assert "give it a ttl of no more, or none" in told.err
    written = peer.client.remember("rule/a", "for two days")
    assert written.expires_ms - written.at_ms == pytest.approx(2 * DAY_MS, abs=2_000)
    rows = run(peer.home, "memory", "stats").out.splitlines()
    assert any(row.startswith("rule/a") and "solo may write; 5 entries" in row for row in rows)

    told = run(peer.home, "memory", "policy", "rule/a", "--writers", "zone:nowhere")
    assert (told.code, told.err) == (0, "note: this device itself may not write there\n")
    assert run(peer.home, "memory", "policy", "rule/a", "--open").out == (
        f"none: {everybody}; lifted by solo, just now\n"
    )
    assert run(peer.home, "remember", "rule/a", "for a week", "--ttl", "7d").code == 0


@pytest.mark.end_to_end
def test_an_export_is_written_whole_and_taken_in_again(
    peer: LocalPeer, run: Run, tmp_path: Path
) -> None:
    peer.client.remember_all([WriteRequest(namespace="export/a", value=str(n)) for n in range(3)])
    file = tmp_path / "memory.jsonl"
    told = run(peer.home, "memory", "export", "--namespace", "export/a", "-o", str(file))
    assert (told.code, told.out) == (0, f"3 entries in {file}\n")
    shown = run(peer.home, "memory", "export", "--namespace", "export/a")
    assert (shown.out, shown.err) == (file.read_text(), "3 entries\n")
    for arguments, stdin in (((str(file),), ""), (("-",), file.read_text())):
        told = run(peer.home, "memory", "import", *arguments, "--json", stdin=stdin)
        assert (told.code, told.json["kind"], told.json["refused"]) == (0, "Imported", [])
    assert run(peer.home, "memory", "import", str(file)).out == (
        "took in 0 entries; 3 are known here: held, replaced or forgotten\n"
    )
    file.write_text(file.read_text() + "{}\n")
    told = run(peer.home, "memory", "import", str(file))
    assert told.code == 2
    assert f"line 4 of {file} is none of an export" in told.err


@pytest.mark.end_to_end
def test_watching_shows_what_is_remembered_and_what_goes(peer: LocalPeer) -> None:
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "covey.peer.cli", "memory", "watch"],
        env={**os.environ, "COVEY_HOME": str(peer.home)},
        stdout=subprocess.PIPE,
    ) as watching:
        assert watching.stdout is not None
        try:
            os.set_blocking(watching.stdout.fileno(), False)
            said = b""

            def has_said(pattern: str) -> bool:
                nonlocal said
                said += watching.stdout.read() or b"" if watching.stdout else b""
                return re.search(pattern, said.decode(), re.MULTILINE) is not None

            # It may not be listening yet: something is remembered until it has heard of it.
            def has_begun() -> bool:
                peer.client.remember("watch/a", "tick")
                return has_said(r"^\d\d:\d\d:\d\d  \+ [0-9a-f]{12}  watch/a  solo  tick$")

            wait_until(has_begun, "it tells what is remembered", timeout_s=PATIENCE_S)
            name = peer.client.memory_entries("watch/a", limit=1)[0].id
            peer.client.forget(name)
            gone = rf"^\d\d:\d\d:\d\d  - {name[:12]}  watch/a$"
            wait_until(lambda: has_said(gone), "it tells what goes", timeout_s=PATIENCE_S)
        finally:
            watching.kill()


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("remember", "json/a", "x"), "Entry"),
        (("recall", "x"), "Recall"),
        (("memory",), "EntryList"),
        (("memory", "ls"), "EntryList"),
        (("memory", "stats"), "MemoryStats"),
        (("memory", "policy", "json/a"), "Policy"),
        (("memory", "policy", "json/a", "--writers", "admin"), "Policy"),
        (("memory", "verify"), "Verified"),
        (("memory", "sync"), "ExchangeList"),
        (("memory", "forget", "--author", "solo", "--namespace", "json/a"), "Forgotten"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_json_is_one_object_with_its_version_and_kind(
    peer: LocalPeer, run: Run, arguments: tuple[str, ...], kind: str
) -> None:
    peer.client.remember("json/a", "y")
    told = run(peer.home, *arguments, "--json")
    assert (told.json["v"], told.json["kind"]) == (1, kind)
    assert told.out.count("\n") == 1
    # A recall that finds nothing is an error beside its answer.
    assert told.err == "" or kind == "Recall"


# Arguments, exit code, and what the message must say.
BAD: dict[str, tuple[list[str], int, str]] = {
    "nothing to remember": (["remember", "a/b"], 2, "standard input was empty"),
    "nowhere to remember it": (["remember"], 2, "name where"),
    "a renewal of nothing": (["remember", "--renew", "00000000"], 4, "covey memory ls"),
    "a file that is not there": (["remember", "a", "x", "--from", "/nope"], 2, "/nope cannot be read"),
    "a file that is a folder": (["remember", "a", "x", "--from", "/tmp"], 2, "Is a directory"),
    "two files to summarize": (
        ["remember", "a", "--summarize", "--from", "/etc/hostname", "--from", "/etc/passwd"],
        2, "one file at a time",
    ),
    "an unknown type": (["remember", "a", "x", "--type", "graph"], 2, "'counter'"),
    "a register without a key": (["remember", "a", "x", "--type", "register"], 2, "needs a key"),
    "a span of time that is none": (["remember", "a", "x", "--ttl", "soon"], 2, "write 90s"),
    "a lifetime that is none": (["remember", "a", "x", "--lifetime", "ever"], 2, "'pinned'"),
    "a namespace of covey's own": (["remember", "_mesh/x", "x"], 2, "covey's own"),
    "a zone that this device is not in": (["remember", "a", "x", "--zone", "z"], 2, "covey invite"),
    "an entry that is not there": (["memory", "show", "00000000"], 4, "covey memory ls"),
    "an id that is none": (["memory", "show", "xyz"], 2, "hexadecimal"),
    "a key that nothing has": (["memory", "get", "none"], 4, "covey memory ls"),
    "a key without history": (["memory", "history", "a", "none"], 4, "covey memory ls"),
    "too many words for a key": (["memory", "get", "a", "b", "c"], 2, "a namespace and a key"),
    "nothing to forget": (["memory", "forget"], 2, "IDS, or --author"),
    "two ways to forget": (["memory", "forget", "00", "--author", "x"], 2, "IDS, or --author"),
    "a time without an author": (["memory", "forget", "00", "--before", "1d"], 2, "go with --author"),
    "a time that is none": (["memory", "forget", "--author", "x", "--before", "soon"], 2, "no time"),
    "a day that is none": (
        ["memory", "forget", "--author", "x", "--before", "2026-13-01"], 2, "no time",
    ),
    "an author nobody knows": (["memory", "forget", "--author", "nobody"], 4, "covey peers"),
    "two ways to rule": (["memory", "policy", "a", "--open", "--entries", "5"], 2, "--open lifts"),
    "a writer that is none": (["memory", "policy", "a", "--writers", "all"], 2, "zone:NAME or peer:NAME"),
    "a writer nobody knows": (["memory", "policy", "a", "--writers", "peer:x"], 4, "covey peers"),
    "too much to hold": (["memory", "policy", "a", "--entries", "10001"], 2, "1<=x<=10000"),
    "a policy of covey's own": (["memory", "policy", "_mesh/x", "--open"], 2, "covey's own"),
    "a policy of another zone": (["memory", "policy", "a", "--zone", "z"], 2, "covey invite"),
    "a policy of this device": (["memory", "policy", "a", "--zone", "device"], 2, "stays on this"),
    "a file to import that is not there": (["memory", "import", "/nope"], 2, "cannot be read"),
    "a file to import that is none": (["memory", "import", "/etc/passwd"], 2, "line 1 of"),
    "a folder to export to that is not there": (["memory", "export", "-o", "/nope/a"], 8, "/nope/a"),
    "nobody to compare with": (["memory", "sync"], 8, "no peer is linked"),
    "a peer nobody knows": (["memory", "sync", "--with", "nobody"], 4, "covey peers"),
    "no daemon": (["memory", "ls", "--home", "/nonexistent"], 3, "covey up -d"),
}  # fmt: skip


@pytest.mark.end_to_end
@pytest.mark.parametrize(("arguments", "code", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_words_with_its_exit_code(
    peer: LocalPeer, run: Run, arguments: list[str], code: int, says: str
) -> None:
    told = run(peer.home, *arguments)
    assert (told.code, told.out) == (code, "")
    assert says in told.err


def test_the_commands_import_nothing_slow() -> None:
    slow = "trio libp2p hypercorn starlette httpx pydantic structlog lmdb numpy rich asyncio"
    program = (
        "import sys, covey.peer.cli.memory, covey.peer.cli.remembering\n"
        f"print(sorted(set(sys.modules) & set({slow.split()!r})))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stdout == "[]\n", done.stderr


# What a lone and healthy daemon does not answer


def step(state: Any, sentence: str = "as it is") -> StepView:
    return StepView(peer="p", peer_name="line-7", state=state, sentence=sentence)


class Canned(SharedMemory):
    """A memory that answers as a test says, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.recalled = RecallView(question="q", hits=(), searched=3)
        self.exchanges: list[ExchangeView] = []

    async def write(self, requests: Sequence[WriteRequest]) -> list[EntryView]:
        self.asked += requests
        return [entry("worded in short", sources=one.sources, zone=one.zone) for one in requests]

    async def recall(
        self, question: str, k: int, namespace: str | None, author: str | None
    ) -> RecallView:
        return self.recalled

    async def state_policy(self, request: PolicyRequest) -> PolicyView:
        self.asked.append(request)
        raise NotAdmitted("role", "only admins say who writes in a; ask one, see: covey members")

    async def forget(self, request: ForgetRequest) -> ForgetView:
        self.asked.append(request)
        return ForgetView(forgotten=2, records=("00",), erased=False)

    async def sync(self, request: SyncRequest) -> list[ExchangeView]:
        self.asked.append(request)
        return self.exchanges

    async def verify(self) -> VerifyView:
        problem = "plant/pumps 3f2a9c01be77: its signature does not hold"
        return VerifyView(entries=2, payloads=1, certificates=1, problems=(problem,), took_ms=1500)

    async def import_(self, lines: Sequence[ExportedEntry]) -> ImportView:
        return ImportView(taken=1, refused=("plant/pumps: over its time",))

    async def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        yield b'{"zone":"mesh","namespace":"a","header":"","payload":null}\n'
        raise Unavailable("the disk is full")


class Asked(Service):
    """A service with a memory and a status, and nothing else."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory

    def status(self) -> StatusView:
        return StatusView(
            peer="p",
            name="solo",
            mesh="m",
            mesh_name="local",
            role="member",
            version="1",
            incarnation=1,
            started_ms=0,
            addresses=(),
            api=(),
            peers_up=1,
            peers_known=2,
            tasks={},
            models=(),
            skills=(),
            traffic=TrafficView(
                payload_out_bytes=0,
                payload_in_bytes=0,
                control_out_bytes=0,
                control_in_bytes=0,
                data_read_bytes=0,
            ),
            memory=(
                step("in step", "in step with line-7, as seen 2 s ago"),
                step("behind", "line-3 is nearly in step: 4 entries wait to be sent to it"),
            ),
        )


@contextmanager
def served(memory: SharedMemory) -> Generator[Path]:
    """Serve a memory from the API socket of a home; gives the home."""
    with short_folder() as home:
        (home / "run").mkdir()
        begun = threading.Event()
        ends: list[Callable[[], None]] = []

        async def serve() -> None:
            stop, token = trio.Event(), trio.lowlevel.current_trio_token()
            ends.append(lambda: trio.from_thread.run_sync(stop.set, trio_token=token))
            place = home / "run/api.sock"
            async with trio.open_nursery() as nursery:

                async def run(task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
                    app: Any = make_app(Asked(memory))
                    await serve_app(app, place, None, "", stop.wait, task_status=task_status)

                await nursery.start(run)
                begun.set()

        thread = threading.Thread(target=trio.run, args=[serve])
        thread.start()
        try:
            assert begun.wait(PATIENCE_S)
            yield home
        finally:
            ends[0]()
            thread.join(PATIENCE_S)


@pytest.mark.parametrize("way", ["a file", "standard input", "a text"])
def test_raw_text_is_summarized_here_and_only_that_is_shared(
    run: Run, observations: Path, way: str
) -> None:
    memory = Canned()
    raw = observations.read_text()
    words = ["--from", str(observations)] if way == "a file" else [raw] if way == "a text" else []
    with served(memory) as home:
        told = run(home, "remember", "plant/pumps", "--summarize", *words, stdin=raw)
    (asked,) = memory.asked
    assert (asked.summarize, asked.type) == (True, "note")
    assert asked.value.strip() == raw.strip()
    assert told.code == 0
    assert told.out.splitlines()[0] == "worded in short"
    if way == "a file":
        assert [one.name for one in asked.sources] == ["observations.csv"]
        assert told.err == ("read observations.csv (14 lines) here; only the summary is shared\n")


def test_what_does_not_leave_the_device_says_so(run: Run) -> None:
    with served(Canned()) as home:
        told = run(home, "remember", "plant/pumps", "x", "--zone", "device")
    assert "in plant/pumps, on this device only, until 2027-02-16 09:46" in told.out


def test_what_limits_an_answer_is_noted_beside_it(run: Run) -> None:
    memory = Canned()
    memory.recalled = RecallView(
        question="q",
        hits=(RecallHit(score=0.5, entry=ENTRY, conflicts=(entry("else"),)),),
        searched=3,
        notes=("the index is being made",),
    )
    with served(memory) as home:
        told = run(home, "recall", "q")
    assert told.code == 0
    assert "conflict: line-7, " in told.out
    assert told.err == "note: the index is being made\n"


def test_who_is_no_admin_is_told_whom_to_ask(run: Run) -> None:
    memory = Canned()
    with served(memory) as home:
        told = run(home, "memory", "policy", "a", "--zone", "east", "--writers", "admin")
    assert memory.asked == [PolicyRequest(namespace="a", zone="east", writers=("admin",))]
    assert (told.code, told.out) == (5, "")
    assert told.err == "covey: only admins say who writes in a; ask one, see: covey members\n"


def test_nothing_found_is_an_error_also_as_json(run: Run) -> None:
    with served(Canned()) as home:
        told = run(home, "recall", "q", "--json")
        assert (told.code, told.json["searched"]) == (1, 3)
        assert json.loads(told.err)["exit_code"] == 1
        told = run(home, "recall", "q")
    assert (told.code, told.out) == (1, "")
    assert told.err == "covey: nothing found; 3 texts are held here: covey memory ls\n"


@pytest.mark.parametrize(
    ("states", "code"),
    [
        (["in step"], 0),
        (["in step", "comparing"], 7),
        (["behind"], 7),
        (["apart"], 8),
        (["muted", "in step"], 8),
    ],
)
def test_comparing_shows_what_moved_and_ends_as_it_went(
    run: Run, states: list[str], code: int
) -> None:
    memory = Canned()
    memory.exchanges = [
        ExchangeView(
            step=step(state, f"it is {state}"),
            namespaces=("plant/pumps", "plant/valves"),
            sent=12,
            received=3,
            bytes_out=4100,
            bytes_in=900,
            rounds=3,
            took_ms=180.2,
        )
        for state in states
    ]
    with served(memory) as home:
        told = run(home, "memory", "sync", "--with", "line-7", "--audit", "--timeout", "5s")
    assert memory.asked == [SyncRequest(peer="line-7", timeout_s=5.0, audit=True)]
    assert told.code == code
    heading, *rows = told.out.splitlines()
    assert heading.split("  ")[0] == "PEER"
    assert len(rows) == len(states)
    assert rows[0].startswith("line-7  ")
    assert rows[0].endswith(
        "plant/pumps, plant/valves  12    3    4.1 kB     900 B     3       180 ms"
    )
    for state in states:
        assert (f"it is {state}" in told.err) == (state != "in step")


def test_what_a_check_finds_is_listed_and_an_error(run: Run) -> None:
    with served(Canned()) as home:
        told = run(home, "memory", "verify")
    assert told.code == 1
    assert told.out.splitlines() == [
        "2 entries, 1 text and 1 certificate checked in 1.5 s: 1 wrong",
        "  plant/pumps 3f2a9c01be77: its signature does not hold",
    ]
    assert "1 problem; the first: plant/pumps" in told.err


def test_what_an_import_refuses_is_told_and_an_error(run: Run) -> None:
    line = '{"zone":"mesh","namespace":"a","header":"","payload":null}\n'
    with served(Canned()) as home:
        told = run(home, "memory", "import", "-", stdin=line)
    assert (told.code, told.out) == (1, "took in 1 entry\n")
    assert "1 entry was refused, such as: plant/pumps: over its time" in told.err


def test_what_is_not_yet_out_of_the_file_is_said(run: Run) -> None:
    memory = Canned()
    with served(memory) as home:
        told = run(home, "memory", "forget", "3f2a9c01be77", "00aa")
    assert memory.asked == [ForgetRequest(ids=("3f2a9c01be77", "00aa"))]
    assert told.out == ("forgot 2 texts here; the store file is written anew without it shortly\n")


def test_an_export_that_breaks_leaves_the_file_as_it_was(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "memory.jsonl"
    file.write_text("before\n")
    with served(Canned()) as home:
        told = run(home, "memory", "export", "-o", str(file))
    assert (told.code, told.out) == (3, "")
    assert file.read_text() == "before\n"
    assert [one.name for one in tmp_path.iterdir()] == ["memory.jsonl"]


def test_status_tells_how_far_each_peer_holds_the_same(run: Run) -> None:
    with served(Canned()) as home:
        told = run(home, "status")
    assert told.code == 0
    assert "memory   in step with line-7, as seen 2 s ago\n" in told.out
    assert "         line-3 is nearly in step: 4 entries wait to be sent to it\n" in told.out
