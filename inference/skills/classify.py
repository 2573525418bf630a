"""Skill `classify`: which label fits each text? Nearest centroid of embeddings; abstains when
unsure.

A label's centroid is the mean of the vectors of its name, description and examples. The score is a
softmax over cosine similarities, in which "none of them" takes part with a fixed similarity: so two
labels do not share what belongs to neither. The result holds no text of the items, so that
labelling data on the peer that owns it lets nothing of it out but labels.
"""

import math
import re
import unicodedata
from collections.abc import Sequence

import msgspec

from covey.inference.errors import BadRequest

from .skill import Context, Skill, check_items

LABELS_MIN, LABELS_MAX = 2, 64
EXAMPLES_MAX = 32
PART = 64
# All three were set with all-MiniLM-L6-v2 on the calibration items alone (`python
# benchmarks/quality.py --calibrate` does it again): temperature and similarity of "none" where the log loss
# over items and strangers is least, and then the lowest threshold, in steps of 0.05, at which
# at most one stranger in five gets a label, where labels have descriptions.
TEMPERATURE = 0.05
NONE_SIMILARITY = 0.19
THRESHOLD = 0.40
# Longer texts lose their tail: an embedding model reads 512 tokens, and a line's kind shows early.
CHARACTERS_MAX = 500
NAME_CHARACTERS_MAX = 100


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A label, and what helps to tell it."""

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()


class ClassifyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Items to be labelled: given here, or the last `tail` lines of the task's data source."""

    labels: tuple[str | Label, ...]
    items: tuple[str, ...] = ()
    text: str | None = None
    tail: int = 100
    threshold: float = THRESHOLD
    """Below this score an item gets no label. 0 labels every item that has a letter or a digit."""
    model: str | None = None


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """One item's label; `line` counts from 1 in the order given."""

    line: int
    label: str | None
    score: float
    margin: float
    """Score minus that of the second best label."""


class ClassifyResult(msgspec.Struct, frozen=True, kw_only=True):
    """Labels only: nothing of the items' text."""

    items: tuple[Labelled, ...]
    counts: dict[str, int]
    abstained: int
    model: str


async def run(request: ClassifyRequest, context: Context) -> ClassifyResult:
    """Label every item."""
    labels = _labels(request.labels)
    items = (request.text,) if request.text is not None else request.items
    check_items(items)
    if not 0.0 <= request.threshold <= 1.0:
        raise BadRequest(f"'threshold' is 0 to 1, not {request.threshold:g}")
    anchors = [(at, text) for at, label in enumerate(labels) for text in anchors_of(label)]
    normal = [normalised(item) for item in items]
    # Machines repeat themselves: each distinct text is embedded once.
    distinct = list(dict.fromkeys(text for text in normal if text))
    context.progress(f"{len(distinct)} distinct of {len(items)} items")

    async def embed(texts: Sequence[str]) -> list[list[float]]:
        return await context.models.embed(texts, model=request.model, deadline_s=context.deadline_s)

    vectors = await embed([text for _, text in anchors])
    centroids = [
        mean([vectors[n] for n, (at, _) in enumerate(anchors) if at == number])
        for number in range(len(labels))
    ]
    found: dict[str, list[float]] = {}
    # In parts, so that the daemon's loop is never held for long: a part is 0.1 s of arithmetic.
    for at in range(0, len(distinct), PART):
        part = distinct[at : at + PART]
        for text, vector in zip(part, await embed(part), strict=True):
            found[text] = scores(vector, centroids)
    labelled = tuple(
        _label(line, found.get(text), labels, request.threshold)
        for line, text in enumerate(normal, start=1)
    )
    counts = {label.name: 0 for label in labels}
    for one in labelled:
        if one.label is not None:
            counts[one.label] += 1
    return ClassifyResult(
        items=labelled,
        counts=counts,
        abstained=sum(one.label is None for one in labelled),
        model=context.models.info(request.model, "embedding").name,
    )


def scores(vector: Sequence[float], centroids: Sequence[Sequence[float]]) -> list[float]:
    """Return a score in 0..1 for each centroid, and last one for "none of them"; they sum to 1."""
    similar = [sum(x * y for x, y in zip(vector, one, strict=True)) for one in centroids]
    return shares([*similar, NONE_SIMILARITY], TEMPERATURE)


def shares(similarities: Sequence[float], temperature: float) -> list[float]:
    """Return the softmax of similarities."""
    top = max(similarities)
    weights = [math.exp((one - top) / temperature) for one in similarities]
    total = sum(weights)
    return [weight / total for weight in weights]


def _label(
    line: int, found: list[float] | None, labels: Sequence[Label], threshold: float
) -> Labelled:
    if found is None:
        # Nothing can be told of an item without a letter or digit.
        return Labelled(line=line, label=None, score=0.0, margin=0.0)
    order = sorted(range(len(labels)), key=lambda at: found[at], reverse=True)
    best, second = order[0], order[1]
    return Labelled(
        line=line,
        label=labels[best].name if found[best] >= threshold else None,
        score=round(found[best], 3),
        margin=round(found[best] - found[second], 3),
    )


def _labels(given: Sequence[str | Label]) -> list[Label]:
    labels = [Label(name=one) if isinstance(one, str) else one for one in given]
    names = [label.name for label in labels]
    if not LABELS_MIN <= len(labels) <= LABELS_MAX:
        raise BadRequest(f"give {LABELS_MIN} to {LABELS_MAX} labels, not {len(labels)}")
    if len(set(names)) != len(names) or not all(name.strip() for name in names):
        raise BadRequest("each label needs a name of its own")
    if any(len(name) > NAME_CHARACTERS_MAX for name in names):
        raise BadRequest(f"a label's name has at most {NAME_CHARACTERS_MAX} characters")
    if any(len(label.examples) > EXAMPLES_MAX for label in labels):
        raise BadRequest(f"a label has at most {EXAMPLES_MAX} examples")
    return labels


def anchors_of(label: Label) -> list[str]:
    """Return the texts whose mean vector stands for a label."""
    name = label.name.replace("_", " ").replace("-", " ").strip() or label.name
    texts = map(normalised, (name, label.description, *label.examples))
    return [text for text in texts if text] or [label.name]


# A line drawn with signs: each of them would be a token.
_RULER = re.compile(r"([^\w\s])\1{3,}")
_NOISE = re.compile(
    r"""
    \b\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?)?\b
    | \b(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)\s+\d{1,2}\s+\d\d:\d\d:\d\d\b
    | \b\d\d:\d\d:\d\d(?:[.,]\d+)?\b
    | ^\[\s*\d+\.\d+\]
    | \b0x[0-9a-fA-F]+\b
    | \b[0-9a-f]{12,}\b
    """,
    re.VERBOSE,
)


def normalised(item: str) -> str:
    """Return the text without time stamps, versions and the like: they tell no kind, and hide that
    lines repeat. Empty if the item has no letter and no digit, so that nothing can be told of it.
    """
    item = "".join(sign if sign.isprintable() else " " for sign in item)
    words = [word for word in _NOISE.sub(" ", item).split() if not _is_particular(word)]
    text = " ".join(words) or " ".join(item.split())
    return _cut(_RULER.sub(r"\1\1\1", text)) if any(map(str.isalnum, text)) else ""


def _is_particular(word: str) -> bool:
    """Tell versions, addresses, and names that hold one ("libc6:amd64") from words and numbers."""
    word = word.strip(".,;:!?")
    signs = sum(sign in ".:~+/@" for sign in word)
    return any(map(str.isdigit, word)) and (
        signs >= 2 or (signs == 1 and any(map(str.isalpha, word)))
    )


def _cut(text: str) -> str:
    """Return the beginning of a text that is surely no more than what the embedding model reads.

    A token of it is at least one character of the decomposed text (a Hangul syllable is three).
    """
    if len(text) * 3 <= CHARACTERS_MAX:
        return text
    room = CHARACTERS_MAX
    for at, sign in enumerate(text):
        room -= len(unicodedata.normalize("NFD", sign))
        if room < 0:
            return text[:at]
    return text


def mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean direction of vectors, with length 1."""
    summed = [sum(column) for column in zip(*vectors, strict=True)]
    length = math.sqrt(sum(number * number for number in summed)) or 1.0
    return [number / length for number in summed]


SKILL = Skill("classify", ClassifyRequest, run, ("embedding",), takes_data=True)
