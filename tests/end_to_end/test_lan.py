"""Peers on one network segment find each other with no address that still holds.

Four hosts, each a network namespace, on a bridge in a fifth; multicast does not leave it.
"""

import ctypes
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from end_to_end.conftest import wait_for_peers
from test_peer.daemons import enable_echo

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.netns]

HOSTS = ("gateway", "line-1", "line-2", "stranger")
CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def namespace_of(name: str) -> str:
    return f"cv-{os.getpid()}-{name}"


@contextmanager
def on_host(name: str) -> Generator[None]:
    """What is started within is started on that host: a process inherits its thread's network."""
    with (
        Path("/proc/thread-self/ns/net").open() as here,
        Path(f"/run/netns/{namespace_of(name)}").open() as there,
    ):
        enter(there.fileno())
        try:
            yield
        finally:
            enter(here.fileno())


def enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


@pytest.fixture(scope="module")
def cables() -> Iterator[None]:
    """The hosts' namespaces, each with one cable to the bridge."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    bridge = namespace_of("bridge")
    try:
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "bridge", "type", "bridge")
        ip("-n", bridge, "link", "set", "bridge", "up")
        for name in HOSTS:
            host = namespace_of(name)
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            end = ("peer", "name", name, "netns", bridge)
            ip("-n", host, "link", "add", "cable", "type", "veth", *end)
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", bridge, "link", "set", name, "master", "bridge", "up")
        yield
    finally:
        for name in (*HOSTS, "bridge"):
            subprocess.run(
                ["ip", "netns", "delete", namespace_of(name)], check=False, capture_output=True
            )


@dataclass(slots=True)
class Plant:
    """A mesh of three that knows itself, and a peer of another mesh, on the same segment."""

    meshes: tuple[LocalMesh, LocalMesh]
    ids: dict[str, str] = field(default_factory=dict[str, str])

    def peer(self, name: str) -> LocalPeer:
        return self.meshes[name == "stranger"].peers[name]

    def start(self, name: str) -> LocalPeer:
        peer = self.peer(name)
        with on_host(name):
            peer.start()
        self.ids[name] = peer.client.status().peer
        return peer

    def log(self, name: str) -> str:
        return (self.peer(name).home / "daemon.out").read_text()

    def stop_all(self) -> None:
        for name in HOSTS:
            self.peer(name).stop()
            (self.peer(name).home / "daemon.out").unlink(missing_ok=True)


def number(network: str) -> None:
    """Give every host another address, .1 to .4 of a network that none was in before."""
    for at, name in enumerate(HOSTS, 1):
        host = namespace_of(name)
        ip("-n", host, "address", "flush", "dev", "cable", "scope", "global")
        ip("-n", host, "address", "add", f"{network}.{at}/24", "dev", "cable")


@pytest.fixture(scope="module")
def plant(cables: None) -> Iterator[Plant]:
    root = Path(tempfile.mkdtemp(prefix="cv"))
    environment = {**os.environ, "COVEY_LISTEN": "0.0.0.0"}
    number("10.99.1")
    with (
        LocalMesh(root, environment=environment) as plant_mesh,
        LocalMesh(root, environment=environment) as other_mesh,
    ):
        plant = Plant((plant_mesh, other_mesh))
        gateway = plant_mesh.found("gateway")
        other_mesh.found("stranger", mesh="other")
        plant.start("gateway")
        for name in ("line-1", "line-2"):
            with on_host(name):
                plant_mesh.join(name, inviter=gateway)
        for peer in (*plant_mesh.peers.values(), *other_mesh.peers.values()):
            enable_echo(peer)
        with (other_mesh.peers["stranger"].home / "config.toml").open("a") as file:
            file.write('\n[log]\nlevel = "debug"\n')
        for name in ("line-1", "line-2"):
            plant.start(name)
        for peer in plant_mesh.peers.values():
            wait_for_peers(peer, 2)
        yield plant
    shutil.rmtree(root, ignore_errors=True)


def is_linked(peer: LocalPeer, name: str, address: str) -> bool:
    return any(
        one.name == name and one.state == "up" and f"/ip4/{address}/" in one.addresses[0]
        for one in peer.client.peers()
    )


def linked_to(peer: LocalPeer) -> list[str]:
    return [one.name for one in peer.client.peers() if one.state == "up"]


def test_two_members_whose_addresses_all_changed_find_each_other_and_no_other_mesh(
    plant: Plant,
) -> None:
    plant.stop_all()
    number("10.99.2")
    stranger = plant.start("stranger")
    wait_until(lambda: "lan.announced" in plant.log("stranger"), "the stranger is announced")
    line_1, line_2 = plant.start("line-1"), plant.start("line-2")

    wait_until(lambda: is_linked(line_1, "line-2", "10.99.2.3"), "it is found", timeout_s=30)
    task = line_1.client.run("covey.echo", {"text": "hello"}, peer="line-2", wait_s=30)

    assert (task.state, task.peer_name) == ("done", "line-2")
    wait_until(lambda: is_linked(line_2, "line-1", "10.99.2.2"), "and finds")
    assert [one.name for one in stranger.client.peers()] == ["stranger"]
    seen_by_stranger = plant.log("stranger")
    assert plant.ids["line-1"] not in seen_by_stranger
    assert plant.ids["line-2"] not in seen_by_stranger
    assert "guest.refused" not in seen_by_stranger, "nobody dialled it"
    for name in ("line-1", "line-2"):
        assert plant.ids["stranger"] not in plant.log(name)
        assert not [one for one in plant.peer(name).client.doctor() if one.check == "mdns"]


def test_who_turned_it_off_finds_nobody_and_is_not_found(plant: Plant) -> None:
    plant.stop_all()
    number("10.99.3")
    with (plant.peer("line-2").home / "config.toml").open("a") as file:
        file.write("\n[discovery]\nmdns = false\n")
    line_2, line_1, gateway = (plant.start(name) for name in ("line-2", "line-1", "gateway"))

    wait_until(lambda: is_linked(gateway, "line-1", "10.99.3.2"), "others are found", timeout_s=30)

    assert linked_to(line_2) == []
    assert linked_to(line_1) == ["gateway"]
    assert linked_to(gateway) == ["line-1"]
    assert "lan." not in plant.log("line-2")
    sighted = [one for one in plant.log("line-1").splitlines() if "lan.sighted" in one]
    assert len(sighted) == 1
    assert plant.ids["gateway"] in sighted[0]


def test_while_the_port_is_anothers_it_says_so_and_works_once_it_is_free(plant: Plant) -> None:
    def trouble() -> list[str]:
        return [one.what for one in gateway.client.doctor() if one.check == "mdns"]

    plant.stop_all()
    number("10.99.4")
    with on_host("gateway"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other_program:
        other_program.bind(("", 5353))
        gateway = plant.start("gateway")
        (what,) = wait_until(trouble, "doctor says so")
        assert "UDP port 5353 cannot be used" in what
        assert gateway.client.run("covey.echo", {"text": "hello"}, wait_s=30).state == "done"
        assert plant.log("gateway").count("lan.unavailable") == 1

    number("10.99.5")
    wait_until(lambda: "lan.announced" in plant.log("gateway"), "it is announced")
    assert trouble() == []
