"""How does a request become entries of this device? Worded, embedded, signed and durable."""

import dataclasses
import hashlib
from collections.abc import Sequence

import msgspec

from covey.gossip.memory import paths, reading
from covey.gossip.memory.commands import Command, Note
from covey.gossip.memory.driver import Memory, Written
from covey.gossip.memory.entry import Entry
from covey.gossip.memory.kinds import Lifetime, Type, kind_of
from covey.gossip.memory.namespace import Namespace
from covey.gossip.memory.payload import Embedding, Provenance
from covey.gossip.memory.reading import Remembered, State
from covey.gossip.memory.tables import Reading
from covey.identity.errors import Misuse, Unavailable
from covey.identity.keys import public_key_of

from .held import Held
from .indexing import Indexer, packed
from .intake import command_of, lifetime_of, ttl_ms_of
from .showing import source_view
from .store import MemoryStore
from .surroundings import Surroundings
from .views import WRITES_MAX, EntryView, SourceView, WriteRequest


class Remembering:
    """Remembers for users."""

    def __init__(
        self, parts: Surroundings, memory: Memory, rows: MemoryStore, index: Indexer, held: Held
    ) -> None:
        self._parts = parts
        self._memory = memory
        self._rows = rows
        self._index = index
        self._held = held

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
        namespace = self._held.writable(first.zone, first.namespace)
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
        command = command_of(request, self._held.id_of, embedding)
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
        found, where = self._held.find(request.renews)
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
            return [
                self._held.view(reading.remembered(rows, one, now_ms), namespace) for one in says
            ]

    def _said_before(self, rows: Reading, request: WriteRequest, namespace: Namespace) -> Entry:
        """Return this device's number under a key, which says as much as the request."""
        assert request.key is not None, "only what stands under a key can have been said before"
        kind = kind_of(Type[request.type.upper()], Lifetime.PINNED)
        path = paths.path_of(namespace.id, paths.checked_key(request.key))
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
