"""What becomes of what this device signed while its clock was ahead? It is signed anew, by the right time.

Pure, over the tables of one transaction. Nobody else has taken those entries yet: they are dated too
far ahead for any peer whose clock is right (DESIGN 4). The device's own clock goes back with them, or all
that it writes would be dated ahead as well, until time has caught up.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from covey.identity.envelope import MeshId
from covey.identity.keys import Keypair

from .entry import (
    AHEAD_MS_MAX,
    CLOCK_BYTES,
    HASH_BYTES,
    KEY_BYTES_TOTAL,
    SHORT_ID_BYTES,
    Entry,
    Key,
    NamespaceId,
    read_entry,
    sign_entry,
)
from .hybrid_clock import COUNTER_BITS, HybridClock, stamp_of
from .replica import Arrival, Replica
from .tables import Table, Tables


@dataclass(frozen=True, slots=True)
class _Held:
    namespace: NamespaceId
    entry: Entry
    payload: bytes | None


def is_ahead(clock: HybridClock, now_ms: int) -> bool:
    """Tell whether this device's clock has stamped what no other peer takes by now."""
    return clock.last > _limit(now_ms)


def redate(
    replica: Replica,
    tables: Tables,
    namespaces: Iterable[NamespaceId],
    author: Keypair,
    mesh: MeshId,
    clock: HybridClock,
    now_ms: int,
    *,
    by_admin: bool,
) -> int:
    """Sign an author's entries anew that are dated too far ahead; return how many.

    Args:
        replica: the rules, over `tables`.
        tables: the transaction.
        namespaces: where the author may have written.
        author: this device.
        mesh: the mesh.
        clock: this device's clock, which goes back.
        now_ms: the wall clock, which is right now.
        by_admin: whether the author is an admin.
    """
    limit = _limit(now_ms)
    ahead: list[_Held] = []
    last = 0
    for namespace in namespaces:
        for row, _ in tables.scan(Table.AGE, namespace + author.public_key[:HASH_BYTES]):
            key = Key(row[-KEY_BYTES_TOTAL:])
            at = int.from_bytes(key[:CLOCK_BYTES], "big")
            if at <= limit:
                last = max(last, at)
                continue
            data = tables.get(Table.ENTRY, namespace + key)
            assert data is not None, "an index names an entry that is not held"
            payload = tables.get(Table.PAYLOAD, namespace + key)
            ahead.append(_Held(namespace, read_entry(data), payload))
    clock.last = last
    ahead.sort(key=lambda one: one.entry.key)
    for namespace in {one.namespace for one in ahead}:
        replica.purge(namespace, author.public_key, lambda one: one.header.clock <= limit)
    names: dict[bytes, bytes] = {}
    for one in ahead:
        if one.payload is None and one.entry.header.payload_bytes:
            continue  # it was removed or forgotten, or has expired
        anew = _signed(one.entry, author, mesh, clock.stamp(now_ms), names)
        names[one.entry.id[:SHORT_ID_BYTES]] = anew.id[:SHORT_ID_BYTES]
        replica.apply(Arrival(anew, one.payload, by_admin))
    return len(ahead)


def _signed(
    entry: Entry, author: Keypair, mesh: MeshId, clock: int, names: dict[bytes, bytes]
) -> Entry:
    header = entry.header
    lead_s = ((header.clock - clock) >> COUNTER_BITS) // 1000
    # What it names of the author's own has new names, too.
    anew = msgspec.structs.replace(
        header,
        clock=clock,
        expires_s=max(0, header.expires_s - lead_s - 1),
        seen=tuple(names.get(one, one) for one in header.seen),
        derived_from=tuple(names.get(one, one) for one in header.derived_from),
        cut=min(header.cut, clock),
    )
    return sign_entry(anew, mesh=mesh, keypair=author)


def _limit(now_ms: int) -> int:
    return stamp_of(now_ms + AHEAD_MS_MAX)
