"""Skill `summarize`: what do these lines say, in a few words? Facts by code, words by the model,
checked.

The model only words facts that code computed. Whatever it writes must stand in the facts, save for
a closed list of words that claim nothing, and every number must stand where the facts have it; else
its words are dropped for a plain wording, and the result says so. Severity is never judged: no word
for it is in the list.
"""

import re
from typing import Literal

import msgspec

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import ModelError

from .facts import Facts, Series, Shape, find_facts
from .skill import Context, Skill, check_items

SENTENCES = 3
KINDS_TOLD = 3
MAX_TOKENS = 110
PROMPT_CHARACTERS_MAX = 1400
# Words that a sentence about facts needs and that claim nothing by themselves. No numbers, no
# quantifiers, no negation, no trends, nothing that judges.
WORDING = frozenset(
    (
        "a also an and are as at been between by contain contained contains count counts for from had "
        "has have in including into is it its kind kinds line lines log of on over range ranged "
        "ranges ranging reading readings recorded reported respectively seen since that the their "
        "there these they this those time times to total was were which while with within x"
    ).split()
)
_TRENDS = frozenset({"rising", "falling", "steady"})
_COUNTED = frozenset(
    {"lines", "line", "kinds", "kind", "readings", "reading", "x", "times", "time"}
)


class SummarizeRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Texts: given here, or the last `tail` lines of the task's data source."""

    text: str | None = None
    items: tuple[str, ...] = ()
    tail: int = 200
    model: str | None = None
    words: bool = True
    """False: no model is asked; code words the facts."""


class SummarizeResult(msgspec.Struct, frozen=True, kw_only=True):
    """A summary that states nothing but facts that code computed."""

    text: str
    facts: Facts
    worded_by: Literal["model", "template"]
    why: str = ""
    """Why the model's words were not used."""
    model: str = ""


async def run(request: SummarizeRequest, context: Context) -> SummarizeResult:
    """Summarise."""
    given = request.text.splitlines() if request.text is not None else request.items
    lines = [line for line in given if line.strip()]
    check_items(lines)
    facts = find_facts(lines)
    plain = worded_plainly(facts)
    if not request.words:
        return SummarizeResult(text=plain, facts=facts, worded_by="template", why="not asked for")
    try:
        completion = await context.models.generate(
            GenerateRequest(messages=_prompt(plain), max_tokens=MAX_TOKENS),
            model=request.model,
            deadline_s=context.deadline_s,
        )
    except ModelError as error:
        return SummarizeResult(text=plain, facts=facts, worded_by="template", why=str(error))
    words = first_sentences(completion.text)
    problem = unfaithful(words, facts)
    if problem is not None:
        return SummarizeResult(
            text=plain, facts=facts, worded_by="template", why=problem, model=completion.model
        )
    return SummarizeResult(text=words, facts=facts, worded_by="model", model=completion.model)


def worded_plainly(facts: Facts) -> str:
    """Return the facts as sentences, without a model."""
    return ". ".join(part for part in _parts(facts) if part) + "."


def _parts(facts: Facts) -> list[str]:
    """Return a sentence on the lines, one on the most frequent kinds, and one for each series."""
    about = f"{_counted(facts.lines, 'line')} of {_counted(facts.distinct, 'kind')}"
    if facts.first_time is not None:
        about += f", from {facts.first_time} to {facts.last_time}"
    frequent = "; ".join(f'{one.count} x "{one.text}"' for one in _common(facts))
    return [
        about,
        f"most frequent: {frequent}" if frequent else "",
        *(
            f"{_named(one)} {one.trend}: {_plain(one.first)} to {_plain(one.last)} {one.unit}, "
            f"between {_plain(one.lowest)} and {_plain(one.highest)}, {one.count} readings"
            for one in facts.series
        ),
    ]


def _common(facts: Facts) -> list[Shape]:
    return [shape for shape in facts.shapes if shape.count > 1][:KINDS_TOLD]


def first_sentences(text: str) -> str:
    """Return the first sentences of what a model wrote; a last one that was cut is left out."""
    flat = " ".join(text.split())
    sentences = re.findall(r"[^.!?]*(?:\.(?=\d)[^.!?]*)*[.!?](?=\s|$)", flat)
    return "".join(sentences[:SENTENCES]).strip()


def unfaithful(words: str, facts: Facts) -> str | None:
    """Return what in `words` is not said by `facts`; None if all is.

    Checked: every word is one that the facts use, or claims nothing (`WORDING`); words of the lines
    are passed on only as a whole kind behind its count, so that nothing new is made of them. Every
    other number stands beside a word that it stands beside in the facts, since a small model swaps
    numbers. A number or trend of a series comes after the series' name, with no other series' name
    between. The number of lines is told.
    """
    if not words:
        return "the model wrote no whole sentence"
    about, _, *parts = (_tokens(part.lower()) for part in _parts(facts))
    names = [_tokens(_named(one).lower()) for one in facts.series]
    kinds = [_tokens(f"{one.count} x {one.text}".lower()) for one in _common(facts)]
    vocabulary = WORDING.union(about, *parts, ("most", "frequent") if kinds else ())
    tells_lines = False
    for said in _sentences(words):
        series: int | None = None
        quoted_to = 0
        for at, token in enumerate(said):
            lengths = [len(kind) for kind in kinds if said[at : at + len(kind)] == kind]
            quoted_to = max(quoted_to, at + max(lengths, default=0))
            if at < quoted_to:
                continue
            if token not in vocabulary:
                what = "number" if _has_digit(token) else "word"
                return f"the model wrote a {what} that is not in the facts: {token}"
            ending = [n for n, name in enumerate(names) if said[: at + 1][-len(name) :] == name]
            # Of "pump-1 pressure" and "pressure" the longer is meant.
            series = max(ending, key=lambda n: len(names[n]), default=series)
            tells_lines |= said[at : at + 2] == about[:2]
            if token in _TRENDS and (series is None or facts.series[series].trend != token):
                return f"the model wrote a trend that is not in the facts: {token}"
            if not _has_digit(token) or any(token in name for name in names):
                continue
            places = [about] + ([parts[series]] if series is not None else [])
            if not any(_is_in_place(said, at, place) for place in places):
                return f"the model wrote a number where the facts have another: {token}"
    return None if tells_lines else "the model did not tell the number of lines"


def _is_in_place(said: list[str], at: int, known: list[str]) -> bool:
    """Tell whether the number `said[at]` stands in the facts beside what it is said beside."""
    before, after = _beside(said, at)
    way = _way(said, at, known)
    for start, token in enumerate(known):
        if token != said[at]:
            continue
        same_before, same_after = (
            left == right != ""
            for left, right in zip(_beside(known, start), (before, after), strict=True)
        )
        # What gives a direction and what is counted must both be right.
        if way and known[max(0, start + 1 - len(way)) : start + 1] != way:
            continue
        if after in _COUNTED and not same_after:
            continue
        if same_before or same_after:
            return True
    return False


def _way(said: list[str], at: int, known: list[str]) -> list[str]:
    """Return the words from a "from" or "to" up to the number, if one is near; a time is two words.

    A "from" that the facts do without says nothing ("from 3 to 5" for "3 to 5").
    """
    for begin in (at - 1, at - 2):
        if begin >= 0 and said[begin] in ("from", "to") and said[begin] in known:
            return said[begin : at + 1]
    return []


def _beside(tokens: list[str], at: int) -> tuple[str, str]:
    return tokens[at - 1] if at else "", tokens[at + 1] if at + 1 < len(tokens) else ""


def _prompt(plain: str) -> tuple[ChatMessage, ...]:
    asked = (
        "Rewrite as two short sentences for an operator. Use only what is given, copy numbers and "
        "names exactly."
    )
    return (
        ChatMessage("system", asked),
        ChatMessage(
            "user",
            "40 lines of 2 kinds, from 2024-05-01 08:00:00 to 2024-05-01 09:00:00. "
            'most frequent: 38 x "door opened"; 2 x "door blocked".',
        ),
        ChatMessage(
            "assistant",
            "There were 40 lines of 2 kinds from 2024-05-01 08:00:00 to 2024-05-01 09:00:00. "
            'The most frequent were 38 x "door opened" and 2 x "door blocked".',
        ),
        ChatMessage("user", plain[:PROMPT_CHARACTERS_MAX]),
    )


def _sentences(words: str) -> list[list[str]]:
    parts = re.split(r"[.!?](?=\s|$)", words.lower())
    return [tokens for part in parts if (tokens := _tokens(part))]


def _tokens(text: str) -> list[str]:
    return [word for part in text.split() if (word := part.strip(".,;:!?\"'()[]{}<>"))]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _named(one: Series) -> str:
    return f"{one.subject} {one.name}".strip()


def _plain(number: float) -> str:
    """Write a number exactly, and without exponent where that is usual."""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)


def _has_digit(token: str) -> bool:
    return any(sign.isdigit() for sign in token)


SKILL = Skill("summarize", SummarizeRequest, run, ("text",), takes_data=True)
