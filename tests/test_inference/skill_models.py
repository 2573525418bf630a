"""What do skills think with in tests? A scripted stand-in for `Models`, and the real models."""

import hashlib
import math
import tempfile
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from covey.inference.catalogue import CATALOGUE
from covey.inference.engine import Completion, GenerateRequest, ModelInfo, Models, Role
from covey.inference.model_files import add_model
from covey.inference.pool import open_pool
from covey.inference.skills import SKILLS, Context, decode_request
from covey.inference.worker_process import PoolSettings

Answer = Callable[[GenerateRequest], str]
DIMENSIONS = 16


class ScriptedModels:
    """Implements `Models`: says what a test tells it to, and keeps what it was asked.

    A vector depends on the words of a text: texts that share words are near each other.
    """

    def __init__(self, answer: Answer | None = None) -> None:
        self._answer = answer or first_of_each
        self.asked: list[GenerateRequest] = []
        self.embedded: list[str] = []

    def info(self, name: str | None, role: Role) -> ModelInfo:
        return ModelInfo(
            name=name or f"scripted-{role}",
            role=role,
            digest="00" * 32,
            size_bytes=1,
            licence="none",
            context_tokens=1024,
        )

    async def generate(
        self, request: GenerateRequest, *, model: str | None = None, deadline_s: float
    ) -> Completion:
        self.asked.append(request)
        text = self._answer(request)
        return Completion(
            text=text,
            finish="stop",
            prompt_tokens=sum(len(one.content.split()) for one in request.messages),
            completion_tokens=len(text.split()),
            model=self.info(model, "text").name,
        )

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        self.embedded += texts
        return [_vector(text) for text in texts]


def _vector(text: str) -> list[float]:
    summed = [0.0] * DIMENSIONS
    for word in text.lower().split() or [""]:
        for at, byte in enumerate(hashlib.sha256(word.encode()).digest()[:DIMENSIONS]):
            summed[at] += byte - 127.5
    length = math.sqrt(sum(number * number for number in summed))
    return [number / length for number in summed]


def first_of_each(request: GenerateRequest) -> str:
    """Choose the first thing that the schema allows, as a constrained model might."""
    return _chosen(request, 0)


def last_of_each(request: GenerateRequest) -> str:
    """Choose the last thing that the schema allows."""
    return _chosen(request, -1)


def never(request: GenerateRequest) -> str:
    """Fail the test: nothing was to be asked."""
    raise AssertionError(f"the model was asked: {request}")


def _chosen(request: GenerateRequest, at: int) -> str:
    properties: dict[str, Any] = (request.json_schema or {}).get("properties", {})
    chosen = {name: entry["enum"][at] for name, entry in properties.items()}
    return msgspec.json.encode(chosen).decode()


async def run_skill(skill: str, asked: object, models: Models | None = None) -> Any:
    """Run a skill as the daemon does: from JSON."""
    request = decode_request(SKILLS[skill], msgspec.json.encode(asked))
    context = Context(models or ScriptedModels(), 60.0, lambda _text: None)
    return await SKILLS[skill].run(request, context)


@asynccontextmanager
async def real_models(folder: Path) -> AsyncGenerator[Models]:
    """Run the default models, in workers of their own."""
    with tempfile.TemporaryDirectory(prefix="cv") as copies:
        files = [add_model(path, Path(copies), link=True) for path in _found(folder)]
        async with open_pool(PoolSettings(threads=1)) as pool:
            pool.offer(files, {file.info.role: file.info.name for file in files})
            yield pool


def _found(folder: Path) -> list[Path]:
    return [folder / f"{one.name}-{one.digest[:16]}.gguf" for one in CATALOGUE if one.is_default]
