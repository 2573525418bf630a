"""Who may write where, how much, and for how long: the policies of namespaces."""

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import ADMIN_CHAIN, NOW_MS
from test_gossip.memory_entries import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    MESH,
    forgetting,
    note,
    register,
    removal,
)

from covey.gossip.memory import books
from covey.gossip.memory.entry import Entry, NamespaceId
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.kinds import DAY_MS
from covey.gossip.memory.namespace import NAMESPACES, Namespace, namespace_of
from covey.gossip.memory.payload import SALT_BYTES, decode_payload
from covey.gossip.memory.policies import (
    Changed,
    Policies,
    Policy,
    Writers,
    check_policy,
    policy_record,
)
from covey.gossip.memory.replica import Arrival, Quotas
from covey.identity.certificate import Member, Role
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import Keypair
from covey.identity.wire import encode_plain

PUMPS = namespace_of(MESH, "mesh", "plant/pumps")
EAST = namespace_of(MESH, "east", "plant/pumps")
BOOK = namespace_of(MESH, "mesh", NAMESPACES)
MINUTE_MS = 60_000
ADMINS = Writers(roles=("admin",))


def stated(
    policy: Policy, *, at_ms: int = NOW_MS, zone: str = "mesh", by: Keypair = ADMIN
) -> Arrival:
    """Return a policy as an admin states it in the book of a zone."""
    record = policy_record(zone, policy)
    return said(record, at_ms=at_ms, by=by)


def said(record: books.Record, *, at_ms: int = NOW_MS, by: Keypair = ADMIN) -> Arrival:
    book = namespace_of(MESH, record.zone, record.book)
    clock = at_ms << COUNTER_BITS
    return books.compose(by, MESH, book, ADMIN_CHAIN, clock, bytes(SALT_BYTES), record)


def learn(policies: Policies, arrival: Arrival, *, zone: str = "mesh") -> Changed | None:
    assert arrival.payload is not None
    book = namespace_of(MESH, zone, NAMESPACES)
    return policies.learn(book, arrival.entry, decode_payload(arrival.payload))


def heard(*arrivals: Arrival, zone: str = "mesh") -> Policies:
    policies = Policies(MESH)
    for one in arrivals:
        learn(policies, one, zone=zone)
    return policies


def member(author: Keypair, *zones: str, role: Role = "member") -> Member:
    return Member(author.peer_id, role, frozenset(zones), NOW_MS, NOW_MS, NOW_MS)


def verdict(policies: Policies, entry: Entry, author: Member, namespace: Namespace = PUMPS) -> str:
    """Tell whether an entry is let in, or why not."""
    try:
        policies.judge(entry, namespace, author)
    except NotAdmitted as error:
        return str(error) if error.code == "policy" else error.code
    return "let in"


def written(at_ms: int, by: Keypair = BOB, namespace: NamespaceId = PUMPS.id) -> Entry:
    return note(by, "P-12 vibrates", at_ms=at_ms, namespace=namespace, signed=False).entry


# Who may write

WHO = {
    "everybody": (None, "bob carol admin"),
    "nobody": (Writers(), ""),
    "admins": (ADMINS, "admin"),
    "members": (Writers(roles=("member",)), "bob carol admin"),
    "a zone": (Writers(zones=("east",)), "carol"),
    "zone mesh": (Writers(zones=("mesh",)), "bob carol admin"),
    "a peer": (Writers(peers=(BOB.public_key,)), "bob"),
    "admins and a peer": (Writers(roles=("admin",), peers=(BOB.public_key,)), "bob admin"),
}


@pytest.mark.parametrize(("writers", "who"), WHO.values(), ids=WHO)
def test_who_fits_one_of_the_writers_may_write_and_no_other(
    writers: Writers | None, who: str
) -> None:
    policies = heard(stated(Policy(PUMPS.name, writers)))
    people = {
        "bob": member(BOB, "west"),
        "carol": member(CAROL, "east"),
        "admin": member(ADMIN, role="admin"),
    }

    may = [
        name
        for name, one in people.items()
        if verdict(policies, written(NOW_MS + 1), one) == "let in"
    ]

    assert may == who.split()


def test_a_policy_judges_what_is_written_after_it_until_the_next() -> None:
    closed = stated(Policy(PUMPS.name, ADMINS), at_ms=NOW_MS)
    opened = stated(Policy(PUMPS.name), at_ms=NOW_MS + DAY_MS)
    for order in permutations((closed, opened)):
        policies = heard(*order)
        let_in = [
            verdict(policies, written(NOW_MS + after_ms), member(BOB)) == "let in"
            for after_ms in (-1, 0, 1, DAY_MS, DAY_MS + 1)
        ]
        assert let_in == [True, True, False, False, True]


def test_a_policy_is_of_one_namespace_in_one_zone() -> None:
    policies = heard(stated(Policy(PUMPS.name, ADMINS)))
    valves = namespace_of(MESH, "mesh", "plant/valves")
    for other in (EAST, valves):
        entry = written(NOW_MS + 1, namespace=other.id)
        assert verdict(policies, entry, member(BOB, "east"), other) == "let in"

    policies = heard(stated(Policy(PUMPS.name, ADMINS), zone="east"), zone="east")

    assert policies.newest(PUMPS.id) is None
    assert verdict(policies, written(NOW_MS + 1), member(BOB)) == "let in"
    entry = written(NOW_MS + 1, namespace=EAST.id)
    said = verdict(policies, entry, member(BOB, "east"), EAST)
    assert said.endswith("whose word: covey memory policy plant/pumps --zone east")


def test_what_removes_and_forgets_is_under_no_policy() -> None:
    policies = heard(stated(Policy(PUMPS.name, Writers(), ttl_s=1)))
    for one in (removal(BOB, at_ms=NOW_MS + 1), forgetting(BOB, at_ms=NOW_MS + 1)):
        assert verdict(policies, one.entry, member(BOB)) == "let in"


@pytest.mark.parametrize(
    ("lasts_ms", "value", "let_in"),
    [
        (DAY_MS, "7 mm/s", True),
        (DAY_MS + 1_000, "7 mm/s", False),
        (DAY_MS + 1_000, None, True),
    ],
    ids=["in time", "longer", "longer, without a text"],
)
def test_a_text_ends_as_early_as_the_policy_wants(
    lasts_ms: int, value: str | None, let_in: bool
) -> None:
    policies = heard(stated(Policy(PUMPS.name, ttl_s=DAY_MS // 1000)))
    entry = register(BOB, "limit", value, at_ms=NOW_MS + 1, expires_ms=NOW_MS + 1 + lasts_ms).entry
    assert (verdict(policies, entry, member(BOB)) == "let in") is let_in


def test_who_is_refused_is_told_since_when_and_what_to_do() -> None:
    policies = heard(
        stated(Policy(PUMPS.name, Writers(("admin",), ("east",), (ALICE.public_key,))))
    )

    said = verdict(policies, written(NOW_MS + 1), member(BOB))

    assert said == (
        "its author may not write in plant/pumps, by the policy there since 2026-09-21 14:13:20 UTC; who may, "
        "and by whose word: covey memory policy plant/pumps"
    )


# How much


def test_the_newest_policy_says_how_much_an_author_may_hold() -> None:
    policies = heard(
        stated(Policy(PUMPS.name, entries=7), at_ms=NOW_MS + DAY_MS),
        stated(Policy(PUMPS.name, entries=5), at_ms=NOW_MS),
    )
    assert policies.quotas(PUMPS.id) == Quotas(entries=7)
    assert policies.quotas(EAST.id) == Quotas()

    learn(policies, stated(Policy(PUMPS.name), at_ms=NOW_MS + 2 * DAY_MS))

    assert policies.quotas(PUMPS.id) == Quotas()


# Which count

EVERYBODY = Policy(PUMPS.name)
REFUSED: dict[str, tuple[books.Record, str]] = {
    "of covey's own": (policy_record("mesh", Policy("_mesh/adverts")), "has no policy"),
    "under another key": (
        books.Record(NAMESPACES, "plant/valves", policy_record("mesh", EVERYBODY).value),
        "under the name",
    ),
    "out of order": (
        policy_record("mesh", Policy("a", Writers(zones=("west", "east")))),
        "once, in order",
    ),
    "named twice": (
        policy_record("mesh", Policy("a", Writers(roles=("admin", "admin")))),
        "once, in order",
    ),
    "65 zones": (
        policy_record("mesh", Policy("a", Writers(zones=tuple(f"{one:02}" for one in range(65))))),
        "length <= 64",
    ),
    "no entries": (policy_record("mesh", Policy("a", entries=0)), ">= 1"),
    "too many entries": (policy_record("mesh", Policy("a", entries=10_001)), "<= 10000"),
    "a ttl beyond every lifetime": (
        policy_record("mesh", Policy("a", ttl_s=400 * 86_400 + 1)),
        "<= 34560000",
    ),
    "no key": (policy_record("mesh", Policy("a", Writers(peers=(b"\x02" * 32,)))), "Ed25519"),
    "a role of a later version": (
        books.Record(NAMESPACES, "a", encode_plain(["a", [["auditor"], [], []], None, None])),
        "auditor",
    ),
}


@pytest.mark.parametrize(("record", "why"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_policy_in_its_one_form_holds_for_nobody(record: books.Record, why: str) -> None:
    policies = Policies(MESH)
    with pytest.raises(Malformed, match=why):
        learn(policies, said(record))
    assert policies.all_changed() == []


def test_what_stays_on_a_device_has_no_policy() -> None:
    with pytest.raises(Malformed, match="no policy"):
        check_policy(EVERYBODY, zone="device")


def test_a_later_versions_field_at_the_end_is_passed_over() -> None:
    longer = encode_plain(["plant/pumps", [["admin"], [], [], "more"], 9, None, "more"])
    policies = Policies(MESH)
    learn(policies, said(books.Record(NAMESPACES, PUMPS.name, longer)))
    newest = policies.newest(PUMPS.id)
    assert newest is not None
    assert newest.policy == Policy(PUMPS.name, ADMINS, 9)


# Whatever the order

POLICIES = st.lists(
    st.builds(
        stated,
        st.builds(
            Policy,
            st.sampled_from(["plant/pumps", "plant/valves"]),
            st.sampled_from([None, ADMINS, Writers(zones=("east",)), Writers()]),
            st.sampled_from([None, 3, 9]),
            st.sampled_from([None, 3600]),
        ),
        at_ms=st.sampled_from([NOW_MS + one * MINUTE_MS for one in range(4)]),
        by=st.sampled_from([ADMIN, CAROL]),
    ),
    max_size=6,
)


def answers(policies: Policies) -> list[object]:
    """Return all that is to be asked of policies."""
    found: list[object] = []
    for name in ("plant/pumps", "plant/valves"):
        namespace = namespace_of(MESH, "mesh", name)
        found += [policies.quotas(namespace.id), policies.newest(namespace.id)]
        for minute in range(-1, 5):
            clock = (NOW_MS + minute * MINUTE_MS) << COUNTER_BITS
            found += [policies.in_force(namespace.id, clock + more) for more in (0, 1)]
    return found


@given(POLICIES, st.data())
def test_what_is_in_force_follows_from_the_policies_that_are_held_and_not_from_their_order(
    told: Sequence[Arrival], data: st.DataObject
) -> None:
    kept = data.draw(st.sets(st.sampled_from(told))) if told else set[Arrival]()
    held, other = heard(*(one for one in told if one in kept)), heard()

    for one in data.draw(st.permutations([*told, *told])):
        learn(other, one)
    for one in data.draw(st.permutations([*told])):
        if one not in kept:
            other.forget(BOOK.id, one.entry.key)

    assert answers(other) == answers(held)
    assert {(one.namespace, one.after) for one in other.all_changed()} == {
        (one.namespace, one.after) for one in held.all_changed()
    }


@given(POLICIES)
def test_each_change_names_all_that_is_to_be_judged_anew(told: Sequence[Arrival]) -> None:
    policies = Policies(MESH)

    def in_force(at_ms: int) -> list[object]:
        return [
            policies.in_force(namespace_of(MESH, "mesh", name).id, at_ms << COUNTER_BITS)
            for name in ("plant/pumps", "plant/valves")
        ]

    times = [NOW_MS + minute * MINUTE_MS + 1 for minute in range(-1, 5)]
    for change in [lambda one=one: learn(policies, one) for one in told] + [
        lambda one=one: policies.forget(BOOK.id, one.entry.key) for one in told
    ]:
        before = [in_force(at_ms) for at_ms in times]
        changed = change()
        for at_ms, was in zip(times, before, strict=True):
            if in_force(at_ms) != was:
                assert changed is not None
                assert changed.after < at_ms << COUNTER_BITS


def test_what_is_known_or_was_never_held_changes_nothing() -> None:
    one = stated(Policy(PUMPS.name, ADMINS))
    policies = heard(one)
    assert learn(policies, one) is None
    assert policies.forget(EAST.id, one.entry.key) is None
    assert policies.forget(BOOK.id, one.entry.key) == Changed(PUMPS, one.entry.header.clock)
    assert policies.forget(BOOK.id, one.entry.key) is None
    assert policies.newest(PUMPS.id) is None
