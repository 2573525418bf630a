"""What does this device remember across a crash? One LMDB environment, one writer with group
commit.

Changes are queued and committed together, as soon as the last commit is done; there is no timer.
`then` is called on the trio thread, in the order of queueing, once a change is durable or has
failed. Reads see what is committed.
"""

import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb
import trio

from covey.identity.errors import CoveyError, Unavailable

from .schema import MIGRATIONS, SCHEMA_VERSION, Database

log = logging.getLogger(__name__)

# Reserved once and sparse: growing a live map is not safe (MEMORY.md 2.2). The file grows as it
# fills.
MAP_BYTES = 64 * 1024**3
MAP_BYTES_MIN = 1024**3
# What waits for a slow disk is in memory: beyond either, more is refused.
WAITING_MAX = 20_000
WAITING_BYTES_MAX = 256 * 1024**2
CLOSE_S = 30.0
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


@dataclass(frozen=True, slots=True)
class _Queued:
    changes: Sequence[Change]
    then: Then
    size_bytes: int
    refused: str | None = None
    """Why it is not even tried. It waits for its turn all the same, so that the order holds."""


class Store:
    """Rows by database and key. Use `open_store`; one at a time in a process."""

    def __init__(self, environment: lmdb.Environment, handles: dict[Database, Any]) -> None:
        self._environment = environment
        self._path = Path(environment.path())
        self._handles = handles
        self._queue: queue.SimpleQueue[_Queued | None] = queue.SimpleQueue()
        self._waiting = 0
        self._waiting_bytes = 0
        self._ended = False
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._write, name="covey-store", daemon=True)
        self.failure: str | None = None
        """Why the last commit failed; None once one succeeds again."""
        self._thread.start()

    # Writing

    def put(self, changes: Sequence[Change], then: Then) -> None:
        """Queue one transaction; `then` hears when it is durable, or why it is not. Never waits."""
        size_bytes = sum(len(one.key) + len(one.value or b"") for one in changes)
        refused = None
        if self._ended:
            self._token.run_sync_soon(then, Unavailable("the store is closed"))
            return
        if self._waiting >= WAITING_MAX:
            refused = f"{WAITING_MAX} changes wait to be stored already; try again later"
        elif self._waiting and self._waiting_bytes + size_bytes > WAITING_BYTES_MAX:
            refused = f"{WAITING_BYTES_MAX} bytes wait to be stored already; try again later"
        if refused is not None:
            self._queue.put(_Queued((), then, 0, refused))
            return
        self._waiting += 1
        self._waiting_bytes += size_bytes
        self._queue.put(_Queued(changes, then, size_bytes))

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
            raise Unavailable(str(errors[0])) from errors[0]

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
            try:
                error = self._commit(batch)
            except Exception as broken:  # the supervisor of writing: who waits must hear of it
                log.exception("store.writer_broke")
                error = Unavailable(f"the store could not write: {broken}")
            try:
                self._token.run_sync_soon(self._tell, batch, error)
            except trio.RunFinishedError:
                return
            if ended:
                return

    def _commit(self, batch: list[_Queued]) -> Unavailable | None:
        try:
            with self._environment.begin(write=True) as transaction:
                for queued in batch:
                    for change in queued.changes:
                        handle = self._handles[change.database]
                        if change.value is None:
                            transaction.delete(change.key, db=handle)
                        else:
                            transaction.put(change.key, change.value, db=handle)
        except lmdb.Error as error:
            return _explained(error, self._path)
        return None

    def _tell(self, batch: list[_Queued], error: Unavailable | None) -> None:
        tried = [queued for queued in batch if queued.refused is None]
        self.failure = None if error is None else str(error)
        self._waiting -= len(tried)
        self._waiting_bytes -= sum(queued.size_bytes for queued in tried)
        for queued in batch:
            queued.then(error if queued.refused is None else Unavailable(queued.refused))

    # Reading

    def get(self, database: Database, key: bytes) -> bytes | None:
        """Return a committed row.

        Raises:
            Unavailable: it cannot be read.
        """
        with self._reading(database) as transaction:
            row: bytes | None = transaction.get(key)
            return row

    def scan(self, database: Database, *, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """Return the committed rows whose key begins with `prefix`, in key order."""
        return list(self._rows(database, prefix))

    def after(self, database: Database, key: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` committed rows whose keys come after `key`, in key order."""
        return list(islice(self._rows(database, b"", from_key=key + b"\x00"), limit))

    def before(self, database: Database, key: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        """Return at most `limit` committed rows whose keys come before `key`, the last one first."""
        with self._reading(database) as transaction:
            cursor = transaction.cursor()
            found = cursor.prev() if cursor.set_range(key) else cursor.last()
            rows: list[tuple[bytes, bytes]] = []
            while found and len(rows) < limit:
                rows.append((cursor.key(), cursor.value()))
                found = cursor.prev()
            return rows

    def count(self, database: Database) -> int:
        """Return how many rows a database has."""
        with self._reading(database) as transaction:
            return int(transaction.stat(self._handles[database])["entries"])

    def _rows(
        self, database: Database, prefix: bytes, *, from_key: bytes = b""
    ) -> Iterator[tuple[bytes, bytes]]:
        with self._reading(database) as transaction:
            cursor = transaction.cursor()
            start = max(prefix, from_key)
            found = cursor.set_range(start) if start else cursor.first()
            while found:
                key = cursor.key()
                if not key.startswith(prefix):
                    return
                yield key, cursor.value()
                found = cursor.next()

    @contextmanager
    def _reading(self, database: Database) -> Generator[Any]:
        try:
            with self._environment.begin(db=self._handles[database]) as transaction:
                yield transaction
        except lmdb.Error as error:
            raise _explained(error, self._path) from error

    # Closing

    def end(self) -> None:
        """Take nothing more; what is queued is still committed."""
        self._ended = True
        self._queue.put(None)

    def close(self) -> None:
        """Wait for the last commit, then close. Blocks; after `end`."""
        self._thread.join(timeout=CLOSE_S)
        # A disk that does not answer holds the writer: closing under it would crash.
        if not self._thread.is_alive():
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
    except lmdb.Error as error:
        environment.close()
        raise _explained(error, path) from error
    except BaseException:
        environment.close()
        raise
    store = Store(environment, handles)
    try:
        yield store
    finally:
        store.end()
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
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise Unavailable(f"the store at {path} cannot be made: {error.strerror}") from error
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
