"""Which request asks what of the shared memory? Everything below `/v1/memory`."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from covey.gossip.memory.namespace import MESH
from covey.identity.errors import Malformed
from covey.peer.memory.views import (
    WRITES_MAX,
    EntryView,
    ExchangeView,
    ExportedEntry,
    ForgetRequest,
    ForgetView,
    ImportView,
    MemoryStats,
    PolicyRequest,
    PolicyView,
    RecallView,
    SyncRequest,
    ValueView,
    VerifyView,
    WriteRequest,
)

from .answers import Streamed, Table, body_of, json_answer, list_answer, number

LISTED = 100
RECALLED = 5
SYNC_S_MAX = 600.0
JSON_LINES = "application/jsonl"

_Writes = Annotated[list[WriteRequest], msgspec.Meta(min_length=1, max_length=WRITES_MAX)]
_writes = msgspec.json.Decoder(_Writes).decode
_forget = msgspec.json.Decoder(ForgetRequest).decode
_policy = msgspec.json.Decoder(PolicyRequest).decode
_sync = msgspec.json.Decoder(SyncRequest).decode
_exported = msgspec.json.Decoder(ExportedEntry).decode_lines


class Memory(Protocol):
    """What the routes ask; `peer/memory/shared.py` answers."""

    async def write(self, requests: Sequence[WriteRequest]) -> list[EntryView]:
        """Remember all of them or none; durable when this returns."""
        ...

    def entries(
        self,
        namespace: str | None,
        zone: str | None,
        author: str | None,
        limit: int,
        *,
        all_states: bool,
    ) -> list[EntryView]:
        """Return entries, newest first; a namespace may have wildcards."""
        ...

    def entry(self, id_or_prefix: str) -> EntryView:
        """Return one entry."""
        ...

    def value(self, namespace: str | None, zone: str | None, key: str) -> list[ValueView]:
        """Return what stands under a key, in each namespace that has it."""
        ...

    def history(self, namespace: str | None, zone: str | None, key: str) -> list[EntryView]:
        """Return what was written under a key, newest first."""
        ...

    async def recall(
        self, question: str, k: int, namespace: str | None, author: str | None
    ) -> RecallView:
        """Return the k texts that answer best."""
        ...

    async def forget(self, request: ForgetRequest) -> ForgetView:
        """Forget, here and everywhere."""
        ...

    def policy(self, namespace: str, zone: str) -> PolicyView:
        """Return who may write there, and how much."""
        ...

    async def state_policy(self, request: PolicyRequest) -> PolicyView:
        """Say who may write there, and how much."""
        ...

    async def sync(self, request: SyncRequest) -> list[ExchangeView]:
        """Compare with others now."""
        ...

    async def verify(self) -> VerifyView:
        """Check everything that is held."""
        ...

    async def stats(self) -> MemoryStats:
        """Return the memory at a glance."""
        ...

    def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        """Give JSON lines of ExportedEntry."""
        ...

    async def import_(self, lines: Sequence[ExportedEntry]) -> ImportView:
        """Take in what was exported."""
        ...


class Remembering(Protocol):
    """Who has the memory: the daemon's service."""

    @property
    def memory(self) -> Memory:
        """The memory."""
        ...


class _MemoryRoutes:
    """The handlers, on top of one service's memory."""

    def __init__(self, service: Remembering) -> None:
        self._service = service

    @property
    def _memory(self) -> Memory:
        return self._service.memory

    async def entries(self, request: Request) -> Response:
        if request.method == "POST":
            asked = await body_of(request, _writes)
            return list_answer("EntryList", await self._memory.write(asked), status=201)
        asked_for = request.query_params
        found = self._memory.entries(
            asked_for.get("namespace"),
            asked_for.get("zone"),
            asked_for.get("author"),
            _whole(request, "limit", LISTED),
            all_states=_is_set(request, "all"),
        )
        return list_answer("EntryList", found)

    async def entry(self, request: Request) -> Response:
        return json_answer(self._memory.entry(str(request.path_params["entry"])))

    async def value(self, request: Request) -> Response:
        return list_answer("ValueList", self._memory.value(*_place(request)))

    async def history(self, request: Request) -> Response:
        return list_answer("EntryList", self._memory.history(*_place(request)))

    async def recall(self, request: Request) -> Response:
        asked_for = request.query_params
        found = await self._memory.recall(
            _needed(request, "q"),
            _whole(request, "k", RECALLED),
            asked_for.get("namespace"),
            asked_for.get("author"),
        )
        return json_answer(found)

    async def forget(self, request: Request) -> Response:
        return json_answer(await self._memory.forget(await body_of(request, _forget)))

    async def policy(self, request: Request) -> Response:
        if request.method == "POST":
            return json_answer(await self._memory.state_policy(await body_of(request, _policy)))
        zone = request.query_params.get("zone", MESH)
        return json_answer(self._memory.policy(_needed(request, "namespace"), zone))

    async def sync(self, request: Request) -> Response:
        asked = await body_of(request, lambda body: _sync(body or b"{}"))
        if not 0 < asked.timeout_s <= SYNC_S_MAX:
            raise Malformed(
                f"timeout_s is more than 0 and at most {SYNC_S_MAX:g}, not {asked.timeout_s:g}"
            )
        return list_answer("ExchangeList", await self._memory.sync(asked))

    async def verify(self, _request: Request) -> Response:
        return json_answer(await self._memory.verify())

    async def stats(self, _request: Request) -> Response:
        return json_answer(await self._memory.stats())

    async def export(self, request: Request) -> Response:
        lines = self._memory.export(request.query_params.get("namespace"))
        # The first is made before the answer begins: what is wrong with the question is a problem.
        first = await anext(lines, b"")
        return Streamed(_from(first, lines), JSON_LINES)

    async def import_(self, request: Request) -> Response:
        return json_answer(await self._memory.import_(await body_of(request, _exported)))


def memory_table(service: Remembering) -> Table:
    """Return the routes of the memory."""
    routes = _MemoryRoutes(service)
    return (
        ("/v1/memory", "GET POST", "namespace zone author limit all", routes.entries),
        ("/v1/memory/entries/{entry}", "GET", "", routes.entry),
        ("/v1/memory/value", "GET", "namespace zone key", routes.value),
        ("/v1/memory/history", "GET", "namespace zone key", routes.history),
        ("/v1/memory/recall", "GET", "q k namespace author", routes.recall),
        ("/v1/memory/forget", "POST", "", routes.forget),
        ("/v1/memory/policy", "GET POST", "namespace zone", routes.policy),
        ("/v1/memory/sync", "POST", "", routes.sync),
        ("/v1/memory/verify", "POST", "", routes.verify),
        ("/v1/memory/stats", "GET", "", routes.stats),
        ("/v1/memory/export", "GET", "namespace", routes.export),
        ("/v1/memory/import", "POST", "", routes.import_),
    )


async def _from(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        if first:
            yield first
        async for line in rest:
            yield line


def _place(request: Request) -> tuple[str | None, str | None, str]:
    asked_for = request.query_params
    return asked_for.get("namespace"), asked_for.get("zone"), _needed(request, "key")


def _needed(request: Request, name: str) -> str:
    text = request.query_params.get(name, "")
    if not text.strip():
        raise Malformed(f"{request.url.path} needs the query parameter {name!r}; add ?{name}=...")
    return text


def _whole(request: Request, name: str, default: int) -> int:
    value = number(request, name, default)
    if value < 1 or value != int(value):
        raise Malformed(f"{name} is a whole number of at least 1, not {value:g}")
    return int(value)


def _is_set(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "0")
    if text not in ("0", "1"):
        raise Malformed(f"{name} is 0 or 1, not {text[:32]!r}")
    return text == "1"
