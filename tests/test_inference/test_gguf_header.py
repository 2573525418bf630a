"""The probe: whatever a file holds, it is a header found sound or a BadModel that says why."""

import io
import struct
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf as reference
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from test_inference.gguf_files import (
    ARRAY,
    BOOL,
    F32,
    I32,
    STRING,
    U32,
    U64,
    Key,
    Tensor,
    gguf,
    keys,
    text,
)

from covey.inference.architectures import EMBEDDING, TEXT
from covey.inference.errors import BadModel
from covey.inference.gguf_header import ARRAY_ITEMS_MAX, STRING_BYTES_MAX, Header, probe

SOUND = gguf()


def probed(data: bytes) -> Header:
    return probe(io.BytesIO(data), len(data))


def test_a_sound_header_is_read() -> None:
    assert probed(SOUND) == Header(
        architecture="llama",
        name="Tiny",
        licence="mit",
        context_tokens=256,
        layers=2,
        width=64,
        heads=4,
        kv_heads=2,
        kv_width=32,
        tokenizer="gpt2",
        pre="",
        vocabulary=3,
        has_chat_template=False,
        tensors=1,
        tensor_types=frozenset({0}),
        has_output=False,
        is_converted=False,
    )


def test_one_token_of_context_takes_key_and_value_of_each_layer_in_half_precision() -> None:
    assert probed(SOUND).kv_bytes_per_token == 2 * 2 * 32 * 2
    wide: list[Key] = [
        *keys(),
        ("llama.attention.key_length", U32, 256),
        ("llama.attention.value_length", U32, 128),
    ]
    assert probed(gguf(wide)).kv_bytes_per_token == 2 * 2 * (256 + 128) * 2


@given(st.data())
def test_a_sound_header_with_bytes_changed_is_read_or_refused_and_nothing_worse(
    data: st.DataObject,
) -> None:
    changed = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        some = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff" * 8, b"\0" * 8]))
        changed[at : at + len(some)] = some
    cut = data.draw(st.integers(0, len(changed)))
    for tried in (bytes(changed), bytes(changed[:cut])):
        with suppress(BadModel):
            assert isinstance(probed(tried), Header)


@given(st.binary(max_size=400), st.sampled_from([2, 3]), st.integers(0, 3), st.integers(0, 3))
@example(b"", 3, 1, 0)
def test_any_bytes_after_the_magic_are_refused_or_read_and_nothing_worse(
    data: bytes, version: int, tensors: int, known_keys: int
) -> None:
    for tried in (data, b"GGUF" + struct.pack("<IQQ", version, tensors, known_keys) + data):
        with suppress(BadModel):
            assert isinstance(probed(tried), Header)


@given(st.integers(0, len(SOUND) - 1))
def test_a_file_cut_anywhere_is_refused(at: int) -> None:
    with pytest.raises(BadModel):
        probed(SOUND[:at])


def replaced(old: bytes, new: bytes) -> bytes:
    assert SOUND.count(old) == 1
    return SOUND.replace(old, new)


def with_key(name: str, kind: int, value: Any) -> bytes:
    return gguf([*keys(), (name, kind, value)])


LIST_TOO_LONG = replaced(
    struct.pack("<IQ", STRING, 3) + text("a"),
    struct.pack("<IQ", STRING, ARRAY_ITEMS_MAX + 1) + text("a"),
)


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("cut within its header", b""),
        ("not a GGUF file: it begins with b'PK", b"PK\x03\x04" + bytes(400)),
        ("not a GGUF file", b"ggml" + SOUND[4:]),
        ("GGUF version 1;", gguf(version=1)),
        ("GGUF version 4;", gguf(version=4)),
        ("GGUF version 50331648;", b"GGUF" + struct.pack(">I", 3) + SOUND[8:]),
        ("cut within its header", SOUND[: len(SOUND) // 2]),
        ("ends beyond its", SOUND[:-1]),
        ("0 tensors", gguf(tensors=[])),
        ("20001 tensors", gguf(counts=(20_001, 10))),
        ("513 keys", gguf(counts=(1, 513))),
        ("18446744073709551615 tensors", gguf(counts=(2**64 - 1, 2**64 - 1))),
        ("key 'general.name' twice", with_key("general.name", STRING, "again")),
        ("tensor 't' twice", gguf(tensors=[Tensor("t"), Tensor("t")])),
        ("a text of 4194305 bytes", with_key("x", STRING, "y" * (STRING_BYTES_MAX + 1))),
        ("a text of 1025 bytes", with_key("k" * 1025, U32, 1)),
        (
            "a text of 9223372036854775808 bytes",
            replaced(text("Tiny"), struct.pack("<Q", 2**63) + b"Tiny"),
        ),
        (f"a list of {ARRAY_ITEMS_MAX + 1} items", LIST_TOO_LONG),
        ("a list of unknown type 9", with_key("x", ARRAY, (ARRAY, [(U32, [1])]))),
        ("a value of unknown type 13", replaced(text("Tiny"), text("Tiny")).replace(
            text("general.name") + struct.pack("<I", STRING),
            text("general.name") + struct.pack("<I", 13),
        )),
        ("alignment is 48", with_key("general.alignment", U32, 48)),
        ("alignment is 4", with_key("general.alignment", U32, 4)),
        ("alignment is 8192", with_key("general.alignment", U32, 8192)),
        ("alignment is -32", with_key("general.alignment", I32, -32)),
        ("is not aligned", gguf(tensors=[Tensor("t", offset=16)], data=bytes(512))),
        ("has unknown type 4", gguf(tensors=[Tensor("t", kind=4)])),
        ("an impossible shape", gguf(tensors=[Tensor("t", shape=(33,), kind=8)])),
        ("an impossible shape", gguf(tensors=[Tensor("t", shape=(32, 0))])),
        ("an impossible shape", gguf(tensors=[Tensor("t", shape=(2**32,))])),
        ("has 0 dimensions", gguf(tensors=[Tensor("t", shape=())])),
        ("has 5 dimensions", gguf(tensors=[Tensor("t", shape=(1,) * 5)])),
        ("ends beyond", gguf(tensors=[Tensor("t", shape=(2**31,) * 4)])),
        ("ends beyond", gguf(tensors=[Tensor("t", offset=2**64 - 32)])),
        ("names no architecture", gguf(keys(architecture=""))),
        ("names no architecture", gguf(keys()[1:])),
        ("architecture 'warp' is not known", gguf(keys("warp"))),
        ("3 heads (1 of keys) do not divide", gguf(keys(
            heads=("llama.attention.head_count", U32, 3),
            kv_heads=("llama.attention.head_count_kv", U32, 1),
        ))),
        ("4 heads (3 of keys) do not divide", gguf(keys(
            kv_heads=("llama.attention.head_count_kv", U32, 3)
        ))),
        ("head_count is 0", gguf(keys(heads=None))),
        ("head_count is 0", gguf(keys(heads=("llama.attention.head_count", F32, 4.0)))),
        ("embedding_length is 0", gguf(keys(width=None))),
        ("embedding_length is -64", gguf(keys(width=("llama.embedding_length", I32, -64)))),
        ("block_count is 4294967295", gguf(keys(layers=("llama.block_count", U32, 2**32 - 1)))),
        ("context_length is 0", gguf(keys(context=None))),
        ("key_length is 18446744073709551615", with_key(
            "llama.attention.key_length", U64, 2**64 - 1
        )),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_by_its_name(why: str, data: bytes) -> None:
    with pytest.raises(BadModel) as refused:
        probed(data)
    assert why in str(refused.value)


def test_a_header_without_end_is_refused_before_it_is_read_whole() -> None:
    long: list[Key] = [*keys(), *((f"k{n}", STRING, "y" * STRING_BYTES_MAX) for n in range(17))]
    data = gguf(long)
    read = io.BytesIO(data)
    with pytest.raises(BadModel, match="cut within its header"):
        probe(read, len(data))
    assert read.tell() <= 64 * 1024 * 1024


def test_an_absurd_context_passes_but_is_bounded() -> None:
    absurd = gguf(keys(context=("llama.context_length", U64, 2**63)))
    assert probed(absurd).context_tokens == 1 << 24


def test_a_number_for_each_layer_counts_as_its_greatest() -> None:
    hybrid = keys("lfm2", kv_heads=("lfm2.attention.head_count_kv", ARRAY, (I32, [0, 0, 2, 0, 2])))
    assert probed(gguf(hybrid)).kv_heads == 2


def test_what_decides_which_engine_can_run_a_file_is_read() -> None:
    tensors = [Tensor("token_embd.weight"), Tensor("output.weight", kind=8), Tensor("x", kind=8)]
    own = ("covey.tokenizer.tokens", ARRAY, (STRING, ["a"]))
    plain = probed(gguf([*keys(), ("tokenizer.ggml.pre", STRING, "smollm")], tensors))
    converted = probed(gguf([*keys(), own], tensors))

    assert (plain.pre, plain.is_converted) == ("smollm", False)
    assert (converted.pre, converted.is_converted) == ("", True)
    assert plain.tensor_types == {0, 8}
    assert plain.has_output


def test_values_of_a_wrong_type_are_read_as_absent_where_nothing_depends_on_them() -> None:
    odd = probed(
        gguf(
            keys(
                name=("general.name", U32, 7),
                licence=("general.license", BOOL, True),
                tokenizer=("tokenizer.ggml.model", F32, 1.0),
            )
        )
    )
    assert (odd.name, odd.licence, odd.tokenizer) == ("", "", "")


# Q8_1 is only ever in memory; the reference tells an older size of it.
@pytest.mark.parametrize(
    "kind", [kind for kind in reference.GGMLQuantizationType if kind.name != "Q8_1"]
)
def test_each_tensor_type_takes_the_bytes_that_the_format_says(
    kind: reference.GGMLQuantizationType,
) -> None:
    elements, size = reference.GGML_QUANT_SIZES[kind]
    whole = gguf(tensors=[Tensor("t", shape=(elements, 3), kind=int(kind))], data=bytes(3 * size))

    assert probed(whole).tensors == 1
    with pytest.raises(BadModel, match="ends beyond"):
        probed(whole[:-1])


def test_every_architecture_of_the_format_is_known_or_left_out_on_purpose() -> None:
    named = set(reference.MODEL_ARCH_NAMES.values())
    assert named - TEXT - EMBEDDING == {"clip", "wavtokenizer-dec", "t5encoder"}
    assert not TEXT & EMBEDDING


@pytest.mark.model
def test_the_real_headers_read_right(cached_models: Path) -> None:
    (text_model,) = cached_models.glob(f"smollm2-135m-instruct-{'?' * 16}.gguf")
    (encoder,) = cached_models.glob("all-minilm-l6-v2-*.gguf")
    with text_model.open("rb") as file:
        smol = probe(file, text_model.stat().st_size)
        file.seek(0)
        with pytest.raises(BadModel, match="is cut"):
            probe(file, text_model.stat().st_size // 2)
    with encoder.open("rb") as file:
        minilm = probe(file, encoder.stat().st_size)
    assert smol == Header(
        architecture="llama",
        name="Smollm2 135M 8k Lc100K Mix1 Ep2",
        licence="apache-2.0",
        context_tokens=8192,
        layers=30,
        width=576,
        heads=9,
        kv_heads=3,
        kv_width=128,
        tokenizer="gpt2",
        pre="smollm",
        vocabulary=49152,
        has_chat_template=True,
        tensors=272,
        tensor_types=frozenset({0, 3, 8}),
        has_output=False,
        is_converted=False,
    )
    assert smol.kv_bytes_per_token == 23_040
    (converted,) = cached_models.glob("smollm2-135m-instruct-ct-*.gguf")
    with converted.open("rb") as file:
        assert probe(file, converted.stat().st_size) == replace(
            smol,
            tokenizer="llama",
            pre="",
            has_chat_template=False,
            tensors=273,
            has_output=True,
            is_converted=True,
        )
    assert not smol.is_embedding
    assert minilm.is_embedding
    assert (minilm.architecture, minilm.context_tokens, minilm.vocabulary) == ("bert", 512, 30522)
