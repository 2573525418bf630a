"""Who answers a call: able members of its zone, below its threshold, once, and not without end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import key

from covey.gossip.bidding import (
    ANSWERED_S,
    BIDS_PER_CALLER_MAX,
    CALLS_MAX,
    EVERYONE,
    Answer,
    Ask,
    Bid,
    Bidder,
    Call,
    Calls,
    Outlook,
    Pass,
    decode_message,
    encode_message,
    lot,
)
from covey.gossip.task import LABELS_MAX, Need
from covey.identity.certificate import Member
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId

LONG = 1 << 60


def member(number: int, *zones: str) -> Member:
    return Member(key(number).peer_id, "member", frozenset(zones), 0, LONG, LONG)


CALLER, ME = member(1, "plant-7"), member(2, "plant-7")


def call(
    number: int = 1, need: Need | None = None, left_ms: int = 60_000, threshold: int = EVERYONE
) -> Call:
    return Call(number.to_bytes(16, "big"), need or Need("chat"), left_ms, threshold)


def bidder(starts_in_ms: int = 0, run_ms: int = 10) -> Bidder:
    def lacks(_caller: PeerId, need: Need) -> str | None:
        return None if need.skill == "chat" else f"it does not offer skill {need.skill!r}"

    return Bidder(ME, lacks, lambda _need: Outlook(starts_in_ms, run_ms))


def test_an_able_peer_bids_with_how_soon_it_could() -> None:
    said = bidder(300, 40).called(CALLER, Calls((call(),)), 0.0)
    assert said == [Answer(CALLER.peer, Bid(call().id, 300, 40))]


@pytest.mark.parametrize(
    "unanswered",
    [
        call(need=Need("rare")),
        call(need=Need("chat", zone="device")),
        call(need=Need("chat", zone="plant-8")),
        call(threshold=lot(call().id, ME.peer)),
        call(left_ms=309),
    ],
)
def test_a_call_that_it_cannot_do_is_not_meant_to_or_not_in_time_is_not_answered(
    unanswered: Call,
) -> None:
    assert bidder(300, 10).called(CALLER, Calls((unanswered,)), 0.0) == []
    assert bidder(300, 10).called(CALLER, Calls((call(),)), 0.0) != []


def test_it_stands_in_the_zones_of_its_newest_certificate() -> None:
    of_zone = Calls((call(need=Need("chat", zone="plant-7")),))
    moved = bidder()
    moved.use(member(2, "plant-8"))
    assert moved.called(CALLER, of_zone, 0.0) == []
    moved.use(member(2, "plant-7"))
    assert moved.called(CALLER, of_zone, 0.0) != []


def test_a_widened_call_is_answered_once() -> None:
    core = bidder()
    threshold = lot(call().id, ME.peer)
    assert core.called(CALLER, Calls((call(threshold=threshold),)), 0.0) == []
    assert len(core.called(CALLER, Calls((call(threshold=threshold + 1),)), 1.0)) == 1
    assert core.called(CALLER, Calls((call(),)), 2.0) == []


def test_its_own_call_comes_back_by_gossip_and_is_not_answered() -> None:
    assert bidder().called(ME, Calls((call(),)), 0.0) == []


def test_who_calls_without_end_is_answered_so_often_a_minute() -> None:
    core = bidder()
    said = [
        len(core.called(CALLER, Calls((call(n),)), n / 1000))
        for n in range(1, 2 * BIDS_PER_CALLER_MAX)
    ]
    assert sum(said) == BIDS_PER_CALLER_MAX
    assert core.called(member(3), Calls((call(1),)), 1.0) != []
    assert core.called(CALLER, Calls((call(9999),)), ANSWERED_S + 1) != []


def test_who_is_asked_says_why_not() -> None:
    said = bidder().asked(CALLER, Ask(call(need=Need("rare"))))
    assert said == Answer(CALLER.peer, Pass(call().id, "it does not offer skill 'rare'"))
    said = bidder(5, 6).asked(CALLER, Ask(call()))
    assert said == Answer(CALLER.peer, Bid(call().id, 5, 6))
    outside = bidder().asked(member(3), Ask(call(need=Need("chat", zone="plant-7"))))
    assert outside.message == Pass(call().id, "zone 'plant-7' does not hold both")


@pytest.mark.parametrize("message", [Calls((call(), call(2))), Ask(call()), Bid(b"b" * 16, 1, 2)])
def test_what_is_sent_is_what_is_read(message: Calls | Ask | Bid) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    "bad",
    [
        Calls(tuple(call(n) for n in range(CALLS_MAX + 1))),
        Calls((call(need=Need("s" * 129)),)),
        Calls((call(need=Need("")),)),
        Calls((call(need=Need("chat", labels=(("a", "b"),) * (LABELS_MAX + 1))),)),
        Calls((call(need=Need("chat", zone="z" * 129)),)),
        Ask(call(need=Need("chat", data="d" * 129))),
        Calls((Call(b"short", Need("chat"), 1, 1),)),
        Calls((Call(b"c" * 16, Need("chat"), 1, EVERYONE + 1),)),
        Bid(b"c" * 16, -1, 0),
        Bid(b"c" * 17, 0, 0),
    ],
)
def test_what_breaks_a_limit_is_refused(bad: Calls | Ask | Bid) -> None:
    with pytest.raises(Malformed):
        decode_message(encode_message(bad))


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_message(data)
