"""ctransformers behind the `Engine` port. Runs only in a worker process.

Its traps are met in `held_sequence`. Text becomes tokens by our own tokenizer, requests take turns, and
since it knows no grammar, what may be answered is scored where it can be listed.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .alternatives import Part, of_grammar, of_schema
from .chat_template import render
from .engine import Completion, GenerateRequest, LoadSpec, OnPiece
from .errors import BadModel, BadRequest, TooLong, Unsupported
from .held_sequence import HeldSequence
from .likeliest import likeliest
from .sampling import Sampler, log_shares
from .stop_strings import StopStrings
from .tokenizer import read_tokenizer


class CTransformersEngine:
    """One loaded model.

    Raises:
        BadModel: ctransformers refuses the file, or its vocabulary cannot be read.
    """

    def __init__(self, spec: LoadSpec) -> None:
        self._name = spec.name
        self._tokenizer = read_tokenizer(Path(spec.path))
        self._sequence = HeldSequence(
            spec.path, context_tokens=max(1, spec.context_tokens), threads=spec.threads
        )
        known, there = self._tokenizer.vocabulary_size, self._sequence.vocabulary_size
        if known != there:
            raise BadModel(
                f"{Path(spec.path).name} lists {known} tokens, and ctransformers finds {there}: it "
                "is damaged; fetch it again"
            )
        self._turn = threading.Lock()

    def generate(self, request: GenerateRequest, on_piece: OnPiece) -> Completion:
        """Return what the model writes; `on_piece` is told as it comes and may stop it."""
        parts: list[Part] = []
        if request.grammar is not None:
            parts = of_grammar(request.grammar)
        elif request.json_schema is not None:
            parts = of_schema(request.json_schema)
        prompt = self._prompt(request)
        if not prompt:
            raise BadRequest(f"nothing of the text is in the vocabulary of {self._name}")
        # One must be left for an answer.
        self._check_fits(len(prompt) + 1, len(prompt))
        answer = _Answer(request, on_piece)
        with self._turn:
            if self._sequence.begin(prompt, answer.is_stopped):
                if parts:
                    self._choose(answer, prompt, parts)
                else:
                    self._write(answer)
        return Completion(
            text="".join(answer.said),
            finish=answer.finish,
            prompt_tokens=len(prompt),
            completion_tokens=answer.tokens,
            model=self._name,
        )

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Refuse: what a model that writes holds last is a poor vector of a text."""
        raise Unsupported(
            f"{self._name} writes text; an embedding model makes vectors, on llama.cpp"
        )

    def _prompt(self, request: GenerateRequest) -> list[int]:
        begin = self._tokenizer.begin
        tokens = [] if begin is None else [begin]
        if request.prompt is not None:
            return tokens + self._tokenizer.encode(request.prompt)
        for text, is_special in render(request.messages, self._tokenizer):
            tokens += self._tokenizer.encode(text, special=is_special)
        return tokens

    def _check_fits(self, needed: int, told: int) -> None:
        fits = self._sequence.context_tokens
        if needed > fits:
            raise TooLong(f"the input has {told} tokens, the model takes {fits}; ask for less")

    def _write(self, answer: "_Answer") -> None:
        """Write freely, a token at a time."""
        request = answer.request
        sampler = Sampler(request.temperature, request.seed)
        decoder = self._tokenizer.decoder()
        while True:
            token = sampler.next(self._sequence.logits)
            answer.tokens += 1
            if token in self._tokenizer.ends:
                break
            # Half a character is an empty piece, which is told too: it is when one may stop.
            if answer.tell(decoder.feed(token)):
                return
            if answer.tokens >= request.max_tokens or self._sequence.is_full:
                answer.finish = "length"
                break
            self._sequence.feed([token])
        # A character that was begun and not finished is not told.
        answer.tell_rest()

    def _choose(self, answer: "_Answer", prompt: list[int], parts: Sequence[Part]) -> None:
        """Fill each place of the answer with its likeliest text, given what stands before it."""
        text = ""
        for part in parts:
            options = [self._tokenizer.encode(text + one) for one in part]
            longest = len(prompt) + max(map(len, options))
            self._check_fits(longest, longest)

            def shares_after(tokens: Sequence[int]) -> NDArray[np.float64]:
                if answer.is_stopped():
                    raise _Stopped
                self._sequence.go_to([*prompt, *tokens])
                return log_shares(self._sequence.logits)

            try:
                text += part[likeliest(options, shares_after, self._tokenizer.ends)]
            except _Stopped:
                return
        tokens = self._tokenizer.encode(text)
        answer.tokens = min(len(tokens), answer.request.max_tokens)
        if answer.tokens < len(tokens):
            answer.finish = "length"
            decoder = self._tokenizer.decoder()
            cut = "".join(map(decoder.feed, tokens[: answer.tokens]))
            # Some vocabularies put a space in front of every text.
            text = cut if text.startswith(" ") else cut.removeprefix(" ")
        if not answer.tell(text):
            answer.tell_rest()


class _Stopped(Exception):
    """Nobody waits for the answer any more."""


class _Answer:
    """What is written, and told as it is; stops where it is told to."""

    def __init__(self, request: GenerateRequest, on_piece: OnPiece) -> None:
        self.request = request
        self.said: list[str] = []
        self.tokens = 0
        self.finish: Literal["stop", "length"] = "stop"
        self._on_piece = on_piece
        self._stop = StopStrings(request.stop)

    def is_stopped(self) -> bool:
        return self._on_piece("")

    def tell(self, text: str) -> bool:
        """Tell what may be told; True when no more is wanted."""
        piece = self._stop.feed(text)
        self.said.append(piece)
        return self._on_piece(piece) or self._stop.is_found

    def tell_rest(self) -> None:
        """Tell also what was held back: nothing follows."""
        self.said.append(self._stop.end())
        self._on_piece(self.said[-1])
