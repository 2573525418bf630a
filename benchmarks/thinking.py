"""What does the way cost? `classify` and `ask` through the mesh, against the same engine called here."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import trio
from measure import Report, Row, p50, times_ms

from covey.inference.catalogue import CATALOGUE
from covey.inference.engine import (
    ChatMessage,
    Completion,
    GenerateRequest,
    LoadSpec,
    ModelInfo,
    Role,
)
from covey.inference.llamacpp_engine import LlamaCppEngine
from covey.inference.model_files import SUFFIX, ModelFile, add_model, list_models
from covey.inference.pool import open_pool
from covey.inference.skills import SKILLS, Context, decode_request
from covey.inference.worker_process import PoolSettings
from covey.peer.home import model_cache
from covey.peer.local_mesh import LocalMesh, wait_until

LINES = [
    f"2026-11-24 08:{at:02d}:00 {verb} package lib{at}"
    for at, verb in enumerate(("install", "remove", "configure", "upgrade") * 5)
]
CLASSIFY: dict[str, object] = {"labels": ["install", "remove", "configure"], "items": LINES}
ASK: dict[str, object] = {"prompt": "Name three parts of a pump.", "max_tokens": 24}
OVERHEAD_MS = 20.0
WORKER_SHARE = 0.93
TOKENS = 128


class InProcess:
    """The same engine without worker or mesh, for skills to use here."""

    def __init__(self, files: Sequence[ModelFile], settings: PoolSettings) -> None:
        self._infos: dict[Role, ModelInfo] = {file.info.role: file.info for file in files}
        self.engines: dict[Role, LlamaCppEngine] = {
            file.info.role: LlamaCppEngine(
                LoadSpec(
                    path=str(file.path),
                    name=file.info.name,
                    role=file.info.role,
                    context_tokens=settings.context_tokens,
                    slots=settings.slots,
                    threads=settings.threads,
                )
            )
            for file in files
        }

    def info(self, name: str | None, role: Role) -> ModelInfo:
        return self._infos[role]

    async def generate(
        self, request: GenerateRequest, *, model: str | None = None, deadline_s: float
    ) -> Completion:
        return self.engines["text"].generate(request, lambda _piece: False)

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        return self.engines["embedding"].embed(texts)


def bench_thinking(report: Report, rounds: int) -> None:
    """Measure each way in turn, round by round, so that all see the same machine."""
    report.heading("Thinking for another peer, against the same engine called in-process")
    root = Path(tempfile.mkdtemp(prefix="cv"))
    folder = root / "models"
    for one in (one for one in CATALOGUE if one.is_default):
        path = model_cache() / f"{one.name}-{one.digest[:16]}{SUFFIX}"
        add_model(path, folder, link=True)
    files, refused = list_models(folder)
    assert not refused, refused
    settings = PoolSettings(threads=1)
    here = InProcess(files, settings)
    with LocalMesh(root) as mesh:
        origin = mesh.found("origin")
        origin.start()
        executor = mesh.join("executor", inviter=origin)
        executor.covey("models", "pull", timeout_s=300)
        executor.start()
        wait_until(lambda: any(one.models for one in origin.client.peers()), "models are known")
        for skill, asked in (("classify", CLASSIFY), ("chat", ASK)):

            def through(skill: str = skill, asked: dict[str, object] = asked) -> None:
                assert origin.client.run(skill, asked, wait_s=60).state == "done"

            def at_home(skill: str = skill, asked: dict[str, object] = asked) -> None:
                trio.run(_run_here, here, skill, asked)

            times_ms(through, 0, warm=3)
            times_ms(at_home, 0, warm=3)
            ways: tuple[list[float], list[float]] = [], []
            for _ in range(rounds):
                ways[0].extend(times_ms(through, 3))
                ways[1].extend(times_ms(at_home, 3))
            mesh_ms, here_ms = p50(ways[0]), p50(ways[1])
            over = mesh_ms - here_ms
            name = "classify of 20 lines" if skill == "classify" else "ask, 24 tokens"
            report.add(
                Row(
                    f"{name} through the mesh, p50",
                    f"{mesh_ms:.1f} ms",
                    f"in-process {here_ms:.1f} ms",
                    f"{mesh_ms / here_ms:.2f} x",
                    f"+<= {OVERHEAD_MS:g} ms: {over:+.1f}",
                    over <= OVERHEAD_MS,
                )
            )
            report.facts[skill] = {"mesh_p50_ms": mesh_ms, "in_process_p50_ms": here_ms}
    trio.run(_tokens, report, files, here, settings, rounds)
    shutil.rmtree(root, ignore_errors=True)


async def _run_here(here: InProcess, skill: str, asked: dict[str, object]) -> None:
    import msgspec

    chosen = SKILLS[skill]
    request = decode_request(chosen, msgspec.json.encode(asked))
    await chosen.run(request, Context(here, 60.0, lambda _text: None))


async def _tokens(
    report: Report,
    files: Sequence[ModelFile],
    here: InProcess,
    settings: PoolSettings,
    rounds: int,
) -> None:
    """Compare tokens/s of a worker process and of this one."""
    request = GenerateRequest(
        messages=(ChatMessage("user", "Tell a long story about a lighthouse."),), max_tokens=TOKENS
    )
    rates: tuple[list[float], list[float]] = [], []
    async with open_pool(settings) as pool:
        pool.offer(files, {file.info.role: file.info.name for file in files})
        await pool.generate(request, deadline_s=120)
        await here.generate(request, deadline_s=120)
        for _ in range(rounds):
            for models, kept in ((pool, rates[0]), (here, rates[1])):
                started = perf_counter()
                done = await models.generate(request, deadline_s=120)
                kept.append(done.completion_tokens / (perf_counter() - started))
    worker, own = p50(rates[0]), p50(rates[1])
    report.add(
        Row(
            "worker process, tokens/s",
            f"{worker:.1f} /s",
            f"in-process {own:.1f} /s",
            f"{worker / own:.3f} x",
            f">= {WORKER_SHARE} x",
            worker / own >= WORKER_SHARE,
        )
    )
    report.facts["tokens_per_s"] = {"worker": worker, "in_process": own}
