"""How far is a linked peer in step, and what is under way to it? What spreading keeps for each link."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from covey.identity.keys import PeerId

from .entry import CLOCK_BYTES, SHORT_ID_BYTES, Key, NamespaceId
from .namespace import TURNS, Namespace
from .reconciliation import Session

# Entries that one of two peers did not take from the other. Beyond, the oldest are tried again early.
REFUSALS_MAX = 4096


@dataclass(slots=True)
class Exchange:
    """What one comparison with a peer found and moved, until both were in step."""

    began_at: float
    ended_at: float | None = None
    rounds: int = 0
    bytes_out: int = 0
    bytes_in: int = 0
    sent: int = 0
    received: int = 0
    namespaces: list[str] = field(default_factory=lambda: list[str]())
    """Those that differed."""


State = Literal["unknown", "comparing", "in step", "apart", "muted"]
Due = Literal["news", "wanted", "payload"]
"""Why an entry waits to be sent: it may be new there; it was asked for; its payload was."""


@dataclass(eq=False, slots=True)
class Running:
    """A reconciliation that this side runs."""

    number: int
    namespace: Namespace
    session: Session
    sent: set[Key] = field(default_factory=lambda: set[Key]())
    """What has been sent meanwhile, and is no difference any more."""


@dataclass(eq=False, slots=True)
class Comparison:
    """A comparison that this side runs: rounds of sessions, until a digest is the same."""

    until_ms: int = 0
    """What was written up to then is compared, by both clocks."""
    close_ms: int = 0
    """And up to then the digests at the end."""
    salt: bytes = b""
    """In an audit, what keys its fingerprints."""
    working: bool = False
    """Its differences are known and worked through. Otherwise the other's word is awaited."""
    rounds: int = 0
    partial_rounds: int = 0
    todo: list[Namespace] = field(default_factory=lambda: list[Namespace]())
    """Namespaces that differ, the next one last."""
    running: Running | None = None
    moved: bool = False
    """Something of what this round found was sent, or asked for."""
    whole: bool = True
    """No: this round found more than is moved at once, and the next goes on."""
    books_alone: bool = False
    """This round is of the books alone: that nothing of them moves says nothing of the rest."""
    refused: set[Namespace] = field(default_factory=lambda: set[Namespace]())
    """What the other says not both may read."""
    difference: tuple[int, int] = (0, 0)
    """Count and sum of the ids that differed in this round."""
    last_difference: tuple[int, int] | None = None
    sending: dict[Namespace, set[Key]] = field(default_factory=lambda: dict[Namespace, set[Key]]())
    """Of what this round found, what the other lacks and has not taken yet."""
    missing: dict[Namespace, set[bytes]] = field(
        default_factory=lambda: dict[Namespace, set[bytes]]()
    )
    """And what is lacking here: short ids."""

    def differs(self, ids: Iterable[bytes]) -> None:
        """Count what differs, so that two rounds can be told apart without keeping all of it."""
        count, total = self.difference
        for one in ids:
            count += 1
            total += int.from_bytes(one, "big")
        self.difference = (count, total)

    @property
    def moving(self) -> int:
        """How many entries of this round are still on their way."""
        sending = sum(len(keys) for keys in self.sending.values())
        return sending + sum(len(ids) for ids in self.missing.values())


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries that were sent and are not acknowledged yet."""

    namespace: Namespace
    keys: tuple[Key, ...]


@dataclass(eq=False, slots=True)
class Neighbour:
    """A linked peer, as spreading sees it."""

    peer: PeerId
    state: State = "unknown"
    why: str = "just linked"
    in_step_at: float | None = None
    exchange: Exchange = field(default_factory=lambda: Exchange(0.0))
    comparison: Comparison | None = None
    expects_contents: bool = False
    handed: bool = False
    """It was left to the other, which holds more, to run this comparison; the next round is ours."""

    outbox: dict[Namespace, dict[Key, Due]] = field(
        default_factory=lambda: dict[Namespace, dict[Key, Due]]()
    )
    """What waits to be sent to it."""
    offers: dict[Namespace, dict[Key, None]] = field(
        default_factory=lambda: dict[Namespace, dict[Key, None]]()
    )
    """What waits to be offered to it."""
    gone: dict[Namespace, dict[bytes, None]] = field(
        default_factory=lambda: dict[Namespace, dict[bytes, None]]()
    )
    """What it asked for and is not held."""
    under_way: dict[int, Batch] = field(default_factory=lambda: dict[int, Batch]())
    has: dict[Namespace, dict[bytes, None]] = field(
        default_factory=lambda: dict[Namespace, dict[bytes, None]]()
    )
    """What it has and may be lacking here, not asked for yet: short ids."""
    asked: dict[Namespace, dict[bytes, None]] = field(
        default_factory=lambda: dict[Namespace, dict[bytes, None]]()
    )
    """What it was asked for and has not sent yet."""
    unpaid: set[bytes] = field(default_factory=lambda: set[bytes]())
    """Payloads that it was asked for and has not sent yet."""
    unpaid_tried: set[bytes] = field(default_factory=lambda: set[bytes]())
    """Those that it was asked for since it was found in step."""
    unpaid_at: float = -math.inf
    """When it may be asked for all of them again, and how long after the next time."""
    unpaid_pause_s: float = 0.0
    refusals: dict[tuple[NamespaceId, bytes], float] = field(
        default_factory=lambda: dict[tuple[NamespaceId, bytes], float]()
    )
    """What one of the two did not take from the other, and until when it is not tried again."""
    audited: dict[NamespaceId, tuple[bytes, float]] = field(
        default_factory=lambda: dict[NamespaceId, tuple[bytes, float]]()
    )
    """The last salt that it asked for, of each namespace, and when."""
    auditing: NamespaceId | None = None
    """Of which of them it asked last: one is kept summed up, not all."""
    lags: bool = False
    """Something was on its way between the two when last looked at."""

    books_first_until: float = math.inf
    """Until then at the latest nothing but the books goes to it; infinite: all may go."""
    named_books: bool = False
    """It was told what of the books is held here, and so goes through them before it asks again."""
    flush_at: float = math.inf
    ask_at: float = math.inf
    answer_by: float = math.inf
    """When its word on a comparison must have come; `entries_by`, `took_by`: what it was asked for, an
    acknowledgement."""
    entries_by: float = math.inf
    took_by: float = math.inf
    again_at: float = math.inf
    """When it is compared with again."""
    rests_until: float = -math.inf
    """Until then its digests alone begin no comparison."""
    failures: int = 0
    muted_until: float = -math.inf

    @property
    def lacking(self) -> int:
        """How many of its entries are known to be lacking here and have not come yet."""
        return _count(self.has) + _count(self.asked)

    @property
    def waiting(self) -> int:
        """How many entries wait to be sent to it."""
        return _count(self.outbox)

    @property
    def is_comparing(self) -> bool:
        """Tell whether a comparison is under way, run by either side."""
        return self.comparison is not None or self.state == "comparing"

    @property
    def books_come_first(self) -> bool:
        """Tell whether nothing but the books may go to it yet."""
        return self.books_first_until < math.inf

    def serve_all(self, now: float) -> None:
        """The books are through, or have had their time: let go what waited behind them."""
        if self.books_come_first:
            self.books_first_until = math.inf
            self.flush_at = now

    @property
    def books_under_way(self) -> bool:
        """Tell whether anything of the books that every member holds is on its way between the two."""
        return self.turn_under_way == 0

    @property
    def turn_under_way(self) -> int:
        """Return the earliest turn of which anything is on its way between the two; else a later one."""
        boxes = (self.outbox, self.has, self.asked)
        turns = (one.turn for box in boxes for one in box)
        return min(self.turn_unacknowledged, min(turns, default=TURNS))

    @property
    def turn_unacknowledged(self) -> int:
        """Return the earliest turn of which something was sent to it and is not durable there yet."""
        turns = (batch.namespace.turn for batch in self.under_way.values())
        return min(turns, default=TURNS)

    def unacknowledged(self, namespace: Namespace) -> set[Key]:
        """Return what was sent of a namespace and is not durable there yet."""
        batches = self.under_way.values()
        return {key for batch in batches if batch.namespace == namespace for key in batch.keys}

    def note_has(self, namespace: Namespace, short_ids: Sequence[bytes]) -> None:
        """Ask it for these, once there is room for it."""
        if short_ids:
            self.has.setdefault(namespace, {}).update(dict.fromkeys(short_ids))

    def note_news(self, namespace: Namespace, keys: Iterable[Key]) -> None:
        """Send it these, unless they wait already."""
        box = self.outbox.setdefault(namespace, {})
        for key in keys:
            box.setdefault(key, "news")

    def drop(self, namespace: Namespace, keys: Sequence[Key]) -> None:
        """Send it none of these: it has them."""
        _take_out((self.outbox, self.offers), namespace, keys)
        self.settle_sending(namespace, keys)

    def take_out(self, namespace: Namespace, keys: Collection[Key]) -> None:
        """These are sent now; a session that runs meanwhile knows of them."""
        running = self.comparison.running if self.comparison is not None else None
        if running is not None and running.namespace == namespace:
            running.sent.update(keys)
        _take_out((self.outbox, self.offers), namespace, keys)

    def lose(self, namespace: Namespace, keys: Sequence[Key]) -> bool:
        """Send it none of these, they are held no more; tell whether it must be told."""
        box = self.outbox.get(namespace, {})
        gone = [short_id_of(key) for key in keys if box.get(key, "news") != "news"]
        if gone:
            self.gone.setdefault(namespace, {}).update(dict.fromkeys(gone))
        had = bool(gone) or (self.comparison is not None and bool(self.comparison.sending))
        self.drop(namespace, keys)
        return had

    def settle_sending(self, namespace: Namespace, keys: Iterable[Key]) -> None:
        """Note that these need not be sent any more, for the round of the comparison."""
        if self.comparison is not None and (left := self.comparison.sending.get(namespace)):
            left.difference_update(keys)
            if not left:
                del self.comparison.sending[namespace]

    def settle_missing(self, namespace: Namespace, short_ids: Iterable[bytes]) -> None:
        """Note that these have come, or never will."""
        if self.comparison is not None and (left := self.comparison.missing.get(namespace)):
            left.difference_update(short_ids)
            if not left:
                del self.comparison.missing[namespace]

    def forget(self, namespace: Namespace) -> None:
        """Drop all that is under way of one namespace."""
        for boxes in (self.outbox, self.offers, self.gone, self.has, self.asked):
            boxes.pop(namespace, None)
        for number in [
            one for one, batch in self.under_way.items() if batch.namespace == namespace
        ]:
            del self.under_way[number]
        comparison = self.comparison
        if comparison is not None:
            comparison.sending.pop(namespace, None)
            comparison.missing.pop(namespace, None)
            if namespace in comparison.todo:
                comparison.todo.remove(namespace)
            if comparison.running is not None and comparison.running.namespace == namespace:
                comparison.running = None

    def forget_all(self) -> None:
        """Drop all that is under way; the next comparison finds it."""
        self.comparison = None
        for boxes in (self.outbox, self.offers, self.gone, self.has, self.asked):
            boxes.clear()
        self.under_way.clear()
        self.unpaid.clear()
        self.expects_contents = False
        self.flush_at = self.ask_at = math.inf
        self.answer_by = self.entries_by = self.took_by = math.inf

    def refuse(self, namespace: Namespace, short_ids: Iterable[bytes], until: float) -> None:
        """Note what one of the two did not take from the other."""
        for one in short_ids:
            self.refusals.pop((namespace.id, one), None)
            self.refusals[namespace.id, one] = until
        while len(self.refusals) > REFUSALS_MAX:
            del self.refusals[next(iter(self.refusals))]

    def refused(self, namespace: Namespace, short_id: bytes, now: float) -> bool:
        """Tell whether one of the two did not take this from the other lately."""
        until = self.refusals.get((namespace.id, short_id))
        if until is None:
            return False
        if until <= now:
            del self.refusals[namespace.id, short_id]
            return False
        return True


def short_id_of(key: Key) -> bytes:
    """Return the first 16 bytes of an entry's id."""
    return key[CLOCK_BYTES : CLOCK_BYTES + SHORT_ID_BYTES]


def _take_out(
    boxes: Iterable[dict[Namespace, dict[Key, Any]]], namespace: Namespace, keys: Iterable[Key]
) -> None:
    for of_all in boxes:
        if (box := of_all.get(namespace)) is not None:
            for key in keys:
                box.pop(key, None)
            if not box:
                del of_all[namespace]


def _count(boxes: Mapping[Namespace, Mapping[Any, Any]]) -> int:
    return sum(len(box) for box in boxes.values())
