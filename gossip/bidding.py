"""Who answers when nobody is known? Calls for bids: what is said, and who answers. Wire types.

A call names the need and never the input. It reaches every member (gossip, zone `mesh`) or every
linked member of its zone; only those answer whose hash of call and peer lies below the call's
threshold, so that about eight answer however large the mesh is. Who is in doubt about one peer asks
that one. Pure: `Bidder` is stepped with what was heard. Source: DESIGN.md 6.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import msgspec

from covey.identity.certificate import Member
from covey.identity.errors import Malformed, Misuse
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode_union, encode

from .messages import as_reason
from .task import Need, check_shape

TOPIC = "covey/calls/1"
CHANNEL = "bid"
CALL_ID_BYTES = 16
CALLS_MAX = 16
"""In one message."""
MESSAGE_BYTES_MAX = 48 * KIB
EVERYONE = 1 << 32
"""The threshold below which every hash lies."""
ANSWERS_WANTED = 8
# Of one caller within ANSWERED_S; who calls more often than that is not in need.
BIDS_PER_CALLER_MAX = 64
ANSWERED_S = 60.0
ANSWERED_MAX = 4096
RUN_MS_MAX = 86_400_000

CallId = Annotated[bytes, msgspec.Meta(min_length=CALL_ID_BYTES, max_length=CALL_ID_BYTES)]
Milliseconds = Annotated[int, msgspec.Meta(ge=0)]


class Call(msgspec.Struct, frozen=True, array_like=True):
    """Who can do this? Answered by a `Bid`, or by silence."""

    id: CallId
    need: Need
    left_ms: Milliseconds
    """Until when the work must be done."""
    threshold: Annotated[int, msgspec.Meta(ge=0, le=EVERYONE)]


class Calls(msgspec.Struct, frozen=True, array_like=True, tag="calls"):
    """What one peer needs: several needs are called in one message."""

    calls: tuple[Call, ...]


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Can you do this? Answered by a `Bid` or a `Pass`."""

    call: Call


class Bid(msgspec.Struct, frozen=True, array_like=True, tag="bid"):
    """I can, and how soon."""

    call: CallId
    starts_in_ms: Milliseconds
    run_ms: Milliseconds
    """What such work took here of late; 0: not known."""


class Pass(msgspec.Struct, frozen=True, array_like=True, tag="pass"):
    """I cannot, and why."""

    call: CallId
    reason: str


BidMessage = Calls | Ask | Bid | Pass


@dataclass(frozen=True, slots=True)
class Outlook:
    """How soon this peer could do something."""

    starts_in_ms: int
    run_ms: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the caller, over a link to it."""

    to: PeerId
    message: Bid | Pass


def encode_message(message: BidMessage) -> bytes:
    """Return the message as bytes for channel `bid`, or for the topic."""
    return encode(message)


def decode_message(data: bytes) -> BidMessage:
    """Return the message in `data`.

    Raises:
        Malformed: it is none of ours, or over a limit.
    """
    message: BidMessage = decode_union(data, BidMessage, limit_bytes=MESSAGE_BYTES_MAX)
    calls = message.calls if isinstance(message, Calls) else ()
    if isinstance(message, Ask):
        calls = (message.call,)
    if len(calls) > CALLS_MAX:
        raise Malformed(f"{len(calls)} calls in one message, over the limit of {CALLS_MAX}")
    for call in calls:
        try:
            check_shape(call.need)
        except Misuse as error:
            raise Malformed(f"a call for what nobody could read: {error}") from error
    return message


def lot(call: bytes, peer: PeerId) -> int:
    """Return the lot that a peer draws for a call, below `EVERYONE`; the same whoever computes it."""
    drawn = hashlib.sha256(b"covey/call/1" + call + peer.encode()).digest()
    return int.from_bytes(drawn[:4], "big")


def threshold_for(members: int) -> int:
    """Return the threshold below which the lots of about `ANSWERS_WANTED` of so many members lie."""
    return min(EVERYONE, EVERYONE * ANSWERS_WANTED // max(1, members))


class Bidder:
    """Decides which calls this peer answers.

    Args:
        me: this peer, as the member that its chain makes it.
        able: what this peer lacks for a need; None if it can do it.
        outlook: how soon it could.
    """

    def __init__(
        self,
        me: Member,
        able: Callable[[PeerId, Need], str | None],
        outlook: Callable[[Need], Outlook],
    ) -> None:
        self._me = me
        self._able = able
        self._outlook = outlook
        self._answered: dict[tuple[PeerId, bytes], float] = {}

    def use(self, me: Member) -> None:
        """Stand in the zones of this peer's newest certificate from now on."""
        self._me = me

    def called(self, caller: Member, calls: Calls, now: float) -> list[Answer]:
        """Return the bids for what a member called for; a call that was widened is answered once."""
        return [
            Answer(caller.peer, bid)
            for call in calls.calls
            if lot(call.id, self._me.peer) < call.threshold
            and (bid := self._bid(caller, call, now)) is not None
        ]

    def asked(self, caller: Member, ask: Ask) -> Answer:
        """Return the answer to a member that asks this very peer."""
        lacking = self._lacks(caller, ask.call.need)
        if lacking is not None:
            return Answer(caller.peer, Pass(ask.call.id, as_reason(lacking)))
        return Answer(caller.peer, self._offer(ask.call))

    def _bid(self, caller: Member, call: Call, now: float) -> Bid | None:
        if caller.peer == self._me.peer or self._lacks(caller, call.need) is not None:
            return None
        self._forget(now)
        key = (caller.peer, call.id)
        if key in self._answered or len(self._answered) >= ANSWERED_MAX:
            return None
        if sum(peer == caller.peer for peer, _ in self._answered) >= BIDS_PER_CALLER_MAX:
            return None
        bid = self._offer(call)
        if bid.starts_in_ms + bid.run_ms > call.left_ms:
            return None
        self._answered[key] = now
        return bid

    def _offer(self, call: Call) -> Bid:
        outlook = self._outlook(call.need)
        return Bid(call.id, min(outlook.starts_in_ms, RUN_MS_MAX), min(outlook.run_ms, RUN_MS_MAX))

    def _lacks(self, caller: Member, need: Need) -> str | None:
        """Both must be in the zone: who is not must learn nothing of it."""
        if need.zone == "device" or not caller.is_in(need.zone) or not self._me.is_in(need.zone):
            return f"zone {need.zone!r} does not hold both"
        return self._able(caller.peer, need)

    def _forget(self, now: float) -> None:
        while self._answered:
            oldest = next(iter(self._answered))
            if now - self._answered[oldest] < ANSWERED_S:
                return
            del self._answered[oldest]
