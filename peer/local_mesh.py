"""How are several real peers run on one machine? For the demo, for tests, for benchmarks, and for
yours.

Each peer is a process of its own with a home of its own, made and driven by the same commands that
a person types. Nothing here reaches into a daemon: what a peer knows is asked over its local API.
"""

import json
import os
import signal
import subprocess
import sys
import time  # waiting for a process of another program; nothing here is decided by it
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from covey.identity.errors import CoveyError

from .client import Client, ClientError, connect

T = TypeVar("T")
START_S = 20.0
STOP_S = 10.0


class CommandFailed(CoveyError):
    """A covey command ended with another exit code than 0."""

    def __init__(self, arguments: Sequence[str], code: int, said: str) -> None:
        super().__init__(f"covey {' '.join(arguments)} ended with {code}: {said.strip()}")
        self.code = code


class NeverHappened(CoveyError):
    """A condition that was waited for did not become true before its deadline."""


def wait_until(condition: Callable[[], T | None], what: str, *, timeout_s: float = 15.0) -> T:
    """Return the first true value of `condition`, asked every 20 ms.

    Raises:
        NeverHappened: it stayed false for timeout_s.
    """
    ends_at = time.perf_counter() + timeout_s
    while not (value := condition()):
        if time.perf_counter() > ends_at:
            raise NeverHappened(f"waited {timeout_s:g} s in vain: {what}")
        time.sleep(0.02)
    return value


class LocalPeer:
    """One peer of a local mesh: its home, its process, its client."""

    def __init__(self, name: str, home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.home = home
        self._environment = {**environment, "COVEY_HOME": str(home)}
        self._process: subprocess.Popen[bytes] | None = None
        self._client: Client | None = None

    def covey(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """Run one covey command on this peer's home and return its standard output.

        Raises:
            CommandFailed: it ended with another code than 0.
        """
        done = subprocess.run(
            [sys.executable, "-P", "-m", "covey.peer.cli", *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode != 0:
            raise CommandFailed(arguments, done.returncode, done.stderr or done.stdout)
        return done.stdout

    def covey_json(self, *arguments: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Run one covey command with `--json` and return what it printed."""
        answer: dict[str, Any] = json.loads(self.covey(*arguments, "--json", timeout_s=timeout_s))
        return answer

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        if self._process is None:
            raise NeverHappened(f"{self.name} was not started")
        return self._process.pid

    @property
    def client(self) -> Client:
        """A client of this peer's local API; made anew after a restart."""
        if self._client is None:
            self._client = connect(home=self.home)
        return self._client

    def start(self, *, wait: bool = True) -> None:
        """Start the daemon in the foreground of a child process; by default, wait until ready."""
        with (self.home / "daemon.out").open("ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "covey.peer.cli", "daemon"],
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env=self._environment,
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until the local API answers."""
        wait_until(self.is_ready, f"{self.name} is ready", timeout_s=START_S)

    def is_ready(self) -> bool:
        """Tell whether the local API answers now."""
        process = self._process
        if process is not None and process.poll() is not None:
            said = (self.home / "daemon.out").read_text(errors="replace")
            raise NeverHappened(f"{self.name} ended with {process.returncode}: {said[-2000:]}")
        try:
            self.client.status()
        except ClientError:
            self._forget_client()
            return False
        return True

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the daemon a signal; after SIGKILL, wait until it is gone."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
            process.wait(STOP_S)
            self._forget_client()

    def stop(self) -> None:
        """End the daemon politely; kill it if it has not ended after STOP_S."""
        self._forget_client()
        process = self._process
        if process is None or process.poll() is not None:
            return
        try:
            self.kill(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)

    def _forget_client(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


class LocalMesh:
    """A mesh of real peers below one folder; leaving the block ends every one of them.

    Args:
        root: an empty folder; its path should be short (a Unix socket is made below it).
        environment: variables for the peers' processes; this process's own if not given.
    """

    def __init__(self, root: Path, *, environment: Mapping[str, str] | None = None) -> None:
        self.root = root
        self.peers: dict[str, LocalPeer] = {}
        self._environment = dict(os.environ if environment is None else environment)
        self._environment.setdefault("COVEY_LISTEN", "127.0.0.1")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for peer in self.peers.values():
            peer.stop()

    def found(self, name: str, *options: str, mesh: str = "local") -> LocalPeer:
        """Make the first peer, which founds the mesh; it is not started yet."""
        return self._init(name, "--found", mesh, *options)

    def join(
        self, name: str, *options: str, inviter: LocalPeer, zones: Sequence[str] = ()
    ) -> LocalPeer:
        """Make a peer and let it join by an invite from `inviter`; it is not started yet."""
        token = inviter.client.invite(uses=1, expires_s=600.0, zones=zones).token
        peer = self._init(name, *options)
        peer.covey("join", stdin=token)
        return peer

    def _init(self, name: str, *options: str) -> LocalPeer:
        peer = LocalPeer(name, self.root / name, self._environment)
        self.peers[name] = peer
        peer.covey("init", "--name", name, *options)
        return peer
