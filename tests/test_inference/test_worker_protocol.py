"""Frames between daemon and worker: whole however they are cut, and refused where they are none."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.inference.engine import ChatMessage, Completion, GenerateRequest, LoadSpec
from covey.inference.worker_protocol import (
    FRAME_BYTES_MAX,
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
    ToWorker,
    Vectors,
    Written,
    encode_frame,
)

NUMBERS = st.integers(0, 2**63 - 1)
# msgspec writes no half of a surrogate pair; `encode_frame` refuses it (below).
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
FLOATS = st.floats(allow_nan=False, width=32)
REQUESTS = st.builds(
    GenerateRequest,
    messages=st.lists(st.builds(ChatMessage, st.just("user"), TEXTS), max_size=3).map(tuple),
    prompt=st.none() | TEXTS,
    temperature=FLOATS,
    stop=st.lists(TEXTS, max_size=2).map(tuple),
    json_schema=st.none() | st.dictionaries(TEXTS, st.none() | TEXTS | FLOATS, max_size=3),
)
TO_WORKER: st.SearchStrategy[ToWorker] = st.one_of(
    st.builds(
        Load,
        st.builds(LoadSpec, path=TEXTS, name=TEXTS, role=st.sampled_from(["text", "embedding"])),
        st.sampled_from(["echo", "llama.cpp"]),
    ),
    st.builds(Generate, NUMBERS, REQUESTS),
    st.builds(Embed, NUMBERS, st.lists(TEXTS, max_size=3).map(tuple)),
    st.builds(Cancel, NUMBERS),
    st.builds(Ping, NUMBERS),
)
FROM_WORKER: st.SearchStrategy[FromWorker] = st.one_of(
    st.builds(Ready, FLOATS),
    st.builds(Piece, NUMBERS, TEXTS),
    st.builds(
        Written,
        NUMBERS,
        st.builds(
            Completion,
            text=TEXTS,
            finish=st.sampled_from(["stop", "length"]),
            prompt_tokens=NUMBERS,
            completion_tokens=NUMBERS,
        ),
    ),
    st.builds(
        Vectors, NUMBERS, st.lists(st.lists(FLOATS, max_size=3).map(tuple), max_size=3).map(tuple)
    ),
    st.builds(Failed, NUMBERS, TEXTS, TEXTS),
    st.builds(Pong, NUMBERS),
)


def read_in_pieces(stream: bytes, cuts: list[int], *, from_worker: bool) -> list[Any]:
    reader = FrameReader(from_worker=from_worker)
    read: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += reader.feed(stream[start:end])
    return read


@given(st.lists(TO_WORKER, max_size=5) | st.lists(FROM_WORKER, max_size=5), st.data())
def test_a_stream_of_frames_is_read_however_it_is_cut(
    messages: list[Any], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(message) for message in messages)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    from_worker = all(isinstance(message, FromWorker) for message in messages)
    assert read_in_pieces(stream, cuts, from_worker=from_worker) == messages


@given(st.binary(max_size=300), st.booleans())
def test_garbage_is_a_bad_frame_or_waits_for_more_and_nothing_worse(
    data: bytes, from_worker: bool
) -> None:
    framed = len(data).to_bytes(4, "big") + data
    for tried in (data, framed):
        with suppress(BadFrameError):
            for message in FrameReader(from_worker=from_worker).feed(tried):
                assert isinstance(message, FromWorker if from_worker else ToWorker)


@given(FROM_WORKER, st.data())
def test_a_frame_with_bytes_changed_is_a_message_or_a_bad_frame_and_nothing_worse(
    message: FromWorker, data: st.DataObject
) -> None:
    frame = bytearray(encode_frame(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(4, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(BadFrameError):
        for read in FrameReader(from_worker=True).feed(bytes(frame)):
            assert isinstance(read, FromWorker)


@given(FROM_WORKER, st.data())
def test_a_truncated_frame_says_nothing_until_the_rest_comes(
    message: FromWorker, data: st.DataObject
) -> None:
    frame = encode_frame(message)
    cut = data.draw(st.integers(0, len(frame) - 1))
    reader = FrameReader(from_worker=True)
    assert list(reader.feed(frame[:cut])) == []
    assert list(reader.feed(frame[cut:])) == [message]


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


DEEP = b"\x91" * 100_000 + b"\x01"


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("an empty frame", bytes(4)),
        ("no message", framed(b"\xc0")),
        ("a list", framed(b"\x93\x01\x02\x03")),
        ("an unknown tag", framed(msgspec.msgpack.encode({"type": "rm", "id": 1}))),
        ("a message of the other side", encode_frame(Ping(1))),
        ("a field of another type", framed(msgspec.msgpack.encode({"type": "pong", "number": "x"}))),
        ("more than its message", framed(msgspec.msgpack.encode({"type": "pong", "number": 1}) + b"x")),
        ("a text that is not UTF-8", framed(b"\x83\xa4type\xa5piece\xa2id\x01\xa4text\xa2\xff\xfe")),
        ("a field nested without end", framed(b"\x83\xa4type\xa4pong\xa6number\x01\xa1x" + DEEP)),
        ("a length over the limit", (FRAME_BYTES_MAX + 1).to_bytes(4, "big")),
        ("an enormous length", b"\xff\xff\xff\xff"),
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(what: str, data: bytes) -> None:
    with pytest.raises(BadFrameError):
        list(FrameReader(from_worker=True).feed(data))


def test_an_oversized_frame_is_refused_at_its_length_before_its_body_comes() -> None:
    reader = FrameReader(from_worker=True)
    with pytest.raises(BadFrameError, match="8388609 bytes, over the limit of 8388608"):
        list(reader.feed((FRAME_BYTES_MAX + 1).to_bytes(4, "big")))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("why", "message"),
    [
        ("over the limit", Piece(1, "x" * FRAME_BYTES_MAX)),
        ("cannot be written", Piece(1, "half a pair: \ud83d")),
        ("cannot be written", Generate(1, GenerateRequest(json_schema={"maximum": 2**64}))),
        ("cannot be written", Generate(1, GenerateRequest(json_schema=nested(100_000)))),
        ("cannot be written", Generate(1, GenerateRequest(json_schema={"a": object()}))),
    ],
)
def test_what_fits_no_frame_is_refused_before_it_is_sent(
    why: str, message: ToWorker | FromWorker
) -> None:
    with pytest.raises(BadFrameError, match=why):
        encode_frame(message)
