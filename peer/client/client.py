"""How does a program use the daemon?

The client of the local API, over its Unix socket or loopback TCP.
"""

import http.client
import os
import socket
import time  # pauses between attempts; nothing here is decided by it
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from covey.peer.views import (
    TERMINAL_STATES,
    Event,
    Finding,
    InviteRequest,
    InviteView,
    ModelView,
    PeerView,
    Problem,
    StatusView,
    SubmitRequest,
    TaskView,
)

from .errors import OF_KIND, AnswerLost, ClientError, DaemonNotRunning, TaskFailed
from .members import MemberClient

T = TypeVar("T")
CONNECT_S = 5.0
# A request may wait this much longer than what it asks the daemon to wait for.
ANSWER_S = 30.0
# One long poll; longer waits are several, so that a daemon that ends is noticed.
POLL_S = 60.0
# A stream of events that broke is opened again for so long: a daemon restarts in about 2 s.
RESUME_S = 15.0
PAUSE_S, PAUSE_S_MAX = 0.05, 1.0
BLOCK_BYTES = 1 << 16


_VERSIONS = "covey and the daemon may be of different versions: covey version; covey status"


class _Items(msgspec.Struct, frozen=True):
    items: msgspec.Raw


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("covey", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        opened = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        opened.settimeout(self.timeout)
        try:
            opened.connect(str(self._path))
        except OSError:
            opened.close()
            raise
        self.sock = opened


class Client(MemberClient):
    """One daemon's local API. Use `connect`. What it asks of the shared memory is in `memory.py`,
    of the mesh's members in `members.py`.

    A connection is kept between calls. Where it breaks, a question is asked once more, and so is a
    task with a key; a task without one is not: the daemon may have taken it (`AnswerLost`).
    """

    def __init__(self, place: Path | tuple[str, int], token: str | None) -> None:
        self._place = place
        self._token = token
        self._connection: http.client.HTTPConnection | None = None
        self._awaits_answer = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # Tasks

    def submit(
        self,
        skill: str,
        input: Mapping[str, Any] | None = None,  # noqa: A002  (the field's name in the API)
        **options: Any,
    ) -> TaskView:
        """Hand in a task and return at once; it is durable when this returns.

        `input` is the skill's own; `options` are further fields of `SubmitRequest`: data, labels,
        model, peer, zone, deadline_s, priority, once, key.

        Raises:
            ClientError: it was not taken.
        """
        return self._post_task(skill, input, 0.0, options)

    def run(
        self,
        skill: str,
        input: Mapping[str, Any] | None = None,  # noqa: A002  (the field's name in the API)
        *,
        wait_s: float = 60.0,
        **options: Any,
    ) -> TaskView:
        """Hand in a task and return it finished, or as it stands after wait_s.

        Raises:
            ClientError: it was not taken.
        """
        first_s = min(wait_s, POLL_S)
        view = self._post_task(skill, input, first_s, options)
        if view.state in TERMINAL_STATES or wait_s <= first_s:
            return view
        return self.wait(view.id, timeout_s=wait_s - first_s)

    def result(self, task: TaskView) -> Any:
        """Return a finished task's result.

        Raises:
            TaskFailed: it ended otherwise, or has not ended.
        """
        if task.state != "done":
            raise TaskFailed(f"task {task.id} is {task.state}: {task.reason}")
        return task.result

    def task(self, name: str) -> TaskView:
        """Return a task by id, unique beginning of an id, or `last`."""
        return self._get(_path_of(name), TaskView)

    def wait(self, name: str, *, timeout_s: float) -> TaskView:
        """Return a task once it is finished, or as it stands after timeout_s."""
        left_s = timeout_s
        while True:
            step_s = min(left_s, POLL_S)
            view = self._get(f"{_path_of(name)}?wait={step_s:.3f}", TaskView, wait_s=step_s)
            left_s -= step_s
            if view.state in TERMINAL_STATES or left_s <= 0:
                return view

    def tasks(self, *, state: str | None = None, limit: int = 50) -> list[TaskView]:
        """Return this device's tasks, newest first."""
        query = f"?limit={limit}" + (f"&state={quote(state)}" if state is not None else "")
        return self._items(f"/v1/tasks{query}", TaskView)

    def cancel(self, name: str) -> TaskView:
        """Cancel a task."""
        return self._call("POST", f"{_path_of(name)}/cancel", b"", TaskView, repeat=True)

    # The device

    def status(self) -> StatusView:
        """Return this device at a glance."""
        return self._get("/v1/status", StatusView)

    def peers(self) -> list[PeerView]:
        """Return every peer known, this one first."""
        return self._items("/v1/peers", PeerView)

    def models(self) -> list[ModelView]:
        """Return the models of this device."""
        return self._items("/v1/models", ModelView)

    def rescan_models(self) -> None:
        """Let the daemon look again at its model folder."""
        self._call("POST", "/v1/models/rescan", b"", _Items, repeat=True)

    def doctor(self) -> list[Finding]:
        """Return what the daemon finds right and wrong."""
        return self._items("/v1/doctor", Finding)

    def invite(
        self, *, uses: int = 1, expires_s: float = 3600.0, zones: Sequence[str] = ()
    ) -> InviteView:
        """Make an invite to the mesh, which grants these zones."""
        request = InviteRequest(uses=uses, expires_s=expires_s, zones=tuple(zones))
        body = msgspec.json.encode(request)
        return self._call("POST", "/v1/invites", body, InviteView)

    def shutdown(self) -> None:
        """Let the daemon end."""
        self._call("POST", "/v1/shutdown", b"", msgspec.Raw)

    def events(
        self,
        *,
        task: str | None = None,
        after: int | None = None,
        timeout_s: float | None = None,
        resume_s: float = RESUME_S,
    ) -> Iterator[Event]:
        """Give events as they happen; resumes by itself where a connection broke.

        Ends when the daemon says goodbye. With `task`: only that task's, beginning with the task as
        it stands, until it has ended. `after`: first those kept since that event.
        `timeout_s`: raise TimeoutError after so long without any event or sign of life (the daemon
        gives one every 15 s). `resume_s`: a connection that broke is opened again for so long.

        Raises:
            DaemonNotRunning: there is none, or it did not come back within resume_s.
            NotFoundHere: there is no such task.
        """
        left_s, pause_s = 0.0, PAUSE_S
        while True:
            broke: Exception | None = None
            try:
                with closing(self._connect()) as connection:
                    for place, event in self._listen(connection, task, after, timeout_s):
                        after = after if place is None else place
                        left_s = resume_s
                        if event is None:
                            continue
                        pause_s = PAUSE_S
                        yield event
                        ended = event.task is not None and event.task.state in TERMINAL_STATES
                        if event.kind == "bye" or (task is not None and ended):
                            return
            except TimeoutError:
                raise
            except (OSError, http.client.HTTPException) as error:
                broke = error
            if broke is not None and left_s <= 0:
                raise self._unreachable(broke)
            time.sleep(pause_s)
            left_s, pause_s = left_s - pause_s, min(2 * pause_s, PAUSE_S_MAX)

    def _listen(
        self,
        connection: http.client.HTTPConnection,
        task: str | None,
        after: int | None,
        timeout_s: float | None,
    ) -> Iterator[tuple[int | None, Event | None]]:
        """Give (id, event) of one connection; (None, None) once it is open."""
        connection.timeout = timeout_s
        headers = {} if after is None else {"last-event-id": str(after)}
        query = "" if task is None else f"?task={quote(task, safe='', errors='replace')}"
        with self._streamed(
            connection, f"/v1/events{query}", "text/event-stream", headers
        ) as answer:
            yield None, None
            place = None
            for line in answer:
                if line.startswith(b"id: "):
                    place = int(line[4:])
                elif line.startswith(b"data: "):
                    yield place, _decoded(line[6:], Event)

    # The inside

    @contextmanager
    def _streamed(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        media_type: str,
        headers: Mapping[str, str],
    ) -> Generator[http.client.HTTPResponse]:
        """Ask for what is sent bit by bit."""
        connection.request("GET", path, headers={**self._headers(), **headers})
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise _as_error(answer.status, answer.read())
            if not answer.headers.get("content-type", "").startswith(media_type):
                raise ClientError("something else than a covey daemon answered", remedy=_VERSIONS)
            yield answer

    def _lines(self, path: str, kind: type[T], *, media_type: str) -> Iterator[T]:
        """Give JSON lines; raises if they broke off, as an end alone would not show."""
        try:
            with closing(self._connect()) as connection:
                connection.timeout = ANSWER_S
                with self._streamed(connection, path, media_type, {}) as answer:
                    rest = b""
                    while block := answer.read(BLOCK_BYTES):
                        *lines, rest = (rest + block).split(b"\n")
                        for line in lines:
                            yield _decoded(line, kind)
        except (http.client.HTTPException, OSError) as error:
            raise self._unreachable(error) from error

    def _post_task(
        self,
        skill: str,
        input_: Mapping[str, Any] | None,
        wait_s: float,
        options: dict[str, Any],
    ) -> TaskView:
        raw = msgspec.Raw(msgspec.json.encode(input_ if input_ is not None else {}))
        body = msgspec.json.encode(SubmitRequest(skill=skill, input=raw, **options))
        keyed = options.get("key") is not None
        path = f"/v1/tasks?wait={wait_s:.3f}" if wait_s > 0 else "/v1/tasks"
        return self._call("POST", path, body, TaskView, wait_s=wait_s, repeat=keyed)

    def _get(self, path: str, kind: type[T], *, wait_s: float = 0.0) -> T:
        return self._call("GET", path, b"", kind, wait_s=wait_s, repeat=True)

    def _items(
        self,
        path: str,
        kind: type[T],
        *,
        method: str = "GET",
        body: bytes = b"",
        wait_s: float = 0.0,
    ) -> list[T]:
        repeat = method == "GET"
        raw = self._call(method, path, body, _Items, wait_s=wait_s, repeat=repeat).items
        items: list[T] = _decoded(bytes(raw), list[kind])  # type: ignore[valid-type]  # made at run time
        return items

    def _call(
        self,
        method: str,
        path: str,
        body: bytes,
        kind: type[T],
        *,
        wait_s: float = 0.0,
        repeat: bool = False,
    ) -> T:
        try:
            kept = self._is_kept()
            try:
                status, data = self._exchange(method, path, body, wait_s)
            except (http.client.HTTPException, ConnectionError):
                # A kept connection may be closed under us; what can be repeated, is: once.
                if not (kept and repeat):
                    raise
                self.close()
                status, data = self._exchange(method, path, body, wait_s)
        except (http.client.HTTPException, OSError) as error:
            was_sent = self._connection is not None
            self.close()
            if was_sent and method == "POST" and not repeat:
                look = "covey tasks; a task with a key can be repeated"
                if path.startswith("/v1/memory"):
                    look = "covey memory ls"
                raise AnswerLost(
                    f"the connection broke before the daemon answered ({_named(error)}): it may have "
                    "taken the request, or not",
                    remedy=f"look before you repeat it: {look}",
                ) from error
            raise self._unreachable(error) from error
        if status >= 400:
            raise _as_error(status, data)
        return _decoded(data, kind)

    def _is_kept(self) -> bool:
        """Tell whether a connection is open; one that the daemon has closed meanwhile is dropped."""
        if self._connection is None:
            return False
        if self._awaits_answer:
            # An interrupt came in between: the next answer would be the last question's.
            self.close()
            return False
        kept: socket.socket = self._connection.sock
        kept.settimeout(0)
        try:
            # Nothing is due between requests: only the end can be read.
            kept.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        self.close()
        return False

    def _exchange(self, method: str, path: str, body: bytes, wait_s: float) -> tuple[int, bytes]:
        if self._connection is None:
            opened = self._connect()
            opened.connect()
            # From here on something may have been sent.
            self._connection = opened
        connection = self._connection
        connection.sock.settimeout(wait_s + ANSWER_S)
        self._awaits_answer = True
        # Refused before all of it was read? Then the reason is there to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.request(method, path, body or None, self._headers())
        answer = connection.getresponse()
        data = answer.read()
        self._awaits_answer = False
        if answer.will_close:
            self.close()
        return answer.status, data

    def _connect(self) -> http.client.HTTPConnection:
        if isinstance(self._place, Path):
            return _UnixConnection(self._place)
        return http.client.HTTPConnection(*self._place, timeout=CONNECT_S)

    def _headers(self) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if self._token is not None:
            headers["authorization"] = f"Bearer {self._token}"
        return headers

    def _unreachable(self, error: Exception) -> ClientError:
        if isinstance(error, TimeoutError):
            return ClientError("the daemon did not answer in time", remedy="see: covey doctor")
        place = str(self._place) if isinstance(self._place, Path) else "{}:{}".format(*self._place)
        remedy = "start it with: covey up -d"
        if isinstance(error, FileNotFoundError | ConnectionRefusedError):
            return DaemonNotRunning(f"no daemon is running on {place}", remedy=remedy)
        what = f"the daemon on {place} cannot be reached, or ended just now"
        return DaemonNotRunning(f"{what} ({_named(error)})", remedy=remedy)


def connect(
    *,
    home: str | Path | None = None,
    socket_path: str | Path | None = None,
    address: tuple[str, int] | None = None,
    token: str | None = None,
) -> Client:
    """Return a client; nothing is sent yet.

    Args:
        home: the peer's home; COVEY_HOME or the default home if nothing is given.
        socket_path: the API's Unix socket instead.
        address: host and port of the API's TCP listener instead; needs the token.
        token: from `run/token` of the peer's home.
    """
    if address is not None:
        return Client(address, token)
    if socket_path is not None:
        return Client(Path(socket_path), None)
    return Client(Path(home if home is not None else default_home()) / "run" / "api.sock", None)


def default_home() -> Path:
    """Return the home that is meant when none is named: COVEY_HOME, else below the user's data folder."""
    if named := os.environ.get("COVEY_HOME"):
        return Path(named).expanduser().absolute()
    data = os.environ.get("XDG_DATA_HOME")
    return (Path(data) if data else Path.home() / ".local" / "share") / "covey"


def _path_of(task: str) -> str:
    return f"/v1/tasks/{quote(task, safe='', errors='replace')}"


def _named(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _decoded(data: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise ClientError(
            f"the daemon's answer is not understood: {error}",
            remedy=_VERSIONS,
        ) from error


def _as_error(status: int, data: bytes) -> ClientError:
    try:
        problem = msgspec.json.decode(data, type=Problem)
    except msgspec.MsgspecError:
        return ClientError(f"the daemon answered with status {status}")
    kind = problem.type.removeprefix("covey:")
    return OF_KIND.get(kind, ClientError)(problem.detail, kind=kind, remedy=problem.remedy)
