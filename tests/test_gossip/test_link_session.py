"""Frames of a link: whole however they are cut, and refused where they are none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.gossip.link_session import BODY_BYTES_MAX, Frame, FrameReader, Kind, encode_frame
from covey.identity.errors import Malformed

FRAMES = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.text(alphabet="abc-/", max_size=32),
    st.binary(max_size=300),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.booleans(),
)


@given(st.lists(FRAMES, max_size=6), st.data())
def test_a_stream_of_frames_is_read_however_it_is_cut(
    frames: list[Frame], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(frame) for frame in frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    reader = FrameReader()
    read: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        read += reader.feed(stream[start:end])
    assert read == frames


@given(st.binary(min_size=1, max_size=400))
def test_garbage_ends_in_a_refusal_or_waits_for_more(data: bytes) -> None:
    reader = FrameReader()
    try:
        for frame in reader.feed(data):
            assert isinstance(frame, Frame)
    except Malformed:
        pass


@pytest.mark.parametrize(
    ("what", "head"),
    [
        ("an enormous length", "ffffffff"),
        ("no length at all", "00000000"),
        ("shorter than its head", "00000009"),
        ("an unknown kind", "0000000a 7f 00000000 00000000 00"),
        ("a channel longer than allowed", "0000002b 01 00000000 00000000 21" + "61" * 33),
        ("a channel longer than its frame", "0000000a 01 00000000 00000000 05"),
        ("a channel that is not text", "0000000b 01 00000000 00000000 01 ff"),
    ],
)
def test_what_is_no_frame_is_refused(what: str, head: str) -> None:
    with pytest.raises(Malformed):
        list(FrameReader().feed(bytes.fromhex(head)))


def test_an_oversized_body_is_refused_before_it_is_sent() -> None:
    with pytest.raises(Malformed, match="over the limit"):
        encode_frame(Frame(Kind.MESSAGE, "task", bytes(BODY_BYTES_MAX + 1)))
    with pytest.raises(Malformed, match="channel"):
        encode_frame(Frame(Kind.MESSAGE, "x" * 33))
