"""How do delivery's records rest in the store?

The `Records` port of `gossip.driver` over `Store`.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from covey.gossip.driver import Kept, Row, Then
from covey.gossip.executions import RunRecord
from covey.gossip.task import INPUT_BYTES_MAX, RESULT_BYTES_MAX, Task, TaskId
from covey.gossip.task_state import TERMINAL, CancelRecord, TaskState, Verdict
from covey.identity.errors import Malformed
from covey.identity.wire import KIB, decode

from .schema import Database
from .store import Change, Store

S = TypeVar("S", bound=msgspec.Struct)

# The largest: a task with its input, a verdict with its result, a state with fifty attempts' reasons.
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
        """Return what the cores need at start.

        Raises:
            Malformed: a row is damaged; says which.
        """
        return Kept(
            tasks=list(self._tasks(unfinished=True)),
            cancels=self._all(Database.CANCEL, CancelRecord),
            runs=self._all(Database.RUN, RunRecord),
        )

    def task(self, task_id: TaskId) -> tuple[Task, TaskState] | None:
        """Return a task's durable records."""
        task = self._store.get(Database.TASK, task_id)
        state = self._store.get(Database.STATE, task_id)
        if task is None or state is None:
            return None
        return (
            _read(Database.TASK, task_id, task, Task),
            _read(Database.STATE, task_id, state, TaskState),
        )

    def verdict(self, task_id: TaskId) -> Verdict | None:
        """Return a finished task's outcome and result."""
        row = self._store.get(Database.RESULT, task_id)
        return None if row is None else _read(Database.RESULT, task_id, row, Verdict)

    def all_tasks(self) -> list[tuple[Task, TaskState]]:
        """Return every task that is kept, finished or not."""
        return list(self._tasks(unfinished=False))

    def _tasks(self, *, unfinished: bool) -> Iterator[tuple[Task, TaskState]]:
        for key, value in self._store.scan(Database.STATE):
            state = _read(Database.STATE, key, value, TaskState)
            if unfinished and state.state in TERMINAL:
                continue
            # A failed commit may have left a state whose task never became durable.
            task = self._store.get(Database.TASK, key)
            if task is not None:
                yield _read(Database.TASK, key, task, Task), state

    def _all(self, database: Database, kind: type[S]) -> list[S]:
        return [_read(database, key, value, kind) for key, value in self._store.scan(database)]


def _read(database: Database, key: bytes, value: bytes, kind: type[S]) -> S:
    try:
        return decode(value, kind, limit_bytes=_LIMIT)
    except Malformed as error:
        raise Malformed(f"row {key.hex()} of {database.value} is damaged: {error}") from error
