"""When the directory has nobody: the DHT's hints are asked, then calls widen until someone answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import key

from covey.gossip.bidding import EVERYONE, Ask, Bid, Call, Pass, threshold_for
from covey.gossip.search import (
    ASK_S,
    FOUND_MAX,
    FOUND_S,
    GATHER_S_MAX,
    HINTS_MAX,
    LOOKUP_S,
    ROUND_S,
    SEARCHES_MAX,
    WANTED_S,
    AskPeer,
    CallOut,
    LookUp,
    Search,
    SearchEffect,
)
from covey.gossip.task import Need
from covey.identity.keys import PeerId

ME, BOB, CAROL, DAVE = (key(n).peer_id for n in (1, 2, 3, 4))
NEED = Need("chat", labels=(("line", "7"),))


class Seeker:
    """One search, and the clock that it is stepped by."""

    def __init__(self, *, dht: bool = True, calls: bool = True, members: int = 100) -> None:
        self.now = 0.0
        self.zone_links: list[PeerId] = []
        self.core = Search(
            ME,
            members=lambda: members,
            zone_links=lambda _zone: self.zone_links,
            has_dht=dht,
            has_calls=calls,
            salt=b"salt",
        )

    def want(self, need: Need = NEED, left_s: float = 60.0) -> str:
        return self.core.want(need, self.now, left_s)

    def tick(self, after_s: float = 0.0) -> list[SearchEffect]:
        self.now += after_s
        return self.core.tick(self.now)

    def cry(self, after_s: float = 0.0) -> Call:
        (effect,) = self.tick(after_s)
        assert isinstance(effect, CallOut)
        return effect.call

    def found(self, need: Need = NEED) -> list[tuple[PeerId, str]]:
        return [(one.peer, one.by) for one in self.core.found(need, self.now)]

    def hints(self, *peers: PeerId) -> list[Ask]:
        """Begin, and let the DHT name these; returns who is asked what."""
        self.want()
        assert self.tick() == [LookUp(NEED)]
        effects = self.core.looked_up(NEED, peers, self.now)
        assert all(isinstance(one, AskPeer) for one in effects)
        return [one.ask for one in effects if isinstance(one, AskPeer)]


def bid(call: bytes, starts_in_ms: int = 0, run_ms: int = 10) -> Bid:
    return Bid(call, starts_in_ms, run_ms)


def test_what_may_not_leave_this_device_is_not_searched_for() -> None:
    seeker = Seeker()
    assert seeker.want(Need("chat", zone="device")) == ""
    assert seeker.tick() == []


def test_without_dht_and_calls_there_is_nothing_to_do() -> None:
    seeker = Seeker(dht=False, calls=False)
    assert seeker.want() == ""
    assert seeker.tick() == []


def test_a_hint_is_asked_and_is_a_candidate_only_once_it_says_so_itself() -> None:
    seeker = Seeker()
    ask, again = seeker.hints(BOB, CAROL)
    assert (ask, ask.call.need, ask.call.left_ms) == (again, NEED, 60_000)
    assert seeker.found() == []
    assert seeker.core.answered(CAROL, Pass(ask.call.id, "no label line=7"), seeker.now) == []
    assert seeker.core.answered(BOB, bid(ask.call.id), seeker.now) == []
    assert seeker.found() == [(BOB, "dht")]
    assert seeker.core.take_changed()
    assert not seeker.core.take_changed()


def test_a_peer_that_was_not_asked_is_not_believed() -> None:
    seeker = Seeker()
    (ask,) = seeker.hints(BOB)
    seeker.core.answered(DAVE, bid(ask.call.id), seeker.now)
    seeker.core.answered(BOB, bid(b"other call 12345"), seeker.now)
    assert seeker.found() == []


@pytest.mark.parametrize("how", ["nobody named", "all pass", "unreachable", "silent", "no answer"])
def test_hints_that_lead_nowhere_lead_on_to_a_call(how: str) -> None:
    seeker = Seeker()
    effects: list[SearchEffect]
    if how == "nobody named":
        seeker.want()
        seeker.tick()
        effects = seeker.core.looked_up(NEED, [ME], seeker.now)
    elif how == "no answer":
        seeker.want()
        seeker.tick()
        effects = seeker.tick(LOOKUP_S)
    else:
        ask, _ = seeker.hints(BOB, CAROL)
        if how == "all pass":
            assert seeker.core.answered(BOB, Pass(ask.call.id, "no"), seeker.now) == []
            effects = seeker.core.answered(CAROL, Pass(ask.call.id, "no"), seeker.now)
        elif how == "unreachable":
            assert seeker.core.unreachable(BOB, ask.call.id, seeker.now) == []
            effects = seeker.core.unreachable(CAROL, ask.call.id, seeker.now)
        else:
            effects = seeker.tick(ASK_S)
    (cry,) = effects
    assert isinstance(cry, CallOut)
    assert (cry.to, cry.call.need, cry.call.threshold) == (None, NEED, threshold_for(100))


def test_a_call_is_widened_eight_times_on_silence_until_all_were_asked() -> None:
    seeker = Seeker(dht=False, members=1000)
    assert seeker.want() == "searching"
    calls = [seeker.cry(), *(seeker.cry(ROUND_S) for _ in range(3))]
    first = threshold_for(1000)
    assert [call.threshold for call in calls] == [first, first * 8, first * 64, EVERYONE]
    assert len({call.id for call in calls}) == 1
    assert seeker.want() == "calling for bids"
    assert seeker.tick(ROUND_S) == []
    assert seeker.want() == "no call for bids found anyone; searched again in 5 s"
    again = seeker.cry(5.0)
    assert again.id != calls[0].id


def test_the_best_of_those_that_answer_in_time_comes_first() -> None:
    seeker = Seeker(dht=False)
    seeker.want()
    call = seeker.cry().id
    seeker.core.take_changed()
    seeker.now += 1.0
    seeker.core.answered(BOB, bid(call, starts_in_ms=500), seeker.now)
    seeker.now += GATHER_S_MAX / 2
    seeker.core.answered(CAROL, bid(call, starts_in_ms=0), seeker.now)
    assert not seeker.core.take_changed()
    seeker.tick(GATHER_S_MAX)
    assert seeker.core.take_changed()
    assert seeker.found() == [(CAROL, "bid"), (BOB, "bid")]


def test_of_the_whole_small_mesh_nothing_more_is_waited_for() -> None:
    seeker = Seeker(dht=False, members=2)
    seeker.want()
    seeker.core.take_changed()
    seeker.core.answered(BOB, bid(seeker.cry().id), seeker.now)
    assert seeker.core.take_changed()
    assert seeker.want() == ""


def test_what_was_found_serves_the_next_task_whatever_its_size() -> None:
    seeker = Seeker(dht=False, members=2)
    seeker.want()
    seeker.core.answered(BOB, bid(seeker.cry().id), seeker.now)
    other = Need("chat", labels=(("line", "7"),), size_bytes=999)
    assert seeker.found(other) == [(BOB, "bid")]
    assert seeker.tick(FOUND_S - 1) == []
    assert seeker.found() == [(BOB, "bid")]
    seeker.tick(1.0)
    assert seeker.found() == []


def test_a_found_peer_that_is_cut_off_is_searched_for_anew() -> None:
    seeker = Seeker(dht=False, members=2)
    seeker.want()
    first = seeker.cry()
    seeker.core.answered(BOB, bid(first.id), seeker.now)
    seeker.core.link_down(BOB, seeker.now)
    assert seeker.found() == []
    assert seeker.cry(1.0).id != first.id


def test_someone_new_in_reach_ends_the_rest() -> None:
    seeker = Seeker(dht=False, members=2)
    seeker.want()
    seeker.cry()
    assert seeker.tick(ROUND_S) == []
    seeker.core.link_up(seeker.now)
    assert seeker.tick() == []
    assert seeker.cry(1.0).need == NEED


def test_in_a_narrower_zone_only_its_linked_members_are_called_and_no_dht_is_asked() -> None:
    seeker = Seeker()
    seeker.zone_links = [CAROL, BOB]
    need = Need("chat", zone="plant-7")
    seeker.want(need)
    (cry,) = seeker.tick()
    assert isinstance(cry, CallOut)
    assert cry.to == tuple(sorted((BOB, CAROL)))
    seeker.zone_links = []
    assert seeker.tick(ROUND_S) == []
    assert "no call for bids found anyone" in seeker.want(need)


def test_what_nobody_wants_any_more_is_given_up() -> None:
    seeker = Seeker(dht=False, members=2)
    seeker.want()
    for _ in range(20):
        seeker.tick(WANTED_S / 4)
    assert seeker.core.deadline == float("inf")


def test_lying_and_flooding_peers_are_bounded() -> None:
    seeker = Seeker(members=10_000)
    many = [key(n).peer_id for n in range(10, 10 + 2 * FOUND_MAX)]
    assert len(seeker.hints(*many)) == HINTS_MAX
    seeker.tick(ASK_S)
    call = seeker.cry(ROUND_S)
    for peer in many:
        seeker.core.answered(peer, bid(call.id), seeker.now)
    assert len(seeker.found()) <= FOUND_MAX
    said = [seeker.want(Need(f"skill-{n}")) for n in range(2 * SEARCHES_MAX)]
    assert "searched for already" in said[-1]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["want", "tick", "hints", "bid", "pass", "gone", "up", "down"]),
        st.integers(0, 3),
        st.floats(0, 40),
    ),
    max_size=60,
)


@given(EVENTS)
def test_whatever_comes_in_whatever_order_a_search_goes_on(
    events: list[tuple[str, int, float]],
) -> None:
    seeker = Seeker(members=50)
    peers = [BOB, CAROL, DAVE, key(9).peer_id]
    calls = [b"x" * 16]
    for what, which, after_s in events:
        seeker.now += after_s
        peer, call = peers[which], calls[-1 - which % len(calls)]
        effects: list[SearchEffect] = []
        match what:
            case "want":
                seeker.want(NEED if which else Need("classify"))
            case "tick":
                effects = seeker.tick()
            case "hints":
                effects = seeker.core.looked_up(NEED, peers[:which], seeker.now)
            case "bid":
                effects = seeker.core.answered(peer, bid(call), seeker.now)
            case "pass":
                effects = seeker.core.answered(peer, Pass(call, "no"), seeker.now)
            case "gone":
                effects = seeker.core.unreachable(peer, call, seeker.now)
            case "up":
                seeker.core.link_up(seeker.now)
            case _:
                seeker.core.link_down(peer, seeker.now)
        calls += [one.call.id for one in effects if isinstance(one, CallOut)]
        calls += [one.ask.call.id for one in effects if isinstance(one, AskPeer)]
        # Two kinds of need: neither may be doubled, nor an answer be its own cause.
        assert len([one for one in effects if isinstance(one, CallOut | LookUp)]) <= 2
        assert seeker.core.tick(seeker.now) == [] or what != "tick"
        assert all(one.peer != ME for one in seeker.core.found(NEED, seeker.now))
    # Once the world is quiet, it rests, and gives up what nobody wants.
    for _ in range(200):
        seeker.tick(10.0)
    assert seeker.core.deadline == float("inf")
