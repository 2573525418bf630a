"""What do these lines say, counted?

Facts, trends and recurring shapes, computed; no model is asked.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from .spans import UNITS

SHAPES_SHOWN = 5
SERIES_SHOWN = 4
_ISO = re.compile(r"\b(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)")
_SHORT = re.compile(r"^\[\s*(\d+\.\d+)\]")
_MASKS = (
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?\S*"), ""),
    (re.compile(r"^\[\s*\d+\.\d+\]"), ""),
    (re.compile(r"^[A-Z][a-z]{2}\s+\d{1,2}\s\d\d:\d\d:\d\d"), ""),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{8,}\b"), "#"),
    (re.compile(r"\S*\d\S*"), "#"),
)
_READING = re.compile(
    r"\b([a-z][a-z_]{2,}(?:\s[a-z]{3,})?)\s?(?:of|is|was|at|=|:)?\s?(-?\d+(?:\.\d+)?)\s?("
    + "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
    + r")(?![\w/])"
)


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A number that the lines name several times."""

    name: str
    unit: str
    count: int
    first: float
    last: float
    lowest: float
    highest: float
    trend: str
    """`rising`, `falling` or `steady`: last against first, beyond a tenth of the range."""


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A kind of line that recurs; what differs between them is written `#`."""

    text: str
    count: int


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a summary may state."""

    lines: int
    distinct: int
    first_time: str | None
    last_time: str | None
    shapes: tuple[Shape, ...]
    series: tuple[Series, ...]


@dataclass(slots=True)
class _Values:
    unit: str
    numbers: list[float]


def find_facts(lines: Sequence[str]) -> Facts:
    """Return the facts of non-empty lines."""
    shapes = Counter(shape_of(line) for line in lines)
    times = [time for line in lines if (time := time_of(line)) is not None]
    return Facts(
        lines=len(lines),
        distinct=len(shapes),
        first_time=times[0] if times else None,
        last_time=times[-1] if times else None,
        shapes=tuple(
            Shape(text=text, count=count) for text, count in shapes.most_common(SHAPES_SHOWN)
        ),
        series=_series(lines),
    )


def shape_of(line: str) -> str:
    """Return what a line has in common with others of its kind."""
    for pattern, mask in _MASKS:
        line = pattern.sub(mask, line)
    return re.sub(r"(?:#\s?)+", "# ", " ".join(line.split())).strip()[:160]


def time_of(line: str) -> str | None:
    """Return a line's time: ISO as it stands, or seconds since boot."""
    if (match := _ISO.search(line)) is not None:
        try:
            datetime.fromisoformat(f"{match[1]}T{match[2]}").replace(tzinfo=UTC)
        except ValueError:
            return None
        return f"{match[1]} {match[2]}"
    if (match := _SHORT.match(line)) is not None:
        return f"{float(match[1]):.0f} s after boot"
    return None


def _series(lines: Sequence[str]) -> tuple[Series, ...]:
    values: dict[tuple[str, str], _Values] = {}
    for line in lines:
        for name, number, unit in _READING.findall(line):
            found = values.setdefault((name, unit), _Values(unit, []))
            found.numbers.append(float(number))
    several = [(key, found) for key, found in values.items() if len(found.numbers) > 1]
    several.sort(key=lambda item: len(item[1].numbers), reverse=True)
    return tuple(
        Series(
            name=name,
            unit=unit,
            count=len(found.numbers),
            first=found.numbers[0],
            last=found.numbers[-1],
            lowest=min(found.numbers),
            highest=max(found.numbers),
            trend=trend_of(found.numbers),
        )
        for (name, unit), found in several[:SERIES_SHOWN]
    )


def trend_of(numbers: Sequence[float]) -> str:
    """Tell how a series went: its last third's mean against its first third's."""
    third = max(1, len(numbers) // 3)
    begin = sum(numbers[:third]) / third
    end = sum(numbers[-third:]) / third
    range_ = max(numbers) - min(numbers)
    if range_ == 0 or abs(end - begin) < range_ / 10:
        return "steady"
    return "rising" if end > begin else "falling"
