"""How do delivery's records rest in the store, and how are tasks found there?

The `Records` port of `gossip.driver` over `Store`. A device keeps its finished tasks for a week and
more, so nothing here but `sweep` reads all of them whole.
"""

from collections import Counter
from collections.abc import Container, Iterator, Sequence
from typing import TypeVar

import msgspec
import trio

from covey.gossip.driver import Kept, Row, Then
from covey.gossip.effects import Table
from covey.gossip.executions import RunRecord
from covey.gossip.origin import forget
from covey.gossip.task import Task, TaskId
from covey.gossip.task_state import TERMINAL, CancelRecord, TaskState, Verdict
from covey.identity.errors import Malformed
from covey.identity.wire import read_back

from .schema import Database
from .store import Change, Store

S = TypeVar("S", bound=msgspec.Struct)


_NUMBER_BYTES = 8
_PAGE = 256


class TaskRecords:
    """Tasks, outcomes and runs of this device."""

    def __init__(self, store: Store) -> None:
        self._store = store
        last = store.before(Database.ORDER, b"\xff" * _NUMBER_BYTES, 1)
        self._next = int.from_bytes(last[0][0], "big") + 1 if last else 0

    def put(self, rows: Sequence[Row], then: Then) -> None:
        """Queue one transaction."""
        changes = [Change(Database(table.value), key, value) for table, key, value in rows]
        for table, key, value in rows:
            if table is Table.TASK and value is not None:
                number = self._next.to_bytes(_NUMBER_BYTES, "big")
                self._next += 1
                changes.append(Change(Database.ORDER, number, key))
        self._store.put(changes, then)

    def unfinished(self) -> Kept:
        """Return what the cores need at start.

        Raises:
            Malformed: a row is damaged; says which.
        """
        return Kept(
            tasks=list(self._unfinished()),
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

    # Looking for tasks

    def newest(self, states: Container[str] | None = None) -> Iterator[tuple[Task, TaskState]]:
        """Give this device's tasks, the one handed in last first; only those in `states`, if given."""
        before = b"\xff" * _NUMBER_BYTES
        while rows := self._store.before(Database.ORDER, before, _PAGE):
            for number, task_id in rows:
                before = number
                row = self._store.get(Database.STATE, task_id)
                if row is None or (states is not None and state_in(row) not in states):
                    continue
                found = self.task(TaskId(task_id))
                if found is not None:
                    yield found

    def ids(self, beginning: str, limit: int) -> list[TaskId]:
        """Return at most `limit` ids of tasks that begin so, as hex."""
        whole = bytes.fromhex(beginning[: len(beginning) // 2 * 2])
        found: list[TaskId] = []
        for key, _ in self._store.scan(Database.STATE, prefix=whole):
            if key.hex().startswith(beginning):
                found.append(TaskId(key))
                if len(found) == limit:
                    break
        return found

    def states(self) -> tuple[Counter[str], dict[TaskId, str]]:
        """Return how many tasks have ended in each state, and the states of those that have not."""
        ended: Counter[str] = Counter()
        others: dict[TaskId, str] = {}
        for key, row in self._store.scan(Database.STATE):
            if (state := state_in(row)) in TERMINAL:
                ended[state] += 1
            else:
                others[TaskId(key)] = state
        return ended, others

    async def sweep(self, now_ms: int) -> None:
        """Forget finished tasks that nobody can ask about any more, a page at a time.

        Raises:
            Unavailable: the disk does not take it now.
        """
        after = b""
        while rows := self._store.after(Database.ORDER, after, _PAGE):
            after = rows[-1][0]
            changes: list[Change] = []
            for number, key in rows:
                found = self.task(TaskId(key))
                erased = list(forget([found], now_ms)) if found is not None else []
                changes += [Change(Database(one.table.value), one.key, None) for one in erased]
                if erased or found is None:
                    changes.append(Change(Database.ORDER, number, None))
            if changes:
                await self._store.commit(changes)
            await trio.lowlevel.checkpoint()

    def _unfinished(self) -> Iterator[tuple[Task, TaskState]]:
        for key, row in self._store.scan(Database.STATE):
            if state_in(row) not in TERMINAL:
                # A failed commit may have left a state whose task never became durable.
                found = self.task(TaskId(key))
                if found is not None:
                    yield found

    def _all(self, database: Database, kind: type[S]) -> list[S]:
        return [_read(database, key, value, kind) for key, value in self._store.scan(database)]


def _read(database: Database, key: bytes, value: bytes, kind: type[S]) -> S:
    try:
        return read_back(value, kind)
    except Malformed as error:
        raise Malformed(f"row {key.hex()} of {database.value} is damaged: {error}") from error


def state_in(row: bytes) -> str:
    """Return the state in a row of STATE without reading the rest of it.

    A `TaskState` is an array (one byte for its length) whose first item is a text of less than 24
    bytes (one byte for its length): there is no other way to write it in canonical CBOR.
    """
    return row[2 : 2 + (row[1] & 0x1F)].decode(errors="replace") if len(row) > 1 else ""
