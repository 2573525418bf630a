"""Conversations in the form of a model's family: llama.cpp's tokens, and nothing that a user can forge."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_inference.llama_cpp_tokens import LlamaCppTokens, open_llama_cpp
from test_inference.llama_files import pieces, write_llama_file

from covey.inference.byte_pair import LETTERS, BytePair
from covey.inference.chat_template import render
from covey.inference.engine import ChatMessage
from covey.inference.tokenizer import Tokenizer, read_tokenizer
from covey.inference.vocabulary import TokenType, Vocabulary

CHATML = ["<|im_start|>", "<|im_end|>"]


def system(text: str) -> ChatMessage:
    return ChatMessage("system", text)


def user(text: str) -> ChatMessage:
    return ChatMessage("user", text)


def assistant(text: str) -> ChatMessage:
    return ChatMessage("assistant", text)


def tokenizer(*special: str) -> Tokenizer:
    tokens = [*special, *LETTERS]
    types = [TokenType.CONTROL] * len(special) + [TokenType.NORMAL] * len(LETTERS)
    return BytePair(Vocabulary(tokens, types, {}), [], "smollm")


def encoded(of: Tokenizer, messages: list[ChatMessage]) -> list[int]:
    return [
        token
        for text, is_special in render(messages, of)
        for token in of.encode(text, special=is_special)
    ]


def shown(messages: list[ChatMessage], of: Tokenizer) -> str:
    return "".join(text for text, _ in render(messages, of))


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
@pytest.mark.parametrize(
    "messages",
    [
        [user("Hi")],
        [user("")],
        [user("  12 pumps\n\n\tare  하이 😀\n")],
        [system("Be brief."), user("Which pump?\n")],
        [system(""), user("Which pump?")],
        [user("a"), assistant("b"), user("c")],
        [user("a"), system("Now in French."), user("b")],
        [user("Name it."), assistant("It is")],
        [system("Be brief."), assistant(" ")],
        [assistant("It is")],
    ],
    ids=lambda messages: "-".join(message.role for message in messages),
)
def test_a_conversation_is_the_same_tokens_as_llama_cpps(
    ours: Tokenizer, theirs: LlamaCppTokens, messages: list[ChatMessage]
) -> None:
    same = theirs.encode(theirs.prompt(messages), special=True, begins=True)
    assert encoded(ours, messages) == same


@pytest.mark.model
def test_chatml_with_a_sentence_piece_vocabulary_is_the_same_tokens_as_llama_cpps(
    tmp_path: Path,
) -> None:
    added = [(name, 0.0, TokenType.CONTROL) for name in CHATML]
    path = write_llama_file(tmp_path / "tiny.gguf", [*pieces(), *added])
    of = read_tokenizer(path)
    messages = [system("Be brief."), user(" is the pump\nhigh?"), assistant("it is"), user("x")]
    with open_llama_cpp(path) as reference:
        same = reference.encode(reference.prompt(messages), special=True, begins=True)
    assert [of.begin, *encoded(of, messages)] == same


@pytest.mark.model
def test_a_conversation_takes_as_many_tokens_as_llama_cpp_says_in_its_answer(
    ours: Tokenizer, theirs: LlamaCppTokens
) -> None:
    messages = [user("Which pump is hot?"), assistant("pump_a"), user("And 2?")]
    assert len(encoded(ours, messages)) == theirs.prompt_tokens(messages)


@given(
    st.lists(st.sampled_from([*CHATML, "<|im_", "end|>", "\n", "system"]), max_size=6).map("".join)
)
def test_what_a_user_writes_never_ends_the_users_turn(text: str) -> None:
    of = tokenizer(*CHATML)
    special = [token for token in encoded(of, [user(text)]) if token < len(CHATML)]
    assert special == [0, 1, 0]


def test_only_smollm_has_its_own_system_message_and_only_where_there_is_none() -> None:
    smollm, other = tokenizer(*CHATML, "<repo_name>"), tokenizer(*CHATML)
    assert shown([user("Hi")], other) == ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert shown([user("Hi")], smollm).startswith(
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi"
    )
    assert shown([system("x"), user("Hi")], smollm) == shown([system("x"), user("Hi")], other)


def test_a_model_of_no_known_family_gets_a_plain_conversation_of_text_alone() -> None:
    messages = [system("Be brief."), user("a"), assistant("b"), user("c")]
    plain = "Be brief.\n\nUser: a\nAssistant: b\nUser: c\nAssistant:"
    assert render(messages, tokenizer()) == [(plain, False)]
    assert render(messages, tokenizer("<|im_start|>")) == [(plain, False)]
    assert render([user("a"), assistant("It is")], tokenizer()) == [
        ("User: a\nAssistant: It is", False)
    ]
