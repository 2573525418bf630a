"""What may be handed in on this device? A client's request becomes a task, or is refused. Pure."""

from collections.abc import Collection

from covey.gossip.task import (
    DEADLINE_S_DEFAULT,
    DEADLINE_S_MAX,
    PRIORITY_MAX,
    Need,
    Task,
    check_need,
    nonce_of_key,
    task_id_of,
)
from covey.identity.errors import Misuse
from covey.identity.keys import PeerId

from .views import SubmitRequest

KEY_CHARACTERS_MAX = 200


def task_of(
    request: SubmitRequest,
    origin: PeerId,
    *,
    zones: Collection[str],
    nonce: bytes,
    now_ms: int,
) -> Task:
    """Return the task that `request` asks for.

    Args:
        request: from a client of this device.
        origin: this device.
        zones: those that its certificate grants.
        nonce: 16 random bytes; not used for a request with an idempotency key.
        now_ms: wall time.

    Raises:
        Misuse: no peer could do it; names the field and its limit.
    """
    need = Need(
        skill=request.skill,
        zone=request.zone,
        data=request.data,
        labels=tuple(sorted(request.labels.items())),
        model=request.model,
        peer=request.peer,
        size_bytes=len(bytes(request.input)),
    )
    check_need(need, zones)
    deadline_s = request.deadline_s if request.deadline_s is not None else DEADLINE_S_DEFAULT
    if not 0 < deadline_s <= DEADLINE_S_MAX:
        raise Misuse(f"deadline_s is above 0 and at most {DEADLINE_S_MAX:.0f}, not {deadline_s:g}")
    if not -PRIORITY_MAX <= request.priority <= PRIORITY_MAX:
        raise Misuse(f"priority is -{PRIORITY_MAX} to {PRIORITY_MAX}, not {request.priority}")
    if request.key is not None:
        if not 0 < len(request.key) <= KEY_CHARACTERS_MAX:
            raise Misuse(f"a key has 1 to {KEY_CHARACTERS_MAX} characters, not {len(request.key)}")
        nonce = nonce_of_key(request.key)
    return Task(
        id=task_id_of(origin, nonce),
        origin=origin,
        nonce=nonce,
        need=need,
        input=bytes(request.input),
        submitted_ms=now_ms,
        deadline_ms=now_ms + int(deadline_s * 1000),
        priority=request.priority,
        once=request.once,
    )
