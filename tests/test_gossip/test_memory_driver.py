"""What does the driver of the memory tell `Spreading` of its rows, and of whom it meets?"""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import trio
from test_gossip.members import ADMIN, ADMIN_CHAIN, chain_of, key
from test_gossip.memory_entries import ALICE, MESH, NOW_MS, note
from test_peer.near_daemons import devices, linked, until

from covey.gossip.memory.books import Record, member_record
from covey.gossip.memory.driver import HeldRows, Memory
from covey.gossip.memory.entry import Key
from covey.gossip.memory.namespace import MEMBERS, namespace_of
from covey.gossip.memory.standing import Standing
from covey.gossip.memory.summary import END, Summary
from covey.gossip.network import LinkDown, LinkUp
from covey.identity.certificate import member_of
from covey.identity.keys import Keypair, PeerId
from covey.peer.memory.store import open_memory_store

PUMPS = namespace_of(MESH, "mesh", "plant/pumps")
SALT = b"\x07" * 32


def keys(count: int) -> list[Key]:
    return [
        note(ALICE, f"note {number}", namespace=PUMPS.id, at_ms=NOW_MS + number).entry.key
        for number in range(count)
    ]


def test_an_audit_sees_that_one_entry_has_come_for_another_since_the_last() -> None:
    first, gone, come = keys(3)
    summary = Summary([first, gone])
    rows: Any = SimpleNamespace(summaries={PUMPS.id: summary})
    held = HeldRows(rows, {PUMPS.id: PUMPS})
    assert held.salted(PUMPS.id, SALT).keys(b"", END) == [first, gone]
    assert held.salted(PUMPS.id, SALT) is held.salted(PUMPS.id, SALT), "it is summed up once"

    summary.discard(gone)
    summary.add(come)

    assert held.salted(PUMPS.id, SALT).keys(b"", END) == [first, come]


class Wire:
    """Links to others that nobody listens at, under the port `Network`."""

    def __init__(self) -> None:
        self.told: list[Callable[[LinkUp | LinkDown], None]] = []

    def on_message(self, channel: str, handler: Callable[[PeerId, bytes], None]) -> None:
        pass

    def on_link(self, handler: Callable[[LinkUp | LinkDown], None]) -> None:
        self.told.append(handler)

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        return True

    def link(self, keypair: Keypair) -> None:
        member = member_of(chain_of(keypair), mesh=MESH, subject=keypair.peer_id)
        for handler in self.told:
            handler(LinkUp(keypair.peer_id, member))


@asynccontextmanager
async def admins_memory(folder: Path) -> AsyncGenerator[tuple[Memory, Any]]:
    wire: Any = Wire()
    async with open_memory_store(folder, lambda: NOW_MS) as rows:
        memory = Memory(
            ADMIN,
            ADMIN_CHAIN,
            MESH,
            wire,
            rows,
            Standing(MESH),
            now_ms=lambda: NOW_MS,
            draw=lambda size: b"\x07" * size,
            random=Random(1),
        )
        yield memory, wire


async def test_the_books_go_first_to_whom_showed_others_than_are_held_when_its_link_opens(
    tmp_path: Path,
) -> None:
    async with admins_memory(tmp_path) as (memory, wire):
        before = memory.books_digest()
        await memory.write_records([Record(MEMBERS, "me", member_record(ADMIN_CHAIN))])
        after = memory.books_digest()
        shown = {key(1).peer_id: before, key(2).peer_id: after}
        memory.books_shown = lambda peer: shown.get(peer, b"")
        first: dict[PeerId, bool] = {}
        for keypair in map(key, (1, 2, 3)):
            wire.link(keypair)
            neighbour = memory.spreading.neighbour(keypair.peer_id)
            assert neighbour is not None
            first[keypair.peer_id] = neighbour.books_come_first

    assert list(first.values()) == [True, False, True]
    assert before != after
    async with admins_memory(tmp_path) as (memory, _):
        assert memory.books_digest() == after, "it is the same after a restart"


async def test_two_daemons_that_meet_again_have_shown_each_other_the_same_books() -> None:
    async with devices("plant-7", "plant-3") as (founder, member), trio.open_nursery() as nursery:
        alice = await founder.start(nursery)
        await member.join(alice)
        bob = await member.start(nursery)
        await until(
            lambda: alice.memory.books_digest() == bob.memory.books_digest() and linked(bob)
        )
        await member.stop()
        await until(lambda: not linked(alice))

        bob = await member.start(nursery)
        await until(lambda: linked(alice) and linked(bob))

        for daemon, other in ((alice, member), (bob, founder)):
            assert daemon.memory.books_shown(PeerId(other.id)) == daemon.memory.books_digest()
            neighbour = daemon.memory.spreading.neighbour(PeerId(other.id))
            assert neighbour is not None
            assert not neighbour.books_come_first
        await founder.stop()
        await member.stop()
