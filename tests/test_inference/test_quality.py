"""Are the skills still as good as they were measured? A floor under `make bench-quality`."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from test_inference.skill_models import real_models

from covey.inference.skills.extract import EXAMPLES
from covey.inference.skills.facts import find_facts
from covey.inference.skills.summarize import unfaithful, worded_plainly

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's measure and items; `benchmarks` is no package."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    return importlib.import_module("quality")


def test_no_item_stands_in_a_prompt_or_example(quality: Any) -> None:
    sources = "".join(
        path.read_text().lower() for path in (ROOT / "inference" / "skills").glob("*.py")
    )
    items: list[str] = []
    for labelling in (*quality.LABELLINGS, *quality.CALIBRATION):
        items += [text for text, _ in (*labelling.dev, *labelling.held_out)]
        items += [*labelling.strangers_dev, *labelling.strangers_held_out]
        examples = {text for label in labelling.labels for text in label.examples}
        assert not examples & set(items)
    for extraction in quality.EXTRACTIONS:
        items += [text for text, _ in (*extraction.dev, *extraction.held_out)]
    items += [text for text, _ in quality.SEVERITY]

    assert len(items) > 150
    assert len(items) == len(set(items))
    assert [text for text in items if text.lower() in sources] == []
    prompts = " ".join(text for pair in EXAMPLES for text in pair)
    assert [text for text in items if text in prompts] == []


def test_every_right_value_is_one_that_the_schema_allows(quality: Any) -> None:
    for extraction in quality.EXTRACTIONS:
        for text, wanted in (*extraction.dev, *extraction.held_out):
            assert set(wanted) == set(extraction.schema["properties"])
            for value in wanted.values():
                if isinstance(value, str):
                    assert value.lower() in text.lower()
    for labelling in quality.LABELLINGS:
        names = {label.name for label in labelling.labels}
        assert {label for _, label in (*labelling.dev, *labelling.held_out)} == names


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (0, 0, 0.0, 1.0)],
)
def test_the_interval_is_wilsons(
    quality: Any, right: int, of: int, low: float, high: float
) -> None:
    assert quality.wilson(right, of) == pytest.approx((low, high), abs=0.0001)


def test_errors_put_into_a_summary_are_refused(quality: Any) -> None:
    refused = 0
    for lines in (*quality.LOGS["dev"], *quality.LOGS["held out"]):
        facts = find_facts(lines)
        plain = worded_plainly(facts)
        assert quality.stated_falsely(plain, lines) == []
        assert unfaithful(plain, facts) is None
        for name, spoil in quality.SPOILED.items():
            spoiled = spoil(plain, facts)
            if spoiled != plain:
                assert unfaithful(spoiled, facts) is not None, name
                refused += 1
    assert refused > 70


@pytest.mark.model
async def test_the_skills_are_as_good_as_they_were(quality: Any, cached_models: Path) -> None:
    async with real_models(cached_models) as models:
        forced, labelled, right, refused, taken = (quality.ZERO for _ in range(5))
        for labelling in quality.LABELLINGS:
            forced += await quality.forced(models, labelling, "held out")
            found = await quality.abstaining(models, labelling, "held out")
            labelled, right, refused = labelled + found[0], right + found[1], refused + found[2]
        for extraction in quality.EXTRACTIONS:
            items = await quality.take(models, extraction, "held out")
            taken += quality.score_of([one.found for one in items], [one.wanted for one in items])

    # Measured 34, 32, 31 of 32, 6 of 9, and 31 of 37; the majority class is right in 12 of 36.
    assert forced.right >= 29
    assert labelled.right >= 26
    assert right.share >= 0.85
    assert refused.right >= 4
    assert taken.right >= 27
