"""What is one entry of the shared memory? Its signed header, its id, and the limits of both.

An entry is signed once and never changes. The header carries no text: key and parent path are
hashes keyed with the namespace, and what was written is the payload, which travels beside it and
must hash to what the header says; so a payload can be dropped while the header still proves what it
superseded. The signature is over the canonical CBOR array [domain, mesh id, "memory", body] and is
not part of the id: an author could make many for one body. Layout: docs/WIRE.md; model: MEMORY 4.1.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Generic, NewType, TypeVar

import msgspec

from covey.identity.envelope import MeshId, signed_bytes
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import KEY_BYTES, Keypair, PeerId, is_sound_key, peer_id_of, verify
from covey.identity.wire import KIB, bytes_item, decode, encode, encode_plain, read_back

from .kinds import DAY_MS, Lifetime, check_kind, is_record, lifetime_of

T = TypeVar("T")

NamespaceId = NewType("NamespaceId", bytes)
"""16 bytes: the hash of mesh, zone and name, so the zone is part of what every entry signs."""
EntryId = NewType("EntryId", bytes)
"""32 bytes: the hash of the body."""
Key = NewType("Key", bytes)
"""40 bytes: an entry's place in time order, its clock (8 bytes, big-endian) and its id."""

SIGNED_AS = "memory"
VERSION = 1
NAMESPACE_BYTES = 16
ID_BYTES = 32
SHORT_ID_BYTES = 16
CLOCK_BYTES = 8
KEY_BYTES_TOTAL = CLOCK_BYTES + ID_BYTES
HASH_BYTES = 16
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
# A header with the most ids that it may name has 72 x 17 bytes and about 300 more; the rest is for
# fields that later versions add.
HEADER_BYTES_MAX = 3 * KIB
PAYLOAD_BYTES_MAX = 16 * KIB
# What acts on other entries cannot be forgotten itself, so it may hold no more than a reason.
REASON_BYTES_MAX = KIB
SEEN_MAX = 64
DERIVED_MAX = 8
# One that is written ahead of this peer's clock by more waits outside (MEMORY 4.3).
AHEAD_MS_MAX = 5 * 60_000
_HEAD_OF_TWO = b"\x82"
NO_CERTIFICATE = bytes(HASH_BYTES)
"""In the place of a certificate's id: the mesh's root key is its own authority."""

Hash = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
Digest = Annotated[bytes, msgspec.Meta(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]
PublicKey = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
Unsigned = Annotated[int, msgspec.Meta(ge=0)]


# Neither can be part of a cycle, and of both there are many.
class Header(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an author signs of one entry; fixed positions, a later version adds at the end."""

    version: Annotated[int, msgspec.Meta(ge=1)]
    namespace: Hash
    author: PublicKey
    clock: Unsigned
    """Hybrid logical clock: unix milliseconds << 16, and a counter."""
    expires_s: Unsigned
    """Unix seconds; from then on it is not shown, and its payload goes."""
    kind: Unsigned
    """Low 4 bits: the type; the bits above: the lifetime."""
    parent: Hash
    key: Hash
    seen: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=SEEN_MAX)]
    """Short ids of the entries that this one supersedes, removes or forgets."""
    payload_digest: Digest
    payload_bytes: Annotated[int, msgspec.Meta(ge=0, le=PAYLOAD_BYTES_MAX)]
    """Of 0 bytes: the slot is withdrawn."""
    certificate: Hash
    """The id of the author's certificate that covers the entry's time."""
    derived_from: Annotated[tuple[Hash, ...], msgspec.Meta(max_length=DERIVED_MAX)] = ()
    """Short ids of the entries that this one was made from."""
    subject: Annotated[bytes, msgspec.Meta(max_length=KEY_BYTES)] = b""
    """Whose entries up to `cut` are forgotten; empty: nobody's."""
    cut: Unsigned = 0
    """A clock: of `subject`'s entries those up to it are forgotten."""


class SignedHeader(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A header as it travels and rests."""

    body: bytes
    signature: Annotated[
        bytes, msgspec.Meta(min_length=SIGNATURE_BYTES, max_length=SIGNATURE_BYTES)
    ]


class _Once(Generic[T]):
    """What follows from an entry, made when it is first asked for.

    As `functools.cached_property`, which before Python 3.12 takes a lock each time.
    """

    def __init__(self, make: Callable[["Entry"], T]) -> None:
        self._make = make

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, entry: "Entry", _owner: type) -> T:
        made = entry.__dict__[self._name] = self._make(entry)
        return made


@dataclass(frozen=True)
class Entry:
    """One entry without its payload; `data` is the signed header as it came, never encoded again."""

    id: EntryId
    header: Header
    data: bytes

    @_Once
    def key(self) -> Key:
        """Where it stands in time order."""
        return Key(self.header.clock.to_bytes(CLOCK_BYTES, "big") + self.id)

    @property
    def at_ms(self) -> int:
        """When it was written, by its author's clock."""
        return self.header.clock >> 16

    @property
    def lifetime(self) -> Lifetime:
        """How long its header is kept."""
        return lifetime_of(self.header.kind)

    @property
    def kept_until_ms(self) -> int:
        """Until when its header is kept, and after which it is refused for ever."""
        return self.at_ms + self.lifetime.ms

    @_Once
    def slot(self) -> bytes | None:
        """What of its author it replaces: only the newest entry of a slot stays. None: nothing."""
        header = self.header
        if is_record(header.kind):
            return None
        # Entries of the books are counted by day, so each day has its own newest: see replica.py.
        day = self.at_ms // DAY_MS if self.lifetime is Lifetime.BOOK else 0
        named = encode_plain([header.kind, header.author, header.parent, header.key, day])
        return hashlib.blake2b(named, digest_size=HASH_BYTES).digest()


def namespace_id(mesh: MeshId, zone: str, name: str) -> NamespaceId:
    """Return the id of a namespace; under another zone the same name is another namespace."""
    named = encode_plain(["covey/namespace/1", mesh, zone, name])
    return NamespaceId(hashlib.sha256(named).digest()[:NAMESPACE_BYTES])


def hash_of(namespace: NamespaceId, text: str) -> bytes:
    """Return a key or path as a header carries it: who does not know the text cannot read it."""
    return hashlib.blake2b(
        text.encode(errors="surrogatepass"), key=namespace, digest_size=HASH_BYTES
    ).digest()


def digest_of(payload: bytes) -> bytes:
    """Return the digest by which a header names its payload."""
    return hashlib.sha256(payload).digest()


def sign_entry(header: Header, *, mesh: MeshId, keypair: Keypair) -> Entry:
    """Return the entry that `header` is, signed by its author."""
    body = encode(header)
    signature = keypair.sign(signed_bytes(SIGNED_AS, mesh, body))
    # As `encode` has a `SignedHeader`; the law is in test_entry.py.
    data = _HEAD_OF_TWO + bytes_item(body) + bytes_item(signature)
    return Entry(_id_of(body), header, data)


def open_entry(data: bytes, *, mesh: MeshId) -> Entry:
    """Return the entry in `data`, once its form, its limits and its signature hold.

    Whether its author may write it is another question (`standing.py`).

    Raises:
        Malformed: it is no entry, or breaks a limit.
        NotAdmitted: `bad-signature`: its author did not sign it in this mesh.
    """
    signed = decode(data, SignedHeader, limit_bytes=HEADER_BYTES_MAX)
    if not data.startswith(
        _HEAD_OF_TWO
    ):  # it is canonical, so this is the one head that it can have
        raise Malformed("something stands beside body and signature, which nobody signed")
    header = decode(signed.body, Header, limit_bytes=HEADER_BYTES_MAX)
    _check(header)
    if not verify(header.author, signed_bytes(SIGNED_AS, mesh, signed.body), signed.signature):
        raise NotAdmitted("bad-signature", "the signature on this entry does not hold in this mesh")
    return Entry(_id_of(signed.body), header, data)


def read_entry(data: bytes) -> Entry:
    """Return an entry that this device has checked before, such as a stored row.

    Raises:
        Malformed: it is damaged.
    """
    signed = read_back(data, SignedHeader)
    return Entry(_id_of(signed.body), read_back(signed.body, Header), data)


def check_payload(entry: Entry, payload: bytes) -> None:
    """Refuse a payload that is not the one which the header names.

    Raises:
        Malformed: it is another.
    """
    header = entry.header
    if len(payload) != header.payload_bytes or digest_of(payload) != header.payload_digest:
        raise Malformed("the payload is not the one that the header names")


@lru_cache(maxsize=4096)
def author_of(public_key: bytes) -> PeerId:
    """Return the peer id of an author.

    Raises:
        Malformed: it is no sound key.
    """
    if not is_sound_key(public_key):
        raise Malformed("the author is not an Ed25519 key")
    return peer_id_of(public_key)


def _check(header: Header) -> None:
    author_of(header.author)
    check_kind(header.kind)
    lifetime = lifetime_of(header.kind)
    if header.clock >= 1 << 64:
        raise Malformed("the clock is beyond 64 bits")
    if header.expires_s * 1000 > (header.clock >> 16) + lifetime.ms:
        raise Malformed(f"it expires later than a {lifetime.name.lower()} entry can be kept")
    if header.cut > header.clock:
        raise Malformed("it reaches beyond its own time")
    if is_record(header.kind) and header.payload_bytes > REASON_BYTES_MAX:
        raise Malformed(f"a reason has at most {REASON_BYTES_MAX} bytes")
    if header.subject and len(header.subject) != KEY_BYTES:
        raise Malformed("its subject is not an Ed25519 key")


def _id_of(body: bytes) -> EntryId:
    return EntryId(hashlib.sha256(body).digest())
