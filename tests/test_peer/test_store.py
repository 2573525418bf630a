"""The store's promises: what was told to be durable is there, in order, whatever ends the process."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from covey.identity.errors import Conflict, Unavailable
from covey.peer import environment as environment_module
from covey.peer import store as store_module
from covey.peer.environment import Failed
from covey.peer.lmdb_file import StoreTooNew
from covey.peer.rows import Transaction
from covey.peer.schema import MIGRATIONS, SCHEMA_VERSION, Database, Migration
from covey.peer.store import Change, Store, next_incarnation, open_store

SMALL_MAP = 4 * 1024**2


def row(number: int, value: bytes | None = b"value") -> Change:
    return Change(Database.TASK, number.to_bytes(4, "big"), value)


async def ended(store: Store) -> None:
    """Wait until everything that was queued so far has ended."""
    done = trio.Event()
    store.put((), lambda _error: done.set())
    with trio.fail_after(20):
        await done.wait()


async def test_rows_are_read_back_by_key_and_by_prefix(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        keys = [b"a1", b"a2", b"b1"]
        await store.commit([Change(Database.RUN, key, key.upper()) for key in keys])
        assert store.get(Database.RUN, b"a1") == b"A1"
        assert store.get(Database.TASK, b"a1") is None
        assert store.scan(Database.RUN) == [(b"a1", b"A1"), (b"a2", b"A2"), (b"b1", b"B1")]
        assert store.scan(Database.RUN, prefix=b"a") == [(b"a1", b"A1"), (b"a2", b"A2")]
        assert store.scan(Database.RUN, prefix=b"c") == []
        assert (store.count(Database.RUN), store.count(Database.TASK)) == (3, 0)
        await store.commit([Change(Database.RUN, b"a1", None)])
        assert store.get(Database.RUN, b"a1") is None


async def test_many_changes_are_few_commits_told_in_order(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        first = store._opened.environment.info()["last_txnid"]  # pyright: ignore[reportPrivateUsage]
        told: list[int] = []
        for number in range(2000):
            store.put([row(number)], lambda _error, number=number: told.append(number))
        await ended(store)
        last = store._opened.environment.info()["last_txnid"]  # pyright: ignore[reportPrivateUsage]
        assert told == list(range(2000))
        assert store.count(Database.TASK) == 2000
        assert last - first < 200


async def test_a_change_is_not_seen_before_it_is_durable_and_is_when_told(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        seen: list[bytes | None] = []
        store.put([row(1)], lambda _error: seen.append(store.get(Database.TASK, row(1).key)))
        await ended(store)
        assert seen == [b"value"]


# Jobs


@contextmanager
def held_up(store: Store) -> Generator[None]:
    """Keep the writer busy, so that all that is queued inside the block is one group."""
    begun, go_on = threading.Event(), threading.Event()

    def wait(_rows: Transaction) -> None:
        begun.set()
        assert go_on.wait(20)

    store.add(wait, lambda _ended: None)
    assert begun.wait(20)
    try:
        yield
    finally:
        go_on.set()


def commits(store: Store) -> int:
    return int(store._opened.environment.info()["last_txnid"])  # pyright: ignore[reportPrivateUsage]


def adding(number: int, *, fails: bool = False) -> Any:
    def job(rows: Transaction) -> int:
        rows.put(Database.TASK, row(number).key, b"job")
        if fails:
            raise KeyError(number)
        return number * 10

    return job


async def write_in_rounds(store: Store) -> list[int]:
    """Let 64 writers each run ten jobs, one after the other; return what came of them."""
    sums: list[int] = []

    async def write(writer: int) -> None:
        sums.extend([await store.run(adding(writer * 10 + number)) for number in range(10)])

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for writer in range(64):
                nursery.start_soon(write, writer)
    return sums


async def test_many_who_wait_for_their_own_job_share_commits(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        first = commits(store)
        sums = await write_in_rounds(store)
        assert sorted(sums) == [number * 10 for number in range(640)]
        assert store.count(Database.TASK) == 640
        # One for each of the ten rounds, and what it takes until all have met in one group.
        assert commits(store) - first < 20


async def test_commits_are_shared_again_after_a_time_in_which_nobody_was_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path) as store:
        with monkeypatch.context() as hasty:
            hasty.setattr(environment_module, "SETTLING_S", 0.0)
            await write_in_rounds(store)
        first = commits(store)
        await write_in_rounds(store)
        assert commits(store) - first < 20


async def test_a_job_that_raises_leaves_nothing_and_harms_no_other_of_its_group(
    tmp_path: Path,
) -> None:
    def refuses(rows: Transaction) -> None:
        raise Conflict(f"it is there: {rows.get(Database.TASK, row(1).key)!r}")

    async with open_store(tmp_path) as store:
        ends: list[Any] = []
        first = commits(store)
        with held_up(store):
            for job in (
                adding(1),
                adding(2, fails=True),
                refuses,
                adding(3),
                adding(4, fails=True),
            ):
                store.add(job, ends.append)
            store.put([row(5)], ends.append)
        await ended(store)

        assert commits(store) - first <= 3, "they were one group"
        assert [type(one) for one in ends] == [int, Failed, Failed, int, Failed, type(None)]
        assert (ends[0], ends[3]) == (10, 30)
        assert repr(ends[1].error) == "KeyError(2)"
        assert str(ends[2].error) == "it is there: b'job'"
        assert [key for key, _ in store.scan(Database.TASK)] == [row(one).key for one in (1, 3, 5)]
        assert store.failure is None, "the disk is not to blame"


async def test_a_group_that_has_much_to_write_takes_no_more(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        first = commits(store)
        with held_up(store):
            for number in range(6):
                size_bytes = environment_module.GROUP_BYTES_MAX // 2
                store.add(adding(number), lambda _ended: None, size_bytes=size_bytes)
        await ended(store)
        assert commits(store) - first == 3


async def test_a_job_that_raises_raises_where_it_is_waited_for(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        with pytest.raises(KeyError, match="7"):
            await store.run(adding(7, fails=True))
        assert await store.run(adding(8)) == 80
        assert store.count(Database.TASK) == 1


async def test_a_job_reads_what_those_before_it_wrote(tmp_path: Path) -> None:
    """So a value that is read, raised and written in one job loses nobody's."""

    def raise_it(rows: Transaction) -> int:
        value = int.from_bytes(rows.get(Database.META, b"n") or b"", "big") + 1
        rows.put(Database.META, b"n", value.to_bytes(4, "big"))
        return value

    async with open_store(tmp_path) as store:
        seen: list[int] = []

        async def raise_often() -> None:
            seen.extend([await store.run(raise_it) for _ in range(20)])

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(raise_often)
        assert sorted(seen) == list(range(1, 321))


async def test_jobs_changes_and_compactions_are_told_in_the_order_of_queueing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment_module, "WAITING_MAX", 7)
    told: list[int] = []
    async with open_store(tmp_path) as store:

        async def compact() -> None:
            await store.compact()
            told.append(-1)

        async with trio.open_nursery() as nursery:
            with held_up(store):
                for number in (0, 1, 2):
                    job = adding(number, fails=number == 1)
                    store.add(job, lambda _ended, number=number: told.append(number))
                nursery.start_soon(compact)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(3, 9):  # two more than may wait
                    store.put([row(number)], lambda _error, number=number: told.append(number))
        await ended(store)
        assert [one for one in told if one >= 0] == list(range(9))
        # Who awaits it is woken after it, and perhaps after what was told at once behind it.
        assert told.index(-1) > 2
        assert store.count(Database.TASK) == 2 + 3


# Compaction


async def test_a_compacted_store_has_the_same_rows_and_goes_on(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        await store.commit([row(number, bytes(1000)) for number in range(5000)])
        await store.commit([Change(Database.META, b"one", b"1"), row(1, None)])
        rows = store.scan(Database.TASK)
        size_bytes = (tmp_path / "data.mdb").stat().st_size
        await store.commit([row(number, None) for number in range(1000, 5000)])

        for number in range(3):
            await store.compact()
            await store.commit([Change(Database.META, b"after", bytes((number,)))])

        assert store.scan(Database.TASK) == rows[:999]
        assert (tmp_path / "data.mdb").stat().st_size < size_bytes / 2
        assert store._opened.environment.flags()["sync"]  # pyright: ignore[reportPrivateUsage]
    assert sorted(os.listdir(tmp_path)) == ["data.mdb", "lock.mdb"]
    async with open_store(tmp_path) as store:
        assert store.scan(Database.TASK) == rows[:999]
        assert store.get(Database.META, b"one") == b"1"
        assert store.get(Database.META, b"after") == b"\x02"


def mapped() -> str:
    """Return which files this process has in its memory."""
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("what", ["compaction", "closing"])
async def test_who_reads_on_a_thread_is_not_disturbed_by(tmp_path: Path, what: str) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def read(store: Store) -> tuple[list[bytes], list[bytes]]:
        with store.reading() as rows:
            before = [key for key, _ in rows.scan(Database.TASK, b"")]
            begun.set()
            assert go_on.wait(20)
            return before, [key for key, _ in rows.scan(Database.TASK, b"")]

    seen: list[tuple[list[bytes], list[bytes]]] = []

    async def read_on_a_thread(store: Store) -> None:
        seen.append(await trio.to_thread.run_sync(read, store))

    async with trio.open_nursery() as nursery:
        async with open_store(tmp_path) as store:
            await store.commit([row(number, bytes(500)) for number in range(300)])
            nursery.start_soon(read_on_a_thread, store)
            await trio.to_thread.run_sync(begun.wait, 20)
            if what == "compaction":
                await store.compact()
                await store.commit([row(number, None) for number in range(299)])
                assert store.count(Database.TASK) == 1
        go_on.set()
    before, after = seen[0]
    assert before == after == [row(number).key for number in range(300)]
    # The old file is let go of, not kept by a map.
    assert str(tmp_path) not in mapped()


async def test_a_store_that_is_closed_cannot_be_read_or_compacted(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        pass
    with pytest.raises(Unavailable, match="the store is closed"):
        store.scan(Database.TASK)
    with pytest.raises(Unavailable, match="the store is closed"):
        await store.compact()


@contextmanager
def files_up_to(size_bytes: int) -> Generator[None]:
    """Let no file of this process grow beyond it: what a full disk is to the rest of the code."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("seen", ["beforehand", "by the system"])
async def test_a_compaction_without_room_says_so_and_the_store_goes_on_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    async with open_store(tmp_path) as store:
        await store.commit([row(number, bytes(10_000)) for number in range(300)])
        if seen == "beforehand":
            with monkeypatch.context() as patched:
                usage = shutil.disk_usage(tmp_path)._replace(free=3_000_000)

                def little_room(_path: Path) -> object:
                    return usage

                patched.setattr(shutil, "disk_usage", little_room)
                with pytest.raises(Unavailable, match=r"not compacted: .* the disk has 3,000,000;"):
                    await store.compact()
        else:
            with (
                files_up_to(1024**2),
                pytest.raises(Unavailable, match=r"is full or failing .* nothing acknowledged is"),
            ):
                await store.compact()
        assert sorted(os.listdir(tmp_path)) == ["data.mdb", "lock.mdb"]
        await store.commit([row(300)])
        await store.compact()
        assert store.count(Database.TASK) == 301


async def test_a_folder_that_cannot_be_synced_takes_nothing_more_until_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name for the new file may be lost in a power cut, and so what is written into that."""

    def fails(_descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    async with open_store(tmp_path) as store:
        await store.commit([row(1)])
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", fails)
            with pytest.raises(Unavailable, match="was not compacted: Input/output error"):
                await store.compact()
        for _ in range(2):
            with pytest.raises(Unavailable, match="restart covey"):
                await store.commit([row(2)])
        assert store.failure is not None
        assert store.count(Database.TASK) == 1
    async with open_store(tmp_path) as store:
        await store.commit([row(2)])
        assert store.count(Database.TASK) == 2


async def test_a_copy_that_a_crash_left_behind_is_cleared_away_at_start(tmp_path: Path) -> None:
    (tmp_path / "compacting").mkdir()
    (tmp_path / "compacting" / "data.mdb").write_bytes(b"half")
    async with open_store(tmp_path):
        assert sorted(os.listdir(tmp_path)) == ["data.mdb", "lock.mdb"]


# Crashes, full disks, limits


COMMIT_FOR_EVER = """
import sys, trio
from pathlib import Path
from covey.peer.schema import Database
from covey.peer.store import Change, open_store

async def main():
    async with open_store(Path(sys.argv[1])) as store:
        for number in range(10**6):
            key = number.to_bytes(4, "big")
            await store.commit([Change(Database.TASK, key, b"value")])
            print(number, flush=True)

trio.run(main)
"""


def told_until_killed(folder: Path) -> list[int]:
    """Run a process that commits, and kill it; return what it told to be durable."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMIT_FOR_EVER, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = [int(process.stdout.readline()) for _ in range(50)]
        process.send_signal(signal.SIGKILL)
        told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    assert process.returncode == -signal.SIGKILL
    return told


async def test_what_was_told_durable_is_there_after_a_kill(tmp_path: Path) -> None:
    told = await trio.to_thread.run_sync(told_until_killed, tmp_path)
    async with open_store(tmp_path) as store:
        # A power cut cannot be tried here: what it asks of LMDB is that each commit is synced.
        assert store._opened.environment.flags()["sync"]  # pyright: ignore[reportPrivateUsage]
        found = {key for key, _ in store.scan(Database.TASK)}
        await store.commit([row(10**6)])
    assert {number.to_bytes(4, "big") for number in told} <= found
    assert len(found) <= len(told) + 1


async def fill(store: Store) -> None:
    for number in range(100):
        await store.commit([row(number, bytes(100_000))])


async def test_a_full_store_says_so_keeps_what_it_has_and_goes_on(tmp_path: Path) -> None:
    async with open_store(tmp_path, map_bytes=SMALL_MAP) as store:
        with pytest.raises(Unavailable, match="is full or failing") as caught:
            await fill(store)
        assert "nothing acknowledged is lost" in str(caught.value)
        assert store.failure == str(caught.value)
        kept = [key for key, _ in store.scan(Database.TASK)]
        assert kept == [row(number).key for number in range(len(kept))]
        assert len(kept) > 10

        await store.commit([row(number, None) for number in range(10)])
        await store.commit([row(200)])
        assert store.failure is None


async def test_a_commit_that_fails_is_told_to_all_that_are_in_it(tmp_path: Path) -> None:
    async with open_store(tmp_path, map_bytes=SMALL_MAP) as store:
        errors: list[Unavailable | None] = []
        for number in range(3):
            store.put([row(number, bytes(SMALL_MAP))], errors.append)
        await ended(store)
        assert [type(one) for one in errors] == [Unavailable] * 3


async def test_a_change_that_cannot_be_written_does_not_end_the_writer(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        wrong: Any = "text"
        for change in (row(1, wrong), Change(Database.TASK, b"k" * 1000, b""), row(1, wrong)):
            with pytest.raises(Unavailable):
                await store.commit([change])
        await store.commit([row(2)])
        assert store.count(Database.TASK) == 1


@pytest.mark.parametrize(("what", "size_bytes"), [("WAITING_MAX", 1), ("WAITING_BYTES_MAX", 1000)])
async def test_more_than_can_wait_is_refused_in_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, size_bytes: int
) -> None:
    monkeypatch.setattr(environment_module, what, 5 * (size_bytes + 4) if "BYTES" in what else 5)
    async with open_store(tmp_path) as store:
        told: list[tuple[int, str]] = []

        def tell(number: int, error: Unavailable | None) -> None:
            told.append((number, "durable" if error is None else str(error).partition(" ")[2]))

        # All in one step of trio: nothing can be told in between.
        for number in range(8):
            value = bytes(size_bytes)
            store.put([row(number, value)], lambda error, number=number: tell(number, error))
        await ended(store)
        assert [number for number, _ in told] == list(range(8))
        assert [word for _, word in told[:5]] == ["durable"] * 5
        assert all("wait to be stored already; try again later" in word for _, word in told[5:])
        assert store.failure is None, "the disk is not to blame"
        await store.commit([row(9)])


async def test_closing_commits_what_is_queued_and_takes_nothing_more(tmp_path: Path) -> None:
    told: list[Unavailable | None] = []
    async with open_store(tmp_path) as store:
        for number in range(100):
            store.put([row(number)], told.append)
    with pytest.raises(Unavailable, match="the store is closed"):
        await store.commit([row(200)])
    assert told == [None] * 100
    async with open_store(tmp_path) as store:
        assert store.count(Database.TASK) == 100


async def test_a_store_of_a_newer_covey_is_refused(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        newer = (SCHEMA_VERSION + 1).to_bytes(4, "big")
        await store.commit([Change(Database.META, b"version", newer)])
    with pytest.raises(StoreTooNew, match="install the newer covey again"):
        async with open_store(tmp_path):
            pass


async def test_migrations_run_in_order_each_exactly_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def writing(name: str) -> Migration:
        def migrate(transaction: Any, handles: Mapping[Database, Any]) -> None:
            before = transaction.get(b"ran", db=handles[Database.META]) or b""
            transaction.put(b"ran", before + name.encode(), db=handles[Database.META])

        return migrate

    async def open_with(*names: str) -> bytes | None:
        migrations = (*MIGRATIONS, *(writing(name) for name in names))
        monkeypatch.setattr(store_module, "MIGRATIONS", migrations)
        async with open_store(tmp_path) as store:
            return store.get(Database.META, b"ran")

    assert await open_with() is None
    assert await open_with("b", "c") == b"bc"
    assert await open_with("b", "c") == b"bc"
    assert await open_with("b", "c", "d") == b"bcd"


async def test_a_migration_that_breaks_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(tmp_path) as store:
        await store.commit([row(1)])

    def breaks(transaction: Any, handles: Mapping[Database, Any]) -> None:
        transaction.delete(row(1).key, db=handles[Database.TASK])
        raise ValueError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(store_module, "MIGRATIONS", (*MIGRATIONS, breaks))
        with pytest.raises(ValueError, match="a bug"):
            async with open_store(tmp_path):
                pass
    async with open_store(tmp_path) as store:
        assert store.get(Database.TASK, row(1).key) == b"value"


async def test_an_incarnation_grows_even_when_the_clock_goes_back_or_the_store_is_lost(
    tmp_path: Path,
) -> None:
    async with open_store(tmp_path / "one") as store:
        seen = [await next_incarnation(store, now_ms) for now_ms in (1000, 900, 2000)]
    async with open_store(tmp_path / "one") as store:
        seen.append(await next_incarnation(store, 900))
    async with open_store(tmp_path / "two") as store:
        seen.append(await next_incarnation(store, 2500))
    assert seen == [1000, 1001, 2000, 2001, 2500]


@pytest.mark.parametrize("what", ["a file in its place", "no store"])
async def test_what_cannot_be_opened_says_where(tmp_path: Path, what: str) -> None:
    path = tmp_path / "store"
    if what == "no store":
        path.mkdir()
        (path / "data.mdb").write_bytes(b"not a store" * 1000)
    else:
        path.write_text("")
    with pytest.raises(Unavailable, match=str(path)):
        async with open_store(path):
            pass
