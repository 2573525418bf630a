"""What do the tasks and the mesh's neighbourhood leave behind across a crash? The device's own rows.

An `Environment`, as the memory has another in `memory/store.py`, so that neither waits for the
other's disk.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from covey.identity.errors import Unavailable

from .environment import Environment, Failed, ending, running_environment
from .lmdb_file import MAP_BYTES
from .rows import Transaction
from .schema import MIGRATIONS, Database

log = logging.getLogger(__name__)

_INCARNATION_KEY = b"incarnation"
_ABOVE_ALL_KEYS = b"\xff" * 511


@dataclass(frozen=True, slots=True)
class Change:
    """One row to write, or with `value=None` to erase."""

    database: Database
    key: bytes
    value: bytes | None


Then = Callable[[Unavailable | None], None]


class Store(Environment):
    """What the tasks and the mesh's neighbourhood leave behind. Use `open_store`."""

    def put(self, changes: Sequence[Change], then: Then) -> None:
        """Queue one transaction; `then` hears when it is durable, or why it is not. Never waits."""

        def job(rows: Transaction) -> None:
            for change in changes:
                if change.value is None:
                    rows.delete(change.database, change.key)
                else:
                    rows.put(change.database, change.key, change.value)

        def told(ended: Failed | None) -> None:
            then(None if ended is None else _as_unavailable(ended.error))

        size_bytes = sum(len(one.key) + len(one.value or b"") for one in changes)
        self.add(job, told, size_bytes=size_bytes)

    async def commit(self, changes: Sequence[Change]) -> None:
        """Store the changes as one transaction and return once they are durable.

        Raises:
            Unavailable: the disk did not take them.
        """

        def begin(then: Callable[[Failed | None], None]) -> None:
            self.put(changes, lambda error: then(None if error is None else Failed(error)))

        await ending(begin)

    def get(self, database: Database, key: bytes) -> bytes | None:
        """Return a committed row.

        Raises:
            Unavailable: it cannot be read.
        """
        with self.reading() as rows:
            return rows.get(database, key)

    def scan(self, database: Database, *, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Return the committed rows whose key begins with `prefix`, in key order."""
        with self.reading() as rows:
            return list(rows.scan(database, prefix))

    def after(self, database: Database, key: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` committed rows whose keys come after `key`, in key order."""
        with self.reading() as rows:
            return list(islice(rows.scan(database, key + b"\x00", _ABOVE_ALL_KEYS), limit))

    def before(self, database: Database, key: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` committed rows whose keys come before `key`, the last one first."""
        with self.reading() as rows:
            return list(islice(rows.scan(database, b"", key, reverse=True), limit))

    def count(self, database: Database) -> int:
        """Return how many rows a database has."""
        with self.reading() as rows:
            return rows.count(database)


@asynccontextmanager
async def open_store(path: Path, *, map_bytes: int = MAP_BYTES) -> AsyncGenerator[Store]:
    """Open the tasks' store at `path`, migrated to this version, for as long as the block lasts.

    Raises:
        Unavailable: it cannot be opened.
        StoreTooNew: a newer covey wrote it.
    """
    async with running_environment(Store, path, tuple(Database), MIGRATIONS, map_bytes) as store:
        yield store


async def next_incarnation(store: Store, now_ms: int) -> int:
    """Return a number greater than at any earlier start, also after the store was lost; durable."""
    row = store.get(Database.META, _INCARNATION_KEY)
    last = int.from_bytes(row, "big") if row else 0
    incarnation = max(last + 1, now_ms)
    await store.commit([Change(Database.META, _INCARNATION_KEY, incarnation.to_bytes(8, "big"))])
    return incarnation


def _as_unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    log.error("store.change_refused", exc_info=error)
    return Unavailable(f"the store could not write: {error}")
