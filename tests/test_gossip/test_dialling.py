"""Whom to dial and when: for ever, but never in a storm."""

import math
from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import key

from covey.gossip.dialling import BACK_OFF_MAX_S, DIALS_PER_S, NEIGHBOUR_S, Dialling, Race
from covey.identity.keys import PeerId

PEERS = [key(n).peer_id for n in range(1, 13)]
ME = key(99).peer_id
WHERE = ("/ip4/192.0.2.1/tcp/4001",)


def run(dialling: Dialling, start: float, seconds: float) -> list[tuple[float, PeerId]]:
    """Let every dial fail for a while; return who was dialled when."""
    dialled: list[tuple[float, PeerId]] = []
    now = start
    while (due := dialling.deadline) <= start + seconds:
        now = max(now, due)
        for one in dialling.tick(now):
            dialled.append((now, one.peer))
            dialling.failed(one.peer, now)
    return dialled


@given(st.integers(0, 2**32), st.integers(1, 12))
def test_everyone_is_dialled_for_ever_and_never_too_often(seed: int, peers: int) -> None:
    dialling = Dialling(ME, Random(seed))
    for peer in PEERS[:peers]:
        assert dialling.remember(peer, WHERE, 0.0)
    hour = run(dialling, 0.0, 3600.0)
    for at in range(len(hour) - 3):
        assert hour[at + 3][0] - hour[at][0] > 3 / DIALS_PER_S - 1e-6
    for peer in PEERS[:peers]:
        last = [when for when, dialled in hour if dialled == peer][-1]
        assert last > 3600 - 1.3 * BACK_OFF_MAX_S - 10


def test_the_last_neighbours_come_round_every_few_seconds_however_long_the_cut() -> None:
    dialling = Dialling(ME, Random(1))
    for peer in PEERS:
        dialling.remember(peer, WHERE, 0.0)
    near = PEERS[3]
    dialling.connected(near, 1.0)
    dialling.disconnected(near, 2.0)
    times = [when for when, peer in run(dialling, 2.0, 600.0) if peer == near]
    gaps = [later - sooner for sooner, later in pairwise(times[10:])]
    assert max(gaps) < NEIGHBOUR_S * 1.25 + 2


def test_a_neighbour_whose_dial_took_longer_than_the_pause_is_due_at_once() -> None:
    dialling = Dialling(ME, Random(1))
    near = PEERS[3]
    dialling.remember(near, WHERE, 0.0)
    dialling.connected(near, 0.0)
    dialling.disconnected(near, 1.0)
    for _ in range(20):
        began = dialling.deadline
        assert [one.peer for one in dialling.tick(began)] == [near]
        dialling.failed(near, began + 5.0)
        assert dialling.deadline <= began + 5.0, "into a black hole a dial takes 5 s"


def test_any_connection_makes_all_others_due() -> None:
    dialling = Dialling(ME, Random(1))
    for peer in PEERS[:3]:
        dialling.remember(peer, WHERE, 0.0)
    run(dialling, 0.0, 600.0)
    dialling.connected(PEERS[5], 600.0)
    soon = {peer for _, peer in run(dialling, 600.0, 2.5)}
    assert soon == set(PEERS[:3])


def test_nobody_is_dialled_twice_at_once_nor_while_connected_nor_after_being_forgotten() -> None:
    dialling = Dialling(ME, Random(1))
    assert not dialling.remember(ME, WHERE, 0.0), "never oneself"
    dialling.remember(PEERS[0], WHERE, 0.0)
    assert [one.peer for one in dialling.tick(0.0)] == [PEERS[0]]
    assert dialling.deadline == math.inf, "a dial is under way"
    dialling.succeeded(PEERS[0])
    dialling.connected(PEERS[0], 1.0)
    assert dialling.deadline == math.inf
    dialling.disconnected(PEERS[0], 5.0)
    assert 5.0 < dialling.deadline < 6.0, "back in a moment"
    dialling.forget(PEERS[0])
    assert dialling.deadline == math.inf


def test_only_what_is_new_is_worth_storing() -> None:
    dialling = Dialling(ME, Random(1))
    assert not dialling.remember(PEERS[0], (), 0.0)
    assert dialling.remember(PEERS[0], WHERE, 0.0)
    assert not dialling.remember(PEERS[0], WHERE, 0.0)
    assert dialling.remember(PEERS[0], ("/ip4/192.0.2.2/tcp/4001",), 0.0)


SEEN = ("/ip4/10.0.0.7/tcp/4001",)


def test_where_a_member_was_seen_is_tried_beside_what_it_signed_and_in_turn() -> None:
    dialling = Dialling(ME, Random(1))
    dialling.remember(PEERS[0], WHERE, 0.0)
    assert dialling.sighted(PEERS[0], SEEN, 0.0)
    assert dialling.tick(0.0)[0].addresses == (*SEEN, *WHERE)
    dialling.failed(PEERS[0], 1.0)
    due = dialling.deadline
    assert dialling.tick(due)[0].addresses == (*WHERE, *SEEN), "a lie keeps nobody from the truth"
    dialling.withdrawn(PEERS[0])
    assert dialling.addresses(PEERS[0]) == WHERE, "what was signed is never lost"


def test_a_signed_address_that_is_new_leaves_what_was_seen() -> None:
    dialling = Dialling(ME, Random(1))
    dialling.sighted(PEERS[0], SEEN, 0.0)
    assert dialling.remember(PEERS[0], WHERE, 0.0)
    assert dialling.addresses(PEERS[0]) == (*SEEN, *WHERE)
    assert dialling.addresses(PEERS[1]) == ()


def test_who_is_seen_is_due_at_once_however_long_it_was_away() -> None:
    dialling = Dialling(ME, Random(1))
    dialling.remember(PEERS[0], WHERE, 0.0)
    run(dialling, 0.0, 3600.0)
    assert dialling.deadline > 3600.0
    dialling.sighted(PEERS[0], SEEN, 3600.0)
    assert dialling.deadline == 3600.0
    assert not dialling.sighted(PEERS[0], SEEN, 3600.0), "nothing new, and due all the same"


def test_who_is_seen_while_it_is_dialled_elsewhere_is_dialled_again_at_once() -> None:
    dialling = Dialling(ME, Random(1))
    dialling.remember(PEERS[0], WHERE, 0.0)
    dialling.tick(0.0)
    dialling.sighted(PEERS[0], SEEN, 1.0)
    assert dialling.deadline == math.inf, "a dial is under way"
    dialling.failed(PEERS[0], 5.0)
    assert dialling.deadline == 5.0
    dialling.tick(5.0)
    dialling.failed(PEERS[0], 6.0)
    assert dialling.deadline > 6.5, "once, and then by back-off"


def test_a_member_without_any_address_is_dialled_where_it_is_seen_and_never_oneself() -> None:
    dialling = Dialling(ME, Random(1))
    assert not dialling.sighted(ME, SEEN, 0.0)
    assert not dialling.sighted(PEERS[0], (), 0.0)
    assert not dialling.knows(PEERS[0])
    assert dialling.sighted(PEERS[0], SEEN, 0.0)
    assert dialling.knows(PEERS[0])
    assert dialling.tick(0.0)[0].addresses == SEEN


def begun(race: Race, until: float) -> list[tuple[float, str]]:
    """Tick a race whenever it is due; return which address began when."""
    found: list[tuple[float, str]] = []
    while (due := race.deadline) <= until:
        found += [(due, address) for address in race.tick(due)]
    return found


def test_addresses_begin_one_after_the_other_without_waiting_for_an_answer() -> None:
    race = Race(["a", "b", "a", "c"], 10.0, 15.0)
    assert race.tick(9.9) == []
    assert begun(race, 15.0) == [(10.0, "a"), (10.25, "b"), (10.5, "c")], "each once"
    assert (race.deadline, race.tick(15.0)) == (math.inf, [])


def test_an_address_that_fails_lets_the_next_begin_at_once() -> None:
    race = Race(["a", "b", "c"], 10.0, 15.0)
    assert race.tick(10.0) == ["a"]
    race.failed("a", "nobody", 10.1)
    assert begun(race, 10.2) == [(10.1, "b")]
    assert race.deadline == 10.35


def test_the_last_of_many_addresses_has_half_of_the_time() -> None:
    race = Race([str(number) for number in range(32)], 10.0, 15.0)
    began = begun(race, 15.0)
    assert len(began) == 32
    assert 12.0 < began[-1][0] < 12.5


def test_a_race_is_lost_when_every_address_has_failed_and_says_of_each_why() -> None:
    race = Race(["/a", "/b", "/c"], 10.0, 15.0)
    assert begun(race, 10.3) == [(10.0, "/a"), (10.25, "/b")]
    race.failed("/a", "/a is closed", 10.3)
    assert race.reasons() == [
        "/a is closed",
        "no answer from /b within 5 s",
        "/c was not tried within 5 s",
    ]
    race.failed("/b", "nobody", 10.3)
    assert not race.is_lost, "one is left"
    assert race.tick(10.3) == ["/c"]
    assert not race.is_lost, "it is under way"
    race.failed("/c", "closed", 10.4)
    assert race.is_lost
    assert race.reasons() == ["/a is closed", "/b: nobody", "/c: closed"]
