"""Does what peers write in the shared memory reach those that may read it, and nobody else?

A world of peers under a virtual clock, from one seed: real `Replica`s over rows in memory, real
`Spreading` and `Standing`, and between them ordered links that end, freeze, fill up and are cut in
two; disks that are slow or full; clocks that are wrong; peers that restart with their rows alone.
Signatures are not looked at, but in the books: an entry is sound if its signature is empty.
"""

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from random import Random
from typing import Any

from test_gossip.members import ADMIN, MESH, NOW_MS, ROOT, key
from test_gossip.memory_entries import (
    counter,
    element,
    forgetting,
    line,
    note,
    register,
    removal,
    shared,
    write,
)
from test_gossip.memory_ideal import ideal
from test_gossip.memory_tables import DictTables

from covey.gossip.memory import books, spreading
from covey.gossip.memory.asking import ASKED_MAX, HAS_MAX
from covey.gossip.memory.common_ground import bound_of
from covey.gossip.memory.effects import Effect, Ingest, Ingested, Say
from covey.gossip.memory.entry import (
    ID_BYTES,
    SHORT_ID_BYTES,
    SIGNATURE_BYTES,
    Entry,
    Key,
    NamespaceId,
    SignedHeader,
    check_payload,
    open_entry,
    read_entry,
)
from covey.gossip.memory.hybrid_clock import COUNTER_BITS, HybridClock
from covey.gossip.memory.kinds import DAY_MS, Lifetime, Type
from covey.gossip.memory.messages import (
    Compare,
    Contents,
    Digest,
    Entries,
    Gone,
    Item,
    Message,
    Offer,
    Refused,
    Run,
    Want,
    decode_message,
    encode_message,
)
from covey.gossip.memory.namespace import (
    DEVICE,
    MEMBERS,
    REVOKED,
    Namespace,
    namespace_of,
)
from covey.gossip.memory.namespace import (
    MESH as MESH_ZONE,
)
from covey.gossip.memory.neighbour import Neighbour
from covey.gossip.memory.payload import SALT_BYTES, decode_payload, encode_payload
from covey.gossip.memory.rejudging import still_counts
from covey.gossip.memory.replica import Applied, Arrival, Quotas, Replica
from covey.gossip.memory.settings import SpreadSettings
from covey.gossip.memory.standing import Revocation, Standing, UnknownCertificate, certificate_id
from covey.gossip.memory.summary import END, Summary
from covey.gossip.memory.tables import Table
from covey.identity.certificate import Chain, found_mesh, issue
from covey.identity.errors import CoveyError, Malformed, NotAdmitted
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import encode_plain, read_back

LONG_AGO_MS = NOW_MS - 100 * DAY_MS
ADMIN_CHAIN = found_mesh(ROOT, ADMIN.peer_id, now_ms=LONG_AGO_MS, zones=("eu", "plant"))
LATENCY_S = 0.005
STEPS_AT_ONCE_MAX = 3000
MESSAGES_MAX = 50_000


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the world is."""

    cuts_per_s: float = 0.1
    """Of links, in the whole mesh."""
    freezes_per_s: float = 0.05
    """Of links: nothing is delivered, and nothing told, for up to 40 s."""
    partitions_per_s: float = 0.01
    restarts_per_s: float = 0.03
    slow_disk: float = 0.03
    """Of the batches: they take seconds, some longer than is waited for."""
    full_disk: float = 0.01
    """Of the batches: they are not stored."""
    skew_ms_max: int = 240_000
    frames_max: int = 100
    """So many messages wait on a link; beyond, none is taken."""


CALM = Faults(0, 0, 0, 0, 0, 0, 0, 8192)


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass(eq=False, slots=True)
class Link:
    """An ordered connection of two peers; each end has a queue towards it."""

    ends: frozenset[PeerId]
    queues: dict[PeerId, deque[tuple[float, bytes]]]
    opened_at: float
    lacking: dict[PeerId, set[tuple[NamespaceId, Key]]]
    """What each end lacked of the other's books when it opened."""
    frozen_until: float = -math.inf
    alive: bool = True


@dataclass(slots=True)
class Parked:
    namespace: Namespace
    entry: Entry
    payload: bytes | None


class Peer:
    """One peer: its rows, and while it is up, what spreads them."""

    honest = True

    def __init__(self, world: "World", keypair: Keypair, chain: Chain, skew_ms: int) -> None:
        self.world = world
        self.keypair = keypair
        self.me = keypair.peer_id
        self.chain = chain
        self.skew_ms = skew_ms
        self.tables = DictTables()
        self.summaries: dict[NamespaceId, Summary] = {}
        self.namespaces: dict[NamespaceId, Namespace] = {}
        self.life = 0
        self.up = False
        self.wake_at = math.inf
        self.clock = HybridClock()
        self.doubled: set[bytes] = set()
        self.ever_taken: set[tuple[NamespaceId, Key]] = set()
        """Also what something newer stood in the place of already."""
        self.start()

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.world.now * 1000) + self.skew_ms

    # Living

    def start(self) -> None:
        self.life += 1
        self.up = True
        self.wake_at = math.inf
        self.parked: dict[bytes, list[Parked]] = defaultdict(list)
        self.standing = Standing(MESH)
        self.standing.learn(self.chain)
        for namespace in self.namespaces.values():
            if namespace.is_book:
                self.read_book(namespace, self.summaries[namespace.id].keys(b"", END))
        self.spreading = spreading_of(self)

    def stop(self) -> None:
        self.up = False
        for link in self.world.links_of(self.me):
            self.world.cut(link)

    def later(self, after_s: float, act: Callable[[], None]) -> None:
        """Do something in this life."""
        life = self.life

        def in_this_life() -> None:
            if self.up and self.life == life:
                act()
                self.world.check_peer(self)

        self.world.at(self.world.now + after_s, in_this_life)

    def books_shown(self) -> bytes:
        """Return the digest of the books that its hello shows."""
        return self.spreading.books_digest()

    def link_up(self, other: "Peer", *, same_books: bool) -> None:
        self.standing.learn(other.chain)  # it was shown by its hello
        self.learned()
        self.carry_out(
            self.spreading.link_up(other.me, self.world.now, self.now_ms, same_books=same_books)
        )

    def link_down(self, peer: PeerId) -> None:
        self.carry_out(self.spreading.link_down(peer, self.world.now))

    def hear(self, sender: PeerId, body: bytes) -> None:
        self.carry_out(self.spreading.receive(sender, body, self.world.now, self.now_ms))

    def carry_out(self, effects: Iterable[Effect]) -> None:
        for one in effects:
            match one:
                case Say(to, body, payload):
                    if not self.let_out(to, body, payload=payload):
                        self.carry_out(self.spreading.unsent(to, self.world.now))
                case Ingest():
                    self.ingest(one)
                case _:
                    pass
        self.wake()

    def let_out(self, to: PeerId, body: bytes, *, payload: bool) -> bool:
        return self.world.send(self, to, body, payload=payload)

    def wake(self) -> None:
        """Tick when it is due, once for each time."""
        due = max(self.spreading.deadline, self.world.now)
        if due < self.wake_at:
            self.wake_at = due
            self.later(due - self.world.now, self.tick)

    def tick(self) -> None:
        if self.wake_at > self.world.now:
            return  # another is due earlier or later
        self.wake_at = math.inf
        self.carry_out(self.spreading.tick(self.world.now, self.now_ms))

    # Taking in, as `driver.py` does

    def ingest(self, batch: Ingest) -> None:
        faults, random = self.world.faults, self.world.random
        if random.random() < faults.full_disk:
            self.later(1.0, lambda: self.spreading.not_ingested(batch.number))
            return
        after_s = random.uniform(0.001, 0.02)
        if random.random() < faults.slow_disk:
            after_s = random.uniform(1, 20)
        self.later(after_s, lambda: self.take_in(batch))

    def take_in(self, batch: Ingest) -> None:
        bad: str | None = None
        arrivals: list[Arrival] = []
        refused: list[bytes] = []
        for item in batch.items:
            try:
                entry = opened(item, batch.namespace)
            except CoveyError as error:
                bad = str(error)
                continue
            payload = item.payload if entry.header.payload_bytes else None
            parked = Parked(batch.namespace, entry, payload)
            if (arrival := self.judged(parked)) is None:
                refused.append(entry.id[:SHORT_ID_BYTES])
            else:
                arrivals.append(arrival)
        taken: list[Key] = []
        for arrival, fate in zip(arrivals, self.apply(arrivals, batch.sender), strict=True):
            if fate in ("early", "over"):
                refused.append(arrival.entry.id[:SHORT_ID_BYTES])
            else:
                taken.append(arrival.entry.key)
        done = Ingested(batch.sender, batch.number, batch.namespace, taken, refused, bad)
        self.carry_out(self.spreading.ingested(done, self.world.now, self.now_ms))

    def judged(self, parked: Parked) -> Arrival | None:
        namespace, entry = parked.namespace, parked.entry
        if entry.header.namespace != namespace.id:
            return None
        try:
            if namespace.is_own:
                books.learn_author(self.standing, namespace, parked.payload)
            by_admin = self.standing.judge(entry, namespace)
        except UnknownCertificate as error:
            self.parked[error.certificate].append(parked)
            return None
        except (NotAdmitted, Malformed):
            return None
        return Arrival(entry, parked.payload, by_admin)

    def apply(self, arrivals: Sequence[Arrival], source: PeerId | None) -> list[str]:
        replica = Replica(self.tables, self.now_ms, self.world.quotas)
        for one in arrivals:
            replica.apply(one)
            self.clock.observe(one.entry.header.clock, self.now_ms)
        for one, fate in zip(arrivals, replica.applied.fates, strict=True):
            if fate not in ("early", "over"):
                self.ever_taken.add((NamespaceId(one.entry.header.namespace), one.entry.key))
        self.follow(replica.applied, source)
        return list(replica.applied.fates)

    def follow(self, applied: Applied, source: PeerId | None) -> None:
        """Tell what is derived from the rows what changed in them."""
        for namespace_id, key_ in applied.added:
            self.summaries.setdefault(namespace_id, Summary()).add(key_)
            self.namespaces[namespace_id] = self.world.namespaces[namespace_id]
        for namespace_id, key_ in applied.removed:
            self.summaries[namespace_id].discard(key_)
        self.doubled.update(author for _, author in applied.doubled)
        for namespace_id, keys in by_namespace(applied.removed).items():
            namespace = self.namespaces[namespace_id]
            self.carry_out(self.spreading.removed(namespace, keys, self.world.now))
        gone = set(applied.removed)
        fresh = [one for one in applied.added if one not in gone]
        for namespace_id, keys in by_namespace(fresh).items():
            namespace = self.namespaces[namespace_id]
            self.carry_out(self.spreading.written(namespace, keys, source, self.world.now))
            if namespace.is_book:
                self.read_book(namespace, keys)

    def read_book(self, namespace: Namespace, keys: Iterable[Key]) -> None:
        for one in keys:
            entry = read_entry(self.tables.get(Table.ENTRY, namespace.id + one) or b"")
            payload = decode_payload(self.tables.get(Table.PAYLOAD, namespace.id + one) or b"")
            books.learn_author(self.standing, namespace, encode_payload(payload))
            found = books.learn(self.standing, namespace, entry, payload)
            if found is not None and self.up:
                self.purge(found)
        self.learned()

    def learned(self) -> None:
        for certificate in [
            one for one in self.parked if self.standing.certificate(one) is not None
        ]:
            for parked in self.parked.pop(certificate):
                if (arrival := self.judged(parked)) is not None:
                    self.apply([arrival], None)

    def purge(self, revocation: Revocation) -> None:
        for namespace in list(self.namespaces.values()):
            replica = Replica(self.tables, self.now_ms, self.world.quotas)
            replica.purge(
                namespace.id,
                revocation.subject,
                partial(still_counts, self.standing.judge, namespace),
            )
            self.follow(replica.applied, None)
        self.world.relink()

    def pass_time(self) -> None:
        replica = Replica(self.tables, self.now_ms, self.world.quotas)
        while replica.pass_time(500):
            pass
        self.follow(replica.applied, None)

    # Writing

    def write(
        self, namespace: Namespace, make: Callable[..., Arrival], *what: Any, **terms: Any
    ) -> Arrival:
        """Write an entry by one of the builders of `memory_entries.py`."""
        stamp = self.clock.stamp(self.now_ms)
        terms.setdefault("at_ms", stamp >> COUNTER_BITS)
        terms.setdefault("counter", stamp & (1 << COUNTER_BITS) - 1)
        terms.setdefault("signed", False)
        certificate = certificate_id(self.chain[-1])
        arrival = make(
            self.keypair, *what, namespace=namespace.id, certificate=certificate, **terms
        )
        self.take_own(arrival)
        return arrival

    def write_record(self, book: str, about: str, value: bytes) -> Arrival:
        """Write in the books, as an admin."""
        namespace = self.world.namespace(MESH_ZONE, book)
        stamp = self.clock.stamp(self.now_ms)
        record = books.Record(book, about, value)
        arrival = books.compose(
            self.keypair, MESH, namespace, self.chain, stamp, bytes(SALT_BYTES), record
        )
        self.take_own(arrival)
        return arrival

    def take_own(self, arrival: Arrival) -> None:
        self.world.written[arrival.entry.id] = arrival
        fates = self.apply([arrival], None)
        assert fates == ["kept"], fates

    # What it holds, for `Spreading`

    def keys(self, namespace: Namespace) -> list[Key]:
        return self.held_summary(namespace.id).keys(b"", END)

    def shown(self, namespace: Namespace) -> dict[bytes, bytes]:
        return dict(self.tables.scan(Table.PAYLOAD, namespace.id))

    def held_summary(self, namespace: NamespaceId) -> Summary:
        return self.summaries.get(namespace, Summary())

    def may_read(self, zone: str) -> bool:
        return self.standing.may_read(self.me, zone)


class HeldRows:
    """The port `Held` over a peer's rows."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def namespaces(self) -> Iterable[Namespace]:
        return list(self._peer.namespaces.values())

    def summary(self, namespace: NamespaceId) -> Summary:
        return self._peer.held_summary(namespace)

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        return Summary(self.summary(namespace).keys(b"", END), salt=salt)

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        items: list[Item] = []
        size = 0
        for one in keys:
            header = self._peer.tables.get(Table.ENTRY, namespace + one) or b""
            payload = self._peer.tables.get(Table.PAYLOAD, namespace + one)
            size += len(header) + len(payload or b"")
            if items and size > limit_bytes:
                break
            items.append(Item(header, payload))
        return items

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        found = [self._peer.tables.get(Table.SHORT, namespace + one) for one in short_ids]
        return [Key(one) for one in found if one is not None]

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        rows = self._peer.tables.scan(Table.WANTED, namespace)
        return [
            row[-ID_BYTES:][:SHORT_ID_BYTES]
            for (row, _), _ in zip(rows, range(limit), strict=False)
        ]


def spreading_of(peer: Peer) -> spreading.Spreading:
    """Return what spreads a peer's entries, as the daemon makes it."""
    return spreading.Spreading(
        peer.me,
        MESH,
        HeldRows(peer),
        peer.standing.may_read,
        Random(peer.world.random.random()),
        peer.world.settings,
    )


class World:
    """Peers, links and time, from one seed.

    Args:
        seed: everything follows from it.
        zones: for each peer, the zones that it is in besides the mesh.
        faults: how bad it is while it lives.
        links: which pairs of peers, by number, can be linked; all.
        quotas: how much one author may hold.
        settings: of spreading.
        liar: what the last of the peers is, if it is not honest.
        liar_compares: it has the greatest id of all, so it is the one who compares; else the least.
    """

    def __init__(
        self,
        seed: int,
        zones: Sequence[tuple[str, ...]],
        *,
        faults: Faults = CALM,
        links: Iterable[tuple[int, int]] | None = None,
        quotas: Quotas | None = None,
        settings: SpreadSettings | None = None,
        liar: type[Peer] | None = None,
        liar_compares: bool = False,
    ) -> None:
        self.random = Random(seed)
        self.faults = faults
        self.now = 0.0
        self.settings = settings or SpreadSettings()
        self.messages_max = MESSAGES_MAX
        self._quotas = quotas or Quotas()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self.links: dict[frozenset[PeerId], Link] = {}
        self.namespaces: dict[NamespaceId, Namespace] = {}
        self.written: dict[bytes, Arrival] = {}
        self.apart_until: dict[PeerId, float] = {}
        self.tap: dict[PeerId, list[bytes]] = defaultdict(list)
        self.said: list[tuple[float, PeerId, PeerId, bytes]] = []
        self.apart: list[tuple[float, PeerId, PeerId, str]] = []
        self.restarts = 0
        for zone, name in NAMESPACES:
            self.namespace(zone, name)
        for name in (MEMBERS, REVOKED):
            self.namespace(MESH_ZONE, name)
        self.peers: list[Peer] = []
        for number, of_peer in enumerate(zones):
            keypair, kind = (ADMIN if number == 0 else key(number)), Peer
            if liar is not None and number == len(zones) - 1:
                kind = liar
                by_id = sorted(map(key, range(50, 80)), key=lambda one: one.peer_id)
                keypair = by_id[-1 if liar_compares else 0]
            chain = self.chain_of(keypair, of_peer) if number else ADMIN_CHAIN
            skew_ms = self.random.randint(-faults.skew_ms_max, faults.skew_ms_max)
            self.peers.append(kind(self, keypair, chain, skew_ms))
        self.by_id = {one.me: one for one in self.peers}
        everybody = combinations(range(len(self.peers)), 2) if links is None else links
        self.possible = [
            frozenset({self.peers[one].me, self.peers[other].me}) for one, other in everybody
        ]
        self.relink()

    def chain_of(
        self, keypair: Keypair, zones: tuple[str, ...], *, issued_ms: int = LONG_AGO_MS
    ) -> Chain:
        own = issue(
            ADMIN,
            keypair.peer_id,
            mesh=MESH,
            role="member",
            now_ms=issued_ms,
            zones=zones,
            days=300,
        )
        return (*ADMIN_CHAIN, own)

    @property
    def honest(self) -> list[Peer]:
        return [one for one in self.peers if one.honest]

    def quotas(self, namespace: NamespaceId) -> Quotas:
        """Return how much an author may hold; in the books more than anybody here writes."""
        return Quotas() if self.namespaces[namespace].is_book else self._quotas

    def namespace(self, zone: str, name: str) -> Namespace:
        namespace = namespace_of(MESH, zone, name)
        self.namespaces[namespace.id] = namespace
        return namespace

    # Time

    def at(self, time: float, act: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (time, self._count, act))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end, at_once = self.now + seconds, 0
        while self._due and self._due[0][0] <= end:
            time, _, act = heapq.heappop(self._due)
            at_once = at_once + 1 if time <= self.now else 0
            if at_once > STEPS_AT_ONCE_MAX:
                raise Violation(f"at {self.now} s it goes on without time passing")
            self.now = max(time, self.now)
            act()
        self.now = end

    def live(self, seconds: float, writes: int) -> None:
        """Let things be written, and go wrong, for a while."""
        for _ in range(writes):
            self.at(self.now + self.random.uniform(0, seconds), self.write_something)
        for per_s, go_wrong in (
            (self.faults.cuts_per_s, self.cut_one),
            (self.faults.freezes_per_s, self.freeze_one),
            (self.faults.partitions_per_s, self.partition),
            (self.faults.restarts_per_s, self.restart_one),
        ):
            for _ in range(poisson(self.random, per_s * seconds)):
                self.at(self.now + self.random.uniform(0, seconds), go_wrong)
        self.run(seconds)

    def settle(self, seconds: float = 1500.0) -> None:
        """Let nothing go wrong any more, and give it time: an entry that was refused is tried again
        after ten minutes.
        """
        self.faults = CALM
        self.run(seconds)
        for one in self.peers:
            one.pass_time()
        self.run(200.0)

    # Links

    def links_of(self, peer: PeerId) -> list[Link]:
        return [link for ends, link in self.links.items() if peer in ends]

    def relink(self) -> None:
        """Open every link that can be; end those of members that count no more."""
        for ends in sorted(self.possible, key=sorted):
            link = self.links.get(ends)
            may = self.may_link(ends)
            if link is not None and not may:
                self.cut(link)
            elif link is None and may:
                self.open(ends)

    def may_link(self, ends: frozenset[PeerId]) -> bool:
        one, other = (self.by_id[peer] for peer in sorted(ends))
        if not (one.up and other.up):
            return False
        sides = {self.apart_until.get(peer, 0.0) > self.now for peer in ends}
        if len(sides) > 1:
            return False
        return not any(
            known is not None and here.standing.why_void(known) is not None
            for here, there in ((one, other), (other, one))
            for known in (here.standing.of(there.me),)
        )

    def open(self, ends: frozenset[PeerId]) -> None:
        one, other = (self.by_id[peer] for peer in sorted(ends))
        lacking = {one.me: self.books_lacking(one, other), other.me: self.books_lacking(other, one)}
        self.links[ends] = Link(ends, {one.me: deque(), other.me: deque()}, self.now, lacking)
        own = {peer.me: peer.spreading.books_digest() for peer in (one, other)}
        shown = {peer.me: peer.books_shown() for peer in (one, other)}
        one.link_up(other, same_books=shown[other.me] == own[one.me])
        other.link_up(one, same_books=shown[one.me] == own[other.me])

    def books_lacking(self, at: Peer, of: Peer) -> set[tuple[NamespaceId, Key]]:
        """Return what one peer lacks of another's books, but for what is dated ahead of either."""
        until = bound_of(min(at.now_ms, of.now_ms))
        return {
            (namespace.id, one)
            for namespace in self.namespaces.values()
            if namespace.is_book
            for one in of.held_summary(namespace.id).keys(b"", until)
            if (namespace.id, one) not in at.ever_taken
        }

    def cut(self, link: Link) -> None:
        if not link.alive:
            return
        link.alive = False
        del self.links[link.ends]
        for peer in sorted(link.ends):
            if (here := self.by_id[peer]).up:
                (there,) = link.ends - {peer}
                here.link_down(there)
        self.at(self.now + self.random.uniform(0.1, 5), self.relink)

    def send(self, sender: Peer, to: PeerId, body: bytes, *, payload: bool = False) -> bool:
        """Queue a message; False if there is no link, or its queue is full."""
        link = self.links.get(frozenset({sender.me, to}))
        if link is None or len(link.queues[to]) >= self.faults.frames_max:
            return False
        self.tap[to].append(body)
        self.said.append((self.now, sender.me, to, body))
        self.check_said(sender, to, body, payload=payload)
        queue = link.queues[to]
        due = max(
            self.now + LATENCY_S * self.random.uniform(0.5, 1.5), queue[-1][0] if queue else 0
        )
        queue.append((due, body))
        self.at(due, lambda: self.deliver(link, sender.me, to))
        return True

    def deliver(self, link: Link, sender: PeerId, to: PeerId) -> None:
        """Hand over what is due on a link, in order."""
        queue = link.queues[to]
        if link.alive and link.frozen_until > self.now:
            self.at(link.frozen_until, lambda: self.deliver(link, sender, to))
            return
        while link.alive and queue and queue[0][0] <= self.now:
            _, body = queue.popleft()
            here = self.by_id[to]
            here.hear(sender, body)
            self.check_peer(here)

    # What goes wrong

    def cut_one(self) -> None:
        if self.links:
            self.cut(self.links[self.random.choice(sorted(self.links, key=sorted))])

    def freeze_one(self) -> None:
        if self.links:
            link = self.links[self.random.choice(sorted(self.links, key=sorted))]
            link.frozen_until = self.now + self.random.uniform(1, 40)

    def partition(self) -> None:
        until = self.now + self.random.uniform(5, 60)
        for one in self.random.sample(self.peers, len(self.peers) // 2):
            self.apart_until[one.me] = until
        self.relink()
        self.at(until + 0.1, self.relink)

    def restart_one(self) -> None:
        peer = self.random.choice(self.peers)
        if not peer.up:
            return
        self.restarts += 1
        peer.stop()

        def start() -> None:
            peer.start()
            peer.wake()
            self.relink()

        self.at(self.now + self.random.uniform(0.5, 20), start)

    # Writing at random

    def write_something(self) -> None:
        peer = self.random.choice(self.peers)
        if not peer.up:
            return
        namespace = self.random.choice([one for one in self.shared() if peer.may_read(one.zone)])
        if self.random.random() < 0.05 and self.peers[0].up:
            self.write_in_the_books(self.random.choice(self.peers))
            return
        random, name = self.random, f"key-{self.random.randrange(5)}"
        text = f"{peer.me[-6:]} says {random.getrandbits(64):x}"
        lifetime = random.choice([Lifetime.NORMAL, Lifetime.NORMAL, Lifetime.SCRATCH])
        terms: dict[str, Any] = {}
        if random.random() < 0.2:
            terms["expires_ms"] = peer.now_ms + random.randrange(5_000, 120_000)
        # What stands at the beginning is written twice as often.
        match random.choices(range(9), (3, 3, 2, 1, 2, 2, 1, 2, 2))[0]:
            case 0:
                peer.write(namespace, note, text, lifetime=lifetime, **terms)
            case 1:
                peer.write(namespace, register, name, text, lifetime=lifetime, **terms)
            case 2:
                seen = self.known_to(peer, namespace, Type.SHARED)[-1:]
                peer.write(namespace, shared, name, text, *seen)
            case 3:
                peer.write(namespace, counter, name, random.randrange(9), random.randrange(9))
            case 4:
                peer.write(namespace, element, name, text)
            case 5:
                peer.write(namespace, line, name, text, lifetime=lifetime, **terms)
            case 6:
                peer.write(namespace, write_extreme, name, str(random.randrange(99)))
            case 7:
                some = self.known_to(peer, namespace, Type.ELEMENT)
                peer.write(namespace, removal, *random.sample(some, min(2, len(some))))
            case _:
                some = self.known_to(peer, namespace, None)
                peer.write(namespace, forgetting, *random.sample(some, min(2, len(some))))

    def write_in_the_books(self, of: Peer) -> None:
        """Let the admin write down a member again, as when it renews."""
        self.peers[0].write_record(MEMBERS, of.me, books.member_record(of.chain))

    def known_to(self, peer: Peer, namespace: Namespace, type_: Type | None) -> list[Arrival]:
        """Return what a peer holds of what was written by members."""
        found = [self.written.get(one[8:]) for one in peer.keys(namespace)]
        return [
            one
            for one in found
            if one is not None and (type_ is None or one.entry.header.kind & 0b1111 == type_)
        ]

    def shared(self) -> list[Namespace]:
        return [one for one in self.namespaces.values() if not one.is_book and one.zone != DEVICE]

    # What must hold

    def check_peer(self, peer: Peer) -> None:
        """Check what holds after each step of a peer."""
        if not peer.honest:
            return
        for one in peer.spreading.neighbours():
            check_is_going_on(peer, one)
            if one.lacking > 2 * HAS_MAX or sum(map(len, one.asked.values())) > ASKED_MAX:
                raise Violation("more is asked of one peer than it should be")
            if len(one.under_way) > self.settings.window:
                raise Violation("more batches are under way than the window takes")
            if one.waiting > self.settings.outbox_max:
                raise Violation("more waits for one peer than it should")
            if one.state == "apart" and (
                not self.apart or self.apart[-1][1:] != (peer.me, one.peer, one.why)
            ):
                self.apart.append((self.now, peer.me, one.peer, one.why))

    def check_said(self, sender: Peer, to: PeerId, body: bytes, *, payload: bool) -> None:
        """Check what holds of each message of an honest peer."""
        if len(self.said) > self.messages_max:
            raise Violation("they talk without end")
        message = decode_message(body) if sender.honest else None
        if message is not None and self.by_id[to].honest:
            self.check_books_came_first(self.links[frozenset({sender.me, to})], message)
        if not isinstance(message, Entries) or message.name.startswith("_"):
            return
        if not payload:
            raise Violation("content is sent as if it were control")
        neighbour = sender.spreading.neighbour(to)
        if neighbour is not None and neighbour.turn_unacknowledged == 0:
            raise Violation("something is sent before the books are durable there")

    def check_books_came_first(self, link: Link, message: Message) -> None:
        """Nothing else is named on a link of honest peers before the books are through, or the
        time is up.
        """
        if self.now >= link.opened_at + self.settings.books_first_s or not names_others(message):
            return
        for peer, lacking in link.lacking.items():
            (other,) = link.ends - {peer}
            for namespace, one in lacking - self.by_id[peer].ever_taken:
                if one in self.by_id[other].held_summary(namespace):
                    raise Violation(f"{message} is said before the books are through")

    def check_secrets(self) -> None:
        """Nobody outside a zone has been told anything of what is in it."""
        secrets: dict[str, set[bytes]] = defaultdict(set)
        for namespace in self.namespaces.values():
            if namespace.zone != MESH_ZONE:
                secrets[namespace.zone] |= {namespace.id, namespace.name.encode()}
        for arrival in self.written.values():
            header = arrival.entry.header
            zone = self.namespaces[NamespaceId(header.namespace)].zone
            if zone != MESH_ZONE:
                secrets[zone] |= {arrival.entry.id[:SHORT_ID_BYTES], arrival.entry.id[-8:]}
                secrets[zone] |= {header.parent, header.key}
                text = arrival.payload or b""
                if b" says " in text:
                    secrets[zone] |= {header.payload_digest, text[-16:]}
        for peer in self.peers:
            # A refusal says again what was asked.
            told = [one for one in self.tap[peer.me] if not is_a(Refused, one)]
            heard = b"\xff".join(told)
            for zone, of_zone in secrets.items():
                if zone != DEVICE and peer.me in self.ever_in(zone):
                    continue
                for one in of_zone:
                    if one in heard:
                        raise Violation(f"{peer.me} outside {zone} was told {one!r}")

    def copies(self, since: int = 0) -> dict[tuple[PeerId, bytes], int]:
        """Count how often each entry was sent to each peer."""
        count: dict[tuple[PeerId, bytes], int] = defaultdict(int)
        for _, _, to, body in self.said[since:]:
            message = decode_message(body)
            if isinstance(message, Entries):
                for item in message.items:
                    count[to, read_entry(item.header).id] += 1
        return count

    def ever_in(self, zone: str) -> set[PeerId]:
        return {one.me for one in self.peers if one.may_read(zone)}

    def check_quiet(self) -> None:
        """All that may read a namespace hold and show the same, which is all that should be."""
        for namespace in self.namespaces.values():
            readers = [one for one in self.honest if one.may_read(namespace.zone)]
            if namespace.zone == DEVICE or not readers:
                continue
            first = readers[0]
            for other in readers[1:]:
                if first.keys(namespace) != other.keys(namespace):
                    lacking = set(first.keys(namespace)) ^ set(other.keys(namespace))
                    raise Violation(
                        f"{namespace.name}: {len(lacking)} entries are not held by both"
                    )
                if first.shown(namespace) != other.shown(namespace):
                    raise Violation(f"{namespace.name}: not the same is shown")

    def check_complete(self) -> None:
        """What is held is all that was ever written and should be, by the definition over sets."""
        expected = ideal(self.written.values(), self.peers[0].now_ms, self.quotas)
        for namespace in self.namespaces.values():
            for peer in self.honest:
                if namespace.zone != DEVICE and peer.may_read(namespace.zone):
                    held = {namespace.id + one for one in peer.keys(namespace)}
                    should = {one for one in expected.held if one.startswith(namespace.id)}
                    if held != should:
                        raise Violation(f"{peer.me}: {len(held ^ should)} entries too many or few")
                    shown = {one for one in expected.shown if one.startswith(namespace.id)}
                    if set(peer.shown(namespace)) != shown:
                        raise Violation(f"{peer.me}: not what should be shown")

    def check_in_step(self) -> None:
        """Nothing is under way any more, and each knows that it is in step with the other."""
        among = {one.me for one in self.honest}
        for peer in self.honest:
            for one in peer.spreading.neighbours():
                if one.peer in among and (one.state != "in step" or one.waiting or one.lacking):
                    raise Violation(f"{peer.me}: {one.peer} is {one.state}: {one.why}")

    def check_silent(self, seconds: float) -> None:
        """Nothing is said any more, but a digest now and then."""
        from_, among = len(self.said), {one.me for one in self.honest}
        self.run(seconds)
        for _, sender, to, body in self.said[from_:]:
            if sender in among and to in among and not is_a(Digest, body):
                raise Violation(f"said without need: {decode_message(body)}")


NAMESPACES = (
    (MESH_ZONE, "plant/pumps"),
    (MESH_ZONE, "notes"),
    ("eu", "eu/finance-secret"),
    ("plant", "plant/vault-secret"),
    (DEVICE, "own-secret"),
)


def check_is_going_on(peer: Peer, one: Neighbour) -> None:
    """Whatever is under way with a neighbour, a time is set at which it ends."""
    times = [one.answer_by, one.entries_by, one.took_by, one.flush_at, one.ask_at, one.again_at]
    times.append(one.books_first_until)
    waits = one.is_comparing or one.state in ("apart", "muted") or one.waiting or one.lacking
    if waits and min(times) == math.inf:
        raise Violation(f"{peer.me} waits for ever for {one.peer}: {one.state}, {one.why}")


def opened(item: Item, namespace: Namespace) -> Entry:
    """Return an entry whose form and payload hold; its signature is empty, but in the books."""
    signed = read_back(item.header, SignedHeader)
    if namespace.is_book or signed.signature != bytes(SIGNATURE_BYTES):
        entry = open_entry(item.header, mesh=MESH)
    else:
        entry = read_entry(item.header)
    if item.payload is not None and entry.header.payload_bytes:
        check_payload(entry, item.payload)
    return entry


def write_extreme(author: Keypair, name: str, value: str, **terms: Any) -> Arrival:
    return write(Type.MAXIMUM, author, name, value, **terms)


def names_others(message: Message) -> bool:
    """Tell whether a message names a namespace that is none of the books."""
    match message:
        case Compare(zone=zone, name=name) | Offer(zone, name) | Want(zone, name):
            named = [(zone, name)]
        case Gone(zone, name) | Entries(zone=zone, name=name):
            named = [(zone, name)]
        case Contents(rows=rows) | Run(rows=rows):
            named = [(row.zone, row.name) for row in rows]
        case _:
            named = []
    return any(not namespace_of(MESH, zone, name).is_book for zone, name in named)


def is_a(kind: type[Message], body: bytes) -> bool:
    return body[1:].startswith(encode_plain(kind.__struct_config__.tag))


def by_namespace(
    keys: Iterable[tuple[NamespaceId, Key]],
) -> dict[NamespaceId, list[Key]]:
    found: dict[NamespaceId, list[Key]] = {}
    for namespace, one in keys:
        found.setdefault(namespace, []).append(one)
    return found


def poisson(random: Random, mean: float) -> int:
    """Return how often something happens that happens `mean` times."""
    count, left = 0, random.expovariate(1.0)
    while left < mean:
        count += 1
        left += random.expovariate(1.0)
    return count


class Bent(Peer):
    """A member that does as all do, but for what it lets out."""

    honest = False

    def let_out(self, to: PeerId, body: bytes, *, payload: bool) -> bool:
        bent = self.bend(decode_message(body))
        return bent is None or self.world.send(self, to, encode_message(bent), payload=payload)

    def bend(self, message: Message) -> Message | None:
        """Return what it says instead; None: nothing."""
        return message


class Liar(Peer):
    """A member that says what it likes. By itself it says nothing, and hears without a word."""

    honest = False
    numbers = 0

    def link_up(self, other: Peer, *, same_books: bool) -> None:
        self.standing.learn(other.chain)

    def link_down(self, peer: PeerId) -> None:
        pass

    def hear(self, sender: PeerId, body: bytes) -> None:
        self.heard(sender, decode_message(body))

    def heard(self, sender: PeerId, message: Message) -> None:
        """Answer, or not."""

    def say(self, to: PeerId, message: Message | bytes) -> None:
        body = message if isinstance(message, bytes) else encode_message(message)
        self.world.send(self, to, body)

    def craft(self, namespace: Namespace, text: str, **terms: Any) -> Arrival:
        """Make a note, and keep it to itself."""
        terms.setdefault("at_ms", self.now_ms)
        certificate = certificate_id(self.chain[-1])
        return note(
            self.keypair,
            text,
            namespace=namespace.id,
            certificate=certificate,
            signed=False,
            **terms,
        )

    def push(self, namespace: Namespace, *arrivals: Arrival) -> None:
        """Send entries to everybody."""
        items = tuple(Item(one.entry.data, one.payload) for one in arrivals)
        self.numbers += 1
        self.say_to_all(Entries(self.numbers, namespace.zone, namespace.name, items))

    def say_to_all(self, message: Message | bytes) -> None:
        for link in self.world.links_of(self.me):
            (to,) = link.ends - {self.me}
            self.say(to, message)
