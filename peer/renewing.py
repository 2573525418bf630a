"""By what right is this device in its mesh, and how does it stay so? Its chain, kept in force.

At half of its certificate's life, and until it has succeeded, a member asks an admin in reach for the
next one. What the mesh's books say of this device is taken up, too: an admin may have changed its zones,
signed it anew, or let it in again. A new chain is durable before it is used, and then used everywhere.
Past its grace a device works on alone, and says so. Drives `gossip/renewal.py`.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

import trio

from covey.gossip import renewal
from covey.gossip.links import Links
from covey.gossip.memory.books import membership
from covey.gossip.memory.standing import Standing
from covey.gossip.registrar import Registrar
from covey.identity.certificate import DAY_S, Chain, Member
from covey.identity.envelope import MeshId
from covey.identity.errors import CoveyError, Misuse, NotAdmitted, Unavailable
from covey.identity.keys import PeerId

from .books import BookKeeper
from .views import Finding

log = logging.getLogger(__name__)

# How often it is looked at the wall clock, and a failed renewal tried again.
LOOK_S = 600.0
ASK_S = 10.0
# Admins who are not linked are dialled one after the other, this many at most.
REACHED_MAX = 3
ADMIN_WARN_DAYS = 90


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a chain is kept in force with."""

    mesh: MeshId
    standing: Standing
    registrar: Registrar
    books: BookKeeper
    links: Links
    now_ms: Callable[[], int]
    reach: Callable[[PeerId], Awaitable[None]]
    """Returns once there is a link to a member."""
    use: Callable[[Chain, Member], Awaitable[None]]
    """Stores a new chain of this device's, and uses it everywhere from then on."""


class Renewing:
    """Keeps one device's chain in force. Run `serve` in a nursery."""

    def __init__(self, parts: Surroundings, me: Member, chain: Chain) -> None:
        self._parts = parts
        self._me = me
        self._chain: Chain = chain
        self._due = trio.Event()
        self._asking = trio.Lock()
        self._using = trio.Lock()
        parts.links.on_request(renewal.CHANNEL, self._asked)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew in time, until cancelled."""
        await self.take_up()
        task_status.started()
        while True:
            self._due = trio.Event()
            await self.take_up()
            if self._is_due():
                try:
                    await self.renew()
                except CoveyError as error:
                    log.info("renewal.put_off", extra={"why": str(error)})
            with trio.move_on_after(LOOK_S):
                await self._due.wait()

    def look(self) -> None:
        """The books or the links have changed: look again at what follows."""
        self._due.set()

    async def take_up(self) -> None:
        """Use what the books say of this device, if that is better than what it has."""
        async with self._using:
            standing = self._parts.standing
            known = standing.of(self._me.peer)
            if known is None or standing.why_void(known) is not None:
                return
            if known.chain == self._chain:
                return
            await self._parts.use(known.chain, known.member)
            self._chain, self._me = known.chain, known.member
            ends = {"not_after_ms": known.member.not_after_ms, "role": known.member.role}
            log.info("certificate.taken_up", extra=ends)

    async def renew(self) -> Member:
        """Ask admins in reach for a new certificate, and return what this device is by it.

        Where the one that it has is still fresh, it stays.

        Raises:
            Misuse: this device is an admin, whom the root renews.
            Unavailable: no admin is in reach, or none gave one that holds for longer.
        """
        if self._me.role == "admin":
            raise Misuse("an admin is renewed with the root key: covey renew, where that is")
        async with self._asking:
            why: CoveyError | None = None
            for admin in self._admins():
                try:
                    await self._ask(admin)
                except NotAdmitted as error:
                    why = error
                    if error.code == "no-gain":
                        return self._me
                    log.info("renewal.refused", extra={"admin": admin, "why": str(error)})
                    continue
                except CoveyError as error:
                    why = error
                    log.info("renewal.refused", extra={"admin": admin, "why": str(error)})
                    continue
                await self.take_up()
                return self._me
        reason = "no admin is known" if why is None else str(why)
        raise Unavailable(f"no admin in reach renews this device's certificate: {reason}")

    def trouble(self) -> Finding | None:
        """Return what is wrong with this device's right to be in its mesh."""
        standing, now_ms, me = self._parts.standing, self._parts.now_ms(), self._me
        known = standing.of(me.peer)
        if known is not None and (why := standing.why_void(known)) is not None:
            what = f"this device is no member any more: {why}"
            return finding("fail", what, f"an admin lets it in again with: covey admit {me.peer}")
        if now_ms > me.grace_until_ms:
            what = (
                f"its certificate ended, grace included, {_days(now_ms - me.grace_until_ms)} ago: this "
                "peer works on alone"
            )
            remedy = f"an admin lets it in again with: covey admit {me.peer}; or check the clock"
            return finding("fail", what, remedy)
        if now_ms > me.not_after_ms:
            what = (
                f"its certificate has ended; its grace lasts for {_days(me.grace_until_ms - now_ms)} "
                "more, and then this peer works alone"
            )
            return finding("warn", what, _remedy(me))
        left_ms = me.not_after_ms - now_ms
        if me.role == "admin" and left_ms < ADMIN_WARN_DAYS * DAY_S * 1000:
            return finding(
                "warn", f"this admin's certificate ends in {_days(left_ms)}", _remedy(me)
            )
        return None

    # As a member

    def _is_due(self) -> bool:
        is_member = self._me.role == "member"
        return is_member and self._parts.now_ms() >= renewal.half_of_life_ms(self._me)

    def _admins(self) -> list[PeerId]:
        """Return the admins to ask, linked ones first."""
        standing, linked = self._parts.standing, self._parts.links.links()
        admins = [
            peer
            for peer in standing.peers()
            if (known := standing.of(peer)) is not None
            and known.member.role == "admin"
            and standing.why_void(known) is None
        ]
        near = [peer for peer in admins if peer in linked]
        far = [peer for peer in admins if peer not in linked]
        return [*near, *far[:REACHED_MAX]]

    async def _ask(self, admin: PeerId) -> None:
        parts = self._parts
        known = parts.standing.of(self._me.peer)
        assert known is not None, "this device knows its own certificate"
        if admin not in parts.links.links():
            with trio.move_on_after(ASK_S) as scope:
                await parts.reach(admin)
            if scope.cancelled_caught:
                raise Unavailable(f"{admin} cannot be reached")
        request = renewal.ask(known.id)
        data = await parts.links.request(admin, renewal.CHANNEL, request, timeout_s=ASK_S)
        chain = renewal.accepted(data, self._me, parts.mesh, parts.now_ms())
        parts.standing.learn(chain)

    # As an admin

    async def _asked(self, peer: PeerId, body: bytes) -> bytes:
        parts = self._parts
        now_ms = parts.now_ms()
        chain, is_new = renewal.grant(body, peer, parts.registrar, parts.standing, now_ms)
        if is_new:
            await parts.books.write([membership(peer, chain)])
            log.info("member.renewed", extra={"peer": peer})
        return renewal.answer(chain)


def finding(level: Literal["warn", "fail"], what: str, remedy: str) -> Finding:
    """Return what is wrong with a device's right to be in its mesh."""
    return Finding(check="certificate", level=level, what=what, remedy=remedy)


def _days(span_ms: int) -> str:
    return f"{span_ms // 1000 // DAY_S} days"


def _remedy(me: Member) -> str:
    if me.role == "admin":
        return "renew it where the root key is: covey renew"
    return "bring it in reach of an admin; it renews by itself then, or: covey renew"
