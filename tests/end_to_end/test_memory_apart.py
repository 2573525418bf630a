"""Do two peers that were cut apart hold the same again, and how soon?

Two hosts, each a network namespace, with a router between them in a third. Cut, the router drops
what it should pass on and says nothing of it: no host is told that the other cannot be reached.
COVEY_CUT_S (20) says for how many seconds.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import pytest
from end_to_end.conftest import wait_for_peers
from end_to_end.test_lan import ip, namespace_of, on_host

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.memory.views import WRITES_MAX, WriteRequest

pytestmark = [pytest.mark.end_to_end, pytest.mark.netns]

CUT_S = float(os.environ.get("COVEY_CUT_S", "20"))
# A link is taken for dead after 9 to 12 s of silence.
NOTICED_S = 15.0
CONTACT_S = 4.0
IN_STEP_S = 6.0
WRITTEN = 1_000
PLACE = "plant/line"
HOSTS = {"plant-7": "10.99.8", "plant-3": "10.99.9"}
"""Each with the network that it shares with the router, where it is .2 and the router .1."""


@pytest.fixture(scope="module")
def cables() -> Iterator[None]:
    """The hosts, each with a cable to the router, which passes on what they send each other."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    router = namespace_of("router")
    try:
        ip("netns", "add", router)
        for name, network in HOSTS.items():
            host = namespace_of(name)
            ip("netns", "add", host)
            ip("-n", host, "link", "set", "lo", "up")
            end = ("peer", "name", name, "netns", router)
            ip("-n", host, "link", "add", "cable", "type", "veth", *end)
            ip("-n", host, "address", "add", f"{network}.2/24", "dev", "cable")
            ip("-n", router, "address", "add", f"{network}.1/24", "dev", name)
            ip("-n", host, "link", "set", "cable", "up")
            ip("-n", router, "link", "set", name, "up")
            ip("-n", host, "route", "add", "default", "via", f"{network}.1")
        with on_host("router"):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        yield
    finally:
        for name in (*HOSTS, "router"):
            subprocess.run(
                ["ip", "netns", "delete", namespace_of(name)], check=False, capture_output=True
            )


@pytest.fixture(scope="module")
def mesh(cables: None) -> Iterator[LocalMesh]:
    root = Path(tempfile.mkdtemp(prefix="cv"))
    with LocalMesh(root, environment={**os.environ, "COVEY_LISTEN": "0.0.0.0"}) as mesh:
        first, second = HOSTS
        with on_host(first):
            founder = mesh.found(first)
            founder.start()
        with on_host(second):
            mesh.join(second, inviter=founder).start()
        for peer in mesh.peers.values():
            wait_for_peers(peer, 1)
        yield mesh
    shutil.rmtree(root, ignore_errors=True)


def set_cut(change: str) -> None:
    """Let the router begin (`add`) or end (`delete`) to drop all silently, both ways."""
    for network in HOSTS.values():
        ip("-n", namespace_of("router"), "route", change, "blackhole", f"{network}.2/32")


def is_linked(peer: LocalPeer) -> bool:
    return any(one.state == "up" for one in peer.client.peers())


def is_in_step(peer: LocalPeer) -> bool:
    return [step.state for step in peer.client.status().memory] == ["in step"]


def held(peer: LocalPeer) -> int:
    return sum(one.entries for one in peer.client.memory_stats().namespaces if one.name == PLACE)


def headers(peer: LocalPeer) -> set[str]:
    return {one.header for one in peer.client.memory_export()}


def write(peer: LocalPeer, part: str) -> None:
    """Write half of what a peer writes, in batches."""
    for batch in range(WRITTEN // 2 // WRITES_MAX):
        texts = (f"{peer.name} saw {part} {batch}-{at}" for at in range(WRITES_MAX))
        peer.client.remember_all([WriteRequest(namespace=PLACE, value=text) for text in texts])


def test_two_that_wrote_apart_meet_soon_after_healing_and_hold_the_same(mesh: LocalMesh) -> None:
    peers = list(mesh.peers.values())

    def all_of_it_is_everywhere() -> bool:
        return all(map(is_in_step, peers)) and [*map(held, peers)] == [2 * WRITTEN] * 2

    wait_until(lambda: all(map(is_in_step, peers)), "they are in step")
    set_cut("add")
    heals_at = perf_counter() + CUT_S
    for peer in peers:
        write(peer, "before it was noticed")
    wait_until(lambda: not any(map(is_linked, peers)), "both take it for dead", timeout_s=NOTICED_S)
    for peer in peers:
        write(peer, "alone")
    assert [*map(held, peers)] == [WRITTEN] * 2, "each has its own, and nothing came through"
    wait_until(lambda: perf_counter() >= heals_at, "it was cut long enough", timeout_s=CUT_S)

    set_cut("delete")
    healed_at = perf_counter()
    wait_until(lambda: all(map(is_linked, peers)), "they have met", timeout_s=CONTACT_S)
    left_s = IN_STEP_S - (perf_counter() - healed_at)
    wait_until(all_of_it_is_everywhere, "both hold all of it", timeout_s=left_s)

    assert headers(peers[0]) == headers(peers[1])
