"""What has happened here lately? The last events, kept for who watches and for who comes back."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from covey.gossip.task import TaskId
from covey.gossip.task_state import TaskState

from .memory_views import MemoryChange
from .views import PeerView

KEPT = 1024


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened, as it is kept: its view is made only for those who watch."""

    id: int
    kind: str
    at_ms: int
    task: tuple[TaskId, TaskState] | None = None
    peer: PeerView | None = None
    memory: MemoryChange | None = None
    text: str = ""


class Events:
    """The events of one daemon. Their numbers grow, also across a restart: who resumes by the last
    number it heard from an earlier daemon is told everything that this one has kept.

    Args:
        now_ms: reads the wall clock.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        self._kept: deque[Happening] = deque(maxlen=KEPT)
        self._last_id = now_ms() * 1000
        self._listeners: set[trio.MemorySendChannel[Happening]] = set()

    def tell(
        self,
        kind: str,
        *,
        task: tuple[TaskId, TaskState] | None = None,
        peer: PeerView | None = None,
        memory: MemoryChange | None = None,
        text: str = "",
    ) -> None:
        """Keep an event, and hand it to everyone who listens."""
        self._last_id += 1
        event = Happening(self._last_id, kind, self._now_ms(), task, peer, memory, text)
        self._kept.append(event)
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._listeners.discard(listener)
                listener.close()

    @asynccontextmanager
    async def listen(
        self, after_id: int | None
    ) -> AsyncGenerator[trio.MemoryReceiveChannel[Happening]]:
        """Give events as they happen, first those after `after_id` that are still kept.

        A listener that does not keep up loses its place: the channel ends, and it resumes by id.
        """
        send, receive = trio.open_memory_channel[Happening](2 * KEPT)
        if after_id is not None:
            # A number from the future is an earlier daemon's, whose clock was ahead.
            from_id = after_id if after_id <= self._last_id else 0
            for event in self._kept:
                if event.id > from_id:
                    send.send_nowait(event)
        self._listeners.add(send)
        try:
            yield receive
        finally:
            self._listeners.discard(send)
            send.close()
            receive.close()
