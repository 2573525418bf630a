"""When has what was forgotten left the file, too? The store is written anew: soon, and seldom enough.

A row that is deleted stays in the file until its page is used again. Writing what is held into a new
file costs its size each time, so what is forgotten together goes together, and a large file is not
written all day long because somebody forgets all day long.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from covey.gossip.memory.replica import Applied
from covey.identity.errors import Unavailable

log = logging.getLogger(__name__)

# Gathers what is forgotten together.
GATHER_S = 0.5
# So many times as long as the last one took, the next one waits.
PAUSE_FACTOR = 50
# What expired, or was written over, leaves the file this often.
EVERY_S = 3600.0
# After the disk did not take the new file.
AGAIN_S = 60.0


class Erasing:
    """Keeps the store's file free of what was forgotten. Run `serve` in a nursery.

    Args:
        compact: writes the file anew.
    """

    def __init__(self, compact: Callable[[], Awaitable[None]]) -> None:
        self._compact = compact
        self._due = trio.Event()
        self._began = trio.Event()
        """Set when the compaction that began last has ended; `_next`: the next to begin."""
        self._next = trio.Event()
        self._stale = False
        """Texts that are not shown any more may still be in the file."""

    def applied(self, applied: Applied) -> None:
        """Note what a transaction took away."""
        self._stale = self._stale or bool(applied.hidden)
        if applied.withdrawn:
            self._due.set()

    def ends(self) -> trio.Event:
        """Return what is set once a compaction has ended that began after all that is noted by now."""
        # Whatever is withdrawn makes one due. If none is, the last one began after that.
        return self._next if self._due.is_set() else self._began

    async def serve(self) -> None:
        """Write the file anew soon after a text was withdrawn, and now and then, until cancelled."""
        while True:
            with trio.move_on_after(EVERY_S) as waiting:
                await self._due.wait()
            if waiting.cancelled_caught and not self._stale:
                continue
            await trio.sleep(GATHER_S)
            # Who is noted from here on waits for another one: this one may have passed its text.
            self._due = trio.Event()
            self._began, self._next = self._next, trio.Event()
            self._stale = False
            began_at = trio.current_time()
            try:
                await self._compact()
            except Unavailable as error:
                log.warning("memory.not_erased", extra={"why": str(error)})
                await trio.sleep(AGAIN_S)
                self._due.set()
                continue
            self._began.set()
            await trio.sleep((trio.current_time() - began_at) * PAUSE_FACTOR)
