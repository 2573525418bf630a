"""What can this device be asked? Everything the local API offers, on top of the daemon's parts."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import msgspec
import trio

from covey.gossip.directory import Directory, Entry
from covey.gossip.driver import Delivery
from covey.gossip.links import Links
from covey.gossip.network import Load
from covey.gossip.task import NONCE_BYTES, TASK_ID_BYTES, Task, TaskId
from covey.gossip.task_state import MOVES, TERMINAL, TaskState
from covey.identity.errors import Conflict, Malformed, Misuse, NotFound, Unavailable
from covey.identity.keys import PeerId, public_key_of
from covey.inference.pool import Pool
from covey.inference.skills.summarize import SummarizeResult

from .data_sources import DataSources
from .events import Changed, Events, Happening
from .intake import task_of
from .members import Members
from .memory.shared import SharedMemory
from .records import TaskRecords
from .showing import peer_view, task_view, traffic_view
from .views import (
    DiscoveryView,
    Event,
    Finding,
    InviteRequest,
    InviteView,
    ModelView,
    PeerView,
    StatusView,
    SubmitRequest,
    TaskView,
)

LISTED_MAX = 1000
SUMMARIZE = "summarize"
SUMMARIZE_S = 120.0
WAIT_S_MAX = 3600.0
UNFINISHED = frozenset(MOVES) - TERMINAL


@dataclass(slots=True)
class Facts:
    """What the daemon knows of itself."""

    me: PeerId
    name: str
    mesh: bytes
    mesh_name: str
    role: str
    zones: Collection[str]
    version: str
    incarnation: int
    started_ms: int
    skills: tuple[str, ...]
    addresses: Callable[[], tuple[str, ...]]
    discovery: Callable[[], DiscoveryView]
    warnings: Callable[[], tuple[str, ...]]
    api: tuple[str, ...] = ()


@dataclass(slots=True)
class Commands:
    """What only the daemon can do."""

    invite: Callable[[InviteRequest], Awaitable[InviteView]]
    rescan_models: Callable[[], Awaitable[None]]
    doctor: Callable[[], Awaitable[list[Finding]]]
    memory: "Callable[[Service], SharedMemory]"
    members: "Callable[[Service], Members]"
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
        self._events = Events(now_ms)
        self._ended, self._unfinished = records.states()
        self.memory = commands.memory(self)
        """What can be asked of the shared memory."""
        self.members = commands.members(self)
        """What can be asked of the mesh's members."""
        delivery.on_changed(self._task_changed)

    # Tasks

    async def submit(self, request: SubmitRequest, wait_s: float = 0.0) -> TaskView:
        """Take a task, and return it as it stands when finished, or after wait_s. From then on it is
        durable, whatever becomes of the caller.

        Raises:
            Misuse: the request cannot be done by anyone.
            Conflict: its key names another task.
            Unavailable: the disk does not take it.
        """
        task = task_of(
            request,
            self.facts.me,
            zones=self.facts.zones,
            nonce=self._draw(NONCE_BYTES),
            now_ms=self._now_ms(),
        )
        task_id = TaskId(task.id)
        # Without a key, its id was drawn just now.
        known = self._records.task(task_id) if request.key is not None else None
        if known is None:
            await self._delivery.submit(task)
        elif known[0].need != task.need or known[0].input != task.input:
            raise Conflict(f"key {request.key!r} names another task on this device already")
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
        """Return this device's tasks, newest first, without their results."""
        wanted = max(1, min(limit, LISTED_MAX))
        views: list[TaskView] = []
        # What is kept of an unfinished task may be a step behind.
        kept_as = None if state is None else {state} if state in TERMINAL else UNFINISHED
        for task, kept in self._records.newest(kept_as):
            now = self._live(task, kept)
            if state is None or now.state == state:
                views.append(self._task_view(task, now, with_result=False))
                if len(views) == wanted:
                    break
        return views

    async def cancel(self, name: str) -> TaskView:
        """Cancel a task; final when this returns. A finished one stays as it is."""
        task_id = self._resolve(name)
        self.task(name)
        await self._delivery.cancel(task_id)
        return self.task(task_id.hex())

    # The device

    def peers(self) -> list[PeerView]:
        """Return every peer known, this one first."""
        views = [self._peer_view(entry) for entry in self._directory]
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
            tasks=dict(sorted((self._ended + Counter(self._unfinished.values())).items())),
            models=tuple(info.name for info, _ in self._pool.models()),
            skills=self._own_skills(),
            traffic=traffic_view(self._links.traffic(), data_read_bytes=self._data.read_bytes),
            discovery=facts.discovery(),
            memory=tuple(self.memory.steps()),
            warnings=facts.warnings(),
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
        self._events.tell("bye", text="the daemon stops")
        self._commands.shutdown()

    # Events

    def events(
        self, after_id: int | None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Happening]]:
        """Give events as they happen, first those after `after_id` that are still kept."""
        return self._events.listen(after_id)

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
            memory=self.memory.change(seen.memory) if seen.memory is not None else None,
            text=seen.text,
        )

    def peer_changed(self, peer: PeerId) -> None:
        """A peer came, went or changed: tell who watches."""
        entry = self._directory.get(peer)
        if entry is not None:
            self._events.tell("peer", peer=self._peer_view(entry))

    def memory_changed(self, change: Changed) -> None:
        """Something was remembered, or is gone: tell who watches."""
        self._events.tell("memory", memory=change)

    def _task_changed(self, task_id: TaskId, state: TaskState) -> None:
        if state.state in TERMINAL:
            self._unfinished.pop(task_id, None)
            self._ended[state.state] += 1
        else:
            self._unfinished[task_id] = state.state
        self._events.tell("task", task=(task_id, state))

    def recount(self) -> None:
        """Count again: some tasks were forgotten."""
        self._ended, _ = self._records.states()

    # For the shared memory

    def name_of(self, peer: str) -> str:
        """Return what a peer calls itself; its id if that is not known."""
        return self._name(peer)

    def other_peers(self) -> list[PeerId]:
        """Return every peer known but this one."""
        return [entry.peer for entry in self._directory if entry.peer != self.facts.me]

    def find_peer(self, name: str) -> PeerId:
        """Return the peer of this id or name.

        Raises:
            NotFound: none is known.
            Misuse: several have the name.
        """
        named = [e.peer for e in self._directory if name in (e.peer, e.advert.name)]
        if len(named) > 1:
            raise Misuse(f"several peers are called {name!r}; name one by its id: covey peers")
        if named:
            return named[0]
        try:
            public_key_of(PeerId(name))
        except Malformed:
            raise NotFound(f"no peer is called {name!r}; see: covey peers") from None
        return PeerId(name)

    async def summarize(self, text: str) -> tuple[str, str]:
        """Return a summary of the text, made on this device, and the model that worded it.

        Raises:
            Unavailable: this device cannot summarize, or did not in time.
        """
        if SUMMARIZE not in self._own_skills():
            raise Unavailable(
                "this device has no model that could summarize it; get one with: covey models pull"
            )
        request = SubmitRequest(
            skill=SUMMARIZE,
            input=msgspec.Raw(msgspec.json.encode({"text": text})),
            peer=self.facts.me,
            deadline_s=SUMMARIZE_S,
        )
        view = await self.submit(request, SUMMARIZE_S)
        if view.state != "done":
            raise Unavailable(f"this device could not summarize it: {view.reason}")
        result = msgspec.json.decode(view.result, type=SummarizeResult)
        return result.text, result.model if result.worded_by == "model" else ""

    # Views

    def _resolve(self, name: str) -> TaskId:
        if name == "last" and (newest := next(self._records.newest(), None)) is not None:
            return TaskId(newest[0].id)
        is_hex = 0 < len(name) <= 2 * TASK_ID_BYTES and set(name) <= set("0123456789abcdef")
        matching = self._records.ids(name, 2) if is_hex else []
        if len(matching) != 1:
            found = "several tasks" if matching else "no task"
            raise NotFound(f"this device knows {found} {name!r}; see: covey tasks")
        return matching[0]

    def _live(self, task: Task, kept: TaskState) -> TaskState:
        return self._delivery.origin.state(TaskId(task.id)) or kept

    def _task_view(self, task: Task, state: TaskState, *, with_result: bool = True) -> TaskView:
        task_id = TaskId(task.id)
        wanted = with_result and state.state == "done"
        verdict = self._records.verdict(task_id) if wanted else None
        return task_view(
            task,
            state,
            name=self._name,
            progress=self._delivery.origin.progress(task_id),
            result=verdict.result if verdict is not None else None,
        )

    def _name(self, peer: str) -> str:
        entry = self._directory.get(PeerId(peer))
        return entry.advert.name if entry is not None else peer

    def _own_skills(self) -> tuple[str, ...]:
        own = self._directory.get(self.facts.me)
        return own.advert.skills if own is not None else ()

    def _peer_view(self, entry: Entry) -> PeerView:
        own = None
        if entry.peer == self.facts.me:
            executions = self._delivery.executions
            own = Load(executions.running, executions.waiting)
        link = self._links.links().get(entry.peer)
        return peer_view(entry, link, own_load=own, now_ms=self._now_ms())
