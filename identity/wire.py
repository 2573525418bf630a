"""How do structs become bytes that can be signed, and back? Strict deterministic CBOR.

One value has one encoding: definite lengths, shortest integers, no tags, no floats, no duplicate
keys, nothing after the value. What is not its own canonical encoding is refused (RFC 8949, 4.2;
cbor2's length-first order of RFC 7049 for maps). Structs are fixed-position arrays; a newer peer's
extra field at the end is ignored on reading, and what is stored and passed on is always the bytes
that came.
"""

from typing import Any, NoReturn, TypeVar, cast

import cbor2
import msgspec

from .errors import Malformed

T = TypeVar("T")
KIB = 1024
DEPTH_MAX = 12
INT_MAX = 2**64 - 1


def encode(value: msgspec.Struct) -> bytes:
    """Return the one encoding of `value`."""
    return cbor2.dumps(msgspec.to_builtins(value, builtin_types=(bytes,)), canonical=True)


def encode_plain(value: object) -> bytes:
    """Return the one encoding of a value made of lists, text, bytes, integers, booleans and None."""
    return cbor2.dumps(value, canonical=True)


def bytes_item(data: bytes) -> bytes:
    """Return the one encoding of a byte string: its length, then itself."""
    size = len(data)
    if size < 24:
        return bytes((0x40 | size,)) + data
    if size < 1 << 8:
        return bytes((0x58, size)) + data
    if size < 1 << 16:
        return b"\x59" + size.to_bytes(2, "big") + data
    return encode_plain(data)


def decode(data: bytes, kind: type[T], *, limit_bytes: int = 64 * KIB) -> T:
    """Return the struct in `data`.

    Raises:
        Malformed: naming the first thing wrong: too long, not canonical CBOR, or not a `kind`.
    """
    decoded: T = decode_union(data, kind, limit_bytes=limit_bytes)
    return decoded


def decode_union(data: bytes, kind: Any, *, limit_bytes: int = 64 * KIB) -> Any:
    """Return the struct in `data`, one of a union of tagged structs.

    As `decode`, which types better.
    """
    value = strict_cbor(data, limit_bytes=limit_bytes)
    try:
        return msgspec.convert(value, kind, builtin_types=(bytes,))
    except (msgspec.ValidationError, RecursionError) as error:
        name = getattr(kind, "__name__", "known message")
        raise Malformed(f"not a {name}: {error}") from error


def read_back(data: bytes, kind: type[T]) -> T:
    """Return the struct in bytes that `encode` made on this very device, such as a stored row.

    That they are canonical is not checked again.

    Raises:
        Malformed: they are damaged.
    """
    try:
        return msgspec.convert(cbor2.loads(data, max_depth=DEPTH_MAX), kind, builtin_types=(bytes,))
    except (cbor2.CBORError, msgspec.ValidationError, ValueError, RecursionError) as error:
        raise Malformed(f"not a {kind.__name__}: {error}") from error


def strict_cbor(data: bytes, *, limit_bytes: int = 64 * KIB) -> Any:
    """Return the value whose one canonical encoding is `data`.

    Raises:
        Malformed: it is over the limit, not CBOR, not canonical, too deep, or holds what covey
        never sends.
    """
    if len(data) > limit_bytes:
        raise Malformed(f"message of {len(data)} bytes, over the limit of {limit_bytes}")
    try:
        value = _loads(data)
        _refuse_foreign(value)
        again = cbor2.dumps(value, canonical=True)
    except Malformed:
        raise
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Malformed(f"not strict CBOR: {error}") from error
    if again != data:
        raise Malformed("not the canonical encoding of its value")
    return value


def _refuse_tag(*_arguments: object) -> NoReturn:
    raise Malformed("tags are not allowed")


# The tags that cbor2 would turn into objects of its own (big numbers, dates, regular expressions,
# shared references) before anything of ours sees them.
_REFUSED_TAGS = dict.fromkeys(
    (
        *(0, 1, 2, 3, 4, 5, 25, 28, 29, 30, 35, 36, 37),
        *(100, 256, 258, 260, 261, 1004, 43000, 55799),
    ),
    _refuse_tag,
)


def _loads(data: bytes) -> Any:
    return cbor2.loads(
        data,
        tag_hook=_refuse_tag,
        semantic_decoders=_REFUSED_TAGS,  # pyright: ignore[reportArgumentType]  # never returns
        max_depth=DEPTH_MAX,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )


def _refuse_foreign(value: object) -> None:
    # Most values are text and bytes within a list: one look at each, and no call.
    if type(value) is list:
        for item in cast("list[object]", value):
            if type(item) not in _PLAIN:
                _refuse_foreign(item)
    elif type(value) is dict:
        for key, item in cast("dict[object, object]", value).items():
            if type(key) is not str:
                raise Malformed("a map's keys must be text")
            if type(item) not in _PLAIN:
                _refuse_foreign(item)
    elif type(value) is int:
        if not -INT_MAX - 1 <= value <= INT_MAX:
            raise Malformed("integer beyond 64 bits")
    elif type(value) not in _PLAIN:
        raise Malformed(f"{type(value).__name__} is not allowed")


_PLAIN = frozenset({str, bytes, bool, type(None)})
