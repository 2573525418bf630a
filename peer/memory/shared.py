"""What can this device's users ask of the shared memory? Everything that the local API offers of it.

On top of the memory's driver (which writes and spreads), its rows, and the index. Nothing here
decides what is kept; it names things, asks for them, and shows them.
"""

import logging
from collections.abc import AsyncGenerator, Sequence

import trio

from covey.gossip.memory import reading, values
from covey.gossip.memory.commands import Forget, ForgetAuthor
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import ID_BYTES, EntryId, read_entry
from covey.gossip.memory.hybrid_clock import stamp_of
from covey.gossip.memory.namespace import Namespace
from covey.gossip.memory.reading import Remembered, State
from covey.gossip.memory.replica import Applied
from covey.gossip.memory.tables import Reading, Table
from covey.identity.errors import Misuse, NotAdmitted, NotFound, Unavailable
from covey.identity.keys import PeerId, public_key_of
from covey.peer.events import Changed, changes_of

from .carrying import Carrying
from .erasing import Erasing
from .exchanging import Exchanging
from .held import Held
from .indexing import UNREADABLE, Indexer
from .remembering import Remembering
from .ruling import Ruling
from .showing import value_views
from .store import MemoryStore
from .surroundings import Surroundings
from .surveying import Surveying
from .views import (
    EntryView,
    ExchangeView,
    ExportedEntry,
    ForgetRequest,
    ForgetView,
    ImportView,
    MemoryChange,
    MemoryStats,
    PolicyRequest,
    PolicyView,
    RecallHit,
    RecallView,
    StepView,
    SyncRequest,
    ValueView,
    VerifyView,
    WriteRequest,
)

log = logging.getLogger(__name__)

LISTED_MAX = 1000
# Hits of the index that turn out to be gone are replaced by the next ones.
SPARE_HITS = 10
SETTLE_S = 1.0
# Who forgets is told then whether it has left the file, too.
ERASED_S = 4.0
_TOLD = (State.SHOWN, State.IN_FORCE)


class SharedMemory:
    """Answers for the memory of one device. Run `serve` in a nursery."""

    def __init__(
        self, parts: Surroundings, memory: Memory, rows: MemoryStore, index: Indexer
    ) -> None:
        self._parts = parts
        self._memory = memory
        self._rows = rows
        self._index = index
        self._held = held = Held(parts, memory, rows)
        self._remembering = Remembering(parts, memory, rows, index, held)
        self._erasing = Erasing(rows.compact)
        self._exchanging = Exchanging(parts, memory)
        self._ruling = Ruling(parts, memory, held)
        self._surveying = Surveying(memory, rows, index, self._exchanging, self._ruling)
        self._carrying = Carrying(parts, memory, rows, held)
        memory.on_applied(self._applied)

    async def serve(self) -> None:
        """Keep the index, erase what was forgotten, and audit others, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._index.serve)
            nursery.start_soon(self._erasing.serve)
            nursery.start_soon(self._exchanging.audit)

    async def write(self, requests: Sequence[WriteRequest]) -> list[EntryView]:
        """Remember all of these, or none; durable on return. See `Remembering.write`."""
        return await self._remembering.write(requests)

    # Reading

    def entries(
        self,
        namespace: str | None,
        zone: str | None,
        author: str | None,
        limit: int,
        all_states: bool,
    ) -> list[EntryView]:
        """Return the newest entries, newest first; with `all_states` also those no longer shown."""
        limit = max(1, min(limit, LISTED_MAX))
        peer = self._parts.find_peer(author) if author is not None else None
        now_ms = self._parts.now_ms()
        found: list[tuple[Remembered, Namespace]] = []
        with self._rows.reading() as rows:
            for one in self._held.matching(namespace, zone):
                listed = reading.entries(
                    rows, one.id, now_ms, limit=limit, author=peer, shown_only=not all_states
                )
                found += [(entry, one) for entry in listed]
        found.sort(key=lambda pair: pair[0].order, reverse=True)
        return [self._held.view(entry, one) for entry, one in found[:limit]]

    def entry(self, id_or_prefix: str) -> EntryView:
        """Return an entry by id, or by a beginning of it that is unique."""
        found, namespace = self._held.find(id_or_prefix)
        return self._held.view(found, namespace)

    def value(self, namespace: str | None, zone: str | None, key: str) -> list[ValueView]:
        """Return what stands under a key, in each namespace that has it."""
        now_ms = self._parts.now_ms()
        views: list[ValueView] = []
        with self._rows.reading() as rows:
            for one in self._held.matching(namespace, zone):
                answer = values.value(rows, one.id, key, now_ms)
                views += value_views(answer, one, key, self._held.viewer(one), self._parts.name_of)
        if not views:
            raise NotFound(f"nothing stands under {key!r}; see: covey memory ls")
        return views

    def history(self, namespace: str | None, zone: str | None, key: str) -> list[EntryView]:
        """Return every author's entries under a key, newest first, with what became of each."""
        now_ms = self._parts.now_ms()
        views: list[EntryView] = []
        with self._rows.reading() as rows:
            for one in self._held.matching(namespace, zone):
                views += map(self._held.viewer(one), values.history(rows, one.id, key, now_ms))
        if not views:
            raise NotFound(f"nothing is held under {key!r}; see: covey memory ls")
        return sorted(views, key=lambda view: view.at_ms, reverse=True)

    async def recall(
        self, question: str, k: int, namespace: str | None, author: str | None
    ) -> RecallView:
        """Return the texts that answer a question best.

        Raises:
            Misuse: the question is empty or too long.
        """
        searched = [one for one in self._held.matching(namespace, None) if not one.is_own]
        vector = await self._index.vector_of(question) if question.strip() else None
        # Who has just remembered something expects to find it.
        await self._index.wait_settled(within_s=SETTLE_S)
        peer = self._parts.find_peer(author) if author is not None else None
        hits = await self._index.search(
            question,
            vector,
            k=min(k + SPARE_HITS, 100),
            namespaces=[one.id for one in searched],
            author=peer,
        )
        answers: list[RecallHit] = []
        with self._rows.reading() as rows:
            for hit in hits:
                found = self._held.by_id(rows, hit.id)
                if found is None or found[0].state is not State.SHOWN or len(answers) == k:
                    continue
                entry, one = found
                answers.append(
                    RecallHit(
                        score=round(hit.score, 4),
                        entry=self._held.view(entry, one),
                        by_words=hit.keyword_rank,
                        by_meaning=hit.vector_rank,
                        conflicts=self._conflicts(rows, entry, one),
                    )
                )
        return RecallView(
            question=question,
            hits=tuple(answers),
            searched=self._index.size,
            notes=self._notes(with_vector=vector is not None),
        )

    def _notes(self, *, with_vector: bool) -> tuple[str, ...]:
        notes: list[str] = []
        if self._index.model() is None:
            notes.append(
                "searched by words only: this device has no embedding model; "
                "get one with: covey models pull"
            )
        elif not with_vector:
            notes.append("searched by words only: the embedding model did not answer")
        elif (left := self._index.unembedded()) > 0:
            notes.append(f"{left} texts are not embedded yet; they are found by words only")
        if self._index.building:
            notes.append("the index is being made; ask again in a moment for all of it")
        elif (waiting := self._index.waiting) > 0:
            notes.append(f"{waiting} changes are not in the index yet")
        return tuple(notes)

    def _conflicts(
        self, rows: Reading, entry: Remembered, namespace: Namespace
    ) -> tuple[EntryView, ...]:
        if not entry.key:
            return ()
        answer = values.value(rows, namespace.id, entry.key, self._parts.now_ms())
        return tuple(
            self._held.view(other, namespace)
            for value in answer.values
            if isinstance(value, values.SharedValue) and value.is_conflict
            for other in value.values
            if other.id != entry.id
        )

    # Forgetting

    async def forget(self, request: ForgetRequest) -> ForgetView:
        """Take texts away, here now and elsewhere as it is heard of.

        Raises:
            Misuse: nothing is named, or somebody else's by who is no admin.
            NotFound: what is named is not held.
        """
        if bool(request.ids) == bool(request.author):
            raise Misuse("name what to forget: ids, or an author")
        if (trouble := self._parts.clock_trouble()) is not None:
            raise Unavailable(f"nothing is signed while the clock is wrong: {trouble}")
        forgettings = self._forgettings(request)
        if not forgettings:
            raise NotFound("nothing of that is held here; see: covey memory ls")
        records: list[str] = []
        forgotten = 0
        for namespace, command in forgettings:
            written = await self._memory.write(namespace, [command])
            records += [entry.id.hex() for entries in written.entries for entry in entries]
            forgotten += written.withdrawn
        erased = self._erasing.ends()
        if forgotten:
            with trio.move_on_after(ERASED_S):
                await erased.wait()
        return ForgetView(
            forgotten=forgotten, records=tuple(records), erased=erased.is_set() or not forgotten
        )

    def _forgettings(self, request: ForgetRequest) -> list[tuple[Namespace, Forget | ForgetAuthor]]:
        if request.author is not None:
            author = self._parts.find_peer(request.author)
            self._check_may_forget(author)
            before = None if request.before_ms is None else stamp_of(request.before_ms - 1) + 1
            return [
                (one, ForgetAuthor(public_key_of(author), before))
                for one in self._held.matching(request.namespace, None)
                if not one.is_own and self._has_entries_of(one, author)
            ]
        by_namespace: dict[Namespace, list[EntryId]] = {}
        for name in request.ids:
            found, namespace = self._held.find(name)
            if namespace.is_own:
                raise Misuse(
                    f"{namespace.name} is the mesh's own, and nothing in it is forgotten; "
                    "to put a member out: covey revoke"
                )
            self._check_may_forget(found.author)
            by_namespace.setdefault(namespace, []).append(found.id)
        return [(one, Forget(tuple(ids))) for one, ids in by_namespace.items()]

    def _check_may_forget(self, author: PeerId) -> None:
        if author != self._parts.me and not self._parts.is_admin:
            who = self._parts.name_of(author)
            raise NotAdmitted(
                "role", f"only {who}, who wrote it, and admins can forget it; ask one of them"
            )

    def _has_entries_of(self, namespace: Namespace, author: PeerId) -> bool:
        with self._rows.reading() as rows:
            listed = reading.entries(
                rows, namespace.id, self._parts.now_ms(), limit=1, author=author
            )
        return bool(listed)

    # Who may write

    def policy(self, namespace: str, zone: str) -> PolicyView:
        """Return who may write in a namespace, and how much. See `Ruling.policy`."""
        return self._ruling.policy(namespace, zone)

    async def state_policy(self, request: PolicyRequest) -> PolicyView:
        """Say who may write in a namespace, and how much. See `Ruling.state`."""
        return await self._ruling.state(request)

    # Others, and the whole of it

    async def sync(self, request: SyncRequest) -> list[ExchangeView]:
        """Compare with a linked peer, or all of them. See `Exchanging.sync`."""
        return await self._exchanging.sync(request)

    def steps(self) -> list[StepView]:
        """Return how far each known peer and this one hold the same."""
        return self._exchanging.steps()

    async def verify(self) -> VerifyView:
        """Check every signature, certificate, payload and index row against the signed headers."""
        return await self._surveying.verify()

    async def stats(self) -> MemoryStats:
        """Return the memory at a glance."""
        return await self._surveying.stats()

    def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        """Give what is held as JSON lines, each entry as it was signed. See `Carrying.export`."""
        return self._carrying.export(namespace)

    async def import_(self, lines: Sequence[ExportedEntry]) -> ImportView:
        """Take in what was exported, each entry judged as if a peer had sent it."""
        return await self._carrying.import_(lines)

    # What changed

    def _applied(self, applied: Applied) -> None:
        """Note what a transaction changed. An error here would be the daemon's end, so what entries
        say is looked at by others, later.
        """
        self._index.applied(applied)
        self._held.doubt(author for _, author in applied.doubled)
        self._erasing.applied(applied)
        for change in changes_of(applied):
            namespace = self._memory.namespace(change.namespace)
            if namespace is not None and not namespace.is_own:
                self._parts.tell(change)

    def change(self, changed: Changed) -> MemoryChange:
        """Return a change as it is told: what is gone meanwhile without what it said."""
        namespace = self._memory.namespace(changed.namespace)
        assert namespace is not None, "what was told of stays known"
        now_ms = self._parts.now_ms()
        added: list[EntryView] = []
        with self._rows.reading() as rows:
            for place in changed.shown:
                if (data := rows.get(Table.ENTRY, place)) is None:
                    continue
                try:
                    found = reading.remembered(rows, read_entry(data), now_ms)
                    view = self._held.view(found, namespace)
                except UNREADABLE as error:
                    log.warning("memory.skipped", extra={"entry": place.hex(), "why": str(error)})
                    continue
                if found.state in _TOLD:
                    added.append(view)
        return MemoryChange(
            namespace=namespace.name,
            zone=namespace.zone,
            added=tuple(added),
            gone=tuple(place[-ID_BYTES:].hex() for place in changed.hidden),
        )
