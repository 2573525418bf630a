"""Is this device's clock right? Judged by its peers' clocks, else by what it has lived through.

Pure. Waits use monotonic time; the wall clock decides validity and age, so one that is far off
makes this device refuse others, or be refused, and its owner must hear why.
"""

from collections.abc import Collection

SKEW_MS_MAX = 60_000
REMEDY = "set the clock, or let it be kept by a time service"


def clock_trouble(
    now_ms: int, *, incarnation: int, issued_ms: int, skews_ms: Collection[int]
) -> str | None:
    """Return what is wrong with the clock, in plain words; None if nothing is known to be.

    Args:
        now_ms: what it shows, unix milliseconds.
        incarnation: of this start: no less than the wall time of any start so far.
        issued_ms: when this device's own certificate was issued.
        skews_ms: each linked peer's clock minus this one.
    """
    if skews_ms:
        off = [skew for skew in skews_ms if abs(skew) > SKEW_MS_MAX]
        if len(off) * 2 <= len(skews_ms):
            return None
        skew = sorted(skews_ms)[len(skews_ms) // 2]
        way = "behind" if skew > 0 else "ahead of"
        return f"this device's clock is {_span(abs(skew))} {way} its peers'"
    if issued_ms - now_ms > SKEW_MS_MAX:
        return f"this device's clock is {_span(issued_ms - now_ms)} before its own certificate"
    if incarnation - now_ms > SKEW_MS_MAX:
        return f"this device's clock is {_span(incarnation - now_ms)} before its last start"
    return None


def _span(milliseconds: int) -> str:
    """Return a time span for people: `75 s`, `90 min`, `30 h`, `12 days`."""
    seconds = milliseconds // 1000
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"
