"""Which neighbours grow together? The best pair first, until none is left. Pure.

Both kinds of tokenizer do this; they differ in what makes a pair better.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush

Rank = Callable[[str, str], float | None]
"""Of two neighbours: the lower the sooner they merge; None if they never do."""


def merged(symbols: list[str], rank: Rank) -> list[str]:
    """Return the symbols with all merges made; of equal ones the leftmost first.

    The time grows as n log n: the length of a word is up to whoever wrote the text.
    """
    parts: list[str | None] = [*symbols]
    after = list(range(1, len(parts) + 1))
    before = list(range(-1, len(parts) - 1))
    waiting: list[tuple[float, int, int, str, str]] = []

    def offered(left: int, right: int) -> list[tuple[float, int, int, str, str]]:
        if left < 0 or right >= len(parts):
            return []
        one, other = parts[left], parts[right]
        if one is None or other is None or (place := rank(one, other)) is None:
            return []
        return [(place, left, right, one, other)]

    for at in range(len(parts) - 1):
        waiting += offered(at, at + 1)
    heapify(waiting)
    while waiting:
        _, left, right, one, other = heappop(waiting)
        # One of them has grown or is gone since this pair was offered.
        if parts[left] != one or parts[right] != other:
            continue
        parts[left], parts[right] = one + other, None
        after[left] = after[right]
        if after[left] < len(parts):
            before[after[left]] = left
        for pair in (*offered(before[left], left), *offered(left, after[left])):
            heappush(waiting, pair)
    return [part for part in parts if part is not None]
