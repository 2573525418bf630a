"""What does this peer hold? As `Spreading` asks it, out of the store."""

from collections.abc import Iterable, Mapping, Sequence

from .entry import ID_BYTES, SHORT_ID_BYTES, Key, NamespaceId
from .messages import Item
from .namespace import Namespace
from .rows import Rows
from .summary import END, Summary
from .tables import Table


class HeldRows:
    """What this peer holds, for `Spreading`."""

    def __init__(self, rows: Rows, namespaces: Mapping[NamespaceId, Namespace]) -> None:
        self._rows = rows
        self._namespaces = namespaces
        self._empty = Summary()
        self._salted: tuple[tuple[object, ...], Summary] | None = None

    def namespaces(self) -> Iterable[Namespace]:
        """Return every namespace in which something is held, or was."""
        return self._namespaces.values()

    def summary(self, namespace: NamespaceId) -> Summary:
        """Return the keys of a namespace; empty if nothing is held."""
        return self._rows.summaries.get(namespace, self._empty)

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        """Return the same under a salt; the last one asked for is kept."""
        plain = self.summary(namespace)
        # One may have come for another that went: the count alone does not tell.
        of = (namespace, salt, plain.fingerprint(b"", END))
        if self._salted is None or self._salted[0] != of:
            self._salted = (of, Summary(plain.keys(b"", END), salt=salt))
        return self._salted[1]

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        """Return the entries of the first keys, as many as fit, at least one."""
        items: list[Item] = []
        size = 0
        with self._rows.reading() as reading:
            for key in keys:
                header = reading.get(Table.ENTRY, namespace + key) or b""
                payload = reading.get(Table.PAYLOAD, namespace + key)
                size += len(header) + len(payload or b"")
                if items and size > limit_bytes:
                    break
                items.append(Item(header, payload))
        return items

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        """Return the keys of those that are held."""
        with self._rows.reading() as reading:
            found = [reading.get(Table.SHORT, namespace + one) for one in short_ids]
        return [Key(key) for key in found if key is not None]

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        """Return short ids of entries whose payload is missing."""
        short_ids: list[bytes] = []
        with self._rows.reading() as reading:
            for row, _ in reading.scan(Table.WANTED, namespace):
                short_ids.append(row[-ID_BYTES:][:SHORT_ID_BYTES])
                if len(short_ids) == limit:
                    break
        return short_ids
