"""What a peer offers reaches the others as an entry of the shared memory, and counts as long as it does."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import trio
from test_gossip.members import ADMIN, ADMIN_CHAIN, MESH, NOW_MS, directory_of, told_by
from test_peer.near_daemons import DAY_MS, Device, devices, linked, until

from covey.gossip.advert import adverts_of
from covey.gossip.memory.books import Record
from covey.identity.certificate import member_of
from covey.identity.errors import CoveyError, Malformed, Misuse, NotAdmitted, Unavailable
from covey.identity.keys import PeerId
from covey.peer.adverts import RETRY_S, Adverts, Surroundings
from covey.peer.daemon import Daemon
from covey.peer.member_views import AdmitRequest, RevokeRequest

pytestmark = pytest.mark.end_to_end


def known(daemon: Daemon) -> set[str]:
    return {one.name for one in daemon.service.peers()}


async def test_what_a_peer_offers_is_known_in_the_third_hand_and_after_a_restart(
    nursery: trio.Nursery,
) -> None:
    async with devices("alice", "bob", "carol") as (alice, bob, carol):
        admin = await alice.start(nursery)
        await bob.join(admin)
        await carol.join(admin)
        await bob.start(nursery)
        await until(lambda: known(admin) == {"alice", "bob"})
        await bob.stop()

        other = await carol.start(nursery)
        await until(lambda: known(other) == {"alice", "bob", "carol"})
        assert linked(other) == {"alice"}
        offered = {one.name: one.skills for one in other.service.peers()}
        assert offered["bob"] == ("covey.echo",)

        await alice.stop()
        await carol.stop()
        again = await carol.start(nursery)
        assert known(again) == {"alice", "bob", "carol"}
        assert len(held(again, carol)) == 3, "of each author one, however often it started"


async def test_an_advert_counts_again_once_its_author_does(nursery: trio.Nursery) -> None:
    async with devices("alice", "bob") as (alice, bob):
        admin = await alice.start(nursery)
        await bob.join(admin)
        await bob.start(nursery)
        await until(lambda: known(admin) == {"alice", "bob"})
        await bob.stop()

        await admin.service.members.revoke("bob", RevokeRequest())
        await until(lambda: known(admin) == {"alice"})

        await admin.service.members.admit(bob.id, AdmitRequest())
        await until(lambda: known(admin) == {"alice", "bob"})


async def test_with_a_wrong_clock_nothing_is_signed_and_later_it_is(nursery: trio.Nursery) -> None:
    async with devices("alice", "bob") as (alice, bob):
        await bob.join(await alice.start(nursery))
        await alice.stop()
        bob.clock.off_ms = -2 * DAY_MS
        member = await bob.start(nursery)
        await until(lambda: member.adverts.trouble is not None)
        assert "the clock is wrong" in (member.adverts.trouble or "")
        assert PeerId(bob.id) not in held(member, bob)
        assert "bob" in known(member), "it works on alone"

        bob.clock.off_ms = 0
        member.adverts.announce()

        await until(lambda: member.adverts.trouble is None)
        assert PeerId(bob.id) in held(member, bob)


def held(daemon: Daemon, device: Device) -> list[PeerId]:
    """Whose adverts a daemon's shared memory holds."""
    namespace = adverts_of(device.home.mesh().id)
    entries = daemon.service.memory.entries(namespace.name, None, None, 10, all_states=True)
    return [PeerId(one.author) for one in entries]


class Refusing:
    """A shared memory that is empty and takes nothing, and its rows."""

    mesh = MESH

    def __init__(self, error: CoveyError) -> None:
        self.error = error
        self.asked = 0

    def on_applied(self, _watcher: object) -> None:
        pass

    def reading(self) -> AbstractContextManager["Refusing"]:
        return nullcontext(self)

    def scan(self, _table: object, _prefix: bytes) -> list[tuple[bytes, bytes]]:
        return []

    async def write_records(self, _records: list[Record]) -> None:
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "asked"),
    [
        (Unavailable("the disk is full"), 10),
        (Misuse("something newer stands in its place; try again"), 10),
        (Malformed("5000 bytes, over the limit of 4096"), 1),
        (NotAdmitted("over-limit", "an advert lists at most 64 of a kind"), 1),
    ],
    ids=lambda it: type(it).__name__ if isinstance(it, CoveyError) else str(it),
)
async def test_only_what_time_may_mend_is_tried_again_before_there_is_another_advert(
    error: CoveyError, asked: int, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    memory: Any = Refusing(error)
    adverts = Adverts(
        Surroundings(
            memory=memory,
            rows=memory,
            directory=directory_of(ADMIN),
            now_ms=lambda: NOW_MS,
            me=lambda: member_of(ADMIN_CHAIN, mesh=MESH, subject=ADMIN.peer_id),
            describe=lambda: told_by(ADMIN).advert,
            clock_trouble=lambda: None,
            changed=lambda _: None,
            announced=lambda _advert, _item: None,
        )
    )
    await nursery.start(adverts.serve)
    adverts.announce()
    await trio.sleep(9.5 * RETRY_S)
    assert (adverts.trouble, memory.asked) == (str(error), asked)

    adverts.announce()
    await trio.testing.wait_all_tasks_blocked()
    assert memory.asked == asked + 1, "there is another one"
