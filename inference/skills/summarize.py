"""Skill `summarize`: what do these lines say, in a few words? Facts by code, words by the model,
checked.

The model only words facts that code computed. Every number and every name in what it writes must
stand in the facts; else its words are dropped for a plain wording, and the result says so. Severity
is never judged.
"""

import re
from itertools import pairwise
from typing import Literal

import msgspec

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import ModelError

from .facts import Facts, find_facts
from .skill import Context, Skill, check_items

SENTENCES = 3
MAX_TOKENS = 110
PROMPT_CHARACTERS_MAX = 1400
_SMALL_WORDS = frozenset(
    {"one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"}
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
    problem = unfaithful(words, plain)
    if problem is not None:
        return SummarizeResult(
            text=plain, facts=facts, worded_by="template", why=problem, model=completion.model
        )
    return SummarizeResult(text=words, facts=facts, worded_by="model", model=completion.model)


def worded_plainly(facts: Facts) -> str:
    """Return the facts as sentences, without a model."""
    parts = [f"{facts.lines} lines of {facts.distinct} kinds"]
    if facts.first_time is not None:
        parts[0] += f", from {facts.first_time} to {facts.last_time}"
    common = [shape for shape in facts.shapes if shape.count > 1][:3]
    if common:
        parts.append("most frequent: " + "; ".join(f'{one.count} x "{one.text}"' for one in common))
    parts += [
        f"{one.name} {one.trend}: {one.first:g} to {one.last:g} {one.unit}, between {one.lowest:g} and "
        f"{one.highest:g}, {one.count} readings"
        for one in facts.series
    ]
    return ". ".join(parts) + "."


def first_sentences(text: str) -> str:
    """Return the first sentences of what a model wrote; a last one that was cut is left out."""
    flat = " ".join(text.split())
    sentences = re.findall(r"[^.!?]*(?:\.(?=\d)[^.!?]*)*[.!?](?=\s|$)", flat)
    return "".join(sentences[:SENTENCES]).strip()


def unfaithful(words: str, facts: str) -> str | None:
    """Return what in `words` does not stand in `facts`; None if everything does.

    Checked: every number, also that it stands beside a word that it stands beside in the facts (a
    small model swaps numbers); every number word; and every name (a word with a digit, '_', '-' or
    '/' inside, or with a capital that does not begin a sentence).
    """
    if not words:
        return "the model wrote no whole sentence"
    known_numbers = {_number(text) for text in re.findall(r"\d+(?:\.\d+)?", facts)}
    for text in re.findall(r"\d+(?:\.\d+)?", words.replace(",", "")):
        if _number(text) not in known_numbers:
            return f"the model wrote a number that is not in the facts: {text}"
    if (swapped := _swapped(words, facts)) is not None:
        return f"the model wrote a number where the facts have another: {swapped}"
    known_words = set(_tokens(facts.lower()))
    for at, word in enumerate(_tokens(words)):
        if word.lower() in known_words:
            continue
        if word.lower() in _SMALL_WORDS:
            return f"the model wrote a number that is not in the facts: {word}"
        if any(sign in word for sign in "_-/#") or any(sign.isdigit() for sign in word):
            return f"the model wrote a name that is not in the facts: {word}"
        if word[0].isupper() and not _begins_sentence(words, word, at):
            return f"the model wrote a name that is not in the facts: {word}"
    return None


def _swapped(words: str, facts: str) -> str | None:
    """Return a number of `words` that is beside no word it is beside in `facts`."""
    said, known = _tokens(words.lower()), _tokens(facts.lower())
    pairs = set(pairwise(known))
    for at, token in enumerate(said):
        if not any(sign.isdigit() for sign in token):
            continue
        before = (said[at - 1], token) if at else None
        after = (token, said[at + 1]) if at + 1 < len(said) else None
        if before not in pairs and after not in pairs:
            return token
    return None


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


def _tokens(text: str) -> list[str]:
    return [word for part in text.split() if (word := part.strip(".,;:!?\"'()[]{}<>"))]


def _begins_sentence(words: str, word: str, at: int) -> bool:
    return at == 0 or bool(re.search(rf"[.!?]\s+[\"'(]?{re.escape(word)}", words))


def _number(text: str) -> float:
    return float(text)


SKILL = Skill("summarize", SummarizeRequest, run, ("text",), takes_data=True)
