"""Skill `classify`: which label fits each text? Nearest centroid of embeddings; abstains when
unsure.

A label's centroid is the mean of the vectors of its name, description and examples. The score is a
softmax over cosine similarities, with a temperature set on items kept apart from the test set. The
result holds no text of the items, so that labelling data on the peer that owns it lets nothing of
it out but labels.
"""

import math
import re
from collections.abc import Sequence

import msgspec

from covey.inference.errors import BadRequest

from .skill import Context, Skill, check_items

LABELS_MIN, LABELS_MAX = 2, 64
EXAMPLES_MAX = 32
# With these, on the calibration items, a score of s was right in about a share s of cases.
TEMPERATURE = 0.06
THRESHOLD = 0.30
# Longer texts lose their tail: an embedding model reads 512 tokens, and a line's kind shows early.
CHARACTERS_MAX = 600


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
    """Below this score an item gets no label. 0 labels everything."""
    model: str | None = None


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """One item's label; `line` counts from 1 in the order given."""

    line: int
    label: str | None
    score: float
    margin: float
    """Score minus the second best one's."""


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
    anchors = [(at, text) for at, label in enumerate(labels) for text in _anchors(label)]
    normal = [_normalised(item) for item in items]
    # Machines repeat themselves: each distinct text is embedded once.
    distinct = list(dict.fromkeys(normal))
    context.progress(f"{len(distinct)} distinct of {len(items)} items")
    vectors = await context.models.embed(
        [text for _, text in anchors] + distinct,
        model=request.model,
        deadline_s=context.deadline_s,
    )
    centroids = [
        _mean([vectors[n] for n, (at, _) in enumerate(anchors) if at == number])
        for number in range(len(labels))
    ]
    of_text = dict(zip(distinct, vectors[len(anchors) :], strict=True))
    labelled = tuple(
        _label(line, scores(of_text[text], centroids), labels, request.threshold)
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
    """Return a score in 0..1 for each centroid; they sum to 1."""
    similar = [sum(x * y for x, y in zip(vector, one, strict=True)) for one in centroids]
    top = max(similar)
    weights = [math.exp((one - top) / TEMPERATURE) for one in similar]
    total = sum(weights)
    return [weight / total for weight in weights]


def _label(line: int, found: list[float], labels: Sequence[Label], threshold: float) -> Labelled:
    order = sorted(range(len(found)), key=lambda at: found[at], reverse=True)
    best, second = order[0], order[1]
    sure = found[best] >= threshold
    return Labelled(
        line=line,
        label=labels[best].name if sure else None,
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
    if any(len(label.examples) > EXAMPLES_MAX for label in labels):
        raise BadRequest(f"a label has at most {EXAMPLES_MAX} examples")
    return labels


def _anchors(label: Label) -> list[str]:
    texts = [label.name.replace("_", " ").replace("-", " ")]
    if label.description:
        texts.append(label.description)
    return [text[:CHARACTERS_MAX] for text in (*texts, *map(_normalised, label.examples))]


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


def _normalised(item: str) -> str:
    """Return the text without time stamps and long numbers, which tell no kind and hide repetition."""
    text = " ".join(_NOISE.sub(" ", item).split())
    return (text or item)[:CHARACTERS_MAX]


def _mean(vectors: Sequence[Sequence[float]]) -> list[float]:
    summed = [sum(column) for column in zip(*vectors, strict=True)]
    length = math.sqrt(sum(number * number for number in summed)) or 1.0
    return [number / length for number in summed]


SKILL = Skill("classify", ClassifyRequest, run, ("embedding",), takes_data=True)
