"""Which entries are being checked and stored at this moment? None of them is asked for meanwhile.

Pure. A batch is in from its arrival until it is durable, or could not be stored.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from covey.identity.errors import Malformed
from covey.identity.wire import read_back

from .effects import Decisions, Ingest
from .entry import SHORT_ID_BYTES, NamespaceId, SignedHeader
from .messages import Entries, Item
from .namespace import Namespace
from .neighbour import Neighbour
from .settings import SpreadSettings


@dataclass(frozen=True, slots=True)
class Incoming:
    """A batch that is being checked and taken in."""

    neighbour: Neighbour
    number: int
    """Its sender's."""
    namespace: Namespace
    ids: frozenset[bytes]


class Intake:
    """The batches that are being taken in.

    Args:
        decisions: where what is to be taken in goes.
        numbers: gives each batch its number.
        settings: times and limits.
    """

    def __init__(
        self, decisions: Decisions, numbers: Iterator[int], settings: SpreadSettings
    ) -> None:
        self._decisions = decisions
        self._numbers = numbers
        self._settings = settings
        self._incoming: dict[int, Incoming] = {}
        self._coming: Counter[tuple[NamespaceId, bytes]] = Counter()

    def begin(self, neighbour: Neighbour, namespace: Namespace, entries: Entries) -> bool:
        """Have a batch taken in, of a namespace that both may read; tell whether there was room."""
        from_it = sum(1 for one in self._incoming.values() if one.neighbour.peer == neighbour.peer)
        if from_it >= 2 * self._settings.window:
            # Beyond any window; one that gave up and began anew has at most twice its own.
            return False
        ids = frozenset(_ids_of(entries.items))
        neighbour.exchange.received += len(entries.items)
        number = next(self._numbers)
        self._incoming[number] = Incoming(neighbour, entries.number, namespace, ids)
        self._coming.update((namespace.id, one) for one in ids)
        self._decisions.ingest(Ingest(neighbour.peer, number, namespace, entries.items))
        return True

    def end(self, number: int) -> Incoming | None:
        """Return a batch that is in no more, by this peer's own number."""
        done = self._incoming.pop(number, None)
        if done is not None:
            for one in done.ids:
                place = (done.namespace.id, one)
                self._coming[place] -= 1
                if not self._coming[place]:
                    del self._coming[place]
        return done

    def is_coming(self, namespace: NamespaceId, short_id: bytes) -> bool:
        """Tell whether an entry is being taken in."""
        return (namespace, short_id) in self._coming


def _ids_of(items: Iterable[Item]) -> Iterator[bytes]:
    """Give the short ids of entries that are not checked yet; what is no entry is passed over."""
    for item in items:
        try:
            signed = read_back(item.header, SignedHeader)
        except Malformed:
            continue
        yield hashlib.sha256(signed.body).digest()[:SHORT_ID_BYTES]
