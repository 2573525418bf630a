"""Byte pairs: the same tokens as llama.cpp's, every text comes back, and none is more than text."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_inference.llama_cpp_tokens import LlamaCppTokens, open_llama_cpp, varied_texts

from covey.inference.byte_pair import LETTERS, WORD_LETTERS_MAX, BytePair
from covey.inference.decoding import Decoder
from covey.inference.errors import BadModel
from covey.inference.tokenizer import Tokenizer, read_tokenizer
from covey.inference.vocabulary import TokenType, Vocabulary

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["a b", "ab ab", "Ġ a", "Ġa b", "Ġ Ġ", "' s", "< |", "i m", "ð Ł", "ðŁ ĺ", "1 2"]
TOKENS = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
TYPES = [TokenType.CONTROL] * 3 + [TokenType.NORMAL] * (len(TOKENS) - 3)
# Texts in which what the tables know is likely.
TEXTS = st.lists(
    st.sampled_from([*SPECIAL, "ab", " ab", "  ", "it's", "😀", "\n", "12"]) | st.text(max_size=8),
    max_size=12,
).map("".join)


def tokenizer(
    tokens: Sequence[str] = TOKENS,
    types: Sequence[int] = TYPES,
    merges: Sequence[str] = MERGES,
    *,
    pre: str = "smollm",
    begins: bool = False,
) -> BytePair:
    return BytePair(Vocabulary(tokens, types, {"bos": 1, "eos": 2}), merges, pre, begins=begins)


SMALL = tokenizer()


def pieces(of: Tokenizer, tokens: Sequence[int]) -> list[str]:
    decoder = of.decoder()
    return [*map(decoder.feed, tokens), decoder.end()]


@pytest.fixture(scope="module")
def model(cached_models: Path) -> Path:
    (path,) = cached_models.glob("smollm2-135m-instruct-????????????????.gguf")
    return path


@pytest.fixture(scope="module")
def ours(model: Path) -> Tokenizer:
    return read_tokenizer(model)


@pytest.fixture(scope="module")
def theirs(model: Path) -> Iterator[LlamaCppTokens]:
    with open_llama_cpp(model) as server:
        yield server


@pytest.mark.model
@pytest.mark.parametrize("special", [False, True])
def test_three_hundred_texts_are_the_same_tokens_as_llama_cpps(
    ours: Tokenizer, theirs: LlamaCppTokens, special: bool
) -> None:
    texts = varied_texts()
    assert len(texts) == 300
    for text in texts:
        assert ours.encode(text, special=special) == theirs.encode(text, special=special), text


@pytest.mark.model
def test_smollm_begins_with_no_token_and_ends_a_turn_or_a_text(
    ours: Tokenizer, theirs: LlamaCppTokens
) -> None:
    assert ours.vocabulary_size == 49152
    assert ours.begin is None
    assert theirs.encode("a", begins=True) == ours.encode("a")
    assert ours.ends == {0, 2}


@pytest.mark.model
def test_a_byte_without_a_token_is_left_out(ours: Tokenizer) -> None:
    assert ours.encode("a\x04b") == [*ours.encode("a"), *ours.encode("b")]


@given(TEXTS)
def test_where_every_byte_has_a_token_every_text_comes_back(text: str) -> None:
    assert "".join(pieces(SMALL, SMALL.encode(text))) == text


@given(TEXTS)
def test_no_text_of_a_user_is_a_special_token_or_one_that_does_not_exist(text: str) -> None:
    assert all(len(SPECIAL) <= token < len(TOKENS) for token in SMALL.encode(text))


def test_only_where_it_is_asked_for_is_a_special_tokens_name_that_token() -> None:
    assert SMALL.encode("<|im_start|>ab<|im_end|>", special=True) == [1, TOKENS.index("ab"), 2]
    assert len(SMALL.encode("<|im_start|>")) > 1


def test_what_begins_and_ends_a_turn_is_special_whatever_the_file_calls_it() -> None:
    for kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
        # In another order: 1 and 2 are said to be special.
        names = ["<|im_start|>", "<|endoftext|>", "<|im_end|>"]
        mislabelled = tokenizer([*names, *TOKENS[3:]], [kind] * 3 + TYPES[3:])
        assert mislabelled.ends == {1, 2}
        assert not {0, 1, 2} & set(mislabelled.encode("<|im_start|><|im_end|><|endoftext|>"))


def test_what_the_file_says_begins_or_ends_a_text_is_special_whatever_its_type() -> None:
    of = tokenizer(["[END]", "[B]", "[E]", *LETTERS], [TokenType.USER_DEFINED] * 3 + [1] * 256, [])
    assert of.ends == {2}
    assert len(of.encode("[B][E]")) == 6
    assert of.encode("[B][E][END]", special=True) == [1, 2, 0]


def test_merges_go_in_the_order_learned_and_from_the_left() -> None:
    # One that is listed again stays where it was first.
    merges = ["b c", "a b", "a a", "b c"]
    of = tokenizer(tokens=[*LETTERS, "ab", "bc", "aa"], types=[1] * 259, merges=merges)
    assert [of.encode(text) for text in ("abc", "ab", "aaa")] == [
        [LETTERS.index("a"), 257],
        [256],
        [258, LETTERS.index("a")],
    ]


def test_each_digit_is_a_word_and_spaces_before_one_are_at_an_end() -> None:
    # The vocabulary has "12" and two spaces as tokens.
    digits = [TOKENS.index(digit) for digit in "12"]
    assert SMALL.encode("12") == digits
    assert SMALL.encode("  12") == [TOKENS.index("\u0120\u0120"), *digits]
    assert SMALL.encode("  a") == [TOKENS.index("\u0120"), TOKENS.index("\u0120a")]


def test_a_special_token_is_no_text() -> None:
    assert pieces(SMALL, [1, TOKENS.index("ab"), 2]) == ["", "ab", "", ""]


def test_a_special_token_without_a_name_is_found_nowhere() -> None:
    assert tokenizer(["", *TOKENS[1:]]).encode("ab", special=True) == [TOKENS.index("ab")]


def test_half_a_surrogate_pair_is_a_question_mark() -> None:
    assert SMALL.encode("a\ud83d") == SMALL.encode("a?")


def test_a_word_that_comes_again_is_the_same_tokens_again() -> None:
    for word in ("ab", "it's", "ab" * WORD_LETTERS_MAX):
        once = SMALL.encode(word)
        assert SMALL.encode(f"{word}\n{word}") == [*once, *SMALL.encode("\n"), *once]


def test_one_long_word_takes_no_time_that_grows_with_its_square() -> None:
    started = process_time()
    assert len(SMALL.encode("ab" * 50_000)) == 25_000
    # About 0.5 s; pair by pair through the whole word it would be many minutes.
    assert process_time() - started < 20


@pytest.mark.parametrize("begins", [False, True])
def test_a_text_begins_with_a_token_only_if_the_model_wants_it(begins: bool) -> None:
    assert tokenizer(begins=begins).begin == (1 if begins else None)


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_half_a_character_is_never_told(text: str) -> None:
    said = ""
    for piece in pieces(SMALL, [len(SPECIAL) + byte for byte in text.encode()]):
        said += piece
        assert text.startswith(said)
    assert said == text


@given(st.lists(st.binary(max_size=4), max_size=12))
def test_wherever_bytes_are_cut_into_tokens_the_same_text_is_told(cut: list[bytes]) -> None:
    decoder = Decoder(cut)
    said = [decoder.feed(token) for token in range(len(cut))]
    assert "".join([*said, decoder.end()]) == b"".join(cut).decode(errors="replace")


def test_a_character_that_is_never_finished_is_one_mark_at_the_end() -> None:
    decoder = Decoder([b"a\xf0\x9f", b"\x98"])
    assert [decoder.feed(0), decoder.feed(1), decoder.end()] == ["a", "", "\ufffd"]


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"tokens": [*TOKENS[:-1], "a"]}, "'a' twice"),
        ({"tokens": []}, "empty"),
        ({"types": TYPES[1:]}, f"{len(TOKENS)} tokens and {len(TOKENS) - 1} types"),
        ({"types": [*TYPES[1:], 0]}, "type 0"),
        ({"types": [7, *TYPES[1:]]}, "type 7"),
        ({"merges": ["a b", "ab c"]}, r"merge 1 \('ab c'\)"),
        ({"merges": ["a  b"]}, "merge 0"),
        ({"merges": ["ab"]}, "merge 0"),
        ({"tokens": [*TOKENS[:-1], "a b"], "merges": []}, "'a b'.* not in the byte alphabet"),
        ({"tokens": [*TOKENS[:-1], "\u2581"], "merges": []}, "not in the byte alphabet"),
        ({"pre": "qwen2"}, "cuts words as 'qwen2'; known is smollm"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(
    wrong: dict[str, list[str]], why: str
) -> None:
    with pytest.raises(BadModel, match=why):
        tokenizer(**wrong)  # type: ignore[arg-type]


def test_a_merge_into_a_special_token_is_refused() -> None:
    with pytest.raises(BadModel, match="merge 0"):
        tokenizer(tokens=[*LETTERS, "ab"], types=[1] * 256 + [3], merges=["a b"])
