"""What can an engine do? The port that each engine implements, and the one that skills use.

An `Engine` lives in a worker process and blocks; `Models` is what the rest of the daemon sees:
asynchronous, with deadlines, several models, each in a worker of its own.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

import msgspec

Role = Literal["text", "embedding"]
LLAMA_CPP, CTRANSFORMERS = "llama.cpp", "ctransformers"
ENGINES = (LLAMA_CPP, CTRANSFORMERS)
AUTO = "auto"
"""No preference among them."""


class ChatMessage(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Text wanted from a model, for a conversation or to complete a prompt as it is."""

    messages: tuple[ChatMessage, ...] = ()
    prompt: str | None = None
    max_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    grammar: str | None = None
    """GBNF; excludes json_schema."""
    json_schema: dict[str, Any] | None = None


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote."""

    text: str
    finish: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    model: str = ""


class LoadSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How to load a model. Limits are clamped to what the file and the memory allow."""

    path: str
    name: str
    role: Role
    context_tokens: int = 4096
    """In all, over all slots."""
    slots: int = 4
    threads: int = 1


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be asked for."""

    name: str
    role: Role
    digest: str
    size_bytes: int
    licence: str
    context_tokens: int
    """For one request."""
    architecture: str = ""
    engine: str = LLAMA_CPP
    """That runs it here."""
    dimensions: int = 0
    """Of the vectors that an embedding model makes."""


OnPiece = Callable[[str], bool]
"""Told each piece of text as it comes; returns True to stop. An empty piece only asks for that."""


class Engine(Protocol):
    """A loaded model, in a worker. Calls block and may come from several threads at once."""

    def generate(self, request: GenerateRequest, on_piece: OnPiece) -> Completion:
        """Return what the model writes.

        Raises:
            TooLong: the prompt does not fit.
            Unsupported: a kind of constraint that this engine does not know.
        """
        ...

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one unit vector for each text.

        Raises:
            TooLong: a text does not fit.
            Unsupported: it is no embedding model.
        """
        ...


class Models(Protocol):
    """The models of this device."""

    def info(self, name: str | None, role: Role) -> ModelInfo:
        """Return the named model, or the default for a role.

        Raises:
            NoModel: there is none.
        """
        ...

    async def generate(
        self, request: GenerateRequest, *, model: str | None = None, deadline_s: float
    ) -> Completion:
        """Return what a text model writes.

        Raises:
            ModelError: of any kind.
        """
        ...

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        """Return one unit vector for each text.

        Raises:
            ModelError: of any kind.
        """
        ...
