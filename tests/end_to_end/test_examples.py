"""The example scripts do what they say, on a real peer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from end_to_end.conftest import ROOT

from covey.peer.local_mesh import LocalMesh

pytestmark = [pytest.mark.end_to_end, pytest.mark.model]


def run(*command: str, home: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COVEY_HOME": str(home)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_python_example_submits_waits_watches_and_handles_an_error(standing: LocalMesh) -> None:
    done = run(
        sys.executable,
        str(ROOT / "examples/submit_and_wait.py"),
        home=standing.peers["gateway"].home,
    )
    assert done.returncode == 0, done.stderr
    assert "read: pump_a = 9.8" in done.stdout
    assert "done: " in done.stdout
    assert "refused (bad-request): zone 'somewhere' is not known" in done.stdout


def test_the_shell_example_submits_waits_watches_and_handles_an_error(standing: LocalMesh) -> None:
    done = run("sh", str(ROOT / "examples/submit_and_wait.sh"), home=standing.peers["gateway"].home)
    assert done.returncode == 0, done.stderr
    assert '"fields":{"machine":"pump_a"}' in done.stdout
    states = [line for line in done.stdout.splitlines() if line.startswith("event ")]
    assert states[-1] == "event done"
    assert len(states) >= 2, "it tells the way to there, too"
    assert "covey:bad-request" in done.stdout
    assert done.stdout.endswith("status 400\n")


@pytest.mark.parametrize("example", ["submit_and_wait.py", "submit_and_wait.sh"])
def test_an_example_without_a_daemon_says_how_to_start_one(example: str, short_path: Path) -> None:
    program = sys.executable if example.endswith(".py") else "sh"
    done = run(program, str(ROOT / "examples" / example), home=short_path)
    assert done.returncode == 3
    assert "covey up -d" in done.stderr


def test_the_memory_example_converges_shows_a_conflict_and_forgets(short_path: Path) -> None:
    done = run(sys.executable, str(ROOT / "examples/shared_memory.py"), home=short_path)
    assert done.returncode == 0, done.stderr
    assert "  failures: 5; limit: in conflict, alice 7.1, bob 9.8" in done.stdout.splitlines()
