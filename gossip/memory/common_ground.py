"""What may both of two peers read, and what does this one hold of it?

Pure. All that is said to a peer about what is held goes through here or is checked here first, so that
nobody is told an id, a count or a digest of what it may not read.
"""

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Protocol

from covey.identity.envelope import MeshId
from covey.identity.keys import PeerId
from covey.identity.wire import encode

from .entry import CLOCK_BYTES, HASH_BYTES, Key, NamespaceId
from .messages import Item, Row
from .namespace import DEVICE, Namespace, namespace_of
from .summary import Summary


class Held(Protocol):
    """What this peer holds; `driver.py` has the real one."""

    def namespaces(self) -> Iterable[Namespace]:
        """Return every namespace in which something is held, or was."""
        ...

    def summary(self, namespace: NamespaceId) -> Summary:
        """Return the keys of a namespace; empty if nothing is held."""
        ...

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        """Return the same under a salt."""
        ...

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        """Return the entries of the first keys, as many as fit, at least one; without a header: gone."""
        ...

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        """Return the keys of those that are held."""
        ...

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        """Return short ids of entries whose payload is missing."""
        ...


class CommonGround:
    """What this peer holds, as far as it and another may both read it.

    Args:
        me: this peer.
        mesh: the mesh.
        held: what this peer holds.
        may_read: whether a peer, or this one, may read a zone, by what is known now.
    """

    def __init__(
        self, me: PeerId, mesh: MeshId, held: Held, may_read: Callable[[PeerId, str], bool]
    ) -> None:
        self._me = me
        self._mesh = mesh
        self.held = held
        self._may_read = may_read

    def both_may_read(self, peer: PeerId, zone: str) -> bool:
        """Tell whether a peer and this one may read what is in a zone."""
        return zone != DEVICE and self._may_read(peer, zone) and self._may_read(self._me, zone)

    def namespaces(self, peer: PeerId) -> list[Namespace]:
        """Return what is held here and both may read, the books first."""
        return sorted(one for one in self.held.namespaces() if self.both_may_read(peer, one.zone))

    def named(self, zone: str, name: str) -> Namespace:
        """Return a namespace that a peer named; nothing is said of who may read it.

        Raises:
            Malformed: nothing has such a name.
        """
        return namespace_of(self._mesh, zone, name)

    def summed_up(self, namespace: Namespace, until_ms: int) -> Row:
        """Return a namespace as it is compared, up to a moment."""
        summary = self.held.summary(namespace.id)
        count, digest = summary.fingerprint(b"", bound_of(until_ms))
        return Row(namespace.zone, namespace.name, count, digest)

    def rows(self, peer: PeerId, until_ms: int) -> list[Row]:
        """Return all that both may read, summed up."""
        rows = (self.summed_up(one, until_ms) for one in self.namespaces(peer))
        return [row for row in rows if row.count]

    def digest(self, peer: PeerId, until_ms: int) -> bytes:
        """Return the same in 16 bytes."""
        digest = hashlib.sha256()
        for row in self.rows(peer, until_ms):
            digest.update(encode(row))
        return digest.digest()[:HASH_BYTES]

    def differing(self, peer: PeerId, rows: Iterable[Row], until_ms: int) -> Iterator[Namespace]:
        """Give the namespaces of which these two hold other entries, by the other's word."""
        for row in rows:
            namespace = self.named(row.zone, row.name)
            # What by this peer's books not both may read is passed over; the books come first, and
            # then both know the same.
            if self.both_may_read(peer, row.zone) and self.summed_up(namespace, until_ms) != row:
                yield namespace

    def unnamed(
        self, peer: PeerId, named: Container[tuple[str, str]], until_ms: int
    ) -> Iterator[Namespace]:
        """Give the namespaces of which this peer holds something and the other nothing."""
        for namespace in self.namespaces(peer):
            place = (namespace.zone, namespace.name)
            if place not in named and self.summed_up(namespace, until_ms).count:
                yield namespace


def bound_of(until_ms: int) -> bytes:
    """Return the bound that has below it the keys of all that was written before a moment."""
    return (until_ms << 16).to_bytes(CLOCK_BYTES, "big")
