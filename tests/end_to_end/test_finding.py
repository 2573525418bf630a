"""Each way of finding who can do it, with real peers, as `covey tasks show` tells it.

`gateway` says what it offers. `press` and `oven` tell others only where they are: what they offer
is found by who asks for it by name, `press` through the DHT, `oven`, which takes no part in it, by a
call for bids alone.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.conftest import wait_for_peers
from test_peer.daemons import enable_echo

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.views import TaskView

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def mesh() -> Iterator[LocalMesh]:
    root = Path(tempfile.mkdtemp(prefix="cv"))
    with LocalMesh(root) as mesh:
        gateway = mesh.found("gateway", "--label", "unit=gateway", "--zone", "kitchen")
        enable_echo(gateway)
        configure(gateway, dht=True, advert="all")
        gateway.start()
        press = mesh.join("press", "--label", "unit=press", inviter=gateway)
        oven = mesh.join("oven", "--label", "unit=oven", inviter=gateway, zones=["kitchen"])
        for peer in (press, oven):
            enable_echo(peer)
            configure(peer, dht=peer is press, advert="addresses")
            peer.start()
        for peer in mesh.peers.values():
            wait_for_peers(peer, 2)
        yield mesh
    shutil.rmtree(root, ignore_errors=True)


def configure(peer: LocalPeer, *, dht: bool, advert: str) -> None:
    with (peer.home / "config.toml").open("a") as file:
        file.write(f'\n[discovery]\ndht = {str(dht).lower()}\nadvert = "{advert}"\nmdns = false\n')


def run(peer: LocalPeer, unit: str) -> TaskView:
    return peer.client.run("covey.echo", {"hello": unit}, labels={"unit": unit}, wait_s=30)


def test_here(mesh: LocalMesh) -> None:
    task = run(mesh.peers["gateway"], "gateway")
    assert (task.state, task.way, task.peer_name) == ("done", "here", "gateway")


def test_directory(mesh: LocalMesh) -> None:
    task = run(mesh.peers["press"], "gateway")
    assert (task.state, task.way, task.peer_name) == ("done", "directory", "gateway")


def test_only_the_dht_knows(mesh: LocalMesh) -> None:
    gateway = mesh.peers["gateway"]
    known = {peer.name: peer for peer in gateway.client.peers()}
    assert (known["press"].labels, known["press"].skills) == ({}, ())
    task = run(gateway, "press")
    assert (task.state, task.way, task.peer_name) == ("done", "dht", "press")
    shown = gateway.covey("tasks", "show", task.id)
    assert "the DHT named it, and it said itself that it can" in shown


def test_only_a_bid_finds_it(mesh: LocalMesh) -> None:
    gateway = mesh.peers["gateway"]
    task = run(gateway, "oven")
    assert (task.state, task.way, task.peer_name) == ("done", "bid", "oven")
    shown = gateway.covey("tasks", "show", task.id)
    assert "it answered a call for bids" in shown


def test_a_zone_finds_its_own_members(mesh: LocalMesh) -> None:
    gateway = mesh.peers["gateway"]
    labels = {"unit": "oven"}
    task = gateway.client.run("covey.echo", {}, labels=labels, zone="kitchen", wait_s=30)
    assert (task.state, task.way, task.peer_name) == ("done", "bid", "oven")


def test_a_need_of_a_zone_never_reaches_a_peer_outside_it(mesh: LocalMesh) -> None:
    """`press` could do it and is linked; it counts each call that it hears."""
    gateway, press, oven = (mesh.peers[name] for name in ("gateway", "press", "oven"))
    heard = press.client.status().discovery.calls_heard
    heard_inside = oven.client.status().discovery.calls_heard
    task = gateway.client.submit("covey.echo", {}, labels={"unit": "press"}, zone="kitchen")
    wait_until(
        lambda: "no call for bids found anyone" in gateway.client.task(task.id).reason,
        "the search ends",
        timeout_s=30,
    )
    assert gateway.client.cancel(task.id).state == "cancelled"
    assert oven.client.status().discovery.calls_heard > heard_inside
    assert press.client.status().discovery.calls_heard == heard


def test_what_nobody_has_says_what_was_tried(mesh: LocalMesh) -> None:
    gateway = mesh.peers["gateway"]
    task = gateway.client.submit("covey.echo", {}, labels={"unit": "nosuch"})
    wait_until(
        lambda: (
            "neither the DHT nor a call for bids found anyone"
            in gateway.client.task(task.id).reason
        ),
        "the search ends",
        timeout_s=30,
    )
    assert gateway.client.cancel(task.id).state == "cancelled"
