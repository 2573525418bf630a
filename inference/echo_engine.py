"""A deterministic engine for tests of the worker and the pool: it echoes, and misbehaves on
command.

Never offered to users.
"""

import ctypes
import threading
from collections.abc import Sequence

from .engine import Completion, GenerateRequest, LoadSpec, OnPiece
from .errors import TooLong

CRASH, HANG, EAT = "<<crash>>", "<<hang>>", "<<eat>>"


class EchoEngine:
    """Writes back the last message, word by word."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec

    def generate(self, request: GenerateRequest, on_piece: OnPiece) -> Completion:
        """Return the prompt's words, at most max_tokens of them."""
        text = request.prompt if request.prompt is not None else request.messages[-1].content
        if CRASH in text:
            ctypes.string_at(0)
        if HANG in text:
            threading.Event().wait()
        if EAT in text:
            hoard = [bytearray(64 * 1024 * 1024) for _ in range(1024)]
            del hoard
        words = text.split()
        if len(words) > self._spec.context_tokens:
            raise TooLong(
                f"the input has {len(words)} tokens, the model takes {self._spec.context_tokens}"
            )
        said: list[str] = []
        for word in words[: request.max_tokens]:
            said.append(word)
            if on_piece(word + " "):
                break
        return Completion(
            text=" ".join(said),
            finish="length" if len(said) < len(words) else "stop",
            prompt_tokens=len(words),
            completion_tokens=len(said),
            model=self._spec.name,
        )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return a unit vector that depends on the text's length only."""
        return [[1.0, 0.0] if len(text) % 2 else [0.0, 1.0] for text in texts]
