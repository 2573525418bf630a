"""Who may write in a namespace, and how much? What users are told of it, and what an admin says."""

from covey.gossip.memory.driver import Memory
from covey.gossip.memory.namespace import DEVICE, Namespace
from covey.gossip.memory.policies import (
    ENTRIES_MAX,
    TTL_S_MAX,
    Policy,
    Writers,
    check_policy,
    may_write,
    policy_record,
)
from covey.identity.certificate import DAY_S, ZONE_CHARACTERS_MAX, Role
from covey.identity.errors import Misuse, NotAdmitted, Unavailable
from covey.identity.keys import peer_id_of, public_key_of
from covey.identity.wire import decode

from .held import Held
from .surroundings import Surroundings
from .views import PolicyRequest, PolicyView

ZONE = "zone:"
PEER = "peer:"


class Ruling:
    """Tells and states policies for users."""

    def __init__(self, parts: Surroundings, memory: Memory, held: Held) -> None:
        self._parts = parts
        self._memory = memory
        self._held = held

    def policy(self, name: str, zone: str) -> PolicyView:
        """Return what holds in a namespace now.

        Raises:
            Misuse: this device is not in the zone, or nothing of it can have a policy.
        """
        return self.view(self._ruled(name, zone))

    async def state(self, request: PolicyRequest) -> PolicyView:
        """Say what holds in a namespace from now on, in place of what was said before.

        Raises:
            NotAdmitted: this device is no admin.
            Misuse, Malformed: it cannot be said so.
            NotFound: nobody of that name is known.
            Unavailable: the disk does not take it, or this device's clock is wrong.
        """
        parts = self._parts
        namespace = self._ruled(request.namespace, request.zone)
        if not parts.is_admin:
            raise NotAdmitted(
                "role",
                f"only admins say who writes in {namespace.name}, and this device is a member; "
                "ask one of them, see: covey members",
            )
        if (trouble := parts.clock_trouble()) is not None:
            raise Unavailable(f"nothing is signed while the clock is wrong: {trouble}")
        if request.ttl_s is not None and not 1 <= request.ttl_s <= TTL_S_MAX:
            raise Misuse(f"a ttl is 1 s to {TTL_S_MAX // DAY_S} days, not {request.ttl_s} s")
        if request.entries is not None and not 1 <= request.entries <= ENTRIES_MAX:
            raise Misuse(f"an author holds 1 to {ENTRIES_MAX} entries, not {request.entries}")
        policy = Policy(namespace.name, self._writers(request), request.entries, request.ttl_s)
        record = policy_record(namespace.zone, policy)
        check_policy(decode(record.value, Policy), zone=namespace.zone)
        await self._memory.write_records([record])
        return self.view(namespace)

    def view(self, namespace: Namespace) -> PolicyView:
        """Return what holds in a namespace now."""
        stated = self._memory.policies.newest(namespace.id)
        policy = stated.policy if stated is not None else Policy(namespace.name)
        writers, names = policy.writers, self._parts.name_of
        fixed: list[str] = []
        peers: list[str] = []
        if writers is not None:
            fixed = [*writers.roles, *(f"{ZONE}{one}" for one in writers.zones)]
            peers = [peer_id_of(one) for one in writers.peers]
        return PolicyView(
            namespace=namespace.name,
            zone=namespace.zone,
            writers=None if writers is None else (*fixed, *(f"{PEER}{one}" for one in peers)),
            writer_names=(*fixed, *(f"{PEER}{names(one)}" for one in peers)),
            entries=policy.entries,
            ttl_s=policy.ttl_s,
            quota=self._memory.policies.quotas(namespace.id).entries,
            may_write=writers is None or self._may_write(writers),
            by=stated.by if stated is not None else "",
            by_name=names(stated.by) if stated is not None else "",
            at_ms=stated.at_ms if stated is not None else None,
        )

    def _may_write(self, writers: Writers) -> bool:
        own = self._memory.standing.of(self._parts.me)
        return own is not None and may_write(writers, own.member)

    def _ruled(self, name: str, zone: str) -> Namespace:
        if zone == DEVICE:
            raise Misuse("what stays on this device has no policy; name another zone")
        return self._held.writable(zone, name)

    def _writers(self, request: PolicyRequest) -> Writers | None:
        if request.writers is None:
            return None
        roles: set[Role] = set()
        zones: set[str] = set()
        peers: set[bytes] = set()
        for one in request.writers:
            if one == "admin":
                roles.add("admin")
            elif one == "member":
                roles.add("member")
            elif one.startswith(ZONE) and 0 < len(one.removeprefix(ZONE)) <= ZONE_CHARACTERS_MAX:
                zones.add(one.removeprefix(ZONE))
            elif one.startswith(PEER):
                peers.add(public_key_of(self._parts.find_peer(one.removeprefix(PEER))))
            else:
                raise Misuse(f"{one!r} is no writer; name admin, member, zone:NAME or peer:NAME")
        return Writers(tuple(sorted(roles)), tuple(sorted(zones)), tuple(sorted(peers)))
