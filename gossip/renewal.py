"""How does a member get a new certificate before its old one ends? Asked over a link, of any admin.

Pure. The admin signs the rights that it knows the member to have, not those that it asks for; the
member takes only what makes it a member for longer. `peer/renewing.py` drives it.
"""

import msgspec

from covey.identity.certificate import Chain, Member, check_chain
from covey.identity.envelope import MeshId
from covey.identity.errors import NotAdmitted
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode, encode

from .memory.standing import Standing
from .registrar import Registrar

CHANNEL = "renew"
MESSAGE_BYTES_MAX = 16 * KIB
# Who asks again within an hour gets the same answer: every certificate stays known for years.
PAUSE_MS = 3_600_000


class Renew(msgspec.Struct, frozen=True, array_like=True, tag="renew"):
    """Member: I hold the certificate of this id; sign me another."""

    certificate: bytes


class Renewed(msgspec.Struct, frozen=True, array_like=True, tag="renewed"):
    """Admin: this is your chain from now on."""

    chain: tuple[bytes, ...]


def ask(certificate: bytes) -> bytes:
    """Return the request of a member that holds this certificate."""
    return encode(Renew(certificate))


def grant(
    data: bytes, peer: PeerId, registrar: Registrar, standing: Standing, now_ms: int
) -> tuple[Chain, bool]:
    """Return the chain that an admin answers a member with, and whether it is a new one.

    Raises:
        Malformed: it is no request.
        NotAdmitted: the member was revoked, or is none now.
        Misuse: this peer is no admin.
    """
    decode(data, Renew, limit_bytes=MESSAGE_BYTES_MAX)
    known = standing.of(peer)
    chain = registrar.renew(peer, now_ms)
    is_recent = known is not None and 0 <= now_ms - known.member.issued_ms < PAUSE_MS
    if known is not None and is_recent and known.chain[:-1] == chain[:-1]:
        return known.chain, False
    return chain, True


def answer(chain: Chain) -> bytes:
    """Return a chain as the member hears it."""
    return encode(Renewed(chain))


def accepted(data: bytes, me: Member, mesh: MeshId, now_ms: int) -> Chain:
    """Return the chain in an admin's answer.

    Raises:
        Malformed: it is no answer.
        NotAdmitted: the chain does not hold, or ends no later than what this member has.
    """
    chain = decode(data, Renewed, limit_bytes=MESSAGE_BYTES_MAX).chain
    member = check_chain(chain, mesh=mesh, subject=me.peer, now_ms=now_ms)
    if member.not_after_ms <= me.not_after_ms:
        raise NotAdmitted("no-gain", "the admin has nothing that holds for longer")
    return chain


def half_of_life_ms(member: Member) -> int:
    """Return when a certificate should be renewed: at half of its life, grace not counted."""
    return member.issued_ms + (member.not_after_ms - member.issued_ms) // 2
