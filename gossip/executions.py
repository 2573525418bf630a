"""What does this device do for others? Offers taken or declined, runs, outcomes delivered until
acknowledged.

Pure: events and `now` (seconds, monotonic) in, effects out. A record belongs to (origin, task id)
and answers only that origin. An acceptance names this incarnation and has no commit of its own:
after a restart what had begun is unknown here, and the origin offers again. An outcome is durable
before it leaves, and is repeated until its origin acknowledges it. Source: DESIGN.md 8.
"""

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count
from typing import Literal

import msgspec

from covey.identity.envelope import MeshId, seal
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
)
from .task import (
    OUTCOME_KIND,
    RESULT_BYTES_MAX,
    Need,
    Outcome,
    TaskId,
    digest_of,
    task_digest,
    task_id_of,
)

RunKey = tuple[PeerId, TaskId]

RESEND_S_FIRST = 2.0
RESEND_S_MAX = 60.0
FETCH_S = 30.0
# An outcome that its origin never fetches is dropped 90 days after the task's deadline.
KEEP_UNACKNOWLEDGED_MS = 90 * 86_400_000
# A cancel or a done task is remembered until no offer of it can be valid any more.
KEEP_CLOSED_MS = 7 * 86_400_000
OUTCOME_BYTES_PER_ORIGIN_MAX = 256 * 1024 * 1024
CLOSED_MAX = 100_000


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
    state: Literal["fetching", "waiting", "running"]
    ends_at: float
    attempt: int
    halted: bool = False


@dataclass(slots=True)
class _Undelivered:
    record: RunRecord
    again_s: float = RESEND_S_FIRST
    sizes: int = 0


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
        self._closed: dict[RunKey, int] = {}
        self._begun_before: set[RunKey] = set()
        self._timers: list[tuple[float, int, RunKey, str]] = []
        self._order = count()

    @property
    def deadline(self) -> float:
        """When `tick` is next due; `math.inf` while nothing waits."""
        return self._timers[0][0] if self._timers else math.inf

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
                self._closed[key] = record.until_ms
            elif record.state == "begun":
                self._begun_before.add(key)
            else:
                size = len(record.result) + len(record.outcome)
                self._undelivered[key] = _Undelivered(record, sizes=size)
                self._bytes_for[key[0]] = self._bytes_for.get(key[0], 0) + size
                self._arm(now, key, "resend")
        return effects

    def receive(
        self, sender: PeerId, message: Offer | Acknowledged | Cancel, now: float, now_ms: int
    ) -> list[Effect]:
        """Take in what an origin said."""
        key = (sender, TaskId(message.task_id))
        match message:
            case Offer():
                return self._offered(key, message, now, now_ms)
            case Acknowledged():
                return self._acknowledged(key)
            case Cancel():
                return self._cancelled(key, now_ms)

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
            del self._held[key]
            why = (
                "the input could not be fetched"
                if input_ is None
                else "the input is not what was offered"
            )
            return [Send(origin, Declined(task_id, held.attempt, why, retry_ms=2000))]
        held.run = Run(origin, task_id, held.run.need, input_, held.run.ends_at)
        held.state = "waiting"
        heapq.heappush(self._waiting, (-held.offer.priority, next(self._order), key))
        return self._start_waiting(now)

    def progressed(self, origin: PeerId, task_id: TaskId, text: str) -> list[Effect]:
        """A run says how far it is."""
        held = self._held.get((origin, task_id))
        if held is None:
            return []
        return [Send(origin, Progress(task_id, held.attempt, text[:500]))]

    def finished(
        self, origin: PeerId, task_id: TaskId, ended: Ended, now: float, now_ms: int
    ) -> list[Effect]:
        """A run ended: sign what came of it, keep it, and deliver it."""
        key = (origin, task_id)
        held = self._held.pop(key, None)
        if held is None:
            return []
        self._running -= 1
        if held.halted:
            return self._start_waiting(now)
        ended = _within_limits(ended)
        record = self._record(key, held, ended, now_ms)
        waiting = _Undelivered(record, sizes=len(record.result) + len(record.outcome))
        self._undelivered[key] = waiting
        self._bytes_for[origin] = self._bytes_for.get(origin, 0) + waiting.sizes
        self._arm(now + RESEND_S_FIRST, key, "resend")
        return [
            Save(Table.RUN, _record_key(key), record),
            self._deliver(key, waiting),
            *self._start_waiting(now),
        ]

    def tick(self, now: float, now_ms: int) -> list[Effect]:
        """Do what time alone calls for."""
        effects: list[Effect] = []
        while self._timers and self._timers[0][0] <= now:
            _, _, key, what = heapq.heappop(self._timers)
            if what == "resend":
                effects += self._resend(key, now, now_ms)
            else:
                effects += self._overdue(key, now, now_ms)
        return effects

    # Offers

    def _offered(self, key: RunKey, offer: Offer, now: float, now_ms: int) -> list[Effect]:
        origin, task_id = key
        if (waiting := self._undelivered.get(key)) is not None:
            return [self._deliver(key, waiting)]
        if (held := self._held.get(key)) is not None and not held.halted:
            held.attempt = offer.attempt
            return [Send(origin, Accepted(task_id, offer.attempt, self._incarnation))]
        if key in self._begun_before:
            why = "this device restarted after it had begun; whether it was done is not known"
            return [Send(origin, Declined(task_id, offer.attempt, why, 0, begun=True))]
        refusal = self._why_not(key, offer)
        if refusal is not None:
            reason, retry_ms = refusal
            return [Send(origin, Declined(task_id, offer.attempt, reason, retry_ms))]
        return self._take(key, offer, now, now_ms)

    def _why_not(self, key: RunKey, offer: Offer) -> tuple[str, int] | None:
        """Return a reason to decline and after how many ms to ask again (0: never)."""
        origin, task_id = key
        if key in self._closed:
            return "it is over here: cancelled, or delivered and acknowledged", 0
        if task_id_of(origin, offer.nonce) != task_id:
            return "the task's id is not its origin's", 0
        if offer.input is not None and digest_of(offer.input) != offer.input_digest:
            return "the input is not what its digest says", 0
        if offer.left_ms <= 0:
            return "its deadline has passed", 0
        if offer.need.zone == "device" and origin != self._me:
            return "zone 'device' does not leave its device", 0
        if (lack := self._able(origin, offer.need)) is not None:
            return lack, 0
        if key in self._held:
            return "it is just being stopped here", 1000
        if self.waiting >= self._limits.waiting:
            return f"busy: {self._running} running, {self.waiting} waiting", 1000
        if self._bytes_for.get(origin, 0) > OUTCOME_BYTES_PER_ORIGIN_MAX:
            return "too many outcomes of yours wait here to be acknowledged", 10_000
        return None

    def _take(self, key: RunKey, offer: Offer, now: float, now_ms: int) -> list[Effect]:
        origin, task_id = key
        ends_at = now + offer.left_ms / 1000
        run = Run(origin, task_id, offer.need, offer.input or b"", ends_at)
        held = _Held(offer, run, "waiting", ends_at, offer.attempt)
        self._held[key] = held
        self._arm(ends_at, key, "overdue")
        effects: list[Effect] = []
        if offer.once:
            # Known before it begins, so that a restart in between is told as "unknown", not as "not
            # begun".
            until_ms = now_ms + offer.left_ms + KEEP_CLOSED_MS
            record = RunRecord(origin, task_id, "begun", until_ms)
            effects.append(Save(Table.RUN, _record_key(key), record))
        effects.append(Send(origin, Accepted(task_id, offer.attempt, self._incarnation)))
        if offer.input is None:
            held.state = "fetching"
            return [*effects, Fetch(origin, task_id)]
        heapq.heappush(self._waiting, (-offer.priority, next(self._order), key))
        return [*effects, *self._start_waiting(now)]

    def _start_waiting(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._waiting and self._running < self._limits.running:
            _, _, key = heapq.heappop(self._waiting)
            held = self._held.get(key)
            if held is None or held.state != "waiting" or held.ends_at <= now:
                continue
            held.state = "running"
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
            reason=ended.reason[:500],
            run_us=int(ended.run_s * 1_000_000),
            model=ended.model[:128],
            ended_ms=now_ms,
        )
        sealed = seal(outcome, kind=OUTCOME_KIND, mesh=self._mesh, keypair=self._keypair)
        until_ms = now_ms + held.offer.left_ms + KEEP_UNACKNOWLEDGED_MS
        return RunRecord(origin, task_id, "ended", until_ms, sealed, ended.result)

    def _deliver(self, key: RunKey, waiting: _Undelivered) -> Send:
        return Send(key[0], Delivered(key[1], waiting.record.outcome, waiting.record.result))

    def _resend(self, key: RunKey, now: float, now_ms: int) -> list[Effect]:
        waiting = self._undelivered.get(key)
        if waiting is None:
            return []
        if waiting.record.until_ms < now_ms:
            self._settle(key)
            return [Erase(Table.RUN, _record_key(key))]
        waiting.again_s = min(RESEND_S_MAX, waiting.again_s * 2)
        self._arm(now + waiting.again_s, key, "resend")
        return [self._deliver(key, waiting)]

    def _overdue(self, key: RunKey, now: float, now_ms: int) -> list[Effect]:
        held = self._held.get(key)
        if held is None or held.halted or now < held.ends_at:
            return []
        if held.state == "running":
            held.halted = True
            return [Halt(*key)]
        del self._held[key]
        return []

    def _acknowledged(self, key: RunKey) -> list[Effect]:
        waiting = self._settle(key)
        if waiting is None:
            return []
        return [self._close(key, waiting.record.until_ms - KEEP_UNACKNOWLEDGED_MS + KEEP_CLOSED_MS)]

    def _cancelled(self, key: RunKey, now_ms: int) -> list[Effect]:
        effects: list[Effect] = [Send(key[0], CancelAcknowledged(key[1]))]
        held = self._held.get(key)
        left_ms = 90 * 86_400_000 if held is None else held.offer.left_ms
        self._settle(key)
        if key not in self._closed:
            effects.insert(0, self._close(key, now_ms + left_ms + KEEP_CLOSED_MS))
        if held is not None and not held.halted:
            if held.state == "running":
                held.halted = True
                effects.append(Halt(*key))
            else:
                del self._held[key]
        return effects

    def _settle(self, key: RunKey) -> _Undelivered | None:
        waiting = self._undelivered.pop(key, None)
        if waiting is not None:
            left = self._bytes_for.get(key[0], 0) - waiting.sizes
            if left > 0:
                self._bytes_for[key[0]] = left
            else:
                self._bytes_for.pop(key[0], None)
        return waiting

    def _close(self, key: RunKey, until_ms: int) -> Save:
        if len(self._closed) >= CLOSED_MAX:
            del self._closed[next(iter(self._closed))]
        self._closed[key] = until_ms
        record = RunRecord(key[0], key[1], "closed", until_ms)
        return Save(Table.RUN, _record_key(key), record, lazy=True)

    def _arm(self, when: float, key: RunKey, what: str) -> None:
        heapq.heappush(self._timers, (when, next(self._order), key, what))


def _record_key(key: RunKey) -> bytes:
    return key[1] + key[0].encode()


def _within_limits(ended: Ended) -> Ended:
    if len(ended.result) <= RESULT_BYTES_MAX:
        return ended
    why = f"the result has {len(ended.result)} bytes, over the limit of {RESULT_BYTES_MAX}; ask for less"
    return Ended("failed", b"", why, ended.run_s, ended.model)
