"""What becomes of an entry that arrives, and of the others through it? The rules of the memory.

Pure: rows in, rows out, over the `Tables` of one transaction. Whether an entry is kept depends on it,
on what else is held, and on the clock, never on who brought it or in which order (MEMORY 4.4-4.6):

1. of one slot (author, kind, path, key) only the newest (clock, id) is kept;
2. of one author and lifetime the newest `Quotas.entries` are kept, so a flood evicts only its own
   author's; what acts on others' entries, and the books, are counted by day instead;
3. a header stays until its clock plus its lifetime, and after that is refused for ever, so whatever
   it superseded is gone before it is, and no replay brings anything back;
4. the payload goes earlier: when it expires, when a removal names it, or when it is forgotten. What
   has no payload is not shown.

The author's standing has been judged before (`standing.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from covey.identity.errors import Malformed
from covey.identity.wire import encode_plain

from .entry import (
    AHEAD_MS_MAX,
    CLOCK_BYTES,
    HASH_BYTES,
    ID_BYTES,
    KEY_BYTES_TOTAL,
    NAMESPACE_BYTES,
    SHORT_ID_BYTES,
    Entry,
    Key,
    NamespaceId,
    read_entry,
)
from .kinds import DAY_MS, Lifetime, Type, is_record, type_of
from .tables import Reading, Table, Tables

Place = bytes
"""56 bytes: namespace and key."""

FORGETS_ID = b"i"
FORGETS_AUTHOR = b"a"
REMOVES = b"r"
SUPERSEDES = b"s"
_BY_ADMIN = b"\x01"
_BY_OTHERS = b"\x00"
_BY_DAY = b"d"
_BY_LIFETIME = b"l"
_AUTHOR_BYTES = NAMESPACE_BYTES + HASH_BYTES
_TIME_BYTES = 8
_ABOVE_KEYS = b"\xff" * (KEY_BYTES_TOTAL + 1)


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much one author may hold in one namespace."""

    entries: int = 10_000
    """Of each lifetime; beyond, its oldest go."""
    records_a_day: int = 1_000
    """Removals and forgettings; in the books, everything."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An entry whose signature and author's standing hold."""

    entry: Entry
    payload: bytes | None
    """None: who sent it has none. What the header names, if it is given."""
    by_admin: bool


Fate = Literal["kept", "known", "filled", "superseded", "full", "early", "over"]
"""What became of it: kept; known before; its missing payload came; an newer one of its slot is held;
older than all that its author may hold; too far ahead of this peer's clock; older than its lifetime."""


class Applied:
    """What a transaction changed, for what is derived from the rows; valid once it is durable."""

    __slots__ = ("added", "doubled", "fates", "hidden", "removed", "shown", "withdrawn")

    def __init__(self) -> None:
        self.fates: list[Fate] = []
        """One for each arrival."""
        self.added: list[tuple[NamespaceId, Key]] = []
        self.removed: list[tuple[NamespaceId, Key]] = []
        self.shown: list[Place] = []
        """Entries whose payload is here now."""
        self.hidden: list[Place] = []
        """Entries whose payload is gone."""
        self.withdrawn = 0
        """Of these, how many a removal, a forgetting or a revocation took: their text must leave the
        disk."""
        self.doubled: list[tuple[NamespaceId, bytes]] = []
        """Authors of whom two entries of one time were seen: they, or their key, are in two places."""


def one_after_another(changes: Sequence[Applied]) -> Applied:
    """Return what was changed in all."""
    if len(changes) == 1:
        return changes[0]
    whole = Applied()
    for one in changes:
        whole.fates += one.fates
        whole.added += one.added
        whole.removed += one.removed
        whole.shown += one.shown
        whole.hidden += one.hidden
        whole.withdrawn += one.withdrawn
        whole.doubled += one.doubled
    return whole


class Replica:
    """The rules, applied to one transaction's tables.

    Args:
        tables: the transaction.
        now_ms: the wall clock.
        quotas: how much an author may hold in a namespace.
    """

    def __init__(
        self, tables: Tables, now_ms: int, quotas: Callable[[NamespaceId], Quotas]
    ) -> None:
        self._tables = tables
        self._now_ms = now_ms
        self._quotas = quotas
        self.applied = Applied()

    def apply(self, arrival: Arrival) -> Fate:
        """Take an entry in, or not; both are final for this moment."""
        fate = self._apply(arrival)
        self.applied.fates.append(fate)
        return fate

    def pass_time(self, limit: int) -> bool:
        """Drop what is over its time, at most `limit` entries; tell whether more is due."""
        due: list[bytes] = []
        stop = _time(self._now_ms + 1)
        for row, _ in self._tables.scan(Table.DUE, b"", stop):
            due.append(row)
            if len(due) == limit:
                break
        for row in due:
            self._look_again(row)
        return len(due) == limit

    def purge(
        self, namespace: NamespaceId, author: bytes, still_counts: Callable[[Entry], bool]
    ) -> None:
        """Take out the entries of an author that count no more, header and all."""
        doomed = [entry for entry in self._entries_of(namespace, author) if not still_counts(entry)]
        before = len(self.applied.hidden)
        for entry in doomed:
            self._remove(namespace + entry.key, entry)
        self.applied.withdrawn += len(self.applied.hidden) - before

    def purge_after(
        self,
        namespace: NamespaceId,
        start: bytes,
        still_counts: Callable[[Entry], bool],
        limit: int,
    ) -> bytes | None:
        """Take out the entries that count no more, of those from `start` on in time order.

        At most `limit` are looked at; returned is where to go on, or None at the end.
        """
        rows = self._tables.scan(Table.ENTRY, namespace + start, namespace + _ABOVE_KEYS)
        some = list(islice(rows, limit))
        before = len(self.applied.hidden)
        for place, data in some:
            if not still_counts(entry := read_entry(data)):
                self._remove(place, entry)
        self.applied.withdrawn += len(self.applied.hidden) - before
        return some[-1][0][NAMESPACE_BYTES:] + b"\x00" if len(some) == limit else None

    def trim(self, namespace: NamespaceId, limit: int) -> bool:
        """Let go what is beyond a quota that has become smaller, of each author and lifetime the oldest.

        At most `limit` entries go; tell whether more are beyond. What no longer counts is to be taken
        out before, or it would push out what does.
        """
        most, left = self._quotas(namespace).entries, limit
        for bucket, row in list(self._tables.scan(Table.COUNT, namespace)):
            beyond = _number(row) - most
            if bucket[_AUTHOR_BYTES:].startswith(_BY_LIFETIME) and beyond > 0:
                oldest = islice(self._tables.scan(Table.AGE, bucket), min(beyond, left))
                for place in [namespace + row[-KEY_BYTES_TOTAL:] for row, _ in oldest]:
                    self._remove(place, self._entry_at(place))
                    left -= 1
        return not left

    def would_undo(self, entry: Entry) -> bool:
        """Tell whether a record is one too many for its author's day: it would push out the oldest, and
        what that one took away would come back.
        """
        if not is_counted_by_day(entry):
            return False
        quotas = self._quotas(NamespaceId(entry.header.namespace))
        held = _number(self._tables.get(Table.COUNT, bucket_of(entry)))
        return held >= quotas.records_a_day

    # Arriving

    def _apply(self, arrival: Arrival) -> Fate:
        entry, tables = arrival.entry, self._tables
        place = place_of(entry)
        # Mostly nothing of its very time is held: then it is not known, and has no double.
        same_time = place[: NAMESPACE_BYTES + CLOCK_BYTES]
        is_alone = next(tables.scan(Table.ENTRY, same_time), None) is None
        if not is_alone and tables.get(Table.ENTRY, place) is not None:
            return self._fill(place, arrival)
        if entry.at_ms > self._now_ms + AHEAD_MS_MAX:
            return "early"
        if entry.kept_until_ms <= self._now_ms:
            return "over"
        if not is_alone:
            self._note_double(same_time, entry)
        head = self._head_of(entry)
        bucket = bucket_of(entry)
        if head is None:
            if not self._make_room(entry, bucket):
                return "full"
        elif head.key >= entry.key:
            return "superseded"
        else:
            # One goes and one comes: the number of its author's stays, and so does the slot.
            self._remove(place_of(head), head, replaced=True)
        self._insert(place, bucket, arrival)
        return "kept"

    def _fill(self, place: Place, arrival: Arrival) -> Fate:
        if arrival.payload is None or not self._tables.delete(Table.WANTED, place):
            return "known"
        if self._is_spent(arrival.entry):
            return "known"
        self._tables.put(Table.PAYLOAD, place, arrival.payload)
        self.applied.shown.append(place)
        return "filled"

    def _note_double(self, same_time: bytes, entry: Entry) -> None:
        """Keep proof of an author that wrote two entries at one time, which no device does."""
        for _, data in self._tables.scan(Table.ENTRY, same_time):
            if read_entry(data).header.author == entry.header.author:
                row = entry.header.namespace + entry.header.author
                self._tables.put(Table.DOUBLE, row, encode_plain([data, entry.data]))
                self.applied.doubled.append(
                    (NamespaceId(entry.header.namespace), entry.header.author)
                )
                return

    def _head_of(self, entry: Entry) -> Entry | None:
        slot = entry.slot
        if slot is None:
            return None
        namespace = NamespaceId(entry.header.namespace)
        key = self._tables.get(Table.HEAD, namespace + slot)
        return self._entry_at(namespace + key) if key is not None else None

    def _make_room(self, entry: Entry, bucket: bytes) -> bool:
        """Count an entry among its author's; False: it is older than all that may stay."""
        tables = self._tables
        quotas = self._quotas(NamespaceId(entry.header.namespace))
        most = quotas.records_a_day if is_counted_by_day(entry) else quotas.entries
        if most < 1:
            return False
        while (number := _number(tables.get(Table.COUNT, bucket))) >= most:
            oldest = next(tables.scan(Table.AGE, bucket))[0][-KEY_BYTES_TOTAL:]
            if entry.key < oldest:
                return False
            place = entry.header.namespace + oldest
            self._remove(place, self._entry_at(place))
        tables.put(Table.COUNT, bucket, (number + 1).to_bytes(4, "big"))
        return True

    def _insert(self, place: Place, bucket: bytes, arrival: Arrival) -> None:
        entry, put = arrival.entry, self._tables.put
        put(Table.ENTRY, place, entry.data)
        put(Table.AGE, bucket + entry.key, b"")
        for table, row, value in _named_rows(entry, by_admin=arrival.by_admin):
            put(table, row, value)
        self._look_at(place, entry)
        self.applied.added.append((NamespaceId(entry.header.namespace), entry.key))
        self._insert_payload(place, arrival)
        if is_record(entry.header.kind):
            self._act(entry)

    def _insert_payload(self, place: Place, arrival: Arrival) -> None:
        entry = arrival.entry
        if not entry.header.payload_bytes or self._is_spent(entry):
            return
        if arrival.payload is None:
            self._tables.put(Table.WANTED, place, b"")
            return
        self._tables.put(Table.PAYLOAD, place, arrival.payload)
        self.applied.shown.append(place)

    def _is_spent(self, entry: Entry) -> bool:
        """Tell whether its payload has no place here any more."""
        return entry.header.expires_s * 1000 <= self._now_ms or self._is_covered(entry)

    def _is_covered(self, entry: Entry) -> bool:
        """Tell whether it is forgotten, or removed from its set."""
        header, tables = entry.header, self._tables
        if entry.lifetime is Lifetime.BOOK or is_record(header.kind):
            return False  # a record keeps its reason, and the books are forgotten by nobody
        namespace, short = header.namespace, entry.id[:SHORT_ID_BYTES]
        by_author = namespace + FORGETS_AUTHOR + header.author[:HASH_BYTES]
        checks = [FORGETS_ID, REMOVES] if type_of(header.kind) is Type.ELEMENT else [FORGETS_ID]
        # Mostly nothing is forgotten near it, and one look tells: the rows are in this order.
        last = namespace + checks[-1] + short + _ABOVE_KEYS
        if next(tables.scan(Table.COVER, by_author, last), None) is None:
            return False
        for what in checks:
            for row, value in tables.scan(Table.COVER, namespace + what + short):
                # Whoever writes may remove an element, but only its author and admins forget.
                may = what == REMOVES or value[:1] == _BY_ADMIN or value[1:] == header.author
                if may and row[-KEY_BYTES_TOTAL:] > entry.key:
                    return True
        return any(
            int.from_bytes(cut, "big") >= header.clock
            for _, cut in tables.scan(Table.COVER, by_author)
        )

    # Acting on others

    def _act(self, record: Entry) -> None:
        before = len(self.applied.hidden)
        for place, target in self._targets_of(record):
            self._drop_if_spent(place, target)
        self.applied.withdrawn += len(self.applied.hidden) - before

    def _targets_of(self, record: Entry) -> list[tuple[Place, Entry]]:
        """Return what is held of all that a record names, whether it may act on it or not."""
        header = record.header
        namespace = NamespaceId(header.namespace)
        keys = [self._tables.get(Table.SHORT, namespace + short) for short in header.seen]
        named = [self._entry_at(namespace + key) for key in keys if key is not None]
        if header.subject:
            of_subject = self._entries_of(namespace, header.subject)
            named += [one for one in of_subject if one.header.clock <= header.cut]
        return [(place_of(one), one) for one in named]

    def _drop_if_spent(self, place: Place, entry: Entry) -> None:
        if self._is_spent(entry):
            self._drop_payload(place)

    # Going

    def _look_again(self, row: bytes) -> None:
        place = row[_TIME_BYTES:]
        self._tables.delete(Table.DUE, row)
        entry = self._entry_at(place)
        if entry.kept_until_ms <= self._now_ms:
            self._remove(place, entry)
            return
        self._drop_payload(place)
        self._look_at(place, entry)

    def _look_at(self, place: Place, entry: Entry) -> None:
        """Note when to look at it next."""
        due_ms = entry.header.expires_s * 1000
        if due_ms <= self._now_ms:
            due_ms = entry.kept_until_ms
        self._tables.put(Table.DUE, _time(due_ms) + place, b"")

    def _drop_payload(self, place: Place) -> None:
        self._tables.delete(Table.WANTED, place)
        if self._tables.delete(Table.PAYLOAD, place):
            self.applied.hidden.append(place)
        # A vector tells much of the text that it was made from.
        for row, _ in list(self._tables.scan(Table.VECTOR, place[-ID_BYTES:])):
            self._tables.delete(Table.VECTOR, row)

    def _remove(self, place: Place, entry: Entry, *, replaced: bool = False) -> None:
        """Take an entry out; `replaced`: one of the same slot, and so of the same count, comes next."""
        tables, header = self._tables, entry.header
        self._drop_payload(place)
        tables.delete(Table.ENTRY, place)
        for table, row, _ in index_rows(entry, by_admin=True):
            # A newer one of its slot may stand there already.
            if table is not Table.HEAD or (not replaced and tables.get(table, row) == entry.key):
                tables.delete(table, row)
        if not replaced:
            self._count_one_less(bucket_of(entry))
        for due_ms in (header.expires_s * 1000, entry.kept_until_ms):
            tables.delete(Table.DUE, _time(due_ms) + place)
        self.applied.removed.append((NamespaceId(header.namespace), entry.key))
        self._uncover(entry)

    def _uncover(self, entry: Entry) -> None:
        """What a record covered, and nothing else does, is wanted again: what is shown follows from
        what is held. At the end of a record's lifetime nothing is left that it covered.
        """
        if not is_record(entry.header.kind):
            return
        for place, target in self._targets_of(entry):
            has_one = target.header.payload_bytes and not self._is_spent(target)
            if has_one and self._tables.get(Table.PAYLOAD, place) is None:
                self._tables.put(Table.WANTED, place, b"")

    # Rows

    def _entry_at(self, place: Place) -> Entry:
        data = self._tables.get(Table.ENTRY, place)
        if data is None:
            raise Malformed(f"an index names an entry that is not held: {place.hex()}")
        return read_entry(data)

    def _entries_of(self, namespace: NamespaceId, author: bytes) -> Iterator[Entry]:
        rows = self._tables.scan(Table.AGE, namespace + author[:HASH_BYTES])
        for place in [namespace + row[-KEY_BYTES_TOTAL:] for row, _ in rows]:
            yield self._entry_at(place)

    def _count_one_less(self, bucket: bytes) -> None:
        number = _number(self._tables.get(Table.COUNT, bucket)) - 1
        if number:
            self._tables.put(Table.COUNT, bucket, number.to_bytes(4, "big"))
        else:
            self._tables.delete(Table.COUNT, bucket)


def index_rows(entry: Entry, *, by_admin: bool) -> Iterator[tuple[Table, bytes, bytes]]:
    """Give the rows that follow from an entry being held, but for COUNT, DUE and its payload's."""
    yield Table.AGE, bucket_of(entry) + entry.key, b""
    yield from _named_rows(entry, by_admin=by_admin)


def _named_rows(entry: Entry, *, by_admin: bool) -> Iterator[tuple[Table, bytes, bytes]]:
    """Give the rows that find an entry by what it is, stands in, or acts on."""
    header, key = entry.header, entry.key
    namespace = header.namespace
    yield Table.SHORT, namespace + entry.id[:SHORT_ID_BYTES], key
    if (slot := entry.slot) is not None:
        yield Table.HEAD, namespace + slot, key
    yield Table.GROUP, namespace + header.parent + header.key + key, b""
    match type_of(header.kind):
        case Type.FORGETTING:
            who = (_BY_ADMIN if by_admin else _BY_OTHERS) + header.author
            for short in header.seen:
                yield Table.COVER, namespace + FORGETS_ID + short + key, who
            if header.subject and (by_admin or header.subject == header.author):
                row = namespace + FORGETS_AUTHOR + header.subject[:HASH_BYTES] + key
                yield Table.COVER, row, header.cut.to_bytes(CLOCK_BYTES, "big")
        case Type.REMOVAL:
            for short in header.seen:
                yield Table.COVER, namespace + REMOVES + short + key, b""
        case Type.SHARED:
            for short in header.seen:
                yield Table.COVER, namespace + SUPERSEDES + short + key, header.parent + header.key
        case _:
            return


def place_of(entry: Entry) -> Place:
    """Return where an entry rests."""
    return entry.header.namespace + entry.key


def is_superseded(reading: Reading, entry: Entry) -> bool:
    """Tell whether another author's value of a shared register names this one as seen."""
    prefix = entry.header.namespace + SUPERSEDES + entry.id[:SHORT_ID_BYTES]
    place = entry.header.parent + entry.header.key
    return any(
        row[-KEY_BYTES_TOTAL:] > entry.key and value == place
        for row, value in reading.scan(Table.COVER, prefix)
    )


def bucket_of(entry: Entry) -> bytes:
    """Return the prefix of an author's entries that are counted with this one."""
    author = entry.header.namespace + entry.header.author[:HASH_BYTES]
    if is_counted_by_day(entry):
        return author + _BY_DAY + (entry.at_ms // DAY_MS).to_bytes(4, "big")
    return author + _BY_LIFETIME + bytes((entry.lifetime,))


def is_counted_by_day(entry: Entry) -> bool:
    """Tell whether its author's other days do not matter to it: it acts on entries of others."""
    return entry.lifetime is Lifetime.BOOK or is_record(entry.header.kind)


def _time(ms: int) -> bytes:
    return ms.to_bytes(_TIME_BYTES, "big")


def _number(row: bytes | None) -> int:
    return int.from_bytes(row, "big") if row is not None else 0
