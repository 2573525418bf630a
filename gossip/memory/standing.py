"""Whose entries count? Certificates and revocations, as far as this peer has heard.

Pure. An entry counts if its author's certificate covers the entry's time, its zone, and what it is;
who served it does not matter. A revocation voids every certificate of its subject, whenever it was
issued, except those that name its number in `lifts`; what the subject wrote up to its cut still
counts, unless it is purged. Revoking an admin voids what it signed as well (DESIGN 4).

Two levels, so nothing is circular: the root's revocations void whatever they name, an admin's only
members' certificates, and only if the admin was one, by the root's word, when it revoked. All of it
follows from the set of what is known, so the order in which it was heard does not matter.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import msgspec

from covey.identity.certificate import (
    KIND,
    SKEW_MS,
    Certificate,
    Chain,
    Member,
    Role,
    check_time,
    member_of,
    subject_of,
)
from covey.identity.envelope import MeshId, mesh_id_of, open_envelope
from covey.identity.errors import CoveyError, NotAdmitted
from covey.identity.keys import KEY_BYTES, PeerId, peer_id_of

from .entry import HASH_BYTES, NO_CERTIFICATE, Entry, author_of
from .kinds import Lifetime
from .namespace import DEVICE, Namespace

CERTIFICATES_MAX = 50_000
REASON_CHARACTERS_MAX = 200
NUMBER_MAX = 2**63 - 1


class Revocation(msgspec.Struct, frozen=True, array_like=True):
    """An admin's word that a member's certificates are void, or the root's of an admin's."""

    number: Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
    """Drawn at random, so that two admins who do not hear each other take different ones."""
    subject: Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
    cut: Annotated[int, msgspec.Meta(ge=0)]
    """A clock: what the subject wrote later does not count."""
    mode: Literal["stop", "purge"]
    """`purge`: nothing that it ever wrote counts."""
    reason: Annotated[str, msgspec.Meta(max_length=REASON_CHARACTERS_MAX)] = ""
    """For people."""


class UnknownCertificate(CoveyError):
    """An entry names a certificate that this peer has not heard of yet; it may wait."""

    def __init__(self, certificate: bytes) -> None:
        super().__init__("the author's certificate is not known here yet")
        self.certificate = certificate


class Part(NamedTuple):
    """One certificate of a chain, as far as a revocation can void it."""

    peer: PeerId
    role: Role
    lifts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A certificate with what it rests on."""

    id: bytes
    member: Member
    chain: Chain
    parts: tuple[Part, ...]
    """Of each certificate in the chain, the root-signed one first."""


@dataclass(frozen=True, slots=True)
class Said:
    """A revocation, with who said so when."""

    revocation: Revocation
    by: bytes
    """The id of the certificate under which it was signed; `NO_CERTIFICATE`: the root did."""
    clock: int


class Standing:
    """The certificates and revocations that one peer knows of its mesh."""

    def __init__(self, mesh: MeshId) -> None:
        self._mesh = mesh
        self._known: dict[bytes, Known] = {}
        # Tuples that are replaced, never changed: the store's thread may be reading the old one.
        self._of: dict[PeerId, tuple[Known, ...]] = {}
        self._revoked: dict[PeerId, tuple[Said, ...]] = {}
        self._best: dict[PeerId, Known] = {}
        self._changed: set[PeerId] = set()

    # Learning

    def learn(self, chain: Chain) -> Known | None:
        """Take a chain in, whoever showed it; None if it was known.

        Raises:
            NotAdmitted: it makes nobody a member of this mesh.
        """
        if not chain:
            return None
        known_as = certificate_id(chain[-1])
        if known_as in self._known:
            return None
        member = member_of(chain, mesh=self._mesh, subject=subject_of(chain, mesh=self._mesh))
        if len(self._known) >= CERTIFICATES_MAX:
            raise NotAdmitted("over-limit", f"{CERTIFICATES_MAX} certificates are known already")
        if len(chain) > 1:
            self.learn(chain[:-1])
        known = Known(known_as, member, chain, self._parts(chain))
        self._known[known.id] = known
        self._of[member.peer] = (*self._of.get(member.peer, ()), known)
        self._best.pop(member.peer, None)
        self._changed.add(member.peer)
        return known

    def revoke(self, revocation: Revocation, *, by: bytes, clock: int) -> bool:
        """Take a revocation in; tell whether it is new.

        Args:
            revocation: what was said.
            by: the id of the certificate under which it was signed; `NO_CERTIFICATE`: by the root.
            clock: when.
        """
        subject = peer_id_of(revocation.subject)
        said = Said(revocation, by, clock)
        before = self._revoked.get(subject, ())
        if said in before:
            return False
        self._revoked[subject] = (*before, said)
        # One of an admin changes the standing of whom it signed, and whether its own revocations hold.
        self._best.clear()
        self._changed |= {subject, *self.resting_on(subject), *self._revoked}
        return True

    def take_changed(self) -> set[PeerId]:
        """Return the peers whose standing may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    # Asking

    @property
    def size(self) -> int:
        """How many certificates are known."""
        return len(self._known)

    def certificate(self, certificate: bytes) -> Known | None:
        """Return the certificate of this id, if it is known."""
        return self._known.get(certificate)

    def of(self, peer: PeerId) -> Known | None:
        """Return the certificate of a peer that counts, or its newest one if all of them are void.

        An admin's counts before a member's: only the root can take it back.
        """
        best = self._best.get(peer)
        if best is None and (held := self._of.get(peer)):
            valid = [known for known in held if self.why_void(known) is None]
            best = self._best[peer] = max(valid or held, key=_rank)
        return best

    def peers(self) -> list[PeerId]:
        """Return everybody who was ever a member, as far as this peer knows."""
        return list(self._of)

    def may_read(self, peer: PeerId, zone: str) -> bool:
        """Tell whether data of `zone` may go to a peer, by the newest certificate known here."""
        known = self.of(peer)
        return known is not None and known.member.is_in(zone) and self.why_void(known) is None

    def is_void(self, peer: PeerId) -> bool:
        """Tell whether a peer was a member and is one no more."""
        known = self.of(peer)
        return known is not None and self.why_void(known) is not None

    def revocations(self, peer: PeerId) -> list[Said]:
        """Return every revocation of a peer that was heard of."""
        return list(self._revoked.get(peer, ()))

    def revoked(self) -> list[PeerId]:
        """Return everybody who was ever revoked."""
        return list(self._revoked)

    def said_by(self, admin: PeerId) -> list[Revocation]:
        """Return the revocations that an admin signed and that hold now."""
        return [
            said.revocation
            for of_subject in self._revoked.values()
            for said in of_subject
            if (author := self._known.get(said.by)) is not None
            and author.member.peer == admin
            and self._binds(said, "member")
        ]

    def resting_on(self, admin: PeerId) -> set[PeerId]:
        """Return everybody of whom some certificate was signed by this admin."""
        return {
            known.member.peer
            for known in list(self._known.values())
            if any(part.peer == admin for part in known.parts[:-1])
        }

    def judge(self, entry: Entry, namespace: Namespace) -> bool:
        """Refuse an entry that its author may not write; tell whether an admin wrote it.

        Raises:
            UnknownCertificate: it may wait for it.
            NotAdmitted: code `not-yet-valid`, `expired`, `zone`, `role`, `revoked` or `bad-chain`.
        """
        header = entry.header
        if header.certificate == NO_CERTIFICATE:
            by_admin = self._judge_root(entry, namespace)
        else:
            by_admin = self._judge_member(entry, namespace)
        if namespace.is_book and not by_admin:
            raise NotAdmitted("role", "only admins write in the books")
        if namespace.is_book != (entry.lifetime is Lifetime.BOOK):
            raise NotAdmitted("lifetime", "the lifetime of the books is for the books")
        return by_admin

    def admit(self, chain: Chain, peer: PeerId, now_ms: int) -> Member:
        """Return the member that a peer is now: by the chain that it shows, or a newer one known here.

        So who was let in again, or whose zones were changed, is met as what it is now before it has
        heard of that itself.

        Raises:
            NotAdmitted: it is none, any more or yet.
        """
        if not chain:
            raise NotAdmitted("bad-chain", "a chain has 1 or 2 certificates, not 0")
        self.learn(chain)
        shown = self._known[certificate_id(chain[-1])]
        if shown.member.peer != peer:
            raise NotAdmitted("bad-chain", "the certificate is another peer's")
        best = self.of(peer) or shown
        for known in (best, shown):
            if self.why_void(known) is None and _covers(known.member, now_ms):
                return known.member
        why = self.why_void(best)
        if why is not None:
            raise NotAdmitted("revoked", why)
        check_time(best.member, now_ms)
        return best.member

    def why_void(self, known: Known, clock: int | None = None) -> str | None:
        """Return why a certificate is void, for what was written at `clock` or for now; None: it is not."""
        for part in known.parts:
            for said in self._revoked.get(part.peer, ()):
                revocation = said.revocation
                if revocation.number in part.lifts or not self._binds(said, part.role):
                    continue
                if clock is None or revocation.mode == "purge" or clock > revocation.cut:
                    own = part.peer == known.member.peer
                    who = "it" if own else f"the admin {part.peer}, who signed it,"
                    why = f": {revocation.reason}" if revocation.reason else ""
                    return f"{who} was revoked (number {revocation.number}){why}"
        return None

    # Parts

    def _judge_root(self, entry: Entry, namespace: Namespace) -> bool:
        if mesh_id_of(entry.header.author) != self._mesh or not namespace.is_book:
            raise NotAdmitted("bad-chain", "it names no certificate")
        return True

    def _judge_member(self, entry: Entry, namespace: Namespace) -> bool:
        header = entry.header
        known = self._known.get(header.certificate)
        if known is None:
            raise UnknownCertificate(header.certificate)
        member = known.member
        if member.peer != author_of(header.author):
            raise NotAdmitted("bad-chain", "the certificate is another peer's")
        if entry.at_ms < member.issued_ms - SKEW_MS:
            raise NotAdmitted("not-yet-valid", "it was written before its author was a member")
        if entry.at_ms > member.grace_until_ms:
            raise NotAdmitted("expired", "it was written after its author's certificate had ended")
        if namespace.zone != DEVICE and not member.is_in(namespace.zone):
            raise NotAdmitted("zone", f"its author is not in zone {namespace.zone}")
        why = self.why_void(known, header.clock)
        if why is not None:
            raise NotAdmitted("revoked", why)
        return member.role == "admin"

    def _binds(self, said: Said, role: Role) -> bool:
        """Tell whether a revocation holds for certificates of this role.

        The root's do. An admin's hold for members' alone, if the root had not taken its right before.
        """
        if said.by == NO_CERTIFICATE:
            return True
        author = self._known.get(said.by)
        if role == "admin" or author is None or author.member.role != "admin":
            return False
        return self.why_void(author, said.clock) is None

    def _parts(self, chain: Chain) -> tuple[Part, ...]:
        found: list[Part] = []
        for data in chain:
            body = open_envelope(data, Certificate, kind=KIND, mesh=self._mesh).body
            found.append(Part(peer_id_of(body.subject), body.role, body.lifts))
        return tuple(found)


def _rank(known: Known) -> tuple[bool, int, bytes]:
    return known.member.role == "admin", known.member.issued_ms, known.id


def _covers(member: Member, now_ms: int) -> bool:
    try:
        check_time(member, now_ms)
    except NotAdmitted:
        return False
    return True


def certificate_id(certificate: bytes) -> bytes:
    """Return the id by which entries name a sealed certificate: 16 bytes."""
    return hashlib.sha256(certificate).digest()[:HASH_BYTES]
