"""What is over at an executor, and must be known until no offer of it can be valid any more?

Pure, and bounded: whoever fills it displaces what is its own.
"""

from covey.identity.keys import PeerId

from .task import TaskId

RunKey = tuple[PeerId, TaskId]

# About 200 bytes of memory each.
CLOSED_MAX = 100_000


class PastRuns:
    """Tasks by origin and id, each until its `until_ms`."""

    def __init__(self, closed_max: int = CLOSED_MAX) -> None:
        self._closed_max = closed_max
        self._closed: dict[PeerId, dict[TaskId, int]] = {}
        self._count = 0
        self._begun: dict[RunKey, int] = {}

    def __len__(self) -> int:
        return self._count + len(self._begun)

    def is_closed(self, key: RunKey) -> bool:
        """Tell whether a task was cancelled, or delivered and acknowledged."""
        return key[1] in self._closed.get(key[0], ())

    def is_begun(self, key: RunKey) -> bool:
        """Tell whether a task that may run once began here and nobody knows how far it came."""
        return key in self._begun

    def begin(self, key: RunKey, until_ms: int) -> None:
        """Remember that a task that may run once began, and was cut short."""
        self._begun[key] = until_ms

    def close(self, key: RunKey, until_ms: int) -> RunKey | None:
        """Remember that a task is closed; return what is forgotten in its stead, if it is full."""
        self._begun.pop(key, None)
        if self.is_closed(key):
            return None
        displaced = None
        if self._count >= self._closed_max:
            origin = key[0] if key[0] in self._closed else next(iter(self._closed))
            displaced = (origin, next(iter(self._closed[origin])))
            self._forget(displaced)
        self._closed.setdefault(key[0], {})[key[1]] = until_ms
        self._count += 1
        return displaced

    def sweep(self, now_ms: int) -> list[RunKey]:
        """Forget, and return, what is over its time."""
        closed = [
            (origin, task_id)
            for origin, tasks in self._closed.items()
            for task_id, until_ms in tasks.items()
            if until_ms < now_ms
        ]
        for key in closed:
            self._forget(key)
        begun = [key for key, until_ms in self._begun.items() if until_ms < now_ms]
        for key in begun:
            del self._begun[key]
        return closed + begun

    def _forget(self, key: RunKey) -> None:
        of_origin = self._closed[key[0]]
        del of_origin[key[1]]
        if not of_origin:
            del self._closed[key[0]]
        self._count -= 1
