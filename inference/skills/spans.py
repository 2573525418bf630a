"""Which spans of a sentence could be the value of a field?

Generic rules; whatever they find stands in the text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

UNITS = tuple(
    (
        "mm/s m/s km/h rpm °C °F degC degF celsius fahrenheit kPa MPa Pa mbar bar psi kWh "
        "Wh kW MW W mA A kV mV V kHz MHz GHz Hz dB % percent ppm ms µs us ns seconds "
        "second minutes minute hours hour s min h kB KB MB GB TB KiB MiB GiB bytes litres "
        "liters l/min l ml m3 kg g mg t mm cm km m N kN Nm pieces items units "
    ).split()
)
_UNIT = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "time": re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?Z?)?|\b\d{1,2}:\d\d(?::\d\d)?\b"),
    "address": re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"),
    "path": re.compile(r"(?<![\w.])/[\w.\-/]+\w"),
    "quoted": re.compile(r"\"([^\"]+)\"|'([^']+)'"),
    "identifier": re.compile(r"\b(?=\w*[\d_-])(?=[\w.\-]*[A-Za-z])[A-Za-z][\w]*(?:[-.]\w+)*\b"),
    "unit": re.compile(rf"(?<![A-Za-z])(?:{_NUMBER})\s?({_UNIT})(?![\w/])"),
    "number": re.compile(rf"(?<![\w.\-]){_NUMBER}(?![\w-])(?!\.\d)"),
    "word": re.compile(r"\b[a-z][a-z]+(?:\s[a-z]+)?\b"),
}
STOP = frozenset(
    (
        "a about above after again an and are around as at be been before below but by "
        "currently dropped during exceeded exceeds fell for found from gave gives got had "
        "has have high in into is it its last logged low measure measured measures near "
        "no not now of on or over per reached reaches reading reads recorded reported "
        "reports rose said same says sent showed shows since stands still than that the "
        "this to under until up was were while will with "
    ).split()
)


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the input: `text == input[start:end]`."""

    start: int
    end: int
    text: str
    kind: str


def find_spans(text: str) -> list[Span]:
    """Return the spans of each kind, in order; a span of a stronger kind hides words within it."""
    found: list[Span] = []
    taken: list[tuple[int, int]] = []
    for kind in ("time", "address", "path", "quoted", "identifier"):
        for match in PATTERNS[kind].finditer(text):
            start, end = _inner(match)
            if not _overlaps(taken, start, end):
                found.append(Span(start, end, text[start:end], kind))
                taken.append((start, end))
    for match in PATTERNS["unit"].finditer(text):
        start, end = match.span(1)
        if not _overlaps(taken, start, end):
            found.append(Span(start, end, text[start:end], "unit"))
            taken.append((start, end))
    # A number may be glued to its unit ("9.8mm/s"), so what bounds it is looked at without units.
    for match in re.finditer(
        rf"(?<![\w.]){_NUMBER}(?=\s?(?:{_UNIT})(?![\w/]))|{PATTERNS['number'].pattern}", text
    ):
        start, end = match.span()
        if not _overlaps(taken, start, end):
            found.append(Span(start, end, text[start:end], "number"))
            taken.append((start, end))
    found += _words(text, taken)
    return sorted(found, key=lambda span: (span.start, span.end))


def _words(text: str, taken: list[tuple[int, int]]) -> list[Span]:
    """Return runs of up to two plain words that mean something."""
    found: list[Span] = []
    run: list[re.Match[str]] = []
    for match in [*re.finditer(r"[A-Za-z][a-z]+", text), None]:
        plain = (
            match is not None
            and match.group().lower() not in STOP
            and not _overlaps(taken, *match.span())
        )
        glued = bool(run) and match is not None and text[run[-1].end() : match.start()] == " "
        if match is not None and plain and (not run or glued):
            run.append(match)
            continue
        if run:
            start, end = run[0].start(), run[-1].end()
            found.append(Span(start, end, text[start:end], "word"))
        run = [match] if match is not None and plain else []
    return found


def _inner(match: re.Match[str]) -> tuple[int, int]:
    for number in range(1, (match.re.groups or 0) + 1):
        if match.group(number) is not None:
            return match.span(number)
    return match.span()


def _overlaps(taken: list[tuple[int, int]], start: int, end: int) -> bool:
    return any(start < one_end and one_start < end for one_start, one_end in taken)
