"""Do two peers hold the same of what both may read? Digests, and who goes through the differences.

Pure. One says the digest of all that both may read. Where the other's differs, the one with the greater
id asks what the other holds, namespace by namespace, and runs the comparison: round after round
(`rounds.py`) until the digests are the same or nothing moves any more. Then it rests: what one side
does not take is no reason to go on. If the other holds more, it is left to the other to run it.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from random import Random

from covey.identity.errors import Malformed
from covey.identity.keys import PeerId
from covey.identity.wire import encode

from .common_ground import CommonGround
from .effects import Decisions
from .entry import AHEAD_MS_MAX, HASH_BYTES
from .messages import ROWS_MAX, Ask, Contents, Digest, Rest, Row, Run
from .namespace import Namespace
from .neighbour import Comparison, Exchange, Neighbour
from .reconciliation import LEAF_KEYS
from .rounds import Rounds
from .settings import SpreadSettings
from .summary import END

# How far beyond its clock a peer compares: clocks that differ by less see the same set.
MARGIN_MS = 60_000
# What was written this lately may be on its way still, and is left out where nothing urges.
SETTLE_MS = 5_000
# Each round finds less, or what was written meanwhile. With more, somebody lies.
ROUNDS_MAX = 8
# Rounds that did not hold all that differs, each of tens of thousands of entries.
PARTIAL_ROUNDS_MAX = 256
# 5 s doubled so often is past the longest pause.
_FAILURES_MAX = 10


class Comparing:
    """Compares with neighbours.

    Args:
        me: this peer.
        ground: what is held, and may be read.
        rounds: works through what differs.
        decisions: where messages go.
        random: draws what is named first, and when to try again.
        settings: times and limits.
    """

    def __init__(
        self,
        me: PeerId,
        ground: CommonGround,
        rounds: Rounds,
        decisions: Decisions,
        random: Random,
        settings: SpreadSettings,
    ) -> None:
        self._me = me
        self._ground = ground
        self._rounds = rounds
        self._decisions = decisions
        self._random = random
        self._settings = settings

    # Beginning

    def begin(self, neighbour: Neighbour, now: float, now_ms: int) -> None:
        """Say the digest of all that both may read, and hear whether the other's is the same."""
        if neighbour.peer < self._me:
            self._compare_anew(neighbour, "its digest is awaited", now)
            neighbour.answer_by = now + self._settings.answer_s
        else:
            neighbour.exchange = Exchange(now)
            self.await_word(neighbour, "its digest is awaited", now)
        self._tell_digest(neighbour, now_ms + MARGIN_MS, answer=True)

    def begin_audit(self, neighbour: Neighbour, salt: bytes, now: float, now_ms: int) -> None:
        """Go through all that both may read under a salt, whatever the digests say."""
        neighbour.exchange = Exchange(now)
        neighbour.comparison = Comparison(now_ms + MARGIN_MS, now_ms, salt=salt)
        everything = self._ground.namespaces(neighbour.peer)
        self._rounds.begin(neighbour, neighbour.comparison, everything)

    def look_at(self, neighbours: Iterable[Neighbour], now_ms: int) -> None:
        """Say the digest to a few of those with whom nothing is under way."""
        idle = [one for one in neighbours if not one.is_comparing and one.again_at == math.inf]
        for one in self._random.sample(idle, min(len(idle), self._settings.compare_with)):
            self._tell_digest(one, now_ms - SETTLE_MS, answer=False)

    def books_digest(self) -> bytes:
        """Return the books that every member holds, summed up in 16 bytes: what hello shows."""
        digest = hashlib.sha256()
        for one in sorted(self._ground.held.namespaces()):
            count, of_one = self._ground.held.summary(one.id).fingerprint(b"", END)
            if one.comes_first and count:
                digest.update(encode(Row(one.zone, one.name, count, of_one)))
        return digest.digest()[:HASH_BYTES]

    def await_word(self, neighbour: Neighbour, why: str, now: float) -> None:
        """The other is to go on."""
        self._decisions.become(neighbour, "comparing", why)
        neighbour.answer_by = now + self._settings.answer_s

    # What the other says

    def heard_digest(self, neighbour: Neighbour, theirs: Digest, now: float, now_ms: int) -> bool:
        """Hold its digest against ours; tell whether the two are in step now."""
        comparison = neighbour.comparison
        if comparison is not None and comparison.working:
            return False  # at its end it says its own
        if theirs.until_ms > now_ms + AHEAD_MS_MAX:
            # What was written so far ahead is not taken here yet: compare up to this clock.
            self._tell_digest(neighbour, now_ms + MARGIN_MS, answer=True)
        elif theirs.digest == self._ground.digest(neighbour.peer, theirs.until_ms):
            if theirs.answer:
                self._tell_digest(neighbour, theirs.until_ms, answer=False)
            self._in_step(neighbour, now)
            return True
        elif self._me < neighbour.peer:
            self.tell_contents(neighbour, theirs.until_ms, now, now_ms)
        elif neighbour.rests_until > now:
            neighbour.again_at = min(neighbour.again_at, neighbour.rests_until)
        else:
            if comparison is None:
                self._compare_anew(neighbour, "its contents are awaited", now)
            neighbour.expects_contents = True
            self._decisions.say(neighbour, Ask(min(theirs.until_ms, now_ms + MARGIN_MS)))
            neighbour.answer_by = now + self._settings.answer_s
        return False

    def tell_contents(self, neighbour: Neighbour, until_ms: int, now: float, now_ms: int) -> None:
        """Say what is held here, namespace by namespace, and leave it to the other to go on."""
        until_ms = min(until_ms, now_ms + MARGIN_MS)
        if neighbour.named_books:
            # It has gone through them, and asks for the rest.
            neighbour.serve_all(now)
        neighbour.named_books = True
        rows = self._ground.rows(neighbour.peer, until_ms)
        whole = len(rows) <= ROWS_MAX
        if neighbour.books_come_first:
            books = self._first(rows)
            whole = len(books) == len(rows) <= ROWS_MAX
            rows = books[:ROWS_MAX]
        elif not whole:
            books = self._first(rows)[:ROWS_MAX]
            others = rows[len(books) :]
            rows = books + self._random.sample(others, min(ROWS_MAX - len(books), len(others)))
        self._decisions.say(neighbour, Contents(until_ms, tuple(rows), whole))
        if neighbour.comparison is not None and not neighbour.comparison.working:
            neighbour.comparison = None  # the other goes on with it
        if neighbour.comparison is None and neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
            self.await_word(neighbour, "its differences are awaited", now)

    def heard_contents(
        self, neighbour: Neighbour, contents: Contents, now: float, now_ms: int
    ) -> bool:
        """Begin a round over what differs, or hand it over; tell whether a round began here.

        Raises:
            Malformed: who said so should ask.
        """
        if self._me < neighbour.peer:
            raise Malformed("contents from who should ask for them")
        if contents.until_ms > now_ms + AHEAD_MS_MAX:
            raise Malformed("contents up to later than was asked for")
        comparison = neighbour.comparison
        if not neighbour.expects_contents or (comparison is not None and comparison.working):
            return False
        neighbour.expects_contents = False
        peer, until_ms = neighbour.peer, contents.until_ms
        differing = list(self._ground.differing(peer, contents.rows, until_ms))
        named = {(row.zone, row.name) for row in contents.rows}
        unnamed = self._ground.unnamed(peer, named, until_ms)
        # The books of zone mesh are all named in any case.
        differing += [one for one in unnamed if contents.whole or one.comes_first]
        if self._hand_over(neighbour, differing, contents, now):
            return False
        if comparison is None:
            comparison = self._compare_anew(neighbour, "its contents came", now)
        if comparison.until_ms == 0:
            # What is written from now on is on its way by itself, and would differ for ever: the
            # digests at the end are of what was written before, by either clock.
            comparison.close_ms = max(until_ms - MARGIN_MS, 0)
        comparison.until_ms = until_ms
        self._rounds.begin(neighbour, comparison, differing)
        return True

    def heard_run(self, neighbour: Neighbour, run: Run, now_ms: int) -> bool:
        """Run the comparison, because more is held here; tell whether it began.

        Raises:
            Malformed: who said so should run it.
        """
        if neighbour.peer < self._me or run.until_ms > now_ms + AHEAD_MS_MAX:
            raise Malformed("a comparison is handed over by who was asked to run it")
        if neighbour.comparison is not None or neighbour.state != "comparing":
            return False
        neighbour.comparison = Comparison(run.until_ms, max(run.until_ms - MARGIN_MS, 0))
        differing = self._ground.differing(neighbour.peer, run.rows, run.until_ms)
        self._rounds.begin(neighbour, neighbour.comparison, differing)
        return True

    def heard_rest(self, neighbour: Neighbour, entries: int, now: float) -> None:
        """The other leaves it at that."""
        if neighbour.comparison is None and neighbour.state == "comparing":
            self.fail(neighbour, _why_apart(entries), now)
            neighbour.serve_all(now)

    # Going on

    def advance(self, neighbour: Neighbour, now: float) -> None:
        """Do what is next in the comparison that this side runs."""
        comparison = neighbour.comparison
        if comparison is not None and self._rounds.advance(neighbour, comparison, now):
            self._end_round(neighbour, comparison, now)

    def fail(self, neighbour: Neighbour, why: str, now: float) -> None:
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
        self._decisions.become(neighbour, "apart", why)

    def compare_soon(self, neighbour: Neighbour, now: float) -> None:
        """Compare again before long: not all that it has was noted."""
        again_at = now + self._settings.compare_s * self._random.uniform(0.5, 1.0)
        neighbour.again_at = min(neighbour.again_at, again_at)

    def _hand_over(
        self, neighbour: Neighbour, differing: Iterable[Namespace], contents: Contents, now: float
    ) -> bool:
        """Let the other reconcile if it holds more: who runs a session and lacks entries is told
        their ids and says them again; who has them just sends them.
        """
        if neighbour.books_come_first:
            # They are few, and what else differs is not named yet.
            return False
        theirs = {(row.zone, row.name): row.count for row in contents.rows}
        rows: list[Row] = []
        more = 0
        for one in differing:
            rows.append(row := self._ground.summed_up(one, contents.until_ms))
            more += theirs.get((one.zone, one.name), 0) - row.count
        if neighbour.handed or more <= LEAF_KEYS or len(rows) > ROWS_MAX:
            return False
        neighbour.handed = True
        neighbour.comparison = None
        if neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
        self.await_word(neighbour, "it holds more, and goes through the differences", now)
        self._decisions.say(neighbour, Run(contents.until_ms, tuple(rows)))
        return True

    def _end_round(self, neighbour: Neighbour, comparison: Comparison, now: float) -> None:
        """All that differed has been moved: say the digest, and hear whether the other finds so too."""
        many = comparison.difference[0]
        again = comparison.difference == comparison.last_difference
        if comparison.whole:
            comparison.rounds += 1
        else:
            comparison.partial_rounds += 1
        moved = comparison.moved or comparison.books_alone
        nothing_moves = comparison.whole and (again or (many and not moved))
        if (
            nothing_moves
            or comparison.rounds >= ROUNDS_MAX
            or comparison.partial_rounds >= PARTIAL_ROUNDS_MAX
        ):
            # Going on would move nothing.
            self._decisions.say(neighbour, Rest(many))
            self.fail(neighbour, _why_apart(many), now)
        else:
            comparison.working = False
            comparison.last_difference = comparison.difference
            self._tell_digest(neighbour, comparison.close_ms, answer=True)
            neighbour.answer_by = now + self._settings.answer_s

    def _first(self, rows: Sequence[Row]) -> list[Row]:
        """Return the books that every member holds; they are the first of the rows."""
        return [row for row in rows if self._ground.named(row.zone, row.name).comes_first]

    def _compare_anew(self, neighbour: Neighbour, why: str, now: float) -> Comparison:
        neighbour.comparison = Comparison()
        if neighbour.state != "comparing":
            neighbour.exchange = Exchange(now)
        self._decisions.become(neighbour, "comparing", why)
        return neighbour.comparison

    def _tell_digest(self, neighbour: Neighbour, until_ms: int, *, answer: bool) -> None:
        neighbour.expects_contents = neighbour.peer < self._me
        digest = self._ground.digest(neighbour.peer, until_ms)
        self._decisions.say(neighbour, Digest(until_ms, digest, answer))

    def _in_step(self, neighbour: Neighbour, now: float) -> None:
        neighbour.comparison = None
        neighbour.handed = False
        neighbour.answer_by = neighbour.again_at = math.inf
        neighbour.failures = 0
        neighbour.rests_until = -math.inf
        neighbour.in_step_at = now
        neighbour.serve_all(now)
        if neighbour.exchange.ended_at is None:
            neighbour.exchange.ended_at = now
        self._decisions.become(neighbour, "in step", "")


def _why_apart(many: int) -> str:
    if many:
        return f"{many} entries are not taken by one side"
    return "its digest differs, and nothing that both may read"
