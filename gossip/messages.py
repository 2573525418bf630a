"""What do origin and executor tell each other about a task? The messages of delivery, on channel
`task`.

An offer is answered by an acceptance or a decline; an outcome is repeated until acknowledged; so is
a cancel. Every message may come twice, late, or never.
"""

from typing import Annotated

import msgspec

from covey.identity.wire import KIB, decode_union, encode

from .task import (
    INPUT_WITH_OFFER_BYTES_MAX,
    NONCE_BYTES,
    RESULT_BYTES_MAX,
    TASK_ID_BYTES,
    Need,
)

CHANNEL = "task"
INPUT_CHANNEL = "input"
MESSAGE_BYTES_MAX = RESULT_BYTES_MAX + INPUT_WITH_OFFER_BYTES_MAX + 8 * KIB
REASON_CHARACTERS_MAX = 500

# Ids become keys of the store, which takes no long ones: another length is refused at the edge.
IdBytes = Annotated[bytes, msgspec.Meta(min_length=TASK_ID_BYTES, max_length=TASK_ID_BYTES)]
NonceBytes = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]


class Offer(msgspec.Struct, frozen=True, array_like=True, tag="offer"):
    """Origin to executor: do this, within `left_ms` from now."""

    task_id: IdBytes
    attempt: int
    nonce: NonceBytes
    need: Need
    input: bytes | None
    """None: larger than rides with an offer; fetch it on channel `input`."""
    input_digest: bytes
    left_ms: int
    priority: int
    once: bool


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """Executor to origin: it is mine while this incarnation lives."""

    task_id: IdBytes
    attempt: int
    incarnation: int


class Declined(msgspec.Struct, frozen=True, array_like=True, tag="declined"):
    """Executor to origin: not I, and why."""

    task_id: IdBytes
    attempt: int
    reason: str
    retry_ms: int
    """After how long the same peer may be asked again; 0: it can never do this."""
    begun: bool = False
    """A `once` task that this peer may have begun: it is not for anyone else."""


class Progress(msgspec.Struct, frozen=True, array_like=True, tag="progress"):
    """Executor to origin: still at it."""

    task_id: IdBytes
    attempt: int
    text: str


class Delivered(msgspec.Struct, frozen=True, array_like=True, tag="outcome"):
    """Executor to origin: a sealed `Outcome` and the result that it names."""

    task_id: IdBytes
    outcome: bytes
    result: bytes


class Acknowledged(msgspec.Struct, frozen=True, array_like=True, tag="acknowledged"):
    """Origin to executor: the outcome is durable here, or not wanted."""

    task_id: IdBytes


class Cancel(msgspec.Struct, frozen=True, array_like=True, tag="cancel"):
    """Origin to executor: stop it, or never begin it."""

    task_id: IdBytes


class CancelAcknowledged(msgspec.Struct, frozen=True, array_like=True, tag="cancelled"):
    """Executor to origin: it does not run here and will not."""

    task_id: IdBytes


Message = (
    Offer | Accepted | Declined | Progress | Delivered | Acknowledged | Cancel | CancelAcknowledged
)
PAYLOAD = (Offer, Progress, Delivered)
"""Messages made from content; all others are control."""


def as_reason(text: str) -> str:
    """Return a text as it is told to others and kept: not too long, and nothing that is no text."""
    return text[:REASON_CHARACTERS_MAX].encode(errors="replace").decode()


def encode_message(message: Message) -> bytes:
    """Return the message as bytes for channel `task`."""
    return encode(message)


def decode_message(data: bytes) -> Message:
    """Return the message in `data`.

    Raises:
        Malformed: it is none of ours, or over the limit.
    """
    message: Message = decode_union(data, Message, limit_bytes=MESSAGE_BYTES_MAX)
    return message
