"""What does an entry say, and what became of it? Single entries, and what is held where.

Pure, over the rows of one moment. What a payload says counts only if it stands where it says that it
does and is of the form that its type has; anything else is of a later version, or a lie, and is not
shown. Model: MEMORY 4.4.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice

from covey.identity.errors import Malformed, Misuse, NotFound
from covey.identity.keys import PeerId, public_key_of

from .entry import (
    CLOCK_BYTES,
    DIGEST_BYTES,
    HASH_BYTES,
    ID_BYTES,
    KEY_BYTES_TOTAL,
    NO_CERTIFICATE,
    SHORT_ID_BYTES,
    VERSION,
    Entry,
    EntryId,
    Header,
    Key,
    NamespaceId,
    author_of,
    read_entry,
)
from .forms import count_of, has_controls, is_clean, is_json, line_of, number_of
from .kinds import Lifetime, Type, is_record, lifetime_of, type_of
from .paths import Path, element_path, path_of
from .payload import Payload, Provenance, decode_payload
from .replica import REMOVES, is_superseded, place_of
from .tables import Reading, Table

# One answer looks at no more rows than this: an author may hold some 10,000 entries of a namespace,
# and a hostile one may heap them under somebody else's key. It takes about a second.
ROWS_MAX = 50_000
LIMIT_DEFAULT = 100
PREFIX_DIGITS_MIN = 4
ALIKE_SHOWN = 5
_PREFIX = re.compile(rf"[0-9a-f]{{{PREFIX_DIGITS_MIN},{2 * ID_BYTES}}}")


class State(StrEnum):
    """What has become of an entry, as a user is told it."""

    SHOWN = "shown"
    EXPIRED = "expired"
    FORGOTTEN = "forgotten"
    SUPERSEDED = "superseded"
    """Of a shared register: a later writer had seen it. Of anything: its author wrote over it."""
    REMOVED = "removed"
    """From its set."""
    WITHDRAWN = "withdrawn"
    """By its author."""
    MISSING = "payload missing"
    """Its text has not come yet."""
    IN_FORCE = "in force"
    """It removes or forgets others."""
    UNREADABLE = "not of this version"


@dataclass(frozen=True, slots=True)
class Remembered:
    """One entry, as it is shown."""

    id: EntryId
    namespace: NamespaceId
    author: PeerId
    clock: int
    expires_ms: int
    type: Type | None
    """None: of a later version."""
    lifetime: Lifetime
    state: State
    key: str = ""
    """As the payload has it; empty where that is gone."""
    value: str = ""
    """The text: of a line without its `keep`, of a forgetting its reason; empty if it is gone."""
    provenance: Provenance | None = None
    derived_from: tuple[bytes, ...] = ()
    """Short ids."""
    keep: int = 0
    """Of a log's line: how many of its author's it wants kept."""

    @property
    def at_ms(self) -> int:
        """When it was written, by its author's clock."""
        return self.clock >> 16

    @property
    def order(self) -> Key:
        """Its place in time; of two entries the greater is the newer."""
        return Key(self.clock.to_bytes(CLOCK_BYTES, "big") + self.id)


def remembered(reading: Reading, entry: Entry, now_ms: int) -> Remembered:
    """Return a held entry as it is shown."""
    header = entry.header
    state, payload = _look(reading, entry, now_ms)
    key, value, provenance, keep = "", "", None, 0
    if payload is not None:
        key, provenance = payload.key, payload.provenance
        value = payload.value
        if type_of(header.kind) is Type.LINE and (line := line_of(value)) is not None:
            keep, value = line
    return Remembered(
        id=entry.id,
        namespace=NamespaceId(header.namespace),
        author=author_of(header.author),
        clock=header.clock,
        expires_ms=header.expires_s * 1000,
        type=type_of(header.kind),
        lifetime=entry.lifetime,
        state=state,
        key=key,
        value=value,
        provenance=provenance,
        derived_from=header.derived_from,
        keep=keep,
    )


def entry(reading: Reading, namespace: NamespaceId, id_or_prefix: str, now_ms: int) -> Remembered:
    """Return one entry by its id in hexadecimal, or by how that begins.

    Raises:
        Misuse: it is no such prefix, or several ids begin so.
        NotFound: none does.
    """
    prefix = id_or_prefix.strip().lower()
    if _PREFIX.fullmatch(prefix) is None:
        raise Misuse(
            f"an entry is named by {PREFIX_DIGITS_MIN} to {2 * ID_BYTES} hexadecimal digits, "
            f"not {id_or_prefix!r}"
        )
    start = bytes.fromhex(prefix[: len(prefix) // 2 * 2])[:SHORT_ID_BYTES]
    found: list[Entry] = []
    for _, key in reading.scan(Table.SHORT, namespace + start):
        if key[CLOCK_BYTES:].hex().startswith(prefix):
            one = held_at(reading, namespace, key, now_ms)
            found += [] if one is None else [one]
        if len(found) > ALIKE_SHOWN:
            break
    if not found:
        raise NotFound(f"nothing is held here under the id {prefix}")
    if len(found) > 1:
        names = ", ".join(one.id.hex()[: len(prefix) + 4] for one in found[:ALIKE_SHOWN])
        more = " and more" if len(found) > ALIKE_SHOWN else ""
        raise Misuse(f"several ids begin with {prefix}: {names}{more}; give more digits")
    return remembered(reading, found[0], now_ms)


def entries(
    reading: Reading,
    namespace: NamespaceId,
    now_ms: int,
    *,
    limit: int = LIMIT_DEFAULT,
    author: PeerId | None = None,
    older_than: Key | None = None,
    shown_only: bool = False,
) -> tuple[Remembered, ...]:
    """Return the newest entries of a namespace, newest first.

    To read on, `older_than` is the last one's `order`. `shown_only` leaves out what is held and is
    not shown.

    Raises:
        Misuse: the limit is none.
    """
    check_limit(limit)
    found: list[Remembered] = []
    for looked_at, key in enumerate(_keys_down(reading, namespace, author, older_than)):
        if len(found) == limit or looked_at == ROWS_MAX:
            break
        one = held_at(reading, namespace, key, now_ms)
        if one is None or (author is not None and author_of(one.header.author) != author):
            continue
        shown = remembered(reading, one, now_ms)
        if not shown_only or shown.state is State.SHOWN:
            found.append(shown)
    return tuple(found)


# What is held


def head_key_at(
    reading: Reading, namespace: NamespaceId, author: bytes, kind: int, path: Path
) -> Key | None:
    """Return the key of what is held in an author's slot."""
    header = Header(
        VERSION, namespace, author, 0, 0, kind, *path, (), bytes(DIGEST_BYTES), 0, NO_CERTIFICATE
    )
    slot = Entry(EntryId(b""), header, b"").slot
    key = None if slot is None else reading.get(Table.HEAD, namespace + slot)
    return None if key is None else Key(key)


def head_at(
    reading: Reading, namespace: NamespaceId, author: bytes, kind: int, path: Path
) -> Entry | None:
    """Return what is held in an author's slot."""
    key = head_key_at(reading, namespace, author, kind, path)
    return None if key is None else _at(reading, namespace, key)


def held_by_id(
    reading: Reading, namespace: NamespaceId, entry_id: bytes, now_ms: int
) -> Entry | None:
    """Return a held entry by its id."""
    key = reading.get(Table.SHORT, namespace + entry_id[:SHORT_ID_BYTES])
    if key is None or not key[CLOCK_BYTES:].startswith(entry_id):
        return None
    return held_at(reading, namespace, key, now_ms)


def held_under(
    reading: Reading, namespace: NamespaceId, path: Path, now_ms: int
) -> Iterator[Entry]:
    """Give what is held under one key, each author's, newest first, from at most `ROWS_MAX` rows."""
    rows = reading.scan(Table.GROUP, namespace + path.parent + path.key, reverse=True)
    for row, _ in islice(rows, ROWS_MAX):
        one = held_at(reading, namespace, row[-KEY_BYTES_TOTAL:], now_ms)
        if one is not None:
            yield one


def clock_of(key: bytes) -> int:
    """Return the time that a key begins with."""
    return int.from_bytes(key[:CLOCK_BYTES], "big")


def newest_clock(reading: Reading, namespace: NamespaceId, path: Path) -> int:
    """Return the time of the newest entry under a key; 0: there is none."""
    rows = reading.scan(Table.GROUP, namespace + path.parent + path.key, reverse=True)
    return next((clock_of(row[-KEY_BYTES_TOTAL:]) for row, _ in rows), 0)


def newest_clock_of(reading: Reading, namespace: NamespaceId, author: bytes) -> int:
    """Return the time of an author's newest entry; 0: there is none."""
    rows = reading.scan(Table.AGE, namespace + author[:HASH_BYTES])
    return max((clock_of(row[-KEY_BYTES_TOTAL:]) for row, _ in rows), default=0)


def _at(reading: Reading, namespace: NamespaceId, key: bytes) -> Entry | None:
    data = reading.get(Table.ENTRY, namespace + key)
    return None if data is None else read_entry(data)


def held_at(reading: Reading, namespace: NamespaceId, key: bytes, now_ms: int) -> Entry | None:
    """Return the entry of a key, if its time is not over: that it was not dropped yet is chance."""
    one = _at(reading, namespace, key)
    return one if one is not None and one.kept_until_ms > now_ms else None


def _keys_down(
    reading: Reading, namespace: NamespaceId, author: PeerId | None, older_than: Key | None
) -> Iterator[bytes]:
    """Give keys, newest first."""
    if author is None:
        stop = None if older_than is None else namespace + older_than
        rows = reading.scan(Table.ENTRY, namespace, stop, reverse=True)
        yield from (row[-KEY_BYTES_TOTAL:] for row, _ in rows)
        return
    rows = reading.scan(Table.AGE, namespace + public_key_of(author)[:HASH_BYTES])
    keys = (row[-KEY_BYTES_TOTAL:] for row, _ in rows)
    yield from sorted((key for key in keys if older_than is None or key < older_than), reverse=True)


# What an entry says


def _look(reading: Reading, entry: Entry, now_ms: int) -> tuple[State, Payload | None]:
    """Return an entry's state, and what it says if that may be seen."""
    header, place = entry.header, place_of(entry)
    type_ = type_of(header.kind)
    if type_ is None:
        return State.UNREADABLE, None
    if not header.payload_bytes:
        return (State.IN_FORCE if is_record(header.kind) else State.WITHDRAWN), None
    data = reading.get(Table.PAYLOAD, place)
    if data is None or header.expires_s * 1000 <= now_ms:
        return _why_gone(reading, entry, now_ms), None
    payload = _read_payload(header, data)
    if is_record(header.kind):
        return State.IN_FORCE, payload
    if payload is None:
        return State.UNREADABLE, None
    if type_ is Type.SHARED and is_superseded(reading, entry):
        return State.SUPERSEDED, payload
    return State.SHOWN, payload


def _why_gone(reading: Reading, entry: Entry, now_ms: int) -> State:
    """Tell why a payload is not to be seen."""
    if is_record(entry.header.kind):
        return State.IN_FORCE
    if entry.header.expires_s * 1000 <= now_ms:
        return State.EXPIRED
    place = place_of(entry)
    if reading.get(Table.WANTED, place) is not None:
        return State.MISSING
    if reading.get(Table.ENTRY, place) is None:
        return State.SUPERSEDED  # its author wrote over it just now
    # It is neither over nor wanted, so something covers it.
    return State.REMOVED if _is_removed(reading, entry) else State.FORGOTTEN


def _is_removed(reading: Reading, entry: Entry) -> bool:
    if type_of(entry.header.kind) is not Type.ELEMENT:
        return False
    prefix = entry.header.namespace + REMOVES + entry.id[:SHORT_ID_BYTES]
    return any(row[-KEY_BYTES_TOTAL:] > entry.key for row, _ in reading.scan(Table.COVER, prefix))


def _read_payload(header: Header, data: bytes) -> Payload | None:
    """Return a payload; None: it is not what this version would have written in its place."""
    try:
        payload = decode_payload(data)
    except Malformed:
        return None
    if lifetime_of(header.kind) is Lifetime.BOOK:
        return payload  # a record of the mesh's own, which another part reads
    is_text = not has_controls(payload.value)
    if not is_text or has_controls(payload.key) or not is_clean(payload.provenance):
        return None
    return payload if is_record(header.kind) or _stands_right(header, payload) else None


def _stands_right(header: Header, payload: Payload) -> bool:
    """Tell whether a payload has its type's form, and is for the place where its header stands."""
    namespace, key, text = NamespaceId(header.namespace), payload.key, payload.value
    stands, path = Path(header.parent, header.key), path_of(namespace, key)
    match type_of(header.kind):
        case Type.REGISTER | Type.SHARED:
            return is_json(text) and stands == path
        case Type.COUNTER:
            return count_of(text) is not None and stands == path
        case Type.MAXIMUM | Type.MINIMUM:
            return number_of(text) is not None and stands == path
        case Type.ELEMENT:
            return bool(text) and stands == element_path(namespace, key, text)
        case Type.LINE:
            return line_of(text) is not None and stands.parent == path.key
        case Type.NOTE:
            return bool(text) and stands == path
        case _:
            return False


def check_limit(limit: int) -> None:
    """Refuse a number of answers that is none.

    Raises:
        Misuse: it is out of bounds.
    """
    if not 1 <= limit <= ROWS_MAX:
        raise Misuse(f"the limit is 1 to {ROWS_MAX} entries, not {limit}")
