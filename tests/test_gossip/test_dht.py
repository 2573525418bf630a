"""The DHT among members: what is offered is found through others, and nobody else is in it."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import trio
from libp2p.host.exceptions import StreamFailure
from libp2p.kad_dht.pb.kademlia_pb2 import Message
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.peerinfo import PeerInfo
from libp2p.utils.varint import encode_varint_prefixed
from multiaddr import Multiaddr
from test_gossip.hosts import (
    WITHIN_S,
    Peer,
    ask_for,
    dial_plain,
    door_of,
    id_of,
    open_peer,
    open_plain,
    until,
)
from test_gossip.members import MESH, NOW_MS, chain_of, item_of, key

from covey.gossip import dht as module
from covey.gossip.advert_records import AdvertRecords, record_key
from covey.gossip.dht import Dht, DhtSettings, open_dht, serves
from covey.gossip.libp2p_fixes import DHT_PROTOCOL
from covey.gossip.provider_keys import provider_key
from covey.identity.certificate import Chain, Member
from covey.identity.errors import NotAdmitted, Unavailable
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import encode

KEYS = [key(n) for n in range(1, 12)]
ALICE, BOB, CAROL = KEYS[:3]
CHAT = provider_key(MESH, "skill", "chat")
FAST = DhtSettings(MESH, publish_every_s=0.01)


@dataclass
class Town:
    """Members that know each other's ids and addresses."""

    peers: dict[PeerId, Peer] = field(default_factory=dict[PeerId, Peer])
    dhts: dict[PeerId, Dht] = field(default_factory=dict[PeerId, Dht])
    dialled: list[tuple[PeerId, PeerId]] = field(default_factory=list[tuple[PeerId, PeerId]])

    def dialler(self, me: PeerId) -> Callable[[PeerId], Awaitable[None]]:
        async def dial(peer: PeerId) -> None:
            self.dialled.append((me, peer))
            if peer not in self.peers:
                raise Unavailable(f"{peer} is at none of its addresses")
            await self.connect(me, peer)

        return dial

    async def connect(self, me: PeerId, peer: PeerId) -> None:
        """Connect two, and tell their DHTs, as the daemon does by its links."""
        await self.peers[me].dial(self.peers[peer])
        await until(lambda: self.peers[peer].host.gate.open_visit(me))
        self.dhts[me].connected(peer, inbound=False)
        self.dhts[peer].connected(me, inbound=True)

    def dht(self, keypair: Keypair) -> Dht:
        return self.dhts[keypair.peer_id]

    async def link(self, one: Keypair, other: Keypair) -> None:
        """Connect two, and return once each has the other in its table, if it serves."""
        await self.connect(one.peer_id, other.peer_id)
        for me, peer in ((one, other), (other, one)):
            if self.dht(peer).is_server:
                await until(lambda me=me, peer=peer: is_in_table(self.dht(me), peer))


def is_in_table(dht: Dht, keypair: Keypair) -> bool:
    return bool(dht.library.routing_table.peer_in_table(id_of(keypair.peer_id)))


@asynccontextmanager
async def town_of(
    *keypairs: Keypair,
    settings: DhtSettings = FAST,
    known: Sequence[Keypair] = (),
    has_met: bool = True,
) -> AsyncGenerator[Town]:
    town = Town()
    names = [one.peer_id for one in (*keypairs, *known)]
    async with AsyncExitStack() as stack:
        for keypair in keypairs:
            door = door_of(keypair, known=names if has_met else ())
            peer = await stack.enter_async_context(open_peer(keypair, door))
            town.peers[keypair.peer_id] = peer
            dht = await stack.enter_async_context(
                open_dht(
                    peer.host, door, lambda: NOW_MS, settings, dial=town.dialler(keypair.peer_id)
                )
            )
            town.dhts[keypair.peer_id] = dht
            dht.met(len(names))
        yield town


def freeze(peer: Peer) -> None:
    """Let a peer hear questions from now on and never answer."""

    async def say_nothing(_stream: object) -> None:
        await trio.sleep_forever()

    peer.host.libp2p.set_stream_handler(DHT_PROTOCOL, say_nothing)


def keep_nothing(_key: bytes, _provider: PeerInfo) -> None:
    """Take no record in."""


async def found(dht: Dht, key_: bytes = CHAT) -> list[PeerId]:
    return await dht.find_providers(key_, timeout_s=10)


async def test_what_a_neighbour_offers_is_found() -> None:
    async with town_of(ALICE, BOB) as town:
        town.dht(BOB).provide([CHAT])
        await town.link(ALICE, BOB)
        assert await found(town.dht(ALICE)) == [BOB.peer_id]
        assert await found(town.dht(ALICE), provider_key(MESH, "skill", "other")) == []
        assert await found(town.dht(BOB)) == [], "never oneself"


async def test_a_member_is_entered_before_its_advert_has_come() -> None:
    """A peer that looks at its models first tells of itself later than it is linked."""
    async with town_of(ALICE, BOB, has_met=False) as town:
        assert not town.peers[ALICE.peer_id].door.is_known(BOB.peer_id)
        await town.link(ALICE, BOB)
        town.dht(BOB).provide([CHAT])
        assert await found(town.dht(ALICE)) == [BOB.peer_id]


async def test_what_was_withdrawn_is_not_found_at_its_provider() -> None:
    async with town_of(ALICE, BOB) as town:
        town.dht(BOB).provide([CHAT])
        store = town.dht(BOB).library.provider_store
        store.add_provider(CHAT, PeerInfo(id_of(CAROL.peer_id), []))
        town.dht(BOB).provide([])
        await town.link(ALICE, BOB)
        assert await found(town.dht(ALICE)) == [CAROL.peer_id], "of others it still is"


async def test_it_is_found_through_others_once_published() -> None:
    """Alice and carol are not connected; bob keeps carol's record, and carol is then gone."""
    async with town_of(ALICE, BOB, CAROL) as town:
        await town.link(ALICE, BOB)
        await town.link(CAROL, BOB)
        town.dht(CAROL).provide([CHAT])
        kept = town.dht(BOB).library.provider_store
        await until(lambda: kept.get_providers(CHAT))
        del town.peers[CAROL.peer_id]
        assert await found(town.dht(ALICE)) == [CAROL.peer_id]


async def test_ten_members_in_a_row_find_each_other() -> None:
    row = KEYS[:10]
    async with town_of(*row) as town:
        for one, other in pairwise(row):
            await town.link(one, other)
        town.dht(row[9]).provide([CHAT])
        assert await found(town.dht(row[0])) == [row[9].peer_id]


async def test_each_provider_is_named_once_and_a_record_is_not_refreshed_by_being_read() -> None:
    async with town_of(ALICE, BOB, CAROL) as town:
        for one, other in ((ALICE, BOB), (ALICE, CAROL), (BOB, CAROL)):
            await town.link(one, other)
        town.dht(CAROL).provide([CHAT])
        await until(lambda: town.dht(BOB).library.provider_store.get_providers(CHAT))
        assert await found(town.dht(ALICE)) == [CAROL.peer_id]
        own = town.dht(ALICE).library.provider_store
        before = {at: one.timestamp for at, one in own.providers.get(CHAT, {}).items()}
        assert await found(town.dht(ALICE)) == [CAROL.peer_id]
        after = {at: one.timestamp for at, one in own.providers.get(CHAT, {}).items()}
        assert after == before


async def test_without_anybody_to_ask_it_says_so() -> None:
    async with town_of(ALICE) as town:
        with pytest.raises(Unavailable, match="nobody is in the DHT yet"):
            await found(town.dht(ALICE))


async def test_a_dead_peer_in_the_table_delays_but_does_not_hide() -> None:
    async with town_of(ALICE, BOB, known=[CAROL]) as town:
        await town.link(ALICE, BOB)
        await town.dht(ALICE).restore([(CAROL.peer_id, ["/ip4/127.0.0.1/tcp/1"])])
        assert is_in_table(town.dht(ALICE), CAROL)
        town.dht(BOB).provide([CHAT])
        assert await found(town.dht(ALICE)) == [BOB.peer_id]
        assert town.dialled == [(ALICE.peer_id, CAROL.peer_id)]
        assert not is_in_table(town.dht(ALICE), CAROL), "and it is not asked again"


async def test_a_frozen_peer_holds_up_nobody_else() -> None:
    """Bob is connected and never answers; dave, who offers it, is known to carol alone."""
    dave = KEYS[3]
    async with town_of(ALICE, BOB, CAROL, dave) as town:
        for one, other in ((ALICE, BOB), (ALICE, CAROL), (CAROL, dave)):
            await town.link(one, other)
        freeze(town.peers[BOB.peer_id])
        town.dht(CAROL).library.provider_store.add_provider = keep_nothing
        town.dht(dave).provide([CHAT])
        assert await town.dht(ALICE).find_providers(CHAT, timeout_s=3) == [dave.peer_id]


async def test_a_question_that_is_not_answered_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DHT_QUERY_S", 0.3)
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        freeze(town.peers[BOB.peer_id])
        with trio.fail_after(WITHIN_S):
            assert await town.dht(ALICE).find_providers(CHAT, timeout_s=600) == []
            assert await town.dht(ALICE).find_advert(BOB.peer_id, timeout_s=600) is None


async def test_what_the_library_raises_ends_neither_a_lookup_nor_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.05)
    async with town_of(ALICE, BOB) as town:
        store = town.dht(ALICE).library.provider_store
        publish, failed = store._send_add_provider, trio.Event()

        async def fail(*_: object) -> Any:
            store._send_add_provider = publish
            failed.set()
            raise RuntimeError("broken")

        store._send_add_provider = store._get_providers_from_peer_with_closers = fail
        town.dht(ALICE).provide([CHAT])
        await town.link(ALICE, BOB)
        with trio.fail_after(WITHIN_S):
            await failed.wait()
        assert await found(town.dht(ALICE), provider_key(MESH, "skill", "other")) == []
        kept = town.dht(BOB).library.provider_store
        await until(lambda: kept.get_providers(CHAT))


async def test_of_several_providers_the_freshest_comes_first() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        store = town.dht(BOB).library.provider_store
        for first, second in ((CAROL, KEYS[3]), (KEYS[3], CAROL)):
            for one in (first, second):
                store.add_provider(CHAT, PeerInfo(id_of(one.peer_id), []))
            assert await found(town.dht(ALICE)) == [second.peer_id, first.peer_id]


async def test_a_record_is_stale_after_an_hour_unless_its_provider_renews_it() -> None:
    renewing = DhtSettings(MESH, publish_every_s=0.01, republish_s=0.05)
    async with town_of(ALICE, BOB, settings=renewing) as town:
        await town.link(ALICE, BOB)
        kept = town.dht(BOB).library.provider_store
        kept.add_provider(CHAT, PeerInfo(id_of(CAROL.peer_id), []))
        kept.providers[CHAT][CAROL.peer_id].timestamp -= 3601
        assert await found(town.dht(ALICE)) == []
        town.dht(ALICE).provide([CHAT])
        own = town.dht(ALICE).library.provider_store
        for store in (kept, own):
            await until(lambda store=store: store.get_providers(CHAT))
            store.providers[CHAT][ALICE.peer_id].timestamp -= 3601
            await until(lambda store=store: store.get_providers(CHAT))


async def test_what_members_can_have_kept_here_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS_MAX", 400)
    async with town_of(ALICE) as town:
        store = town.dht(ALICE).library.provider_store

        def keep(n: int, provider: Keypair) -> None:
            one = PeerInfo(id_of(provider.peer_id), [Multiaddr("/ip4/1.2.3.4/tcp/1")])
            store.add_provider(n.to_bytes(32, "big"), one)

        for n in range(1000):
            keep(n, BOB)
        assert store.size() == 320, "as many as an advert lists"
        for n in range(1000):
            keep(1000 + n, CAROL)
        assert len(store.providers) == 400
        crowd = [key(n) for n in range(50, 75)]
        for one in crowd:
            keep(0, one)
        kept = store.get_providers((0).to_bytes(32, "big"))
        assert [str(one.peer_id) for one in kept] == [one.peer_id for one in crowd[5:]]
        assert [one.addrs for one in kept] == [[]] * 20


async def test_addresses_that_answers_heap_on_a_member_are_not_kept() -> None:
    async with town_of(ALICE, BOB, known=[CAROL]) as town:
        await town.link(ALICE, BOB)
        heap = [Multiaddr(f"/ip4/127.0.0.1/tcp/{port}") for port in range(1, 200)]
        theirs = town.peers[BOB.peer_id].host.libp2p.get_peerstore()
        theirs.add_addrs(id_of(CAROL.peer_id), heap, 3600)
        await town.dht(BOB).restore([(CAROL.peer_id, ["/ip4/127.0.0.1/tcp/1"])])
        assert await town.dht(ALICE).find_advert(CAROL.peer_id, timeout_s=10) is None
        assert town.dialled == [(ALICE.peer_id, CAROL.peer_id)], "it was named"
        ours = town.peers[ALICE.peer_id].host.libp2p.get_peerstore()
        assert ours.peer_data_map[id_of(CAROL.peer_id)].addrs == []


async def test_the_table_survives_a_restart_without_a_dial() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        kept = town.dht(ALICE).table()
    assert [peer for peer, _ in kept] == [BOB.peer_id]
    async with town_of(ALICE, BOB) as town:
        await town.dht(ALICE).restore(kept)
        assert town.dialled == []
        town.dht(BOB).provide([CHAT])
        assert await found(town.dht(ALICE)) == [BOB.peer_id]
        assert town.dialled == [(ALICE.peer_id, BOB.peer_id)]


async def test_who_is_no_member_enters_no_table_and_is_not_dialled() -> None:
    async with town_of(ALICE, BOB) as town:
        stranger = KEYS[9]
        await town.dht(ALICE).restore([(stranger.peer_id, ["/ip4/127.0.0.1/tcp/1"])])
        assert town.dht(ALICE).size == 0
        await town.link(ALICE, BOB)
        # Bob answers with whom he likes; what alice's library remembers of it is forgotten.
        store = town.peers[BOB.peer_id].host.libp2p.get_peerstore()
        addresses = [Multiaddr("/ip4/127.0.0.1/tcp/1")]
        store.add_addrs(id_of(stranger.peer_id), addresses, 3600)
        table = town.dht(BOB).library.routing_table
        for bucket in table.buckets:
            bucket.peers[id_of(stranger.peer_id)] = (
                PeerInfo(id_of(stranger.peer_id), addresses),
                0.0,
            )
        assert await found(town.dht(ALICE)) == []
        assert await town.dht(ALICE).find_advert(stranger.peer_id, timeout_s=10) is None
        assert town.dialled == []
        assert id_of(stranger.peer_id) not in (
            town.peers[ALICE.peer_id].host.libp2p.get_peerstore().peer_ids()
        )


async def test_the_table_is_kept_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TABLE_MAX", 2)
    members = KEYS[1:5]
    async with town_of(ALICE, known=members) as town:
        for _ in range(2):
            await town.dht(ALICE).restore([(one.peer_id, []) for one in members])
            kept = [peer for peer, _ in town.dht(ALICE).table()]
            assert kept == [one.peer_id for one in members[:2]]


async def test_who_comes_after_all_others_have_left_is_told_at_once() -> None:
    async with town_of(ALICE, BOB, CAROL) as town:
        town.dht(ALICE).provide([CHAT])
        await town.dht(ALICE).put_advert(item_of(ALICE))
        for one in (BOB, CAROL):
            await town.link(ALICE, one)
            library = town.dht(one).library
            await until(lambda library=library: library.provider_store.get_providers(CHAT))
            await until(lambda library=library: library.value_store.size() == 1)
            await town.peers[ALICE.peer_id].host.evict(one.peer_id)


async def test_an_advert_is_found_by_who_never_met_its_author() -> None:
    async with town_of(ALICE, BOB, CAROL) as town:
        await town.link(ALICE, BOB)
        await town.link(CAROL, BOB)
        item = item_of(CAROL, name="carol")
        await town.dht(CAROL).put_advert(item)
        assert await town.dht(ALICE).find_advert(CAROL.peer_id, timeout_s=10) == item
        assert await town.dht(ALICE).find_advert(BOB.peer_id, timeout_s=10) is None


async def test_an_advert_that_was_put_too_early_is_put_once_somebody_is_there() -> None:
    async with town_of(ALICE, BOB) as town:
        item = item_of(ALICE)
        await town.dht(ALICE).put_advert(item)
        assert town.dht(BOB).library.value_store.size() == 0
        await town.link(ALICE, BOB)
        await until(lambda: town.dht(BOB).library.value_store.size() == 1)
        assert await town.dht(BOB).find_advert(ALICE.peer_id, timeout_s=10) == item


async def test_an_old_advert_at_home_does_not_hide_a_newer_one_elsewhere() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        older, newer = item_of(CAROL, number=1), item_of(CAROL, number=2)
        for one, item in ((ALICE, older), (BOB, newer)):
            store = town.dht(one).library.value_store
            store.put(record_key(CAROL.peer_id).encode(), encode(item))
        for one in (ALICE, BOB):
            assert await town.dht(one).find_advert(CAROL.peer_id, timeout_s=10) == newer


async def test_a_newer_advert_replaces_an_older_one_and_not_the_other_way_round() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        older, newer = item_of(ALICE, number=1), item_of(ALICE, number=2)
        for item in (older, newer, older):
            await town.dht(ALICE).put_advert(item)
        kept = town.dht(BOB).library.value_store.get(record_key(ALICE.peer_id).encode())
        assert kept.value == encode(newer)


REFUSED: dict[str, tuple[str, bytes]] = {
    "garbage": (record_key(ALICE.peer_id), b"garbage"),
    "under another's name": (record_key(BOB.peer_id), encode(item_of(ALICE))),
    "of no member": (
        record_key(ALICE.peer_id),
        encode(item_of(ALICE, chain=chain_of(BOB))),
    ),
    "too old": (record_key(ALICE.peer_id), encode(item_of(ALICE, at_ms=NOW_MS - 40 * 86_400_000))),
    "in another namespace": (f"/pk/{ALICE.peer_id}", encode(item_of(ALICE))),
    "without a namespace": (str(ALICE.peer_id), encode(item_of(ALICE))),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_a_value_that_is_not_its_authors_advert_is_kept_nowhere(what: str) -> None:
    name, value = REFUSED[what]
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        # As a member would that does not look at what it sends.
        await town.dht(ALICE).library.value_store._store_at_peer(
            id_of(BOB.peer_id), name.encode(), value
        )
        assert town.dht(BOB).library.value_store.size() == 0
        await town.dht(ALICE).put_advert(item_of(ALICE))
        assert town.dht(BOB).library.value_store.size() == 1, "and it goes on"


async def send(peer: Peer, to: Keypair, data: bytes) -> Any:
    stream = await peer.host.libp2p.new_stream(id_of(to.peer_id), [DHT_PROTOCOL])
    await stream.write(data)
    return stream


def framed(message: Any) -> bytes:
    return encode_varint_prefixed(message.SerializeToString())


def record_of(provider: Keypair, key_: bytes) -> Any:
    message = Message()
    message.type = Message.MessageType.ADD_PROVIDER
    message.key = key_
    one = message.providerPeers.add()
    one.id = id_of(provider.peer_id).to_bytes()
    one.addrs.append(Multiaddr("/ip4/127.0.0.1/tcp/1").to_bytes())
    return message


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 200,
        encode_varint_prefixed(b"\xff" * 200),
        b"\x80\x80\x80\x80\x04",
        framed(record_of(CAROL, CHAT)),
        framed(record_of(ALICE, b"short")),
        framed(record_of(ALICE, b"k" * 81)),
    ],
    ids=["no frame", "no message", "endless", "for another peer", "no key of ours", "a long key"],
)
async def test_what_a_member_should_not_say_does_no_harm(data: bytes) -> None:
    async with town_of(ALICE, BOB, CAROL) as town:
        await town.link(ALICE, BOB)
        await send(town.peers[ALICE.peer_id], BOB, data)
        await send(town.peers[ALICE.peer_id], BOB, framed(record_of(ALICE, CHAT)))
        store = town.dht(BOB).library.provider_store
        await until(lambda: store.get_providers(CHAT))
        assert store.size() == 1
        assert [PeerId(str(one.peer_id)) for one in store.get_providers(CHAT)] == [ALICE.peer_id]


async def test_one_member_has_few_streams_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_S", 600.0)
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        kad = town.dht(BOB).library
        for count in range(1, 5):
            await send(town.peers[ALICE.peer_id], BOB, b"")
            await until(lambda count=count: kad._streams == {id_of(ALICE.peer_id): count})
        # The fifth is ended at once, the others are not.
        with trio.fail_after(WITHIN_S), suppress(StreamError, StreamFailure):
            fifth = await send(town.peers[ALICE.peer_id], BOB, b"")
            assert await fifth.read(1) == b""
        assert kad._streams == {id_of(ALICE.peer_id): 4}


async def test_a_stream_that_says_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STREAM_S", 0.3)
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        kad = town.dht(BOB).library
        stream = await send(town.peers[ALICE.peer_id], BOB, b"")
        with trio.fail_after(WITHIN_S), suppress(StreamError):
            assert await stream.read(1) == b""
        await until(lambda: not kad._streams)
        town.dht(BOB).provide([CHAT])
        assert await found(town.dht(ALICE)) == [BOB.peer_id]


def test_everybody_serves_in_a_small_mesh_and_who_can_be_reached_in_a_large_one() -> None:
    assert serves(20, reachable=False, up_s=1e6)
    assert not serves(21, reachable=False, up_s=600)
    assert serves(21, reachable=False, up_s=599), "somebody may yet dial it"
    assert serves(1000, reachable=True, up_s=1e6)


async def test_who_only_asks_leaves_all_tables_and_still_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "PROBATION_S", 0.0)
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        store = town.peers[BOB.peer_id].host.libp2p.get_peerstore()

        def is_said_to_serve() -> bool:
            return str(DHT_PROTOCOL) in store.get_protocols(id_of(ALICE.peer_id))

        # Nobody has dialled alice.
        town.dht(ALICE).met(1000)
        await until(lambda: not town.dht(ALICE).is_server and not is_said_to_serve())
        await town.dht(BOB).look_again()
        assert not is_in_table(town.dht(BOB), ALICE)
        assert is_in_table(town.dht(ALICE), BOB)
        town.dht(BOB).provide([CHAT])
        assert await found(town.dht(ALICE)) == [BOB.peer_id]
        assert not is_in_table(town.dht(BOB), ALICE), "asking is not serving"
        # Once somebody has, it serves, and says so to those that are there.
        town.dht(ALICE).connected(BOB.peer_id, inbound=True)
        await until(lambda: town.dht(ALICE).is_server and is_said_to_serve())
        await town.dht(BOB).look_again()
        assert is_in_table(town.dht(BOB), ALICE)


async def test_only_the_private_protocol_is_spoken_and_nothing_refreshes_by_itself() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        store = town.peers[ALICE.peer_id].host.libp2p.get_peerstore()
        spoken = [one for one in store.get_protocols(id_of(BOB.peer_id)) if "kad" in one]
        assert spoken == ["/covey/kad/1.0.0"]
        with pytest.raises(Exception, match="manager"):
            assert town.dht(ALICE).library.manager.is_running


async def test_an_evicted_member_leaves_the_table() -> None:
    async with town_of(ALICE, BOB) as town:
        await town.link(ALICE, BOB)
        await town.peers[ALICE.peer_id].host.evict(BOB.peer_id)
        assert not is_in_table(town.dht(ALICE), BOB)


async def test_a_stranger_gets_no_answer() -> None:
    async with town_of(ALICE) as town, open_plain(KEYS[9]) as mallory:
        conn = await dial_plain(mallory, town.peers[ALICE.peer_id].host)
        assert await ask_for(conn, str(DHT_PROTOCOL)) is None
        assert await ask_for(conn, "/ipfs/kad/1.0.0") is None
        assert town.dht(ALICE).size == 0


def test_a_record_says_nothing_of_a_name_and_is_of_one_mesh_and_kind() -> None:
    assert b"shift-log" not in provider_key(MESH, "data", "shift-log")
    kinds = {provider_key(MESH, kind, "x") for kind in ("skill", "model", "label", "data")}
    assert len(kinds) == 4


def test_the_refusal_of_a_judge_is_a_refusal_of_the_record() -> None:
    class Revoking:
        def is_known(self, peer: PeerId) -> bool:
            return bool(peer)

        def judge_author(self, chain: Chain, author: PeerId) -> Member:
            assert chain == chain_of(ALICE)
            raise NotAdmitted("revoked", f"{author} is no member any more")

    records = AdvertRecords(Revoking(), MESH, lambda: NOW_MS)
    with pytest.raises(NotAdmitted, match="no member any more"):
        records.validate(record_key(ALICE.peer_id), encode(item_of(ALICE)))
    assert records.select("", [b"garbage", encode(item_of(ALICE))]) == 1
