"""Who was seen on this network segment, and what of that is believed? What mDNS said, judged.

Pure. Anyone on the segment may say anything: a name is taken only if it is a peer's id, nobody is
looked up but members that are known, and an address only if it is of the segment. `lan.py` carries
it out; docs/decisions/0008-lan.md says why. Source: RFC 6762 and 6763.
"""

import base64
import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId, public_key_of

from .hello import VERSION

# Known members followed on one segment, and unknown ids told of: more are counted and dropped.
PEERS_MAX = 256
STRANGERS_MAX = 256
ADDRESSES_MAX = 4
# Of one announcement; the rest is not even looked at.
ADDRESSES_READ_MAX = 64
# However often a peer changes what it says: it is looked up, and dialled, once in so long.
LOOK_AGAIN_S = 2.0
# Below are the ports of other services, which nobody shall make us knock at.
PORT_MIN = 1024
PORT_MAX = 65535
NAME_CHARACTERS_MAX = 255

_PRIVATE = tuple(
    IPv4Network(one) for one in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
)
_OURS = re.compile(r"/ip4/([0-9.]{7,15})/tcp/([0-9]{1,5})")


Place = tuple[int, tuple[IPv4Address, ...]]
"""Where a peer is on its segments: TCP port and IPs."""


@dataclass(frozen=True, slots=True)
class Announcement:
    """What somebody on the segment said of itself."""

    name: str
    port: int | None
    text: Mapping[bytes, bytes | None]
    addresses: Sequence[str]


@dataclass(frozen=True, slots=True)
class Sighting:
    """Where a peer says that it is. Only a connection shows whether it is true."""

    peer: PeerId
    addresses: tuple[str, ...]
    """Multiaddrs of this segment, nearest first."""


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the segment where this member is."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """This member is no longer where it was seen."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Stranger:
    """An id that is not known here was seen for the first time; it is not dialled."""

    peer: PeerId


SegmentEffect = LookUp | Withdrawn | Stranger


def service_of(mesh: MeshId) -> str:
    """Return the DNS-SD service type of a mesh: who does not know the mesh's id cannot tell which."""
    digest = hashlib.blake2b(b"covey/lan/1", key=mesh, digest_size=5).digest()
    # 6 + 8 characters: RFC 6763 allows 15.
    return f"_covey-{base64.b32encode(digest).decode().lower()}._tcp.local."


def text_of(peer: PeerId) -> dict[str, str]:
    """Return what the TXT record of a peer says: its id, and the version that it speaks."""
    return {"id": peer, "v": str(VERSION)}


def placed(addresses: Iterable[str], interfaces: Iterable[IPv4Interface]) -> Place | None:
    """Return port and IPs of those multiaddrs that are at these interfaces; None if none is."""
    ours = {interface.ip for interface in interfaces}
    port, ips = 0, list[IPv4Address]()
    for address in addresses:
        if (match := _OURS.fullmatch(address)) is None:
            continue
        ip = IPv4Address(match[1])
        if ip in ours and ip not in ips and (not ips or int(match[2]) == port):
            port = int(match[2])
            ips.append(ip)
    return (port, tuple(ips)) if ips else None


def peer_named(name: str, service: str) -> PeerId:
    """Return the peer whose instance of the service this DNS name is.

    Raises:
        Malformed: it is no peer's.
    """
    if len(name) > NAME_CHARACTERS_MAX or not name.endswith(f".{service}"):
        raise Malformed(f"not an instance of {service}")
    label = name[: -len(service) - 1]
    public_key_of(PeerId(label))
    return PeerId(label)


def judge(heard: Announcement, service: str, interfaces: Sequence[IPv4Interface]) -> Sighting:
    """Return what may be believed of an announcement: enough to dial, and nothing else.

    Args:
        heard: what was said.
        service: the mesh's service type.
        interfaces: this device's own, on the segments that it listens to.

    Raises:
        Malformed: naming the first thing wrong.
    """
    peer = peer_named(heard.name, service)
    if heard.text.get(b"id") != peer.encode():
        raise Malformed(f"{peer}'s text is of another peer")
    if heard.text.get(b"v") != str(VERSION).encode():
        raise Malformed(f"{peer} speaks another version than {VERSION}")
    if heard.port is None or not PORT_MIN <= heard.port <= PORT_MAX:
        raise Malformed(f"port {heard.port} of {peer} is not {PORT_MIN} to {PORT_MAX}")
    near: list[IPv4Address] = []
    far: list[IPv4Address] = []
    for text in heard.addresses[:ADDRESSES_READ_MAX]:
        ip = _ipv4(text)
        if ip is None or ip in near or ip in far or _is_nobodys(ip, interfaces):
            continue
        if any(ip in interface.network for interface in interfaces):
            near.append(ip)
        elif any(ip in network for network in _PRIVATE):
            far.append(ip)
    ips = (near + far)[:ADDRESSES_MAX]
    if not ips:
        raise Malformed(f"no address of {peer} is of this segment")
    return Sighting(peer, tuple(f"/ip4/{ip}/tcp/{heard.port}" for ip in ips))


def _ipv4(text: str) -> IPv4Address | None:
    try:
        return IPv4Address(text)
    except ValueError:
        return None


def _is_nobodys(ip: IPv4Address, interfaces: Sequence[IPv4Interface]) -> bool:
    """Tell whether no single host can have it. This device's own may be of another peer on it."""
    if ip.is_multicast or ip.is_unspecified or ip.is_reserved:
        return True
    return any(
        interface.network.prefixlen < 31
        and ip in (interface.network.network_address, interface.network.broadcast_address)
        for interface in interfaces
    )


@dataclass(slots=True)
class _Seen:
    due_at: float
    looked_at: float = -math.inf
    here: bool = True


class Segment:
    """Who is on the segment, and whom to look up when.

    Args:
        me: this peer, whose own announcement comes back.
        service: the mesh's service type.
        is_known: whether an id is a member's, as far as this peer knows.
    """

    def __init__(self, me: PeerId, service: str, is_known: Callable[[PeerId], bool]) -> None:
        self._me = me
        self._service = service
        self._is_known = is_known
        self._seen: dict[PeerId, _Seen] = {}
        self._strangers: set[PeerId] = set()
        self.refused = 0
        """Names that were nobody's, or one too many."""

    @property
    def strangers(self) -> int:
        """How many ids of this mesh were seen that are not known here."""
        return len(self._strangers)

    def heard(self, name: str, now: float) -> list[SegmentEffect]:
        """An instance of the service is there, or says something else than before."""
        try:
            peer = peer_named(name, self._service)
        except Malformed:
            self.refused += 1
            return []
        if peer == self._me:
            return []
        if not self._is_known(peer):
            return self._meet_stranger(peer)
        self._strangers.discard(peer)
        seen = self._seen.get(peer)
        if seen is None:
            if not self._has_room():
                self.refused += 1
                return []
            seen = self._seen[peer] = _Seen(now)
        seen.here = True
        seen.due_at = min(seen.due_at, max(now, seen.looked_at + LOOK_AGAIN_S))
        return []

    def left(self, name: str) -> list[SegmentEffect]:
        """An instance said goodbye, or was not heard of for too long."""
        try:
            seen = self._seen.get(peer := peer_named(name, self._service))
        except Malformed:
            return []
        if seen is None or not seen.here:
            return []
        # It is kept: who comes and goes is not looked up more often than who stays.
        seen.here, seen.due_at = False, math.inf
        return [Withdrawn(peer)]

    def moved(self) -> list[SegmentEffect]:
        """This device is on another segment, perhaps: who was seen was seen elsewhere."""
        gone: list[SegmentEffect] = [
            Withdrawn(peer) for peer, seen in self._seen.items() if seen.here
        ]
        self._seen.clear()
        return gone

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        return min((seen.due_at for seen in self._seen.values()), default=math.inf)

    def tick(self, now: float) -> list[SegmentEffect]:
        """Return who is to be looked up now."""
        due: list[SegmentEffect] = []
        for peer, seen in self._seen.items():
            if seen.due_at <= now:
                seen.due_at, seen.looked_at = math.inf, now
                due.append(LookUp(peer))
        return due

    def _meet_stranger(self, peer: PeerId) -> list[SegmentEffect]:
        if peer in self._strangers:
            return []
        if len(self._strangers) >= STRANGERS_MAX:
            self.refused += 1
            return []
        self._strangers.add(peer)
        return [Stranger(peer)]

    def _has_room(self) -> bool:
        if len(self._seen) < PEERS_MAX:
            return True
        gone = next((peer for peer, seen in self._seen.items() if not seen.here), None)
        if gone is None:
            return False
        del self._seen[gone]
        return True
