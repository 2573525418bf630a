"""What does a client's request to remember something mean? Requests to commands. Pure."""

import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import get_args

import msgspec

from covey.gossip.memory.commands import (
    Command,
    CounterAdd,
    LogAppend,
    Maximum,
    Minimum,
    Note,
    Register,
    SetAdd,
    SetRemove,
    Shared,
)
from covey.gossip.memory.entry import EntryId
from covey.gossip.memory.kinds import Lifetime
from covey.gossip.memory.payload import Embedding, Provenance, Source
from covey.identity.errors import Misuse

from .views import SourceView, WriteRequest, WriteType

TTL_S_MAX = 400 * 86_400
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
LOG_KEEP = 100

ResolveId = Callable[[str], EntryId]
"""Returns the id that a client's text names."""


def command_of(
    request: WriteRequest, resolve: ResolveId, embedding: Embedding | None = None
) -> Command:
    """Return the command that a request is.

    Raises:
        Misuse: it lacks something, or has something that its type does not know.
    """
    type_, key = request.type, request.key
    if type_ == "note":
        return _note(request, resolve, embedding)
    if key is None:
        raise Misuse(f"a {type_} needs a key: name what it is about, as in P-12/vibration")
    _refuse_what_notes_have(request)
    match type_:
        case "register":
            return Register(key, _json(request))
        case "shared":
            return Shared(key, _json(request))
        case "set-add":
            return SetAdd(key, _text(request))
        case "set-remove":
            return SetRemove(key, _text(request))
        case "counter":
            return CounterAdd(key, _delta(request))
        case "maximum":
            return Maximum(key, _number(request))
        case "minimum":
            return Minimum(key, _number(request))
        case "log":
            return LogAppend(key, _text(request), request.keep or LOG_KEEP)
        case _:
            known = ", ".join(get_args(WriteType))
            raise Misuse(f"there is no type {type_!r}; use one of: {known}")


def _note(request: WriteRequest, resolve: ResolveId, embedding: Embedding | None) -> Note:
    if request.key is not None:
        raise Misuse("a note has no key; use --type register for a text under a key")
    derived_from = tuple(resolve(one) for one in request.derived_from)
    renews = resolve(request.renews) if request.renews is not None else None
    return Note(_text(request), provenance_of(request), embedding, derived_from, renews)


def lifetime_of(request: WriteRequest) -> Lifetime | None:
    """Return how long the request wants headers kept; None: as the type has it."""
    return None if request.lifetime is None else Lifetime[request.lifetime.upper()]


def ttl_ms_of(request: WriteRequest) -> int | None:
    """Return after how long the text is to go, in milliseconds.

    Raises:
        Misuse: it is no time that an entry can last.
    """
    if request.ttl_s is None:
        return None
    if not 1 <= request.ttl_s <= TTL_S_MAX:
        raise Misuse(f"a text lasts 1 s to {TTL_S_MAX // 86_400} days, not {request.ttl_s:g} s")
    return int(request.ttl_s * 1000)


def provenance_of(request: WriteRequest) -> Provenance | None:
    """Return how the author came to what it says; None: it does not say.

    Raises:
        Misuse: a source's digest is none.
    """
    if not (request.sources or request.model or request.method):
        return None
    return Provenance(tuple(map(_source, request.sources)), request.model, request.method)


def _source(view: SourceView) -> Source:
    if view.sha256 and _HEX_DIGEST.fullmatch(view.sha256) is None:
        raise Misuse(f"sha256 is 64 hexadecimal digits, not {view.sha256[:80]!r}")
    if view.size_bytes < 0 or view.observations < 0:
        raise Misuse("a source's size and observations are not negative")
    return Source(view.name, bytes.fromhex(view.sha256), view.size_bytes, view.observations)


def _refuse_what_notes_have(request: WriteRequest) -> None:
    if request.renews is not None:
        raise Misuse(f"only notes are renewed; write the key of the {request.type} anew")
    if request.sources or request.derived_from or request.summarize or request.model:
        raise Misuse(f"only notes tell what they were made from; leave it out of a {request.type}")


def _text(request: WriteRequest) -> str:
    if not isinstance(request.value, str):
        raise Misuse(f"the value of a {request.type} is a text, not {_shown(request.value)}")
    return request.value


def _json(request: WriteRequest) -> str:
    try:
        return msgspec.json.encode(request.value, order="deterministic").decode()
    except RecursionError as error:
        raise Misuse(f"the value of a {request.type} is nested too deeply") from error


def _delta(request: WriteRequest) -> int:
    value = request.value
    if isinstance(value, str):
        try:
            value = int(value)
        except ValueError:
            value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise Misuse(f"a counter takes a whole number, as 1 or -3, not {_shown(request.value)}")
    return value


def _number(request: WriteRequest) -> str:
    value = request.value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise Misuse(f"a {request.type} takes a number, not {_shown(value)}")
    try:
        number = Decimal(str(value))
    except InvalidOperation as error:
        raise Misuse(f"a {request.type} takes a number, not {_shown(value)}") from error
    return str(number)


def _shown(value: object) -> str:
    return repr(value)[:60]
