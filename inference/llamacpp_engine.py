"""llama.cpp behind the `Engine` port, by xllamacpp. Runs only in a worker process; every trap of it
is met here.

xllamacpp 2026.10: its Server always opens a listener (here: a socket in a private folder, closed and
removed at once); it reports errors in two shapes; it swallows what a stream callback raises; only a stream
can be cancelled, and only at a token.
"""

import contextlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import xllamacpp

from .engine import Completion, GenerateRequest, LoadSpec, OnPiece
from .errors import BadModel, BadRequest, ModelError, TooLong, Unsupported

# The library ships no types that a checker can follow.
_native: Any = xllamacpp
# An encoder works on a text whole: beyond this for seconds in which it cannot be cancelled.
BATCH_TOKENS = 512
CACHE_MIB = 64
_SOCKET = "s.sock"
_TOO_LARGE = re.compile(r"input \((\d+) tokens\) is too large")


class LlamaCppEngine:
    """One loaded model.

    Raises:
        BadModel: llama.cpp refuses the file; it does not say why.
    """

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        parameters = parameters_of(spec)
        folder = Path(tempfile.mkdtemp(prefix="covey-"))
        try:
            # There is no way to start without a listener: it has an unguessable key, in a folder that
            # nobody else may enter, and is gone before anyone sees it. Requests never go through it.
            # It is named from within its folder: a socket's path may have only some 100 bytes.
            parameters.hostnames = [_SOCKET]
            parameters.api_keys = [secrets.token_hex(32)]
            with contextlib.chdir(folder):
                self._server: Any = _native.Server(parameters)
            _end_listener()
        except (RuntimeError, ValueError) as error:
            raise BadModel(
                f"llama.cpp cannot load {Path(spec.path).name}: {error}; it may be damaged, of a "
                "kind that this version does not know, or too large for the memory that is free"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def generate(self, request: GenerateRequest, on_piece: OnPiece) -> Completion:
        """Return what the model writes; `on_piece` is told as it comes and may stop it."""
        if self._spec.role == "embedding":
            raise Unsupported(f"{self._spec.name} makes vectors, not text")
        body = _body(request)
        collected = _Collected(on_piece)
        try:
            if request.prompt is not None:
                answer = self._server.handle_completions(body, collected.take)
            else:
                answer = self._server.handle_chat_completions(body, collected.take)
        except (ValueError, RuntimeError) as error:
            raise Unsupported(f"llama.cpp refuses the request: {error}") from error
        if collected.failure is not None:
            raise collected.failure
        _raise_if_error(answer)
        return collected.completion(self._spec.name)

    def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one unit vector for each text."""
        if self._spec.role != "embedding":
            raise Unsupported(f"{self._spec.name} writes text; an embedding model makes vectors")
        answer = self._server.handle_embeddings({"input": list(texts)})
        _raise_if_error(answer)
        rows: list[dict[str, Any]] = sorted(answer["data"], key=_index)
        return [[float(number) for number in row["embedding"]] for row in rows]


def parameters_of(spec: LoadSpec) -> Any:
    """Return what llama.cpp is told, without where it listens."""
    parameters = _native.CommonParams()
    parameters.model.path = str(Path(spec.path).absolute())
    # Never 0: that means the file's own number.
    parameters.n_ctx = max(1, spec.context_tokens)
    parameters.n_parallel = spec.slots
    parameters.cpuparams.n_threads = spec.threads
    parameters.cpuparams_batch.n_threads = spec.threads
    parameters.verbosity = -1
    # The default cache of idle prompts may take 8 GiB.
    parameters.cache_ram_mib = CACHE_MIB
    parameters.ui = False
    parameters.endpoint_slots = False
    if spec.role == "embedding":
        parameters.embedding = True
        parameters.n_batch = parameters.n_ubatch = BATCH_TOKENS
    return parameters


def _end_listener() -> None:
    """Shut this process's listening socket; its thread then ends by itself."""
    for name in os.listdir("/dev/fd"):
        # One of them is the listing's own, and gone by now; where a listener cannot be shut
        # (macOS), it stays without a name that anybody could dial.
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                with socket.socket(fileno=os.dup(int(name))) as one:
                    if one.getsockname() == _SOCKET:
                        one.shutdown(socket.SHUT_RDWR)


def _index(row: dict[str, Any]) -> int:
    return int(row["index"])


class _Collected:
    """Gathers a stream. It must not raise: the library would swallow that and end silently."""

    def __init__(self, on_piece: OnPiece) -> None:
        self._on_piece = on_piece
        self._parts: list[str] = []
        self._finish = "stop"
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self.failure: Exception | None = None

    def take(self, chunk: Any) -> bool:
        try:
            return self._take(chunk)
        except Exception as error:  # noqa: BLE001  (kept, and raised when the call is over)
            self.failure = error
            return True

    def _take(self, chunk: Any) -> bool:
        if isinstance(chunk, list):
            stops = [self._take(one) for one in chunk]  # pyright: ignore[reportUnknownVariableType]
            return any(stops)
        _raise_if_error(chunk)
        stop = False
        told = cast("dict[str, Any]", chunk)
        choices: list[dict[str, Any]] = told.get("choices") or []
        for choice in choices:
            delta: dict[str, Any] = choice.get("delta") or {}
            text: str = choice.get("text") or delta.get("content") or ""
            if text:
                self._parts.append(text)
                stop = self._on_piece(text)
            if choice.get("finish_reason"):
                self._finish = choice["finish_reason"]
        usage = told.get("usage")
        if usage:
            self._prompt_tokens = int(usage.get("prompt_tokens", 0))
            self._completion_tokens = int(usage.get("completion_tokens", 0))
        return stop

    def completion(self, model: str) -> Completion:
        return Completion(
            text="".join(self._parts),
            finish="length" if self._finish == "length" else "stop",
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            model=model,
        )


def _body(request: GenerateRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_prompt": True,
    }
    if request.stop:
        body["stop"] = list(request.stop)
    if request.prompt is not None:
        body["prompt"] = request.prompt
    else:
        body["messages"] = [{"role": one.role, "content": one.content} for one in request.messages]
    if request.grammar is not None:
        body["grammar"] = request.grammar
    elif request.json_schema is not None and request.prompt is not None:
        body["json_schema"] = request.json_schema
    elif request.json_schema is not None:
        schema = {"name": "answer", "schema": request.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return body


def _raise_if_error(answer: Any) -> None:
    """Errors are raised in one shape, and returned or streamed in another."""
    told = cast("dict[str, Any]", answer) if isinstance(answer, dict) else {}
    error: dict[str, Any] = told.get("error") or {}
    if not error:
        return
    if error.get("type") == "exceed_context_size_error":
        has, fits = error.get("n_prompt_tokens"), error.get("n_ctx")
        raise TooLong(f"the input has {has} tokens, the model takes {fits}; ask for less")
    message = str(error.get("message", error))
    if (long := _TOO_LARGE.search(message)) is not None:
        raise TooLong(
            f"the input has {long[1]} tokens, the model takes {BATCH_TOKENS}; ask for less"
        )
    code = str(error.get("code"))
    if code == "501":
        raise Unsupported(message)
    if code == "400":
        raise BadRequest(f"llama.cpp refuses the request: {message}")
    raise ModelError(message)
