"""Looking something up in the DHT, beside asking every member in turn."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import trio
from libp2p.peer.id import ID
from measure import Report, Row

from covey.gossip.admission import Admission
from covey.gossip.dht import Dht, DhtSettings, open_dht
from covey.gossip.host import Host, HostSettings, open_host
from covey.gossip.provider_keys import provider_key
from covey.identity.certificate import Chain, found_mesh, issue
from covey.identity.envelope import mesh_id_of
from covey.identity.errors import CoveyError
from covey.identity.keys import Keypair, PeerId

NOW_MS = 1_790_000_000_000
ROOT, ADMIN = Keypair(b"\x01" * 32), Keypair(b"\x02" * 32)
MESH = mesh_id_of(ROOT.public_key)
ADMIN_CHAIN = found_mesh(ROOT, ADMIN.peer_id, now_ms=NOW_MS)
NEIGHBOURS = 4
"""Each peer is connected to so many, whatever the size of the mesh."""
TIMEOUT_S = 20.0
PAIRS_MAX = 3
ROUNDS = 3


class Ears:
    """Tells a DHT of connections, as the daemon does by its links."""

    def __init__(self) -> None:
        self.dht: Dht | None = None

    def opened(self, visit: Any) -> None:
        if self.dht is not None:
            self.dht.connected(visit.peer, inbound=visit.inbound)

    def closed(self, visit: Any) -> None:
        if self.dht is not None:
            self.dht.disconnected(visit.peer)


class Town:
    """Members in one process, each connected to a few."""

    def __init__(self) -> None:
        self.hosts: dict[PeerId, Host] = {}
        self.dhts: dict[PeerId, Dht] = {}
        self.addresses: dict[PeerId, tuple[str, ...]] = {}
        """Also of those that have gone."""
        self.lives: dict[PeerId, tuple[trio.Event, trio.Event]] = {}

    @property
    def ids(self) -> list[PeerId]:
        return list(self.hosts)

    async def dial(self, me: PeerId, peer: PeerId) -> None:
        await self.hosts[me].dial(peer, self.addresses[peer])

    async def leave(self, peer: PeerId) -> None:
        """End one without a word: its records stay with the others."""
        del self.hosts[peer], self.dhts[peer]
        ends, ended = self.lives.pop(peer)
        ends.set()
        await ended.wait()


@asynccontextmanager
async def town_of(count: int) -> AsyncGenerator[Town]:
    town = Town()
    keypairs = [Keypair((100 + n).to_bytes(32, "big")) for n in range(count)]
    names = {one.peer_id for one in keypairs}
    async with trio.open_nursery() as nursery:
        for keypair in keypairs:
            await nursery.start(_live, town, keypair, names)
        order = town.ids
        for one, other in pairwise(order):
            await town.dial(one, other)
        for n, one in enumerate(order):
            for step in (5, 11, 17)[: NEIGHBOURS - 1]:
                far = order[(n + step) % count]
                if far != one:
                    await town.dial(one, far)
        with trio.move_on_after(TIMEOUT_S):
            while any(dht.size == 0 for dht in town.dhts.values()):  # noqa: ASYNC110
                await trio.sleep(0.05)
        yield town
        for peer in town.ids:
            await town.leave(peer)


async def _live(
    town: Town, keypair: Keypair, names: set[PeerId], task_status: trio.TaskStatus[None]
) -> None:
    chain: Chain = (
        *ADMIN_CHAIN,
        issue(ADMIN, keypair.peer_id, mesh=MESH, role="member", now_ms=NOW_MS),
    )

    async def keep(_effects: object) -> None:
        """There is no desk."""

    door = Admission(
        mesh=MESH,
        chain=chain,
        incarnation=1,
        name="bench",
        now_ms=lambda: NOW_MS,
        is_known=names.__contains__,
        desk=None,
        keep=keep,
        draw=lambda size: b"\x07" * size,
    )
    ears = Ears()
    me = keypair.peer_id
    settings = DhtSettings(MESH, publish_every_s=0.05)
    ends, ended = town.lives[me] = trio.Event(), trio.Event()
    async with (
        open_host(keypair, HostSettings("127.0.0.1"), door, ears) as host,
        open_dht(
            host, door, lambda: NOW_MS, settings, dial=lambda peer: town.dial(me, peer)
        ) as dht,
    ):
        town.hosts[me], town.dhts[me], ears.dht = host, dht, dht
        town.addresses[me] = host.addresses()
        dht.met(len(names))
        task_status.started()
        await ends.wait()
    ended.set()


def bench_dht(report: Report, sizes: tuple[int, ...]) -> None:
    """Measure towns of several sizes, each with a provider that has gone and one that is stale."""
    # It says of each stream that ends that it has ended.
    logging.getLogger("libp2p").setLevel(logging.CRITICAL)
    report.heading("Looking up a provider in the DHT (all peers in one process)")
    for size in sizes:
        found = trio.run(_measure, size)
        report.facts.setdefault("dht", {})[str(size)] = found
        for name, beside in (("cold", "cold"), ("warm", "warm"), ("stale and dead", "warm")):
            taken, base = found[f"{name}_ms"], found[f"in_turn_{beside}_ms"]
            report.add(
                Row(
                    f"{size} peers, {name}",
                    f"{taken:.0f} ms",
                    f"all asked in turn, {beside}, {base:.0f} ms",
                    f"{taken / base:.2f} x",
                )
            )


async def _measure(count: int) -> dict[str, float]:
    """Let some look things up, and others ask everyone: who has asked everyone is linked to all."""
    async with town_of(count) as town:
        last = town.ids[-1]
        pairs = list(zip(town.ids[:-1:2], town.ids[1:-1:2], strict=False))[:PAIRS_MAX]
        key = provider_key(MESH, "data", "source")
        town.dhts[last].provide([key])
        await _kept(town, key, last)
        took: dict[str, list[float]] = {}

        async def note(name: str, work: Callable[[], Awaitable[None]]) -> None:
            took.setdefault(name, []).append(await _timed(work))

        for finder, _ in pairs:
            await note("cold_ms", lambda finder=finder: _find(town, finder, key, last))
            for _ in range(ROUNDS):
                await note("warm_ms", lambda finder=finder: _find(town, finder, key, last))
        for _, asker in pairs:
            await note("in_turn_cold_ms", lambda asker=asker: _ask_all(town, asker, key))
            for _ in range(ROUNDS):
                await note("in_turn_warm_ms", lambda asker=asker: _ask_all(town, asker, key))
        # The provider and its neighbour go without a word: its records stay with others.
        gone = [last, town.ids[-2]] if count > 3 else [last]
        for peer in gone:
            await town.leave(peer)
        for finder, _ in pairs:
            for _ in range(ROUNDS):
                # As after a restart: both are in the table, and are dialled in vain.
                await town.dhts[finder].restore([(peer, town.addresses[peer]) for peer in gone])
                await note(
                    "stale and dead_ms", lambda finder=finder: _find(town, finder, key, last)
                )
        return {name: median(times) for name, times in took.items()}


async def _kept(town: Town, key: bytes, provider: PeerId) -> None:
    """Return once somebody else keeps the record."""
    with trio.fail_after(TIMEOUT_S):
        while not any(  # noqa: ASYNC110
            dht.library.provider_store.get_providers(key)
            for peer, dht in town.dhts.items()
            if peer != provider
        ):
            await trio.sleep(0.02)


async def _find(town: Town, me: PeerId, key: bytes, wanted: PeerId) -> None:
    named = await town.dhts[me].find_providers(key, timeout_s=TIMEOUT_S)
    assert wanted in named, named


async def _ask_all(town: Town, me: PeerId, key: bytes) -> None:
    """What there is without a DHT: connect to every member, and ask it."""
    store = town.dhts[me].library.provider_store
    for peer in town.ids:
        if peer != me:
            try:
                await town.dial(me, peer)
                await store._get_providers_from_peer_with_closers(ID.from_base58(peer), key)
            except CoveyError:
                continue


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    started = perf_counter()
    await work()
    return (perf_counter() - started) * 1000
