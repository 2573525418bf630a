"""Facts are exact: counts, times, series and trends against a naive recomputation."""

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.inference.skills.facts import (
    SERIES_SHOWN,
    SHAPES_SHOWN,
    Series,
    find_facts,
    shape_of,
    time_of,
    trend_of,
)

KINDS = ("door opened", "pump stopped", "disk full", "user left", "lamp off", "fan on")
numbers = st.decimals(-10_000, 10_000, places=2).map(float)


@given(st.lists(st.sampled_from(KINDS), min_size=1, max_size=40))
def test_lines_and_kinds_are_counted_exactly(kinds: list[str]) -> None:
    lines = [f"2026-01-02 03:04:05 {kind} {at}" for at, kind in enumerate(kinds)]

    facts = find_facts(lines)

    counted = Counter(kinds)
    assert facts.lines == len(kinds)
    assert facts.distinct == len(counted)
    assert len(facts.shapes) == min(SHAPES_SHOWN, len(counted))
    for shape in facts.shapes:
        assert shape.count == counted[shape.text.removesuffix(" #")]
    shown = [shape.count for shape in facts.shapes]
    assert shown == sorted(counted.values(), reverse=True)[:SHAPES_SHOWN]


@given(st.lists(numbers, min_size=2, max_size=30))
def test_a_series_is_exact(values: list[float]) -> None:
    facts = find_facts([f"pump-1 has a pressure of {value} bar" for value in values])

    begin = values[: max(1, len(values) // 3)]
    end = values[-len(begin) :]
    change = sum(end) / len(end) - sum(begin) / len(begin)
    spread = max(values) - min(values)
    moved = spread > 0 and abs(change) >= spread / 10
    assert facts.series == (
        Series(
            subject="pump-1",
            name="pressure",
            unit="bar",
            count=len(values),
            first=values[0],
            last=values[-1],
            lowest=min(values),
            highest=max(values),
            trend=("rising" if change > 0 else "falling") if moved else "steady",
        ),
    )


def test_two_machines_are_two_series() -> None:
    lines = [
        f"pump-{1 + at % 2} temperature: {20 + at if at % 2 else 90 - at} °C" for at in range(8)
    ]

    facts = find_facts(lines)

    assert [(one.subject, one.name, one.trend, one.count) for one in facts.series] == [
        ("pump-1", "temperature", "falling", 4),
        ("pump-2", "temperature", "rising", 4),
    ]


def test_a_name_that_nobody_would_read_is_no_subject() -> None:
    line = f"x-{'y' * 80} level is 5 mm"

    assert [one.subject for one in find_facts([line, line]).series] == [""]


@pytest.mark.parametrize(
    ("line", "name", "value", "unit"),
    [
        ("the temperature is 61.5 °C", "temperature", 61.5, "°C"),
        ("reports pressure of 7,25 bar", "pressure", 7.25, "bar"),
        ("speed rose to 1,250 rpm", "speed", 1250.0, "rpm"),
        ("glucose: 5.4 mmol/L", "glucose", 5.4, "mmol/L"),
        ("latency=12ms", "latency", 12.0, "ms"),
        ("oil level \u22123 mm", "oil level", -3.0, "mm"),
    ],
)
def test_a_reading_is_understood(line: str, name: str, value: float, unit: str) -> None:
    (series,) = find_facts([line, line]).series

    assert (series.name, series.first, series.unit, series.trend) == (name, value, unit, "steady")


@pytest.mark.parametrize(
    "line", ["", "level 5", "at 12:30 all was well", "limit of nothing bar", "level of 1e999 mm"]
)
def test_what_is_no_reading_makes_no_series(line: str) -> None:
    assert find_facts([line, line]).series == ()


def test_no_more_series_are_told_than_a_reader_takes_in() -> None:
    lines = [f"{name} is {at} mm" for name in KINDS for at in range(3)]

    assert len(find_facts(lines).series) == SERIES_SHOWN


@pytest.mark.parametrize(
    ("numbers", "trend"),
    [
        ([1, 1], "steady"),
        ([1, 2], "rising"),
        ([2, 1], "falling"),
        ([1, 9, 1], "steady"),
        ([0, 100, 5], "steady"),
        ([0, 100, 11], "rising"),
        ([5, 5, 5, 4, 4, 4, 3, 3, 3], "falling"),
    ],
)
def test_a_trend_is_the_change_from_the_first_third_to_the_last(
    numbers: list[float], trend: str
) -> None:
    assert trend_of(numbers) == trend


@pytest.mark.parametrize(
    ("line", "shape"),
    [
        ("2026-01-02T03:04:05.678+01:00 job 17 of 20 done", "job # of # done"),
        ("[   12.345] usb 1-2: device 5", "usb # device #"),
        ("Jan  2 03:04:05 host7 up", "# up"),
        ("session deadbeefcafe from 10.0.0.1 port 22", "session # from # port #"),
        ("red\x1b[31m\x00\u202eline", "red # line"),
        ("x" * 500, "x" * 160),
    ],
)
def test_lines_of_one_kind_have_one_shape(line: str, shape: str) -> None:
    assert shape_of(line) == shape


@given(st.text())
def test_a_shape_is_printable_bounded_and_without_digits(line: str) -> None:
    shape = shape_of(line)

    assert shape.isprintable()
    assert len(shape) <= 160
    assert not any(sign.isdigit() for sign in shape)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2026-01-02T03:04:05Z a", "2026-01-02 03:04:05"),
        ("a at 2026-01-02 03:04:05", "2026-01-02 03:04:05"),
        ("[  12.6] a", "13 s after boot"),
        ("2026-13-02 03:04:05 a", None),
        ("2026-01-02 03:04 a", None),
        ("a", None),
    ],
)
def test_the_time_of_a_line_is_as_it_stands(line: str, said: str | None) -> None:
    assert time_of(line) == said


@pytest.mark.parametrize(
    "line",
    ["é" * 8000, "a" * 16000, "1" * 16000, "temperature of " * 1000, "a1 " * 5000, "a_" * 8000],
    ids=lambda line: line[:3],
)
def test_no_line_holds_the_daemon_for_long(line: str) -> None:
    started = time.perf_counter()

    find_facts([line] * 20)

    # Measured: under 0.2 s. What this guards against took minutes.
    assert time.perf_counter() - started < 5.0
