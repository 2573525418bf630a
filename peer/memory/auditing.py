"""Whom does this peer audit next, and when? One peer a day, each in turn.

An audit compares under a fresh salt, so it finds what crafted entries hide from the everyday
comparison (MEMORY 3). It sums up a whole namespace anew on both sides, so it is made once a day, by
each peer at another time of the day; who does not run at that time makes it when it does.

Nothing of it is stored: each start makes an audit, within two minutes of there being somebody in step.
So a device that is restarted daily makes one a day, and one that never runs for long makes them too. A
stored time would only save who starts more often a comparison each, and would be one more thing to be
wrong after a clock was.

Pure: told who is in step, and the wall clock. `exchanging.py` does what it says.
"""

import hashlib
from collections.abc import Iterable

from covey.gossip.memory.kinds import DAY_MS
from covey.identity.keys import PeerId

# How often to ask: this, and up to as much again, by peer. Those who were started together, as after
# a power cut, are not all at it in one moment.
LOOK_S = 600.0
# The same as long as none was made since the start.
FIRST_LOOK_S = 60.0


class Audits:
    """The audits that one peer makes. What it remembers of them goes with the process.

    Args:
        me: this peer.
    """

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._begins_ms = self._drawn("") % DAY_MS
        self._day: int | None = None
        self._last_days: dict[PeerId, int] = {}

    @property
    def look_s(self) -> float:
        """How long to wait before asking next."""
        pause_s = FIRST_LOOK_S if self._day is None else LOOK_S
        return pause_s * (1 + self._begins_ms / DAY_MS)

    def take_next(self, in_step: Iterable[PeerId], now_ms: int) -> PeerId | None:
        """Return whom to audit now, who counts as audited from then on; None: nobody.

        It is who was audited the longest ago, or never; among those one that is drawn anew each day,
        or a peer that is started daily would always audit the same one.
        """
        day = (now_ms - self._begins_ms) // DAY_MS
        if day == self._day:
            return None
        peer = min(in_step, key=lambda one: self._rank(one, day), default=None)
        if peer is not None:
            self._day = self._last_days[peer] = day
        return peer

    def _rank(self, peer: PeerId, day: int) -> tuple[int, int]:
        return self._last_days.get(peer, -1), self._drawn(f"{day} {peer}")

    def _drawn(self, what: str) -> int:
        digest = hashlib.sha256(f"{self._me} {what}".encode()).digest()
        return int.from_bytes(digest[:8], "big")
