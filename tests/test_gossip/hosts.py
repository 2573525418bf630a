"""Real hosts on 127.0.0.1, of members and of strangers, for tests of what is next to libp2p."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr
from test_gossip.members import MESH, NOW_MS, chain_of

from covey.gossip.admission import Admission
from covey.gossip.gate import GuestLimits, Visit
from covey.gossip.host import YAMUX, Host, HostSettings, open_host
from covey.gossip.joining import DeskEffect, InviteDesk
from covey.gossip.links import Links, LinkSettings
from covey.gossip.network import LinkDown, LinkUp, Load
from covey.gossip.pubsub import Heard, Pubsub, PubsubSettings, open_pubsub
from covey.identity.certificate import Chain
from covey.identity.envelope import MeshId
from covey.identity.keys import Keypair, PeerId

MULTISTREAM = "/multistream/1.0.0"
# Long against what is waited for, short against a test that hangs.
WITHIN_S = 15.0


async def until(condition: Callable[[], object], *, within_s: float = WITHIN_S) -> None:
    """Return once the condition holds; fail if it does not in time."""
    with trio.fail_after(within_s):
        while not condition():  # noqa: ASYNC110  (the library's tables tell nobody of a change)
            await trio.sleep(0.005)


async def until_true(attempt: Callable[[], Awaitable[object]]) -> None:
    """Return once an attempt succeeds; fail if none does in time."""
    with trio.fail_after(WITHIN_S):
        while not await attempt():  # noqa: ASYNC110  (as above)
            await trio.sleep(0.02)


def id_of(peer: PeerId) -> Any:
    """Return the peer's id as the library has it."""
    return ID.from_base58(peer)


async def keep(_effects: list[DeskEffect]) -> None:
    """Keep nothing: what the desk decides is lost with the test."""


def door_of(
    keypair: Keypair,
    *,
    chain: Chain | None = None,
    mesh: MeshId = MESH,
    now_ms: int = NOW_MS,
    incarnation: int = 1,
    known: Iterable[PeerId] = (),
    desk: InviteDesk | None = None,
) -> Admission:
    """Return the door of a member of MESH, or of who pretends to be one."""
    names = frozenset(known)
    return Admission(
        mesh=mesh,
        chain=chain_of(keypair) if chain is None else chain,
        incarnation=incarnation,
        name="line-1",
        now_ms=lambda: now_ms,
        is_known=names.__contains__,
        desk=desk,
        keep=keep,
        draw=lambda size: b"\x07" * size,
    )


@dataclass(slots=True)
class Seen:
    """Which connections the host told of."""

    opened_visits: list[Visit] = field(default_factory=lambda: list[Visit]())
    closed_visits: list[Visit] = field(default_factory=lambda: list[Visit]())

    def opened(self, visit: Visit) -> None:
        self.opened_visits.append(visit)

    def closed(self, visit: Visit) -> None:
        self.closed_visits.append(visit)


@dataclass(slots=True)
class Peer:
    """A member's running host."""

    keypair: Keypair
    host: Host
    door: Admission
    seen: Seen

    @property
    def id(self) -> PeerId:
        return self.keypair.peer_id

    @property
    def swarm(self) -> Any:
        return self.host.libp2p.get_network()

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.host.addresses()

    async def dial(self, other: "Peer | Linked") -> Visit:
        return await self.host.dial(other.id, other.host.addresses())

    def is_open_to(self, *others: "Peer") -> bool:
        """Tell whether there is exactly one connection to each, and no other."""
        table = {peer: len(conns) for peer, conns in self.swarm.connections.items()}
        return table == {id_of(other.id): 1 for other in others}


@asynccontextmanager
async def open_peer(
    keypair: Keypair, door: Admission | None = None, *, guests: GuestLimits | None = None
) -> AsyncGenerator[Peer]:
    """Run a member's host."""
    door = door or door_of(keypair)
    seen = Seen()
    settings = HostSettings("127.0.0.1", guests=guests or GuestLimits())
    async with open_host(keypair, settings, door, seen) as host:
        yield Peer(keypair, host, door, seen)


@dataclass(slots=True)
class Linked:
    """A member's running host and links."""

    keypair: Keypair
    host: Host
    links: Links
    events: list[LinkUp | LinkDown]

    @property
    def id(self) -> PeerId:
        return self.keypair.peer_id

    async def dial(self, other: "Peer | Linked") -> Visit:
        return await self.host.dial(other.id, other.host.addresses())

    def heard(self) -> list[tuple[str, PeerId]]:
        """Return what was told of links, in order: up and down."""
        return [
            ("up" if isinstance(event, LinkUp) else "down", event.peer) for event in self.events
        ]


@asynccontextmanager
async def open_linked(
    keypair: Keypair, settings: LinkSettings | None = None, *, load: Load | None = None
) -> AsyncGenerator[Linked]:
    """Run a member's host with its links."""
    links = Links(keypair.peer_id, lambda: load or Load(), settings)
    events: list[LinkUp | LinkDown] = []
    links.on_link(events.append)
    async with (
        open_host(keypair, HostSettings("127.0.0.1"), door_of(keypair), links) as host,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(links.serve, host)
        yield Linked(keypair, host, links, events)
        nursery.cancel_scope.cancel()


async def linked(one: Linked, other: Linked) -> None:
    """Connect two peers, and return once each has a link to the other."""
    await one.dial(other)
    await until(lambda: other.id in one.links.links() and one.id in other.links.links())


@dataclass(slots=True)
class Talking:
    """A member's running host with gossip on it, and what it has heard."""

    peer: Peer
    pubsub: Pubsub
    heard: list[Heard]

    @property
    def id(self) -> PeerId:
        return self.peer.id

    @property
    def library(self) -> Any:
        return self.pubsub.library

    @property
    def bodies(self) -> list[bytes]:
        return [one.body for one in self.heard]


@asynccontextmanager
async def open_talking(
    peer: Peer, settings: PubsubSettings, *, now_ms: int = NOW_MS, listens: bool = True
) -> AsyncGenerator[Talking]:
    """Run gossip on a member's host; one that does not listen leaves its inbox alone."""
    heard: list[Heard] = []

    async def listen() -> None:
        async for one in pubsub.inbox:
            heard.append(one)  # noqa: PERF401  (seen while it goes on)

    async with (
        open_pubsub(peer.host, peer.door, lambda: now_ms, settings) as pubsub,
        trio.open_nursery() as nursery,
    ):
        if listens:
            nursery.start_soon(listen)
        yield Talking(peer, pubsub, heard)
        nursery.cancel_scope.cancel()


async def meshed(one: Talking, other: Talking) -> None:
    """Connect two peers, and return once each passes all its topics on to the other."""
    await one.peer.dial(other.peer)
    for ours, theirs in ((one, other), (other, one)):
        for topic in ours.library.topic_ids:
            await ours.library.wait_for_mesh(id_of(theirs.id), topic, timeout=WITHIN_S)


# Strangers: py-libp2p as it comes, without anything of ours.


@asynccontextmanager
async def open_plain(keypair: Keypair) -> AsyncGenerator[Any]:
    """Run a host of the library alone, which serves identify and ping to anyone."""
    keys = create_new_key_pair(keypair.seed)
    noise = {NOISE: Noise(keys, noise_privkey=create_noise_key_pair().private_key)}
    listen = Multiaddr("/ip4/127.0.0.1/tcp/0")
    host: Any = new_host(
        key_pair=keys,
        sec_opt=noise,
        muxer_opt={YAMUX: Yamux},
        listen_addrs=[listen],
    )
    async with host.run([listen]):
        try:
            yield host
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(5):
                await host.close()


async def dial_plain(plain: Any, host: Host) -> Any:
    """Connect a stranger to a host, and return the connection as the library has it."""
    return await plain.get_network().dial_addr(Multiaddr(host.addresses()[0]), id_of(host.me))


async def ask_for(conn: Any, protocol: str) -> Any:
    """Return a stream on which the other side has agreed to the protocol; None if it refused."""
    stream = await conn.new_stream()
    communicator = MultiselectCommunicator(stream)
    try:
        with trio.fail_after(WITHIN_S):
            await communicator.write(MULTISTREAM)
            await communicator.write(protocol)
            if await communicator.read() != MULTISTREAM or await communicator.read() != protocol:
                return None
    except BaseLibp2pError:
        return None
    stream.set_protocol(TProtocol(protocol))
    return stream


async def ended(stream: Any) -> bytes:
    """Return what still comes on a stream until the other side ends it."""
    parts = bytearray()
    with trio.fail_after(WITHIN_S):
        while True:
            try:
                part = await stream.read(65536)
            except BaseLibp2pError:
                return bytes(parts)
            if not part:
                return bytes(parts)
            parts += part
