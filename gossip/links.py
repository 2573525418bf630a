"""How do two peers keep talking? One long-lived framed stream for each pair, over one connection.

Implements the `Network` port. The dialler of a connection opens the link; what is queued for a link
while a write is under way leaves in the next write together. A peer that is silent for two ttl and a
ping is taken for dead: a frozen peer shows no error, so liveness is ours. When the link ends, the
connection is cut.
"""

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import count

import trio

from covey.identity.errors import CoveyError, Malformed, PeerMisbehaved, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode, encode

from .gate import Visit
from .host import Host, Stream
from .link_session import HEAD, Frame, FrameReader, Kind, encode_frame
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
WRITE_BYTES = 256 * KIB
READ_BYTES = 256 * KIB
# Traffic on channels that nobody here listens to: a name is the sender's choice, and names must not
# fill the counters.
UNKNOWN_CHANNEL = "?"
REASON_BYTES_MAX = 400


@dataclass(frozen=True, slots=True)
class LinkSettings:
    """What one link may hold, and how long it may be silent."""

    ping_s: float = TTL_S
    """How often each side pings; a ping carries load."""
    silent_s: float = 3 * TTL_S
    """A link on which nothing was heard for longer is ended at the next ping: two ttl, and the one
    ping that may have been under way."""
    arrival_s: float = 10.0
    """How long after a connection its dialler may take to open the link."""
    queue_bytes_max: int = 16 * 1024 * KIB
    """What waits for one peer that does not read; more is refused, and delivery tries again."""
    queue_frames_max: int = 8192
    requests_max: int = 128
    """Requests under way on one link, in either direction."""


@dataclass(eq=False, slots=True)
class _Link:
    visit: Visit
    stream: Stream
    heard_at: float
    settings: LinkSettings
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
            len(self.queue) >= self.settings.queue_frames_max
            or self.queued_bytes + len(data) > self.settings.queue_bytes_max
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
    channel: str
    done: trio.Event = field(default_factory=trio.Event)
    answer: Frame | None = None


class Links:
    """All links of this peer. Run `serve` in a nursery; hand it to `open_host` as the listener.

    Args:
        load: tells how busy this peer is, for the pings.
        settings: limits and times.
    """

    def __init__(
        self, me: PeerId, load: Callable[[], Load], settings: LinkSettings | None = None
    ) -> None:
        self._me = me
        self._load = load
        self._settings = settings or LinkSettings()
        self._host: Host | None = None
        self._nursery: trio.Nursery | None = None
        self._links: dict[PeerId, _Link] = {}
        self._messages: dict[str, MessageHandler] = {}
        self._requests: dict[str, RequestHandler] = {}
        self._watchers: list[LinkHandler] = []
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
        most = self._settings.requests_max
        if len(link.asked) >= most:
            raise Unavailable(f"{most} requests to {to} are under way already")
        number = next(self._ids) & 0xFFFFFFFF
        left_ms = int(timeout_s * 1000)
        frame = encode_frame(Frame(Kind.REQUEST, channel, body, number, left_ms, payload=payload))
        asked = link.asked[number] = _Asked(channel)
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
            raise PeerMisbehaved(
                to, f"refused: {asked.answer.body.decode(errors='replace')[:REASON_BYTES_MAX]}"
            )
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
        if self._nursery is not None:
            self._nursery.start_soon(self._expect if visit.inbound else self._open, visit)

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

    async def _expect(self, visit: Visit) -> None:
        """A member that opens no link is heard by nobody, and would stay for ever."""
        assert self._host is not None
        with trio.move_on_after(self._settings.arrival_s):
            await visit.gone.wait()
        link = self._links.get(visit.peer)
        if link is None or link.visit is not visit:
            await self._host.gate.cut(visit)

    async def _accept(self, peer: PeerId, stream: Stream) -> None:
        assert self._host is not None
        visit = self._host.visit_of(stream)
        if visit is None or not visit.inbound:
            raise PeerMisbehaved(peer, "opened a link on a connection that it did not dial")
        # The other side may be open a moment before us: its first stream can overtake its
        # confirmation.
        with trio.move_on_after(self._settings.arrival_s):
            await visit.became_open.wait()
        if visit.state != "open":
            raise PeerMisbehaved(peer, "opened a link before it had confirmed its hello")
        await self._run(visit, stream)

    # One link

    async def _run(self, visit: Visit, stream: Stream) -> None:
        assert self._host is not None
        link = _Link(visit, stream, trio.current_time(), self._settings)
        if (old := self._links.pop(visit.peer, None)) is not None:
            self._end(old, "replaced by a newer one")
            old.scope.cancel()
        self._links[visit.peer] = link
        log.info("link.up", extra={"peer": visit.peer, "address": visit.address})
        self._tell(LinkUp(visit.peer, visit.member))
        self._ping(link)
        try:
            with link.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, link)
                    await self._read(link, nursery)
                    nursery.cancel_scope.cancel()
        except Exception:
            # Ours; but it must not end the other links with this one.
            log.exception("link.broke", extra={"peer": visit.peer})
            link.why = "an error of this peer's own"
        if self._links.get(visit.peer) is link:
            del self._links[visit.peer]
            self._end(link, link.why)
        with trio.CancelScope(shield=True):
            # Not the stream first: its reset would wait behind what a black hole does not take, for
            # as long as TCP does, and nobody is dialled while the old connection stands.
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
        size = HEAD.size + len(frame.channel.encode()) + len(frame.body)
        match frame.kind:
            case Kind.MESSAGE:
                known = frame.channel in self._messages
                self._heard(frame.channel if known else UNKNOWN_CHANNEL, size, frame)
                self._hand_over(link, frame)
            case Kind.REQUEST:
                known = frame.channel in self._requests
                self._heard(frame.channel if known else UNKNOWN_CHANNEL, size, frame)
                self._take_request(link, frame, nursery)
            case Kind.ANSWER | Kind.FAILURE:
                asked = link.asked.get(frame.request)
                if asked is not None:
                    self._heard(asked.channel, size, frame)
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
        except CoveyError as error:
            self.misbehaved += 1
            log.warning("message.refused", extra={"peer": link.visit.peer, "why": str(error)})
        except Exception:
            # Ours, raised by what this peer said: the link, and the next message, are not at fault.
            log.exception("message.broke", extra={"peer": link.visit.peer})

    def _take_request(self, link: _Link, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.request in link.serving:
            raise PeerMisbehaved(link.visit.peer, f"used the number {frame.request} twice at once")
        handler = self._requests.get(frame.channel)
        if handler is None or len(link.serving) >= self._settings.requests_max:
            why = (
                f"nothing answers on {frame.channel!r}"
                if handler is None
                else "too many requests at once"
            )
            link.put(_failure(frame, why))
            return
        # Entered here rather than by the task: the next frame may cancel it already.
        scope = trio.CancelScope(deadline=trio.current_time() + frame.left_ms / 1000)
        link.serving[frame.request] = scope
        nursery.start_soon(self._answer, link, frame, handler, scope)

    async def _answer(
        self, link: _Link, frame: Frame, handler: RequestHandler, scope: trio.CancelScope
    ) -> None:
        data: bytes | None = None
        with scope:
            data = await self._handled(link.visit.peer, frame, handler)
        del link.serving[frame.request]
        # Who asked has given up by then, and needs no answer.
        if data is not None and link.put(data):
            self._count(frame.channel, len(data), payload=frame.payload, out=True)

    async def _handled(self, peer: PeerId, frame: Frame, handler: RequestHandler) -> bytes:
        try:
            body = await handler(peer, frame.body)
            return encode_frame(
                Frame(Kind.ANSWER, frame.channel, body, frame.request, payload=frame.payload)
            )
        except CoveyError as error:
            if isinstance(error, Malformed | PeerMisbehaved):
                self.misbehaved += 1
                log.warning("request.refused", extra={"peer": peer, "why": str(error)})
            return _failure(frame, str(error))
        except Exception:
            # Ours; who asked is told that there will be no answer, and nothing else ends.
            log.exception("request.broke", extra={"peer": peer, "channel": frame.channel})
            return _failure(frame, "an error of the other side's own")

    async def _keep_alive(self) -> None:
        """Ping each link, and end those that have been silent for too long."""
        while True:
            await trio.sleep(self._settings.ping_s)
            now = trio.current_time()
            for link in list(self._links.values()):
                if now > link.heard_at + self._settings.silent_s:
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
            try:
                watcher(event)
            except Exception:
                # Ours; but the other watchers and the link must go on.
                log.exception("link.untold", extra={"peer": event.peer})

    def _heard(self, channel: str, size: int, frame: Frame) -> None:
        self._count(channel, size, payload=frame.payload, out=False)

    def _count(self, channel: str, size: int, *, payload: bool, out: bool) -> None:
        traffic = self._traffic
        if payload:
            table = traffic.payload_out if out else traffic.payload_in
        else:
            table = traffic.control_out if out else traffic.control_in
        table[channel] = table.get(channel, 0) + size


def _failure(asked: Frame, why: str) -> bytes:
    """Return the frame that refuses a request."""
    return encode_frame(
        Frame(Kind.FAILURE, asked.channel, why.encode()[:REASON_BYTES_MAX], asked.request)
    )
