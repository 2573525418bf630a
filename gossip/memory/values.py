"""What stands under a key? Its values, each type's as its law says, and who wrote what when.

Pure, over the rows of one moment. Model: MEMORY 4.4.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice

from covey.identity.keys import PeerId

from .entry import KEY_BYTES_TOTAL, Key, NamespaceId
from .forms import count_of
from .kinds import Lifetime, Type, type_of
from .paths import checked_key, path_of
from .reading import LIMIT_DEFAULT, ROWS_MAX, Remembered, State, check_limit, held_at, remembered
from .tables import Reading, Table


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
    check_limit(limit)
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
        one = held_at(reading, namespace, key, now_ms)
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
