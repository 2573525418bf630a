"""How does the local API listen? hypercorn on trio, on a Unix socket and on loopback TCP behind a
token.

Two workarounds for hypercorn 0.18, each guarded by a test: a reader that stalls must not hold up
the end of the daemon, and a client that leaves must not leave its handler running (task submission
apart: once taken, it is durable).
"""

import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import trio
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Closed, RawData
from hypercorn.trio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.trio import tcp_server as hypercorn_tcp

from covey.identity.errors import Unavailable
from covey.peer.service import Service

from .routes import make_app, problem

WRITE_S = 2.0
GRACE_S = 1.0
KEEP_ALIVE_S = 75
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
    socket: Path,
    tcp: tuple[str, int] | None,
    token: str,
    stop: trio.Event,
    *,
    task_status: trio.TaskStatus[tuple[str, ...]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `stop` is set; tells the bound addresses once it listens."""
    _bound_writes()
    _unlink(socket)
    config = HypercornConfig()
    binds = [f"unix:{socket}"]
    if tcp is not None:
        binds.append(f"{tcp[0]}:{tcp[1]}")
    config.bind = binds
    config.umask = 0o177
    config.accesslog = None
    config.errorlog = None
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.keep_alive_max_requests = 10**9
    config.graceful_timeout = GRACE_S
    config.h11_max_incomplete_size = 32 * 1024
    ports = {tcp[1]} if tcp is not None else set[int]()
    app = _Guard(_CancelOnDisconnect(make_app(service)), token, ports)
    try:
        async with trio.open_nursery() as nursery:

            async def run(task_status: trio.TaskStatus[Any]) -> None:
                await serve(
                    app,  # type: ignore[arg-type]  # an ASGI callable; hypercorn's type is narrower
                    config,
                    shutdown_trigger=stop.wait,
                    task_status=task_status,
                    mode="asgi",
                )

            try:
                bound = await nursery.start(run)
            except* OSError as group:
                where = f"port {tcp[1]}" if tcp is not None else str(socket)
                raise Unavailable(
                    f"the local API cannot listen on {where}: {_first(group)}; choose another port "
                    "in [api] of config.toml, or end what uses it"
                ) from group
            task_status.started(tuple(str(one) for one in bound))
    finally:
        _unlink(socket)


def _first(group: BaseExceptionGroup[OSError]) -> str:
    one: BaseException = group
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return getattr(one, "strerror", None) or str(one)


def _unlink(socket: Path) -> None:
    """Remove a socket's file: a stale one of a daemon that was killed, or our own at the end."""
    socket.unlink(missing_ok=True)


class _Guard:
    """Lets in who may: everyone on the Unix socket, on TCP who shows the token."""

    def __init__(self, app: App, token: str, ports: set[int]) -> None:
        self._app = app
        self._token = token.encode()
        self._hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost") for port in ports}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_tcp(scope):
            refusal = self._why_not(scope)
            if refusal is not None:
                status, kind, detail = refusal
                await problem(status, kind, detail, close=True)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _why_not(self, scope: Scope) -> tuple[int, str, str] | None:
        headers = {name.decode("latin-1"): value for name, value in scope["headers"]}
        host = headers.get("host", b"").decode("latin-1")
        if host not in self._hosts:
            # A web page elsewhere may let a name of its own point at 127.0.0.1.
            return 421, "wrong-host", "this API answers to 127.0.0.1 and localhost only"
        origin = headers.get("origin", b"").decode("latin-1")
        if origin and origin.removeprefix("http://") not in self._hosts:
            return 403, "wrong-origin", "other web pages may not use this API"
        if scope["path"] == "/healthz":
            return None
        shown = headers.get("authorization", b"").removeprefix(b"Bearer ")
        if not hmac.compare_digest(shown, self._token):
            return 401, "no-token", "show the token; it is in run/token of the peer's home"
        return None


def _is_tcp(scope: Scope) -> bool:
    server = scope.get("server")
    return server is not None and server[1] is not None


class _CancelOnDisconnect:
    """Ends a handler whose client has left. hypercorn tells of it, and nobody listens."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] == "POST":
            await self._app(scope, receive, send)
            return
        messages_in, messages = trio.open_memory_channel[Message](64)
        async with trio.open_nursery() as nursery:

            async def pump() -> None:
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        nursery.cancel_scope.cancel()
                        return
                    await messages_in.send(message)

            nursery.start_soon(pump)
            await self._app(scope, messages.receive, send)
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
