"""Links over real connections: what they carry, what ends one, and that it ends no other."""

import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from test_gossip.hosts import (
    Linked,
    Peer,
    ask_for,
    dial_plain,
    door_of,
    ended,
    linked,
    open_linked,
    open_peer,
    open_plain,
    until,
)
from test_gossip.members import key

from covey.gossip import hello, links
from covey.gossip.gate import read_frame, write_frame
from covey.gossip.host import Stream
from covey.gossip.link_session import BODY_BYTES_MAX, Frame, FrameReader, Kind, encode_frame
from covey.gossip.links import LinkSettings
from covey.gossip.network import LinkDown, LinkUp, Load, Traffic
from covey.identity.errors import (
    Malformed,
    Misuse,
    NotAdmitted,
    PeerMisbehaved,
    Unavailable,
)
from covey.identity.keys import PeerId
from covey.identity.wire import encode

ALICE, BOB, CAROL = key(1), key(2), key(3)
WORD = "word"


@asynccontextmanager
async def pair(settings: LinkSettings | None = None) -> AsyncGenerator[tuple[Linked, Linked]]:
    """Two members with a link."""
    async with open_linked(ALICE, settings) as alice, open_linked(BOB, settings) as bob:
        await linked(alice, bob)
        yield alice, bob


def note_words(one: Linked) -> list[tuple[PeerId, bytes]]:
    """Return the list that fills with the messages of channel `word`."""
    words: list[tuple[PeerId, bytes]] = []
    one.links.on_message(WORD, lambda sender, body: words.append((sender, body)))
    return words


async def echo(_sender: PeerId, body: bytes) -> bytes:
    return body


async def never(_sender: PeerId, _body: bytes) -> bytes:
    await trio.sleep_forever()
    return b""


async def test_messages_arrive_in_order_both_ways() -> None:
    async with pair() as (alice, bob):
        heard, said = note_words(bob), [b"%d" % number for number in range(200)]
        back = note_words(alice)
        for body in said:
            assert alice.links.send(bob.id, WORD, body)
        assert bob.links.send(alice.id, WORD, b"\x00" * BODY_BYTES_MAX)
        await until(lambda: len(heard) == 200 and back)
        assert heard == [(alice.id, body) for body in said]
        assert back == [(bob.id, b"\x00" * BODY_BYTES_MAX)]
        (up,) = bob.events
        assert isinstance(up, LinkUp)
        assert up.member.peer == alice.id


async def test_requests_are_answered_each_when_it_is_done() -> None:
    async with pair() as (alice, bob):
        turns = {b"slow": trio.Event(), b"quick": trio.Event()}
        order: list[bytes] = []

        async def answer(_sender: PeerId, body: bytes) -> bytes:
            await turns[body].wait()
            return b"to " + body

        async def ask(body: bytes) -> None:
            answers = await alice.links.request(bob.id, "ask", body, timeout_s=10)
            order.append(answers)

        bob.links.on_request("ask", answer)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, b"slow")
            nursery.start_soon(ask, b"quick")
            turns[b"quick"].set()
            await until(lambda: order == [b"to quick"])
            turns[b"slow"].set()
        assert order == [b"to quick", b"to slow"]


@pytest.mark.parametrize("by", ["the deadline", "the asker"])
async def test_a_request_that_ends_early_is_cancelled_on_the_other_side(by: str) -> None:
    async with pair() as (alice, bob):
        began, stopped = trio.Event(), trio.Event()

        async def answer(_sender: PeerId, _body: bytes) -> bytes:
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                stopped.set()

        bob.links.on_request("ask", answer)
        if by == "the deadline":
            with pytest.raises(Unavailable, match=r"no answer within 0.2 s"):
                await alice.links.request(bob.id, "ask", b"", timeout_s=0.2)
        else:
            async with trio.open_nursery() as nursery:

                async def ask() -> None:
                    await alice.links.request(bob.id, "ask", b"", timeout_s=60)

                nursery.start_soon(ask)
                await began.wait()
                nursery.cancel_scope.cancel()
        with trio.fail_after(10):
            await stopped.wait()
        bob.links.on_request("ask", echo)
        assert await alice.links.request(bob.id, "ask", b"next", timeout_s=10) == b"next"
        assert alice.heard() == [("up", bob.id)]


async def test_no_more_requests_than_the_limit_are_under_way() -> None:
    settings = LinkSettings()
    async with pair(settings) as (alice, bob):
        release = trio.Event()
        under_way = 0

        async def answer(_sender: PeerId, _body: bytes) -> bytes:
            nonlocal under_way
            under_way += 1
            await release.wait()
            return b"done"

        bob.links.on_request("ask", answer)
        answers: list[bytes] = []

        async def ask() -> None:
            answers.append(await alice.links.request(bob.id, "ask", b"", timeout_s=20))

        async with trio.open_nursery() as nursery:
            for _ in range(128):
                nursery.start_soon(ask)
            await until(lambda: under_way == 128)
            with pytest.raises(Unavailable, match="128 requests"):
                await alice.links.request(bob.id, "ask", b"", timeout_s=20)
            release.set()
        assert answers == [b"done"] * 128
        assert await alice.links.request(bob.id, "ask", b"", timeout_s=20) == b"done"


async def test_a_full_queue_refuses_and_takes_again_once_it_is_read() -> None:
    async with pair(LinkSettings(queue_frames_max=4)) as (alice, bob):
        heard = note_words(bob)
        # The first pings are answered, and the queue is empty.
        await until(lambda: alice.links.links()[bob.id].round_trip_ms is not None)
        await until(lambda: bob.links.links()[alice.id].round_trip_ms is not None)
        # Nothing is awaited in between, so nothing is written.
        taken = [alice.links.send(bob.id, WORD, b"%d" % number) for number in range(6)]
        assert taken == [True, True, True, True, False, False]
        with pytest.raises(Unavailable, match="too much is queued"):
            await alice.links.request(bob.id, "ask", b"", timeout_s=1)
        await until(lambda: len(heard) == 4)
        assert alice.links.send(bob.id, WORD, b"again")
        await until(lambda: [body for _, body in heard] == [b"0", b"1", b"2", b"3", b"again"])


@pytest.mark.parametrize(
    ("error", "counted", "told"),
    [
        (PeerMisbehaved("someone", "lied"), 2, "refused: someone lied"),
        (Malformed("not a word"), 2, "refused: not a word"),
        (Misuse("no such word"), 1, "refused: no such word"),
        (NotAdmitted("revoked", "not you"), 1, "refused: not you"),
        (ValueError("a mistake"), 0, "refused: an error of the other side's own"),
    ],
)
async def test_a_handler_that_raises_costs_its_message_and_not_the_link(
    error: Exception, counted: int, told: str
) -> None:
    async with pair() as (alice, bob):

        def refuse(_sender: PeerId, _body: bytes) -> None:
            raise error

        async def refuse_to_answer(_sender: PeerId, _body: bytes) -> bytes:
            raise error

        bob.links.on_message("bad", refuse)
        bob.links.on_request("bad", refuse_to_answer)
        heard = note_words(bob)
        assert alice.links.send(bob.id, "bad", b"")
        assert alice.links.send(bob.id, WORD, b"next")
        with pytest.raises(PeerMisbehaved) as caught:
            await alice.links.request(bob.id, "bad", b"", timeout_s=10)
        assert caught.value.what == told
        assert heard == [(alice.id, b"next")]
        assert bob.links.misbehaved == counted
        assert alice.heard() == [("up", bob.id)]


async def test_what_nobody_answers_is_said_at_once() -> None:
    async with pair() as (alice, bob):

        async def too_much(_sender: PeerId, _body: bytes) -> bytes:
            return bytes(BODY_BYTES_MAX + 1)

        bob.links.on_request("large", too_much)
        with pytest.raises(PeerMisbehaved, match="nothing answers on 'none'"):
            await alice.links.request(bob.id, "none", b"", timeout_s=10)
        with pytest.raises(PeerMisbehaved, match="over the limit"):
            await alice.links.request(bob.id, "large", b"", timeout_s=10)
        with pytest.raises(Malformed, match="over the limit"):
            await alice.links.request(bob.id, "large", bytes(BODY_BYTES_MAX + 1), timeout_s=10)
        with pytest.raises(Unavailable, match="is not connected"):
            await alice.links.request(CAROL.peer_id, "none", b"", timeout_s=10)
        assert alice.links.send(CAROL.peer_id, WORD, b"") is False


async def open_raw(member: Peer, other: Linked) -> Stream:
    """Open a link as a member that says what it likes on it."""
    visit = await member.dial(other)
    stream = await member.host.open_stream(visit, links.PROTOCOL)
    await until(lambda: member.id in other.links.links())
    return stream


REQUEST = encode_frame(Frame(Kind.REQUEST, "ask", b"", 7, 60_000))
OVER = (BODY_BYTES_MAX + 14 + 32 + 1).to_bytes(4, "big") + b"\x01" + bytes(13)


@pytest.mark.parametrize(
    ("sent", "counted"),
    [
        pytest.param(b"\xff" * 64, 1, id="garbage"),
        pytest.param(OVER, 1, id="over the limit"),
        pytest.param(encode_frame(Frame(Kind.MESSAGE, WORD, b"x"))[:-1], 0, id="cut within"),
        pytest.param(encode_frame(Frame(Kind.PING, body=b"\xff")), 1, id="a broken ping"),
        pytest.param(REQUEST + REQUEST, 1, id="a number used twice"),
    ],
)
async def test_what_is_no_frame_ends_its_link_and_no_other(sent: bytes, counted: int) -> None:
    async with (
        open_linked(ALICE) as alice,
        open_linked(BOB) as bob,
        open_peer(CAROL) as carol,
    ):
        alice.links.on_request("ask", never)
        await linked(bob, alice)
        stream = await open_raw(carol, alice)

        await stream.write(sent)
        if not counted:
            await stream.reset()

        await until(lambda: carol.id not in alice.links.links())
        await until(lambda: carol.swarm.connections == {})
        assert alice.links.misbehaved == counted
        assert alice.heard() == [("up", bob.id), ("up", carol.id), ("down", carol.id)]
        bob.links.on_request("ask", echo)
        assert await alice.links.request(bob.id, "ask", b"still", timeout_s=10) == b"still"


async def test_a_burst_of_requests_is_bounded_and_a_cancel_right_behind_one_is_heard() -> None:
    async with open_linked(ALICE) as alice, open_peer(CAROL) as carol:
        began: list[bytes] = []
        stopped: list[bytes] = []

        async def answer(_sender: PeerId, body: bytes) -> bytes:
            began.append(body)
            try:
                return await never(_sender, body)
            finally:
                stopped.append(body)

        alice.links.on_request("ask", answer)
        stream = await open_raw(carol, alice)
        burst = [
            encode_frame(Frame(Kind.REQUEST, "ask", b"%d" % number, number, 60_000))
            for number in range(1, 200)
        ]
        # In one write, so that all of it is read before any of it begins.
        await stream.write(b"".join(burst) + encode_frame(Frame(Kind.CANCEL, request=3)))

        reader = FrameReader()
        refused: list[Frame] = []
        with trio.fail_after(10):
            while len(refused) < 71:
                frames = reader.feed(await stream.read(100_000))
                refused += [frame for frame in frames if frame.kind is Kind.FAILURE]
        assert {frame.body for frame in refused} == {b"too many requests at once"}
        assert [frame.request for frame in refused] == list(range(129, 200))
        await until(lambda: stopped == [b"3"])
        assert sorted(began, key=int) == [b"%d" % number for number in range(1, 129)]


async def test_two_that_dial_each_other_at_once_have_one_link_each() -> None:
    async with open_linked(ALICE) as alice, open_linked(BOB) as bob:

        async def dial(one: Linked, other: Linked) -> None:
            try:
                await one.dial(other)
            except (NotAdmitted, Unavailable):
                return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial, alice, bob)
            nursery.start_soon(dial, bob, alice)

        await until(lambda: bob.id in alice.links.links() and alice.id in bob.links.links())
        for one, other in ((alice, bob), (bob, alice)):
            one.links.on_request("ask", echo)
            await until(lambda one=one: len(one.host.gate.visits()) == 1)
            assert one.heard()[-1] == ("up", other.id)
        assert await alice.links.request(bob.id, "ask", b"1", timeout_s=10) == b"1"
        assert await bob.links.request(alice.id, "ask", b"2", timeout_s=10) == b"2"


async def test_a_new_connection_replaces_the_old_and_what_was_asked_on_it_fails() -> None:
    async with (
        open_linked(ALICE) as alice,
        open_linked(BOB) as first,
        open_linked(BOB) as second,
    ):
        first.links.on_request("ask", never)
        second.links.on_request("ask", echo)
        await linked(first, alice)
        failed: list[str] = []

        async def ask() -> None:
            try:
                await alice.links.request(BOB.peer_id, "ask", b"", timeout_s=60)
            except Unavailable as error:
                failed.append(str(error))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await linked(second, alice)

        assert failed == [f"{BOB.peer_id}: its link ended"]
        assert [kind for kind, _ in alice.heard()] == ["up", "down", "up"]
        await until(lambda: first.heard() == [("up", alice.id), ("down", alice.id)])
        assert await alice.links.request(BOB.peer_id, "ask", b"new", timeout_s=10) == b"new"


async def test_a_peer_that_never_reads_holds_a_bounded_queue_and_blocks_nobody() -> None:
    settings = LinkSettings(queue_bytes_max=2 * 1024 * 1024)
    async with (
        open_linked(ALICE, settings) as alice,
        open_linked(BOB) as bob,
        open_peer(CAROL) as carol,
    ):
        bob.links.on_request("ask", echo)
        await linked(alice, bob)
        await open_raw(carol, alice)
        sent = 0
        with trio.fail_after(10):
            while alice.links.send(carol.id, WORD, bytes(64 * 1024)):
                sent += 64 * 1024
                # Another peer is answered in between, however much waits for this one.
                if sent % (1024 * 1024) == 0:
                    body = b"%d" % sent
                    assert await alice.links.request(bob.id, "ask", body, timeout_s=10) == body
        # What the library's window and the sockets hold, and our queue.
        assert 2 * 1024 * 1024 <= sent <= 32 * 1024 * 1024
        assert await alice.links.request(bob.id, "ask", b"after", timeout_s=10) == b"after"


async def test_a_silent_peer_is_dropped_and_one_that_pings_stays() -> None:
    settings = LinkSettings(ping_s=0.1, silent_s=0.8)
    async with (
        open_linked(ALICE, settings) as alice,
        open_linked(BOB, LinkSettings(ping_s=0.1, silent_s=60)) as bob,
        open_peer(CAROL) as carol,
    ):
        await linked(alice, bob)
        await open_raw(carol, alice)

        await until(lambda: carol.id not in alice.links.links())

        down = alice.events[-1]
        assert isinstance(down, LinkDown)
        assert down.peer == carol.id
        assert down.why.startswith("silent for ")
        assert bob.id in alice.links.links()
        await until(lambda: carol.swarm.connections == {})


async def test_a_ping_carries_load_and_measures_the_way() -> None:
    settings = LinkSettings(ping_s=0.1)
    async with (
        open_linked(ALICE, settings, load=Load(running=2, waiting=5)) as alice,
        open_linked(BOB, settings) as bob,
    ):
        await linked(alice, bob)
        await until(lambda: bob.links.links()[alice.id].round_trip_ms is not None)
        info = bob.links.links()[alice.id]
        assert (info.peer, info.inbound, info.load) == (alice.id, True, Load(2, 5))
        assert info.round_trip_ms is not None
        assert 0 < info.round_trip_ms < 5000
        assert alice.links.links()[bob.id].address == bob.host.addresses()[0]
        heard_at = info.heard_at
        await until(lambda: bob.links.links()[alice.id].heard_at > heard_at)


async def test_bytes_are_counted_for_each_channel_as_payload_or_control() -> None:
    async with pair() as (alice, bob):
        heard = note_words(bob)
        bob.links.on_request("ask", echo)
        alice.links.send(bob.id, WORD, bytes(100), payload=True)
        alice.links.send(bob.id, WORD, bytes(10))
        alice.links.send(bob.id, "nobody", bytes(5))
        await alice.links.request(bob.id, "ask", bytes(20), payload=True, timeout_s=10)
        await until(lambda: len(heard) == 2)
        # A frame's head has 14 bytes, and the name of the channel follows it.
        assert alice.links.traffic() == Traffic(
            payload_out={WORD: 118, "ask": 37},
            payload_in={"ask": 37},
            control_out={WORD: 28, "nobody": 25},
        )
        assert bob.links.traffic() == Traffic(
            payload_in={WORD: 118, "ask": 37},
            payload_out={"ask": 37},
            control_in={WORD: 28, links.UNKNOWN_CHANNEL: 25},
        )


async def test_a_member_that_opens_no_link_is_cut() -> None:
    async with (
        open_linked(ALICE, LinkSettings(arrival_s=0.5)) as alice,
        open_peer(CAROL) as carol,
    ):
        await carol.dial(alice)
        await until(lambda: alice.host.gate.open_visit(carol.id) is not None)
        await until(lambda: carol.swarm.connections == {} and not alice.host.gate.visits())
        assert alice.events == []


async def test_a_link_is_opened_by_who_dialled() -> None:
    async with open_linked(ALICE) as alice, open_peer(CAROL) as carol:
        opened: list[Stream] = []

        async def take(_peer: PeerId, stream: Stream) -> None:
            opened.append(stream)
            await trio.sleep_forever()

        carol.host.set_handler(links.PROTOCOL, take)
        await alice.dial(carol)
        await until(lambda: carol.id in alice.links.links())
        (visit,) = carol.host.gate.visits()

        heard = b""
        # A refusal may overtake the answer to the negotiation.
        with contextlib.suppress(Unavailable):
            stream = await carol.host.open_stream(visit, links.PROTOCOL)
            heard = await stream.read(100)

        assert heard == b"", "not even a ping"
        assert alice.heard() == [("up", carol.id)]


async def test_who_has_not_confirmed_its_hello_gets_no_link() -> None:
    async with (
        open_linked(ALICE, LinkSettings(arrival_s=0.3)) as alice,
        open_plain(BOB) as plain,
    ):
        conn = await dial_plain(plain, alice.host)
        stream = await ask_for(conn, hello.PROTOCOL)
        await write_frame(stream, door_of(BOB).greeting())
        await read_frame(stream)

        link = await ask_for(conn, links.PROTOCOL)

        assert await ended(link) == b"", "not even a ping"
        assert alice.events == []
        await write_frame(stream, hello.encode_hello(hello.Confirm()))
        await until(lambda: alice.host.gate.open_visit(BOB.peer_id) is not None)
        link = await ask_for(conn, links.PROTOCOL)
        assert await link.read(1000) == encode_frame(Frame(Kind.PING, body=encode(Load())))


async def test_a_watcher_that_raises_ends_nothing() -> None:
    async with open_linked(ALICE) as alice, open_linked(BOB) as bob:

        def broken(_event: LinkUp | LinkDown) -> None:
            raise ValueError("a mistake")

        told: list[LinkUp | LinkDown] = []
        alice.links.on_link(broken)
        alice.links.on_link(told.append)
        await linked(alice, bob)
        await bob.host.evict(alice.id)
        await until(lambda: alice.heard() == [("up", bob.id), ("down", bob.id)])
        assert told == alice.events
