"""How searches and bids leave and arrive: by gossip in few messages, over links, dialled if needed."""

from collections.abc import AsyncGenerator, Callable, Collection
from contextlib import asynccontextmanager

import pytest
import trio
from test_gossip.delivery_ports import MemoryNetwork
from test_gossip.members import MESH, NOW_MS, chain_of, key

from covey.gossip.bidding import (
    CALLS_MAX,
    CHANNEL,
    EVERYONE,
    TOPIC,
    Ask,
    Bid,
    Bidder,
    BidMessage,
    Call,
    Calls,
    Outlook,
    Pass,
    decode_message,
    encode_message,
)
from covey.gossip.pubsub import Heard
from covey.gossip.search import Search
from covey.gossip.seeking import Seeking
from covey.gossip.task import LABELS_MAX, Need
from covey.identity.certificate import Member, check_chain
from covey.identity.errors import Unavailable
from covey.identity.keys import Keypair, PeerId

ME, BOB, CAROL = (key(n) for n in (1, 2, 3))
NEED = Need("chat")


def member_of(keypair: Keypair) -> Member:
    return check_chain(chain_of(keypair), mesh=MESH, subject=keypair.peer_id, now_ms=NOW_MS)


class Bids(MemoryNetwork):
    """Links that carry bids."""

    def __init__(self, me: PeerId) -> None:
        super().__init__(me)
        self.told: list[tuple[PeerId, BidMessage]] = []

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        assert channel == CHANNEL
        assert not payload
        if to not in self.links():
            return False
        self.told.append((to, decode_message(body)))
        return True

    def say(self, sender: Keypair, message: BidMessage) -> None:
        self._messages[CHANNEL](sender.peer_id, encode_message(message))


class Town:
    """Gossip that takes a message when a test lets it."""

    def __init__(self) -> None:
        self.cry, self.inbox = trio.open_memory_channel[Heard](16)
        self.published: list[Calls] = []
        self.is_free = True

    async def publish(self, topic: str, body: bytes) -> bool:
        assert topic == TOPIC
        await trio.lowlevel.checkpoint()
        if not self.is_free:
            return False
        message = decode_message(body)
        assert isinstance(message, Calls)
        self.published.append(message)
        return True

    def shout(self, author: Keypair, message: BidMessage) -> None:
        self.cry.send_nowait(Heard(TOPIC, member_of(author), encode_message(message)))


class Rig:
    """One peer's seeking, among links and gossip in memory."""

    def __init__(
        self,
        hints: Collection[PeerId] | Unavailable | None,
        answers: bool,
        answers_calls: bool,
    ) -> None:
        self.network = Bids(ME.peer_id)
        self.town = Town()
        self.wakes = 0
        self.reachable: dict[PeerId, Keypair] = {}
        self.search = Search(
            ME.peer_id,
            members=lambda: 10,
            zone_links=lambda _zone: sorted(self.network.links()),
            has_dht=hints is not None,
            has_calls=True,
            salt=b"salt",
        )
        bidder = Bidder(member_of(ME), lambda _peer, need: lacks(need), lambda _: Outlook(7, 8))

        async def ask_dht(_need: Need) -> Collection[PeerId]:
            await trio.lowlevel.checkpoint()
            if isinstance(hints, Unavailable):
                raise hints
            return hints or ()

        self.seeking = Seeking(
            self.network,
            self.search,
            bidder if answers else None,
            answers_calls=answers_calls,
            hints=None if hints is None else ask_dht,
            reach=self.reach,
            changed=self.changed,
        )

    def changed(self) -> None:
        self.wakes += 1

    async def reach(self, peer: PeerId) -> None:
        await trio.sleep(0.5)
        if peer not in self.reachable:
            raise Unavailable(f"{peer} is at none of its addresses")
        self.network.up(self.reachable[peer])

    def want(self, need: Need = NEED) -> str:
        said = self.search.want(need, trio.current_time(), 60.0)
        self.seeking.poke()
        return said


def lacks(need: Need) -> str | None:
    return None if need.skill == "chat" else "it does not offer it"


@asynccontextmanager
async def running(
    hints: Collection[PeerId] | Unavailable | None = None,
    *,
    answers: bool = True,
    answers_calls: bool = True,
) -> AsyncGenerator[Rig]:
    rig = Rig(hints, answers, answers_calls)
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.seeking.serve, rig.town)
        yield rig
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  (the rig tells nobody of a change)
            await trio.sleep(0.01)


def the_call(rig: Rig) -> Call:
    return rig.town.published[-1].calls[0]


async def test_a_call_goes_out_by_gossip_and_its_answer_wakes_what_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as rig:
        rig.network.up(BOB)
        rig.want()
        await until(lambda: rig.town.published)
        before = rig.wakes
        rig.network.say(BOB, Bid(the_call(rig).id, 0, 5))
        await until(lambda: rig.wakes > before)
        (found,) = rig.search.found(NEED, trio.current_time())
        assert (found.peer, found.by) == (BOB.peer_id, "bid")


async def test_needs_that_come_together_share_a_message(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as rig:
        rig.town.is_free = False
        for n in range(CALLS_MAX + 3):
            rig.want(Need(f"skill-{n}"))
        await trio.sleep(1)
        assert rig.town.published == []
        rig.town.is_free = True
        await until(lambda: len(rig.town.published) == 2)
        assert [len(one.calls) for one in rig.town.published] == [CALLS_MAX, 3]


async def test_long_needs_are_spread_over_messages(
    autojump_clock: trio.testing.MockClock,
) -> None:
    labels = tuple((f"{n:0128d}", "\N{GRINNING FACE}" * 128) for n in range(LABELS_MAX))
    async with running() as rig:
        for n in range(8):
            rig.want(Need(f"skill-{n}", labels=labels))
        await until(lambda: sum(len(one.calls) for one in rig.town.published) == 8)
        assert len(rig.town.published) > 1


@pytest.mark.parametrize("hints", [(), Unavailable("nobody is in the DHT")])
async def test_a_dht_that_knows_nothing_leads_to_a_call(
    hints: Collection[PeerId] | Unavailable, autojump_clock: trio.testing.MockClock
) -> None:
    async with running(hints) as rig:
        rig.want()
        await until(lambda: rig.town.published)


async def test_who_the_dht_names_is_dialled_and_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running([BOB.peer_id, CAROL.peer_id]) as rig:
        rig.reachable[BOB.peer_id] = BOB
        rig.want()
        await until(lambda: rig.network.told)
        ((to, ask),) = rig.network.told
        assert to == BOB.peer_id
        assert isinstance(ask, Ask)
        rig.network.say(BOB, Pass(ask.call.id, "not any more"))
        await until(lambda: rig.town.published)
        assert the_call(rig).id == ask.call.id


async def test_a_call_that_is_heard_is_answered_over_a_link_which_is_made_if_needed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = Call(b"c" * 16, NEED, 60_000, EVERYONE)
    async with running() as rig:
        rig.reachable[BOB.peer_id] = BOB
        rig.town.shout(BOB, Calls((call,)))
        await until(lambda: rig.network.told)
        assert rig.network.told == [(BOB.peer_id, Bid(call.id, 7, 8))]
        # Who cannot be reached is not answered, and that is all.
        rig.town.shout(CAROL, Calls((call,)))
        await trio.sleep(10)
        assert len(rig.network.told) == 1
        assert (rig.seeking.heard, rig.seeking.bids) == (2, 2)


async def test_garbage_and_misplaced_messages_by_gossip_are_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = Call(b"c" * 16, NEED, 60_000, EVERYONE)
    async with running() as rig:
        rig.network.up(BOB)
        rig.town.cry.send_nowait(Heard(TOPIC, member_of(BOB), b"garbage"))
        for message in (Ask(call), Bid(call.id, 0, 0), Pass(call.id, "no")):
            rig.town.shout(BOB, message)
        rig.town.shout(BOB, Calls((call,)))
        await until(lambda: rig.network.told)
        assert rig.network.told == [(BOB.peer_id, Bid(call.id, 7, 8))]


async def test_a_peer_that_answers_no_calls_says_so_when_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = Call(b"c" * 16, NEED, 60_000, EVERYONE)
    async with running(answers=False) as rig:
        rig.network.up(BOB)
        rig.network.say(BOB, Calls((call,)))
        rig.network.say(BOB, Ask(call))
        assert rig.network.told == [(BOB.peer_id, Pass(call.id, "it answers no calls"))]


async def test_a_peer_without_bids_answers_who_asks_it_and_no_call_by_link_or_gossip(
    autojump_clock: trio.testing.MockClock,
) -> None:
    call = Call(b"c" * 16, NEED, 60_000, EVERYONE)
    async with running(answers_calls=False) as rig:
        rig.network.up(BOB)
        rig.network.say(BOB, Calls((call,)))
        rig.town.shout(BOB, Calls((call,)))
        await until(lambda: rig.seeking.heard == 2)
        assert rig.network.told == []
        rig.network.say(BOB, Ask(call))
        assert rig.network.told == [(BOB.peer_id, Bid(call.id, 7, 8))]


async def test_a_zones_call_goes_over_links_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with running() as rig:
        rig.network.up(BOB)
        rig.want(Need("chat", zone="plant-7"))
        await until(lambda: rig.network.told)
        ((to, calls),) = rig.network.told
        assert to == BOB.peer_id
        assert isinstance(calls, Calls)
        await trio.sleep(10)
        assert rig.town.published == []
