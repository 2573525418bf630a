"""What time does an entry get? A hybrid logical clock: wall time where it grows, a counter where not.

Pure. A clock that somebody else's entry shows moves this one only within the bound, so that nobody's
wrong or lying clock carries the mesh away. Source: Kulkarni et al., "Logical Physical Clocks", 2014.
"""

from .entry import AHEAD_MS_MAX

COUNTER_BITS = 16
# Less than what is admitted: otherwise an entry at the very bound would push this peer's own entries
# over it, and nobody would take them.
_OBSERVED_AHEAD_MS_MAX = AHEAD_MS_MAX - 60_000
_COUNTER_MAX = (1 << COUNTER_BITS) - 1


class HybridClock:
    """One device's clock; each stamp is greater than any before it, and than all that it has seen.

    Args:
        last: the greatest stamp so far, as the store knows it.
    """

    def __init__(self, last: int = 0) -> None:
        self.last = last

    def stamp(self, now_ms: int) -> int:
        """Return the time of a new entry."""
        # A full counter goes over into the next millisecond, as an integer does by itself.
        self.last = max(self.last + 1, now_ms << COUNTER_BITS)
        return self.last

    def observe(self, stamp: int, now_ms: int) -> None:
        """Note an entry of somebody else; one too far ahead does not count."""
        if stamp >> COUNTER_BITS <= now_ms + _OBSERVED_AHEAD_MS_MAX:
            self.last = max(self.last, stamp)


def stamp_of(now_ms: int) -> int:
    """Return the greatest stamp of this millisecond: everything up to now has it or less."""
    return now_ms << COUNTER_BITS | _COUNTER_MAX
