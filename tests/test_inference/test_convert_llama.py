"""A conversion for ctransformers: the same model in a file that loads, or a reason; never half."""

import json
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_inference.gguf_files import (
    ARRAY,
    F32,
    I32,
    STRING,
    U32,
    Key,
    Tensor,
    gguf,
    keys,
)

from covey.inference.byte_pair import LETTERS
from covey.inference.catalogue import known
from covey.inference.convert_llama import convert, vocabulary
from covey.inference.engine_choice import choose
from covey.inference.errors import BadModel
from covey.inference.gguf_header import Header, probe
from covey.inference.gguf_tables import read_tables
from covey.inference.model_files import add_model, digest_of
from covey.inference.tokenizer import read_tokenizer

TOKENS = ["<|end|>", "a", "b", "ab", "Ġ", "Ċ"]
TYPES = [3, 1, 1, 1, 1, 1]
WEIGHTS = struct.pack("<32f", *range(32))
LISTS = {
    "covey.tokenizer.tokens", "covey.tokenizer.types", "covey.tokenizer.merges",
    "tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges",
    "tokenizer.ggml.scores",
}  # fmt: skip


def tiny(
    architecture: str = "llama",
    tensors: tuple[Tensor, ...] = (Tensor("token_embd.weight"),),
    *,
    data: bytes = WEIGHTS,
    alignment: int = 32,
    **other: Key | None,
) -> bytes:
    """Return a file that is converted, unless `other` makes it one that is not."""
    usual: Mapping[str, Key | None] = {
        "tokens": ("tokenizer.ggml.tokens", ARRAY, (STRING, TOKENS)),
        "pre": ("tokenizer.ggml.pre", STRING, "smollm"),
        "types": ("tokenizer.ggml.token_type", ARRAY, (I32, TYPES)),
        "merges": ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
        "end": ("tokenizer.ggml.eos_token_id", U32, 0),
    }
    return gguf(keys(architecture, **{**usual, **other}), tensors, data=data, alignment=alignment)


def header_of(path: Path) -> Header:
    with path.open("rb") as file:
        return probe(file, path.stat().st_size)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "tiny.gguf"
    path.parent.mkdir()
    path.write_bytes(tiny())
    return path


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "made" / "tiny-ct.gguf"
    path.parent.mkdir()
    return path


def test_each_token_keeps_its_id_and_is_written_as_sentence_piece_would() -> None:
    tokens = {
        "<|im_end|>": ("<|im_end|>", 0.0, 3),
        "a": ("a", 0.0, 1),
        "Ġ": ("▁", 0.0, 1),
        "Ċ": ("<0x0A>", 0.0, 6),
        "Ã": ("<0xC3>", 0.0, 6),
        "Ã©": ("é", -2.0, 1),
        "Ġthe": ("▁the", -1.0, 1),
        "ðŁ": ("<part7>", 0.0, 5),
        "âĸģ": ("<dup8>", 0.0, 5),
        "": ("<part9>", 0.0, 5),
    }
    types = [3, *(1 for _ in range(9))]

    made = vocabulary([*tokens], types, ["t he", "Ġt he", "Ã ©", "Ġ the"])

    assert [*zip(*made, strict=True)] == [*tokens.values()]


@given(st.lists(st.text(LETTERS, max_size=4), unique=True, max_size=40))
@example(["Ġ", "<dup2>", "âĸģ"])
def test_no_two_tokens_are_written_alike(tokens: list[str]) -> None:
    pieces, scores, types = vocabulary(tokens, [1] * len(tokens), [])
    assert len(set(pieces)) == len(scores) == len(types) == len(tokens)


def test_the_file_says_what_it_was_made_from_and_keeps_its_tables(
    source: Path, target: Path
) -> None:
    digest = convert(source, target)

    made = read_tables(target, LISTS)
    assert digest == digest_of(source)
    assert made["covey.source.sha256"] == digest
    assert made["covey.tokenizer.tokens"] == TOKENS
    assert made["covey.tokenizer.types"] == TYPES
    assert made["covey.tokenizer.merges"] == ["a b"]
    assert made["covey.tokenizer.pre"] == "smollm"
    assert made["tokenizer.ggml.model"] == "llama"
    assert made["tokenizer.ggml.tokens"] == ["<|end|>", "a", "b", "ab", "▁", "<0x0A>"]
    assert made["tokenizer.ggml.eos_token_id"] == 0
    assert {"tokenizer.ggml.pre", "tokenizer.ggml.merges"}.isdisjoint(made)
    assert (made["general.name"], made["llama.context_length"]) == ("Tiny", 256)
    assert read_tokenizer(target).encode("ab b\n") == [3, 4, 2, 5]


def test_the_same_source_gives_the_same_bytes(source: Path, target: Path) -> None:
    other = source.rename(source.with_name("renamed.gguf"))
    again = target.with_name("again.gguf")

    convert(other, target)
    convert(other, again)

    assert target.read_bytes() == again.read_bytes()
    assert {*target.parent.iterdir()} == {target, again}


OUTPUT = (Tensor("token_embd.weight"), Tensor("output.weight", offset=128))


@pytest.mark.parametrize(
    ("data", "output"),
    [
        (tiny(), WEIGHTS),
        (tiny(tensors=OUTPUT, data=WEIGHTS + bytes(128)), bytes(128)),
        # Written with the usual alignment, whatever the source's is.
        (tiny(alignment=4096, align=("general.alignment", U32, 4096)), WEIGHTS),
    ],
)
def test_weights_stay_and_the_output_matrix_is_the_embedding_where_there_is_none(
    source: Path, target: Path, data: bytes, output: bytes
) -> None:
    source.write_bytes(data)

    convert(source, target)

    header = header_of(target)
    assert (header.tensors, header.has_output) == (2, True)
    assert target.read_bytes().endswith(WEIGHTS + output)
    assert target.stat().st_size % 32 == 0


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("not a GGUF file", b"PK\x03\x04" + bytes(400)),
        ("is cut", tiny()[:-1]),
        ("only llama models are, not gemma3", tiny("gemma3")),
        (
            "only byte-pair vocabularies of kind smollm are, not 'llama' (smollm)",
            tiny(tokenizer=("tokenizer.ggml.model", STRING, "llama")),
        ),
        (
            "kind smollm are, not 'gpt2' (qwen2)",
            tiny(pre=("tokenizer.ggml.pre", STRING, "qwen2")),
        ),
        ("kind smollm are, not 'gpt2' (no kind of byte pairs named)", tiny(pre=None)),
        (
            "ctransformers does not know tensors of type 20",
            tiny(tensors=(Tensor("token_embd.weight"), Tensor("x", kind=20, offset=32))),
        ),
        ("no list of texts tokenizer.ggml.merges", tiny(merges=None)),
        (
            "its list of merges is empty",
            tiny(merges=("tokenizer.ggml.merges", ARRAY, (STRING, []))),
        ),
        (
            "merge 0 ('a c') is not of two tokens",
            tiny(merges=("tokenizer.ggml.merges", ARRAY, (STRING, ["a c"]))),
        ),
        (
            "no list of texts tokenizer.ggml.tokens",
            tiny(tokens=("tokenizer.ggml.tokens", ARRAY, (F32, [1.0]))),
        ),
        ("no list of numbers tokenizer.ggml.token_type", tiny(types=None)),
        (
            "6 tokens and 1 types",
            tiny(types=("tokenizer.ggml.token_type", ARRAY, (I32, [1]))),
        ),
        (
            "is not in the byte alphabet",
            tiny(tokens=("tokenizer.ggml.tokens", ARRAY, (STRING, [*TOKENS[:5], "→"]))),
        ),
        ("it has no token_embd.weight", tiny(tensors=(Tensor("blk.0.attn_q.weight"),))),
    ],
)
def test_what_is_not_converted_is_refused_by_its_reason_and_leaves_nothing(
    source: Path, target: Path, why: str, data: bytes
) -> None:
    source.write_bytes(data)

    with pytest.raises(BadModel) as refused:
        convert(source, target)

    assert why in str(refused.value)
    assert list(target.parent.iterdir()) == []


def test_a_source_that_is_gone_is_a_bad_model(source: Path, target: Path) -> None:
    source.unlink()
    with pytest.raises(BadModel, match="cannot be read: No such file"):
        convert(source, target)


# The system ends the process, or refuses, in the middle of the first write beyond the limit.
_WITH_LITTLE_ROOM = """
import resource, signal, sys
from pathlib import Path
from covey.inference.convert_llama import convert
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))
if sys.argv[3] == "killed":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def convert_with_little_room(source: Path, target: Path, how: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-P", "-c", _WITH_LITTLE_ROOM, str(source), str(target), how],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stderr


def test_without_room_for_all_of_it_nothing_is_left(source: Path, target: Path) -> None:
    code, said = convert_with_little_room(source, target, "refused")

    assert (code, "File too large" in said) == (1, True)
    assert list(target.parent.iterdir()) == []


def test_a_killed_conversion_leaves_no_model_and_the_next_addition_clears_up(
    source: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    target = folder / f".adding-{gone.pid}-1"

    code, _ = convert_with_little_room(source, target, "killed")

    (left,) = folder.iterdir()
    assert code == -signal.SIGXFSZ
    assert left != target
    assert left.suffix != ".gguf"

    added = add_model(source, folder)

    assert {*folder.iterdir()} == {added.path, added.path.with_suffix(".json")}


def test_ctransformers_alone_may_load_a_converted_file(source: Path, target: Path) -> None:
    convert(source, target)

    header = header_of(target)
    chosen = choose(header, {}, "llama.cpp")
    assert (header.tokenizer, header.is_converted) == ("llama", True)
    assert chosen.engine == "ctransformers"
    assert "add the file that it was made from" in chosen.overruled("llama.cpp")
    with pytest.raises(BadModel, match=r"no engine here.*made from.*ctransformers: not installed"):
        choose(header, {"ctransformers": "not installed"})


# In a process of its own, as it may end it.
_GREEDY = """
import json, sys
from pathlib import Path
from covey.inference.held_sequence import HeldSequence
from covey.inference.tokenizer import read_tokenizer
path = Path(sys.argv[1])
tokenizer = read_tokenizer(path)
held = HeldSequence(str(path), context_tokens=256, threads=1)
prompt = tokenizer.encode(sys.argv[2])
held.begin(prompt, lambda: False)
tokens = []
for _ in range(20):
    tokens.append(int(held.logits.argmax()))
    held.feed([tokens[-1]])
decoder = tokenizer.decoder()
text = "".join(map(decoder.feed, tokens)) + decoder.end()
print(json.dumps({"prompt": prompt, "tokens": tokens, "text": text}))
"""


@pytest.mark.model
def test_the_real_model_converts_to_the_pinned_file_which_ctransformers_continues_a_text_with(
    cached_models: Path, target: Path
) -> None:
    source, made = known("smollm2-135m-instruct"), known("smollm2-135m-instruct-ct")
    assert source is not None
    assert made is not None

    digest = convert(cached_models / f"{source.name}-{source.digest[:16]}.gguf", target)

    assert digest == source.digest
    assert target.stat().st_size == made.size_bytes
    assert digest_of(target) == made.digest
    header = header_of(target)
    assert (header.vocabulary, header.tensors, header.licence) == (49152, 273, "apache-2.0")
    done = subprocess.run(
        [sys.executable, "-P", "-c", _GREEDY, str(target), "The capital of France is"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["prompt"] == [504, 3575, 282, 4649, 314]
    assert told["text"].startswith(" Paris.")
