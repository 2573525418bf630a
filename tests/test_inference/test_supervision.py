"""When a worker counts as dead, when it may start again, and what never runs again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.inference.supervision import POISONED_MAX, Supervision, is_hung


def crashed(*times: float, in_flight: tuple[bytes, ...] = ()) -> Supervision:
    supervision = Supervision()
    for when in times:
        supervision.crashed(when, list(in_flight))
    return supervision


@pytest.mark.parametrize(
    ("crashes", "wait_s"),
    [((), 0.0), ((10.0,), 0.5), ((9.0, 10.0), 2.0), ((8.0, 9.0, 10.0), 8.0)],
)
def test_each_crash_makes_the_next_start_wait_longer(
    crashes: tuple[float, ...], wait_s: float
) -> None:
    supervision = crashed(*crashes)
    assert supervision.wait_s(10.0) == wait_s
    assert supervision.wait_s(10.0 + wait_s / 2) == wait_s / 2
    assert supervision.wait_s(10.0 + wait_s) == 0.0
    assert not supervision.is_quarantined(10.0)


def test_four_crashes_in_five_minutes_set_a_model_aside_until_the_first_is_five_minutes_old() -> (
    None
):
    supervision = crashed(0.0, 100.0, 200.0, 299.0)
    assert supervision.is_quarantined(299.0)
    assert supervision.is_quarantined(299.9)
    assert not supervision.is_quarantined(300.0)
    assert not crashed(0.0, 100.0, 200.0, 301.0).is_quarantined(301.0)


def test_an_hour_without_a_crash_forgives_all() -> None:
    supervision = crashed(0.0, 1.0, 2.0, 3.0)
    assert supervision.wait_s(3600.0) == 0.0
    supervision.crashed(3600.0, [])
    assert supervision.crashes == [3600.0]
    assert supervision.wait_s(3600.0) == 0.5


def test_a_request_under_way_in_two_crashes_is_poisoned_and_stays_so() -> None:
    supervision = crashed(0.0, in_flight=(b"a", b"b"))
    assert not supervision.is_poisoned(b"a")

    supervision.crashed(4000.0, [b"a"])

    assert supervision.is_poisoned(b"a")
    assert not supervision.is_poisoned(b"b")
    assert not supervision.is_poisoned(b"c")


def test_a_request_that_was_answered_since_is_not_a_suspect_any_more() -> None:
    supervision = crashed(0.0, in_flight=(b"bystander",))
    supervision.answered(b"bystander")
    supervision.answered(b"another")

    supervision.crashed(1.0, [b"bystander"])

    assert not supervision.is_poisoned(b"bystander")


@given(st.lists(st.binary(min_size=2, max_size=2), min_size=1, max_size=40))
def test_the_memory_of_suspects_is_bounded_and_keeps_the_newest(in_flight: list[bytes]) -> None:
    supervision = crashed(0.0, in_flight=tuple(n.to_bytes(3, "big") for n in range(POISONED_MAX)))
    supervision.crashed(1.0, in_flight)
    assert len(supervision.suspects) == POISONED_MAX
    assert set(in_flight) <= set(supervision.suspects)


@pytest.mark.parametrize(
    ("now", "deadline", "hung"),
    [
        (8.0, None, False),
        (8.1, None, True),
        (8.0, 1.0, False),
        (5.0, -5.0, False),
        (5.0, -5.1, True),
        (8.1, 100.0, True),
    ],
)
def test_a_worker_is_hung_after_four_silent_pings_or_ten_seconds_over_a_deadline(
    now: float, deadline: float | None, hung: bool
) -> None:
    assert is_hung(now, heard_at=0.0, earliest_deadline=deadline) is hung


def test_how_long_is_a_setting() -> None:
    assert is_hung(0.9, heard_at=0.0, earliest_deadline=None, ping_s=0.2)
    assert is_hung(0.2, heard_at=0.0, earliest_deadline=0.0, grace_s=0.1)
