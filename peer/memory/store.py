"""Where do the entries of the shared memory rest? In an LMDB environment of their own.

What is written goes through `Replica`, on the store's writer thread, many together in one commit;
what is derived (the summaries here, the indexes of those who watch) follows on the trio thread once
it is durable, in order, so it is never ahead of the disk, and is made anew at start.
"""

from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import trio

from covey.gossip.memory.entry import KEY_BYTES_TOTAL, NAMESPACE_BYTES, Entry, Key, NamespaceId
from covey.gossip.memory.replica import (
    Applied,
    Arrival,
    Fate,
    Quotas,
    Replica,
    one_after_another,
)
from covey.gossip.memory.summary import Summary
from covey.gossip.memory.tables import Table, Tables
from covey.identity.errors import Malformed, Misuse, Unavailable
from covey.peer.environment import Environment, open_environment
from covey.peer.lmdb_file import MAP_BYTES
from covey.peer.rows import Snapshot, Transaction
from covey.peer.schema import MEMORY_MIGRATIONS

T = TypeVar("T")

# One job holds the writer for about 50 ms with so many: who waits behind it, waits for it.
ARRIVALS_MAX = 1000
# Of what is over its time, so many go in one job.
DUE_MAX = 500

Job = Callable[[Replica, Tables], T]
"""Reads and changes the memory, on the writer's thread; it may be run twice, and then only the
second counts, so all that may come of it besides rows is what it returns."""


class Damaged(Unavailable):
    """A stored row is not what it should be; nobody's fault but the disk's, or ours."""


class _Ended(NamedTuple, Generic[T]):
    """What a job returned, and what it changed."""

    value: T
    applied: Applied


class MemoryStore:
    """The entries that this device holds. Use `open_memory_store`."""

    def __init__(
        self,
        environment: Environment,
        summaries: dict[NamespaceId, Summary],
        now_ms: Callable[[], int],
        quotas: Callable[[NamespaceId], Quotas],
    ) -> None:
        self._environment = environment
        self._summaries = summaries
        self._now_ms = now_ms
        self._quotas = quotas
        self._handlers: list[Callable[[Applied], None]] = []
        environment.on_group(self._follow)

    @property
    def summaries(self) -> Mapping[NamespaceId, Summary]:
        """Which entries are held, by namespace. Only of what is durable; for the trio thread."""
        return self._summaries

    @property
    def failure(self) -> str | None:
        """Why the last commit failed; None once one succeeds again."""
        return self._environment.failure

    def file_bytes(self) -> int:
        """Return how large the file is on the disk."""
        return self._environment.file_bytes()

    # Writing

    def on_applied(self, handler: Callable[[Applied], None]) -> None:
        """Tell `handler` of what each commit changed, in order, on the trio thread.

        It must not raise.
        """
        self._handlers.append(handler)

    async def apply(self, arrivals: Sequence[Arrival]) -> Applied:
        """Take in entries whose signature and standing hold; return what became of each.

        Raises:
            Unavailable: the disk did not take them.
            Damaged: a row that they touch is not what it should be; none of them is taken in.
        """
        if len(arrivals) > ARRIVALS_MAX:
            raise Misuse(f"at most {ARRIVALS_MAX} entries at once, not {len(arrivals)}")

        def job(replica: Replica, _tables: Tables) -> Applied:
            for arrival in arrivals:
                replica.apply(arrival)
            return replica.applied

        return await self.run(job, size_bytes=sum(map(_size_of, arrivals)))

    async def run(self, job: Job[T], *, size_bytes: int = 0) -> T:
        """Let `job` read and change the memory with nobody in between; return what it returned.

        Raises:
            Unavailable: the disk did not take it.
            Damaged: a row that it touches is not what it should be.
            Exception: what `job` raised; nothing of it is stored.
        """
        ended = await self._environment.run(partial(self._applied, job), size_bytes=size_bytes)
        return ended.value

    def _applied(self, job: Job[T], rows: Transaction) -> _Ended[T]:
        replica = _StoredReplica(rows, self._now_ms(), self._quotas)
        return _Ended(job(replica, rows), replica.applied)

    async def pass_time(self) -> None:
        """Drop all that is over its time by now."""
        while await self.run(lambda replica, _tables: replica.pass_time(DUE_MAX)):
            pass

    async def compact(self) -> None:
        """Leave nothing in the file of what was dropped: write what is held into a new one.

        Raises:
            Unavailable: there is no room, or the disk failed; the old file goes on to be used.
        """
        await self._environment.compact()

    def _follow(self, ended: Sequence[object]) -> None:
        # Once for all that were committed together: it takes a tenth of the time.
        durable = [one.applied for one in ended if isinstance(one, _Ended)]
        if not durable:
            return
        applied = one_after_another(durable)
        # One that went and came in the same commit, or came and went, is as it was.
        change = Counter(applied.added)
        change.subtract(applied.removed)
        for (namespace, key), number in change.items():
            if number > 0:
                if namespace not in self._summaries:
                    self._summaries[namespace] = Summary()
                self._summaries[namespace].add(key)
            elif number < 0:
                self._summaries[namespace].discard(key)
        for handler in self._handlers:
            handler(applied)

    # Reading

    def reading(self) -> AbstractContextManager[Snapshot]:
        """Read the rows as they are now: on the trio thread shortly, never across an await.

        Long reading (to verify, to export, to make an index anew) is done the same way in a thread
        of its own, also while the store is compacted. What it can see is not freed while it lasts.

        Raises:
            Unavailable: it cannot be read.
        """
        return self._environment.reading()


@asynccontextmanager
async def open_memory_store(
    path: Path,
    now_ms: Callable[[], int],
    *,
    quotas: Callable[[NamespaceId], Quotas] = lambda _namespace: Quotas(),
    map_bytes: int = MAP_BYTES,
) -> AsyncGenerator[MemoryStore]:
    """Open the memory at `path`, migrated to this version, for as long as the block lasts.

    Args:
        path: its folder, made if need be.
        now_ms: the wall clock; called on the writer's thread, as `quotas` is.
        quotas: how much an author may hold in a namespace.
        map_bytes: how large it can ever become.

    Raises:
        Unavailable: it cannot be opened.
        StoreTooNew: a newer covey wrote it.
    """
    async with open_environment(path, Table, MEMORY_MIGRATIONS, map_bytes=map_bytes) as environment:
        summaries = await trio.to_thread.run_sync(_summarise, environment)
        yield MemoryStore(environment, summaries, now_ms, quotas)


class _StoredReplica(Replica):
    """The rules over stored rows, which name a row that is damaged."""

    def __init__(
        self, rows: Transaction, now_ms: int, quotas: Callable[[NamespaceId], Quotas]
    ) -> None:
        super().__init__(rows, now_ms, quotas)
        self._rows = rows

    def apply(self, arrival: Arrival) -> Fate:
        try:
            return super().apply(arrival)
        except _SIGNS_OF_DAMAGE as error:
            raise _damaged(self._rows, error) from error

    def pass_time(self, limit: int) -> bool:
        try:
            return super().pass_time(limit)
        except _SIGNS_OF_DAMAGE as error:
            raise _damaged(self._rows, error) from error

    def purge(
        self, namespace: NamespaceId, author: bytes, still_counts: Callable[[Entry], bool]
    ) -> None:
        try:
            super().purge(namespace, author, still_counts)
        except _SIGNS_OF_DAMAGE as error:
            raise _damaged(self._rows, error) from error

    def purge_after(
        self,
        namespace: NamespaceId,
        start: bytes,
        still_counts: Callable[[Entry], bool],
        limit: int,
    ) -> bytes | None:
        try:
            return super().purge_after(namespace, start, still_counts, limit)
        except _SIGNS_OF_DAMAGE as error:
            raise _damaged(self._rows, error) from error

    def trim(self, namespace: NamespaceId, limit: int) -> bool:
        try:
            return super().trim(namespace, limit)
        except _SIGNS_OF_DAMAGE as error:
            raise _damaged(self._rows, error) from error


# What the rules stumble over when rows do not agree: one that cannot be decoded, one that is not
# there, an empty index of what is counted, a count below zero.
_SIGNS_OF_DAMAGE = (Malformed, AssertionError, StopIteration, OverflowError)


def _damaged(rows: Snapshot, error: Exception) -> Damaged:
    assert rows.last_read is not None
    table, key = rows.last_read
    why = str(error) or type(error).__name__
    return Damaged(f"row {key.hex()} of table {table.value} of the memory is damaged: {why}")


def _summarise(environment: Environment) -> dict[NamespaceId, Summary]:
    """Read which entries are held: their keys alone."""
    summaries: dict[NamespaceId, Summary] = {}
    with environment.reading() as rows:
        places = rows.keys(Table.ENTRY)
        for namespace, of_it in groupby(places, itemgetter(slice(NAMESPACE_BYTES))):
            keys = [Key(place[NAMESPACE_BYTES:]) for place in of_it]
            for key in keys:
                if len(key) != KEY_BYTES_TOTAL:
                    raise Damaged(
                        f"row {(namespace + key).hex()} of table {Table.ENTRY.value} of the memory "
                        f"is damaged: its key has {len(namespace + key)} bytes"
                    )
            summaries[NamespaceId(namespace)] = Summary(keys)
    return summaries


def _size_of(arrival: Arrival) -> int:
    return len(arrival.entry.data) + len(arrival.payload or b"")
