"""What travels on one link? Frames of messages, requests, answers and pings. A pure protocol of
both sides.

Bytes in, events out; calls return bytes to write. Frame: length (u32), kind (u8), request id (u32),
time left in ms (u32), length of channel (u8), channel, body; big-endian. It is plain rather than
CBOR because every task pays for it several times; nothing here is signed: the link itself is
encrypted and its peer proven.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from covey.identity.errors import Malformed

HEAD = struct.Struct(">IBIIB")
CHANNEL_BYTES_MAX = 32
BODY_BYTES_MAX = 1024 * 1024 + 64 * 1024
FRAME_BYTES_MAX = HEAD.size + CHANNEL_BYTES_MAX + BODY_BYTES_MAX
_LENGTH_BYTES = 4


class Kind(IntEnum):
    """What a frame is. The high bit of the byte marks a payload."""

    MESSAGE = 1
    REQUEST = 2
    ANSWER = 3
    FAILURE = 4
    CANCEL = 5
    PING = 6
    PONG = 7
    BYE = 8


_PAYLOAD = 0x80


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, as heard or to be said."""

    kind: Kind
    channel: str = ""
    body: bytes = b""
    request: int = 0
    left_ms: int = 0
    payload: bool = False


def encode_frame(frame: Frame) -> bytes:
    """Return the frame as bytes.

    Raises:
        Malformed: channel or body is over its limit.
    """
    channel = frame.channel.encode()
    if len(channel) > CHANNEL_BYTES_MAX:
        raise Malformed(
            f"a channel's name has at most {CHANNEL_BYTES_MAX} bytes: {frame.channel!r}"
        )
    if len(frame.body) > BODY_BYTES_MAX:
        raise Malformed(f"a frame of {len(frame.body)} bytes, over the limit of {BODY_BYTES_MAX}")
    size = HEAD.size - _LENGTH_BYTES + len(channel) + len(frame.body)
    kind = frame.kind | (_PAYLOAD if frame.payload else 0)
    head = HEAD.pack(size, kind, frame.request, min(frame.left_ms, 0xFFFFFFFF), len(channel))
    return head + channel + frame.body


@dataclass(slots=True)
class FrameReader:
    """Cuts a stream of bytes into frames, however it was chunked."""

    _buffer: bytearray = field(default_factory=bytearray)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Take in bytes and return the frames that are whole now.

        Raises:
            Malformed: the stream is no sequence of frames; nothing after that can be understood.
        """
        self._buffer += data
        at = 0
        try:
            while len(self._buffer) - at >= _LENGTH_BYTES:
                size = int.from_bytes(self._buffer[at : at + _LENGTH_BYTES], "big")
                if not HEAD.size - _LENGTH_BYTES <= size <= FRAME_BYTES_MAX:
                    raise Malformed(
                        f"a frame of {size} bytes, not within {HEAD.size} to {FRAME_BYTES_MAX}"
                    )
                end = at + _LENGTH_BYTES + size
                if len(self._buffer) < end:
                    break
                frame = _frame(bytes(self._buffer[at:end]))
                at = end
                yield frame
        finally:
            del self._buffer[:at]


def _frame(data: bytes) -> Frame:
    _, kind, request, left_ms, channel_bytes = HEAD.unpack_from(data)
    body_at = HEAD.size + channel_bytes
    if channel_bytes > CHANNEL_BYTES_MAX or body_at > len(data):
        raise Malformed("a frame's channel is longer than allowed")
    try:
        known = Kind(kind & ~_PAYLOAD)
        channel = data[HEAD.size : body_at].decode()
    except ValueError as error:
        raise Malformed(f"a frame of unknown kind or channel: {kind}") from error
    return Frame(known, channel, data[body_at:], request, left_ms, bool(kind & _PAYLOAD))
