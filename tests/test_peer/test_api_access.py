"""Who gets into the local API? On the Unix socket its owner; on TCP who shows the token, and no web
page.
"""

import stat
from collections.abc import Iterator

import pytest
from test_peer.daemons import Answer, Wire, echo_task, port_of, running_peer, token_of

from covey.peer.client import BadRequest, Client, Denied, connect
from covey.peer.local_mesh import LocalPeer

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    # A port chosen by the system, so that no name of it is known before it listens.
    with running_peer("port = 0") as peer:
        yield peer


def ask(peer: LocalPeer, headers: dict[str, str], path: str = "/v1/status") -> Answer:
    """Ask over TCP, with the right host, origin and token unless other ones are given."""
    port = port_of(peer)
    right = {"host": f"127.0.0.1:{port}", "authorization": f"Bearer {token_of(peer)}"}
    wanted = {key: value for key, value in {**right, **headers}.items() if value}
    with Wire(port) as wire:
        wire.send(f"GET {path} HTTP/1.1\r\n".encode())
        wire.send("".join(f"{key}: {wanted[key]}\r\n" for key in wanted).encode() + b"\r\n")
        answer = wire.answer()
        if answer.status >= 400:
            assert wire.is_closed()
        return answer


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "LOCALHOST"])
def test_who_shows_the_token_gets_in(peer: LocalPeer, name: str) -> None:
    assert ask(peer, {"host": f"{name}:{port_of(peer)}"}).json["name"] == "solo"


@pytest.mark.parametrize(
    "shown", ["", "Bearer wrong", "Bearer ", "Basic c29sbzpzb2xv", "{token}", "Bearer {token}x"]
)
def test_without_the_token_nothing_is_answered(peer: LocalPeer, shown: str) -> None:
    answer = ask(peer, {"authorization": shown.format(token=token_of(peer))})
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.json["type"] == "covey:no-token"
    assert "run/token" in answer.json["remedy"]


@pytest.mark.parametrize("path", ["/v1/nowhere", "/v1/tasks", "/v1/events", "/", "/healthz/../v1"])
def test_without_the_token_not_even_what_exists_is_told(peer: LocalPeer, path: str) -> None:
    assert ask(peer, {"authorization": ""}, path).status == 401


def test_whether_it_lives_is_told_without_a_token_and_nothing_else_with_it(
    peer: LocalPeer,
) -> None:
    answer = ask(peer, {"authorization": ""}, "/healthz")
    assert (answer.status, answer.json) == (200, {"ok": True})


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost:80", ":"])
def test_a_name_that_was_pointed_at_this_machine_is_refused(peer: LocalPeer, host: str) -> None:
    for path in ("/v1/status", "/healthz"):
        answer = ask(peer, {"host": host}, path)
        assert (answer.status, answer.json["type"]) == (421, "covey:wrong-host")
        assert "127.0.0.1" in answer.json["detail"]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://"]
)
def test_another_web_page_is_refused_even_with_the_token(peer: LocalPeer, origin: str) -> None:
    answer = ask(peer, {"origin": origin})
    assert (answer.status, answer.json["type"]) == (403, "covey:wrong-origin")


def test_no_answer_lets_a_web_page_read_it(peer: LocalPeer) -> None:
    own = f"http://127.0.0.1:{port_of(peer)}"
    for headers in ({}, {"origin": own}, {"origin": "https://evil.example"}, {"authorization": ""}):
        answer = ask(peer, headers)
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_websocket_is_refused_on_both_ways_in(peer: LocalPeer) -> None:
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        "sec-websocket-version": "13",
    }
    for place in (port_of(peer), peer.home / "run/api.sock"):
        with Wire(place) as wire:
            assert wire.ask("GET", "/v1/status", headers=upgrade).status == 403


def test_the_socket_is_its_owners_alone_in_a_folder_of_its_owner_alone(peer: LocalPeer) -> None:
    socket, token = peer.home / "run/api.sock", peer.home / "run/token"
    assert stat.S_IMODE(socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600


def test_the_socket_needs_no_token_and_heeds_no_host(peer: LocalPeer) -> None:
    with Wire.to(peer) as wire:
        assert wire.ask("GET", "/v1/status", headers={"host": "anything"}).json["name"] == "solo"


def test_each_start_makes_a_new_token(peer: LocalPeer) -> None:
    old = token_of(peer)
    peer.stop()
    peer.start()
    assert token_of(peer) != old
    assert ask(peer, {"authorization": f"Bearer {old}"}).status == 401


def test_the_client_gets_in_over_tcp_with_the_token_and_is_denied_without(peer: LocalPeer) -> None:
    address = ("127.0.0.1", port_of(peer))
    with connect(address=address, token=token_of(peer)) as client:
        assert client.run("covey.echo", {"n": 1}, wait_s=10).result == {"n": 1}
        assert client.status().name == "solo"
    for token in (None, "wrong"):
        with pytest.raises(Denied, match="run/token"), Client(address, token) as client:
            client.status()


def test_without_tcp_there_is_the_socket_alone() -> None:
    with running_peer("tcp = false") as peer:
        assert peer.client.status().api == (f"unix:{peer.home}/run/api.sock",)
        with Wire.to(peer) as wire:
            assert wire.ask("POST", "/v1/tasks?wait=10", echo_task()).status == 200


def test_an_error_of_the_api_is_one_that_a_program_can_tell_apart(peer: LocalPeer) -> None:
    with pytest.raises(BadRequest) as caught:
        peer.client.submit("covey.echo", zone="moon")
    assert caught.value.kind == "bad-request"
    assert "mesh" in caught.value.remedy
