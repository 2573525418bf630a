"""How do tasks and peers look to a client? Views made of what the cores keep. Pure."""

from collections.abc import Callable

import msgspec

from covey.gossip.directory import Entry
from covey.gossip.network import LinkInfo, Load, Traffic
from covey.gossip.task import Task
from covey.gossip.task_state import Attempt, TaskState

from .views import AttemptView, DataView, PeerView, TaskView, TrafficView

NameOf = Callable[[str], str]
"""What a peer, given its id, calls itself; the id if it is not known."""


def task_view(
    task: Task, state: TaskState, *, name: NameOf, progress: str = "", result: bytes | None = None
) -> TaskView:
    """Return a task as its owner sees it; `result` is its JSON once it is done."""
    last = state.attempts[-1] if state.attempts else None
    executor = state.executor or (last.peer if last is not None else "")
    reason = state.reason
    for peer in {attempt.peer for attempt in state.attempts}:
        reason = reason.replace(peer, name(peer))
    if progress and state.state == "running":
        reason = f"{reason} ({progress})"
    need = task.need
    return TaskView(
        id=task.id.hex(),
        skill=need.skill,
        state=state.state,
        reason=reason,
        zone=need.zone,
        submitted_ms=task.submitted_ms,
        deadline_ms=task.deadline_ms,
        ended_ms=state.ended_ms or None,
        data=need.data,
        labels=dict(need.labels),
        model=need.model,
        peer=executor or None,
        peer_name=name(executor) if executor else None,
        way=last.way if last is not None else None,
        attempts=tuple(_attempt_view(one, name) for one in state.attempts),
        result=_json(result),
        run_ms=state.run_us / 1000 if state.executor else None,
        model_used=state.model or None,
    )


def _json(result: bytes | None) -> msgspec.Raw | None:
    """Return a result as it came, if it is JSON: it was made by another peer, and nobody looked."""
    if result is None:
        return None
    try:
        msgspec.json.decode(result)
    except (msgspec.MsgspecError, RecursionError):
        return msgspec.Raw(msgspec.json.encode({"not-json": result[:200].decode(errors="replace")}))
    return msgspec.Raw(result)


def _attempt_view(attempt: Attempt, name: NameOf) -> AttemptView:
    return AttemptView(
        number=attempt.number,
        peer=attempt.peer,
        peer_name=name(attempt.peer),
        why=attempt.why,
        state=attempt.state,
        reason=attempt.reason,
        offered_ms=attempt.offered_ms,
        ended_ms=attempt.ended_ms or None,
    )


def peer_view(
    entry: Entry, link: LinkInfo | None, *, own_load: Load | None, now_ms: int
) -> PeerView:
    """Return a peer as this device knows it; `own_load` is given for this device itself only."""
    advert = entry.advert
    load = own_load if own_load is not None else link.load if link is not None else None
    here = own_load is not None or link is not None
    return PeerView(
        id=entry.peer,
        name=advert.name,
        state="self" if own_load is not None else "up" if link is not None else "down",
        addresses=advert.addresses,
        round_trip_ms=round(link.round_trip_ms, 2) if link and link.round_trip_ms else None,
        labels=dict(advert.labels),
        data=tuple(DataView(name=one.name, kind=one.kind) for one in advert.data),
        skills=advert.skills,
        models=tuple(one.name for one in advert.models),
        running=load.running if load is not None else None,
        waiting=load.waiting if load is not None else None,
        version=advert.version,
        seen_ms=now_ms if here else entry.at_ms,
        role=entry.member.role,
        zones=tuple(sorted(entry.member.zones)),
    )


def traffic_view(traffic: Traffic, *, data_read_bytes: int) -> TrafficView:
    """Return the sums over all channels."""
    return TrafficView(
        payload_out_bytes=sum(traffic.payload_out.values()),
        payload_in_bytes=sum(traffic.payload_in.values()),
        control_out_bytes=sum(traffic.control_out.values()),
        control_in_bytes=sum(traffic.control_in.values()),
        data_read_bytes=data_read_bytes,
    )
