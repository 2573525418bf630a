"""What does a stranger get from a peer? Nothing but hello and join; without the gate, everything.

The stranger is py-libp2p as it comes, with identify, ping, GossipSub on guessed topics and a DHT
client. It knows where the peer is, and its id.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.identity.identify.pb.identify_pb2 import Identify
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.pb.kademlia_pb2 import Message as DhtMessage
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub as LibraryPubsub
from libp2p.tools.anyio_service import background_trio_service
from libp2p.utils import encode_varint_prefixed
from libp2p.utils.varint import read_varint_prefixed_bytes
from multiaddr import Multiaddr
from test_gossip.hosts import (
    MULTISTREAM,
    WITHIN_S,
    ask_for,
    door_of,
    id_of,
    meshed,
    open_peer,
    open_plain,
    open_talking,
    until,
    until_true,
)
from test_gossip.members import key

from covey.gossip import hello, joining, links
from covey.gossip.gate import GuestLimits
from covey.gossip.libp2p_fixes import DHT_PROTOCOL
from covey.gossip.pubsub import PubsubSettings

ALICE, BOB, MALLORY = key(1), key(2), key(66)
TOPIC = "covey/news/1"
MESHSUB = [TProtocol(f"/meshsub/1.{minor}.0") for minor in (2, 1, 0)]
ASKED = (
    "/ipfs/id/1.0.0",
    "/ipfs/id/push/1.0.0",
    "/ipfs/ping/1.0.0",
    str(DHT_PROTOCOL),
    *MESHSUB,
    "/floodsub/1.0.0",
    links.PROTOCOL,
    "/libp2p/circuit/relay/0.2.0/hop",
)


@dataclass(slots=True)
class Found:
    """What a stranger got."""

    spoken: set[str] = field(default_factory=lambda: set[str]())
    listed: bool = False
    identified: bool = False
    pinged: bool = False
    neighbours: set[str] = field(default_factory=lambda: set[str]())
    topics: set[str] = field(default_factory=lambda: set[str]())
    heard: set[bytes] = field(default_factory=lambda: set[bytes]())
    asked_by_it: bool = False
    """Whether the peer opened a stream to the stranger."""


@dataclass(slots=True)
class Stranger:
    """A full client of the library, and what it has found."""

    host: Any
    pubsub: Any
    dht: Any
    found: Found

    async def look(self, target: ID, address: str) -> Any:
        """Ask the peer for everything that the library knows to ask for."""
        conn = await self.host.get_network().dial_addr(Multiaddr(address), target)
        for protocol in (hello.PROTOCOL, joining.PROTOCOL, *ASKED):
            stream = await ask_for(conn, protocol)
            if stream is None:
                continue
            self.found.spoken.add(protocol)
            if protocol == "/ipfs/id/1.0.0":
                await self._read_identify(stream)
            elif protocol == "/ipfs/ping/1.0.0":
                await stream.write(bytes(32))
                self.found.pinged = await stream.read(32) == bytes(32)
            elif protocol == str(DHT_PROTOCOL):
                await self._find_nodes(stream)
        await self._list(conn)
        return conn

    async def _read_identify(self, stream: Any) -> None:
        message = Identify()
        message.ParseFromString(await read_varint_prefixed_bytes(stream))
        self.found.identified = len(message.protocols) > 0

    async def _find_nodes(self, stream: Any) -> None:
        query = DhtMessage(type=DhtMessage.MessageType.FIND_NODE, key=id_of(BOB.peer_id).to_bytes())
        await stream.write(encode_varint_prefixed(query.SerializeToString()))
        answer = DhtMessage()
        answer.ParseFromString(await read_varint_prefixed_bytes(stream))
        self.found.neighbours |= {str(ID(peer.id)) for peer in answer.closerPeers}

    async def _list(self, conn: Any) -> None:
        stream = await conn.new_stream()
        communicator = MultiselectCommunicator(stream)
        try:
            for word in (MULTISTREAM, "ls"):
                await communicator.write(word)
            assert await communicator.read() == MULTISTREAM
            self.found.listed = "/ipfs/id/1.0.0" in await communicator.read()
        except BaseLibp2pError:
            return

    async def listen(self, subscription: Any) -> None:
        """Note each message and topic that reaches it."""
        async for message in subscription:
            if message.from_id != self.host.get_id().to_bytes():
                self.found.heard.add(bytes(message.data))


@asynccontextmanager
async def services(host: Any, mode: DHTMode) -> AsyncGenerator[tuple[Any, Any]]:
    """Run the library's own pubsub and DHT on a host."""
    router: Any = GossipSub(MESHSUB, 6, 4, 12, heartbeat_interval=1)
    pubsub: Any = LibraryPubsub(host, router)
    dht: Any = KadDHT(host, mode)
    async with (
        background_trio_service(pubsub),
        background_trio_service(router),
        background_trio_service(dht),
    ):
        await pubsub.wait_until_ready()
        yield pubsub, dht


@asynccontextmanager
async def open_stranger() -> AsyncGenerator[Stranger]:
    async with open_plain(MALLORY) as host, services(host, DHTMode.CLIENT) as (pubsub, dht):
        stranger = Stranger(host, pubsub, dht, Found())
        swarm = host.get_network()
        serve = swarm.common_stream_handler

        async def note(stream: Any) -> None:
            stranger.found.asked_by_it = True
            await serve(stream)

        swarm.set_stream_handler(note)
        subscribe, subscribed = pubsub.handle_subscription, stranger.found.topics

        def note_topic(origin: Any, message: Any) -> None:
            subscribed.add(message.topicid)
            subscribe(origin, message)

        pubsub.handle_subscription = note_topic
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stranger.listen, await pubsub.subscribe(TOPIC))
            yield stranger
            nursery.cancel_scope.cancel()


async def test_a_stranger_gets_nothing_but_hello_and_join() -> None:
    settings = PubsubSettings((TOPIC,), heartbeat_s=0.2)
    guests = GuestLimits(stay_s=2.0)
    door = door_of(ALICE, known=[BOB.peer_id])
    async with (
        open_peer(ALICE, door, guests=guests) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, settings) as alices,
        open_talking(bob, settings) as bobs,
    ):
        dht: Any = KadDHT(alice.host.libp2p, DHTMode.SERVER)
        async with background_trio_service(dht):
            await meshed(bobs, alices)
            assert await alices.pubsub.publish(TOPIC, b"before")
            async with open_stranger() as mallory:
                stranger = mallory.host.get_id()
                conn = await mallory.look(id_of(alice.id), alice.addresses[0])
                assert [one.state for one in alice.host.gate.visits()] == ["open", "guest"]
                await mallory.pubsub.publish(TOPIC, b"lies")
                assert await bobs.pubsub.publish(TOPIC, b"during")
                # Its whole stay: nothing reaches it later either.
                await until(lambda: conn.is_closed)

                assert mallory.found == Found(spoken={hello.PROTOCOL, joining.PROTOCOL})
                assert mallory.pubsub.peers == {}
                assert alices.library.peers.keys() == {id_of(bob.id)}
                assert alices.library.peer_topics == {TOPIC: {id_of(bob.id)}}
                assert alices.library.router.mesh == {TOPIC: {id_of(bob.id)}}
                assert not dht.routing_table.peer_in_table(stranger)
                store = alice.host.libp2p.get_peerstore()
                assert stranger not in store.peers_with_addrs()
                assert stranger not in store.peer_ids()
                assert alice.is_open_to(bob)
            # At most one message a second.
            await until_true(lambda: alices.pubsub.publish(TOPIC, b"after"))
            await until(lambda: b"after" in bobs.bodies)
            assert bobs.bodies == [b"before", b"after"], "and its own words reached nobody"
            assert alices.bodies == [b"during"]


async def test_without_the_gate_the_same_stranger_gets_everything() -> None:
    async with (
        open_plain(ALICE) as alice,
        open_plain(BOB) as bob,
        services(alice, DHTMode.SERVER) as (pubsub, dht),
        services(bob, DHTMode.SERVER) as (bobs, _),
    ):
        subscription = await pubsub.subscribe(TOPIC)
        await bobs.subscribe(TOPIC)
        await bob.get_network().dial_addr(alice.get_addrs()[0], alice.get_id())
        await pubsub.wait_for_mesh(bob.get_id(), TOPIC, timeout=WITHIN_S)
        await until_true(lambda: dht.add_peer(bob.get_id()))
        await pubsub.publish(TOPIC, b"before")
        async with open_stranger() as mallory:
            await mallory.look(alice.get_id(), str(alice.get_addrs()[0]))
            await pubsub.publish(TOPIC, b"during")
            await mallory.pubsub.publish(TOPIC, b"lies")
            found = mallory.found
            await until(lambda: len(found.heard) == 2 and found.asked_by_it)

            assert found == Found(
                spoken=set(ASKED[:7]),
                listed=True,
                identified=True,
                pinged=True,
                neighbours={BOB.peer_id},
                topics={TOPIC},
                heard={b"before", b"during"},
                asked_by_it=True,
            )
            assert mallory.host.get_id() in pubsub.peers
            heard: set[bytes] = set()
            with trio.fail_after(WITHIN_S):
                while b"lies" not in heard:
                    heard.add((await subscription.get()).data)
