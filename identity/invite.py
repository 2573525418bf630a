"""How does a device get in? One-time keys, written as a token that a person can copy.

The token holds the private half of a one-time key, where to dial, and the terms; the inviter keeps
the public half and counts. Whoever has the token can use it: it is a secret until it is used up or
ends. The checksum tells a typing mistake from a forgery; it protects nothing.
"""

import base64
import binascii
import hashlib
from typing import Literal

import msgspec

from .errors import Malformed
from .keys import KEY_BYTES, Keypair
from .wire import KIB, decode, encode

PREFIX = "covey1-"
USES_MAX = 1000
EXPIRES_S_MAX = 30 * 86_400
ADDRESSES_MAX = 16
TOKEN_LIMIT_BYTES = 4 * KIB
_CHECKSUM_BYTES = 4


class Terms(msgspec.Struct, frozen=True, array_like=True):
    """What an invite allows."""

    role: Literal["member"]
    zones: tuple[str, ...]
    uses: int
    expires_ms: int


class Invite(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    mesh: bytes
    mesh_name: str
    seed: bytes
    """Private half of the one-time key."""
    inviter: bytes
    """Public key of the peer that honours it."""
    addresses: tuple[str, ...]
    terms: Terms

    @property
    def keypair(self) -> Keypair:
        """The one-time key."""
        return Keypair(self.seed)


def token_of(invite: Invite) -> str:
    """Return the invite as text: one line, letters, digits, `-` and `_`."""
    data = encode(invite)
    return PREFIX + base64.urlsafe_b64encode(data + _checksum(data)).decode("ascii").rstrip("=")


def parse_token(text: str) -> Invite:
    """Return the invite that `text` is; white space around and within it is ignored.

    Raises:
        Malformed: it is not a token, was cut or mistyped.
    """
    token = "".join(text.split())
    if not token.startswith(PREFIX):
        raise Malformed(
            f"this is not an invite: it should begin with {PREFIX!r}; make one with: covey invite"
        )
    if len(token) > 2 * TOKEN_LIMIT_BYTES:
        raise Malformed("this is not an invite: it is too long")
    encoded = token[len(PREFIX) :]
    try:
        data = base64.b64decode(encoded + "=" * (-len(encoded) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(
            "the invite was cut, or has characters that do not belong; copy it whole"
        ) from error
    body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
    if _checksum(body) != checksum:
        raise Malformed("the invite was cut or mistyped; copy it whole")
    invite = decode(body, Invite, limit_bytes=TOKEN_LIMIT_BYTES)
    if len(invite.seed) != KEY_BYTES or len(invite.inviter) != KEY_BYTES:
        raise Malformed("the invite's keys have the wrong length")
    if not 1 <= len(invite.addresses) <= ADDRESSES_MAX:
        raise Malformed(f"an invite names 1 to {ADDRESSES_MAX} addresses")
    return invite


def _checksum(data: bytes) -> bytes:
    return hashlib.sha256(b"covey/token/1" + data).digest()[:_CHECKSUM_BYTES]
