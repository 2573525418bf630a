"""The gate over real connections: who becomes a member, what a guest may do, what it may cost."""

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.exceptions import BaseLibp2pError
from test_gossip.hosts import (
    MULTISTREAM,
    WITHIN_S,
    Peer,
    ask_for,
    dial_plain,
    door_of,
    ended,
    id_of,
    open_peer,
    open_plain,
    until,
)
from test_gossip.members import (
    ADMIN,
    ADMIN_CHAIN,
    MESH,
    NOW_MS,
    OTHER_MESH,
    OTHER_ROOT,
    chain_of,
    key,
)

from covey.gossip import hello, joining
from covey.gossip.gate import GuestLimits, read_frame, write_frame
from covey.gossip.joining import InviteDesk
from covey.identity.certificate import DAY_S, Chain, found_mesh, issue
from covey.identity.errors import CoveyError, NotAdmitted, Unavailable
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import KIB

ALICE, BOB, CAROL, MALLORY = key(1), key(2), key(3), key(66)
DAY_MS = DAY_S * 1000


def forged(keypair: Keypair) -> Chain:
    """A certificate that the subject signed itself below the mesh's true admin."""
    return (*ADMIN_CHAIN, issue(keypair, keypair.peer_id, mesh=MESH, role="member", now_ms=NOW_MS))


def altered(keypair: Keypair) -> Chain:
    root, member = chain_of(keypair)
    return (root, member[:-1] + bytes([member[-1] ^ 1]))


def other_mesh(keypair: Keypair) -> Chain:
    root = found_mesh(OTHER_ROOT, ADMIN.peer_id, now_ms=NOW_MS)
    return (*root, issue(ADMIN, keypair.peer_id, mesh=OTHER_MESH, role="member", now_ms=NOW_MS))


# What is shown, and the code that the other side is told.
BAD_CHAINS: dict[str, tuple[Callable[[Keypair], Chain], str]] = {
    "none": (lambda _: (), "bad-chain"),
    "forged": (forged, "bad-chain"),
    "altered": (altered, "bad-signature"),
    "self-signed": (
        lambda keypair: found_mesh(keypair, keypair.peer_id, now_ms=NOW_MS),
        "bad-signature",
    ),
    "another's": (lambda _: chain_of(CAROL), "bad-chain"),
    "expired": (lambda keypair: chain_of(keypair, now_ms=NOW_MS - 300 * DAY_MS), "expired"),
    "of the future": (lambda keypair: chain_of(keypair, now_ms=NOW_MS + DAY_MS), "not-yet-valid"),
    "another mesh's": (other_mesh, "bad-signature"),
}


def nobody_in(peer: Peer) -> bool:
    """Tell whether no connection is left, in the library's table or outside of it."""
    return peer.swarm.connections == {} and peer.host.gate.visits() == []


@asynccontextmanager
async def guest_of(peer: Peer, keypair: Keypair = MALLORY) -> AsyncGenerator[tuple[Any, Any]]:
    """Yield a stranger's host and its connection to a peer."""
    async with open_plain(keypair) as plain:
        conn = await dial_plain(plain, peer.host)
        await until(lambda: any(visit.peer == keypair.peer_id for visit in peer.host.gate.visits()))
        yield plain, conn


async def told_codes(
    meet: Callable[[Peer], Awaitable[object]],
) -> dict[str, str]:
    """Return what each peer with a bad chain was told when it met another, all at once."""
    codes: dict[str, str] = {}

    async def one(shown: str, number: int) -> None:
        keypair = key(number)
        async with open_peer(keypair, door_of(keypair, chain=BAD_CHAINS[shown][0](keypair))) as bad:
            try:
                await meet(bad)
            except NotAdmitted as error:
                codes[shown] = error.code
            await until(lambda: nobody_in(bad))
            assert bad.seen.opened_visits == []

    async with trio.open_nursery() as nursery:
        for number, shown in enumerate(BAD_CHAINS):
            nursery.start_soon(one, shown, 60 + number)
    return codes


async def test_who_dials_without_a_valid_chain_is_told_why_and_put_out() -> None:
    async with open_peer(ALICE) as alice:
        codes = await told_codes(lambda bad: bad.dial(alice))

        assert codes == {shown: code for shown, (_, code) in BAD_CHAINS.items()}
        await until(lambda: nobody_in(alice))
        assert alice.seen.opened_visits == []
        assert alice.host.gate.refused == len(BAD_CHAINS) == 8


async def test_whom_we_dial_is_put_out_if_its_chain_does_not_hold_and_asked_for_nothing() -> None:
    asked: list[str] = []

    async def meet(bad: Peer) -> None:
        serve = bad.swarm.common_stream_handler

        async def note(stream: Any) -> None:
            await serve(stream)
            asked.append(str(stream.get_protocol()))

        bad.swarm.set_stream_handler(note)
        await alice.dial(bad)

    async with open_peer(ALICE) as alice:
        codes = await told_codes(meet)

        assert codes == {shown: code for shown, (_, code) in BAD_CHAINS.items()}
        assert nobody_in(alice)
        assert alice.seen.opened_visits == []
        assert asked == [hello.PROTOCOL] * len(BAD_CHAINS)


async def test_a_member_of_another_mesh_is_told_so() -> None:
    door = door_of(MALLORY, chain=other_mesh(MALLORY), mesh=OTHER_MESH)
    async with open_peer(ALICE) as alice, open_peer(MALLORY, door) as mallory:
        for dialler, dialled in ((mallory, alice), (alice, mallory)):
            with pytest.raises(NotAdmitted, match="another mesh"):
                await dialler.dial(dialled)
        await until(lambda: nobody_in(alice) and nobody_in(mallory))


async def test_a_host_that_speaks_no_hello_is_asked_for_nothing_else() -> None:
    asked: list[str | None] = []
    async with open_peer(ALICE) as alice, open_plain(MALLORY) as plain:
        swarm = plain.get_network()
        serve = swarm.common_stream_handler

        async def note(stream: Any) -> None:
            asked.append("stream")
            await serve(stream)

        swarm.set_stream_handler(note)
        with pytest.raises(CoveyError, match="it is no covey peer"):
            await alice.host.dial(MALLORY.peer_id, [str(plain.get_addrs()[0])])
        assert nobody_in(alice)
        await until(lambda: swarm.connections == {})
        assert asked == ["stream"]


@pytest.mark.parametrize("round_", range(3))
async def test_two_that_dial_each_other_at_once_end_with_one_connection(round_: int) -> None:
    refusals: list[str] = []

    async def dial(one: Peer, other: Peer) -> None:
        try:
            await one.dial(other)
        except NotAdmitted as error:
            refusals.append(error.code)
        except Unavailable:
            refusals.append("ended")

    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, alice, bob)
            nursery.start_soon(dial, bob, alice)

        await until(lambda: alice.is_open_to(bob) and bob.is_open_to(alice))
        await until(lambda: len(alice.host.gate.visits()) == len(bob.host.gate.visits()) == 1)
        (ours,), (theirs,) = alice.host.gate.visits(), bob.host.gate.visits()
        assert ours.inbound != theirs.inbound, "both hold the same one"
        assert refusals in ([], ["duplicate"], ["ended"])


async def test_each_side_knows_what_books_the_other_holds_once_the_connection_is_open() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        alice.door.own_books, bob.door.own_books = (lambda: b"alice's"), (lambda: b"bob's")

        await alice.dial(bob)

        await until(lambda: alice.seen.opened_visits and bob.seen.opened_visits)
        assert alice.door.books == {bob.id: b"bob's"}
        assert bob.door.books == {alice.id: b"alice's"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_new_connection_replaces_the_old_unless_the_two_crossed(restarted: bool) -> None:
    low, high = sorted([ALICE, BOB], key=lambda one: one.peer_id)
    async with open_peer(low) as listener:
        again = door_of(high, incarnation=2 if restarted else 1)
        async with open_peer(high) as first, open_peer(high, again) as second:
            # The low id's own dial, so that a dial of the high id within 10 s may be its other half.
            old = await listener.dial(first)
            if restarted:
                await second.dial(listener)
                await until(lambda: listener.is_open_to(second) and old.state == "closed")
                await until(lambda: nobody_in(first))
            else:
                with pytest.raises(NotAdmitted) as caught:
                    await second.dial(listener)
                assert caught.value.code == "duplicate"
                assert old.state == "open"


async def test_a_dial_waits_for_the_end_of_the_last_connection() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        old = await alice.dial(bob)
        await until(lambda: bob.is_open_to(alice))
        (theirs,) = bob.host.gate.visits()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bob.host.gate.cut, theirs)
            await until(lambda: old.conn.is_closed)

            new = await alice.dial(bob)

            assert new is not old
            assert old in alice.seen.closed_visits, "its end was told before the new one opened"
        await until(lambda: alice.is_open_to(bob) and bob.is_open_to(alice))


BROKEN_FRAMES = {
    "garbage": b"\x00\x00\x00\x05\xff\xff\xff\xff\xff",
    "nothing": b"\x00\x00\x00\x00",
    "an enormous length": b"\xff\xff\xff\xff" + bytes(100),
    "too long": (16 * KIB + 1).to_bytes(4, "big") + bytes(20_000),
    "cut within": b"\x00\x00\x10\x00abc",
    "cut within its length": b"\x00\x00",
}


@pytest.mark.parametrize("protocol", [hello.PROTOCOL, joining.PROTOCOL])
async def test_broken_frames_at_the_door_let_nobody_in(protocol: str) -> None:
    desk = InviteDesk(ALICE, chain_of(ALICE), MESH, "plant")
    # So long that whoever goes before was cut, or left.
    limits = GuestLimits(stay_s=60.0)
    answered: list[str] = []

    async def send(what: str, number: int) -> None:
        async with guest_of(alice, key(number)) as (_, conn):
            stream = await ask_for(conn, protocol)
            await stream.write(BROKEN_FRAMES[what])
            await stream.close_write()
            if answer := await ended(stream):
                told = hello.judge_answer(answer[4:], ALICE.peer_id, mesh=MESH, now_ms=NOW_MS)
                assert isinstance(told, hello.Refused)
                assert told.code == "malformed"
                answered.append(what)
                await until(lambda: conn.is_closed)

    async with open_peer(ALICE, door_of(ALICE, desk=desk), guests=limits) as alice:
        async with trio.open_nursery() as nursery:
            for number, what in enumerate(BROKEN_FRAMES):
                nursery.start_soon(send, what, 60 + number)

        # hello says what is wrong with a frame that came whole; all else is answered by an end
        assert sorted(answered) == (["garbage", "nothing"] if protocol == hello.PROTOCOL else [])
        await until(lambda: nobody_in(alice))
        assert alice.seen.opened_visits == []
        async with open_peer(BOB) as bob:
            await bob.dial(alice)


async def test_who_shows_a_valid_hello_and_does_not_confirm_is_cut_at_the_limit() -> None:
    async with open_peer(ALICE, guests=GuestLimits(stay_s=0.6)) as alice:
        alice.host.set_handler("/test/secret/1", lambda _peer, stream: stream.write(b"secret"))
        async with guest_of(alice, BOB) as (_, conn):
            stream = await ask_for(conn, hello.PROTOCOL)
            await write_frame(stream, door_of(BOB).greeting())
            answer = await read_frame(stream)
            judged = hello.judge_answer(answer, ALICE.peer_id, mesh=MESH, now_ms=NOW_MS)
            assert isinstance(judged, hello.Accepted), "it is answered, and no more"
            assert [visit.state for visit in alice.host.gate.visits()] == ["answering"]
            assert alice.swarm.connections == {}

            await until(lambda: conn.is_closed)
        assert alice.seen.opened_visits == []
        await until(lambda: nobody_in(alice))


async def test_a_confirmation_that_is_none_does_not_open() -> None:
    async with open_peer(ALICE, guests=GuestLimits(stay_s=0.6)) as alice:
        async with guest_of(alice, BOB) as (_, conn):
            stream = await ask_for(conn, hello.PROTOCOL)
            await write_frame(stream, door_of(BOB).greeting())
            await read_frame(stream)
            await write_frame(stream, b"certainly")
            assert await ended(stream) == b""
            await until(lambda: conn.is_closed)
        assert alice.seen.opened_visits == []


async def test_a_silent_guest_is_cut_at_the_limit_and_not_before_it_may_speak() -> None:
    async with open_peer(ALICE, guests=GuestLimits(stay_s=0.6)) as alice:
        async with guest_of(alice) as (_, conn):
            stream = await ask_for(conn, hello.PROTOCOL)
            assert stream is not None, "until then it may say hello"

            await until(lambda: conn.is_closed)
        await until(lambda: nobody_in(alice))
        assert alice.swarm._inbound_limiter.borrowed_tokens == 0


async def many_small(conn: Any) -> None:
    stream = await ask_for(conn, hello.PROTOCOL)
    for _ in range(40):
        await stream.write(bytes(2000))


async def one_large(conn: Any) -> None:
    stream = await conn.new_stream()
    await stream.write(bytes(250_000))


@pytest.mark.parametrize("send", [many_small, one_large])
async def test_a_guest_that_sends_too_much_is_cut(send: Callable[[Any], Awaitable[None]]) -> None:
    guests = GuestLimits(stay_s=60.0)
    async with open_peer(ALICE, guests=guests) as alice, open_peer(BOB) as bob:
        await bob.dial(alice)
        async with guest_of(alice) as (_, conn):
            with trio.fail_after(WITHIN_S), contextlib.suppress(BaseLibp2pError):
                await send(conn)
            await until(lambda: conn.is_closed)
        await until(lambda: alice.is_open_to(bob) and len(alice.host.gate.visits()) == 1)


async def test_of_two_hundred_streams_of_a_guest_no_more_than_four_are_served() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        await bob.dial(alice)
        async with guest_of(alice) as (_, conn):
            served: list[Any] = []
            refused: list[Any] = []

            async def ask() -> None:
                stream = await ask_for(conn, hello.PROTOCOL)
                (refused if stream is None else served).append(stream)

            async with trio.open_nursery() as nursery:
                for _ in range(200):
                    nursery.start_soon(ask)
            # The library's own wish to identify us may be under way, as one of the four.
            assert (len(served), len(refused)) in [(4, 196), (3, 197)]
            await served[0].write(b"\x00\x00\x00\x00")
            assert await ended(served[0]) != b"", "those are answered"
        await until(lambda: alice.is_open_to(bob) and len(alice.host.gate.visits()) == 1)


async def test_of_ten_strangers_eight_are_guests_and_a_member_still_enters() -> None:
    door = door_of(ALICE, known=[BOB.peer_id, key(4).peer_id])
    async with (
        open_peer(ALICE, door, guests=GuestLimits(stay_s=60.0)) as alice,
        open_peer(BOB) as bob,
        open_peer(CAROL) as carol,
        # A member that is slow to say hello takes no place.
        guest_of(alice, key(4)),
    ):
        turned_away: list[PeerId] = []
        stay = trio.Event()

        async def visit(keypair: Keypair, task_status: trio.TaskStatus[None]) -> None:
            async with open_plain(keypair) as plain:
                conn = await dial_plain(plain, alice.host)
                if await ask_for(conn, hello.PROTOCOL) is None:
                    turned_away.append(keypair.peer_id)
                task_status.started()
                await stay.wait()

        async with trio.open_nursery() as nursery:
            for number in range(10):
                await nursery.start(visit, key(100 + number))
            assert turned_away == [key(108).peer_id, key(109).peer_id]
            assert alice.host.gate.refused == 2

            await bob.dial(alice)
            with pytest.raises(Unavailable):
                await carol.dial(alice)
            assert alice.is_open_to(bob)
            stay.set()
        await until(lambda: len(alice.host.gate.visits()) == 2)
        await carol.dial(alice)


BROKEN_WORDS = {
    "nothing": [b""],
    "an empty word": [b"\x00"],
    "a word without its end": [b"\x05hello"],
    "an endless length": [b"\xff" * 11],
    "a word of 16 kB": [b"\x80\x80\x01" + bytes(16_384)],
    "another version": [b"\x13/multistream/2.0.0\n"],
    "a list of all protocols": [b"\x13/multistream/1.0.0\n", b"\x03ls\n"],
    "no text": [b"\x13/multistream/1.0.0\n", b"\x05\xff\xfe\xfd\xfc\n"],
}


async def test_broken_negotiations_are_answered_by_an_end() -> None:
    heard: dict[str, bytes] = {}

    async def send(what: str, number: int) -> None:
        async with guest_of(alice, key(number)) as (_, conn):
            stream = await conn.new_stream()
            for word in BROKEN_WORDS[what]:
                await stream.write(word)
            await stream.close_write()
            heard[what] = await ended(stream)

    async with open_peer(ALICE) as alice:
        async with trio.open_nursery() as nursery:
            for number, what in enumerate(BROKEN_WORDS):
                nursery.start_soon(send, what, 60 + number)

        # An end may overtake the greeting; nothing else is ever said.
        assert set(heard) == set(BROKEN_WORDS)
        assert set(heard.values()) <= {b"", b"\x13" + MULTISTREAM.encode() + b"\n"}
        await until(lambda: nobody_in(alice))
        assert alice.seen.opened_visits == []
        async with open_peer(BOB) as bob:
            await bob.dial(alice)


@pytest.mark.parametrize(
    ("security", "answer"),
    [
        ("/noise", b"\x07/noise\n"),
        ("/tls/1.0.0", b"\x03na\n"),
        ("/secio/1.0.0", b"\x03na\n"),
        ("/plaintext/2.0.0", b"\x03na\n"),
    ],
)
async def test_nothing_but_noise_is_spoken(security: str, answer: bytes) -> None:
    async with open_peer(ALICE) as alice:
        port = int(alice.addresses[0].rsplit("/", 1)[1])
        async with await trio.open_tcp_stream("127.0.0.1", port) as raw:
            greeting = b"\x13/multistream/1.0.0\n"
            await raw.send_all(greeting + bytes([len(security) + 1]) + security.encode() + b"\n")
            heard = b""
            with trio.fail_after(WITHIN_S):
                while len(heard) < len(greeting + answer):
                    heard += await raw.receive_some()
        assert heard == greeting + answer
        assert nobody_in(alice)


async def test_a_device_joins_over_the_door_and_is_a_member_on_its_next_connection() -> None:
    desk = InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant")
    door = door_of(ADMIN, chain=ADMIN_CHAIN, desk=desk)
    granted: list[joining.Grant] = []
    async with open_peer(ADMIN, door) as admin, open_peer(BOB, door_of(BOB, chain=())) as bob:
        invite, _ = desk.mint(b"\x11" * 32, admin.addresses, uses=1, expires_s=60, now_ms=NOW_MS)

        def step(heard: bytes | None) -> bytes | None:
            if heard is None:
                return joining.ask(invite)
            try:
                return joining.prove(heard, invite, BOB.peer_id)
            except CoveyError:
                granted.append(joining.granted(heard))
                return None

        await bob.host.gate.join(admin.id, admin.addresses[0], step, timeout_s=10)

        assert len(granted) == 1
        await until(lambda: nobody_in(admin) and nobody_in(bob))
        assert admin.seen.opened_visits == []
        async with open_peer(BOB, door_of(BOB, chain=granted[0].chain)) as member:
            await member.dial(admin)
            await until(lambda: admin.is_open_to(member))


async def test_the_librarys_own_wish_to_dial_is_refused_for_who_is_not_connected() -> None:
    async with open_peer(ALICE) as alice, open_peer(BOB) as bob:
        store = alice.host.libp2p.get_peerstore()
        store.add_addrs(id_of(bob.id), list(bob.host.libp2p.get_addrs()), 100)
        with pytest.raises(Exception, match="only links dial"):
            await alice.host.libp2p.new_stream(id_of(bob.id), ["/test/echo/1"])
        assert nobody_in(bob)
        await alice.dial(bob)
        assert await alice.swarm.dial_peer(id_of(bob.id)) == alice.swarm.get_connections()
