"""What kinds of entry are there, how long is each kept, and which replace which?

A kind is one integer: its low 4 bits are the type, the bits above the lifetime. A type that this
version does not know is kept, passed on and not shown, so that meshes of mixed versions converge. It
is taken to have slots, so a later version adds no other records below 14.
"""

from enum import IntEnum
from typing import NewType

from covey.identity.errors import Malformed

DAY_MS = 86_400_000

Kind = NewType("Kind", int)


class Type(IntEnum):
    """What an entry is."""

    REGISTER = 1
    """One value; of all authors' the newest counts."""
    SHARED = 2
    """One value for each author; those that nobody has superseded stand beside each other."""
    ELEMENT = 3
    """An element of a set, there until somebody who has seen it removes it."""
    COUNTER = 4
    """How much its author has added and taken in all; the value is the sum over authors."""
    MAXIMUM = 5
    MINIMUM = 6
    LINE = 7
    """A line of a log that keeps the newest."""
    NOTE = 8
    """A text of its own."""
    REMOVAL = 14
    """Takes the elements that it names out of their set."""
    FORGETTING = 15
    """Takes the text of what it names away, everywhere and for good."""


class Lifetime(IntEnum):
    """How long a header is kept after its clock; one that is older is refused for ever."""

    SCRATCH = 0
    NORMAL = 1
    PINNED = 2
    BOOK = 3

    @property
    def ms(self) -> int:
        """The time in milliseconds."""
        return _LIFETIME_MS[self]


_LIFETIME_MS = {
    Lifetime.SCRATCH: DAY_MS,
    Lifetime.NORMAL: 90 * DAY_MS,
    Lifetime.PINNED: 400 * DAY_MS,
    Lifetime.BOOK: 6 * 365 * DAY_MS,
}
_TYPE_BITS = 4
_TYPE_MASK = (1 << _TYPE_BITS) - 1
# Asked some twenty times for each entry: an enum's own look-up takes ten times as long.
_TYPE_OF = {int(type_): type_ for type_ in Type}
_LIFETIME_OF = {int(lifetime): lifetime for lifetime in Lifetime}
_RECORDS = frozenset({Type.REMOVAL, Type.FORGETTING})
# What others' entries hang on must outlive all of them (MEMORY 4.5): a lapsed removal would bring an
# element back, a lapsed slot would change a sum.
_PINNED_ONLY = _RECORDS | {Type.ELEMENT, Type.COUNTER, Type.MAXIMUM, Type.MINIMUM}


def kind_of(type_: Type, lifetime: Lifetime) -> Kind:
    """Return the kind of a type and a lifetime."""
    return Kind(lifetime << _TYPE_BITS | type_)


def type_of(kind: int) -> Type | None:
    """Return the type; None: it is of a later version."""
    return _TYPE_OF.get(kind & _TYPE_MASK)


def lifetime_of(kind: int) -> Lifetime:
    """Return the lifetime.

    Raises:
        Malformed: there is no such one; without it nobody knows how long to keep the entry.
    """
    lifetime = _LIFETIME_OF.get(kind >> _TYPE_BITS)
    if lifetime is None:
        raise Malformed(f"an entry of unknown lifetime {kind >> _TYPE_BITS}")
    return lifetime


def is_record(kind: int) -> bool:
    """Tell whether it acts on other entries and is replaced by none."""
    return kind & _TYPE_MASK in _RECORDS


def check_kind(kind: int) -> None:
    """Refuse a type under a lifetime that it cannot have.

    Raises:
        Malformed: saying which.
    """
    type_, lifetime = type_of(kind), lifetime_of(kind)
    if type_ is not None and type_ in _PINNED_ONLY and lifetime is not Lifetime.PINNED:
        raise Malformed(f"a {type_.name.lower()} is pinned, not {lifetime.name.lower()}")


def pinned_only(type_: Type) -> bool:
    """Tell whether entries of this type are always pinned."""
    return type_ in _PINNED_ONLY
