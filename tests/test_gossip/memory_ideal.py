"""What should a replica hold and show? Told from the set of all that was ever signed, in no order.

The rules of MEMORY 4 as definitions over sets, without rows, order or history. `replica.py` works
entry by entry and forgets most of what it saw; the laws say that it comes to the same.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import NamedTuple

from covey.gossip.memory.entry import AHEAD_MS_MAX, SHORT_ID_BYTES, NamespaceId
from covey.gossip.memory.kinds import DAY_MS, Lifetime, Type, lifetime_of
from covey.gossip.memory.replica import Arrival, Place, Quotas


class Ideal(NamedTuple):
    """What a replica has that every entry reached, payload and all, in whatever way."""

    held: frozenset[Place]
    shown: frozenset[Place]


def ideal(
    everything: Iterable[Arrival], now_ms: int, quotas: Callable[[NamespaceId], Quotas]
) -> Ideal:
    """Return what is held and what is shown, given all that was ever signed.

    What is written ahead of `now_ms` by more than the bound is not part of it yet.
    """
    alive = {one.entry.id: one for one in everything if _is_alive(one, now_ms)}.values()
    heads = _newest(alive, of=_slot, number=lambda _: 1)
    held = _newest(heads, of=_share, number=lambda one: _most(one, quotas))
    shown = [one for one in held if _has_text(one, now_ms) and not _is_taken_away(one, held)]
    return Ideal(frozenset(map(place, held)), frozenset(map(place, shown)))


def place(arrival: Arrival) -> Place:
    """Return namespace, clock and id."""
    header = arrival.entry.header
    return header.namespace + header.clock.to_bytes(8, "big") + arrival.entry.id


def _is_alive(arrival: Arrival, now_ms: int) -> bool:
    at_ms = _at_ms(arrival)
    lifetime = lifetime_of(arrival.entry.header.kind)
    return at_ms <= now_ms + AHEAD_MS_MAX and now_ms < at_ms + lifetime.ms


def _newest(
    arrivals: Iterable[Arrival],
    *,
    of: Callable[[Arrival], Hashable],
    number: Callable[[Arrival], int],
) -> list[Arrival]:
    """Return the newest of each group; how many, any of the group tells."""
    groups: defaultdict[Hashable, list[Arrival]] = defaultdict(list)
    for one in arrivals:
        groups[of(one)].append(one)
    return [
        one
        for group in groups.values()
        for one in sorted(group, key=place, reverse=True)[: number(group[0])]
    ]


def _slot(arrival: Arrival) -> Hashable:
    """Tell what an entry is the newest of: a place of its author's, or, for a record, itself."""
    header = arrival.entry.header
    if _is_record(arrival):
        return arrival.entry.id
    # Where quotas are by day, so are slots: or an entry that the quota let go could come back when
    # one that had pushed it out is replaced on a later day.
    day = _day(arrival) if _is_daily(arrival) else None
    return header.namespace, header.author, header.kind, header.parent, header.key, day


def _share(arrival: Arrival) -> Hashable:
    """Tell which entries of its author count against one quota."""
    header = arrival.entry.header
    if _is_daily(arrival):
        return header.namespace, header.author, "day", _day(arrival)
    return header.namespace, header.author, "lifetime", lifetime_of(header.kind)


def _most(arrival: Arrival, quotas: Callable[[NamespaceId], Quotas]) -> int:
    quota = quotas(NamespaceId(arrival.entry.header.namespace))
    return quota.records_a_day if _is_daily(arrival) else quota.entries


def _has_text(arrival: Arrival, now_ms: int) -> bool:
    header = arrival.entry.header
    return header.payload_bytes > 0 and now_ms < header.expires_s * 1000


def _is_taken_away(arrival: Arrival, held: Collection[Arrival]) -> bool:
    if _is_record(arrival) or lifetime_of(arrival.entry.header.kind) is Lifetime.BOOK:
        return False
    return any(
        record.entry.header.namespace == arrival.entry.header.namespace
        and (_removes(record, arrival) or _forgets(record, arrival))
        for record in held
    )


def _removes(record: Arrival, element: Arrival) -> bool:
    return (
        _type(record) == Type.REMOVAL
        and _type(element) == Type.ELEMENT
        and _names(record, element)
        and place(record) > place(element)
    )


def _forgets(record: Arrival, one: Arrival) -> bool:
    if _type(record) != Type.FORGETTING:
        return False
    who, whose = record.entry.header.author, one.entry.header.author
    if not record.by_admin and who != whose:
        return False
    header = record.entry.header
    by_name = _names(record, one) and place(record) > place(one)
    return by_name or (header.subject == whose and one.entry.header.clock <= header.cut)


def _names(record: Arrival, one: Arrival) -> bool:
    return one.entry.id[:SHORT_ID_BYTES] in record.entry.header.seen


def _is_record(arrival: Arrival) -> bool:
    return _type(arrival) in (Type.REMOVAL, Type.FORGETTING)


def _is_daily(arrival: Arrival) -> bool:
    return _is_record(arrival) or lifetime_of(arrival.entry.header.kind) is Lifetime.BOOK


def _type(arrival: Arrival) -> int:
    return arrival.entry.header.kind & 0b1111


def _day(arrival: Arrival) -> int:
    return _at_ms(arrival) // DAY_MS


def _at_ms(arrival: Arrival) -> int:
    return arrival.entry.header.clock >> 16
