"""Which spans of a sentence could be the value of a field?

Generic rules; whatever they find stands in the text. Each pattern is written so that a text of any
length and kind takes time in proportion to it: a match can begin only where the one before could
not go on, and repetitions are bounded.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

UNITS = tuple(
    (
        "mm/s m/s km/h rpm °C °F °K K degC degF C F celsius fahrenheit kPa MPa hPa Pa mbar bar psi "
        "mmHg kWh MWh Wh kJ MJ J kcal kW MW W mA A kV mV V kVA VA kΩ MΩ Ω kHz MHz GHz Hz dB lux lx "
        "% ‰ percent ppm ppb ms µs μs us ns seconds second sec minutes minute hours hour days day "
        "weeks week s min h bytes kB KB MB GB TB KiB MiB GiB kbit Mbit Gbit litres liters l dl ml L "
        "dL mL m3 m³ m2 m² kg mg µg μg mcg g t mmol µmol μmol nmol mol IU bpm mm cm km nm µm μm m kN "
        "Nm mN N EUR USD GBP € $ £ pieces pcs items units boxes tablets pallets"
    ).split()
)
_BASE = "|".join(sorted((re.escape(unit) for unit in UNITS), key=len, reverse=True))
# "mmol/L", "kWh/day", and what is counted per unit: "breaths/min".
UNIT = rf"(?:(?:{_BASE})(?:/(?:{_BASE})){{0,2}}|[^\W\d_]{{2,16}}/(?:{_BASE}))(?![\w/])"
# Three digits behind a comma are thousands ("1,250"), unless a zero leads ("0,125 mm").
_GROUPED = r"[-+\u2212]?[1-9]\d{0,2}(?:,\d{3}){1,6}(?:\.\d{1,18})?(?!,\d)"
_PLAIN = r"[-+\u2212]?\d{1,18}(?:\.\d{1,18})?(?:[eE][-+]?\d{1,3})?"
# Otherwise a comma is a decimal one only where a unit shows that it is a quantity and no list.
_COMMA = rf"[-+\u2212]?\d{{1,18}},\d{{1,18}}(?=\s?{UNIT})"
NUMBER = rf"(?<![\w.\-\u2212])(?:{_GROUPED}|{_COMMA}|{_PLAIN})"
_ENDS = rf"(?:(?=\s?{UNIT})|(?=[-\u2013]\d{{1,18}}(?:\.\d{{1,18}})?\s?{UNIT})|(?![\w-])(?!\.\d))"
_MONTH = r"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_CLOCK = r"\d{1,2}:\d\d(?::\d\d(?:[.,]\d{1,9})?)?"
LONGEST = 200
"""Characters of a span: what is longer is no value."""
WORDS_MAX = 3
PATTERNS: Mapping[str, re.Pattern[str]] = {
    "time": re.compile(
        rf"(?<![\d:.])(?:\d{{4}}-\d\d-\d\d(?:[T ]{_CLOCK}(?:Z|[+-]\d\d:?\d\d)?)?"
        rf"|\d{{1,2}}[./]\d{{1,2}}[./]\d{{4}}(?: {_CLOCK})?|{_CLOCK}(?:\s?[ap]m)?)(?![\d:])"
        rf"|\b{_MONTH}\s{{1,2}}\d{{1,2}}\s\d\d:\d\d:\d\d\b"
    ),
    "address": re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?::\d{1,5})?(?![\w.]*\w)"),
    "quoted": re.compile(r"\"([^\"\n]{1,200})\"|(?<!\w)'([^'\n]{1,200})'(?!\w)"),
    "path": re.compile(r"(?<![\w./\-])/[\w.\-]+(?:/+[\w.\-]+)*/?(?<!\.)"),
    "version": re.compile(
        r"(?<![\w.\-])(?:\d+:)?\d+(?:\.\d+){2,8}(?:[-+~.]\w+){0,8}(?![\w.\-]*\w)"
    ),
    "identifier": re.compile(r"(?<![\w.\-])[^\W\d_]\w*(?:[-.]\w+)*"),
    "unit": re.compile(rf"{NUMBER}(?:[-\u2013]\d{{1,18}}(?:\.\d{{1,18}})?)?\s?({UNIT})"),
    "number": re.compile(
        rf"{NUMBER}{_ENDS}|(?<=\d[-\u2013])\d{{1,18}}(?:\.\d{{1,18}})?(?=\s?{UNIT})"
    ),
}
# Prepositions, pronouns, conjunctions and auxiliaries, and verbs of reporting.
STOP = frozenset(
    (
        "a about above across after again against all along also although am among an and another any "
        "are around as at be because been before behind being below beneath beside besides between "
        "beyond both but by can could despite did do does down during each either every except few "
        "for from had has have he her here his how if in inside into is it its itself just many may "
        "me might more most much must my near neither next no nor not now of off on once only onto "
        "or other our out outside over own per same she should since so some still such than that "
        "the their them then there these they this those through throughout to too toward towards "
        "under unless unlike until up upon us very via was we were what when where whether which "
        "while who whose why will with within without would yet you your "
        "currently dropped exceeded exceeds fell found gave gives got high last logged low measure "
        "measured measures noted reached reaches reading reads recorded reported reports rose said "
        "says saw sent showed shows stands took"
    ).split()
)
_WORD = re.compile(r"(?<![\w])[^\W\d_]{2,40}(?![\w])")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the input: `text == input[start:end]`, except that a `choice` has its own case."""

    start: int
    end: int
    text: str
    kind: str
    unit: str = ""
    """What stands behind a number."""


def find_spans(text: str) -> list[Span]:
    """Return the spans of each kind, in order; a span of a stronger kind hides what is within it."""
    found: list[Span] = []
    taken = bytearray(len(text))

    def take(start: int, end: int, kind: str, unit: str = "") -> None:
        if end - start <= LONGEST and not any(taken[start:end]):
            found.append(Span(start, end, text[start:end], kind, unit))
            taken[start:end] = b"\x01" * (end - start)

    for kind in ("time", "address", "quoted", "path", "version"):
        for match in PATTERNS[kind].finditer(text):
            take(*_inner(match), kind)
    for match in PATTERNS["identifier"].finditer(text):
        if (named := _named(match.group())) is not None:
            take(*match.span(), named)
    unit_at: dict[int, str] = {}
    for match in PATTERNS["unit"].finditer(text):
        start, end = match.span(1)
        unit_at[start] = match[1]
        take(start, end, "unit")
    for match in PATTERNS["number"].finditer(text):
        start, end = match.span()
        if number_of(match.group()) is not None:
            behind = end + 1 if text[end : end + 1].isspace() else end
            take(start, end, "number", unit_at.get(behind, ""))
    found += _words(text, taken)
    return sorted(found, key=lambda span: (span.start, span.end))


def number_of(text: str) -> Decimal | None:
    """Return exactly the number that a span of kind `number` writes; None if a double cannot hold
    anything near it.
    """
    text = text.replace("\u2212", "-")
    if "," in text:
        text = text.replace(",", "" if re.fullmatch(_GROUPED, text) else ".")
    number = Decimal(text)
    # Beyond this a double is infinite, or zero.
    return number if number == 0 or -300 < number.adjusted() < 300 else None


def _named(text: str) -> str | None:
    """Tell a name of a thing (`pump_a`, `P-17`, `db.local`) from a word, and from two joined by '-'."""
    if any(sign.isdigit() or sign == "_" for sign in text):
        return "identifier"
    parts = re.split(r"[-.]", text)
    if len(parts) == 1:
        return None
    if any(len(part) == 1 or part.isupper() for part in parts) or "." in text:
        return "identifier"
    return "compound"


def _words(text: str, taken: bytearray) -> list[Span]:
    """Return runs of up to three plain words that mean something."""
    found: list[Span] = []
    run: list[re.Match[str]] = []
    for match in [*_WORD.finditer(text), None]:
        plain = (
            match is not None
            and match.group().lower() not in STOP
            and not any(taken[match.start() : match.end()])
        )
        glued = (
            0 < len(run) < WORDS_MAX
            and match is not None
            and text[run[-1].end() : match.start()] == " "
        )
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
