"""Which request asks for what? Method and path to an answer; errors to problem+json with a status.

Starlette only routes: bodies are read, checked and written here with msgspec, and so are methods
and query parameters, so that every refusal is a problem that names its remedy.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NoReturn, get_args

import msgspec
import trio
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
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
from covey.peer.events import Happening
from covey.peer.service import Service
from covey.peer.views import (
    TERMINAL_STATES,
    Event,
    InviteRequest,
    Problem,
    SubmitRequest,
    TaskState,
    TaskView,
)

log = logging.getLogger(__name__)

BODY_BYTES_MAX = 2 * 1024 * 1024
BODY_S = 10.0
# The rest of a body that is too large is read for so long, and thrown away: a client that is still
# sending reads no answer, and would only see its connection break.
DRAIN_S = 1.0
PING_S = 15.0
EVENTS_PATH = "/v1/events"
# Most tasks end within this; only who waits longer is watched for leaving, which costs as much as
# the rest of a small request.
PATIENCE_S = 0.25
_STATUS: tuple[tuple[type[CoveyError], int, str], ...] = (
    (NotFound, 404, "not-found"),
    (Conflict, 409, "conflict"),
    (Misuse, 400, "bad-request"),
    (Malformed, 400, "bad-request"),
    (NotAdmitted, 403, "not-admitted"),
    (Unavailable, 503, "unavailable"),
)
_REMEDIES = {
    "not-found": "see: covey tasks",
    "conflict": "see: covey status",
    "bad-request": "change what is named, and send it again",
    "not-admitted": "see: covey doctor",
    "unavailable": "try again later; see: covey doctor",
    "failed": "see the daemon's log, and: covey doctor",
}
_STATES = get_args(TaskState)
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
        if request.method == "POST":
            return await self._submit(request)
        state = request.query_params.get("state")
        if state is not None and state not in _STATES:
            raise Malformed(f"there is no state {state[:32]!r}; use one of: {', '.join(_STATES)}")
        limit = int(_number(request, "limit", 50))
        return _list("TaskList", self._service.tasks(state, limit))

    async def _submit(self, request: Request) -> Response:
        asked: SubmitRequest = await _body(request, _submit)
        key = request.headers.get("idempotency-key")
        if key is not None:
            if asked.key not in (None, key):
                raise Malformed("the header idempotency-key and the field key differ; send one")
            asked = msgspec.structs.replace(asked, key=key)
        wait_s = _number(request, "wait", 0.0)
        view = await self._service.submit(asked, min(wait_s, PATIENCE_S))
        view = await self._finished(request, view, wait_s - PATIENCE_S)
        return _json(view, status=200 if view.state in TERMINAL_STATES else 202)

    async def task(self, request: Request) -> Response:
        wait_s = _number(request, "wait", 0.0)
        view = self._service.task(str(request.path_params["task"]))
        return _json(await self._finished(request, view, wait_s))

    async def _finished(self, request: Request, view: TaskView, wait_s: float) -> TaskView:
        """Return a task once it has ended, or as it stands after wait_s, or when its client left."""
        if wait_s <= 0 or view.state in TERMINAL_STATES:
            return view
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                # The body is read: what else comes is the end of the connection.
                while (await request.receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            view = await self._service.wait_task(view.id, wait_s)
            nursery.cancel_scope.cancel()
        return view

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
        name = request.query_params.get("task")
        task = None if name is None else self._service.task(name).id
        return StreamingResponse(
            _event_lines(self._service, after, task),
            media_type="text/event-stream",
            headers={"cache-control": "no-cache"},
        )


def make_app(service: Service) -> Router:
    """Return the ASGI application of one daemon."""
    routes = _Routes(service)
    # Path; its ways; the query parameters that it knows; what answers.
    table: tuple[tuple[str, str, str, Handler], ...] = (
        ("/healthz", "GET HEAD", "", routes.health),
        ("/v1/tasks", "GET POST", "limit state wait", routes.tasks),
        ("/v1/tasks/{task}", "GET", "wait", routes.task),
        ("/v1/tasks/{task}/cancel", "POST", "", routes.cancel),
        ("/v1/peers", "GET", "", routes.peers),
        ("/v1/status", "GET", "", routes.status),
        ("/v1/doctor", "GET", "", routes.doctor),
        ("/v1/models", "GET", "", routes.models),
        ("/v1/models/rescan", "POST", "", routes.rescan),
        ("/v1/invites", "POST", "", routes.invites),
        ("/v1/shutdown", "POST", "", routes.shutdown),
        (EVENTS_PATH, "GET", "after task", routes.events),
    )
    return Router(
        routes=[
            Route(path, _Endpoint(handler, ways.split(), queries.split()))
            for path, ways, queries, handler in table
        ],
        default=_Endpoint(_nowhere),
        redirect_slashes=False,
    )


def problem(
    status: int,
    kind: str,
    detail: str,
    *,
    close: bool = False,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error as RFC 9457 has it. `detail` may end in `; ` and what to do.

    `close`: the request was not read to its end, and what is left of it would be taken for the next
    one on a kept connection.
    """
    what, _, remedy = detail.partition("; ")
    body = Problem(
        type=f"covey:{kind}",
        title=kind.replace("-", " "),
        status=status,
        detail=what,
        remedy=remedy or _REMEDIES.get(kind, ""),
    )
    sent = {**(headers or {}), **({"connection": "close"} if close else {})}
    return Response(_encode(body), status, sent, "application/problem+json")


class _Endpoint:
    """A handler as an ASGI application: its answer, or its error as a problem.

    Without `ways` it takes every method and query, as the answer to an unknown path does.
    """

    def __init__(
        self, handler: Handler, ways: Sequence[str] | None = None, queries: Sequence[str] = ()
    ) -> None:
        self._handler = handler
        self._ways = ways
        self._queries = queries

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(Request(scope, receive))
        await answer(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        if self._ways is not None and request.method not in self._ways:
            ways = " or ".join(self._ways)
            detail = f"{request.url.path} does not know {request.method[:32]}; use {ways}"
            return problem(
                405, "wrong-method", detail, close=True, headers={"allow": ", ".join(self._ways)}
            )
        try:
            if self._ways is not None:
                self._check_query(request)
            return await self._handler(request)
        except _Refused as refused:
            return problem(refused.status, refused.kind, refused.detail, close=True)
        except CoveyError as error:
            for kind, status, name in _STATUS:
                if isinstance(error, kind):
                    return problem(status, name, str(error))
            return problem(500, "failed", str(error))
        except Exception:  # one request's fault, whatever it is, must not be the daemon's
            log.exception("api.failed", extra={"method": request.method, "path": request.url.path})
            return problem(500, "failed", "the daemon made a mistake")

    def _check_query(self, request: Request) -> None:
        """A mistyped limit must not silently be no limit."""
        if not request.scope["query_string"]:
            return
        for name in request.query_params:
            if name not in self._queries:
                known = ", ".join(self._queries) or "none at all"
                raise Malformed(f"query parameter {name[:32]!r} is not known here; use {known}")


async def _nowhere(request: Request) -> Response:
    return problem(404, "not-found", f"there is no {request.url.path}; see docs/OPERATING.md")


class _Refused(Exception):
    """A request whose body was not read to its end."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail


async def _body(request: Request, decoder: msgspec.json.Decoder[Any]) -> Any:
    data = bytearray()
    try:
        with trio.fail_after(BODY_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > BODY_BYTES_MAX:
                    await _refuse_large(request)
    except trio.TooSlowError as error:
        raise _Refused(
            408, "too-slow", f"the body did not arrive within {BODY_S:g} s; send it whole"
        ) from error
    except ClientDisconnect as error:
        raise _Refused(400, "bad-request", "the client left before its body's end") from error
    try:
        return decoder.decode(bytes(data))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is wrong: {error}") from error
    except RecursionError as error:
        raise Malformed("the body is wrong: it is nested too deeply") from error


async def _refuse_large(request: Request) -> NoReturn:
    with trio.move_on_after(DRAIN_S):
        async for _ in request.stream():
            pass
    raise _Refused(
        413,
        "too-large",
        f"the body has more than {BODY_BYTES_MAX} bytes; put the input into a data source of the "
        "peer that shall work on it, and name that",
    )


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    return default if text is None else _as_number(text, name)


def _as_number(text: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2**53:
        raise Malformed(f"{name} is a number of at least 0, not {text[:32]!r}")
    return value


def _json(value: object, *, status: int = 200) -> Response:
    return Response(_encode(value), status, media_type="application/json")


def _list(kind: str, items: object) -> Response:
    return _json({"v": 1, "kind": kind, "items": items})


async def _event_lines(
    service: Service, after: int | None, task: str | None
) -> AsyncGenerator[bytes]:
    """Give events as server-sent events: all of them, or those of one task until it has ended.

    A task's stream begins with the task as it stands. One that resumes by id only looks there once
    it has caught up: the end may be no longer kept, or from before the daemon's last start.
    """
    async with service.events(after) as channel:
        yield b": covey\n\n"
        begins, look = after is None, task is not None
        while True:
            if task is not None and look and (begins or _is_empty(channel)):
                view = service.task(task)
                has_ended = view.state in TERMINAL_STATES
                if begins or has_ended:
                    yield _line(_as_it_stands(view))
                if has_ended:
                    return
                begins = look = False
            try:
                seen = await _next(channel)
            except trio.EndOfChannel:
                return
            if seen is None:
                yield b": ping\n\n"
                look = True
                continue
            event = service.event(seen)
            if task is None or event.kind == "bye" or (event.task and event.task.id == task):
                yield b"id: %d\n%b" % (event.id, _line(event))
            if event.kind == "bye" or (task is not None and _ends(event, task)):
                return


async def _next(channel: trio.MemoryReceiveChannel[Happening]) -> Happening | None:
    """Return what happened next; None if it is time for a sign of life."""
    with trio.move_on_after(PING_S):
        return await channel.receive()
    return None


def _is_empty(channel: trio.MemoryReceiveChannel[Happening]) -> bool:
    return channel.statistics().current_buffer_used == 0


def _ends(event: Event, task: str) -> bool:
    view = event.task
    return view is not None and view.id == task and view.state in TERMINAL_STATES


def _as_it_stands(view: TaskView) -> Event:
    """Return an event without a place in the order: it is sent without an id."""
    return Event(id=0, kind="task", at_ms=view.ended_ms or view.submitted_ms, task=view)


def _line(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.kind.encode(), _encode(event))
