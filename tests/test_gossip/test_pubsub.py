"""Gossip among members: what is believed, whoever passed it on, and how much of it."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils import encode_varint_prefixed
from test_gossip.hosts import (
    Talking,
    door_of,
    id_of,
    meshed,
    open_peer,
    open_talking,
    until,
    until_true,
)
from test_gossip.members import ADMIN_CHAIN, MESH, NOW_MS, chain_of, key

from covey.gossip.pubsub import (
    AGE_MS_MAX,
    BODY_BYTES_MAX,
    PROTOCOL,
    News,
    Pace,
    PubsubSettings,
)
from covey.identity.certificate import DAY_S, issue
from covey.identity.errors import Misuse
from covey.identity.wire import KIB, encode

ALICE, BOB, CAROL = key(1), key(2), key(3)
TOPIC, OTHER = "covey/bids/1", "covey/lease/1"
SETTINGS = PubsubSettings((TOPIC, OTHER), heartbeat_s=0.2)


@given(
    st.lists(st.floats(0, 5), max_size=60).map(sorted),
    st.integers(1, 8),
)
def test_no_more_pass_than_the_burst_and_one_a_second(times: list[float], burst: int) -> None:
    pace = Pace(burst=float(burst))
    passed = [now for now in times if pace.take(now)]
    for first, start in enumerate(passed):
        for last, end in enumerate(passed[first:]):
            assert last + 1 <= burst + (end - start) + 1e-6


def test_a_silence_gives_the_burst_back_and_no_more() -> None:
    pace = Pace(burst=2.0)
    assert [pace.take(0.0) for _ in range(3)] == [True, True, False]
    assert [pace.take(now) for now in (0.9, 1.0, 1.5)] == [False, True, False]
    assert [pace.take(1000.0) for _ in range(3)] == [True, True, False]
    assert pace.take(999.0) is False, "a clock that goes back gives nothing"


async def test_news_reaches_a_member_that_its_author_is_not_connected_to() -> None:
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_peer(CAROL) as carol,
        open_talking(alice, SETTINGS) as author,
        open_talking(bob, SETTINGS) as between,
        open_talking(carol, SETTINGS) as reader,
    ):
        await meshed(author, between)
        await meshed(between, reader)
        largest = b"\xff" * BODY_BYTES_MAX

        assert await author.pubsub.publish(TOPIC, largest)

        await until(lambda: between.heard and reader.heard)
        assert await author.pubsub.publish(TOPIC, b"at once again") is False
        await until_true(lambda: author.pubsub.publish(OTHER, b"a second later"))
        await until(lambda: len(between.heard) == len(reader.heard) == 2)
        for one in (between, reader):
            assert [heard.topic for heard in one.heard] == [TOPIC, OTHER]
            assert one.bodies == [largest, b"a second later"]
            assert {heard.author.peer for heard in one.heard} == {alice.id}
        assert author.heard == [], "its own words are no news to it"
        assert alice.is_open_to(bob)
        assert carol.is_open_to(bob)


def news(**changes: Any) -> bytes:
    """Return what ALICE publishes."""
    fields: dict[str, Any] = {"chain": chain_of(ALICE), "sent_ms": NOW_MS, "body": b"lies"}
    return encode(News(**(fields | changes)))


FORGED = issue(ALICE, ALICE.peer_id, mesh=MESH, role="member", now_ms=NOW_MS)
LIES: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: b"\xff\xff",
    "nothing": lambda: b"",
    "no chain": lambda: news(chain=()),
    "another's chain": lambda: news(chain=chain_of(BOB)),
    "a chain that it signed itself": lambda: news(chain=(*ADMIN_CHAIN, FORGED)),
    "a chain that has ended": lambda: news(
        chain=chain_of(ALICE, now_ms=NOW_MS - 300 * DAY_S * 1000)
    ),
    "old news": lambda: news(sent_ms=NOW_MS - AGE_MS_MAX - 1),
    "news from ahead of time": lambda: news(sent_ms=NOW_MS + AGE_MS_MAX + 1),
    "too much": lambda: news(body=bytes(BODY_BYTES_MAX + 1)),
}


async def test_an_author_is_judged_even_if_a_member_passed_its_words_on() -> None:
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_peer(CAROL) as carol,
        open_talking(alice, SETTINGS) as liar,
        open_talking(bob, SETTINGS) as gullible,
        open_talking(carol, SETTINGS) as reader,
    ):
        for one in (liar, gullible):
            for topic in (TOPIC, OTHER):
                one.library.remove_topic_validator(topic)
        await meshed(liar, gullible)
        await meshed(gullible, reader)

        for lie in LIES.values():
            await liar.library.publish(TOPIC, lie())
        await liar.library.publish([TOPIC, OTHER], news())

        await until(lambda: reader.pubsub.refused == len(LIES) + 1)
        assert await gullible.pubsub.publish(TOPIC, b"the truth")
        await until(lambda: reader.heard)
        assert reader.bodies == [b"the truth"]
        assert reader.heard[0].author.peer == bob.id
        assert carol.is_open_to(bob), "who passed it on is not to blame"


async def test_words_are_only_believed_under_the_signature_of_their_author() -> None:
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, SETTINGS) as thief,
        open_talking(bob, SETTINGS) as reader,
    ):
        await meshed(thief, reader)
        message = rpc_pb2.Message(
            data=news(chain=chain_of(CAROL)),
            topicIDs=[TOPIC],
            from_id=id_of(CAROL.peer_id).to_bytes(),
            seqno=b"\x01" * 8,
            signature=b"\x02" * 64,
        )
        await thief.library.router.publish(id_of(alice.id), message)
        assert await thief.pubsub.publish(TOPIC, b"its own")
        await until(lambda: reader.heard)
        assert reader.bodies == [b"its own"]


async def test_an_author_that_floods_is_heard_at_the_pace_of_all_others() -> None:
    settings = PubsubSettings((TOPIC,), heartbeat_s=0.2, author_burst=3.0)
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, settings) as flood,
        open_talking(bob, settings) as reader,
    ):
        flood.library.remove_topic_validator(TOPIC)
        await meshed(flood, reader)

        for number in range(40):
            await flood.library.publish(TOPIC, news(body=b"%d" % number))

        await until(lambda: len(reader.heard) + reader.pubsub.refused == 40)
        assert reader.bodies[:3] == [b"0", b"1", b"2"]
        assert len(reader.heard) <= 13, "three at once, and one a second"


@pytest.mark.parametrize("closed", [False, True])
async def test_a_reader_that_does_not_read_loses_news_and_nothing_else(closed: bool) -> None:
    settings = PubsubSettings((TOPIC,), heartbeat_s=0.2, inbox_max=2, author_burst=100.0)
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, settings) as author,
        open_talking(bob, settings, listens=False) as reader,
    ):
        await meshed(author, reader)
        if closed:
            reader.pubsub.inbox.close()
        for number in range(5):
            await author.library.publish(TOPIC, news(body=b"%d" % number))
        await until(lambda: reader.pubsub.dropped == (5 if closed else 3))
        assert bob.is_open_to(alice)


async def test_what_cannot_be_published_is_said() -> None:
    async with open_peer(ALICE) as alice, open_talking(alice, SETTINGS) as author:
        with pytest.raises(Misuse, match="topic 'covey/none/1' is not one of"):
            await author.pubsub.publish("covey/none/1", b"")
        with pytest.raises(Misuse, match="over the limit of 49152"):
            await author.pubsub.publish(TOPIC, bytes(BODY_BYTES_MAX + 1))


async def send_rpc(sender: Talking, receiver: Talking, rpc: bytes) -> None:
    """Send one frame as the library frames it, on a stream of its own."""
    stream = await sender.peer.host.libp2p.new_stream(id_of(receiver.id), [PROTOCOL])
    await stream.write(encode_varint_prefixed(rpc))


# Well formed, and for a topic that the reader would ignore.
LONG = rpc_pb2.RPC(publish=[rpc_pb2.Message(data=bytes(64 * KIB), topicIDs=["covey/none/1"])])


@pytest.mark.parametrize(
    "rpc",
    [
        pytest.param(LONG.SerializeToString(), id="too long"),
        pytest.param(b"\xff\xff\xff", id="garbage"),
    ],
)
async def test_a_member_that_breaks_the_protocol_is_cut_and_the_others_talk_on(rpc: bytes) -> None:
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_peer(CAROL) as carol,
        open_talking(alice, SETTINGS) as broken,
        open_talking(bob, SETTINGS) as reader,
        open_talking(carol, SETTINGS) as author,
    ):
        await meshed(broken, reader)
        await meshed(author, reader)

        await send_rpc(broken, reader, rpc)

        await until(lambda: bob.is_open_to(carol))
        assert await author.pubsub.publish(TOPIC, b"still here")
        await until(lambda: reader.bodies == [b"still here"])


async def test_a_message_of_nonsense_is_dropped_and_the_next_one_heard() -> None:
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, SETTINGS) as author,
        open_talking(bob, SETTINGS) as reader,
    ):
        await meshed(author, reader)
        nonsense = rpc_pb2.Message(
            data=b"x", topicIDs=[TOPIC], from_id=b"y", key=b"z", signature=b"s", seqno=b"1"
        )
        for message in (nonsense, rpc_pb2.Message(topicIDs=[TOPIC])):
            author.library.peer_queues[id_of(bob.id)].push(rpc_pb2.RPC(publish=[message]))
        assert await author.pubsub.publish(TOPIC, b"sense")
        await until(lambda: reader.bodies == [b"sense"])
        assert bob.is_open_to(alice)


async def test_a_newer_peers_subscriptions_to_other_topics_are_ignored() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        wide = PubsubSettings(("covey/new/1", TOPIC, "covey/none/1"), heartbeat_s=0.2)
        async with open_talking(alice, wide) as one, open_talking(bob, SETTINGS) as other:
            await one.peer.dial(other.peer)
            await other.library.wait_for_mesh(id_of(alice.id), TOPIC, timeout=10)
            assert other.library.peer_topics == {TOPIC: {id_of(alice.id)}}


async def test_an_evicted_peer_is_in_no_queue_and_no_mesh_and_the_others_talk_on() -> None:
    door = door_of(ALICE)
    async with (
        open_peer(ALICE, door) as alice,
        open_peer(BOB) as bob,
        open_peer(CAROL) as carol,
        open_talking(alice, SETTINGS) as evicting,
        open_talking(bob, SETTINGS) as evicted,
        open_talking(carol, SETTINGS) as other,
    ):
        await meshed(evicted, evicting)
        await meshed(other, evicting)
        router = evicting.library.router
        gone = id_of(bob.id)
        visit = alice.host.gate.open_visit(bob.id)
        assert visit is not None
        # What waits for it, until it says which topics it wants.
        router._pending_messages[gone].append((0.0, rpc_pb2.RPC()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.host.evict, bob.id)
            await until(lambda: visit.state == "closed")
            assert not visit.gone.is_set(), "at once, not when the connection has ended"
            assert gone not in evicting.library.peers

        assert gone not in evicting.library.peers
        assert gone not in evicting.library.peer_queues
        assert gone not in router.peer_protocol
        assert gone not in router._pending_messages
        assert router.mesh == {TOPIC: {id_of(carol.id)}, OTHER: {id_of(carol.id)}}
        assert evicting.library.peer_topics == router.mesh
        await until(lambda: bob.swarm.connections == {})
        assert await evicting.pubsub.publish(TOPIC, b"without it")
        await until(lambda: other.bodies == [b"without it"])
        assert evicted.heard == []


async def test_connections_from_before_are_made_again_with_gossip_on_them() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        await alice.dial(bob)
        await until(lambda: bob.is_open_to(alice))
        async with open_talking(alice, SETTINGS) as one, open_talking(bob, SETTINGS) as other:
            await until(lambda: alice.swarm.connections == {} and bob.swarm.connections == {})
            await meshed(one, other)
            assert await one.pubsub.publish(TOPIC, b"hello")
            await until(lambda: other.bodies == [b"hello"])
        assert alice.host.pubsub is None
