"""How do delivery's records rest in the store?

The `Records` port of `gossip.driver` over `Store`.
"""

from collections.abc import Iterator, Sequence

from covey.gossip.driver import Kept, Row, Then
from covey.gossip.executions import RunRecord
from covey.gossip.task import INPUT_BYTES_MAX, RESULT_BYTES_MAX, Task, TaskId
from covey.gossip.task_state import TERMINAL, CancelRecord, TaskState, Verdict
from covey.identity.wire import KIB, decode

from .schema import Database
from .store import Change, Store

_LIMIT = max(INPUT_BYTES_MAX, RESULT_BYTES_MAX) + 64 * KIB


class TaskRecords:
    """Tasks, outcomes and runs of this device."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def put(self, rows: Sequence[Row], then: Then) -> None:
        """Queue one transaction."""
        self._store.put(
            [Change(Database(table.value), key, value) for table, key, value in rows], then
        )

    def unfinished(self) -> Kept:
        """Return what the cores need at start."""
        return Kept(
            tasks=list(self._unfinished()),
            cancels=[decode(value, CancelRecord) for _, value in self._store.scan(Database.CANCEL)],
            runs=[
                decode(value, RunRecord, limit_bytes=_LIMIT)
                for _, value in self._store.scan(Database.RUN)
            ],
        )

    def task(self, task_id: TaskId) -> tuple[Task, TaskState] | None:
        """Return a task's durable records."""
        task = self._store.get(Database.TASK, task_id)
        state = self._store.get(Database.STATE, task_id)
        if task is None or state is None:
            return None
        return decode(task, Task, limit_bytes=_LIMIT), decode(state, TaskState)

    def verdict(self, task_id: TaskId) -> Verdict | None:
        """Return a finished task's outcome and result."""
        row = self._store.get(Database.RESULT, task_id)
        return None if row is None else decode(row, Verdict, limit_bytes=_LIMIT)

    def all_tasks(self) -> list[tuple[Task, TaskState]]:
        """Return every task that is kept, finished or not."""
        found: list[tuple[Task, TaskState]] = []
        for key, value in self._store.scan(Database.STATE):
            task = self._store.get(Database.TASK, key)
            if task is not None:
                found.append((decode(task, Task, limit_bytes=_LIMIT), decode(value, TaskState)))
        return found

    def _unfinished(self) -> Iterator[tuple[Task, TaskState]]:
        for key, value in self._store.scan(Database.STATE):
            state = decode(value, TaskState)
            if state.state not in TERMINAL:
                task = self._store.get(Database.TASK, key)
                if task is not None:
                    yield decode(task, Task, limit_bytes=_LIMIT), state
