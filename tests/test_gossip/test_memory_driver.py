"""What does the driver of the memory tell `Spreading` of its rows, and of whom it meets?"""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from test_gossip.members import ADMIN, ADMIN_CHAIN, ROOT, chain_of, key
from test_gossip.memory_entries import ALICE, BOB, MESH, NOW_MS, note
from test_peer.near_daemons import devices, linked, until

from covey.gossip.memory.books import Record, compose, member_record, membership
from covey.gossip.memory.commands import Forget, Note
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import Key
from covey.gossip.memory.held_rows import HeldRows
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.kinds import DAY_MS
from covey.gossip.memory.messages import Item
from covey.gossip.memory.namespace import MEMBERS, NAMESPACES, Namespace, namespace_of
from covey.gossip.memory.payload import SALT_BYTES
from covey.gossip.memory.policies import Policies, Policy, Writers, policy_record
from covey.gossip.memory.replica import Arrival
from covey.gossip.memory.standing import Standing, certificate_id
from covey.gossip.memory.summary import END, Summary
from covey.gossip.memory.tables import Reading
from covey.gossip.network import LinkDown, LinkUp
from covey.identity.certificate import Chain, issue, member_of
from covey.identity.errors import NotAdmitted, Unavailable
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


class Disk:
    """A store that may fail to read."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self.broken = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def reading(self) -> AbstractContextManager[Reading]:
        if self.broken:
            raise Unavailable("the disk is failing")
        reading: AbstractContextManager[Reading] = self._rows.reading()
        return reading


@asynccontextmanager
async def memory_of(
    keypair: Keypair, chain: Chain, folder: Path, *, now_ms: int = NOW_MS
) -> AsyncGenerator[tuple[Memory, Any, Disk]]:
    wire: Any = Wire()
    policies = Policies(MESH)
    async with open_memory_store(folder, lambda: now_ms, quotas=policies.quotas) as rows:
        disk: Any = Disk(rows)
        memory = Memory(
            keypair,
            chain,
            MESH,
            wire,
            disk,
            Standing(MESH),
            now_ms=lambda: now_ms,
            draw=lambda size: b"\x07" * size,
            random=Random(1),
            policies=policies,
        )
        for one in (BOB_CHAIN, EASTS_CHAIN):
            memory.standing.learn(one)
        yield memory, wire, disk


@asynccontextmanager
async def admins_memory(folder: Path) -> AsyncGenerator[tuple[Memory, Any]]:
    async with memory_of(ADMIN, ADMIN_CHAIN, folder) as (memory, wire, _):
        yield memory, wire


@asynccontextmanager
async def serving(memory: Memory) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(memory.serve)
        yield
        nursery.cancel_scope.cancel()


async def test_two_certificates_of_one_member_on_one_day_are_both_kept(tmp_path: Path) -> None:
    async with admins_memory(tmp_path) as (memory, _):
        wider = chain_of(BOB, zones=("east",))
        await memory.write_records([membership(BOB.peer_id, BOB_CHAIN)])
        await memory.write_records([membership(BOB.peer_id, wider)])
        held = {member_record(BOB_CHAIN), member_record(wider)}
        assert held <= set(memory.records(MEMBERS)), "something may stand under either"


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


# Policies

BOB_CHAIN = chain_of(BOB)
EASTS = key(9)
"""An admin who is in zone east."""
EASTS_CHAIN: Chain = (
    issue(ROOT, EASTS.peer_id, mesh=MESH, role="admin", now_ms=NOW_MS, zones=("east",)),
)
ADMINS_ALONE = Policy(PUMPS.name, Writers(roles=("admin",)))


def bobs(text: str, *, after_ms: int) -> Arrival:
    certificate = certificate_id(BOB_CHAIN[-1])
    return note(BOB, text, namespace=PUMPS.id, at_ms=NOW_MS + after_ms, certificate=certificate)


def item_of(arrival: Arrival) -> Item:
    return Item(arrival.entry.data, arrival.payload)


def held(disk: Disk, namespace: Namespace = PUMPS) -> set[Key]:
    summary = disk.summaries.get(namespace.id, Summary())
    return set(summary.keys(b"", END))


async def state(memory: Memory, policy: Policy, zone: str = "mesh") -> None:
    await memory.write_records([policy_record(zone, policy)])


async def test_a_policy_takes_out_what_was_written_after_it_and_is_no_more_allowed(
    tmp_path: Path,
) -> None:
    before, after = bobs("before", after_ms=-1_000), bobs("after", after_ms=1_000)
    async with memory_of(ADMIN, ADMIN_CHAIN, tmp_path) as (memory, _, disk), serving(memory):
        assert await memory.take_in(PUMPS, map(item_of, (before, after))) == (2, [])

        await memory.take_in(POLICIES, [item_of(said_at(ADMINS_ALONE, NOW_MS))])
        await until(lambda: held(disk) == {before.entry.key})

        new, ((_, why),) = await memory.take_in(PUMPS, [item_of(after)])
        assert new == 0
        assert why.startswith("its author may not write in plant/pumps")
        opened = said_at(Policy(PUMPS.name), NOW_MS + 500)
        await memory.take_in(POLICIES, [item_of(opened)])
        assert await memory.take_in(PUMPS, [item_of(after)]) == (1, [])
        assert held(disk) == {before.entry.key, after.entry.key}


async def test_when_a_policy_is_replaced_an_older_one_may_judge_anew(tmp_path: Path) -> None:
    late = bobs("late", after_ms=DAY_MS + 2_000)
    yesterday = said_at(ADMINS_ALONE, NOW_MS)
    opened = said_at(Policy(PUMPS.name), NOW_MS + DAY_MS + 1_000)
    closed_again = said_at(Policy(PUMPS.name, entries=9), NOW_MS + DAY_MS + 3_000)
    at = memory_of(ADMIN, ADMIN_CHAIN, tmp_path, now_ms=NOW_MS + DAY_MS)
    async with at as (memory, _, disk), serving(memory):
        await memory.take_in(POLICIES, map(item_of, (yesterday, opened)))
        assert await memory.take_in(PUMPS, [item_of(late)]) == (1, [])

        await memory.take_in(POLICIES, [item_of(closed_again)])

        await until(lambda: held(disk) == set())


async def test_a_smaller_quota_leaves_each_authors_newest_entries(tmp_path: Path) -> None:
    notes = [bobs(f"note {at}", after_ms=at) for at in range(5)]
    async with memory_of(ADMIN, ADMIN_CHAIN, tmp_path) as (memory, _, disk), serving(memory):
        await memory.take_in(PUMPS, map(item_of, notes))

        await state(memory, Policy(PUMPS.name, entries=2))

        await until(lambda: held(disk) == {one.entry.key for one in notes[3:]})
        assert (await memory.take_in(PUMPS, [item_of(notes[0])]))[0] == 0
        assert held(disk) == {one.entry.key for one in notes[3:]}


async def test_what_a_crash_left_undone_is_done_at_the_next_start(tmp_path: Path) -> None:
    after, later = bobs("after", after_ms=1_000), bobs("later", after_ms=2_000)
    async with memory_of(ADMIN, ADMIN_CHAIN, tmp_path) as (
        memory,
        _,
        disk,
    ):  # not served: nothing follows
        await memory.take_in(PUMPS, map(item_of, (after, later)))
        await memory.take_in(POLICIES, [item_of(said_at(ADMINS_ALONE, NOW_MS))])
        assert held(disk) == {after.entry.key, later.entry.key}

    async with memory_of(ADMIN, ADMIN_CHAIN, tmp_path) as (memory, _, disk), serving(memory):
        await until(lambda: held(disk) == set())


async def test_this_devices_own_writes_follow_the_policy_or_are_refused_with_the_remedy(
    tmp_path: Path,
) -> None:
    async with memory_of(BOB, BOB_CHAIN, tmp_path) as (memory, _, disk), serving(memory):
        stated = said_at(Policy(PUMPS.name, ttl_s=3_600), NOW_MS - 1_000)
        await memory.take_in(POLICIES, [item_of(stated)])
        written = await memory.write(PUMPS, [Note("P-12 vibrates")])
        ((entry,),) = written.entries
        assert entry.header.expires_s == NOW_MS // 1000 + 3_600
        await memory.write(PUMPS, [Forget((entry.id,), "wrong")])
        with pytest.raises(
            NotAdmitted, match=r"ends after 3600 s at the latest.*give it a ttl of no more"
        ):
            await memory.write(PUMPS, [Note("P-13 vibrates")], ttl_ms=3_601_000)

        await memory.take_in(POLICIES, [item_of(said_at(ADMINS_ALONE, NOW_MS))])
        with pytest.raises(
            NotAdmitted, match="this device may not write in plant/pumps, by the policy"
        ):
            await memory.write(PUMPS, [Note("P-14 vibrates")])
        assert len(held(disk)) == 2


async def test_a_policy_of_another_zone_is_an_admins_of_that_zone(tmp_path: Path) -> None:
    book = namespace_of(MESH, "east", NAMESPACES)
    east = namespace_of(MESH, "east", PUMPS.name)
    theirs = said_at(ADMINS_ALONE, NOW_MS, zone="east", by=EASTS, chain=EASTS_CHAIN)
    outside = said_at(ADMINS_ALONE, NOW_MS, zone="east")
    async with admins_memory(tmp_path) as (memory, _):
        new, refused = await memory.take_in(book, map(item_of, (theirs, outside)))

        assert new == 1
        assert [why for _, why in refused] == ["its author is not in zone east"]
        newest = memory.policies.newest(east.id)
        assert newest is not None
        assert newest.by == EASTS.peer_id
        assert memory.policies.newest(PUMPS.id) is None


async def test_a_book_of_a_later_version_is_kept_if_an_admin_wrote_it(tmp_path: Path) -> None:
    later = namespace_of(MESH, "mesh", "_mesh/later")
    record = Record(later.name, "a key", b"whatever")
    clock = NOW_MS << COUNTER_BITS
    admins, members = (
        compose(author, MESH, later, chain, clock, bytes(SALT_BYTES), record)
        for author, chain in ((ADMIN, ADMIN_CHAIN), (BOB, BOB_CHAIN))
    )
    async with memory_of(BOB, BOB_CHAIN, tmp_path) as (memory, _, disk):
        before = memory.books_digest()
        new, refused = await memory.take_in(later, map(item_of, (admins, members)))

        assert (new, [why for _, why in refused]) == (1, ["only admins write in the books"])
        assert held(disk, later) == {admins.entry.key}
        assert memory.books_digest() != before


async def test_a_book_that_the_disk_does_not_give_is_read_with_the_next_that_comes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with memory_of(ADMIN, ADMIN_CHAIN, tmp_path) as (memory, _, disk), serving(memory):
        disk.broken = True
        await state(memory, ADMINS_ALONE)
        assert memory.policies.newest(PUMPS.id) is None
        (said,) = [one for one in caplog.records if one.message == "memory.books_put_off"]
        assert "start covey again" in said.__dict__["why"]

        disk.broken = False
        await memory.write(PUMPS, [Note("P-12 vibrates")])

        assert memory.policies.newest(PUMPS.id) is not None


POLICIES = namespace_of(MESH, "mesh", NAMESPACES)


def said_at(
    policy: Policy,
    at_ms: int,
    *,
    zone: str = "mesh",
    by: Keypair = ADMIN,
    chain: Chain = ADMIN_CHAIN,
) -> Arrival:
    """Return a policy as somebody states it at a time."""
    book = namespace_of(MESH, zone, NAMESPACES)
    record = policy_record(zone, policy)
    return compose(by, MESH, book, chain, at_ms << COUNTER_BITS, bytes(SALT_BYTES), record)
