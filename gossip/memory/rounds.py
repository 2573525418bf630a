"""Which entries does each of two peers lack? One round of a comparison, namespace by namespace.

Pure. Who runs the comparison reconciles each namespace that differs (`reconciliation.py`), the books
first. What a session finds is asked for and sent while the next runs; the round is at its end when all
of it has moved.
"""

import math
from collections.abc import Iterable, Iterator

from .common_ground import CommonGround, bound_of
from .effects import Decisions
from .messages import Compare, Compared
from .namespace import Namespace
from .neighbour import Comparison, Neighbour, Running, short_id_of
from .reconciliation import Ranges, Session
from .settings import SpreadSettings

# A comparison begins no further session while more than this is on its way.
MOVING_MAX = 4096


class Rounds:
    """Works through what differs.

    Args:
        ground: what is held, and may be read.
        decisions: where messages go.
        numbers: gives each session its number.
        settings: times and limits.
    """

    def __init__(
        self,
        ground: CommonGround,
        decisions: Decisions,
        numbers: Iterator[int],
        settings: SpreadSettings,
    ) -> None:
        self._ground = ground
        self._decisions = decisions
        self._numbers = numbers
        self._settings = settings

    def begin(
        self, neighbour: Neighbour, comparison: Comparison, differing: Iterable[Namespace]
    ) -> None:
        """Begin a round; `advance` goes on with it."""
        comparison.working = True
        comparison.whole = True
        comparison.moved = False
        comparison.difference = (0, 0)
        todo = (one for one in differing if one not in comparison.refused)
        comparison.todo = sorted(todo, reverse=True)
        comparison.books_alone = all(one.comes_first for one in comparison.todo)
        neighbour.answer_by = math.inf
        names = dict.fromkeys([*neighbour.exchange.namespaces])
        names.update(dict.fromkeys(one.name for one in reversed(comparison.todo)))
        neighbour.exchange.namespaces = list(names)
        self._decisions.become(neighbour, "comparing", f"{len(comparison.todo)} namespaces differ")

    def advance(self, neighbour: Neighbour, comparison: Comparison, now: float) -> bool:
        """Begin the next session, once there is room for it; tell whether the round is at its end."""
        if not comparison.working or comparison.running is not None:
            return False
        while comparison.todo and comparison.running is None:
            first = comparison.todo[-1]
            if neighbour.turn_under_way < first.turn or comparison.moving > MOVING_MAX:
                return False
            comparison.todo.pop()
            if self._ground.both_may_read(neighbour.peer, first.zone):
                self._begin_session(neighbour, comparison, first, now)
        return comparison.running is None and not comparison.moving

    def books_are_through(self, neighbour: Neighbour) -> bool:
        """Tell whether the round has gone through the books, and what differed has moved."""
        comparison = neighbour.comparison
        if comparison is None or not comparison.working or neighbour.books_under_way:
            return False
        running = [] if comparison.running is None else [comparison.running.namespace]
        return not any(one.comes_first for one in (*running, *comparison.todo))

    def heard_answer(self, neighbour: Neighbour, compared: Compared, now: float) -> bool:
        """Go on with the session that runs; tell whether it is over.

        Raises:
            Malformed: the answer leads nowhere.
        """
        comparison = neighbour.comparison
        running = comparison.running if comparison is not None else None
        if comparison is None or running is None or running.number != compared.session:
            return False
        step = running.session.receive(compared.ranges)
        if not self._ground.both_may_read(neighbour.peer, running.namespace.zone):
            neighbour.forget(running.namespace)
        elif step is not None:
            self._step(neighbour, comparison, running, step, now)
            return False
        comparison.running = None
        neighbour.answer_by = math.inf
        self._found(neighbour, comparison, running, now)
        return True

    def heard_refusal(self, neighbour: Neighbour, namespace: Namespace) -> None:
        """It says that not both may read a namespace: it is compared no more, and nothing of it sent."""
        comparison = neighbour.comparison
        running = comparison.running if comparison is not None else None
        is_running = running is not None and running.namespace == namespace
        if comparison is not None and (is_running or namespace in comparison.todo):
            comparison.refused.add(namespace)
        neighbour.forget(namespace)
        if is_running:
            neighbour.answer_by = math.inf
        if not neighbour.under_way:
            neighbour.took_by = math.inf

    def _begin_session(
        self, neighbour: Neighbour, comparison: Comparison, namespace: Namespace, now: float
    ) -> None:
        salt, held = comparison.salt, self._ground.held
        summary = held.salted(namespace.id, salt) if salt else held.summary(namespace.id)
        session = Session(summary, until=bound_of(comparison.until_ms))
        sent = neighbour.unacknowledged(namespace)
        running = Running(next(self._numbers), namespace, session, sent)
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
        self._decisions.say(
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
            neighbour.note_has(namespace, needs)
        if haves:
            comparison.sending.setdefault(namespace, set()).update(haves)
            neighbour.note_news(namespace, haves)
