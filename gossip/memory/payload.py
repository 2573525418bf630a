"""What was written, for how long is it good, and what was it made from? The payload beside a header.

It begins with random salt, so that nobody guesses a short text from the digest in its header.
"""

from typing import Annotated

import msgspec

from covey.identity.errors import Malformed
from covey.identity.wire import KIB, decode, encode

from .entry import PAYLOAD_BYTES_MAX

SALT_BYTES = 16
KEY_CHARACTERS_MAX = 200
SOURCES_MAX = 16
NAME_CHARACTERS_MAX = 200
DIMENSIONS_MAX = 2048
TEXT_BYTES_MAX = 8 * KIB
SCHEMA = 1

_Name = Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]
_Count = Annotated[int, msgspec.Meta(ge=0)]


class Source(msgspec.Struct, frozen=True, array_like=True):
    """Raw data that was read and did not leave its device."""

    name: _Name
    digest: Annotated[bytes, msgspec.Meta(max_length=32)]
    """SHA-256 of what was read."""
    size_bytes: _Count
    observations: _Count
    """How many lines, rows or entries it held."""


class Provenance(msgspec.Struct, frozen=True, array_like=True):
    """How an author came to what it says."""

    sources: Annotated[tuple[Source, ...], msgspec.Meta(max_length=SOURCES_MAX)] = ()
    model: _Name = ""
    """What worded it; empty: a person or a program did."""
    method: _Name = ""


class Embedding(msgspec.Struct, frozen=True, array_like=True):
    """The text as a vector, of use to peers with the same model."""

    model: _Name
    """The model file's digest."""
    vector: Annotated[bytes, msgspec.Meta(max_length=2 * DIMENSIONS_MAX)]
    """Little-endian float16, of unit length."""


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an entry says."""

    schema: _Count
    salt: Annotated[bytes, msgspec.Meta(min_length=SALT_BYTES, max_length=SALT_BYTES)]
    key: Annotated[str, msgspec.Meta(max_length=KEY_CHARACTERS_MAX)]
    value: str
    """A text; for registers and extremes JSON; for counters two decimal numbers, added and taken."""
    provenance: Provenance | None = None
    embedding: Embedding | None = None
    record: bytes = b""
    """In the books, in place of a value."""
    chain: tuple[bytes, ...] = ()
    """In the books: the author's own chain, by which the entry is judged whoever served it."""


def encode_payload(payload: Payload) -> bytes:
    """Return the payload as bytes.

    Raises:
        Malformed: it is over the limit.
    """
    data = encode(payload)
    if len(data) > PAYLOAD_BYTES_MAX:
        raise Malformed(
            f"{len(data)} bytes with key and provenance, over the limit of {PAYLOAD_BYTES_MAX}; "
            "share a shorter summary"
        )
    return data


def decode_payload(data: bytes) -> Payload:
    """Return the payload in `data`.

    Raises:
        Malformed: it is none of this version: it is kept and passed on, and not shown.
    """
    payload = decode(data, Payload, limit_bytes=PAYLOAD_BYTES_MAX)
    if payload.schema != SCHEMA:
        raise Malformed(f"a payload of schema {payload.schema}, this version knows {SCHEMA}")
    return payload
