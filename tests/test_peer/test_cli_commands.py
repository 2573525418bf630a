"""Can a person and a script both rely on every command? Its help, its JSON, its exit code, its words."""

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from test_peer.daemons import running_peer

from covey.peer.cli.group import covey, main
from covey.peer.cli.shell import EXIT_CODES
from covey.peer.local_mesh import LocalPeer


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

    @property
    def error(self) -> Any:
        """Standard error, which must be one JSON object."""
        return json.loads(self.err)


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, on no home; standard input is empty and no terminal."""

    def run(*arguments: str, home: Path | None = None, stdin: bytes = b"") -> Ran:
        monkeypatch.setenv("COVEY_HOME", str(home or "/nonexistent/covey"))
        monkeypatch.setattr(sys, "argv", ["covey", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        assert isinstance(ended.value.code, int)
        assert ended.value.code in EXIT_CODES, "an exit code that is not documented"
        return Ran(ended.value.code, said.out, said.err)

    return run


def walk(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, click.Command]]:
    """Give every command below one, with its name as it is typed."""
    yield " ".join(path), command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from walk(inner, (*path, name))


COMMANDS = [(name, one) for name, one in walk(covey, ("covey",)) if name != "covey"]
NAMES = [name for name, _ in COMMANDS]


def test_all_commands_are_there() -> None:
    assert set(NAMES) == {
        *("covey init", "covey up", "covey down", "covey daemon", "covey invite", "covey join"),
        *("covey peers", "covey status", "covey doctor"),
        *("covey ask", "covey classify", "covey extract", "covey summarize"),
        *("covey tasks", "covey tasks ls", "covey tasks show", "covey tasks watch"),
        *("covey tasks cancel", "covey models", "covey models ls", "covey models pull"),
        *("covey models add", "covey models rm", "covey version"),
        *("covey remember", "covey recall", "covey memory", "covey memory ls"),
        *("covey memory show", "covey memory get", "covey memory history", "covey memory forget"),
        *("covey memory export", "covey memory import", "covey memory stats"),
        "covey memory policy",
        *("covey memory sync", "covey memory verify", "covey memory watch"),
        *("covey pending", "covey approve", "covey deny", "covey members"),
        *("covey admit", "covey revoke", "covey renew"),
    }


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=NAMES)
def test_a_command_has_json_a_home_and_help_for_each_option_and_an_example(
    name: str, command: click.Command, run: Run
) -> None:
    options = [one for one in command.params if isinstance(one, click.Option)]
    assert {"--json", "--home"} <= {opt for one in options for opt in one.opts}
    assert [one.name for one in options if not one.help] == []
    for flag in ("--help", "-h"):
        helped = run(*name.split()[1:], flag)
        assert (helped.code, helped.err) == (0, "")
        assert f"Usage: {name} " in helped.out
        assert "Example: covey " in helped.out
    # The outermost group words its list itself.
    inner = len(name.split()) > 2
    short = command.get_short_help_str(limit=80)
    assert not (inner and short.endswith("...")), "it is cut off in its group's list"


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=NAMES)
def test_the_example_in_a_commands_help_is_a_command_that_there_is(
    name: str, command: click.Command
) -> None:
    assert command.epilog is not None
    text = command.epilog.removeprefix("Example: ").split("    #")[0]
    for line in text.split("; "):
        words = shlex.split(line.split(" > ")[0].split(" < ")[0])
        assert words[0] == "covey"
        context, found, rest = click.Context(covey, info_name="covey"), covey, words[1:]
        while isinstance(found, click.Group) and rest and not rest[0].startswith("-"):
            typed, inner, rest = found.resolve_command(context, rest)
            assert inner is not None
            context = inner.make_context(typed, list(rest), parent=context)
            found = inner
        assert line.startswith(name)


def test_the_exit_codes_are_in_the_help(run: Run) -> None:
    said = run("--help").out
    for code, meaning in EXIT_CODES.items():
        assert f"  {code:<3}  {meaning}"[:40] in said


# What goes wrong


def test_a_mistyped_command_is_told_its_neighbour(run: Run) -> None:
    said = run("statu")
    assert said.code == 2
    assert "Did you mean 'status'?" in said.err
    assert run("nonsense").code == 2


# Arguments, exit code, and what the message must say; {home} is a running daemon's.
BAD: dict[str, tuple[list[str], int, str]] = {
    "an unknown option": (["status", "--nosuch"], 2, "--nosuch"),
    "a missing argument": (["ask"], 2, "QUESTION"),
    "a span of time that is none": (["ask", "x", "--timeout", "soon"], 2, "write 90s, 15m, 1h"),
    "a span of time below zero": (["ask", "x", "--timeout", "-1s"], 2, "no time span"),
    "a span of time that is no number": (["invite", "--expires", "nan"], 2, "no time span"),
    "an unknown zone": (["ask", "x", "--zone", "moon"], 2, "use one of: device, mesh"),
    "a label without a value": (["ask", "x", "--at", "line"], 2, "key=value"),
    "too many tokens": (["ask", "x", "--max-tokens", "9999"], 2, "1<=x<=512"),
    "no labels": (["classify", "x"], 2, "--labels"),
    "items and data": (["classify", "--labels", "a,b", "--data", "d", "x"], 2, "not both"),
    "nothing to work on": (["classify", "--labels", "a,b"], 2, "standard input holds no line"),
    "a threshold over 1": (["classify", "--labels", "a,b", "--threshold", "2", "x"], 2, "0<=x<=1"),
    "a schema that is not there": (["extract", "--schema", "/nope", "x"], 2, "/nope cannot be read"),
    "a schema that is a folder": (["extract", "--schema", "/tmp", "x"], 2, "Is a directory"),
    "a schema that is no JSON": (["extract", "--schema", "/etc/passwd", "x"], 2, "is not JSON"),
    "an unknown task": (["tasks", "show", "nosuch"], 4, "covey tasks"),
    "an unknown task to cancel": (["tasks", "cancel", "no such?x=%"], 4, "covey tasks"),
    "an unknown task to watch": (["tasks", "watch", "nosuch"], 4, "covey tasks"),
    "an unknown state": (["tasks", "ls", "--state", "sleeping"], 2, "'expired'"),
    "a limit that is none": (["tasks", "ls", "--limit", "0"], 2, "1<=x<=1000"),
    "a zone that is everyone's": (["invite", "--zone", "device"], 2, "name another"),
    "a zone of one's own choice": (
        ["init", "--name", "line-9", "--zone", "plant-7", "--home", "/proc/covey"],
        2,
        "an invite grants them",
    ),
    "too many uses": (["invite", "--uses", "1001"], 2, "1<=x<=1000"),
    "a token that is none": (["join", "nonsense"], 2, "covey invite"),
    "a token that is a long text": (["join", "x" * 5000], 2, "covey invite"),
    "a token from nothing": (["join"], 2, "covey invite"),
    "a second init": (["init", "--name", "x"], 6, "COVEY_HOME"),
    "a model that is not there": (["models", "rm", "nosuch"], 4, "covey models ls"),
    "a model that is unknown": (["models", "pull", "nosuch"], 4, "covey models add"),
    "a model file that is not there": (["models", "add", "/nope"], 2, "/nope"),
    "a model file that is none": (["models", "add", "/etc/passwd"], 2, "GGUF"),
    "a text that is not UTF-8": (["ask", "\udcff"], 2, "UTF-8"),
    "a home that is a file": (["status", "--home", "/etc/passwd"], 2, "is a file"),
    "a home without a daemon": (["status", "--home", "/nonexistent"], 3, "covey up -d"),
    "down without a daemon": (["down", "--home", "/nonexistent"], 3, "nothing to end"),
    "up without a peer": (["up", "-d", "--home", "/tmp"], 4, "covey init"),
    "a home that cannot be made": (["init", "--name", "x", "--home", "/proc/covey"], 8, "/proc/covey"),
}  # fmt: skip


@pytest.mark.end_to_end
@pytest.mark.parametrize(("arguments", "code", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_in_words_with_its_exit_code(
    peer: LocalPeer, run: Run, arguments: list[str], code: int, says: str
) -> None:
    told = run(*arguments, home=peer.home)
    assert (told.code, told.out) == (code, "")
    assert says in told.err
    as_json = run(*arguments, "--json", home=peer.home)
    assert (as_json.code, as_json.out) == (code, "")
    assert set(as_json.error) == {"v", "kind", "message", "exit_code"}
    assert (as_json.error["v"], as_json.error["kind"]) == (1, "Error")
    assert as_json.error["exit_code"] == code
    assert says in as_json.error["message"]


@pytest.mark.end_to_end
def test_standard_input_that_is_no_text_is_read_anyway(peer: LocalPeer, run: Run) -> None:
    binary = bytes(range(256)) * 4
    told = run(
        "classify", "--labels", "a,b", "--timeout", "0.1s", "--json", home=peer.home, stdin=binary
    )
    assert told.code == 8
    assert run("join", home=peer.home, stdin=binary).code == 2
    assert run("ask", "-", "--timeout", "0.1s", home=peer.home, stdin=binary).code == 8


@pytest.mark.end_to_end
def test_standard_input_without_end_is_refused(peer: LocalPeer, run: Run) -> None:
    told = run("summarize", home=peer.home, stdin=b"x" * ((1 << 20) + 1))
    assert told.code == 2
    assert "--data" in told.err or "data source" in told.err


@pytest.mark.end_to_end
def test_what_nobody_can_do_yet_goes_on_and_says_so(peer: LocalPeer, run: Run) -> None:
    labels = ("classify", "--labels", "a,b")
    told = run(*labels, "--data", "nosuch", "--timeout", "0.3s", home=peer.home)
    assert (told.code, told.out) == (8, "")
    assert "no peer known has data 'nosuch'" in told.err
    assert "it goes on; see: covey tasks show " in told.err
    as_json = run(*labels, "--data", "nosuch", "--timeout", "0.3s", "--json", home=peer.home)
    assert (as_json.code, as_json.error["exit_code"]) == (8, 8)
    assert (as_json.json["kind"], as_json.json["state"]) == ("Task", "queued")
    shown = run("tasks", "show", as_json.json["id"], home=peer.home)
    assert shown.code == 0
    assert "needs      zone mesh, data nosuch" in shown.out
    ended = run("tasks", "cancel", as_json.json["id"][:12], home=peer.home)
    assert ended.out == f"{as_json.json['id'][:12]}  cancelled\n"


# What is shown


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("peers",), "PeerList"),
        (("status",), "Status"),
        (("doctor",), "Findings"),
        (("tasks",), "TaskList"),
        (("tasks", "ls"), "TaskList"),
        (("models",), "ModelList"),
        (("models", "ls"), "ModelList"),
        (("version",), "Version"),
        (("invite",), "Invite"),
        (("ask", "x", "--detach"), "Task"),
        (("tasks", "show", "last"), "Task"),
        (("tasks", "cancel", "last"), "Task"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_json_is_one_object_with_its_version_and_kind(
    peer: LocalPeer, run: Run, arguments: tuple[str, ...], kind: str
) -> None:
    told = run(*arguments, "--json", home=peer.home)
    assert (told.code, told.err) == (0, "")
    assert (told.json["v"], told.json["kind"]) == (1, kind)
    assert told.out.count("\n") == 1


@pytest.mark.end_to_end
def test_the_options_of_a_group_hold_for_its_commands(peer: LocalPeer, run: Run) -> None:
    before = run("tasks", "--json", "--home", str(peer.home), "ls")
    after = run("tasks", "ls", "--json", "--home", str(peer.home))
    assert before == after
    assert before.json["kind"] == "TaskList"


@pytest.mark.end_to_end
def test_the_peers_table_has_all_its_columns_even_for_one_peer(peer: LocalPeer, run: Run) -> None:
    told = run("peers", home=peer.home)
    heading, row = told.out.splitlines()
    columns = ["NAME", "ID", "STATE", "ADDRESS", "ROUND TRIP", "LABELS", "DATA", "SKILLS", "MODELS"]
    assert heading.split("  ")[0] == "NAME"
    assert [name for name in (*columns, "LOAD") if name not in heading] == []
    cells = row.split()
    assert cells[0] == "solo"
    assert cells[1] == f"…{peer.client.status().peer[-8:]}"
    assert cells[2] == "self"
    assert cells[3].startswith("127.0.0.1:")
    assert cells[-3:] == ["covey.echo", "-", "idle"]
    assert "covey invite" in told.err


@pytest.mark.end_to_end
def test_what_is_empty_says_so_beside_the_data(peer: LocalPeer, run: Run) -> None:
    for arguments, says in (
        (("tasks", "ls", "--state", "expired"), "no task is expired"),
        (("models",), "no models here yet; fetch the default ones: covey models pull"),
    ):
        told = run(*arguments, home=peer.home)
        assert (told.code, told.out) == (0, "")
        assert says in told.err


@pytest.mark.end_to_end
def test_a_watched_task_ends_the_watch_with_it(peer: LocalPeer, run: Run) -> None:
    done = peer.client.run("covey.echo", {"n": 1}, wait_s=10)
    told = run("tasks", "watch", done.id, home=peer.home)
    assert (told.code, told.out.count("\n")) == (0, 1)
    assert told.out.startswith(f"{done.id[:12]}  covey.echo  done")
    result = run("tasks", "show", "--result", done.id, home=peer.home)
    assert json.loads(result.out) == {"n": 1}


@pytest.mark.end_to_end
def test_a_result_that_there_is_not_is_an_error(peer: LocalPeer, run: Run) -> None:
    waiting = peer.client.submit("nobody-can")
    told = run("tasks", "show", "--result", waiting.id, home=peer.home)
    assert (told.code, told.out) == (1, "")
    assert "queued" in told.err


# What is imported

SLOW = "trio libp2p hypercorn starlette httpx pydantic structlog lmdb numpy rich asyncio"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "arguments",
    ["--help", "status --json", "peers", "tasks", "models", "ask --help", "version", "down --help"],
)
def test_a_command_that_only_asks_imports_nothing_slow(peer: LocalPeer, arguments: str) -> None:
    program = (
        "import sys\n"
        "from covey.peer.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n"
        f"    print(sorted(set(sys.modules) & set({SLOW.split()!r})), end.code, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", program, *arguments.split()],
        env={"COVEY_HOME": str(peer.home), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "[] 0", done.stderr
