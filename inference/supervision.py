"""When is a worker dead, when may it start again, and what must never run again? Pure."""

from dataclasses import dataclass, field

PING_S = 2.0
PINGS_MISSED_MAX = 3
# A cancelled request ends at its next token, and a prompt's evaluation cannot be cut short: what has
# not ended this long after its deadline, or after its cancellation, is taken for hung.
GRACE_S = 10.0
BACK_OFF_S = (0.5, 2.0, 8.0)
CRASH_WINDOW_S = 300.0
POISON_CRASHES = 2
POISONED_MAX = 1024


@dataclass(slots=True)
class Supervision:
    """What is known of one model's workers."""

    crashes: list[float] = field(default_factory=lambda: list[float]())
    suspects: dict[bytes, int] = field(default_factory=lambda: dict[bytes, int]())
    last: str = ""
    """What the last crash was."""

    def crashed(self, now: float, in_flight: list[bytes], why: str = "") -> None:
        """Note a crash or a failed start, and which requests (by digest) were under way."""
        self.last = why
        self.crashes = [when for when in self.crashes if now - when < CRASH_WINDOW_S]
        self.crashes.append(now)
        for digest in in_flight:
            self.suspects[digest] = self.suspects.get(digest, 0) + 1
        while len(self.suspects) > POISONED_MAX:
            del self.suspects[next(iter(self.suspects))]

    def answered(self, digest: bytes) -> None:
        """Clear a request of suspicion: it was only there when another crashed its worker."""
        self.suspects.pop(digest, None)

    def is_quarantined(self, now: float) -> bool:
        """Tell whether the model crashed too often lately to be tried again."""
        recent = [when for when in self.crashes if now - when < CRASH_WINDOW_S]
        return len(recent) > len(BACK_OFF_S)

    def wait_s(self, now: float) -> float:
        """Return how long to wait before the next start."""
        recent = [when for when in self.crashes if now - when < CRASH_WINDOW_S]
        if not recent:
            return 0.0
        return max(0.0, recent[-1] + BACK_OFF_S[min(len(recent), len(BACK_OFF_S)) - 1] - now)

    def is_poisoned(self, digest: bytes) -> bool:
        """Tell whether this request was under way in so many crashes that it is not tried again."""
        return self.suspects.get(digest, 0) >= POISON_CRASHES


def is_hung(
    now: float,
    *,
    heard_at: float,
    earliest_deadline: float | None,
    ping_s: float = PING_S,
    grace_s: float = GRACE_S,
) -> bool:
    """Tell whether a worker must be killed: it answers no ping, or a request is over its deadline."""
    if now - heard_at > ping_s * (PINGS_MISSED_MAX + 1):
        return True
    return earliest_deadline is not None and now > earliest_deadline + grace_s
