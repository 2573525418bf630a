"""SentencePiece: the same tokens as llama.cpp's, every text comes back, and none is more than text."""

import re
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_inference.llama_cpp_tokens import open_llama_cpp, varied_texts
from test_inference.llama_files import pieces, write_llama_file

from covey.inference.errors import BadModel
from covey.inference.sentence_piece import SentencePiece
from covey.inference.tokenizer import Tokenizer, read_tokenizer
from covey.inference.vocabulary import TokenType, Vocabulary

N, U, C, D, X, B = TokenType
# Merges lead to "<s>", which a text must not become.
SPECIAL = [("<unk>", 0.0, U), ("<s>", 0.0, C), ("</s>", 0.0, C)]
BYTES = [(f"<0x{byte:02x}>", 0.0, B) for byte in range(256)]
WORDS = [
    *((text, -9.0, N) for text in "ab<s>\u2581"),
    ("<s", -1.0, N), ("s>", -1.0, N), ("ab", -2.0, N), ("ba", -1.0, N), ("\u2581a", -2.0, N),
    ("\u2581\u2581", -1.0, N), ("[tool]", 0.0, D), ("<0x41", -1.0, N), ("0x", -1.0, N),
]  # fmt: skip
ALL = [*SPECIAL, *BYTES, *WORDS]
TEXTS = st.lists(
    st.sampled_from(["<s>", "</s>", "<unk>", "<0x41>", "ab", " a", "  ", "[tool]", "\n"])
    | st.text(st.characters(exclude_characters="\u2581", codec="utf-8"), max_size=8),
    max_size=12,
).map("".join)


def tokenizer(
    of: list[tuple[str, float, TokenType]] = ALL,
    scores: list[float] | None = None,
    *,
    prefixed: bool = True,
    begins: bool = True,
) -> SentencePiece:
    named = {"unk": 0, "bos": 1, "eos": 2}
    vocabulary = Vocabulary([text for text, _, _ in of], [kind for _, _, kind in of], named)
    known = [score for _, score, _ in of] if scores is None else scores
    return SentencePiece(vocabulary, known, prefixed=prefixed, begins=begins)


SMALL = tokenizer()


def decoded(of: Tokenizer, tokens: list[int]) -> str:
    decoder = of.decoder()
    return "".join([*map(decoder.feed, tokens), decoder.end()])


def texts_of(of: list[tuple[str, float, TokenType]], tokens: list[int]) -> list[str]:
    return [of[token][0] for token in tokens]


@pytest.mark.model
@pytest.mark.parametrize("space_prefix", [None, True, False])
def test_three_hundred_texts_are_the_same_tokens_as_llama_cpps(
    tmp_path: Path, space_prefix: bool | None
) -> None:
    model = write_llama_file(tmp_path / "tiny.gguf", space_prefix=space_prefix)
    ours = read_tokenizer(model)
    with open_llama_cpp(model) as theirs:
        for text in varied_texts():
            for special in (False, True):
                same = theirs.encode(text, special=special)
                assert ours.encode(text, special=special) == same, text
        assert theirs.encode("the", begins=True) == [ours.begin, *ours.encode("the")]


def test_the_tables_that_were_compared_try_every_kind_of_token() -> None:
    of = pieces()
    tiny = tokenizer(of)
    for special, kinds in ((False, {N, D, X, B}), (True, {*TokenType})):
        encoded = [tiny.encode(text, special=special) for text in varied_texts()]
        assert {of[token][2] for tokens in encoded for token in tokens} == kinds


@given(TEXTS)
def test_where_every_byte_has_a_token_every_text_comes_back(text: str) -> None:
    bare = tokenizer(prefixed=False)
    assert decoded(bare, bare.encode(text)) == text
    # An added word has the next space behind it, as llama.cpp does it.
    spaced = "".join(
        part if part in ("", "[tool]") else f" {part}" for part in re.split(r"(\[tool\])", text)
    )
    assert decoded(SMALL, SMALL.encode(text)) == spaced


@given(TEXTS)
def test_no_text_of_a_user_is_a_special_token_or_one_that_does_not_exist(text: str) -> None:
    assert all(len(SPECIAL) <= token < len(ALL) for token in SMALL.encode(text))


def test_neither_a_byte_nor_a_special_token_is_what_merges_lead_to() -> None:
    bare = tokenizer(prefixed=False)
    assert texts_of(ALL, bare.encode("<s>")) in (["<s", ">"], ["<", "s>"])
    assert ALL.index(("<0x41>", 0.0, B)) not in bare.encode("<0x41>")
    assert bare.encode("<s>", special=True) == [1]


def test_the_highest_score_merges_first_and_of_equal_ones_the_leftmost() -> None:
    bare = tokenizer(prefixed=False)
    assert texts_of(ALL, bare.encode("aba")) == ["a", "ba"]
    even = [*SPECIAL, ("a", -9.0, N), ("aa", -1.0, N)]
    assert texts_of(even, tokenizer(even, prefixed=False).encode("aaa")) == ["aa", "a"]


def test_a_space_is_put_in_front_of_a_text_and_behind_each_special_token() -> None:
    assert texts_of(ALL, SMALL.encode("a<s>a[tool]", special=True)) == [
        "\u2581a",
        "<s>",
        "\u2581a",
        "[tool]",
    ]
    assert SMALL.encode("") == []


def test_a_byte_without_a_token_is_the_unknown_one_or_left_out() -> None:
    few = [*SPECIAL, ("a", -9.0, N)]
    assert tokenizer(few, prefixed=False).encode("a\u00e9") == [3, 0, 0]
    nothing = Vocabulary(["a"], [N], {})
    assert SentencePiece(nothing, [0.0], prefixed=False).encode("a\u00e9a") == [0, 0]


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    assert SMALL.encode("a\ud83d") == SMALL.encode("a?")


def test_one_long_word_takes_no_time_that_grows_with_its_square() -> None:
    started = process_time()
    assert len(SMALL.encode("ab" * 50_000)) > 40_000
    # About 1 s; pair by pair through the whole word it would be many minutes.
    assert process_time() - started < 20


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_begins_with_a_token_unless_the_model_wants_none(begins: bool) -> None:
    assert tokenizer(begins=begins).begin == (1 if begins else None)


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_refused(score: float) -> None:
    with pytest.raises(BadModel, match="score is no number"):
        tokenizer(scores=[score] * len(ALL))


def test_tables_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(BadModel, match=f"{len(ALL)} tokens and 1 scores"):
        tokenizer(scores=[0.0])
    with pytest.raises(BadModel, match=r"'<0x1>'\) is a byte by its type, not by"):
        tokenizer([*ALL, ("<0x1>", 0.0, B)])
    with pytest.raises(BadModel, match="'a' twice"):
        tokenizer([*ALL, ("a", 0.0, N)])
    with pytest.raises(BadModel, match="bos token is 1, of 1"):
        tokenizer(SPECIAL[:1])
