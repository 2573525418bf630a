"""How does recall follow the store? What is shown is put into the index, what is gone leaves it.

The index is in memory and made anew at every start, in the background. A text is embedded by its
author, or by this device when it finds the time; vectors made here rest in the store beside the
text, and go with it.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import trio
from numpy.typing import NDArray

from covey.gossip.memory.entry import ID_BYTES, NAMESPACE_BYTES, NamespaceId, read_entry
from covey.gossip.memory.kinds import Type
from covey.gossip.memory.payload import decode_payload
from covey.gossip.memory.reading import Remembered, State, remembered
from covey.gossip.memory.replica import Applied, Place, Replica
from covey.gossip.memory.tables import Reading, Table, Tables
from covey.identity.errors import CoveyError, Malformed
from covey.identity.keys import PeerId
from covey.inference.engine import ModelInfo
from covey.inference.errors import ModelError
from covey.inference.pool import Pool

from .recall import Hit, Passage, Recall
from .store import MemoryStore

log = logging.getLogger(__name__)

INDEXED = frozenset({Type.NOTE, Type.REGISTER, Type.SHARED, Type.ELEMENT, Type.LINE})
CHUNK = 250
EMBED_AT_ONCE = 16
EMBED_S = 30.0
QUESTION_S = 5.0
# After a model failed, or while there is none.
EMBED_AGAIN_S = 30.0
# What a damaged row, or an entry that is none of this version, may raise where it is read.
UNREADABLE = (CoveyError, ValueError, ArithmeticError, RecursionError)


class Indexer:
    """Keeps the index. Run `serve` in a nursery.

    Args:
        rows: the store.
        pool: the models.
        now_ms: the wall clock.
        is_searched: whether a namespace's texts are for users; the mesh's own are not.
    """

    def __init__(
        self,
        rows: MemoryStore,
        pool: Pool,
        now_ms: Callable[[], int],
        is_searched: Callable[[NamespaceId], bool],
    ) -> None:
        self._rows = rows
        self._pool = pool
        self._now_ms = now_ms
        self._is_searched = is_searched
        self._recall = Recall()
        self._model: ModelInfo | None = None
        """Whose vectors the index holds."""
        self._places: dict[bytes, Place] = {}
        """Of what has no vector yet, by id; none while there is no model that could make it."""
        # One at a time: a search waits at most for one chunk.
        self._limiter = trio.CapacityLimiter(1)
        self._touched: dict[Place, None] = {}
        self._due = trio.Event()
        self._embed_due = trio.Event()
        self._settled = trio.Event()
        self._working = False
        self.building = True
        """The first pass over the store is not over."""

    async def serve(self) -> None:
        """Index until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._embed)
                await self._build()
                while True:
                    await self._due.wait()
                    self._due = trio.Event()
                    if self.model() != self._model:
                        await self._build()
                    self._working = True
                    while self._touched:
                        await self._index(self._some_touched())
                    self._working = False
                    self._settled.set()
                    self._settled = trio.Event()
        finally:
            self._recall.close()

    def _some_touched(self) -> list[Place]:
        places = list(self._touched)[:CHUNK]
        for place in places:
            del self._touched[place]
        return places

    async def wait_settled(self, *, within_s: float) -> None:
        """Return once the index shows what is durable by now, or after `within_s`."""
        with trio.move_on_after(within_s):
            while self._touched or self._working:
                await self._settled.wait()

    def models_changed(self) -> None:
        """The device has other models: if the one for embedding is another, the index is made anew."""
        self._due.set()
        self._embed_due.set()

    def applied(self, applied: Applied) -> None:
        """Note what a transaction changed. An error here would be the daemon's end: nothing is read."""
        for place in (*applied.shown, *applied.hidden):
            if self._is_searched(NamespaceId(place[:NAMESPACE_BYTES])):
                self._touched[place] = None
        if self._touched:
            self._due.set()

    @property
    def size(self) -> int:
        """How many texts can be found."""
        return len(self._recall)

    @property
    def waiting(self) -> int:
        """How many changes the index does not show yet."""
        return len(self._touched)

    def unembedded(self) -> int:
        """Return how many texts have no vector, at most 1000."""
        return len(self._recall.unembedded(1000))

    def model(self) -> ModelInfo | None:
        """Return this device's embedding model, if it has one."""
        try:
            return self._pool.info(None, "embedding")
        except ModelError:
            return None

    async def vector_of(
        self, text: str, *, within_s: float = QUESTION_S
    ) -> NDArray[np.float32] | None:
        """Return the text's vector; None if no model answers in time."""
        if self.model() is None:
            return None
        try:
            vectors = await self._pool.embed((text,), deadline_s=within_s)
        except ModelError as error:
            log.warning("memory.not_embedded", extra={"why": str(error)})
            return None
        return np.asarray(vectors[0], dtype=np.float32)

    async def search(
        self,
        question: str,
        vector: NDArray[np.float32] | None,
        *,
        k: int,
        namespaces: Collection[NamespaceId],
        author: PeerId | None,
    ) -> list[Hit]:
        """Return the best answers of the index; what has gone since is the caller's to leave out."""
        return await trio.to_thread.run_sync(
            lambda: self._recall.search(
                question,
                vector,
                k=k,
                namespaces=namespaces,
                author=author,
                now_ms=self._now_ms(),
            ),
            limiter=self._limiter,
        )

    # Filling

    async def _build(self) -> None:
        """Make the index anew from the store."""
        self.building = True
        self._model = self.model()
        before, self._recall = (
            self._recall,
            Recall(self._model.dimensions or None if self._model else None),
        )
        before.close()
        self._places.clear()
        last = b""
        while True:
            places = await trio.to_thread.run_sync(self._places_after, last)
            if not places:
                self.building = False
                return
            last = places[-1]
            wanted = [p for p in places if self._is_searched(NamespaceId(p[:NAMESPACE_BYTES]))]
            await self._index(wanted)

    def _places_after(self, last: Place) -> list[Place]:
        places: list[Place] = []
        with self._rows.reading() as reading:
            for place, _ in reading.scan(Table.PAYLOAD, last + b"\x00", b"\xff" * 64):
                places.append(place)
                if len(places) == CHUNK:
                    break
        return places

    async def _index(self, places: Sequence[Place]) -> None:
        try:
            await trio.to_thread.run_sync(self._index_now, places, limiter=self._limiter)
        except CoveyError as error:
            log.error("memory.not_indexed", extra={"why": str(error)})
        self._embed_due.set()

    def _index_now(self, places: Sequence[Place]) -> None:
        """Put in what is shown and take out what is not. In a thread."""
        passages: list[Passage] = []
        gone: list[bytes] = []
        with self._rows.reading() as reading:
            for place in places:
                try:
                    passage = self._passage(reading, place)
                except UNREADABLE as error:
                    log.warning("memory.skipped", extra={"entry": place.hex(), "why": str(error)})
                    passage = None
                if passage is None:
                    gone.append(place[-ID_BYTES:])
                    self._places.pop(place[-ID_BYTES:], None)
                else:
                    passages.append(passage)
                    if passage.vector is None and self._model is not None:
                        self._places[passage.id] = place
        self._recall.remove(gone)
        self._recall.add(passages)

    def _passage(self, reading: Reading, place: Place) -> Passage | None:
        data = reading.get(Table.ENTRY, place)
        if data is None:
            return None
        entry = read_entry(data)
        found = remembered(reading, entry, self._now_ms())
        if found.type not in INDEXED or found.state is not State.SHOWN:
            return None
        return Passage(
            id=entry.id,
            namespace=entry.header.namespace,
            author=found.author,
            text=text_of(found),
            at_ms=found.at_ms,
            expires_ms=found.expires_ms,
            vector=_vector(reading, place, self._model),
        )

    # Embedding

    async def _embed(self) -> None:
        """Give vectors to texts that came without, until cancelled."""
        while True:
            await self._embed_due.wait()
            self._embed_due = trio.Event()
            while self.model() is not None and (some := self._recall.unembedded(EMBED_AT_ONCE)):
                if not await self._embed_some(some):
                    await trio.sleep(EMBED_AGAIN_S)

    async def _embed_some(self, some: Sequence[tuple[bytes, str]]) -> bool:
        model = self._model
        if model is None or model != self.model():
            return False
        try:
            vectors = await self._pool.embed([text for _, text in some], deadline_s=EMBED_S)
        except ModelError as error:
            log.warning("memory.not_embedded", extra={"why": str(error)})
            return False
        made = {
            id_: np.asarray(vector, dtype=np.float32)
            for (id_, _), vector in zip(some, vectors, strict=True)
        }
        places = {place: made[id_] for id_ in made if (place := self._places.pop(id_, None))}
        try:
            await trio.to_thread.run_sync(
                self._recall.embed, list(made.items()), limiter=self._limiter
            )
            await self._rows.run(_keep_vectors(model.digest, places))
        except CoveyError as error:
            log.warning("memory.not_embedded", extra={"why": str(error)})
            return False
        return True


def text_of(entry: Remembered) -> str:
    """Return what an entry is found by."""
    return (
        f"{entry.key}: {entry.value}" if entry.key and entry.type is not Type.NOTE else entry.value
    )


def packed(vector: NDArray[np.float32]) -> bytes:
    """Return a vector as entries and rows hold it."""
    return vector.astype("<f2").tobytes()


def unpacked(data: bytes) -> NDArray[np.float32]:
    """Return a vector of unit length from how entries and rows hold it."""
    vector = np.frombuffer(data, dtype="<f2").astype(np.float32)
    length = float(np.linalg.norm(vector))
    return vector / length if length else vector


def _vector(reading: Reading, place: Place, model: ModelInfo | None) -> NDArray[np.float32] | None:
    """Return the vector that was made here, or by the author with the same model."""
    if model is None:
        return None
    kept = reading.get(Table.VECTOR, place[-ID_BYTES:] + model.digest.encode())
    if kept is not None:
        return unpacked(kept)
    data = reading.get(Table.PAYLOAD, place)
    try:
        embedding = decode_payload(data).embedding if data is not None else None
    except Malformed:
        return None
    # Of another size, or of none, it is the author's mistake or worse.
    if embedding is None or embedding.model != model.digest:
        return None
    if len(embedding.vector) != 2 * model.dimensions:
        return None
    vector = unpacked(embedding.vector)
    return vector if np.isfinite(vector).all() and vector.any() else None


def _keep_vectors(
    model: str, made: Mapping[Place, NDArray[np.float32]]
) -> Callable[[Replica, Tables], None]:
    rows = {place: packed(vector) for place, vector in made.items()}

    def job(_: Replica, tables: Tables) -> None:
        for place, value in rows.items():
            # Forgotten meanwhile: then its vector must not stay either.
            if tables.get(Table.PAYLOAD, place) is not None:
                tables.put(Table.VECTOR, place[-ID_BYTES:] + model.encode(), value)

    return job
