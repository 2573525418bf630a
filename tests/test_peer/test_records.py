"""Delivery's rows in the store, beyond what every kind of records must do (tests/contracts)."""

import hashlib
from collections.abc import Container, Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from covey.gossip.driver import Row
from covey.gossip.effects import Table
from covey.gossip.origin import RETENTION_MS
from covey.gossip.task import Need, Task
from covey.gossip.task_state import MOVES, TERMINAL, State, TaskState
from covey.identity.errors import Malformed
from covey.identity.wire import encode
from covey.peer.records import TaskRecords, state_in
from covey.peer.schema import Database
from covey.peer.store import Change, open_store

NOW_MS = 1_790_000_000_000
TASK = Task(b"t" * 16, "peer", bytes(16), Need("see"), b"input", 1, 2)


def row_of(number: int, state: State, *, deadline_ms: int = NOW_MS) -> tuple[Row, Row]:
    task = Task(id_of(number), "peer", bytes(16), Need("see"), b"input", number, deadline_ms)
    ended_ms = number if state in TERMINAL else 0
    return (
        (Table.TASK, task.id, encode(task)),
        (Table.STATE, task.id, encode(TaskState(state, "why", ended_ms=ended_ms))),
    )


def id_of(number: int) -> bytes:
    """Ids are hashes: in another order than their tasks came."""
    return hashlib.sha256(bytes([number % 256, number // 256])).digest()[:16]


async def put(records: TaskRecords, *rows: Row) -> None:
    done = trio.Event()
    records.put(rows, lambda _error: done.set())
    await done.wait()


async def put_tasks(records: TaskRecords, states: Sequence[State]) -> None:
    for number, state in enumerate(states):
        await put(records, *row_of(number, state))


def listed(records: TaskRecords, states: Container[str] | None = None) -> list[int]:
    return [task.submitted_ms for task, _ in records.newest(states)]


async def test_tasks_are_listed_newest_first_also_after_a_restart(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        assert listed(records) == []
        await put_tasks(records, ["done", "queued", "failed"])
        assert listed(records) == [2, 1, 0]
        assert listed(records, {"done", "failed"}) == [2, 0]
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        await put(records, *row_of(3, "done"))
        assert listed(records) == [3, 2, 1, 0]


async def test_more_tasks_than_a_page_are_listed_and_swept(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        rows = [row for number in range(600) for row in row_of(number, "done")]
        await put(records, *rows)
        await put(records, *row_of(600, "done", deadline_ms=NOW_MS + 1))
        assert listed(records) == list(range(600, -1, -1))
        await records.sweep(NOW_MS + RETENTION_MS)
        assert len(listed(records)) == 601
        await records.sweep(NOW_MS + RETENTION_MS + 1)
        assert listed(records) == [600]
        assert [store.count(one) for one in (Database.TASK, Database.STATE, Database.ORDER)] == [
            1,
            1,
            1,
        ]


async def test_what_has_not_ended_is_never_swept(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        await put_tasks(records, ["queued", "done", "running"])
        await records.sweep(NOW_MS + 10 * RETENTION_MS)
        assert listed(records) == [2, 0]


async def test_a_task_is_found_by_a_beginning_of_its_id(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        await put(records, *(row for number in range(40) for row in row_of(number, "done")))
        for number in range(40):
            name = id_of(number).hex()
            for length in (1, 2, 5, 12, 32):
                found = records.ids(name[:length], 100)
                assert id_of(number) in found
                assert all(one.hex().startswith(name[:length]) for one in found)
        assert records.ids("", 3) == sorted(map(id_of, range(40)))[:3]
        assert records.ids("00" * 16, 2) == []


@given(st.sampled_from(sorted(MOVES)), st.text(max_size=400), st.integers(0, 2**40))
def test_a_state_is_seen_without_reading_its_row(state: State, reason: str, ended: int) -> None:
    row = encode(TaskState(state, reason, ended_ms=ended))
    assert state_in(row) == state


async def test_states_are_counted_apart_from_what_goes_on(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        records = TaskRecords(store)
        await put_tasks(records, ["done", "done", "failed", "running"])
        ended, others = records.states()
    assert ended == {"done": 2, "failed": 1}
    assert others == {id_of(3): "running"}


@pytest.mark.parametrize("damaged", [Database.TASK, Database.STATE, Database.RUN, Database.CANCEL])
async def test_a_damaged_row_is_named(tmp_path: Path, damaged: Database) -> None:
    async with open_store(tmp_path) as store:
        rows = {Database.TASK: encode(TASK), Database.STATE: encode(TaskState("queued", "waits"))}
        rows[damaged] = b"\xff"
        await store.commit([Change(one, TASK.id, row) for one, row in rows.items()])
        with pytest.raises(Malformed, match=f"row {TASK.id.hex()} of {damaged.value} is damaged"):
            TaskRecords(store).unfinished()
