"""Echo models in real worker processes, for tests of the pool."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import trio
from test_inference.gguf_files import U32, gguf, keys

from covey.inference.engine import GenerateRequest
from covey.inference.model_files import ModelFile, add_model
from covey.inference.pool import Pool
from covey.inference.worker_process import PoolSettings

# Pings and grace short enough to wait for; everything else as on a device.
ECHO = PoolSettings(engine="echo", ping_s=0.5, grace_s=0.3)


def echo_model(folder: Path, name: str = "alpha", *, role: str = "text") -> ModelFile:
    """Return a model for the echo engine; its name may be a command to it, so no file has it."""
    architecture = "bert" if role == "embedding" else "llama"
    context = (f"{architecture}.context_length", U32, 4096)
    source = folder / "echo.gguf"
    source.write_bytes(gguf(keys(architecture, context=context), data=name.encode().ljust(128)))
    file = add_model(source, folder / "models", name=f"echo-{name.strip('<>')}")
    return replace(file, info=msgspec.structs.replace(file.info, name=name))


def offer(pool: Pool, *files: ModelFile) -> None:
    """Offer these models, the first of each role as its default."""
    pool.offer(files, {file.info.role: file.info.name for file in reversed(files)})


def say(text: str, *, max_tokens: int = 1000) -> GenerateRequest:
    """Return a request that the echo engine answers with `text`."""
    return GenerateRequest(prompt=text, max_tokens=max_tokens)


async def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    """Wait until something is so."""
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110  (processes tell nobody of their state)
            await trio.sleep(0.01)
    assert condition(), f"not within {timeout_s:g} s: {what}"
