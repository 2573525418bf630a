"""What do two peers say to each other about their memory? The messages on channel `memory`.

Every namespace is named by zone and name, and only ones that both sides may read. Any message may
come twice, late, or never; a link carries them in order while it lasts.
"""

from typing import Annotated

import msgspec

from covey.identity.wire import KIB, decode_union, encode

from .entry import HASH_BYTES, HEADER_BYTES_MAX, PAYLOAD_BYTES_MAX, SHORT_ID_BYTES
from .namespace import Name, Zone
from .reconciliation import Ranges

CHANNEL = "memory"
# A batch holds at least one whole entry, and is well below a link's frame.
BATCH_BYTES = 128 * KIB
BATCH_ENTRIES = 256
IDS_MAX = 4096
# With the longest names so many take 420 kB.
ROWS_MAX = 512
MESSAGE_BYTES_MAX = 512 * KIB
TIME_MS_MAX = 2**48 - 1
"""What a clock has room for."""
SALT_BYTES_MAX = 32
assert BATCH_BYTES + HEADER_BYTES_MAX + PAYLOAD_BYTES_MAX + KIB < MESSAGE_BYTES_MAX

_Digest = Annotated[bytes, msgspec.Meta(min_length=HASH_BYTES, max_length=HASH_BYTES)]
_Number = Annotated[int, msgspec.Meta(ge=0)]
_Time = Annotated[int, msgspec.Meta(ge=0, le=TIME_MS_MAX)]
_Ids = Annotated[bytes, msgspec.Meta(max_length=IDS_MAX * SHORT_ID_BYTES)]
"""Short ids, 16 bytes each, one after the other."""


class Digest(msgspec.Struct, frozen=True, array_like=True, tag="digest"):
    """All that I hold and you may read, written up to this moment, summed up."""

    until_ms: _Time
    digest: _Digest
    answer: bool
    """If yours is the same, say so. Otherwise who finds another one goes on in any case."""


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Your digest is not mine: name what you have, up to this moment at most."""

    until_ms: _Time


class Row(msgspec.Struct, frozen=True, array_like=True):
    """One namespace, summed up."""

    zone: Zone
    name: Name
    count: _Number
    digest: _Digest


class Contents(msgspec.Struct, frozen=True, array_like=True, tag="contents"):
    """What I hold and you may read, up to this moment, by namespace."""

    until_ms: _Time
    rows: Annotated[tuple[Row, ...], msgspec.Meta(max_length=ROWS_MAX)]
    whole: bool
    """No: the books alone, which go first; or I hold more than fit, and these are some of it."""


class Run(msgspec.Struct, frozen=True, array_like=True, tag="run"):
    """You hold more than I: you reconcile, so that fewer ids travel. Of these we differ; mine are so."""

    until_ms: _Time
    rows: Annotated[tuple[Row, ...], msgspec.Meta(max_length=ROWS_MAX)]


class Compare(msgspec.Struct, frozen=True, array_like=True, tag="compare"):
    """A step of a reconciliation, from who runs it."""

    session: _Number
    zone: Zone
    name: Name
    ranges: Ranges
    salt: Annotated[bytes, msgspec.Meta(max_length=SALT_BYTES_MAX)] = b""
    """Empty; in an audit what keys the fingerprints, so that no crafted set of ids hides another."""


class Compared(msgspec.Struct, frozen=True, array_like=True, tag="compared"):
    """The answer to a step."""

    session: _Number
    ranges: Ranges


class Rest(msgspec.Struct, frozen=True, array_like=True, tag="rest"):
    """I leave the comparison at that for now: so many entries one of us does not take."""

    entries: _Number


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """I have these; you may have them already."""

    zone: Zone
    name: Name
    ids: _Ids


class Want(msgspec.Struct, frozen=True, array_like=True, tag="want"):
    """Send me these."""

    zone: Zone
    name: Name
    ids: _Ids
    payloads: bool = False
    """I have their headers; send those whose payload you have."""


class Gone(msgspec.Struct, frozen=True, array_like=True, tag="gone"):
    """You want these, and I have them not, or no more: ask somebody else."""

    zone: Zone
    name: Name
    ids: _Ids


class Item(msgspec.Struct, frozen=True, array_like=True):
    """An entry on its way: the signed header, and the payload if the sender has it."""

    header: Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]
    payload: Annotated[bytes, msgspec.Meta(max_length=PAYLOAD_BYTES_MAX)] | None


class Entries(msgspec.Struct, frozen=True, array_like=True, tag="entries"):
    """Entries, in a batch of this number."""

    number: _Number
    zone: Zone
    name: Name
    items: Annotated[tuple[Item, ...], msgspec.Meta(min_length=1, max_length=BATCH_ENTRIES)]


class Took(msgspec.Struct, frozen=True, array_like=True, tag="took"):
    """The batch of this number is durable here, but for these; send more."""

    number: _Number
    refused: _Ids = b""
    """Too early, too old, or their author unknown here or without right."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """By what I know not both of us may read this namespace; there is no answer to it."""

    zone: Zone
    name: Name


Message = (
    Digest
    | Ask
    | Contents
    | Run
    | Compare
    | Compared
    | Rest
    | Offer
    | Want
    | Gone
    | Entries
    | Took
    | Refused
)


def encode_message(message: Message) -> bytes:
    """Return the message as bytes for channel `memory`."""
    return encode(message)


def decode_message(data: bytes) -> Message:
    """Return the message in `data`.

    Raises:
        Malformed: it is none of ours, or over the limit.
    """
    message: Message = decode_union(data, Message, limit_bytes=MESSAGE_BYTES_MAX)
    return message
