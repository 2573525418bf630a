"""The stand-in for models behaves as the real ones do, where skills rely on it."""

import json
import math
from pathlib import Path

import pytest
from test_inference.skill_models import ScriptedModels, real_models

from covey.inference.engine import ChatMessage, GenerateRequest, Models
from covey.inference.errors import BadRequest
from covey.inference.skills import SKILLS, decode_request

SCHEMA = {
    "type": "object",
    "properties": {"fruit": {"enum": ["pear", "plum"]}, "size": {"enum": ["1,5", "😀 \u0007"]}},
    "required": ["fruit", "size"],
    "additionalProperties": False,
}


async def check_contract(models: Models) -> None:
    vectors = await models.embed(["a pear", "a plum", "a pear", "漢字 😀 \x00"], deadline_s=60)
    assert len(vectors) == 4
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-6)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)
    for vector in vectors:
        assert math.fsum(number * number for number in vector) == pytest.approx(1.0, abs=1e-4)
    completion = await models.generate(
        GenerateRequest(messages=(ChatMessage("user", "Choose."),), json_schema=SCHEMA),
        deadline_s=60,
    )
    answer = json.loads(completion.text)
    assert answer["fruit"] in ("pear", "plum")
    assert answer["size"] in ("1,5", "😀 \u0007")
    assert completion.model == models.info(None, "text").name
    assert models.info(None, "embedding").role == "embedding"


async def test_the_stand_in_gives_unit_vectors_and_obeys_a_schema() -> None:
    await check_contract(ScriptedModels())


@pytest.mark.model
async def test_the_real_models_give_unit_vectors_and_obey_a_schema(cached_models: Path) -> None:
    async with real_models(cached_models) as models:
        await check_contract(models)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"\x00", "malformed"),
        (b"[]", "expected `object`, got `array`"),
        (b'{"items": [1]}', r"\$\.items\[0\]"),
        (b'{"itmes": []}', "unknown field `itmes`"),
        (b'{"items": ["\xff"]}', "decode byte"),
        (b'{"items": ["\\ud800"]}', "truncated|surrogate"),
        (b'{"labels": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "recursion|Expected"),
        (b'{"tail": 1e999}', "range|expected"),
    ],
)
def test_input_that_is_no_request_is_refused_by_skill_and_place(data: bytes, match: str) -> None:
    with pytest.raises(
        BadRequest, match=f"(?i)the input of skill 'classify' is wrong: .*({match})"
    ):
        decode_request(SKILLS["classify"], data)


def test_nesting_deeper_than_the_interpreter_can_go_is_refused() -> None:
    nested = b'{"schema": ' + b'{"a":' * 5000 + b"1" + b"}" * 5000 + b"}"

    with pytest.raises(BadRequest, match="the input of skill 'extract' is wrong"):
        decode_request(SKILLS["extract"], nested)
