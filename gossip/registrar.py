"""Which certificates and revocations does an admin sign, and for whom?

Pure: rights come from what this peer knows of the mesh (`memory/standing.py`), never from what
somebody asks for. What it returns is for the mesh's books; whatever was signed counts once it stands
there. The root's key is an argument: it is opened for one call and kept nowhere (DESIGN 4).
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal

from covey.identity.certificate import (
    LIFTS_MAX,
    ZONE_CHARACTERS_MAX,
    ZONES_MAX,
    Chain,
    Role,
    check_time,
    issue,
    member_of,
)
from covey.identity.envelope import MeshId, mesh_id_of
from covey.identity.errors import Conflict, Misuse, NotAdmitted, NotFound
from covey.identity.keys import Keypair, PeerId, peer_id_of, public_key_of

from .memory.books import Record, membership, revocation_record
from .memory.namespace import REVOKED
from .memory.standing import NUMBER_MAX, REASON_CHARACTERS_MAX, Known, Revocation, Standing

NUMBER_BYTES = 8
Mode = Literal["stop", "purge"]


@dataclass(frozen=True, slots=True)
class Order:
    """When and under which number something is revoked."""

    number: int
    cut: int
    mode: Mode = "stop"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Signed:
    """What was signed: to be written into the books together, in this order."""

    records: list[Record] = field(default_factory=lambda: list[Record]())
    chains: dict[PeerId, Chain] = field(default_factory=lambda: dict[PeerId, Chain]())

    def grant(self, peer: PeerId, chain: Chain) -> None:
        """Add a peer's new chain."""
        self.chains[peer] = chain
        self.records.append(membership(peer, chain))

    def revoke(self, revocation: Revocation, peer: PeerId, root: Keypair | None = None) -> None:
        """Add a revocation."""
        key = f"{peer}/{revocation.number}"
        self.records.append(Record(REVOKED, key, revocation_record(revocation), root))


class Registrar:
    """Signs for one admin.

    Args:
        keypair: the admin's key.
        chain: its chain, with which every chain of a member begins.
        mesh: the mesh.
        standing: what is known of the mesh's members.
    """

    def __init__(self, keypair: Keypair, chain: Chain, mesh: MeshId, standing: Standing) -> None:
        self._keypair = keypair
        self._chain = chain
        self._mesh = mesh
        self._standing = standing

    @property
    def me(self) -> PeerId:
        """This admin."""
        return self._keypair.peer_id

    @property
    def chain(self) -> Chain:
        """Its chain."""
        return self._chain

    def use(self, chain: Chain) -> None:
        """Sign under this chain from now on."""
        self._chain = chain

    def check_own(self, now_ms: int) -> None:
        """Refuse to sign what no other peer would believe.

        Raises:
            Misuse: this peer is no admin.
            NotAdmitted: it is one no more, or not yet.
        """
        member = member_of(self._chain, mesh=self._mesh, subject=self.me)
        if member.role != "admin":
            raise Misuse("only an admin of the mesh can do this; ask one, such as the founder")
        check_time(member, now_ms)
        known = self._standing.of(self.me)
        if known is not None and (why := self._standing.why_void(known)) is not None:
            raise NotAdmitted("revoked", f"this device is no admin any more: {why}")

    def grant(self, peer: PeerId, zones: Collection[str], now_ms: int) -> Chain:
        """Return the chain of a newcomer.

        Raises:
            NotAdmitted: it was revoked: only `admit` lets it in again.
            Misuse: this peer is no admin, or the zones cannot be.
        """
        self.check_own(now_ms)
        if (why := self.why_barred(peer)) is not None:
            raise NotAdmitted("revoked", why)
        return self._member(peer, zones, self._lifts(peer), now_ms)

    def why_barred(self, peer: PeerId) -> str | None:
        """Return why a peer is not let in by an invite alone; None: nothing is known against it."""
        if not self._standing.is_void(peer):
            return None
        known = self._standing.of(peer)
        assert known is not None, "what is void is known"
        why = self._standing.why_void(known)
        return f"{why}; an admin lets it in again with: covey admit {peer}"

    def renew(self, peer: PeerId, now_ms: int) -> Chain:
        """Return a member's chain anew, with the rights that it has and no others.

        Raises:
            NotAdmitted: it is no member, was revoked, is past its grace, or is an admin.
        """
        self.check_own(now_ms)
        known = self._standing.of(peer)
        if known is None:
            raise NotAdmitted("unknown", "no certificate of it is known here")
        if (why := self._standing.why_void(known)) is not None:
            raise NotAdmitted("revoked", why)
        if known.member.role == "admin":
            raise NotAdmitted(
                "role", "only the root renews an admin: covey renew, where the root key is"
            )
        check_time(known.member, now_ms)
        return self._again(known, now_ms)

    def admit(
        self, peer: PeerId, zones: Collection[str] | None, order: Order, now_ms: int
    ) -> Signed:
        """Let a peer that is known in again, or change its zones.

        Args:
            peer: who.
            zones: which it is in from now on; None: those that it was in last.
            order: for the revocation that narrower zones need; unused otherwise.
            now_ms: the wall clock.

        Raises:
            NotFound: it never was a member, as far as this peer knows.
            Conflict: it is an admin.
        """
        self.check_own(now_ms)
        known = self._known(peer)
        is_void = self._standing.why_void(known) is not None
        if known.member.role == "admin" and not is_void:
            raise Conflict("it is an admin, and those are in what zones the root says; add --admin")
        wanted = known.member.zones if zones is None else frozenset(zones)
        lifts = self._lifts(peer)
        signed = Signed()
        narrower = None
        if not is_void and not wanted >= known.member.zones:
            narrower = self._revocation(peer, order)
            lifts.add(narrower.number)
        signed.grant(peer, self._member(peer, wanted, lifts, now_ms))
        if narrower is not None:
            signed.revoke(narrower, peer)
        return signed

    def revoke(self, peer: PeerId, order: Order, now_ms: int) -> Signed:
        """Revoke a member.

        Raises:
            NotFound: it never was one, as far as this peer knows.
            Misuse: it is this very peer, or an admin, whom only the root revokes.
        """
        self.check_own(now_ms)
        self._check_other(peer)
        if self.is_admin(peer):
            raise Misuse("it is an admin: only the root revokes it, and its passphrase is needed")
        signed = Signed()
        signed.revoke(self._revocation(peer, order), peer)
        return signed

    # With the root's key

    def appoint(
        self, root: Keypair, peer: PeerId, zones: Collection[str] | None, now_ms: int
    ) -> Signed:
        """Make a peer that is known an admin, or an admin anew.

        Raises:
            NotFound: it never was a member, as far as this peer knows.
            Misuse: the key is another mesh's, or the zones cannot be.
        """
        self._check_root(root)
        known = self._known(peer)
        wanted = known.member.zones if zones is None else frozenset(zones)
        signed = Signed()
        signed.grant(peer, (self._issue(root, peer, "admin", wanted, self._lifts(peer), now_ms),))
        return signed

    def renew_admin(self, root: Keypair, peer: PeerId, now_ms: int) -> Signed:
        """Return an admin's chain anew, with the rights that it has.

        Raises:
            NotFound: it is not known here.
            Misuse: it is no admin, or the key is another mesh's.
            NotAdmitted: it was revoked.
        """
        self._check_root(root)
        known = self._known(peer)
        if known.member.role != "admin":
            raise Misuse("it is a member: any admin in reach renews it by itself")
        if (why := self._standing.why_void(known)) is not None:
            raise NotAdmitted("revoked", why)
        signed = Signed()
        lifts, member = known.parts[-1].lifts, known.member
        signed.grant(
            peer,
            (self._issue(root, peer, "admin", member.zones, lifts, now_ms, member.priority),),
        )
        return signed

    def revoke_admin(
        self, root: Keypair, peer: PeerId, keep: Collection[PeerId], order: Order, now_ms: int
    ) -> Signed:
        """Revoke an admin; whom it let in falls with it, but for `keep`, signed anew by this admin.

        What it had revoked stays revoked.

        Raises:
            NotFound, Misuse: as for `revoke`; or somebody to keep does not rest on it.
        """
        self._check_root(root)
        self.check_own(now_ms)
        self._check_other(peer)
        resting = {known.member.peer: known for known in self.resting_on(peer)}
        strangers = [one for one in keep if one not in resting]
        if strangers:
            raise Misuse(f"{strangers[0]} was not let in by it, and is not touched")
        signed = Signed()
        for one in keep:
            signed.grant(one, self._again(resting[one], now_ms))
        for revocation in self._standing.said_by(peer):
            of = peer_id_of(revocation.subject)
            if of != self.me:
                signed.revoke(revocation, of)
        signed.revoke(self._revocation(peer, order), peer, root)
        return signed

    # Looking

    def is_admin(self, peer: PeerId) -> bool:
        """Tell whether a peer is an admin now.

        Raises:
            NotFound: it is not known here.
        """
        known = self._known(peer)
        return known.member.role == "admin" and self._standing.why_void(known) is None

    def resting_on(self, admin: PeerId) -> list[Known]:
        """Return the members that would fall with an admin."""
        found: list[Known] = []
        for peer in sorted(self._standing.resting_on(admin)):
            known = self._standing.of(peer)
            if known is None or self._standing.why_void(known) is not None:
                continue
            if any(part.peer == admin for part in known.parts[:-1]):
                found.append(known)
        return found

    # Parts

    def _known(self, peer: PeerId) -> Known:
        known = self._standing.of(peer)
        if known is None:
            raise NotFound(f"{peer} is no member that this device knows of; see: covey members")
        return known

    def _check_other(self, peer: PeerId) -> None:
        self._known(peer)
        if peer == self.me:
            raise Misuse("an admin does not revoke itself; do it on another admin's device")

    def _check_root(self, root: Keypair) -> None:
        if mesh_id_of(root.public_key) != self._mesh:
            raise Misuse("this root key is another mesh's")

    def _revocation(self, peer: PeerId, order: Order) -> Revocation:
        if len(order.reason) > REASON_CHARACTERS_MAX:
            raise Misuse(f"a reason has at most {REASON_CHARACTERS_MAX} characters")
        return Revocation(order.number, public_key_of(peer), order.cut, order.mode, order.reason)

    def _lifts(self, peer: PeerId) -> set[int]:
        """Return the numbers of all that was ever said against a peer."""
        return {said.revocation.number for said in self._standing.revocations(peer)}

    def _again(self, known: Known, now_ms: int) -> Chain:
        member = known.member
        lifts = known.parts[-1].lifts
        return self._member(member.peer, member.zones, lifts, now_ms, member.priority)

    def _member(
        self,
        peer: PeerId,
        zones: Collection[str],
        lifts: Collection[int],
        now_ms: int,
        priority: int = 0,
    ) -> Chain:
        own = self._issue(self._keypair, peer, "member", zones, lifts, now_ms, priority)
        return (*self._chain, own)

    def _issue(
        self,
        issuer: Keypair,
        peer: PeerId,
        role: Role,
        zones: Collection[str],
        lifts: Collection[int],
        now_ms: int,
        priority: int = 0,
    ) -> bytes:
        check_zones(zones)
        if len(lifts) > LIFTS_MAX:
            raise Misuse(
                f"it was revoked more than {LIFTS_MAX} times; let it in under a new key: covey init"
            )
        return issue(
            issuer,
            peer,
            mesh=self._mesh,
            role=role,
            now_ms=now_ms,
            zones=sorted(zones),
            priority=priority,
            lifts=sorted(lifts),
        )


def check_zones(zones: Collection[str]) -> None:
    """Refuse more or longer zones than a certificate holds.

    Raises:
        Misuse: saying how many.
    """
    if len(zones) > ZONES_MAX or any(len(zone) > ZONE_CHARACTERS_MAX for zone in zones):
        raise Misuse(
            f"a certificate grants at most {ZONES_MAX} zones, of {ZONE_CHARACTERS_MAX} characters each"
        )


def number_of(entropy: bytes) -> int:
    """Return a revocation's number made of 8 random bytes."""
    return int.from_bytes(entropy, "big") % NUMBER_MAX + 1
