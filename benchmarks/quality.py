"""How often are the skills right? Labelled items, beside the majority class: `make bench-quality`.

Accuracy, with a 95 % interval (Wilson), of the default models. Rules and numbers were made on the
dev half and on calibration items; the held-out half was looked at once they were fixed.
"""

import argparse
import dataclasses
import json
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import trio
from quality_items import (
    CALIBRATION,
    EXTRACTIONS,
    LABELLINGS,
    LOGS,
    SEVERITIES,
    SEVERITY,
    Extraction,
    Half,
    Labelling,
)

from covey.inference.catalogue import CATALOGUE
from covey.inference.engine import ChatMessage, Completion, GenerateRequest, ModelInfo, Models, Role
from covey.inference.model_files import SUFFIX, add_model, list_models
from covey.inference.pool import open_pool
from covey.inference.skills import SKILLS, Context, decode_request
from covey.inference.skills import classify as classifying
from covey.inference.skills.candidates import Field, candidates_of
from covey.inference.skills.classify import Label
from covey.inference.skills.extract import read_schema
from covey.inference.skills.facts import Facts, find_facts
from covey.inference.skills.spans import find_spans, number_of
from covey.inference.skills.summarize import unfaithful, worded_plainly
from covey.inference.worker_process import PoolSettings
from covey.peer.home import model_cache

HALVES: tuple[Half, ...] = get_args(Half)
DEADLINE_S = 120.0
BAR = 24


@dataclass(frozen=True, slots=True)
class Score:
    """So many right, of so many."""

    right: int
    of: int

    def __add__(self, other: "Score") -> "Score":
        return Score(self.right + other.right, self.of + other.of)

    @property
    def share(self) -> float:
        """The accuracy; 0 of nothing."""
        return self.right / self.of if self.of else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """The Wilson interval at 95 %."""
        return wilson(self.right, self.of)


def wilson(right: int, of: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the bounds between which the true share lies, with 95 % confidence."""
    if of == 0:
        return 0.0, 1.0
    share, spread = right / of, z * z / of
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, middle - half), min(1.0, middle + half)


def score_of(found: Sequence[object], wanted: Sequence[object]) -> Score:
    """Return how many of `found` are as wanted."""
    return Score(sum(x == y for x, y in zip(found, wanted, strict=True)), len(wanted))


ZERO = Score(0, 0)


@dataclass(slots=True)
class Report:
    """What was measured: lines for a person, facts for a machine."""

    facts: dict[str, Any] = dataclasses.field(default_factory=lambda: dict[str, Any]())

    def heading(self, title: str, baseline: str) -> None:
        """Begin a part."""
        columns = f"{'':38} {'dev':>13}  {'held out':>13}  {'95 %':>9}  {'':{BAR}}  {baseline}"
        print(f"\n{title}\n{columns.rstrip()}", flush=True)

    def add(
        self, what: str, scores: dict[Half, Score], baseline: dict[Half, Score] | None = None
    ) -> None:
        """Show a row, and keep it."""
        shown = scores["held out"] if "held out" in scores else scores["dev"]
        low, high = shown.interval
        cells = [_cell(scores.get(half)) for half in HALVES]
        beside = _cell((baseline or {}).get("held out") or (baseline or {}).get("dev"))
        print(
            f"{what:38} {cells[0]:>13}  {cells[1]:>13}  {low * 100:3.0f}..{high * 100:3.0f}  "
            f"{_bar(shown)}  {beside}".rstrip(),
            flush=True,
        )
        self.facts[what.strip()] = {
            "scores": {half: [one.right, one.of] for half, one in scores.items()},
            "baseline": {half: [one.right, one.of] for half, one in (baseline or {}).items()},
            "wilson_95": [round(low, 3), round(high, 3)],
        }


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{score.right:>3}/{score.of:<3} {score.share * 100:3.0f} %"


def _bar(score: Score) -> str:
    """Return the share as a bar, with the interval's ends shaded."""
    low, high = (round(bound * BAR) for bound in score.interval)
    return "".join(
        "█" if at < low else "▓" if at < round(score.share * BAR) else "░" if at < high else "·"
        for at in range(BAR)
    )


async def run_skill(models: Models, skill: str, asked: dict[str, Any]) -> Any:
    """Run a skill as the daemon would: from JSON."""
    chosen = SKILLS[skill]
    request = decode_request(chosen, msgspec.json.encode(asked))
    return await chosen.run(request, Context(models, DEADLINE_S, lambda _text: None))


def majority(wanted: Sequence[str]) -> Score:
    """Return the score of who always says the most frequent label."""
    return Score(Counter(wanted).most_common(1)[0][1], len(wanted))


async def labels_for(
    models: Models, labels: Sequence[Label | str], texts: Sequence[str], threshold: float
) -> list[str | None]:
    """Return the label of each text."""
    asked = {"labels": msgspec.to_builtins(labels), "items": texts, "threshold": threshold}
    return [one.label for one in (await run_skill(models, "classify", asked)).items]


async def forced(models: Models, labelling: Labelling, half: Half, *, names: bool = False) -> Score:
    """Return the score where every item gets a label; `names`: from the labels' names alone."""
    items = labelling.items(half)
    labels = [one.name if names else one for one in labelling.labels]
    found = await labels_for(models, labels, [text for text, _ in items], 0.0)
    return score_of(found, [label for _, label in items])


async def abstaining(
    models: Models, labelling: Labelling, half: Half
) -> tuple[Score, Score, Score, Score]:
    """Return, with the default threshold: how many items are labelled, how many of these are right,
    how many strangers are refused, and how many right labels were lost.
    """
    items, strangers = labelling.items(half), labelling.strangers(half)
    texts = [text for text, _ in items]
    wanted = [label for _, label in items]
    labels = labelling.labels
    found = await labels_for(models, labels, [*texts, *strangers], classifying.THRESHOLD)
    without = await labels_for(models, labels, texts, 0.0)
    known = found[: len(items)]
    answered = [one for one in zip(known, wanted, strict=True) if one[0] is not None]
    lost = [
        one is None
        for one, sure, right in zip(known, without, wanted, strict=True)
        if sure == right
    ]
    return (
        Score(len(answered), len(items)),
        Score(sum(one == right for one, right in answered), len(answered)),
        Score(found[len(items) :].count(None), len(strangers)),
        Score(sum(lost), len(lost)),
    )


async def bench_classification(models: Models, report: Report, halves: Sequence[Half]) -> None:
    """Measure `classify`, forced and as it comes."""
    report.heading("classify: every item gets a label", "majority class")
    for names in (False, True):
        scores = dict.fromkeys(halves, ZERO)
        base = dict.fromkeys(halves, ZERO)
        for labelling in LABELLINGS:
            own: dict[Half, Score] = {}
            most: dict[Half, Score] = {}
            for half in halves:
                own[half] = await forced(models, labelling, half, names=names)
                most[half] = majority([label for _, label in labelling.items(half)])
                scores[half] += own[half]
                base[half] += most[half]
            if not names:
                report.add(labelling.name, own, most)
        title = "all, from the labels' names alone" if names else "all, 4 labels, described"
        report.add(title, scores, base)
    report.heading(f"classify: as it comes (threshold {classifying.THRESHOLD:g})", "")
    titles = (
        "items that get a label",
        "  of them right",
        "strangers that get none",
        "the price: right labels withheld",
    )
    sums = {title: dict.fromkeys(halves, ZERO) for title in titles}
    for labelling in LABELLINGS:
        for half in halves:
            found = await abstaining(models, labelling, half)
            for title, score in zip(titles, found, strict=True):
                sums[title][half] += score
    for title in titles:
        report.add(title, sums[title])


@dataclass(frozen=True, slots=True)
class Taken:
    """What `extract` gave for one item, what was right, and what a naive reader would take."""

    text: str
    wanted: dict[str, Any]
    found: dict[str, Any]
    naive: dict[str, Any]
    by: dict[str, str]


async def take(models: Models, extraction: Extraction, half: Half) -> list[Taken]:
    """Run `extract` on every item of one half."""
    items = extraction.items(half)
    texts = [text for text, _ in items]
    found = await run_skill(models, "extract", {"schema": extraction.schema, "items": texts})
    fields = read_schema(extraction.schema)
    taken: list[Taken] = []
    for (text, wanted), one in zip(items, found.items, strict=True):
        naive = _first_of_kind(fields, text)
        taken.append(Taken(text, wanted, one.fields, naive, one.chosen_by))
    return taken


def _first_of_kind(fields: Sequence[Field], text: str) -> dict[str, Any]:
    """Return what a reader takes who knows each field's kind of span, and nothing else."""
    spans = find_spans(text)
    candidates = candidates_of(fields, text)
    taken: dict[str, Any] = {}
    for field in fields:
        is_number = field.type in ("number", "integer")
        own = candidates[field.name]
        kind = "number" if is_number else own[0].kind if own else ""
        first = next((span for span in spans if span.kind == kind), own[0] if own else None)
        taken[field.name] = None if first is None else first.text
        if is_number and first is not None:
            taken[field.name] = _number(first.text)
    return taken


def _number(text: str) -> float | None:
    number = number_of(text)
    return None if number is None else float(number)


async def bench_extraction(
    models: Models, report: Report, halves: Sequence[Half], *, show: bool
) -> None:
    """Measure `extract`: whole items, and fields."""
    report.heading("extract: all fields of an item right", "first candidate of each kind")
    every: dict[Half, list[Taken]] = {half: [] for half in halves}
    for extraction in EXTRACTIONS:
        taken: dict[Half, list[Taken]] = {}
        for half in halves:
            taken[half] = await take(models, extraction, half)
        for half, items in taken.items():
            every[half] += items
        report.add(extraction.name, _whole(taken, "found"), _whole(taken, "naive"))
        if show:
            for one in (one for items in taken.values() for one in items):
                if one.found != one.wanted:
                    print(f"      {one.text!r}\n        {one.found}\n        {one.wanted}")
    report.add("all items", _whole(every, "found"), _whole(every, "naive"))
    report.heading("extract: single fields", "first candidate of each kind")
    for title, stated in (
        ("fields that the text states", True),
        ("fields it does not state", False),
    ):
        own: dict[Half, Score] = {}
        base: dict[Half, Score] = {}
        for half in halves:
            pairs = [
                (one, name)
                for one in every[half]
                for name, right in one.wanted.items()
                if (right is not None) == stated
            ]
            wanted = [one.wanted[name] for one, name in pairs]
            own[half] = score_of([one.found[name] for one, name in pairs], wanted)
            base[half] = score_of([one.naive[name] for one, name in pairs], wanted)
        report.add(title, own, base)
    left: dict[Half, Score] = {}
    for half in halves:
        chosen = [
            (one, name) for one in every[half] for name, by in one.by.items() if by == "model"
        ]
        left[half] = score_of(
            [one.found[name] for one, name in chosen], [one.wanted[name] for one, name in chosen]
        )
    report.add("choices left to the model", left)


def _whole(taken: dict[Half, list[Taken]], by: str) -> dict[Half, Score]:
    return {
        half: score_of([getattr(one, by) for one in items], [one.wanted for one in items])
        for half, items in taken.items()
    }


# What a model that errs would write: each is made of true words, and each must be refused.
Spoiled = Callable[[str, Facts], str]
SPOILED: dict[str, Spoiled] = {
    "another number": lambda plain, facts: plain.replace(
        f"{facts.lines} lines", f"{facts.lines + 1} lines"
    ),
    "two numbers swapped": lambda plain, facts: plain.replace(
        f"{facts.lines} lines of {facts.distinct}", f"{facts.distinct} lines of {facts.lines}"
    ),
    "a trend turned": lambda plain, _facts: plain.replace(" rising:", " falling:"),
    "a count moved": lambda plain, _facts: re.sub(
        r'(\d+) x (".*?"); (\d+) x (".*?")', r"\3 x \2; \1 x \4", plain
    ),
    "a name": lambda plain, _facts: plain + " They came from Rotterdam.",
    "a judgement": lambda plain, _facts: plain + " This is critical.",
    "reassurance": lambda plain, _facts: plain + " The readings were normal.",
    "a number word": lambda plain, _facts: plain + " There were seven readings.",
}


def stated_falsely(text: str, lines: Sequence[str]) -> list[str]:
    """Return the numbers of a summary that neither stand in the lines nor count any of them.

    Apart from the skill's own check, and simpler: it knows no places, only numbers.
    """
    words = Counter(word for line in lines for word in set(line.split()))
    shapes = Counter(re.sub(r"\S*\d\S*", "#", line) for line in lines)
    readings = Counter(re.sub(r"[\d.]+", "#", line) for line in lines)
    counts = {len(lines), len(shapes), *words.values(), *shapes.values(), *readings.values()}
    known = {str(count) for count in counts}
    known.update(number for line in lines for number in re.findall(r"\d+(?:\.\d+)?", line))
    return [one for one in re.findall(r"\d+(?:\.\d+)?", text) if one not in known]


async def bench_summaries(
    models: Models, report: Report, halves: Sequence[Half], *, show: bool
) -> None:
    """Measure `summarize`: how often the model's words pass, and whether what is told is true."""
    report.heading("summarize: faithfulness", "")
    titles = (
        "model's words pass the check",
        "summary told: every number true",
        "errors put in are refused",
    )
    sums = {title: dict.fromkeys(halves, ZERO) for title in titles}
    for half in halves:
        for lines in LOGS[half]:
            listened = Listening(models)
            told = await run_skill(listened, "summarize", {"items": lines})
            facts = find_facts(lines)
            plain = worded_plainly(facts)
            if show:
                print(
                    f"      {plain}\n        {listened.heard}\n        {told.worded_by} {told.why}"
                )
            sums[titles[0]][half] += Score(told.worded_by == "model", 1)
            sums[titles[1]][half] += Score(not stated_falsely(told.text, lines), 1)
            spoiled = [spoil(plain, facts) for spoil in SPOILED.values()]
            refused = [unfaithful(one, facts) is not None for one in spoiled if one != plain]
            sums[titles[2]][half] += Score(sum(refused), len(refused))
    for title in titles:
        report.add(title, sums[title])


class Listening:
    """The models, and what the text model said last."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self.heard = ""

    def info(self, name: str | None, role: Role) -> ModelInfo:
        return self._models.info(name, role)

    async def generate(
        self, request: GenerateRequest, *, model: str | None = None, deadline_s: float
    ) -> Completion:
        completion = await self._models.generate(request, model=model, deadline_s=deadline_s)
        self.heard = completion.text
        return completion

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        return await self._models.embed(texts, model=model, deadline_s=deadline_s)


async def bench_severity(models: Models, report: Report) -> None:
    """Show, once, why nothing in covey judges severity."""
    report.heading(
        "NOT OFFERED: judging severity. Shown so that nobody tries: compare with the majority class",
        "majority class",
    )
    wanted = [label for _, label in SEVERITY]
    base: dict[Half, Score] = {"held out": majority(wanted)}
    grammar = "root ::= " + " | ".join(f'"{one}"' for one in SEVERITIES)
    said: list[str] = []
    for text, _ in SEVERITY:
        question = f"How severe is this: {', '.join(SEVERITIES[:-1])} or {SEVERITIES[-1]}?\n{text}"
        request = GenerateRequest(
            messages=(ChatMessage("user", question),), max_tokens=8, grammar=grammar
        )
        said.append((await models.generate(request, deadline_s=DEADLINE_S)).text)
    near = await labels_for(models, SEVERITIES, [text for text, _ in SEVERITY], 0.0)
    for title, found in (("text model", said), ("nearest word", near)):
        report.add(title, {"held out": score_of(found, wanted)}, base)
        urgent = [one for one, right in zip(found, wanted, strict=True) if right == "critical"]
        report.add(
            f"  critical ones called so, {title}",
            {"held out": Score(urgent.count("critical"), len(urgent))},
        )


async def calibrate(models: Models) -> None:
    """Set `classify`'s three numbers anew, on the calibration items alone."""
    seen: list[tuple[bool, list[float], int | None]] = []
    for names in (False, True):
        for labelling in CALIBRATION:
            labels = [Label(name=one.name) if names else one for one in labelling.labels]
            order = [one.name for one in labels]
            centroids = [
                classifying.mean(await models.embed(anchors, deadline_s=DEADLINE_S))
                for anchors in map(classifying.anchors_of, labels)
            ]
            wanted = [*(order.index(label) for _, label in labelling.dev)]
            texts = [text for text, _ in labelling.dev] + [*labelling.strangers_dev]
            vectors = await models.embed(
                [*map(classifying.normalised, texts)], deadline_s=DEADLINE_S
            )
            for at, vector in enumerate(vectors):
                similar = [sum(map(_times, vector, one)) for one in centroids]
                seen.append((names, similar, wanted[at] if at < len(wanted) else None))

    def loss(temperature: float, none: float) -> float:
        shares = [
            classifying.shares([*similar, none], temperature)[-1 if right is None else right]
            for _, similar, right in seen
        ]
        return -sum(math.log(share + 1e-9) for share in shares) / len(shares)

    least, temperature, none = min(
        (loss(at / 100, none / 100), at / 100, none / 100)
        for at in range(3, 16)
        for none in range(5, 45)
    )
    print(f"temperature {temperature:g}, similarity of none {none:g}: log loss {least:.3f}")
    described = [(similar, right) for names, similar, right in seen if not names]
    for step in range(2, 16):
        threshold = step * 0.05
        best = [
            (max(shares[:-1]), shares.index(max(shares[:-1])), right)
            for similar, right in described
            for shares in [classifying.shares([*similar, none], temperature)]
        ]
        items = [one for one in best if one[2] is not None]
        answered = [one for one in items if one[0] >= threshold]
        strangers = [one for one in best if one[2] is None]
        refused = sum(one[0] < threshold for one in strangers)
        print(
            f"  threshold {threshold:.2f}: {len(answered)}/{len(items)} labelled, "
            f"{sum(one[1] == one[2] for one in answered)} right; "
            f"{refused}/{len(strangers)} strangers refused"
        )
        if refused >= 0.8 * len(strangers):
            print(f"  -> {threshold:.2f}")
            return


def _times(x: float, y: float) -> float:
    return x * y


@asynccontextmanager
async def default_models() -> AsyncGenerator[Models]:
    """Run the default models, from the cache that `make models` fills."""
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        for one in (one for one in CATALOGUE if one.is_default):
            path = model_cache() / f"{one.name}-{one.digest[:16]}{SUFFIX}"
            add_model(path, Path(folder), link=True)
        files, refused = list_models(Path(folder))
        assert not refused, refused
        async with open_pool(PoolSettings(threads=1)) as pool:
            pool.offer(files, {file.info.role: file.info.name for file in files})
            yield pool


async def measure(report: Report, halves: Sequence[Half], *, show: bool) -> None:
    """Measure everything."""
    async with default_models() as models:
        await bench_classification(models, report, halves)
        await bench_extraction(models, report, halves, show=show)
        await bench_summaries(models, report, halves, show=show)
        await bench_severity(models, report)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-quality", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures")
    parser.add_argument("--half", choices=HALVES, help="one half of the items")
    parser.add_argument("--show", action="store_true", help="show what went wrong, and summaries")
    parser.add_argument("--calibrate", action="store_true", help="only set classify's numbers anew")
    options = parser.parse_args()
    if options.calibrate:
        trio.run(_with_models, calibrate)
        return 0
    halves: Sequence[Half] = HALVES if options.half is None else (options.half,)
    report = Report()
    items = sum(len(one.items(half)) for one in (*LABELLINGS, *EXTRACTIONS) for half in halves)
    print(
        f"{items} labelled items of plant, clinic and shop; default models; temperature 0.\n"
        "Right/of, accuracy. 95 %: Wilson interval of the held-out half. Short clear texts by one "
        "author: yours are harder."
    )

    async def run() -> None:
        await measure(report, halves, show=options.show)

    trio.run(run)
    if options.json:
        options.json.write_text(json.dumps(report.facts, indent=2) + "\n")
    return 0


async def _with_models(run: Callable[[Models], Awaitable[None]]) -> None:
    async with default_models() as models:
        await run(models)


if __name__ == "__main__":
    sys.exit(main())
