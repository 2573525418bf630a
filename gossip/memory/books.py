"""What do the mesh's own books say? The records in them, and how a peer learns from them.

Pure. An entry of the mesh's own is judged by the chain that it carries, never by who served it, so the
books can be read before anybody is known (DESIGN 4).
"""

from dataclasses import dataclass

import msgspec

from covey.identity.certificate import Chain
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed
from covey.identity.invite import Terms
from covey.identity.keys import KEY_BYTES, Keypair, PeerId
from covey.identity.wire import KIB, decode, encode

from .entry import NO_CERTIFICATE, VERSION, Entry, Header, digest_of, hash_of, sign_entry
from .hybrid_clock import COUNTER_BITS
from .kinds import Lifetime, Type, kind_of
from .namespace import MEMBERS, MESH, REVOKED, Namespace
from .payload import SCHEMA, Payload, decode_payload, encode_payload
from .replica import Arrival
from .standing import Revocation, Standing, certificate_id

CHAIN_BYTES_MAX = 12 * KIB


class MemberRecord(msgspec.Struct, frozen=True, array_like=True):
    """In `_mesh/members`, under the member's peer id: its chain."""

    chain: tuple[bytes, ...]


class InviteEntry(msgspec.Struct, frozen=True, array_like=True):
    """In `_mesh/invites`, under the key in hex: an invite's public half. Who reads it gains nothing."""

    key: bytes
    terms: Terms
    inviter: bytes
    """Public key of the admin that honours it."""


@dataclass(frozen=True, slots=True)
class Record:
    """A record to be written."""

    book: str
    key: str
    """What it is about; a newer one of this author's with this key, of the same day, replaces it."""
    value: bytes
    root: Keypair | None = None
    """Signed by the mesh's root; None: by who writes it."""
    ttl_ms: int | None = None
    """When it ends, from now; None: with its lifetime."""
    zone: str = MESH
    """Whose book."""


def membership(peer: PeerId, chain: Chain) -> Record:
    """Return what enters a member's chain into the books, beside those that it had before.

    Each certificate has a key of its own: a newer one of the same day would take the place of the
    older, under which the member may have written already.
    """
    return Record(MEMBERS, f"{peer}/{certificate_id(chain[-1]).hex()}", member_record(chain))


def member_record(chain: Chain) -> bytes:
    """Return a member's chain as it stands in the books."""
    return encode(MemberRecord(chain))


def revocation_record(revocation: Revocation) -> bytes:
    """Return a revocation as it stands in the books."""
    return encode(revocation)


def read_invite(value: bytes) -> InviteEntry:
    """Return what the books say of an invite.

    Raises:
        Malformed: it is nothing that this version understands.
    """
    entry = decode(value, InviteEntry)
    if len(entry.key) != KEY_BYTES or len(entry.inviter) != KEY_BYTES:
        raise Malformed("an invite's keys have the wrong length")
    return entry


def learn_author(standing: Standing, namespace: Namespace, payload: bytes | None) -> None:
    """Take in the chain that an entry of the mesh's own carries, so that it can be judged.

    Raises:
        Malformed, NotAdmitted: it carries none that holds.
    """
    if payload is None:
        if namespace.is_book:
            raise Malformed("an entry of the books without its payload")
        return
    chain = decode_payload(payload).chain
    if chain:
        standing.learn(chain)


def learn(
    standing: Standing, namespace: Namespace, entry: Entry, payload: Payload
) -> Revocation | None:
    """Take in what an entry of the books says, once it counts; a revocation that is new is returned.

    Raises:
        Malformed, NotAdmitted: it says nothing that this version understands; others may.
    """
    # Of another zone, it is a book of a later version: who is a member is the same for all.
    match namespace.name if namespace.zone == MESH else None:
        case name if name == MEMBERS:
            record = decode(payload.record, MemberRecord, limit_bytes=CHAIN_BYTES_MAX)
            standing.learn(record.chain)
        case name if name == REVOKED:
            revocation = decode(payload.record, Revocation)
            header = entry.header
            if standing.revoke(revocation, by=header.certificate, clock=header.clock):
                return revocation
        case _:
            pass
    return None


def compose(
    author: Keypair,
    mesh: MeshId,
    namespace: Namespace,
    chain: Chain,
    clock: int,
    salt: bytes,
    record: Record,
) -> Arrival:
    """Return a record of the mesh's own, signed.

    Args:
        author: who writes it; the root signs if the record says so.
        mesh: the mesh.
        namespace: which book, or another of the mesh's own.
        chain: the author's own chain.
        clock: the entry's time.
        salt: 16 bytes.
        record: what to say.
    """
    keypair, by = (author, chain) if record.root is None else (record.root, ())
    payload = encode_payload(Payload(SCHEMA, salt, record.key, "", record=record.value, chain=by))
    lifetime = Lifetime.BOOK if namespace.is_book else Lifetime.NORMAL
    lasts_ms = lifetime.ms if record.ttl_ms is None else min(record.ttl_ms, lifetime.ms)
    header = Header(
        version=VERSION,
        namespace=namespace.id,
        author=keypair.public_key,
        clock=clock,
        expires_s=((clock >> COUNTER_BITS) + lasts_ms) // 1000,
        kind=kind_of(Type.REGISTER, lifetime),
        parent=hash_of(namespace.id, ""),
        key=hash_of(namespace.id, record.key),
        seen=(),
        payload_digest=digest_of(payload),
        payload_bytes=len(payload),
        certificate=certificate_id(by[-1]) if by else NO_CERTIFICATE,
    )
    return Arrival(
        sign_entry(header, mesh=mesh, keypair=keypair), payload, by_admin=namespace.is_book
    )
