"""What does it take to bring a peer up to date? Time, bytes and rounds, beside naive exchange and pycrdt.

Overhead is all bytes of all messages both ways but those of signed headers and payloads. "Two daemons":
real processes, Noise, yamux and TCP over loopback, the disk, and the index of who takes in; from the
beginning of the comparison until both know that they hold the same. Who was away has just started, and
makes its index anew meanwhile. pycrdt signs and stores nothing.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from measure import Report, Row
from memory_replica import (
    API_BATCH,
    MESH,
    TEXT,
    TEXT_BYTES,
    author_number,
    folder,
    note_of,
    now_ms,
    space_number,
)
from pycrdt import Doc, Map

from covey.gossip.memory.effects import Effect, Ingest, Ingested, Say, StepChanged
from covey.gossip.memory.entry import Key, NamespaceId
from covey.gossip.memory.messages import Entries, Item, decode_message
from covey.gossip.memory.namespace import Namespace
from covey.gossip.memory.neighbour import short_id_of
from covey.gossip.memory.replica import Arrival
from covey.gossip.memory.spreading import Spreading
from covey.gossip.memory.summary import END, Summary
from covey.identity.keys import PeerId
from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.memory.views import ExchangeView, ExportedEntry, WriteRequest

SHORT_ID_BYTES = 16
ATTEMPTS = 5
SYNC_S = 180.0
OVERHEAD_BYTES = 5_000
NOTHING_BYTES = 100
ORBITDB = (
    ("10.0 s", "2,000 entries at first", "6.1 x the bytes"),
    ("4.0 s", "100 more", "638 kB"),
)
"""OrbitDB 3.0.2, which signs each entry, on a machine alike, another day: quoted, not run."""


def bench_memory_sync(report: Report, *, count: int, more: int, rounds: int) -> None:
    """Measure the messages by themselves, then two daemons, then pycrdt on the same texts.

    Args:
        report: where to.
        count: how many entries one peer has and the other has not.
        more: how many are new later.
        rounds: how often pycrdt, and the first sync, are timed.
    """
    report.heading(
        f"Bringing a peer up to date: {count} entries of {TEXT_BYTES} B, then {more} more"
    )
    _messages(report, count, more)
    by_pycrdt = _pycrdt(count, more, rounds)
    _daemons(report, count, more, by_pycrdt)
    for took, what, size in ORBITDB:
        report.add(Row(f"  OrbitDB 3.0.2, quoted, not run: {what}", took, size))


# The messages by themselves


@dataclass(eq=False, slots=True)
class Held:
    """What one side holds, in memory."""

    arrivals: dict[Namespace, dict[Key, Arrival]] = field(
        default_factory=lambda: dict[Namespace, dict[Key, Arrival]]()
    )
    summaries: dict[NamespaceId, Summary] = field(
        default_factory=lambda: dict[NamespaceId, Summary]()
    )
    by_short: dict[bytes, Key] = field(default_factory=lambda: dict[bytes, Key]())

    def take(self, namespace: Namespace, arrivals: Iterable[Arrival]) -> None:
        box = self.arrivals.setdefault(namespace, {})
        summary = self.summaries.setdefault(namespace.id, Summary())
        for one in arrivals:
            box[one.entry.key] = one
            summary.add(one.entry.key)
            self.by_short[short_id_of(one.entry.key)] = one.entry.key

    def namespaces(self) -> Iterable[Namespace]:
        return self.arrivals

    def summary(self, namespace: NamespaceId) -> Summary:
        return self.summaries.get(namespace, Summary())

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        return Summary(self.summary(namespace).keys(b"", END), salt=salt)

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        found: list[Item] = []
        size = 0
        for key in keys:
            one = self.found(namespace, key)
            size += len(one.entry.data) + len(one.payload or b"")
            if found and size > limit_bytes:
                break
            found.append(Item(one.entry.data, one.payload))
        return found

    def found(self, namespace: NamespaceId, key: Key) -> Arrival:
        return next(box[key] for of, box in self.arrivals.items() if of.id == namespace)

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        return [self.by_short[one] for one in short_ids if one in self.by_short]

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        return []


@dataclass(slots=True)
class Moved:
    """What two sides said until both were in step."""

    messages: int = 0
    size_bytes: int = 0
    entries: int = 0
    entry_bytes: int = 0
    """Of headers and payloads."""
    rounds: int = 0

    @property
    def overhead_bytes(self) -> int:
        return self.size_bytes - self.entry_bytes


class Pair:
    """Two peers' spreading, real messages between them, nothing else."""

    def __init__(self, left: Sequence[Arrival], right: Sequence[Arrival], namespace: Namespace):
        names = sorted(author_number(number)[0].peer_id for number in (7, 8))
        self.held = dict(zip(names, (Held(), Held()), strict=True))
        self._namespace = namespace
        self._everything = {one.entry.data: one for one in (*left, *right)}
        self._now = 0.0
        self.sides = {
            me: Spreading(me, MESH, held, lambda _peer, _zone: True, Random(1))
            for me, held in self.held.items()
        }
        for held, arrivals in zip(self.held.values(), (left, right), strict=True):
            held.take(namespace, arrivals)

    def compare(self) -> Moved:
        """Link the two, and carry every message until both are in step."""
        moved = Moved()
        one, other = self.sides
        said: deque[tuple[PeerId, Effect]] = deque()
        for me, peer in ((one, other), (other, one)):
            effects = self.sides[me].link_up(peer, self._now, now_ms(), same_books=True)
            said.extend((me, effect) for effect in effects)
        while said or not self._in_step():
            if not said:
                self._now += 0.05
                for me, side in self.sides.items():
                    said.extend((me, effect) for effect in side.tick(self._now, now_ms()))
                assert self._now < 60, "they come to no end"
                continue
            me, effect = said.popleft()
            said.extend(self._carried_out(me, effect, moved))
        moved.rounds = sum(
            side.neighbour(peer).exchange.rounds  # type: ignore[union-attr]
            for side, peer in zip(self.sides.values(), (other, one), strict=True)
        )
        return moved

    def _in_step(self) -> bool:
        found = [next(iter(side.neighbours())) for side in self.sides.values()]
        return all(one.state == "in step" and not one.under_way for one in found)

    def _carried_out(
        self, me: PeerId, effect: Effect, moved: Moved
    ) -> Iterable[tuple[PeerId, Effect]]:
        other = next(one for one in self.sides if one != me)
        match effect:
            case Say(_, body, _):
                moved.messages += 1
                moved.size_bytes += len(body)
                message = decode_message(body)
                if isinstance(message, Entries):
                    moved.entries += len(message.items)
                    moved.entry_bytes += sum(
                        len(item.header) + len(item.payload or b"") for item in message.items
                    )
                told = self.sides[other]
                effects = told.receive(me, body, self._now, now_ms())
                return [(other, one) for one in effects]
            case Ingest(sender, number, namespace, items):
                arrivals = [self._everything[item.header] for item in items]
                self.held[me].take(namespace, arrivals)
                keys = [one.entry.key for one in arrivals]
                side = self.sides[me]
                effects = side.written(namespace, keys, sender, self._now)
                done = Ingested(sender, number, namespace, keys, [], None)
                effects += side.ingested(done, self._now, now_ms())
                return [(me, one) for one in effects]
            case StepChanged():
                return []


def _messages(report: Report, count: int, more: int) -> None:
    """Count the bytes of the messages for recent differences, and for none."""
    keypair, _ = author_number(1)
    space = space_number(0)
    began_ms = now_ms() - (count + more) * 1000
    everything = [
        note_of(keypair, space, number, at_ms=began_ms + number * 1000)
        for number in range(count + more)
    ]
    old, new = everything[:count], everything[count:]
    # Who has the greater id compares, or lets the other do so; here it is the second.
    cases = {
        "to who has the greater id": (everything, old),
        "to the other": (old, everything),
        "half of them each way": ([*old, *new[::2]], [*old, *new[1::2]]),
    }
    naive = 2 * SHORT_ID_BYTES * count
    found: dict[str, Moved] = {}
    for what, (left, right) in cases.items():
        moved = found[what] = Pair(left, right, space).compare()
        assert moved.entries == more, moved
        report.add(
            Row(
                f"{more} recent, {what}, {moved.rounds} rounds",
                f"{moved.overhead_bytes} B overhead",
                f"all ids both ways {naive} B",
                f"{moved.overhead_bytes / naive:.4f} x",
                f"<= {OVERHEAD_BYTES} B",
                moved.overhead_bytes <= OVERHEAD_BYTES,
            )
        )
    _tell_whole(report, found, Pair(old, [], space).compare())
    nothing = Pair(old, old, space).compare()
    report.add(
        Row(
            f"nothing to do, on a new link: {nothing.messages} messages",
            f"{nothing.size_bytes} B",
            f"all ids both ways {naive} B",
            f"{nothing.size_bytes / naive:.5f} x",
            f"<= {NOTHING_BYTES} B",
            nothing.size_bytes <= NOTHING_BYTES,
        )
    )
    report.facts["memory_messages"] = {
        what: {
            "overhead_bytes": moved.overhead_bytes,
            "entry_bytes": moved.entry_bytes,
            "messages": moved.messages,
            "rounds": moved.rounds,
        }
        for what, moved in (*found.items(), ("nothing to do", nothing))
    }


def _tell_whole(report: Report, found: dict[str, Moved], moved: Moved) -> None:
    found["everything to a new peer"] = moved
    report.add(
        Row(
            f"{moved.entries} to a new peer, {moved.rounds} rounds, {moved.messages} messages",
            f"{moved.overhead_bytes / 1000:.0f} kB overhead",
            f"entries {moved.entry_bytes / 1000:.0f} kB",
            f"{moved.overhead_bytes / moved.entry_bytes:.3f} x",
        )
    )


# pycrdt


@dataclass(frozen=True, slots=True)
class ByPycrdt:
    """What pycrdt needs for the same texts: unsigned, in one process, nothing on a disk."""

    first_s: float
    first_bytes: int
    more_s: float
    more_bytes: int
    nothing_bytes: int


def _pycrdt(count: int, more: int, rounds: int) -> ByPycrdt:
    texts = [(f"{number:06d}", f"{number} {TEXT}"[:TEXT_BYTES]) for number in range(count + more)]
    firsts: list[float] = []
    mores: list[float] = []
    sizes = (0, 0, 0)
    for _ in range(rounds):
        ours: Doc[Any] = Doc()
        theirs: Doc[Any] = Doc()
        held: Map[str] = ours.get("memory", type=Map[str])
        waiting = iter(texts)
        for key, text in islice(waiting, count):
            held[key] = text  # a transaction each, as so many single writes would be
        first_s, first_bytes = _pycrdt_sync(ours, theirs)
        for key, text in waiting:
            held[key] = text
        more_s, more_bytes = _pycrdt_sync(ours, theirs)
        _, nothing_bytes = _pycrdt_sync(ours, theirs)
        assert len(theirs.get("memory", type=Map[str])) == count + more
        firsts.append(first_s)
        mores.append(more_s)
        sizes = (first_bytes, more_bytes, nothing_bytes)
    return ByPycrdt(median(firsts), sizes[0], median(mores), sizes[1], sizes[2])


def _pycrdt_sync(ours: Doc[Any], theirs: Doc[Any]) -> tuple[float, int]:
    """Return how long one exchange takes, and its bytes: their state vector, our update."""
    started = perf_counter()
    state = theirs.get_state()
    update = ours.get_update(state)
    theirs.apply_update(update)
    return perf_counter() - started, len(state) + len(update)


# Two daemons


def _daemons(report: Report, count: int, more: int, by_pycrdt: ByPycrdt) -> None:
    """Measure a peer that comes new, and the same one when it was away for a while."""
    firsts: list[ExchangeView] = []
    with folder() as root, LocalMesh(root) as mesh:
        author = mesh.found("author")
        author.start()
        # An author holds 10,000 of each lifetime, and with more its oldest would go.
        _write(author, count // 2, "normal")
        _write(author, count - count // 2, "pinned")
        others = [mesh.join(f"reader-{number}", inviter=author) for number in range(3)]
        for other in others:
            other.start()
            firsts.append(_exchange(other, author))
            assert _moved(firsts[-1]) >= count, firsts[-1]
            other.stop()
        later, entry_bytes = _later(others[0], author, more)
        others[0].client.memory_sync("author")
        (nothing,) = others[0].client.memory_sync("author")
    first = sorted(firsts, key=lambda one: one.took_ms)[len(firsts) // 2]
    _tell_first(report, count, first, by_pycrdt)
    _tell_later(report, count, later, entry_bytes, by_pycrdt)
    report.add(
        Row(
            "  nothing to do, two daemons",
            f"{nothing.bytes_out + nothing.bytes_in} B, {nothing.took_ms:.0f} ms",
            f"pycrdt {by_pycrdt.nothing_bytes} B",
        )
    )
    report.facts["memory_sync"] = {
        "first_ms": [one.took_ms for one in firsts],
        "first_bytes": [one.bytes_in + one.bytes_out for one in firsts],
        "later_ms": later.took_ms,
        "later_bytes": later.bytes_in + later.bytes_out,
        "nothing_bytes": nothing.bytes_in + nothing.bytes_out,
        "pycrdt_first_s": by_pycrdt.first_s,
        "pycrdt_first_bytes": by_pycrdt.first_bytes,
        "pycrdt_later_s": by_pycrdt.more_s,
        "pycrdt_later_bytes": by_pycrdt.more_bytes,
        "pycrdt_nothing_bytes": by_pycrdt.nothing_bytes,
    }


def _tell_first(report: Report, count: int, one: ExchangeView, by_pycrdt: ByPycrdt) -> None:
    size = one.bytes_in + one.bytes_out
    texts = count * TEXT_BYTES
    report.add(
        Row(
            f"{count} entries to a new peer, two daemons",
            f"{one.took_ms / 1000:.2f} s",
            f"pycrdt in one process {by_pycrdt.first_s:.3f} s",
            f"{one.took_ms / 1000 / by_pycrdt.first_s:.0f} x",
        )
    )
    report.add(
        Row(
            "  bytes, and beside the texts alone",
            f"{size / 1e6:.2f} MB = {size / texts:.2f} x",
            f"pycrdt {by_pycrdt.first_bytes / 1e6:.2f} MB",
            f"{size / by_pycrdt.first_bytes:.2f} x",
        )
    )
    report.add(
        Row("  signed entries taken in from a link", f"{_moved(one) / one.took_ms * 1000:.0f} /s")
    )


def _tell_later(
    report: Report, count: int, one: ExchangeView, entry_bytes: int, by_pycrdt: ByPycrdt
) -> None:
    size = one.bytes_in + one.bytes_out
    naive = 2 * SHORT_ID_BYTES * count + entry_bytes
    report.add(
        Row(
            f"{_moved(one)} more, after an absence, two daemons",
            f"{one.took_ms:.0f} ms",
            f"pycrdt in one process {by_pycrdt.more_s * 1000:.1f} ms",
            f"{one.took_ms / 1000 / by_pycrdt.more_s:.0f} x",
        )
    )
    report.add(
        Row(
            "  bytes",
            f"{size / 1000:.1f} kB",
            f"pycrdt {by_pycrdt.more_bytes / 1000:.1f} kB",
            f"{size / by_pycrdt.more_bytes:.2f} x",
        )
    )
    report.add(
        Row(
            "  beside all ids both ways, and the entries",
            f"{size / 1000:.1f} kB",
            f"computed {naive / 1000:.1f} kB",
            f"{size / naive:.2f} x",
        )
    )
    overhead = size - entry_bytes
    report.add(
        Row(
            "  besides the entries themselves",
            f"{overhead} B overhead",
            "",
            "",
            f"<= {OVERHEAD_BYTES} B",
            overhead <= OVERHEAD_BYTES,
        )
    )


def _moved(one: ExchangeView) -> int:
    return one.sent + one.received


def _later(reader: LocalPeer, author: LocalPeer, more: int) -> tuple[ExchangeView, int]:
    """Let the reader be away while more is written; return what its coming back moves, and how large
    the entries themselves are.
    """
    for attempt in range(ATTEMPTS):
        _write(author, more, "normal", word=f"later {attempt}")
        reader.start()
        found = _exchange(reader, author)
        # It may be over before it is asked for; then what is told is the next one, of nothing.
        if _moved(found) >= more:
            lines = author.client.memory_export("plant/pumps")
            sizes = [_size(one) for one in lines if f"later {attempt} " in str(one.shows)]
            assert len(sizes) == more
            # Both sides' new adverts, and who has joined meanwhile.
            others = [_size(one) for one in author.client.memory_export("_mesh/*")]
            return found, sum(sizes) + (_moved(found) - more) * sum(others) // len(others)
        reader.stop()
    raise AssertionError(f"the exchange was over {ATTEMPTS} times before it was asked for")


def _size(one: ExportedEntry) -> int:
    return _decoded(one.header) + _decoded(one.payload or "")


def _decoded(base64: str) -> int:
    return len(base64) * 3 // 4 - base64.count("=")


def _exchange(reader: LocalPeer, author: LocalPeer) -> ExchangeView:
    """Return what the comparison of a link that just came up has moved, once both are in step."""
    wait_until(
        lambda: any(one.state != "offline" for one in reader.client.status().memory),
        "the two are linked",
        timeout_s=30,
    )
    # The one with the greater id begins, and its exchange with it.
    asked, other = sorted((author, reader), key=_id_of, reverse=True)
    (found,) = asked.client.memory_sync(other.name, timeout_s=SYNC_S)
    assert found.step.state == "in step", found
    return found


def _id_of(peer: LocalPeer) -> str:
    return peer.client.status().peer


def _write(author: LocalPeer, count: int, lifetime: str, *, word: str = "first") -> None:
    for start in range(0, count, API_BATCH):
        asked = [
            WriteRequest(
                namespace="plant/pumps",
                value=f"{word} {number} {TEXT}"[:TEXT_BYTES],
                lifetime="normal" if lifetime == "normal" else "pinned",
            )
            for number in range(start, min(start + API_BATCH, count))
        ]
        author.client.remember_all(asked)
