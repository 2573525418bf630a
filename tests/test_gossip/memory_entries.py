"""What do alice, bob, carol and an admin write? Entries of the shared memory, for tests.

Each builder gives an `Arrival`: the signed entry, its payload, and whether an admin wrote it.
`unsigned` makes an entry of a bare header, with an empty signature: for laws over thousands of
entries, where nobody looks at it.
"""

import hashlib
from collections.abc import Sequence
from typing import TypedDict, Unpack

from test_gossip.members import ADMIN, MESH, NOW_MS, key

from covey.gossip.memory.entry import (
    HASH_BYTES,
    SHORT_ID_BYTES,
    SIGNATURE_BYTES,
    VERSION,
    Entry,
    EntryId,
    Header,
    NamespaceId,
    SignedHeader,
    digest_of,
    hash_of,
    namespace_id,
    sign_entry,
)
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.kinds import Lifetime, Type, kind_of, pinned_only
from covey.gossip.memory.payload import SALT_BYTES, SCHEMA, Payload, encode_payload
from covey.gossip.memory.replica import Arrival
from covey.identity.keys import Keypair
from covey.identity.wire import encode

__all__ = ["ADMIN", "ALICE", "BOB", "CAROL", "MESH", "NOW_MS"]

ALICE, BOB, CAROL = key(1), key(2), key(3)
PUMPS = namespace_id(MESH, "mesh", "plant/pumps")
CERTIFICATE = b"\x0c" * HASH_BYTES


class Terms(TypedDict, total=False):
    """What every entry may be given besides what it says."""

    at_ms: int
    """When its author wrote it, unix milliseconds."""
    counter: int
    """Tells entries of one millisecond apart."""
    lifetime: Lifetime
    """Normal, and pinned where nothing else is allowed."""
    expires_ms: int
    """Unix milliseconds, of which the header keeps whole seconds; at the end of its lifetime."""
    namespace: NamespaceId
    certificate: bytes
    derived_from: tuple[bytes, ...]
    version: int
    signed: bool
    """False: with an empty signature, which is faster."""


def note(author: Keypair, text: str, *, name: str = "", **terms: Unpack[Terms]) -> Arrival:
    """Return a note; without a name it has a slot of its own for each text."""
    return write(Type.NOTE, author, name or text, text, **terms)


def register(author: Keypair, name: str, value: str | None, **terms: Unpack[Terms]) -> Arrival:
    """Return a value of a register; None withdraws the author's."""
    return write(Type.REGISTER, author, name, value, **terms)


def shared(
    author: Keypair, name: str, value: str | None, *seen: Arrival, **terms: Unpack[Terms]
) -> Arrival:
    """Return an author's value of a shared register, which supersedes those that it has seen."""
    return write(Type.SHARED, author, name, value, seen=shorts(seen), **terms)


def counter(author: Keypair, name: str, added: int, taken: int, **terms: Unpack[Terms]) -> Arrival:
    """Return how much an author has added to and taken from a counter in all."""
    return write(Type.COUNTER, author, name, f"{added} {taken}", **terms)


def element(author: Keypair, name: str, value: str, **terms: Unpack[Terms]) -> Arrival:
    """Return an element of the set `name`."""
    return write(Type.ELEMENT, author, value, value, parent=name, **terms)


def line(author: Keypair, name: str, text: str, **terms: Unpack[Terms]) -> Arrival:
    """Return a line of the log `name`."""
    return write(Type.LINE, author, text, text, parent=name, **terms)


def removal(
    author: Keypair, *elements: Arrival, reason: str | None = None, **terms: Unpack[Terms]
) -> Arrival:
    """Return what takes elements out of their sets."""
    return write(Type.REMOVAL, author, "", reason, seen=shorts(elements), **terms)


def forgetting(
    author: Keypair,
    *forgotten: Arrival,
    subject: Keypair | None = None,
    up_to_ms: int = 0,
    reason: str | None = None,
    **terms: Unpack[Terms],
) -> Arrival:
    """Return what forgets entries, or all that `subject` wrote up to a time."""
    return write(
        Type.FORGETTING,
        author,
        "",
        reason,
        seen=shorts(forgotten),
        subject=subject.public_key if subject is not None else b"",
        cut=(up_to_ms + 1 << COUNTER_BITS) - 1 if subject is not None else 0,
        **terms,
    )


def write(
    type_: Type,
    author: Keypair,
    name: str,
    value: str | None,
    *,
    parent: str = "",
    seen: tuple[bytes, ...] = (),
    subject: bytes = b"",
    cut: int = 0,
    **terms: Unpack[Terms],
) -> Arrival:
    """Return an entry of any type; of value None it is withdrawn, or gives no reason."""
    at_ms = terms.get("at_ms", NOW_MS)
    lifetime = terms.get("lifetime", Lifetime.PINNED if pinned_only(type_) else Lifetime.NORMAL)
    namespace = terms.get("namespace", PUMPS)
    payload = None if value is None else payload_of(name, value)
    header = Header(
        version=terms.get("version", VERSION),
        namespace=namespace,
        author=author.public_key,
        clock=at_ms << COUNTER_BITS | terms.get("counter", 0),
        expires_s=terms.get("expires_ms", at_ms + lifetime.ms) // 1000,
        kind=kind_of(type_, lifetime),
        parent=hash_of(namespace, parent),
        key=hash_of(namespace, name),
        seen=seen,
        payload_digest=digest_of(payload or b""),
        payload_bytes=len(payload or b""),
        certificate=terms.get("certificate", CERTIFICATE),
        derived_from=terms.get("derived_from", ()),
        subject=subject,
        cut=cut,
    )
    signed = terms.get("signed", True)
    entry = sign_entry(header, mesh=MESH, keypair=author) if signed else unsigned(header)
    return Arrival(entry, payload, by_admin=author is ADMIN)


def unsigned(header: Header) -> Entry:
    """Return the entry of a header, with an empty signature."""
    body = encode(header)
    data = encode(SignedHeader(body, bytes(SIGNATURE_BYTES)))
    return Entry(EntryId(hashlib.sha256(body).digest()), header, data)


def payload_of(name: str, value: str) -> bytes:
    """Return a payload whose salt follows from what it says."""
    salt = hashlib.sha256(f"{name} {value}".encode()).digest()[:SALT_BYTES]
    return encode_payload(Payload(SCHEMA, salt, name, value))


def shorts(arrivals: Sequence[Arrival]) -> tuple[bytes, ...]:
    """Return the short ids by which other entries name these."""
    return tuple(one.entry.id[:SHORT_ID_BYTES] for one in arrivals)
