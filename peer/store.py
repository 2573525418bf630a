"""What does this device remember across a crash? LMDB environments, each with one writer with group
commit.

`Environment` has named databases; `Store` is the one of the tasks, `memory_store.py` has another, so
that neither waits for the other's disk. Work is queued and committed together, as soon as the last
commit is done; there is no timer. `then` is called on the trio thread, in the order of queueing,
once the work is durable or has failed. Reads see what is committed.
"""

import logging
import os
import queue
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import trio

from covey.identity.errors import CoveyError, Misuse, Unavailable

from .schema import MIGRATIONS, Database, Migrate

log = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound="Environment")

# Reserved once and sparse: growing a live map is not safe (MEMORY.md 2.2). The file grows as it
# fills.
MAP_BYTES = 64 * 1024**3
MAP_BYTES_MIN = 1024**3
# What waits for a slow disk is in memory: beyond either, more is refused.
WAITING_MAX = 20_000
WAITING_BYTES_MAX = 256 * 1024**2
# Who is first in a group waits for all of it: a group that has this much takes no more.
GROUP_BYTES_MAX = 4 * 1024**2
CLOSE_S = 30.0
# A copy has at most this many rows in one transaction: with 16 KiB each, 64 MiB of memory.
COPY_ROWS = 4096
# What a copy needs beside the live pages: its own first ones, and room for the commits meanwhile.
COPY_SPARE_BYTES = 1024**2
COMPACTING = "compacting"
"""The folder of a copy that is being made; one that a crash left behind goes at the next start."""
_VERSION_KEY = b"version"
_INCARNATION_KEY = b"incarnation"
_ABOVE_ALL_KEYS = b"\xff" * 511


class StoreTooNew(CoveyError):
    """The store was written by a newer covey."""


@dataclass(frozen=True, slots=True)
class Change:
    """One row to write, or with `value=None` to erase."""

    database: Database
    key: bytes
    value: bytes | None


@dataclass(frozen=True, slots=True)
class Failed:
    """A job of which nothing is stored, and why."""

    error: Exception


Then = Callable[[Unavailable | None], None]


class Snapshot:
    """The rows of one moment; valid inside the block that gave it, in one thread at a time."""

    def __init__(self, transaction: Any, handles: Mapping[StrEnum, Any]) -> None:
        self._transaction = transaction
        self._handles = handles
        self.last_read: tuple[StrEnum, bytes] | None = None
        """The row that was read last, to say which it was when it proves to be damaged."""

    def get(self, table: StrEnum, key: bytes) -> bytes | None:
        """Return a row's value."""
        self.last_read = (table, key)
        row: bytes | None = self._transaction.get(key, db=self._handles[table])
        return row

    def scan(
        self, table: StrEnum, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the rows with start <= key < stop in key order; stop None: those that begin with `start`.

        The table must not be changed while it is read.
        """
        if stop is None:
            stop = _after_prefix(start)
        elif stop <= start:
            return
        cursor = self._transaction.cursor(self._handles[table])
        # A cursor that found nothing stands nowhere, and would be iterated from an end.
        if reverse:
            found = cursor.prev() if stop and cursor.set_range(stop) else cursor.last()
            rows = cursor.iterprev() if found else ()
        else:
            found = cursor.set_range(start) if start else cursor.first()
            rows = cursor.iternext() if found else ()
        for row in rows:
            key = row[0]
            if key < start or (stop is not None and key >= stop):
                return
            self.last_read = (table, key)
            yield row

    def keys(self, table: StrEnum) -> Iterator[bytes]:
        """Give all keys of a table in order, without reading what they stand for."""
        keys: Iterator[bytes] = self._transaction.cursor(self._handles[table]).iternext(
            values=False
        )
        return keys

    def count(self, table: StrEnum) -> int:
        """Return how many rows a table has."""
        return int(self._transaction.stat(self._handles[table])["entries"])


class Transaction(Snapshot):
    """Rows that may be changed; it sees its own changes."""

    changed = False
    """Whether the job that runs has changed anything."""

    def put(self, table: StrEnum, key: bytes, value: bytes) -> None:
        """Write a row."""
        self.changed = True
        self._transaction.put(key, value, db=self._handles[table])

    def delete(self, table: StrEnum, key: bytes) -> bool:
        """Erase a row; tell whether there was one."""
        self.changed = True
        return bool(self._transaction.delete(key, db=self._handles[table]))


Job = Callable[[Transaction], T]
"""Runs on the writer's thread, and again if another of its group has to be undone: what it returns
is all that may come of it besides rows."""


@dataclass(frozen=True, slots=True)
class _Queued:
    job: Job[Any]
    then: Callable[[Any], None]
    size_bytes: int
    refused: str | None = None
    """Why it is not even tried. It waits for its turn all the same, so that the order holds."""


@dataclass(frozen=True, slots=True)
class _Compaction:
    then: Callable[[Failed | None], None]


class _End:
    """Nothing comes after it."""


class _Undo(Exception):
    """A job that had changed rows raised."""


@dataclass(slots=True)
class _Opened:
    """An open LMDB environment, which is closed when the last one that reads in it is gone."""

    environment: lmdb.Environment
    handles: Mapping[StrEnum, Any]
    readers: int = 0
    is_retired: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> bool:
        """Hold it open; False: it is retired, and another has taken its place."""
        with self.lock:
            if self.is_retired:
                return False
            self.readers += 1
            return True

    def leave(self) -> None:
        with self.lock:
            self.readers -= 1
            self._close_if_unused()

    def retire(self) -> None:
        with self.lock:
            self.is_retired = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        # To close it under somebody who reads would crash the process.
        if self.is_retired and not self.readers:
            self.environment.close()


class Environment:
    """Rows by database and key. Use `open_environment`; one for a folder in a process."""

    def __init__(self, path: Path, opened: _Opened, map_bytes: int) -> None:
        self._path = path
        self._opened = opened
        self._map_bytes = map_bytes
        self._queue: queue.SimpleQueue[_Queued | _Compaction | _End] = queue.SimpleQueue()
        self._waiting = 0
        self._waiting_bytes = 0
        self._ended = False
        self._unusable: str | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.Thread(target=self._write, name="covey-store", daemon=True)
        self.failure: str | None = None
        """Why the last commit failed; None once one succeeds again."""
        self._thread.start()

    def file_bytes(self) -> int:
        """Return how large the data file is."""
        return (self._path / "data.mdb").stat().st_size

    # Writing

    def add(self, job: Job[T], then: Callable[[T | Failed], None], *, size_bytes: int = 0) -> None:
        """Queue a job; it runs in a transaction that it shares with others. Never waits.

        A job that raises leaves nothing of itself behind, and does not harm the others.

        Args:
            job: reads and changes rows, on the writer's thread.
            then: hears on the trio thread what the job returned, once it is durable, or why it is
                not: what the job raised, or Unavailable. It must not raise.
            size_bytes: about how much the job holds in memory while it waits.
        """
        refused = None
        if self._ended:
            self._token.run_sync_soon(then, Failed(Unavailable("the store is closed")))
            return
        if self._waiting >= WAITING_MAX:
            refused = f"{WAITING_MAX} changes wait to be stored already; try again later"
        elif self._waiting and self._waiting_bytes + size_bytes > WAITING_BYTES_MAX:
            refused = f"{WAITING_BYTES_MAX} bytes wait to be stored already; try again later"
        if refused is not None:
            self._queue.put(_Queued(_nothing, then, 0, refused))
            return
        self._waiting += 1
        self._waiting_bytes += size_bytes
        self._queue.put(_Queued(job, then, size_bytes))

    async def run(self, job: Job[T], *, size_bytes: int = 0) -> T:
        """Run a job and return what it returned, once it is durable; not cancelled meanwhile.

        Raises:
            Unavailable: the disk did not take it.
            Exception: what the job raised.
        """
        return await ending(lambda then: self.add(job, then, size_bytes=size_bytes))

    async def compact(self) -> None:
        """Write everything anew into another file, so that nothing erased is left in the store.

        Nothing is written meanwhile; reading goes on, in the old file if it has begun there. A crash
        at any point leaves the old file or the new one.

        Raises:
            Unavailable: there is no room, or the disk failed; the old file goes on to be used.
        """

        def begin(then: Callable[[Failed | None], None]) -> None:
            if self._ended:
                self._token.run_sync_soon(then, Failed(Unavailable("the store is closed")))
                return
            self._queue.put(_Compaction(then))

        await ending(begin)

    def _write(self) -> None:
        """The writer's thread: do everything that is queued, again and again."""
        held: _Queued | _Compaction | _End | None = None
        while not isinstance(first := held or self._queue.get(), _End):
            held = None
            if isinstance(first, _Compaction):
                tell = partial(first.then, self._compacted())
            else:
                group, held = self._gather(first)
                tell = partial(self._tell, group, *self._committed(group))
            try:
                self._token.run_sync_soon(tell)
            except trio.RunFinishedError:
                return

    def _gather(self, first: _Queued) -> tuple[list[_Queued], _Compaction | _End | None]:
        """Return what is committed together, and what was taken from the queue behind it."""
        group = [first]
        size_bytes = first.size_bytes
        while size_bytes < GROUP_BYTES_MAX:
            try:
                another = self._queue.get_nowait()
            except queue.Empty:
                break
            if not isinstance(another, _Queued):
                return group, another
            group.append(another)
            size_bytes += another.size_bytes
        return group, None

    def _committed(self, group: list[_Queued]) -> tuple[list[Any], Unavailable | None]:
        """Return how each ended, and why the disk took none of them."""
        try:
            self._check_usable()
            return self._commit(group), None
        except Unavailable as error:
            failure = error
        except lmdb.Error as error:
            failure = _explained(error, self._path)
        except Exception as broken:  # the supervisor of writing: who waits must hear of it
            log.exception("store.writer_broke")
            failure = Unavailable(f"the store could not write: {broken}")
        return [Failed(failure)] * len(group), failure

    def _commit(self, group: list[_Queued]) -> list[Any]:
        environment, handles = self._opened.environment, self._opened.handles
        try:
            with environment.begin(write=True) as transaction:
                rows = Transaction(transaction, handles)
                return [_unless_it_raises(queued.job, rows) for queued in group]
        except _Undo:
            pass
        # One has to be undone: each gets a transaction of its own within that of the group. That
        # costs 3 us for a job of one row and 15 for an entry of the memory, so it is not the rule.
        with environment.begin(write=True) as transaction:
            return [self._run_apart(queued.job, transaction) for queued in group]

    def _run_apart(self, job: Job[Any], group: Any) -> Any:
        nested = self._opened.environment.begin(write=True, parent=group)
        ended = _ended(job, Transaction(nested, self._opened.handles))
        if isinstance(ended, Failed):
            nested.abort()
        else:
            nested.commit()
        return ended

    def _tell(self, group: list[_Queued], ended: list[Any], failure: Unavailable | None) -> None:
        tried = [queued for queued in group if queued.refused is None]
        self.failure = None if failure is None else str(failure)
        self._waiting -= len(tried)
        self._waiting_bytes -= sum(queued.size_bytes for queued in tried)
        for queued, one in zip(group, ended, strict=True):
            queued.then(one if queued.refused is None else Failed(Unavailable(queued.refused)))

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise Unavailable(self._unusable)

    # Compaction

    def _compacted(self) -> Failed | None:
        try:
            self._check_usable()
            self._compact()
        except lmdb.Error as error:
            return Failed(_explained(error, self._path))
        except OSError as error:
            return Failed(
                Unavailable(f"the store at {self._path} was not compacted: {error.strerror}")
            )
        except Unavailable as error:
            return Failed(error)
        except Exception as broken:  # the supervisor of writing: who waits must hear of it
            log.exception("store.compaction_broke")
            return Failed(
                Unavailable(f"the store at {self._path} could not be compacted: {broken}")
            )
        return None

    def _compact(self) -> None:
        folder = self._path / COMPACTING
        shutil.rmtree(folder, ignore_errors=True)
        self._check_room()
        try:
            folder.mkdir(mode=0o700)
            self._copy(folder)
            fresh = _open(folder, self._map_bytes, tuple(self._opened.handles))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        # LMDB has both files open, and does not mind that they get other names. The old data stays
        # whole until the new takes its name, in one step; a lock file is made right by who opens it.
        try:
            (folder / "lock.mdb").replace(self._path / "lock.mdb")
            (folder / "data.mdb").replace(self._path / "data.mdb")
        except OSError:
            fresh.environment.close()
            shutil.rmtree(folder, ignore_errors=True)
            raise
        old, self._opened = self._opened, fresh
        old.retire()
        shutil.rmtree(folder, ignore_errors=True)
        try:
            _sync_folder(self._path)
        except OSError as error:
            # After a power cut the old file may have the name again: without what is written from
            # now on.
            self._unusable = (
                f"the folder {self._path} cannot be synced ({error.strerror}); restart covey"
            )
            raise

    def _check_room(self) -> None:
        with self._opened.environment.begin() as transaction:
            stats = [transaction.stat(handle) for handle in self._opened.handles.values()]
        pages = sum(
            one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in stats
        )
        needed = pages * stats[0]["psize"] + COPY_SPARE_BYTES
        free = shutil.disk_usage(self._path).free
        if needed > free:
            raise Unavailable(
                f"the store at {self._path} was not compacted: that needs {needed:,} bytes beside it "
                f"and the disk has {free:,}; free some space and try again"
            )

    def _copy(self, folder: Path) -> None:
        """Write all rows into a new environment in `folder`.

        LMDB's own copy takes pages as they are, and a page keeps what was erased behind the end of
        what is in it: of payloads of 2 to 4 kB one in eighteen was still found (LMDB 0.9.36).
        """
        # Synced once at the end: until then nobody knows of it.
        copy = _open(folder, self._map_bytes, tuple(self._opened.handles), sync=False)
        try:
            with self._opened.environment.begin() as source:
                for table, handle in self._opened.handles.items():
                    rows = source.cursor(handle).iternext()
                    while some := list(islice(rows, COPY_ROWS)):
                        with copy.environment.begin(write=True) as target:
                            target.cursor(copy.handles[table]).putmulti(some, append=True)
            copy.environment.sync(True)
        finally:
            copy.environment.close()

    # Reading

    @contextmanager
    def reading(self) -> Generator[Snapshot]:
        """Read the rows as they are now, on any thread.

        On the trio thread for a moment only, and never across an await: what is read cannot be
        freed while it lasts, so the file grows with what is written meanwhile. Long reading has a
        thread of its own, and the same warning.

        Raises:
            Unavailable: it cannot be read.
        """
        while not (opened := self._opened).enter():
            if opened is self._opened:
                raise Unavailable("the store is closed")
        try:
            with opened.environment.begin() as transaction:
                yield Snapshot(transaction, opened.handles)
        except lmdb.BadValsizeError as error:
            raise Misuse(f"no key can be like this: {error}") from error
        except lmdb.Error as error:
            raise _explained(error, self._path) from error
        finally:
            opened.leave()

    # Closing

    def end(self) -> None:
        """Take nothing more; what is queued is still committed."""
        self._ended = True
        self._queue.put(_End())

    def close(self) -> None:
        """Wait for the last commit, then close. Blocks; after `end`."""
        self._thread.join(timeout=CLOSE_S)
        # A disk that does not answer holds the writer: closing under it would crash.
        if not self._thread.is_alive():
            self._opened.retire()


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
    async with _running(Store, path, tuple(Database), MIGRATIONS, map_bytes) as store:
        yield store


@asynccontextmanager
async def open_environment(
    path: Path, databases: type[StrEnum], migrations: Sequence[Migrate], *, map_bytes: int
) -> AsyncGenerator[Environment]:
    """Open an environment with the databases named, one of which is `meta`, as `open_store` does."""
    async with _running(Environment, path, tuple(databases), migrations, map_bytes) as environment:
        yield environment


async def next_incarnation(store: Store, now_ms: int) -> int:
    """Return a number greater than at any earlier start, also after the store was lost; durable."""
    row = store.get(Database.META, _INCARNATION_KEY)
    last = int.from_bytes(row, "big") if row else 0
    incarnation = max(last + 1, now_ms)
    await store.commit([Change(Database.META, _INCARNATION_KEY, incarnation.to_bytes(8, "big"))])
    return incarnation


@asynccontextmanager
async def _running(
    kind: type[E],
    path: Path,
    databases: Sequence[StrEnum],
    migrations: Sequence[Migrate],
    map_bytes: int,
) -> AsyncGenerator[E]:
    _make_folder(path)
    opened = _open(path, map_bytes, databases)
    try:
        opened.environment.reader_check()
        _migrate(opened, path, migrations)
    except lmdb.Error as error:
        opened.environment.close()
        raise _explained(error, path) from error
    except BaseException:
        opened.environment.close()
        raise
    environment = kind(path, opened, map_bytes)
    try:
        yield environment
    finally:
        environment.end()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(environment.close)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (path / COMPACTING).exists():
            shutil.rmtree(path / COMPACTING)
    except OSError as error:
        raise Unavailable(f"the store at {path} cannot be made: {error.strerror}") from error


def _open(
    path: Path, map_bytes: int, databases: Sequence[StrEnum], *, sync: bool = True
) -> _Opened:
    size = map_bytes
    dbs = len(databases) + 8
    while True:
        try:
            environment = lmdb.open(
                str(path), map_size=size, max_dbs=dbs, mode=0o600, max_readers=64, sync=sync
            )
            break
        except (MemoryError, lmdb.MemoryError) as error:
            # A system that limits address space, or one of 32 bits.
            size //= 4
            if size < MAP_BYTES_MIN:
                raise Unavailable(f"no address space for the store at {path}") from error
        except lmdb.Error as error:
            raise _explained(error, path) from error
    try:
        # All in one: each of its own would be a commit, where they are new.
        with environment.begin(write=True) as transaction:
            handles = {
                one: environment.open_db(one.value.encode(), transaction) for one in databases
            }
    except lmdb.Error as error:
        environment.close()
        raise _explained(error, path) from error
    return _Opened(environment, handles)


def _migrate(opened: _Opened, path: Path, migrations: Sequence[Migrate]) -> None:
    newest = len(migrations)
    meta = next(handle for one, handle in opened.handles.items() if one.value == "meta")
    with opened.environment.begin(write=True) as transaction:
        row = transaction.get(_VERSION_KEY, db=meta)
        version = int.from_bytes(row, "big") if row else 0
        if version > newest:
            raise StoreTooNew(
                f"the store at {path} has version {version}, this covey knows up to {newest}; "
                "install the newer covey again"
            )
        for migration in migrations[version:]:
            migration(transaction, opened.handles)
        transaction.put(_VERSION_KEY, newest.to_bytes(4, "big"), db=meta)


async def ending(begin: Callable[[Callable[[T | Failed], None]], None]) -> T:
    """Wait until what `begin` queues has ended; return its value, or raise why it failed.

    It is waited for to the end, cancelled or not: it will be stored in any case. `begin`'s `then` is
    told later, on the trio thread.
    """
    task = trio.lowlevel.current_task()
    ended: list[T | Failed] = []

    def then(one: T | Failed) -> None:
        ended.append(one)
        trio.lowlevel.reschedule(task)

    begin(then)
    # An event and a shield cost 20 us more, for each of some thousand writes a second.
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
    if isinstance(ended[0], Failed):
        raise ended[0].error
    return ended[0]


def _ended(job: Job[Any], rows: Transaction) -> Any:
    """Return what a job returned, or Failed if it is to blame for that it did not."""
    try:
        return job(rows)
    except lmdb.BadValsizeError as error:
        return Failed(Misuse(f"no key can be like this: {error}"))
    except lmdb.Error:
        raise
    except Exception as error:  # noqa: BLE001  (who queued the job is told)
        return Failed(error)


def _unless_it_raises(job: Job[Any], rows: Transaction) -> Any:
    rows.changed = False
    ended = _ended(job, rows)
    if isinstance(ended, Failed) and rows.changed:
        raise _Undo
    return ended


def _nothing(_rows: Transaction) -> None:
    """Do nothing."""


def _as_unavailable(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    log.error("store.change_refused", exc_info=error)
    return Unavailable(f"the store could not write: {error}")


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the least key above all that begin with `prefix`; None: there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,)) if head else None


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
