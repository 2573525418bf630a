"""The memory's store: what is acknowledged stays, what is dropped is gone, what is derived agrees.

COVEY_KILL_ROUNDS (20) and COVEY_CHAOS_SEED (1) choose how often a writing process is killed.
"""

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import trio
import trio.testing
from test_gossip.memory_entries import ALICE, NOW_MS, PUMPS, forgetting, note, register

from covey.gossip.memory.entry import (
    Entry,
    Key,
    NamespaceId,
    check_payload,
    read_entry,
)
from covey.gossip.memory.kinds import Lifetime
from covey.gossip.memory.replica import (
    Applied,
    Arrival,
    Quotas,
    Replica,
    bucket_of,
    index_rows,
    place_of,
)
from covey.gossip.memory.summary import END, Summary
from covey.gossip.memory.tables import Table, Tables
from covey.identity.errors import Misuse
from covey.peer.lmdb_file import StoreTooNew
from covey.peer.memory.store import ARRIVALS_MAX, Damaged, MemoryStore, open_memory_store

ROUNDS = int(os.environ.get("COVEY_KILL_ROUNDS", "20"))
SEED = int(os.environ.get("COVEY_CHAOS_SEED", "1"))
OTHER = NamespaceId(b"another namespac")
HOUR_MS = 3_600_000


def now_ms() -> int:
    return NOW_MS


def notes(count: int, *, namespace: NamespaceId = PUMPS, first: int = 0) -> list[Arrival]:
    """Notes of one author, each a millisecond after the one before."""
    return [
        note(ALICE, f"pump {number}", at_ms=NOW_MS - HOUR_MS + number, namespace=namespace)
        for number in range(first, first + count)
    ]


def fingerprints(summaries: Iterable[tuple[NamespaceId, Summary]]) -> dict[NamespaceId, object]:
    return {
        namespace: summary.fingerprint(b"", END) for namespace, summary in summaries if len(summary)
    }


def rescanned(store: MemoryStore) -> dict[NamespaceId, object]:
    """What the summaries should be, by the rows."""
    keys: dict[NamespaceId, list[Key]] = {}
    with store.reading() as rows:
        for place, _ in rows.scan(Table.ENTRY, b""):
            keys.setdefault(NamespaceId(place[:16]), []).append(Key(place[16:]))
    return fingerprints((namespace, Summary(held)) for namespace, held in keys.items())


# Writing and following


async def test_what_is_applied_is_told_can_be_read_and_is_there_when_opened_again(
    tmp_path: Path,
) -> None:
    some = [*notes(50), *notes(30, namespace=OTHER)]
    withdrawn = register(ALICE, "mode", "slow", at_ms=NOW_MS - 2)
    newer = register(ALICE, "mode", "fast", at_ms=NOW_MS - 1)
    async with open_memory_store(tmp_path, now_ms) as store:
        applied = await store.apply([*some, withdrawn, newer, some[0]])

        assert applied.fates == ["kept"] * 82 + ["known"]
        assert {name: len(one) for name, one in store.summaries.items()} == {PUMPS: 51, OTHER: 30}
        assert newer.entry.key in store.summaries[PUMPS]
        assert withdrawn.entry.key not in store.summaries[PUMPS]
        before = fingerprints(store.summaries.items())
        assert before == rescanned(store)
    async with open_memory_store(tmp_path, now_ms) as store:
        assert fingerprints(store.summaries.items()) == before
        with store.reading() as rows:
            assert rows.get(Table.ENTRY, place_of(some[7].entry)) == some[7].entry.data
            assert rows.get(Table.PAYLOAD, place_of(some[7].entry)) == some[7].payload
            assert rows.count(Table.PAYLOAD) == 81


async def test_each_change_is_told_once_in_order_and_only_when_it_is_durable(
    tmp_path: Path,
) -> None:
    told: list[Key] = []
    async with open_memory_store(tmp_path, now_ms) as store:

        def follow(applied: Applied) -> None:
            with store.reading() as rows:
                for namespace, key in applied.added:
                    assert rows.get(Table.ENTRY, namespace + key) is not None
                    assert key in store.summaries[namespace]
            told.extend(key for _, key in applied.added)

        store.on_applied(follow)
        written: list[Key] = []
        async with trio.open_nursery() as nursery:
            for writer in range(16):

                async def write(arrivals: list[Arrival]) -> None:
                    for arrival in arrivals:
                        applied = await store.apply([arrival])
                        assert applied.fates == ["kept"]
                        assert told.count(arrival.entry.key) == 1
                        written.append(arrival.entry.key)

                nursery.start_soon(write, notes(8, first=writer * 8))
        assert sorted(told) == sorted(written) == sorted(one.entry.key for one in notes(128))


async def test_what_was_committed_together_is_told_once_before_any_who_wrote_it_goes_on(
    tmp_path: Path,
) -> None:
    told: list[Applied] = []
    held_at_return: list[bool] = []

    def fails(replica: Replica, _tables: Tables) -> None:
        raise Misuse("not this one")

    async with open_memory_store(tmp_path, now_ms) as store:
        store.on_applied(told.append)
        begun, go_on = threading.Event(), threading.Event()

        def wait(_replica: Replica, _tables: Tables) -> None:
            begun.set()
            assert go_on.wait(20)

        async def write(arrival: Arrival) -> None:
            await store.apply([arrival])
            held_at_return.append(
                (PUMPS, arrival.entry.key) in told[-1].added
                and arrival.entry.key in store.summaries[PUMPS]
            )

        async def write_in_vain() -> None:
            with pytest.raises(Misuse, match="not this one"):
                await store.run(fails)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run, wait)
            await trio.to_thread.run_sync(begun.wait, 20)
            for arrival in notes(8):
                nursery.start_soon(write, arrival)
            nursery.start_soon(write_in_vain)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
    assert held_at_return == [True] * 8
    assert [sorted(key for _, key in one.added) for one in told] == [
        [],
        [arrival.entry.key for arrival in notes(8)],
    ]


async def test_a_job_that_raises_changes_no_summary_and_is_told_to_nobody(tmp_path: Path) -> None:
    first, second = notes(2)

    def job(replica: Replica, _tables: Tables) -> None:
        replica.apply(second)
        raise Misuse("not like this")

    async with open_memory_store(tmp_path, now_ms) as store:
        told: list[Applied] = []
        store.on_applied(told.append)
        await store.apply([first])
        with pytest.raises(Misuse, match="not like this"):
            await store.run(job)
        assert [one.added for one in told] == [[(PUMPS, first.entry.key)]]
        assert store.summaries[PUMPS].keys(b"", END) == [first.entry.key]
        assert rescanned(store) == fingerprints(store.summaries.items())


async def test_what_goes_and_comes_in_one_job_stays_in_the_summary(tmp_path: Path) -> None:
    one, other = notes(2)

    def job(replica: Replica, _tables: Tables) -> None:
        replica.purge(PUMPS, ALICE.public_key, lambda _entry: False)
        replica.apply(one)

    async with open_memory_store(tmp_path, now_ms) as store:
        await store.apply([one, other])
        await store.run(job)
        assert store.summaries[PUMPS].keys(b"", END) == [one.entry.key]
        assert rescanned(store) == fingerprints(store.summaries.items())


async def test_what_is_read_and_raised_in_one_job_is_lost_to_nobody(tmp_path: Path) -> None:
    """As an increment of a counter is written: the last value is the head of the author's slot."""

    def raise_it(replica: Replica, tables: Tables) -> int:
        heads = list(tables.scan(Table.HEAD, PUMPS))
        value = 0
        if heads:
            held = tables.get(Table.ENTRY, PUMPS + heads[0][1])
            assert held is not None
            value = read_entry(held).at_ms - (NOW_MS - HOUR_MS)
        replica.apply(register(ALICE, "count", f"{value + 1}", at_ms=NOW_MS - HOUR_MS + value + 1))
        return value + 1

    async with open_memory_store(tmp_path, now_ms) as store:
        seen: list[int] = []

        async def raise_often() -> None:
            seen.extend([await store.run(raise_it) for _ in range(5)])

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(raise_often)
        assert sorted(seen) == list(range(1, 81))
        assert len(store.summaries[PUMPS]) == 1


async def test_sixty_four_writers_share_commits(tmp_path: Path) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        environment = store._environment._opened.environment  # pyright: ignore[reportPrivateUsage]
        first = environment.info()["last_txnid"]

        async def write(arrivals: list[Arrival]) -> None:
            for arrival in arrivals:
                await store.apply([arrival])

        async with trio.open_nursery() as nursery:
            for writer in range(64):
                nursery.start_soon(write, notes(5, first=writer * 5))
        assert environment.info()["last_txnid"] - first <= 160
        assert len(store.summaries[PUMPS]) == 320


async def test_more_entries_than_one_job_may_take_are_refused(tmp_path: Path) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        with pytest.raises(Misuse, match=f"at most {ARRIVALS_MAX} entries at once, not 1001"):
            await store.apply(notes(1) * (ARRIVALS_MAX + 1))


async def test_quotas_are_those_of_the_namespace(tmp_path: Path) -> None:
    def quotas(namespace: NamespaceId) -> Quotas:
        return Quotas(entries=3 if namespace == OTHER else 5)

    async with open_memory_store(tmp_path, now_ms, quotas=quotas) as store:
        await store.apply([*notes(9), *notes(9, namespace=OTHER)])
        assert {name: len(one) for name, one in store.summaries.items()} == {PUMPS: 5, OTHER: 3}
        assert rescanned(store) == fingerprints(store.summaries.items())


async def test_passing_time_drops_all_that_is_due_in_slices_that_let_others_write(
    tmp_path: Path,
) -> None:
    clock = NOW_MS
    many = [
        note(
            ALICE, f"n {number}", at_ms=NOW_MS - HOUR_MS + number, expires_ms=NOW_MS + 1000,
            lifetime=Lifetime.SCRATCH, signed=False,
        )
        for number in range(1200)
    ]  # fmt: skip
    async with open_memory_store(tmp_path, lambda: clock) as store:
        told: list[Applied] = []
        for start in range(0, 1200, 600):
            await store.apply(many[start : start + 600])
        store.on_applied(told.append)

        await store.pass_time()
        assert [one.hidden for one in told] == [[]], "nothing is due yet"

        told.clear()
        clock = NOW_MS + 1000
        await store.pass_time()
        assert [len(one.hidden) for one in told] == [500, 500, 200]
        with store.reading() as rows:
            assert (rows.count(Table.PAYLOAD), rows.count(Table.ENTRY)) == (0, 1200)

        clock = NOW_MS + Lifetime.SCRATCH.ms
        await store.pass_time()
        with store.reading() as rows:
            held = {table: rows.count(table) for table in Table if rows.count(table)}
        assert held == {Table.META: 1}, "its version"
        assert fingerprints(store.summaries.items()) == {}


# Erasure


@pytest.mark.parametrize("size_bytes", [300, 3000, 14_000])
async def test_what_was_forgotten_is_found_in_no_file_after_a_compaction(
    tmp_path: Path, size_bytes: int
) -> None:
    """Pages keep what was erased in them, those for payloads of 2 to 4 kB the most (LMDB 0.9.36)."""

    def secret(number: int) -> str:
        return f"<secret {number}>" * (size_bytes * (1 + number % 2) // 28)

    def found() -> set[int]:
        data = (tmp_path / "data.mdb").read_bytes()
        return {number for number in range(240) if f"<secret {number}>".encode() in data}

    draw = random.Random(size_bytes)
    async with open_memory_store(tmp_path, now_ms) as store:
        held: dict[int, Arrival] = {}
        for number in range(0, 240, 12):
            for new in range(number, number + 12):
                held[new] = note(ALICE, secret(new), name=f"n{new}", at_ms=NOW_MS - HOUR_MS + new)
            await store.apply([held[new] for new in range(number, number + 12)])
            gone = [held.pop(one) for one in draw.sample(sorted(held), 7)]
            await store.apply([forgetting(ALICE, *gone, at_ms=NOW_MS - 1000 + number)])

        assert not found() <= held.keys(), "without compaction all is gone: nothing is shown"
        await store.compact()
        assert found() == held.keys()
        await store.apply(notes(20))
        assert found() == held.keys()
        assert rescanned(store) == fingerprints(store.summaries.items())


# Reading, damage, versions


async def test_everything_can_be_scanned_on_a_thread_while_the_store_is_compacted(
    tmp_path: Path,
) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        await store.apply(notes(500))
        done = False
        counts: list[int] = []

        def scan() -> None:
            while not done:
                with store.reading() as rows:
                    counts.append(sum(1 for _ in rows.scan(Table.PAYLOAD, b"")))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, scan)
            for number in range(10):
                await store.compact()
                await store.apply(notes(1, first=500 + number))
            done = True
        assert len(counts) > 1
        assert counts == sorted(counts)
        assert {counts[0], counts[-1]} <= set(range(500, 511))


async def spoil(store: MemoryStore, table: Table, key: bytes, value: bytes | None) -> None:
    def job(_replica: Replica, tables: Tables) -> None:
        if value is None:
            assert tables.delete(table, key)
        else:
            tables.put(table, key, value)

    await store.run(job)


OLD = register(ALICE, "mode", "slow", at_ms=NOW_MS - 2)
NEW = register(ALICE, "mode", "fast", at_ms=NOW_MS - 1)
PLACE = place_of(OLD.entry)
TWIN = register(ALICE, "other", "x", at_ms=NOW_MS - 2)
SLOT = PUMPS + (OLD.entry.slot or b"")
BUCKET = bucket_of(OLD.entry)


@pytest.mark.parametrize(
    ("table", "key", "value", "arrival", "table_named", "named"),
    [
        (Table.ENTRY, PLACE, OLD.entry.data[:40], NEW, Table.ENTRY, PLACE),
        (Table.ENTRY, PLACE, OLD.entry.data[:40], TWIN, Table.ENTRY, PLACE),
        (Table.ENTRY, PLACE, b"", NEW, Table.ENTRY, PLACE),
        (Table.ENTRY, PLACE, None, NEW, Table.ENTRY, PLACE),
        (Table.HEAD, SLOT, b"x", NEW, Table.ENTRY, PUMPS + b"x"),
    ],
    ids=["cut", "cut, scanned", "empty", "index without its entry", "cut index"],
)
async def test_a_damaged_row_is_named_and_the_store_goes_on(
    tmp_path: Path,
    table: Table,
    key: bytes,
    value: bytes | None,
    arrival: Arrival,
    table_named: Table,
    named: bytes,
) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        await store.apply([OLD])
        await spoil(store, table, key, value)
        before = rescanned(store)

        text = f"row {named.hex()} of table {table_named} of the memory is damaged: "
        with pytest.raises(Damaged, match=text):
            await store.apply([*notes(1, namespace=OTHER), arrival])

        assert rescanned(store) == before, "nothing of it was taken in"
        assert (await store.apply(notes(1, namespace=OTHER))).fates == ["kept"]
        assert store.failure is None


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [(Table.ENTRY, PLACE, b"\x00"), (Table.COUNT, BUCKET, None)],
    ids=["cut", "lost count"],
)
async def test_time_and_purging_name_a_damaged_row_too(
    tmp_path: Path, table: Table, key: bytes, value: bytes | None
) -> None:
    clock = NOW_MS
    async with open_memory_store(tmp_path, lambda: clock) as store:
        await store.apply([OLD])
        await spoil(store, table, key, value)
        clock = NOW_MS + Lifetime.NORMAL.ms
        with pytest.raises(Damaged, match=f"row {key.hex()} of table {table}"):
            await store.pass_time()
        with pytest.raises(Damaged, match=f"row {key.hex()} of table {table}"):
            await store.run(
                lambda replica, _tables: replica.purge(PUMPS, ALICE.public_key, lambda _: False)
            )


async def test_a_memory_with_a_key_that_cannot_be_is_not_opened_and_names_it(
    tmp_path: Path,
) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        await spoil(store, Table.ENTRY, PUMPS + b"short", b"")
    with pytest.raises(Damaged, match=f"row {(PUMPS + b'short').hex()} of table entry"):
        async with open_memory_store(tmp_path, now_ms):
            pass


async def test_a_memory_of_a_newer_covey_is_refused(tmp_path: Path) -> None:
    async with open_memory_store(tmp_path, now_ms) as store:
        await spoil(store, Table.META, b"version", (99).to_bytes(4, "big"))
    with pytest.raises(StoreTooNew, match="has version 99, this covey knows up to 1"):
        async with open_memory_store(tmp_path, now_ms):
            pass


# Crashes

WRITE_UNTIL_KILLED = """
import os, signal, sys, threading
from pathlib import Path
import trio
import trio.testing
from test_gossip.members import NOW_MS, key
from test_gossip.memory_entries import note, register
from covey.peer import environment, lmdb_file
from covey.peer.memory.store import open_memory_store

folder, round_ = Path(sys.argv[1]), int(sys.argv[2])
function, fatal_line = sys.argv[3], int(sys.argv[4])
fatal_code = getattr(environment.Environment, function, getattr(lmdb_file, function, None)).__code__
lines = 0

def in_function(frame, event, _argument):
    global lines
    if event == "line":
        lines += 1
        if lines == fatal_line:
            os.kill(os.getpid(), signal.SIGKILL)
    return in_function

def called(frame, _event, _argument):
    return in_function if frame.f_code is fatal_code else None

async def write(store, writer):
    for number in range(10**6):
        at_ms = NOW_MS - 10**7 + round_ % 20 * 10**5 + number
        texts = [f"{round_} {writer} {number} {part}" for part in range(3)]
        arrivals = [
            note(key(writer + 1), text, at_ms=at_ms, counter=part) for part, text in enumerate(texts)
        ]
        newest = register(key(writer + 1), "newest", texts[0] * 60, at_ms=at_ms, counter=3)
        applied = await store.apply([*arrivals, newest])
        assert applied.fates == ["kept"] * 4, applied.fates
        print(*(one.entry.id.hex() for one in arrivals), flush=True)
        if writer == 0 and number % 4 == 3:
            await store.compact()

async def main():
    if fatal_line:
        threading.settrace(called)
    async with open_memory_store(folder, lambda: NOW_MS) as store:
        async with trio.open_nursery() as nursery:
            for writer in range(6):
                nursery.start_soon(write, store, writer)

trio.run(main)
"""
TESTS = Path(__file__).parent.parent


def acknowledged_until_killed(
    folder: Path, round_: int, lines: int, function: str, fatal_line: int
) -> list[str]:
    """Let a process write and compact, and kill it; return the ids that it told to be durable.

    It is killed after it told `lines` lines, or kills itself before it runs the `fatal_line`-th line
    of `function`, if that is not 0.
    """
    arguments = [str(folder), str(round_), function, str(fatal_line)]
    told: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_KILLED, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith("\n"):
                told += line.split()
            lines -= 1
            if not lines and not fatal_line:
                process.kill()
    assert process.returncode == -9, "it ended by itself"
    return told


def check_rows_agree(store: MemoryStore) -> dict[str, Entry]:
    """Compare all that follows from the entries with what is stored; return the entries by id."""
    with store.reading() as reading:
        rows = {table: dict(reading.scan(table, b"")) for table in Table}
    entries = [read_entry(data) for data in rows[Table.ENTRY].values()]
    expected: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
    counts: Counter[bytes] = Counter()
    for entry in entries:
        for table, key, value in index_rows(entry, by_admin=False):
            expected[table][key] = value
        counts[bucket_of(entry)] += 1
        due = (entry.header.expires_s * 1000).to_bytes(8, "big") + place_of(entry)
        expected[Table.DUE][due] = b""
        expected[Table.ENTRY][place_of(entry)] = entry.data
        payload = expected[Table.PAYLOAD][place_of(entry)] = rows[Table.PAYLOAD][place_of(entry)]
        check_payload(entry, payload)
    expected[Table.COUNT] = {bucket: held.to_bytes(4, "big") for bucket, held in counts.items()}
    expected[Table.META] = {b"version": (1).to_bytes(4, "big")}
    assert rows == expected
    return {entry.id.hex(): entry for entry in entries}


async def test_what_was_acknowledged_is_there_and_nothing_is_half_written_after_a_kill_at_any_moment(
    tmp_path: Path,
) -> None:
    draw = random.Random(SEED)
    # The last lines of a compaction are those that change names, and what is open.
    steps = [("_compact", line) for line in range(5, 1, -1)]
    steps += [("write_anew", line) for line in range(12, 0, -1)]
    steps[4:4] = steps[9:9] = [("_copy", draw.randrange(1, 60))]
    acknowledged: set[str] = set()
    for round_ in range(ROUNDS):
        folder = tmp_path / f"memory {round_ // 20}"
        if round_ % 20 == 0:
            acknowledged.clear()
        # Every second kill is between two steps of a compaction, the others come from outside.
        function, fatal_line = steps[round_ // 2 % len(steps)] if round_ % 2 else ("_copy", 0)
        told = await trio.to_thread.run_sync(
            acknowledged_until_killed, folder, round_, draw.randrange(1, 60), function, fatal_line
        )
        acknowledged.update(told)
        async with open_memory_store(folder, now_ms) as store:
            held = check_rows_agree(store)
            lost = acknowledged - held.keys()
            assert not lost, f"round {round_}, seed {SEED}: {len(lost)} are lost"
            batches = Counter((one.header.author, one.header.clock >> 16) for one in held.values())
            assert set(batches.values()) <= {3, 4}, "of a batch there is all, or nothing"
            assert fingerprints(store.summaries.items()) == rescanned(store)
            assert sorted(os.listdir(folder)) == ["data.mdb", "lock.mdb"]
    assert acknowledged, "nothing was acknowledged: nothing was shown"
