"""A mesh of the shipped cores under a virtual clock: everything that can go wrong, from one seed.

Shipped: `Origin`, `Executions`, `Directory`, `DirectoryFinder`. Models: disk, links, skills, and the
driver, whose rule (records first, messages after) is kept here as `gossip/driver.py` keeps it.
Messages are lost, delayed, reordered and repeated, more than a link would; devices crash between any
record, commit and send, freeze, and start again from what was durable; links end, or were never
possible.
"""

import hashlib
import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from random import Random

import msgspec
from test_gossip.members import MESH, NOW_MS, judge, key, told_by

from covey.gossip.advert import Told
from covey.gossip.directory import Directory, Keep
from covey.gossip.effects import (
    Begin,
    Changed,
    Effect,
    Ended,
    Erase,
    Fetch,
    Halt,
    Run,
    Save,
    Send,
    Table,
)
from covey.gossip.executions import Executions, Limits, RunRecord
from covey.gossip.messages import Acknowledged, Cancel, Delivered, Message, Offer
from covey.gossip.network import LinkInfo, Load
from covey.gossip.origin import Origin
from covey.gossip.routing import DirectoryFinder, lacks
from covey.gossip.task import (
    INPUT_WITH_OFFER_BYTES_MAX,
    OUTCOME_KIND,
    Need,
    Outcome,
    Task,
    TaskId,
    digest_of,
    task_digest,
    task_id_of,
)
from covey.gossip.task_state import CancelRecord, TaskState, Verdict
from covey.identity.envelope import seal
from covey.identity.keys import Keypair, PeerId

LAZY_S = 1.0
FETCH_S = 30.0
FRAME_CPU_S = 0.0003
COMMIT_S = (0.0003, 0.007)
SILENT_S = 9.0
INPUT_CHUNK = b"x" * (INPUT_WITH_OFFER_BYTES_MAX + 1)


@dataclass(frozen=True, slots=True)
class Faults:
    """How bad the world is; each a probability per occasion unless a unit is named."""

    loss: float = 0.03
    repetition: float = 0.03
    late: float = 0.05
    """Delayed by seconds instead of milliseconds."""
    crash: float = 0.002
    """Before each record, commit, message and run."""
    full_disk: float = 0.002
    """A commit that fails."""
    cuts_per_s: float = 1.0
    """Of links, in the whole mesh."""
    freezes_per_s: float = 0.1
    lies_per_s: float = 2.0


CALM = Faults(0, 0, 0, 0, 0, 0, 0, 0)


class Crashed(Exception):
    """The device ends here; caught where its event began."""


class Violation(AssertionError):
    """Something happened that must never happen."""


Store = dict[tuple[Table, bytes], msgspec.Struct]
Row = tuple[Table, bytes, msgspec.Struct | None]
Act = Send | Begin | Fetch | Halt | Changed | Callable[[bool], None]
Cores = Callable[["Device"], tuple[Origin, Executions]]


def shipped(device: "Device") -> tuple[Origin, Executions]:
    """Return the cores as the daemon makes them."""
    finder = DirectoryFinder(device.me, device.directory, device.links, lambda _need: None)
    return (
        Origin(device.me, MESH, finder),
        Executions(device.keypair, MESH, device.incarnation, device.able, Limits(2, 4)),
    )


@dataclass(frozen=True, slots=True)
class Adverts:
    """Adverts on their way: a model of the shared memory, which test_spreading.py simulates."""

    told: tuple[Told, ...]


class Device:
    """One peer: its disk, and while it is up, its cores."""

    def __init__(self, world: "World", keypair: Keypair, offers: Told) -> None:
        self.world = world
        self.keypair = keypair
        self.me = keypair.peer_id
        self.offers = offers
        self.advert = offers.advert
        self.skew_ms = world.random.randint(-30_000, 30_000)
        self.disk: Store = {}
        self.book: dict[PeerId, Told] = {}
        self.incarnation = 0
        self.life = 0
        self.up = False
        self.frozen_until = 0.0
        self.busy_until = 0.0
        self.heard_at: dict[PeerId, float] = {}

    # Living

    def start(self) -> None:
        self.incarnation += 1
        self.up = True
        self.heard_at.clear()
        self._forget_memory()
        self.book[self.me] = self.offers
        self.directory = Directory(self.me, judge)
        self.directory.learn(self.book.values(), self.now_ms)
        member = judge(self.offers.chain, self.me, NOW_MS)
        self.directory.announce(self.advert, member, self.now_ms)
        self._restore()

    def crash(self) -> None:
        self.up = False
        self.life += 1
        self.world.crashed(self)

    def start_over(self) -> None:
        """The disk refused a commit: throw the cores away and read again."""
        self.life += 1
        callers = [one for _, acts in self.commits for one in acts if callable(one)]
        self._forget_memory()
        for caller in callers:
            caller(False)
        self._restore()
        for peer in list(self.heard_at):
            self.carry_out(self.origin.link_up(peer, self.now))

    def _forget_memory(self) -> None:
        self.commits: deque[tuple[list[Row], list[Act]]] = deque()
        self.lazy: dict[tuple[Table, bytes], msgspec.Struct | None] = {}
        self.lazy_due = math.inf
        self.loopback: deque[Message] = deque()
        self.looping = False
        self.committing = False
        self.ticking_at = math.inf
        self.running: dict[tuple[PeerId, TaskId], Run] = {}

    def _restore(self) -> None:
        self.origin, self.executions = self.world.cores(self)
        rows = list(self.disk.items())
        states = {at: one for (table, at), one in rows if table is Table.STATE}
        runs = [one for _, one in rows if isinstance(one, RunRecord)]
        tasks = [
            (one, state)
            for _, one in rows
            if isinstance(one, Task) and isinstance(state := states[one.id], TaskState)
        ]
        cancels = [one for _, one in rows if isinstance(one, CancelRecord)]
        self.carry_out(self.executions.restore(runs, self.now, self.now_ms))
        self.carry_out(self.origin.restore(tasks, cancels, self.now, self.now_ms))

    @property
    def now(self) -> float:
        return self.world.now

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.world.now * 1000) + self.skew_ms

    def able(self, _origin: PeerId, need: Need) -> str | None:
        entry = self.directory.get(self.me)
        return "no advert yet" if entry is None else lacks(entry, need)

    def links(self) -> dict[PeerId, LinkInfo]:
        return {
            peer: LinkInfo(peer, 1.0, heard, "", inbound=False, load=Load())
            for peer, heard in self.heard_at.items()
        }

    # Events

    def hear(self, sender: PeerId, message: Message | Adverts) -> None:
        if sender in self.heard_at:
            self.heard_at[sender] = self.now
        match message:
            case Offer() | Acknowledged() | Cancel():
                self.carry_out(self.executions.receive(sender, message, self.now, self.now_ms))
            case Adverts(told):
                self.learn(sender, told)
            case _:
                self.carry_out(self.origin.receive(sender, message, self.now, self.now_ms))

    def learn(self, sender: PeerId, told: tuple[Told, ...]) -> None:
        effects = self.directory.learn(told, self.now_ms)
        kept = {one.entry.peer for one in effects if isinstance(one, Keep)}
        fresh = {one.peer: one for one in told if one.peer in kept}
        self.book.update(fresh)
        for peer in self.heard_at if fresh else ():
            if peer != sender:
                self.world.send(self, peer, Adverts(tuple(fresh.values())))
        self.origin.wake()
        self.tick_later()

    def link_up(self, peer: PeerId) -> None:
        self.heard_at[peer] = self.now
        self.world.send(self, peer, Adverts(tuple(self.book.values())))
        self.carry_out(self.origin.link_up(peer, self.now))
        self.carry_out(self.executions.link_up(peer))

    def link_down(self, peer: PeerId) -> None:
        if self.heard_at.pop(peer, None) is not None:
            self.carry_out(self.origin.link_down(peer, "cut", self.now, self.now_ms))

    def tick(self) -> None:
        self.ticking_at = math.inf
        for peer, heard in list(self.heard_at.items()):
            if self.world.is_alive(peer):
                self.heard_at[peer] = self.now
            elif self.now > heard + SILENT_S:
                self.link_down(peer)
        for peer, heard in self.heard_at.items():
            self.origin.heard(peer, heard)
        if self.now >= self.lazy_due:
            self._flush_lazy()
        self.carry_out(self.origin.tick(self.now, self.now_ms))
        self.carry_out(self.executions.tick(self.now, self.now_ms))

    def tick_later(self) -> None:
        due = max(self.now, min(self.origin.deadline, self.executions.deadline, self.lazy_due))
        if due < self.ticking_at:
            self.ticking_at = due
            if due < math.inf:
                self.world.at(due, self, partial(self._tick_if_due, due))

    def _tick_if_due(self, due: float) -> None:
        if due == self.ticking_at:
            self.tick()
            self.tick_later()

    # The driver's rule

    def carry_out(
        self, effects: Sequence[Effect], caller: Callable[[bool], None] | None = None
    ) -> None:
        rows: list[Row] = []
        acts: list[Act] = []
        for effect in effects:
            match effect:
                case Save(table, at, value, lazy):
                    self._keep(rows, (table, at), value, lazy=lazy)
                case Erase(table, at, lazy):
                    self._keep(rows, (table, at), None, lazy=lazy)
                case _:
                    acts.append(effect)
        if caller is not None:
            acts.append(caller)
        self.world.may_crash()
        if rows:
            whole = [*((*at, value) for at, value in self.lazy.items()), *rows]
            self.lazy.clear()
            self.lazy_due = math.inf
            self.commits.append((whole, acts))
            self._commit_next()
        elif self.commits:
            self.commits[-1][1].extend(acts)
        else:
            self._act(acts)
        self.tick_later()

    def _keep(
        self, rows: list[Row], at: tuple[Table, bytes], value: msgspec.Struct | None, *, lazy: bool
    ) -> None:
        if lazy:
            self.lazy[at] = value
            self.lazy_due = min(self.lazy_due, self.now + LAZY_S)
        else:
            self.lazy.pop(at, None)
            rows.append((*at, value))

    def _flush_lazy(self) -> None:
        rows = [(*at, value) for at, value in self.lazy.items()]
        self.lazy.clear()
        self.lazy_due = math.inf
        self.commits.append((rows, []))
        self._commit_next()

    def _commit_next(self) -> None:
        if self.commits and not self.committing:
            self.committing = True
            self.world.at(self.now + self.world.random.uniform(*COMMIT_S), self, self._committed)

    def _committed(self) -> None:
        self.committing = False
        self.world.may_crash()
        if self.world.chance(self.world.faults.full_disk):
            self.start_over()
            return
        rows, acts = self.commits.popleft()
        for table, at, value in rows:
            self.world.check_row(self, table, at, value)
            if value is None:
                self.disk.pop((table, at), None)
            else:
                self.disk[table, at] = value
        self._act(acts)
        self._commit_next()
        self.tick_later()

    def _act(self, acts: Iterable[Act]) -> None:
        for act in acts:
            self.world.may_crash()
            match act:
                case Send(to, message) if to == self.me:
                    self.loopback.append(message)
                case Send(to, message):
                    self.world.check_send(self, to, message)
                    if not self.world.send(self, to, message) and isinstance(message, Offer):
                        task_id = TaskId(message.task_id)
                        self.carry_out(self.origin.undelivered(to, task_id, self.now, self.now_ms))
                case Begin(run):
                    self._begin(run)
                case Fetch(origin, task_id):
                    self.world.fetch(self, origin, task_id)
                case Halt(origin, task_id):
                    if (run := self.running.get((origin, task_id))) is not None:
                        self._finish_at(self.now, run, Ended("failed", b"", "stopped"))
                case Changed(task_id, state):
                    self.world.check_told(self, task_id, state)
                case _:
                    act(True)
        if not self.looping:
            self.looping = True
            while self.loopback:
                self.hear(self.me, self.loopback.popleft())
            self.looping = False

    def _begin(self, run: Run) -> None:
        self.world.check_begin(self, run)
        self.running[run.origin, run.task_id] = run
        random = self.world.random
        state = "failed" if random.random() < 0.1 else "done"
        result = random.randbytes(8) if state == "done" else b""
        for_s = random.choice((0.0, 0.01, 1.0, 20.0))
        ended = Ended(state, result, "" if state == "done" else "it did not work", for_s)
        self._finish_at(self.now + for_s, run, ended)

    def _finish_at(self, when: float, run: Run, ended: Ended) -> None:
        def finish() -> None:
            if self.running.pop((run.origin, run.task_id), None) is not None:
                self.world.produced.add((run.origin, run.task_id, self.me, ended.result))
                self.carry_out(
                    self.executions.finished(run.origin, run.task_id, ended, self.now, self.now_ms)
                )

        self.world.at(when, self, finish)


@dataclass(slots=True)
class Promise:
    """A task whose submission was acknowledged."""

    device: Device
    task: Task


@dataclass(slots=True)
class _Event:
    device: Device | None
    life: int
    work: Callable[[], None]
    has_turn: bool = False


class World:
    """Devices, links, time and chance; and what must always hold (DESIGN 13.1)."""

    def __init__(
        self, seed: int, *, peers: int = 50, faults: Faults | None = None, cores: Cores = shipped
    ) -> None:
        self.random = Random(seed)
        self.faults = faults or Faults()
        self.cores = cores
        self.now = 0.0
        self.steps = 0
        self.crashes = 0
        self.trace = hashlib.sha256()
        self._events: list[tuple[float, int, _Event]] = []
        self._order = 0
        self.devices: dict[PeerId, Device] = {}
        self.promises: dict[TaskId, Promise] = {}
        self.cancelled: set[TaskId] = set()
        self.produced: set[tuple[PeerId, TaskId, PeerId, bytes]] = set()
        self._begun_once: set[tuple[PeerId, TaskId]] = set()
        self._ended: dict[TaskId, TaskState] = {}
        self._overheard: deque[tuple[PeerId, Delivered]] = deque(maxlen=64)
        for number in range(1, peers + 1):
            self._add_device(number, peers)
        self.liar = self.devices[key(1).peer_id]
        # Each is linked to some others only; a few pairs could never reach one another.
        everyone = list(self.devices)
        self.possible = {
            pair for pair in combinations(everyone, 2) if self.random.random() < 10 / peers
        } | set(pairwise(everyone))
        for device in self.devices.values():
            self._restart(device)

    def _add_device(self, number: int, peers: int) -> None:
        keypair = key(number)
        skills = tuple(one for one in ("see", "hear", "count") if self.random.random() < 0.4)
        offers = told_by(
            keypair,
            name=f"device-{number}",
            skills=skills if number > 1 else (),
            data=(f"log-{number % (peers // 3)}",) if number > 1 else (),
        )
        self.devices[keypair.peer_id] = Device(self, keypair, offers)

    # Time

    def at(self, when: float, device: Device | None, work: Callable[[], None]) -> None:
        """Do `work` at `when`, unless the device has crashed until then."""
        life = device.life if device is not None else 0
        self._push(when, _Event(device, life, work))

    def _push(self, when: float, event: _Event) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, event))

    def run(self, until: float) -> None:
        """Let time pass."""
        while self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            self.now = max(self.now, when)
            self._step(event)
        self.now = until

    def _step(self, event: _Event) -> None:
        device = event.device
        if device is not None:
            if device.life != event.life or not device.up:
                return
            if not event.has_turn or device.frozen_until > self.now:
                # A device does one thing at a time, in the order in which they came.
                turn = max(self.now, device.frozen_until, device.busy_until)
                device.busy_until = turn + FRAME_CPU_S
                event.has_turn = True
                if turn > self.now:
                    self._push(turn, event)
                    return
            self.trace.update(f"{self.now:.9f} {device.me}\n".encode())
        self.steps += 1
        try:
            event.work()
        except Crashed:
            assert device is not None
            device.crash()

    def chance(self, probability: float) -> bool:
        """Tell whether bad luck strikes."""
        return probability > 0 and self.random.random() < probability

    def may_crash(self) -> None:
        """A point at which a device may end."""
        if self.chance(self.faults.crash):
            raise Crashed

    # Links

    def is_alive(self, peer: PeerId) -> bool:
        device = self.devices[peer]
        return device.up and device.frozen_until <= self.now

    def send(self, sender: Device, to: PeerId, message: Message | Adverts) -> bool:
        """Put a message on its way; False if there is no link."""
        if to not in sender.heard_at:
            return False
        if isinstance(message, Delivered):
            self._overheard.append((to, message))
        for _ in range(2 if self.chance(self.faults.repetition) else 1):
            if not self.chance(self.faults.loss):
                late = self.random.uniform(1, 15) if self.chance(self.faults.late) else 0.0
                when = self.now + late + self.random.uniform(0.0002, 0.02)
                receiver = self.devices[to]
                self.at(when, receiver, partial(receiver.hear, sender.me, message))
        return True

    def fetch(self, device: Device, origin: PeerId, task_id: TaskId) -> None:
        """Carry out the request for an input; its answer may be lost, and is then None in the end."""

        def ask() -> None:
            input_ = self.devices[origin].origin.input_for(task_id, device.me)
            if not self.chance(self.faults.loss):
                answer(self.now + 0.01, input_)

        def answer(when: float, input_: bytes | None) -> None:
            self.at(
                when,
                device,
                lambda: device.carry_out(
                    device.executions.fetched(origin, task_id, input_, self.now)
                ),
            )

        self.at(self.now + 0.01, self.devices[origin], ask)
        answer(self.now + FETCH_S, None)

    def _connect(self, one: PeerId, other: PeerId) -> None:
        for me, peer in ((one, other), (other, one)):
            device = self.devices[me]
            if self.devices[peer].up:
                when = self.now + self.random.uniform(0, 0.05)
                self.at(when, device, partial(device.link_up, peer))

    def _disconnect(self, one: PeerId, other: PeerId) -> None:
        for me, peer in ((one, other), (other, one)):
            device = self.devices[me]
            # One side may notice at once, the other after two silent ttl.
            when = self.now + self.random.choice((0.0, 0.02, SILENT_S))
            self.at(when, device, partial(device.link_down, peer))

    def crashed(self, device: Device) -> None:
        """Its links end, and it will be back."""
        self.crashes += 1
        for pair in sorted(self.possible):
            if device.me in pair:
                other = self.devices[pair[0] if pair[1] == device.me else pair[1]]
                when = self.now + self.random.choice((0.01, 1.0))
                self.at(when, other, partial(other.link_down, device.me))
        self.at(self.now + self.random.uniform(1.5, 20), None, partial(self._restart, device))

    def _restart(self, device: Device) -> None:
        if device.up:
            return
        try:
            device.start()
        except Crashed:
            device.crash()
            return
        for pair in sorted(self.possible):
            if device.me in pair:
                self._connect(*pair)

    # What people and chance do

    def live(self, seconds: float, tasks: int) -> None:
        """Submit, cancel, cut, freeze and lie at random moments of the next seconds."""
        end = self.now + seconds
        pairs, devices = sorted(self.possible), list(self.devices.values())
        for _ in range(tasks):
            device = self.random.choice(devices)
            self.at(self.random.uniform(self.now, end), device, partial(self._submit, device))
        for _ in range(int(self.faults.cuts_per_s * seconds)):
            pair, when = self.random.choice(pairs), self.random.uniform(self.now, end)
            self.at(when, None, partial(self._disconnect, *pair))
            self.at(when + self.random.uniform(SILENT_S, 20), None, partial(self._connect, *pair))
        for _ in range(int(self.faults.freezes_per_s * seconds)):
            device = self.random.choice(devices)
            when, for_s = self.random.uniform(self.now, end), self.random.uniform(1, 20)
            self.at(when, device, partial(setattr, device, "frozen_until", when + for_s))
        for _ in range(int(self.faults.lies_per_s * seconds)):
            self.at(self.random.uniform(self.now, end), self.liar, self._lie)
        self.run(end)

    def calm_down(self, seconds: float) -> None:
        """Heal everything and let time pass."""
        self.faults = CALM
        for device in self.devices.values():
            device.frozen_until = 0.0
            self.at(self.now + 0.1, None, partial(self._restart, device))
        for pair in sorted(self.possible):
            self.at(self.now + 25, None, partial(self._connect, *pair))
        self.run(self.now + seconds)

    def _submit(self, device: Device) -> None:
        random = self.random
        near = self.devices[random.choice([*device.heard_at, device.me])]
        offers = near.advert
        need = Need(
            random.choice(offers.skills or ("see",)),
            zone="device" if random.random() < 0.1 else "mesh",
            data=offers.data[0].name if offers.data and random.random() < 0.3 else None,
            peer=offers.name if random.random() < 0.2 else None,
        )
        nonce = random.randbytes(16)
        task = Task(
            id=task_id_of(device.me, nonce),
            origin=device.me,
            nonce=nonce,
            need=need,
            input=INPUT_CHUNK if random.random() < 0.1 else b"input",
            submitted_ms=device.now_ms,
            deadline_ms=device.now_ms + random.choice((2_000, 20_000, 120_000)),
            priority=random.randrange(3),
            once=random.random() < 0.2,
        )
        task_id = TaskId(task.id)

        def acknowledged(durable: bool) -> None:
            if durable:
                self.promises[task_id] = Promise(device, task)

        device.carry_out(device.origin.submit(task, self.now, device.now_ms), acknowledged)
        if random.random() < 0.15:
            when = self.now + random.uniform(0, 10)
            self.at(when, device, partial(self._cancel, device, task_id))

    def _cancel(self, device: Device, task_id: TaskId) -> None:
        if device.origin.state(task_id) is None:
            return

        def acknowledged(durable: bool) -> None:
            if durable:
                self.cancelled.add(task_id)

        device.carry_out(device.origin.cancel(task_id, self.now, device.now_ms), acknowledged)

    def _lie(self) -> None:
        """A member sends an outcome of a task that was never offered to it, or replays another's."""
        if self._overheard and self.random.random() < 0.3:
            to, message = self.random.choice(self._overheard)
        elif self.promises:
            promise = self.random.choice(list(self.promises.values()))
            task, to = promise.task, promise.device.me
            outcome = Outcome(
                origin=task.origin,
                task_id=task.id,
                attempt=self.random.randint(1, 3),
                task_digest=task_digest(task.origin, task.id, task.need, task.input),
                result_digest=digest_of(b"a lie"),
                state="done",
                reason="",
                run_us=1,
                model="",
                ended_ms=self.liar.now_ms,
            )
            sealed = seal(outcome, kind=OUTCOME_KIND, mesh=MESH, keypair=self.liar.keypair)
            message = Delivered(task.id, sealed, b"a lie")
        else:
            return
        heard = partial(self.devices[to].hear, self.liar.me, message)
        self.at(self.now + 0.01, self.devices[to], heard)

    # What must always hold

    def check_row(
        self, device: Device, table: Table, at: bytes, value: msgspec.Struct | None
    ) -> None:
        """A record is about to become durable."""
        before = device.disk.get((table, at))
        if table in (Table.TASK, Table.RESULT) and before is not None and before != value:
            raise Violation(f"{table.value} {at.hex()} is written twice, or was erased")
        if isinstance(before, TaskState) and before.ended_ms and before != value:
            raise Violation(f"task {at.hex()} was {before.state} and is changed")
        if isinstance(value, TaskState) and not value.reason:
            raise Violation(f"task {at.hex()} is {value.state} without a reason")

    def check_send(self, device: Device, to: PeerId, message: Message) -> None:
        """A message leaves: what it tells must be durable."""
        disk = device.disk
        match message:
            case Offer(task_id=task_id, attempt=number, need=need):
                state = disk.get((Table.STATE, task_id))
                if need.zone == "device":
                    raise Violation("a task of zone 'device' was offered to another peer")
                if (Table.TASK, task_id) not in disk or not isinstance(state, TaskState):
                    raise Violation("an offer left before its task was durable")
                if len(state.attempts) < number or state.attempts[number - 1].peer != to:
                    raise Violation("an offer left before its attempt was durable")
            case Delivered(task_id=task_id, outcome=outcome):
                record = disk.get((Table.RUN, task_id + to.encode()))
                if not isinstance(record, RunRecord) or record.outcome != outcome:
                    raise Violation("an outcome left before it was durable")
            case Acknowledged(task_id=task_id):
                state = disk.get((Table.STATE, task_id))
                if isinstance(state, TaskState) and not state.ended_ms:
                    raise Violation("an outcome was acknowledged before it was durable")
            case Cancel(task_id=task_id):
                state = disk.get((Table.STATE, task_id))
                if not isinstance(state, TaskState) or not state.ended_ms:
                    raise Violation("a cancel left before it was durable")
            case _:
                pass

    def check_begin(self, device: Device, run: Run) -> None:
        """A skill begins to run."""
        task_id = run.task_id
        if run.need.zone == "device" and run.origin != device.me:
            raise Violation("a task of zone 'device' runs on another device")
        task = self.devices[run.origin].disk.get((Table.TASK, task_id))
        if not isinstance(task, Task):
            raise Violation("a task runs that its origin does not know")
        if task.input != run.input or task.need != run.need:
            raise Violation("another task runs than the one asked for")
        if task.once:
            if (run.origin, task_id) in self._begun_once:
                raise Violation("a task that may run once began twice")
            self._begun_once.add((run.origin, task_id))

    def check_told(self, device: Device, task_id: TaskId, state: TaskState) -> None:
        """Watchers are told of a state."""
        if task_id in self._ended and self._ended[task_id] != state:
            raise Violation("watchers were told of a change after the end")
        if state.ended_ms:
            if device.disk.get((Table.STATE, task_id)) != state:
                raise Violation("watchers were told of an end that is not durable")
            self._ended[task_id] = state

    def check_safety(self) -> None:
        """Every promise is on its origin's disk."""
        for task_id, promise in self.promises.items():
            if promise.device.disk.get((Table.TASK, task_id)) != promise.task:
                raise Violation(f"acknowledged task {task_id.hex()} is lost")
            if (Table.STATE, task_id) not in promise.device.disk:
                raise Violation(f"acknowledged task {task_id.hex()} has no state")

    def check_quiet(self) -> None:
        """After calm: everything has ended, everything is delivered, all know the same."""
        self.check_safety()
        for task_id, promise in self.promises.items():
            disk = promise.device.disk
            state = disk[Table.STATE, task_id]
            assert isinstance(state, TaskState)
            if not state.ended_ms:
                raise Violation(f"task {task_id.hex()} never ended: {state.state}, {state.reason}")
            verdict = disk.get((Table.RESULT, task_id))
            if (verdict is None) != (state.executor == ""):
                raise Violation("a task has an outcome exactly if a peer ran it to its end")
            if verdict is not None:
                assert isinstance(verdict, Verdict)
                made = (promise.device.me, task_id, PeerId(state.executor), verdict.result)
                if made not in self.produced:
                    raise Violation(f"the result of {task_id.hex()} was made by nobody")
            if task_id in self.cancelled and state.state != "cancelled":
                raise Violation("a cancel was acknowledged and did not hold")
        for device in self.devices.values():
            self._check_settled(device)

    def _check_settled(self, device: Device) -> None:
        name = device.me[-6:]
        for (table, at), value in device.disk.items():
            if table is Table.CANCEL:
                raise Violation(f"{name} still waits for a cancel to be acknowledged: {at.hex()}")
            if isinstance(value, RunRecord) and value.state == "ended":
                raise Violation(f"{name} still holds an outcome for {value.origin[-6:]}")
        if device.running or device.executions.running or device.executions.waiting:
            raise Violation(f"{name} still runs something")
        known = {entry.peer for entry in device.directory}
        if known != set(self.devices):
            raise Violation(f"{name} knows {len(known)} of {len(self.devices)} peers")
