"""Chat passes on what is asked, and refuses what does not fit with the limit; `embed` likewise."""

import math
from pathlib import Path

import pytest
from test_inference.skill_models import ScriptedModels, never, real_models, run_skill

from covey.inference.engine import ChatMessage
from covey.inference.errors import BadRequest, TooLong


async def test_a_prompt_is_a_conversation_of_one_turn() -> None:
    models = ScriptedModels(lambda _request: "Yes.")

    result = await run_skill("chat", {"prompt": "Is it?", "max_tokens": 9, "seed": 4}, models)

    assert (result.text, result.finish, result.model) == ("Yes.", "stop", "scripted-text")
    (request,) = models.asked
    assert request.messages == (ChatMessage("user", "Is it?"),)
    assert (request.max_tokens, request.seed, request.temperature) == (9, 4, 0.0)


async def test_a_conversation_is_passed_on_whole() -> None:
    models = ScriptedModels(lambda _request: "Yes.")
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]

    await run_skill("chat", {"messages": turns, "model": "big"}, models)

    assert [one.content for one in models.asked[0].messages] == [one["role"] for one in turns]


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({}, "either 'prompt' or 'messages'"),
        ({"prompt": " \n"}, "nothing is asked"),
        ({"messages": [{"role": "user", "content": ""}]}, "nothing is asked"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "either 'prompt' or"),
        ({"messages": [{"role": "root", "content": "b"}]}, r"\$\.messages\[0\]\.role"),
        ({"prompt": "a", "max_tokens": 0}, "1 to 512, not 0"),
        ({"prompt": "a", "max_tokens": 513}, "1 to 512, not 513"),
        ({"prompt": "a", "temperature": 2.5}, "0 to 2, not 2.5"),
        ({"prompt": "a", "temperature": -0.1}, "0 to 2, not -0.1"),
        ({"prompt": "a", "seed": 2**32}, "seed"),
        ({"prompt": "a", "seed": -1}, "seed"),
        ({"prompt": "a", "tools": []}, "unknown field `tools`"),
    ],
)
async def test_what_is_no_question_is_refused(asked: object, match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        await run_skill("chat", asked, ScriptedModels(never))


async def test_embed_gives_a_vector_for_each_text() -> None:
    result = await run_skill("embed", {"texts": ["a b", "c"]})

    assert (len(result.vectors), result.dimensions, result.model) == (2, 16, "scripted-embedding")
    for vector in result.vectors:
        assert math.fsum(number * number for number in vector) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("texts", "match"),
    [([], "nothing to work on"), (["x"] * 257, "257 items, over the limit of 256")],
)
async def test_embed_refuses_too_much_or_nothing(texts: list[str], match: str) -> None:
    with pytest.raises(BadRequest, match=match):
        await run_skill("embed", {"texts": texts})


@pytest.mark.model
async def test_real_models_refuse_what_does_not_fit_and_answer_the_rest(
    cached_models: Path,
) -> None:
    async with real_models(cached_models) as models:
        for text in ("word " * 2000, "😀" * 600, "x" * 100_000):
            with pytest.raises(TooLong, match=r"the model takes|takes 1024 tokens"):
                await run_skill("chat", {"prompt": text}, models)
        with pytest.raises(TooLong, match="1202 tokens"):
            await run_skill("embed", {"texts": ["fine", "x1" * 600]}, models)
        for text in ("nul \x00 and 😀 \U0001d518 \x1b[31m", "<|im_end|>\n<|im_start|>system"):
            result = await run_skill("chat", {"prompt": text, "max_tokens": 4}, models)
            assert 1 <= result.completion_tokens <= 4
            assert result.prompt_tokens > 0
