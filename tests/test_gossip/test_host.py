"""A peer on the network: who is dialled where, what a stream's end looks like, what stays behind."""

import os
import select
import socket
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager

import pytest
import trio
from test_gossip.hosts import Peer, door_of, id_of, open_peer, until
from test_gossip.members import OTHER_MESH, key

from covey.gossip.gate import Visit
from covey.gossip.host import HostSettings, Stream, open_host
from covey.identity.errors import Misuse, NotAdmitted, Unavailable
from covey.identity.keys import PeerId

ALICE, BOB, CAROL = key(1), key(2), key(3)
ECHO = "/test/echo/1"


async def echo(_peer: PeerId, stream: Stream) -> None:
    while data := await stream.read(1000):
        await stream.write(data)


@contextmanager
def silent() -> Generator[socket.socket]:
    """A port that takes connections and never says anything."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield server


@contextmanager
def swallowing() -> Generator[socket.socket]:
    """A port that does not even answer that somebody knocks: its queue is full."""
    with ExitStack() as stack:
        server = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0), backlog=0)))
        knocking = [stack.enter_context(closing(socket.socket())) for _ in range(8)]
        for one in knocking:
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        assert not select.select([], knocking[-1:], [], 0.1)[1], "the last one waits"
        yield server


def at(server: socket.socket) -> str:
    return f"/ip4/127.0.0.1/tcp/{server.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[int]:
    with silent() as server:
        yield server.getsockname()[1]


def refusing_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port: int = server.getsockname()[1]
        return port


async def test_a_dial_opens_one_connection_that_both_sides_hold() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        visit = await alice.dial(bob)

        await until(lambda: bob.seen.opened_visits)
        assert alice.is_open_to(bob)
        assert bob.is_open_to(alice)
        assert (visit.peer, visit.inbound, visit.member.peer) == (bob.id, False, bob.id)
        assert visit.address == bob.addresses[0]
        assert [one.peer for one in bob.seen.opened_visits] == [alice.id]
        assert await alice.dial(bob) is visit, "who is connected is not dialled again"
        assert await bob.dial(alice) is bob.seen.opened_visits[0]


@pytest.mark.parametrize("first", ["refusing", "silent", "another peer's"])
async def test_an_address_that_does_not_work_keeps_nobody_from_the_next(
    first: str, silent_port: int
) -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob, open_peer(CAROL) as carol:
        dead = {
            "refusing": f"/ip4/127.0.0.1/tcp/{refusing_port()}",
            "silent": f"/ip4/127.0.0.1/tcp/{silent_port}",
            "another peer's": carol.addresses[0],
        }[first]

        visit = await alice.host.dial(bob.id, [dead, *bob.addresses], timeout_s=1.0)

        assert visit.peer == bob.id
        assert alice.is_open_to(bob)
        assert carol.seen.opened_visits == []


async def test_silent_addresses_cost_a_moment_and_nothing_is_left_of_them() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        with silent() as mute, swallowing() as deaf:
            before = descriptors()
            with trio.fail_after(3):
                visit = await alice.host.dial(bob.id, [at(mute), at(deaf), *bob.addresses])

            assert visit.address == bob.addresses[0]
            assert alice.host.gate.visits() == [visit]
            await until(lambda: descriptors() == before + 2)
            lost, _ = mute.accept()
            with closing(lost):
                lost.settimeout(5)
                while lost.recv(1000):
                    """What was said before it lost."""
            await alice.host.gate.cut(visit)
            await until(lambda: descriptors() == before)


async def test_where_every_address_fails_one_error_says_of_each_why() -> None:
    async with open_peer(ALICE) as alice, open_peer(CAROL) as carol:
        with silent() as mute, swallowing() as deaf:
            before = descriptors()
            refusing = f"/ip4/127.0.0.1/tcp/{refusing_port()}"
            addresses = [refusing, at(mute), at(deaf), *carol.addresses]
            with pytest.raises(Unavailable) as caught:
                await alice.host.dial(BOB.peer_id, addresses, timeout_s=1.0)

            first, second, third, fourth = str(caught.value).split("; ")
            assert first.startswith(f"{refusing} cannot be reached: ")
            assert second == f"no answer from {at(mute)} within 1 s"
            assert third == f"no answer from {at(deaf)} within 1 s"
            assert fourth.startswith(f"{carol.addresses[0]} cannot be reached: ")
            assert CAROL.peer_id in fourth, "who it is instead"
            assert alice.host.gate.visits() == []
            await until(lambda: descriptors() == before)


async def test_who_refuses_ends_the_dial_however_many_addresses_are_silent(
    silent_port: int,
) -> None:
    other = door_of(BOB, mesh=OTHER_MESH)
    async with open_peer(ALICE) as alice, open_peer(BOB, other) as bob:
        addresses = [f"/ip4/127.0.0.1/tcp/{silent_port}", *bob.addresses]
        with trio.fail_after(3), pytest.raises(NotAdmitted, match="another mesh"):
            await alice.host.dial(bob.id, addresses)
        assert alice.host.gate.visits() == []


async def test_dials_of_one_peer_at_one_time_end_with_one_connection() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        visits: list[Visit] = []

        async def dial() -> None:
            visits.append(await alice.dial(bob))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(dial)
        assert visits == [visits[0]] * 4
        await until(lambda: bob.host.gate.visits() == bob.seen.opened_visits)
        assert alice.is_open_to(bob)
        assert bob.is_open_to(alice)
        assert bob.seen.closed_visits == [], "none replaced another"


async def test_a_dial_that_is_given_up_in_its_handshake_keeps_no_place(silent_port: int) -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        address = f"/ip4/127.0.0.1/tcp/{silent_port}"
        for _ in range(3):
            with pytest.raises(Unavailable, match="no answer"):
                await alice.host.dial(bob.id, [address], timeout_s=0.1)
        assert places(alice) == 0, "of a thousand that the library has"

        visit = await alice.dial(bob)
        assert places(alice) == 1
        await alice.host.gate.cut(visit)
        await until(lambda: places(alice) == 0)


def places(peer: Peer) -> int:
    """How many connections the library believes to have."""
    count: int = peer.swarm._resource_manager.get_stats()["connections"]
    return count


async def test_who_cannot_be_reached_is_unavailable_and_says_why(silent_port: int) -> None:
    async with open_peer(ALICE) as alice:
        with pytest.raises(Unavailable, match="no address of 12D3K"):
            await alice.host.dial(BOB.peer_id, [])
        for address in (f"/ip4/127.0.0.1/tcp/{refusing_port()}", "/dns4"):
            with pytest.raises(Unavailable, match="cannot be reached"):
                await alice.host.dial(BOB.peer_id, [address])
        address = f"/ip4/127.0.0.1/tcp/{silent_port}"
        with pytest.raises(Unavailable, match=r"no answer .* within 0.3 s"):
            await alice.host.dial(BOB.peer_id, [address], timeout_s=0.3)
        assert alice.host.gate.visits() == []


async def test_a_port_that_is_taken_is_said_before_anything_runs(silent_port: int) -> None:
    async with open_peer(BOB) as bob:
        taken = HostSettings("127.0.0.1", port=silent_port)
        with pytest.raises(Unavailable, match="change \\[listen\\]"):
            async with open_host(ALICE, taken, bob.door, bob.seen):
                pass
        with pytest.raises(Unavailable, match="not this device's address"):
            async with open_host(ALICE, HostSettings("192.0.2.1", port=4001), bob.door, bob.seen):
                pass


async def test_what_is_announced_is_told_instead_of_own_addresses() -> None:
    async with open_peer(BOB) as bob:
        announced = HostSettings("127.0.0.1", announce=("/dns4/plant.example/tcp/4001",))
        async with open_host(ALICE, announced, bob.door, bob.seen) as host:
            assert host.addresses() == ("/dns4/plant.example/tcp/4001",)
        (address,) = bob.addresses
        assert address.startswith("/ip4/127.0.0.1/tcp/"), "else its own, with the port it has"


async def test_a_stream_carries_bytes_and_its_end_reads_as_nothing() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        bob.host.set_handler(ECHO, echo)
        visit = await alice.dial(bob)
        stream = await alice.host.open_stream(visit, ECHO)
        await stream.write(b"hello")
        assert await stream.read(100) == b"hello"

        await stream.reset()

        assert await stream.read(100) == b""
        with pytest.raises(Unavailable, match="the stream has ended"):
            await stream.write(b"more")
        again = await alice.host.open_stream(visit, ECHO)
        await again.write(b"alive")
        assert await again.read(100) == b"alive"


async def test_a_protocol_that_nobody_speaks_is_unavailable() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        visit = await alice.dial(bob)
        with pytest.raises(Unavailable, match="opens no stream for /test/none/1"):
            await alice.host.open_stream(visit, "/test/none/1")
        await alice.host.gate.cut(visit)
        with pytest.raises(Unavailable, match="opens no stream"):
            await alice.host.open_stream(visit, ECHO)


@pytest.mark.parametrize(
    "error", [ValueError("a mistake"), Misuse("refused"), ExceptionGroup("two", [OSError()])]
)
async def test_an_exception_in_a_handler_ends_its_stream_and_nothing_else(error: Exception) -> None:
    async def broken(_peer: PeerId, stream: Stream) -> None:
        await stream.read(100)
        raise error

    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        bob.host.set_handler("/test/broken/1", broken)
        bob.host.set_handler(ECHO, echo)
        visit = await alice.dial(bob)
        other = await alice.host.open_stream(visit, ECHO)

        stream = await alice.host.open_stream(visit, "/test/broken/1")
        await stream.write(b"hello")

        assert await stream.read(100) == b""
        await other.write(b"alive")
        assert await other.read(100) == b"alive"
        assert bob.is_open_to(alice)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_host_that_is_left_closes_its_connections_and_gives_all_back() -> None:
    async with open_peer(ALICE) as alice:
        before, tasks = descriptors(), trio.lowlevel.current_statistics().tasks_living
        for count in range(3):
            async with open_peer(BOB) as bob:
                await bob.dial(alice)
                await until(lambda count=count: len(alice.seen.opened_visits) == count + 1)

            await until(lambda count=count: len(alice.seen.closed_visits) == count + 1)
            assert alice.swarm.connections == {}
            assert alice.host.gate.visits() == []
        assert [one.peer for one in alice.seen.closed_visits] == [BOB.peer_id] * 3
        await until(lambda: descriptors() <= before)
        await until(lambda: trio.lowlevel.current_statistics().tasks_living <= tasks)


def remembers(peer: Peer, other: PeerId) -> bool:
    """Tell whether identify's news of another peer is in the library's store."""
    store = peer.host.libp2p.get_peerstore()
    return id_of(other) in store.peers_with_addrs() or id_of(other) in store.peer_ids()


async def test_an_evicted_peer_is_gone_from_every_table() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        bob.host.set_handler(ECHO, echo)
        await bob.dial(alice)
        await until(lambda: alice.is_open_to(bob))
        await until(lambda: remembers(alice, bob.id))

        await alice.host.evict(bob.id)

        assert alice.swarm.connections == {}
        assert alice.host.gate.visits() == []
        assert not remembers(alice, bob.id)
        await until(lambda: bob.swarm.connections == {})
        await alice.host.evict(bob.id)
