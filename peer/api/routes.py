"""Which request asks for what? Method and path to an answer; errors to problem+json with a status.

Starlette only routes: bodies are read, checked and written here with msgspec. All methods of a path
are in one route, so that a 405 lists them all.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import msgspec
import trio
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from covey.identity.errors import (
    Conflict,
    CoveyError,
    Malformed,
    Misuse,
    NotAdmitted,
    NotFound,
    Unavailable,
)
from covey.peer.service import Service
from covey.peer.views import InviteRequest, Problem, SubmitRequest

BODY_BYTES_MAX = 2 * 1024 * 1024
BODY_S = 10.0
PING_S = 15.0
_STATUS: tuple[tuple[type[CoveyError], int, str], ...] = (
    (NotFound, 404, "not-found"),
    (Conflict, 409, "conflict"),
    (Misuse, 400, "bad-request"),
    (Malformed, 400, "bad-request"),
    (NotAdmitted, 403, "not-admitted"),
    (Unavailable, 503, "unavailable"),
)
_encode = msgspec.json.Encoder().encode
_submit = msgspec.json.Decoder(SubmitRequest)
_invite = msgspec.json.Decoder(InviteRequest)
Handler = Callable[[Request], Awaitable[Response]]


class _Routes:
    """The handlers, on top of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _request: Request) -> Response:
        return _json({"ok": True})

    async def tasks(self, request: Request) -> Response:
        if request.method == "GET":
            limit = _number(request, "limit", 50)
            return _list(
                "TaskList", self._service.tasks(request.query_params.get("state"), int(limit))
            )
        asked = await _body(request, _submit)
        key = request.headers.get("idempotency-key")
        if key is not None:
            asked = msgspec.structs.replace(asked, key=key)
        wait_s = _number(request, "wait", 0.0)
        view = await self._service.submit(asked, wait_s)
        return _json(view, status=200 if view.state in ("done", "failed") else 202)

    async def task(self, request: Request) -> Response:
        wait_s = _number(request, "wait", 0.0)
        name = str(request.path_params["task"])
        service = self._service
        return _json(await service.wait_task(name, wait_s) if wait_s > 0 else service.task(name))

    async def cancel(self, request: Request) -> Response:
        return _json(await self._service.cancel(str(request.path_params["task"])))

    async def peers(self, _request: Request) -> Response:
        return _list("PeerList", self._service.peers())

    async def status(self, _request: Request) -> Response:
        return _json(self._service.status())

    async def doctor(self, _request: Request) -> Response:
        return _list("Findings", await self._service.doctor())

    async def models(self, _request: Request) -> Response:
        return _list("ModelList", self._service.models())

    async def rescan(self, _request: Request) -> Response:
        return _list("ModelList", await self._service.rescan_models())

    async def invites(self, request: Request) -> Response:
        return _json(await self._service.invite(await _body(request, _invite)), status=201)

    async def shutdown(self, _request: Request) -> Response:
        # After the answer: the daemon's end cuts this very connection.
        async def end() -> None:
            self._service.request_shutdown()

        after = BackgroundTask(end)
        return Response(_encode({"ok": True}), media_type="application/json", background=after)

    async def events(self, request: Request) -> Response:
        last = request.headers.get("last-event-id") or request.query_params.get("after")
        after = None if last is None else int(_as_number(last, "last-event-id"))
        return StreamingResponse(
            _event_lines(self._service, after),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )


def make_app(service: Service) -> Router:
    """Return the ASGI application of one daemon."""
    routes = _Routes(service)
    table: tuple[tuple[str, list[str], Handler], ...] = (
        ("/healthz", ["GET"], routes.health),
        ("/v1/tasks", ["GET", "POST"], routes.tasks),
        ("/v1/tasks/{task}", ["GET"], routes.task),
        ("/v1/tasks/{task}/cancel", ["POST"], routes.cancel),
        ("/v1/peers", ["GET"], routes.peers),
        ("/v1/status", ["GET"], routes.status),
        ("/v1/doctor", ["GET"], routes.doctor),
        ("/v1/models", ["GET"], routes.models),
        ("/v1/models/rescan", ["POST"], routes.rescan),
        ("/v1/invites", ["POST"], routes.invites),
        ("/v1/shutdown", ["POST"], routes.shutdown),
        ("/v1/events", ["GET"], routes.events),
    )
    return Router(
        routes=[Route(path, _Endpoint(handler), methods=ways) for path, ways, handler in table],
        default=_Endpoint(_nowhere),
        redirect_slashes=False,
    )


def problem(status: int, kind: str, detail: str, *, close: bool = False) -> Response:
    """Return an error as RFC 9457 has it."""
    what, _, remedy = detail.partition("; ")
    body = Problem(
        type=f"covey:{kind}",
        title=kind.replace("-", " "),
        status=status,
        detail=what,
        remedy=remedy,
    )
    # A body that was not read would be taken for the next request on a kept connection.
    headers = {"connection": "close"} if close else None
    return Response(_encode(body), status, headers, "application/problem+json")


class _Endpoint:
    """A handler as an ASGI application: its answer, or its error as a problem."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(Request(scope, receive))
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handler(request)
        except _TooLarge:
            return problem(
                413, "too-large", f"the body has more than {BODY_BYTES_MAX} bytes", close=True
            )
        except trio.TooSlowError:
            return problem(
                408, "too-slow", f"the body did not arrive within {BODY_S:g} s", close=True
            )
        except CoveyError as error:
            for kind, status, name in _STATUS:
                if isinstance(error, kind):
                    return problem(status, name, str(error))
            return problem(500, "failed", str(error))


async def _nowhere(request: Request) -> Response:
    return problem(404, "not-found", f"there is no {request.url.path}; see docs/OPERATING.md")


class _TooLarge(Exception):
    pass


async def _body(request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
    data = bytearray()
    with trio.fail_after(BODY_S):
        async for chunk in request.stream():
            data += chunk
            if len(data) > BODY_BYTES_MAX:
                raise _TooLarge
    try:
        return decoder.decode(bytes(data))
    except msgspec.MsgspecError as error:
        raise Malformed(f"the body is wrong: {error}") from error


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    return default if text is None else _as_number(text, name)


def _as_number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1e12:
        raise Malformed(f"{name} is a number of at least 0, not {text[:32]!r}")
    return value


def _json(value: object, *, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


def _list(kind: str, items: object) -> Response:
    return _json({"v": 1, "kind": kind, "items": items})


async def _event_lines(service: Service, after: int | None) -> AsyncGenerator[bytes]:
    async with service.events(after) as channel:
        yield b": covey\n\n"
        while True:
            seen = None
            with trio.move_on_after(PING_S) as scope:
                try:
                    seen = await channel.receive()
                except trio.EndOfChannel:
                    return
            if scope.cancelled_caught or seen is None:
                yield b": ping\n\n"
                continue
            event = service.event(seen)
            yield b"id: %d\nevent: %b\ndata: %b\n\n" % (
                event.id,
                event.kind.encode(),
                _encode(event),
            )
            if event.kind == "bye":
                return
