"""Who may write in a namespace, how much, and for how long? What admins said of it, and what follows.

Pure. A policy judges what is written after it: in force for an entry is the newest one that is held
with a clock below the entry's, and for how much an author may hold the newest of all. So what counts
follows from the set that is held, in whichever order it came, and a new policy takes nothing older
away but by its quota. It stands in the book of its namespace's own zone, since nobody outside a zone is
told the names in it (DESIGN 5). What removes and forgets is under no policy: it gives nobody a text.

The store's thread reads it as well: what is kept for a namespace is replaced, never changed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Annotated, TypeVar

import msgspec

from covey.identity.certificate import Member, Role
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId, public_key_of
from covey.identity.wire import KIB, decode, encode

from .books import Record
from .entry import Entry, Key, NamespaceId, PublicKey, author_of, hash_of
from .hybrid_clock import COUNTER_BITS
from .kinds import Lifetime, is_record
from .namespace import DEVICE, MESH, NAMESPACES, Name, Namespace, Zone, namespace_of
from .payload import Payload
from .replica import Quotas

WRITERS_MAX = 64
ENTRIES_MAX = 10_000
TTL_S_MAX = Lifetime.PINNED.ms // 1000
POLICY_BYTES_MAX = 12 * KIB

_Text = TypeVar("_Text", str, bytes)
_Few = msgspec.Meta(max_length=WRITERS_MAX)
_WITHOUT_POLICY = Quotas()


class Writers(msgspec.Struct, frozen=True, array_like=True):
    """Who may write: whoever fits one of these. All are sorted, and none is named twice."""

    roles: Annotated[tuple[Role, ...], _Few] = ()
    """`admin`; `member` is everybody in the zone, admins among them."""
    zones: Annotated[tuple[Zone, ...], _Few] = ()
    peers: Annotated[tuple[PublicKey, ...], _Few] = ()


class Policy(msgspec.Struct, frozen=True, array_like=True):
    """In `_mesh/namespaces` of a zone, under the name of a namespace of that zone: what holds in it."""

    name: Name
    writers: Writers | None = None
    """None: every member of the zone."""
    entries: Annotated[int, msgspec.Meta(ge=1, le=ENTRIES_MAX)] | None = None
    """How many one author may hold of each lifetime; None: 10,000."""
    ttl_s: Annotated[int, msgspec.Meta(ge=1, le=TTL_S_MAX)] | None = None
    """When a text ends at the latest, from when it is written; None: with its lifetime."""


@dataclass(frozen=True, slots=True)
class Stated:
    """A policy, with who stated it when."""

    policy: Policy
    by: PeerId
    key: Key
    clock: int

    @property
    def at_ms(self) -> int:
        """When, by the author's clock."""
        return self.clock >> COUNTER_BITS


@dataclass(frozen=True, slots=True)
class Changed:
    """What of a namespace is to be judged anew."""

    namespace: Namespace
    after: int
    """A clock: what was written later."""


class Policies:
    """The policies that one peer holds, of all the zones that it is in."""

    def __init__(self, mesh: MeshId) -> None:
        self._mesh = mesh
        self._of: dict[NamespaceId, tuple[Stated, ...]] = {}
        self._quotas: dict[NamespaceId, Quotas] = {}
        self._about: dict[tuple[NamespaceId, Key], Namespace] = {}

    # Learning

    def learn(self, book: Namespace, entry: Entry, payload: Payload) -> Changed | None:
        """Take in an entry of the book of a zone, once it counts; None: it was known.

        Raises:
            Malformed: it states nothing that this version understands.
        """
        if (book.id, entry.key) in self._about:
            return None
        policy = read_policy(book, entry, payload)
        about = namespace_of(self._mesh, book.zone, policy.name)
        stated = Stated(policy, author_of(entry.header.author), entry.key, entry.header.clock)
        self._about[book.id, entry.key] = about
        of_it = (*self._of.get(about.id, ()), stated)
        return self._now(about, sorted(of_it, key=lambda one: one.key), stated)

    def forget(self, book: NamespaceId, key: Key) -> Changed | None:
        """Take an entry of a book as gone: a newer one stands in its place, or its author's fell."""
        about = self._about.pop((book, key), None)
        if about is None:
            return None
        gone = next(one for one in self._of[about.id] if one.key == key)
        return self._now(about, [one for one in self._of[about.id] if one.key != key], gone)

    def _now(self, about: Namespace, stated: Iterable[Stated], changed: Stated) -> Changed:
        held = tuple(stated)
        if held:
            self._of[about.id] = held
        else:
            del self._of[about.id]
        entries = held[-1].policy.entries if held else None
        if entries is not None:
            self._quotas[about.id] = Quotas(entries=entries)
        else:
            self._quotas.pop(about.id, None)
        return Changed(about, changed.clock)

    # Asking

    def newest(self, namespace: NamespaceId) -> Stated | None:
        """Return the policy for what is written now, if there is one."""
        held = self._of.get(namespace)
        return held[-1] if held is not None else None

    def in_force(self, namespace: NamespaceId, clock: int) -> Stated | None:
        """Return the policy for what was written at `clock`."""
        for stated in reversed(self._of.get(namespace, ())):
            if stated.clock < clock:
                return stated
        return None

    def quotas(self, namespace: NamespaceId) -> Quotas:
        """Return how much one author may hold there."""
        return self._quotas.get(namespace, _WITHOUT_POLICY)

    def judge(
        self, entry: Entry, namespace: Namespace, author: Member, *, who: str = "its author"
    ) -> None:
        """Refuse an entry that the policy in force for it does not allow.

        Args:
            entry: what was written.
            namespace: where.
            author: who wrote it, by the certificate that it names.
            who: the author in words, for who is told.

        Raises:
            NotAdmitted: code `policy`, saying since when, and what to do.
        """
        stated = self.in_force(namespace.id, entry.header.clock)
        if stated is None or is_record(entry.header.kind):
            return
        policy, header = stated.policy, entry.header
        since = f"by the policy there since {_utc(stated.at_ms)}"
        if policy.writers is not None and not may_write(policy.writers, author):
            of_zone = "" if namespace.zone == MESH else f" --zone {namespace.zone}"
            raise NotAdmitted(
                "policy",
                f"{who} may not write in {namespace.name}, {since}; who may, and by whose word: "
                f"covey memory policy {namespace.name}{of_zone}",
            )
        if policy.ttl_s is None or not header.payload_bytes:
            return
        if header.expires_s * 1000 > entry.at_ms + policy.ttl_s * 1000:
            raise NotAdmitted(
                "policy",
                f"a text in {namespace.name} ends after {_span(policy.ttl_s)} at the latest, {since}; "
                "give it a ttl of no more, or none",
            )

    def all_changed(self) -> list[Changed]:
        """Return all that policies judge: what may have been left undone by a crash."""
        about = {namespace.id: namespace for namespace in self._about.values()}
        return [Changed(about[one], held[0].clock) for one, held in self._of.items()]


def policy_record(zone: str, policy: Policy) -> Record:
    """Return a policy as it is written into the book of its zone."""
    return Record(NAMESPACES, policy.name, encode(policy), zone=zone)


def read_policy(book: Namespace, entry: Entry, payload: Payload) -> Policy:
    """Return what an entry of the book of a zone states.

    Raises:
        Malformed: it is no policy, not in its one form, or of a namespace that has none.
    """
    policy = decode(payload.record, Policy, limit_bytes=POLICY_BYTES_MAX)
    if entry.header.key != hash_of(book.id, policy.name):
        raise Malformed("a policy stands under the name of its namespace")
    check_policy(policy, zone=book.zone)
    return policy


def check_policy(policy: Policy, *, zone: str) -> None:
    """Refuse a policy that nobody may state.

    Raises:
        Malformed: saying why.
    """
    if zone == DEVICE or policy.name.startswith("_"):
        raise Malformed(f"{policy.name} of zone {zone} has no policy")
    if policy.writers is not None:
        writers = policy.writers
        if not all(map(_in_order, (writers.roles, writers.zones))) or not _in_order(writers.peers):
            raise Malformed("a policy names each writer once, in order")
        for public_key in writers.peers:
            author_of(public_key)


def may_write(writers: Writers, author: Member) -> bool:
    """Tell whether an author fits one of those who may write."""
    return (
        "member" in writers.roles
        or author.role in writers.roles
        or any(map(author.is_in, writers.zones))
        or (bool(writers.peers) and public_key_of(author.peer) in writers.peers)
    )


def _in_order(names: Sequence[_Text]) -> bool:
    return all(one < other for one, other in pairwise(names))


def _utc(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _span(seconds: int) -> str:
    for unit, unit_s in (("days", 86_400), ("hours", 3600)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:g} {unit}"
    return f"{seconds} s"
