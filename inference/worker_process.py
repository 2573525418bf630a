"""What is one worker, as the daemon sees it? A process with one model: its requests, its pipes, its end.

The daemon's side of `worker_protocol`. A request that nobody waits for any more is stopped at its
next token, or with its worker; a worker that hangs is killed; one that dies fails what it was doing
at once, with a reason.
"""

import hashlib
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil
import trio

from . import errors
from .engine import CTRANSFORMERS, LoadSpec
from .errors import Busy, ModelError, OutOfMemory, WorkerDied
from .model_files import ModelFile
from .supervision import GRACE_S, PING_S, is_hung
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
    Vectors,
    Written,
    encode_frame,
)

MIB = 1024 * 1024
# A model is given this long to load, and longer if it is large: of a slow disk.
LOAD_S = 60.0
LOAD_BYTES_PER_S = 20 * MIB
EXIT_S = 1.0
REAP_S = 10.0
# What native code takes besides weights and context, measured and doubled.
OVERHEAD_BYTES = 600 * MIB
# An encoder works on a text whole; beyond this it takes memory and seconds that no one can cut short.
EMBED_TOKENS_MAX = 512
# For each core of a large machine numpy would set aside address space, which is limited here.
NUMPY_THREADS = {"OPENBLAS_NUM_THREADS": "1"}
# A worker's folder for temporary files: this, the daemon's process id, and chance.
_FOLDER = "covey-worker-"


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
    engine: str | None = None
    """Runs every model instead of its own engine; for tests."""
    ping_s: float = PING_S
    """How often a worker must show that it lives; four missed, and it is ended."""
    grace_s: float = GRACE_S
    """How long a request may go on after its deadline before its worker is taken for hung."""


def slot_count(file: ModelFile, settings: PoolSettings) -> int:
    """Return how many requests a model works on at once: ctransformers holds one sequence."""
    return 1 if _engine(file, settings) == CTRANSFORMERS else settings.slots


def slot_tokens(file: ModelFile, settings: PoolSettings) -> int:
    """Return how many tokens one request may have, answer included."""
    if file.info.role == "embedding":
        return min(file.header.context_tokens, EMBED_TOKENS_MAX)
    whole = min(settings.context_tokens, file.header.context_tokens)
    return max(1, whole // slot_count(file, settings))


def _engine(file: ModelFile, settings: PoolSettings) -> str:
    return settings.engine or file.info.engine


class Request:
    """One request; it keeps its slot until the worker is done with it, whether or not anybody still
    waits: native code works on.
    """

    def __init__(
        self, message: Generate | Embed, *, deadline_s: float, slots: trio.CapacityLimiter
    ) -> None:
        try:
            self.frame = encode_frame(message)
            same = encode_frame(msgspec.structs.replace(message, id=0))
        except BadFrameError as error:
            raise errors.BadRequest(f"the request cannot be given to a model: {error}") from error
        self.digest = hashlib.sha256(same).digest()
        self.number = message.id
        self.kind: type[Written] | type[Vectors]
        self.kind = Written if isinstance(message, Generate) else Vectors
        self.ends_at = trio.current_time() + max(0.0, deadline_s)
        self.slots = slots
        self.has_ended = False
        self.answer: Written | Vectors | None = None
        self.error: ModelError | None = None
        # Who waits takes each piece at once.
        self._pieces, self.pieces = trio.open_memory_channel[str](math.inf)
        self._is_awaited = True

    def hear(self, text: str) -> None:
        """Pass on a piece of the answer, if anybody still waits for it."""
        if self._is_awaited:
            self._pieces.send_nowait(text)

    def leave(self) -> None:
        """Wait no more; what is under way must end soon."""
        self._is_awaited = False
        self.ends_at = min(self.ends_at, trio.current_time())

    def end(self, answer: Written | Vectors | None = None, error: ModelError | None = None) -> None:
        """Give the answer to who waits, and the slot to the next."""
        if not self.has_ended:
            self.has_ended = True
            self.answer, self.error = answer, error
            self._pieces.close()
            self.slots.release_on_behalf_of(self)


class WorkerProcess:
    """One process with one model.

    Attributes:
        ready: set when the model is loaded, or never will be.
        ended: set when the process is gone and its end is accounted for.
        is_ending: no request may be given to it any more.
        is_fault: it ended, or had to be ended, by what it did.
    """

    def __init__(self, file: ModelFile, settings: PoolSettings) -> None:
        self.file = file
        self._settings = settings
        self.requests: dict[int, Request] = {}
        self.ready = trio.Event()
        self.ended = trio.Event()
        self.is_ending = False
        self.is_fault = True
        self.load_error: ModelError | None = None
        self.died: WorkerDied | None = None
        self.heard_at = trio.current_time()
        self.used_at = self.heard_at
        self._is_loaded = False
        self._killed_for: str | None = None
        self._out: trio.MemorySendChannel[bytes]
        self._out, self._frames = trio.open_memory_channel[bytes](256)

    def start(self) -> None:
        """Fork, on this thread: the kernel would end the worker with the thread that forked it.

        Raises:
            WorkerDied: the system gives no process.
        """
        opened: list[int] = []
        # Native code makes files while it loads; whatever becomes of it, they go with the worker.
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        try:
            opened += os.pipe()
            opened += os.pipe()
            ask_read, ask_write, answer_read, answer_write = opened
            self._process: subprocess.Popen[bytes] = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "covey.inference.worker"),
                    *(str(ask_read), str(answer_write), str(self._memory_bytes())),
                ],
                pass_fds=(ask_read, answer_write),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "TMPDIR": str(self._folder), **NUMPY_THREADS},
            )
        except OSError as error:
            for one in opened:
                os.close(one)
            shutil.rmtree(self._folder, ignore_errors=True)
            raise WorkerDied(
                f"no process could be started for model {self.file.info.name}: {error}"
            ) from error
        os.close(ask_read)
        os.close(answer_write)
        self._ask = trio.lowlevel.FdStream(ask_write)
        self._answers = trio.lowlevel.FdStream(answer_read)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def _memory_bytes(self) -> int:
        context = self._context_tokens() * self.file.header.kv_bytes_per_token
        return 2 * (self.file.info.size_bytes + context) + OVERHEAD_BYTES

    def _context_tokens(self) -> int:
        return slot_tokens(self.file, self._settings) * slot_count(self.file, self._settings)

    def give(self, request: Request) -> None:
        """Hand a request over."""
        self.requests[request.number] = request
        self.used_at = trio.current_time()
        self._send(request.frame)

    def _send(self, frame: bytes) -> None:
        try:
            self._out.send_nowait(frame)
        except trio.WouldBlock:
            self.kill("it does not take requests any more")

    def cancel(self, request: Request) -> None:
        """Stop a request at its next token; it keeps its slot until then."""
        if request.number in self.requests:
            request.leave()
            self._send(encode_frame(Cancel(request.number)))

    def kill(self, why: str, *, is_fault: bool = True) -> None:
        """End the process at once; what it was doing fails with `why`."""
        self.is_ending = True
        if self._killed_for is None and self._process.poll() is None:
            self._killed_for = why
            self.is_fault = is_fault
            self._process.send_signal(signal.SIGKILL)

    async def run(self) -> None:
        """Load the model and serve until the process ends."""
        spec = LoadSpec(
            path=str(self.file.path),
            name=self.file.info.name,
            role=self.file.info.role,
            context_tokens=self._context_tokens(),
            slots=slot_count(self.file, self._settings),
            threads=self._settings.threads,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
                self._send(encode_frame(Load(spec, _engine(self.file, self._settings))))
                await self._read()
                self.is_ending = True
                # Its pipe ends a moment before it does, and its own end tells more than our signal.
                with trio.move_on_after(EXIT_S):
                    await self._wait_exit()
                self.kill("it closed its pipe and did not end")
                nursery.cancel_scope.cancel()
        finally:
            self.kill("the daemon stops", is_fault=False)
            with trio.CancelScope(shield=True):
                with trio.move_on_after(REAP_S):
                    await self._wait_exit()
                await self._ask.aclose()
                await self._answers.aclose()
            shutil.rmtree(self._folder, ignore_errors=True)

    async def _write(self) -> None:
        try:
            async for frame in self._frames:
                await self._ask.send_all(frame)
        except trio.BrokenResourceError:
            # It ended, or closed its pipe: `_read` hears of that.
            return

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
                self._is_loaded = True
                self.ready.set()
            case Failed(0, error, text):
                self.load_error = _error(error, text)
                self.kill("its model could not be loaded")
            case Piece(number, text):
                if (request := self.requests.get(number)) is not None:
                    request.hear(text)
            case Written(number, _) | Vectors(number, _):
                if (request := self.requests.get(number)) is not None:
                    if not isinstance(message, request.kind):
                        raise BadFrameError("an answer of another kind than was asked for")
                    self._end(number, answer=message)
            case Failed(number, error, text):
                self._end(number, error=_error(error, text))
            case _:
                pass

    def _end(
        self,
        number: int,
        answer: Written | Vectors | None = None,
        error: ModelError | None = None,
    ) -> None:
        request = self.requests.pop(number, None)
        if request is not None:
            self.used_at = trio.current_time()
            request.end(answer, error)

    async def _watch(self) -> None:
        """Ping, and kill what hangs."""
        load_s = LOAD_S + self.file.info.size_bytes / LOAD_BYTES_PER_S
        ping_s, grace_s = self._settings.ping_s, self._settings.grace_s
        started = trio.current_time()
        number = 0
        while True:
            due = trio.current_time() + ping_s / 2
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > ping_s:
                # It was this process that did nothing for a while: the answers wait to be read.
                self.heard_at = now
            if not self._is_loaded:
                # No answer to pings meanwhile: native code keeps Python waiting while it loads.
                if now - started > load_s:
                    self.kill(f"its model was not loaded within {load_s:.0f} s")
                continue
            earliest = min((one.ends_at for one in self.requests.values()), default=None)
            if is_hung(
                now,
                heard_at=self.heard_at,
                earliest_deadline=earliest,
                ping_s=ping_s,
                grace_s=grace_s,
            ):
                late = earliest is not None and now > earliest + grace_s
                self.kill(
                    f"it hung: a request did not end within {grace_s:g} s of its deadline"
                    if late
                    else "it hung: no answer to pings"
                )
            number += 1
            self._send(encode_frame(Ping(number)))

    async def _wait_exit(self) -> None:
        if hasattr(os, "pidfd_open") and self._process.poll() is None:
            handle = os.pidfd_open(self._process.pid)
            try:
                await trio.lowlevel.wait_readable(handle)
            finally:
                os.close(handle)
        while self._process.poll() is None:  # noqa: ASYNC110  (systems without pidfd)
            await trio.sleep(0.02)

    def account(self) -> list[bytes]:
        """Fail what is left, with the reason; return the digests of what was under way."""
        self.is_ending = True
        code = self._process.poll()
        kind, why = WorkerDied, self._killed_for
        if why is None:
            kind, why = _ended(code, is_loaded=self._is_loaded)
        self.died = kind(f"the process of model {self.file.info.name} ended: {why}")
        under_way = [request.digest for request in self.requests.values()]
        for number in list(self.requests):
            self._end(number, error=self.died)
        self.ready.set()
        self.ended.set()
        return under_way


def _error(name: str, text: str) -> ModelError:
    kind = getattr(errors, name, ModelError)
    if isinstance(kind, type) and issubclass(kind, ModelError) and kind is not Busy:
        return kind(text)
    return ModelError(text)


def _ended(code: int | None, *, is_loaded: bool) -> tuple[type[WorkerDied], str]:
    """Return what an end that nobody here asked for means."""
    if code is None or code >= 0:
        return WorkerDied, f"with exit code {code}"
    name = signal.Signals(-code).name
    if -code == signal.SIGKILL:
        return OutOfMemory, f"killed by {name}, as the system does for want of memory"
    if -code == signal.SIGABRT and not is_loaded:
        return OutOfMemory, f"killed by {name} while it loaded, as a rule for want of memory"
    return WorkerDied, f"killed by {name}"


def remove_left_folders() -> None:
    """Remove the workers' folders that a killed daemon left behind."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        found = re.fullmatch(rf"{_FOLDER}(\d+)-.*", folder.name)
        if found is not None and not psutil.pid_exists(int(found[1])):
            shutil.rmtree(folder, ignore_errors=True)
