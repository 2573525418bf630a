"""What the delivery driver may expect of its records: of those in the tests' memory as of LMDB's."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from test_gossip.delivery_ports import HeldRecords

from covey.gossip.driver import Records, Row
from covey.gossip.effects import Table
from covey.gossip.executions import RunRecord
from covey.gossip.task import INPUT_BYTES_MAX, RESULT_BYTES_MAX, Need, Task, TaskId
from covey.gossip.task_state import Attempt, CancelRecord, TaskState, Verdict
from covey.identity.errors import Unavailable
from covey.identity.wire import encode
from covey.peer.records import TaskRecords
from covey.peer.store import open_store

PEER = "12D3KooWPeer"


@pytest.fixture(params=["memory", "lmdb"])
async def records(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Records]:
    if request.param == "memory":
        held = HeldRecords()
        held.at_once = True
        yield held
    else:
        async with open_store(tmp_path / "store", map_bytes=64 * 1024**2) as store:
            yield TaskRecords(store)


async def kept(records: Records, *rows: Row) -> Unavailable | None:
    """Put one transaction and wait for its end."""
    done = trio.Event()
    ends: list[Unavailable | None] = []

    def then(error: Unavailable | None) -> None:
        ends.append(error)
        done.set()

    records.put(rows, then)
    with trio.fail_after(20):
        await done.wait()
    assert len(ends) == 1
    return ends[0]


def a_task(number: int = 1, input_: bytes = b"input") -> Task:
    return Task(number.to_bytes(16, "big"), PEER, bytes(16), Need("see"), input_, 1, 2)


def task_rows(task: Task, state: TaskState) -> tuple[Row, Row]:
    return (
        (Table.TASK, task.id, encode(task)),
        (Table.STATE, task.id, encode(state)),
    )


async def test_nothing_is_known_at_first(records: Records) -> None:
    found = records.unfinished()
    assert (list(found.tasks), list(found.cancels), list(found.runs)) == ([], [], [])
    assert records.task(TaskId(bytes(16))) is None
    assert records.verdict(TaskId(bytes(16))) is None


async def test_what_is_durable_is_found_when_its_turn_is_told(records: Records) -> None:
    task, state = a_task(), TaskState("queued", "waits")
    assert await kept(records, *task_rows(task, state)) is None
    assert records.task(TaskId(task.id)) == (task, state)
    assert list(records.unfinished().tasks) == [(task, state)]


async def test_ends_are_told_in_the_order_of_queueing_and_never_at_once(records: Records) -> None:
    told: list[int] = []
    done = trio.Event()
    for number in range(50):
        rows = task_rows(a_task(number), TaskState("queued", "waits"))
        records.put(rows, lambda _error, number=number: told.append(number))
    records.put((), lambda _error: done.set())
    assert told == [], "put never waits, and never calls back before it returns"
    with trio.fail_after(20):
        await done.wait()
    assert told == list(range(50))


async def test_a_later_row_replaces_and_an_erased_one_is_gone(records: Records) -> None:
    task = a_task()
    await kept(records, *task_rows(task, TaskState("queued", "waits")))
    offered = TaskState("offered", "offered", (Attempt(1, PEER, "here", "", "offered", "", 1),))
    await kept(records, (Table.STATE, task.id, encode(offered)))
    assert records.task(TaskId(task.id)) == (task, offered)
    await kept(records, (Table.TASK, task.id, None), (Table.STATE, task.id, None))
    assert records.task(TaskId(task.id)) is None
    assert await kept(records, (Table.TASK, task.id, None)) is None, "twice is no error"


async def test_of_one_transaction_the_last_row_counts(records: Records) -> None:
    task = a_task()
    first, last = (task_rows(task, TaskState("queued", why)) for why in ("first", "last"))
    await kept(records, *first, *last)
    assert list(records.unfinished().tasks) == [(task, TaskState("queued", "last"))]


@pytest.mark.parametrize("state", ["done", "failed", "expired", "cancelled"])
async def test_a_finished_task_is_kept_and_not_taken_up_again(records: Records, state: str) -> None:
    assert state in ("done", "failed", "expired", "cancelled")
    task, ended = a_task(), TaskState(state, "over", ended_ms=5)
    await kept(records, *task_rows(task, ended))
    assert list(records.unfinished().tasks) == []
    assert records.task(TaskId(task.id)) == (task, ended)


async def test_a_state_whose_task_was_never_durable_is_no_task(records: Records) -> None:
    orphan = a_task()
    await kept(records, (Table.STATE, orphan.id, encode(TaskState("queued", "waits"))))
    assert list(records.unfinished().tasks) == []
    assert records.task(TaskId(orphan.id)) is None


async def test_cancels_runs_and_verdicts_come_back(records: Records) -> None:
    cancel = CancelRecord(PEER, bytes(16), 9)
    runs = [
        RunRecord(PEER, bytes([n]) * 16, state, 9, b"sealed", b"result")
        for n, state in enumerate(("begun", "ended", "closed"))
    ]
    verdict = Verdict(b"sealed", b"result")
    rows: list[Row] = [
        (Table.CANCEL, cancel.task_id + PEER.encode(), encode(cancel)),
        (Table.RESULT, bytes(16), encode(verdict)),
        *((Table.RUN, run.task_id + PEER.encode(), encode(run)) for run in runs),
    ]
    assert await kept(records, *rows) is None
    found = records.unfinished()
    assert (list(found.cancels), list(found.runs)) == ([cancel], runs)
    assert records.verdict(TaskId(bytes(16))) == verdict


async def test_the_largest_records_come_back(records: Records) -> None:
    task = a_task(input_=bytes(INPUT_BYTES_MAX))
    said = "\N{GRINNING FACE}" * 500
    tried = tuple(Attempt(n, PEER, "here", said, "lost", said, 1, 2) for n in range(1, 51))
    state = TaskState("queued", said, tried)
    verdict = Verdict(bytes(20_000), bytes(RESULT_BYTES_MAX))
    run = RunRecord(PEER, task.id, "ended", 9, bytes(20_000), bytes(RESULT_BYTES_MAX))
    rows: list[Row] = [
        *task_rows(task, state),
        (Table.RESULT, task.id, encode(verdict)),
        (Table.RUN, task.id + PEER.encode(), encode(run)),
    ]
    assert await kept(records, *rows) is None
    assert records.task(TaskId(task.id)) == (task, state)
    assert records.verdict(TaskId(task.id)) == verdict
    assert list(records.unfinished().runs) == [run]
