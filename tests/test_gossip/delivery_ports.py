"""What the delivery driver needs of the world, honest and in memory: links, records, skills."""

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import trio
from test_gossip.members import MESH, NOW_MS, chain_of

from covey.gossip.driver import Kept, Progress, Row, Then
from covey.gossip.effects import Ended, Run, Table
from covey.gossip.executions import RunRecord
from covey.gossip.messages import CHANNEL, Message, decode_message, encode_message
from covey.gossip.network import (
    LinkDown,
    LinkHandler,
    LinkInfo,
    LinkUp,
    MessageHandler,
    RequestHandler,
    Traffic,
)
from covey.gossip.task import Task, TaskId
from covey.gossip.task_state import TERMINAL, CancelRecord, TaskState, Verdict
from covey.identity.certificate import check_chain
from covey.identity.errors import CoveyError, Unavailable
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import decode

S = TypeVar("S")
ROW_BYTES_MAX = 2 * 1024 * 1024


class MemoryNetwork:
    """Links as a test makes them; what is sent is kept, in order."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._links: dict[PeerId, LinkInfo] = {}
        self._messages: dict[str, MessageHandler] = {}
        self._requests: dict[str, RequestHandler] = {}
        self._watchers: list[LinkHandler] = []
        self.sent: list[tuple[PeerId, Message]] = []
        self.answers: dict[bytes, bytes | CoveyError] = {}
        """What other peers answer to a request with this body; none: no answer in time."""

    @property
    def me(self) -> PeerId:
        return self._me

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        assert channel == CHANNEL
        if to not in self._links:
            return False
        self.sent.append((to, decode_message(body)))
        return True

    async def request(
        self, to: PeerId, channel: str, body: bytes, *, timeout_s: float, payload: bool = False
    ) -> bytes:
        if body not in self.answers:
            await trio.sleep(timeout_s)
            raise Unavailable(f"{to}: no answer within {timeout_s:g} s")
        await trio.lowlevel.checkpoint()
        answer = self.answers[body]
        if isinstance(answer, CoveyError):
            raise answer
        return answer

    def links(self) -> Mapping[PeerId, LinkInfo]:
        return self._links

    def on_message(self, channel: str, handler: MessageHandler) -> None:
        self._messages[channel] = handler

    def on_request(self, channel: str, handler: RequestHandler) -> None:
        self._requests[channel] = handler

    def on_link(self, handler: LinkHandler) -> None:
        self._watchers.append(handler)

    def traffic(self) -> Traffic:
        return Traffic()

    # What the others do

    def up(self, peer: Keypair) -> None:
        self._links[peer.peer_id] = LinkInfo(peer.peer_id, 1.0, trio.current_time(), "", False)
        member = check_chain(chain_of(peer), mesh=MESH, subject=peer.peer_id, now_ms=NOW_MS)
        for watcher in self._watchers:
            watcher(LinkUp(peer.peer_id, member))

    def down(self, peer: PeerId) -> None:
        del self._links[peer]
        for watcher in self._watchers:
            watcher(LinkDown(peer, "no power"))

    def hear(self, sender: PeerId, message: Message) -> None:
        self.hear_bytes(sender, encode_message(message))

    def hear_bytes(self, sender: PeerId, body: bytes) -> None:
        self._messages[CHANNEL](sender, body)

    async def ask(self, sender: PeerId, channel: str, body: bytes) -> bytes:
        return await self._requests[channel](sender, body)


class HeldRecords:
    """Records whose commits end when a test says so, and how; or at once."""

    def __init__(self) -> None:
        self.rows: dict[tuple[Table, bytes], bytes] = {}
        self.queued: deque[tuple[Sequence[Row], Then]] = deque()
        self.at_once = False
        self.broken: str | None = None
        """Why every commit fails."""
        self.unreadable: CoveyError | None = None
        self.puts = 0

    def put(self, rows: Sequence[Row], then: Then) -> None:
        self.puts += 1
        assert self.puts < 100_000, "the driver goes round in a circle"
        self.queued.append((rows, then))
        if self.at_once and len(self.queued) == 1:
            trio.lowlevel.current_trio_token().run_sync_soon(self.release)

    def release(self, count: int | None = None) -> None:
        """Let what is queued become durable (or fail, while `broken`), in order."""
        for _ in range(len(self.queued) if count is None else count):
            rows, then = self.queued.popleft()
            if self.broken is not None:
                then(Unavailable(self.broken))
                continue
            for table, key, value in rows:
                if value is None:
                    self.rows.pop((table, key), None)
                else:
                    self.rows[table, key] = value
            then(None)
        if self.at_once and self.queued:
            trio.lowlevel.current_trio_token().run_sync_soon(self.release)

    def fail(self, why: str) -> None:
        """Let the next commit fail."""
        _, then = self.queued.popleft()
        then(Unavailable(why))

    def unfinished(self) -> Kept:
        if self.unreadable is not None:
            raise self.unreadable
        states = [(key, state) for key, state in self._all(Table.STATE, TaskState)]
        return Kept(
            tasks=[
                (decode(self.rows[Table.TASK, key], Task, limit_bytes=ROW_BYTES_MAX), state)
                for key, state in states
                if state.state not in TERMINAL and (Table.TASK, key) in self.rows
            ],
            cancels=[record for _, record in self._all(Table.CANCEL, CancelRecord)],
            runs=[record for _, record in self._all(Table.RUN, RunRecord)],
        )

    def task(self, task_id: TaskId) -> tuple[Task, TaskState] | None:
        task, state = self.rows.get((Table.TASK, task_id)), self.rows.get((Table.STATE, task_id))
        if task is None or state is None:
            return None
        return (
            decode(task, Task, limit_bytes=ROW_BYTES_MAX),
            decode(state, TaskState, limit_bytes=ROW_BYTES_MAX),
        )

    def verdict(self, task_id: TaskId) -> Verdict | None:
        row = self.rows.get((Table.RESULT, task_id))
        return None if row is None else decode(row, Verdict, limit_bytes=ROW_BYTES_MAX)

    def _all(self, table: Table, kind: type[S]) -> list[tuple[bytes, S]]:
        return [
            (key, decode(row, kind, limit_bytes=ROW_BYTES_MAX))
            for (one, key), row in self.rows.items()
            if one is table
        ]


Skill = Callable[[Run, Progress], Awaitable[Ended]]


class Skills:
    """Runs what a test defines."""

    def __init__(self) -> None:
        self.known: dict[str, Skill] = {}
        self.began: list[Run] = []
        self.cut_short: list[Run] = []

    async def run(self, run: Run, progress: Progress) -> Ended:
        self.began.append(run)
        try:
            return await self.known[run.need.skill](run, progress)
        except trio.Cancelled:
            self.cut_short.append(run)
            raise
