"""What becomes of the tasks that this device was asked? Their states, attempts, retries and
acceptance.

The origin owns a task until it has the outcome. Pure: events and `now` (seconds, monotonic) in,
effects out; `now_ms` is wall time for records that people read and for deadlines that outlive a
restart. Execution is at least once, acceptance exactly once: the first outcome that verifies, of
whichever attempt, is accepted in one transaction with the task's state. Source: DESIGN.md 8.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import msgspec

from covey.identity.envelope import MeshId, open_envelope
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId

from .effects import Changed, Effect, Erase, Save, Send, Table
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
from .routing import Candidate, Finder, Nobody
from .task import (
    INPUT_WITH_OFFER_BYTES_MAX,
    NAME_CHARACTERS_MAX,
    OUTCOME_KIND,
    Outcome,
    Task,
    TaskId,
    digest_of,
    task_digest,
)
from .task_state import MOVES, TERMINAL, Attempt, CancelRecord, State, TaskState, Verdict
from .timers import Timers

# An offer that is not answered within this is tried elsewhere; an answer takes a round trip and no
# commit.
OFFER_S = 5.0
# The lease on a running task: four times the ttl of 3 s after which a silent peer is doubted.
LEASE_S = 12.0
CANCEL_RETRY_S = 3.0
# A peer that lost a task is not asked again at once.
AVOID_S = 2.0
# A peer that declines again and again is asked after twice as long each time, up to this.
BUSY_S_MAX = 30.0
QUEUED_RETRY_S = 30.0
ATTEMPTS_MAX = 50
RETENTION_MS = 7 * 86_400_000
# Waiting tasks looked at in one step when something changed, so that a step stays short.
WAKE_BATCH = 64


@dataclass(slots=True)
class _Live:
    task: Task
    state: TaskState
    ends_at: float
    digest: bytes
    avoid: dict[PeerId, float] = field(default_factory=lambda: dict[PeerId, float]())
    declines: dict[PeerId, int] = field(default_factory=lambda: dict[PeerId, int]())
    progress: str = ""
    # The current attempt was offered but once: if that cannot be sent, its peer never heard of it.
    offered_once: bool = False
    # Bumped at each change of state: an older timer finds another value and does nothing.
    turn: int = 0

    @property
    def last(self) -> Attempt:
        return self.state.attempts[-1]


class Origin:
    """The unfinished tasks of one device, as their owner. Finished ones live in the store alone.

    Args:
        me: this peer.
        mesh: the mesh whose signatures count.
        finder: who could run a task.
    """

    def __init__(self, me: PeerId, mesh: MeshId, finder: Finder) -> None:
        self._me = me
        self._mesh = mesh
        self._finder = finder
        self._live: dict[TaskId, _Live] = {}
        self._timers = Timers[tuple[TaskId, int | None]](self._is_due)
        self._queued: dict[TaskId, None] = {}
        self._at: dict[PeerId, dict[TaskId, None]] = {}
        self._heard: dict[PeerId, float] = {}
        # Until when each is worth repeating (now_ms).
        self._cancels: dict[PeerId, dict[TaskId, int]] = {}
        self._cancels_due = math.inf
        self._wake: dict[TaskId, None] = {}
        # What this device was doing for itself when it ended.
        self._ask_again: list[TaskId] = []
        self.refused = 0
        """Outcomes that did not verify."""

    # What may be asked of it

    @property
    def deadline(self) -> float:
        """When `tick` is next due; `math.inf` while nothing waits."""
        if self._wake or self._ask_again:
            return -math.inf
        return min(self._timers.deadline, self._cancels_due)

    def state(self, task_id: TaskId) -> TaskState | None:
        """Return where an unfinished task stands."""
        live = self._live.get(task_id)
        return live.state if live is not None else None

    def progress(self, task_id: TaskId) -> str:
        """Return what the executor last said of an unfinished task."""
        live = self._live.get(task_id)
        return live.progress if live is not None else ""

    def input_for(self, task_id: TaskId, peer: PeerId) -> bytes | None:
        """Return the input for a peer that was offered the task; None for anyone else."""
        live = self._live.get(task_id)
        if live is None or not any(attempt.peer == peer for attempt in live.state.attempts):
            return None
        return live.task.input

    # Local commands

    def submit(self, task: Task, now: float, now_ms: int) -> list[Effect]:
        """Take responsibility for a task. It and its first offer are one transaction."""
        task_id = TaskId(task.id)
        if task_id in self._live:
            return []
        live = self._enter(task, TaskState("queued", "just submitted"), now, now_ms)
        return [Save(Table.TASK, task.id, task), *self._place(live, now, now_ms, always_save=True)]

    def cancel(self, task_id: TaskId, now: float, now_ms: int) -> list[Effect]:
        """End an unfinished task; final once durable, and told to its executor until acknowledged."""
        live = self._live.get(task_id)
        if live is None:
            return []
        return self._end(live, "cancelled", "cancelled by its owner", now, now_ms)

    def restore(
        self,
        records: Iterable[tuple[Task, TaskState]],
        cancels: Iterable[CancelRecord],
        now: float,
        now_ms: int,
    ) -> list[Effect]:
        """Take up unfinished tasks and unacknowledged cancels again after a start.

        An executor keeps its run across our restart, so it is first asked again about the same
        attempt; the task goes elsewhere when it has not been heard within the lease.
        """
        for record in cancels:
            waiting = self._cancels.setdefault(PeerId(record.peer), {})
            waiting[TaskId(record.task_id)] = record.until_ms
            self._cancels_due = now
        for task, state in records:
            if state.state in TERMINAL:
                continue
            live = self._enter(task, state, now, now_ms)
            if state.state == "queued":
                self._wake[TaskId(task.id)] = None
                continue
            peer = PeerId(live.last.peer)
            self._at.setdefault(peer, {})[TaskId(task.id)] = None
            self._heard.setdefault(peer, now)
            self._arm(live, now + LEASE_S)
            if peer == self._me:
                self._ask_again.append(TaskId(task.id))
        return []

    # What the world does

    def receive(
        self,
        sender: PeerId,
        message: Accepted | Declined | Progress | Delivered | CancelAcknowledged,
        now: float,
        now_ms: int,
    ) -> list[Effect]:
        """Take in what an executor said."""
        self._heard[sender] = now
        match message:
            case Delivered():
                return self._take_outcome(sender, message, now, now_ms)
            case CancelAcknowledged():
                return self._cancel_acknowledged(sender, TaskId(message.task_id))
            case Accepted() | Declined() | Progress():
                live = self._live.get(TaskId(message.task_id))
                if live is None or not _is_current(live, sender, message.attempt):
                    return []
        match message:
            case Accepted():
                return self._accepted(live, now)
            case Progress():
                live.progress = as_reason(message.text)
                return [*self._accepted(live, now), Changed(TaskId(message.task_id), live.state)]
            case Declined():
                return self._declined(live, message, now, now_ms)

    def heard(self, peer: PeerId, now: float) -> None:
        """Note a sign of life: it renews the lease on everything that runs there."""
        self._heard[peer] = now

    def link_up(self, peer: PeerId, now: float) -> list[Effect]:
        """A peer is in reach: ask it again about what it was doing for us, and wake what waits."""
        self._heard[peer] = now
        effects: list[Effect] = [
            Send(peer, self._offer_again(self._live[task_id], now))
            for task_id in self._at.get(peer, ())
        ]
        effects += [Send(peer, Cancel(task_id)) for task_id in self._cancels.get(peer, ())]
        self.wake()
        return effects

    def link_down(self, peer: PeerId, why: str, now: float, now_ms: int) -> list[Effect]:
        """A peer is cut off: what ran there is tried elsewhere (unless it may run only once)."""
        effects: list[Effect] = []
        for task_id in list(self._at.get(peer, ())):
            effects += self._lost(self._live[task_id], f"cut off: {why}", now, now_ms)
        self._heard.pop(peer, None)
        return effects

    def undelivered(self, peer: PeerId, task_id: TaskId, now: float, now_ms: int) -> list[Effect]:
        """An offer could not even be sent."""
        live = self._live.get(task_id)
        if live is None or live.state.state != "offered" or live.last.peer != peer:
            return []
        if live.task.once and not live.offered_once:
            # An earlier offer of the same attempt may have arrived, and have begun.
            return []
        live.avoid[peer] = now + AVOID_S
        return self._replace_attempt(live, "lost", "the link was gone or full", now, now_ms)

    def wake(self) -> None:
        """Something changed (a directory entry, a link, a free slot): look again at what waits."""
        self._wake.update(self._queued)

    def tick(self, now: float, now_ms: int) -> list[Effect]:
        """Do what time alone calls for."""
        effects: list[Effect] = []
        for task_id in self._ask_again:
            live = self._live.get(task_id)
            if live is not None and live.state.state in ("offered", "running"):
                effects.append(Send(self._me, self._offer_again(live, now)))
        self._ask_again.clear()
        for task_id in list(islice(self._wake, WAKE_BATCH)):
            del self._wake[task_id]
            live = self._live.get(task_id)
            if live is not None and live.state.state == "queued":
                effects += self._place(live, now, now_ms)
        for task_id, _ in self._timers.due(now):
            effects += self._due(self._live[task_id], now, now_ms)
        if now >= self._cancels_due:
            effects += self._forget_cancels(now_ms)
            effects += self._cancel_again(now)
        return effects

    # The inside

    def _enter(self, task: Task, state: TaskState, now: float, now_ms: int) -> _Live:
        task_id = TaskId(task.id)
        ends_at = now + (task.deadline_ms - now_ms) / 1000
        digest = task_digest(task.origin, task.id, task.need, task.input)
        live = _Live(task, state, ends_at, digest)
        self._live[task_id] = live
        if state.state == "queued":
            self._queued[task_id] = None
        self._timers.arm(ends_at, (task_id, None))
        return live

    def _arm(self, live: _Live, when: float) -> None:
        live.turn += 1
        self._timers.arm(min(when, live.ends_at), (TaskId(live.task.id), live.turn))

    def _is_due(self, timer: tuple[TaskId, int | None]) -> bool:
        live = self._live.get(timer[0])
        return live is not None and timer[1] in (live.turn, None)

    def _due(self, live: _Live, now: float, now_ms: int) -> list[Effect]:
        if now >= live.ends_at:
            return self._expire(live, now, now_ms)
        if live.state.state == "queued":
            return self._place(live, now, now_ms)
        if live.last.peer == self._me:
            # This device cannot fall silent towards itself: what it loses, it loses with this core.
            self._arm(live, live.ends_at)
            return []
        if live.state.state == "offered":
            return self._lost(live, f"no answer within {OFFER_S:g} s", now, now_ms)
        silent_since = self._heard.get(PeerId(live.last.peer), -math.inf)
        if now < silent_since + LEASE_S:
            self._arm(live, silent_since + LEASE_S)
            return []
        return self._lost(live, f"not heard for {LEASE_S:g} s", now, now_ms)

    def _place(
        self, live: _Live, now: float, now_ms: int, *, always_save: bool = False
    ) -> list[Effect]:
        """Offer the task to the best candidate, or let it wait with a reason."""
        task = live.task
        if len(live.state.attempts) >= ATTEMPTS_MAX:
            return self._end(live, "failed", f"tried {ATTEMPTS_MAX} times in vain", now, now_ms)
        live.avoid = {peer: until for peer, until in live.avoid.items() if until > now}
        found = self._finder.find(task.need, live.avoid, now, live.ends_at - now)
        match found:
            case Nobody(lacking):
                reason = as_reason(lacking)
                retry_at = min([*live.avoid.values(), now + QUEUED_RETRY_S])
                changed = live.state.state != "queued" or live.state.reason != reason
                self._move(live, "queued", reason)
                self._arm(live, max(retry_at, now + 0.05))
                if not changed and not always_save:
                    return []
                return [
                    Save(Table.STATE, task.id, live.state),
                    Changed(TaskId(task.id), live.state),
                ]
            case Candidate(peer, way, why):
                number = self._number_for(live, peer)
                attempt = Attempt(number, peer, way, as_reason(why), "offered", "", now_ms)
                live.offered_once = True
                self._move(live, "offered", f"offered to {peer}", attempt=attempt)
                self._at.setdefault(peer, {})[TaskId(task.id)] = None
                self._arm(live, now + OFFER_S)
                return [
                    Save(Table.STATE, task.id, live.state),
                    Send(peer, self._offer(live, now)),
                    Changed(TaskId(task.id), live.state),
                ]

    def _number_for(self, live: _Live, peer: PeerId) -> int:
        """Number the attempt at `peer`: a peer that only asked to be asked later keeps its number."""
        attempts = live.state.attempts
        # Not of a task that may run once: a decline that comes late would be taken for an answer.
        if attempts and not live.task.once:
            last = attempts[-1]
            if last.peer == peer and last.state == "declined":
                return last.number
        return len(attempts) + 1

    def _offer_again(self, live: _Live, now: float) -> Offer:
        live.offered_once = False
        return self._offer(live, now)

    def _offer(self, live: _Live, now: float) -> Offer:
        task = live.task
        rides = len(task.input) <= INPUT_WITH_OFFER_BYTES_MAX
        return Offer(
            task_id=task.id,
            attempt=live.last.number,
            nonce=task.nonce,
            need=task.need,
            input=task.input if rides else None,
            input_digest=digest_of(task.input),
            left_ms=max(0, int((live.ends_at - now) * 1000)),
            priority=task.priority,
            once=task.once,
        )

    def _move(
        self, live: _Live, state: State, reason: str, *, attempt: Attempt | None = None
    ) -> None:
        before = live.state
        reason = as_reason(reason)
        assert state == before.state or state in MOVES[before.state], (before.state, state)
        attempts = before.attempts
        if attempt is not None:
            attempts = (*attempts[: attempt.number - 1], attempt)
        live.state = msgspec.structs.replace(before, state=state, reason=reason, attempts=attempts)
        if state == "queued":
            self._queued[TaskId(live.task.id)] = None
        else:
            self._queued.pop(TaskId(live.task.id), None)

    def _close_attempt(self, live: _Live, state: str, reason: str, now_ms: int) -> None:
        """Write how the current attempt ended; it no longer binds its peer."""
        if not live.state.attempts:
            return
        last = live.last
        self._at.get(PeerId(last.peer), {}).pop(TaskId(live.task.id), None)
        if last.ended_ms:
            return
        ended = msgspec.structs.replace(
            last, state=state, reason=as_reason(reason), ended_ms=now_ms
        )
        attempts = (*live.state.attempts[:-1], ended)
        live.state = msgspec.structs.replace(live.state, attempts=attempts)

    def _accepted(self, live: _Live, now: float) -> list[Effect]:
        last = msgspec.structs.replace(live.last, state="running")
        reason = f"running at {last.peer}"
        if live.state.state == "running" and live.state.reason == reason:
            return []
        # Also when it is heard of again: it is not unknown any more.
        self._move(live, "running", reason, attempt=last)
        self._arm(live, now + LEASE_S)
        task_id = TaskId(live.task.id)
        # Losing this record costs one question to the executor: no commit of its own.
        return [Save(Table.STATE, task_id, live.state, lazy=True), Changed(task_id, live.state)]

    def _declined(self, live: _Live, message: Declined, now: float, now_ms: int) -> list[Effect]:
        reason = as_reason(message.reason)
        if message.begun and live.task.once:
            # Only that executor can know; the deadline ends the wait.
            self._move(live, live.state.state, f"unknown at {live.last.peer}: {reason}")
            self._arm(live, live.ends_at)
            return [
                Save(Table.STATE, live.task.id, live.state),
                Changed(TaskId(live.task.id), live.state),
            ]
        peer = PeerId(live.last.peer)
        never_again = live.ends_at
        retry_s = message.retry_ms / 1000
        before = live.declines.get(peer, 0)
        live.declines[peer] = before + 1
        wait_s = max(retry_s, min(BUSY_S_MAX, retry_s * 2.0 ** min(before, 16)))
        live.avoid[peer] = now + wait_s if retry_s > 0 else never_again
        return self._replace_attempt(live, "declined", reason, now, now_ms)

    def _lost(self, live: _Live, why: str, now: float, now_ms: int) -> list[Effect]:
        if live.task.once:
            # It may have begun there, so nobody else gets it unless that executor says that it has
            # not.
            self._move(live, live.state.state, f"unknown at {live.last.peer}: {why}")
            self._arm(live, live.ends_at)
            return [
                Save(Table.STATE, live.task.id, live.state),
                Changed(TaskId(live.task.id), live.state),
            ]
        live.avoid[PeerId(live.last.peer)] = now + AVOID_S
        return self._replace_attempt(live, "lost", why, now, now_ms)

    def _replace_attempt(
        self, live: _Live, state: str, why: str, now: float, now_ms: int
    ) -> list[Effect]:
        self._close_attempt(live, state, why, now_ms)
        return self._place(live, now, now_ms, always_save=True)

    def _expire(self, live: _Live, now: float, now_ms: int) -> list[Effect]:
        where = live.state.state
        if live.task.once and where in ("offered", "running"):
            why = f"unknown at {live.last.peer}: its deadline passed without word"
            return self._end(live, "failed", why, now, now_ms)
        if where == "queued":
            doing = f"while it waited: {live.state.reason}"
        else:
            at = "offered to" if where == "offered" else "it ran at"
            doing = f"while {at} {live.last.peer}"
        return self._end(live, "expired", f"its deadline passed {doing}", now, now_ms)

    def _end(self, live: _Live, state: State, reason: str, now: float, now_ms: int) -> list[Effect]:
        """Finish without an outcome; whoever may be running it is told to stop."""
        busy = {PeerId(one.peer) for one in live.state.attempts if one.state != "declined"}
        self._close_attempt(live, "cancelled" if state == "cancelled" else "lost", reason, now_ms)
        return self._finish(live, state, reason, busy, now, now_ms)

    def _finish(
        self,
        live: _Live,
        state: State,
        reason: str,
        to_cancel: set[PeerId],
        now: float,
        now_ms: int,
    ) -> list[Effect]:
        task_id = TaskId(live.task.id)
        self._move(live, state, reason)
        live.state = msgspec.structs.replace(live.state, ended_ms=now_ms)
        del self._live[task_id]
        self._wake.pop(task_id, None)
        until_ms = live.task.deadline_ms + RETENTION_MS
        for peer in to_cancel:
            self._cancels.setdefault(peer, {})[task_id] = until_ms
            self._cancels_due = min(self._cancels_due, now + CANCEL_RETRY_S)
        return [
            Save(Table.STATE, task_id, live.state),
            *(
                Save(
                    Table.CANCEL, _cancel_key(peer, task_id), CancelRecord(peer, task_id, until_ms)
                )
                for peer in sorted(to_cancel)
            ),
            *(Send(peer, Cancel(task_id)) for peer in sorted(to_cancel)),
            Changed(task_id, live.state),
        ]

    # Outcomes

    def _take_outcome(
        self, sender: PeerId, message: Delivered, now: float, now_ms: int
    ) -> list[Effect]:
        task_id = TaskId(message.task_id)
        live = self._live.get(task_id)
        if live is None:
            # Finished (the first outcome counted) or never ours: either way the sender may forget
            # it.
            return [Send(sender, Acknowledged(task_id))]
        outcome = self._verified(live, sender, message)
        if outcome is None:
            self.refused += 1
            return []
        others = {
            PeerId(one.peer)
            for one in live.state.attempts
            if one.state in ("offered", "running", "lost") and one.number != outcome.attempt
        } - {sender}
        attempts = tuple(
            _ended(one, outcome, now_ms) if one.number == outcome.attempt else one
            for one in live.state.attempts
        )
        live.state = msgspec.structs.replace(
            live.state,
            attempts=attempts,
            run_us=outcome.run_us,
            model=as_reason(outcome.model[:NAME_CHARACTERS_MAX]),
            executor=sender,
        )
        self._close_attempt(live, "cancelled", "another attempt was done first", now_ms)
        reason = as_reason(outcome.reason) or f"{outcome.state} at {sender}"
        effects = self._finish(live, outcome.state, reason, others, now, now_ms)
        verdict = Verdict(message.outcome, message.result)
        return [
            Save(Table.RESULT, task_id, verdict),
            *effects,
            Send(sender, Acknowledged(task_id)),
        ]

    def _verified(self, live: _Live, sender: PeerId, message: Delivered) -> Outcome | None:
        """Return the outcome if it is signed for this task by the peer our record names for its attempt."""
        try:
            signed = open_envelope(message.outcome, Outcome, kind=OUTCOME_KIND, mesh=self._mesh)
        except (Malformed, NotAdmitted):
            return None
        outcome = signed.body
        holds = (
            signed.signer == sender
            and outcome.origin == self._me
            and outcome.task_id == live.task.id
            and outcome.task_digest == live.digest
            and outcome.result_digest == digest_of(message.result)
            and any(
                one.number == outcome.attempt and one.peer == sender for one in live.state.attempts
            )
        )
        return outcome if holds else None

    # Cancels, told until acknowledged

    def _cancel_again(self, now: float) -> list[Effect]:
        self._cancels_due = now + CANCEL_RETRY_S if any(self._cancels.values()) else math.inf
        return [
            Send(peer, Cancel(task_id))
            for peer, ids in self._cancels.items()
            for task_id in islice(ids, WAKE_BATCH)
        ]

    def _forget_cancels(self, now_ms: int) -> list[Effect]:
        """Give up on peers that could not be told until no offer could be valid any more."""
        over = [
            (peer, task_id)
            for peer, ids in self._cancels.items()
            for task_id, until_ms in ids.items()
            if until_ms <= now_ms
        ]
        return [one for key in over for one in self._cancel_acknowledged(*key)]

    def _cancel_acknowledged(self, sender: PeerId, task_id: TaskId) -> list[Effect]:
        waiting = self._cancels.get(sender, {})
        if task_id not in waiting:
            return []
        del waiting[task_id]
        if not waiting:
            del self._cancels[sender]
        return [Erase(Table.CANCEL, _cancel_key(sender, task_id))]


def _cancel_key(peer: PeerId, task_id: TaskId) -> bytes:
    return task_id + peer.encode()


def _is_current(live: _Live, sender: PeerId, attempt: int) -> bool:
    return (
        live.state.state in ("offered", "running")
        and live.last.peer == sender
        and live.last.number == attempt
    )


def _ended(attempt: Attempt, outcome: Outcome, now_ms: int) -> Attempt:
    return msgspec.structs.replace(
        attempt, state=outcome.state, reason=as_reason(outcome.reason), ended_ms=now_ms
    )


def forget(tasks: Iterable[tuple[Task, TaskState]], now_ms: int) -> Iterator[Erase]:
    """Return what erases finished tasks that nobody can ask about any more: 7 days past their deadline."""
    for task, state in tasks:
        if state.state in TERMINAL and now_ms > task.deadline_ms + RETENTION_MS:
            for table in (Table.TASK, Table.STATE, Table.RESULT):
                yield Erase(table, task.id)
