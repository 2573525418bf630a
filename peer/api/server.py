"""How does the local API listen? hypercorn on trio, on a Unix socket and on loopback TCP behind a
token.

Workarounds for hypercorn 0.18, each guarded by a test: a reader that stalls must not hold up the end
of the daemon; a client that leaves must not leave its stream of events running; and an answer's head
waits for its body.
"""

import hmac
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.config import Sockets
from hypercorn.events import Closed, RawData
from hypercorn.trio import tcp_server as hypercorn_tcp
from hypercorn.trio.run import worker_serve
from hypercorn.utils import wrap_app  # pyright: ignore[reportUnknownVariableType]
from starlette.responses import Response

from covey.identity.errors import Unavailable
from covey.peer.service import Service

from .routes import EVENTS_PATH, make_app, problem

WRITE_S = 2.0
GRACE_S = 1.0
# Also how long a client may take over the head of a request.
KEEP_ALIVE_S = 75
# What h11 buffers of a head that is not complete yet.
HEAD_BYTES_MAX = 32 * 1024
# Connections that wait to be accepted; more are refused by the kernel.
BACKLOG = 128
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The heads after which something always follows, were it only the end of an empty body.
_FINAL_HEADS = tuple(f"HTTP/1.1 {digit}".encode() for digit in "2345")
_patched = False


async def serve_api(
    service: Service,
    path: Path,
    tcp: tuple[str, int] | None,
    token: str,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve one daemon until `stop` is set; tells the bound addresses once it listens.

    Raises:
        Unavailable: the TCP port or the socket cannot be bound.
    """

    async def stopped() -> None:
        await stop.wait()
        # However it was asked to end: who listens to events is told, and comes back later.
        service.request_shutdown()

    await serve_app(make_app(service), path, tcp, token, stopped, task_status=task_status)


async def serve_app(
    app: App,
    path: Path,
    tcp: tuple[str, int] | None,
    token: str,
    stopped: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve an ASGI application, guarded, until `stopped` returns.

    Raises:
        Unavailable: the TCP port or the socket cannot be bound.
    """
    _bound_writes()
    config = HypercornConfig()
    config.accesslog = None
    config.errorlog = None
    config.include_server_header = False
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = GRACE_S
    config.h11_max_incomplete_size = HEAD_BYTES_MAX
    guarded: Any = _Guard(_CancelOnDisconnect(app), token)
    with ExitStack() as at_end:
        listening = _listen(path, tcp)
        at_end.callback(path.unlink, missing_ok=True)
        task_status.started(tuple(_name_of(one) for one in listening))
        async with _gracefully(stopped) as ends:
            await worker_serve(
                wrap_app(guarded, 0, "asgi"),
                config,
                sockets=Sockets([], listening, []),
                shutdown_trigger=ends,
            )


@asynccontextmanager
async def _gracefully(
    stopped: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Callable[[], Awaitable[None]]]:
    """Give what returns when `stopped` does, or when the daemon's block around it is cancelled.

    What is inside is not cancelled itself: it has GRACE_S to say goodbye, and ends then.
    """
    ending = trio.Event()

    async def watch() -> None:
        try:
            await stopped()
        finally:
            ending.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        with trio.CancelScope(shield=True):
            yield ending.wait
        nursery.cancel_scope.cancel()


def _listen(path: Path, tcp: tuple[str, int] | None) -> list[socket.socket]:
    """Listen on the Unix socket, and on TCP if asked; on all of them or on none."""
    # A stale one, of a daemon that was killed: the home's lock is ours.
    path.unlink(missing_ok=True)
    with ExitStack() as opened:
        unix = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        before = os.umask(0o177)
        try:
            unix.bind(str(path))
        except OSError as error:
            raise Unavailable(
                f"the local API cannot listen on {path}: {error.strerror or error}; see that its "
                "folder is there and writable"
            ) from error
        finally:
            os.umask(before)
        opened.callback(path.unlink, missing_ok=True)
        listening = [unix]
        if tcp is not None:
            family = socket.AF_INET6 if ":" in tcp[0] else socket.AF_INET
            inet = opened.enter_context(socket.socket(family, socket.SOCK_STREAM))
            inet.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            inet.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                inet.bind(tcp)
            except OSError as error:
                raise Unavailable(
                    f"the local API cannot listen on port {tcp[1]}: {error.strerror or error}; "
                    "choose another port in [api] of config.toml, or end what uses it"
                ) from error
            listening.append(inet)
        for one in listening:
            one.listen(BACKLOG)
            one.setblocking(False)
        opened.pop_all()
    return listening


def _name_of(listening: socket.socket) -> str:
    name = listening.getsockname()
    return f"unix:{name}" if isinstance(name, str) else f"http://{name[0]}:{name[1]}"


class _Guard:
    """Lets in who may: everyone on the Unix socket, on TCP who shows the token."""

    def __init__(self, app: App, token: str) -> None:
        self._app = app
        self._token = b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Nothing here speaks it; hypercorn makes a 403 of a close before the handshake.
            await send({"type": "websocket.close", "code": 1008})
            return
        refusal = self._why_not(scope) if scope["type"] == "http" else None
        if refusal is not None:
            await refusal(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _why_not(self, scope: Scope) -> Response | None:
        port = _tcp_port(scope)
        if port is None:
            return None
        hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if headers.get(b"host", b"").decode("latin-1").lower() not in hosts:
            # A web page elsewhere may let a name of its own point at 127.0.0.1.
            return problem(
                421,
                "wrong-host",
                f"this API answers to 127.0.0.1:{port} and localhost:{port} only; use one of them",
                close=True,
            )
        origin = headers.get(b"origin", b"").decode("latin-1").lower()
        if origin and origin.removeprefix("http://") not in hosts:
            return problem(
                403,
                "wrong-origin",
                "other web pages may not use this API; call it from a program",
                close=True,
            )
        if scope["path"] == "/healthz":
            return None
        if not hmac.compare_digest(headers.get(b"authorization", b""), self._token):
            return problem(
                401,
                "no-token",
                "the token is missing or wrong; send 'authorization: Bearer TOKEN', with what is "
                "in run/token of the peer's home now (each start makes a new one)",
                close=True,
                headers={"www-authenticate": "Bearer"},
            )
        return None


def _tcp_port(scope: Scope) -> int | None:
    """Return the port that the client came in by; None on the Unix socket."""
    server: tuple[str, int | None] | None = scope.get("server")
    return server[1] if server is not None else None


class _CancelOnDisconnect:
    """Ends a stream of events whose client has left. hypercorn tells of it, and nobody listens.

    Answers that wait for a task look themselves (`routes.py`); the others are there at once.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != EVENTS_PATH:
            await self._app(scope, receive, send)
            return
        messages_in, messages = trio.open_memory_channel[Message](64)
        answered = False

        async def answer(message: Message) -> None:
            # The end of an answer tells of a disconnect, too, while hypercorn still makes the
            # connection ready for the next request in this very task: that must not be cancelled.
            nonlocal answered
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered = True
            await send(message)

        async with trio.open_nursery() as nursery:

            async def pump() -> None:
                while True:
                    message = await receive()
                    if answered:
                        continue
                    await messages_in.send(message)
                    if message["type"] == "http.disconnect":
                        nursery.cancel_scope.cancel()
                        return

            nursery.start_soon(pump)
            await self._app(scope, messages.receive, answer)
            nursery.cancel_scope.cancel()


def _bound_writes() -> None:
    """Give each write a deadline: hypercorn shields it, so a reader that stalls would wedge the end.

    And hold an answer's head back for its body, which follows at once: one packet instead of two.
    """
    global _patched
    if _patched:
        return
    _patched = True
    server: Any = hypercorn_tcp.TCPServer
    original = server.protocol_send

    async def protocol_send(self: Any, event: Any) -> None:
        if not isinstance(event, RawData):
            await original(self, event)
            return
        held: bytes = getattr(self, "covey_head", b"")
        if not held and event.data.startswith(_FINAL_HEADS):
            self.covey_head = event.data
            return
        self.covey_head = b""
        data = held + event.data
        if not data:
            return
        async with self.send_lock:
            try:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_S) as scope:
                    await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                await self.protocol.handle(Closed())
                return
            if scope.cancelled_caught:
                await trio.aclose_forcefully(self.stream)
                await self.protocol.handle(Closed())

    server.protocol_send = protocol_send
