"""Delivery's rows in the store, beyond what every kind of records must do (tests/contracts)."""

from pathlib import Path

import pytest

from covey.gossip.task import Need, Task
from covey.gossip.task_state import TaskState
from covey.identity.errors import Malformed
from covey.identity.wire import encode
from covey.peer.records import TaskRecords
from covey.peer.schema import Database
from covey.peer.store import Change, open_store

TASK = Task(b"t" * 16, "peer", bytes(16), Need("see"), b"input", 1, 2)


async def test_every_task_is_listed_finished_or_not(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        for number, state in enumerate(("done", "queued")):
            key = bytes([number]) * 16
            task = Task(key, "peer", bytes(16), Need("see"), b"input", 1, 2)
            kept = TaskState("done" if state == "done" else "queued", "why")
            await store.commit(
                [
                    Change(Database.TASK, key, encode(task)),
                    Change(Database.STATE, key, encode(kept)),
                ]
            )
        listed = TaskRecords(store).all_tasks()
    assert [state.state for _, state in listed] == ["done", "queued"]


@pytest.mark.parametrize("damaged", [Database.TASK, Database.STATE, Database.RUN, Database.CANCEL])
async def test_a_damaged_row_is_named(tmp_path: Path, damaged: Database) -> None:
    async with open_store(tmp_path) as store:
        rows = {Database.TASK: encode(TASK), Database.STATE: encode(TaskState("queued", "waits"))}
        rows[damaged] = b"\xff"
        await store.commit([Change(one, TASK.id, row) for one, row in rows.items()])
        with pytest.raises(Malformed, match=f"row {TASK.id.hex()} of {damaged.value} is damaged"):
            TaskRecords(store).unfinished()
