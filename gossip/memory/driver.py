"""How does the shared memory run on this device? Drives spreading over links, threads and the store.

Signatures are checked in worker threads, a chunk at a time, so the event loop goes on; standing is
judged on the trio thread; rows are written by the store's one writer. What became durable, whether
written here or brought by a peer, is told to `Spreading`, to the books, and to who watches.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TypeVar, assert_never

import trio

from covey.gossip.network import LinkDown, LinkUp, Network
from covey.identity.certificate import Chain
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Misuse, NotAdmitted, Unavailable
from covey.identity.keys import Keypair, PeerId, peer_id_of, public_key_of
from covey.identity.wire import decode, encode

from . import books
from .book_reading import BookReading, Said
from .commands import Command
from .effects import Effect, Ingest, Ingested, Say, StepChanged
from .entry import (
    CLOCK_BYTES,
    HASH_BYTES,
    KEY_BYTES_TOTAL,
    SHORT_ID_BYTES,
    Entry,
    Key,
    NamespaceId,
)
from .held_rows import HeldRows
from .hybrid_clock import HybridClock, stamp_of
from .kinds import Lifetime
from .messages import CHANNEL, Item
from .namespace import MESH, Namespace, NamespaceRecord, namespace_of
from .opening import Checked, check_items
from .payload import SALT_BYTES, decode_payload
from .policies import Changed, Policies
from .redating import is_ahead, redate
from .rejudging import Rejudging
from .replica import Applied, Arrival, Replica
from .rows import Rows
from .spreading import Spreading
from .standing import Standing, UnknownCertificate, certificate_id
from .summary import END
from .tables import Table, Tables
from .writing import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")

# About 7 ms of one core: long enough to be worth a thread, short enough to be cancelled.
CHECK_CHUNK = 64
CHECKS_AT_ONCE = 2
# Entries whose author's certificate has not come yet; the oldest give way.
PARKED_MAX = 1_000
# What is past its time is looked for this often, by all peers alike (MEMORY 4.5, R5).
PASS_TIME_S = 600.0
APPLY_MAX = 256


@dataclass(frozen=True, slots=True)
class _Parked:
    namespace: Namespace
    entry: Entry
    payload: bytes | None
    sender: PeerId | None = None


@dataclass(slots=True)
class _Taken:
    """What became of entries."""

    kept: list[Key] = field(default_factory=lambda: list[Key]())
    """What is held now, or is known to be superseded."""
    new: int = 0
    left: list[tuple[_Parked, str]] = field(default_factory=lambda: list[tuple[_Parked, str]]())
    """What is not taken, and why."""


@dataclass(frozen=True, slots=True)
class Written:
    """What came of commands."""

    entries: tuple[tuple[Entry, ...], ...]
    """For each command those that carry it out; none if all of it was said before."""
    withdrawn: int
    """How many texts they took away here."""


class Memory:
    """The memory of one peer. Run `serve` in a nursery.

    Args:
        keypair: this peer's key.
        chain: its chain, under which it writes.
        mesh: the mesh.
        network: the links.
        rows: the store.
        standing: whose entries count.
        now_ms: reads the wall clock; called on the store's thread, too, as `draw` is.
        draw: draws entropy.
        random: for `Spreading`.
        policies: who writes where, which the quotas of `rows` follow as well.
    """

    def __init__(
        self,
        keypair: Keypair,
        chain: Chain,
        mesh: MeshId,
        network: Network,
        rows: Rows,
        standing: Standing,
        *,
        now_ms: Callable[[], int],
        draw: Callable[[int], bytes],
        random: Random,
        policies: Policies | None = None,
    ) -> None:
        self._me = keypair.peer_id
        self._keypair = keypair
        self._chain = chain
        self.mesh = mesh
        self._network = network
        self._rows = rows
        self.standing = standing
        self.policies = policies or Policies(mesh)
        self._now_ms = now_ms
        self._draw = draw
        self._namespaces: dict[NamespaceId, Namespace] = {}
        # Those that something was written into since start, durable or not; written by the store's
        # thread.
        self._named: dict[NamespaceId, Namespace] = {}
        self._books = BookReading(rows, standing, self.policies)
        self._rejudging = Rejudging(rows, standing, self.judge, self.namespaces)
        self._held = HeldRows(rows, self._namespaces)
        self.spreading = Spreading(self._me, mesh, self._held, standing.may_read, random)
        self._due = trio.Event()
        self._checks = trio.CapacityLimiter(CHECKS_AT_ONCE)
        self._nursery: trio.Nursery | None = None
        self._parked: dict[bytes, list[_Parked]] = {}
        self._sources: dict[Key, PeerId] = {}
        self._applied_watchers: list[Callable[[Applied], None]] = []
        self._step_watchers: list[Callable[[PeerId], None]] = []
        self.books_shown: Callable[[PeerId], bytes] = lambda _peer: b""
        """Returns the digest of the books that a peer's last hello showed; empty: it showed none."""
        self._take_up_stored()
        self.use_chain(chain)
        network.on_message(CHANNEL, self._heard)
        network.on_link(self._link_changed)
        rows.on_applied(self._applied)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Spread and take in until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._tick)
            nursery.start_soon(self._pass_time)
            # A crash may have come between a revocation and what follows from it.
            nursery.start_soon(self._rejudging.by_revocations, self.standing.revoked())
            nursery.start_soon(self._rejudging.by_policies, self.policies.all_changed())
            task_status.started()

    # For those above

    def on_applied(self, watcher: Callable[[Applied], None]) -> None:
        """Call `watcher` with what each transaction changed, in order. It must not wait."""
        self._applied_watchers.append(watcher)

    def on_step(self, watcher: Callable[[PeerId], None]) -> None:
        """Call `watcher` with each peer that fell in step or out of it. It must not wait."""
        self._step_watchers.append(watcher)

    def books_digest(self) -> bytes:
        """Return the books that every member holds, as they are here, summed up: for hello."""
        return self.spreading.books_digest()

    def namespaces(self) -> list[Namespace]:
        """Return every namespace that this peer holds, the books first."""
        return sorted(self._namespaces.values())

    def namespace(self, namespace_id: NamespaceId) -> Namespace | None:
        """Return a namespace that this peer holds."""
        return self._namespaces.get(namespace_id)

    async def write(
        self,
        namespace: Namespace,
        commands: Sequence[Command],
        *,
        lifetime: Lifetime | None = None,
        ttl_ms: int | None = None,
    ) -> Written:
        """Write what the commands say, all or nothing; durable on return.

        Args:
            namespace: where.
            commands: what to say, in this order.
            lifetime: for how long the headers are kept; None: as the type has it.
            ttl_ms: when the texts go, from now; None: with the header, or as the policy has it.

        Returns:
            What was written, and how many texts that took away.

        Raises:
            Misuse: one of them cannot be said so.
            NotAdmitted: code `policy`: the namespace's policy does not allow it.
            Unavailable: the disk did not take them, or this device's clock is behind.
        """

        def job(replica: Replica, tables: Tables) -> Written:
            self._put_namespace(tables, namespace)
            stated = self.policies.newest(namespace.id)
            ttl_s_max = stated.policy.ttl_s if stated is not None else None
            written: list[tuple[Entry, ...]] = []
            for command in commands:
                arrivals = self._writer.write(
                    tables,
                    namespace.id,
                    command,
                    self._now_ms(),
                    lifetime=lifetime,
                    ttl_ms=ttl_ms,
                    ttl_ms_max=ttl_s_max * 1000 if ttl_s_max is not None else None,
                )
                if stated is not None:
                    for arrival in arrivals:
                        self._check_policy(arrival.entry, namespace, who="this device")
                self._apply_own(replica, arrivals)
                written.append(tuple(arrival.entry for arrival in arrivals))
            return Written(tuple(written), replica.applied.withdrawn)

        return await self._rows.run(job)

    def use_chain(self, chain: Chain) -> None:
        """Write under this chain of this peer's own from now on."""
        self.standing.learn(chain)
        known = self.standing.certificate(certificate_id(chain[-1]))
        assert known is not None, "it was learned just now"
        assert known.member.peer == self._me, "a peer's own chain is its own"
        self._chain = chain
        self._writer = Writer(
            self._keypair,
            self.mesh,
            known.id,
            self._clock,
            self._draw,
            by_admin=known.member.role == "admin",
        )

    def moment(self) -> int:
        """Return a clock that all that this device has seen so far has, or less."""
        return max(stamp_of(self._now_ms()), self._clock.last)

    @property
    def is_ahead(self) -> bool:
        """Tell whether this device has stamped what no other peer takes by now."""
        return is_ahead(self._clock, self._now_ms())

    async def redate(self) -> int:
        """Sign anew what this device signed ahead of time, now that its clock is right; return how much.

        Raises:
            Unavailable: the disk did not take it.
        """
        namespaces = [one.id for one in self.namespaces()]
        own = self.standing.of(self._me)
        by_admin = own is not None and own.member.role == "admin"

        def job(replica: Replica, tables: Tables) -> int:
            return redate(
                replica,
                tables,
                namespaces,
                self._keypair,
                self.mesh,
                self._clock,
                self._now_ms(),
                by_admin=by_admin,
            )

        before = self._clock.last
        try:
            redated = await self._rows.run(job)
        except Unavailable:
            self._clock.last = max(self._clock.last, before)
            raise
        # By its new time another policy may be in force for it.
        await self._rejudging.by_policies(self.policies.all_changed())
        return redated

    async def write_records(self, records: Sequence[books.Record]) -> list[Arrival]:
        """Write records of the mesh's own, all or nothing; durable on return. Admins alone write books.

        Raises:
            Malformed: one of them is too long.
            Unavailable: the disk did not take them.
        """
        chain = self._chain

        def job(replica: Replica, tables: Tables) -> list[Arrival]:
            written: list[Arrival] = []
            for record in records:
                namespace = namespace_of(self.mesh, record.zone, record.book)
                self._put_namespace(tables, namespace)
                clock = self._clock.stamp(self._now_ms())
                salt = self._draw(SALT_BYTES)
                arrival = books.compose(
                    self._keypair, self.mesh, namespace, chain, clock, salt, record
                )
                self._apply_own(replica, [arrival])
                written.append(arrival)
            return written

        return await self._rows.run(job)

    def records(self, book: str) -> list[bytes]:
        """Return the records of one of the mesh's books, as far as they are held here."""
        namespace = namespace_of(self.mesh, MESH, book)
        found: list[bytes] = []
        with self._rows.reading() as reading:
            for _, data in reading.scan(Table.PAYLOAD, namespace.id):
                found.append(decode_payload(data).record)
        return found

    def judge(self, entry: Entry, namespace: Namespace) -> bool:
        """Refuse an entry that its author may not write; tell whether an admin wrote it. On any thread.

        Raises:
            UnknownCertificate, NotAdmitted: as `Standing.judge`; and code `policy`.
        """
        by_admin = self.standing.judge(entry, namespace)
        if self.policies.newest(namespace.id) is not None:
            self._check_policy(entry, namespace)
        return by_admin

    def _check_policy(self, entry: Entry, namespace: Namespace, *, who: str = "its author") -> None:
        """Refuse what a policy does not allow.

        Raises:
            NotAdmitted: code `policy`.
        """
        known = self.standing.certificate(entry.header.certificate)
        if known is not None:
            self.policies.judge(entry, namespace, known.member, who=who)

    def _apply_own(self, replica: Replica, arrivals: Iterable[Arrival]) -> None:
        for arrival in arrivals:
            if replica.would_undo(arrival.entry):
                raise Misuse(
                    "this device has removed or forgotten so much there today that the first of it "
                    "would be undone; go on tomorrow, or forget by author and time in one go"
                )
            fate = replica.apply(arrival)
            if fate != "kept":
                raise Misuse(f"this device could not keep what it wrote itself: {_OWN[fate]}")

    async def take_in(
        self, namespace: Namespace, items: Iterable[Item]
    ) -> tuple[int, list[tuple[str, str]]]:
        """Take in entries from elsewhere than a link, such as a file, judged alike.

        Returns:
            How many are new here, and of each that is not taken its short id and why.
        """
        new = 0
        refused: list[tuple[str, str]] = []
        for chunk in _chunks(list(items), APPLY_MAX):
            checked = await self._check(chunk)
            if checked.bad is not None:
                refused.append(("", checked.bad))
            taken = await self._judge_and_apply(namespace, checked, None)
            new += taken.new
            refused += [(one.entry.id.hex()[:16], why) for one, why in taken.left]
        return new, refused

    def compare(self, peer: PeerId, *, salt: bytes | None = None) -> None:
        """Begin a comparison with a linked peer; with `salt` an audit."""
        now = trio.current_time()
        self._carry_out(self.spreading.compare(peer, now, self._now_ms(), salt=salt))

    # Links

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        match event:
            case LinkUp(peer, _):
                same_books = self.books_shown(peer) == self.books_digest()
                effects = self.spreading.link_up(
                    peer, trio.current_time(), self._now_ms(), same_books=same_books
                )
            case LinkDown(peer, _):
                effects = self.spreading.link_down(peer, trio.current_time())
        self._carry_out(effects)

    def _heard(self, sender: PeerId, body: bytes) -> None:
        now = trio.current_time()
        self._carry_out(self.spreading.receive(sender, body, now, self._now_ms()))

    async def _tick(self) -> None:
        while True:
            self._due = trio.Event()
            with trio.move_on_at(self.spreading.deadline):
                await self._due.wait()
            self._carry_out(self.spreading.tick(trio.current_time(), self._now_ms()))

    async def _pass_time(self) -> None:
        while True:
            try:
                await self._rows.pass_time()
            except Unavailable as error:
                log.warning("memory.sweep_put_off", extra={"why": str(error)})
            await trio.sleep(PASS_TIME_S - self._now_ms() / 1000 % PASS_TIME_S)

    def _carry_out(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Say(to, body, payload):
                    if not self._network.send(to, CHANNEL, body, payload=payload):
                        log.debug("memory.unsent", extra={"peer": to})
                        self._carry_out(self.spreading.unsent(to, trio.current_time()))
                case Ingest():
                    if self._nursery is not None:
                        self._nursery.start_soon(self._ingest, effect)
                case StepChanged(peer):
                    for watcher in self._step_watchers:
                        watcher(peer)
                case _:
                    assert_never(effect)
        self._due.set()

    # Taking in

    async def _ingest(self, batch: Ingest) -> None:
        try:
            checked = await self._check(batch.items)
            taken = await self._judge_and_apply(batch.namespace, checked, batch.sender)
        except Unavailable as error:
            # Not acknowledged: the sender waits, gives up, and compares again later.
            log.error("memory.ingest_failed", extra={"why": str(error)})
            self.spreading.not_ingested(batch.number)
            return
        for one, why in taken.left:
            log.info("memory.refused", extra={"author": one.entry.header.author.hex(), "why": why})
        done = Ingested(
            batch.sender,
            batch.number,
            batch.namespace,
            taken=taken.kept,
            refused=[one.entry.id[:SHORT_ID_BYTES] for one, _ in taken.left],
            bad=checked.bad,
        )
        self._carry_out(self.spreading.ingested(done, trio.current_time(), self._now_ms()))

    async def _check(self, items: Sequence[Item]) -> Checked:
        """Check form, signatures and payloads, in threads."""
        parts = [
            await trio.to_thread.run_sync(
                check_items, chunk, self.mesh, limiter=self._checks, abandon_on_cancel=True
            )
            for chunk in _chunks(items, CHECK_CHUNK)
        ]
        bad = next((part.bad for part in parts if part.bad is not None), None)
        return Checked([one for part in parts for one in part.entries], bad)

    async def _judge_and_apply(
        self, namespace: Namespace, checked: Checked, sender: PeerId | None
    ) -> _Taken:
        arrivals: list[Arrival] = []
        taken = _Taken()
        left = taken.left
        for entry, payload in checked.entries:
            parked = _Parked(namespace, entry, payload, sender)
            try:
                arrivals.append(self._judged(parked))
            except UnknownCertificate as error:
                self._park(error.certificate, parked)
                left.append((parked, str(error)))
            except (NotAdmitted, Malformed) as error:
                left.append((parked, str(error)))
        if not arrivals:
            return taken
        if sender is not None:
            self._sources.update((arrival.entry.key, sender) for arrival in arrivals)
        try:
            fates = await self._rows.run(self._apply_job(namespace, arrivals))
        finally:
            for arrival in arrivals:
                self._sources.pop(arrival.entry.key, None)
        for arrival, fate in zip(arrivals, fates, strict=True):
            if fate in ("early", "over"):
                why = _FATES[fate]
                left.append((_Parked(namespace, arrival.entry, arrival.payload), why))
            else:
                taken.kept.append(arrival.entry.key)
                taken.new += fate in ("kept", "filled")
        return taken

    def _judged(self, parked: _Parked) -> Arrival:
        entry, namespace = parked.entry, parked.namespace
        if entry.header.namespace != namespace.id:
            raise Malformed("the entry is of another namespace")
        if namespace.is_own:
            books.learn_author(self.standing, namespace, parked.payload)
        return Arrival(entry, parked.payload, self.judge(entry, namespace))

    def _apply_job(
        self, namespace: Namespace, arrivals: Sequence[Arrival]
    ) -> Callable[[Replica, Tables], list[str]]:
        def job(replica: Replica, tables: Tables) -> list[str]:
            now_ms = self._now_ms()
            self._put_namespace(tables, namespace)
            fates: list[str] = []
            for arrival in arrivals:
                fates.append(replica.apply(arrival))
                self._clock.observe(arrival.entry.header.clock, now_ms)
            return fates

        return job

    def _put_namespace(self, tables: Tables, namespace: Namespace) -> None:
        if namespace.id in self._namespaces:
            return
        self._named[namespace.id] = namespace
        if tables.get(Table.NAMESPACE, namespace.id) is None:
            tables.put(Table.NAMESPACE, namespace.id, encode(namespace.record))

    def _park(self, certificate: bytes, parked: _Parked) -> None:
        if sum(map(len, self._parked.values())) >= PARKED_MAX:
            del self._parked[next(iter(self._parked))]
        self._parked.setdefault(certificate, []).append(parked)

    async def _unpark(self, waiting: Sequence[_Parked]) -> None:
        for one in waiting:
            checked = Checked([(one.entry, one.payload)])
            try:
                await self._judge_and_apply(one.namespace, checked, one.sender)
            except Unavailable as error:
                log.error("memory.ingest_failed", extra={"why": str(error)})

    # What became durable

    def _applied(self, applied: Applied) -> None:
        now = trio.current_time()
        changed: list[Changed] = []
        for namespace, keys in self._by_namespace(applied.removed):
            self._carry_out(self.spreading.removed(namespace, keys, now))
            if namespace.is_book:
                changed += self._books.went(namespace, keys)
        gone = set(applied.removed)
        fresh = [one for one in applied.added if one not in gone]
        for namespace, keys in self._by_namespace(fresh):
            by_source: dict[PeerId | None, list[Key]] = {}
            for key in keys:
                by_source.setdefault(self._sources.get(key), []).append(key)
            for source, brought in by_source.items():
                self._carry_out(self.spreading.written(namespace, brought, source, now))
            if namespace.is_book:
                self._books.came(namespace, keys)
        said = self._books.read()
        self._follow(Said(said.revocations, changed + said.policies))
        for watcher in self._applied_watchers:
            watcher(applied)
        for _, author in applied.doubled:
            log.warning("memory.author_doubled", extra={"author": author.hex()})

    def _by_namespace(
        self, keys: Iterable[tuple[NamespaceId, Key]]
    ) -> Iterable[tuple[Namespace, list[Key]]]:
        found: dict[NamespaceId, list[Key]] = {}
        for namespace_id, key in keys:
            found.setdefault(namespace_id, []).append(key)
        for namespace_id, of_it in found.items():
            if (namespace := self._known_namespace(namespace_id)) is not None:
                yield namespace, of_it

    def _follow(self, said: Said) -> None:
        """Let follow what the books say, and what certificates came with what was taken in."""
        if self._nursery is None:
            return
        ready = [one for one in self._parked if self.standing.certificate(one) is not None]
        for certificate in ready:
            self._nursery.start_soon(self._unpark, self._parked.pop(certificate))
        for revocation in said.revocations:
            subject = peer_id_of(revocation.subject)
            self._nursery.start_soon(self._rejudging.by_revocations, [subject])
        if said.policies:
            self._nursery.start_soon(self._rejudging.by_policies, said.policies)

    def _known_namespace(self, namespace_id: NamespaceId) -> Namespace | None:
        known = self._namespaces.get(namespace_id)
        if known is None and (known := self._named.get(namespace_id)) is not None:
            self._namespaces[namespace_id] = known
        return known

    def _take_up_stored(self) -> None:
        """Read the books and where the clock stood, at start."""
        with self._rows.reading() as reading:
            for _, row in reading.scan(Table.NAMESPACE, b""):
                record = decode(row, NamespaceRecord)
                namespace = namespace_of(self.mesh, record.zone, record.name)
                self._namespaces[namespace.id] = namespace
            own = public_key_of(self._me)[:HASH_BYTES]
            last = 0
            for namespace in self._namespaces.values():
                for row, _ in reading.scan(Table.AGE, namespace.id + own):
                    last = max(last, int.from_bytes(row[-KEY_BYTES_TOTAL:][:CLOCK_BYTES], "big"))
        self._clock = HybridClock(last)
        for namespace in self.namespaces():
            if namespace.is_book:
                held = self._held.summary(namespace.id)
                self._books.read_book(namespace, held.keys(b"", END), Said())


_OWN = {
    "known": "it is held already",
    "filled": "it is held already",
    "superseded": "something newer stands in its place; try again",
    "full": "this device has written so much there that even newer entries fill its share; "
    "wait for tomorrow, or use another namespace",
    "early": "its clock is ahead of itself; see covey doctor",
    "over": "its clock is far behind; see covey doctor",
}
_FATES = {
    "early": "it is dated too far ahead of this peer's clock; offered again later, it may be taken",
    "over": "it is older than its kind is kept",
}


def _chunks(items: Sequence[T], size: int) -> Iterable[Sequence[T]]:
    return (items[at : at + size] for at in range(0, len(items), size))
