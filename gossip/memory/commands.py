"""What can an author say? The commands of the shared memory, which `writing.py` carries out."""

from dataclasses import dataclass

from .entry import EntryId
from .payload import Embedding, Provenance


@dataclass(frozen=True, slots=True)
class Note:
    """A text of its own, or of an older one of the same author anew."""

    text: str
    provenance: Provenance | None = None
    embedding: Embedding | None = None
    derived_from: tuple[bytes, ...] = ()
    """Ids of the entries that it was made from."""
    renews: EntryId | None = None


@dataclass(frozen=True, slots=True)
class Register:
    """The value of a key, in place of everybody's older one; JSON."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class Shared:
    """The value of a key, in place of those that are held here, and of no other; JSON."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class SetAdd:
    """An element into a set."""

    of_set: str
    element: str


@dataclass(frozen=True, slots=True)
class SetRemove:
    """An element out of a set: everybody's adds that are held here."""

    of_set: str
    element: str


@dataclass(frozen=True, slots=True)
class CounterAdd:
    """So many more, or less."""

    key: str
    delta: int


@dataclass(frozen=True, slots=True)
class Maximum:
    """The greatest number of all is at least this."""

    key: str
    number: str


@dataclass(frozen=True, slots=True)
class Minimum:
    """The smallest number of all is at most this."""

    key: str
    number: str


@dataclass(frozen=True, slots=True)
class LogAppend:
    """A line at the end of a log that keeps so many of each author."""

    log: str
    text: str
    keep: int = 100


@dataclass(frozen=True, slots=True)
class Forget:
    """These entries' texts away, everywhere."""

    ids: tuple[EntryId, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ForgetAuthor:
    """All texts of an author away, everywhere."""

    author: bytes
    """The public key."""
    before: int | None = None
    """A clock: those before it. None: up to now, and all that is held here."""
    reason: str = ""


Command = (
    Note
    | Register
    | Shared
    | SetAdd
    | SetRemove
    | CounterAdd
    | Maximum
    | Minimum
    | LogAppend
    | Forget
    | ForgetAuthor
)
