"""Is each peer audited in turn, once a day, and not by all peers at one time?"""

from collections import Counter

import pytest
from test_gossip.members import NOW_MS, key

from covey.gossip.memory.kinds import DAY_MS
from covey.identity.keys import PeerId
from covey.peer.memory.auditing import FIRST_LOOK_S, LOOK_S, Audits

ME, *OTHERS = [key(number).peer_id for number in range(1, 6)]
HOUR_MS = DAY_MS // 24


def test_one_peer_a_day_is_audited_and_all_of_them_in_as_many_days() -> None:
    audits = Audits(ME)
    taken = [
        peer
        for hour in range(24 * len(OTHERS) * 3)
        if (peer := audits.take_next(OTHERS, NOW_MS + hour * HOUR_MS)) is not None
    ]
    # Asked at a start, within a day of its own; so the last of these days is one more.
    assert len(OTHERS) * 3 <= len(taken) <= len(OTHERS) * 3 + 1
    for start in (0, 4, 8):
        assert set(taken[start : start + 4]) == set(OTHERS)


def test_a_day_on_which_nobody_was_in_step_is_made_up_for_as_soon_as_somebody_is() -> None:
    audits = Audits(ME)
    assert audits.take_next([], NOW_MS) is None
    assert audits.take_next(OTHERS[:1], NOW_MS + 1) == OTHERS[0]
    assert audits.take_next(OTHERS, NOW_MS + 2) is None


def test_a_clock_that_was_set_back_does_not_end_the_audits() -> None:
    audits = Audits(ME)
    assert audits.take_next(OTHERS, NOW_MS + 400 * DAY_MS) is not None
    assert audits.take_next(OTHERS, NOW_MS) is not None


def test_peers_begin_their_day_at_other_times_and_look_at_other_intervals() -> None:
    hours: Counter[int] = Counter()
    looks: set[float] = set()
    first_looks: set[float] = set()
    for number in range(1, 101):
        audits = Audits(key(number).peer_id)
        first_looks.add(audits.look_s)
        audits.take_next(OTHERS, NOW_MS)
        looks.add(audits.look_s)
        hours[
            next(
                hour
                for hour in range(1, 25)
                if audits.take_next(OTHERS, NOW_MS + hour * HOUR_MS) is not None
            )
        ] += 1
    assert len(hours) >= 20
    assert max(hours.values()) <= 15
    for found, least_s in ((first_looks, FIRST_LOOK_S), (looks, LOOK_S)):
        assert len(found) == 100
        assert min(found) >= least_s
        assert max(found) < 2 * least_s


def test_a_peer_that_is_started_anew_each_day_does_not_always_audit_the_same_one() -> None:
    firsts = {Audits(ME).take_next(OTHERS, NOW_MS + day * DAY_MS) for day in range(30)}
    assert firsts == set(OTHERS)


def run(me: PeerId, from_ms: int, for_s: float, in_step: list[PeerId]) -> list[PeerId]:
    """Start anew, ask as often as it says; return who was audited."""
    audits, at_s = Audits(me), 0.0
    taken: list[PeerId | None] = []
    while (at_s := at_s + audits.look_s) <= for_s:
        taken.append(audits.take_next(in_step, from_ms + round(1000 * at_s)))
    return [peer for peer in taken if peer is not None]


@pytest.mark.parametrize("for_s", [120, 8 * 3600], ids=["two minutes", "eight hours"])
def test_a_device_that_is_started_anew_each_day_audits_each_day_however_short_it_runs(
    for_s: int,
) -> None:
    for number in range(10, 20):
        me = key(number).peer_id
        days = [run(me, NOW_MS + day * DAY_MS, for_s, OTHERS) for day in range(30)]
        # Its own day may begin while it runs.
        assert {len(taken) for taken in days} <= {1, 2}
        assert {peer for taken in days for peer in taken} == set(OTHERS)


def test_whom_nobody_was_in_step_with_since_the_start_keeps_looking_often() -> None:
    audits = Audits(ME)
    first_s = audits.look_s
    for minute in range(100):
        assert audits.take_next([], NOW_MS + 60_000 * minute) is None
        assert audits.look_s == first_s
    assert audits.take_next(OTHERS, NOW_MS + 60_000 * 100) is not None
    assert audits.look_s == pytest.approx(10 * first_s)
