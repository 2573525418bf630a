"""Who of this mesh is on the same network segment? DNS-SD over multicast DNS: python-zeroconf.

zeroconf runs threads of its own. What may wait there (open, look up, say goodbye) runs in one of
trio's threads, with a deadline; what it hears comes over one at a time, and is counted and dropped
when too much of it waits. What is heard is judged by `sighting.py`.
"""

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial
from ipaddress import IPv4Address, IPv4Interface
from typing import assert_never

import psutil
import trio
import zeroconf

from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Unavailable
from covey.identity.keys import PeerId

from .sighting import (
    Announcement,
    LookUp,
    Place,
    Segment,
    SegmentEffect,
    Stranger,
    Withdrawn,
    judge,
    placed,
    service_of,
    text_of,
)

log = logging.getLogger(__name__)

# Announcing takes 0.5 s; zeroconf itself gives up after 10 s.
OPEN_S = 10.0
# Three goodbyes take 0.3 s.
CLOSE_S = 3.0
LOOK_UP_S = 1.5
LOOK_UPS_MAX = 4
# How often to look whether an interface came up, or what failed works now: costs 0.2 ms.
LOOK_S = 60.0
# What zeroconf has heard and trio has not seen yet; with more it is dropped.
OVERHEARD_MAX = 256
# Linux lets a socket join 20 groups.
INTERFACES_MAX = 16
PORT = 5353
NO_MULTICAST = "no network interface of this device takes multicast"
GROUP = "224.0.0.251"


class Lan:
    """This peer on its network segments. Run `serve` in a nursery; `move` tells it where it is.

    Args:
        me: who is announced.
        mesh: which mesh; members of others do not even ask for it.
        is_known: whether an id is a member's. Others are not looked up.
        sighted: told where a known member says that it is. It may be a lie.
        withdrawn: told when it is not there any more.
        interfaces: where to speak and listen.
        look_s: how often to look at these.
    """

    def __init__(
        self,
        me: PeerId,
        mesh: MeshId,
        *,
        is_known: Callable[[PeerId], bool],
        sighted: Callable[[PeerId, tuple[str, ...]], None],
        withdrawn: Callable[[PeerId], None],
        interfaces: Callable[[], list[IPv4Interface]] | None = None,
        look_s: float = LOOK_S,
    ) -> None:
        self._me = me
        self._service = service_of(mesh)
        self._segment = Segment(me, self._service, is_known)
        self._sighted = sighted
        self._withdrawn = withdrawn
        self._interfaces = interfaces or multicast_interfaces
        self._look_s = look_s
        self._addresses: tuple[str, ...] = ()
        self._moved = trio.Event()
        self._news = trio.Event()
        self._limiter = trio.CapacityLimiter(LOOK_UPS_MAX)
        self._room = threading.BoundedSemaphore(OVERHEARD_MAX)
        self._trio: trio.lowlevel.TrioToken
        self.trouble: str | None = None
        """Why this peer is not announced, if it should be."""
        self.dropped = 0
        """What was heard while too much waited."""

    @property
    def strangers(self) -> int:
        """How many ids of this mesh were seen that are not known here."""
        return self._segment.strangers

    def move(self, addresses: Sequence[str]) -> None:
        """Announce these multiaddrs, as far as they are this device's own, and browse anew."""
        self._addresses = tuple(addresses)
        self._moved.set()

    async def serve(self) -> None:
        """Take part until cancelled, then say goodbye."""
        self._trio = trio.lowlevel.current_trio_token()
        # What others send is none of the owner's concern; what fails here is told as `trouble`.
        logging.getLogger("zeroconf").setLevel(logging.CRITICAL)
        while True:
            self._moved = trio.Event()
            interfaces = self._interfaces()
            place = placed(self._addresses, interfaces)
            if place is None:
                self._tell(self._why_not(interfaces))
                await self._wait_moved(None)
                continue
            try:
                await self._take_part(place)
            except Unavailable as error:
                self._tell(str(error))
                with trio.move_on_after(self._look_s):
                    await self._moved.wait()

    async def _wait_moved(self, place: Place | None) -> None:
        """Return once this device is somewhere else than there."""
        while not self._moved.is_set():
            with trio.move_on_after(self._look_s):
                await self._moved.wait()
            if placed(self._addresses, self._interfaces()) != place:
                return

    def _why_not(self, interfaces: Sequence[IPv4Interface]) -> str | None:
        # Who listens on loopback alone, or names addresses of another device, wants no more.
        if interfaces or all(one.startswith("/ip4/127.") for one in self._addresses):
            return None
        return NO_MULTICAST

    def _tell(self, trouble: str | None) -> None:
        if trouble is not None and trouble != self.trouble:
            log.warning("lan.unavailable", extra={"why": trouble})
        self.trouble = trouble

    # One stay on the segments

    async def _take_part(self, place: Place) -> None:
        """Be announced, and look around, until this device moves.

        Raises:
            Unavailable: there is no multicast, or the port is another program's.
        """
        browser = _Browser(self._me, self._service, place, self.overheard)
        in_thread = partial(trio.to_thread.run_sync, abandon_on_cancel=True)
        try:
            with trio.move_on_after(OPEN_S) as opening:
                await in_thread(browser.open)
            if opening.cancelled_caught:
                raise Unavailable(f"multicast DNS did not start within {OPEN_S:g} s")
            self._tell(None)
            log.info("lan.announced", extra={"addresses": browser.addresses})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._look_up_due, browser)
                await self._wait_moved(place)
                nursery.cancel_scope.cancel()
        finally:
            for effect in self._segment.moved():
                self._carry_out(effect)
            with trio.CancelScope(shield=True), trio.move_on_after(CLOSE_S):
                await in_thread(browser.close)

    async def _look_up_due(self, browser: "_Browser") -> None:
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                for effect in self._segment.tick(trio.current_time()):
                    if isinstance(effect, LookUp):
                        nursery.start_soon(self._look_up, browser, effect.peer)
                with trio.move_on_at(self._segment.deadline):
                    await self._news.wait()

    async def _look_up(self, browser: "_Browser", peer: PeerId) -> None:
        try:
            heard = await trio.to_thread.run_sync(
                browser.look_up, peer, abandon_on_cancel=True, limiter=self._limiter
            )
            seen = judge(heard, self._service, self._interfaces())
        except (Unavailable, Malformed) as error:
            log.debug("lan.not_believed", extra={"peer": peer, "why": str(error)})
            return
        self._sighted(seen.peer, seen.addresses)

    # What is heard

    def overheard(self, name: str, left: bool) -> None:
        """Take over what zeroconf heard; called in its thread, and never waits."""
        if not self._room.acquire(blocking=False):
            self.dropped += 1
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(self._hear, name, left)

    def _hear(self, name: str, left: bool) -> None:
        self._room.release()
        segment = self._segment
        effects = segment.left(name) if left else segment.heard(name, trio.current_time())
        for effect in effects:
            self._carry_out(effect)
        self._news.set()

    def _carry_out(self, effect: SegmentEffect) -> None:
        match effect:
            case Withdrawn(peer):
                self._withdrawn(peer)
            case Stranger(peer):
                log.info("lan.stranger_seen", extra={"peer": peer})
            case LookUp():
                pass
            case _:
                assert_never(effect)


class _Browser(zeroconf.ServiceListener):
    """zeroconf at work: announcing and listening while it is open. Every method may wait.

    Args:
        me: who is announced.
        service: as what.
        place: port and IPs; there it speaks and listens.
        overheard: told, in zeroconf's thread, of a name that is new, changed or left.
    """

    def __init__(
        self,
        me: PeerId,
        service: str,
        place: Place,
        overheard: Callable[[str, bool], None],
    ) -> None:
        self._me = me
        self._service = service
        self._port, self._ips = place[0], place[1][:INTERFACES_MAX]
        self._overheard = overheard
        self._lock = threading.Lock()
        self._zeroconf: zeroconf.Zeroconf | None = None
        self._closed = False

    @property
    def addresses(self) -> list[str]:
        """What is announced."""
        return [str(ip) for ip in self._ips]

    def open(self) -> None:
        """Return once this peer is announced.

        Raises:
            Unavailable: there is no multicast, or the port is another program's.
        """
        _check_port()
        places = [str(ip) for ip in self._ips if _takes_multicast(ip)]
        if not places:
            raise Unavailable(NO_MULTICAST)
        try:
            opened = zeroconf.Zeroconf(
                interfaces=places,
                ip_version=zeroconf.IPVersion.V4Only,
                use_asyncio=False,
            )
        except Exception as error:
            raise Unavailable(f"multicast DNS does not start: {error}") from error
        with self._lock:
            self._zeroconf = opened
            closed = self._closed
        if closed:
            # Nobody waits any more: it took too long.
            opened.close()
            return
        if not opened.engine.senders:
            raise Unavailable(NO_MULTICAST)
        info = zeroconf.ServiceInfo(
            self._service,
            f"{self._me}.{self._service}",
            self._port,
            properties=text_of(self._me),
            # Not the device's own name: it is nobody's business.
            server=f"{self._me}.local.",
            addresses=[ip.packed for ip in self._ips],
        )
        try:
            opened.add_service_listener(self._service, self)
            # A peer id is nobody else's: probing for another that has it would take 1.5 s.
            opened.register_service(info, cooperating_responders=True)
        except Exception as error:
            raise Unavailable(f"multicast DNS does not start: {error}") from error

    def close(self) -> None:
        """Say goodbye, and end zeroconf's threads; also while `open` has not returned."""
        with self._lock:
            self._closed = True
            opened = self._zeroconf
        if opened is not None:
            try:
                opened.close()
            except Exception as error:  # noqa: BLE001  (as below: it raises several kinds)
                log.debug("lan.close_failed", extra={"why": repr(error)})

    def look_up(self, peer: PeerId) -> Announcement:
        """Return what the segment says of a peer, asking it if need be.

        Raises:
            Unavailable: nothing, within LOOK_UP_S.
        """
        assert self._zeroconf is not None
        info = zeroconf.ServiceInfo(self._service, f"{peer}.{self._service}")
        try:
            found = info.request(self._zeroconf, LOOK_UP_S * 1000)
        except Exception as error:
            # Whatever it stumbled over came from the segment, and must not end the daemon.
            raise Unavailable(f"the segment cannot be asked: {error}") from error
        if not found:
            raise Unavailable("no answer from the segment")
        addresses = info.parsed_addresses(zeroconf.IPVersion.V4Only)
        return Announcement(info.name, info.port, info.properties, addresses)

    # zeroconf's ServiceListener: called in its thread.

    def add_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """An instance was heard of."""
        self._overheard(name, False)

    def update_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """An instance says something else."""
        self._overheard(name, False)

    def remove_service(self, zc: zeroconf.Zeroconf, type_: str, name: str) -> None:
        """An instance said goodbye, or was silent for too long."""
        self._overheard(name, True)


def _check_port() -> None:
    """Fail before zeroconf does: it leaves a socket behind, and does not say which port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            probe.bind(("", PORT))
        except OSError as error:
            raise Unavailable(f"UDP port {PORT} cannot be used: {error.strerror}") from error


def _takes_multicast(ip: IPv4Address) -> bool:
    """Tell whether one can speak and listen there: one that cannot would stop zeroconf elsewhere."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            join = socket.inet_aton(GROUP) + ip.packed
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, join)
            probe.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, ip.packed)
        except OSError:
            return False
    return True


def multicast_interfaces() -> list[IPv4Interface]:
    """Return this device's IPv4 addresses on segments that it can speak to, with their networks."""
    states = psutil.net_if_stats()
    found: list[IPv4Interface] = []
    for name, addresses in psutil.net_if_addrs().items():
        state = states.get(name)
        if state is None or not state.isup or "multicast" not in (state.flags or "multicast"):
            continue
        for one in addresses:
            if one.family.name != "AF_INET" or one.netmask is None:
                continue
            interface = IPv4Interface(f"{one.address}/{one.netmask}")
            if not interface.ip.is_loopback:
                found.append(interface)
    return found
