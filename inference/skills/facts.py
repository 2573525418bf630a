"""What do these lines say, counted?

Facts, trends and recurring shapes, computed; no model is asked.
"""

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec

from .spans import NUMBER, PATTERNS, STOP, UNIT, number_of

SHAPES_SHOWN = 5
SERIES_SHOWN = 4
SHAPE_CHARACTERS_MAX = 160
SUBJECT_CHARACTERS_MAX = 64
_ISO = re.compile(r"\b(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)")
_SHORT = re.compile(r"^\[\s*(\d+\.\d+)\]")
_MASKS = (
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?\S*"), ""),
    (re.compile(r"^\[\s*\d+\.\d+\]"), ""),
    (re.compile(r"^[A-Z][a-z]{2}\s+\d{1,2}\s\d\d:\d\d:\d\d"), ""),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{8,}\b"), "#"),
)
_READING = re.compile(
    rf"(?<![\w])([^\W\d_]\w{{2,39}}(?:\s[^\W\d_]{{3,40}})?)\s?(?:of|is|was|at|to|=|:)?\s?({NUMBER})\s?({UNIT})"
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
    subject: str = ""
    """The thing that the lines name before it; the numbers of two things are two series."""
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
    """Return what a line has in common with others of its kind, printable."""
    for pattern, mask in _MASKS:
        line = pattern.sub(mask, line)
    if not line.isprintable():
        line = "".join(sign if sign.isprintable() else " " for sign in line)
    words = ["#" if any(map(_is_digit, word)) else word for word in line.split()]
    return re.sub(r"(?:#\s?)+", "# ", " ".join(words)).strip()[:SHAPE_CHARACTERS_MAX]


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
    values: dict[tuple[str, str, str], list[float]] = {}
    for line in lines:
        for match in _READING.finditer(line):
            name = _name(match[1])
            number = number_of(match[2])
            if name and number is not None:
                key = (_subject(line[: match.start()]), name, match[3])
                values.setdefault(key, []).append(float(number))
    several = [(key, numbers) for key, numbers in values.items() if len(numbers) > 1]
    several.sort(key=lambda item: len(item[1]), reverse=True)
    return tuple(
        Series(
            subject=subject,
            name=name,
            unit=unit,
            count=len(numbers),
            first=numbers[0],
            last=numbers[-1],
            lowest=min(numbers),
            highest=max(numbers),
            trend=trend_of(numbers),
        )
        for (subject, name, unit), numbers in several[:SERIES_SHOWN]
    )


def _name(words: str) -> str:
    """Return the words that name a quantity: without "the", "reports", "rose" around them."""
    return " ".join(word for word in words.split() if word.lower() not in STOP)


def _subject(before: str) -> str:
    """Return the last name of a thing (`pump-3`) in what stands before a reading."""
    named = [
        match.group()
        for match in PATTERNS["identifier"].finditer(before)
        if len(match.group()) <= SUBJECT_CHARACTERS_MAX
        and (any(map(_is_digit, match.group())) or "_" in match.group() or "-" in match.group())
    ]
    return named[-1] if named else ""


def _is_digit(sign: str) -> bool:
    return sign.isdigit()


def trend_of(numbers: Sequence[float]) -> str:
    """Tell how a series went: its last third's mean against its first third's."""
    third = max(1, len(numbers) // 3)
    begin = sum(numbers[:third]) / third
    end = sum(numbers[-third:]) / third
    range_ = max(numbers) - min(numbers)
    if range_ == 0 or abs(end - begin) < range_ / 10:
        return "steady"
    return "rising" if end > begin else "falling"
