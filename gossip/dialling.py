"""Whom to dial, where, and when? Remembered addresses, retried for ever with back-off and jitter.

Pure. `Dialling` says whom to dial; within one dial, `Race` says which address when. The last
neighbours come round every 4 s however long a cut lasts, the rest by back-off up to a minute; never
more than three dials a second in all; any new connection or a changed network makes all of them due.
Where a peer was seen on this network segment is anyone's word: it is tried beside what the peer
itself signed, never instead of it, and not kept.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from covey.identity.keys import PeerId

NEIGHBOURS = 8
NEIGHBOUR_S = 4.0
BACK_OFF_FIRST_S = 1.0
BACK_OFF_MAX_S = 60.0
DIALS_PER_S = 3.0
CONNECTIONS_MAX = 32
PEERS_MAX = 10_000
ADDRESSES_MAX = 16
# Until the next address of a peer is tried beside the ones before it (RFC 8305, section 5).
STAGGER_S = 0.25


class AddressRecord(msgspec.Struct, frozen=True, array_like=True):
    """Where a peer was last known to be."""

    peer: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to this peer at one of these addresses."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(slots=True)
class _Remembered:
    addresses: tuple[str, ...]
    due_at: float
    sighted: tuple[str, ...] = ()
    failures: int = 0
    connected: bool = False
    dialling: bool = False
    dialled_at: float = -math.inf
    # Something was learned while a dial was under way, which knew nothing of it.
    has_news: bool = False
    seen_at: float = -math.inf
    order: float = field(default=0.0)


class Dialling:
    """One peer's plan of whom to dial.

    Args:
        me: never dialled.
        random: for jitter.
    """

    def __init__(self, me: PeerId, random: Random) -> None:
        self._me = me
        self._random = random
        self._peers: dict[PeerId, _Remembered] = {}
        self._next_dial_at = -math.inf

    def remember(self, peer: PeerId, addresses: Iterable[str], now: float) -> bool:
        """Note where a member may be; return whether that is new and worth storing."""
        if peer == self._me:
            return False
        listed = tuple(addresses)[:ADDRESSES_MAX]
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= PEERS_MAX or not listed:
                return False
            self._peers[peer] = _Remembered(listed, now)
            return True
        if not listed or listed == known.addresses:
            return False
        known.addresses = listed
        _make_due(known, now)
        return True

    def sighted(self, peer: PeerId, addresses: Iterable[str], now: float) -> bool:
        """Note where a member was seen on this segment, and dial it now; return whether that is new.

        The caller knows that it is a member: it is dialled, which shows it this peer's chain.
        """
        listed = tuple(addresses)[:ADDRESSES_MAX]
        if peer == self._me or not listed:
            return False
        known = self._peers.get(peer)
        if known is None:
            if len(self._peers) >= PEERS_MAX:
                return False
            known = self._peers[peer] = _Remembered((), now)
        is_new = listed != known.sighted
        known.sighted = listed
        _make_due(known, now)
        return is_new

    def withdrawn(self, peer: PeerId) -> None:
        """A member is not where it was seen any more."""
        known = self._peers.get(peer)
        if known is not None:
            known.sighted = ()

    def knows(self, peer: PeerId) -> bool:
        """Tell whether this peer was ever remembered: then it is, or was, a member."""
        return peer in self._peers

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Return where a peer may be, in the order to try; empty if nothing is known."""
        known = self._peers.get(peer)
        return () if known is None else _in_order(known)

    def forget(self, peer: PeerId) -> None:
        """Never dial this peer again."""
        self._peers.pop(peer, None)

    def connected(self, peer: PeerId, now: float) -> None:
        """A link is up. The way may be free to others as well: make all of them due."""
        known = self._peers.setdefault(peer, _Remembered((), now))
        known.connected, known.failures, known.seen_at = True, 0, now
        self.network_changed(now)

    def disconnected(self, peer: PeerId, now: float) -> None:
        """A link ended; it may be back in a moment."""
        known = self._peers.get(peer)
        if known is not None:
            known.connected, known.seen_at = False, now
            known.due_at = now + self._random.uniform(0.05, 0.5)

    def network_changed(self, now: float) -> None:
        """The device has another address, woke up, or met someone: try everyone soon."""
        for known in self._peers.values():
            if not known.connected and not known.dialling:
                known.due_at = min(known.due_at, now + self._random.uniform(0.0, 1.0))

    def failed(self, peer: PeerId, now: float, *, refused: bool = False) -> None:
        """A dial did not work; `refused`: the peer was there and did not want us."""
        known = self._peers.get(peer)
        if known is None:
            return
        known.dialling = False
        known.failures += 1
        back_off_s = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2.0 ** min(known.failures, 10))
        if peer in self._neighbours() and not refused:
            # Counted from when the dial began: into a black hole it takes longer than the pause, and
            # the way may be free at any moment.
            pause_s = min(back_off_s, NEIGHBOUR_S) * self._random.uniform(0.75, 1.0)
            known.due_at = max(now, known.dialled_at + pause_s)
        else:
            known.due_at = now + back_off_s * self._random.uniform(0.75, 1.25)
        if known.has_news:
            known.has_news, known.due_at = False, now

    def succeeded(self, peer: PeerId) -> None:
        """A dial worked; `connected` follows when its link is up."""
        known = self._peers.get(peer)
        if known is not None:
            known.dialling = False
            known.due_at = math.inf if known.connected else known.due_at

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        if sum(one.connected for one in self._peers.values()) >= CONNECTIONS_MAX:
            return math.inf
        due = min(
            (one.due_at for one in self._peers.values() if _can_be_dialled(one)),
            default=math.inf,
        )
        return max(due, self._next_dial_at)

    def tick(self, now: float) -> list[Dial]:
        """Return the dial that is due now; at most one, to be called again at `deadline`."""
        if now < self.deadline:
            return []
        peer, known = min(
            ((peer, one) for peer, one in self._peers.items() if _can_be_dialled(one)),
            key=lambda item: item[1].due_at,
        )
        known.dialling, known.has_news, known.dialled_at = True, False, now
        known.due_at = now + BACK_OFF_FIRST_S
        self._next_dial_at = now + 1.0 / DIALS_PER_S
        return [Dial(peer, _in_order(known))]

    def _neighbours(self) -> set[PeerId]:
        seen = sorted(self._peers, key=lambda peer: self._peers[peer].seen_at, reverse=True)
        return {peer for peer in seen[:NEIGHBOURS] if self._peers[peer].seen_at > -math.inf}


def _can_be_dialled(one: _Remembered) -> bool:
    return not one.connected and not one.dialling and bool(one.addresses or one.sighted)


def _make_due(known: _Remembered, now: float) -> None:
    known.due_at = min(known.due_at, now)
    known.has_news = known.dialling


def _in_order(known: _Remembered) -> tuple[str, ...]:
    """Return all addresses, each once: those seen first, and the signed ones first after a failure.

    In turn, so that a liar on the segment can keep no peer from its true addresses.
    """
    first, then = known.sighted, known.addresses
    if known.failures % 2 == 1:
        first, then = then, first
    return (*first, *(one for one in then if one not in first))


class Race:
    """Which address of one peer is tried when? A staggered start, as in RFC 8305, section 5.

    The next begins a moment after the one before it began, or at once when one has failed. The
    moment is shorter where there are many addresses, so that the last one has half of the time too.
    The first to succeed ends the race, which is the caller's to notice.

    Args:
        addresses: in the order to try.
        now: the start.
        until: the end.
    """

    def __init__(self, addresses: Sequence[str], now: float, until: float) -> None:
        self._waiting = deque(dict.fromkeys(addresses))
        self._for_s = until - now
        self._stagger_s = min(STAGGER_S, self._for_s / 2 / max(1, len(self._waiting)))
        self._next_at = now
        # What became of each that has begun; None while it is under way.
        self._begun: dict[str, str | None] = {}

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        return self._next_at if self._waiting else math.inf

    @property
    def is_lost(self) -> bool:
        """Every address has failed."""
        return not self._waiting and None not in self._begun.values()

    def tick(self, now: float) -> list[str]:
        """Return the address to begin with now; at most one, to be called again at `deadline`."""
        if now < self.deadline:
            return []
        address = self._waiting.popleft()
        self._begun[address] = None
        self._next_at = now + self._stagger_s
        return [address]

    def failed(self, address: str, why: str, now: float) -> None:
        """An address does not work; the next has no reason to wait."""
        self._begun[address] = why if address in why else f"{address}: {why}"
        self._next_at = now

    def reasons(self) -> list[str]:
        """Say of each address why it did not work, once the race is lost or its time is over."""
        silent = f"within {self._for_s:g} s"
        return [
            *(why or f"no answer from {address} {silent}" for address, why in self._begun.items()),
            *(f"{address} was not tried {silent}" for address in self._waiting),
        ]
