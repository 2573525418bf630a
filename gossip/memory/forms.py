"""How are a number, a count, a line and a JSON value written in a payload's text? Read and checked. Pure."""

import re
from decimal import Decimal

import msgspec

from .payload import Provenance

KEEP_MAX = 1_000
"""A log keeps at most this many lines of each author: writing one looks at all of them."""
NUMBER_CHARACTERS_MAX = 64
NESTING_MAX = 32
"""A JSON value has at most so many brackets open at once: who decodes one that is deeper runs out of
stack, sooner or later by how deep it is in calls itself, so that what one part took ends another."""

# Lines may be broken and tabbed; what moves a terminal's cursor or colours it is no text.
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")
_COUNT = re.compile(r"([0-9]{1,30}) ([0-9]{1,30})")
_LINE = re.compile(r"([1-9][0-9]{0,3}) (.+)", re.DOTALL)
# A text in quotes, which may lack its end, or a bracket outside of one. No byte is looked at twice.
_NESTING = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


def has_controls(text: str, *, also: str = "") -> bool:
    """Tell whether a text holds characters that are no text, or one of `also`."""
    return _CONTROLS.search(text) is not None or any(one in text for one in also)


def is_clean(provenance: Provenance | None) -> bool:
    """Tell whether a provenance names all in text."""
    if provenance is None:
        return True
    names = (provenance.model, provenance.method, *(one.name for one in provenance.sources))
    return not any(has_controls(name) for name in names)


def nests_too_deep(text: str) -> bool:
    """Tell whether a JSON text opens more than `NESTING_MAX` brackets in one another."""
    if text.count("[") + text.count("{") <= NESTING_MAX:
        return False
    depth = 0
    for token in _NESTING.finditer(text):
        match token[0]:
            case "[" | "{":
                depth += 1
                if depth > NESTING_MAX:
                    return True
            case "]" | "}":
                depth -= 1
            case _:
                pass
    return False


def is_json(text: str) -> bool:
    """Tell whether a text is one JSON value that anybody can decode."""
    if nests_too_deep(text):
        return False
    try:
        msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError):
        return False
    return True


def number_of(text: str) -> Decimal | None:
    """Return the number that a text is, written as in JSON; None: it is none."""
    if len(text) > NUMBER_CHARACTERS_MAX or _NUMBER.fullmatch(text) is None:
        return None
    return Decimal(text)


def count_of(text: str) -> tuple[int, int] | None:
    """Return what was added and taken in all; None: the text is no count."""
    match = _COUNT.fullmatch(text)
    return None if match is None else (int(match[1]), int(match[2]))


def line_of(text: str) -> tuple[int, str] | None:
    """Return how many lines to keep, and the line; None: the text is no line."""
    match = _LINE.fullmatch(text)
    if match is None or int(match[1]) > KEEP_MAX:
        return None
    return int(match[1]), match[2]
