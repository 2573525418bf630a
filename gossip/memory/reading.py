"""What does the memory say? Single entries, the value under a key, and who wrote what when.

Pure, over the rows of one moment. Also here: where a key, a set's element and a log's line stand,
and how a count, a line and a number are written, for `writing.py` writes what is read here. What a
payload says counts only if it stands where it says that it does and is of the form that its type
has; anything else is of a later version, or a lie, and is not shown. Model: MEMORY 4.4.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from itertools import chain, islice
from typing import NamedTuple

import msgspec

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
    hash_of,
    read_entry,
)
from .kinds import Lifetime, Type, is_record, lifetime_of, type_of
from .payload import KEY_CHARACTERS_MAX, Payload, Provenance, decode_payload
from .replica import REMOVES, is_superseded, place_of
from .tables import Reading, Table

# One answer looks at no more rows than this: an author may hold some 10,000 entries of a namespace,
# and a hostile one may heap them under somebody else's key. It takes about a second.
ROWS_MAX = 50_000
LIMIT_DEFAULT = 100
PREFIX_DIGITS_MIN = 4
ALIKE_SHOWN = 5
KEEP_MAX = 1_000
"""A log keeps at most this many lines of each author: writing one looks at all of them."""
NUMBER_CHARACTERS_MAX = 64
NESTING_MAX = 32
"""A JSON value has at most so many brackets open at once: who decodes one that is deeper runs out of
stack, sooner or later by how deep it is in calls itself, so that what one part took ends another."""

# Lines may be broken and tabbed; what moves a terminal's cursor or colours it is no text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_COUNT = re.compile(r"([0-9]{1,30}) ([0-9]{1,30})")
_LINE = re.compile(r"([1-9][0-9]{0,3}) (.+)", re.DOTALL)
# A text in quotes, which may lack its end, or a bracket outside of one. No byte is looked at twice.
_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
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


# Values


@dataclass(frozen=True, slots=True)
class RegisterValue:
    """The newest value of all authors'; where it ends, the next one stands again."""

    newest: Remembered
    others: tuple[Remembered, ...]
    """The newest of every other author, newest first."""


@dataclass(frozen=True, slots=True)
class SharedValue:
    """The values that no later writer had seen: one, or a conflict, newest first."""

    values: tuple[Remembered, ...]

    @property
    def pick(self) -> Remembered:
        """The one to use by default."""
        return self.values[0]

    @property
    def is_conflict(self) -> bool:
        """Tell whether authors disagree."""
        return len({one.value for one in self.values}) > 1


@dataclass(frozen=True, slots=True)
class Element:
    """A text in a set, and who put it there when, newest first."""

    text: str
    adds: tuple[Remembered, ...]


@dataclass(frozen=True, slots=True)
class SetValue:
    """A set, in the order of its elements' texts."""

    elements: tuple[Element, ...]
    lapsed: tuple[Remembered, ...]
    """Adds that nobody removed and whose text is gone, or not here yet."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one author has added and taken in all."""

    author: PeerId
    added: int
    taken: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class CounterValue:
    """A counter: the sum of what each author has added, less what it has taken."""

    total: int
    counts: tuple[Count, ...]
    """By author."""
    lapsed: tuple[Remembered, ...]
    """Authors' counts that are held, and are not in the total because their text is gone."""


@dataclass(frozen=True, slots=True)
class Extreme:
    """The greatest or the smallest number of all authors'."""

    type: Type
    best: Remembered | None
    """Of equal ones the newest; None: all have lapsed."""
    lapsed: tuple[Remembered, ...]


@dataclass(frozen=True, slots=True)
class LogValue:
    """A log, newest line first: of each author as many as its newest line wants kept."""

    lines: tuple[Remembered, ...]


Value = RegisterValue | SharedValue | SetValue | CounterValue | Extreme | LogValue


@dataclass(frozen=True, slots=True)
class Answer:
    """What is under a key, one value for each type that somebody used there."""

    values: tuple[Value, ...]
    complete: bool
    """False: there was more under the key than is looked at, so sums and sets may lack some."""


# Where things stand


class Path(NamedTuple):
    """Where an entry stands, as its header carries it."""

    parent: bytes
    key: bytes


def path_of(namespace: NamespaceId, key: str) -> Path:
    """Return where a key stands: `a/b/c` under `a/b`."""
    return Path(hash_of(namespace, key.rpartition("/")[0]), hash_of(namespace, key))


# No key has a NUL, so what stands under one of these names can be no key's path.


def element_path(namespace: NamespaceId, of_set: str, text: str) -> Path:
    """Return where an element stands: by its digest, for it may hold anything."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Path(hash_of(namespace, of_set), hash_of(namespace, f"{of_set}\0element\0{digest}"))


def removal_path(namespace: NamespaceId, of_set: str) -> Path:
    """Return where the removals from a set stand."""
    return Path(hash_of(namespace, of_set), hash_of(namespace, f"{of_set}\0removal"))


def line_path(namespace: NamespaceId, log: str, position: int) -> Path:
    """Return where each author's line at a position of a log stands."""
    return Path(hash_of(namespace, log), hash_of(namespace, f"{log}\0line\0{position}"))


def forgetting_path(namespace: NamespaceId) -> Path:
    """Return where forgettings stand."""
    hashed = hash_of(namespace, "\0forgetting")
    return Path(hashed, hashed)


def checked_key(text: str, what: str = "key") -> str:
    """Return a key or a name as it is used: the same letters are the same key on every keyboard.

    Raises:
        Misuse: it is none.
    """
    key = unicodedata.normalize("NFC", text)
    if not key:
        raise Misuse(f"the {what} is empty; name it, such as plant-7/pump-12")
    if len(key) > KEY_CHARACTERS_MAX:
        raise Misuse(f"a {what} has at most {KEY_CHARACTERS_MAX} characters, not {len(key)}")
    if has_controls(key, also="\t\n\r"):
        raise Misuse(f"a {what} has no line breaks or control characters, as {key!r} has")
    if "" in key.split("/"):
        raise Misuse(f"a {what} has a name before and after each slash, {key!r} has not")
    return key


# How values are written


def has_controls(text: str, *, also: str = "") -> bool:
    """Tell whether a text holds characters that are no text, or one of `also`."""
    return _CONTROLS.search(text) is not None or any(one in text for one in also)


def is_clean(provenance: Provenance | None) -> bool:
    """Tell whether a provenance names all in text."""
    if provenance is None:
        return True
    names = (provenance.model, provenance.method, *(one.name for one in provenance.sources))
    return not any(has_controls(name) for name in names)


def nests_too_deep(text: str) -> bool:
    """Tell whether a JSON text opens more than `NESTING_MAX` brackets in one another."""
    if text.count("[") + text.count("{") <= NESTING_MAX:
        return False
    depth = 0
    for token in _NESTING.finditer(text):
        match token[0]:
            case "[" | "{":
                depth += 1
                if depth > NESTING_MAX:
                    return True
            case "]" | "}":
                depth -= 1
            case _:
                pass
    return False


def is_json(text: str) -> bool:
    """Tell whether a text is one JSON value that anybody can decode."""
    if nests_too_deep(text):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def number_of(text: str) -> Decimal | None:
    """Return the number that a text is, written as in JSON; None: it is none."""
    if len(text) > NUMBER_CHARACTERS_MAX or _NUMBER.fullmatch(text) is None:
        return None
    return Decimal(text)


def count_of(text: str) -> tuple[int, int] | None:
    """Return what was added and taken in all; None: the text is no count."""
    match = _COUNT.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]))


def line_of(text: str) -> tuple[int, str] | None:
    """Return how many lines to keep, and the line; None: the text is no line."""
    match = _LINE.fullmatch(text)
    if match is None or int(match[1]) > KEEP_MAX:
        return None
    return int(match[1]), match[2]


# Single entries


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
            one = _held_at(reading, namespace, key, now_ms)
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
    _check_limit(limit)
    found: list[Remembered] = []
    for looked_at, key in enumerate(_keys_down(reading, namespace, author, older_than)):
        if len(found) == limit or looked_at == ROWS_MAX:
            break
        one = _held_at(reading, namespace, key, now_ms)
        if one is None or (author is not None and author_of(one.header.author) != author):
            continue
        shown = remembered(reading, one, now_ms)
        if not shown_only or shown.state is State.SHOWN:
            found.append(shown)
    return tuple(found)


def history(
    reading: Reading,
    namespace: NamespaceId,
    key: str,
    now_ms: int,
    *,
    limit: int = LIMIT_DEFAULT,
) -> tuple[Remembered, ...]:
    """Return every slot that is held under a key, each author's, newest first, with its state.

    Of a set and of a log these are its elements, removals and lines. What an author has itself
    written over is gone, by design, so this is not a list of all changes.

    Raises:
        Misuse: the key or the limit is none.
    """
    _check_limit(limit)
    found, _ = _under(reading, namespace, checked_key(key), ROWS_MAX)
    return tuple(islice(_of_key(reading, namespace, found, now_ms), limit))


def value(
    reading: Reading,
    namespace: NamespaceId,
    key: str,
    now_ms: int,
    *,
    rows_max: int = ROWS_MAX,
) -> Answer:
    """Return what a key holds; no values: nothing that is shown, and nothing lapsed.

    Raises:
        Misuse: the key is none.
    """
    found, complete = _under(reading, namespace, checked_key(key), rows_max)
    held = list(_of_key(reading, namespace, found, now_ms))
    made = (make([one for one in held if one.type is type_]) for type_, make in _MAKERS)
    return Answer(tuple(one for one in made if one is not None), complete)


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
    return _held_at(reading, namespace, key, now_ms)


def held_under(
    reading: Reading, namespace: NamespaceId, path: Path, now_ms: int
) -> Iterator[Entry]:
    """Give what is held under one key, each author's, newest first, from at most `ROWS_MAX` rows."""
    rows = reading.scan(Table.GROUP, namespace + path.parent + path.key, reverse=True)
    for row, _ in islice(rows, ROWS_MAX):
        one = _held_at(reading, namespace, row[-KEY_BYTES_TOTAL:], now_ms)
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


def _held_at(reading: Reading, namespace: NamespaceId, key: bytes, now_ms: int) -> Entry | None:
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


# Values out of what is held


def _under(
    reading: Reading, namespace: NamespaceId, key: str, rows_max: int
) -> tuple[list[tuple[Key, bool]], bool]:
    """Return what stands under a key, newest first, and whether that is all.

    With each goes whether it stands inside, as an element in its set, or at the key itself.
    """
    path = path_of(namespace, key)
    at_key = reading.scan(Table.GROUP, namespace + path.parent + path.key, reverse=True)
    inside = reading.scan(Table.GROUP, namespace + path.key)
    rows = chain(((row, False) for row, _ in at_key), ((row, True) for row, _ in inside))
    found = [(Key(row[-KEY_BYTES_TOTAL:]), below) for row, below in islice(rows, rows_max + 1)]
    return sorted(found[:rows_max], reverse=True), len(found) <= rows_max


def _of_key(
    reading: Reading, namespace: NamespaceId, found: Iterable[tuple[Key, bool]], now_ms: int
) -> Iterator[Remembered]:
    """Give those that belong to the key: not what stands below it in keys of their own."""
    for key, below in found:
        one = _held_at(reading, namespace, key, now_ms)
        if one is None or one.lifetime is Lifetime.BOOK:
            continue
        if below == (type_of(one.header.kind) in _INSIDE):
            yield remembered(reading, one, now_ms)


_INSIDE = frozenset({Type.ELEMENT, Type.LINE, Type.REMOVAL})
"""What stands below the key of the set or log that it belongs to."""


def _shown(held: Iterable[Remembered]) -> list[Remembered]:
    return [one for one in held if one.state is State.SHOWN]


_LAPSED = frozenset({State.EXPIRED, State.FORGOTTEN, State.MISSING, State.UNREADABLE})


def _lapsed(held: Iterable[Remembered]) -> tuple[Remembered, ...]:
    return tuple(one for one in held if one.state in _LAPSED)


def _newest_of_each(held: Iterable[Remembered]) -> list[Remembered]:
    """Return each author's newest, which may have one in each lifetime."""
    newest: dict[PeerId, Remembered] = {}
    for one in held:
        newest.setdefault(one.author, one)
    return list(newest.values())


def _register(held: Sequence[Remembered]) -> RegisterValue | None:
    newest = _newest_of_each(_shown(held))
    return RegisterValue(newest[0], tuple(newest[1:])) if newest else None


def _shared(held: Sequence[Remembered]) -> SharedValue | None:
    newest = _newest_of_each(_shown(held))
    return SharedValue(tuple(newest)) if newest else None


def _set(held: Sequence[Remembered]) -> SetValue | None:
    if not held:
        return None
    adds: dict[str, list[Remembered]] = {}
    for one in _shown(held):
        adds.setdefault(one.value, []).append(one)
    elements = tuple(Element(text, tuple(adds[text])) for text in sorted(adds))
    return SetValue(elements, _lapsed(held))


def _counter(held: Sequence[Remembered]) -> CounterValue | None:
    if not held:
        return None
    counts = [
        Count(one.author, *count, one.at_ms)
        for one in sorted(_shown(held), key=lambda one: one.author)
        if (count := count_of(one.value)) is not None
    ]
    total = sum(one.added - one.taken for one in counts)
    return CounterValue(total, tuple(counts), _lapsed(held))


def _maximum(held: Sequence[Remembered]) -> Extreme | None:
    best = max(_shown(held), key=lambda one: (Decimal(one.value), one.order), default=None)
    return Extreme(Type.MAXIMUM, best, _lapsed(held)) if held else None


def _minimum(held: Sequence[Remembered]) -> Extreme | None:
    # `held` is newest first, and of equal ones `min` takes the first.
    best = min(_shown(held), key=lambda one: Decimal(one.value), default=None)
    return Extreme(Type.MINIMUM, best, _lapsed(held)) if held else None


def _log(held: Sequence[Remembered]) -> LogValue | None:
    left: dict[PeerId, int] = {}
    lines: list[Remembered] = []
    for one in _shown(held):
        left.setdefault(one.author, one.keep)
        if left[one.author]:
            left[one.author] -= 1
            lines.append(one)
    return LogValue(tuple(lines)) if lines else None


_MAKERS: tuple[tuple[Type, Callable[[Sequence[Remembered]], Value | None]], ...] = (
    (Type.REGISTER, _register),
    (Type.SHARED, _shared),
    (Type.ELEMENT, _set),
    (Type.COUNTER, _counter),
    (Type.MAXIMUM, _maximum),
    (Type.MINIMUM, _minimum),
    (Type.LINE, _log),
)


def _check_limit(limit: int) -> None:
    if not 1 <= limit <= ROWS_MAX:
        raise Misuse(f"the limit is 1 to {ROWS_MAX} entries, not {limit}")
