"""The `Engine` port, as each engine keeps it: in a worker process, through the pool."""

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import trio
from test_inference.echo_pool import echo_model

from covey.inference.engine import ChatMessage, GenerateRequest
from covey.inference.errors import BadRequest, ModelError, TooLong, Unsupported
from covey.inference.model_files import ModelFile, add_model
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings

LONG_S = 60.0


@dataclass(frozen=True)
class Kind:
    """An engine, and a text model and an encoder for it."""

    settings: PoolSettings
    text: ModelFile
    encoder: ModelFile

    def offer(self, pool: Pool) -> None:
        pool.offer(
            [self.text, self.encoder],
            {"text": self.text.info.name, "embedding": self.encoder.info.name},
        )


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> Kind:
    folder = tmp_path_factory.mktemp("real")
    (text,) = cached_models.glob("smollm2-135m-instruct-*.gguf")
    (encoder,) = cached_models.glob("all-minilm-l6-v2-*.gguf")
    return Kind(
        PoolSettings(),
        add_model(text, folder, link=True),
        add_model(encoder, folder, link=True),
    )


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("echo")
    return Kind(
        PoolSettings(engine="echo"),
        echo_model(folder),
        echo_model(folder, "encoder", role="embedding"),
    )


@pytest.fixture(params=["echo", pytest.param("real", marks=pytest.mark.model)])
def kind(request: pytest.FixtureRequest) -> Kind:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Kind)
    return found


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where workers may leave files for as long as they live, and no longer."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.glob("covey-*")) == []


def chat(text: str, *, max_tokens: int = 16, temperature: float = 0.0) -> GenerateRequest:
    return GenerateRequest(
        messages=(ChatMessage("system", "You are brief."), ChatMessage("user", text)),
        max_tokens=max_tokens,
        temperature=temperature,
    )


async def test_text_comes_in_pieces_that_add_up_to_it_with_the_tokens_counted(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        for request in (chat("Count from one to five."), GenerateRequest(prompt="One two three")):
            pieces: list[str] = []

            answer = await pool.generate(request, deadline_s=LONG_S, on_piece=pieces.append)

            assert "".join(pieces).strip() == answer.text.strip() != ""
            assert len(pieces) > 1
            assert answer.prompt_tokens >= 3
            assert 1 < answer.completion_tokens <= request.max_tokens
            assert answer.model == kind.text.info.name


async def test_an_answer_cut_by_max_tokens_says_so(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        request = chat("Tell a long story about a lighthouse.", max_tokens=3)

        answer = await pool.generate(request, deadline_s=LONG_S)

        assert answer.finish == "length"
        assert answer.completion_tokens == 3


async def test_at_temperature_zero_the_same_request_has_the_same_answer(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        answers = {
            (await pool.generate(chat("Name a colour."), deadline_s=LONG_S)).text for _ in range(3)
        }
        assert len(answers) == 1


async def test_requests_at_once_do_not_mix(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        prompts = [f"Number {n} then {n + 1} then" for n in (3, 20, 50, 70)]
        alone = [
            (await pool.generate(GenerateRequest(prompt=one, max_tokens=8), deadline_s=LONG_S)).text
            for one in prompts
        ]
        together: dict[str, str] = {}

        async def ask(prompt: str) -> None:
            request = GenerateRequest(prompt=prompt, max_tokens=8)
            together[prompt] = (await pool.generate(request, deadline_s=LONG_S)).text

        async with trio.open_nursery() as nursery:
            for prompt in prompts:
                nursery.start_soon(ask, prompt)

        assert [together[prompt] for prompt in prompts] == alone


async def test_a_prompt_that_does_not_fit_is_refused_with_both_numbers(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        with pytest.raises(TooLong) as refused:
            await pool.generate(GenerateRequest(prompt="x " * 1100), deadline_s=LONG_S)

        told = re.search(r"the input has (\d+) tokens, the model takes (\d+);", str(refused.value))
        assert told is not None
        assert 1100 <= int(told[1]) <= 1102
        assert told[2] == "1024"


async def test_a_text_that_is_too_long_for_a_vector_is_refused_with_both_numbers(
    kind: Kind,
) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        with pytest.raises(TooLong) as refused:
            await pool.embed(["short", "x " * 600], deadline_s=LONG_S)

        told = re.search(r"the input has (\d+) tokens, the model takes (\d+);", str(refused.value))
        assert told is not None
        assert 600 <= int(told[1]) <= 602
        assert told[2] == "512"


async def test_each_kind_of_model_does_its_own_work_and_no_other(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        # As a caller that mistakes one for the other: the pool goes by the name it is given.
        kind.offer(pool)
        text, encoder = kind.text.info.name, kind.encoder.info.name

        with pytest.raises(Unsupported, match=f"{text} writes text; an embedding model"):
            await pool.embed(["hello"], model=text, deadline_s=LONG_S)
        with pytest.raises(Unsupported, match=f"{encoder} makes vectors, not text"):
            await pool.generate(chat("hello"), model=encoder, deadline_s=LONG_S)


async def test_each_text_gets_a_unit_vector_and_the_same_one_again(kind: Kind) -> None:
    texts = ["pump", "the pump is hot", "Pumpe 😀 𒀀 日本", ""]
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)

        first = await pool.embed(texts, deadline_s=LONG_S)
        again = await pool.embed(texts, deadline_s=LONG_S)

        assert len({len(vector) for vector in first}) == 1
        for vector in first:
            assert sum(number * number for number in vector) == pytest.approx(1.0, abs=1e-3)
        assert again == first
        assert first[0] != first[1]


SCRIPTS = (
    "😀🤖🏭",
    "𒀀𒁀 𐍈",
    "日本語 한국어 ไทย",
    "e\u0301 \u200d \ufeff x",
    "a\x00b\x07c",
    "\U0010ffff",
)


async def test_text_of_any_script_goes_in_and_whole_characters_come_out(kind: Kind) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        pieces: list[str] = []
        for text in SCRIPTS:
            answer = await pool.generate(
                chat(f"Repeat: {text}"), deadline_s=LONG_S, on_piece=pieces.append
            )
            assert answer.completion_tokens >= 1
        assert "\ufffd" not in "".join(pieces)


async def test_a_cancelled_request_frees_its_slot_at_the_next_token(kind: Kind) -> None:
    """Of two endless requests one is cancelled: the next is answered while the other still goes on."""
    if kind.settings.engine == "echo":
        endless = GenerateRequest(prompt="<<slow>> " + "word " * 900, max_tokens=900)
    else:
        endless = GenerateRequest(prompt="x", grammar='root ::= "a" root', max_tokens=900)
    ended: list[str] = []
    async with open_pool(replace(kind.settings, slots=2, context_tokens=2048)) as pool:
        kind.offer(pool)
        async with trio.open_nursery() as nursery:
            heard = trio.Event()

            async def other() -> None:
                answer = await pool.generate(
                    endless, deadline_s=LONG_S, on_piece=lambda _: heard.set()
                )
                ended.append(answer.text)

            nursery.start_soon(other)
            await heard.wait()
            with trio.CancelScope() as scope:
                await pool.generate(endless, deadline_s=LONG_S, on_piece=lambda _: scope.cancel())

            answer = await pool.generate(chat("Hello", max_tokens=1), deadline_s=LONG_S)

            assert scope.cancelled_caught
            assert answer.completion_tokens == 1
            assert ended == []
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("constraint", "fits"),
    [
        ({"grammar": 'root ::= "normal" | "critical"'}, r"normal|critical"),
        ({"grammar": 'root ::= "😀 𒀀 日本"'}, r"😀 𒀀 日本"),
        (
            {
                "json_schema": {
                    "type": "object",
                    "properties": {"unit": {"enum": ["°C", "bar"]}},
                    "required": ["unit"],
                    "additionalProperties": False,
                }
            },
            r'\{\s*"unit":\s*"(°C|bar)"\s*\}',
        ),
    ],
    ids=["labels", "unicode", "schema"],
)
async def test_a_constraint_is_kept_to_or_said_to_be_unsupported(
    kind: Kind, constraint: dict[str, Any], fits: str
) -> None:
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        for request in (
            GenerateRequest(prompt="The pump is", max_tokens=60, **constraint),
            GenerateRequest(messages=(ChatMessage("user", "And?"),), max_tokens=60, **constraint),
        ):
            if kind.settings.engine == "echo":
                with pytest.raises(Unsupported, match="no grammar and no schema"):
                    await pool.generate(request, deadline_s=LONG_S)
                continue

            answer = await pool.generate(request, deadline_s=LONG_S)

            assert re.fullmatch(fits, answer.text.strip()), answer.text
            assert answer.finish == "stop"


@pytest.mark.model
@pytest.mark.parametrize(
    ("constraint", "error", "why"),
    [
        ({"grammar": 'root ::= "'}, BadRequest, "failed to parse grammar"),
        ({"json_schema": {"type": "nonsense"}}, Unsupported, "unrecognized type nonsense"),
    ],
)
async def test_a_constraint_that_is_none_is_refused_and_the_worker_lives(
    real: Kind, constraint: dict[str, Any], error: type[ModelError], why: str
) -> None:
    async with open_pool(real.settings) as pool:
        real.offer(pool)
        request = GenerateRequest(messages=(ChatMessage("user", "hello"),), **constraint)
        with pytest.raises(error, match=why):
            await pool.generate(request, deadline_s=LONG_S)

        answer = await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        assert answer.completion_tokens == 1


@pytest.mark.model
async def test_a_deadline_ends_a_real_answer_in_the_middle(real: Kind) -> None:
    endless = GenerateRequest(prompt="x", grammar='root ::= "a" root', max_tokens=900)
    async with open_pool(real.settings) as pool:
        real.offer(pool)
        await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        pid = pool.worker_pid(real.text.info.name)
        with pytest.raises(ModelError, match=r"did not answer within 0\.3 s"):
            await pool.generate(endless, deadline_s=0.3)
        await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        assert pool.worker_pid(real.text.info.name) == pid
