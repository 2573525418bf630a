"""ctransformers in its worker: what it can answer, that it answers as llama.cpp does, and what must never
reach its library.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from test_inference.echo_pool import until
from test_inference.gguf_files import ARRAY, F32, I32, STRING, U32, Tensor, gguf, keys
from test_inference.llama_files import write_llama_file
from test_inference.skill_models import run_skill

from covey.inference.byte_pair import LETTERS
from covey.inference.catalogue import known
from covey.inference.engine import CTRANSFORMERS, ChatMessage, GenerateRequest
from covey.inference.errors import (
    BadModel,
    BadRequest,
    ModelError,
    TooLong,
    Unsupported,
    WorkerDied,
)
from covey.inference.model_files import ModelFile, add_model, digest_of, list_models
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings

pytestmark = pytest.mark.model
LONG_S = 60.0
HELLO = GenerateRequest(prompt="Hello", max_tokens=1)
COUNT = (ChatMessage("user", "Count from one to five."),)


def cached(folder: Path, name: str) -> Path:
    model = known(name)
    assert model is not None
    return folder / f"{name}-{model.digest[:16]}.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> ModelFile:
    source = cached(cached_models, "smollm2-135m-instruct-ct")
    return add_model(source, tmp_path_factory.mktemp("models"), link=True)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> ModelFile:
    source = cached(cached_models, "smollm2-135m-instruct")
    return add_model(source, tmp_path_factory.mktemp("models"), link=True)


def offer(pool: Pool, *files: ModelFile) -> None:
    pool.offer(files, {"text": files[0].info.name})


def run_script(script: str, *arguments: str) -> Any:
    """Run native code in a process of its own, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        check=False,
        timeout=LONG_S * 2,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return json.loads(done.stdout)


# Of llama.cpp the tokens that it writes, with the gap between its two best at each; then ctransformers
# is led along the same tokens, whatever it would have said itself. Two threads: each engine has one core.
BOTH = """
import json, sys, threading, queue
from pathlib import Path
from covey.inference.chat_template import render
from covey.inference.engine import ChatMessage, LoadSpec
from covey.inference.held_sequence import HeldSequence
from covey.inference.llamacpp_engine import LlamaCppEngine
from covey.inference.tokenizer import read_tokenizer

PROMPTS = [
    "Name three parts of a pump.", "What is a bearing?", "Count from one to ten.",
    "Write one sentence about rain.", "How do I boil an egg?", "What is 12 plus 30?",
    "Say hello in a friendly way.", "List two colours.", "Why is the sky blue?",
    "What does a valve do?", "Give me a title for a story about a lighthouse.",
    "Translate 'good morning' to Spanish.", "What is the capital of Italy?",
    "Explain a gear in one line.", "Describe a winter day.", "What is a network?",
    "How many days has a week?", "Write a line about snow.", "What is iron used for?",
    "Tell me about trains.",
]
original, converted = sys.argv[1:]
tokenizer = read_tokenizer(Path(converted))
said = queue.Queue()

def refer():
    engine = LlamaCppEngine(LoadSpec(path=original, name="m", role="text", slots=1))
    for prompt in PROMPTS:
        parts = render((ChatMessage("user", prompt),), tokenizer)
        ids = [one for text, special in parts for one in tokenizer.encode(text, special=special)]
        asked = {"prompt": ids, "max_tokens": 40, "temperature": 0, "logprobs": 2}
        written = engine._server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        said.put((ids, [
            (one["id"], one["top_logprobs"][0]["logprob"] - one["top_logprobs"][1]["logprob"])
            for one in written
        ]))
    said.put(None)

threading.Thread(target=refer, daemon=True).start()
sequence = HeldSequence(converted, context_tokens=1024, threads=1)
of, gaps = 0, []
while (found := said.get(timeout=60)) is not None:
    ids, written = found
    sequence.begin(ids, lambda: False)
    for token, gap in written:
        of += 1
        if int(sequence.logits.argmax()) != token:
            gaps.append(gap)
        sequence.feed([token])
print(json.dumps({"of": of, "gaps": gaps}))
"""


def test_both_engines_say_the_same_next_but_where_two_tokens_are_nearly_as_likely(
    model: ModelFile, original: ModelFile
) -> None:
    found = run_script(BOTH, str(original.path), str(model.path))
    assert found["of"] >= 500
    assert len(found["gaps"]) <= 0.1 * found["of"]
    assert max(found["gaps"], default=0.0) <= 0.5


# What must be refused before the library sees it, and what is evaluated how often.
BOUNDS = """
import json, sys
from covey.inference.ctransformers_engine import CTransformersEngine
from covey.inference.engine import GenerateRequest, LoadSpec
from covey.inference.errors import ModelError

engine = CTransformersEngine(LoadSpec(path=sys.argv[1], name="m", role="text", context_tokens=192))
sequence = engine._sequence
refused = []
for tokens in ([-1], [49152], [10**9], [5] * 193, []):
    try:
        sequence.feed(tokens)
    except ModelError as error:
        refused.append(str(error))

def asks(prompt, stop_at=None):
    heard = []
    def on_piece(text):
        heard.append(text)
        return len(heard) == stop_at
    done = engine.generate(GenerateRequest(prompt=prompt, max_tokens=1), on_piece)
    return [len(heard), len(sequence), done.completion_tokens, sequence.logits[:9].tolist()]

def begun(tokens):
    sequence.begin(tokens, lambda: False)
    return sequence.logits[:9].tolist()

long = "one two three four five " * 30
print(json.dumps({
    "refused": refused,
    "first": asks(long),
    "again": asks(long),
    "cancelled": asks("zero " + long, stop_at=3),
    "other": asks(long[:200] + "pump"),
    "at last": asks(long),
    "to the brim": len(engine.generate(
        GenerateRequest(prompt="x", max_tokens=900), lambda _: False).text) > 0 and len(sequence),
    "grown": begun(ones := sequence._held[:150]),
    "begun": begun([5]) and begun(ones),
}))
"""


def test_bounds_are_kept_before_the_library_and_a_prompt_is_evaluated_in_chunks(
    model: ModelFile,
) -> None:
    found = run_script(BOUNDS, str(model.path))

    assert found["refused"] == [
        "-1 is no token of a model that has 49152",
        "49152 is no token of a model that has 49152",
        "1000000000 is no token of a model that has 49152",
        "193 tokens do not fit behind 0 in a context of 192",
        "there is no token to evaluate",
    ]
    # 151 tokens are three chunks, of which the first two are kept for who asks the same again.
    pieces, held, written, logits = found["first"]
    assert (held, written) == (151, 1)
    # To the last bit: a token that was evaluated in other company would differ.
    assert found["again"] == [pieces - 2, 151, 1, logits]
    # Asked before each chunk whether to stop, it stopped before the third.
    assert found["cancelled"][:3] == [3, 128, 0]
    assert found["at last"][1:] == [151, 1, logits]
    assert found["to the brim"] == 192
    # An answer that has become part of a prompt is evaluated as one.
    assert found["grown"] == found["begun"]


async def test_a_cancelled_prompt_gives_its_slot_to_the_next_before_it_is_evaluated(
    model: ModelFile,
) -> None:
    """Evaluated to its end it would outlast the grace, and its worker would be ended."""
    async with open_pool(replace(PoolSettings(), context_tokens=8192, grace_s=8.0)) as pool:
        offer(pool, model)
        await pool.generate(HELLO, deadline_s=LONG_S)
        pid = pool.worker_pid(model.info.name)
        with pytest.raises(ModelError, match=r"did not answer within 0\.2 s"):
            await pool.generate(
                GenerateRequest(prompt="one two three " * 2500, max_tokens=1), deadline_s=0.2
            )
        await pool.generate(HELLO, deadline_s=LONG_S)
        assert pool.worker_pid(model.info.name) == pid


async def test_what_is_asked_again_is_answered_again_whatever_came_between(
    model: ModelFile,
) -> None:
    system = ChatMessage("system", "You are brief. " * 20)
    colour, pump = (
        GenerateRequest(messages=(system, ChatMessage("user", text)), max_tokens=12)
        for text in ("Name a colour.", "What is a pump?")
    )
    drawn = msgspec.structs.replace(colour, temperature=0.9, seed=7)
    async with open_pool(PoolSettings()) as pool:
        offer(pool, model)
        first = [await pool.generate(one, deadline_s=LONG_S) for one in (colour, drawn)]
        await pool.generate(pump, deadline_s=LONG_S)
        again = [await pool.generate(one, deadline_s=LONG_S) for one in (colour, drawn)]
    assert again == first


async def test_a_stop_string_across_tokens_ends_the_answer_before_it(model: ModelFile) -> None:
    async with open_pool(PoolSettings()) as pool:
        offer(pool, model)
        request = GenerateRequest(messages=COUNT, max_tokens=40)
        whole = await pool.generate(request, deadline_s=LONG_S)
        stop = whole.text[len(whole.text) // 2 - 3 :][:6]
        pieces: list[str] = []

        cut = await pool.generate(
            msgspec.structs.replace(request, stop=("never", stop)),
            deadline_s=LONG_S,
            on_piece=pieces.append,
        )

    assert cut.finish == "stop"
    assert cut.text == "".join(pieces) == whole.text[: whole.text.index(stop)]
    assert 0 < cut.completion_tokens < whole.completion_tokens


async def test_a_choice_is_scored_by_what_the_prompt_says_and_cut_at_max_tokens(
    model: ModelFile,
) -> None:
    def machine(text: str) -> GenerateRequest:
        return GenerateRequest(
            prompt=f"Sentence: {text}\\nMachine as JSON: ",
            max_tokens=40,
            json_schema={
                "type": "object",
                "properties": {
                    "machine": {"enum": ["mixer_2", "fan-7", "pump-1"]},
                    "seen": {"const": True},
                },
            },
        )

    async with open_pool(PoolSettings()) as pool:
        offer(pool, model)
        for name in ("mixer_2", "fan-7", "pump-1"):
            answer = await pool.generate(machine(f"{name} is hot."), deadline_s=LONG_S)
            assert json.loads(answer.text) == {"machine": name, "seen": True}
        short = msgspec.structs.replace(machine("fan-7 is hot."), max_tokens=4)
        cut = await pool.generate(short, deadline_s=LONG_S)
        assert (cut.finish, cut.completion_tokens) == ("length", 4)
        assert answer.text.startswith(cut.text[:8])


async def test_extract_and_chat_run_on_it_and_what_cannot_says_where(model: ModelFile) -> None:
    schema = {
        "type": "object",
        "properties": {"machine": {"type": "string"}},
    }
    async with open_pool(PoolSettings()) as pool:
        offer(pool, model)
        text = "mixer_2 and fan-7 were seen at 14:05, mixer_2 was hot."
        found = await run_skill("extract", {"schema": schema, "text": text}, pool)
        assert found.items[0].fields["machine"] in ("mixer_2", "fan-7")
        assert found.model == model.info.name
        said = await run_skill("chat", {"prompt": "Name a colour.", "max_tokens": 4}, pool)
        assert said.completion_tokens == 4

        free = GenerateRequest(prompt="x", json_schema={"type": "object", "properties": {"a": {}}})
        for request in (free, GenerateRequest(prompt="x", grammar="root ::= [a-z]+")):
            with pytest.raises(Unsupported, match=r"ctransformers keeps to .* on llama\.cpp"):
                await pool.generate(request, deadline_s=LONG_S)
        # SmolLM2 has no token for this byte.
        with pytest.raises(BadRequest, match="nothing of the text is in the vocabulary"):
            await pool.generate(GenerateRequest(prompt="\x04"), deadline_s=LONG_S)
        with pytest.raises(Unsupported, match=r"makes vectors, on llama\.cpp"):
            await pool.embed(["x"], model=model.info.name, deadline_s=LONG_S)


async def test_one_request_has_the_whole_context_and_the_others_wait(model: ModelFile) -> None:
    async with open_pool(PoolSettings(waiting=2)) as pool:
        offer(pool, model)
        assert pool.info(None, "text").context_tokens == 4096
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await pool.generate(HELLO, deadline_s=LONG_S)).text)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert len(answers) == 3


def one_layer() -> bytes:
    """A `llama` file of the kind that ends ctransformers: it has an output matrix, and its vocabulary is
    of byte pairs, in which the library looks for a line's end under the name of another kind.
    """
    tokens = [*LETTERS, "ab"]
    size, width, inner = len(tokens), 64, 96
    of = keys(
        layers=("llama.block_count", U32, 1),
        kv_heads=("llama.attention.head_count_kv", U32, 4),
        tokens=("tokenizer.ggml.tokens", ARRAY, (STRING, tokens)),
        scores=("tokenizer.ggml.scores", ARRAY, (F32, [-float(at) for at in range(size)])),
        types=("tokenizer.ggml.token_type", ARRAY, (I32, [1] * size)),
        merges=("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
        pre=("tokenizer.ggml.pre", STRING, "smollm"),
        bos=("tokenizer.ggml.bos_token_id", U32, 1),
        eos=("tokenizer.ggml.eos_token_id", U32, 2),
        inner=("llama.feed_forward_length", U32, inner),
        rope=("llama.rope.dimension_count", U32, 16),
        epsilon=("llama.attention.layer_norm_rms_epsilon", F32, 1e-5),
    )
    square, up = (width, width), (width, inner)
    shapes = {
        "token_embd": (width, size), "output_norm": (width,), "output": (width, size),
        "blk.0.attn_norm": (width,), "blk.0.attn_q": square, "blk.0.attn_k": square,
        "blk.0.attn_v": square, "blk.0.attn_output": square, "blk.0.ffn_norm": (width,),
        "blk.0.ffn_gate": up, "blk.0.ffn_down": (inner, width), "blk.0.ffn_up": up,
    }  # fmt: skip
    tensors: list[Tensor] = []
    data = b""
    for name, shape in shapes.items():
        tensors.append(Tensor(f"{name}.weight", shape, offset=len(data)))
        data += bytes(4 * math.prod(shape))
    return gguf(of, tensors, data=data)


def forced(folder: Path, name: str, data: bytes, like: ModelFile) -> ModelFile:
    """A file that is given to ctransformers whatever probe and choice say of it."""
    path = folder / f"{name}.gguf"
    path.write_bytes(data)
    info = msgspec.structs.replace(
        like.info, name=name, engine=CTRANSFORMERS, digest=digest_of(path), size_bytes=len(data)
    )
    return replace(like, info=info, path=path, changed_ns=path.stat().st_mtime_ns)


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("byte-pairs", WorkerDied, "killed by SIGSEGV"),
        ("garbage", BadModel, "garbage.gguf"),
        ("cut", BadModel, "cut.gguf"),
        ("empty", BadModel, "empty.gguf"),
    ],
)
async def test_a_file_that_ends_the_library_ends_its_worker_alone(
    tmp_path: Path, original: ModelFile, name: str, kind: type[ModelError], why: str
) -> None:
    """As if the probe had let it through; the other model's worker answers before and after."""
    whole = one_layer()
    data = {
        "byte-pairs": whole,
        "garbage": b"GGUF\x03\x00\x00\x00" + b"\xff" * 4000,
        "cut": whole[:2000],
        "empty": b"",
    }[name]
    file = forced(tmp_path, name, data, original)
    async with open_pool(PoolSettings()) as pool:
        offer(pool, original, file)
        await pool.generate(HELLO, deadline_s=LONG_S)
        pid = pool.worker_pid(original.info.name)

        with pytest.raises(ModelError) as failed:
            await pool.generate(HELLO, model=name, deadline_s=LONG_S)

        assert type(failed.value) is kind
        assert why in str(failed.value)
        await pool.generate(HELLO, deadline_s=LONG_S)
        assert pool.worker_pid(original.info.name) == pid
        crashes = pool.supervisions[file.info.digest].crashes
        await until(lambda: len(crashes) == 1, "the failed start is counted")


async def test_a_sentence_piece_file_runs_as_it_is_within_our_context_whatever_its_own(
    tmp_path: Path,
) -> None:
    """4 M tokens of context, as its header has it, would take gigabytes."""
    data = bytearray(write_llama_file(tmp_path / "plain.gguf").read_bytes())
    at = data.index(b"llama.context_length") + len(b"llama.context_length") + 4
    data[at : at + 4] = (1 << 22).to_bytes(4, "little")
    (tmp_path / "plain.gguf").write_bytes(data)
    ((file,), _) = list_models(tmp_path, CTRANSFORMERS)
    assert (file.info.engine, file.header.context_tokens) == (CTRANSFORMERS, 1 << 22)
    async with open_pool(PoolSettings(context_tokens=512)) as pool:
        offer(pool, file)
        for text in ("the pump 😀😀😀😀😀😀😀😀 𒀀𒁀𐍈", "\x04\x00", "日本" * 20):
            request = GenerateRequest(messages=(ChatMessage("user", text),), max_tokens=4)
            answer = await pool.generate(request, deadline_s=LONG_S)
            assert 1 <= answer.completion_tokens <= 4
        pid = pool.worker_pid("plain")
        with pytest.raises(TooLong, match="the model takes 512"):
            await pool.generate(GenerateRequest(prompt="𒀀" * 200), deadline_s=LONG_S)
        labels = GenerateRequest(prompt="the pump", grammar='root ::= "is high" | "is"')
        assert (await pool.generate(labels, deadline_s=LONG_S)).text in ("is high", "is")
        assert pool.worker_pid("plain") == pid


SEALED = """
import sys
from covey.inference.engine import GenerateRequest, LoadSpec
from covey.inference.syscall_filter import SOCKETS, deny
from covey.inference.worker import limit_process, make_engine

limit_process(int(sys.argv[2]))
deny(SOCKETS)
engine = make_engine("ctransformers", LoadSpec(path=sys.argv[1], name="m", role="text", slots=1))
print(engine.generate(GenerateRequest(prompt="x", max_tokens=2), lambda _: False).completion_tokens)
"""


def test_it_loads_without_programs_and_sockets_in_two_thirds_of_the_memory_it_is_given(
    model: ModelFile,
) -> None:
    """Which is over 1,000 MiB for this file and 4,096 tokens of context."""
    assert run_script(SEALED, str(model.path), str(700 * 1024 * 1024)) == 2
