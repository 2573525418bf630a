"""What an admin says of a namespace holds on every device, whether it was there or away."""

import pytest
import trio
from test_peer.near_daemons import devices, linked, until

from covey.identity.errors import Misuse, NotAdmitted, NotFound
from covey.peer.daemon import Daemon
from covey.peer.memory.views import PolicyRequest, WriteRequest

pytestmark = pytest.mark.end_to_end
PUMPS = "plant/pumps"


async def remember(daemon: Daemon, *texts: str, zone: str = "mesh") -> None:
    for text in texts:
        await daemon.service.memory.write([WriteRequest(namespace=PUMPS, zone=zone, value=text)])


def remembered(daemon: Daemon, zone: str = "mesh") -> set[str]:
    return {
        one.value for one in daemon.service.memory.entries(PUMPS, zone, None, 100, all_states=False)
    }


async def state(
    daemon: Daemon, *writers: str, zone: str = "mesh", entries: int | None = None
) -> None:
    request = PolicyRequest(namespace=PUMPS, zone=zone, writers=writers or None, entries=entries)
    await daemon.service.memory.state_policy(request)


async def test_a_policy_made_while_a_device_was_away_holds_on_both_once_they_meet(
    nursery: trio.Nursery,
) -> None:
    async with devices("gateway", "line-1") as (gateway, line):
        admin = await gateway.start(nursery)
        await line.join(admin)
        member = await line.start(nursery)
        await remember(member, "before")
        await until(lambda: remembered(admin) == {"before"})
        await gateway.stop()
        await until(lambda: not linked(member))
        await remember(member, "before the policy, unheard")
        await line.stop()
        admin = await gateway.start(nursery)
        await remember(admin, *(f"note {number}" for number in range(4)))
        await state(admin, "admin", entries=2)
        await until(lambda: remembered(admin) == {"before", "note 2", "note 3"})
        await gateway.stop()
        member = await line.start(nursery)
        await remember(member, "after the policy, unheard")

        admin = await gateway.start(nursery)

        both = {"before", "before the policy, unheard", "note 2", "note 3"}
        await until(lambda: remembered(admin) == remembered(member) == both)
        await until(lambda: in_step(admin) and in_step(member))
        with pytest.raises(
            NotAdmitted, match="this device may not write in plant/pumps, by the policy there since"
        ):
            await remember(member, "too late")
        await state(admin, "admin", "peer:line-1")
        await until(lambda: "line-1" in str(member.service.memory.policy(PUMPS, "mesh")))
        await remember(member, "let in")
        await until(lambda: "let in" in remembered(admin))
        assert (await admin.service.memory.verify()).problems == ()


async def test_a_zones_policy_goes_to_its_members_and_no_name_of_it_to_others(
    nursery: trio.Nursery,
) -> None:
    async with devices("gateway", "line-1", "line-2", zones=("east",)) as (gateway, *lines):
        admin = await gateway.start(nursery)
        zones = [("east",), ()]
        members: list[Daemon] = []
        for line, of in zip(lines, zones, strict=True):
            await line.join(admin, zones=of)
            members.append(await line.start(nursery))
        inside, outside = members
        await remember(inside, "in the east", zone="east")

        await state(admin, "admin", zone="east", entries=9)

        await until(lambda: inside.service.memory.policy(PUMPS, "east").entries == 9)
        await until(lambda: linked(outside) and in_step(outside))
        assert {one.zone for one in outside.memory.namespaces()} == {"mesh"}
        with pytest.raises(Misuse, match="not in zone 'east'"):
            outside.service.memory.policy(PUMPS, "east")
        with pytest.raises(NotAdmitted, match="this device may not write in"):
            await remember(inside, "more", zone="east")


def in_step(daemon: Daemon) -> bool:
    neighbours = daemon.memory.spreading.neighbours()
    return bool(neighbours) and all(one.state == "in step" for one in neighbours)


async def test_who_is_no_admin_and_what_cannot_be_said_is_refused(nursery: trio.Nursery) -> None:
    async with devices("gateway", "line-1") as (gateway, line):
        admin = await gateway.start(nursery)
        await line.join(admin)
        member = await line.start(nursery)
        with pytest.raises(NotAdmitted, match="only admins say who writes in plant/pumps"):
            await state(member, "member")
        for writers, error, why in (
            (["everybody"], Misuse, "name admin, member, zone:NAME or peer:NAME"),
            (["peer:nobody"], NotFound, "nobody"),
            (["zone:"], Misuse, "name admin, member, zone:NAME or peer:NAME"),
        ):
            with pytest.raises(error, match=why):
                await state(admin, *writers)
        for entries in (0, 10_001):
            with pytest.raises(Misuse, match="an author holds 1 to 10000 entries"):
                await state(admin, entries=entries)
        for ttl_s in (0, 400 * 86_400 + 1):
            with pytest.raises(Misuse, match="a ttl is 1 s to 400 days"):
                await admin.service.memory.state_policy(PolicyRequest(namespace=PUMPS, ttl_s=ttl_s))
        for namespace, zone, why in (
            ("_mesh/members", "mesh", "covey's own"),
            (PUMPS, "device", "stays on this device"),
            (PUMPS, "west", "not in zone"),
        ):
            with pytest.raises(Misuse, match=why):
                await admin.service.memory.state_policy(
                    PolicyRequest(namespace=namespace, zone=zone)
                )
        assert admin.service.memory.policy(PUMPS, "mesh").by == ""
