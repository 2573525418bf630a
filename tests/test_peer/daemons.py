"""What do tests of the local API talk to? A real daemon, over its real sockets, byte by byte."""

import http.client
import json
import shutil
import socket
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from covey.peer.local_mesh import LocalMesh, LocalPeer

# Nothing here waits for so long; it only keeps a broken daemon from hanging the tests.
PATIENCE_S = 20.0


def enable_echo(peer: LocalPeer) -> None:
    """Offer `covey.echo`, which is off by default and needs no model."""
    file = peer.home / "config.toml"
    file.write_text(file.read_text().replace("skills = [", 'skills = ["covey.echo", ', 1))


@contextmanager
def short_folder() -> Generator[Path]:
    """A folder whose path leaves room for a Unix socket's name below it."""
    path = Path(tempfile.mkdtemp(prefix="cv"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def running_peer(api: str | None = None) -> Generator[LocalPeer]:
    """A daemon of its own, alone in its mesh, without models, that echoes.

    Args:
        api: what its configuration says in [api] instead.
    """
    with short_folder() as root, LocalMesh(root) as mesh:
        peer = mesh.found("solo")
        enable_echo(peer)
        if api is not None:
            file = peer.home / "config.toml"
            before, _, after = file.read_text().partition("[api]\n")
            file.write_text(f"{before}[api]\n{api}\n{after[after.index('[') :]}")
        peer.start()
        yield peer


def token_of(peer: LocalPeer) -> str:
    """The token that the daemon shows now."""
    return (peer.home / "run/token").read_text().strip()


def port_of(peer: LocalPeer) -> int:
    """The TCP port of the local API."""
    return int(peer.client.status().api[1].rpartition(":")[2])


@dataclass(frozen=True, slots=True)
class Answer:
    """One HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, read."""
        return json.loads(self.body)


class Wire:
    """One connection to the daemon, for requests that no polite client would send."""

    def __init__(self, place: Path | int) -> None:
        if isinstance(place, Path):
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.settimeout(PATIENCE_S)
            try:
                self.socket.connect(str(place))
            except OSError:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection(("127.0.0.1", place), PATIENCE_S)
        self._read = self.socket.makefile("rb")

    @classmethod
    def to(cls, peer: LocalPeer) -> Self:
        """Connect to the Unix socket."""
        return cls(peer.home / "run/api.sock")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave."""
        self._read.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send raw bytes."""
        self.socket.sendall(data)

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its answer."""
        self.send(request(method, path, body, headers))
        return self.answer(method)

    def line(self) -> bytes:
        """Read one line; nothing if the daemon closed."""
        return self._read.readline()

    def answer(self, method: str = "GET") -> Answer:
        """Read one answer."""
        status, headers = self.head()
        length = 0 if method == "HEAD" else int(headers.get("content-length", 0))
        return Answer(status, headers, self._read.read(length))

    def head(self) -> tuple[int, dict[str, str]]:
        """Read an answer's head."""
        first = self.line()
        assert first.startswith(b"HTTP/1.1 "), first
        headers: dict[str, str] = {}
        while (line := self.line().decode("latin-1").strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return int(first.split()[1]), headers

    def events(self, query: str = "", last: int | None = None) -> Iterator[tuple[int, Any]]:
        """Listen; gives (id, event) until the stream ends. Id 0: it has none."""
        headers = {} if last is None else {"last-event-id": str(last)}
        self.send(request("GET", f"/v1/events{query}", headers=headers))
        stream = http.client.HTTPResponse(self.socket)
        stream.begin()
        assert stream.status == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.readline() == b": covey\n"
        return _events(stream)

    def is_closed(self) -> bool:
        """Wait until the daemon closes; False if it says something more."""
        try:
            return self._read.read(1) == b""
        except ConnectionResetError:
            # It closed without reading all that was sent.
            return True


def _events(stream: http.client.HTTPResponse) -> Iterator[tuple[int, Any]]:
    with stream:
        place = 0
        for line in stream:
            if line.startswith(b"id: "):
                place = int(line[4:])
            elif line.startswith(b"data: "):
                yield place, json.loads(line[6:])
                place = 0


def request(
    method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> bytes:
    """Return the bytes of a request."""
    all_headers = {"host": "covey", **(headers or {})}
    if body is not None:
        all_headers.setdefault("content-length", str(len(body)))
    lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {all_headers[key]}" for key in all_headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


def echo_task(**fields: Any) -> bytes:
    """Return the body of a task that any test daemon does at once."""
    task = {"skill": "covey.echo", "input": {"text": "hello"}, **fields}
    return json.dumps(task, separators=(",", ":")).encode()
