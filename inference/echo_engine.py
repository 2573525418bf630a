"""A deterministic engine for tests of the worker and the pool: it echoes, and misbehaves on
command.

Never offered to users.
"""

import ctypes
import os
import signal
import threading
import time
from collections.abc import Sequence

from .engine import Completion, GenerateRequest, LoadSpec, OnPiece
from .errors import BadModel, TooLong, Unsupported

# In a prompt, or in the model's name: then while it loads.
CRASH, ABORT, HANG, EAT, REFUSE = "<<crash>>", "<<abort>>", "<<hang>>", "<<eat>>", "<<refuse>>"
# In a model's name: loading keeps Python waiting this long, as native code does.
HOLD, HOLD_S = "<<hold>>", 1.5
# In a prompt: a word takes this long.
SLOW, SLOW_S = "<<slow>>", 0.02


class EchoEngine:
    """Writes back the last message, word by word."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        _misbehave(spec.name)

    def generate(self, request: GenerateRequest, on_piece: OnPiece) -> Completion:
        """Return the prompt's words, at most max_tokens of them."""
        if self._spec.role == "embedding":
            raise Unsupported(f"{self._spec.name} makes vectors, not text")
        if request.grammar is not None or request.json_schema is not None:
            raise Unsupported("the echo engine keeps to no grammar and no schema")
        text = request.prompt if request.prompt is not None else request.messages[-1].content
        _misbehave(text)
        words = text.split()
        self._check_length(words)
        said: list[str] = []
        for word in words[: request.max_tokens]:
            said.append(word)
            if SLOW in words:
                time.sleep(SLOW_S)
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
        if self._spec.role != "embedding":
            raise Unsupported(f"{self._spec.name} writes text; an embedding model makes vectors")
        for text in texts:
            self._check_length(text.split())
        return [[1.0, 0.0] if len(text) % 2 else [0.0, 1.0] for text in texts]

    def _check_length(self, words: Sequence[str]) -> None:
        fits = self._spec.context_tokens // self._spec.slots
        if len(words) > fits:
            raise TooLong(
                f"the input has {len(words)} tokens, the model takes {fits}; ask for less"
            )


def _misbehave(text: str) -> None:
    if CRASH in text:
        # As a wild pointer would, but without a line in the kernel's log.
        signal.raise_signal(signal.SIGSEGV)
    if ABORT in text:
        os.abort()
    if HANG in text:
        threading.Event().wait()
    if EAT in text:
        hoard = [bytearray(64 * 1024 * 1024) for _ in range(1024)]
        del hoard
    if HOLD in text:
        ctypes.PyDLL(None).usleep(int(HOLD_S * 1e6))
    if REFUSE in text:
        raise BadModel("the echo engine was told to refuse this")
