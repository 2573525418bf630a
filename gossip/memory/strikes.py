"""Who sent what is not allowed, and how often? Whoever did so too often is not heard for a while."""

import math

from covey.identity.keys import PeerId

from .settings import SpreadSettings

# Peers whose strikes are remembered, linked or not.
STRUCK_MAX = 4096


class Strikes:
    """Counts what peers did wrong, also while they are not linked."""

    def __init__(self, settings: SpreadSettings) -> None:
        self._settings = settings
        self._struck: dict[PeerId, tuple[int, float]] = {}
        self._muted: dict[PeerId, tuple[float, str]] = {}

    def strike(self, peer: PeerId, why: str, now: float) -> bool:
        """Count one more; tell whether that was one too many."""
        strikes, last = self._struck.pop(peer, (0, now))
        strikes = strikes + 1 if now < last + self._settings.mute_s else 1
        if strikes < self._settings.strikes_max:
            self._struck[peer] = (strikes, now)
            while len(self._struck) > STRUCK_MAX:
                del self._struck[next(iter(self._struck))]
            return False
        why = f"it sent what is not allowed, last: {why}"
        self._muted[peer] = (now + self._settings.mute_s, why)
        while len(self._muted) > STRUCK_MAX:
            del self._muted[next(iter(self._muted))]
        return True

    def muted(self, peer: PeerId) -> tuple[float, str]:
        """Return until when a peer is not heard, and why; long ago, if it always was."""
        return self._muted.get(peer, (-math.inf, ""))
