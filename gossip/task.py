"""What is asked for? Tasks, what they need, and the signed outcome. Wire types.

Input and result are JSON bytes of the skill's own; delivery never looks inside.
"""

import hashlib
from collections.abc import Collection
from typing import Literal, NewType

import msgspec

from covey.identity.errors import Misuse
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, encode_plain

TaskId = NewType("TaskId", bytes)
"""16 bytes: hash of origin and nonce."""

TASK_ID_BYTES = 16
NONCE_BYTES = 16
# One link frame carries an input or a result whole.
INPUT_BYTES_MAX = 1024 * KIB
RESULT_BYTES_MAX = 1024 * KIB
# An input up to this rides with the offer; a larger one is fetched by who accepts, so that
# declining is cheap.
INPUT_WITH_OFFER_BYTES_MAX = 16 * KIB
DEADLINE_S_DEFAULT = 86_400.0
DEADLINE_S_MAX = 90 * 86_400.0
NAME_CHARACTERS_MAX = 128
LABELS_MAX = 16
PRIORITY_MAX = 9
OUTCOME_KIND = "outcome"

ZONES = ("device", "mesh")
"""What is a zone for every device; others are granted in certificates."""


class Need(msgspec.Struct, frozen=True, array_like=True):
    """What a peer must have to run a task; says nothing of the input but its size."""

    skill: str
    zone: str = "mesh"
    data: str | None = None
    labels: tuple[tuple[str, str], ...] = ()
    model: str | None = None
    peer: str | None = None
    """Peer id or name of the only peer that may run it."""
    size_bytes: int = 0


class Task(msgspec.Struct, frozen=True, array_like=True):
    """A request, as its origin keeps it. Never changes."""

    id: bytes
    origin: str
    nonce: bytes
    need: Need
    input: bytes
    submitted_ms: int
    deadline_ms: int
    priority: int = 0
    once: bool = False


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What became of one attempt; sealed by the peer that ran it, kind `outcome`."""

    origin: str
    task_id: bytes
    attempt: int
    task_digest: bytes
    result_digest: bytes
    state: Literal["done", "failed"]
    reason: str
    run_us: int
    """How long the skill ran, in microseconds (the wire knows no fractions)."""
    model: str
    ended_ms: int


def task_id_of(origin: PeerId, nonce: bytes) -> TaskId:
    """Return the id of the task that `origin` made with `nonce`."""
    return TaskId(
        hashlib.sha256(b"covey/task/1" + origin.encode() + nonce).digest()[:TASK_ID_BYTES]
    )


def nonce_of_key(key: str) -> bytes:
    """Return the nonce that a client's idempotency key names."""
    return hashlib.sha256(b"covey/idempotency/1" + key.encode()).digest()[:NONCE_BYTES]


def digest_of(data: bytes) -> bytes:
    """Return the digest by which results are named in outcomes."""
    return hashlib.sha256(data).digest()


def task_digest(origin: str, task_id: bytes, need: Need, input_: bytes) -> bytes:
    """Return the digest by which an outcome names exactly this task."""
    named = msgspec.to_builtins(need, builtin_types=(bytes,))
    return digest_of(encode_plain([origin, task_id, named, digest_of(input_)]))


def check_shape(need: Need) -> None:
    """Refuse a need that no peer could read, whoever asks.

    Raises:
        Misuse: naming the field and its limit.
    """
    names = (need.skill, need.zone, need.data or "", need.model or "", need.peer or "")
    for name in (*names, *(part for label in need.labels for part in label)):
        if len(name) > NAME_CHARACTERS_MAX:
            raise Misuse(
                f"a name has at most {NAME_CHARACTERS_MAX} characters, not {len(name)}: {name[:32]!r}..."
            )
    if not need.skill:
        raise Misuse("a task names a skill, such as 'classify'")
    if len(need.labels) > LABELS_MAX:
        raise Misuse(f"a task names at most {LABELS_MAX} labels, not {len(need.labels)}")
    if need.size_bytes > INPUT_BYTES_MAX:
        raise Misuse(
            f"the input has {need.size_bytes} bytes, over the limit of {INPUT_BYTES_MAX}; "
            "put it into a data source and name that"
        )


def check_need(need: Need, zones: Collection[str] = ()) -> None:
    """Refuse a need that no peer could read, or of a zone that this device is not in.

    Args:
        need: what is asked for.
        zones: the zones that this device's certificate grants, besides those that all have.

    Raises:
        Misuse: naming the field and its limit.
    """
    check_shape(need)
    known = (*ZONES, *sorted(zones))
    if need.zone not in known:
        raise Misuse(f"zone {need.zone!r} is not known here; use one of: {', '.join(known)}")
