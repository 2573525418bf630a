"""How does what one peer wrote reach those that may read it? Pushing what is new, and comparing.

Pure: `receive`, `tick` and their kin return effects; `driver.py` carries them out. Two ways:

- eagerly: what is written here goes to every linked peer that may read it, gathered for 50 ms; what
  came from elsewhere is offered by id, and sent to who wants it;
- surely: on a new link, after a gap and now and then, two peers compare digests of all that both may
  read. Where they differ, the one with the greater id runs a comparison (or lets the other, which
  holds more): it reconciles namespace by namespace, the books first, asks for what it lacks and
  sends what the other lacks (`reconciliation.py`), round after round until the digests are the same
  or nothing moves any more. Then it rests: what one side does not take is no reason to go on.

Batches are acknowledged once durable, and few are under way, so a slow disk slows its senders down.
What goes wrong (no answer in time, a full queue, too much that waits) drops all that is under way
with that peer; the next comparison finds it. So nothing here needs to be remembered for long, and
everything is bounded.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Protocol, TypeVar, assert_never

from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId
from covey.identity.wire import encode, read_back

from .entry import (
    AHEAD_MS_MAX,
    CLOCK_BYTES,
    HASH_BYTES,
    SHORT_ID_BYTES,
    Key,
    NamespaceId,
    SignedHeader,
)
from .messages import (
    BATCH_BYTES,
    BATCH_ENTRIES,
    IDS_MAX,
    ROWS_MAX,
    Ask,
    Compare,
    Compared,
    Contents,
    Digest,
    Entries,
    Gone,
    Item,
    Message,
    Offer,
    Refused,
    Rest,
    Row,
    Run,
    Took,
    Want,
    decode_message,
    encode_message,
)
from .namespace import DEVICE, Namespace, namespace_of
from .neighbour import (
    Batch,
    Comparison,
    Exchange,
    Neighbour,
    Running,
    State,
    short_id_of,
)
from .reconciliation import LEAF_KEYS, Ranges, Session, answer
from .summary import Summary

T = TypeVar("T")

# How far beyond its clock a peer compares: clocks that differ by less see the same set.
MARGIN_MS = 60_000
# What was written this lately may be on its way still, and is left out where nothing urges.
SETTLE_MS = 5_000
# Entries that one peer was asked for at once: two full windows of small ones.
ASKED_MAX = 1024
# Ids that one peer has and that wait to be asked for; 65,536 take about 8 MB. What it offers beyond
# is left to the next comparison.
HAS_MAX = 65_536
# A comparison begins no further session while more than this is on its way.
MOVING_MAX = 4096
# Each round finds less, or what was written meanwhile. With more, somebody lies.
ROUNDS_MAX = 8
# Rounds that did not hold all that differs, each of tens of thousands of entries.
PARTIAL_ROUNDS_MAX = 256
# Peers whose strikes are remembered, linked or not.
STRUCK_MAX = 4096


@dataclass(frozen=True, slots=True)
class SpreadSettings:
    """Times and limits of spreading."""

    gather_s: float = 0.05
    """How long new entries are gathered before they are pushed."""
    compare_s: float = 60.0
    """How often a peer compares with a few of its neighbours, and again with one that is apart."""
    compare_with: int = 3
    """With how many, each time."""
    retry_s: float = 5.0
    """How soon after a comparison that failed the next may begin; doubled each time."""
    answer_s: float = 15.0
    """How long an answer, an acknowledgement or an entry that was asked for may take."""
    window: int = 4
    """Batches under way to one peer: together about 512 KiB."""
    outbox_max: int = 200_000
    """Entries that wait for one peer. Beyond, they are left to the next comparison."""
    strikes_max: int = 8
    """Malformed messages and bad entries of one peer, until it is not listened to for a while."""
    mute_s: float = 600.0
    """How long that is, and how long a strike counts."""
    unwelcome_s: float = 600.0
    """How long an entry that was refused is not asked for, or sent, again."""
    audit_s: float = 30.0
    """How soon one peer may have a namespace summed up under another salt."""


class Held(Protocol):
    """What this peer holds; `driver.py` has the real one."""

    def namespaces(self) -> Iterable[Namespace]:
        """Return every namespace in which something is held, or was."""
        ...

    def summary(self, namespace: NamespaceId) -> Summary:
        """Return the keys of a namespace; empty if nothing is held."""
        ...

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        """Return the same under a salt."""
        ...

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        """Return the entries of the first keys, as many as fit, at least one; without a header: gone."""
        ...

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        """Return the keys of those that are held."""
        ...

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        """Return short ids of entries whose payload is missing."""
        ...


@dataclass(frozen=True, slots=True)
class Say:
    """Send a message on channel `memory`; `payload`: it is made from content."""

    to: PeerId
    body: bytes
    payload: bool


@dataclass(frozen=True, slots=True)
class Ingest:
    """Check these entries and take them in, then tell `ingested`, or `not_ingested`."""

    sender: PeerId
    number: int
    """This peer's own, of no meaning to the sender."""
    namespace: Namespace
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of a batch."""

    sender: PeerId
    number: int
    namespace: Namespace
    taken: Sequence[Key]
    """What is held now, or is known to be superseded: none of it is asked for again."""
    refused: Sequence[bytes]
    """Short ids of what is not taken now: too early, too old, its author unknown or without right."""
    bad: str | None
    """Why an entry was malformed or its signature false; that is its sender's fault."""


@dataclass(frozen=True, slots=True)
class StepChanged:
    """A peer fell in step or out of it, or all that was on its way has come: tell who watches."""

    peer: PeerId


Effect = Say | Ingest | StepChanged


@dataclass(frozen=True, slots=True)
class _Ingesting:
    """A batch that is being checked and taken in."""

    neighbour: Neighbour
    number: int
    namespace: Namespace
    ids: frozenset[bytes]


class Spreading:
    """Spreads the entries of one peer.

    Args:
        me: this peer.
        mesh: the mesh.
        held: what this peer holds.
        may_read: whether a peer, or this one, may read a zone, by what is known now.
        random: draws with whom to compare and when.
        settings: times and limits.
    """

    def __init__(
        self,
        me: PeerId,
        mesh: MeshId,
        held: Held,
        may_read: Callable[[PeerId, str], bool],
        random: Random,
        settings: SpreadSettings | None = None,
    ) -> None:
        self._me = me
        self._mesh = mesh
        self._held = held
        self._may_read = may_read
        self._random = random
        self._settings = settings or SpreadSettings()
        self._neighbours: dict[PeerId, Neighbour] = {}
        self._numbers = 0
        self._ingesting: dict[int, _Ingesting] = {}
        self._coming: Counter[tuple[NamespaceId, bytes]] = Counter()
        self._asked: dict[tuple[NamespaceId, bytes], tuple[PeerId, float]] = {}
        self._struck: dict[PeerId, tuple[int, float]] = {}
        self._muted: dict[PeerId, tuple[float, str]] = {}
        self._compare_at = math.inf
        self._effects: list[Effect] = []
        self.refused = 0
        """Messages and entries that were refused."""

    # What happens

    def link_up(self, peer: PeerId, now: float, now_ms: int) -> list[Effect]:
        """A peer is linked: compare. The one with the greater id begins."""
        if peer in self._neighbours:
            self._unlink(peer, now)
        neighbour = self._neighbours[peer] = Neighbour(peer, exchange=Exchange(now))
        self._compare_at = min(self._compare_at, now + self._settings.compare_s)
        muted_until, why = self._muted.get(peer, (-math.inf, ""))
        if muted_until > now:
            self._keep_muted(neighbour, muted_until, why)
        elif peer < self._me:
            self._begin(neighbour, now, now_ms)
        else:
            self._await_word(neighbour, "its digest is awaited", now)
        return self._take_effects()

    def link_down(self, peer: PeerId, now: float) -> list[Effect]:
        """Its link ended: what waited for it is found by the next comparison."""
        if peer in self._neighbours:
            self._unlink(peer, now)
            self._effects.append(StepChanged(peer))
        return self._take_effects()

    def compare(
        self, peer: PeerId, now: float, now_ms: int, *, salt: bytes | None = None
    ) -> list[Effect]:
        """Begin a comparison with a linked peer, unless one is under way; with `salt` an audit."""
        neighbour = self._neighbours.get(peer)
        if neighbour is None or neighbour.muted_until > now or neighbour.is_comparing:
            return []
        if salt:
            neighbour.exchange = Exchange(now)
            neighbour.comparison = Comparison(now_ms + MARGIN_MS, now_ms, salt=salt)
            self._work(neighbour, self._shared_with(peer), now)
        else:
            self._begin(neighbour, now, now_ms)
        return self._take_effects()

    def written(
        self, namespace: Namespace, keys: Sequence[Key], source: PeerId | None, now: float
    ) -> list[Effect]:
        """Entries became durable here: written here, or brought by `source`."""
        for neighbour in self._neighbours.values():
            if neighbour.peer == source or neighbour.state == "muted":
                continue
            if self._both_may(neighbour.peer, namespace.zone):
                self._tell_news(neighbour, namespace, keys, now, whole=source is None)
        return self._take_effects()

    def removed(self, namespace: Namespace, keys: Sequence[Key], now: float) -> list[Effect]:
        """Entries are held no more."""
        for neighbour in self._neighbours.values():
            if neighbour.lose(namespace, keys):
                neighbour.flush_at = min(neighbour.flush_at, now + self._settings.gather_s)
        return self._take_effects()

    def receive(self, sender: PeerId, data: bytes, now: float, now_ms: int) -> list[Effect]:
        """Take in what a linked peer said."""
        neighbour = self._neighbours.get(sender)
        if neighbour is None or neighbour.muted_until > now:
            return []
        neighbour.exchange.bytes_in += len(data)
        try:
            self._receive(neighbour, decode_message(data), now, now_ms)
        except Malformed as error:
            self._strike(neighbour, str(error), now)
        return self._take_effects()

    def ingested(self, batch: Ingested, now: float, now_ms: int) -> list[Effect]:
        """A batch is durable, but for what was refused of it."""
        done = self._no_longer_ingesting(batch.number)
        if done is None:
            return []
        namespace, neighbour = done.namespace, done.neighbour
        if self._neighbours.get(neighbour.peer) is neighbour:
            self._settle_batch(done, batch, now)
        came = {short_id_of(key) for key in batch.taken}
        for one in list(self._neighbours.values()):
            one.settle_missing(namespace, came)
            if one is neighbour or one.has or one.comparison is not None:
                self._go_on(one, now)
        return self._take_effects()

    def not_ingested(self, number: int) -> None:
        """A batch could not be stored. Its sender hears nothing, gives up, and compares later."""
        self._no_longer_ingesting(number)

    def unsent(self, peer: PeerId, now: float) -> list[Effect]:
        """A message to a linked peer did not leave, its queue is full: compare later."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None and neighbour.state != "muted":
            self._give_up(neighbour, "more waits for it than its link takes", now)
        return self._take_effects()

    def tick(self, now: float, now_ms: int) -> list[Effect]:
        """Send what was gathered, give up what did not come, compare when it is time."""
        for neighbour in list(self._neighbours.values()):
            if min(neighbour.flush_at, neighbour.ask_at) <= now:
                self._go_on(neighbour, now)
            self._look_at_the_time(neighbour, now)
            if neighbour.again_at <= now:
                neighbour.again_at = math.inf
                if not neighbour.is_comparing:
                    self._begin(neighbour, now, now_ms)
        if self._compare_at <= now:
            self._compare_some(now, now_ms)
        return self._take_effects()

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        times = [self._compare_at if self._neighbours else math.inf]
        for one in self._neighbours.values():
            times += (one.flush_at, one.ask_at, one.answer_by, one.entries_by, one.took_by)
            times.append(one.again_at)
        return min(times)

    def neighbours(self) -> Iterable[Neighbour]:
        """Return the linked peers; for looking only."""
        return self._neighbours.values()

    def neighbour(self, peer: PeerId) -> Neighbour | None:
        """Return a linked peer; for looking only."""
        return self._neighbours.get(peer)

    # Messages

    def _receive(self, neighbour: Neighbour, message: Message, now: float, now_ms: int) -> None:
        match message:
            case Digest():
                self._heard_digest(neighbour, message, now, now_ms)
            case Ask(until_ms):
                self._tell_contents(neighbour, until_ms, now, now_ms)
            case Contents():
                self._heard_contents(neighbour, message, now, now_ms)
            case Run():
                self._heard_run(neighbour, message, now, now_ms)
            case Compare():
                self._answer(neighbour, message, now)
            case Compared():
                self._heard_answer(neighbour, message, now)
            case Rest(entries):
                self._heard_rest(neighbour, entries, now)
            case _:
                self._heard_of_entries(neighbour, message, now)
        if neighbour.comparison is None and neighbour.state == "comparing":
            # The other runs it, and goes on.
            neighbour.answer_by = now + self._settings.answer_s

    def _heard_of_entries(
        self,
        neighbour: Neighbour,
        message: Offer | Want | Gone | Entries | Took | Refused,
        now: float,
    ) -> None:
        match message:
            case Offer():
                self._heard_offer(neighbour, message, now)
            case Want():
                self._heard_want(neighbour, message, now)
            case Gone():
                self._heard_gone(neighbour, message, now)
            case Entries():
                self._heard_entries(neighbour, message)
            case Took():
                self._heard_took(neighbour, message, now)
            case Refused():
                self._heard_refusal(neighbour, message, now)
            case _:
                assert_never(message)

    def _heard_digest(self, neighbour: Neighbour, theirs: Digest, now: float, now_ms: int) -> None:
        comparison = neighbour.comparison
        if comparison is not None and comparison.working:
            return  # at its end it says its own
        if theirs.until_ms > now_ms + AHEAD_MS_MAX:
            # What was written so far ahead is not taken here yet: compare up to this clock.
            self._tell_digest(neighbour, now_ms + MARGIN_MS, answer=True)
        elif theirs.digest == self._digest(neighbour.peer, theirs.until_ms):
            if theirs.answer:
                self._tell_digest(neighbour, theirs.until_ms, answer=False)
            self._in_step(neighbour, now)
        elif self._me < neighbour.peer:
            self._tell_contents(neighbour, theirs.until_ms, now, now_ms)
        elif neighbour.rests_until > now:
            neighbour.again_at = min(neighbour.again_at, neighbour.rests_until)
        else:
            if comparison is None:
                self._compare_anew(neighbour, "its contents are awaited", now)
            neighbour.expects_contents = True
            self._say(neighbour, Ask(min(theirs.until_ms, now_ms + MARGIN_MS)))
            neighbour.answer_by = now + self._settings.answer_s

    def _tell_contents(self, neighbour: Neighbour, until_ms: int, now: float, now_ms: int) -> None:
        until_ms = min(until_ms, now_ms + MARGIN_MS)
        rows = self._rows(neighbour.peer, until_ms)
        whole = len(rows) <= ROWS_MAX
        if not whole:
            books = [row for row in rows if row.name.startswith("_")][:ROWS_MAX]
            others = [row for row in rows if not row.name.startswith("_")]
            rows = books + self._random.sample(others, min(ROWS_MAX - len(books), len(others)))
        self._say(neighbour, Contents(until_ms, tuple(rows), whole))
        if neighbour.comparison is not None and not neighbour.comparison.working:
            neighbour.comparison = None  # the other goes on with it
        if neighbour.comparison is None and neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
            self._await_word(neighbour, "its differences are awaited", now)

    def _heard_contents(
        self, neighbour: Neighbour, contents: Contents, now: float, now_ms: int
    ) -> None:
        if self._me < neighbour.peer:
            raise Malformed("contents from who should ask for them")
        if contents.until_ms > now_ms + AHEAD_MS_MAX:
            raise Malformed("contents up to later than was asked for")
        comparison = neighbour.comparison
        if not neighbour.expects_contents or (comparison is not None and comparison.working):
            return
        neighbour.expects_contents = False
        differing = list(self._differing(neighbour, contents.rows, contents.until_ms))
        if contents.whole:
            named = {(row.zone, row.name) for row in contents.rows}
            differing += self._unnamed(neighbour, named, contents.until_ms)
        if self._hand_over(neighbour, differing, contents, now):
            return
        if comparison is None:
            comparison = self._compare_anew(neighbour, "its contents came", now)
        if comparison.until_ms == 0:
            # What is written from now on is on its way by itself, and would differ for ever: the
            # digests at the end are of what was written before, by either clock.
            comparison.close_ms = max(contents.until_ms - MARGIN_MS, 0)
        comparison.until_ms = contents.until_ms
        self._work(neighbour, differing, now)

    def _differing(
        self, neighbour: Neighbour, rows: Iterable[Row], until_ms: int
    ) -> Iterator[Namespace]:
        """Give the namespaces of which these two hold other entries, by the other's word."""
        for row in rows:
            namespace = namespace_of(self._mesh, row.zone, row.name)
            # What by this peer's books not both may read is passed over; the books come first, and
            # then both know the same.
            if self._both_may(neighbour.peer, row.zone) and (
                self._fingerprint(namespace.id, until_ms) != (row.count, row.digest)
            ):
                yield namespace

    def _unnamed(
        self, neighbour: Neighbour, named: Container[tuple[str, str]], until_ms: int
    ) -> Iterator[Namespace]:
        """Give the namespaces of which this peer holds something and the other nothing."""
        for namespace in self._shared_with(neighbour.peer):
            place = (namespace.zone, namespace.name)
            if place not in named and self._fingerprint(namespace.id, until_ms)[0]:
                yield namespace

    def _hand_over(
        self, neighbour: Neighbour, differing: Iterable[Namespace], contents: Contents, now: float
    ) -> bool:
        """Let the other reconcile if it holds more: who runs a session and lacks entries is told
        their ids and says them again; who has them just sends them.
        """
        theirs = {(row.zone, row.name): row.count for row in contents.rows}
        rows: list[Row] = []
        more = 0
        for one in differing:
            count, digest = self._fingerprint(one.id, contents.until_ms)
            rows.append(Row(one.zone, one.name, count, digest))
            more += theirs.get((one.zone, one.name), 0) - count
        if neighbour.handed or more <= LEAF_KEYS or len(rows) > ROWS_MAX:
            return False
        neighbour.handed = True
        neighbour.comparison = None
        if neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
        self._await_word(neighbour, "it holds more, and goes through the differences", now)
        self._say(neighbour, Run(contents.until_ms, tuple(rows)))
        return True

    def _heard_run(self, neighbour: Neighbour, run: Run, now: float, now_ms: int) -> None:
        if neighbour.peer < self._me or run.until_ms > now_ms + AHEAD_MS_MAX:
            raise Malformed("a comparison is handed over by who was asked to run it")
        if neighbour.comparison is None and neighbour.state == "comparing":
            close_ms = max(run.until_ms - MARGIN_MS, 0)
            neighbour.comparison = Comparison(run.until_ms, close_ms)
            self._work(neighbour, self._differing(neighbour, run.rows, run.until_ms), now)

    def _answer(self, neighbour: Neighbour, compare: Compare, now: float) -> None:
        namespace = self._readable(neighbour, compare.zone, compare.name)
        if namespace is None:
            return
        summary = self._held.summary(namespace.id)
        if compare.salt and len(summary):
            if not self._may_audit(neighbour, namespace, compare.salt, now):
                return
            summary = self._held.salted(namespace.id, compare.salt)
        self._say(neighbour, Compared(compare.session, answer(summary, compare.ranges)))

    def _may_audit(
        self, neighbour: Neighbour, namespace: Namespace, salt: bytes, now: float
    ) -> bool:
        """Tell whether a namespace is summed up under this salt: it takes about 1 us an entry."""
        last = neighbour.audited.pop(namespace.id, (b"", -math.inf))
        is_current = not neighbour.audited or neighbour.auditing == namespace.id
        if (last[0] == salt and is_current) or now >= last[1] + self._settings.audit_s:
            last = (salt, now)
            neighbour.auditing = namespace.id
        neighbour.audited[namespace.id] = last
        return last[0] == salt and neighbour.auditing == namespace.id

    def _heard_answer(self, neighbour: Neighbour, compared: Compared, now: float) -> None:
        comparison = neighbour.comparison
        running = comparison.running if comparison is not None else None
        if comparison is None or running is None or running.number != compared.session:
            return
        try:
            step = running.session.receive(compared.ranges)
        except Malformed:
            self._give_up(neighbour, "its answers lead nowhere", now)
            raise
        if not self._both_may(neighbour.peer, running.namespace.zone):
            neighbour.forget(running.namespace)
        elif step is not None:
            self._step(neighbour, comparison, running, step, now)
            return
        comparison.running = None
        neighbour.answer_by = math.inf
        self._found(neighbour, comparison, running, now)
        self._go_on(neighbour, now)

    def _heard_offer(self, neighbour: Neighbour, offer: Offer, now: float) -> None:
        namespace = self._readable(neighbour, offer.zone, offer.name)
        if namespace is None:
            return
        ids = _cut_ids(offer.ids)
        held = self._held.find(namespace.id, ids)
        neighbour.drop(namespace, held)
        known = {short_id_of(key) for key in held}
        known.update(neighbour.asked.get(namespace, ()))
        fresh = [
            one for one in ids if one not in known and not neighbour.refused(namespace, one, now)
        ]
        room = max(HAS_MAX - neighbour.lacking, 0)
        if len(fresh) > room:
            self._compare_soon(neighbour, now)
        self._note_has(neighbour, namespace, fresh[:room])
        self._go_on(neighbour, now)

    def _heard_want(self, neighbour: Neighbour, want: Want, now: float) -> None:
        namespace = self._readable(neighbour, want.zone, want.name)
        if namespace is None:
            return
        ids = _cut_ids(want.ids)
        keys = self._held.find(namespace.id, ids)
        lacking = dict.fromkeys(ids)
        on_its_way = _under_way(neighbour, namespace)
        box = neighbour.outbox.setdefault(namespace, {})
        room = self._settings.outbox_max - neighbour.waiting
        for key in keys:
            if key in on_its_way and not want.payloads:
                del lacking[short_id_of(key)]
            elif key in box or room > 0:
                room -= key not in box
                if not want.payloads or box.get(key) is None:
                    box[key] = "payload" if want.payloads else "wanted"
                lacking.pop(short_id_of(key), None)
        if not box:
            del neighbour.outbox[namespace]
        if lacking:
            neighbour.gone.setdefault(namespace, {}).update(lacking)
        self._go_on(neighbour, now)

    def _heard_gone(self, neighbour: Neighbour, gone: Gone, now: float) -> None:
        namespace = namespace_of(self._mesh, gone.zone, gone.name)
        ids = _cut_ids(gone.ids)
        self._unask(neighbour, namespace, ids, now)
        neighbour.settle_missing(namespace, ids)
        self._ask_for_payloads(neighbour, ids)
        self._kick(now)
        self._go_on(neighbour, now)

    def _heard_entries(self, neighbour: Neighbour, entries: Entries) -> None:
        namespace = self._readable(neighbour, entries.zone, entries.name)
        if namespace is None:
            return
        ids = frozenset(_ids_of(entries.items))
        under_way = sum(
            1 for one in self._ingesting.values() if one.neighbour.peer == neighbour.peer
        )
        if under_way >= 2 * self._settings.window:
            # Beyond any window; one that gave up and began anew has at most twice its own.
            self.refused += len(entries.items)
            return
        neighbour.exchange.received += len(entries.items)
        self._numbers += 1
        self._ingesting[self._numbers] = _Ingesting(neighbour, entries.number, namespace, ids)
        self._coming.update((namespace.id, one) for one in ids)
        self._effects.append(Ingest(neighbour.peer, self._numbers, namespace, entries.items))

    def _heard_took(self, neighbour: Neighbour, took: Took, now: float) -> None:
        refused = _cut_ids(took.refused)
        batch = neighbour.under_way.pop(took.number, None)
        if batch is None:
            return
        sent = {short_id_of(key) for key in batch.keys}
        neighbour.refuse(
            batch.namespace,
            [one for one in refused if one in sent],
            now + self._settings.unwelcome_s,
        )
        neighbour.settle_sending(batch.namespace, batch.keys)
        neighbour.took_by = now + self._settings.answer_s if neighbour.under_way else math.inf
        self._go_on(neighbour, now)

    def _heard_refusal(self, neighbour: Neighbour, refused: Refused, now: float) -> None:
        namespace = namespace_of(self._mesh, refused.zone, refused.name)
        comparison = neighbour.comparison
        was_running = comparison is not None and comparison.running is not None
        if comparison is not None and (
            namespace in comparison.todo
            or (comparison.running is not None and comparison.running.namespace == namespace)
        ):
            comparison.refused.add(namespace)
        self._unask(neighbour, namespace, list(neighbour.asked.get(namespace, ())), now)
        neighbour.forget(namespace)
        if comparison is not None and was_running and comparison.running is None:
            neighbour.answer_by = math.inf
        if not neighbour.under_way:
            neighbour.took_by = math.inf
        self._kick(now)
        self._go_on(neighbour, now)

    # Comparing

    def _begin(self, neighbour: Neighbour, now: float, now_ms: int) -> None:
        """Say the digest of all that both may read, and hear whether the other's is the same."""
        if neighbour.peer < self._me:
            self._compare_anew(neighbour, "its digest is awaited", now)
            neighbour.answer_by = now + self._settings.answer_s
        else:
            neighbour.exchange = Exchange(now)
            self._await_word(neighbour, "its digest is awaited", now)
        self._tell_digest(neighbour, now_ms + MARGIN_MS, answer=True)

    def _compare_anew(self, neighbour: Neighbour, why: str, now: float) -> Comparison:
        neighbour.comparison = Comparison()
        if neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
        self._set(neighbour, "comparing", why)
        return neighbour.comparison

    def _await_word(self, neighbour: Neighbour, why: str, now: float) -> None:
        self._set(neighbour, "comparing", why)
        neighbour.answer_by = now + self._settings.answer_s

    def _work(self, neighbour: Neighbour, differing: Iterable[Namespace], now: float) -> None:
        """Begin a round: work through what differs."""
        comparison = neighbour.comparison
        assert comparison is not None
        comparison.working = True
        comparison.whole = True
        comparison.moved = False
        comparison.difference = (0, 0)
        todo = (one for one in differing if one not in comparison.refused)
        comparison.todo = sorted(todo, key=_books_first, reverse=True)
        neighbour.answer_by = math.inf
        names = dict.fromkeys([*neighbour.exchange.namespaces])
        names.update(dict.fromkeys(one.name for one in reversed(comparison.todo)))
        neighbour.exchange.namespaces = list(names)
        self._set(neighbour, "comparing", f"{len(comparison.todo)} namespaces differ")
        self._go_on(neighbour, now)

    def _advance(self, neighbour: Neighbour, now: float) -> None:
        """Do what is next in the comparison that this side runs, once there is room for it."""
        comparison = neighbour.comparison
        if comparison is None or not comparison.working or comparison.running is not None:
            return
        while comparison.todo and comparison.running is None:
            first = comparison.todo[-1]
            books_first = neighbour.books_under_way and not first.is_book
            if books_first or comparison.moving > MOVING_MAX:
                return
            comparison.todo.pop()
            if self._both_may(neighbour.peer, first.zone):
                self._begin_session(neighbour, comparison, first, now)
        if comparison.running is None and not comparison.moving:
            self._end_round(neighbour, comparison, now)

    def _begin_session(
        self, neighbour: Neighbour, comparison: Comparison, namespace: Namespace, now: float
    ) -> None:
        salt = comparison.salt
        summary = (
            self._held.salted(namespace.id, salt) if salt else self._held.summary(namespace.id)
        )
        self._numbers += 1
        session = Session(summary, until=_until(comparison.until_ms))
        running = Running(self._numbers, namespace, session, _under_way(neighbour, namespace))
        comparison.running = running
        self._step(neighbour, comparison, running, session.begin(), now)

    def _step(
        self,
        neighbour: Neighbour,
        comparison: Comparison,
        running: Running,
        ranges: Ranges,
        now: float,
    ) -> None:
        namespace = running.namespace
        neighbour.exchange.rounds += 1
        neighbour.answer_by = now + self._settings.answer_s
        self._say(
            neighbour,
            Compare(running.number, namespace.zone, namespace.name, ranges, comparison.salt),
        )

    def _found(
        self, neighbour: Neighbour, comparison: Comparison, running: Running, now: float
    ) -> None:
        """Take up what a session found: ask for what is lacking here, send what is lacking there."""
        namespace, session = running.namespace, running.session
        haves = [key for key in session.haves if key not in running.sent]
        comparison.differs(session.needs)
        comparison.differs(map(short_id_of, haves))
        needs = [one for one in session.needs if not neighbour.refused(namespace, one, now)]
        haves = [key for key in haves if not neighbour.refused(namespace, short_id_of(key), now)]
        room = max(self._settings.outbox_max - neighbour.waiting, 0)
        comparison.whole &= session.complete and len(haves) <= room
        haves = haves[:room]
        comparison.moved |= bool(needs or haves)
        if needs:
            comparison.missing.setdefault(namespace, set()).update(needs)
            self._note_has(neighbour, namespace, needs)
        if haves:
            comparison.sending.setdefault(namespace, set()).update(haves)
            box = neighbour.outbox.setdefault(namespace, {})
            for key in haves:
                box.setdefault(key, "news")

    def _end_round(self, neighbour: Neighbour, comparison: Comparison, now: float) -> None:
        """All that differed has been moved: say the digest, and hear whether the other finds so too."""
        many = comparison.difference[0]
        again = comparison.difference == comparison.last_difference
        if comparison.whole:
            comparison.rounds += 1
        else:
            comparison.partial_rounds += 1
        nothing_moves = comparison.whole and (again or (many and not comparison.moved))
        if (
            nothing_moves
            or comparison.rounds >= ROUNDS_MAX
            or comparison.partial_rounds >= PARTIAL_ROUNDS_MAX
        ):
            self._rest(neighbour, many, now)
        else:
            comparison.working = False
            comparison.last_difference = comparison.difference
            self._tell_digest(neighbour, comparison.close_ms, answer=True)
            neighbour.answer_by = now + self._settings.answer_s

    def _rest(self, neighbour: Neighbour, many: int, now: float) -> None:
        """Leave it at that for now: going on would move nothing."""
        self._say(neighbour, Rest(many))
        self._fail(neighbour, _why_apart(many), now)

    def _heard_rest(self, neighbour: Neighbour, entries: int, now: float) -> None:
        if neighbour.comparison is None and neighbour.state == "comparing":
            self._fail(neighbour, _why_apart(entries), now)

    def _compare_some(self, now: float, now_ms: int) -> None:
        self._compare_at = now + self._settings.compare_s if self._neighbours else math.inf
        idle = [
            one
            for one in self._neighbours.values()
            if not one.is_comparing and one.again_at == math.inf
        ]
        for one in self._random.sample(idle, min(len(idle), self._settings.compare_with)):
            self._tell_digest(one, now_ms - SETTLE_MS, answer=False)

    def _tell_digest(self, neighbour: Neighbour, until_ms: int, *, answer: bool) -> None:
        neighbour.expects_contents = neighbour.peer < self._me
        self._say(neighbour, Digest(until_ms, self._digest(neighbour.peer, until_ms), answer))

    # Sending

    def _tell_news(
        self,
        neighbour: Neighbour,
        namespace: Namespace,
        keys: Iterable[Key],
        now: float,
        *,
        whole: bool,
    ) -> None:
        """Note what is new here, to be sent to a neighbour or, if it is not its first source, offered."""
        its_own = (neighbour.has.get(namespace, {}), neighbour.asked.get(namespace, {}))
        news = [key for key in keys if not any(short_id_of(key) in box for box in its_own)]
        if not news:
            return
        if whole:
            box = neighbour.outbox.setdefault(namespace, {})
            for key in news:
                box.setdefault(key, "news")
        else:
            neighbour.offers.setdefault(namespace, {}).update(dict.fromkeys(news))
        neighbour.flush_at = min(neighbour.flush_at, now + self._settings.gather_s)
        if neighbour.waiting + sum(map(len, neighbour.offers.values())) > self._settings.outbox_max:
            self._give_up(neighbour, "too much waits for it", now)

    def _go_on(self, neighbour: Neighbour, now: float) -> None:
        """Do what is next with a neighbour: send, ask, compare."""
        if neighbour.state == "muted":
            neighbour.flush_at = neighbour.ask_at = math.inf
            return
        self._flush(neighbour, now)
        self._ask(neighbour, now)
        self._advance(neighbour, now)
        lags = bool(neighbour.waiting or neighbour.lacking or neighbour.under_way)
        if neighbour.lags and not lags:
            self._effects.append(StepChanged(neighbour.peer))
        neighbour.lags = lags

    def _flush(self, neighbour: Neighbour, now: float) -> None:
        for namespace, short_ids in _emptied(neighbour.gone):
            for some in self._told(neighbour, namespace, short_ids):
                self._say(neighbour, Gone(namespace.zone, namespace.name, some))
        if neighbour.flush_at <= now:
            neighbour.flush_at = math.inf
            # Not before: what the other offers meanwhile need not be offered to it.
            for namespace, keys in _emptied(neighbour.offers):
                for some in self._told(neighbour, namespace, list(map(short_id_of, keys))):
                    self._say(neighbour, Offer(namespace.zone, namespace.name, some))
        while neighbour.outbox and len(neighbour.under_way) < self._settings.window:
            namespace = min(neighbour.outbox, key=_books_first)
            if neighbour.books_unacknowledged and not namespace.is_book:
                return
            self._send_batch(neighbour, namespace, now)

    def _told(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Sequence[bytes]
    ) -> Iterator[bytes]:
        """Give the ids as messages carry them, if both may read the namespace."""
        if self._both_may(neighbour.peer, namespace.zone):
            for at in range(0, len(short_ids), IDS_MAX):
                yield b"".join(short_ids[at : at + IDS_MAX])

    def _send_batch(self, neighbour: Neighbour, namespace: Namespace, now: float) -> None:
        if not self._both_may(neighbour.peer, namespace.zone):
            neighbour.forget(namespace)
            return
        box = neighbour.outbox[namespace]
        some = dict(islice(box.items(), BATCH_ENTRIES))
        items = self._held.items(namespace.id, list(some), BATCH_BYTES)
        there: dict[Key, Item] = {}
        for (key, due), item in zip(some.items(), items, strict=False):
            if item.header and (item.payload is not None or due != "payload"):
                there[key] = item
            else:
                neighbour.lose(namespace, [key])
        if neighbour.gone:
            neighbour.flush_at = now
        if not there:
            return
        neighbour.take_out(namespace, there)
        self._numbers += 1
        neighbour.under_way[self._numbers] = Batch(namespace, tuple(there))
        if neighbour.took_by == math.inf:
            neighbour.took_by = now + self._settings.answer_s
        neighbour.exchange.sent += len(there)
        message = Entries(self._numbers, namespace.zone, namespace.name, tuple(there.values()))
        self._say(neighbour, message, payload=not namespace.is_book)

    def _say(self, neighbour: Neighbour, message: Message, *, payload: bool = False) -> None:
        body = encode_message(message)
        neighbour.exchange.bytes_out += len(body)
        self._effects.append(Say(neighbour.peer, body, payload))

    # Asking

    def _note_has(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Sequence[bytes]
    ) -> None:
        if short_ids:
            neighbour.has.setdefault(namespace, {}).update(dict.fromkeys(short_ids))

    def _ask(self, neighbour: Neighbour, now: float) -> None:
        """Ask for what it has and is lacking here, the books first, a window at a time."""
        neighbour.ask_at = math.inf
        for namespace in sorted(neighbour.has, key=_books_first):
            of_books = any(one.is_book for box in (neighbour.has, neighbour.asked) for one in box)
            if of_books and not namespace.is_book:
                return
            if not self._both_may(neighbour.peer, namespace.zone):
                neighbour.forget(namespace)
                continue
            while namespace in neighbour.has and self._ask_some(neighbour, namespace, now):
                pass

    def _ask_some(self, neighbour: Neighbour, namespace: Namespace, now: float) -> bool:
        """Look at the first of what it has; tell whether that made room for more."""
        room = ASKED_MAX - sum(map(len, neighbour.asked.values()))
        has = neighbour.has[namespace]
        if room <= 0:
            return False
        settled: list[bytes] = []
        free: list[bytes] = []
        for one in islice(has, IDS_MAX):
            if len(free) == room:
                break
            if neighbour.refused(namespace, one, now):
                settled.append(one)
            elif (again_at := self._coming_until(neighbour, namespace, one, now)) is not None:
                neighbour.ask_at = min(neighbour.ask_at, again_at)
            else:
                free.append(one)
        held = {short_id_of(key) for key in self._held.find(namespace.id, free)}
        settled += held
        wanted = [one for one in free if one not in held]
        for one in (*settled, *wanted):
            del has[one]
        if not has:
            del neighbour.has[namespace]
        neighbour.settle_missing(namespace, settled)
        if wanted:
            neighbour.asked.setdefault(namespace, {}).update(dict.fromkeys(wanted))
            self._asked.update(((namespace.id, one), (neighbour.peer, now)) for one in wanted)
            self._say(neighbour, Want(namespace.zone, namespace.name, b"".join(wanted)))
            if neighbour.entries_by == math.inf:
                neighbour.entries_by = now + self._settings.answer_s
        return bool(settled or wanted)

    def _coming_until(
        self, neighbour: Neighbour, namespace: Namespace, short_id: bytes, now: float
    ) -> float | None:
        """Tell until when an entry is not asked for, because it is being taken in or another was
        asked for it.
        """
        place = (namespace.id, short_id)
        if self._coming[place]:
            return now + self._settings.answer_s
        peer, at = self._asked.get(place, (neighbour.peer, now))
        until = at + self._settings.answer_s
        return until if peer != neighbour.peer and now < until else None

    def _unask(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Iterable[bytes], now: float
    ) -> None:
        """Await none of these from it any more."""
        asked = neighbour.asked.get(namespace)
        if asked is None:
            return
        before = len(asked)
        for one in short_ids:
            if one in asked:
                del asked[one]
                if self._asked.get((namespace.id, one), ("", 0.0))[0] == neighbour.peer:
                    del self._asked[namespace.id, one]
        if len(asked) < before:
            neighbour.entries_by = now + self._settings.answer_s
        if not asked:
            del neighbour.asked[namespace]
        if not neighbour.asked:
            neighbour.entries_by = math.inf

    def _ask_for_payloads(self, neighbour: Neighbour, came: Iterable[bytes]) -> None:
        """Ask for more of the payloads that somebody withheld, once those asked for have come."""
        if not neighbour.unpaid:
            return
        neighbour.unpaid.difference_update(came)
        if not neighbour.unpaid:
            self._ask_unpaid(neighbour)

    def _ask_unpaid(self, neighbour: Neighbour) -> None:
        for namespace in self._shared_with(neighbour.peer):
            tried = neighbour.unpaid_tried
            unpaid = self._held.unpaid(namespace.id, IDS_MAX)
            ids = [one for one in unpaid if one not in tried][:BATCH_ENTRIES]
            if ids and len(tried) <= IDS_MAX:
                tried.update(ids)
                neighbour.unpaid.update(ids)
                wanted = b"".join(ids)
                self._say(neighbour, Want(namespace.zone, namespace.name, wanted, payloads=True))
                return

    # What is held

    def _rows(self, peer: PeerId, until_ms: int) -> list[Row]:
        rows: list[Row] = []
        for namespace in self._shared_with(peer):
            count, digest = self._fingerprint(namespace.id, until_ms)
            if count:
                rows.append(Row(namespace.zone, namespace.name, count, digest))
        return rows

    def _digest(self, peer: PeerId, until_ms: int) -> bytes:
        digest = hashlib.sha256()
        for row in self._rows(peer, until_ms):
            digest.update(encode(row))
        return digest.digest()[:HASH_BYTES]

    def _fingerprint(self, namespace: NamespaceId, until_ms: int) -> tuple[int, bytes]:
        return self._held.summary(namespace).fingerprint(b"", _until(until_ms))

    def _shared_with(self, peer: PeerId) -> list[Namespace]:
        return sorted(one for one in self._held.namespaces() if self._both_may(peer, one.zone))

    def _both_may(self, peer: PeerId, zone: str) -> bool:
        return zone != DEVICE and self._may_read(peer, zone) and self._may_read(self._me, zone)

    def _readable(self, neighbour: Neighbour, zone: str, name: str) -> Namespace | None:
        """Return a namespace that a peer named, if both may read it. Otherwise tell it.

        That is no fault: one of the two may have heard of its certificate before the other.
        """
        namespace = namespace_of(self._mesh, zone, name)
        if self._both_may(neighbour.peer, zone):
            return namespace
        self.refused += 1
        self._say(neighbour, Refused(zone, name))
        return None

    # Taking in

    def _no_longer_ingesting(self, number: int) -> _Ingesting | None:
        done = self._ingesting.pop(number, None)
        if done is not None:
            for one in done.ids:
                place = (done.namespace.id, one)
                self._coming[place] -= 1
                if not self._coming[place]:
                    del self._coming[place]
        return done

    def _settle_batch(self, done: _Ingesting, batch: Ingested, now: float) -> None:
        neighbour, namespace = done.neighbour, done.namespace
        neighbour.drop(namespace, batch.taken)
        neighbour.refuse(namespace, batch.refused, now + self._settings.unwelcome_s)
        self._unask(neighbour, namespace, done.ids, now)
        neighbour.settle_missing(namespace, done.ids)
        if neighbour.muted_until > now:
            return
        self._say(neighbour, Took(done.number, b"".join(batch.refused)))
        self._ask_for_payloads(neighbour, done.ids)
        if batch.bad is not None:
            self._strike(neighbour, batch.bad, now)

    # How it goes

    def _in_step(self, neighbour: Neighbour, now: float) -> None:
        neighbour.comparison = None
        neighbour.handed = False
        neighbour.answer_by = neighbour.again_at = math.inf
        neighbour.failures = 0
        neighbour.rests_until = -math.inf
        neighbour.in_step_at = now
        if neighbour.exchange.ended_at is None:
            neighbour.exchange.ended_at = now
        self._set(neighbour, "in step", "")
        if now >= neighbour.unpaid_at:
            # What it has not now it may have later, but hardly the more often it is asked.
            pause_s = max(neighbour.unpaid_pause_s, self._settings.compare_s / 2)
            neighbour.unpaid_at = now + pause_s
            neighbour.unpaid_pause_s = min(2 * pause_s, self._settings.unwelcome_s)
            neighbour.unpaid.clear()
            neighbour.unpaid_tried.clear()
            self._ask_unpaid(neighbour)

    def _look_at_the_time(self, neighbour: Neighbour, now: float) -> None:
        if neighbour.entries_by <= now:
            self._give_up(neighbour, "it did not send what was asked for in time", now)
        elif neighbour.took_by <= now:
            self._give_up(neighbour, "it did not acknowledge in time", now)
        elif neighbour.answer_by <= now and neighbour.comparison is None:
            self._fail(neighbour, "it did not go on in time", now)
        elif neighbour.answer_by <= now:
            self._give_up(neighbour, "it did not answer in time", now)

    def _give_up(self, neighbour: Neighbour, why: str, now: float) -> None:
        """Drop what is under way with a peer; the next comparison finds it again."""
        lost = bool(neighbour.lacking)
        self._unask_all(neighbour)
        neighbour.forget_all()
        self._fail(neighbour, why, now)
        if lost:
            self._look_elsewhere(now)

    def _fail(self, neighbour: Neighbour, why: str, now: float) -> None:
        """End a comparison without being in step, and try again later."""
        settings = self._settings
        neighbour.comparison = None
        neighbour.handed = False
        neighbour.answer_by = math.inf
        neighbour.exchange.ended_at = now
        pause_s = min(settings.retry_s * 2**neighbour.failures, settings.compare_s)
        neighbour.failures = min(neighbour.failures + 1, _FAILURES_MAX)
        neighbour.again_at = now + pause_s * self._random.uniform(0.75, 1.0)
        neighbour.rests_until = now + min(pause_s, settings.answer_s / 2)
        self._set(neighbour, "apart", why)

    def _compare_soon(self, neighbour: Neighbour, now: float) -> None:
        again_at = now + self._settings.compare_s * self._random.uniform(0.5, 1.0)
        neighbour.again_at = min(neighbour.again_at, again_at)

    def _unlink(self, peer: PeerId, now: float) -> None:
        neighbour = self._neighbours.pop(peer)
        lost = bool(neighbour.lacking)
        self._unask_all(neighbour)
        if lost:
            self._look_elsewhere(now)

    def _unask_all(self, neighbour: Neighbour) -> None:
        for namespace, short_ids in neighbour.asked.items():
            for one in short_ids:
                if self._asked.get((namespace.id, one), ("", 0.0))[0] == neighbour.peer:
                    del self._asked[namespace.id, one]

    def _look_elsewhere(self, now: float) -> None:
        """Something that exists did not come from who has it: others may have it too."""
        self._compare_at = min(self._compare_at, now + self._settings.retry_s)
        self._kick(now)

    def _kick(self, now: float) -> None:
        """Let those be asked that have what another did not send."""
        for one in self._neighbours.values():
            if one.has:
                one.ask_at = min(one.ask_at, now)

    def _strike(self, neighbour: Neighbour, why: str, now: float) -> None:
        self.refused += 1
        strikes, last = self._struck.pop(neighbour.peer, (0, now))
        strikes = strikes + 1 if now < last + self._settings.mute_s else 1
        if strikes < self._settings.strikes_max:
            self._struck[neighbour.peer] = (strikes, now)
            while len(self._struck) > STRUCK_MAX:
                del self._struck[next(iter(self._struck))]
            return
        muted_until = now + self._settings.mute_s
        why = f"it sent what is not allowed, last: {why}"
        self._muted[neighbour.peer] = (muted_until, why)
        while len(self._muted) > STRUCK_MAX:
            del self._muted[next(iter(self._muted))]
        self._keep_muted(neighbour, muted_until, why)
        self._look_elsewhere(now)

    def _keep_muted(self, neighbour: Neighbour, until: float, why: str) -> None:
        self._unask_all(neighbour)
        neighbour.forget_all()
        neighbour.muted_until = neighbour.again_at = until
        self._set(neighbour, "muted", why)

    def _set(self, neighbour: Neighbour, state: State, why: str) -> None:
        if neighbour.state != state:
            self._effects.append(StepChanged(neighbour.peer))
        neighbour.state = state
        neighbour.why = why

    def _take_effects(self) -> list[Effect]:
        effects, self._effects = self._effects, []
        return effects


# 5 s doubled so often is past the longest pause.
_FAILURES_MAX = 10


def _why_apart(many: int) -> str:
    if many:
        return f"{many} entries are not taken by one side"
    return "its digest differs, and nothing that both may read"


def _books_first(namespace: Namespace) -> tuple[bool, Namespace]:
    return not namespace.is_book, namespace


def _under_way(neighbour: Neighbour, namespace: Namespace) -> set[Key]:
    """Return what was sent and is not acknowledged yet."""
    batches = neighbour.under_way.values()
    return {key for batch in batches if batch.namespace == namespace for key in batch.keys}


def _emptied(boxes: dict[Namespace, dict[T, None]]) -> list[tuple[Namespace, list[T]]]:
    """Return what waits in boxes, and empty them."""
    content = [(namespace, list(box)) for namespace, box in boxes.items()]
    boxes.clear()
    return content


def _ids_of(items: Iterable[Item]) -> Iterator[bytes]:
    """Give the short ids of entries that are not checked yet; what is no entry is passed over."""
    for item in items:
        try:
            signed = read_back(item.header, SignedHeader)
        except Malformed:
            continue
        yield hashlib.sha256(signed.body).digest()[:SHORT_ID_BYTES]


def _until(until_ms: int) -> bytes:
    return (until_ms << 16).to_bytes(CLOCK_BYTES, "big")


def _cut_ids(ids: bytes) -> list[bytes]:
    if len(ids) % SHORT_ID_BYTES:
        raise Malformed("a list of ids is cut off")
    return [ids[at : at + SHORT_ID_BYTES] for at in range(0, len(ids), SHORT_ID_BYTES)]
