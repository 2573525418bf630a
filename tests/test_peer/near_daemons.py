"""Daemons in this very process, whose clocks a test may set, for what would take months otherwise."""

import shutil
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from covey.peer.clock import Clock, SystemEntropy
from covey.peer.config import ECHO_SKILL
from covey.peer.daemon import Daemon, open_daemon
from covey.peer.founding import begin
from covey.peer.home import Home
from covey.peer.joining import join_mesh
from covey.peer.views import InviteRequest

DAY_MS = 86_400_000
# Long against what is waited for, short against a test that hangs.
WITHIN_S = 20.0


class SetClock(Clock):
    """A clock that is off by as much as a test says."""

    def __init__(self) -> None:
        self.off_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.off_ms


@dataclass(slots=True)
class Device:
    """A home, and the clock of whoever runs in it."""

    name: str
    home: Home
    clock: SetClock
    passphrase: str = ""
    """Of the mesh's root key, on the device that founded it."""
    _is_running: bool = False
    _stop: trio.Event = field(default_factory=trio.Event)
    _ended: trio.Event = field(default_factory=trio.Event)

    @property
    def id(self) -> str:
        return self.home.keypair().peer_id

    async def start(self, nursery: trio.Nursery) -> Daemon:
        """Run its daemon until `stop`, or the nursery's end."""
        self._stop, self._ended = trio.Event(), trio.Event()
        self._is_running = True
        daemon: Daemon = await nursery.start(self._run)
        return daemon

    async def stop(self) -> None:
        """End its daemon, if it runs."""
        if self._is_running:
            self._stop.set()
            await self._ended.wait()

    async def _run(self, *, task_status: trio.TaskStatus[Daemon]) -> None:
        home = self.home
        config = msgspec.structs.replace(home.config(), skills=(ECHO_SKILL,))
        async with open_daemon(
            home, config, home.mesh(), home.keypair(), trio.Event(), clock=self.clock
        ) as daemon:
            task_status.started(daemon)
            await self._stop.wait()
        self._is_running = False
        self._ended.set()

    async def join(self, inviter: Daemon, zones: tuple[str, ...] = ()) -> None:
        """Join with a fresh invite of a daemon that runs."""
        invite = await inviter.service.invite(InviteRequest(zones=zones))
        await trio.to_thread.run_sync(
            lambda: join_mesh(self.home.path, invite.token, clock=self.clock)
        )


@asynccontextmanager
async def devices(*names: str, zones: tuple[str, ...] = ()) -> AsyncGenerator[list[Device]]:
    """Devices of these names and one clock; the first has founded a mesh, and is in these zones.

    They end with the block.
    """
    path, clock = Path(tempfile.mkdtemp(prefix="cv")), SetClock()
    first, *others = names
    made = [_made(path, first, clock, founds=True, zones=zones)]
    made += [_made(path, name, clock) for name in others]
    try:
        yield made
        for device in made:
            await device.stop()
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _made(
    path: Path, name: str, clock: SetClock, *, founds: bool = False, zones: tuple[str, ...] = ()
) -> Device:
    home = Home(path / name)
    begun = begin(
        home,
        name=name,
        found="plant" if founds else None,
        zones=zones,
        labels={},
        data={},
        listen="127.0.0.1",
        entropy=SystemEntropy(),
        clock=clock,
    )
    return Device(name, home, clock, begun.passphrase or "")


async def until(condition: Callable[[], object], *, within_s: float = WITHIN_S) -> None:
    """Return once the condition holds; fail if it does not in time."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  (what a daemon knows tells nobody of its change)
            await trio.sleep(0.01)


def linked(daemon: Daemon) -> set[str]:
    """The names of the peers that a daemon is linked with."""
    return {peer.name for peer in daemon.service.peers() if peer.state == "up"}
