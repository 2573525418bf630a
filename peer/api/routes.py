"""Which request asks for what? Method and path to an answer. Starlette only routes.

How requests are read and answered is in `answers.py`; the memory's are in `memory_routes.py`.
"""

from collections.abc import AsyncGenerator
from typing import get_args

import msgspec
import trio
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router

from covey.identity.errors import Malformed
from covey.peer.events import Happening
from covey.peer.service import Service
from covey.peer.views import (
    TERMINAL_STATES,
    Event,
    InviteRequest,
    SubmitRequest,
    TaskState,
    TaskView,
)

from .answers import (
    BODY_BYTES_MAX,
    BODY_S,
    Endpoint,
    Table,
    as_number,
    body_of,
    encode,
    json_answer,
    list_answer,
    number,
    problem,
)
from .member_routes import member_table
from .memory_routes import memory_table

__all__ = ["BODY_BYTES_MAX", "BODY_S", "EVENTS_PATH", "make_app", "problem"]

PING_S = 15.0
EVENTS_PATH = "/v1/events"
# Most tasks end within this; only who waits longer is watched for leaving, which costs as much as
# the rest of a small request.
PATIENCE_S = 0.25
_STATES = get_args(TaskState)
_submit = msgspec.json.Decoder(SubmitRequest).decode
_invite = msgspec.json.Decoder(InviteRequest).decode


class _Routes:
    """The handlers, on top of one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _request: Request) -> Response:
        return json_answer({"ok": True})

    async def tasks(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._submit(request)
        state = request.query_params.get("state")
        if state is not None and state not in _STATES:
            raise Malformed(f"there is no state {state[:32]!r}; use one of: {', '.join(_STATES)}")
        limit = int(number(request, "limit", 50))
        return list_answer("TaskList", self._service.tasks(state, limit))

    async def _submit(self, request: Request) -> Response:
        asked = await body_of(request, _submit)
        key = request.headers.get("idempotency-key")
        if key is not None:
            if asked.key not in (None, key):
                raise Malformed("the header idempotency-key and the field key differ; send one")
            asked = msgspec.structs.replace(asked, key=key)
        wait_s = number(request, "wait", 0.0)
        view = await self._service.submit(asked, min(wait_s, PATIENCE_S))
        view = await self._finished(request, view, wait_s - PATIENCE_S)
        return json_answer(view, status=200 if view.state in TERMINAL_STATES else 202)

    async def task(self, request: Request) -> Response:
        wait_s = number(request, "wait", 0.0)
        view = self._service.task(str(request.path_params["task"]))
        return json_answer(await self._finished(request, view, wait_s))

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
        return json_answer(await self._service.cancel(str(request.path_params["task"])))

    async def peers(self, _request: Request) -> Response:
        return list_answer("PeerList", self._service.peers())

    async def status(self, _request: Request) -> Response:
        return json_answer(self._service.status())

    async def doctor(self, _request: Request) -> Response:
        return list_answer("Findings", await self._service.doctor())

    async def models(self, _request: Request) -> Response:
        return list_answer("ModelList", self._service.models())

    async def rescan(self, _request: Request) -> Response:
        return list_answer("ModelList", await self._service.rescan_models())

    async def invites(self, request: Request) -> Response:
        return json_answer(await self._service.invite(await body_of(request, _invite)), status=201)

    async def shutdown(self, _request: Request) -> Response:
        # After the answer: the daemon's end cuts this very connection.
        async def end() -> None:
            self._service.request_shutdown()

        after = BackgroundTask(end)
        return Response(encode({"ok": True}), media_type="application/json", background=after)

    async def events(self, request: Request) -> Response:
        last = request.headers.get("last-event-id") or request.query_params.get("after")
        after = None if last is None else int(as_number(last, "last-event-id"))
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
    table: Table = (
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
            Route(path, Endpoint(handler, ways.split(), queries.split()))
            for path, ways, queries, handler in (
                *table,
                *member_table(service),
                *memory_table(service),
            )
        ],
        default=Endpoint(_nowhere),
        redirect_slashes=False,
    )


async def _nowhere(request: Request) -> Response:
    return problem(404, "not-found", f"there is no {request.url.path}; see docs/OPERATING.md")


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
            if task is not None and seen.kind != "bye" and not _is_of(seen, task):
                continue  # of others nothing is read
            event = service.event(seen)
            if task is None or event.kind == "bye" or event.task is not None:
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


def _is_of(seen: Happening, task: str) -> bool:
    return seen.task is not None and seen.task[0].hex() == task


def _ends(event: Event, task: str) -> bool:
    view = event.task
    return view is not None and view.id == task and view.state in TERMINAL_STATES


def _as_it_stands(view: TaskView) -> Event:
    """Return an event without a place in the order: it is sent without an id."""
    return Event(id=0, kind="task", at_ms=view.ended_ms or view.submitted_ms, task=view)


def _line(event: Event) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.kind.encode(), encode(event))
