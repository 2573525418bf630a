"""Which tokens does a model of ctransformers hold, and what would come next? The one door to its library.

ctransformers 0.2.27, of which little is used: load, evaluate tokens, read logits, and forget the last
tokens. Everything it does with text overflows the heap on what is not ASCII. A token out of range is a
wild pointer to it, and a context that overflows only a printed warning, so both are checked here, before
every call. Not safe for threads: who holds the sequence takes turns.
"""

import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ctransformers  # type: ignore[import-untyped]
import numpy as np
from numpy.typing import NDArray

from .errors import BadModel, ModelError

# The library ships no types that a checker can follow.
_native: Any = ctransformers
# A prompt is evaluated in pieces of so many tokens, and may be cancelled between two of them.
CHUNK_TOKENS = 64


class HeldSequence:
    """A loaded model with the tokens that it has evaluated.

    Raises:
        BadModel: ctransformers refuses the file; it does not say why.
    """

    def __init__(self, path: str, *, context_tokens: int, threads: int) -> None:
        self.context_tokens = context_tokens
        self._held: list[int] = []
        # So many of them were evaluated in whole chunks.
        self._chunked = 0
        settings = _native.llm.Config(context_length=context_tokens, threads=threads)
        try:
            self._model: Any = _native.LLM(path, "gguf", config=settings, lib=_library())
        except (RuntimeError, ValueError, OSError) as error:
            raise BadModel(
                f"ctransformers cannot load {Path(path).name}: {error}; it may be damaged, or of a "
                "kind that only llama.cpp knows"
            ) from error
        self.vocabulary_size = int(self._model.vocab_size)
        if self._model.context_length != context_tokens:
            raise BadModel(
                f"ctransformers gives {Path(path).name} {self._model.context_length} tokens of "
                f"context, not {context_tokens}"
            )

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Tell whether no token fits any more."""
        return len(self._held) >= self.context_tokens

    @property
    def logits(self) -> NDArray[np.float32]:
        """How likely each token is to be the next; a view that the next evaluation changes."""
        if not self._held:
            raise ModelError("nothing was evaluated yet")
        size = int(self._model.ctransformers_llm_logits_size())
        if size != self.vocabulary_size:
            raise ModelError(f"{size} logits for {self.vocabulary_size} tokens")
        pointer = self._model.ctransformers_llm_logits_data()
        return np.ctypeslib.as_array(pointer, shape=(size,))

    def begin(self, prompt: Sequence[int], is_stopped: Callable[[], bool]) -> bool:
        """Hold `prompt` and nothing else; False if it was stopped between two chunks.

        Only whole chunks of an earlier prompt are kept: a token evaluated in other company has
        slightly other logits, and the same prompt shall have the same answer whatever came before.
        """
        # The last token is always evaluated: the logits are its.
        same = shared(self._held[: self._chunked], prompt[:-1])
        self._keep(same // CHUNK_TOKENS * CHUNK_TOKENS)
        for at in range(len(self._held), len(prompt), CHUNK_TOKENS):
            if is_stopped():
                return False
            self.feed(prompt[at : at + CHUNK_TOKENS])
            self._chunked = len(self._held) // CHUNK_TOKENS * CHUNK_TOKENS
        return True

    def go_to(self, tokens: Sequence[int]) -> None:
        """Hold `tokens` and nothing else, by the shortest way from what is held."""
        if tokens != self._held:
            self._keep(shared(self._held, tokens[:-1]))
            self.feed(tokens[len(self._held) :])

    def feed(self, tokens: Sequence[int]) -> None:
        """Evaluate these tokens behind those that are held.

        Raises:
            ModelError: they are none of the model's, or do not fit; the library has not seen them.
        """
        if not tokens:
            raise ModelError("there is no token to evaluate")
        if strange := [one for one in tokens if not 0 <= one < self.vocabulary_size]:
            raise ModelError(f"{strange[0]} is no token of a model that has {self.vocabulary_size}")
        if len(self._held) + len(tokens) > self.context_tokens:
            raise ModelError(
                f"{len(tokens)} tokens do not fit behind {len(self._held)} in a context of "
                f"{self.context_tokens}"
            )
        try:
            self._model.eval(tokens, batch_size=len(tokens))
        except RuntimeError as error:
            # How much of it was done is not known.
            self._keep(0)
            raise ModelError(f"ctransformers: {error}") from error
        self._held += tokens

    def _keep(self, count: int) -> None:
        """Forget all but the first `count` tokens."""
        del self._held[count:]
        self._chunked = min(self._chunked, count // CHUNK_TOKENS * CHUNK_TOKENS)
        # The library goes on behind as many tokens as it is told here that there are.
        self._model._context = list(self._held)


def shared(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _library() -> str | None:
    """Return which of the package's libraries this processor can run.

    Left to itself the package asks another one, which starts programs to find out; those are denied
    to a worker. Elsewhere than on Linux nothing is denied.
    """
    if platform.system() != "Linux":
        return None
    flags = re.findall(r"\w+", Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0])
    if {"avx2", "fma", "f16c"} <= set(flags):
        return "avx2"
    return "avx" if {"avx", "f16c"} <= set(flags) else "basic"
