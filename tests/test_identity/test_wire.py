"""Strict CBOR: one value, one encoding; everything else is refused and nothing breaks."""

import contextlib
from typing import Any

import cbor2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.identity.errors import Malformed
from covey.identity.wire import bytes_item, decode, encode, encode_plain, read_back, strict_cbor


class Point(msgspec.Struct, frozen=True, array_like=True):
    x: int
    name: str
    data: bytes = b""


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("size", [0, 1, 23, 24, 255, 256, 65_535, 65_536])
def test_a_byte_string_by_hand_is_as_any_other(size: int) -> None:
    assert bytes_item(bytes(size)) == encode_plain(bytes(size))


@given(VALUES)
def test_what_is_encoded_is_read_back(value: Any) -> None:
    assert strict_cbor(encode_plain(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_are_the_one_encoding_of_a_value(data: bytes) -> None:
    try:
        value = strict_cbor(data)
    except Malformed:
        return
    assert encode_plain(value) == data


@given(VALUES, st.data())
def test_a_changed_byte_never_reads_as_the_same_value(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(encode_plain(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= data.draw(st.integers(1, 255))
    try:
        read = strict_cbor(bytes(encoded))
    except Malformed:
        return
    # 1 == True in Python, but not on the wire
    assert encode_plain(read) != encode_plain(value)


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("nothing", ""),
        ("two values", "0101"),
        ("a longer integer than needed", "1801"),
        ("an integer in 8 bytes", "1b0000000000000001"),
        ("a list without an end", "9f01ff"),
        ("a text in parts", "7f6161ff"),
        ("a map with a key twice", "a2616101616102"),
        ("keys out of order", "a2616201616101"),
        ("a key that is no text", "a10101"),
        ("a float", "f93c00"),
        ("not a number", "f97e00"),
        ("undefined", "f7"),
        ("a date", "c074323032362d31312d32345430303a30303a30305a"),
        ("a big number", "c249010000000000000000"),
        ("a shared reference", "d81c81d81d00"),
        ("a regular expression", "d82361 2e".replace(" ", "")),
        ("a set", "d9010281 01".replace(" ", "")),
        ("text that is not UTF-8", "61ff"),
        ("a cut text", "6561"),
        ("a list said to be enormous", "9bffffffffffffffff"),
        ("too deep", "81" * 13 + "01"),
        ("far too deep", "81" * 60_000 + "01"),
    ],
)
def test_what_covey_never_sends_is_refused(what: str, data: str) -> None:
    with pytest.raises(Malformed):
        strict_cbor(bytes.fromhex(data))


def test_a_limit_is_told() -> None:
    with pytest.raises(Malformed, match="message of 101 bytes, over the limit of 100"):
        strict_cbor(b"\x00" * 101, limit_bytes=100)


@given(st.integers(0, 2**63), st.text(max_size=30), st.binary(max_size=50))
def test_a_struct_is_read_back(x: int, name: str, data: bytes) -> None:
    point = Point(x, name, data)
    assert decode(encode(point), Point) == point


def test_a_newer_peers_extra_field_is_ignored() -> None:
    assert decode(encode_plain([1, "a", b"", "new"]), Point) == Point(1, "a")


@pytest.mark.parametrize("value", [["1", "a"], [1], {"x": 1, "name": "a"}, [1, b"a"], "text"])
def test_another_shape_is_refused(value: Any) -> None:
    with pytest.raises(Malformed, match="not a Point"):
        decode(cbor2.dumps(value, canonical=True), Point)


@given(st.integers(0, 2**63), st.text(max_size=30), st.binary(max_size=50))
def test_what_this_device_wrote_is_read_back(x: int, name: str, data: bytes) -> None:
    point = Point(x, name, data)
    assert read_back(encode(point), Point) == point


@given(st.binary(max_size=100))
def test_a_damaged_row_is_malformed_and_nothing_worse(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        assert isinstance(read_back(data, Point), Point)
