"""What can this device's users ask of the shared memory? Everything that the local API offers of it.

On top of the memory's driver (which writes and spreads), its rows, and the index. Nothing here
decides what is kept; it names things, asks for them, and shows them.
"""

import base64
import dataclasses
import fnmatch
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec
import trio

from covey.gossip.memory import reading
from covey.gossip.memory.checking import check_all
from covey.gossip.memory.commands import Command, Forget, ForgetAuthor, Note
from covey.gossip.memory.driver import Memory, Written
from covey.gossip.memory.entry import (
    ID_BYTES,
    NAMESPACE_BYTES,
    SHORT_ID_BYTES,
    Entry,
    EntryId,
    read_entry,
)
from covey.gossip.memory.hybrid_clock import stamp_of
from covey.gossip.memory.kinds import Lifetime, Type, kind_of
from covey.gossip.memory.messages import Item
from covey.gossip.memory.namespace import DEVICE, MESH, Namespace, named_by_user, namespace_of
from covey.gossip.memory.payload import Embedding, Provenance
from covey.gossip.memory.reading import Remembered, State
from covey.gossip.memory.replica import Applied, Quotas
from covey.gossip.memory.tables import Reading, Table
from covey.identity.errors import Malformed, Misuse, NotAdmitted, NotFound, Unavailable
from covey.identity.keys import PeerId, public_key_of

from .auditing import Audits
from .erasing import Erasing
from .events import Changed, changes_of
from .indexing import UNREADABLE, Indexer, packed
from .memory_intake import command_of, lifetime_of, ttl_ms_of
from .memory_showing import entry_view, exchange_view, source_view, step_view, value_views
from .memory_store import MemoryStore
from .memory_views import (
    IMPORT_LINES_MAX,
    WRITES_MAX,
    EntryView,
    ExchangeView,
    ExportedEntry,
    ForgetRequest,
    ForgetView,
    ImportView,
    MemoryChange,
    MemoryStats,
    NamespaceView,
    RecallHit,
    RecallView,
    SourceView,
    StepView,
    SyncRequest,
    ValueView,
    VerifyView,
    WriteRequest,
)

log = logging.getLogger(__name__)

LISTED_MAX = 1000
SYNC_S_MAX = 600.0
SALT_BYTES = 32
# Hits of the index that turn out to be gone are replaced by the next ones.
SPARE_HITS = 10
SETTLE_S = 1.0
# Who forgets is told then whether it has left the file, too.
ERASED_S = 4.0
EXPORT_PAGE = 200
_TOLD = (State.SHOWN, State.IN_FORCE)
_ENDED = ("in step", "apart", "muted")

Summarize = Callable[[str], Awaitable[tuple[str, str]]]
"""Returns this device's summary of a raw text, and the name of the model that worded it."""


@dataclass(slots=True)
class Surroundings:
    """What the shared memory is asked with."""

    me: PeerId
    is_admin: bool
    zones: frozenset[str]
    now_ms: Callable[[], int]
    draw: Callable[[int], bytes]
    name_of: Callable[[str], str]
    """What a peer calls itself; its id if that is not known."""
    find_peer: Callable[[str], PeerId]
    """Returns the peer of that name or id, or raises NotFound."""
    known_peers: Callable[[], Iterable[PeerId]]
    clock_trouble: Callable[[], str | None]
    """Why this device's clock cannot be trusted to sign with, if so."""
    summarize: Summarize
    tell: Callable[[Changed], None]
    """Tells who watches of a change, which they look at by `change`."""


class SharedMemory:
    """Answers for the memory of one device. Run `serve` in a nursery."""

    def __init__(
        self, parts: Surroundings, memory: Memory, rows: MemoryStore, index: Indexer
    ) -> None:
        self._parts = parts
        self._memory = memory
        self._rows = rows
        self._index = index
        self._stepped = trio.Event()
        self._erasing = Erasing(rows.compact)
        self._doubtful: set[bytes] = set()
        self._audits = Audits(parts.me)
        memory.on_applied(self._applied)
        memory.on_step(self._step_changed)

    async def serve(self) -> None:
        """Keep the index, erase what was forgotten, and audit others, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._index.serve)
            nursery.start_soon(self._erasing.serve)
            nursery.start_soon(self._audit)

    # Writing

    async def write(self, requests: Sequence[WriteRequest]) -> list[EntryView]:
        """Remember all of these, or none; durable on return.

        Returns:
            For each the entry that says it: a new one, or the one that says as much already.

        Raises:
            Misuse: one of them cannot be remembered so.
            Unavailable: the disk does not take them, or this device's clock is wrong.
        """
        if not 1 <= len(requests) <= WRITES_MAX:
            raise Misuse(f"1 to {WRITES_MAX} things are remembered at once, not {len(requests)}")
        if (trouble := self._parts.clock_trouble()) is not None:
            raise Unavailable(f"nothing is signed while the clock is wrong: {trouble}")
        first = requests[0]
        for one in requests:
            same = (one.namespace, one.zone, one.lifetime, one.ttl_s)
            if same != (first.namespace, first.zone, first.lifetime, first.ttl_s):
                raise Misuse("what is remembered together has one namespace, zone and lifetime")
        namespace = self._writable(first.zone, first.namespace)
        older = [self._to_renew(one, namespace) for one in requests]
        requests = [
            await self._worded(_said_again(one, before))
            for one, before in zip(requests, older, strict=True)
        ]
        # One text is embedded at once; many are when there is time.
        embedding = await self._embedding(requests[0]) if len(requests) == 1 else None
        commands = [
            self._command(one, before, embedding)
            for one, before in zip(requests, older, strict=True)
        ]
        written = await self._memory.write(
            namespace, commands, lifetime=lifetime_of(first), ttl_ms=ttl_ms_of(first)
        )
        return self._views_of(written, requests, namespace)

    def _command(
        self, request: WriteRequest, again: Remembered | None, embedding: Embedding | None
    ) -> Command:
        command = command_of(request, self._id_of, embedding)
        if again is not None and isinstance(command, Note) and not command.derived_from:
            # Those may not be held any more; the older note's word is enough.
            return dataclasses.replace(command, derived_from=again.derived_from)
        return command

    def _to_renew(self, request: WriteRequest, namespace: Namespace) -> Remembered | None:
        """Return the note that is to be said again as it is; None: it says something of its own.

        Raises:
            Misuse: it is in another namespace, or nothing is left to be said again.
        """
        if request.renews is None:
            return None
        found, where = self._find(request.renews)
        if where != namespace:
            raise Misuse(
                f"that entry is in {where.name}, zone {where.zone}; what renews it is written there"
            )
        if request.value is not None or request.summarize:
            return None
        if found.type is not Type.NOTE or found.state is not State.SHOWN:
            what = "no note" if found.type is not Type.NOTE else str(found.state)
            raise Misuse(f"that entry is {what}, and cannot be said again as it is; give a text")
        return found

    def _views_of(
        self, written: Written, requests: Sequence[WriteRequest], namespace: Namespace
    ) -> list[EntryView]:
        now_ms = self._parts.now_ms()
        with self._rows.reading() as rows:
            says = [
                entries[0] if entries else self._said_before(rows, request, namespace)
                for entries, request in zip(written.entries, requests, strict=True)
            ]
            return [self._view(reading.remembered(rows, one, now_ms), namespace) for one in says]

    def _said_before(self, rows: Reading, request: WriteRequest, namespace: Namespace) -> Entry:
        """Return this device's number under a key, which says as much as the request."""
        assert request.key is not None, "only what stands under a key can have been said before"
        kind = kind_of(Type[request.type.upper()], Lifetime.PINNED)
        path = reading.path_of(namespace.id, reading.checked_key(request.key))
        me = public_key_of(self._parts.me)
        head = reading.head_at(rows, namespace.id, me, kind, path)
        if head is None:
            raise Unavailable("what stood under the key went just now; try again")
        return head

    async def _worded(self, request: WriteRequest) -> WriteRequest:
        """Return the request with this device's summary in place of the raw text."""
        if not request.summarize:
            return request
        if request.type != "note" or not isinstance(request.value, str):
            raise Misuse("only the text of a note can be summarized")
        raw = request.value
        summary, model = await self._parts.summarize(raw)
        name = request.sources[0].name if request.sources else "text"
        source = SourceView(
            name=name,
            sha256=hashlib.sha256(raw.encode()).hexdigest(),
            size_bytes=len(raw.encode()),
            observations=sum(1 for line in raw.splitlines() if line.strip()),
        )
        return msgspec.structs.replace(
            request,
            value=summary,
            sources=(source, *request.sources[1:]),
            model=model,
            method=request.method or "summarize",
        )

    async def _embedding(self, request: WriteRequest) -> Embedding | None:
        model = self._index.model()
        if request.type != "note" or model is None or not isinstance(request.value, str):
            return None
        vector = await self._index.vector_of(request.value)
        return None if vector is None else Embedding(model.digest, packed(vector))

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
            for one in self._matching(namespace, zone):
                listed = reading.entries(
                    rows, one.id, now_ms, limit=limit, author=peer, shown_only=not all_states
                )
                found += [(entry, one) for entry in listed]
        found.sort(key=lambda pair: pair[0].order, reverse=True)
        return [self._view(entry, one) for entry, one in found[:limit]]

    def entry(self, id_or_prefix: str) -> EntryView:
        """Return an entry by id, or by a beginning of it that is unique."""
        found, namespace = self._find(id_or_prefix)
        return self._view(found, namespace)

    def value(self, namespace: str | None, zone: str | None, key: str) -> list[ValueView]:
        """Return what stands under a key, in each namespace that has it."""
        now_ms = self._parts.now_ms()
        views: list[ValueView] = []
        with self._rows.reading() as rows:
            for one in self._matching(namespace, zone):
                answer = reading.value(rows, one.id, key, now_ms)
                views += value_views(answer, one, key, self._viewer(one), self._parts.name_of)
        if not views:
            raise NotFound(f"nothing stands under {key!r}; see: covey memory ls")
        return views

    def history(self, namespace: str | None, zone: str | None, key: str) -> list[EntryView]:
        """Return every author's entries under a key, newest first, with what became of each."""
        now_ms = self._parts.now_ms()
        views: list[EntryView] = []
        with self._rows.reading() as rows:
            for one in self._matching(namespace, zone):
                views += map(self._viewer(one), reading.history(rows, one.id, key, now_ms))
        if not views:
            raise NotFound(f"nothing was ever held under {key!r}; see: covey memory ls")
        return sorted(views, key=lambda view: view.at_ms, reverse=True)

    async def recall(
        self, question: str, k: int, namespace: str | None, author: str | None
    ) -> RecallView:
        """Return the texts that answer a question best.

        Raises:
            Misuse: the question is empty or too long.
        """
        searched = [one for one in self._matching(namespace, None) if not one.is_own]
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
                found = self._held(rows, hit.id)
                if found is None or found[0].state is not State.SHOWN or len(answers) == k:
                    continue
                entry, one = found
                answers.append(
                    RecallHit(
                        score=round(hit.score, 4),
                        entry=self._view(entry, one),
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
        answer = reading.value(rows, namespace.id, entry.key, self._parts.now_ms())
        return tuple(
            self._view(other, namespace)
            for value in answer.values
            if isinstance(value, reading.SharedValue) and value.is_conflict
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
                for one in self._matching(request.namespace, None)
                if not one.is_own and self._has_entries_of(one, author)
            ]
        by_namespace: dict[Namespace, list[EntryId]] = {}
        for name in request.ids:
            found, namespace = self._find(name)
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

    # Others

    async def sync(self, request: SyncRequest) -> list[ExchangeView]:
        """Compare with a linked peer, or all of them, and return what that found and moved.

        Raises:
            NotFound: there is no such peer.
            Unavailable: it is not linked.
        """
        spreading = self._memory.spreading
        if request.peer is None:
            peers = [one.peer for one in spreading.neighbours()]
        else:
            peers = [self._parts.find_peer(request.peer)]
        for peer in peers:
            if spreading.neighbour(peer) is None:
                who = self._parts.name_of(peer)
                raise Unavailable(f"{who} is not in reach now; it is compared with when it is back")
            salt = self._parts.draw(SALT_BYTES) if request.audit else None
            self._memory.compare(peer, salt=salt)
        with trio.move_on_after(min(request.timeout_s, SYNC_S_MAX)):
            while any(self._is_comparing(peer) for peer in peers):
                await self._stepped.wait()
        now = trio.current_time()
        return [
            exchange_view(one.exchange, self._step(one.peer), now)
            for peer in peers
            if (one := spreading.neighbour(peer)) is not None
        ]

    async def _audit(self) -> None:
        """Audit one linked peer a day, until cancelled."""
        spreading = self._memory.spreading
        while True:
            await trio.sleep(self._audits.look_s)
            quiet = [
                one.peer
                for one in spreading.neighbours()
                if one.state == "in step" and not one.is_comparing
            ]
            peer = self._audits.take_next(quiet, self._parts.now_ms())
            if peer is not None:
                log.info("memory.audit_begun", extra={"peer": peer})
                self._memory.compare(peer, salt=self._parts.draw(SALT_BYTES))

    def steps(self) -> list[StepView]:
        """Return how far each known peer and this one hold the same."""
        return [self._step(peer) for peer in self._parts.known_peers()]

    def _step(self, peer: PeerId) -> StepView:
        neighbour = self._memory.spreading.neighbour(peer)
        name = self._parts.name_of
        if neighbour is None:
            who = name(peer)
            sentence = f"{who} is not in reach; what is new here waits for it"
            return StepView(peer=peer, peer_name=who, state="offline", sentence=sentence)
        return step_view(neighbour, name, trio.current_time(), self._parts.now_ms())

    def _is_comparing(self, peer: PeerId) -> bool:
        neighbour = self._memory.spreading.neighbour(peer)
        return neighbour is not None and (
            neighbour.state not in _ENDED or bool(neighbour.waiting or neighbour.lacking)
        )

    # The whole of it

    async def verify(self) -> VerifyView:
        """Check every signature, certificate, payload and index row against the signed headers."""
        began = trio.current_time()
        namespaces = {one.id: one for one in self._memory.namespaces()}
        sizes = {one: len(summary) for one, summary in self._rows.summaries.items()}
        standing = self._memory.standing

        def check() -> VerifyView:
            with self._rows.reading() as rows:
                found = check_all(rows, self._memory.mesh, namespaces, standing.judge, sizes)
            return VerifyView(
                entries=found.entries,
                payloads=found.payloads,
                certificates=standing.size,
                problems=tuple(found.problems),
                took_ms=0.0,
            )

        view = await trio.to_thread.run_sync(check)
        took_ms = round((trio.current_time() - began) * 1000, 1)
        return msgspec.structs.replace(view, took_ms=took_ms)

    async def stats(self) -> MemoryStats:
        """Return the memory at a glance."""
        namespaces = self._memory.namespaces()
        views = await trio.to_thread.run_sync(self._namespace_views, namespaces)
        model = self._index.model()
        return MemoryStats(
            namespaces=tuple(views),
            entries=sum(len(one) for one in self._rows.summaries.values()),
            file_bytes=self._rows.file_bytes(),
            indexed=self._index.size,
            embedded=self._index.size - self._index.unembedded(),
            embedding_model=model.name if model is not None else None,
            steps=tuple(self.steps()),
            refused=self._memory.spreading.refused,
        )

    def _namespace_views(self, namespaces: Sequence[Namespace]) -> list[NamespaceView]:
        views: list[NamespaceView] = []
        with self._rows.reading() as rows:
            for one in namespaces:
                newest = next(rows.scan(Table.ENTRY, one.id, reverse=True), None)
                authors = {
                    row[NAMESPACE_BYTES : NAMESPACE_BYTES + SHORT_ID_BYTES]
                    for row, _ in rows.scan(Table.COUNT, one.id)
                }
                views.append(
                    NamespaceView(
                        name=one.name,
                        zone=one.zone,
                        entries=sum(1 for _ in rows.scan(Table.ENTRY, one.id)),
                        shown=sum(1 for _ in rows.scan(Table.PAYLOAD, one.id)),
                        authors=len(authors),
                        newest_ms=read_entry(newest[1]).at_ms if newest is not None else None,
                        quota=Quotas().entries,
                    )
                )
        return views

    async def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        """Give everything that is held as JSON lines, each entry as it was signed."""
        for one in self._matching(namespace, None):
            last = b""
            while True:
                lines, last = await trio.to_thread.run_sync(self._exported, one, last)
                if not lines:
                    break
                yield b"".join(lines)

    def _exported(self, namespace: Namespace, last: bytes) -> tuple[list[bytes], bytes]:
        lines: list[bytes] = []
        now_ms = self._parts.now_ms()
        standing = self._memory.standing
        with self._rows.reading() as rows:
            start = last + b"\x00" if last else namespace.id
            for place, data in rows.scan(Table.ENTRY, start, namespace.id + b"\xff" * 41):
                last = place
                entry = read_entry(data)
                payload = rows.get(Table.PAYLOAD, place)
                known = standing.certificate(entry.header.certificate)
                line = ExportedEntry(
                    zone=namespace.zone,
                    namespace=namespace.name,
                    header=_base64(data),
                    payload=None if payload is None else _base64(payload),
                    chain=tuple(map(_base64, known.chain)) if known is not None else (),
                    shows=None
                    if namespace.is_own
                    else self._view(reading.remembered(rows, entry, now_ms), namespace),
                )
                lines.append(msgspec.json.encode(line) + b"\n")
                if len(lines) == EXPORT_PAGE:
                    break
        return lines, last

    async def import_(self, lines: Sequence[ExportedEntry]) -> ImportView:
        """Take in what was exported, each entry judged as if a peer had sent it.

        Raises:
            Malformed: a line is none of an export.
        """
        if len(lines) > IMPORT_LINES_MAX:
            raise Misuse(f"at most {IMPORT_LINES_MAX} lines are imported at once, not {len(lines)}")
        taken = 0
        refused: list[str] = []
        groups: dict[tuple[str, str], list[Item]] = {}
        for line in lines:
            payload = None if line.payload is None else _unbase64(line.payload)
            item = Item(_unbase64(line.header), payload)
            groups.setdefault((line.zone, line.namespace), []).append(item)
            if line.chain:
                try:
                    self._memory.standing.learn(tuple(map(_unbase64, line.chain)))
                except NotAdmitted as error:
                    refused.append(f"{line.namespace}: {error}")
        for (zone, name), items in groups.items():
            if zone not in (MESH, DEVICE) and zone not in self._parts.zones:
                refused.append(f"{name}: this device is not in zone {zone}")
                continue
            namespace = namespace_of(self._memory.mesh, zone, name)
            more, left = await self._memory.take_in(namespace, items)
            taken += more
            refused += [f"{name} {id_}: {why}".replace("  ", " ") for id_, why in left]
        return ImportView(taken=taken, refused=tuple(refused))

    # Parts

    def _writable(self, zone: str, name: str) -> Namespace:
        if zone not in (MESH, DEVICE) and zone not in self._parts.zones:
            mine = ", ".join(sorted(self._parts.zones)) or "none besides mesh"
            raise Misuse(
                f"this device is not in zone {zone!r} (it is in: {mine}); "
                "an admin grants zones with: covey invite --zone"
            )
        return named_by_user(self._memory.mesh, zone, name)

    def _matching(self, pattern: str | None, zone: str | None) -> list[Namespace]:
        """Return the namespaces of a name, or that a pattern as plant/* matches; not the books."""
        return [
            one
            for one in self._memory.namespaces()
            if (zone is None or one.zone == zone)
            and (not one.is_own if pattern is None else fnmatch.fnmatchcase(one.name, pattern))
        ]

    def _find(self, id_or_prefix: str) -> tuple[Remembered, Namespace]:
        now_ms = self._parts.now_ms()
        found: list[tuple[Remembered, Namespace]] = []
        with self._rows.reading() as rows:
            for one in self._memory.namespaces():
                try:
                    found.append((reading.entry(rows, one.id, id_or_prefix, now_ms), one))
                except NotFound:
                    continue
        if not found:
            raise NotFound(
                f"nothing is held here under the id {id_or_prefix}; see: covey memory ls"
            )
        if len(found) > 1:
            raise Misuse(f"several ids begin with {id_or_prefix}; give more digits")
        return found[0]

    def _id_of(self, id_or_prefix: str) -> EntryId:
        return self._find(id_or_prefix)[0].id

    def _held(self, rows: Reading, entry_id: bytes) -> tuple[Remembered, Namespace] | None:
        now_ms = self._parts.now_ms()
        for one in self._memory.namespaces():
            found = reading.held_by_id(rows, one.id, entry_id, now_ms)
            if found is not None:
                return reading.remembered(rows, found, now_ms), one
        return None

    def _view(self, entry: Remembered, namespace: Namespace) -> EntryView:
        doubtful = ""
        if public_key_of(entry.author) in self._doubtful:
            doubtful = "its author wrote two entries at one time: it, or its key, is in two places"
        return entry_view(entry, namespace, self._parts.name_of, doubtful=doubtful)

    def _viewer(self, namespace: Namespace) -> Callable[[Remembered], EntryView]:
        return lambda entry: self._view(entry, namespace)

    # What changed

    def _applied(self, applied: Applied) -> None:
        """Note what a transaction changed. An error here would be the daemon's end, so what entries
        say is looked at by others, later.
        """
        self._index.applied(applied)
        self._doubtful.update(author for _, author in applied.doubled)
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
                    view = self._view(found, namespace)
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

    def _step_changed(self, _peer: PeerId) -> None:
        self._stepped.set()
        self._stepped = trio.Event()


def _said_again(request: WriteRequest, again: Remembered | None) -> WriteRequest:
    """Return the request with the text and the provenance of the note that it says again."""
    if again is None:
        return request
    provenance = again.provenance or Provenance()
    return msgspec.structs.replace(
        request,
        value=again.value,
        sources=request.sources or tuple(map(source_view, provenance.sources)),
        model=request.model or provenance.model,
        method=request.method or provenance.method,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Malformed("a line of the export is damaged") from error
