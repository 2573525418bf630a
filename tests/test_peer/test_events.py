"""Events reach who watches in order, and who comes back resumes where it was."""

import pytest
import trio

from covey.peer.events import KEPT, Events, Happening


def drain(channel: trio.MemoryReceiveChannel[Happening]) -> list[int]:
    """Return the ids of what waits in a channel."""
    waiting = channel.statistics().current_buffer_used
    return [channel.receive_nowait().id for _ in range(waiting)]


async def test_a_listener_hears_what_happens_from_now_on() -> None:
    events = Events(lambda: 5)
    events.tell("peer", text="before")
    async with events.listen(None) as heard:
        events.tell("peer", text="now")
        event = heard.receive_nowait()
    assert (event.id, event.kind, event.text, event.at_ms) == (5002, "peer", "now", 5)


async def test_who_resumes_after_a_restart_is_told_what_the_new_daemon_kept() -> None:
    earlier = Events(lambda: 10)
    for _ in range(50):
        earlier.tell("peer")
    for restarted_ms in (11, 3):
        later = Events(lambda now_ms=restarted_ms: now_ms)
        later.tell("peer")
        async with later.listen(10_050) as heard:
            assert drain(heard) == [restarted_ms * 1000 + 1]


async def test_who_names_the_last_it_heard_misses_nothing_that_is_kept() -> None:
    events = Events(lambda: 0)
    for _ in range(10):
        events.tell("peer")
    async with events.listen(7) as heard:
        events.tell("peer")
        assert drain(heard) == [8, 9, 10, 11]


async def test_only_the_last_events_are_kept() -> None:
    events = Events(lambda: 0)
    for _ in range(KEPT + 100):
        events.tell("peer")
    async with events.listen(0) as heard:
        assert drain(heard) == list(range(101, KEPT + 101))


async def test_a_listener_that_does_not_read_loses_its_place_and_holds_nobody_up() -> None:
    events = Events(lambda: 0)
    async with events.listen(None) as slow, events.listen(None) as quick:
        for _ in range(2 * KEPT + 1):
            events.tell("peer")
            quick.receive_nowait()
        assert drain(slow) == list(range(1, 2 * KEPT + 1))
        with pytest.raises(trio.EndOfChannel):
            slow.receive_nowait()
        events.tell("peer")
        assert drain(quick) == [2 * KEPT + 2]
