"""How does a program use the shared memory? The part of the client that asks for it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from covey.peer.memory.views import (
    IMPORT_LINES_MAX,
    EntryView,
    ExchangeView,
    ExportedEntry,
    ForgetRequest,
    ForgetView,
    ImportView,
    MemoryChange,
    MemoryStats,
    PolicyRequest,
    PolicyView,
    RecallView,
    SyncRequest,
    ValueView,
    VerifyView,
    WriteRequest,
)
from covey.peer.views import Event

T = TypeVar("T")
# A small model words a summary in a few seconds; it may have to be loaded, and others may be waiting.
SUMMARIZE_S = 120.0
# Texts embed, files are written anew and signatures are checked while a request waits.
WORK_S = 60.0
CHECK_S = 600.0
# Below what the API takes at once, with room for the last line.
IMPORT_BYTES_MAX = 1 << 20


class MemoryClient(ABC):
    """The shared memory, as each client asks for it.

        with connect() as peer:
            peer.remember("plant/pumps", "P-12: rising vibration precedes seal failure by two days")
            for hit in peer.recall("why do seals fail").hits:
                print(hit.entry.author_name, hit.entry.value)

    A namespace to look in may have wildcards, as `plant/*`; None: every one. An entry is named by its
    id or a beginning of it that is unique, an author by name or id.
    """

    def remember(self, namespace: str, value: Any, **options: Any) -> EntryView:
        """Remember one thing and return it; it is durable when this returns.

        `options` are further fields of `WriteRequest`: type, key, zone, ttl_s, lifetime, keep,
        sources, derived_from, renews, model, method, summarize. Not sent again where the connection
        breaks: a note would be there twice, and a counter would count twice.

        What is returned says as much: of a maximum that was not raised, the entry that stands. With
        `renews` and the value None a note of this device's own is signed anew, so that it lasts on.

        Raises:
            ClientError: it was not taken.
        """
        return self.remember_all([WriteRequest(namespace=namespace, value=value, **options)])[0]

    def remember_all(self, requests: Sequence[WriteRequest]) -> list[EntryView]:
        """Remember up to 100 things of one namespace, zone and lifetime: all of them, or none.

        Returns for each, in order, the entry that says it.
        """
        wait_s = SUMMARIZE_S if any(one.summarize for one in requests) else 0.0
        body = msgspec.json.encode(requests)
        return self._items("/v1/memory", EntryView, method="POST", body=body, wait_s=wait_s)

    def recall(
        self,
        question: str,
        *,
        k: int = 5,
        namespace: str | None = None,
        author: str | None = None,
    ) -> RecallView:
        """Return the k texts held here that answer a question best, best first."""
        query = _query(q=question, k=k, namespace=namespace, author=author)
        return self._get(f"/v1/memory/recall{query}", RecallView, wait_s=WORK_S)

    def memory_entries(
        self,
        namespace: str | None = None,
        *,
        zone: str | None = None,
        author: str | None = None,
        limit: int = 100,
        all_states: bool = False,
    ) -> list[EntryView]:
        """Return what is shown, newest first; `all_states`: also what is not shown any more."""
        query = _query(
            namespace=namespace,
            zone=zone,
            author=author,
            limit=limit,
            all=1 if all_states else None,
        )
        return self._items(f"/v1/memory{query}", EntryView)

    def memory_entry(self, name: str) -> EntryView:
        """Return one entry.

        Raises:
            NotFoundHere: this device does not hold it.
        """
        return self._get(f"/v1/memory/entries/{quoted(name)}", EntryView)

    def memory_value(
        self, key: str, *, namespace: str | None = None, zone: str | None = None
    ) -> list[ValueView]:
        """Return what stands under a key, once for each namespace and type that has it.

        Raises:
            NotFoundHere: nothing does.
        """
        query = _query(namespace=namespace, zone=zone, key=key)
        return self._items(f"/v1/memory/value{query}", ValueView)

    def memory_history(
        self, key: str, *, namespace: str | None = None, zone: str | None = None
    ) -> list[EntryView]:
        """Return the newest that each author wrote under a key, with what became of each.

        Raises:
            NotFoundHere: nothing was.
        """
        query = _query(namespace=namespace, zone=zone, key=key)
        return self._items(f"/v1/memory/history{query}", EntryView)

    def forget(
        self,
        *ids: str,
        author: str | None = None,
        before_ms: int | None = None,
        namespace: str | None = None,
    ) -> ForgetView:
        """Let the mesh forget these entries, or what an author wrote before a time.

        Raises:
            Denied: they are somebody else's, and this device is no admin.
            NotFoundHere: nothing is held of what is named.
        """
        request = ForgetRequest(ids=ids, author=author, before_ms=before_ms, namespace=namespace)
        body = msgspec.json.encode(request)
        return self._call("POST", "/v1/memory/forget", body, ForgetView, wait_s=WORK_S)

    def memory_policy(self, namespace: str, *, zone: str = "mesh") -> PolicyView:
        """Return who may write in a namespace, and how much."""
        return self._get(f"/v1/memory/policy{_query(namespace=namespace, zone=zone)}", PolicyView)

    def set_memory_policy(
        self,
        namespace: str,
        *,
        zone: str = "mesh",
        writers: Sequence[str] | None = None,
        entries: int | None = None,
        ttl_s: int | None = None,
    ) -> PolicyView:
        """Say who may write in a namespace, and how much; what is not named is open from now on.

        Args:
            namespace: which.
            zone: of which zone.
            writers: `admin`, `member`, `zone:NAME` or `peer:NAME`; whoever fits one may write.
            entries: how many one author may hold of each lifetime.
            ttl_s: when a text ends at the latest, from when it is written.

        Raises:
            Denied: this device is no admin.
        """
        request = PolicyRequest(
            namespace=namespace,
            zone=zone,
            writers=None if writers is None else tuple(writers),
            entries=entries,
            ttl_s=ttl_s,
        )
        body = msgspec.json.encode(request)
        return self._call("POST", "/v1/memory/policy", body, PolicyView, wait_s=WORK_S)

    def memory_sync(
        self, peer: str | None = None, *, timeout_s: float = 30.0, audit: bool = False
    ) -> list[ExchangeView]:
        """Compare with a linked peer, or with all of them, and return what was found and moved."""
        body = msgspec.json.encode(SyncRequest(peer=peer, timeout_s=timeout_s, audit=audit))
        path = "/v1/memory/sync"
        return self._items(path, ExchangeView, method="POST", body=body, wait_s=timeout_s)

    def memory_verify(self) -> VerifyView:
        """Check every signature, and every index, of what is held here."""
        path = "/v1/memory/verify"
        return self._call("POST", path, b"", VerifyView, wait_s=CHECK_S, repeat=True)

    def memory_stats(self) -> MemoryStats:
        """Return this device's memory at a glance."""
        return self._get("/v1/memory/stats", MemoryStats, wait_s=WORK_S)

    def memory_export(self, namespace: str | None = None) -> Iterator[ExportedEntry]:
        """Give everything that is held, each entry as it was signed.

        Raises:
            ClientError: it broke off: what came is not all.
        """
        path = f"/v1/memory/export{_query(namespace=namespace)}"
        return self._lines(path, ExportedEntry, media_type="application/jsonl")

    def memory_import(self, entries: Iterable[ExportedEntry]) -> ImportView:
        """Take in what was exported; each entry is judged as if a peer had sent it."""
        taken, refused = 0, list[str]()
        for body in _bodies(entries):
            path = "/v1/memory/import"
            # What is held already is taken once: this may be repeated.
            part = self._call("POST", path, body, ImportView, wait_s=WORK_S, repeat=True)
            taken += part.taken
            refused += part.refused
        return ImportView(taken=taken, refused=tuple(refused))

    def memory_watch(self, *, timeout_s: float | None = None) -> Iterator[MemoryChange]:
        """Give what is remembered, and what goes, as it happens here; see `events`.

        What has gone before it is told is named in `gone` alone.
        """
        for event in self.events(timeout_s=timeout_s):
            if event.memory is not None:
                yield event.memory

    # What it asks with

    @abstractmethod
    def events(self, *, timeout_s: float | None = None) -> Iterator[Event]:
        """Give events as they happen."""

    @abstractmethod
    def _get(self, path: str, kind: type[T], *, wait_s: float = 0.0) -> T: ...

    @abstractmethod
    def _items(
        self,
        path: str,
        kind: type[T],
        *,
        method: str = "GET",
        body: bytes = b"",
        wait_s: float = 0.0,
    ) -> list[T]: ...

    @abstractmethod
    def _call(
        self,
        method: str,
        path: str,
        body: bytes,
        kind: type[T],
        *,
        wait_s: float = 0.0,
        repeat: bool = False,
    ) -> T: ...

    @abstractmethod
    def _lines(self, path: str, kind: type[T], *, media_type: str) -> Iterator[T]: ...


def _query(**asked: str | int | None) -> str:
    given = {name: value for name, value in asked.items() if value is not None}
    return f"?{urlencode(given, errors='replace')}" if given else ""


def quoted(name: str) -> str:
    """Return a name as a part of a path, whatever it holds."""
    return quote(name, safe="", errors="replace")


def _bodies(entries: Iterable[ExportedEntry]) -> Iterator[bytes]:
    """Cut an export into what one request may hold."""
    lines: list[bytes] = []
    size_bytes = 0
    for one in entries:
        # What it says is for people; it is read again from what was signed.
        line = msgspec.json.encode(msgspec.structs.replace(one, shows=None))
        if lines and (len(lines) == IMPORT_LINES_MAX or size_bytes + len(line) > IMPORT_BYTES_MAX):
            yield b"\n".join(lines)
            lines, size_bytes = [], 0
        lines.append(line)
        size_bytes += len(line) + 1
    if lines:
        yield b"\n".join(lines)
