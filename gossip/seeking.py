"""How do searches and bids meet the world? Drives `Search` and `Bidder` over DHT, gossip and links.

A call for zone `mesh` goes by gossip, at most one message a second, so calls that come close
together share one; of a narrower zone nothing is published: its calls go over links to its members.
Answers travel over links; who has none to the caller dials it.
"""

import logging
import math
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from itertools import islice
from typing import Protocol

import trio

from covey.identity.certificate import Member
from covey.identity.errors import CoveyError
from covey.identity.keys import PeerId

from .bidding import (
    CALLS_MAX,
    CHANNEL,
    MESSAGE_BYTES_MAX,
    TOPIC,
    Answer,
    Ask,
    Bid,
    Bidder,
    Call,
    Calls,
    Pass,
    decode_message,
    encode_message,
)
from .network import LinkDown, LinkUp, Network
from .pubsub import Heard
from .search import AskPeer, CallOut, LookUp, Search, SearchEffect
from .task import Need

log = logging.getLogger(__name__)

LOOKUP_S = 3.0
REACH_S = 5.0
PUBLISH_RETRY_S = 0.2
OUTBOX_MAX = 64
# Answers and questions for which a peer is being dialled.
REACHING_MAX = 32


class News(Protocol):
    """Gossip; `pubsub.py` is the real one."""

    inbox: trio.MemoryReceiveChannel[Heard]

    async def publish(self, topic: str, body: bytes) -> bool:
        """Tell every member that can be reached; False if this peer published within the second."""
        ...


Hints = Callable[[Need], Awaitable[Collection[PeerId]]]
"""Who may have what is needed, as the DHT says."""
Reach = Callable[[PeerId], Awaitable[None]]
"""Returns once there is a link to that member; raises Unavailable or NotAdmitted if there is none."""


class Seeking:
    """Finds who can do what the directory does not know, and answers others that seek.

    Args:
        network: the links.
        search: this peer's searches.
        bidder: what this peer answers; None if it answers nobody.
        answers_calls: whether it answers calls for bids, and not only who asks this very peer.
        hints: asks the DHT; None without one.
        reach: dials a member.
        changed: told when tasks that wait should be looked at again.
    """

    def __init__(
        self,
        network: Network,
        search: Search,
        bidder: Bidder | None,
        *,
        answers_calls: bool,
        hints: Hints | None,
        reach: Reach,
        changed: Callable[[], None],
    ) -> None:
        self._network = network
        self._search = search
        self._bidder = bidder
        self._answers_calls = answers_calls
        self._members: dict[PeerId, Member] = {}
        self._hints = hints
        self._reach = reach
        self._changed = changed
        self._nursery: trio.Nursery | None = None
        self._poked = trio.Event()
        self._sleeping_until = -math.inf
        self._outbox: dict[bytes, Call] = {}
        self._has_calls = trio.Event()
        self._reaching = 0
        self.called = 0
        """Calls for bids that this peer published or sent."""
        self.heard = 0
        """Calls for bids that this peer heard."""
        self.bids = 0
        """Calls that it answered."""
        network.on_message(CHANNEL, self._receive)
        network.on_link(self._link_changed)

    def member(self, peer: PeerId) -> Member | None:
        """Return who a linked peer is by the chain that it showed."""
        return self._members.get(peer)

    def poke(self) -> None:
        """Something may be wanted now: see what is due."""
        due = self._search.deadline
        if due < self._sleeping_until:
            self._sleeping_until = due
            self._poked.set()

    async def serve(
        self,
        news: News | None,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Search and answer until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                if news is not None:
                    nursery.start_soon(self._publish, news)
                    nursery.start_soon(self._listen, news)
                task_status.started()
                while True:
                    due = self._sleeping_until = self._search.deadline
                    with trio.move_on_at(due):
                        await self._poked.wait()
                        self._poked = trio.Event()
                    self._carry_out(self._search.tick(trio.current_time()))
            finally:
                self._nursery = None

    # What this peer seeks

    def _carry_out(self, effects: list[SearchEffect]) -> None:
        for effect in effects:
            match effect:
                case LookUp(need):
                    self._start(partial(self._look_up, need))
                case AskPeer(to, ask):
                    self._tell(to, ask, partial(self._unreachable, to, ask.call.id))
                case CallOut(call, None):
                    self.called += 1
                    if len(self._outbox) < OUTBOX_MAX or call.id in self._outbox:
                        self._outbox[call.id] = call
                    self._has_calls.set()
                case CallOut(call, to):
                    self.called += 1
                    body = encode_message(Calls((call,)))
                    for peer in to or ():
                        self._network.send(peer, CHANNEL, body)
        if self._search.take_changed():
            self._changed()
        self.poke()

    async def _look_up(self, need: Need) -> None:
        hints: Collection[PeerId] = ()
        if self._hints is not None:
            try:
                with trio.move_on_after(LOOKUP_S):
                    hints = await self._hints(need)
            except CoveyError as error:
                log.info("dht.no_answer", extra={"why": str(error)})
        self._carry_out(self._search.looked_up(need, hints, trio.current_time()))

    def _unreachable(self, peer: PeerId, call: bytes) -> None:
        self._carry_out(self._search.unreachable(peer, call, trio.current_time()))

    async def _publish(self, news: News) -> None:
        while True:
            await self._has_calls.wait()
            batch = self._batch()
            sent = await news.publish(TOPIC, encode_message(Calls(batch)))
            if not sent:
                await trio.sleep(PUBLISH_RETRY_S)
                continue
            for call in batch:
                # One that was widened meanwhile goes out again.
                if self._outbox.get(call.id) is call:
                    del self._outbox[call.id]
            if not self._outbox:
                self._has_calls = trio.Event()

    def _batch(self) -> tuple[Call, ...]:
        """Return the calls of the next message: the oldest, as many as it may carry."""
        batch = tuple(islice(self._outbox.values(), CALLS_MAX))
        while len(batch) > 1 and len(encode_message(Calls(batch))) > MESSAGE_BYTES_MAX:
            batch = batch[: len(batch) // 2]
        return batch

    # What others seek

    async def _listen(self, news: News) -> None:
        async for heard in news.inbox:
            try:
                message = decode_message(heard.body)
            except CoveyError as error:
                log.info("call.refused", extra={"peer": heard.author.peer, "why": str(error)})
                continue
            if isinstance(message, Calls):
                self._called(heard.author, message)

    def _called(self, caller: Member, calls: Calls) -> None:
        self.heard += len(calls.calls)
        if self._bidder is None or not self._answers_calls:
            return
        for answer in self._bidder.called(caller, calls, trio.current_time()):
            self.bids += 1
            self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        self._tell(answer.to, answer.message, None)

    def _receive(self, sender: PeerId, body: bytes) -> None:
        message = decode_message(body)
        match message:
            case Bid() | Pass():
                self._carry_out(self._search.answered(sender, message, trio.current_time()))
            case Calls() | Ask():
                caller = self._members.get(sender)
                if caller is None:
                    # Its link ended a moment ago.
                    return
                if isinstance(message, Calls):
                    self._called(caller, message)
                elif self._bidder is not None:
                    self._answer(self._bidder.asked(caller, message))
                else:
                    self._answer(Answer(sender, Pass(message.call.id, "it answers no calls")))

    # Links

    def _tell(
        self, to: PeerId, message: Ask | Bid | Pass, failed: Callable[[], None] | None
    ) -> None:
        """Send over the link; if there is none, dial first."""
        if self._network.send(to, CHANNEL, encode_message(message)):
            return
        if self._reaching >= REACHING_MAX:
            if failed is not None:
                failed()
            return
        self._reaching += 1
        self._start(partial(self._reach_and_tell, to, message, failed))

    async def _reach_and_tell(
        self, to: PeerId, message: Ask | Bid | Pass, failed: Callable[[], None] | None
    ) -> None:
        sent = False
        try:
            with trio.move_on_after(REACH_S):
                await self._reach(to)
                sent = self._network.send(to, CHANNEL, encode_message(message))
        except CoveyError as error:
            log.info("seek.unreachable", extra={"peer": to, "why": str(error)})
        finally:
            self._reaching -= 1
        if not sent and failed is not None:
            failed()

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        now = trio.current_time()
        match event:
            case LinkUp(peer, member):
                self._members[peer] = member
                self._search.link_up(now)
            case LinkDown(peer, _):
                self._members.pop(peer, None)
                self._search.link_down(peer, now)
        self.poke()

    def _start(self, work: Callable[[], Awaitable[None]]) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work)
