"""How fast is each engine in its worker? Tokens/s of both, each against itself called in-process.

The same model in the file that each engine loads, the same number of threads, the same niceness, in turn,
so that all see the same machine. Counted from the first token on: what a prompt costs is another question.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter

import trio
from measure import Report, Row, p50

from covey.inference.catalogue import known
from covey.inference.engine import (
    CTRANSFORMERS,
    ENGINES,
    LLAMA_CPP,
    ChatMessage,
    GenerateRequest,
    LoadSpec,
)
from covey.inference.model_files import SUFFIX, ModelFile, add_model, missing_engines
from covey.inference.pool import open_pool
from covey.inference.worker import NICE, make_engine
from covey.inference.worker_process import PoolSettings
from covey.peer.home import model_cache

MODELS = {LLAMA_CPP: "smollm2-135m-instruct", CTRANSFORMERS: "smollm2-135m-instruct-ct"}
STORY = GenerateRequest(
    messages=(ChatMessage("user", "Tell a long story about a lighthouse."),), max_tokens=96
)
WORKER_SHARE = 0.93
THREADS = 1


class Rate:
    """Tokens/s of one answer, from its first piece on."""

    def __init__(self) -> None:
        self._first: float | None = None
        self._last = 0.0

    def hear(self, text: str) -> bool:
        """Take the time of a piece."""
        if text:
            self._last = perf_counter()
            self._first = self._first or self._last
        return False

    def of(self, tokens: int) -> float:
        """Return the rate of an answer of so many tokens."""
        assert self._first is not None
        return (tokens - 1) / (self._last - self._first)


def bench_engines(report: Report, rounds: int) -> None:
    """Measure each engine in its worker and without one."""
    report.heading("Engines, SmolLM2 135M: tokens/s in the worker, against in-process")
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        files = {
            engine: _model(engine, Path(folder))
            for engine in ENGINES
            if engine not in missing_engines()
        }
        rates = trio.run(_measure, files, rounds)
    for engine, (worker, own) in rates.items():
        report.add(
            Row(
                f"{engine} in its worker, tokens/s",
                f"{worker:.1f} /s",
                f"in-process {own:.1f} /s",
                f"{worker / own:.3f} x",
                f">= {WORKER_SHARE} x",
                worker / own >= WORKER_SHARE,
            )
        )
        report.facts[f"engine_{engine}_tokens_per_s"] = {"worker": worker, "in_process": own}
    if len(rates) == len(ENGINES):
        ours, other = rates[CTRANSFORMERS][0], rates[LLAMA_CPP][0]
        report.add(
            Row(
                f"{CTRANSFORMERS}, tokens/s",
                f"{ours:.1f} /s",
                f"{LLAMA_CPP} {other:.1f} /s",
                f"{ours / other:.2f} x",
            )
        )


def _model(engine: str, folder: Path) -> ModelFile:
    one = known(MODELS[engine])
    assert one is not None
    return add_model(
        model_cache() / f"{one.name}-{one.digest[:16]}{SUFFIX}", folder, link=True, engine=engine
    )


async def _measure(files: dict[str, ModelFile], rounds: int) -> dict[str, tuple[float, float]]:
    rates: dict[str, tuple[list[float], list[float]]] = {engine: ([], []) for engine in files}
    async with open_pool(PoolSettings(threads=THREADS, slots=1)) as pool:
        pool.offer(list(files.values()), {})
        with ExitStack() as stack:
            own = {
                engine: stack.enter_context(_InProcess(engine, file, pool.slot_tokens(file)))
                for engine, file in files.items()
            }

            async def in_worker(engine: str) -> float:
                rate = Rate()
                answer = await pool.generate(
                    STORY, model=files[engine].info.name, deadline_s=120, on_piece=_told(rate)
                )
                return rate.of(answer.completion_tokens)

            for engine in files:
                await in_worker(engine)
                own[engine].rate()
            for at in range(rounds):
                for engine, (worker, alone) in rates.items():
                    # Neither always goes first: a machine that slows down would be unfair to it.
                    if at % 2:
                        alone.append(own[engine].rate())
                        worker.append(await in_worker(engine))
                    else:
                        worker.append(await in_worker(engine))
                        alone.append(own[engine].rate())
    return {engine: (p50(worker), p50(alone)) for engine, (worker, alone) in rates.items()}


def _told(rate: Rate) -> Callable[[str], None]:
    def on_piece(text: str) -> None:
        rate.hear(text)

    return on_piece


class _InProcess:
    """An engine called where it is: in a process of its own only to be as nice as a worker."""

    def __init__(self, engine: str, file: ModelFile, context_tokens: int) -> None:
        spec = LoadSpec(
            path=str(file.path),
            name=file.info.name,
            role="text",
            context_tokens=context_tokens,
            slots=1,
            threads=THREADS,
        )
        context = get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, engine, spec), daemon=True)

    def __enter__(self) -> "_InProcess":
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def rate(self) -> float:
        """Return the tokens/s of one answer."""
        self._ours.send(None)
        rate: float = self._ours.recv()
        return rate


def _serve(pipe: "Connection[float, None]", name: str, spec: LoadSpec) -> None:
    os.nice(NICE)
    engine = make_engine(name, spec)
    while True:
        pipe.recv()
        rate = Rate()
        answer = engine.generate(STORY, rate.hear)
        pipe.send(rate.of(answer.completion_tokens))


if __name__ == "__main__":
    sys.exit("this is a part of: make bench")
