"""Each workaround for py-libp2p, by the symptom that comes back without it."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

import pytest
import trio
from libp2p.peer.peerinfo import PeerInfo
from test_gossip.hosts import (
    WITHIN_S,
    Peer,
    Talking,
    ask_for,
    dial_plain,
    id_of,
    meshed,
    open_peer,
    open_plain,
    open_talking,
    until,
)
from test_gossip.members import NOW_MS, chain_of, key
from test_gossip.test_host import descriptors

from covey.gossip import hello, libp2p_fixes
from covey.gossip.host import Stream
from covey.gossip.pubsub import News, PubsubSettings
from covey.identity.keys import PeerId
from covey.identity.wire import encode

ALICE, BOB, MALLORY = key(1), key(2), key(66)
TOPIC = "covey/news/1"
# As fast as the library takes it: what is tried is not our own limits.
FAST = PubsubSettings((TOPIC,), heartbeat_s=0.2, inbox_max=1000, author_burst=1000.0)
MIB = 1024 * 1024


def test_the_library_is_the_version_that_the_workarounds_were_made_for() -> None:
    assert version("libp2p") == libp2p_fixes.VERSION == "0.8.1"


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def test_an_inbound_place_is_free_again_when_its_connection_has_ended() -> None:
    async with open_peer(ALICE) as alice:
        places = alice.swarm._inbound_limiter
        assert places.total_tokens == 250
        # With all but three taken, what shows at the 251st connection shows at the fourth.
        for number in range(247):
            places.acquire_on_behalf_of_nowait(number)
        spent: list[tuple[int, int]] = []
        for _ in range(4):
            async with open_peer(BOB) as bob:
                await bob.dial(alice)
            async with open_plain(MALLORY) as plain:
                conn = await dial_plain(plain, alice.host)
                assert await ask_for(conn, hello.PROTOCOL) is not None
            await until(lambda: places.borrowed_tokens == 247 and not alice.host.gate.visits())
            spent.append((descriptors(), tasks()))
        await until(lambda: tasks() <= spent[0][1])
        assert descriptors() <= spent[0][0]


async def test_sockets_that_say_nothing_are_bounded_for_each_address() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob, AsyncExitStack() as stack:
        port = int(alice.addresses[0].rsplit("/", 1)[1])
        greeted: list[trio.SocketStream] = []
        closed: list[trio.SocketStream] = []

        async def read(stream: trio.SocketStream) -> None:
            data = await stream.receive_some()
            (greeted if data else closed).append(stream)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                stream = await trio.open_tcp_stream("127.0.0.1", port)
                await stack.enter_async_context(stream)
                nursery.start_soon(read, stream)
            await until(lambda: len(greeted) + len(closed) == 20)
        assert (len(greeted), len(closed)) == (16, 4)
        for stream in greeted[:2]:
            await stream.aclose()
        # Another host in this process has places of its own.
        await alice.dial(bob)


async def test_a_disconnected_peer_is_not_dialled_behind_our_back() -> None:
    async with open_plain(ALICE) as alice, open_plain(BOB) as bob:
        libp2p_fixes.quieten(alice)
        await alice.connect(PeerInfo(bob.get_id(), bob.get_addrs()))
        assert alice.get_connected_peers() == [bob.get_id()]
        swarm = alice.get_network()
        await alice.disconnect(bob.get_id())
        await until(lambda: bob.get_connected_peers() == [])
        # Its disconnect is forgotten, as after a while, and its address is not.
        swarm.auto_connector.__dict__.update(type(swarm.auto_connector)(swarm).__dict__)
        swarm.auto_connector._started = True
        assert swarm.peerstore.addrs(bob.get_id())

        await swarm.auto_connector.maybe_connect()

        assert alice.get_connected_peers() == []


@asynccontextmanager
async def pair() -> AsyncGenerator[tuple[Talking, Talking]]:
    """Two members that hear each other's news."""
    async with (
        open_peer(ALICE) as alice,
        open_peer(BOB) as bob,
        open_talking(alice, FAST) as one,
        open_talking(bob, FAST) as other,
    ):
        await meshed(one, other)
        yield one, other


async def publish(author: Talking, *bodies: bytes) -> None:
    """Publish without a pace."""
    chain = chain_of(author.peer.keypair)
    for body in bodies:
        await author.library.publish(TOPIC, encode(News(chain, NOW_MS, body)))


def numbers(count: int, word: bytes = b"") -> list[bytes]:
    return [word + b"%d" % number for number in range(count)]


async def test_a_burst_of_news_arrives_whole() -> None:
    async with pair() as (alice, bob):
        await publish(alice, *numbers(300))
        await until(lambda: len(bob.heard) >= 300)
        assert sorted(bob.bodies) == sorted(numbers(300))


async def test_news_after_a_restart_is_not_taken_for_what_was_heard_before() -> None:
    async with open_peer(BOB) as bob, open_talking(bob, FAST) as reader:
        for start, word in enumerate((b"before ", b"after ")):
            async with (
                open_peer(ALICE) as alice,
                open_talking(alice, FAST, now_ms=NOW_MS + start) as author,
            ):
                await meshed(author, reader)
                await publish(author, *numbers(5, word))
                await until(lambda word=word: word + b"4" in reader.bodies)
            await until(lambda: bob.swarm.connections == {})
        assert sorted(reader.bodies) == sorted(numbers(5, b"before ") + numbers(5, b"after "))


def inbound_pubsub(one: Talking, other: Talking) -> Any:
    """Return the stream on which one hears the other."""
    (conn,) = one.peer.swarm.connections[id_of(other.id)]
    (stream,) = [
        stream
        for stream in conn.get_streams()
        if str(stream.get_protocol()).startswith("/meshsub/")
        and stream is not one.library.peers[id_of(other.id)]
    ]
    return stream


@pytest.mark.parametrize("by", ["who writes", "who reads"])
async def test_a_pubsub_stream_that_ends_takes_its_connection_with_it(by: str) -> None:
    async with pair() as (alice, bob):
        (old,) = alice.peer.host.gate.visits()
        stream = (
            alice.library.peers[id_of(bob.id)] if by == "who writes" else inbound_pubsub(bob, alice)
        )

        await stream.reset()

        await until(lambda: old.gone.is_set())
        await until(lambda: alice.peer.swarm.connections == bob.peer.swarm.connections == {})
        await meshed(alice, bob)
        await publish(alice, *numbers(8))
        await publish(bob, *numbers(8))
        await until(lambda: len(alice.heard) == len(bob.heard) == 8)


async def test_an_exception_in_a_validator_ends_its_message_and_nothing_else() -> None:
    async with pair() as (alice, bob):
        judge = bob.library.topic_validators[TOPIC].validator

        def broken(forwarder: Any, message: Any) -> bool:
            if b"bad" in message.data:
                raise ValueError("a mistake")
            result: bool = judge(forwarder, message)
            return result

        bob.library.set_topic_validator(TOPIC, broken, False)
        await publish(alice, b"bad", b"good")
        await until(lambda: bob.bodies == [b"good"])
        await publish(bob, b"an answer")
        await until(lambda: alice.bodies == [b"an answer"])


# Streams


class Window:
    """Counts what a connection writes beside data."""

    def __init__(self, stream: Stream) -> None:
        self.frames: list[int] = []
        mux = stream.connection
        write = mux._write_frame

        async def note(data: bytes) -> None:
            self.frames.append(data[1])
            await write(data)

        mux._write_frame = note


async def stream_pair(alice: Peer, bob: Peer, protocol: str) -> tuple[Stream, Stream]:
    """Return both ends of one stream, which its handler leaves alone."""
    ends: list[Stream] = []
    done = trio.Event()

    async def hold(_peer: PeerId, stream: Stream) -> None:
        ends.append(stream)
        await done.wait()

    bob.host.set_handler(protocol, hold)
    visit = await alice.dial(bob)
    ours = await alice.host.open_stream(visit, protocol)
    await until(lambda: ends)
    return ours, ends[0]


def has_filled(stream: Stream) -> bool:
    """Tell whether the other side takes no more for now, on some stream of this connection."""
    return any(one.send_window == 0 for one in stream.connection.streams.values())


async def test_a_slow_reader_holds_its_writer_and_nobody_else() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        ours, theirs = await stream_pair(alice, bob, "/test/slow/1")
        other, others = await stream_pair(alice, bob, "/test/other/1")
        piece = bytes(range(256)) * 256
        written = {"ours": 0, "theirs": 0}
        window = Window(theirs)

        async def write(name: str, stream: Stream) -> None:
            for _ in range(8 * MIB // len(piece)):
                await stream.write(piece)
                written[name] += len(piece)

        async def read(stream: Stream) -> bytes:
            got = bytearray()
            while len(got) < 8 * MIB:
                got += await stream.read(5000 if len(got) < MIB else 100_000)
            return bytes(got)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, "ours", ours)
            nursery.start_soon(write, "theirs", theirs)
            await until(lambda: has_filled(ours) and has_filled(theirs))
            assert max(written.values()) < 8 * MIB, "both have filled the other's window, and wait"
            await other.write(b"meanwhile")
            assert await others.read(100) == b"meanwhile"
            await others.write(b"and back")
            assert await other.read(100) == b"and back"

            with trio.fail_after(WITHIN_S):
                assert await read(theirs) == piece * 128
                assert await read(ours) == piece * 128

        assert written == {"ours": 8 * MIB, "theirs": 8 * MIB}
        updates = window.frames.count(1)
        assert updates <= 8 * MIB // libp2p_fixes.WINDOW_STEP_BYTES == 128, "one a quarter window"


class Turns(trio.abc.Instrument):
    """Counts the turns of the task that made it."""

    def __init__(self) -> None:
        self.count = 0
        self._task = trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += task is self._task


async def test_a_message_that_fits_is_written_in_few_turns_of_the_scheduler() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        ours, theirs = await stream_pair(alice, bob, "/test/turns/1")
        turns = Turns()
        trio.lowlevel.add_instrument(turns)
        try:
            await ours.write(b"x" * 1024)
        finally:
            trio.lowlevel.remove_instrument(turns)
        assert turns.count <= 4
        assert await theirs.read(2000) == b"x" * 1024
