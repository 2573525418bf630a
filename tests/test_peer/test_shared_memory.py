"""What does the shared memory answer while others write, lie, come and go? In this very process.

Memory, store, index and spreading are real; a link is a queue.
"""

import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio
from test_gossip.members import MESH, NOW_MS, chain_of
from test_gossip.memory_entries import ALICE, BOB
from trio.testing import MockClock, wait_all_tasks_blocked

from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import Header, NamespaceId, digest_of, sign_entry
from covey.gossip.memory.kinds import Lifetime, Type, kind_of
from covey.gossip.memory.messages import Compare, Item, decode_message
from covey.gossip.memory.namespace import named_by_user
from covey.gossip.memory.paths import path_of
from covey.gossip.memory.payload import SALT_BYTES, Payload, encode_payload
from covey.gossip.memory.replica import Quotas, Replica
from covey.gossip.memory.standing import Standing, certificate_id
from covey.gossip.memory.tables import Table, Tables
from covey.gossip.network import (
    LinkDown,
    LinkHandler,
    LinkInfo,
    LinkUp,
    MessageHandler,
    RequestHandler,
    Traffic,
)
from covey.identity.certificate import member_of
from covey.identity.errors import Misuse, Unavailable
from covey.identity.keys import Keypair, PeerId
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings
from covey.peer.environment import open_environment
from covey.peer.events import Changed
from covey.peer.memory import erasing
from covey.peer.memory.auditing import LOOK_S
from covey.peer.memory.exchanging import PAUSE_S
from covey.peer.memory.indexing import Indexer
from covey.peer.memory.shared import SharedMemory
from covey.peer.memory.store import MemoryStore
from covey.peer.memory.surroundings import Surroundings
from covey.peer.memory.views import (
    EntryView,
    ForgetRequest,
    ForgetView,
    SourceView,
    SyncRequest,
    WriteRequest,
)
from covey.peer.schema import MEMORY_MIGRATIONS

PUMPS = named_by_user(MESH, "mesh", "plant/pumps")
WITHIN_S = 20.0


class Wire:
    """The links of one peer: what is said goes into the other's queue."""

    def __init__(self, me: PeerId, nursery: trio.Nursery) -> None:
        self.me = me
        self._nursery = nursery
        self._linked: dict[PeerId, Wire] = {}
        self._queue, self._said = trio.open_memory_channel[tuple[PeerId, str, bytes]](1000)
        self._handlers: dict[str, MessageHandler] = {}
        self._link_handlers: list[LinkHandler] = []
        self.salted = trio.Event()
        """An audit was heard of."""

    def link(self, keypair: Keypair, other: "Wire | None" = None) -> None:
        """Link a peer; without `other` one that never says anything."""
        peer = keypair.peer_id
        if other is not None:
            self._linked[peer] = other
            self._nursery.start_soon(self._hear)
        member = member_of(chain_of(keypair), mesh=MESH, subject=peer)
        for handler in self._link_handlers:
            handler(LinkUp(peer, member))

    def unlink(self, peer: PeerId) -> None:
        for handler in self._link_handlers:
            handler(LinkDown(peer, "it is gone"))

    async def _hear(self) -> None:
        async for sender, channel, body in self._said:
            message = decode_message(body)
            if isinstance(message, Compare) and message.salt:
                self.salted.set()
            self._handlers[channel](sender, body)

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        if to in self._linked:
            try:
                self._linked[to]._queue.send_nowait((self.me, channel, body))
            except trio.WouldBlock:
                return False
        return True

    async def request(
        self, to: PeerId, channel: str, body: bytes, *, timeout_s: float, payload: bool = False
    ) -> bytes:
        raise AssertionError("the memory asks nothing so")

    def links(self) -> Mapping[PeerId, LinkInfo]:
        return {}

    def on_message(self, channel: str, handler: MessageHandler) -> None:
        self._handlers[channel] = handler

    def on_request(self, channel: str, handler: RequestHandler) -> None:
        raise AssertionError("the memory answers nothing so")

    def on_link(self, handler: LinkHandler) -> None:
        self._link_handlers.append(handler)

    def traffic(self) -> Traffic:
        return Traffic()


class Gated(MemoryStore):
    """A store whose file is written anew only while a test lets it."""

    began = 0
    ended = 0

    def hold(self) -> trio.Event:
        self._gate = trio.Event()
        return self._gate

    async def compact(self) -> None:
        self.began += 1
        if (gate := getattr(self, "_gate", None)) is not None:
            await gate.wait()
        await super().compact()
        self.ended += 1


@dataclass
class Device:
    """One peer's memory."""

    wire: Wire
    rows: Gated
    pool: Pool
    memory: Memory
    index: Indexer
    shared: SharedMemory
    told: list[Changed]

    async def write(self, *values: Any, **fields: Any) -> list[EntryView]:
        return await self.shared.write([request(value, **fields) for value in values])

    def shown(self) -> list[object]:
        return [one.value for one in self.shared.entries(PUMPS.name, None, None, 100, False)]

    def items(self) -> list[Item]:
        with self.rows.reading() as rows:
            return [
                Item(data, rows.get(Table.PAYLOAD, place))
                for place, data in rows.scan(Table.ENTRY, PUMPS.id)
            ]


def request(value: Any = None, **fields: Any) -> WriteRequest:
    asked: dict[str, Any] = {"namespace": PUMPS.name, "value": value, **fields}
    return WriteRequest(**asked)


@asynccontextmanager
async def device(path: Path, keypair: Keypair, *others: Keypair) -> AsyncGenerator[Device]:
    """Run the memory of one peer, which knows of these other members."""
    standing, told = Standing(MESH), list[Changed]()
    for one in others:
        standing.learn(chain_of(one))
    draw = random.Random(path.name).randbytes

    def now_ms() -> int:
        return NOW_MS + 60_000

    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(
            open_environment(path, Table, MEMORY_MIGRATIONS, map_bytes=1 << 30)
        )
        rows = Gated(environment, {}, now_ms, lambda _: Quotas())
        pool = await stack.enter_async_context(open_pool(PoolSettings()))
        nursery = await stack.enter_async_context(trio.open_nursery())
        wire = Wire(keypair.peer_id, nursery)
        memory = Memory(
            keypair,
            chain_of(keypair),
            MESH,
            wire,
            rows,
            standing,
            now_ms=now_ms,
            draw=draw,
            random=random.Random(1),
        )

        def is_searched(namespace: NamespaceId) -> bool:
            return memory.namespace(namespace) is not None

        async def summarize(text: str) -> tuple[str, str]:
            return text[:9], "a model"

        index = Indexer(rows, pool, now_ms, is_searched)
        parts = Surroundings(
            me=keypair.peer_id,
            is_admin=False,
            zones=frozenset(),
            now_ms=now_ms,
            draw=draw,
            name_of=str,
            find_peer=PeerId,
            known_peers=lambda: [one.peer_id for one in others],
            clock_trouble=lambda: None,
            summarize=summarize,
            tell=told.append,
        )
        shared = SharedMemory(parts, memory, rows, index)
        await nursery.start(memory.serve)
        nursery.start_soon(shared.serve)
        yield Device(wire, rows, pool, memory, index, shared, told)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncGenerator[Device]:
    async with device(tmp_path / "alice", ALICE, BOB) as alice:
        yield alice


def by_bob(payload: bytes, *, at_ms: int = NOW_MS) -> Item:
    """Return a register's entry of that payload, signed by a member."""
    path = path_of(PUMPS.id, "limit")
    header = Header(
        version=1,
        namespace=PUMPS.id,
        author=BOB.public_key,
        clock=at_ms << 16,
        expires_s=(at_ms + Lifetime.NORMAL.ms) // 1000,
        kind=kind_of(Type.REGISTER, Lifetime.NORMAL),
        parent=path.parent,
        key=path.key,
        seen=(),
        payload_digest=digest_of(payload),
        payload_bytes=len(payload),
        certificate=certificate_id(chain_of(BOB)[-1]),
    )
    return Item(sign_entry(header, mesh=MESH, keypair=BOB).data, payload)


def says(value: str) -> bytes:
    return encode_payload(Payload(1, bytes(SALT_BYTES), "limit", value))


# What others write


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(says("[" * depth + "]" * depth), id=f"nested {depth} deep")
        for depth in (33, 940, 955, 970, 985, 2000)
    ]
    + [pytest.param(b"\xff no payload", id="no payload"), pytest.param(says("{"), id="no JSON")],
)
async def test_what_a_member_has_crafted_is_not_shown_and_harms_nobody(
    alice: Device, payload: bytes
) -> None:
    taken, refused = await alice.memory.take_in(PUMPS, [by_bob(payload)])
    assert (taken, refused) == (1, [])

    (crafted,) = alice.shared.entries(PUMPS.name, None, None, 10, True)
    assert (crafted.state, crafted.value) == ("not of this version", None)
    (told,) = alice.told
    assert alice.shared.change(told).added == ()
    await alice.write("it leaks")
    assert alice.shown() == ["it leaks"]
    recalled = await alice.shared.recall("leaks", 5, None, None)
    assert [hit.entry.value for hit in recalled.hits] == ["it leaks"]


async def test_a_damaged_entry_hides_no_other_from_recall_and_from_who_watches(
    alice: Device,
) -> None:
    (one, other) = await alice.write("it leaks", "it leaks again")
    await alice.index.wait_settled(within_s=WITHIN_S)
    (told,) = alice.told
    place = next(place for place in told.shown if place.hex().endswith(one.id))

    def damage(_: Replica, tables: Tables) -> None:
        tables.put(Table.ENTRY, place, b"\xff")

    await alice.rows.run(damage)

    assert [entry.id for entry in alice.shared.change(told).added] == [other.id]
    index = Indexer(alice.rows, alice.pool, lambda: NOW_MS, lambda _: True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(index.serve)
        with trio.fail_after(WITHIN_S):
            while index.building:  # noqa: ASYNC110  (it tells nobody)
                await trio.sleep(0.01)
        assert index.size == 1
        nursery.cancel_scope.cancel()


# What is written


async def test_each_request_is_answered_with_the_entry_that_says_it(alice: Device) -> None:
    (peak,) = await alice.write("9", type="maximum", key="peak")
    (again,) = await alice.write("9.0", type="maximum", key="peak")
    assert again == peak
    low, same, lower = await alice.write("5", "5", "3", type="minimum", key="floor")
    assert (low.state, low.value) == ("superseded", None), "it was written over in the same breath"
    assert same == lower, "what stands says as much"
    assert (lower.state, lower.value) == ("shown", 3)


async def test_what_is_nested_too_deeply_is_refused_in_words(alice: Device) -> None:
    value: Any = 1
    for _ in range(32):
        value = [value]
    with pytest.raises(Misuse, match="at most 32 levels"):
        await alice.write([value], type="register", key="k")
    (held,) = await alice.write(value, type="register", key="k")
    assert held.value == value


async def test_a_note_is_renewed_as_it_is_or_with_another_text(alice: Device) -> None:
    sources = (SourceView(name="observations.csv", observations=14),)
    (finding,) = await alice.write("it shook for two days")
    made_from: Any = {"sources": sources, "derived_from": (finding.id,), "ttl_s": 3600}
    (old,) = await alice.write("it will leak", **made_from)
    await alice.shared.forget(ForgetRequest(ids=(finding.id,)))

    (new,) = await alice.write(None, renews=old.id[:12])

    assert new.id != old.id
    assert new.expires_ms > old.expires_ms
    kept = (old.value, old.sources, old.derived_from)
    assert (new.value, new.sources, new.derived_from) == kept
    assert alice.shown() == ["it will leak"]
    (other,) = await alice.write("it leaks", renews=new.id)
    assert (other.value, other.sources) == ("it leaks", ())
    assert alice.shown() == ["it leaks"]


async def test_what_cannot_be_renewed_is_refused_in_words(alice: Device) -> None:
    (one,) = await alice.write("it leaks")
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"namespace": "plant/valves"}, "is in plant/pumps, zone mesh"),
        ({"type": "register", "key": "k", "value": 1}, "only notes"),
        ({"summarize": True}, "only the text of a note"),
    )
    for fields, why in wrong:
        with pytest.raises(Misuse, match=why):
            await alice.shared.write([request(**{"renews": one.id} | fields)])
    await alice.shared.forget(ForgetRequest(ids=(one.id,)))
    with pytest.raises(Misuse, match="is forgotten, and cannot be said again"):
        await alice.write(None, renews=one.id)


# What is told


async def test_what_is_kept_for_who_watches_holds_no_text_and_tells_none_that_is_gone(
    alice: Device,
) -> None:
    (one, other) = await alice.write("gone tomorrow", "here to stay")
    assert [entry.value for entry in alice.shared.change(alice.told[0]).added] == [
        "gone tomorrow",
        "here to stay",
    ]

    await alice.shared.forget(ForgetRequest(ids=(one.id,)))

    changes = [alice.shared.change(told) for told in alice.told]
    assert [entry.id for entry in changes[0].added] == [other.id]
    assert [gone for change in changes for gone in change.gone] == [one.id]
    assert "tomorrow" not in repr(alice.told)


async def test_many_changes_at_once_are_told_in_parts_and_none_is_left_out(
    alice: Device, tmp_path: Path
) -> None:
    for start in (0, 100, 200):
        await alice.write(*map(str, range(start, start + 100)))
    async with device(tmp_path / "bob", BOB, ALICE) as bob:
        await bob.memory.take_in(PUMPS, alice.items()[:250])

        assert [len(told.shown) for told in bob.told] == [100, 100, 50]
        heard = [one.value for told in bob.told for one in bob.shared.change(told).added]
        assert heard == [str(number) for number in range(250)]


# Forgetting


async def test_those_who_forget_at_one_time_are_all_told_when_it_is_erased(alice: Device) -> None:
    names = [one.id for one in await alice.write("a", "b", "c")]
    done = list[ForgetView]()

    async def forget(name: str) -> None:
        done.append(await alice.shared.forget(ForgetRequest(ids=(name,))))

    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(forget, name)

    assert [(one.forgotten, one.erased) for one in done] == [(1, True)] * 3
    assert alice.rows.ended == 1


async def test_erased_is_said_only_once_the_file_was_written_after_the_forgetting(
    alice: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erasing, "PAUSE_FACTOR", 0)
    one, other = await alice.write("a", "b")
    gate = alice.rows.hold()
    done = dict[str, tuple[ForgetView, int]]()

    async def forget(name: str) -> None:
        view = await alice.shared.forget(ForgetRequest(ids=(name,)))
        done[name] = (view, alice.rows.ended)

    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(forget, one.id)
            while not alice.rows.began:  # noqa: ASYNC110  (it tells nobody)
                await trio.sleep(0.01)
            nursery.start_soon(forget, other.id)
            while alice.shown():  # noqa: ASYNC110  (it tells nobody)
                await trio.sleep(0.01)
            gate.set()

    assert done[one.id][0].erased
    assert done[other.id][0].erased
    assert done[other.id][1] == 2


async def test_what_others_write_meanwhile_does_not_count_as_not_forgotten(alice: Device) -> None:
    names = [one.id for one in await alice.write("a", "b")]

    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(alice.write, f"text {number}")
        done = await alice.shared.forget(ForgetRequest(ids=tuple(names)))

    assert (done.forgotten, len(done.records)) == (2, 1)


# Others


async def test_all_who_wait_for_a_comparison_are_woken_when_it_ends(alice: Device) -> None:
    alice.wire.link(BOB)
    ended = list[int]()

    async def sync(number: int) -> None:
        await alice.shared.sync(SyncRequest(peer=BOB.peer_id, timeout_s=600))
        ended.append(number)

    with trio.fail_after(WITHIN_S):
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(sync, number)
            await wait_all_tasks_blocked()
            assert ended == []
            alice.wire.unlink(BOB.peer_id)

    assert sorted(ended) == [0, 1, 2]


@asynccontextmanager
async def linked(path: Path) -> AsyncGenerator[tuple[Device, Device]]:
    """Two devices that are linked, and hold the same."""
    async with device(path / "alice", ALICE, BOB) as alice, device(path / "bob", BOB, ALICE) as bob:
        await alice.write("it leaks")
        await bob.memory.take_in(PUMPS, alice.items())
        alice.wire.link(BOB, bob.wire)
        bob.wire.link(ALICE, alice.wire)
        yield alice, bob


async def test_a_linked_peer_that_is_in_step_is_audited_without_a_hand(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with linked(tmp_path) as (alice, bob):
        with trio.fail_after(3 * LOOK_S):
            await bob.wire.salted.wait()
            await alice.wire.salted.wait()


async def test_a_second_audit_waits_until_the_other_side_would_answer_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with linked(tmp_path) as (alice, _):
        audit = SyncRequest(peer=BOB.peer_id, timeout_s=60, audit=True)

        for _ in range(2):
            (ended,) = await alice.shared.sync(audit)
            assert ended.step.state == "in step"
            with pytest.raises(Unavailable, match=r"was audited \d+ s ago.*try again in \d+ s"):
                await alice.shared.sync(audit)
            (plain,) = await alice.shared.sync(SyncRequest(peer=BOB.peer_id, timeout_s=60))
            assert plain.step.state == "in step"
            await trio.sleep(PAUSE_S)
