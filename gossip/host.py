"""How does a peer listen, connect, and open streams?

py-libp2p's host: Noise only, yamux, TCP; behind the gate.

A peer's addresses race (RFC 8305), with whole dials up to and including hello: where something takes
the connection and says nothing, a bare TCP connect would call it the winner. Not with the library's own
`dial_peer`, which tries one address of each transport and wakes up on failures only (LIBP2P.md, trap
6). Two things make the race safe. Hello is said over one connection at a time, since each further one
that a listener hears replaces the one before it. And a dial that is cancelled in its handshake takes no
place in the library's resource manager, which would never get it back.
"""

import ipaddress
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import psutil
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.config import ConnectionConfig
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

from covey.identity.errors import CoveyError, NotAdmitted, Unavailable
from covey.identity.keys import Keypair, PeerId

from . import libp2p_fixes
from .dialling import Race
from .gate import Door, Gate, GuestLimits, Visit

log = logging.getLogger(__name__)

YAMUX = TProtocol("/yamux/1.0.0")
DIAL_S = 5.0
STREAM_S = 10.0


@dataclass(frozen=True, slots=True)
class HostSettings:
    """Where to listen, and what to tell others."""

    address: str = "0.0.0.0"
    """IP address to listen on; 0.0.0.0 for all of IPv4."""
    port: int = 0
    """TCP port; 0 takes any free one."""
    announce: tuple[str, ...] = ()
    """Multiaddrs to tell others instead of this device's own addresses."""
    guests: GuestLimits = field(default_factory=GuestLimits)
    """What a connection may use before hello has succeeded."""


class Stream:
    """A libp2p stream whose errors are ours."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        libp2p_fixes.batch_window_updates(stream.muxed_stream)
        libp2p_fixes.write_in_one_step(stream.muxed_stream)

    @property
    def connection(self) -> Any:
        """The muxed connection that it is on."""
        return self._stream.muxed_conn

    async def read(self, size_max: int) -> bytes:
        """Return what has arrived, at most `size_max` bytes; empty at the end.

        A remote's death and its reset read as an end, too: only a length tells that something is
        whole.
        """
        try:
            data: bytes = await self._stream.read(size_max)
        except StreamError:
            return b""
        return data

    async def write(self, data: bytes) -> None:
        """Send; one writer at a time, or what does not fit the window would be torn apart.

        Raises:
            Unavailable: the stream has ended.
        """
        try:
            await self._stream.muxed_stream.write(data)
        except BaseLibp2pError as error:
            raise Unavailable("the stream has ended") from error

    async def reset(self) -> None:
        """End the stream at once."""
        try:
            await self._stream.reset()
        except Exception as error:  # noqa: BLE001  (the library raises several kinds for a stream that is gone)
            log.debug("stream.reset_failed", extra={"why": repr(error)})


StreamHandler = Callable[[PeerId, Stream], Awaitable[None]]


class Listener(Protocol):
    """Who is told of connections; neither call may wait."""

    def opened(self, visit: Visit) -> None:
        """A member is connected, both ways."""
        ...

    def closed(self, visit: Visit) -> None:
        """That connection ended."""
        ...


class Host:
    """This peer on the network. Use `open_host`."""

    def __init__(self, host: Any, gate: Gate, keypair: Keypair, settings: HostSettings) -> None:
        self._host = host
        self._settings = settings
        self.gate = gate
        self.me = keypair.peer_id
        self.pubsub: Any = None
        """The library's pubsub, while `open_pubsub` runs."""
        self.dht: Any = None
        """The library's DHT, while `open_dht` runs."""

    @property
    def libp2p(self) -> Any:
        """The library's host, for its other adapters."""
        return self._host

    def addresses(self) -> tuple[str, ...]:
        """Return multiaddrs under which others may dial this peer, without its id."""
        if self._settings.announce:
            return self._settings.announce
        ports = [int(addr.value_for_protocol("tcp")) for addr in self._host.get_addrs()]
        if not ports:
            return ()
        listening = ipaddress.ip_address(self._settings.address)
        ips = [str(listening)] if not listening.is_unspecified else own_addresses()
        return tuple(_multiaddr(ip, ports[0]) for ip in ips)

    def set_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol to members."""

        async def handle(stream: Any) -> None:
            peer = PeerId(str(stream.muxed_conn.peer_id))
            try:
                await handler(peer, Stream(stream))
            except CoveyError as error:
                log.warning("stream.refused", extra={"peer": peer, "why": str(error)})
                await Stream(stream).reset()

        self._host.set_stream_handler(TProtocol(protocol), handle)

    def visit_of(self, stream: Stream) -> Visit | None:
        """Return the connection that a stream is on, until it has ended."""
        return self.gate.visit_of(stream.connection)

    async def dial(
        self, peer: PeerId, addresses: Sequence[str], *, timeout_s: float = DIAL_S
    ) -> Visit:
        """Connect to a member at whichever of its addresses answers first.

        Raises:
            Unavailable: none does within `timeout_s`; it says of each why.
            NotAdmitted: the peer is there and refuses.
        """
        if not addresses:
            raise Unavailable(f"no address of {peer} is known")
        now = trio.current_time()
        until = now + timeout_s
        race = Race(addresses, now, until)
        winners: list[Visit] = []
        refusals: list[NotAdmitted] = []
        news = trio.Event()

        async def attempt(address: str) -> None:
            try:
                winners.append(await self.gate.dial(peer, address, timeout_s=timeout_s))
            except NotAdmitted as error:
                refusals.append(error)
            except CoveyError as error:
                if (visit := self.gate.open_visit(peer)) is not None:
                    winners.append(visit)
                else:
                    race.failed(address, str(error), trio.current_time())
            news.set()

        with trio.move_on_at(until):
            async with trio.open_nursery() as nursery:
                while not (winners or refusals or race.is_lost):
                    news = trio.Event()
                    for address in race.tick(trio.current_time()):
                        nursery.start_soon(attempt, address)
                    with trio.move_on_at(race.deadline):
                        await news.wait()
                # The others; leaving the block waits until they are closed.
                nursery.cancel_scope.cancel()
        if winners:
            return winners[0]
        if refusals:
            raise refusals[0]
        raise Unavailable("; ".join(race.reasons()))

    async def open_stream(self, visit: Visit, protocol: str) -> Stream:
        """Open a stream on an open connection.

        Raises:
            Unavailable: the connection ended, or the peer does not speak the protocol.
        """
        with trio.move_on_after(STREAM_S):
            try:
                stream = await self._host.new_stream(
                    ID.from_base58(visit.peer), [TProtocol(protocol)]
                )
            except Exception as error:
                raise Unavailable(
                    f"{visit.peer} opens no stream for {protocol}: {error}"
                ) from error
            return Stream(stream)
        raise Unavailable(f"{visit.peer} did not answer within {STREAM_S:g} s")

    async def evict(self, peer: PeerId) -> None:
        """Disconnect a peer and leave no trace of it in the library."""
        peer_id = ID.from_base58(peer)
        visits = [visit for visit in self.gate.visits() if visit.peer == peer]
        # Out of the tables first: to what is left there the library would open new streams.
        for visit in visits:
            self.gate.shut(visit)
        libp2p_fixes.forget_peer(self._host, peer_id, self.pubsub, self.dht)
        async with trio.open_nursery() as nursery:
            for visit in visits:
                nursery.start_soon(self.gate.cut, visit)
        # Once more: what it had sent may have been read until now.
        libp2p_fixes.forget_peer(self._host, peer_id, self.pubsub, self.dht)


def own_addresses() -> list[str]:
    """Return this device's IPv4 addresses that others may reach; loopback only if there is no other."""
    found = [
        address.address
        for interface in psutil.net_if_addrs().values()
        for address in interface
        if address.family.name == "AF_INET"
    ]
    outer = [ip for ip in found if not ipaddress.ip_address(ip).is_loopback]
    return sorted(set(outer)) or ["127.0.0.1"]


def _multiaddr(ip: str, port: int) -> str:
    return f"/ip{ipaddress.ip_address(ip).version}/{ip}/tcp/{port}"


@asynccontextmanager
async def open_host(
    keypair: Keypair, settings: HostSettings, door: Door, listener: Listener
) -> AsyncGenerator[Host]:
    """Run this peer's host for as long as the block lasts.

    Args:
        keypair: this peer's identity.
        settings: where to listen.
        door: who judges newcomers.
        listener: who is told of connections.

    Raises:
        Unavailable: the port is in use, or the address is not this device's.
    """
    libp2p_fixes.apply()
    key_pair = create_new_key_pair(keypair.seed)
    noise = Noise(key_pair, noise_privkey=create_noise_key_pair().private_key)
    listen = Multiaddr(_multiaddr(settings.address, settings.port))
    host = new_host(
        key_pair=key_pair,
        # The defaults also accept TLS, secio and plaintext.
        sec_opt={NOISE: noise},
        muxer_opt={YAMUX: Yamux},
        listen_addrs=[listen],
        connection_config=ConnectionConfig(
            inbound_upgrade_timeout=5.0, outbound_upgrade_timeout=5.0
        ),
    )
    libp2p_fixes.quieten(host)
    libp2p_fixes.leave_handshakes_uncounted(host)
    gate = Gate(host, door, listener.opened, listener.closed, settings.guests)
    await _check_port(settings)
    async with host.run([listen]):
        if not host.get_addrs():
            raise Unavailable(f"cannot listen on {settings.address} port {settings.port}")
        try:
            yield Host(host, gate, keypair, settings)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await gate.close()
                await host.close()


async def _check_port(settings: HostSettings) -> None:
    """The library's own failure to listen does not say why."""
    if settings.port == 0:
        return
    try:
        listeners = await trio.open_tcp_listeners(settings.port, host=settings.address)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {settings.address} port {settings.port}: {error.strerror or error}; another "
            "program holds it, or it is not this device's address: change [listen] in the configuration"
        ) from error
    for one in listeners:
        await one.aclose()
