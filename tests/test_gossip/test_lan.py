"""Real multicast DNS, on loopback alone: each test has a mesh of its own, and so a service type."""

import socket
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Interface
from itertools import count
from typing import Any

import pytest
import trio
import zeroconf
from test_gossip.hosts import until
from test_gossip.members import key

from covey.gossip import lan as lan_module
from covey.gossip.lan import NO_MULTICAST, Lan, multicast_interfaces
from covey.gossip.sighting import service_of, text_of
from covey.identity.envelope import MeshId, mesh_id_of
from covey.identity.keys import PeerId

LOOPBACK = IPv4Interface("127.0.0.1/8")
# Reserved for documentation (RFC 5737): no device has it, so nothing can be sent from there.
NOWHERE = IPv4Interface("203.0.113.77/24")
ALICE, BOB, CAROL, MALLORY = (key(n).peer_id for n in range(1, 5))
_meshes = count()


@pytest.fixture
def mesh() -> MeshId:
    """A mesh that no other test speaks of, in no other run at this time."""
    here = f"{next(_meshes)} {threading.get_native_id()}"
    return mesh_id_of(here.encode())


def port_of(peer: PeerId) -> int:
    return 4001 + [ALICE, BOB, CAROL, MALLORY].index(peer)


def address_of(peer: PeerId) -> str:
    return f"/ip4/127.0.0.1/tcp/{port_of(peer)}"


@dataclass(slots=True)
class Taking:
    """One peer that takes part, and whom it believes to be where."""

    lan: Lan
    seen: dict[PeerId, tuple[str, ...]] = field(default_factory=dict[PeerId, tuple[str, ...]])
    ever: list[tuple[PeerId, tuple[str, ...]]] = field(
        default_factory=list[tuple[PeerId, tuple[str, ...]]]
    )

    def sighted(self, peer: PeerId, addresses: tuple[str, ...]) -> None:
        self.seen[peer] = addresses
        self.ever.append((peer, addresses))

    def withdrawn(self, peer: PeerId) -> None:
        self.seen.pop(peer, None)


@asynccontextmanager
async def taking_part(
    me: PeerId,
    mesh: MeshId,
    *,
    knows: tuple[PeerId, ...] = (ALICE, BOB, CAROL, MALLORY),
    interfaces: Callable[[], list[IPv4Interface]] = lambda: [LOOPBACK],
    addresses: tuple[str, ...] | None = None,
    look_s: float = 60.0,
) -> AsyncGenerator[Taking]:
    taking: Taking
    lan = Lan(
        me,
        mesh,
        is_known=knows.__contains__,
        sighted=lambda peer, where: taking.sighted(peer, where),
        withdrawn=lambda peer: taking.withdrawn(peer),
        interfaces=interfaces,
        look_s=look_s,
    )
    taking = Taking(lan)
    lan.move((address_of(me),) if addresses is None else addresses)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lan.serve)
        yield taking
        nursery.cancel_scope.cancel()


@contextmanager
def announcing(mesh: MeshId, *infos: tuple[PeerId, int, str, Mapping[str, str]]) -> Generator[None]:
    """Say anything at all: (instance, port, address, text)."""
    service = service_of(mesh)
    liar = zeroconf.Zeroconf(["127.0.0.1"], use_asyncio=False)
    try:
        for name, port, ip, text in infos:
            info = zeroconf.ServiceInfo(
                service,
                f"{name}.{service}",
                port,
                properties=dict(text),
                server=f"{name}.local.",
                addresses=[socket.inet_aton(ip)],
            )
            liar.register_service(info, cooperating_responders=True)
        yield
    finally:
        liar.close()


async def test_two_members_see_each_other_and_that_one_leaves(mesh: MeshId) -> None:
    async with taking_part(ALICE, mesh) as alice:
        async with taking_part(BOB, mesh) as bob:
            await until(lambda: alice.seen == {BOB: (address_of(BOB),)})
            await until(lambda: bob.seen == {ALICE: (address_of(ALICE),)})
        await until(lambda: alice.seen == {})


async def test_a_member_that_moves_is_seen_where_it_is_now(mesh: MeshId) -> None:
    async with taking_part(ALICE, mesh) as alice, taking_part(BOB, mesh) as bob:
        await until(lambda: alice.seen == {BOB: (address_of(BOB),)})

        bob.lan.move(("/ip4/127.0.0.1/tcp/4999",))

        await until(lambda: alice.seen == {BOB: ("/ip4/127.0.0.1/tcp/4999",)})
        await until(lambda: bob.seen == {ALICE: (address_of(ALICE),)})


async def test_a_peer_of_another_mesh_is_neither_seen_nor_sees(mesh: MeshId) -> None:
    other = mesh_id_of(mesh)
    async with (
        taking_part(MALLORY, other) as mallory,
        taking_part(ALICE, mesh) as alice,
        taking_part(BOB, mesh) as bob,
        taking_part(CAROL, other) as carol,
    ):
        await until(lambda: set(alice.seen) == {BOB} and set(bob.seen) == {ALICE})
        await until(lambda: set(carol.seen) == {MALLORY} and set(mallory.seen) == {CAROL})
        assert [taking.lan.strangers for taking in (alice, bob, carol, mallory)] == [0, 0, 0, 0]


async def test_an_id_that_is_not_known_is_counted_and_not_looked_up(mesh: MeshId) -> None:
    async with taking_part(ALICE, mesh, knows=(BOB,)) as alice, taking_part(MALLORY, mesh):
        await until(lambda: alice.lan.strangers == 1)
        async with taking_part(BOB, mesh):
            await until(lambda: BOB in alice.seen)
        assert {peer for peer, _ in alice.ever} == {BOB}


async def test_a_liar_makes_nobody_dial_the_internet_nor_who_is_no_peer(mesh: MeshId) -> None:
    lies = (
        (BOB, 4002, "8.8.8.8", text_of(BOB)),
        (MALLORY, 22, "127.0.0.1", text_of(MALLORY)),
        (PeerId("8.8.8.8 \N{SNOWMAN}"), 4001, "127.0.0.1", {"id": "8.8.8.8"}),
        (CAROL, 4003, "127.0.0.1", text_of(CAROL)),
    )
    async with taking_part(ALICE, mesh) as alice:
        with announcing(mesh, *lies):
            await until(lambda: CAROL in alice.seen)
        assert alice.ever == [(CAROL, ("/ip4/127.0.0.1/tcp/4003",))]


async def test_what_zeroconf_stumbles_over_ends_nothing(
    mesh: MeshId, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stumbling(zeroconf.ServiceInfo):
        def request(self, *arguments: Any, **named: Any) -> bool:
            if self.name.startswith(BOB):
                raise IndexError("an odd record")
            return super().request(*arguments, **named)

    monkeypatch.setattr(lan_module.zeroconf, "ServiceInfo", Stumbling)
    async with taking_part(ALICE, mesh) as alice, taking_part(BOB, mesh) as bob:
        await until(lambda: ALICE in bob.seen)
        async with taking_part(CAROL, mesh):
            await until(lambda: set(alice.seen) == {CAROL})


async def test_the_loop_goes_on_while_a_peer_is_announced(
    mesh: MeshId, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "covey.gossip.lan")
    turns = 0

    def turned_until_announced() -> bool:
        nonlocal turns
        turns += 1
        return "lan.announced" in caplog.messages

    async with taking_part(ALICE, mesh):
        await until(turned_until_announced)

    # zeroconf takes 450 ms for it; `until` comes by every 5 ms.
    assert turns > 10


async def test_where_nothing_can_be_sent_it_says_so_once_and_tries_again_after_a_move(
    mesh: MeshId, caplog: pytest.LogCaptureFixture
) -> None:
    looks = 0
    there = [NOWHERE]

    def interfaces() -> list[IPv4Interface]:
        nonlocal looks
        looks += 1
        return list(there)

    nowhere = ("/ip4/203.0.113.77/tcp/4001",)
    async with (
        taking_part(ALICE, mesh, interfaces=interfaces, addresses=nowhere) as alice,
        taking_part(BOB, mesh) as bob,
    ):
        await until(lambda: alice.lan.trouble == NO_MULTICAST)
        alice.lan.move(nowhere)
        await until(lambda: looks == 2)
        there[:] = [NOWHERE, LOOPBACK]
        alice.lan.move((*nowhere, "/ip4/127.0.0.1/tcp/4001"))

        await until(lambda: ALICE in bob.seen)
        await until(lambda: alice.lan.trouble is None)
        warned = [one for one in caplog.records if one.message == "lan.unavailable"]
        assert len(warned) == 1


async def test_an_interface_that_comes_up_later_is_used_without_being_told(mesh: MeshId) -> None:
    there: list[IPv4Interface] = []
    where = ("/ip4/192.168.1.5/tcp/4001", address_of(ALICE))
    async with (
        taking_part(
            ALICE, mesh, interfaces=lambda: list(there), addresses=where, look_s=0.05
        ) as alice,
        taking_part(BOB, mesh) as bob,
    ):
        await until(lambda: alice.lan.trouble == NO_MULTICAST)

        there.append(LOOPBACK)

        await until(lambda: ALICE in bob.seen)


@pytest.mark.parametrize(
    ("addresses", "interfaces"),
    [
        pytest.param(("/ip4/127.0.0.1/tcp/4001",), [], id="it listens on loopback alone"),
        pytest.param(("/ip4/198.51.100.7/tcp/1",), [LOOPBACK], id="it announces another's address"),
    ],
)
async def test_who_has_nothing_to_say_opens_no_socket_and_has_no_trouble(
    mesh: MeshId,
    addresses: tuple[str, ...],
    interfaces: list[IPv4Interface],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opened(*_arguments: object, **_named: object) -> None:
        raise AssertionError("it was opened")

    monkeypatch.setattr(lan_module.zeroconf, "Zeroconf", opened)
    async with taking_part(
        ALICE, mesh, interfaces=lambda: interfaces, addresses=addresses
    ) as alice:
        await trio.testing.wait_all_tasks_blocked()
        assert alice.lan.trouble is None


async def test_what_comes_too_fast_is_dropped_and_counted(mesh: MeshId) -> None:
    stranger = f"{MALLORY}.{service_of(mesh)}"
    async with taking_part(ALICE, mesh, knows=(BOB,)) as alice, taking_part(BOB, mesh):
        await until(lambda: BOB in alice.seen)

        for _ in range(300):
            alice.lan.overheard(stranger, False)

        assert alice.lan.dropped == 44
        await until(lambda: alice.lan.strangers == 1)
        alice.lan.overheard(stranger, False)
        assert alice.lan.dropped == 44, "there is room again"


async def test_loopback_is_no_segment() -> None:
    assert not any(interface.ip.is_loopback for interface in multicast_interfaces())
