"""The tokenizer of a model file: by its own tables, or a BadModel that says what is wrong with them."""

import struct
from contextlib import suppress
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_inference.gguf_files import ARRAY, BOOL, F32, I32, STRING, U8, U32, Key, gguf, text

from covey.inference.byte_pair import LETTERS, BytePair
from covey.inference.errors import BadModel
from covey.inference.gguf_header import (
    ARRAY_ITEMS_MAX,
    HEADER_BYTES_MAX,
    KEYS_MAX,
    STRING_BYTES_MAX,
)
from covey.inference.gguf_tables import read_tables
from covey.inference.sentence_piece import SentencePiece
from covey.inference.tokenizer import read_tokenizer


def texts(key: str, of: list[str]) -> Key:
    return key, ARRAY, (STRING, of)


USUAL = "tokenizer.ggml"
BYTE_PAIR: dict[str, Key] = {
    "model": (f"{USUAL}.model", STRING, "gpt2"),
    "pre": (f"{USUAL}.pre", STRING, "smollm"),
    "tokens": texts(f"{USUAL}.tokens", ["<|im_end|>", *LETTERS, "ab"]),
    "types": (f"{USUAL}.token_type", ARRAY, (I32, [3, *[1] * 257])),
    "merges": texts(f"{USUAL}.merges", ["a b"]),
    "eos": (f"{USUAL}.eos_token_id", U32, 0),
}
SENTENCE_PIECE: dict[str, Key] = {
    "model": (f"{USUAL}.model", STRING, "llama"),
    "tokens": texts(f"{USUAL}.tokens", ["<unk>", "<s>", "</s>", "a", "b", "ab", "\u2581"]),
    "types": (f"{USUAL}.token_type", ARRAY, (I32, [2, 3, 3, 1, 1, 1, 1])),
    "scores": (f"{USUAL}.scores", ARRAY, (F32, [0.0, 0.0, 0.0, -3.0, -2.0, -1.0, -4.0])),
}
# As a file converted for ctransformers: SentencePiece for the library, the source's byte pairs for us.
CONVERTED: dict[str, Key] = {
    **SENTENCE_PIECE,
    "our_pre": ("covey.tokenizer.pre", STRING, "smollm"),
    "our_tokens": texts("covey.tokenizer.tokens", ["<|im_end|>", *LETTERS, "ab"]),
    "our_types": ("covey.tokenizer.types", ARRAY, (I32, [3, *[1] * 257])),
    "our_merges": texts("covey.tokenizer.merges", ["a b"]),
    "eos": (f"{USUAL}.eos_token_id", U32, 0),
}


def written(folder: Path, of: dict[str, Key], **other: Key | None) -> Path:
    path = folder / "model.gguf"
    path.write_bytes(gguf([key for key in {**of, **other}.values() if key is not None]))
    return path


@pytest.mark.parametrize("tables", [BYTE_PAIR, CONVERTED], ids=["as it is", "converted"])
def test_byte_pairs_are_read_from_a_file_as_it_is_and_from_a_converted_one(
    tmp_path: Path, tables: dict[str, Key]
) -> None:
    of = read_tokenizer(written(tmp_path, tables))
    assert isinstance(of, BytePair)
    assert (of.vocabulary_size, of.begin, of.ends) == (258, None, {0})
    assert of.encode("aba") == [257, 1 + ord("a")]


def test_a_sentence_piece_vocabulary_has_the_usual_special_tokens_unless_it_says_others(
    tmp_path: Path,
) -> None:
    of = read_tokenizer(written(tmp_path, SENTENCE_PIECE))
    assert isinstance(of, SentencePiece)
    assert (of.vocabulary_size, of.begin, of.ends) == (7, 1, {2})
    assert of.encode("ab") == [6, 5]
    assert of.encode("c") == [6, 0]
    other = read_tokenizer(
        written(
            tmp_path,
            SENTENCE_PIECE,
            space=(f"{USUAL}.add_space_prefix", BOOL, False),
            begins=(f"{USUAL}.add_bos_token", BOOL, False),
            eos=(f"{USUAL}.eos_token_id", U32, 1),
            eot=(f"{USUAL}.eot_token_id", U32, 2),
        )
    )
    assert (other.begin, other.ends) == (None, {1, 2})
    assert other.encode("ab") == [5]


def test_a_byte_pair_model_wants_a_token_in_front_only_if_it_says_so(tmp_path: Path) -> None:
    bos = (f"{USUAL}.bos_token_id", U32, 0)
    assert read_tokenizer(written(tmp_path, BYTE_PAIR, bos=bos)).begin is None
    begins = (f"{USUAL}.add_bos_token", BOOL, True)
    assert read_tokenizer(written(tmp_path, BYTE_PAIR, begins=begins, bos=bos)).begin == 0


@pytest.mark.parametrize(
    ("tables", "wrong", "why"),
    [
        (BYTE_PAIR, {"model": (f"{USUAL}.model", STRING, "bert")}, "kind 'bert'; known are"),
        (BYTE_PAIR, {"model": None}, "no tokenizer.ggml.model that is a str"),
        (BYTE_PAIR, {"pre": (f"{USUAL}.pre", STRING, "qwen2")}, "cuts words as 'qwen2'"),
        (BYTE_PAIR, {"pre": None}, "no tokenizer.ggml.pre"),
        (BYTE_PAIR, {"merges": None}, "no list of texts tokenizer.ggml.merges"),
        (BYTE_PAIR, {"merges": texts(f"{USUAL}.merges", ["a c"])}, r"merge 0 \('a c'\)"),
        (BYTE_PAIR, {"types": (f"{USUAL}.token_type", ARRAY, (I32, [1]))}, "and 1 types"),
        (BYTE_PAIR, {"types": (f"{USUAL}.token_type", ARRAY, (F32, [1.0]))}, "no list of numbers"),
        (BYTE_PAIR, {"tokens": (f"{USUAL}.tokens", ARRAY, (I32, [1]))}, "no list of texts"),
        (BYTE_PAIR, {"eos": (f"{USUAL}.eos_token_id", U32, 258)}, "eos token is 258, of 258"),
        (BYTE_PAIR, {"eos": (f"{USUAL}.eos_token_id", I32, -1)}, "eos token is -1, of 258"),
        (BYTE_PAIR, {"eos": (f"{USUAL}.eos_token_id", STRING, "0")}, "eos_token_id that is a int"),
        (SENTENCE_PIECE, {"scores": None}, "no list of numbers tokenizer.ggml.scores"),
        (SENTENCE_PIECE, {"scores": (f"{USUAL}.scores", ARRAY, (F32, [0.0]))}, "and 1 scores"),
        (SENTENCE_PIECE, {"tokens": texts(f"{USUAL}.tokens", ["a", "a"])}, "types|twice"),
        (SENTENCE_PIECE, {"s": (f"{USUAL}.add_space_prefix", U8, 1)}, "that is a bool"),
        # Where ours are, the usual ones are not taken in their place.
        (CONVERTED, {"our_merges": None}, "no list of texts covey.tokenizer.merges"),
        (CONVERTED, {"our_types": None}, "no list of numbers covey.tokenizer.types"),
        (CONVERTED, {"our_pre": None}, "no covey.tokenizer.pre"),
    ],
)
def test_tables_that_are_missing_or_wrong_are_named(
    tmp_path: Path, tables: dict[str, Key], wrong: dict[str, Key | None], why: str
) -> None:
    with pytest.raises(BadModel, match=f"^model.gguf: .*{why}"):
        read_tokenizer(written(tmp_path, tables, **wrong))


def front(keys: int = 1) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, 1, keys)


def key(kind: int, rest: bytes, name: str = "k") -> bytes:
    return text(name) + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cut within its header"),
        (b"GGML" + front()[4:], "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 1, 0), "of version 2 or 3"),
        (front(KEYS_MAX + 1), f"claims {KEYS_MAX + 1} keys"),
        (front(2) + key(U8, b"\1") * 2, "'k' is there twice"),
        (front() + key(13, b""), "unknown type 13"),
        (front() + key(STRING, struct.pack("<Q", STRING_BYTES_MAX + 1)), "a text of"),
        (front() + key(STRING, struct.pack("<Q", 2**63)), "a text of"),
        (front() + key(STRING, struct.pack("<Q", 2) + b"\xff\xff"), "not UTF-8"),
        (front() + key(STRING, struct.pack("<Q", 2) + b"a"), "cut within"),
        (front() + key(U8, b"", name="k" * 1025), "a text of 1025 bytes"),
        (front() + key(ARRAY, struct.pack("<IQ", U8, ARRAY_ITEMS_MAX + 1)), "a list of"),
        (front() + key(ARRAY, struct.pack("<IQ", 12, ARRAY_ITEMS_MAX)), "cut within"),
        (front() + key(ARRAY, struct.pack("<IQ", ARRAY, 1)), "unknown type 9"),
    ],
)
@pytest.mark.parametrize("lists", [set[str](), {"k"}], ids=["passed over", "read"])
def test_a_file_that_claims_what_it_cannot_hold_is_refused(
    tmp_path: Path, data: bytes, why: str, lists: set[str]
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises(BadModel, match=f"^model.gguf: .*{why}"):
        read_tables(path, lists)


def test_a_header_over_the_limit_is_refused_also_where_the_file_has_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    keys = HEADER_BYTES_MAX // STRING_BYTES_MAX
    with path.open("wb") as file:
        file.write(front(keys))
        for number in range(keys):
            file.write(key(STRING, struct.pack("<Q", STRING_BYTES_MAX), name=str(number)))
            # Nothing is written: a hole reads as zeros.
            file.seek(STRING_BYTES_MAX, 1)
        file.truncate()
    with pytest.raises(BadModel, match="or that is too long"):
        read_tables(path, set())


def test_a_file_that_is_not_there_is_a_bad_model(tmp_path: Path) -> None:
    with pytest.raises(BadModel, match="cannot be read: No such file"):
        read_tokenizer(tmp_path / "model.gguf")


def test_keys_are_read_with_their_values_and_lists_only_if_asked_for(tmp_path: Path) -> None:
    of: dict[str, Key] = {
        "a": ("a", STRING, "é"),
        "b": ("b", I32, -1),
        "c": ("c", BOOL, True),
        "d": ("d", ARRAY, (F32, [0.5, 1.0])),
        "e": ("e", ARRAY, (STRING, ["x", ""])),
        "f": ("f", ARRAY, (STRING, ["y"])),
        "g": ("g", ARRAY, (U8, [])),
    }
    path = written(tmp_path, of)
    assert read_tables(path, {"d", "e"}) == {
        "a": "é",
        "b": -1,
        "c": True,
        "d": [0.5, 1.0],
        "e": ["x", ""],
    }
    assert read_tables(path, {"f", "g"}) == {"a": "é", "b": -1, "c": True, "f": ["y"], "g": []}


@pytest.mark.parametrize("tables", [CONVERTED, SENTENCE_PIECE], ids=["byte pairs", "pieces"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_file_with_bytes_changed_is_read_or_refused_and_nothing_worse(
    tmp_path: Path, tables: dict[str, Key], data: Any
) -> None:
    path = written(tmp_path, tables)
    changed = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(changed) - 1))
        some = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff" * 8, b"\0" * 8]))
        changed[at : at + len(some)] = some
    path.write_bytes(changed[: data.draw(st.integers(0, len(changed)))])
    with suppress(BadModel):
        of = read_tokenizer(path)
        tokens = of.encode("ab é 😀 <|im_end|>")
        assert all(0 <= token < of.vocabulary_size for token in tokens)


@pytest.mark.model
def test_reading_49152_tokens_takes_a_fraction_of_a_second(cached_models: Path) -> None:
    (path,) = cached_models.glob("smollm2-135m-instruct-????????????????.gguf")
    started = process_time()
    assert read_tokenizer(path).vocabulary_size == 49152
    # About 0.3 s; the general reader of the gguf package takes ten times that.
    assert process_time() - started < 2
