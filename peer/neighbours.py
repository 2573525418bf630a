"""Who else is there, and how do we stay in touch? Drives dialling over links and store.

Where a peer was last known to be rests in the store for ever. A changed address, a wake from sleep or a
clock that was set makes every peer due for a dial, and this one's advert new. Who is seen on the same
network segment is due, too, if it is known: a dial shows this peer's chain, which is nobody else's
business.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from covey.gossip.dialling import AddressRecord, Dialling
from covey.gossip.directory import Directory, DirectoryEffect, Forget, Keep
from covey.gossip.host import Host
from covey.gossip.lan import Lan
from covey.gossip.links import Links
from covey.gossip.memory.standing import Standing
from covey.gossip.network import LinkDown, LinkUp
from covey.identity.envelope import MeshId
from covey.identity.errors import NotAdmitted, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import decode, encode

from .adverts import Adverts
from .schema import Database
from .store import Change, Store

log = logging.getLogger(__name__)

DIAL_S = 5.0
LOOK_S = 5.0
# Who has joined just now dials nobody but who let it in until the mesh's books have come.
BELIEVED_S = 30.0
# The two clocks drift by less in LOOK_S; more is a clock that was set, or a device that slept.
JUMP_MS = 2_000


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What neighbours are kept with."""

    me: PeerId
    mesh: MeshId
    bootstrap: Sequence[tuple[str, tuple[str, ...]]]
    """Peers and addresses that this device was told when it joined."""
    store: Store
    links: Links
    directory: Directory
    adverts: Adverts
    dialling: Dialling
    now_ms: Callable[[], int]
    standing: Standing
    """Who is a member by now: nobody else is dialled."""
    believed: Callable[[PeerId], Awaitable[None]]
    """Returns once this peer would believe another one's chain."""
    mdns: bool = False
    """Look for members on this network segment, and be announced there."""


class Neighbours:
    """The other peers, as this one knows them. Run `serve` in a nursery once the host listens.

    Args:
        parts: what they are kept with.
        learned: told when the directory has changed: what waits may be placed now.
        changed: told of each peer that came, went or changed.
        jumped: told by how many milliseconds the wall clock was set.
    """

    def __init__(
        self,
        parts: Surroundings,
        *,
        learned: Callable[[], None],
        changed: Callable[[PeerId], None],
        jumped: Callable[[int], None],
    ) -> None:
        self._parts = parts
        self._learned = learned
        self._changed = changed
        self._jumped = jumped
        self._host: Host
        self._due = trio.Event()
        self._arrivals: dict[PeerId, trio.Event] = {}
        self.refusals: dict[PeerId, NotAdmitted] = {}
        """Who did not let this peer in when it was dialled last, and why."""
        self._lan = self._make_lan() if parts.mdns else None
        parts.links.on_link(self._link_changed)

    async def serve(
        self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Remember who was known, then dial and look around until cancelled."""
        self._host = host
        self._take_up_stored()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dial)
            nursery.start_soon(self._look_around)
            if self._lan is not None:
                self._lan.move(host.addresses())
                nursery.start_soon(self._lan.serve)
            task_status.started()

    async def sweep(self) -> None:
        """Forget who is over its time, and cut off who is no member any more."""
        for one in self._parts.adverts.sweep():
            if isinstance(one, Forget) and one.no_member:
                await self._host.evict(one.peer)

    def met(self, peer: PeerId, addresses: Sequence[str]) -> None:
        """Note where a member may be, and dial it soon."""
        self._parts.dialling.remember(peer, addresses, trio.current_time())
        self._due.set()

    def let_in_again(self) -> None:
        """This device has a new chain: who refused it may not any more."""
        self.refusals.clear()

    def take(self, effects: Sequence[DirectoryEffect]) -> None:
        """Act on what the directory has heard: dial who has moved."""
        parts = self._parts
        changes: list[Change] = []
        for effect in effects:
            match effect:
                case Keep(entry):
                    addresses = entry.advert.addresses
                    if parts.dialling.remember(entry.peer, addresses, trio.current_time()):
                        record = AddressRecord(entry.peer, addresses)
                        key = entry.peer.encode()
                        changes.append(Change(Database.ADDRESS, key, encode(record)))
                        self._due.set()
                    self._changed(entry.peer)
                case Forget(peer):
                    self._changed(peer)
        if changes:
            # Heard again at the next start, should the disk not take it now.
            parts.store.put(changes, _log_failure)
        if effects:
            self._learned()

    async def rejudge(self, peer: PeerId, *, renew_link: bool = False) -> None:
        """Act on a change of a peer's standing: cut off who is no member, take up who is one again.

        Args:
            peer: who.
            renew_link: its link is to be opened anew, as what it now is.
        """
        parts = self._parts
        key = peer.encode()
        if parts.standing.is_void(peer):
            parts.dialling.forget(peer)
            parts.directory.forget(peer)
            # Where it was is kept, should it be let in again.
            await self._host.evict(peer)
            # What was under way when it was cut may have brought it back.
            if parts.standing.is_void(peer):
                parts.dialling.forget(peer)
            return
        parts.adverts.rejudge(peer)
        if not parts.dialling.knows(peer) and (row := parts.store.get(Database.ADDRESS, key)):
            record = decode(row, AddressRecord)
            parts.dialling.remember(peer, record.addresses, trio.current_time())
            self._due.set()
        if renew_link:
            await self._host.evict(peer)

    async def reach(self, peer: PeerId) -> None:
        """Return once there is a link to a member; cancel it when it takes too long.

        Raises:
            Unavailable: it is at none of its addresses.
            NotAdmitted: it does not let this peer in.
        """
        parts = self._parts
        if peer in parts.links.links():
            return
        entry = parts.directory.get(peer)
        if entry is None:
            raise Unavailable(f"nothing is known of {peer}")
        arrival = self._arrivals.setdefault(peer, trio.Event())
        addresses = parts.dialling.addresses(peer) or entry.advert.addresses
        await self._host.dial(peer, addresses, timeout_s=DIAL_S)
        await arrival.wait()

    # What is known

    def _take_up_stored(self) -> None:
        parts = self._parts
        records = [AddressRecord(*one) for one in parts.bootstrap]
        records += [decode(row, AddressRecord) for _, row in parts.store.scan(Database.ADDRESS)]
        for record in records:
            peer = PeerId(record.peer)
            if not parts.standing.is_void(peer):
                parts.dialling.remember(peer, record.addresses, trio.current_time())

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        parts = self._parts
        now = trio.current_time()
        match event:
            case LinkUp(peer, _):
                self.refusals.pop(peer, None)
                if (arrival := self._arrivals.pop(peer, None)) is not None:
                    arrival.set()
                parts.dialling.connected(peer, now)
            case LinkDown(peer, _):
                parts.dialling.disconnected(peer, now)
        self._due.set()
        self._changed(event.peer)

    # On the same network segment

    @property
    def lan_trouble(self) -> str | None:
        """Why nobody is found on this network segment, if somebody should be."""
        return None if self._lan is None else self._lan.trouble

    def _make_lan(self) -> Lan:
        parts = self._parts
        return Lan(
            parts.me,
            parts.mesh,
            is_known=self._is_known,
            sighted=self._sighted,
            withdrawn=parts.dialling.withdrawn,
        )

    def _is_known(self, peer: PeerId) -> bool:
        """Tell whether it is a member as far as this peer knows: by advert, address or bootstrap."""
        return self._parts.directory.get(peer) is not None or self._parts.dialling.knows(peer)

    def _sighted(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        if self._parts.dialling.sighted(peer, addresses, trio.current_time()):
            log.info("lan.sighted", extra={"peer": peer, "addresses": addresses})
        self._due.set()

    # Staying in touch

    async def _dial(self) -> None:
        dialling = self._parts.dialling
        async with trio.open_nursery() as nursery:
            while True:
                self._due = trio.Event()
                for dial in dialling.tick(trio.current_time()):
                    nursery.start_soon(self._dial_one, dial.peer, dial.addresses)
                with trio.move_on_at(dialling.deadline):
                    await self._due.wait()

    async def _dial_one(self, peer: PeerId, addresses: Sequence[str]) -> None:
        dialling = self._parts.dialling
        try:
            with trio.move_on_after(BELIEVED_S):
                await self._parts.believed(peer)
            await self._host.dial(peer, addresses, timeout_s=DIAL_S)
        except Unavailable as error:
            log.debug("dial.failed", extra={"peer": peer, "why": str(error)})
            dialling.failed(peer, trio.current_time())
        except NotAdmitted as error:
            if error.code != "duplicate":
                self.refusals[peer] = error
                log.warning("dial.refused", extra={"peer": peer, "why": str(error)})
            dialling.failed(peer, trio.current_time(), refused=error.code != "duplicate")
        else:
            dialling.succeeded(peer)
        self._due.set()

    async def _look_around(self) -> None:
        """Notice another address, a clock that was set, or a sleep, and act on it."""
        parts = self._parts
        addresses = self._host.addresses()
        apart_ms = self._apart_ms()
        while True:
            await trio.sleep(LOOK_S)
            before, apart_before_ms = addresses, apart_ms
            addresses, apart_ms = self._host.addresses(), self._apart_ms()
            jump_ms = apart_ms - apart_before_ms
            if abs(jump_ms) < JUMP_MS and addresses == before:
                continue
            log.info("surroundings.changed", extra={"jump_ms": jump_ms, "addresses": addresses})
            if abs(jump_ms) >= JUMP_MS:
                self._jumped(jump_ms)
            parts.dialling.network_changed(trio.current_time())
            self._due.set()
            if self._lan is not None:
                self._lan.move(addresses)
            parts.adverts.announce()

    def _apart_ms(self) -> int:
        """Return how far the wall clock is from the monotonic one."""
        return self._parts.now_ms() - int(trio.current_time() * 1000)


def _log_failure(error: Unavailable | None) -> None:
    if error is not None:
        log.error("store.commit_failed", extra={"why": str(error)})
