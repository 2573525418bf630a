"""Whose entries count, and who is a member: certificates, revocations, and what lifts them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import ADMIN, ADMIN_CHAIN, MESH, NOW_MS, ROOT, key
from test_gossip.memory_entries import note, register

from covey.gossip.memory.books import Record, compose, learn, revocation_record
from covey.gossip.memory.entry import NO_CERTIFICATE, Entry
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.kinds import Lifetime
from covey.gossip.memory.namespace import (
    ADVERTS,
    DEVICE,
    MEMBERS,
    NAMESPACES,
    REVOKED,
    Namespace,
    namespace_of,
)
from covey.gossip.memory.payload import SALT_BYTES, decode_payload
from covey.gossip.memory.rejudging import still_counts
from covey.gossip.memory.standing import Revocation, Standing, UnknownCertificate, certificate_id
from covey.identity.certificate import SKEW_MS, Chain, issue, member_of
from covey.identity.errors import NotAdmitted
from covey.identity.keys import Keypair

BOB, CAROL, SECOND = key(1), key(2), key(3)
_PEOPLE = (BOB, CAROL, ADMIN, SECOND)
DAY_MS = 86_400_000
SECOND_CHAIN: Chain = (
    issue(ROOT, SECOND.peer_id, mesh=MESH, role="admin", now_ms=NOW_MS, zones=("east",)),
)
PUMPS = namespace_of(MESH, "mesh", "plant/pumps")
EAST = namespace_of(MESH, "east", "plant/pumps")
Fact = Callable[[Standing], object]


def clock_at(ms: int) -> int:
    return ms << COUNTER_BITS


def member(
    subject: Keypair = BOB,
    *zones: str,
    by: Keypair = ADMIN,
    at_ms: int = NOW_MS,
    lifts: Sequence[int] = (),
) -> Chain:
    above = ADMIN_CHAIN if by is ADMIN else SECOND_CHAIN
    own = issue(
        by, subject.peer_id, mesh=MESH, role="member", now_ms=at_ms, zones=zones, lifts=lifts
    )
    return (*above, own)


@dataclass(frozen=True)
class Learned:
    """Somebody's chain."""

    chain: Chain

    def __call__(self, standing: Standing) -> None:
        standing.learn(self.chain)


def learned(chain: Chain) -> Learned:
    return Learned(chain)


def revoked(
    subject: Keypair = BOB,
    number: int = 1,
    *,
    by: Chain | None = ADMIN_CHAIN,
    at_ms: int = NOW_MS + DAY_MS,
    purge: bool = False,
) -> Fact:
    """Somebody's revocation at a time; by nobody's chain: by the root."""
    said = Revocation(
        number, subject.public_key, clock_at(at_ms), "purge" if purge else "stop", "lost"
    )

    def tell(standing: Standing) -> None:
        # The books carry the author's chain with it.
        if by is not None:
            standing.learn(by)
        signed = certificate_id(by[-1]) if by is not None else NO_CERTIFICATE
        standing.revoke(said, by=signed, clock=clock_at(at_ms))

    return tell


def heard(*facts: Fact) -> Standing:
    standing = Standing(MESH)
    for fact in facts:
        fact(standing)
        # What was asked in between must not stick.
        for one in _PEOPLE:
            standing.of(one.peer_id)
    return standing


def is_member(standing: Standing, subject: Keypair = BOB) -> bool:
    return standing.of(subject.peer_id) is not None and not standing.is_void(subject.peer_id)


def written(author: Keypair, chain: Chain, at_ms: int) -> Entry:
    certificate = certificate_id(chain[-1])
    return note(author, "P-12 vibrates", at_ms=at_ms, certificate=certificate).entry


def test_a_revocation_voids_what_was_issued_before_and_after_it() -> None:
    before, after = member(at_ms=NOW_MS), member(at_ms=NOW_MS + 2 * DAY_MS)

    standing = heard(learned(before), revoked(), learned(after))

    assert not is_member(standing)
    assert not standing.may_read(BOB.peer_id, "mesh")
    for chain in (before, after):
        with pytest.raises(NotAdmitted, match=r"revoked \(number 1\): lost") as caught:
            standing.admit(chain, BOB.peer_id, NOW_MS + 3 * DAY_MS)
        assert caught.value.code == "revoked"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_renewal_in_ignorance_of_a_revocation_does_not_undo_it(order: Sequence[int]) -> None:
    facts = [
        learned(member()),
        revoked(by=ADMIN_CHAIN),
        learned(member(by=SECOND, at_ms=NOW_MS + 2 * DAY_MS)),
    ]
    assert not is_member(heard(*(facts[at] for at in order)))


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_who_is_let_in_again_is_a_member_also_beside_a_renewal_in_ignorance(
    order: Sequence[int],
) -> None:
    facts = [
        learned(member(BOB, lifts=(1,), at_ms=NOW_MS + 2 * DAY_MS)),
        revoked(),
        learned(member(BOB, "east", by=SECOND, at_ms=NOW_MS + 3 * DAY_MS)),
    ]
    standing = heard(*(facts[at] for at in order))
    assert is_member(standing)
    assert not standing.may_read(BOB.peer_id, "east"), "that renewal is void"


@pytest.mark.parametrize(
    ("lifts", "numbers", "is_in"),
    [((1,), (1,), True), ((2,), (1,), False), ((1,), (1, 2), False), ((1, 2), (1, 2), True)],
)
def test_a_lift_undoes_only_the_revocations_that_it_names(
    lifts: Sequence[int], numbers: Sequence[int], is_in: bool
) -> None:
    standing = heard(*(revoked(number=one) for one in numbers), learned(member(lifts=lifts)))
    assert is_member(standing) is is_in


def test_narrower_zones_hold_against_the_wider_certificate_that_the_member_still_shows() -> None:
    wide = member(BOB, "east", "west")
    narrow = member(BOB, "east", lifts=(1,), at_ms=NOW_MS + DAY_MS)
    standing = heard(learned(wide), revoked(), learned(narrow))

    shown = standing.admit(wide, BOB.peer_id, NOW_MS + DAY_MS)

    assert shown.zones == {"east"}
    assert standing.may_read(BOB.peer_id, "east")
    assert not standing.may_read(BOB.peer_id, "west")


def test_the_newest_certificate_counts_whichever_is_shown_unless_it_has_not_begun() -> None:
    old, new = member(BOB, "east"), member(BOB, "west", at_ms=NOW_MS + DAY_MS)
    standing = heard(learned(old), learned(new))
    assert standing.admit(old, BOB.peer_id, NOW_MS + DAY_MS).zones == {"west"}
    assert standing.admit(new, BOB.peer_id, NOW_MS + DAY_MS).zones == {"west"}
    assert standing.admit(old, BOB.peer_id, NOW_MS).zones == {"east"}


def test_what_was_written_until_the_cut_counts_and_later_is_refused() -> None:
    chain = member()
    standing = heard(learned(chain), revoked(at_ms=NOW_MS + DAY_MS))

    assert still_counts(standing.judge, PUMPS, written(BOB, chain, NOW_MS + DAY_MS))
    assert not still_counts(standing.judge, PUMPS, written(BOB, chain, NOW_MS + DAY_MS + 1))
    purged = heard(learned(chain), revoked(purge=True))
    assert not still_counts(purged.judge, PUMPS, written(BOB, chain, NOW_MS + 1))


def test_a_zone_that_was_left_takes_nothing_more_under_the_new_certificate() -> None:
    narrow = member(BOB, lifts=(1,), at_ms=NOW_MS + DAY_MS)
    standing = heard(learned(member(BOB, "east")), revoked(), learned(narrow))
    certificate = certificate_id(narrow[-1])
    late = note(
        BOB, "x", at_ms=NOW_MS + DAY_MS + 9, certificate=certificate, namespace=EAST.id
    ).entry
    with pytest.raises(NotAdmitted) as caught:
        standing.judge(late, EAST)
    assert caught.value.code == "zone"


def test_an_admin_revokes_no_admin() -> None:
    standing = heard(learned(ADMIN_CHAIN), revoked(ADMIN, by=SECOND_CHAIN))
    assert is_member(standing, ADMIN)


def test_with_an_admin_fall_those_it_let_in_and_their_later_entries() -> None:
    fallen, kept = member(BOB), member(CAROL)
    anew = member(CAROL, by=SECOND, at_ms=NOW_MS + DAY_MS)
    standing = heard(
        learned(fallen), learned(kept), learned(anew), revoked(ADMIN, by=None, at_ms=NOW_MS + 9)
    )

    assert (is_member(standing, BOB), is_member(standing, CAROL)) == (False, True)
    assert not is_member(standing, ADMIN)
    assert standing.resting_on(ADMIN.peer_id) == {BOB.peer_id, CAROL.peer_id}
    assert still_counts(standing.judge, PUMPS, written(BOB, fallen, NOW_MS + 9))
    assert not still_counts(standing.judge, PUMPS, written(BOB, fallen, NOW_MS + 10))
    with pytest.raises(NotAdmitted, match=r"the admin .* was revoked"):
        standing.admit(fallen, BOB.peer_id, NOW_MS + DAY_MS)


@pytest.mark.parametrize(("cut_ms", "holds"), [(NOW_MS + 9, True), (NOW_MS + 8, False)])
def test_a_revoked_admins_own_revocations_hold_if_they_were_made_before(
    cut_ms: int, holds: bool
) -> None:
    facts = [
        learned(member(BOB, by=SECOND)),
        revoked(BOB, at_ms=NOW_MS + 9, by=ADMIN_CHAIN),
        revoked(ADMIN, by=None, at_ms=cut_ms),
    ]
    for order in permutations(facts):
        standing = heard(*order)
        assert is_member(standing, BOB) is not holds
        assert [one.number for one in standing.said_by(ADMIN.peer_id)] == [1] * holds


def test_two_admins_who_took_one_number_in_ignorance_are_both_heard() -> None:
    chain = member()
    early, late = revoked(at_ms=NOW_MS + 5), revoked(at_ms=NOW_MS + 9, by=SECOND_CHAIN)
    for order in permutations([learned(chain), early, late]):
        standing = heard(*order)
        assert not still_counts(standing.judge, PUMPS, written(BOB, chain, NOW_MS + 6))


def test_what_changed_is_told_once() -> None:
    standing = heard(learned(member(BOB)), learned(member(CAROL, by=SECOND)))
    assert standing.take_changed() >= {BOB.peer_id, CAROL.peer_id}
    assert standing.take_changed() == set()
    revoked(ADMIN, by=None)(standing)
    assert standing.take_changed() == {ADMIN.peer_id, BOB.peer_id}


@st.composite
def facts(draw: st.DrawFn) -> list[Fact]:
    """Members, admins and revocations as two admins and the root may sign them, each in ignorance."""
    found: list[Fact] = [learned(ADMIN_CHAIN), learned(SECOND_CHAIN)]
    for _ in range(draw(st.integers(1, 6))):
        at_ms = NOW_MS + draw(st.integers(0, 5)) * 1000
        subject = draw(st.sampled_from(_PEOPLE))
        number = draw(st.integers(1, 3))
        match draw(st.sampled_from(["member", "member", "revoke", "root"])):
            case "member":
                lifts = draw(st.lists(st.integers(1, 3), max_size=3))
                by = draw(st.sampled_from([ADMIN, SECOND]))
                zones = draw(st.sampled_from([(), ("east",), ("east", "west")]))
                found.append(learned(member(subject, *zones, by=by, at_ms=at_ms, lifts=lifts)))
            case "revoke":
                by_chain = draw(st.sampled_from([ADMIN_CHAIN, SECOND_CHAIN]))
                purge = draw(st.booleans())
                found.append(revoked(subject, number, by=by_chain, at_ms=at_ms, purge=purge))
            case _:
                found.append(revoked(subject, number, by=None, at_ms=at_ms))
    return found


def verdicts(standing: Standing, told: Sequence[Fact]) -> list[object]:
    """Return what standing says of everybody, and of every certificate that it was told of."""
    seen: list[object] = []
    for peer in sorted(one.peer_id for one in _PEOPLE):
        known = standing.of(peer)
        seen.append(known and known.id)
        seen += [standing.is_void(peer), standing.may_read(peer, "east")]
    for chain in (fact.chain for fact in told if isinstance(fact, Learned)):
        known = standing.certificate(certificate_id(chain[-1]))
        assert known is not None
        seen += [
            standing.why_void(known, clock_at(NOW_MS + second * 1000)) is None
            for second in range(6)
        ]
    return seen


@given(st.data())
def test_standing_follows_from_what_is_known_and_not_from_the_order_in_which_it_came(
    data: st.DataObject,
) -> None:
    told = data.draw(facts())
    other = data.draw(st.permutations(told))
    assert verdicts(heard(*told), told) == verdicts(heard(*other, *other), told)


@given(st.data())
def test_more_revocations_let_nobody_in_whom_no_admin_had_put_out(data: st.DataObject) -> None:
    told = data.draw(facts())
    standing = heard(*told)
    before = {one.peer_id: is_member(standing, one) for one in _PEOPLE}
    revoked(BOB, 7, at_ms=NOW_MS + 9000)(standing)
    after = {one.peer_id: is_member(standing, one) for one in _PEOPLE}
    assert all(before[peer] or not after[peer] for peer in before)
    bob, admin = standing.of(BOB.peer_id), standing.of(ADMIN.peer_id)
    assert admin is not None
    if bob is not None and bob.member.role == "member" and admin.member.role == "admin":
        assert not after[BOB.peer_id] or not is_member(standing, ADMIN)


# Whose entries count


def verdict_on(
    author: Keypair,
    chain: Chain | None,
    namespace: Namespace = PUMPS,
    *,
    at_ms: int = NOW_MS,
    lifetime: Lifetime = Lifetime.NORMAL,
) -> str:
    """Tell what is thought of an entry: `by an admin`, `by a member`, or why it does not count."""
    entry = register(
        author,
        "P-12",
        "vibrates",
        namespace=namespace.id,
        certificate=certificate_id(chain[-1]) if chain is not None else NO_CERTIFICATE,
        at_ms=at_ms,
        lifetime=lifetime,
        signed=False,
    ).entry
    members = [ADMIN_CHAIN, SECOND_CHAIN, member(BOB, "east"), member(CAROL)]
    standing = heard(*map(learned, members))
    try:
        return "by an admin" if standing.judge(entry, namespace) else "by a member"
    except NotAdmitted as error:
        return error.code


def test_an_entry_counts_while_its_authors_certificate_covers_its_time() -> None:
    chain = member(CAROL)
    end_ms = member_of(chain, mesh=MESH, subject=CAROL.peer_id).grace_until_ms
    times = (NOW_MS - SKEW_MS - 1, NOW_MS - SKEW_MS, end_ms, end_ms + 1)
    verdicts = [verdict_on(CAROL, chain, at_ms=at_ms) for at_ms in times]
    assert verdicts == ["not-yet-valid", "by a member", "by a member", "expired"]


BOOK = namespace_of(MESH, "mesh", MEMBERS)
OWN = namespace_of(MESH, DEVICE, "own")
ADVERTS_HERE = namespace_of(MESH, "mesh", ADVERTS)
# A later version's, or one that this version knows in another zone.
LATER = namespace_of(MESH, "mesh", "_mesh/later")
EASTS_BOOKS = [
    namespace_of(MESH, "east", name) for name in (NAMESPACES, MEMBERS, ADVERTS, "_mesh/later")
]
DEVICES = namespace_of(MESH, DEVICE, NAMESPACES)


@pytest.mark.parametrize(
    ("author", "chain", "namespace", "lifetime", "verdict"),
    [
        (CAROL, member(CAROL), PUMPS, Lifetime.NORMAL, "by a member"),
        (CAROL, member(CAROL), OWN, Lifetime.NORMAL, "by a member"),
        (CAROL, member(CAROL), EAST, Lifetime.NORMAL, "zone"),
        (BOB, member(BOB, "east"), EAST, Lifetime.NORMAL, "by a member"),
        (BOB, member(CAROL), PUMPS, Lifetime.NORMAL, "bad-chain"),
        (ADMIN, ADMIN_CHAIN, PUMPS, Lifetime.NORMAL, "by an admin"),
        (ADMIN, ADMIN_CHAIN, BOOK, Lifetime.BOOK, "by an admin"),
        (ADMIN, ADMIN_CHAIN, BOOK, Lifetime.NORMAL, "lifetime"),
        (ADMIN, ADMIN_CHAIN, PUMPS, Lifetime.BOOK, "lifetime"),
        (CAROL, member(CAROL), BOOK, Lifetime.BOOK, "role"),
        (ROOT, None, BOOK, Lifetime.BOOK, "by an admin"),
        (ROOT, None, PUMPS, Lifetime.NORMAL, "bad-chain"),
        (CAROL, None, BOOK, Lifetime.BOOK, "bad-chain"),
        (CAROL, member(CAROL), ADVERTS_HERE, Lifetime.NORMAL, "by a member"),
        (ADMIN, ADMIN_CHAIN, ADVERTS_HERE, Lifetime.BOOK, "lifetime"),
        (ADMIN, ADMIN_CHAIN, DEVICES, Lifetime.BOOK, "lifetime"),
        (ADMIN, ADMIN_CHAIN, LATER, Lifetime.BOOK, "by an admin"),
        (ADMIN, ADMIN_CHAIN, LATER, Lifetime.NORMAL, "lifetime"),
        (CAROL, member(CAROL), LATER, Lifetime.BOOK, "role"),
        (CAROL, member(CAROL), LATER, Lifetime.NORMAL, "role"),
        *[(SECOND, SECOND_CHAIN, one, Lifetime.BOOK, "by an admin") for one in EASTS_BOOKS],
        *[(ADMIN, ADMIN_CHAIN, one, Lifetime.BOOK, "zone") for one in EASTS_BOOKS],
        *[(BOB, member(BOB, "east"), one, Lifetime.BOOK, "role") for one in EASTS_BOOKS],
        *[(BOB, member(BOB, "east"), one, Lifetime.NORMAL, "role") for one in EASTS_BOOKS],
        (ROOT, None, EASTS_BOOKS[0], Lifetime.BOOK, "by an admin"),
    ],
)
def test_who_may_write_where(
    author: Keypair, chain: Chain | None, namespace: Namespace, lifetime: Lifetime, verdict: str
) -> None:
    assert verdict_on(author, chain, namespace, lifetime=lifetime) == verdict


def test_an_entry_under_a_certificate_that_is_not_known_may_wait_for_it() -> None:
    chain = member(CAROL)
    entry = written(CAROL, chain, NOW_MS)
    with pytest.raises(UnknownCertificate) as caught:
        heard().judge(entry, PUMPS)
    assert caught.value.certificate == certificate_id(chain[-1])
    assert still_counts(heard().judge, PUMPS, entry), "and is not thrown out either"
    assert heard(learned(chain)).judge(entry, PUMPS) is False


def test_data_of_a_zone_goes_to_whom_the_newest_certificate_puts_in_it() -> None:
    standing = heard(learned(member(BOB, "east")))
    assert standing.may_read(BOB.peer_id, "mesh")
    assert standing.may_read(BOB.peer_id, "east")
    assert not standing.may_read(BOB.peer_id, "west")
    assert not standing.may_read(CAROL.peer_id, "mesh"), "a stranger"
    standing.learn(member(BOB, "west", at_ms=NOW_MS + 1))
    assert not standing.may_read(BOB.peer_id, "east")
    assert standing.may_read(BOB.peer_id, "west")
    revoked()(standing)
    assert not standing.may_read(BOB.peer_id, "mesh")


@pytest.mark.parametrize(("zone", "is_in"), [("mesh", False), ("east", True)])
def test_a_zones_own_book_says_nothing_of_who_is_a_member(zone: str, is_in: bool) -> None:
    standing = heard(learned(member(BOB)), learned(SECOND_CHAIN))
    word = Revocation(1, BOB.public_key, clock_at(NOW_MS), "purge")
    book = namespace_of(MESH, zone, REVOKED)
    record = Record(REVOKED, "a key", revocation_record(word), zone=zone)
    said = compose(SECOND, MESH, book, SECOND_CHAIN, clock_at(NOW_MS), bytes(SALT_BYTES), record)
    assert said.payload is not None

    learn(standing, book, said.entry, decode_payload(said.payload))

    assert is_member(standing) is is_in


def test_namespaces_stand_in_one_order_for_ever_since_digests_are_over_them_in_it() -> None:
    in_order = [
        ("mesh", "_mesh/members", 0),
        ("mesh", "_mesh/revoked", 0),
        ("mesh", "_mesh/invites", 0),
        ("mesh", "_mesh/later", 0),
        ("mesh", "_mesh/namespaces", 0),
        ("east", "_mesh/members", 1),
        ("east", "_mesh/namespaces", 1),
        ("west", "_mesh/adverts", 1),
        ("mesh", "_mesh/adverts", 2),
        ("device", "_mesh/namespaces", 2),
        ("east", "plant/pumps", 2),
        ("mesh", "_zone/east/adverts", 2),
        ("mesh", "plant/pumps", 2),
    ]
    namespaces = [namespace_of(MESH, zone, name) for zone, name, _ in reversed(in_order)]
    assert [(one.zone, one.name, one.turn) for one in sorted(namespaces)] == in_order
