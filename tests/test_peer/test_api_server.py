"""Does the server keep what hypercorn alone does not? Readers that stall, clients that leave,
requests that stop halfway: each ends, and the server ends when it is told to.

One process, a real Unix socket, and a clock that jumps.
"""

import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Self

import pytest
import trio
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from test_peer.daemons import echo_task, request, short_folder
from trio.testing import MockClock

from covey.identity.errors import Unavailable
from covey.peer.api.routes import BODY_S, EVENTS_PATH, make_app
from covey.peer.api.server import GRACE_S, KEEP_ALIVE_S, WRITE_S, serve_app
from covey.peer.service import Service
from covey.peer.views import StatusView, SubmitRequest, TaskView


@asynccontextmanager
async def served(
    app: ASGIApp, stop: trio.Event | None = None
) -> AsyncGenerator[tuple[Path, trio.Event]]:
    """Serve an application on a socket; gives its path, and an event that is set at the end."""
    stop = trio.Event() if stop is None else stop
    ended = trio.Event()
    with short_folder() as folder:
        place = folder / "api.sock"
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[tuple[str, ...]]) -> None:
                await serve_app(app, place, None, "", stop.wait, task_status=task_status)  # type: ignore[arg-type]
                ended.set()

            await nursery.start(serve)
            yield place, ended
            stop.set()


@asynccontextmanager
async def connected(
    app: ASGIApp, stop: trio.Event | None = None
) -> AsyncGenerator[tuple[trio.SocketStream, trio.Event]]:
    """Serve an application, with one client connected."""
    async with served(app, stop) as (place, ended):
        stream = await trio.open_unix_socket(str(place))
        async with stream:
            yield stream, ended


class Pouring:
    """An application that sends without end, as the events are sent."""

    def __init__(self) -> None:
        self.began = trio.Event()
        self.cancelled = trio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await answer_lifespan(receive, send)
            return
        try:
            await StreamingResponse(self)(scope, receive, send)
        finally:
            self.cancelled.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self.began.set()
        await trio.lowlevel.checkpoint()
        return b"x" * 65536


async def answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


class Unasked(Service):
    """A service that no request of these tests should reach."""

    def __init__(self) -> None:
        pass


class Mistaken(Unasked):
    def status(self) -> StatusView:
        raise ZeroDivisionError("a mistake of ours")


class Endless(Unasked):
    """A service whose one task never ends; taking it takes a moment."""

    TAKES_S = 5.0

    def __init__(self) -> None:
        self.taking, self.taken = trio.Event(), trio.Event()
        self.began, self.cancelled = trio.Event(), trio.Event()

    async def submit(self, request: SubmitRequest, wait_s: float = 0.0) -> TaskView:
        self.taking.set()
        await trio.sleep(self.TAKES_S)
        self.taken.set()
        return self.task("00")

    def task(self, name: str) -> TaskView:
        return TaskView(
            id=name,
            skill="s",
            state="running",
            reason="",
            zone="mesh",
            submitted_ms=0,
            deadline_ms=0,
        )

    async def wait_task(self, name: str, timeout_s: float) -> TaskView:
        self.began.set()
        try:
            await trio.sleep(timeout_s)
        except trio.Cancelled:
            self.cancelled.set()
            raise
        return self.task(name)


async def ask(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send, and return what comes until the server closes."""
    await stream.send_all(data)
    return await rest(stream)


async def rest(stream: trio.SocketStream) -> bytes:
    said = b""
    while data := await stream.receive_some():
        said += data
    return said


async def test_a_reader_that_stalls_does_not_hold_up_the_servers_end(
    autojump_clock: MockClock,
) -> None:
    app, stop = Pouring(), trio.Event()
    async with connected(app, stop) as (stream, ended):
        await stream.send_all(request("GET", EVENTS_PATH))
        await app.began.wait()
        # Long enough for the socket's buffer to be full, short of the deadline of a write.
        await trio.sleep(WRITE_S / 2)
        stop.set()
        with trio.fail_after(WRITE_S + GRACE_S + 1):
            await ended.wait()


async def test_a_reader_that_stalls_is_cut_off_and_its_handler_ended(
    autojump_clock: MockClock,
) -> None:
    app = Pouring()
    async with connected(app) as (stream, ended):
        await stream.send_all(request("GET", EVENTS_PATH))
        with trio.fail_after(WRITE_S + 1):
            await app.cancelled.wait()
        await rest(stream)
        assert not ended.is_set()


@pytest.mark.parametrize(
    "asked",
    [request("GET", "/v1/tasks/00?wait=60"), request("POST", "/v1/tasks?wait=60", echo_task())],
    ids=["GET", "POST"],
)
async def test_nobody_waits_for_a_client_that_has_left(
    autojump_clock: MockClock, asked: bytes
) -> None:
    service = Endless()
    async with connected(make_app(service)) as (stream, _):
        await stream.send_all(asked)
        await service.began.wait()
        await stream.aclose()
        with trio.fail_after(1):
            await service.cancelled.wait()


async def test_a_submission_is_taken_whether_or_not_its_client_is_still_there(
    autojump_clock: MockClock,
) -> None:
    service = Endless()
    async with connected(make_app(service)) as (stream, _):
        await stream.send_all(request("POST", "/v1/tasks?wait=60", echo_task()))
        await service.taking.wait()
        await stream.aclose()
        with trio.fail_after(Endless.TAKES_S + 1):
            await service.taken.wait()


async def test_an_answer_is_one_packet(autojump_clock: MockClock) -> None:
    async with connected(make_app(Unasked())) as (stream, _):
        for _ in range(5):
            await stream.send_all(request("GET", "/healthz"))
            said = await stream.receive_some()
            assert said.startswith(b"HTTP/1.1 200 ")
            assert said.endswith(b'{"ok":true}')


@pytest.mark.parametrize("sent", [1.0, 0.5, 0.0], ids=["all but a byte", "half", "none"])
async def test_a_body_that_stops_halfway_is_refused_in_time(
    autojump_clock: MockClock, sent: float
) -> None:
    whole, body = request("POST", "/v1/tasks", echo_task()), echo_task()
    async with connected(make_app(Unasked())) as (stream, _):
        part = whole[: len(whole) - len(body) + int((len(body) - 1) * sent)]
        with trio.fail_after(BODY_S + 1):
            said = await ask(stream, part)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in said
    assert b'"type":"covey:too-slow"' in said
    assert b'"remedy":"send it whole"' in said


async def test_a_body_that_trickles_has_no_more_time(autojump_clock: MockClock) -> None:
    async with connected(make_app(Unasked())) as (stream, _):
        await stream.send_all(b"POST /v1/tasks HTTP/1.1\r\nhost: c\r\ncontent-length: 99\r\n\r\n")

        async def trickle() -> None:
            while True:
                await trio.sleep(1)
                await stream.send_all(b" ")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            with trio.fail_after(BODY_S + 1):
                said = await stream.receive_some()
            nursery.cancel_scope.cancel()
    assert said.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("part", [b"", b"GET /healthz HTTP/1.1\r\nhost: c\r\nx: "])
async def test_a_head_that_stops_halfway_ends_with_the_connection(
    autojump_clock: MockClock, part: bytes
) -> None:
    async with connected(make_app(Unasked())) as (stream, _):
        with trio.fail_after(KEEP_ALIVE_S + 1):
            assert await ask(stream, part) == b""


async def test_a_mistake_of_ours_is_a_problem_and_a_line_in_the_log_and_no_more(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(make_app(Mistaken())) as (stream, _):
        await stream.send_all(request("GET", "/v1/status"))
        said = await stream.receive_some()
        assert said.startswith(b"HTTP/1.1 500 ")
        assert b'"type":"covey:failed"' in said
        assert b"ZeroDivisionError" not in said
        await stream.send_all(request("GET", "/healthz"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
    (record,) = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert record.getMessage() == "api.failed"
    assert record.exc_info is not None


async def test_a_stale_socket_is_taken_over_and_ones_own_removed_at_the_end(
    autojump_clock: MockClock,
) -> None:
    stop = trio.Event()
    async with served(make_app(Unasked()), stop) as (place, ended):
        async with trio.open_nursery() as nursery:
            serve = partial(serve_app, make_app(Unasked()), place, None, "", stop.wait)
            await nursery.start(serve)  # type: ignore[arg-type]
            async with await trio.open_unix_socket(str(place)) as stream:
                await stream.send_all(request("GET", "/healthz"))
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 200 ")
            stop.set()
        await ended.wait()
        assert not await trio.Path(place).exists()


async def listening_fails(place: Path, tcp: tuple[str, int] | None) -> str:
    async with trio.open_nursery() as nursery:
        with pytest.raises(Unavailable) as caught:
            await nursery.start(
                partial(serve_app, make_app(Unasked()), place, tcp, "", trio.sleep_forever)  # type: ignore[arg-type]
            )
    return str(caught.value)


async def test_what_cannot_be_listened_on_is_named_with_its_remedy() -> None:
    with short_folder() as folder, socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        why = await listening_fails(folder / "api.sock", ("127.0.0.1", port))
        assert f"port {port}: Address already in use; choose another port" in why
        assert not (folder / "api.sock").exists()
        why = await listening_fails(folder / "gone" / "api.sock", ("127.0.0.1", port))
        assert f"{folder}/gone/api.sock: No such file or directory" in why
