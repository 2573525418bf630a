"""Who is speaking? Ed25519 keys, and the libp2p peer id that each of them is.

Signatures are made and judged by libsodium (PyNaCl) alone: two libraries disagree on crafted
signatures, and a signature must be valid on every peer or on none.
"""

from functools import lru_cache
from typing import NewType, Self

import base58
from nacl.bindings import (
    crypto_core_ed25519_is_valid_point,
    crypto_sign,
    crypto_sign_open,
    crypto_sign_seed_keypair,
)
from nacl.exceptions import BadSignatureError, CryptoError

from .errors import Malformed

PeerId = NewType("PeerId", str)
"""A libp2p peer id in base58, such as `12D3KooW...`."""

KEY_BYTES = 32
SIGNATURE_BYTES = 64
# libp2p: an identity multihash (00, 36 bytes) of the protobuf "type 1 (Ed25519), 32 bytes of key".
_ID_PREFIX = bytes.fromhex("002408011220")
_ID_TEXT_MAX = 64


class Keypair:
    """One Ed25519 key: a device's identity, an invite's key, or a mesh's root."""

    __slots__ = ("_secret_key", "peer_id", "public_key", "seed")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise Malformed(f"a key's seed has {KEY_BYTES} bytes, not {len(seed)}")
        self.seed = seed
        self.public_key, self._secret_key = crypto_sign_seed_keypair(seed)
        self.peer_id = peer_id_of(self.public_key)

    @classmethod
    def from_seed(cls, seed: bytes) -> Self:
        """Return the key of `seed` (32 bytes of entropy)."""
        return cls(seed)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature over `message`."""
        return crypto_sign(message, self._secret_key)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"Keypair({self.peer_id})"


@lru_cache(maxsize=4096)
def peer_id_of(public_key: bytes) -> PeerId:
    """Return the libp2p peer id of a 32-byte Ed25519 public key."""
    if len(public_key) != KEY_BYTES:
        raise Malformed(f"a public key has {KEY_BYTES} bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_ID_PREFIX + public_key).decode("ascii"))


@lru_cache(maxsize=4096)
def public_key_of(peer_id: PeerId) -> bytes:
    """Return the public key that a peer id is.

    Raises:
        Malformed: it is not the id of an Ed25519 key, or the key is of small order.
    """
    if len(peer_id) > _ID_TEXT_MAX:
        raise Malformed(f"a peer id has at most {_ID_TEXT_MAX} characters, not {len(peer_id)}")
    try:
        data = base58.b58decode(peer_id)
    except ValueError as error:
        raise Malformed(f"not a peer id: {peer_id!r}") from error
    if len(data) != len(_ID_PREFIX) + KEY_BYTES or not data.startswith(_ID_PREFIX):
        raise Malformed(f"not the id of an Ed25519 key: {peer_id!r}")
    key = data[len(_ID_PREFIX) :]
    if peer_id_of(key) != peer_id:
        # White space around it would make a second name of the same key.
        raise Malformed(f"not as a peer id is written: {peer_id!r}")
    if not is_sound_key(key):
        raise Malformed(f"the key of {peer_id!r} is not a sound Ed25519 key")
    return key


@lru_cache(maxsize=4096)
def is_sound_key(public_key: bytes) -> bool:
    """Tell whether the key is a point of the main subgroup: not of small order, not off the curve."""
    return len(public_key) == KEY_BYTES and bool(crypto_core_ed25519_is_valid_point(public_key))


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Tell whether `signature` over `message` was made by `public_key`'s holder."""
    if len(signature) != SIGNATURE_BYTES or len(public_key) != KEY_BYTES:
        return False
    try:
        crypto_sign_open(signature + message, public_key)
    except (BadSignatureError, CryptoError):
        return False
    return True
