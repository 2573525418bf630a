"""Which entries do two replicas not share? Range-based set reconciliation.

Pure: knows keys and fingerprints, not what the entries mean or how they travel. The initiator sends
the fingerprint of everything below `until`. Who sees a fingerprint unlike its own cuts the range at
keys that it holds and sends the fingerprints of the parts, or, where little is held, the ids. So the
cost follows the differences, not the sets, and what was written lately costs least, because keys are
in time order. The responder keeps nothing between messages; both may change their sets meanwhile,
and what changed then is found now or by the next session.

All that differs is found by the initiator: what it lacks (`needs`, to ask for) and what the other
lacks (`haves`, to send). It never sends ids, it asks for theirs. Source: Meyer, "Range-Based Set
Reconciliation", 2022; limits and measurements: MEMORY.md 3.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from enum import Enum, IntEnum, auto
from itertools import pairwise
from math import isqrt
from typing import NamedTuple

import msgspec

from covey.identity.errors import Malformed, Misuse

from .entry import CLOCK_BYTES, KEY_BYTES_TOTAL, SHORT_ID_BYTES, Key
from .summary import FINGERPRINT_BYTES, Summary

# One message fits a link's frame of 256 kB with what is around it. What does not fit is asked again.
MESSAGE_BYTES_MAX = 200_000
# Each range costs who answers it 12 to 25 us, so a message costs at most 0.1 s.
RANGES_MAX = 4096
# A lying responder can name any number of ids that nobody has; so many are 1 MiB, and 4 s of
# verifying. A session ends there, and once those have come the next goes on behind them.
NEEDS_MAX = 65_536
# Of 2, 4, 16 and 64 tried, 16 takes few round trips for few bytes more (MEMORY.md 3).
BRANCHING = 16
# So few ids cost less than to cut them once more.
LEAF_KEYS = 16
# Where one side has less than this part of what the other has, ids are sent at once: at most 1 in 8
# is for nothing. With 1 in 10 missing it would be too early: the missing ones are mostly the newest
# of the range, and cutting costs 350 bytes where all ids of 6,250 entries are 100 kB.
LOPSIDED = 8
# Beyond the messages that cutting takes: first and last, ids, and changes made meanwhile.
SPARE_ROUNDS = 4
# A message that was full forces another round. Ids and fingerprints of everything take about 24
# bytes an entry; with more than this the other is not honest.
FORCED_BYTES_PER_KEY = 64
FORCED_ROUNDS = 16
# Kept free: for a range skipped before what is added, and one skipped and one put off behind it;
# 3 x 52 bytes, and 62 for `until` and the columns' heads.
RESERVE_RANGES = 3
RESERVE_BYTES = 256
BOUND_BYTES_MAX = KEY_BYTES_TOTAL + 1
COUNT_MAX = 2**40


class Ranges(msgspec.Struct, frozen=True, array_like=True):
    """A message of either side: what is said of each range of the keys below `until`, in order.

    In columns, because a range is often but 20 bytes. What is behind the last range is equal, or was
    not asked about. `bounds` has for each range its kind << 6 | length of what follows; how many
    bytes its upper bound shares with the one before; the other bytes of that bound. Length 0: the
    range ends at `until`. `counts` has for each fingerprint and list of ids its count less the
    one before. Each message has but one form, and any other is refused.
    """

    until: bytes
    bounds: bytes
    counts: tuple[int, ...]
    digests: bytes
    ids: bytes


class Kind(IntEnum):
    """What is said of a range."""

    SKIP = 0
    """Nothing: it is equal, or it is not asked about."""
    FINGERPRINT = 1
    """Mine has this count and digest."""
    IDS = 2
    """Mine has these and no others; only a responder says this."""
    ASK = 3
    """An initiator: list yours. A responder, at the end: it did not fit, ask again."""


class Range(NamedTuple):
    """What is said of the keys with lower <= key < upper."""

    kind: Kind
    lower: bytes
    upper: bytes
    keys: int = 0
    digest: bytes = b""
    ids: bytes = b""


class _Turn(Enum):
    """What the initiator does next about a range that it does not know yet."""

    SEND = auto()
    """Send our fingerprint of it."""
    CUT = auto()
    """Theirs differs: send the fingerprints of its parts."""
    ASK = auto()
    """Ask for their ids."""


class _Open(NamedTuple):
    """A range about which the initiator does not know yet."""

    lower: bytes
    upper: bytes
    turn: _Turn


class Session:
    """The initiator's side of one reconciliation.

    Attributes:
        needs: the first 16 bytes of the ids of entries that they have and we lack.
        haves: the keys of entries that we have and they lack.
        rounds: how many messages we sent.
        complete: False if it ended early because so much is needed; the next session goes on.
    """

    def __init__(self, summary: Summary, *, until: bytes) -> None:
        """Prepare to compare `summary`, which may change meanwhile, with another peer's.

        Args:
            summary: what we hold; salted only if theirs is salted alike.
            until: only keys below it are compared, so that entries which a fast clock dated ahead,
                and one side does not take yet, are no difference.
        """
        if not 0 < len(until) <= BOUND_BYTES_MAX:
            raise Misuse(f"until has 1 to {BOUND_BYTES_MAX} bytes, not {len(until)}")
        self.needs: list[bytes] = []
        self.haves: list[Key] = []
        self.rounds = 0
        self.complete = True
        self._summary = summary
        self._until = until
        self._open = deque([_Open(b"", until, _Turn.SEND)])
        self._asked: list[Range] = []
        self._needed: set[bytes] = set()
        self._forced = 0
        keys = len(summary)
        self._rounds_max = _digits(keys) + SPARE_ROUNDS
        self._forced_max = (
            FORCED_ROUNDS + (keys + NEEDS_MAX) * FORCED_BYTES_PER_KEY // MESSAGE_BYTES_MAX
        )

    def begin(self) -> Ranges:
        """Return the first message."""
        if self.rounds:
            raise Misuse("the session has begun; make a new one")
        return self._next()

    def receive(self, theirs: Ranges) -> Ranges | None:
        """Take the answer to our last message; return the next, or None when finished.

        Raises:
            Malformed: it is no answer to what was asked, or leads nowhere. The session is over;
                what it found so far stands.
            Misuse: nothing was asked.
        """
        asked, self._asked = self._asked, []
        if not asked:
            raise Misuse("no answer is awaited: the session has not begun, or is over")
        if theirs.until != self._until:
            raise Malformed("an answer about the keys until another bound")
        regions = _joined(asked)
        ranges = _read(theirs)
        if self._open or (ranges and ranges[-1].kind is Kind.ASK):
            self._forced += 1
        found: list[_Open] = []
        for range_ in ranges:
            match range_.kind:
                case Kind.SKIP:
                    pass
                case Kind.FINGERPRINT:
                    _check_is_part(range_, asked)
                    found += self._compare(range_)
                case Kind.IDS:
                    _check_is_asked(range_, regions)
                    self._take_ids(range_)
                case Kind.ASK:
                    found += self._put_off(range_, asked)
        self._open.extendleft(reversed(found))
        if not self.complete:
            self._open.clear()
        if not self._open:
            return None
        if self.rounds >= self._rounds_max + min(self._forced, self._forced_max):
            raise Malformed(f"no end after {2 * self.rounds} messages")
        return self._next()

    def _next(self) -> Ranges:
        draft = _Draft(self._until)
        while self._open:
            ranges = self._turn(self._open[0])
            if not draft.fits(ranges):
                break
            self._open.popleft()
            self._asked += ranges
            for range_ in ranges:
                draft.add(range_)
        self.rounds += 1
        return draft.message()

    def _turn(self, one: _Open) -> list[Range]:
        match one.turn:
            case _Turn.SEND:
                return [_fingerprint(self._summary, one.lower, one.upper)]
            case _Turn.CUT:
                return _cut(self._summary, one.lower, one.upper)
            case _Turn.ASK:
                return [Range(Kind.ASK, one.lower, one.upper)]

    def _compare(self, theirs: Range) -> list[_Open]:
        ours = _fingerprint(self._summary, theirs.lower, theirs.upper)
        if ours == theirs:
            return []
        turn = _Turn.ASK if _lists_ids(ours.keys, theirs.keys) else _Turn.CUT
        return [_Open(theirs.lower, theirs.upper, turn)]

    def _take_ids(self, theirs: Range) -> None:
        listed = [
            theirs.ids[start : start + SHORT_ID_BYTES]
            for start in range(0, len(theirs.ids), SHORT_ID_BYTES)
        ]
        theirs_have = set(listed)
        if len(theirs_have) < len(listed):
            raise Malformed("an id is listed twice")
        we_have: set[bytes] = set()
        for key in self._summary.keys(theirs.lower, theirs.upper):
            short_id = _short_id(key)
            we_have.add(short_id)
            if short_id not in theirs_have:
                self.haves.append(key)
        for short_id in listed:
            if short_id in we_have or short_id in self._needed:
                continue
            if len(self.needs) == NEEDS_MAX:
                self.complete = False
                break
            self._needed.add(short_id)
            self.needs.append(short_id)

    def _put_off(self, theirs: Range, asked: list[Range]) -> list[_Open]:
        """Return what they did not answer, from the bound where they stopped."""
        if theirs.upper != self._until:
            raise Malformed("only the end of an answer is put off")
        if theirs.lower <= asked[0].lower:
            raise Malformed("nothing of what was asked is answered")
        rest = [one for one in asked if one.upper > theirs.lower]
        return [
            _Open(
                max(one.lower, theirs.lower),
                one.upper,
                _Turn.ASK if one.kind is Kind.ASK else _Turn.SEND,
            )
            for one in rest
        ]


def answer(summary: Summary, theirs: Ranges) -> Ranges:
    """Return what the holder of `summary` answers to an initiator's message.

    Raises:
        Malformed: it is no initiator's message.
    """
    draft = _Draft(theirs.until)
    for asked in _read(theirs):
        stopped = _answer_range(summary, draft, asked)
        if stopped is not None:
            draft.add(Range(Kind.ASK, stopped, theirs.until))
            break
    return draft.message()


def _answer_range(summary: Summary, draft: "_Draft", asked: Range) -> bytes | None:
    """Add the answer to one range; return the bound from which it did not fit, or None."""
    match asked.kind:
        case Kind.SKIP:
            return None
        case Kind.IDS:
            raise Malformed("an initiator lists no ids")
        case Kind.ASK:
            return _list_ids(summary, draft, asked)
        case Kind.FINGERPRINT:
            ours = _fingerprint(summary, asked.lower, asked.upper)
            if ours == asked:
                return None
            if _lists_ids(ours.keys, asked.keys):
                return _list_ids(summary, draft, asked)
            parts = _cut(summary, asked.lower, asked.upper)
            if not draft.fits(parts):
                return asked.lower
            for part in parts:
                draft.add(part)
            return None


def _list_ids(summary: Summary, draft: "_Draft", asked: Range) -> bytes | None:
    """Add our ids in a range, or as many as fit; return the bound from which they did not."""
    lower, upper = asked.lower, asked.upper
    room = draft.ids_room()
    if room == 0:
        return lower
    first, end = summary.rank(lower), summary.rank(upper)
    stopped = None
    if end - first > room:
        upper = stopped = _between(summary.at(first + room - 1), summary.at(first + room))
    ids = b"".join(map(_short_id, summary.keys(lower, upper)))
    draft.add(Range(Kind.IDS, lower, upper, len(ids) // SHORT_ID_BYTES, ids=ids))
    return stopped


def _lists_ids(ours: int, theirs: int) -> bool:
    """Return whether a range that differs is settled by ids at once, rather than cut."""
    fewer, more = sorted((ours, theirs))
    return fewer <= LEAF_KEYS or fewer * LOPSIDED < more


def _fingerprint(summary: Summary, lower: bytes, upper: bytes) -> Range:
    count, digest = summary.fingerprint(lower, upper)
    return Range(Kind.FINGERPRINT, lower, upper, count, digest)


def _cut(summary: Summary, lower: bytes, upper: bytes) -> list[Range]:
    """Return the fingerprints of the parts of a range, of nearly equal counts.

    The square root of the count is the number that takes fewest bytes where what follows is ids.
    """
    first = summary.rank(lower)
    count = summary.rank(upper) - first
    parts = min(isqrt(max(count - 1, 0)) + 1, BRANCHING)
    ranks = (first + count * part // parts for part in range(1, parts))
    cuts = [_between(summary.at(rank - 1), summary.at(rank)) for rank in ranks]
    return [_fingerprint(summary, *pair) for pair in pairwise([lower, *cuts, upper])]


def _between(left: bytes, right: bytes) -> bytes:
    """Return the shortest bound that has `left` below it and `right`, which is greater, not."""
    return right[: _shared(left, right) + 1]


def _shared(left: bytes, right: bytes) -> int:
    """Return how many bytes the two begin with alike."""
    for at, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return at
    return min(len(left), len(right))


def _short_id(key: Key) -> bytes:
    return key[CLOCK_BYTES : CLOCK_BYTES + SHORT_ID_BYTES]


def _digits(count: int) -> int:
    """Return how often a set of `count` can be cut in 16 until one is left: ceil(log16)."""
    return ((max(count, 1) - 1).bit_length() + 3) // 4


def _joined(asked: list[Range]) -> list[Range]:
    """Return the regions of which something was asked, neighbours as one."""
    regions: list[Range] = []
    for one in asked:
        if regions and regions[-1].upper == one.lower:
            regions[-1] = regions[-1]._replace(upper=one.upper)
        else:
            regions.append(one)
    return regions


def _around(theirs: Range, asked: list[Range]) -> Range | None:
    """Return what was asked that `theirs` lies in."""
    at = bisect_right(asked, theirs.lower, key=lambda one: one.lower) - 1
    return asked[at] if at >= 0 and theirs.upper <= asked[at].upper else None


def _check_is_asked(theirs: Range, regions: list[Range]) -> None:
    if _around(theirs, regions) is None:
        raise Malformed("ids of a range that was not asked about")


def _check_is_part(theirs: Range, asked: list[Range]) -> None:
    """Refuse a fingerprint but of a true part of one whose fingerprint we sent: it leads nowhere."""
    whole = _around(theirs, asked)
    if whole is None or whole.kind is not Kind.FINGERPRINT:
        raise Malformed("a fingerprint of a range whose fingerprint was not sent")
    if (whole.lower, whole.upper) == (theirs.lower, theirs.upper):
        raise Malformed("a range is answered by the same range")


class _Draft:
    """A message in the making, within its limits. What lies between its ranges is skipped."""

    def __init__(self, until: bytes) -> None:
        self._until = until
        self._ranges: list[Range] = []
        self._bytes = 0

    def fits(self, ranges: list[Range]) -> bool:
        """Return whether these still fit, with what is skipped before and put off behind them."""
        return (
            len(self._ranges) + len(ranges) + RESERVE_RANGES <= RANGES_MAX
            and self._bytes + sum(map(_bytes_most, ranges)) <= MESSAGE_BYTES_MAX - RESERVE_BYTES
        )

    def ids_room(self) -> int:
        """Return how many ids still fit as one range."""
        if len(self._ranges) + 1 + RESERVE_RANGES > RANGES_MAX:
            return 0
        return max(MESSAGE_BYTES_MAX - RESERVE_BYTES - self._bytes, 0) // SHORT_ID_BYTES

    def add(self, range_: Range) -> None:
        last = self._ranges[-1] if self._ranges else Range(Kind.SKIP, b"", b"")
        if last.upper < range_.lower:
            self._append(Range(Kind.SKIP, last.upper, range_.lower))
        elif last.kind is range_.kind and range_.kind in (Kind.IDS, Kind.ASK):
            self._bytes -= _bytes_most(self._ranges.pop())
            range_ = range_._replace(
                lower=last.lower, keys=last.keys + range_.keys, ids=last.ids + range_.ids
            )
        self._append(range_)

    def message(self) -> Ranges:
        """Return it as it travels."""
        bounds = bytearray()
        counts: list[int] = []
        count = 0
        for range_ in self._ranges:
            shared, rest = 0, b""
            if range_.upper != self._until:
                shared = _shared(range_.lower, range_.upper)
                rest = range_.upper[shared:]
            bounds += bytes((range_.kind << 6 | len(rest), shared)) + rest
            if range_.kind in (Kind.FINGERPRINT, Kind.IDS):
                counts.append(range_.keys - count)
                count = range_.keys
        return Ranges(
            until=self._until,
            bounds=bytes(bounds),
            counts=tuple(counts),
            digests=b"".join(one.digest for one in self._ranges),
            ids=b"".join(one.ids for one in self._ranges),
        )

    def _append(self, range_: Range) -> None:
        self._ranges.append(range_)
        self._bytes += _bytes_most(range_)


def _bytes_most(range_: Range) -> int:
    """Return how many bytes a range takes at most: two, its bound, its count, and what it says."""
    return 2 + len(range_.upper) + 9 + len(range_.digest) + len(range_.ids)


def _read(message: Ranges) -> list[Range]:
    """Return the ranges of a message, which cover the keys from the first on without a gap.

    Raises:
        Malformed: it breaks a limit or is not the one form of what it says.
    """
    if not 0 < len(message.until) <= BOUND_BYTES_MAX:
        raise Malformed(f"until has 1 to {BOUND_BYTES_MAX} bytes, not {len(message.until)}")
    size = len(message.bounds) + len(message.counts) + len(message.digests) + len(message.ids)
    if size > MESSAGE_BYTES_MAX:
        raise Malformed(f"ranges of {size} bytes, over the limit of {MESSAGE_BYTES_MAX}")
    counts = iter(message.counts)
    ranges: list[Range] = []
    count = digests = ids = 0
    for kind, lower, upper in _read_bounds(message):
        if len(ranges) == RANGES_MAX:
            raise Malformed(f"more than {RANGES_MAX} ranges")
        if ranges and ranges[-1].kind is kind is not Kind.FINGERPRINT:
            raise Malformed("two ranges that are one")
        if kind in (Kind.SKIP, Kind.ASK):
            ranges.append(Range(kind, lower, upper))
            continue
        count += next(counts, COUNT_MAX + 1)
        if not 0 <= count <= COUNT_MAX:
            raise Malformed("a count is missing, negative or too great")
        if kind is Kind.FINGERPRINT:
            digest = message.digests[digests : digests + FINGERPRINT_BYTES]
            digests += FINGERPRINT_BYTES
            ranges.append(Range(kind, lower, upper, count, digest))
        else:
            listed = message.ids[ids : ids + count * SHORT_ID_BYTES]
            ids += count * SHORT_ID_BYTES
            ranges.append(Range(kind, lower, upper, count, ids=listed))
    if ranges and ranges[-1].kind is Kind.SKIP:
        raise Malformed("nothing is said of the last range")
    if (digests, ids) != (len(message.digests), len(message.ids)) or next(counts, None) is not None:
        raise Malformed("counts, digests or ids do not go with the ranges")
    return ranges


def _read_bounds(message: Ranges) -> Iterator[tuple[Kind, bytes, bytes]]:
    """Yield kind and bounds of each range; the bounds strictly increase."""
    data, lower, at = message.bounds, b"", 0
    while at < len(data):
        if lower == message.until:
            raise Malformed("a range behind the last bound")
        if at + 1 == len(data):
            raise Malformed("bounds end in the middle")
        kind, length, shared = Kind(data[at] >> 6), data[at] & 63, data[at + 1]
        rest = data[at + 2 : at + 2 + length]
        at += 2 + length
        if length == 0 and shared == 0:
            upper = message.until
        elif length == 0 or len(rest) < length or not _goes_on(lower, shared, rest):
            raise Malformed("bounds do not strictly increase, or are not in their shortest form")
        else:
            upper = lower[:shared] + rest
            if len(upper) > BOUND_BYTES_MAX or upper >= message.until:
                raise Malformed("a bound is too long, or not below the last")
        yield kind, lower, upper
        lower = upper


def _goes_on(lower: bytes, shared: int, rest: bytes) -> bool:
    """Return whether `shared` bytes of `lower` and `rest` are a greater bound that shares no more."""
    return shared == len(lower) or (shared < len(lower) and rest[0] > lower[shared])
