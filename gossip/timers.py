"""What is due when? A heap of keys that does not grow with what has ended long before its time.

Pure. Most timers of delivery are deadlines of a day or more, of tasks that end within seconds; the
heap is rebuilt without them whenever it has doubled, so that it stays in proportion to what lives.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K")

_REBUILT_AT_MIN = 64


class Timers(Generic[K]):
    """Keys by the time at which they are due; equal times in the order of arming.

    Args:
        is_live: tells whether a key still means anything; one that does not is dropped unseen.
    """

    def __init__(self, is_live: Callable[[K], bool]) -> None:
        self._is_live = is_live
        self._heap: list[tuple[float, int, K]] = []
        self._order = count()
        self._rebuilt_at = _REBUILT_AT_MIN

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def deadline(self) -> float:
        """When the next key is due; `math.inf` while there is none."""
        return self._heap[0][0] if self._heap else math.inf

    def arm(self, when: float, key: K) -> None:
        """Let `key` be due at `when`; it may be armed more than once."""
        if len(self._heap) >= self._rebuilt_at:
            self._heap = [one for one in self._heap if self._is_live(one[2])]
            heapq.heapify(self._heap)
            self._rebuilt_at = max(_REBUILT_AT_MIN, 2 * len(self._heap))
        heapq.heappush(self._heap, (when, next(self._order), key))

    def due(self, now: float) -> Iterator[K]:
        """Take out, one by one, the live keys that are due; others may be armed meanwhile."""
        while self._heap and self._heap[0][0] <= now:
            _, _, key = heapq.heappop(self._heap)
            if self._is_live(key):
                yield key
