"""When is what was written durable, and who hears of it? One writer for each LMDB file.

Work is queued and committed together, as soon as the last commit is done and those who waited for it
had their turn; there is no timer. `then` is called on the trio thread, in the order of queueing, once
the work is durable or has failed. Reads see what is committed.
"""

import logging
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import lmdb
import trio

from covey.identity.errors import Misuse, Unavailable

from .lmdb_file import Opened, explained, make_folder, migrate, open_file, sync_folder, write_anew
from .rows import Snapshot, Transaction
from .schema import Migrate

log = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound="Environment")

# What waits for a slow disk is in memory: beyond either, more is refused.
WAITING_MAX = 20_000
WAITING_BYTES_MAX = 256 * 1024**2
# Who is first in a group waits for all of it: a group that has this much takes no more.
GROUP_BYTES_MAX = 4 * 1024**2
# Who is told that its work is durable, and goes on with more, has queued that after so many turns of
# the trio loop; the writer waits at most so long for it.
SETTLING_TURNS = 2
SETTLING_S = 1.0
CLOSE_S = 30.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A job of which nothing is stored, and why."""

    error: Exception


Job = Callable[[Transaction], T]
"""Runs on the writer's thread, and again if another of its group has to be undone: what it returns
is all that may come of it besides rows."""


class _Queued(NamedTuple):
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


class Environment:
    """Rows by database and key. Use `open_environment`; one for a folder in a process."""

    def __init__(self, path: Path, opened: Opened, map_bytes: int) -> None:
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
        self._told: Callable[[Sequence[object]], None] = _nothing_more
        self._settled = threading.Event()
        self.failure: str | None = None
        """Why the last commit failed; None once one succeeds again."""
        self._thread.start()

    def file_bytes(self) -> int:
        """Return how large the data file is."""
        return (self._path / "data.mdb").stat().st_size

    # Writing

    def on_group(self, told: Callable[[Sequence[object]], None]) -> None:
        """Tell `told` how each of those ended who were committed together, once they know it.

        It is called on the trio thread, with what each returned or `Failed`, in their order, before
        any task goes on that waits for its job.
        """
        self._told = told

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
        waiting = _Waiting()
        self.add(job, waiting.told, size_bytes=size_bytes)
        value: T = await waiting.wait()
        return value

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
            told = 1
            if isinstance(first, _Compaction):
                tell = partial(first.then, self._compacted())
            else:
                group, held = self._gather(first)
                told = len(group)
                tell = partial(self._tell, group, *self._committed(group))
            # Those who were told mostly write on. To begin before they had their turn would part the
            # writers for good in two groups that alternate: twice the commits.
            queued = self._queue.qsize()
            settling = held is None and told >= queued and told + queued > 1
            self._settled.clear()
            try:
                self._token.run_sync_soon(tell)
                if settling:
                    self._token.run_sync_soon(self._settle, SETTLING_TURNS)
            except trio.RunFinishedError:
                return
            if settling:
                self._settled.wait(SETTLING_S)

    def _settle(self, turns: int) -> None:
        """Let the writer go on after so many turns of the trio loop."""
        if not turns:
            self._settled.set()
            return
        # Where the loop has ended, nobody waits to be told, and the writer goes on after its pause.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._settle, turns - 1)

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
            failure = explained(error, self._path)
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
        self._told(ended)

    def _check_usable(self) -> None:
        if self._unusable is not None:
            raise Unavailable(self._unusable)

    # Compaction

    def _compacted(self) -> Failed | None:
        try:
            self._check_usable()
            self._compact()
        except lmdb.Error as error:
            return Failed(explained(error, self._path))
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
        fresh = write_anew(self._opened, self._path, self._map_bytes)
        old, self._opened = self._opened, fresh
        old.retire()
        try:
            sync_folder(self._path)
        except OSError as error:
            # After a power cut the old file may have the name again: without what is written from
            # now on.
            self._unusable = (
                f"the folder {self._path} cannot be synced ({error.strerror}); restart covey"
            )
            raise

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
            raise explained(error, self._path) from error
        finally:
            opened.leave()

    # Closing

    def end(self) -> None:
        """Take nothing more; what is queued is still committed."""
        self._ended = True
        self._queue.put(_End())
        self._settled.set()  # this loop may turn no more

    def close(self) -> None:
        """Wait for the last commit, then close. Blocks; after `end`."""
        self._thread.join(timeout=CLOSE_S)
        # A disk that does not answer holds the writer: closing under it would crash.
        if not self._thread.is_alive():
            self._opened.retire()


@asynccontextmanager
async def open_environment(
    path: Path, databases: type[StrEnum], migrations: Sequence[Migrate], *, map_bytes: int
) -> AsyncGenerator[Environment]:
    """Open an environment with the databases named, one of which is `meta`, as `open_store` does."""
    async with running_environment(
        Environment, path, tuple(databases), migrations, map_bytes
    ) as environment:
        yield environment


@asynccontextmanager
async def running_environment(
    kind: type[E],
    path: Path,
    databases: Sequence[StrEnum],
    migrations: Sequence[Migrate],
    map_bytes: int,
) -> AsyncGenerator[E]:
    """Open an environment of a kind, migrated to this version, for as long as the block lasts.

    Raises:
        Unavailable: it cannot be opened.
        StoreTooNew: a newer covey wrote it.
    """
    make_folder(path)
    opened = open_file(path, map_bytes, databases)
    try:
        opened.environment.reader_check()
        migrate(opened, path, migrations)
    except lmdb.Error as error:
        opened.environment.close()
        raise explained(error, path) from error
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


class _Waiting:
    """A task that waits until its job has ended, cancelled or not: it will be stored in any case.

    An event and a shield cost 20 us more, for each of some thousand writes a second.
    """

    __slots__ = ("_ended", "_task")

    def __init__(self) -> None:
        self._task = trio.lowlevel.current_task()
        self._ended: Any = None

    def told(self, ended: Any) -> None:
        self._ended = ended
        trio.lowlevel.reschedule(self._task)

    async def wait(self) -> Any:
        """Return what the job returned, or raise why it failed."""
        await trio.lowlevel.wait_task_rescheduled(_not_before_it_ends)
        if isinstance(self._ended, Failed):
            raise self._ended.error
        return self._ended


def _not_before_it_ends(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED


async def ending(begin: Callable[[Callable[[T | Failed], None]], None]) -> T:
    """Wait until what `begin` queues has ended; return its value, or raise why it failed.

    It is waited for to the end, cancelled or not. `begin`'s `then` is told later, on the trio thread.
    """
    waiting = _Waiting()
    begin(waiting.told)
    value: T = await waiting.wait()
    return value


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


def _nothing_more(_ended: Sequence[object]) -> None:
    """Do nothing."""
