"""A thousand shipped bidders and one that needs something: what a call for bids costs, and finds.

Shipped: `Search`, `Bidder`, `SearchingFinder`. Models: gossip, which brings a message to everyone
after a while, or loses it; links, which carry answers; dials that take time. Time is virtual.
"""

import heapq
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random

import pytest

from covey.gossip.bidding import (
    EVERYONE,
    Answer,
    Ask,
    Bidder,
    Call,
    Calls,
    Outlook,
    Pass,
    lot,
    threshold_for,
)
from covey.gossip.network import LinkInfo
from covey.gossip.routing import Candidate, Nobody, SearchingFinder
from covey.gossip.search import AskPeer, CallOut, LookUp, Search, SearchEffect
from covey.gossip.task import Need
from covey.identity.certificate import Member
from covey.identity.keys import PeerId

SEEDS = range(6)
PEERS = 1000
NEED = Need("chat", labels=(("line", "7"),), size_bytes=100)


def member(number: int, zones: Collection[str] = ()) -> Member:
    peer = PeerId(f"12D3Koo{number:045d}")
    return Member(peer, "member", frozenset(zones), 0, 1 << 60, 1 << 60)


class Knows:
    """A directory that knows nobody."""

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        return Nobody("no peer known offers it")


@dataclass
class Field:
    """One caller among many bidders."""

    seed: int
    able: frozenset[int]
    zones: dict[int, Collection[str]] = field(default_factory=dict[int, Collection[str]])
    linked: frozenset[int] = frozenset()
    hints: tuple[int, ...] = ()
    has_dht: bool = False
    loss: float = 0.0
    gossip_s: float = 0.5
    peers: int = PEERS
    now: float = 0.0
    gossips: int = 0
    over_links: int = 0
    asks: int = 0
    answers: int = 0
    heard: set[int] = field(default_factory=set[int])
    found_at: float = math.inf
    candidate: Candidate | None = None

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.members = [member(n, self.zones.get(n, ())) for n in range(self.peers + 1)]
        self.number = {one.peer: n for n, one in enumerate(self.members)}
        self.me = self.members[0]
        self.bidders = [
            Bidder(one, self._lacks(n), self._outlook(n)) for n, one in enumerate(self.members)
        ]
        self.search = Search(
            self.me.peer,
            members=lambda: self.peers + 1,
            zone_links=self._zone_links,
            has_dht=self.has_dht,
            has_calls=True,
            salt=self.seed.to_bytes(8, "big"),
        )
        self.links = {self.members[n].peer for n in self.linked}
        self.finder = SearchingFinder(Knows(), self.search, self._links, self._member, lambda: None)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def _lacks(self, number: int) -> Callable[[PeerId, Need], str | None]:
        return lambda _caller, _need: None if number in self.able else "it does not offer it"

    def _outlook(self, number: int) -> Callable[[Need], Outlook]:
        return lambda _need: Outlook(starts_in_ms=number % 7 * 100, run_ms=50)

    def _zone_links(self, zone: str) -> list[PeerId]:
        return [p for p in self.links if self.members[self.number[p]].is_in(zone)]

    def _links(self) -> dict[PeerId, LinkInfo]:
        return {peer: LinkInfo(peer, 1.0, 0.0, "", inbound=False) for peer in self.links}

    def _member(self, peer: PeerId) -> Member:
        return self.members[self.number[peer]]

    def run(self, need: Need, until: float, exclude: Collection[PeerId] = ()) -> None:
        """Look for the need, as an origin does, until someone is found or the time is over."""
        self._later(0.0, lambda: self._place(need, exclude))
        while self._heap and self.candidate is None:
            due = min(self._heap[0][0], self.search.deadline)
            if due > until:
                return
            self.now = max(self.now, due)
            if self.search.deadline <= self.now:
                self._carry_out(self.search.tick(self.now))
            else:
                heapq.heappop(self._heap)[2]()
            if self.search.take_changed():
                self._place(need, exclude)

    def _place(self, need: Need, exclude: Collection[PeerId]) -> None:
        found = self.finder.find(need, exclude, self.now, 600.0)
        if isinstance(found, Candidate):
            self.candidate, self.found_at = found, self.now
        else:
            self._later(30.0, lambda: self._place(need, exclude))

    def _later(self, delay_s: float, work: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), work))

    def _carry_out(self, effects: list[SearchEffect]) -> None:
        for effect in effects:
            match effect:
                case LookUp(need):
                    self._later(0.1, partial(self._look_up, need))
                case AskPeer(to, ask):
                    self.asks += 1
                    self._ask(self.number[to], ask)
                case CallOut(call, None):
                    self.gossips += 1
                    for n in range(1, self.peers + 1):
                        self._bring(n, call)
                case CallOut(call, to):
                    for peer in to or ():
                        self.over_links += 1
                        self._bring(self.number[peer], call)

    def _look_up(self, need: Need) -> None:
        hints = [self.members[n].peer for n in self.hints]
        self._carry_out(self.search.looked_up(need, hints, self.now))

    def _bring(self, number: int, call: Call) -> None:
        if self.random.random() < self.loss:
            return

        def arrive() -> None:
            self.heard.add(number)
            for answer in self.bidders[number].called(self.me, Calls((call,)), self.now):
                self._answer(number, answer)

        self._later(self.random.uniform(0.005, self.gossip_s), arrive)

    def _ask(self, number: int, ask: Ask) -> None:
        if number >= self.peers:
            # Long gone: it cannot be dialled.
            peer, call = self.members[number].peer, ask.call.id
            self._later(1.0, lambda: self._carry_out(self.search.unreachable(peer, call, self.now)))
            return
        self._later(0.02, lambda: self._answer(number, self.bidders[number].asked(self.me, ask)))

    def _answer(self, number: int, answer: Answer) -> None:
        assert answer.to == self.me.peer
        self.answers += 1
        if self.random.random() < self.loss:
            return

        def arrive() -> None:
            self.links.add(self.members[number].peer)
            self._carry_out(
                self.search.answered(self.members[number].peer, answer.message, self.now)
            )

        self._later(self.random.uniform(0.002, 0.1), arrive)


def some(able: int, seed: int) -> frozenset[int]:
    return frozenset(Random(seed).sample(range(1, PEERS + 1), able))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("able", [1, 3, 10, 60, 250, 1000])
def test_who_can_do_it_is_found_and_the_answers_stay_few(seed: int, able: int) -> None:
    field = Field(seed, some(able, seed))
    field.run(NEED, until=60.0)
    assert field.candidate is not None
    assert field.number[field.candidate.peer] in field.able
    assert field.candidate.way == "bid"
    # Eight, sixty-four, five hundred and twelve, all: a message each.
    assert field.gossips <= 4
    assert field.answers <= 48
    assert field.found_at <= 4 * 2.5


def test_of_those_that_answered_in_time_the_one_that_is_done_first_wins() -> None:
    in_time: list[int] = []
    for seed in SEEDS:
        field = Field(seed, frozenset(range(1, PEERS + 1)), gossip_s=0.1)
        field.run(NEED, until=60.0)
        assert field.candidate is not None
        others = [one.peer for one in field.search.found(NEED, field.now)]
        best = min(field.number[one] % 7 for one in others)
        assert field.number[field.candidate.peer] % 7 == best
        in_time.append(len(others))
    assert max(in_time) > 3


@pytest.mark.parametrize("seed", SEEDS)
def test_lost_messages_cost_time_and_not_the_answer(seed: int) -> None:
    field = Field(seed, some(20, seed), loss=0.4)
    field.run(NEED, until=120.0)
    assert field.candidate is not None


@pytest.mark.parametrize("seed", SEEDS)
def test_when_nobody_can_the_calls_become_rarer(seed: int) -> None:
    field = Field(seed, frozenset())
    field.run(NEED, until=3600.0)
    assert field.candidate is None
    assert field.answers == 0
    # Four messages each time: within the hour at 5, 10, 20, ... up to 300 s apart.
    assert field.gossips <= 4 * 20


@pytest.mark.parametrize("seed", SEEDS)
def test_a_need_of_a_zone_reaches_nobody_outside_it(seed: int) -> None:
    inside = some(40, seed)
    field = Field(
        seed,
        able=frozenset(range(1, PEERS + 1)),
        zones={0: {"plant-7"}, **{n: {"plant-7"} for n in inside}},
        linked=some(100, seed + 1) | frozenset(sorted(inside)[:10]),
    )
    field.run(Need("chat", zone="plant-7"), until=60.0)
    assert field.candidate is not None
    assert field.number[field.candidate.peer] in inside
    assert field.gossips == 0
    assert field.heard <= inside


def test_who_is_not_in_the_zone_gets_no_answer_even_if_it_calls_and_asks() -> None:
    outsider, insider = member(1), member(2, {"plant-7"})
    bidder = Bidder(insider, lambda _caller, _need: None, lambda _need: Outlook(0, 0))
    call = Call(b"c" * 16, Need("chat", zone="plant-7"), 60_000, EVERYONE)
    assert bidder.called(outsider, Calls((call,)), 0.0) == []
    answer = bidder.asked(outsider, Ask(call))
    assert answer.message == Pass(call.id, "zone 'plant-7' does not hold both")


def test_a_hint_of_the_dht_spares_the_call() -> None:
    field = Field(1, some(3, 1), has_dht=True, hints=tuple(some(3, 1)))
    field.run(NEED, until=60.0)
    assert field.candidate is not None
    assert (field.candidate.way, field.gossips, field.asks) == ("dht", 0, 3)


def test_hints_that_are_stale_or_dead_lead_on_to_the_call() -> None:
    stale = next(n for n in range(1, PEERS) if n not in some(3, 1))
    field = Field(1, some(3, 1), has_dht=True, hints=(stale, PEERS))
    field.able -= {PEERS}
    field.run(NEED, until=60.0)
    assert field.candidate is not None
    assert field.candidate.way == "bid"


def test_about_eight_draw_a_lot_below_the_threshold() -> None:
    peers = [member(n).peer for n in range(PEERS)]
    drawn = [
        sum(lot(bytes([call]) * 16, peer) < threshold_for(PEERS) for peer in peers)
        for call in range(200)
    ]
    assert 7.0 < sum(drawn) / len(drawn) < 9.0
    assert max(drawn) <= 24
    assert threshold_for(3) == EVERYONE
