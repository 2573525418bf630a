"""A device whose clock is far off says so, works on alone, and is back once the clock is set."""

import shutil
import tempfile
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from covey.peer.clock import Clock, SystemEntropy
from covey.peer.clock_check import SKEW_MS_MAX, clock_trouble
from covey.peer.config import ECHO_SKILL
from covey.peer.daemon import Daemon, open_daemon
from covey.peer.founding import begin
from covey.peer.home import Home
from covey.peer.joining import join_mesh
from covey.peer.views import InviteRequest, SubmitRequest, TaskView

NOW_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
START_S = 30.0


def trouble(*skews_ms: int, incarnation: int = NOW_MS, issued_ms: int = NOW_MS) -> str | None:
    return clock_trouble(NOW_MS, incarnation=incarnation, issued_ms=issued_ms, skews_ms=skews_ms)


@pytest.mark.parametrize(
    ("told", "what"),
    [
        (trouble(), None),
        (trouble(5, -5), None),
        (trouble(SKEW_MS_MAX, -SKEW_MS_MAX), None),
        (trouble(75_000), "this device's clock is 75 s behind its peers'"),
        (trouble(-90 * 60_000, -91 * 60_000), "this device's clock is 90 min ahead of its peers'"),
        (trouble(0, 0, 10 * HOUR_MS), None),
        (trouble(issued_ms=NOW_MS + 30 * HOUR_MS), "30 h before its own certificate"),
        (trouble(incarnation=NOW_MS + 12 * 24 * HOUR_MS), "12 days before its last start"),
        (trouble(0, incarnation=NOW_MS + HOUR_MS, issued_ms=NOW_MS + HOUR_MS), None),
    ],
)
def test_peers_are_believed_first_then_what_was_lived_through(
    told: str | None, what: str | None
) -> None:
    assert told == what or (what is not None and told is not None and told.endswith(what))


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1), st.integers(0, 10**9))
def test_one_liar_among_three_convinces_nobody(skews: list[int], lie: int) -> None:
    honest = [skew % SKEW_MS_MAX for skew in skews]
    assert trouble(*honest, *honest, SKEW_MS_MAX + lie) is None


class OffClock(Clock):
    """A clock that is off by a time, until somebody sets it."""

    def __init__(self, off_ms: int) -> None:
        self.off_ms = off_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.off_ms


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="cv"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def made(path: Path, name: str, found: str | None, clock: Clock) -> Home:
    home = Home(path / name)
    begin(
        home,
        name=name,
        found=found,
        labels={},
        data={},
        listen="127.0.0.1",
        entropy=SystemEntropy(),
        clock=clock,
    )
    return home


@asynccontextmanager
async def running(home: Home, clock: Clock) -> AsyncGenerator[Daemon]:
    config = msgspec.structs.replace(home.config(), skills=(ECHO_SKILL,))
    async with open_daemon(
        home, config, home.mesh(), home.keypair(), trio.Event(), clock=clock
    ) as daemon:
        yield daemon


async def echo(daemon: Daemon, peer: str | None = None) -> TaskView:
    asked = SubmitRequest(skill=ECHO_SKILL, input=msgspec.Raw(b'"hello"'), peer=peer)
    return await daemon.service.submit(asked, wait_s=START_S)


async def until_it_is_done_there(daemon: Daemon, peer: str) -> None:
    with trio.fail_after(START_S):
        assert (await echo(daemon, peer)).state == "done"


@pytest.mark.end_to_end
@pytest.mark.parametrize(
    ("off_ms", "said"),
    [
        (-int(2.5 * HOUR_MS), "this device's clock is 2 h before its own certificate"),
        (int(1.51 * HOUR_MS), "this device's clock is 90 min ahead of its peers'"),
    ],
)
async def test_a_device_with_a_wrong_clock_works_alone_and_is_back_once_it_is_set(
    folder: Path, off_ms: int, said: str
) -> None:
    clock = OffClock(off_ms)
    gateway, line = made(folder, "gateway", "plant", Clock()), made(folder, "line", None, clock)
    async with running(gateway, Clock()) as here:
        invite = await here.service.invite(InviteRequest())
        joined = await trio.to_thread.run_sync(
            partial(join_mesh, line.path, invite.token, clock=clock)
        )
        assert abs(joined.skew_ms + off_ms) < SKEW_MS_MAX, "the joiner hears of it"
        async with running(line, clock) as there:
            async with there.service.events(None) as events:
                with trio.move_on_after(5):
                    while there.service.status().warnings != (said,):
                        await events.receive()
            assert there.service.status().warnings == (said,)
            failed = [one for one in await there.service.doctor() if one.level == "fail"]
            assert (failed[-1].check, failed[-1].what) == ("clock", said)
            assert (await echo(there)).state == "done", "it works on alone"

            clock.off_ms = 0

            await until_it_is_done_there(here, "line")
            await until_it_is_done_there(there, "gateway")
            with trio.fail_after(15):
                while there.service.status().warnings:  # noqa: ASYNC110  (tells nobody)
                    await trio.sleep(0.05)
