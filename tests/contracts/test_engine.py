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

from covey.inference.catalogue import known
from covey.inference.engine import CTRANSFORMERS, LLAMA_CPP, ChatMessage, GenerateRequest
from covey.inference.errors import BadRequest, ModelError, TooLong, Unsupported
from covey.inference.model_files import ModelFile, add_model
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings

LONG_S = 60.0


@dataclass(frozen=True)
class Kind:
    """An engine, a text model for it, and an encoder beside it."""

    settings: PoolSettings
    text: ModelFile
    encoder: ModelFile
    endless: GenerateRequest
    """Never ends by itself."""
    fits: int = 1024
    """How many tokens a request may have."""

    def offer(self, pool: Pool) -> None:
        pool.offer(
            [self.text, self.encoder],
            {"text": self.text.info.name, "embedding": self.encoder.info.name},
        )


GRAMMAR_OF_ANY_LENGTH = 'root ::= "a" root'


@pytest.fixture(scope="module")
def llamacpp(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> Kind:
    folder = tmp_path_factory.mktemp("llamacpp")
    kind = Kind(
        PoolSettings(),
        add_model(cached(cached_models, "smollm2-135m-instruct"), folder, link=True),
        add_model(cached(cached_models, "all-minilm-l6-v2"), folder, link=True),
        GenerateRequest(prompt="x", grammar=GRAMMAR_OF_ANY_LENGTH, max_tokens=900),
    )
    assert kind.text.info.engine == LLAMA_CPP
    return kind


@pytest.fixture(scope="module")
def ctransformers(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> Kind:
    folder = tmp_path_factory.mktemp("ctransformers")
    kind = Kind(
        PoolSettings(),
        add_model(cached(cached_models, "smollm2-135m-instruct-ct"), folder, link=True),
        add_model(cached(cached_models, "all-minilm-l6-v2"), folder, link=True),
        # SmolLM2 goes on with ones for ever.
        GenerateRequest(prompt="x", max_tokens=900),
        fits=4096,
    )
    assert kind.text.info.engine == CTRANSFORMERS
    return kind


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Kind:
    folder = tmp_path_factory.mktemp("echo")
    return Kind(
        PoolSettings(engine="echo"),
        echo_model(folder),
        echo_model(folder, "encoder", role="embedding"),
        GenerateRequest(prompt="<<slow>> " + "word " * 900, max_tokens=900),
    )


REAL = [pytest.param(name, marks=pytest.mark.model) for name in ("llamacpp", "ctransformers")]


@pytest.fixture(params=["echo", *REAL])
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


def cached(folder: Path, name: str) -> Path:
    model = known(name)
    assert model is not None
    return folder / f"{name}-{model.digest[:16]}.gguf"


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
            assert "" not in pieces
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
        words = kind.fits + 76
        with pytest.raises(TooLong) as refused:
            await pool.generate(GenerateRequest(prompt="x " * words), deadline_s=LONG_S)

        told = re.search(r"the input has (\d+) tokens, the model takes (\d+);", str(refused.value))
        assert told is not None
        assert words <= int(told[1]) <= words + 2
        assert told[2] == str(kind.fits)


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
    """Of two endless requests one is cancelled: the next is answered while the other still goes on,
    where an engine works on two at once.
    """
    is_alone = kind.text.info.engine == CTRANSFORMERS
    ended: list[str] = []
    async with open_pool(replace(kind.settings, slots=2, context_tokens=2048)) as pool:
        kind.offer(pool)
        async with trio.open_nursery() as nursery:
            heard = trio.Event()

            async def other() -> None:
                answer = await pool.generate(
                    kind.endless, deadline_s=LONG_S, on_piece=lambda _: heard.set()
                )
                ended.append(answer.text)

            if not is_alone:
                nursery.start_soon(other)
                await heard.wait()
            with trio.CancelScope() as scope:
                await pool.generate(
                    kind.endless, deadline_s=LONG_S, on_piece=lambda _: scope.cancel()
                )

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
    ("real", "constraint", "error", "why"),
    [
        ("llamacpp", {"grammar": 'root ::= "'}, BadRequest, "failed to parse grammar"),
        ("llamacpp", {"json_schema": {"type": "nonsense"}}, Unsupported, "type nonsense"),
        ("ctransformers", {"grammar": 'root ::= "'}, Unsupported, r"runs on llama\.cpp"),
        ("ctransformers", {"grammar": GRAMMAR_OF_ANY_LENGTH}, Unsupported, r"runs on llama\.cpp"),
        ("ctransformers", {"json_schema": {"type": "nonsense"}}, Unsupported, r"on llama\.cpp"),
    ],
)
async def test_a_constraint_that_it_cannot_keep_to_is_refused_and_the_worker_lives(
    request: pytest.FixtureRequest,
    real: str,
    constraint: dict[str, Any],
    error: type[ModelError],
    why: str,
) -> None:
    kind: Kind = request.getfixturevalue(real)
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        asked = GenerateRequest(messages=(ChatMessage("user", "hello"),), **constraint)
        with pytest.raises(error, match=why):
            await pool.generate(asked, deadline_s=LONG_S)

        answer = await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        assert answer.completion_tokens == 1


@pytest.mark.parametrize("real", REAL)
async def test_a_deadline_ends_a_real_answer_in_the_middle(
    request: pytest.FixtureRequest, real: str
) -> None:
    kind: Kind = request.getfixturevalue(real)
    async with open_pool(kind.settings) as pool:
        kind.offer(pool)
        await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        pid = pool.worker_pid(kind.text.info.name)
        with pytest.raises(ModelError, match=r"did not answer within 0\.3 s"):
            await pool.generate(kind.endless, deadline_s=0.3)
        await pool.generate(chat("hello", max_tokens=1), deadline_s=LONG_S)
        assert pool.worker_pid(kind.text.info.name) == pid
