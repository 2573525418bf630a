"""What must be worked around in py-libp2p 0.8.1? Each workaround, with its symptom; guarded by
tests.

To be read again on every upgrade: delete what is mended. The gate's hooks are in `gate.py`;
everything else is here.
"""

import logging
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import libp2p.pubsub.pubsub as pubsub_module
import libp2p.pubsub.rpc_queue as rpc_queue_module
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.kad_dht import common, kad_dht, peer_routing, provider_store, value_store
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.stream_muxer.yamux.yamux import (
    DEFAULT_WINDOW_SIZE,
    HEADER_SIZE,
    MAX_MESSAGE_SIZE,
    TYPE_DATA,
    YAMUX_HEADER_FORMAT,
)

log = logging.getLogger(__name__)

VERSION = "0.8.1"
# Sockets that are connected but not through Noise yet. Without a bound, 250 silent ones keep every
# member out for 10 s.
HALF_OPEN_PER_ADDRESS_MAX = 16
HALF_OPEN_MAX = 128
RPC_QUEUE_SIZE = 1024
# A queue cuts what it sends at this; the receiver resets the stream on more.
RPC_BYTES_MAX = 64 * 1024
WINDOW_STEP_BYTES = DEFAULT_WINDOW_SIZE // 4

DHT_PROTOCOL = TProtocol("/covey/kad/1.0.0")
# An answer names twenty peers with their addresses and one record.
DHT_MESSAGE_BYTES_MAX = 256 * 1024
DHT_QUERY_S = 3.0
PROVIDER_RECORD_S = 3600
DHT_VALUES_MAX = 2048

_applied = False


def apply() -> None:
    """Patch the library, once in a process; before the first host is made."""
    global _applied
    if _applied:
        return
    _applied = True
    _release_inbound_slots()
    _enlarge_pubsub_queues()
    _make_dht_private()


def _release_inbound_slots() -> None:
    """A host accepts only 250 inbound connections in its life, and leaks a task for each.

    Symptom: connection 251 fails with "failed to negotiate the secure protocol". Cause: the handler
    waits for the end of the swarm instead of the end of the connection, holding its slot. TCP only:
    the branch for connections that come already multiplexed (QUIC) is left out, since covey does
    not enable them.
    """
    counts: WeakKeyDictionary[Any, Counter[str]] = WeakKeyDictionary()

    async def handle(self: Any, stream: Any, maddr: Any, _failure_event: Any) -> None:
        half_open = counts.setdefault(self, Counter())
        remote = stream.get_remote_address()
        ip = remote[0] if remote is not None else "unknown"
        if half_open[ip] >= HALF_OPEN_PER_ADDRESS_MAX or half_open.total() >= HALF_OPEN_MAX:
            await stream.close()
            return
        raw = RawConnection(stream, False)
        half_open[ip] += 1
        try:
            try:
                muxed = await self.upgrade_inbound_raw_conn(raw, maddr)
            finally:
                half_open[ip] -= 1
                if not half_open[ip]:
                    del half_open[ip]
            # `on_close` is bound to the SwarmConn, which a guest's connection has outside of every
            # table.
            await muxed.on_close.__self__.event_closed.wait()
        except Exception as error:  # noqa: BLE001  (whatever a stranger's bytes raise ends only its connection)
            log.debug("inbound.ended", extra={"why": str(error)})
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await raw.close()

    setattr(Swarm, "_do_handle_inbound_connection", handle)  # noqa: B010  (the name is the library's own)


def _enlarge_pubsub_queues() -> None:
    """Bursts are dropped: 32 messages wait for a peer, 32 for a subscriber, more are lost silently.

    The default arguments are bound at definition, so patching the constants alone has no effect.
    """
    queue: Any = rpc_queue_module.RpcQueue
    queue.__init__.__defaults__ = (RPC_QUEUE_SIZE, RPC_BYTES_MAX)
    setattr(pubsub_module, "SUBSCRIPTION_CHANNEL_SIZE", RPC_QUEUE_SIZE)  # noqa: B010


def _make_dht_private() -> None:
    """The DHT ignores the protocol prefix that it is given, keeps provider records for two days, and
    reads answers of 4 MiB.

    Each of its modules has its own copy of these constants.
    """
    for module in (common, kad_dht, peer_routing, provider_store, value_store):
        for name, value in (
            ("PROTOCOL_ID", DHT_PROTOCOL),
            ("MAX_DHT_MESSAGE_SIZE", DHT_MESSAGE_BYTES_MAX),
            ("QUERY_TIMEOUT", DHT_QUERY_S),
            ("PROVIDER_RECORD_EXPIRATION_INTERVAL", PROVIDER_RECORD_S),
            ("MAX_VALUE_STORE_SIZE", DHT_VALUES_MAX),
        ):
            if hasattr(module, name):
                setattr(module, name, value)


def batch_window_updates(stream: Any) -> None:
    """Each read of a yamux stream answers with a window update, a message of its own through Noise.

    Symptom: half of all packets of a busy link are window updates, and cost as much as the rest.
    Here credit is given back once a quarter of the window has been read, which never stalls a
    sender.
    """

    async def give_back(*, bytes_read: int = 0) -> None:
        stream._pending_recv_release += bytes_read
        if stream._pending_recv_release < WINDOW_STEP_BYTES:
            return
        async with stream.window_lock:
            credit = stream._pending_recv_release
            stream._pending_recv_release = 0
            stream.recv_window += credit
        await stream.send_window_update(credit)

    stream._auto_tune_and_send_window_update = give_back


def write_in_one_step(stream: Any) -> None:
    """A write to a yamux stream takes three locks and a checkpoint, each a turn of the scheduler.

    Symptom: a message of 1 KiB costs seven turns before its bytes are handed to the socket. What
    fits the window needs none of them: nothing is awaited between looking and taking. What does not
    fit goes the library's way.
    """
    original, connection = stream.write, stream.conn

    async def write(data: bytes) -> None:
        size = len(data)
        ended = stream.send_closed or stream.closed
        if ended or size > min(stream.send_window, MAX_MESSAGE_SIZE - HEADER_SIZE):
            await original(data)
            return
        stream.send_window -= size
        header = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_DATA, 0, stream.stream_id, size)
        async with connection._write_lock:
            await connection.secured_conn.write(header + data)

    stream.write = write


def quieten(host: Any) -> None:
    """Stop what works behind our back: below 100 connections the library dials whoever its
    peerstore knows.

    Symptom: a peer that was disconnected on purpose is dialled again within seconds. A watermark of
    0 is not "off": the target is (low + high) / 2.
    """

    async def nothing() -> None:
        return

    host.get_network().auto_connector.maybe_connect = nothing


class _Uncounted:
    """What the library closes when a handshake has ended."""

    def close(self) -> None:
        return


def leave_handshakes_uncounted(host: Any) -> None:
    """A dial that is cancelled in its handshake keeps its place in the resource manager for good.

    Symptom: after a thousand of them every dial is "denied by resource manager" until a restart.
    Cause: on its way out the library first awaits the close of the socket, where it is cancelled again,
    and comes to closing the place no more. A connection whose handshake has succeeded is counted anew,
    by its peer, so that nothing is lost by not counting it before; how many handshakes there are at once
    is bounded by who dials.
    """
    manager = host.get_network()._resource_manager
    count = manager.open_connection

    def open_connection(
        peer_id: Any = None, endpoint_ip: str | None = None, direction: str = "inbound"
    ) -> Any:
        if peer_id is None and direction == "outbound":
            return _Uncounted()
        return count(peer_id, endpoint_ip=endpoint_ip, direction=direction)

    manager.open_connection = open_connection


def fresh_sequence_numbers(pubsub: Any, now_ms: int) -> None:
    """Gossip after a restart is dropped as already seen: the counter restarts at whole seconds.

    Symptom: more than one message a second, then a restart with the same key: 54 of 60 messages
    lost.
    """
    pubsub.counter = now_ms * 1_000_000


def forget_peer(host: Any, peer: Any, pubsub: Any = None, dht: Any = None) -> None:
    """Closing a connection leaves the peer in queues, peerstore and tables; a later dial would
    revive it.

    Not `add_to_blacklist`: it leaves the peer's queue and the router's state behind.
    """
    if pubsub is not None:
        pubsub._handle_dead_peer(peer)
        for waiting in (pubsub.router._pending_messages, pubsub.router._pending_control):
            waiting.pop(peer, None)
    if dht is not None:
        dht.routing_table.remove_peer(peer)
    store = host.get_peerstore()
    for clear in (store.clear_addrs, store.clear_protocol_data, store.clear_peerdata):
        try:
            clear(peer)
        except Exception as error:  # noqa: BLE001  (each raises its own error for a peer it does not know)
            log.debug("peerstore.not_cleared", extra={"why": str(error)})


def cut_when_deaf(pubsub: Any, cut: Callable[[Any], None]) -> None:
    """A pubsub stream that was reset on a live connection loses all later messages in that
    direction.

    Symptom: 8 of 8 later messages lost. The library opens another stream, on which the other side
    is never told our topics again; who hears the end of the other's stream does nothing at all; and
    who writes learns of an end with the next message, which is lost. So the connection is cut on
    either side as soon as one of its streams ends, and the dialler makes a new one.

    Args:
        pubsub: the library's.
        cut: given a peer's id, takes its open connection out of the tables at once and cuts it.
    """
    forget, serve, send = (
        pubsub._handle_dead_peer,
        pubsub.stream_handler,
        pubsub.handle_sending_messages,
    )

    def handle(peer: Any) -> None:
        # In this order: to a connection that is in the table the library opens another stream.
        cut(peer)
        forget(peer)

    def ended(stream: Any) -> None:
        # A stream that ended with its connection tells nothing of the peer's next connection.
        if not stream.muxed_conn.event_shutting_down.is_set():
            cut(stream.muxed_conn.peer_id)

    async def hear(stream: Any) -> None:
        try:
            await serve(stream)
        except Exception as error:  # noqa: BLE001  (whatever a peer's bytes raise ends only its connection)
            log.warning("pubsub.broke", extra={"why": repr(error)})
        ended(stream)

    async def notice(stream: Any) -> None:
        try:
            # Nothing is ever said on it: it returns when the other side has ended it.
            await stream.read(1)
        except BaseLibp2pError as error:
            log.debug("pubsub.ended", extra={"why": repr(error)})
        ended(stream)

    async def say(peer: Any, stream: Any, queue: Any) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notice, stream)
            await send(peer, stream, queue)
            nursery.cancel_scope.cancel()

    pubsub._handle_dead_peer = handle
    pubsub.handle_sending_messages = say
    for protocol in pubsub.protocols:
        pubsub.host.set_stream_handler(protocol, hear)


def contain_messages(pubsub: Any) -> None:
    """An exception while one message is handled ends pubsub, and the host with it.

    Symptom: a message whose author and key are nonsense raises where its signature is checked; so
    does a validator with a mistake. Each message is a task of the service, which ends with it.
    """
    original = pubsub.push_msg

    async def push(forwarder: Any, message: Any) -> None:
        try:
            await original(forwarder, message)
        except Exception as error:  # noqa: BLE001  (whatever a peer's bytes raise ends only its message)
            log.warning("message.broke", extra={"peer": str(forwarder), "why": repr(error)})

    pubsub.push_msg = push


__all__ = [
    "apply",
    "batch_window_updates",
    "contain_messages",
    "cut_when_deaf",
    "forget_peer",
    "fresh_sequence_numbers",
    "leave_handshakes_uncounted",
    "quieten",
    "write_in_one_step",
]
