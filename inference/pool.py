"""Who thinks for this device? Workers, one for each model: started on first use, ended when idle.

A model that crashed waits longer each time, and is set aside when it crashed too often; a request
that is over its deadline, or that nobody waits for any more, gives its slot to the next.
"""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import msgspec
import trio

from . import errors
from .engine import Completion, GenerateRequest, ModelInfo, Role
from .errors import BadModel, Busy, ModelError, NoModel, TookTooLong, WorkerDied
from .model_files import ModelFile
from .supervision import Supervision
from .worker_process import (
    PoolSettings,
    Request,
    WorkerProcess,
    remove_left_folders,
    slot_count,
    slot_tokens,
)
from .worker_protocol import Embed, Generate, Vectors, Written

EMBED_BATCH = 64


class Pool:
    """The models of this device; implements `Models`. Use `open_pool`.

    Attributes:
        supervisions: by model digest, for `status` and `models`.
    """

    def __init__(self, nursery: trio.Nursery, settings: PoolSettings) -> None:
        self._nursery = nursery
        self._settings = settings
        self._files: dict[str, ModelFile] = {}
        self._defaults: dict[Role, str] = {}
        self._workers: dict[str, WorkerProcess] = {}
        self._starting: dict[str, trio.Lock] = {}
        self._ids = 0
        self._slots: dict[str, trio.CapacityLimiter] = {}
        self.supervisions: dict[str, Supervision] = {}

    def offer(self, files: Sequence[ModelFile], defaults: Mapping[Role, str]) -> None:
        """Replace the list of models; workers of models that are gone are ended."""
        self._files = {file.info.name: file for file in files}
        self._defaults = dict(defaults)
        for name, worker in list(self._workers.items()):
            kept = self._files.get(name)
            if kept is None or kept.info.digest != worker.file.info.digest:
                worker.kill("its model was removed", is_fault=False)
            elif kept.info.engine != worker.file.info.engine:
                worker.kill("its model runs on another engine now", is_fault=False)
        for name, limiter in self._slots.items():
            if name in self._files:
                limiter.total_tokens = slot_count(self._files[name], self._settings)

    def models(self) -> list[tuple[ModelInfo, str]]:
        """Return each model and its state: `ready`, `loaded` or `quarantined`."""
        now = trio.current_time()
        return [(self._info(file), self._state(file, now)) for file in self._files.values()]

    def _state(self, file: ModelFile, now: float) -> str:
        supervision = self.supervisions.get(file.info.digest)
        if supervision is not None and supervision.is_quarantined(now):
            return "quarantined"
        return "loaded" if file.info.name in self._workers else "ready"

    def info(self, name: str | None, role: Role) -> ModelInfo:
        """Return the named model, or the default for a role."""
        return self._info(self._file(name, role))

    def _info(self, file: ModelFile) -> ModelInfo:
        return msgspec.structs.replace(file.info, context_tokens=self.slot_tokens(file))

    def worker_pid(self, name: str) -> int | None:
        """Return the process id of a model's worker, if it runs."""
        worker = self._workers.get(name)
        return worker.pid if worker is not None else None

    async def generate(
        self,
        request: GenerateRequest,
        *,
        model: str | None = None,
        deadline_s: float,
        on_piece: Callable[[str], None] | None = None,
    ) -> Completion:
        """Return what a text model writes."""
        file = self._file(model, "text")
        self._check(file, request)
        message = Generate(self._number(), request)
        answer = await self._ask(file, message, deadline_s, on_piece or _ignore)
        assert isinstance(answer, Written)
        return answer.completion

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        """Return one unit vector for each text, in bounded batches."""
        file = self._file(model, "embedding")
        ends_at = trio.current_time() + deadline_s
        vectors: list[list[float]] = []
        for at in range(0, len(texts), EMBED_BATCH):
            batch = tuple(texts[at : at + EMBED_BATCH])
            left_s = ends_at - trio.current_time()
            answer = await self._ask(file, Embed(self._number(), batch), left_s, _ignore)
            assert isinstance(answer, Vectors)
            if len(answer.vectors) != len(batch):
                raise ModelError(f"{len(answer.vectors)} vectors came for {len(batch)} texts")
            vectors += [list(vector) for vector in answer.vectors]
        return vectors

    def _number(self) -> int:
        self._ids += 1
        return self._ids

    def _file(self, name: str | None, role: Role) -> ModelFile:
        wanted = name or self._defaults.get(role)
        if wanted is None:
            raise NoModel(f"this device has no {role} model; get one with: covey models pull")
        file = self._files.get(wanted)
        if file is None:
            has = ", ".join(sorted(self._files)) or "none"
            raise NoModel(f"this device has no model {wanted!r} (it has: {has})")
        return file

    def _check(self, file: ModelFile, request: GenerateRequest) -> None:
        """Refuse what cannot be done, or cannot fit, before a slot is spent on it: a token is at least
        one byte of text, and no more than 16 on average; the exact count is the engine's to tell.
        """
        text = request.prompt or "".join(one.content for one in request.messages)
        if not text:
            raise errors.BadRequest("there is nothing to answer: the prompt is empty")
        if request.max_tokens < 1:
            raise errors.BadRequest(f"max_tokens is {request.max_tokens}; it must be 1 or more")
        if request.grammar is not None and request.json_schema is not None:
            raise errors.BadRequest("a grammar and a JSON schema exclude each other")
        fits = self.slot_tokens(file)
        size = len(text.encode(errors="surrogatepass"))
        if size > fits * 16:
            raise errors.TooLong(
                f"the input has {size} bytes; model {file.info.name} takes {fits} tokens "
                "with its answer, at most some 4 bytes each: ask for less at once"
            )

    def slot_tokens(self, file: ModelFile) -> int:
        """Return how many tokens one request may have, answer included."""
        return slot_tokens(file, self._settings)

    async def _ask(
        self,
        file: ModelFile,
        message: Generate | Embed,
        deadline_s: float,
        on_piece: Callable[[str], None],
    ) -> Written | Vectors:
        name = file.info.name
        slots = self._slots_of(file)
        request = Request(message, deadline_s=deadline_s, slots=slots)
        supervision = self.supervisions.setdefault(file.info.digest, Supervision())
        if supervision.is_poisoned(request.digest):
            raise WorkerDied("this request was under way in two crashes; it is not tried again")
        if slots.statistics().tasks_waiting >= self._settings.waiting:
            raise Busy(f"{self._settings.waiting} requests wait for model {name} already", 2.0)
        with trio.move_on_at(request.ends_at):
            await slots.acquire_on_behalf_of(request)
            try:
                worker = await self._worker(file, supervision)
            except BaseException:
                request.end()
                raise
            answer = await _exchange(worker, request, on_piece)
            supervision.answered(request.digest)
            return answer
        raise TookTooLong(f"model {name} did not answer within {deadline_s:.1f} s")

    def _slots_of(self, file: ModelFile) -> trio.CapacityLimiter:
        limiter = self._slots.get(file.info.name)
        if limiter is None:
            limiter = trio.CapacityLimiter(slot_count(file, self._settings))
            self._slots[file.info.name] = limiter
        return limiter

    async def _worker(self, file: ModelFile, supervision: Supervision) -> WorkerProcess:
        name = file.info.name
        async with self._starting.setdefault(name, trio.Lock()):
            worker = self._workers.get(name)
            if worker is not None and worker.is_ending:
                await worker.ended.wait()
                worker = None
            if worker is None:
                worker = await self._start(file, supervision)
            await worker.ready.wait()
        if worker.load_error is not None:
            raise worker.load_error
        if worker.died is not None:
            raise worker.died
        return worker

    async def _start(self, file: ModelFile, supervision: Supervision) -> WorkerProcess:
        name = file.info.name
        now = trio.current_time()
        if supervision.is_quarantined(now):
            raise BadModel(
                f"model {name} failed {len(supervision.crashes)} times in 5 minutes and is set aside "
                f"(the last time: {supervision.last}); replace its file, or try again later"
            )
        await trio.sleep(supervision.wait_s(now))
        file.check_unchanged()
        worker = WorkerProcess(file, self._settings)
        worker.start()
        self._workers[name] = worker
        self._nursery.start_soon(self._run, worker, supervision)
        return worker

    async def _run(self, worker: WorkerProcess, supervision: Supervision) -> None:
        try:
            await worker.run()
        finally:
            del self._workers[worker.file.info.name]
            under_way = worker.account()
            if worker.is_fault:
                why = str(worker.load_error or worker.died)
                supervision.crashed(trio.current_time(), under_way, why)

    async def unload_idle(self) -> None:
        """End workers that nobody has asked for a while; runs until cancelled."""
        while True:
            await trio.sleep(min(30.0, self._settings.idle_s / 2))
            now = trio.current_time()
            for name, worker in list(self._workers.items()):
                # A slot is held also by who waits for the model to load.
                is_idle = self._slots[name].borrowed_tokens == 0
                if is_idle and now - worker.used_at > self._settings.idle_s:
                    worker.kill("nobody asked for it", is_fault=False)


@asynccontextmanager
async def open_pool(settings: PoolSettings) -> AsyncGenerator[Pool]:
    """Run models for as long as the block lasts; leaving it ends every worker."""
    await trio.to_thread.run_sync(remove_left_folders)
    async with trio.open_nursery() as nursery:
        pool = Pool(nursery, settings)
        nursery.start_soon(pool.unload_idle)
        yield pool
        nursery.cancel_scope.cancel()


async def _exchange(
    worker: WorkerProcess, request: Request, on_piece: Callable[[str], None]
) -> Written | Vectors:
    worker.give(request)
    try:
        async for text in request.pieces:
            on_piece(text)
    except BaseException:
        # Nobody waits any more: the deadline, the caller's own, or its listener's failure.
        worker.cancel(request)
        raise
    if request.error is not None:
        raise request.error
    assert request.answer is not None
    return request.answer


def _ignore(_text: str) -> None:
    """Nobody listens."""
