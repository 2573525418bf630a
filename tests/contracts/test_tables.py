"""The port `Tables`, as the store over LMDB and the tests' tables in memory keep it."""

from collections.abc import AsyncGenerator, Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.memory_tables import DictTables

from covey.gossip.memory.tables import Table, Tables
from covey.identity.errors import Misuse
from covey.peer.environment import Environment, open_environment
from covey.peer.schema import MEMORY_MIGRATIONS

T = TypeVar("T")
MAP_BYTES = 64 * 1024**2
KEYS = [b"a", b"a\x00", b"ab", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff"]
"""In order."""


class Within(Protocol):
    async def __call__(self, use: Callable[[Tables], T]) -> T:
        """Run `use` with the tables, in one transaction."""
        ...


async def in_lmdb(environment: Environment, use: Callable[[Tables], T]) -> T:
    return await environment.run(use)


async def in_memory(tables: DictTables, use: Callable[[Tables], T]) -> T:
    return use(tables)


@pytest.fixture(params=["lmdb", "memory"])
async def within(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Within]:
    if request.param == "memory":
        yield partial(in_memory, DictTables())
        return
    async with open_environment(tmp_path, Table, MEMORY_MIGRATIONS, map_bytes=MAP_BYTES) as opened:
        yield partial(in_lmdb, opened)


def filled(tables: Tables) -> None:
    for key in KEYS:
        tables.put(Table.ENTRY, key, b"<" + key + b">")


async def test_a_row_is_read_back_until_it_is_erased(within: Within) -> None:
    def use(tables: Tables) -> list[object]:
        tables.put(Table.ENTRY, b"key", b"first")
        tables.put(Table.ENTRY, b"key", b"second")
        tables.put(Table.WANTED, b"key", b"")
        return [
            tables.get(Table.ENTRY, b"key"),
            tables.get(Table.WANTED, b"key"),
            tables.get(Table.PAYLOAD, b"key"),
            tables.delete(Table.ENTRY, b"key"),
            tables.get(Table.ENTRY, b"key"),
            tables.delete(Table.ENTRY, b"key"),
            tables.get(Table.WANTED, b"key"),
        ]

    assert await within(use) == [b"second", b"", None, True, None, False, b""]


async def test_what_one_transaction_wrote_the_next_one_reads(within: Within) -> None:
    await within(filled)

    assert await within(lambda tables: list(tables.scan(Table.ENTRY, b"b"))) == [(b"b", b"<b>")]


@pytest.mark.parametrize(
    ("start", "stop", "found"),
    [
        (b"", None, KEYS),
        (b"a", None, KEYS[:5]),
        (b"a\xff", None, [b"a\xff", b"a\xff\xff"]),
        (b"\xff", None, [b"\xff", b"\xff\xff"]),
        (b"\xff\xff\xff", None, []),
        (b"aa", None, []),
        (b"", b"a\xff", [b"a", b"a\x00", b"ab"]),
        (b"", b"a", []),
        (b"a\x01", b"b", [b"ab", b"a\xff", b"a\xff\xff"]),
        (b"b", b"\xff\xff", [b"b", b"\xff"]),
        (b"b", b"b", []),
        (b"b", b"a", []),
        (b"", b"", []),
        (b"c", b"d", []),
    ],
)
async def test_a_scan_gives_the_rows_of_its_range_in_order_from_either_end(
    within: Within, start: bytes, stop: bytes | None, found: list[bytes]
) -> None:
    def scan(tables: Tables, *, reverse: bool) -> list[tuple[bytes, bytes]]:
        return list(tables.scan(Table.ENTRY, start, stop, reverse=reverse))

    await within(filled)

    expected = [(key, b"<" + key + b">") for key in found]
    assert await within(partial(scan, reverse=False)) == expected
    assert await within(partial(scan, reverse=True)) == expected[::-1]


async def test_a_scan_of_an_empty_table_gives_nothing(within: Within) -> None:
    await within(filled)

    assert await within(lambda tables: list(tables.scan(Table.DUE, b""))) == []
    assert await within(lambda tables: list(tables.scan(Table.DUE, b"", reverse=True))) == []


async def test_other_tables_may_be_changed_while_one_is_scanned(within: Within) -> None:
    def move(tables: Tables) -> list[bytes]:
        for key, value in tables.scan(Table.ENTRY, b""):
            tables.put(Table.PAYLOAD, key, value)
        return [key for key, _ in tables.scan(Table.PAYLOAD, b"")]

    await within(filled)

    assert await within(move) == KEYS


def no_key_put(tables: Tables) -> None:
    tables.put(Table.META, b"", b"")


def long_key_put(tables: Tables) -> None:
    tables.put(Table.META, b"k" * 512, b"")


def no_key_got(tables: Tables) -> None:
    tables.get(Table.META, b"")


def no_key_deleted(tables: Tables) -> None:
    tables.delete(Table.META, b"")


@pytest.mark.parametrize("use", [no_key_put, long_key_put, no_key_got, no_key_deleted])
async def test_a_key_that_cannot_be_is_a_misuse(
    within: Within, use: Callable[[Tables], None]
) -> None:
    with pytest.raises(Misuse):
        await within(use)


async def test_the_longest_key_is_511_bytes(within: Within) -> None:
    await within(lambda tables: tables.put(Table.META, b"k" * 511, b"value"))

    assert await within(lambda tables: tables.get(Table.META, b"k" * 511)) == b"value"


some_keys = st.lists(st.sampled_from([0, 1, 97, 255]), min_size=1, max_size=3).map(bytes)
puts = st.tuples(st.just("put"), some_keys, st.binary(max_size=3))
deletes = st.tuples(st.just("delete"), some_keys)
bounds = st.one_of(st.just(b""), some_keys)
scans = st.tuples(st.just("scan"), bounds, st.one_of(st.none(), bounds), st.booleans())
gets = st.tuples(st.just("get"), some_keys)


def answer(tables: Tables, step: tuple[Any, ...]) -> object:
    match step:
        case ("put", key, value):
            return tables.put(Table.ENTRY, key, value)
        case ("delete", key):
            return tables.delete(Table.ENTRY, key)
        case ("scan", start, stop, reverse):
            return list(tables.scan(Table.ENTRY, start, stop, reverse=reverse))
        case ("get", key):
            return tables.get(Table.ENTRY, key)
        case _:
            raise AssertionError(step)


async def test_both_answer_alike_whatever_is_asked(tmp_path: Path) -> None:
    def compare(rows: Tables) -> None:
        @given(st.lists(st.one_of(puts, deletes, scans, gets), max_size=30))
        def alike(steps: list[tuple[Any, ...]]) -> None:
            for key, _ in list(rows.scan(Table.ENTRY, b"")):
                rows.delete(Table.ENTRY, key)
            tables = DictTables()
            for step in steps:
                assert answer(rows, step) == answer(tables, step)

        alike()

    async with open_environment(tmp_path, Table, MEMORY_MIGRATIONS, map_bytes=MAP_BYTES) as opened:
        await opened.run(compare)


def test_the_tables_in_memory_object_to_a_change_of_what_is_being_scanned() -> None:
    tables = DictTables()
    filled(tables)
    rows = tables.scan(Table.ENTRY, b"")
    next(rows)
    tables.delete(Table.ENTRY, b"b")

    with pytest.raises(RuntimeError, match="was changed while it was read"):
        next(rows)
