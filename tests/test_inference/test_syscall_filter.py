"""What a worker may not ask of the system, tried in processes that have given it up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from test_inference.echo_pool import ECHO, echo_model, offer, say

from covey.inference.pool import open_pool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"),
    reason="there is no filter on this system",
)

TRIED = """
import ctypes, errno, os, socket, subprocess, sys, threading

from covey.inference.syscall_filter import PROGRAMS, SOCKETS, deny
from covey.inference.worker import limit_process

def tries(what):
    try:
        what()
    except PermissionError:
        return "denied"
    return "allowed"

done = {name: threading.Event() for name in ("go", "tried")}
seen = []

def earlier():
    done["go"].wait()
    seen.append(tries(lambda: socket.socket().close()))

older = threading.Thread(target=earlier)
older.start()
if "programs" in sys.argv:
    limit_process(0)
if "sockets" in sys.argv:
    assert deny(SOCKETS)
done["go"].set()
older.join()
newer = threading.Thread(target=lambda: seen.append(tries(lambda: socket.socket().close())))
newer.start()
newer.join()
print(*seen, end=" ")
print(tries(lambda: subprocess.run(["true"])), end=" ")
print(tries(lambda: os.execv("/bin/true", ["true"]) if "programs" in sys.argv else None), end=" ")
ctypes.CDLL(None, use_errno=True).syscall(0x40000000 | 1)
print("denied" if ctypes.get_errno() == errno.EPERM else "allowed")
"""


@pytest.mark.parametrize(
    ("given_up", "seen"),
    [
        ([], "allowed allowed allowed allowed allowed"),
        (["programs"], "allowed allowed denied denied denied"),
        (["programs", "sockets"], "denied denied denied denied denied"),
    ],
)
def test_what_was_given_up_is_denied_to_threads_old_and_new(given_up: list[str], seen: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TRIED, *given_up], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    assert done.stdout.split() == seen.split()


async def test_a_worker_gives_up_programs_before_it_loads_and_sockets_after(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        await pool.generate(say("hello"), deadline_s=30)
        status = await trio.Path(f"/proc/{pool.worker_pid('alpha')}/status").read_text()
        told = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        mine = await trio.Path("/proc/self/status").read_text()
        inherited = int(
            next((line.split()[1] for line in mine.splitlines() if "Seccomp_filters" in line), 0)
        )
        assert told["NoNewPrivs"] == "1"
        assert told["Seccomp"] == "2"
        assert int(told["Seccomp_filters"]) - inherited == 2
