"""Which of a text's spans could be the value of a field, by what the field is called?

General rules, no model: kinds of span by words of the field's name and description; a number with
another unit than the field asks for is not it; a value that stands behind the field's own name is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .spans import UNITS, Span, find_spans, number_of

CANDIDATES_MAX = 24
INTEGER_MAX = 2**63 - 1
# Which kinds of span a field of this name is likely to be; the first that the text has is used.
_HINTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("unit",), ("unit",)),
    (("time", "date", "when", "timestamp"), ("time",)),
    (("ip", "address", "host"), ("address", "identifier", "compound")),
    (("version", "release"), ("version", "identifier")),
    (("path", "file", "directory", "mount"), ("path", "quoted")),
    (("message", "quote", "title"), ("quoted", "word")),
    (("metric", "quantity", "measure", "measured"), ("word",)),
    (("property", "what", "kind", "symptom"), ("word",)),
    (
        (
            "machine",
            "device",
            "sensor",
            "id",
            "name",
            "number",
            "package",
            "service",
            "component",
            "node",
        ),
        ("identifier", "quoted", "compound", "word"),
    ),
)
_ANY = ("identifier", "quoted", "path", "address", "version", "time", "compound", "word", "unit")
_MEASURES = frozenset({"metric", "quantity", "measure"})
# Units that are written in several ways.
_SAME_UNIT = {
    "celsius": "°C",
    "degC": "°C",
    "C": "°C",
    "fahrenheit": "°F",
    "degF": "°F",
    "F": "°F",
    "°K": "K",
    "percent": "%",
    "L": "l",
    "litres": "l",
    "liters": "l",
    "mL": "ml",
    "dL": "dl",
    "second": "s",
    "seconds": "s",
    "sec": "s",
    "minute": "min",
    "minutes": "min",
    "hour": "h",
    "hours": "h",
    "day": "days",
    "week": "weeks",
    "pcs": "pieces",
    "items": "pieces",
    "units": "pieces",
    "μs": "µs",
    "us": "µs",
    "μm": "µm",
    "μg": "µg",
    "mcg": "µg",
    "€": "EUR",
    "$": "USD",
    "£": "GBP",
}
# As words of a description these mean a unit only behind "in".
_ALSO_WORDS = frozenset(
    {"min", "second", "minute", "hour", "day", "week", "hours", "days", "items", "units"}
)
# A number behind one of these is what may not be passed, not what was found.
_BOUND = re.compile(
    r"\b(?:limits?|thresholds?|alarms?|set ?points?|max(?:imum)?|min(?:imum)?|allowed|permitted|"
    r"nominal|rated|target)\b[^.;,\d]{0,12}$",
    re.IGNORECASE,
)
_JOINS = re.compile(r"\s?(?:of|is|was|=|:)?\s?")
# A name behind one of these is beside the point: "after pump-1 stopped, pump-2 showed ...".
_ASIDE = re.compile(
    r"\b(?:after|before|while|because|unlike|than|by|to|until|since|without|instead of)"
    r"(?: the)?\s$",
    re.IGNORECASE,
)
_REACH = 40


@dataclass(frozen=True, slots=True)
class Field:
    """One property of a flat schema."""

    name: str
    type: str
    description: str = ""
    choices: tuple[str, ...] = ()

    @property
    def wants_unit(self) -> bool:
        """Whether the field is a unit."""
        return self.type == "string" and not self.choices and _kinds(self) == ("unit",)

    @property
    def is_measure(self) -> bool:
        """Whether the field says what a number measures."""
        return self.wants_unit or (not self.choices and bool(_MEASURES & _words(self.name)))

    @property
    def unit(self) -> str:
        """The unit that a number of this field has, where its name or description says one."""
        text = f"{self.name.replace('_', ' ')} {self.description}"
        for match in re.finditer(r"(\bin\s)?(?<!\S)\(?([^\s()]+)", text):
            word = match[2].strip(",.;:")
            if word in UNITS and (match[1] or not (word in _ALSO_WORDS or _is_letter(word))):
                return _same(word)
        return ""


def candidates_of(fields: Sequence[Field], text: str) -> Mapping[str, list[Span]]:
    """Return for each field the spans of `text` that could be its value, at most CANDIDATES_MAX."""
    spans = find_spans(text)
    has_unit_field = any(field.wants_unit for field in fields)
    found = {
        field.name: _candidates(field, text, spans, has_unit_field)[:CANDIDATES_MAX]
        for field in fields
    }
    with_number = [field.name for field in fields if field.type in ("number", "integer")]
    numbers = [span for name in with_number for span in found[name]]
    for field in fields:
        if with_number and field.is_measure:
            found[field.name] = _measures(found[field.name], text, numbers)
    return _each_once(found)


def _measures(found: list[Span], text: str, numbers: Sequence[Span]) -> list[Span]:
    """Return what stands right before a number ("speed of 30"), if anything; nothing without one."""
    before = [
        span
        for span in found
        for number in numbers
        if span.end <= number.start and _JOINS.fullmatch(text[span.end : number.start])
    ]
    return list(dict.fromkeys(before)) or (found if numbers else [])


def _each_once(found: dict[str, list[Span]]) -> dict[str, list[Span]]:
    """Take what is surely one field's from the fields that have more to choose from."""
    for name, spans in found.items():
        if len(spans) == 1:
            for other, more in found.items():
                if other != name and len(more) > 1:
                    found[other] = [span for span in more if span != spans[0]]
    return found


def _candidates(field: Field, text: str, spans: Sequence[Span], has_unit_field: bool) -> list[Span]:
    if field.choices:
        return _standing(field.choices, text)
    if field.type == "boolean":
        return _standing(("true", "false"), text)
    if field.type in ("number", "integer"):
        return _numbers(field, text, spans, has_unit_field)
    for kind in _kinds(field):
        if matching := [span for span in spans if span.kind == kind]:
            if kind == "identifier":
                matching = [one for one in matching if not _follows(_ASIDE, text, one)] or matching
            return _behind_name(field, text, matching)
    return []


def _standing(choices: Sequence[str], text: str) -> list[Span]:
    """Return where whole words of the text are a choice, in whatever case."""
    found: list[Span] = []
    for choice in choices:
        pattern = rf"(?<!\w){re.escape(choice)}(?!\w)"
        for match in re.finditer(pattern, text, re.IGNORECASE):
            if match.group().lower() == choice.lower():
                found.append(Span(match.start(), match.end(), choice, "choice"))
                break
    return sorted(found, key=lambda span: span.start)


def _numbers(field: Field, text: str, spans: Sequence[Span], has_unit_field: bool) -> list[Span]:
    found = [
        span
        for span in spans
        if span.kind == "number" and (field.type == "number" or _is_whole(span.text))
    ]
    if field.unit:
        found = [one for one in found if one.unit == "" or _same(one.unit) == field.unit]
    # Each is a preference: a number with the field's unit; beside a field for units, one that has
    # any; and a bound only for a field that is called one.
    wants_bound = _BOUND.search(field.name.replace("_", " ")) is not None
    found = [one for one in found if field.unit and _same(one.unit) == field.unit] or found
    found = [one for one in found if has_unit_field and one.unit] or found
    found = [one for one in found if _follows(_BOUND, text, one) == wants_bound] or found
    return _behind_name(field, text, found)


def _follows(pattern: re.Pattern[str], text: str, span: Span) -> bool:
    return pattern.search(text, max(0, span.start - _REACH), span.start) is not None


def _behind_name(field: Field, text: str, found: list[Span]) -> list[Span]:
    """Return the one candidate that follows the field's name, if just one does; else all."""
    named: dict[int, Span] = {}
    for word in _words(field.name):
        for match in re.finditer(_mention(word), text, re.IGNORECASE):
            following = [one for one in found if one.start >= match.end()]
            if following:
                gap = text[match.end() : following[0].start]
                if len(gap) <= _REACH and not re.search(r"[;!?,]|\.\s|\d", gap):
                    named[following[0].start] = following[0]
    return list(named.values()) if len(named) == 1 else found


def _mention(word: str) -> str:
    """Return a pattern for a word, or for its beginning as a key ("temp=")."""
    keys = "|".join(re.escape(word[:length]) for length in range(len(word), 2, -1))
    return rf"(?<!\w)(?:{re.escape(word)}(?!\w)|(?:{keys or re.escape(word)})\s?[=:])"


def _kinds(field: Field) -> Sequence[str]:
    for text in (field.name, field.description):
        words = _words(text)
        for names, kinds in _HINTS:
            if words & set(names):
                return kinds
    return _ANY


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def _same(unit: str) -> str:
    return _SAME_UNIT.get(unit, unit)


def _is_letter(unit: str) -> bool:
    return len(unit) == 1 and unit.isalpha()


def _is_whole(text: str) -> bool:
    number = number_of(text)
    return number is not None and abs(number) <= INTEGER_MAX and number == int(number)
