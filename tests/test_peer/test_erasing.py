"""Is the file written anew as often as something leaves it, and no more often?"""

import pytest
import trio
from trio.testing import MockClock

from covey.gossip.memory.replica import Applied
from covey.identity.errors import Unavailable
from covey.peer.memory.erasing import AGAIN_S, EVERY_S, Erasing

DAY_S = 86_400.0
PLACE = bytes(56)


class Disk:
    """Takes a second to write a file, or fails."""

    def __init__(self) -> None:
        self.written_at: list[float] = []
        self.fails = False

    async def compact(self) -> None:
        if self.fails:
            raise Unavailable("it is full")
        await trio.sleep(1)
        self.written_at.append(trio.current_time())


def gone(*, withdrawn: int = 0) -> Applied:
    """A transaction after which a text is not shown any more."""
    applied = Applied()
    applied.hidden.append(PLACE)
    applied.withdrawn = withdrawn
    return applied


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
async def erasing(disk: Disk, nursery: trio.Nursery) -> Erasing:
    erasing = Erasing(disk.compact)
    nursery.start_soon(erasing.serve)
    return erasing


async def test_what_is_forgotten_together_leaves_the_file_once_and_soon(
    autojump_clock: MockClock, disk: Disk, erasing: Erasing
) -> None:
    began = trio.current_time()
    for _ in range(3):
        erasing.applied(gone(withdrawn=1))
    await erasing.ends().wait()
    assert trio.current_time() - began < 3
    await trio.sleep(DAY_S)
    assert len(disk.written_at) == 1


async def test_a_file_that_takes_long_is_not_written_all_day_long(
    autojump_clock: MockClock, disk: Disk, erasing: Erasing
) -> None:
    for _ in range(1000):
        erasing.applied(gone(withdrawn=1))
        await trio.sleep(1)
    assert 15 <= len(disk.written_at) <= 20


async def test_what_has_expired_leaves_the_file_within_the_hour_and_nothing_does_nothing(
    autojump_clock: MockClock, disk: Disk, erasing: Erasing
) -> None:
    await trio.sleep(DAY_S)
    assert disk.written_at == []
    began = trio.current_time()
    erasing.applied(gone())
    await trio.sleep(DAY_S)
    (written_at,) = disk.written_at
    assert written_at - began <= EVERY_S + 2


async def test_a_file_that_could_not_be_written_is_tried_again(
    autojump_clock: MockClock, disk: Disk, erasing: Erasing
) -> None:
    disk.fails = True
    erasing.applied(gone(withdrawn=1))
    await trio.sleep(AGAIN_S / 2)
    assert not erasing.ends().is_set()
    disk.fails = False
    await trio.sleep(AGAIN_S)
    assert len(disk.written_at) == 1
