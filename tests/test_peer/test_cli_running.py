"""Do the commands behave as processes should? Signals, pipes, terminals, and the daemon they start."""

import json
import os
import pty
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from test_peer.daemons import PATIENCE_S, running_peer, short_folder

from covey.peer.cli.shell import Duration, duration, echo, size, table
from covey.peer.local_mesh import CommandFailed, LocalMesh, LocalPeer, wait_until

COVEY = [sys.executable, "-P", "-m", "covey.peer.cli"]


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


def started(
    peer: LocalPeer, *arguments: str, stdout: int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start a command as the leader of its own process group, as a shell does."""
    return subprocess.Popen(
        [*COVEY, *arguments],
        env={**os.environ, "COVEY_HOME": str(peer.home)},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )


# Signals


@pytest.mark.end_to_end
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_ctrl_c_cancels_the_task_that_is_waited_for(
    peer: LocalPeer, options: Sequence[str]
) -> None:
    known = {task.id for task in peer.client.tasks()}
    with started(peer, "ask", "anybody there?", "--timeout", "60s", *options) as command:

        def handed_in() -> str | None:
            new = [task.id for task in peer.client.tasks() if task.id not in known]
            return new[0] if new else None

        name = wait_until(handed_in, "the task is handed in", timeout_s=PATIENCE_S)
        os.killpg(command.pid, signal.SIGINT)
        out, err = command.communicate(timeout=PATIENCE_S)
    assert (command.returncode, out) == (130, "")
    assert peer.client.task(name).state == "cancelled"
    assert "Traceback" not in err
    said = json.loads(err)["message"] if options else err
    assert f"interrupted; task {name[:12]} is cancelled" in said


@pytest.mark.end_to_end
def test_ctrl_c_ends_a_watch(peer: LocalPeer) -> None:
    waiting = peer.client.submit("nobody-can")
    with started(peer, "tasks", "watch", waiting.id) as command:
        assert command.stdout is not None
        assert "queued" in command.stdout.readline()
        os.killpg(command.pid, signal.SIGINT)
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 130
    assert "Traceback" not in err
    assert peer.client.task(waiting.id).state == "queued", "watching is not owning"


@pytest.mark.end_to_end
def test_a_watch_ends_with_the_daemon_and_says_so() -> None:
    with running_peer() as peer:
        waiting = peer.client.submit("nobody-can")
        with started(peer, "tasks", "watch", waiting.id) as command:
            assert command.stdout is not None
            assert "queued" in command.stdout.readline()
            assert peer.covey("down") == "stopped\n"
            peer.client.close()
            _, err = command.communicate(timeout=PATIENCE_S)
        assert command.returncode == 3
        assert "the daemon stopped" in err
        for command_line, code, says in (
            (("down",), 3, "there is nothing to end"),
            (("status",), 3, "covey up -d"),
            (("tasks",), 3, "covey up -d"),
            (("doctor",), 1, "1 finding needs care"),
        ):
            with pytest.raises(CommandFailed, match=says) as failed:
                peer.covey(*command_line)
            assert failed.value.code == code


# Pipes and terminals


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    "arguments", ["peers", "status --json", "tasks --json", "--help", "ask -h"]
)
def test_a_reader_that_has_enough_is_no_error(peer: LocalPeer, arguments: str) -> None:
    read, write = os.pipe()
    os.close(read)
    with started(peer, *arguments.split(), stdout=write) as command:
        os.close(write)
        _, err = command.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in err
    assert "Exception ignored" not in err
    # Help is click's own, and so is how it ends.
    assert command.returncode == 0 or "-h" in arguments


@pytest.mark.end_to_end
def test_a_full_disk_below_the_output_is_an_error(peer: LocalPeer) -> None:
    with (
        Path("/dev/full").open("w") as full,
        started(peer, "status", stdout=full.fileno()) as command,
    ):
        _, err = command.communicate(timeout=PATIENCE_S)
    assert command.returncode == 8
    assert "No space left on device" in err
    assert "Traceback" not in err


@pytest.mark.end_to_end
def test_without_standard_output_a_command_does_its_work(peer: LocalPeer) -> None:
    line = f"exec {shlex.join([*COVEY, 'invite'])} >&-"
    environment = {**os.environ, "COVEY_HOME": str(peer.home)}
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.end_to_end
def test_letters_that_the_encoding_lacks_do_not_end_a_command(peer: LocalPeer) -> None:
    environment = {**os.environ, "COVEY_HOME": str(peer.home), "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [*COVEY, "peers"], env=environment, capture_output=True, timeout=30, check=False
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert b"?" in done.stdout


def on_terminal(peer: LocalPeer, columns: int, *arguments: str, **variables: str) -> str:
    """Run a command on a terminal of its own, and return what it shows."""
    own, theirs = pty.openpty()
    environment = {**os.environ, "COVEY_HOME": str(peer.home), "COLUMNS": str(columns)}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [*COVEY, *arguments],
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    ) as command:
        os.close(theirs)
        said = b""
        try:
            while data := os.read(own, 4096):
                said += data
        except OSError:
            pass  # on Linux a terminal whose other end has gone reads as an error
        os.close(own)
        assert command.wait(PATIENCE_S) == 0
    return said.decode().replace("\r\n", "\n")


@pytest.mark.end_to_end
def test_output_is_coloured_on_a_terminal_alone_and_not_where_no_color_is_set(
    peer: LocalPeer,
) -> None:
    assert "\x1b[1mNAME" in on_terminal(peer, 200, "peers")
    assert "\x1b" not in on_terminal(peer, 200, "peers", NO_COLOR="1")
    assert "\x1b" not in peer.covey("peers")
    assert "\x1b" not in on_terminal(peer, 200, "peers", "--json")


@pytest.mark.end_to_end
def test_a_table_that_is_wider_than_the_terminal_becomes_a_block_for_each_row(
    peer: LocalPeer,
) -> None:
    said = on_terminal(peer, 60, "peers", NO_COLOR="1")
    assert max(map(len, said.splitlines())) <= 60
    assert "\n  SKILLS      covey.echo\n" in said
    wide = on_terminal(peer, 200, "peers", NO_COLOR="1")
    assert len(wide.splitlines()) == 2


# Starting


@pytest.mark.end_to_end
def test_a_daemon_that_cannot_start_says_why_in_the_last_line_of_its_log() -> None:
    with short_folder() as root, LocalMesh(root) as mesh:
        broken = mesh.found("solo")
        (broken.home / "store").write_text("not a folder")
        with pytest.raises(CommandFailed) as failed:
            broken.covey("up", "-d")
        assert failed.value.code == 8
        (last,) = str(failed.value).splitlines()[-1:]
        assert f"the store at {broken.home}/store cannot be made" in last
        assert last.endswith((broken.home / "run/daemon.log").read_text().splitlines()[-1])


@pytest.mark.end_to_end
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_commands_and_options(shell: str, tmp_path: Path) -> None:
    def said(**variables: str) -> str:
        environment = {"PATH": os.environ["PATH"], "COVEY_HOME": str(tmp_path), **variables}
        done = subprocess.run(
            COVEY, env=environment, capture_output=True, text=True, timeout=30, check=True
        )
        return done.stdout

    assert "_COVEY_COMPLETE" in said(_COVEY_COMPLETE=f"{shell}_source")
    words = {"COMP_WORDS": "covey ta", "COMP_CWORD": "ta" if shell == "fish" else "1"}
    assert "tasks" in said(_COVEY_COMPLETE=f"{shell}_complete", **words)
    words = {"COMP_WORDS": "covey ask --ti", "COMP_CWORD": "--ti" if shell == "fish" else "2"}
    assert "--timeout" in said(_COVEY_COMPLETE=f"{shell}_complete", **words)


# Words


def test_names_from_other_peers_cannot_drive_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    echo("evil\x1b]0;title\x07\x9b31m\rname\tand\nmore")
    assert capsys.readouterr().out == "evil\ufffd]0;title\ufffd\ufffd31m\ufffdname\tand\nmore\n"
    assert table(("A", "B"), [["x\ny", "z\x1b[2J"]]) == "A    B\nx y  z\ufffd[2J"


def test_a_table_is_as_wide_as_its_cells_and_leaves_out_empty_columns() -> None:
    rows = [["1", "", "long cell"], ["22", "", "x"]]
    assert table(("A", "B", "C"), rows) == "A   C\n1   long cell\n22  x"


def test_the_last_column_is_wrapped_into_the_terminal() -> None:
    text = table(("ID", "REASON"), [["t1", "one two three four five six"]], width=30)
    assert text == "ID  REASON\nt1  one two three four five\n    six"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0124, "12 ms"),
        (3.14, "3.1 s"),
        (59, "59 s"),
        (300, "5 min"),
        (7200, "2 h"),
        (259_200, "3 d"),
    ],
)
def test_a_time_span_is_worded_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("1h", 3600), ("2d", 172_800)]
)
def test_a_time_span_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (98_400_000, "98.4 MB"), (2e12, "2000.0 GB")]
)
def test_a_number_of_bytes_is_worded_for_people(count: float, text: str) -> None:
    assert size(count) == text
