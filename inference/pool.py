"""Who thinks for this device? Workers, one for each model: started on first use, watched,
restarted, killed.

The daemon's side of `worker_protocol`. A request that is cancelled or over its deadline is stopped
at its next token, or with its worker; a worker that dies fails what it was doing at once, with a
reason.
"""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import trio

from . import errors
from .engine import Completion, GenerateRequest, LoadSpec, ModelInfo, Role
from .errors import BadModel, Busy, ModelError, NoModel, OutOfMemory, TookTooLong, WorkerDied
from .gguf_header import Header
from .supervision import PING_S, Supervision, is_hung
from .worker_protocol import (
    BadFrameError,
    Cancel,
    Embed,
    Failed,
    FrameReader,
    Generate,
    Load,
    Piece,
    Ping,
    Ready,
    ToWorker,
    Vectors,
    Written,
    encode_frame,
)

MIB = 1024 * 1024
LOAD_S = 60.0
# What native code takes besides weights and context, measured and doubled.
OVERHEAD_BYTES = 600 * MIB
EMBED_BATCH = 64


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How much the models of one device may take."""

    threads: int = 1
    """For each model; with more than the cores that are free, generation gets slower, not faster."""
    slots: int = 4
    """Requests that one model works on at once."""
    waiting: int = 16
    """Requests that wait for a slot; more are refused, with a time to come back."""
    context_tokens: int = 4096
    """Over all slots of a text model."""
    idle_s: float = 600.0
    """A worker that nobody asked for so long is ended, and its memory is free again."""
    engine: str = "llama.cpp"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk that was probed and hashed."""

    info: ModelInfo
    path: Path
    header: Header


@dataclass(eq=False, slots=True)
class _Request:
    digest: bytes
    ends_at: float
    on_piece: Callable[[str], None]
    done: trio.Event = field(default_factory=trio.Event)
    answer: Written | Vectors | None = None
    error: ModelError | None = None


class _Worker:
    """One process with one model."""

    def __init__(self, file: ModelFile, settings: PoolSettings) -> None:
        self.file = file
        self._settings = settings
        self.requests: dict[int, _Request] = {}
        self.ready = trio.Event()
        self.load_error: ModelError | None = None
        self.died: WorkerDied | None = None
        self.heard_at = trio.current_time()
        self.used_at = self.heard_at
        self._killed_for: str | None = None
        self._out: trio.MemorySendChannel[bytes]
        self._out, self._frames = trio.open_memory_channel[bytes](256)
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Fork, on this thread: the kernel would end the worker with the thread that forked it."""
        ask_read, ask_write = os.pipe()
        answer_read, answer_write = os.pipe()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "covey.inference.worker"),
                    *(str(ask_read), str(answer_write), str(self._memory_bytes())),
                ],
                pass_fds=(ask_read, answer_write),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        finally:
            os.close(ask_read)
            os.close(answer_write)
        self._ask = trio.lowlevel.FdStream(ask_write)
        self._answers = trio.lowlevel.FdStream(answer_read)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _memory_bytes(self) -> int:
        context = self._settings.context_tokens * self.file.header.kv_bytes_per_token
        return 2 * (self.file.info.size_bytes + context) + OVERHEAD_BYTES

    def send(self, message: ToWorker) -> None:
        try:
            self._out.send_nowait(encode_frame(message))
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            self.kill("it does not take requests any more")
        except BadFrameError as error:
            raise errors.BadRequest(str(error)) from error

    def kill(self, why: str) -> None:
        """End the process at once; what it was doing fails with `why`."""
        if self._killed_for is None:
            self._killed_for = why
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    async def run(self) -> None:
        """Load the model and serve until the process ends; then fail what is left."""
        spec = LoadSpec(
            path=str(self.file.path),
            name=self.file.info.name,
            role=self.file.info.role,
            context_tokens=self._context_tokens(),
            slots=self._settings.slots,
            threads=self._settings.threads,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
                self.send(Load(spec, self._settings.engine))
                await self._read()
                nursery.cancel_scope.cancel()
        finally:
            self.kill("the daemon stops")
            with trio.CancelScope(shield=True):
                await self._reap()
                await self._ask.aclose()
                await self._answers.aclose()
            self._fail_all()

    def _context_tokens(self) -> int:
        if self.file.info.role == "embedding":
            return self.file.header.context_tokens * self._settings.slots
        return min(self._settings.context_tokens, self.file.header.context_tokens)

    async def _write(self) -> None:
        try:
            async for frame in self._frames:
                await self._ask.send_all(frame)
        except trio.BrokenResourceError:
            self.kill("its pipe broke")

    async def _read(self) -> None:
        reader = FrameReader(from_worker=True)
        try:
            while data := await self._answers.receive_some(1 << 16):
                self.heard_at = trio.current_time()
                for message in reader.feed(bytes(data)):
                    self._take(message)
        except (BadFrameError, trio.BrokenResourceError) as error:
            self.kill(f"it sent what is no frame: {error}")

    def _take(self, message: object) -> None:
        match message:
            case Ready():
                self.ready.set()
            case Failed(0, error, text):
                self.load_error = _error(error, text)
                self.kill("its model could not be loaded")
            case Piece(number, text):
                if (request := self.requests.get(number)) is not None:
                    request.on_piece(text)
            case Written(number, _) | Vectors(number, _):
                if (request := self.requests.get(number)) is not None:
                    request.answer = message
                    request.done.set()
            case Failed(number, error, text):
                if (request := self.requests.get(number)) is not None:
                    request.error = _error(error, text)
                    request.done.set()
            case _:
                pass

    async def _watch(self) -> None:
        """Ping, and kill what hangs; a worker that loads is given LOAD_S."""
        started = trio.current_time()
        number = 0
        while True:
            await trio.sleep(PING_S / 2)
            now = trio.current_time()
            if not self.ready.is_set() and now - started > LOAD_S:
                self.kill(f"its model was not loaded within {LOAD_S:g} s")
            deadlines = [request.ends_at for request in self.requests.values()]
            earliest = min(deadlines, default=None)
            if is_hung(now, heard_at=self.heard_at, earliest_deadline=earliest):
                self.kill("it hung: no answer to pings, or far over a deadline")
            number += 1
            self.send(Ping(number))

    async def _reap(self) -> None:
        if hasattr(os, "pidfd_open") and self._process.poll() is None:
            handle = os.pidfd_open(self._process.pid)
            try:
                with trio.move_on_after(10):
                    await trio.lowlevel.wait_readable(handle)
            finally:
                os.close(handle)
        with trio.move_on_after(10):
            while self._process.poll() is None:  # noqa: ASYNC110  (systems without pidfd)
                await trio.sleep(0.02)

    def _fail_all(self) -> None:
        code = self._process.returncode
        why = self._killed_for or _ended(code)
        out_of_memory = code in (-signal.SIGABRT, -signal.SIGBUS) and self._killed_for is None
        kind = OutOfMemory if out_of_memory else WorkerDied
        self.died = kind(f"the process of model {self.file.info.name} ended: {why}")
        for request in self.requests.values():
            if request.answer is None and request.error is None:
                request.error = self.died
            request.done.set()
        self.ready.set()


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
        self._workers: dict[str, _Worker] = {}
        self._starting: dict[str, trio.Lock] = {}
        self._ids = 0
        self._waiting: dict[str, int] = {}
        self._slots: dict[str, trio.CapacityLimiter] = {}
        self.supervisions: dict[str, Supervision] = {}

    def offer(self, files: Sequence[ModelFile], defaults: Mapping[Role, str]) -> None:
        """Replace the list of models; workers of models that are gone are ended."""
        self._files = {file.info.name: file for file in files}
        self._defaults = dict(defaults)
        for name, worker in list(self._workers.items()):
            kept = self._files.get(name)
            if kept is None or kept.info.digest != worker.file.info.digest:
                worker.kill("its model was removed")

    def models(self) -> list[tuple[ModelInfo, str]]:
        """Return each model and its state: `ready`, `loaded` or `quarantined`."""
        now = trio.current_time()
        return [(file.info, self._state(file, now)) for file in self._files.values()]

    def _state(self, file: ModelFile, now: float) -> str:
        supervision = self.supervisions.get(file.info.digest)
        if supervision is not None and supervision.is_quarantined(now):
            return "quarantined"
        return "loaded" if file.info.name in self._workers else "ready"

    def info(self, name: str | None, role: Role) -> ModelInfo:
        """Return the named model, or the default for a role."""
        return self._file(name, role).info

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
        self._check_length(file, request)
        digest = hashlib.sha256(msgspec.msgpack.encode(request)).digest()

        def ask(number: int) -> ToWorker:
            return Generate(number, request)

        answer = await self._ask(file, ask, digest, deadline_s, on_piece or _ignore)
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
            digest = hashlib.sha256(msgspec.msgpack.encode(batch)).digest()

            def ask(number: int, batch: tuple[str, ...] = batch) -> ToWorker:
                return Embed(number, batch)

            left_s = ends_at - trio.current_time()
            answer = await self._ask(file, ask, digest, left_s, _ignore)
            assert isinstance(answer, Vectors)
            vectors += [list(vector) for vector in answer.vectors]
        return vectors

    def _file(self, name: str | None, role: Role) -> ModelFile:
        wanted = name or self._defaults.get(role)
        if wanted is None:
            raise NoModel(f"this device has no {role} model; get one with: covey models pull")
        file = self._files.get(wanted)
        if file is None:
            has = ", ".join(sorted(self._files)) or "none"
            raise NoModel(f"this device has no model {wanted!r} (it has: {has})")
        return file

    def _check_length(self, file: ModelFile, request: GenerateRequest) -> None:
        """Refuse what cannot fit before a slot is spent on it: a token is at least one byte of
        text, and no more than 16 on average; the exact count is the engine's to tell.
        """
        fits = self.slot_tokens(file)
        text = request.prompt or "".join(one.content for one in request.messages)
        if len(text.encode()) > fits * 16:
            raise errors.TooLong(
                f"the input has {len(text.encode())} bytes; model {file.info.name} takes {fits} tokens "
                "with its answer, at most some 4 bytes each: ask for less at once"
            )

    def slot_tokens(self, file: ModelFile) -> int:
        """Return how many tokens one request may have, answer included."""
        context = min(self._settings.context_tokens, file.header.context_tokens)
        return context // self._settings.slots

    async def _ask(
        self,
        file: ModelFile,
        message: Callable[[int], ToWorker],
        digest: bytes,
        deadline_s: float,
        on_piece: Callable[[str], None],
    ) -> Written | Vectors:
        supervision = self.supervisions.setdefault(file.info.digest, Supervision())
        if supervision.is_poisoned(digest):
            raise WorkerDied("this request was under way in two crashes; it is not tried again")
        ends_at = trio.current_time() + max(0.0, deadline_s)
        name = file.info.name
        slots = self._slots.setdefault(name, trio.CapacityLimiter(self._settings.slots))
        if slots.statistics().tasks_waiting >= self._settings.waiting:
            raise Busy(f"{self._settings.waiting} requests wait for model {name} already", 2.0)
        with trio.move_on_at(ends_at):
            async with slots:
                worker = await self._worker(file, supervision)
                return await self._exchange(worker, message, _Request(digest, ends_at, on_piece))
        raise TookTooLong(f"model {name} did not answer within {deadline_s:.1f} s")

    async def _exchange(
        self, worker: _Worker, message: Callable[[int], ToWorker], request: _Request
    ) -> Written | Vectors:
        self._ids += 1
        number = self._ids
        worker.requests[number] = request
        worker.used_at = trio.current_time()
        try:
            worker.send(message(number))
            await request.done.wait()
        except trio.Cancelled:
            worker.send(Cancel(number))
            raise
        finally:
            worker.requests.pop(number, None)
            worker.used_at = trio.current_time()
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    async def _worker(self, file: ModelFile, supervision: Supervision) -> _Worker:
        name = file.info.name
        async with self._starting.setdefault(name, trio.Lock()):
            worker = self._workers.get(name)
            if worker is None:
                now = trio.current_time()
                if supervision.is_quarantined(now):
                    raise BadModel(
                        f"model {name} crashed {len(supervision.crashes)} times in 5 minutes and is set "
                        "aside; replace its file, or try again later"
                    )
                await trio.sleep(supervision.wait_s(now))
                worker = _Worker(file, self._settings)
                worker.start()
                self._workers[name] = worker
                self._nursery.start_soon(self._run, worker, supervision)
            await worker.ready.wait()
        if worker.load_error is not None:
            raise worker.load_error
        if worker.died is not None:
            raise worker.died
        return worker

    async def _run(self, worker: _Worker, supervision: Supervision) -> None:
        name = worker.file.info.name
        try:
            await worker.run()
        finally:
            if self._workers.get(name) is worker:
                del self._workers[name]
        if worker.load_error is None and worker.died is not None and worker.requests:
            suspects = [request.digest for request in worker.requests.values()]
            supervision.crashed(trio.current_time(), suspects)

    async def unload_idle(self) -> None:
        """End workers that nobody has asked for a while; runs until cancelled."""
        while True:
            await trio.sleep(min(30.0, self._settings.idle_s / 2))
            now = trio.current_time()
            for worker in list(self._workers.values()):
                if not worker.requests and now - worker.used_at > self._settings.idle_s:
                    worker.kill("idle")


@asynccontextmanager
async def open_pool(settings: PoolSettings) -> AsyncGenerator[Pool]:
    """Run models for as long as the block lasts; leaving it ends every worker."""
    async with trio.open_nursery() as nursery:
        pool = Pool(nursery, settings)
        nursery.start_soon(pool.unload_idle)
        yield pool
        nursery.cancel_scope.cancel()


def _ignore(_text: str) -> None:
    """Nobody listens."""


def _error(name: str, text: str) -> ModelError:
    kind = getattr(errors, name, ModelError)
    if isinstance(kind, type) and issubclass(kind, ModelError) and kind is not Busy:
        return kind(text)
    return ModelError(text)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"with exit code {code}"
