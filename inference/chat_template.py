"""How is a conversation put to a model? In the form that its family was trained on. Pure.

A file's own template is a program of whoever made the file, so it is not run: the families that we know
are written here. What comes out is cut where a special token is, so that nothing a user wrote can become
one: text that is special is ours alone.
"""

from collections.abc import Sequence

from .engine import ChatMessage
from .tokenizer import Tokenizer

Part = tuple[str, bool]
"""A text, and whether what it names are special tokens."""

_BEGIN, _END = "<|im_start|>", "<|im_end|>"
# SmolLM2 was trained with one of these in front of every conversation.
_SMOLLM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
# A token of SmolLM's that other families with ChatML write otherwise.
_SMOLLM_TOKEN = "<repo_name>"
_NAMES = {"user": "User", "assistant": "Assistant"}


def render(messages: Sequence[ChatMessage], tokenizer: Tokenizer) -> list[Part]:
    """Return the conversation up to where the assistant's next turn begins.

    ChatML where the vocabulary has its tokens (with the system message of SmolLM2 where it is that
    family and the conversation has none). Otherwise a plain form, all of it text:

        What the system message says.

        User: a question
        Assistant: an answer
        User: another
        Assistant:

    A last message of the assistant is the beginning of its turn, and goes on.

    Args:
        messages: oldest first.
        tokenizer: of the model.
    """
    if all(_is_token(tokenizer, name) for name in (_BEGIN, _END)):
        return _chatml(messages, _SMOLLM if _is_token(tokenizer, _SMOLLM_TOKEN) else None)
    return _plain(messages)


def _is_token(tokenizer: Tokenizer, name: str) -> bool:
    return len(tokenizer.encode(name, special=True)) == 1


def _chatml(messages: Sequence[ChatMessage], system: str | None) -> list[Part]:
    turns, begun = _open_turn(messages)
    if system is not None and turns and turns[0].role != "system":
        turns = [ChatMessage("system", system), *turns]
    parts: list[Part] = []
    for turn in turns:
        parts += [
            (_BEGIN, True),
            (f"{turn.role}\n{turn.content}", False),
            (_END, True),
            ("\n", False),
        ]
    return [*parts, (_BEGIN, True), (f"assistant\n{begun}", False)]


def _plain(messages: Sequence[ChatMessage]) -> list[Part]:
    turns, begun = _open_turn(messages)
    lines = [
        f"{turn.content}\n\n" if turn.role == "system" else f"{_NAMES[turn.role]}: {turn.content}\n"
        for turn in turns
    ]
    # No space at the end: the word that follows brings its own.
    return [("".join(lines) + "Assistant:" + (f" {begun}" if begun else ""), False)]


def _open_turn(messages: Sequence[ChatMessage]) -> tuple[list[ChatMessage], str]:
    """Return the turns that are over, and what the assistant has begun."""
    if messages and messages[-1].role == "assistant":
        return [*messages[:-1]], messages[-1].content
    return [*messages], ""
