"""What has happened here lately? The last events, kept for who watches and for who comes back."""

from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from covey.gossip.memory.entry import NAMESPACE_BYTES, NamespaceId
from covey.gossip.memory.replica import Applied, Place
from covey.gossip.task import TaskId
from covey.gossip.task_state import TaskState

from .views import PeerView

KEPT = 1024
# Entries in one event, each of some kilobytes when it is told; of more there are more events.
TOLD_MAX = 100


@dataclass(frozen=True, slots=True)
class Changed:
    """Where something changed in the memory; no text, for that may be forgotten while this is kept."""

    namespace: NamespaceId
    shown: tuple[Place, ...] = ()
    hidden: tuple[Place, ...] = ()


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened, as it is kept: its view is made only for those who watch."""

    id: int
    kind: str
    at_ms: int
    task: tuple[TaskId, TaskState] | None = None
    peer: PeerView | None = None
    memory: Changed | None = None
    text: str = ""


def changes_of(applied: Applied) -> list[Changed]:
    """Return what a transaction changed in each namespace, in parts of what one event may hold."""
    shown: dict[NamespaceId, list[Place]] = {}
    hidden: dict[NamespaceId, list[Place]] = {}
    for places, of_namespace in ((applied.shown, shown), (applied.hidden, hidden)):
        for place in places:
            of_namespace.setdefault(NamespaceId(place[:NAMESPACE_BYTES]), []).append(place)
    changes: list[Changed] = []
    for one in dict.fromkeys((*shown, *hidden)):
        came, went = shown.get(one, []), hidden.get(one, [])
        for start in range(0, max(len(came), len(went)), TOLD_MAX):
            part = slice(start, start + TOLD_MAX)
            changes.append(Changed(one, tuple(came[part]), tuple(went[part])))
    return changes


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
        memory: Changed | None = None,
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
