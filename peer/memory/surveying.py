"""Is what is held sound, and how much is it?"""

from collections.abc import Sequence

import msgspec
import trio

from covey.gossip.memory.checking import check_all
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import NAMESPACE_BYTES, SHORT_ID_BYTES, read_entry
from covey.gossip.memory.namespace import Namespace
from covey.gossip.memory.tables import Table

from .exchanging import Exchanging
from .indexing import Indexer
from .ruling import Ruling
from .store import MemoryStore
from .views import MemoryStats, NamespaceView, VerifyView


class Surveying:
    """Looks at all that is held."""

    def __init__(
        self,
        memory: Memory,
        rows: MemoryStore,
        index: Indexer,
        exchanging: Exchanging,
        ruling: Ruling,
    ) -> None:
        self._memory = memory
        self._rows = rows
        self._index = index
        self._exchanging = exchanging
        self._ruling = ruling

    async def verify(self) -> VerifyView:
        """Check every signature, certificate, payload and index row against the signed headers."""
        began = trio.current_time()
        namespaces = {one.id: one for one in self._memory.namespaces()}
        sizes = {one: len(summary) for one, summary in self._rows.summaries.items()}
        standing = self._memory.standing

        def check() -> VerifyView:
            with self._rows.reading() as rows:
                found = check_all(rows, self._memory.mesh, namespaces, self._memory.judge, sizes)
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
        counted = await trio.to_thread.run_sync(self._namespace_views, namespaces)
        views = [
            msgspec.structs.replace(view, quota=policy.quota, policy=policy if policy.by else None)
            for view, policy in zip(counted, map(self._ruling.view, namespaces), strict=True)
        ]
        model = self._index.model()
        return MemoryStats(
            namespaces=tuple(views),
            entries=sum(len(one) for one in self._rows.summaries.values()),
            file_bytes=self._rows.file_bytes(),
            indexed=self._index.size,
            embedded=self._index.size - self._index.unembedded(),
            embedding_model=model.name if model is not None else None,
            steps=tuple(self._exchanging.steps()),
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
                    )
                )
        return views
