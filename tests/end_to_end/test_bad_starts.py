"""A daemon that cannot start, or a disk that is full: a clear error, its remedy, a stable exit code."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.peer.client import Client, ClientError, connect
from covey.peer.local_mesh import CommandFailed, LocalMesh, LocalPeer, wait_until

pytestmark = pytest.mark.end_to_end


@pytest.fixture
def mesh(short_path: Path) -> Iterator[LocalMesh]:
    with LocalMesh(short_path) as mesh:
        yield mesh


@pytest.fixture
def peer(mesh: LocalMesh) -> LocalPeer:
    return mesh.found("solo")


def refusal(peer: LocalPeer, *arguments: str, stdin: str | None = None) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        peer.covey(*arguments, stdin=stdin)
    return caught.value


def change_config(peer: LocalPeer, before: str, after: str) -> None:
    file = peer.home / "config.toml"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after, 1))


def test_a_second_daemon_on_the_same_home_is_refused_and_the_first_lives(peer: LocalPeer) -> None:
    peer.start()
    for command in (("daemon",), ("up", "-d")):
        error = refusal(peer, *command)
        assert error.code == 6
        assert f"a daemon (pid {peer.pid}) is running" in str(error)
        assert "covey down" in str(error)
    assert peer.client.status().name == "solo"


def test_a_stale_socket_of_a_killed_daemon_is_taken_over(peer: LocalPeer) -> None:
    peer.start()
    peer.kill()
    assert (peer.home / "run/api.sock").exists(), "the killed daemon left its socket"
    error = refusal(peer, "status")
    assert error.code == 3
    assert "covey up -d" in str(error)
    peer.start()
    assert peer.client.status().name == "solo"


@pytest.mark.parametrize("section", ["listen", "api"])
def test_a_port_in_use_is_named_with_what_to_change(peer: LocalPeer, section: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = (peer.home / "config.toml").read_text()
        own = text.split(f"[{section}]")[1].split("port = ")[1].split("\n")[0]
        change_config(peer, f"port = {own}", f"port = {port}")
        error = refusal(peer, "up", "-d")
    assert error.code == 8
    assert f"port {port}" in str(error)
    assert f"[{section}]" in str(error)


def test_an_unknown_key_in_the_configuration_names_its_neighbour(peer: LocalPeer) -> None:
    change_config(peer, "name =", "skils = []\nname =")
    for command in (("up", "-d"), ("daemon",)):
        error = refusal(peer, *command)
        assert error.code == 2
        assert "unknown key 'skils'" in str(error)
        assert "did you mean 'skills'?" in str(error)


def test_a_damaged_key_file_is_refused(peer: LocalPeer) -> None:
    (peer.home / "key").write_bytes(b"not a key")
    error = refusal(peer, "up", "-d")
    assert error.code == 2
    assert str(peer.home / "key") in str(error)


def test_commands_before_init_and_before_join_say_what_to_do(mesh: LocalMesh) -> None:
    empty = LocalPeer("empty", mesh.root / "empty", dict(os.environ))
    assert "covey init" in str(error := refusal(empty, "up", "-d"))
    assert error.code == 4
    empty.covey("init", "--name", "empty", "--listen", "127.0.0.1")
    assert "covey join" in str(error := refusal(empty, "up", "-d"))
    assert error.code == 4
    assert "covey up -d" in str(error := refusal(empty, "status"))
    assert error.code == 3


def test_a_second_init_does_not_touch_the_first(peer: LocalPeer) -> None:
    key = (peer.home / "key").read_bytes()
    error = refusal(peer, "init", "--name", "again")
    assert error.code == 6
    assert (peer.home / "key").read_bytes() == key


@pytest.mark.parametrize(
    ("token", "code"), [("", 2), ("covey-nonsense", 2), ("x" * 5000, 2), ("\x00\xff", 2)]
)
def test_a_garbled_token_is_refused(mesh: LocalMesh, token: str, code: int) -> None:
    peer = LocalPeer("late", mesh.root / "late", {**os.environ, "COVEY_LISTEN": "127.0.0.1"})
    peer.covey("init", "--name", "late")
    error = refusal(peer, "join", stdin=token)
    assert error.code == code
    assert "make one with: covey invite" in str(error)


def test_a_used_up_invite_is_refused_with_what_to_do(mesh: LocalMesh, peer: LocalPeer) -> None:
    peer.start()
    token = peer.covey("invite", "--uses", "1").strip()
    first, second = (
        LocalPeer(name, mesh.root / name, {**os.environ, "COVEY_LISTEN": "127.0.0.1"})
        for name in ("one", "two")
    )
    for one in (first, second):
        one.covey("init", "--name", one.name)
    first.covey("join", token)
    error = refusal(second, "join", token)
    assert error.code == 5
    assert "used" in str(error)
    assert "joined mesh local" in first.covey("join", token), "who asks again uses nothing up"


def test_joining_twice_changes_no_mesh_and_no_admin(mesh: LocalMesh, peer: LocalPeer) -> None:
    other = mesh.found("other", mesh="elsewhere")
    for one in (peer, other):
        one.start()
    token, elsewhere = peer.covey("invite").strip(), other.covey("invite").strip()
    for one in (peer, other):
        one.stop()
    before = (peer.home / "mesh.cbor").read_bytes()
    error = refusal(peer, "join", elsewhere)
    assert error.code == 6
    assert "in mesh 'local' already" in str(error)
    error = refusal(peer, "join", token)
    assert error.code == 6
    assert "is an admin of mesh 'local'" in str(error)
    assert (peer.home / "mesh.cbor").read_bytes() == before


def test_joining_an_inviter_that_is_down_says_so(mesh: LocalMesh, peer: LocalPeer) -> None:
    peer.start()
    token = peer.covey("invite").strip()
    peer.stop()
    late = LocalPeer("late", mesh.root / "late", {**os.environ, "COVEY_LISTEN": "127.0.0.1"})
    late.covey("init", "--name", "late")
    error = refusal(late, "join", token)
    assert error.code == 8


def fill(client: Client, kept: list[str]) -> None:
    """Hand in work until it is refused; keep the ids of what was acknowledged."""
    for number in range(100):
        kept.append(client.submit("covey.echo", {"text": "x" * 60_000, "n": number}).id)
        client.wait(kept[-1], timeout_s=0.2)


def test_a_full_disk_refuses_new_work_says_so_and_loses_nothing(mesh: LocalMesh) -> None:
    """The store lies on a file system of 2 MiB, which the test fills."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    peer = mesh.found("tight")
    change_config(peer, "skills = [", 'skills = ["covey.echo", ')
    store = peer.home / "store"
    store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(store)], check=True)
    try:
        peer.start()
        kept: list[str] = []
        with pytest.raises(ClientError) as caught:
            fill(peer.client, kept)
        assert caught.value.kind == "unavailable"
        assert "is full" in str(caught.value)
        assert len(kept) > 1, "some work was acknowledged before"
        assert peer.client.status().name == "tight", "the daemon lives"
        failed = [one for one in peer.client.doctor() if one.level == "fail"]
        assert [one.check for one in failed] == ["store"]
        subprocess.run(["mount", "-o", "remount,size=32m", str(store)], check=True)
        after = wait_until(
            lambda: peer.client.run("covey.echo", {"text": "y"}, wait_s=10), "work goes on"
        )
        assert after.state == "done"
        for _ in range(2):
            for name in kept:
                assert peer.client.wait(name, timeout_s=30).state == "done"
            peer.stop()
            peer.start()
    finally:
        peer.stop()
        subprocess.run(["umount", str(store)], check=True)


def test_ctrl_c_ends_a_foreground_daemon_and_removes_its_socket(peer: LocalPeer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "covey.peer.cli", "up", "--json"],
        env={**os.environ, "COVEY_HOME": str(peer.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        assert process.stdout is not None
        assert b'"kind":"Ready"' in process.stdout.readline()
        with connect(home=peer.home) as client:
            assert client.status().name == "solo"
        process.send_signal(2)
        assert process.wait(15) == 0
    assert not (peer.home / "run/api.sock").exists()
