"""How do the delivery cores meet the world? One place that keeps their promise: records first,
messages after.

Every event steps a core synchronously. Its records are one transaction; its messages, runs and
answers to callers wait until that and every earlier transaction is durable, and leave at once if
nothing is pending. If a commit fails, the cores are thrown away and read again from the store, and
callers hear why.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import trio

from covey.identity.errors import CoveyError, Malformed, Misuse, PeerMisbehaved, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import encode

from .effects import Begin, Changed, Effect, Ended, Erase, Fetch, Halt, Run, Save, Send, Table
from .executions import Executions, RunRecord
from .messages import (
    CHANNEL,
    INPUT_CHANNEL,
    PAYLOAD,
    Accepted,
    Acknowledged,
    Cancel,
    Declined,
    Delivered,
    Message,
    Offer,
    decode_message,
    encode_message,
)
from .network import LinkDown, LinkUp, Network
from .origin import Origin
from .task import INPUT_BYTES_MAX, Task, TaskId
from .task_state import TERMINAL, CancelRecord, TaskState, Verdict

log = logging.getLogger(__name__)

FETCH_S = 30.0
# Lazy records go with the next commit, or alone after this; losing them costs only a repetition.
LAZY_S = 1.0
# After a failed commit, what only time or this device itself calls for waits this long: a full disk
# must not be tried without a pause.
CALM_S = 1.0
# Steps that wait for the disk; at this many nothing more is taken on until it has caught up.
PENDING_MAX = 4096
# An acceptance waits this long; an origin doubts an offer only after 5 s.
ACCEPT_S = 0.01
LAZY_ROWS_MAX = 512

Row = tuple[Table, bytes, bytes | None]
"""Table, key, and the value; None erases."""
Then = Callable[[Unavailable | None], None]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store held when the cores were made."""

    tasks: Iterable[tuple[Task, TaskState]]
    cancels: Iterable[CancelRecord]
    runs: Iterable[RunRecord]


class Records(Protocol):
    """Where records are kept; `peer/records.py` is the real one."""

    def put(self, rows: Sequence[Row], then: Then) -> None:
        """Queue one transaction; `then` is called on the trio thread, in order of queueing."""
        ...

    def unfinished(self) -> Kept:
        """Return what the cores need at start."""
        ...

    def task(self, task_id: TaskId) -> tuple[Task, TaskState] | None:
        """Return a task's durable records."""
        ...

    def verdict(self, task_id: TaskId) -> Verdict | None:
        """Return a finished task's outcome and result."""
        ...


class Runner(Protocol):
    """What runs skills; `peer/executor.py` is the real one."""

    async def run(self, run: Run, progress: Progress) -> Ended:
        """Run to the end. Cancelled when it is not wanted any more."""
        ...


@dataclass(slots=True)
class _Caller:
    """Someone waiting for a step to be durable."""

    done: trio.Event
    error: Unavailable | None = None
    has_rows: bool = False
    """Its own step has records in the transaction that it waits for."""


Cores = tuple[Origin, Executions]
_Action = Send | Begin | Fetch | Halt | Changed | _Caller


class Delivery:
    """Drives one device's `Origin` and `Executions`. Use as: `nursery.start_soon(delivery.serve)`.

    Args:
        make: builds fresh cores; called at start and after a failed commit.
        network: the links.
        records: the store.
        runner: runs skills.
        now_ms: reads the wall clock.
    """

    def __init__(
        self,
        make: Callable[[], Cores],
        network: Network,
        records: Records,
        runner: Runner,
        now_ms: Callable[[], int],
    ) -> None:
        self._make = make
        self._network = network
        self._records = records
        self._runner = runner
        self._now_ms = now_ms
        self.origin, self.executions = make()
        self._lazy: dict[tuple[Table, bytes], bytes | None] = {}
        self._lazy_due = math.inf
        self._pending: deque[list[_Action]] = deque()
        self._loopback: deque[tuple[PeerId, Message]] = deque()
        self._looping = False
        self._acceptances: dict[tuple[PeerId, TaskId], Accepted] = {}
        # Its deadline moves, and wakes nobody before it: most acceptances are replaced in time.
        self._accepting = trio.CancelScope()
        self._scopes: dict[tuple[PeerId, TaskId], trio.CancelScope] = {}
        self._waiters: dict[TaskId, list[trio.Event]] = {}
        self._watchers: list[Callable[[TaskId, TaskState], None]] = []
        self._calm_at = -math.inf
        self._start_over_at = -math.inf
        self._nursery: trio.Nursery | None = None
        self._poked = trio.Event()
        self._sleeping_until = -math.inf
        self._failed: Unavailable | None = None
        network.on_message(CHANNEL, self._heard_message)
        network.on_request(INPUT_CHANNEL, self._give_input)
        network.on_link(self._heard_link)

    # For the daemon

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what was unfinished, then drive the cores until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._accept)
                self._take_up(self._records.unfinished())
                task_status.started()
                while True:
                    due = self._sleeping_until = self._due
                    with trio.move_on_at(due):
                        await self._poked.wait()
                        self._poked = trio.Event()
                    self._step()
            finally:
                # What is still to be committed may yet be durable; nothing of it starts any more.
                self._nursery = None

    async def submit(self, task: Task) -> None:
        """Take responsibility for a task; it is durable when this returns.

        Raises:
            Unavailable: the disk does not take it now.
        """
        self._check_ready()
        await self._durably(self.origin.submit(task, trio.current_time(), self._now_ms()))

    async def cancel(self, task_id: TaskId) -> None:
        """Cancel an unfinished task; final when this returns.

        Raises:
            Unavailable: the disk does not take it now.
        """
        self._check_ready()
        now = trio.current_time()
        await self._durably(self.origin.cancel(task_id, now, self._now_ms()))

    async def wait_finished(self, task_id: TaskId, timeout_s: float) -> bool:
        """Wait until a task is finished and that is durable; False if it is not within timeout_s."""
        if self.origin.state(task_id) is None:
            found = self._records.task(task_id)
            if found is not None and found[1].state in TERMINAL:
                return True
        event = trio.Event()
        self._waiters.setdefault(task_id, []).append(event)
        try:
            with trio.move_on_after(timeout_s) as scope:
                await event.wait()
        finally:
            waiters = self._waiters.get(task_id, [])
            if event in waiters:
                waiters.remove(event)
            if not waiters:
                self._waiters.pop(task_id, None)
        return not scope.cancelled_caught

    def on_changed(self, watcher: Callable[[TaskId, TaskState], None]) -> None:
        """Call `watcher` after each durable change of a task's state. It must not wait."""
        self._watchers.append(watcher)

    def wake(self) -> None:
        """The directory or this device changed: look again at what waits."""
        self.origin.wake()
        self._poke()

    # Events

    def _heard_message(self, sender: PeerId, body: bytes) -> None:
        try:
            message = decode_message(body)
        except Malformed as error:
            raise PeerMisbehaved(sender, f"sent no delivery message: {error}") from error
        self._receive(sender, message)

    def _receive(self, sender: PeerId, message: Message) -> None:
        # What is not taken in now is as if lost on the way: it is repeated, or missed in time.
        if self._failed is not None or len(self._pending) >= PENDING_MAX:
            return
        now, now_ms = trio.current_time(), self._now_ms()
        match message:
            case Offer() | Acknowledged() | Cancel():
                effects = self.executions.receive(sender, message, now, now_ms)
            case _:
                effects = self.origin.receive(sender, message, now, now_ms)
        self._carry_out(effects)

    def _heard_link(self, event: LinkUp | LinkDown) -> None:
        if self._failed is not None:
            return
        now, now_ms = trio.current_time(), self._now_ms()
        match event:
            case LinkUp(peer, _):
                self._carry_out(self.origin.link_up(peer, now))
                self._carry_out(self.executions.link_up(peer))
            case LinkDown(peer, why):
                self._carry_out(self.origin.link_down(peer, why, now, now_ms))

    async def _give_input(self, sender: PeerId, body: bytes) -> bytes:
        input_ = self.origin.input_for(TaskId(body), sender)
        if input_ is None:
            raise Misuse("no such task was offered to you")
        return input_

    @property
    def _due(self) -> float:
        """When `_step` is next due."""
        if self._failed is not None:
            return math.inf if self._pending else self._start_over_at
        cores = max(self._calm_at, min(self.origin.deadline, self.executions.deadline))
        return min(cores, self._lazy_due)

    def _step(self) -> None:
        """Do what is due."""
        now, now_ms = trio.current_time(), self._now_ms()
        if self._failed is not None:
            if not self._pending and now >= self._start_over_at:
                self._start_over()
            return
        if now >= self._lazy_due:
            self._flush_lazy()
        for peer, link in self._network.links().items():
            self.origin.heard(peer, link.heard_at)
        self._carry_out(self.origin.tick(now, now_ms))
        self._carry_out(self.executions.tick(now, now_ms))

    def _take_up(self, kept: Kept) -> None:
        now, now_ms = trio.current_time(), self._now_ms()
        self._carry_out(self.executions.restore(kept.runs, now, now_ms))
        self._carry_out(self.origin.restore(kept.tasks, kept.cancels, now, now_ms))
        for peer in self._network.links():
            self._carry_out(self.origin.link_up(peer, now))

    # Carrying out

    def _check_ready(self) -> None:
        if self._failed is not None:
            raise Unavailable(str(self._failed))
        if len(self._pending) >= PENDING_MAX:
            raise Unavailable(f"{PENDING_MAX} records wait for the disk already; try again later")

    async def _durably(self, effects: list[Effect]) -> None:
        caller = _Caller(trio.Event())
        self._carry_out(effects, caller)
        # The step is taken and its record is on its way: leaving now would hide whether it counts.
        with trio.CancelScope(shield=True):
            await caller.done.wait()
        if caller.error is not None:
            raise Unavailable(str(caller.error)) from caller.error

    def _carry_out(self, effects: list[Effect], caller: _Caller | None = None) -> None:
        rows: list[Row] = []
        actions: list[_Action] = []
        for effect in effects:
            match effect:
                case Save(table, key, value, lazy):
                    self._keep(rows, table, key, encode(value), lazy=lazy)
                case Erase(table, key, lazy):
                    self._keep(rows, table, key, None, lazy=lazy)
                case _:
                    actions.append(effect)
        if caller is not None:
            caller.has_rows = bool(rows)
            actions.append(caller)
        if rows:
            whole = [*((table, key, value) for (table, key), value in self._lazy.items()), *rows]
            self._lazy.clear()
            self._lazy_due = math.inf
            self._pending.append(actions)
            self._records.put(whole, self._committed)
        elif self._pending:
            self._pending[-1].extend(actions)
        elif self._failed is None:
            self._act(actions)
        self._poke()

    def _keep(
        self, rows: list[Row], table: Table, key: bytes, value: bytes | None, *, lazy: bool
    ) -> None:
        if lazy and len(self._lazy) < LAZY_ROWS_MAX:
            self._lazy[(table, key)] = value
            self._lazy_due = min(self._lazy_due, trio.current_time() + LAZY_S)
        else:
            self._lazy.pop((table, key), None)
            rows.append((table, key, value))

    def _flush_lazy(self) -> None:
        rows: list[Row] = [(table, key, value) for (table, key), value in self._lazy.items()]
        self._lazy.clear()
        self._lazy_due = math.inf
        if rows:
            self._pending.append([])
            self._records.put(rows, self._committed)

    def _committed(self, error: Unavailable | None) -> None:
        actions = self._pending.popleft()
        if error is None and self._failed is None:
            self._act(actions)
            return
        self._failed = error or self._failed
        for action in actions:
            if isinstance(action, _Caller):
                # A step whose own records are durable will be read again, whatever failed before it.
                if error is not None or not action.has_rows:
                    action.error = self._failed
                action.done.set()
        self._poke()

    def _start_over(self) -> None:
        """A commit failed: what the cores believe may not be true. Read it again."""
        now = trio.current_time()
        try:
            kept = self._records.unfinished()
        except CoveyError as error:
            log.warning("store.not_read", extra={"why": str(error)})
            self._start_over_at = now + CALM_S
            return
        log.error("store.commit_failed", extra={"why": str(self._failed)})
        former = self.executions
        self.origin, self.executions = self._make()
        for scope in self._scopes.values():
            scope.cancel()
        self._scopes.clear()
        self._lazy.clear()
        self._lazy_due = math.inf
        self._loopback.clear()
        self._acceptances.clear()
        self._failed = None
        self._calm_at = now + CALM_S
        self._take_up(kept)
        self._carry_out(self.executions.left_by(former))

    def _act(self, actions: list[_Action]) -> None:
        for action in actions:
            match action:
                case Send(to, message):
                    self._send(to, message)
                case Begin(run):
                    # Before it starts, so that a halt in the same moment finds it.
                    scope = self._scopes[run.origin, run.task_id] = trio.CancelScope()
                    self._start(partial(self._run, run, scope, self.executions))
                case Fetch(origin, task_id):
                    self._start(partial(self._fetch, origin, task_id))
                case Halt(origin, task_id):
                    if (origin, task_id) in self._scopes:
                        self._scopes[origin, task_id].cancel()
                case Changed(task_id, state):
                    self._tell(task_id, state)
                case _Caller():
                    action.done.set()
        self._loop()

    def _send(self, to: PeerId, message: Message) -> None:
        if to == self._network.me:
            self._loopback.append((to, message))
            return
        if isinstance(message, Accepted):
            self._acceptances[to, TaskId(message.task_id)] = message
            self._accepting.deadline = min(self._accepting.deadline, trio.current_time() + ACCEPT_S)
            return
        if isinstance(message, Delivered | Declined):
            self._acceptances.pop((to, TaskId(message.task_id)), None)
            if not self._acceptances:
                self._accepting.deadline = math.inf
        self._send_now(to, message)

    async def _accept(self) -> None:
        """Send acceptances a moment late: one whose outcome follows at once need not be sent."""
        while True:
            with self._accepting:
                await trio.sleep_forever()
            self._accepting = trio.CancelScope()
            acceptances, self._acceptances = self._acceptances, {}
            for (to, _), message in acceptances.items():
                self._send_now(to, message)

    def _send_now(self, to: PeerId, message: Message) -> None:
        body = encode_message(message)
        sent = self._network.send(to, CHANNEL, body, payload=isinstance(message, PAYLOAD))
        if not sent and isinstance(message, Offer):
            now = trio.current_time()
            effects = self.origin.undelivered(to, TaskId(message.task_id), now, self._now_ms())
            self._carry_out(effects)

    def _loop(self) -> None:
        """Hand this device's messages to itself, one after the other."""
        if self._looping:
            return
        self._looping = True
        try:
            while self._loopback:
                self._receive(*self._loopback.popleft())
        finally:
            self._looping = False

    def _tell(self, task_id: TaskId, state: TaskState) -> None:
        if state.state in TERMINAL:
            for event in self._waiters.pop(task_id, ()):
                event.set()
        for watcher in self._watchers:
            watcher(task_id, state)

    def _start(self, work: Callable[[], object]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work)  # type: ignore[arg-type]  # a partial of an async method

    async def _run(self, run: Run, scope: trio.CancelScope, executions: Executions) -> None:
        key = (run.origin, run.task_id)
        ended = Ended("failed", b"", "stopped")
        with scope:
            try:
                await trio.sleep_until(self._calm_at)
                ended = await self._runner.run(run, partial(self._progressed, run))
            except CoveyError as error:
                ended = Ended("failed", b"", str(error))
            except (Exception, SystemExit):  # the supervisor: a skill's bug must not end the daemon
                log.exception("run.broke", extra={"task": run.task_id.hex()})
                ended = Ended("failed", b"", "the skill broke; the daemon's log says where")
        if self._scopes.get(key) is scope:
            del self._scopes[key]
        if executions is not self.executions:
            return
        now = trio.current_time()
        self._carry_out(executions.finished(*key, ended, now, self._now_ms()))

    def _progressed(self, run: Run, text: str) -> None:
        self._carry_out(self.executions.progressed(run.origin, run.task_id, text))

    async def _fetch(self, origin: PeerId, task_id: TaskId) -> None:
        input_: bytes | None = None
        try:
            if origin == self._network.me:
                input_ = self.origin.input_for(task_id, origin)
            else:
                input_ = await self._network.request(
                    origin, INPUT_CHANNEL, task_id, timeout_s=FETCH_S, payload=True
                )
        except CoveyError as error:
            log.warning("input.not_fetched", extra={"origin": origin, "why": str(error)})
        if input_ is not None and len(input_) > INPUT_BYTES_MAX:
            input_ = None
        self._carry_out(self.executions.fetched(origin, task_id, input_, trio.current_time()))

    def _poke(self) -> None:
        due = self._due
        if due < self._sleeping_until:
            self._sleeping_until = due
            self._poked.set()
