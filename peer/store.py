"""What does this device remember across a crash? One LMDB environment, one writer with group
commit.

Changes are queued and committed together, as soon as the last commit is done; there is no timer.
`then` is called on the trio thread, in the order of queueing, once a change is durable or has
failed. Reads see what is committed.
"""

import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import trio

from covey.identity.errors import CoveyError, Unavailable

from .schema import MIGRATIONS, SCHEMA_VERSION, Database

# Reserved once and sparse: growing a live map is not safe (MEMORY.md 2.2). The file grows as it
# fills.
MAP_BYTES = 64 * 1024**3
MAP_BYTES_MIN = 1024**3
WAITING_MAX = 20_000
_VERSION_KEY = b"version"
_INCARNATION_KEY = b"incarnation"


class StoreTooNew(CoveyError):
    """The store was written by a newer covey."""


@dataclass(frozen=True, slots=True)
class Change:
    """One row to write, or with `value=None` to erase."""

    database: Database
    key: bytes
    value: bytes | None


Then = Callable[[Unavailable | None], None]
_Queued = tuple[Sequence[Change], Then]


class Store:
    """Rows by database and key. Use `open_store`; one at a time in a process."""

    def __init__(self, environment: lmdb.Environment, handles: dict[Database, Any]) -> None:
        self._environment = environment
        self._handles = handles
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._waiting = 0
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._write, name="covey-store", daemon=True)
        self.failure: str | None = None
        """Why the last commit failed; None once one succeeds again."""
        self._thread.start()

    # Writing

    def put(self, changes: Sequence[Change], then: Then) -> None:
        """Queue one transaction; `then` hears when it is durable, or why it is not. Never waits."""
        if self._waiting >= WAITING_MAX:
            full = Unavailable(f"{WAITING_MAX} changes wait to be stored already; try again later")
            self._token.run_sync_soon(then, full)
            return
        self._waiting += 1
        self._queue.put((changes, then))

    async def commit(self, changes: Sequence[Change]) -> None:
        """Store the changes as one transaction and return once they are durable.

        Raises:
            Unavailable: the disk did not take them.
        """
        done = trio.Event()
        errors: list[Unavailable] = []

        def then(error: Unavailable | None) -> None:
            if error is not None:
                errors.append(error)
            done.set()

        self.put(changes, then)
        with trio.CancelScope(shield=True):
            await done.wait()
        if errors:
            raise errors[0]

    def _write(self) -> None:
        """The writer's thread: commit everything that is queued, again and again."""
        while (first := self._queue.get()) is not None:
            batch: list[_Queued] = [first]
            ended = False
            while True:
                try:
                    another = self._queue.get_nowait()
                except queue.Empty:
                    break
                if another is None:
                    ended = True
                    break
                batch.append(another)
            error = self._commit(batch)
            try:
                self._token.run_sync_soon(self._tell, batch, error)
            except trio.RunFinishedError:
                return
            if ended:
                return

    def _commit(self, batch: list[_Queued]) -> Unavailable | None:
        try:
            with self._environment.begin(write=True) as transaction:
                for changes, _ in batch:
                    for change in changes:
                        handle = self._handles[change.database]
                        if change.value is None:
                            transaction.delete(change.key, db=handle)
                        else:
                            transaction.put(change.key, change.value, db=handle)
        except lmdb.Error as error:
            return _explained(error, Path(self._environment.path()))
        return None

    def _tell(self, batch: list[_Queued], error: Unavailable | None) -> None:
        self.failure = None if error is None else str(error)
        self._waiting -= len(batch)
        for _, then in batch:
            then(error)

    # Reading

    def get(self, database: Database, key: bytes) -> bytes | None:
        """Return a committed row."""
        with self._environment.begin(db=self._handles[database]) as transaction:
            return transaction.get(key)

    def scan(self, database: Database, *, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Return the committed rows whose key begins with `prefix`, in key order."""
        return list(self._rows(database, prefix))

    def count(self, database: Database) -> int:
        """Return how many rows a database has."""
        with self._environment.begin() as transaction:
            return int(transaction.stat(self._handles[database])["entries"])

    def _rows(self, database: Database, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._environment.begin(db=self._handles[database]) as transaction:
            cursor = transaction.cursor()
            found = cursor.set_range(prefix) if prefix else cursor.first()
            while found:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                yield key, cursor.value()
                found = cursor.next()

    def close(self) -> None:
        """Commit what is queued, then close."""
        self._queue.put(None)
        self._thread.join(timeout=30)
        self._environment.close()


@asynccontextmanager
async def open_store(path: Path, *, map_bytes: int = MAP_BYTES) -> AsyncGenerator[Store]:
    """Open the store at `path`, migrated to this version, for as long as the block lasts.

    Raises:
        Unavailable: it cannot be opened.
        StoreTooNew: a newer covey wrote it.
    """
    environment = _open(path, map_bytes)
    try:
        environment.reader_check()
        handles = {one: environment.open_db(one.value.encode()) for one in Database}
        _migrate(environment, handles)
    except BaseException:
        environment.close()
        raise
    store = Store(environment, handles)
    try:
        yield store
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


async def next_incarnation(store: Store, now_ms: int) -> int:
    """Return a number greater than at any earlier start, also after the store was lost; durable."""
    row = store.get(Database.META, _INCARNATION_KEY)
    last = int.from_bytes(row, "big") if row else 0
    incarnation = max(last + 1, now_ms)
    await store.commit([Change(Database.META, _INCARNATION_KEY, incarnation.to_bytes(8, "big"))])
    return incarnation


def _open(path: Path, map_bytes: int) -> lmdb.Environment:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    size = map_bytes
    while True:
        try:
            return lmdb.open(
                str(path), map_size=size, max_dbs=len(Database) + 8, mode=0o600, max_readers=64
            )
        except (MemoryError, lmdb.MemoryError) as error:
            # A system that limits address space, or one of 32 bits.
            size //= 4
            if size < MAP_BYTES_MIN:
                raise Unavailable(f"no address space for the store at {path}") from error
        except lmdb.Error as error:
            raise _explained(error, path) from error


def _migrate(environment: lmdb.Environment, handles: dict[Database, Any]) -> None:
    meta = handles[Database.META]
    with environment.begin(write=True) as transaction:
        row = transaction.get(_VERSION_KEY, db=meta)
        version = int.from_bytes(row, "big") if row else 0
        if version > SCHEMA_VERSION:
            raise StoreTooNew(
                f"the store at {environment.path()} has version {version}, this covey knows up to "
                f"{SCHEMA_VERSION}; install the newer covey again"
            )
        for migration in MIGRATIONS[version:]:
            migration(transaction, handles)
        transaction.put(_VERSION_KEY, SCHEMA_VERSION.to_bytes(4, "big"), db=meta)


def _explained(error: lmdb.Error, path: Path) -> Unavailable:
    """LMDB reports a full disk as an input/output error; say what it is."""
    text = str(error)
    full = isinstance(error, (lmdb.MapFullError, lmdb.DiskError)) or any(
        words in text for words in ("Input/output error", "No space left", "File too large")
    )
    if full:
        return Unavailable(
            f"the disk under {path} is full or failing (LMDB: {text}); nothing acknowledged is lost: "
            "free some space and it goes on"
        )
    return Unavailable(f"the store at {path} cannot be used: {text}")
