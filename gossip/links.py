"""How do two peers keep talking? One long-lived framed stream for each pair, over one connection.

Implements the `Network` port. The dialler of a connection opens the link; what is queued for a link
while a write is under way leaves in the next write together. A peer that is silent for two ttl is
taken for dead: a frozen peer shows no error, so liveness is ours. When the link ends, the
connection is cut.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

import trio

from covey.identity.errors import CoveyError, Malformed, Misuse, PeerMisbehaved, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import decode, encode

from .gate import Visit
from .host import Host, Stream
from .link_session import Frame, FrameReader, Kind, encode_frame
from .network import (
    LinkDown,
    LinkHandler,
    LinkInfo,
    LinkUp,
    Load,
    MessageHandler,
    RequestHandler,
    Traffic,
)

log = logging.getLogger(__name__)

PROTOCOL = "/covey/link/1"
TTL_S = 3.0
PING_S = TTL_S
SILENT_S = 2 * TTL_S
# A link whose other side does not read holds at most this; more is refused, and delivery tries
# again later.
QUEUE_BYTES_MAX = 16 * 1024 * 1024
QUEUE_FRAMES_MAX = 8192
REQUESTS_MAX = 128
ARRIVAL_S = 5.0
WRITE_BYTES = 256 * 1024
READ_BYTES = 256 * 1024


@dataclass(eq=False, slots=True)
class _Link:
    visit: Visit
    stream: Stream
    heard_at: float
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    queue: deque[bytes] = field(default_factory=lambda: deque[bytes]())
    queued_bytes: int = 0
    ready: trio.Event = field(default_factory=trio.Event)
    pinged_at: float | None = None
    round_trip_ms: float | None = None
    load: Load | None = None
    why: str = "the connection ended"
    asked: dict[int, "_Asked"] = field(default_factory=lambda: dict[int, _Asked]())
    serving: dict[int, trio.CancelScope] = field(
        default_factory=lambda: dict[int, trio.CancelScope]()
    )

    def put(self, data: bytes) -> bool:
        full = (
            len(self.queue) >= QUEUE_FRAMES_MAX or self.queued_bytes + len(data) > QUEUE_BYTES_MAX
        )
        if full and self.queue:
            return False
        self.queue.append(data)
        self.queued_bytes += len(data)
        self.ready.set()
        return True

    def take(self) -> bytes:
        """Return what is queued, up to one write's worth."""
        parts: list[bytes] = []
        size = 0
        while self.queue and (not parts or size + len(self.queue[0]) <= WRITE_BYTES):
            part = self.queue.popleft()
            parts.append(part)
            size += len(part)
        self.queued_bytes -= size
        return b"".join(parts) if len(parts) > 1 else parts[0]


@dataclass(eq=False, slots=True)
class _Asked:
    done: trio.Event = field(default_factory=trio.Event)
    answer: Frame | None = None


class Links:
    """All links of this peer. Run `serve` in a nursery; hand it to `open_host` as the listener.

    Args:
        load: tells how busy this peer is, for the pings.
    """

    def __init__(self, me: PeerId, load: Callable[[], Load]) -> None:
        self._me = me
        self._load = load
        self._host: Host | None = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[PeerId, _Link] = {}
        self._messages: dict[str, MessageHandler] = {}
        self._requests: dict[str, RequestHandler] = {}
        self._watchers: list[LinkHandler] = []
        self._arrivals: dict[PeerId, trio.Event] = {}
        self._ids = count(1)
        self._traffic = Traffic()
        self.misbehaved = 0
        """Frames that were refused."""

    # The port

    @property
    def me(self) -> PeerId:
        """This peer."""
        return self._me

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        """Queue a message; False if there is no link, or its queue is full."""
        link = self._links.get(to)
        if link is None:
            return False
        frame = encode_frame(Frame(Kind.MESSAGE, channel, body, payload=payload))
        if not link.put(frame):
            return False
        self._count(channel, len(frame), payload=payload, out=True)
        return True

    async def request(
        self, to: PeerId, channel: str, body: bytes, *, timeout_s: float, payload: bool = False
    ) -> bytes:
        """Ask and return the answer; cancelling tells the other side."""
        link = self._links.get(to)
        if link is None:
            raise Unavailable(f"{to} is not connected")
        if len(link.asked) >= REQUESTS_MAX:
            raise Unavailable(f"{REQUESTS_MAX} requests to {to} are under way already")
        number = next(self._ids) & 0xFFFFFFFF
        asked = link.asked[number] = _Asked()
        left_ms = int(timeout_s * 1000)
        frame = encode_frame(Frame(Kind.REQUEST, channel, body, number, left_ms, payload=payload))
        try:
            if not link.put(frame):
                raise Unavailable(f"too much is queued for {to} already")
            self._count(channel, len(frame), payload=payload, out=True)
            with trio.move_on_after(timeout_s):
                await asked.done.wait()
        finally:
            del link.asked[number]
            if not asked.done.is_set():
                link.put(encode_frame(Frame(Kind.CANCEL, request=number)))
        if asked.answer is None:
            what = "its link ended" if asked.done.is_set() else f"no answer within {timeout_s:g} s"
            raise Unavailable(f"{to}: {what}")
        if asked.answer.kind is Kind.FAILURE:
            raise PeerMisbehaved(to, f"refused: {asked.answer.body.decode(errors='replace')[:400]}")
        return asked.answer.body

    def links(self) -> Mapping[PeerId, LinkInfo]:
        """Return the live links."""
        return {
            peer: LinkInfo(
                peer,
                link.round_trip_ms,
                link.heard_at,
                link.visit.address,
                link.visit.inbound,
                link.load,
            )
            for peer, link in self._links.items()
        }

    def on_message(self, channel: str, handler: MessageHandler) -> None:
        """Call `handler` for each message on `channel`."""
        self._messages[channel] = handler

    def on_request(self, channel: str, handler: RequestHandler) -> None:
        """Answer requests on `channel` by `handler`."""
        self._requests[channel] = handler

    def on_link(self, handler: LinkHandler) -> None:
        """Call `handler` whenever a link comes or goes."""
        self._watchers.append(handler)

    def traffic(self) -> Traffic:
        """Return the counters."""
        return self._traffic

    # Connections, as the host tells of them

    def opened(self, visit: Visit) -> None:
        """A member is connected: its dialler opens the link."""
        if (arrived := self._arrivals.pop(visit.peer, None)) is not None:
            arrived.set()
        if not visit.inbound and self._nursery is not None:
            self._nursery.start_soon(self._open, visit)

    def closed(self, visit: Visit) -> None:
        """A connection ended, and its link with it."""
        link = self._links.get(visit.peer)
        if link is not None and link.visit is visit:
            link.scope.cancel()

    async def serve(
        self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve links until cancelled."""
        self._host = host
        host.set_handler(PROTOCOL, self._accept)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._keep_alive()

    async def _open(self, visit: Visit) -> None:
        assert self._host is not None
        try:
            stream = await self._host.open_stream(visit, PROTOCOL)
        except Unavailable as error:
            log.info("link.not_opened", extra={"peer": visit.peer, "why": str(error)})
            await self._host.gate.cut(visit)
            return
        await self._run(visit, stream)

    async def _accept(self, peer: PeerId, stream: Stream) -> None:
        assert self._host is not None
        # The other side may be open a moment before us: its first stream can overtake our own
        # event.
        if self._host.gate.open_visit(peer) is None:
            arrived = self._arrivals.setdefault(peer, trio.Event())
            with trio.move_on_after(ARRIVAL_S):
                await arrived.wait()
        visit = self._host.gate.open_visit(peer)
        if visit is None or not visit.inbound:
            raise PeerMisbehaved(peer, "opened a link on a connection that it did not dial")
        await self._run(visit, stream)

    # One link

    async def _run(self, visit: Visit, stream: Stream) -> None:
        assert self._host is not None
        link = _Link(visit, stream, trio.current_time())
        if (old := self._links.pop(visit.peer, None)) is not None:
            self._end(old, "replaced by a newer one")
            old.scope.cancel()
        self._links[visit.peer] = link
        log.info("link.up", extra={"peer": visit.peer, "address": visit.address})
        self._tell(LinkUp(visit.peer, visit.member))
        self._ping(link)
        with link.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, link)
                await self._read(link, nursery)
                nursery.cancel_scope.cancel()
        if self._links.get(visit.peer) is link:
            del self._links[visit.peer]
            self._end(link, link.why)
        with trio.CancelScope(shield=True):
            await stream.reset()
            await self._host.gate.cut(visit)

    def _end(self, link: _Link, why: str) -> None:
        for asked in link.asked.values():
            asked.done.set()
        log.info("link.down", extra={"peer": link.visit.peer, "why": why})
        self._tell(LinkDown(link.visit.peer, why))

    async def _write(self, link: _Link) -> None:
        try:
            while True:
                await link.ready.wait()
                link.ready = trio.Event()
                while link.queue:
                    await link.stream.write(link.take())
        except Unavailable as error:
            link.why = str(error)
            link.scope.cancel()

    async def _read(self, link: _Link, nursery: trio.Nursery) -> None:
        reader = FrameReader()
        while data := await link.stream.read(READ_BYTES):
            link.heard_at = trio.current_time()
            try:
                for frame in reader.feed(data):
                    self._take(link, frame, nursery)
            except CoveyError as error:
                self.misbehaved += 1
                link.why = f"it sent what it must not: {error}"
                log.warning("link.misbehaved", extra={"peer": link.visit.peer, "why": str(error)})
                return

    def _take(self, link: _Link, frame: Frame, nursery: trio.Nursery) -> None:
        size = len(frame.body) + len(frame.channel) + 14
        match frame.kind:
            case Kind.MESSAGE:
                self._count(frame.channel, size, payload=frame.payload, out=False)
                self._hand_over(link, frame)
            case Kind.REQUEST:
                self._count(frame.channel, size, payload=frame.payload, out=False)
                self._take_request(link, frame, nursery)
            case Kind.ANSWER | Kind.FAILURE:
                asked = link.asked.get(frame.request)
                if asked is not None:
                    self._count(frame.channel, size, payload=frame.payload, out=False)
                    asked.answer = frame
                    asked.done.set()
            case Kind.CANCEL:
                if (scope := link.serving.get(frame.request)) is not None:
                    scope.cancel()
            case Kind.PING:
                link.load = decode(frame.body, Load, limit_bytes=1024)
                link.put(encode_frame(Frame(Kind.PONG, body=encode(self._load()))))
            case Kind.PONG:
                link.load = decode(frame.body, Load, limit_bytes=1024)
                if link.pinged_at is not None:
                    link.round_trip_ms = (trio.current_time() - link.pinged_at) * 1000
                    link.pinged_at = None
            case Kind.BYE:
                link.why = "it said goodbye"

    def _hand_over(self, link: _Link, frame: Frame) -> None:
        handler = self._messages.get(frame.channel)
        if handler is None:
            # A newer peer may speak of what we do not know.
            log.debug("message.unknown", extra={"channel": frame.channel})
            return
        try:
            handler(link.visit.peer, frame.body)
        except (PeerMisbehaved, Malformed) as error:
            self.misbehaved += 1
            log.warning("message.refused", extra={"peer": link.visit.peer, "why": str(error)})

    def _take_request(self, link: _Link, frame: Frame, nursery: trio.Nursery) -> None:
        handler = self._requests.get(frame.channel)
        if handler is None or len(link.serving) >= REQUESTS_MAX:
            why = (
                f"nothing answers on {frame.channel!r}"
                if handler is None
                else "too many requests at once"
            )
            link.put(encode_frame(Frame(Kind.FAILURE, body=why.encode(), request=frame.request)))
            return
        nursery.start_soon(self._answer, link, frame, handler)

    async def _answer(self, link: _Link, frame: Frame, handler: RequestHandler) -> None:
        answer = Frame(Kind.FAILURE, frame.channel, b"no answer in time", frame.request)
        with trio.move_on_after(frame.left_ms / 1000) as scope:
            link.serving[frame.request] = scope
            try:
                body = await handler(link.visit.peer, frame.body)
                answer = Frame(
                    Kind.ANSWER, frame.channel, body, frame.request, payload=frame.payload
                )
            except (Misuse, Unavailable, Malformed, PeerMisbehaved) as error:
                answer = Frame(
                    Kind.FAILURE, frame.channel, str(error).encode()[:400], frame.request
                )
            finally:
                link.serving.pop(frame.request, None)
        data = encode_frame(answer)
        if link.put(data):
            self._count(frame.channel, len(data), payload=answer.payload, out=True)

    async def _keep_alive(self) -> None:
        """Ping each link, and end those that have been silent for too long."""
        while True:
            await trio.sleep(PING_S)
            now = trio.current_time()
            for link in list(self._links.values()):
                if now > link.heard_at + SILENT_S + PING_S:
                    link.why = f"silent for {now - link.heard_at:.0f} s"
                    link.scope.cancel()
                else:
                    self._ping(link)

    def _ping(self, link: _Link) -> None:
        if link.pinged_at is None:
            link.pinged_at = trio.current_time()
        link.put(encode_frame(Frame(Kind.PING, body=encode(self._load()))))

    def _tell(self, event: LinkUp | LinkDown) -> None:
        for watcher in self._watchers:
            watcher(event)

    def _count(self, channel: str, size: int, *, payload: bool, out: bool) -> None:
        traffic = self._traffic
        if payload:
            table = traffic.payload_out if out else traffic.payload_in
        else:
            table = traffic.control_out if out else traffic.control_in
        table[channel] = table.get(channel, 0) + size
