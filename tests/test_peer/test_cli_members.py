"""What people type to get a device in without a token, and to put it out again."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest
from test_peer.daemons import PATIENCE_S, short_folder

from covey.peer.local_mesh import CommandFailed, LocalMesh, LocalPeer, wait_until
from covey.peer.member_views import PendingView

pytestmark = pytest.mark.end_to_end
ENVIRONMENT = {**os.environ, "COVEY_LISTEN": "127.0.0.1"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[LocalMesh]:
    """An admin that runs, alice."""
    with short_folder() as root, LocalMesh(root) as made:
        made.found("alice").start()
        yield made


def newcomer(mesh: LocalMesh, name: str) -> LocalPeer:
    peer = mesh.peers[name] = LocalPeer(name, mesh.root / name, ENVIRONMENT)
    peer.covey("init", "--name", name)
    return peer


def failed(peer: LocalPeer, *arguments: str) -> CommandFailed:
    with pytest.raises(CommandFailed) as caught:
        peer.covey(*arguments)
    return caught.value


@contextmanager
def joining(peer: LocalPeer, *arguments: str) -> Generator[subprocess.Popen[str]]:
    """Run `covey join` for as long as the block lasts; give it when it says that it waits."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "covey.peer.cli", "join", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, "COVEY_HOME": str(peer.home)},
    ) as process:
        try:
            assert process.stderr is not None
            assert "covey approve" in process.stderr.readline()
            yield process
        finally:
            process.kill()


def waiting(admin: LocalPeer, name: str) -> PendingView:
    return next(one for one in admin.client.pending() if one.name == name)


def test_a_device_joins_by_an_address_once_both_sides_said_yes_to_the_same_words(
    mesh: LocalMesh,
) -> None:
    alice, bob = mesh.peers["alice"], newcomer(mesh, "bob")
    address = alice.client.status().addresses[0]

    # Nobody is at the terminal: the words are shown, and nothing else is done.
    shown = failed(bob, "join", address)
    words = waiting(alice, "bob").words
    assert (shown.code, words in str(shown), waiting(alice, "bob").has_confirmed) == (
        7,
        True,
        False,
    )
    wrong = " ".join(reversed(words.split()))
    assert failed(bob, "join", address, "--words", wrong).code == 5

    with joining(bob, address, "--words", words) as process:
        assert waiting(alice, "bob").has_confirmed
        # Interrupted, it goes on where it ended.
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, said) == (
            130,
            "covey: interrupted; the same command goes on where this ended\n",
        )
    assert not (bob.home / "mesh.cbor").exists()
    with joining(bob, address, "--words", words) as process:
        listed = alice.covey("pending")
        assert words in listed
        assert "has said yes" in listed
        assert failed(alice, "approve", "bob").code == 2, "nobody is asked, and nobody said yes"
        alice.covey("approve", "bob", "--zone", "east", "--yes")
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        assert out.startswith("joined mesh local")

    assert alice.client.pending() == []
    bob.start()
    wait_until(lambda: bob.client.status().peers_up == 1, "bob is linked with alice")
    assert bob.client.member("self").zones == ("east",)

    done = json.loads(alice.covey("revoke", "bob", "--yes", "--reason", "lost", "--json"))
    assert (done["kind"], done["member"]["name"], done["member"]["state"]) == (
        "Revoked",
        "bob",
        "revoked",
    )
    wait_until(lambda: bob.client.status().peers_up == 0, "bob is out")
    bob.stop()
    again = failed(bob, "join", address)
    assert again.code == 5
    assert f"covey admit {done['member']['id']}" in str(again)
    assert alice.covey("admit", "bob", "--no-zones").startswith("bob  member")
    (row,) = [line for line in alice.covey("members").splitlines() if line.startswith("bob")]
    assert row.split()[2:5] == ["member", "-", "member"]


def test_who_is_denied_is_told_so(mesh: LocalMesh) -> None:
    alice, carol = mesh.peers["alice"], newcomer(mesh, "carol")
    address = alice.client.status().addresses[0]
    failed(carol, "join", address)
    words = waiting(alice, "carol").words

    alice.client.deny("carol")

    refused = failed(carol, "join", address, "--words", words)
    assert refused.code == 5
    assert "an admin has said no" in str(refused)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("join", "/ip4/127.0.0.1/tcp/1/p2p/nobody"), 2, "not the id of an Ed25519 key"),
        (("join", "/ip4/127.0.0.1/tcp/1/p2p/{alice}"), 8, "cannot be reached"),
        (("revoke", "nobody", "--yes"), 4, "nobody"),
        (("revoke", "alice", "--yes", "--keep", "none"), 2, "passphrase"),
        (("admit", "alice", "--admin", "--passphrase-file", "/nonexistent"), 8, "/nonexistent"),
        (("approve", "nobody"), 4, "covey pending"),
    ],
)
def test_what_cannot_be_is_said(
    mesh: LocalMesh, arguments: tuple[str, ...], code: int, said: str
) -> None:
    alice = mesh.peers["alice"]
    who = alice.client.status().peer
    peer = newcomer(mesh, "dave") if arguments[0] == "join" and "dave" not in mesh.peers else alice
    peer = mesh.peers["dave"] if arguments[0] == "join" else peer
    error = failed(peer, *(one.format(alice=who) for one in arguments))
    assert (error.code, said in str(error)) == (code, True), str(error)
