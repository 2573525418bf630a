"""Which engine runs a file: what it and the platform allow decides, and only then what is preferred."""

import io
from collections.abc import Sequence

import pytest
from test_inference.gguf_files import ARRAY, STRING, Key, Tensor, gguf, keys

from covey.inference.byte_pair import CUTS
from covey.inference.engine_choice import PRES, choose, missing_here, needs_conversion, rank
from covey.inference.errors import BadModel
from covey.inference.gguf_header import Header, probe

OUTPUT = (Tensor("token_embd.weight"), Tensor("output.weight"))
PIECES: Key = ("tokenizer.ggml.model", STRING, "llama")
IQ4_NL = 20


def header(*given: Key, architecture: str = "llama", tensors: Sequence[Tensor] = OUTPUT) -> Header:
    of = {key[0]: key for key in (*keys(architecture), PIECES, *given)}
    data = gguf([*of.values()], tensors)
    return probe(io.BytesIO(data), len(data))


def pre(name: str) -> tuple[Key, Key]:
    return ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, name)


CONVERTED = header(("covey.tokenizer.tokens", ARRAY, (STRING, ["a", "b", "c"])))
BOTH = header()


@pytest.mark.parametrize(
    ("preferred", "engine"),
    [
        ("auto", "llama.cpp"),
        ("llama.cpp", "llama.cpp"),
        ("ctransformers", "ctransformers"),
        ("none-such", "llama.cpp"),
    ],
)
def test_where_both_can_the_preferred_one_runs_it_and_llama_cpp_without_a_preference(
    preferred: str, engine: str
) -> None:
    chosen = choose(BOTH, {}, preferred)
    assert (chosen.engine, chosen.why_not) == (engine, {})
    assert chosen.overruled(preferred) == ""


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (header(architecture="gemma3"), "it runs architecture llama, not gemma3"),
        (header(architecture="nomic-bert"), "it runs architecture llama, not nomic-bert"),
        (header(tensors=OUTPUT[:1]), "it needs an output matrix of its own"),
        (header(*pre("qwen2")), "cannot read vocabularies of kind 'gpt2' (qwen2)"),
        (header(*pre("smollm")), "converted first: covey models add FILE --engine ctransformers"),
        (
            header(tensors=(*OUTPUT, Tensor("blk.0.attn_q.weight", kind=IQ4_NL))),
            "it does not know tensors of type 20",
        ),
    ],
)
def test_what_ctransformers_cannot_run_llama_cpp_does_and_the_reason_is_told(
    found: Header, why: str
) -> None:
    chosen = choose(found, {}, "ctransformers")
    assert chosen.engine == "llama.cpp"
    assert chosen.overruled("ctransformers").startswith("ctransformers cannot run it: ")
    assert why in chosen.overruled("ctransformers")
    assert chosen.overruled("auto") == ""


@pytest.mark.parametrize("preferred", ["auto", "llama.cpp", "ctransformers"])
def test_a_converted_file_is_ctransformers_alone_whatever_is_preferred(preferred: str) -> None:
    chosen = choose(CONVERTED, {}, preferred)
    assert chosen.engine == "ctransformers"
    assert "vocabulary was rewritten for ctransformers" in chosen.overruled("llama.cpp")


@pytest.mark.parametrize("machine", ["aarch64", "arm64", "riscv64"])
def test_where_ctransformers_has_no_library_llama_cpp_runs_all_that_it_can(machine: str) -> None:
    missing = missing_here(machine, has_ctransformers=True)
    chosen = choose(BOTH, missing, "ctransformers")
    assert chosen.engine == "llama.cpp"
    assert f"it has no library for {machine}" in chosen.overruled("ctransformers")
    with pytest.raises(BadModel, match=r"llama\.cpp: .*; ctransformers: it has no library"):
        choose(CONVERTED, missing)
    assert not needs_conversion(header(*pre("smollm")), missing)


def test_platforms_with_a_library_and_without_the_package() -> None:
    assert missing_here("x86_64", has_ctransformers=True) == {}
    assert missing_here("AMD64", has_ctransformers=True) == {}
    assert "not installed" in missing_here("x86_64", has_ctransformers=False)["ctransformers"]


def test_only_byte_pairs_that_conversion_was_tested_with_need_it() -> None:
    assert frozenset(CUTS) == PRES
    assert needs_conversion(header(*pre("smollm")), {})
    # Its output matrix is made, too.
    assert needs_conversion(header(*pre("smollm"), tensors=OUTPUT[:1]), {})
    for other in (
        BOTH,
        CONVERTED,
        header(*pre("qwen2")),
        header(*pre("smollm"), architecture="gemma3"),
    ):
        assert not needs_conversion(other, {})


def test_models_on_the_preferred_engine_come_first() -> None:
    names = ["ctransformers", "llama.cpp"]
    assert sorted(names, key=lambda one: rank(one, "auto")) == ["llama.cpp", "ctransformers"]
    assert sorted(names, key=lambda one: rank(one, "ctransformers")) == names
