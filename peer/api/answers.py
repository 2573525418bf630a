"""How is a request read, and how is it answered? With JSON, or with a problem that names its remedy.

Bodies are read, checked and written here with msgspec, and so are methods and query parameters.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import NoReturn, TypeVar

import msgspec
import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
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
from covey.peer.views import Problem

T = TypeVar("T")
log = logging.getLogger(__name__)

BODY_BYTES_MAX = 2 * 1024 * 1024
BODY_S = 10.0
# The rest of a body that is too large is read for so long, and thrown away: a client that is still
# sending reads no answer, and would only see its connection break.
DRAIN_S = 1.0
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
encode = msgspec.json.Encoder().encode
Handler = Callable[[Request], Awaitable[Response]]
Table = tuple[tuple[str, str, str, Handler], ...]
"""Path; its ways; the query parameters that it knows; what answers."""


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
    return Response(encode(body), status, sent, "application/problem+json")


class Endpoint:
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
        """Answer."""
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


class _Refused(Exception):
    """A request whose body was not read to its end."""

    def __init__(self, status: int, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail


async def body_of(request: Request, read: Callable[[bytes], T]) -> T:
    """Return the body as `read` understands it, which may be a decoder's method.

    Raises:
        Malformed: it is not understood.
    """
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
        return read(bytes(data))
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
        f"the body has more than {BODY_BYTES_MAX} bytes; send less at once, or put a task's input "
        "into a data source of the peer that shall work on it, and name that",
    )


def number(request: Request, name: str, default: float) -> float:
    """Return a query parameter that is a number."""
    text = request.query_params.get(name)
    return default if text is None else as_number(text, name)


def as_number(text: str, name: str) -> float:
    """Return what the client wrote for `name` as a number of at least 0.

    Raises:
        Malformed: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 2**53:
        raise Malformed(f"{name} is a number of at least 0, not {text[:32]!r}")
    return value


def json_answer(value: object, *, status: int = 200) -> Response:
    """Return one thing."""
    return Response(encode(value), status, media_type="application/json")


def list_answer(kind: str, items: object, *, status: int = 200) -> Response:
    """Return several, with the version and the kind of the list."""
    return json_answer({"v": 1, "kind": kind, "items": items}, status=status)


class Streamed(Response):
    """An answer that is made while it is sent; what makes it ends when its client has left.

    Starlette's own would also be cancelled at a good end: hypercorn tells of a disconnect then, while
    it still makes the connection ready for the next request in this very task.
    """

    def __init__(self, chunks: AsyncGenerator[bytes], media_type: str) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self._chunks = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it."""
        has_ended = False
        async with aclosing(self._chunks), trio.open_nursery() as nursery:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                if not has_ended:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            head = {"status": self.status_code, "headers": self.raw_headers}
            await send({"type": "http.response.start", **head})
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            has_ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()
