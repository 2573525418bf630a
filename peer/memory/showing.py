"""How does the shared memory look to a client? Views made of what is read. Pure."""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, assert_never

import msgspec

from covey.gossip.memory.kinds import Type
from covey.gossip.memory.namespace import Namespace
from covey.gossip.memory.neighbour import Exchange, Neighbour
from covey.gossip.memory.payload import Source
from covey.gossip.memory.reading import Remembered, State
from covey.gossip.memory.values import (
    Answer,
    CounterValue,
    Extreme,
    LogValue,
    RegisterValue,
    SetValue,
    SharedValue,
    Value,
)

from .views import (
    CountView,
    ElementView,
    EntryView,
    ExchangeView,
    SourceView,
    StepView,
    ValueView,
)

NameOf = Callable[[str], str]
"""What a peer, given its id, calls itself; the id if it is not known."""
_TYPES = {
    Type.NOTE: "note",
    Type.REGISTER: "register",
    Type.SHARED: "shared",
    Type.ELEMENT: "element",
    Type.COUNTER: "counter",
    Type.MAXIMUM: "maximum",
    Type.MINIMUM: "minimum",
    Type.LINE: "line",
    Type.REMOVAL: "removal",
    Type.FORGETTING: "forgetting",
}


def entry_view(
    entry: Remembered, namespace: Namespace, name: NameOf, *, doubtful: str = ""
) -> EntryView:
    """Return one entry as a client sees it."""
    provenance = entry.provenance
    return EntryView(
        id=entry.id.hex(),
        namespace=namespace.name,
        zone=namespace.zone,
        author=entry.author,
        author_name=name(entry.author),
        at_ms=entry.at_ms,
        expires_ms=entry.expires_ms,
        type=_TYPES[entry.type] if entry.type is not None else "of a later version",
        lifetime=entry.lifetime.name.lower(),
        state=str(entry.state),
        # A note's key is drawn at random, and means nothing to anybody.
        key="" if entry.type is Type.NOTE else entry.key,
        # A record of the mesh's own is for other parts to read.
        value=None if namespace.is_own else _value(entry),
        sources=tuple(map(source_view, provenance.sources)) if provenance else (),
        model=provenance.model if provenance else "",
        method=provenance.method if provenance else "",
        derived_from=tuple(one.hex() for one in entry.derived_from),
        doubtful=doubtful,
    )


def value_views(
    answer: Answer,
    namespace: Namespace,
    key: str,
    view: Callable[[Remembered], EntryView],
    name: NameOf,
) -> list[ValueView]:
    """Return what stands under a key."""

    def made(type_: str, value: Any, **more: Any) -> ValueView:
        return ValueView(
            namespace=namespace.name,
            zone=namespace.zone,
            key=key,
            type=type_,
            value=value,
            complete=answer.complete,
            **more,
        )

    return [_value_view(one, made, view, name) for one in answer.values]


def _value_view(
    value: Value,
    made: Callable[..., ValueView],
    view: Callable[[Remembered], EntryView],
    name: NameOf,
) -> ValueView:
    match value:
        case RegisterValue(newest, others):
            return made("register", _value(newest), entries=_views((newest, *others), view))
        case SharedValue(values):
            entries = _views(values, view)
            return made("shared", _value(value.pick), conflict=value.is_conflict, entries=entries)
        case SetValue(elements, lapsed):
            shown = tuple(
                ElementView(value=one.text, added_by=_views(one.adds, view)) for one in elements
            )
            texts = [one.text for one in elements]
            return made("set", texts, elements=shown, lapsed=_views(lapsed, view))
        case CounterValue(total, counts, lapsed):
            by_author = tuple(
                CountView(
                    author=one.author,
                    author_name=name(one.author),
                    added=one.added,
                    taken=one.taken,
                    at_ms=one.at_ms,
                )
                for one in counts
            )
            return made("counter", total, counts=by_author, lapsed=_views(lapsed, view))
        case Extreme(type_, best, lapsed):
            entries = _views((best,), view) if best is not None else ()
            number = _value(best) if best is not None else None
            return made(_TYPES[type_], number, entries=entries, lapsed=_views(lapsed, view))
        case LogValue(lines):
            return made("log", [one.value for one in lines], entries=_views(lines, view))
        case _:
            assert_never(value)


def step_view(neighbour: Neighbour, name: NameOf, now: float, now_ms: int) -> StepView:
    """Return how far a linked peer and this one hold the same."""
    who = name(neighbour.peer)
    behind = neighbour.state == "in step" and (neighbour.waiting or neighbour.lacking)
    in_step_ms = None
    if neighbour.in_step_at is not None:
        in_step_ms = now_ms - int((now - neighbour.in_step_at) * 1000)
    return StepView(
        peer=neighbour.peer,
        peer_name=who,
        state="behind" if behind else neighbour.state,
        sentence=_sentence(neighbour, who, now),
        lacking=neighbour.lacking,
        waiting=neighbour.waiting,
        in_step_ms=in_step_ms,
    )


def exchange_view(exchange: Exchange, step: StepView, now: float) -> ExchangeView:
    """Return what a comparison found and moved so far."""
    ended_at = exchange.ended_at if exchange.ended_at is not None else now
    return ExchangeView(
        step=step,
        namespaces=tuple(exchange.namespaces),
        sent=exchange.sent,
        received=exchange.received,
        bytes_out=exchange.bytes_out,
        bytes_in=exchange.bytes_in,
        rounds=exchange.rounds,
        took_ms=round((ended_at - exchange.began_at) * 1000, 1),
    )


def _sentence(neighbour: Neighbour, who: str, now: float) -> str:
    parts: list[str] = []
    if neighbour.waiting:
        parts.append(f"{neighbour.waiting} entries wait to be sent to it")
    if neighbour.lacking:
        parts.append(f"{neighbour.lacking} of its entries are on their way here")
    moving = "; ".join(parts)
    match neighbour.state:
        case "in step" if not parts:
            ago_s = int(now - (neighbour.in_step_at or now))
            return f"in step with {who}, as seen {ago_s} s ago"
        case "in step":
            return f"{who} is nearly in step: {moving}"
        case "comparing":
            return f"comparing with {who}: {moving or neighbour.why}"
        case "apart":
            return f"not in step with {who}: {neighbour.why}; it is tried again within a minute"
        case "muted":
            return f"{who} is not listened to for ten minutes: {neighbour.why}"
        case "unknown":
            return f"{who} was linked just now, and not compared with yet"


def _value(entry: Remembered) -> Any:
    if entry.state not in (State.SHOWN, State.IN_FORCE, State.SUPERSEDED):
        return None
    if entry.state is State.SUPERSEDED and not entry.value:
        return None
    match entry.type:
        case Type.REGISTER | Type.SHARED:
            return msgspec.json.decode(entry.value)
        case Type.COUNTER:
            added, _, taken = entry.value.partition(" ")
            return int(added) - int(taken)
        case Type.MAXIMUM | Type.MINIMUM:
            number = Decimal(entry.value)
            return int(number) if number == number.to_integral_value() else float(number)
        case _:
            return entry.value


def _views(
    entries: Sequence[Remembered], view: Callable[[Remembered], EntryView]
) -> tuple[EntryView, ...]:
    return tuple(map(view, entries))


def source_view(source: Source) -> SourceView:
    """Return raw data that was read, as a client sees it."""
    return SourceView(
        name=source.name,
        sha256=source.digest.hex(),
        size_bytes=source.size_bytes,
        observations=source.observations,
    )
