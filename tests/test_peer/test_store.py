"""The store's promises: what was told to be durable is there, in order, whatever ends the process."""

import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from covey.identity.errors import Unavailable
from covey.peer import store as store_module
from covey.peer.schema import MIGRATIONS, SCHEMA_VERSION, Database, Migration
from covey.peer.store import Change, Store, StoreTooNew, next_incarnation, open_store

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
        first = store._environment.info()["last_txnid"]  # pyright: ignore[reportPrivateUsage]
        told: list[int] = []
        for number in range(2000):
            store.put([row(number)], lambda _error, number=number: told.append(number))
        await ended(store)
        last = store._environment.info()["last_txnid"]  # pyright: ignore[reportPrivateUsage]
        assert told == list(range(2000))
        assert store.count(Database.TASK) == 2000
        assert last - first < 200


async def test_a_change_is_not_seen_before_it_is_durable_and_is_when_told(tmp_path: Path) -> None:
    async with open_store(tmp_path) as store:
        seen: list[bytes | None] = []
        store.put([row(1)], lambda _error: seen.append(store.get(Database.TASK, row(1).key)))
        await ended(store)
        assert seen == [b"value"]


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
        assert store._environment.flags()["sync"]  # pyright: ignore[reportPrivateUsage]
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
    monkeypatch.setattr(store_module, what, 5 * (size_bytes + 4) if "BYTES" in what else 5)
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
        monkeypatch.setattr(store_module, "SCHEMA_VERSION", len(migrations))
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
        patched.setattr(store_module, "SCHEMA_VERSION", SCHEMA_VERSION + 1)
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
