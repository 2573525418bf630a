"""The process that holds one model: `python -m covey.inference.worker READ_FD WRITE_FD`.

It reads requests from one pipe and answers on another; the reading thread answers pings also while
the model works; the end of the request pipe ends the process at once, on every system. It limits
itself before native code sees a file. That is no sandbox: what it loads has been probed and hashed by
the daemon.
"""

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import BinaryIO

from .engine import CTRANSFORMERS, LLAMA_CPP, Engine, LoadSpec
from .errors import ModelError
from .syscall_filter import PROGRAMS, SOCKETS, deny
from .worker_protocol import (
    BadFrameError,
    Cancel,
    Embed,
    Failed,
    FrameReader,
    FromWorker,
    Generate,
    Load,
    Piece,
    Ping,
    Pong,
    Ready,
    Vectors,
    Written,
    encode_frame,
)

NICE = 5
OPEN_FILES_MAX = 64
OOM_SCORE = 800
EXIT_BROKEN = 70
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38


class Worker:
    """Serves one model over two pipes."""

    def __init__(self, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests = requests
        self._answers = answers
        self._lock = threading.Lock()
        self._under_way: set[int] = set()
        self._cancelled: set[int] = set()
        self._engine: Engine | None = None

    def serve(self) -> None:
        """Serve until the request pipe ends."""
        reader = FrameReader(from_worker=False)
        while data := os.read(self._requests.fileno(), 1 << 16):
            for message in reader.feed(data):
                self._take(message)

    def _take(self, message: object) -> None:
        match message:
            case Ping(number):
                self._send(Pong(number))
            case Cancel(number):
                if number in self._under_way:
                    self._cancelled.add(number)
            case Load():
                self._start(lambda: self._load(message), 0)
            case Generate():
                self._start(lambda: self._generate(message), message.id)
            case Embed():
                self._start(lambda: self._embed(message), message.id)
            case _:
                raise BadFrameError("an unknown message")

    def _start(self, work: Callable[[], FromWorker], number: int) -> None:
        def run() -> None:
            try:
                answer = work()
            except ModelError as error:
                answer = Failed(number, type(error).__name__, str(error))
            except MemoryError:
                answer = Failed(number, "OutOfMemory", "the model's process ran out of its memory")
            except Exception as error:  # noqa: BLE001  (told to the daemon, which logs it)
                answer = Failed(number, "ModelError", f"{type(error).__name__}: {error}")
            finally:
                self._under_way.discard(number)
                self._cancelled.discard(number)
            try:
                self._send(answer)
            except BadFrameError as error:
                self._send(Failed(number, "ModelError", f"the answer is no frame: {error}"))

        self._under_way.add(number)
        threading.Thread(target=run, daemon=True).start()

    def _load(self, message: Load) -> FromWorker:
        began = time.perf_counter()
        if message.engine != LLAMA_CPP:
            deny(SOCKETS)
        self._engine = make_engine(message.engine, message.spec)
        if message.engine == LLAMA_CPP:
            # Not before: it does not load without opening a socket.
            deny(SOCKETS)
        return Ready(time.perf_counter() - began)

    def _generate(self, message: Generate) -> FromWorker:
        def on_piece(text: str) -> bool:
            if text:
                self._send(Piece(message.id, text))
            return message.id in self._cancelled

        return Written(message.id, self._loaded().generate(message.request, on_piece))

    def _embed(self, message: Embed) -> FromWorker:
        vectors = self._loaded().embed(message.texts)
        return Vectors(message.id, tuple(tuple(vector) for vector in vectors))

    def _loaded(self) -> Engine:
        if self._engine is None:
            raise ModelError("no model is loaded yet")
        return self._engine

    def _send(self, message: FromWorker) -> None:
        data = encode_frame(message)
        with self._lock:
            self._answers.write(data)
            self._answers.flush()


def make_engine(name: str, spec: LoadSpec) -> Engine:
    """Return a loaded engine; imports native code only here."""
    if name == "echo":
        from .echo_engine import EchoEngine

        return EchoEngine(spec)
    if name == CTRANSFORMERS:
        from .ctransformers_engine import CTransformersEngine

        return CTransformersEngine(spec)
    from .llamacpp_engine import LlamaCppEngine

    return LlamaCppEngine(spec)


def limit_process(memory_bytes: int) -> None:
    """Give this process less than its user has: no core dumps, few files, bounded memory, first to go."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES_MAX, OPEN_FILES_MAX))
    if memory_bytes > 0 and sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    os.nice(NICE)
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if not deny(PROGRAMS):
        print("no filter of system calls here", file=sys.stderr)  # noqa: T201
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(OOM_SCORE))
    except OSError as error:
        print(f"oom_score_adj not set: {error}", file=sys.stderr)  # noqa: T201


def main() -> None:
    """Serve on the two descriptors given as arguments, within the memory given as the third."""
    requests = os.fdopen(int(sys.argv[1]), "rb", buffering=0)
    answers = os.fdopen(int(sys.argv[2]), "wb")
    limit_process(int(sys.argv[3]))
    # A terminal's Ctrl-C is the daemon's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = EXIT_BROKEN
    try:
        Worker(requests, answers).serve()
        code = 0
    finally:
        # Native threads may be at work: nothing of theirs is worth waiting for.
        os._exit(code)


if __name__ == "__main__":
    main()
