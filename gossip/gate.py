"""What may a connection do before it has said hello? Nothing: the gate in front of libp2p's own
protocols.

identify, pubsub, DHT and the auto-connector find peers in two places only: the swarm's table of
connections and its `connected` event. So a connection is entered and announced only after hello has
succeeded both ways; until then it is a guest, outside of both, to whom only `hello` and `join`
answer. Four hooks, all instance attributes of the swarm, pinned to py-libp2p 0.8.1 (LIBP2P.md 12).
Needs Noise over TCP with yamux.
"""

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import trio
from libp2p.custom_types import TProtocol
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from multiaddr import Multiaddr

from covey.identity.certificate import Member
from covey.identity.errors import CoveyError, Malformed, NotAdmitted, PeerMisbehaved, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import KIB

from . import hello, joining

log = logging.getLogger(__name__)

CUT_S = 5.0
FRAME_BYTES_MAX = 16 * KIB
_MULTISTREAM = "/multistream/1.0.0"


reach: ContextVar[Callable[[PeerId], Awaitable[None]] | None] = ContextVar("reach", default=None)
"""Dials a member for a service of the library; unset, the library dials nobody."""


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """What a connection may use before it is a member's."""

    guests_max: int = 8
    """Guests at once; members that we know of are not counted. More are turned away."""
    stay_s: float = 10.0
    """From the end of the handshake to the end of hello. The library's resource manager forgets
    connections outside of its table after 30 s, so it stays well below that."""
    bytes_max: int = 64 * KIB
    """What one guest may send; counted in whole Noise messages of at most 64 kB."""
    streams_max: int = 4
    """Streams of one guest at once; more are reset."""


class Door(Protocol):
    """Who judges at the door; `admission.py` has the real one."""

    def is_known(self, peer: PeerId) -> bool:
        """Tell whether this is a member we have met (or are told of): it takes no guest's place."""
        ...

    def greeting(self) -> bytes:
        """Return our own hello."""
        ...

    def judge_hello(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a dialler's hello."""
        ...

    def judge_answer(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a listener's answer."""
        ...

    def challenge(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's ask."""
        ...

    async def prove(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's proof, once the answer is durable."""
        ...


@dataclass(eq=False, slots=True)
class Visit:
    """One connection, from its first byte to its end."""

    mux: Any
    id: ID
    peer: PeerId
    inbound: bool
    known: bool
    state: Literal["guest", "answering", "open", "closed"] = "guest"
    conn: Any = None
    accepted: hello.Accepted | None = None
    announced: bool = False
    streams: int = 0
    spent_bytes: int = 0
    opened_at: float = 0.0
    unmeter: Callable[[], None] | None = None
    became_open: trio.Event = field(default_factory=trio.Event)
    gone: trio.Event = field(default_factory=trio.Event)

    @property
    def member(self) -> Member:
        """Who it is; only once hello has succeeded."""
        assert self.accepted is not None
        return self.accepted.member

    @property
    def address(self) -> str:
        """Where the other side is, as a multiaddr."""
        addresses: list[Any] = self.conn.get_transport_addresses() if self.conn is not None else []
        return str(addresses[0]) if addresses else ""


Opened = Callable[[Visit], None]
Closed = Callable[[Visit], None]


class Gate:
    """Keeps guests outside until they are members. One for each host; installed before it listens.

    Args:
        host: the libp2p host.
        door: who judges.
        opened: told when a connection is open both ways. It must not wait.
        closed: told when such a connection ended. It must not wait.
        limits: what guests may use.
    """

    def __init__(
        self, host: Any, door: Door, opened: Opened, closed: Closed, limits: GuestLimits
    ) -> None:
        self._swarm = host.get_network()
        self._door = door
        self._opened = opened
        self._closed = closed
        self._limits = limits
        self._visits: dict[Any, Visit] = {}
        self._hellos: dict[PeerId, trio.Lock] = {}
        self.refused = 0
        """Guests that were not let in."""
        swarm = self._swarm
        self._add, swarm.add_conn = swarm.add_conn, self._add_conn
        self._tell, swarm.notify_connected = swarm.notify_connected, self._connected
        self._untell, swarm.notify_disconnected = swarm.notify_disconnected, self._disconnected
        self._serve = swarm.common_stream_handler
        swarm.set_stream_handler(self._on_stream)
        swarm.dial_peer = self._dial_peer

    # For the host

    def visits(self) -> list[Visit]:
        """Return every connection that is not closed, guests included."""
        return [visit for visit in self._visits.values() if visit.state != "closed"]

    def open_visit(self, peer: PeerId) -> Visit | None:
        """Return the open connection to a member."""
        for visit in self._visits.values():
            # The library tells of an end 100 ms after it.
            if visit.peer == peer and visit.state == "open" and not visit.conn.is_closed:
                return visit
        return None

    def visit_of(self, mux: Any) -> Visit | None:
        """Return the visit that a muxed connection is, until it has ended."""
        return self._visits.get(mux)

    async def dial(self, peer: PeerId, address: str, *, timeout_s: float) -> Visit:
        """Connect to a member and exchange hello; return once both sides are open.

        Raises:
            Unavailable: it cannot be reached there, or hello did not end in time.
            NotAdmitted: it refused us, or is not who it should be.
        """
        if (visit := self.open_visit(peer)) is not None:
            return visit
        with trio.move_on_after(timeout_s) as scope:
            await self._old_gone(peer)
            visit = await self._connect(peer, address)
            if (came := self.open_visit(peer)) is not None:
                # It was quicker.
                await self.cut(visit)
                return came
            try:
                await self._say_hello_in_turn(visit)
            except BaseException:
                await self.cut(visit)
                raise
            return visit
        assert scope.cancelled_caught
        raise Unavailable(f"no answer from {address} within {timeout_s:g} s")

    async def join(
        self,
        peer: PeerId,
        address: str,
        steps: Callable[[bytes | None], bytes | None],
        *,
        timeout_s: float,
    ) -> None:
        """Connect as a guest and run the conversation of `join`.

        Args:
            peer: the inviter, which Noise must prove.
            address: where it is.
            steps: given the other side's last frame (None first), returns ours, or None when done.
            timeout_s: for everything.
        """
        with trio.move_on_after(timeout_s):
            visit = await self._connect(peer, address)
            try:
                stream = await visit.conn.new_stream()
                await _select(stream, joining.PROTOCOL)
                heard: bytes | None = None
                while (said := steps(heard)) is not None:
                    await write_frame(stream, said)
                    heard = await read_frame(stream)
                return
            except CoveyError:
                raise
            except Exception as error:
                raise Unavailable(f"the inviter at {address} ended the conversation") from error
            finally:
                await self.cut(visit)
        raise Unavailable(f"no answer from the inviter at {address} within {timeout_s:g} s")

    def shut(self, visit: Visit) -> None:
        """Take a connection out of every table at once; nothing new goes over it. `cut` ends it."""
        visit.state = "closed"
        self._hide(visit)

    async def cut(self, visit: Visit) -> None:
        """End a connection, whatever state it is in; bounded, also against a peer that does not read."""
        self.shut(visit)
        with trio.CancelScope(shield=True), trio.move_on_after(CUT_S):
            # The socket first: a polite close waits for the write lock, for ever if the peer does
            # not read.
            await _quietly(visit.mux.secured_conn.close)
            if visit.conn is not None:
                await _quietly(visit.conn.close)
                await visit.gone.wait()
        self._visits.pop(visit.mux, None)
        visit.gone.set()

    async def close(self) -> None:
        """Cut every connection, guests included: the library's own close knows only its table."""
        async with trio.open_nursery() as nursery:
            for visit in list(self._visits.values()):
                nursery.start_soon(self.cut, visit)

    # The four hooks

    async def _add_conn(self, mux: Any, direction: str = "unknown") -> Any:
        peer = PeerId(str(mux.peer_id))
        visit = Visit(mux, mux.peer_id, peer, direction == "inbound", self._door.is_known(peer))
        guests = sum(
            one.state == "guest" and one.inbound and not one.known for one in self._visits.values()
        )
        if visit.inbound and not visit.known and guests >= self._limits.guests_max:
            self.refused += 1
            await mux.secured_conn.close()
            raise SwarmException("no room for another guest")
        self._visits[mux] = visit
        _meter(visit, self._limits.bytes_max)
        try:
            return await self._add(mux, direction)
        except BaseException:
            self._visits.pop(mux, None)
            raise

    async def _connected(self, conn: Any) -> None:
        visit = self._visits.get(conn.muxed_conn)
        if visit is None:
            return
        visit.conn = conn
        # Nothing was awaited between entering the table and here, so nobody has seen it there.
        self._hide(visit)
        self._swarm.manager.run_task(self._watch, visit)

    async def _disconnected(self, conn: Any) -> None:
        visit = self._visits.pop(conn.muxed_conn, None)
        if visit is None:
            return
        visit.state = "closed"
        try:
            if visit.announced:
                await self._untell(conn)
        finally:
            visit.gone.set()
            if visit.announced:
                self._closed(visit)

    async def _on_stream(self, stream: Any) -> None:
        visit = self._visits.get(stream.muxed_conn)
        try:
            if visit is None:
                await stream.reset()
            elif visit.state in ("answering", "open"):
                await self._serve(stream)
            else:
                await self._serve_guest(visit, stream)
        except Exception as error:  # noqa: BLE001  (an exception that escapes a handler stops the whole host)
            log.debug("stream.broke", extra={"why": repr(error)})
            await _quietly(stream.reset)

    async def _dial_peer(self, peer_id: ID) -> list[Any]:
        """For the library's own wish to dial: it gets the open connection, or nothing.

        Only for who has set `reach` is a member that is not connected dialled, and through the gate.
        """
        peer = PeerId(str(peer_id))
        visit = self.open_visit(peer)
        if visit is None and (reaching := reach.get()) is not None:
            try:
                await reaching(peer)
            except CoveyError as error:
                raise SwarmException(str(error)) from error
            visit = self.open_visit(peer)
        if visit is None:
            raise SwarmException("only links dial")
        return [visit.conn]

    # Guests

    async def _serve_guest(self, visit: Visit, stream: Any) -> None:
        if visit.state != "guest" or visit.streams >= self._limits.streams_max:
            await stream.reset()
            return
        visit.streams += 1
        try:
            served = await self._negotiate(visit, stream)
            if not served:
                await stream.reset()
        finally:
            visit.streams -= 1

    async def _negotiate(self, visit: Visit, stream: Any) -> bool:
        """Serve the door's two protocols; `ls`, which would list every protocol, is none of them."""
        communicator = MultiselectCommunicator(stream)
        await communicator.write(_MULTISTREAM)
        if await communicator.read() != _MULTISTREAM:
            return False
        wanted = await communicator.read()
        serve = {hello.PROTOCOL: self._hear_hello, joining.PROTOCOL: self._hear_join}.get(wanted)
        if serve is None or not visit.inbound:
            return False
        await communicator.write(wanted)
        stream.set_protocol(TProtocol(wanted))
        await serve(visit, stream)
        return True

    async def _hear_hello(self, visit: Visit, stream: Any) -> None:
        verdict = self._door.judge_hello(await read_frame(stream), visit.peer)
        if isinstance(verdict, hello.Accepted):
            verdict = await self._make_room(visit, verdict)
        if isinstance(verdict, hello.Refused):
            self.refused += 1
            log.info("guest.refused", extra={"peer": visit.peer, "code": verdict.code})
            await write_frame(stream, verdict.encoded())
            await _drain(stream)
            await self.cut(visit)
            return
        visit.accepted = verdict
        visit.state = "answering"
        await write_frame(stream, self._door.greeting())
        if not hello.is_confirmed(await read_frame(stream)):
            raise PeerMisbehaved(visit.peer, "did not confirm its hello")
        await _quietly(stream.close)
        await self._open(visit)

    async def _make_room(
        self, visit: Visit, accepted: hello.Accepted
    ) -> hello.Accepted | hello.Refused:
        """Keep one connection for each pair: refuse this one, or end the other first."""
        others = [
            one
            for one in self._visits.values()
            if one.peer == visit.peer and one is not visit and one.state in ("open", "answering")
        ]
        # Only of the same start: who has restarted since has lost that connection.
        own = next(
            (
                one
                for one in others
                if one.state == "open"
                and not one.inbound
                and one.accepted is not None
                and one.accepted.incarnation == accepted.incarnation
            ),
            None,
        )
        decision = hello.second_connection(
            me=PeerId(str(self._swarm.get_peer_id())),
            remote=visit.peer,
            # A dial that has no connection yet may have gone into a black hole: it is no reason.
            dialling=any(
                one.peer == visit.peer and not one.inbound and one.state in ("guest", "answering")
                for one in self._visits.values()
            ),
            own_open_age_s=None if own is None else trio.current_time() - own.opened_at,
        )
        if decision == "duplicate":
            return hello.Refused("duplicate", "we are connecting to you at this moment")
        for other in others:
            await self.cut(other)
        return accepted

    async def _hear_join(self, visit: Visit, stream: Any) -> None:
        await write_frame(stream, self._door.challenge(await read_frame(stream), visit.peer))
        await write_frame(stream, await self._door.prove(await read_frame(stream), visit.peer))
        await _drain(stream)

    async def _say_hello_in_turn(self, visit: Visit) -> None:
        """Say hello to one peer over one connection at a time.

        A listener takes a second hello for a reconnection and cuts the first connection, which this
        side may just have chosen.
        """
        turn = self._hellos.setdefault(visit.peer, trio.Lock())
        try:
            async with turn:
                if self.open_visit(visit.peer) is not None:
                    raise Unavailable("another connection was quicker")
                await self._say_hello(visit)
        finally:
            if not turn.locked():
                self._hellos.pop(visit.peer, None)

    async def _say_hello(self, visit: Visit) -> None:
        try:
            stream = await visit.conn.new_stream()
            await _select(stream, hello.PROTOCOL)
            await write_frame(stream, self._door.greeting())
            verdict = self._door.judge_answer(await read_frame(stream), visit.peer)
            if isinstance(verdict, hello.Refused):
                raise NotAdmitted(verdict.code, verdict.reason)
            visit.accepted = verdict
            # Before the confirmation leaves: the other side's first streams may come right behind
            # it.
            visit.state = "answering"
            await write_frame(stream, hello.encode_hello(hello.Confirm()))
            await _quietly(stream.close)
        except Malformed as error:
            raise Unavailable(f"{visit.peer} answered hello with what is none: {error}") from error
        except CoveyError:
            raise
        except Exception as error:
            raise Unavailable(f"{visit.peer} ended the conversation at hello") from error
        if not await self._open(visit):
            raise Unavailable(f"{visit.peer} ended the connection at hello")

    async def _old_gone(self, peer: PeerId) -> None:
        """Wait until the services have heard of the end of the last connection to a peer.

        They would take the new one for the old one, and hear the end as its end.
        """
        for visit in list(self._visits.values()):
            if visit.peer == peer and visit.conn is not None and visit.conn.is_closed:
                await visit.gone.wait()

    async def _connect(self, peer: PeerId, address: str) -> Visit:
        try:
            # Once: the library's own retries make a refused dial take 0.7 s, and a dialler of ours
            # retries anyway.
            conn = await self._swarm._dial_addr_single_attempt(
                Multiaddr(address), ID.from_base58(peer), None
            )
        except Exception as error:
            raise Unavailable(f"{address} cannot be reached: {_innermost(error)}") from error
        visit = self._visits.get(conn.muxed_conn)
        if visit is None:
            raise Unavailable(f"{address} closed the connection at once")
        return visit

    async def _open(self, visit: Visit) -> bool:
        """Enter and announce a connection; tell whether it is open."""
        if visit.state in ("open", "closed") or visit.conn.is_closed:
            return visit.state == "open"
        visit.state, visit.announced = "open", True
        visit.opened_at = trio.current_time()
        visit.became_open.set()
        if visit.unmeter is not None:
            visit.unmeter()
        self._swarm.connections.setdefault(visit.id, []).append(visit.conn)
        await self._tell(visit.conn)
        self._opened(visit)
        return True

    async def _watch(self, visit: Visit) -> None:
        """A guest that has not become a member in time is shown out."""
        with trio.move_on_after(self._limits.stay_s):
            await visit.gone.wait()
        if visit.state in ("guest", "answering"):
            await self.cut(visit)

    def _hide(self, visit: Visit) -> None:
        table = self._swarm.connections
        kept = [conn for conn in table.get(visit.id, []) if conn is not visit.conn]
        if kept:
            table[visit.id] = kept
        else:
            table.pop(visit.id, None)


async def read_frame(stream: Any) -> bytes:
    """Return one frame of the door: a length of 4 bytes, at most 16 KiB."""
    size = int.from_bytes(await _read_exactly(stream, 4), "big")
    if size > FRAME_BYTES_MAX:
        raise Malformed(f"a frame of {size} bytes at the door, over the limit of {FRAME_BYTES_MAX}")
    return await _read_exactly(stream, size)


async def write_frame(stream: Any, data: bytes) -> None:
    """Send one frame of the door."""
    await stream.write(len(data).to_bytes(4, "big") + data)


async def _read_exactly(stream: Any, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = await stream.read(size - len(parts))
        if not part:
            raise Malformed("the stream ended within a frame")
        parts += part
    return bytes(parts)


async def _select(stream: Any, protocol: str) -> None:
    """Ask for one protocol as a dialler."""
    communicator = MultiselectCommunicator(stream)
    await communicator.write(_MULTISTREAM)
    if await communicator.read() != _MULTISTREAM:
        raise Malformed("the other side speaks no multistream")
    await communicator.write(protocol)
    if await communicator.read() != protocol:
        raise Malformed(f"the other side does not speak {protocol}: it is no covey peer")
    stream.set_protocol(TProtocol(protocol))


async def _drain(stream: Any) -> None:
    """Let the last frame arrive before the cut: wait until the other side is done, at most 2 s."""
    with trio.move_on_after(2):
        await _quietly(stream.close_write)
        await _quietly(lambda: stream.read(1))


async def _quietly(call: Callable[[], Awaitable[object]]) -> None:
    try:
        await call()
    except Exception as error:  # noqa: BLE001  (closing what is already broken may raise anything)
        log.debug("close.failed", extra={"why": repr(error)})


def _meter(visit: Visit, bytes_max: int) -> None:
    """Count what a guest sends, before yamux buffers it; over the limit its connection breaks."""
    channel = visit.mux.secured_conn.conn
    original = channel.read_msg

    async def read_msg(*arguments: Any, **named: Any) -> bytes:
        data: bytes = await original(*arguments, **named)
        if visit.unmeter is None:
            # It has become a member while this read waited.
            return data
        visit.spent_bytes += len(data)
        if visit.spent_bytes > bytes_max:
            raise ConnectionError("a guest sent too much")
        return data

    channel.read_msg = read_msg

    def unmeter() -> None:
        channel.read_msg = original
        visit.unmeter = None

    visit.unmeter = unmeter


def _innermost(error: BaseException) -> str:
    """Say the cause that helps: the library wraps it several times."""
    inner = error.__cause__ or next(iter(getattr(error, "exceptions", ())), None)
    return _innermost(inner) if inner is not None else str(error) or type(error).__name__
