"""What do the daemon and a model's worker say to each other? Frames on two pipes: u32 length,
MessagePack.

Pure. Several requests are under way at once, told apart by id. Not the standard streams: native
code prints there.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from .engine import LLAMA_CPP, Completion, GenerateRequest, LoadSpec

FRAME_BYTES_MAX = 8 * 1024 * 1024
_LENGTH_BYTES = 4


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Daemon: load this model; the first frame, answered by `Ready` or `Failed` with id 0."""

    spec: LoadSpec
    engine: str = LLAMA_CPP


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Daemon: write."""

    id: int
    request: GenerateRequest


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Daemon: make vectors."""

    id: int
    texts: tuple[str, ...]


class Cancel(msgspec.Struct, frozen=True, tag="cancel"):
    """Daemon: stop that request at the next token; it still ends with a frame."""

    id: int


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    """Daemon: are you there? Answered by the reading thread, also while the model works."""

    number: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker: the model is loaded."""

    load_s: float


class Piece(msgspec.Struct, frozen=True, tag="piece"):
    """Worker: some text, as a sign of life."""

    id: int
    text: str


class Written(msgspec.Struct, frozen=True, tag="written"):
    """Worker: the end of a `Generate`."""

    id: int
    completion: Completion


class Vectors(msgspec.Struct, frozen=True, tag="vectors"):
    """Worker: the end of an `Embed`."""

    id: int
    vectors: tuple[tuple[float, ...], ...]


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker: the end of a request that could not be done; `error` names a class of `errors`."""

    id: int
    error: str
    message: str


class Pong(msgspec.Struct, frozen=True, tag="pong"):
    """Worker: here."""

    number: int


ToWorker = Load | Generate | Embed | Cancel | Ping
FromWorker = Ready | Piece | Written | Vectors | Failed | Pong

_encoder = msgspec.msgpack.Encoder()
_to_worker: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(ToWorker)
_from_worker: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromWorker)


class BadFrameError(Exception):
    """The other side of a pipe sent what is no frame."""


def encode_frame(message: ToWorker | FromWorker) -> bytes:
    """Return the message as a frame.

    Raises:
        BadFrameError: it is over the limit, or holds what cannot be written: half a surrogate pair,
            an integer of more than 64 bits, a schema nested without end.
    """
    try:
        body = _encoder.encode(message)
    except (UnicodeEncodeError, OverflowError, RecursionError, TypeError) as error:
        raise BadFrameError(f"it cannot be written: {error}") from error
    if len(body) > FRAME_BYTES_MAX:
        raise BadFrameError(f"a frame of {len(body)} bytes, over the limit of {FRAME_BYTES_MAX}")
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


class FrameReader:
    """Cuts what comes through a pipe into messages."""

    def __init__(self, *, from_worker: bool) -> None:
        self._decoder = _from_worker if from_worker else _to_worker
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Take in bytes and return the messages that are whole now.

        Raises:
            BadFrameError: it is no sequence of frames.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH_BYTES:
            size = int.from_bytes(self._buffer[:_LENGTH_BYTES], "big")
            if size > FRAME_BYTES_MAX:
                raise BadFrameError(f"a frame of {size} bytes, over the limit of {FRAME_BYTES_MAX}")
            end = _LENGTH_BYTES + size
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            # msgspec lets the last two through: bad UTF-8, and nesting in a field that it skips.
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadFrameError(f"not a message: {error}") from error
