"""What does this device do for others? Offers taken or declined, runs, outcomes delivered until
acknowledged.

Pure: events and `now` (seconds, monotonic) in, effects out. A record belongs to (origin, task id)
and answers only that origin. An acceptance names this incarnation and has no commit of its own:
after a restart what had begun is unknown here, and the origin offers again. An outcome is durable
before it leaves, and is repeated until its origin acknowledges it. Source: DESIGN.md 8.
"""

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import msgspec

from covey.identity.envelope import MeshId, seal
from covey.identity.errors import Misuse
from covey.identity.keys import Keypair, PeerId

from .effects import Begin, Effect, Ended, Erase, Fetch, Halt, Run, Save, Send, Table
from .messages import (
    Accepted,
    Acknowledged,
    Cancel,
    CancelAcknowledged,
    Declined,
    Delivered,
    Offer,
    Progress,
    as_reason,
)
from .past_runs import PastRuns, RunKey
from .task import (
    DEADLINE_S_MAX,
    NAME_CHARACTERS_MAX,
    OUTCOME_KIND,
    PRIORITY_MAX,
    RESULT_BYTES_MAX,
    Need,
    Outcome,
    TaskId,
    check_shape,
    digest_of,
    task_digest,
    task_id_of,
)
from .timers import Timers

RESEND_S_FIRST = 2.0
RESEND_S_MAX = 60.0
# An outcome that its origin never fetches is dropped 90 days after the task's deadline.
KEEP_UNACKNOWLEDGED_MS = 90 * 86_400_000
# A cancel or a done task is remembered until no offer of it can be valid any more.
KEEP_CLOSED_MS = 7 * 86_400_000
OUTCOME_BYTES_PER_ORIGIN_MAX = 256 * 1024 * 1024
# They are in memory, too: so many origins may not fill it together.
OUTCOME_BYTES_MAX = 2 * OUTCOME_BYTES_PER_ORIGIN_MAX
# How often it is looked at what need not be remembered any more.
SWEEP_S = 3600.0
LEFT_MS_MAX = int(DEADLINE_S_MAX * 1000)

RunState = Literal["fetching", "waiting", "running", "stopping", "ended", "over"]

RUN_MOVES: dict[RunState, frozenset[RunState]] = {
    "fetching": frozenset({"waiting", "over"}),
    "waiting": frozenset({"running", "over"}),
    "running": frozenset({"ended", "stopping"}),
    "stopping": frozenset({"over"}),
    "ended": frozenset({"over"}),
    "over": frozenset(),
}
"""Of a task at its executor, from when it is accepted. `ended`: its outcome waits to be acknowledged."""


class RunRecord(msgspec.Struct, frozen=True, array_like=True):
    """What an executor keeps of a task: begun (only for `once`), ended with its outcome, or closed."""

    origin: str
    task_id: bytes
    state: Literal["begun", "ended", "closed"]
    until_ms: int
    outcome: bytes = b""
    result: bytes = b""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one device takes on.

    `running`: runs at once. `waiting`: accepted runs that wait for a place; more are declined, to
    be tried elsewhere.
    """

    running: int = 4
    waiting: int = 64


@dataclass(slots=True)
class _Held:
    offer: Offer
    run: Run
    state: RunState
    ends_at: float
    attempt: int


@dataclass(slots=True)
class _Undelivered:
    record: RunRecord
    attempt: int = 0
    again_s: float = RESEND_S_FIRST
    # An older timer of the same task finds another value and does nothing.
    turn: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.record.result) + len(self.record.outcome)


class Executions:
    """The tasks that this device runs, for itself and for others.

    Args:
        keypair: signs outcomes. mesh: for which mesh. incarnation: of this start. able: tells what
        this device lacks for a need (of an origin), in plain words; None if nothing. limits: how
        much at once.
    """

    def __init__(
        self,
        keypair: Keypair,
        mesh: MeshId,
        incarnation: int,
        able: Callable[[PeerId, Need], str | None],
        limits: Limits | None = None,
    ) -> None:
        self._keypair = keypair
        self._me = keypair.peer_id
        self._mesh = mesh
        self._incarnation = incarnation
        self._able = able
        self._limits = limits or Limits()
        self._held: dict[RunKey, _Held] = {}
        self._waiting: list[tuple[int, int, RunKey]] = []
        self._running = 0
        self._undelivered: dict[RunKey, _Undelivered] = {}
        self._bytes_for: dict[PeerId, int] = {}
        self._past = PastRuns()
        self._timers = Timers[tuple[RunKey, int | None]](self._is_due)
        self._swept_at: float | None = None
        self._order = count()

    @property
    def deadline(self) -> float:
        """When `tick` is next due; `math.inf` while nothing waits."""
        if self._swept_at is None:
            return self._timers.deadline
        return min(self._timers.deadline, self._swept_at + SWEEP_S)

    @property
    def running(self) -> int:
        """Runs that have a place now."""
        return self._running

    @property
    def waiting(self) -> int:
        """Accepted runs that wait for a place."""
        return len(self._held) - self._running

    def restore(self, records: Iterable[RunRecord], now: float, now_ms: int) -> list[Effect]:
        """Take up the outcomes that were not acknowledged before a restart."""
        effects: list[Effect] = []
        for record in records:
            key = (PeerId(record.origin), TaskId(record.task_id))
            if record.until_ms < now_ms:
                effects.append(Erase(Table.RUN, _record_key(key)))
            elif record.state == "closed":
                effects += self._remember_closed(key, record.until_ms, now)
            elif record.state == "begun":
                self._past.begin(key, record.until_ms)
                self._sweep_from(now)
            else:
                self._await_acknowledgement(key, record, now)
        return effects

    def left_by(self, former: "Executions") -> list[Effect]:
        """Tell the origins of what another core had taken on, and this one knows nothing of.

        Its records could not be kept. Without a word its origins would wait until the deadline,
        since this device goes on living.
        """
        taken = {
            key: held.attempt for key, held in former._held.items() if held.state != "stopping"
        }
        taken |= {key: waiting.attempt for key, waiting in former._undelivered.items()}
        why = "this device could not keep its record"
        return [
            Send(key[0], Declined(key[1], attempt, why, 2000, begun=self._past.is_begun(key)))
            for key, attempt in taken.items()
            if key[0] != self._me and key not in self._undelivered
        ]

    def receive(
        self, sender: PeerId, message: Offer | Acknowledged | Cancel, now: float, now_ms: int
    ) -> list[Effect]:
        """Take in what an origin said."""
        key = (sender, TaskId(message.task_id))
        match message:
            case Offer():
                return self._offered(key, message, now, now_ms)
            case Acknowledged():
                return self._acknowledged(key, now)
            case Cancel():
                return self._cancelled(key, now, now_ms)

    def link_up(self, peer: PeerId) -> list[Effect]:
        """An origin is in reach again: give it the outcomes that it has not acknowledged."""
        return [
            self._deliver(key, waiting)
            for key, waiting in self._undelivered.items()
            if key[0] == peer
        ]

    def fetched(
        self, origin: PeerId, task_id: TaskId, input_: bytes | None, now: float
    ) -> list[Effect]:
        """An input arrived that did not ride with its offer; None: it could not be had."""
        key = (origin, task_id)
        held = self._held.get(key)
        if held is None or held.state != "fetching":
            return []
        if input_ is None or digest_of(input_) != held.offer.input_digest:
            why = (
                "the input could not be fetched"
                if input_ is None
                else "the input is not what was offered"
            )
            dropped = self._drop_unbegun(key, held)
            return [*dropped, Send(origin, Declined(task_id, held.attempt, why, retry_ms=2000))]
        held.run = Run(origin, task_id, held.run.need, input_, held.run.ends_at)
        _move(held, "waiting")
        return self._queue(key, held, now)

    def progressed(self, origin: PeerId, task_id: TaskId, text: str) -> list[Effect]:
        """A run says how far it is."""
        held = self._held.get((origin, task_id))
        if held is None or held.state != "running":
            return []
        return [Send(origin, Progress(task_id, held.attempt, as_reason(text)))]

    def finished(
        self, origin: PeerId, task_id: TaskId, ended: Ended, now: float, now_ms: int
    ) -> list[Effect]:
        """A run ended: sign what came of it, keep it, and deliver it."""
        key = (origin, task_id)
        held = self._held.get(key)
        if held is None or held.state not in ("running", "stopping"):
            return []
        del self._held[key]
        self._running -= 1
        if held.state == "stopping":
            _move(held, "over")
            return self._start_waiting(now)
        _move(held, "ended")
        record = self._record(key, held, _within_limits(ended), now_ms)
        waiting = self._await_acknowledgement(key, record, now + RESEND_S_FIRST)
        waiting.attempt = held.attempt
        return [
            Save(Table.RUN, _record_key(key), record),
            self._deliver(key, waiting),
            *self._start_waiting(now),
        ]

    def tick(self, now: float, now_ms: int) -> list[Effect]:
        """Do what time alone calls for."""
        effects: list[Effect] = []
        for key, turn in self._timers.due(now):
            if turn is None:
                effects += self._overdue(key, now, now_ms)
            else:
                effects += self._resend(key, now, now_ms)
        if self._swept_at is not None and now >= self._swept_at + SWEEP_S:
            effects += self._sweep(now, now_ms)
        return effects

    # Offers

    def _offered(self, key: RunKey, offer: Offer, now: float, now_ms: int) -> list[Effect]:
        origin, task_id = key
        if (waiting := self._undelivered.get(key)) is not None:
            return [self._deliver(key, waiting)]
        if (held := self._held.get(key)) is not None and held.state != "stopping":
            held.attempt = offer.attempt
            return [Send(origin, Accepted(task_id, offer.attempt, self._incarnation))]
        if self._past.is_begun(key):
            why = "it began here and was cut short; whether it was done is not known"
            return [Send(origin, Declined(task_id, offer.attempt, why, 0, begun=True))]
        refusal = self._why_not(key, offer)
        if refusal is not None:
            reason, retry_ms = refusal
            return [Send(origin, Declined(task_id, offer.attempt, as_reason(reason), retry_ms))]
        return self._take(key, offer, now, now_ms)

    def _why_not(self, key: RunKey, offer: Offer) -> tuple[str, int] | None:
        """Return a reason to decline and after how many ms to ask again (0: never)."""
        if self._past.is_closed(key):
            return "it is over here: cancelled, or delivered and acknowledged", 0
        if (never := self._never(key, offer)) is not None:
            return never, 0
        if key in self._held:
            return "it is just being stopped here", 1000
        if self.waiting >= self._limits.waiting:
            return f"busy: {self._running} running, {self.waiting} waiting", 1000
        if self._bytes_for.get(key[0], 0) > OUTCOME_BYTES_PER_ORIGIN_MAX:
            return "too many outcomes of yours wait here to be acknowledged", 10_000
        if sum(self._bytes_for.values()) > OUTCOME_BYTES_MAX:
            return "too many outcomes wait here to be acknowledged", 10_000
        return None

    def _never(self, key: RunKey, offer: Offer) -> str | None:
        """Return why this offer can never be taken here."""
        origin, task_id = key
        if task_id_of(origin, offer.nonce) != task_id:
            return "the task's id is not its origin's"
        if offer.input is not None and digest_of(offer.input) != offer.input_digest:
            return "the input is not what its digest says"
        if offer.left_ms <= 0:
            return "its deadline has passed"
        if offer.left_ms > LEFT_MS_MAX:
            return f"its deadline is more than {LEFT_MS_MAX // 86_400_000} days away"
        try:
            check_shape(offer.need)
        except Misuse as error:
            return str(error)
        if offer.need.zone == "device" and origin != self._me:
            return "zone 'device' does not leave its device"
        return self._able(origin, offer.need)

    def _take(self, key: RunKey, offer: Offer, now: float, now_ms: int) -> list[Effect]:
        origin, task_id = key
        ends_at = now + offer.left_ms / 1000
        run = Run(origin, task_id, offer.need, offer.input or b"", ends_at)
        state: RunState = "fetching" if offer.input is None else "waiting"
        held = _Held(offer, run, state, ends_at, offer.attempt)
        self._held[key] = held
        self._timers.arm(ends_at, (key, None))
        effects: list[Effect] = []
        if offer.once:
            # Known before it begins, so that a restart in between is told as "unknown", not as "not
            # begun".
            until_ms = now_ms + offer.left_ms + KEEP_CLOSED_MS
            record = RunRecord(origin, task_id, "begun", until_ms)
            effects.append(Save(Table.RUN, _record_key(key), record))
        effects.append(Send(origin, Accepted(task_id, offer.attempt, self._incarnation)))
        if offer.input is None:
            return [*effects, Fetch(origin, task_id)]
        return [*effects, *self._queue(key, held, now)]

    def _queue(self, key: RunKey, held: _Held, now: float) -> list[Effect]:
        if len(self._waiting) > 2 * len(self._held) + 64:
            # Most of it was cancelled while every place was taken.
            self._waiting = [one for one in self._waiting if self._is_waiting(one[2])]
            heapq.heapify(self._waiting)
        priority = max(-PRIORITY_MAX, min(PRIORITY_MAX, held.offer.priority))
        heapq.heappush(self._waiting, (-priority, next(self._order), key))
        return self._start_waiting(now)

    def _is_waiting(self, key: RunKey) -> bool:
        held = self._held.get(key)
        return held is not None and held.state == "waiting"

    def _start_waiting(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting and self._running < self._limits.running:
            _, _, key = heapq.heappop(self._waiting)
            held = self._held.get(key)
            if held is None or held.state != "waiting" or held.ends_at <= now:
                continue
            _move(held, "running")
            self._running += 1
            effects.append(Begin(held.run))
        return effects

    # Endings

    def _record(self, key: RunKey, held: _Held, ended: Ended, now_ms: int) -> RunRecord:
        origin, task_id = key
        outcome = Outcome(
            origin=origin,
            task_id=task_id,
            attempt=held.attempt,
            task_digest=task_digest(origin, task_id, held.run.need, held.run.input),
            result_digest=digest_of(ended.result),
            state=ended.state,
            reason=as_reason(ended.reason),
            run_us=int(ended.run_s * 1_000_000),
            model=as_reason(ended.model[:NAME_CHARACTERS_MAX]),
            ended_ms=now_ms,
        )
        sealed = seal(outcome, kind=OUTCOME_KIND, mesh=self._mesh, keypair=self._keypair)
        until_ms = now_ms + held.offer.left_ms + KEEP_UNACKNOWLEDGED_MS
        return RunRecord(origin, task_id, "ended", until_ms, sealed, ended.result)

    def _deliver(self, key: RunKey, waiting: _Undelivered) -> Send:
        return Send(key[0], Delivered(key[1], waiting.record.outcome, waiting.record.result))

    def _await_acknowledgement(self, key: RunKey, record: RunRecord, when: float) -> _Undelivered:
        waiting = _Undelivered(record, turn=next(self._order))
        self._undelivered[key] = waiting
        self._bytes_for[key[0]] = self._bytes_for.get(key[0], 0) + waiting.size_bytes
        self._timers.arm(when, (key, waiting.turn))
        return waiting

    def _is_due(self, timer: tuple[RunKey, int | None]) -> bool:
        key, turn = timer
        if turn is None:
            return key in self._held
        waiting = self._undelivered.get(key)
        return waiting is not None and waiting.turn == turn

    def _resend(self, key: RunKey, now: float, now_ms: int) -> list[Effect]:
        waiting = self._undelivered[key]
        if waiting.record.until_ms < now_ms:
            self._settle(key)
            return [Erase(Table.RUN, _record_key(key))]
        waiting.again_s = min(RESEND_S_MAX, waiting.again_s * 2)
        self._timers.arm(now + waiting.again_s, (key, waiting.turn))
        return [self._deliver(key, waiting)]

    def _overdue(self, key: RunKey, now: float, now_ms: int) -> list[Effect]:
        held = self._held[key]
        if held.state == "stopping" or now < held.ends_at:
            return []
        if held.state != "running":
            return self._drop_unbegun(key, held)
        _move(held, "stopping")
        if held.offer.once:
            # Its record stays until nobody can offer it again.
            self._past.begin(key, now_ms + KEEP_CLOSED_MS)
            self._sweep_from(now)
        return [Halt(*key)]

    def _drop_unbegun(self, key: RunKey, held: _Held) -> list[Effect]:
        _move(held, "over")
        del self._held[key]
        return [Erase(Table.RUN, _record_key(key))] if held.offer.once else []

    def _acknowledged(self, key: RunKey, now: float) -> list[Effect]:
        waiting = self._settle(key)
        if waiting is None:
            return []
        until_ms = waiting.record.until_ms - KEEP_UNACKNOWLEDGED_MS + KEEP_CLOSED_MS
        return self._close(key, until_ms, now)

    def _cancelled(self, key: RunKey, now: float, now_ms: int) -> list[Effect]:
        effects: list[Effect] = []
        held = self._held.get(key)
        left_ms = LEFT_MS_MAX if held is None else held.offer.left_ms
        self._settle(key)
        if not self._past.is_closed(key):
            effects += self._close(key, now_ms + left_ms + KEEP_CLOSED_MS, now)
        effects.append(Send(key[0], CancelAcknowledged(key[1])))
        if held is None or held.state == "stopping":
            return effects
        if held.state == "running":
            _move(held, "stopping")
            return [*effects, Halt(*key)]
        _move(held, "over")
        del self._held[key]
        return effects

    def _settle(self, key: RunKey) -> _Undelivered | None:
        waiting = self._undelivered.pop(key, None)
        if waiting is not None:
            left = self._bytes_for.get(key[0], 0) - waiting.size_bytes
            if left > 0:
                self._bytes_for[key[0]] = left
            else:
                self._bytes_for.pop(key[0], None)
        return waiting

    # What is over, remembered until no offer of it can be valid

    def _close(self, key: RunKey, until_ms: int, now: float) -> list[Effect]:
        record = RunRecord(key[0], key[1], "closed", until_ms)
        displaced = self._remember_closed(key, until_ms, now)
        return [Save(Table.RUN, _record_key(key), record, lazy=True), *displaced]

    def _remember_closed(self, key: RunKey, until_ms: int, now: float) -> list[Effect]:
        displaced = self._past.close(key, until_ms)
        self._sweep_from(now)
        return [] if displaced is None else [Erase(Table.RUN, _record_key(displaced))]

    def _sweep_from(self, now: float) -> None:
        if self._swept_at is None:
            self._swept_at = now

    def _sweep(self, now: float, now_ms: int) -> list[Effect]:
        """Forget what nobody can offer any more."""
        over = self._past.sweep(now_ms)
        self._swept_at = now if self._past else None
        return [Erase(Table.RUN, _record_key(key)) for key in over]


def _move(held: _Held, state: RunState) -> None:
    assert state in RUN_MOVES[held.state], (held.state, state)
    held.state = state


def _record_key(key: RunKey) -> bytes:
    return key[1] + key[0].encode()


def _within_limits(ended: Ended) -> Ended:
    if len(ended.result) <= RESULT_BYTES_MAX:
        return ended
    why = f"the result has {len(ended.result)} bytes, over the limit of {RESULT_BYTES_MAX}; ask for less"
    return Ended("failed", b"", why, ended.run_s, ended.model)
