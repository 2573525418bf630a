"""Did this key say this, for this purpose, in this mesh? Signed envelopes.

The signature is over the canonical CBOR array [domain, mesh id, kind, body], so what was signed for
one purpose or mesh is valid in no other. An envelope can be repeated by anyone: what it says must
be harmless to hear twice (a certificate, an advert with its number, an outcome of a numbered
attempt).
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NewType, TypeVar

import msgspec

from .errors import Malformed, NotAdmitted
from .keys import KEY_BYTES, Keypair, PeerId, is_sound_key, peer_id_of, verify
from .wire import KIB, bytes_item, decode, encode, encode_plain

T = TypeVar("T", bound=msgspec.Struct)

MeshId = NewType("MeshId", bytes)
"""32 bytes: the hash of the mesh's root key."""

_DOMAIN = "covey/1"
ENVELOPE_OVERHEAD_BYTES = 256


def mesh_id_of(root_key: bytes) -> MeshId:
    """Return the id of the mesh whose root public key this is."""
    return MeshId(hashlib.sha256(b"covey/mesh/1" + root_key).digest())


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """What arrived: nothing in it is known to be true yet."""

    kind: str
    signer: bytes
    body: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Signed(Generic[T]):
    """What `open_envelope` found true: `signer` said `body`.

    `data` is the envelope as it came, to be stored and passed on; it is never encoded again.
    """

    body: T
    signer: PeerId
    data: bytes


def seal(body: msgspec.Struct, *, kind: str, mesh: MeshId, keypair: Keypair) -> bytes:
    """Return `body` as an envelope signed for this kind and mesh."""
    encoded = encode(body)
    signature = keypair.sign(signed_bytes(kind, mesh, encoded))
    return encode(Envelope(kind, keypair.public_key, encoded, signature))


def open_envelope(
    data: bytes, body_type: type[T], *, kind: str, mesh: MeshId, limit_bytes: int = 64 * KIB
) -> Signed[T]:
    """Return what the envelope says, once its signature holds for this kind and mesh.

    Raises:
        Malformed: it is no envelope of that kind, or its body is no `body_type`.
        NotAdmitted: `bad-signature`: it was not signed by its signer for this kind and mesh.
    """
    envelope = decode(data, Envelope, limit_bytes=limit_bytes + ENVELOPE_OVERHEAD_BYTES)
    if envelope.kind != kind:
        raise Malformed(f"an envelope of kind {envelope.kind[:32]!r} where {kind!r} was expected")
    if len(envelope.signer) != KEY_BYTES or not is_sound_key(envelope.signer):
        raise Malformed("the signer is not an Ed25519 key")
    if not verify(envelope.signer, signed_bytes(kind, mesh, envelope.body), envelope.signature):
        raise NotAdmitted(
            "bad-signature", f"the signature on this {kind} does not hold in this mesh"
        )
    body = decode(envelope.body, body_type, limit_bytes=limit_bytes)
    return Signed(body, peer_id_of(envelope.signer), data)


def signed_bytes(kind: str, mesh: MeshId, body: bytes) -> bytes:
    """Return what a signature of this kind in this mesh is over."""
    return _signed_before(kind, mesh) + bytes_item(body)


@lru_cache(maxsize=64)
def _signed_before(kind: str, mesh: MeshId) -> bytes:
    """Return what stands before the body: the same for all of a kind in a mesh."""
    return encode_plain([_DOMAIN, mesh, kind, b""])[: -len(bytes_item(b""))]
