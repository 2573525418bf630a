"""What can this device be asked? Everything the local API offers, on top of the daemon's parts."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
import trio

from covey.gossip.directory import Directory, Entry
from covey.gossip.driver import Delivery
from covey.gossip.links import Links
from covey.gossip.task import (
    DEADLINE_S_DEFAULT,
    DEADLINE_S_MAX,
    INPUT_BYTES_MAX,
    NONCE_BYTES,
    Need,
    Task,
    TaskId,
    check_need,
    nonce_of_key,
    task_id_of,
)
from covey.gossip.task_state import TERMINAL, TaskState
from covey.identity.errors import Misuse, NotFound
from covey.identity.keys import PeerId
from covey.inference.pool import Pool

from .data_sources import DataSources
from .records import TaskRecords
from .views import (
    AttemptView,
    DataView,
    Event,
    Finding,
    InviteRequest,
    InviteView,
    ModelView,
    PeerView,
    StatusView,
    SubmitRequest,
    TaskView,
    TrafficView,
)

EVENTS_KEPT = 1024
LISTED_MAX = 1000
WAIT_S_MAX = 3600.0
PRIORITY_MAX = 9


@dataclass(slots=True)
class Facts:
    """What the daemon knows of itself."""

    me: PeerId
    name: str
    mesh: bytes
    mesh_name: str
    role: str
    version: str
    incarnation: int
    started_ms: int
    skills: tuple[str, ...]
    addresses: Callable[[], tuple[str, ...]]
    api: tuple[str, ...] = ()
    refused_models: dict[str, str] = field(default_factory=lambda: dict[str, str]())


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened, as it is kept: its view is made only for those who watch."""

    id: int
    kind: str
    at_ms: int
    task: tuple[TaskId, TaskState] | None = None
    peer: PeerView | None = None
    text: str = ""


@dataclass(slots=True)
class Commands:
    """What only the daemon can do."""

    invite: Callable[[InviteRequest], Awaitable[InviteView]]
    rescan_models: Callable[[], Awaitable[None]]
    doctor: Callable[[], Awaitable[list[Finding]]]
    shutdown: Callable[[], None]


class Service:
    """Answers the local API. One for each daemon."""

    def __init__(
        self,
        facts: Facts,
        commands: Commands,
        *,
        delivery: Delivery,
        records: TaskRecords,
        directory: Directory,
        links: Links,
        pool: Pool,
        data: DataSources,
        now_ms: Callable[[], int],
        draw: Callable[[int], bytes],
    ) -> None:
        self.facts = facts
        self._commands = commands
        self._delivery = delivery
        self._records = records
        self._directory = directory
        self._links = links
        self._pool = pool
        self._data = data
        self._now_ms = now_ms
        self._draw = draw
        self._events: list[Happening] = []
        self._event_id = 0
        self._listeners: set[trio.MemorySendChannel[Happening]] = set()
        self._counts: dict[str, int] = {}
        self._states: dict[TaskId, str] = {}
        for task, state in records.all_tasks():
            self._task_counted(TaskId(task.id), state)
        delivery.on_changed(self._task_changed)

    # Tasks

    async def submit(self, request: SubmitRequest, wait_s: float = 0.0) -> TaskView:
        """Take a task, and return it as it stands when finished, or after wait_s. From then on it is
        durable, whatever becomes of the caller.

        Raises:
            Misuse: the request cannot be done by anyone.
            Unavailable: the disk does not take it.
        """
        task = self._task(request)
        task_id = TaskId(task.id)
        # Without a key, its id was drawn just now.
        known = self._records.task(task_id) if request.key is not None else None
        if known is None:
            await self._delivery.submit(task)
        elif known[0].need != task.need or known[0].input != task.input:
            raise Misuse(f"key {request.key!r} was used for another task on this device already")
        if wait_s > 0:
            await self._delivery.wait_finished(task_id, min(wait_s, WAIT_S_MAX))
        return self.task(task.id.hex())

    def task(self, name: str) -> TaskView:
        """Return a task by id, by a beginning of it that is unique, or `last`.

        Raises:
            NotFound: there is none.
        """
        task_id = self._resolve(name)
        found = self._records.task(task_id)
        if found is None:
            raise NotFound(f"this device knows no task {name!r}; see: covey tasks")
        return self._task_view(found[0], self._live(*found))

    async def wait_task(self, name: str, timeout_s: float) -> TaskView:
        """Return the task once it is finished, or as it stands after timeout_s."""
        view = self.task(name)
        if view.state not in TERMINAL:
            await self._delivery.wait_finished(
                TaskId(bytes.fromhex(view.id)), min(timeout_s, WAIT_S_MAX)
            )
            view = self.task(view.id)
        return view

    def tasks(self, state: str | None, limit: int) -> list[TaskView]:
        """Return this device's tasks, newest first."""
        found = [
            (task, kept)
            for task, kept in self._records.all_tasks()
            if state is None or self._live(task, kept).state == state
        ]
        found.sort(key=lambda item: item[0].submitted_ms, reverse=True)
        return [
            self._task_view(task, self._live(task, kept))
            for task, kept in found[: max(1, min(limit, LISTED_MAX))]
        ]

    async def cancel(self, name: str) -> TaskView:
        """Cancel a task; final when this returns. A finished one stays as it is."""
        task_id = self._resolve(name)
        self.task(name)
        await self._delivery.cancel(task_id)
        return self.task(task_id.hex())

    # The device

    def peers(self) -> list[PeerView]:
        """Return every peer known, this one first."""
        links = self._links.links()
        views = [self._peer_view(entry, entry.peer in links) for entry in self._directory]
        order = {"self": 0, "up": 1, "suspect": 2, "down": 3}
        return sorted(views, key=lambda view: (order[view.state], view.name))

    def status(self) -> StatusView:
        """Return this device at a glance."""
        facts = self.facts
        links = self._links.links()
        return StatusView(
            peer=facts.me,
            name=facts.name,
            mesh=facts.mesh.hex(),
            mesh_name=facts.mesh_name,
            role=facts.role,
            version=facts.version,
            incarnation=facts.incarnation,
            started_ms=facts.started_ms,
            addresses=facts.addresses(),
            api=facts.api,
            peers_up=len(links),
            peers_known=sum(1 for _ in self._directory) - 1,
            tasks={name: count for name, count in sorted(self._counts.items()) if count},
            models=tuple(info.name for info, _ in self._pool.models()),
            skills=self._own_skills(),
            traffic=self._traffic(),
            warnings=tuple(f"model {name}: {why}" for name, why in facts.refused_models.items()),
        )

    def models(self) -> list[ModelView]:
        """Return the models of this device."""
        return [
            ModelView(
                name=info.name,
                role=info.role,
                engine=info.engine,
                size_bytes=info.size_bytes,
                digest=info.digest,
                licence=info.licence,
                context_tokens=info.context_tokens,
                state=state,
            )
            for info, state in self._pool.models()
        ]

    async def rescan_models(self) -> list[ModelView]:
        """Look again at the model folder."""
        await self._commands.rescan_models()
        return self.models()

    async def invite(self, request: InviteRequest) -> InviteView:
        """Make an invite; it is durable when this returns."""
        return await self._commands.invite(request)

    async def doctor(self) -> list[Finding]:
        """Look for what is wrong, or will be."""
        return await self._commands.doctor()

    def request_shutdown(self) -> None:
        """Let the daemon end."""
        self._tell(text="the daemon stops", kind="bye")
        self._commands.shutdown()

    # Events

    @asynccontextmanager
    async def events(
        self, after_id: int | None
    ) -> AsyncGenerator[trio.MemoryReceiveChannel[Happening]]:
        """Give events as they happen, first those after `after_id` that are still kept.

        A listener that does not keep up loses its place: the channel ends, and it resumes by id.
        """
        send, receive = trio.open_memory_channel[Happening](EVENTS_KEPT * 2)
        if after_id is not None:
            for event in self._events:
                if event.id > after_id:
                    send.send_nowait(event)
        self._listeners.add(send)
        try:
            yield receive
        finally:
            self._listeners.discard(send)
            send.close()
            receive.close()

    def event(self, seen: Happening) -> Event:
        """Return the view of something that happened."""
        task = None
        if seen.task is not None:
            found = self._records.task(seen.task[0])
            task = self._task_view(found[0], seen.task[1]) if found is not None else None
        return Event(
            id=seen.id,
            kind=seen.kind,
            at_ms=seen.at_ms,
            task=task,
            peer=seen.peer,
            text=seen.text,
        )

    def peer_changed(self, peer: PeerId) -> None:
        """A peer came, went or changed: tell who watches."""
        entry = self._directory.get(peer)
        if entry is not None:
            self._tell("peer", peer=self._peer_view(entry, peer in self._links.links()))

    def _tell(
        self,
        kind: str,
        *,
        task: tuple[TaskId, TaskState] | None = None,
        peer: PeerView | None = None,
        text: str = "",
    ) -> None:
        self._event_id += 1
        event = Happening(self._event_id, kind, self._now_ms(), task, peer, text)
        self._events.append(event)
        if len(self._events) > EVENTS_KEPT:
            del self._events[: EVENTS_KEPT // 4]
        for listener in list(self._listeners):
            try:
                listener.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                self._listeners.discard(listener)
                listener.close()

    def _task_changed(self, task_id: TaskId, state: TaskState) -> None:
        self._task_counted(task_id, state)
        self._tell("task", task=(task_id, state))

    def _task_counted(self, task_id: TaskId, state: TaskState) -> None:
        before = self._states.pop(task_id, None)
        if before is not None:
            self._counts[before] -= 1
        self._counts[state.state] = self._counts.get(state.state, 0) + 1
        if state.state not in TERMINAL:
            self._states[task_id] = state.state

    # Views

    def _task(self, request: SubmitRequest) -> Task:
        need = Need(
            skill=request.skill,
            zone=request.zone,
            data=request.data,
            labels=tuple(sorted(request.labels.items())),
            model=request.model,
            peer=request.peer,
            size_bytes=len(bytes(request.input)),
        )
        check_need(need)
        if need.size_bytes > INPUT_BYTES_MAX:
            raise Misuse(
                f"the input has {need.size_bytes} bytes, over the limit of {INPUT_BYTES_MAX}"
            )
        deadline_s = request.deadline_s if request.deadline_s is not None else DEADLINE_S_DEFAULT
        if not 0 < deadline_s <= DEADLINE_S_MAX:
            raise Misuse(
                f"deadline_s is above 0 and at most {DEADLINE_S_MAX:g}, not {deadline_s:g}"
            )
        if not -PRIORITY_MAX <= request.priority <= PRIORITY_MAX:
            raise Misuse(f"priority is -{PRIORITY_MAX} to {PRIORITY_MAX}, not {request.priority}")
        if request.key is not None and not 0 < len(request.key) <= 200:
            raise Misuse("a key has 1 to 200 characters")
        nonce = nonce_of_key(request.key) if request.key is not None else self._draw(NONCE_BYTES)
        now_ms = self._now_ms()
        return Task(
            id=task_id_of(self.facts.me, nonce),
            origin=self.facts.me,
            nonce=nonce,
            need=need,
            input=bytes(request.input),
            submitted_ms=now_ms,
            deadline_ms=now_ms + int(deadline_s * 1000),
            priority=request.priority,
            once=request.once,
        )

    def _resolve(self, name: str) -> TaskId:
        if len(name) == 32:
            try:
                return TaskId(bytes.fromhex(name))
            except ValueError:
                pass
        everything = self._records.all_tasks()
        if name == "last" and everything:
            return TaskId(max(everything, key=lambda item: item[0].submitted_ms)[0].id)
        matching = [task.id for task, _ in everything if name and task.id.hex().startswith(name)]
        if len(matching) != 1:
            found = "no task" if not matching else f"{len(matching)} tasks"
            raise NotFound(f"this device knows {found} {name!r}; see: covey tasks")
        return TaskId(matching[0])

    def _live(self, task: Task, kept: TaskState) -> TaskState:
        return self._delivery.origin.state(TaskId(task.id)) or kept

    def _task_view(self, task: Task, state: TaskState) -> TaskView:
        task_id = TaskId(task.id)
        verdict = self._records.verdict(task_id) if state.state == "done" else None
        last = state.attempts[-1] if state.attempts else None
        executor = state.executor or (last.peer if last is not None else "")
        reason = state.reason
        for peer in {attempt.peer for attempt in state.attempts}:
            reason = reason.replace(peer, self._name(peer))
        progress = self._delivery.origin.progress(task_id)
        return TaskView(
            id=task.id.hex(),
            skill=task.need.skill,
            state=state.state,
            reason=f"{reason} ({progress})" if progress and state.state == "running" else reason,
            zone=task.need.zone,
            submitted_ms=task.submitted_ms,
            deadline_ms=task.deadline_ms,
            ended_ms=state.ended_ms or None,
            data=task.need.data,
            labels=dict(task.need.labels),
            model=task.need.model,
            peer=executor or None,
            peer_name=self._name(executor) if executor else None,
            way=last.way if last is not None else None,
            attempts=tuple(
                AttemptView(
                    number=one.number,
                    peer=one.peer,
                    peer_name=self._name(one.peer),
                    why=one.why,
                    state=one.state,
                    reason=one.reason,
                    offered_ms=one.offered_ms,
                    ended_ms=one.ended_ms or None,
                )
                for one in state.attempts
            ),
            result=msgspec.Raw(verdict.result) if verdict is not None else None,
            run_ms=state.run_us / 1000 if state.executor else None,
            model_used=state.model or None,
        )

    def _name(self, peer: str) -> str:
        entry = self._directory.get(PeerId(peer))
        return entry.advert.name if entry is not None else peer

    def _own_skills(self) -> tuple[str, ...]:
        own = self._directory.get(self.facts.me)
        return own.advert.skills if own is not None else ()

    def _peer_view(self, entry: Entry, linked: bool) -> PeerView:
        link = self._links.links().get(entry.peer) if linked else None
        advert = entry.advert
        mine = entry.peer == self.facts.me
        executions = self._delivery.executions
        load = link.load if link is not None else None
        return PeerView(
            id=entry.peer,
            name=advert.name,
            state="self" if mine else "up" if link is not None else "down",
            addresses=advert.addresses,
            round_trip_ms=round(link.round_trip_ms, 2) if link and link.round_trip_ms else None,
            labels=dict(advert.labels),
            data=tuple(DataView(name=one.name, kind=one.kind) for one in advert.data),
            skills=advert.skills,
            models=tuple(one.name for one in advert.models),
            running=executions.running if mine else load.running if load is not None else None,
            waiting=executions.waiting if mine else load.waiting if load is not None else None,
            version=advert.version,
            seen_ms=self._now_ms() if mine or link is not None else advert.issued_ms,
            role=entry.member.role,
        )

    def _traffic(self) -> TrafficView:
        traffic = self._links.traffic()
        return TrafficView(
            payload_out_bytes=sum(traffic.payload_out.values()),
            payload_in_bytes=sum(traffic.payload_in.values()),
            control_out_bytes=sum(traffic.control_out.values()),
            control_in_bytes=sum(traffic.control_in.values()),
            data_read_bytes=self._data.read_bytes,
        )
