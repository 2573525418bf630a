"""Who is in the mesh, who is let in, and who is out? Everything that the local API offers of it.

On top of the registrar (which signs), the books, and the list of who waits. Nothing here decides who
may; it names peers, asks, writes what was signed, and shows it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import trio

from covey.gossip.joining import InviteDesk
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.standing import Known, Standing
from covey.gossip.pending import PendingRecord
from covey.gossip.registrar import NUMBER_BYTES, Mode, Order, Registrar, Signed, number_of
from covey.identity.envelope import MeshId
from covey.identity.errors import Conflict, Misuse, NotFound
from covey.identity.keys import Keypair, PeerId
from covey.identity.words import words_of

from .books import BookKeeper
from .config import check_zone
from .founding import open_root_of
from .home import Home
from .invites import Invites
from .member_views import (
    AdmitRequest,
    ApproveRequest,
    MemberView,
    PendingView,
    RenewRequest,
    RevokedView,
    RevokeRequest,
)
from .renewing import Renewing

SELF = "self"
# An id is named by its end, as tables show it; every id begins alike.
END_CHARACTERS_MIN = 6


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the members are kept with."""

    home: Home
    mesh: MeshId
    standing: Standing
    registrar: Registrar
    books: BookKeeper
    memory: Memory
    desk: InviteDesk
    invites: Invites
    renewing: Renewing
    now_ms: Callable[[], int]
    draw: Callable[[int], bytes]
    name_of: Callable[[str], str]
    """What a peer calls itself; its id if that is not known."""
    find_peer: Callable[[str], PeerId]
    """Returns the peer of that name or id, or raises NotFound."""


class Members:
    """Answers for the mesh's members."""

    def __init__(self, parts: Surroundings) -> None:
        self._parts = parts
        # Who is put out is known by name for as long as this device runs.
        self._names: dict[PeerId, str] = {}

    # Looking

    def members(self) -> list[MemberView]:
        """Return everybody of whom a certificate is known, admins first."""
        standing = self._parts.standing
        known = [one for peer in standing.peers() if (one := standing.of(peer)) is not None]
        return sorted(map(self._view, known), key=lambda one: (one.role != "admin", one.name))

    def member(self, name: str) -> MemberView:
        """Return one of them, by name, id, or the unique end of an id.

        Raises:
            NotFound: none is known.
        """
        peer = self._find(name)
        known = self._parts.standing.of(peer)
        if known is None:
            raise NotFound(f"{name} is no member that this device knows of; see: covey members")
        return self._view(known)

    def resting_on(self, name: str) -> list[MemberView]:
        """Return the members that would fall with an admin, if it is one."""
        peer = self._find(name)
        return list(map(self._view, self._parts.registrar.resting_on(peer)))

    # Revoking, admitting, renewing

    async def revoke(self, name: str, request: RevokeRequest) -> RevokedView:
        """Revoke a member, or an admin with the root's key; durable on return.

        Raises:
            NotFound: there is no such member, or no root key here.
            Misuse: this device is no admin, or may not.
            NotAdmitted: the passphrase is wrong.
            Unavailable: the disk does not take it, or this device's clock is wrong.
        """
        parts = self._parts
        peer = self._find(name)
        self._name_of(peer)
        order = self._order("purge" if request.purge else "stop", request.reason)
        if not parts.registrar.is_admin(peer):
            await self._write(parts.registrar.revoke(peer, order, parts.now_ms()))
            return RevokedView(member=self._member(peer))
        resting = parts.registrar.resting_on(peer)
        keep = self._kept(resting, request.keep)
        root = await self._root(request.passphrase)
        signed = parts.registrar.revoke_admin(root, peer, keep, order, parts.now_ms())
        await self._write(signed)
        return RevokedView(
            member=self._member(peer),
            kept=tuple(self._member(one) for one in keep),
            fallen=tuple(self._view(one) for one in resting if one.member.peer not in keep),
        )

    async def admit(self, name: str, request: AdmitRequest) -> MemberView:
        """Let a peer that is known in again, change its zones, or make it an admin; durable on return.

        Raises: as `revoke`, and
            Conflict: it is an admin already.
        """
        parts = self._parts
        peer = self._find(name)
        for zone in request.zones or ():
            check_zone(zone)
        if request.admin:
            root = await self._root(request.passphrase)
            signed = parts.registrar.appoint(root, peer, request.zones, parts.now_ms())
        else:
            order = self._order()
            signed = parts.registrar.admit(peer, request.zones, order, parts.now_ms())
        await self._write(signed)
        return self._member(peer)

    async def renew(self, name: str, request: RenewRequest) -> MemberView:
        """Renew this device's certificate, a member's as an admin, or an admin's with the root's key.

        Raises: as `revoke`, and
            Unavailable: no admin is in reach.
            NotAdmitted: it was revoked.
        """
        parts = self._parts
        me = parts.registrar.me
        peer = me if name == SELF else self._find(name)
        if parts.registrar.is_admin(peer):
            root = await self._root(request.passphrase)
            await self._write(parts.registrar.renew_admin(root, peer, parts.now_ms()))
        elif peer == me:
            await parts.renewing.renew()
        else:
            signed = Signed()
            signed.grant(peer, parts.registrar.renew(peer, parts.now_ms()))
            await self._write(signed)
        return self._member(peer)

    # Who waits

    def pending(self) -> list[PendingView]:
        """Return who waits for this admin's word, the longest first."""
        self._parts.registrar.check_own(self._parts.now_ms())
        return list(map(self._pending_view, self._parts.desk.pending.listed(self._parts.now_ms())))

    async def approve(self, name: str, request: ApproveRequest) -> MemberView:
        """Let a joiner in that waits; it hears so when it asks next. Durable on return.

        Raises:
            NotFound: nobody of that name waits here.
            NotAdmitted: it was revoked meanwhile.
        """
        parts = self._parts
        record = self._waiting(name)
        peer = PeerId(record.peer)
        zones = record.zones if request.zones is None else request.zones
        for zone in zones:
            check_zone(zone)
        signed = Signed()
        signed.grant(peer, parts.registrar.grant(peer, zones, parts.now_ms()))
        await self._write(signed)
        await parts.invites.keep(list(parts.desk.pending.decide(peer, "yes", parts.now_ms())))
        return self._member(peer)

    async def deny(self, name: str) -> PendingView:
        """Tell a joiner no; durable on return.

        Raises:
            NotFound: nobody of that name waits here.
        """
        parts = self._parts
        record = self._waiting(name)
        effects = parts.desk.pending.decide(PeerId(record.peer), "no", parts.now_ms())
        await parts.invites.keep(list(effects))
        return self._pending_view(record)

    # Parts

    async def _write(self, signed: Signed) -> None:
        await self._parts.books.write(signed.records)
        # What was signed for this very device counts at once.
        if self._parts.registrar.me in signed.chains:
            await self._parts.renewing.take_up()

    async def _root(self, passphrase: str | None) -> Keypair:
        if passphrase is None:
            raise Misuse("this needs the mesh's root key; give its passphrase")
        return await trio.to_thread.run_sync(open_root_of, self._parts.home, passphrase)

    def _order(self, mode: Mode = "stop", reason: str = "") -> Order:
        parts = self._parts
        return Order(number_of(parts.draw(NUMBER_BYTES)), parts.memory.moment(), mode, reason)

    def _kept(self, resting: Collection[Known], keep: tuple[str, ...] | None) -> list[PeerId]:
        if keep is None:
            if resting:
                raise Conflict(
                    f"{len(resting)} members would fall with it; say whom to keep: --keep all, none, or "
                    "names"
                )
            return []
        if keep == ("all",):
            return [one.member.peer for one in resting]
        return [self._find(name) for name in keep]

    def _find(self, name: str) -> PeerId:
        """Return the peer of a name, of an id, or of the unique end of one."""
        known = self._parts.standing.peers()
        if name == SELF:
            return self._parts.registrar.me
        end = name.removeprefix("…")
        if len(end) >= END_CHARACTERS_MIN:
            ends = [peer for peer in known if peer.endswith(end)]
            if len(ends) == 1:
                return ends[0]
        # Who was put out is in the directory no more.
        named = [peer for peer, last in self._names.items() if last == name]
        if len(named) == 1 and self._parts.standing.is_void(named[0]):
            return named[0]
        return self._parts.find_peer(name)

    def _waiting(self, name: str) -> PendingRecord:
        self._parts.registrar.check_own(self._parts.now_ms())
        end = name.removeprefix("…")
        listed = self._parts.desk.pending.listed(self._parts.now_ms())
        found = [one for one in listed if name == one.peer]
        found = found or [
            one
            for one in listed
            if name == one.name or (len(end) >= END_CHARACTERS_MIN and one.peer.endswith(end))
        ]
        if len(found) > 1:
            raise Misuse(f"several joiners are called {name!r}; name one by its id: covey pending")
        if not found:
            raise NotFound(f"nobody called {name!r} waits at this device; see: covey pending")
        return found[0]

    # Views

    def _member(self, peer: PeerId) -> MemberView:
        known = self._parts.standing.of(peer)
        assert known is not None, "what was signed just now is known"
        return self._view(known)

    def _view(self, known: Known) -> MemberView:
        parts, member = self._parts, known.member
        why = parts.standing.why_void(known)
        is_over = parts.now_ms() > member.grace_until_ms
        return MemberView(
            id=member.peer,
            name=self._name_of(member.peer),
            role=member.role,
            zones=tuple(sorted(member.zones)),
            state="revoked" if why is not None else "expired" if is_over else "member",
            issued_ms=member.issued_ms,
            not_after_ms=member.not_after_ms,
            grace_until_ms=member.grace_until_ms,
            signed_by=known.parts[-2].peer if len(known.parts) > 1 else "root",
            why=why or "",
        )

    def _name_of(self, peer: PeerId) -> str:
        name = self._parts.name_of(peer)
        if name != peer:
            self._names[peer] = name
        return self._names.get(peer, peer)

    def _pending_view(self, record: PendingRecord) -> PendingView:
        parts = self._parts
        peer = PeerId(record.peer)
        return PendingView(
            id=peer,
            name=record.name,
            words=words_of(parts.mesh, parts.registrar.me, peer, record.nonce),
            asked_ms=record.asked_ms,
            has_confirmed=record.has_confirmed,
            zones=record.zones,
            inviter=record.inviter or None,
            inviter_name=parts.name_of(record.inviter) if record.inviter else None,
        )
