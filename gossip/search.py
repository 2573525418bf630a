"""Who can do it, when the directory has nobody? First the DHT, then a call for bids.

Pure: what is wanted, what was answered and `now` (seconds, monotonic) in; what to look up, ask and
call out. One search for each kind of need, however many tasks wait for it; what it finds is kept a
little while, so that a row of tasks costs one call. Every answer of the DHT is a hint: the peer
itself is asked before it is a candidate. A call starts at a threshold that lets about eight of the
mesh answer, and is widened eight times on silence, until all were asked. Source: DESIGN.md 6.
"""

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from covey.identity.keys import PeerId

from .bidding import (
    ANSWERS_WANTED,
    CALL_ID_BYTES,
    EVERYONE,
    Ask,
    Bid,
    Call,
    Pass,
    threshold_for,
)
from .task import Need

# The lookup's own deadline is shorter; this is for one whose answer never comes.
LOOKUP_S = 4.0
HINTS_MAX = 8
# A peer that is asked may have to be dialled first.
ASK_S = 8.0
# After the first answer, others may be a little slower and better: twice as long as it took.
GATHER_S_MIN, GATHER_S_MAX = 0.03, 0.25
# Gossip takes at most one message a second from this peer, and a bidder may have to dial.
ROUND_S = 2.5
WIDER = 8
FOUND_S = 30.0
REST_S, REST_S_MAX = 5.0, 300.0
# Links come in groups, and one search for all of them is enough.
SOON_S = 1.0
# A search that nobody asked about for so long is given up; an origin asks every 30 s.
WANTED_S = 90.0
SEARCHES_MAX = 256
FOUND_MAX = 64

FoundBy = Literal["dht", "bid"]


@dataclass(frozen=True, slots=True)
class LookUp:
    """Ask the DHT who provides this; tell `looked_up`."""

    need: Need


@dataclass(frozen=True, slots=True)
class AskPeer:
    """Ask this peer, dialling it if needed; tell `answered`, or `unreachable`."""

    to: PeerId
    ask: Ask


@dataclass(frozen=True, slots=True)
class CallOut:
    """Call for bids: all members by gossip for zone `mesh`, else the linked members of the zone."""

    call: Call
    to: tuple[PeerId, ...] | None
    """None: gossip."""


SearchEffect = LookUp | AskPeer | CallOut


@dataclass(frozen=True, slots=True)
class Found:
    """A peer that said it can do it."""

    peer: PeerId
    by: FoundBy
    bid: Bid
    until: float

    @property
    def done_in_ms(self) -> int:
        """When it would be done, by its own word."""
        return self.bid.starts_in_ms + self.bid.run_ms


Stage = Literal["looking up", "asking", "calling", "found", "resting"]


@dataclass(slots=True)
class _Search:
    need: Need
    call: bytes
    left_ms: int
    wanted_at: float
    stage: Stage = "resting"
    due_at: float = -math.inf
    asked_at: float = 0.0
    threshold: int = 0
    asked: set[PeerId] = field(default_factory=lambda: set[PeerId]())
    found: dict[PeerId, Found] = field(default_factory=lambda: dict[PeerId, Found]())
    rests: int = 0


class Search:
    """The searches of one peer.

    Args:
        me: this peer.
        members: how many members are known.
        zone_links: the linked peers that are in a zone.
        has_dht: whether there is a DHT to ask.
        has_calls: whether calls for bids may be made.
        salt: bytes that no earlier run of this peer has used; names calls.
    """

    def __init__(
        self,
        me: PeerId,
        *,
        members: Callable[[], int],
        zone_links: Callable[[str], Collection[PeerId]],
        has_dht: bool,
        has_calls: bool,
        salt: bytes,
    ) -> None:
        self._me = me
        self._members = members
        self._zone_links = zone_links
        self._has_dht = has_dht
        self._has_calls = has_calls
        self._salt = salt
        self._number = 0
        self._searches: dict[Need, _Search] = {}
        self._calls: dict[bytes, _Search] = {}
        self._changed = False

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        return min((one.due_at for one in self._searches.values()), default=math.inf)

    def take_changed(self) -> bool:
        """Tell, once, whether something changed that waiting tasks should know of."""
        changed, self._changed = self._changed, False
        return changed

    # What is wanted

    def want(self, need: Need, now: float, left_s: float) -> str:
        """Say that a task of `left_s` more seconds waits for this.

        Returns:
            What is being done about it, in plain words; empty if nothing is.
        """
        if need.zone == "device" or not (self._has_dht or self._has_calls):
            return ""
        key = _kind(need)
        search = self._searches.get(key)
        if search is None:
            if len(self._searches) >= SEARCHES_MAX:
                return f"{SEARCHES_MAX} other kinds of work are being searched for already"
            # Due at once: `tick` begins it.
            search = self._searches[key] = _Search(need, b"", 0, now)
        search.wanted_at, search.left_ms = now, max(0, int(left_s * 1000))
        return self._saying(search, now)

    def found(self, need: Need, now: float) -> list[Found]:
        """Return who said that it can do this, the soonest done first."""
        search = self._searches.get(_kind(need))
        if search is None:
            return []
        valid = [one for one in search.found.values() if one.until > now]
        return sorted(valid, key=lambda one: (one.done_in_ms, one.peer))

    def _saying(self, search: _Search, now: float) -> str:
        match search.stage:
            case "looking up" | "asking":
                return "asking the DHT"
            case "calling":
                return "calling for bids"
            case "found":
                return ""
            case "resting":
                if search.rests == 0:
                    return "searching"
                asked = " nor a call for bids" if self._has_calls else ""
                by = f"neither the DHT{asked}" if asked and self._uses_dht(search) else ""
                by = by or ("no call for bids" if self._has_calls else "not the DHT")
                return f"{by} found anyone; searched again in {max(0.0, search.due_at - now):.0f} s"

    # What is answered

    def looked_up(self, need: Need, hints: Collection[PeerId], now: float) -> list[SearchEffect]:
        """The DHT answered: ask who may be one."""
        search = self._searches.get(_kind(need))
        if search is None or search.stage != "looking up":
            return []
        peers = [peer for peer in dict.fromkeys(hints) if peer != self._me][:HINTS_MAX]
        if not peers:
            return self._call(search, now)
        search.stage, search.due_at, search.asked_at = "asking", now + ASK_S, now
        search.asked = set(peers)
        ask = Ask(Call(search.call, search.need, search.left_ms, EVERYONE))
        return [AskPeer(peer, ask) for peer in peers]

    def answered(self, sender: PeerId, message: Bid | Pass, now: float) -> list[SearchEffect]:
        """A peer says that it can do it, or that it cannot."""
        search = self._calls.get(message.call)
        if search is None:
            return []
        if isinstance(message, Bid):
            return self._take_bid(search, sender, message, now)
        return self._miss(search, sender, now)

    def unreachable(self, peer: PeerId, call: bytes, now: float) -> list[SearchEffect]:
        """A peer that was to be asked cannot be."""
        search = self._calls.get(call)
        return [] if search is None else self._miss(search, peer, now)

    def link_up(self, now: float) -> None:
        """Somebody new is in reach: what found nobody is worth another try."""
        for search in self._searches.values():
            if search.stage == "resting":
                search.due_at = min(search.due_at, now + SOON_S)

    def link_down(self, peer: PeerId, now: float) -> None:
        """A peer is out of reach: it is no candidate any more."""
        for search in self._searches.values():
            if search.found.pop(peer, None) and not search.found and search.stage == "found":
                search.stage, search.due_at = "resting", now + SOON_S

    def _take_bid(
        self, search: _Search, sender: PeerId, bid: Bid, now: float
    ) -> list[SearchEffect]:
        if search.stage == "asking":
            if sender not in search.asked:
                return []
            by: FoundBy = "dht"
        elif search.stage in ("calling", "found") and sender != self._me:
            # A late answer of who was asked by a hint of the DHT is one, too.
            by = "bid" if search.threshold else "dht"
        else:
            return []
        is_first = not search.found
        if sender not in search.found and len(search.found) >= FOUND_MAX:
            return []
        search.found[sender] = Found(sender, by, bid, now + FOUND_S)
        search.asked.discard(sender)
        if search.stage == "found":
            return []
        others = max(1, self._members() - 1)
        enough = search.stage == "asking" and not search.asked
        if enough or len(search.found) >= min(ANSWERS_WANTED, others):
            self._settle(search, now)
        elif is_first:
            took_s = now - search.asked_at
            search.due_at = now + min(GATHER_S_MAX, max(GATHER_S_MIN, 2 * took_s))
        return []

    def _miss(self, search: _Search, peer: PeerId, now: float) -> list[SearchEffect]:
        if search.stage != "asking" or peer not in search.asked:
            return []
        search.asked.discard(peer)
        if search.asked:
            return []
        if search.found:
            self._settle(search, now)
            return []
        return self._call(search, now)

    # What time calls for

    def tick(self, now: float) -> list[SearchEffect]:
        """Do what time alone calls for."""
        effects: list[SearchEffect] = []
        for search in [one for one in self._searches.values() if one.due_at <= now]:
            effects += self._due(search, now)
        return effects

    def _due(self, search: _Search, now: float) -> list[SearchEffect]:
        if now - search.wanted_at > WANTED_S:
            self._drop(search)
            return []
        match search.stage:
            case "resting":
                return self._begin(search, now)
            case "looking up":
                return self._call(search, now)
            case "asking":
                if search.found:
                    self._settle(search, now)
                    return []
                return self._call(search, now)
            case "calling":
                if search.found:
                    self._settle(search, now)
                    return []
                return self._widen(search, now)
            case "found":
                # What was found is over its time: whoever wants it still searches anew.
                self._drop(search)
                self._changed = True
                return []

    def _begin(self, search: _Search, now: float) -> list[SearchEffect]:
        self._calls.pop(search.call, None)
        self._number += 1
        name = b"covey/call/1" + self._salt + self._number.to_bytes(8, "big")
        search.call = hashlib.sha256(name).digest()[:CALL_ID_BYTES]
        self._calls[search.call] = search
        search.found.clear()
        search.asked.clear()
        search.threshold = 0
        if not self._uses_dht(search):
            return self._call(search, now)
        search.stage, search.due_at = "looking up", now + LOOKUP_S
        self._changed = True
        return [LookUp(search.need)]

    def _uses_dht(self, search: _Search) -> bool:
        return self._has_dht and search.need.zone == "mesh"

    def _call(self, search: _Search, now: float) -> list[SearchEffect]:
        if not self._has_calls:
            return self._rest(search, now)
        return self._call_out(search, threshold_for(self._members()), now)

    def _widen(self, search: _Search, now: float) -> list[SearchEffect]:
        if search.threshold >= EVERYONE:
            return self._rest(search, now)
        return self._call_out(search, min(EVERYONE, search.threshold * WIDER), now)

    def _call_out(self, search: _Search, threshold: int, now: float) -> list[SearchEffect]:
        to: tuple[PeerId, ...] | None = None
        if search.need.zone != "mesh":
            to = tuple(sorted(self._zone_links(search.need.zone)))
            if not to:
                return self._rest(search, now)
        self._changed |= search.stage != "calling"
        search.stage, search.due_at, search.asked_at = "calling", now + ROUND_S, now
        search.threshold = threshold
        return [CallOut(Call(search.call, search.need, search.left_ms, threshold), to)]

    def _settle(self, search: _Search, now: float) -> None:
        search.stage, search.due_at, search.rests = "found", now + FOUND_S, 0
        self._changed = True

    def _rest(self, search: _Search, now: float) -> list[SearchEffect]:
        wait_s = min(REST_S_MAX, REST_S * 2.0 ** min(search.rests, 10))
        search.rests += 1
        search.stage, search.due_at = "resting", now + wait_s
        self._calls.pop(search.call, None)
        self._changed = True
        return []

    def _drop(self, search: _Search) -> None:
        self._calls.pop(search.call, None)
        del self._searches[_kind(search.need)]


def _kind(need: Need) -> Need:
    """Return what needs of one kind have in common: only their input's size differs."""
    return msgspec.structs.replace(need, size_bytes=0)
