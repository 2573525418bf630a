"""Who may act in a mesh, in what role and zones, until when? Certificates and their chains.

Two levels, so nothing is circular: the root key signs admins, admins sign members. A chain is the
sealed certificates from the root's down to the subject's own: one for an admin, two for a member. A
certificate covers a moment from 60 s before it was issued (clocks differ) to `not_after` and its
grace: the grace is written in it, so that all peers judge alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from .envelope import MeshId, Signed, mesh_id_of, open_envelope, seal
from .errors import Malformed, NotAdmitted
from .keys import KEY_BYTES, Keypair, PeerId, is_sound_key, peer_id_of, public_key_of
from .wire import KIB

Role = Literal["admin", "member"]
Chain = tuple[bytes, ...]
"""Sealed certificates, the root-signed one first."""

KIND = "certificate"
DAY_S = 86_400
MEMBER_DAYS = 90
ADMIN_DAYS = 730
GRACE_DAYS = 90
# With its grace no certificate outlives three years: the longest that a stolen key stays believed.
LIFE_DAYS_MAX = 3 * 365
SKEW_MS = 60_000
CERTIFICATE_LIMIT_BYTES = 4 * KIB
ZONES_MAX = 32
ZONE_CHARACTERS_MAX = 64
# Each time that a member was revoked and let in again its certificate lifts one more.
LIFTS_MAX = 64


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """`issuer` lets `subject` act in `mesh` as `role`, in `zones`, until `not_after_ms` and grace."""

    mesh: bytes
    subject: bytes
    role: Role
    zones: tuple[str, ...]
    issued_ms: int
    not_after_ms: int
    grace_s: int
    priority: int = 0
    lifts: tuple[int, ...] = ()
    """Numbers of the subject's revocations that do not void this certificate."""


@dataclass(frozen=True, slots=True)
class Member:
    """Who a chain makes of its subject, and for how long."""

    peer: PeerId
    role: Role
    zones: frozenset[str]
    issued_ms: int
    """When the youngest certificate of its chain was issued; before that, it was no member."""
    not_after_ms: int
    grace_until_ms: int
    priority: int = 0

    def is_in(self, zone: str) -> bool:
        """Tell whether data of `zone` may move to this member."""
        return zone == "mesh" or zone in self.zones


def issue(
    issuer: Keypair,
    subject: PeerId,
    *,
    mesh: MeshId,
    role: Role,
    now_ms: int,
    zones: Sequence[str] = (),
    days: int | None = None,
    grace_days: int = GRACE_DAYS,
    priority: int = 0,
    lifts: Sequence[int] = (),
) -> bytes:
    """Return a sealed certificate. `lifts`: the revocations of `subject` that do not void it.

    Whether `issuer` may sign it is judged by who reads the chain.
    """
    life_days = days if days is not None else (ADMIN_DAYS if role == "admin" else MEMBER_DAYS)
    certificate = Certificate(
        mesh=mesh,
        subject=public_key_of(subject),
        role=role,
        zones=tuple(sorted(zones)),
        issued_ms=now_ms,
        not_after_ms=now_ms + life_days * DAY_S * 1000,
        grace_s=grace_days * DAY_S,
        priority=priority,
        lifts=tuple(sorted(set(lifts))),
    )
    return seal(certificate, kind=KIND, mesh=mesh, keypair=issuer)


def found_mesh(root: Keypair, founder: PeerId, *, now_ms: int, zones: Sequence[str] = ()) -> Chain:
    """Return the chain that makes `founder` the first admin of the mesh under `root`."""
    mesh = mesh_id_of(root.public_key)
    admin = issue(root, founder, mesh=mesh, role="admin", zones=zones, now_ms=now_ms, priority=1)
    return (admin,)


def check_chain(chain: Chain, *, mesh: MeshId, subject: PeerId, now_ms: int) -> Member:
    """Return the member that `chain` makes of `subject` at `now_ms`.

    Raises:
        NotAdmitted: code `bad-chain`, `bad-signature`, `other-mesh`, `not-yet-valid` or `expired`.
    """
    member = member_of(chain, mesh=mesh, subject=subject)
    check_time(member, now_ms)
    return member


def member_of(chain: Chain, *, mesh: MeshId, subject: PeerId) -> Member:
    """Return the member that `chain` makes of `subject`, whatever the time.

    For a device's own chain: with a clock that is wrong, or past its grace, it works on alone.

    Raises:
        NotAdmitted: code `bad-chain`, `bad-signature` or `other-mesh`.
    """
    if not 1 <= len(chain) <= 2:
        raise NotAdmitted("bad-chain", f"a chain has 1 or 2 certificates, not {len(chain)}")
    opened = [_open(data, mesh) for data in chain]
    root_signed = opened[0]
    if mesh_id_of(public_key_of(root_signed.signer)) != mesh:
        raise NotAdmitted("other-mesh", "the first certificate is not signed by this mesh's root")
    if root_signed.body.role != "admin":
        raise NotAdmitted("bad-chain", "the root signs admins only")
    if len(opened) == 2:
        admin, member = opened
        if member.signer != peer_id_of(admin.body.subject):
            raise NotAdmitted(
                "bad-chain", "the second certificate is not signed by the first's admin"
            )
        if member.body.role != "member":
            raise NotAdmitted("bad-chain", "an admin signs members only")
    own = opened[-1].body
    if peer_id_of(own.subject) != subject:
        raise NotAdmitted("bad-chain", "the certificate is another peer's")
    return Member(
        peer=subject,
        role=own.role,
        zones=frozenset(own.zones),
        issued_ms=max(one.body.issued_ms for one in opened),
        not_after_ms=min(one.body.not_after_ms for one in opened),
        grace_until_ms=min(_end_ms(one.body) for one in opened),
        priority=own.priority,
    )


def check_time(member: Member, now_ms: int) -> None:
    """Refuse a member whose chain does not cover `now_ms`.

    Raises:
        NotAdmitted: code `not-yet-valid` or `expired`.
    """
    if now_ms < member.issued_ms - SKEW_MS:
        ahead_s = (member.issued_ms - now_ms) // 1000
        raise NotAdmitted(
            "not-yet-valid",
            f"the certificate of {member.peer} begins {ahead_s} s from now; "
            "check the clocks of both devices",
        )
    if now_ms > member.grace_until_ms:
        ago_s = (now_ms - member.grace_until_ms) // 1000
        raise NotAdmitted(
            "expired",
            f"the certificate of {member.peer} ended {ago_s} s ago, grace included; "
            "join again with a new invite, or check the clocks of both devices",
        )


def subject_of(chain: Chain, *, mesh: MeshId) -> PeerId:
    """Return whose chain this is, before it is judged.

    Raises:
        NotAdmitted: its last certificate cannot be read.
    """
    if not chain:
        raise NotAdmitted("bad-chain", "a chain has 1 or 2 certificates, not 0")
    return peer_id_of(_open(chain[-1], mesh).body.subject)


def _open(data: bytes, mesh: MeshId) -> Signed[Certificate]:
    try:
        signed = open_envelope(
            data, Certificate, kind=KIND, mesh=mesh, limit_bytes=CERTIFICATE_LIMIT_BYTES
        )
    except Malformed as error:
        raise NotAdmitted("bad-chain", f"not a certificate: {error}") from error
    body = signed.body
    if body.mesh != mesh:
        raise NotAdmitted("other-mesh", "the certificate is for another mesh")
    if len(body.subject) != KEY_BYTES or not is_sound_key(body.subject):
        raise NotAdmitted("bad-chain", "the certificate's subject is not an Ed25519 key")
    _check_bounds(body)
    return signed


def _check_bounds(body: Certificate) -> None:
    if len(body.zones) > ZONES_MAX or any(len(zone) > ZONE_CHARACTERS_MAX for zone in body.zones):
        raise NotAdmitted("bad-chain", f"a certificate names at most {ZONES_MAX} short zones")
    if len(body.lifts) > LIFTS_MAX:
        raise NotAdmitted("bad-chain", f"a certificate lifts at most {LIFTS_MAX} revocations")
    life_ms = _end_ms(body) - body.issued_ms
    if not 0 < life_ms <= LIFE_DAYS_MAX * DAY_S * 1000 or body.grace_s < 0:
        raise NotAdmitted("bad-chain", f"a certificate lives at most {LIFE_DAYS_MAX} days")


def _end_ms(body: Certificate) -> int:
    return body.not_after_ms + body.grace_s * 1000
