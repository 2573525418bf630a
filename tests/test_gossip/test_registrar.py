"""What an admin signs, and for whom: renewals, admissions and revocations, from what is known alone."""

from collections.abc import Callable

import pytest
from test_gossip.members import ADMIN, ADMIN_CHAIN, MESH, NOW_MS, OTHER_ROOT, ROOT, chain_of, key
from test_gossip.test_standing import DAY_MS, SECOND, SECOND_CHAIN, heard, learned, member, revoked

from covey.gossip.memory.books import MemberRecord, Record
from covey.gossip.memory.entry import NO_CERTIFICATE
from covey.gossip.memory.namespace import MEMBERS, REVOKED
from covey.gossip.memory.standing import Revocation, Standing, certificate_id
from covey.gossip.registrar import NUMBER_BYTES, Order, Registrar, Signed, number_of
from covey.gossip.renewal import (
    PAUSE_MS,
    Renewed,
    accepted,
    answer,
    ask,
    grant,
    half_of_life_ms,
)
from covey.identity.certificate import Member, check_chain, issue, member_of
from covey.identity.errors import Conflict, Malformed, Misuse, NotAdmitted, NotFound
from covey.identity.keys import Keypair
from covey.identity.wire import decode, encode

BOB, CAROL, DAVE = key(1), key(2), key(4)
LATER_MS = NOW_MS + 30 * DAY_MS
ORDER = Order(number=7, cut=LATER_MS << 16)


def registrar(standing: Standing, keypair: Keypair = ADMIN) -> Registrar:
    return Registrar(keypair, ADMIN_CHAIN if keypair is ADMIN else SECOND_CHAIN, MESH, standing)


def take_in(standing: Standing, records: list[Record], by: Keypair = ADMIN) -> None:
    """Let a peer hear what was written into the books."""
    chain = ADMIN_CHAIN if by is ADMIN else SECOND_CHAIN
    for record in records:
        if record.book == MEMBERS:
            standing.learn(decode(record.value, MemberRecord).chain)
        else:
            said = NO_CERTIFICATE if record.root is not None else certificate_id(chain[-1])
            standing.revoke(decode(record.value, Revocation), by=said, clock=LATER_MS << 16)


def of(standing: Standing, who: Keypair) -> Member:
    known = standing.of(who.peer_id)
    assert known is not None
    assert not standing.is_void(who.peer_id)
    return known.member


def books(signed: Signed) -> list[tuple[str, bool]]:
    return [(record.book, record.root is not None) for record in signed.records]


def test_a_renewal_grants_the_rights_that_are_known_and_lasts_longer() -> None:
    standing = heard(
        revoked(number=3), learned(member(BOB, "east", lifts=(3,), by=SECOND, at_ms=NOW_MS))
    )

    chain = registrar(standing).renew(BOB.peer_id, LATER_MS)
    standing.learn(chain)

    renewed = of(standing, BOB)
    assert (renewed.zones, renewed.role) == ({"east"}, "member")
    assert renewed.not_after_ms == LATER_MS + 90 * DAY_MS


def test_nobody_is_renewed_to_rights_that_were_taken() -> None:
    wide, narrow = member(BOB, "east", "west"), member(BOB, "east", lifts=(1,), at_ms=NOW_MS + 1)
    standing = heard(learned(wide), revoked(number=1), learned(narrow))
    standing.learn(registrar(standing, SECOND).renew(BOB.peer_id, LATER_MS))
    assert of(standing, BOB).zones == {"east"}


@pytest.mark.parametrize(
    ("standing", "who", "code"),
    [
        (heard(learned(member(BOB)), revoked(BOB)), BOB, "revoked"),
        (heard(), BOB, "unknown"),
        (heard(learned(SECOND_CHAIN)), SECOND, "role"),
        (heard(learned(member(BOB, at_ms=NOW_MS - 200 * DAY_MS))), BOB, "expired"),
    ],
)
def test_who_is_no_member_is_not_renewed(standing: Standing, who: Keypair, code: str) -> None:
    with pytest.raises(NotAdmitted) as caught:
        registrar(standing).renew(who.peer_id, LATER_MS)
    assert caught.value.code == code


def test_an_admin_that_was_revoked_signs_nothing() -> None:
    standing = heard(learned(ADMIN_CHAIN), learned(member(BOB, by=SECOND)), revoked(ADMIN, by=None))
    signer = registrar(standing)
    calls: list[Callable[[], object]] = [
        lambda: signer.renew(BOB.peer_id, LATER_MS),
        lambda: signer.grant(DAVE.peer_id, (), LATER_MS),
        lambda: signer.revoke(BOB.peer_id, ORDER, LATER_MS),
        lambda: signer.admit(BOB.peer_id, None, ORDER, LATER_MS),
    ]
    for call in calls:
        with pytest.raises(NotAdmitted, match="no admin any more"):
            call()


def test_a_member_signs_nothing() -> None:
    standing = heard(learned(chain_of(BOB)), learned(member(CAROL)))
    signer = Registrar(BOB, chain_of(BOB), MESH, standing)
    with pytest.raises(Misuse, match="only an admin"):
        signer.revoke(CAROL.peer_id, ORDER, NOW_MS)


def test_narrower_zones_are_a_revocation_and_what_lifts_it_and_wider_ones_are_neither() -> None:
    standing = heard(learned(member(BOB, "east", "west")))

    wider = registrar(standing).admit(BOB.peer_id, ("east", "west", "south"), ORDER, LATER_MS)
    assert books(wider) == [(MEMBERS, False)]

    narrower = registrar(standing).admit(BOB.peer_id, ("east",), ORDER, LATER_MS)
    assert books(narrower) == [(MEMBERS, False), (REVOKED, False)]
    take_in(standing, narrower.records)
    assert of(standing, BOB).zones == {"east"}


def test_who_was_revoked_is_let_in_again_whatever_was_said_against_it() -> None:
    standing = heard(
        learned(member(BOB, "east")), revoked(BOB, 1), revoked(BOB, 2, by=SECOND_CHAIN)
    )
    assert (registrar(standing).why_barred(BOB.peer_id) or "").endswith(f"admit {BOB.peer_id}")
    with pytest.raises(NotAdmitted):
        registrar(standing).grant(BOB.peer_id, (), LATER_MS)

    signed = registrar(standing).admit(BOB.peer_id, None, ORDER, LATER_MS)

    assert books(signed) == [(MEMBERS, False)]
    take_in(standing, signed.records)
    assert of(standing, BOB).zones == {"east"}


def test_an_admin_needs_the_root_to_be_put_out_or_changed() -> None:
    standing = heard(learned(ADMIN_CHAIN), learned(SECOND_CHAIN))
    with pytest.raises(Misuse, match="only the root"):
        registrar(standing).revoke(SECOND.peer_id, ORDER, LATER_MS)
    with pytest.raises(Conflict, match="--admin"):
        registrar(standing).admit(SECOND.peer_id, (), ORDER, LATER_MS)
    with pytest.raises(Misuse, match="itself"):
        registrar(standing).revoke_admin(ROOT, ADMIN.peer_id, (), ORDER, LATER_MS)
    with pytest.raises(NotFound):
        registrar(standing).revoke(DAVE.peer_id, ORDER, LATER_MS)


def test_revoking_an_admin_keeps_whom_it_is_told_to_and_what_that_admin_had_revoked() -> None:
    standing = heard(
        learned(ADMIN_CHAIN),
        learned(member(BOB, "east", by=SECOND)),
        learned(member(CAROL, by=SECOND)),
        learned(member(DAVE)),
        revoked(DAVE, 9, by=SECOND_CHAIN),
    )
    signer = registrar(standing)
    assert [one.member.peer for one in signer.resting_on(SECOND.peer_id)] == sorted(
        [BOB.peer_id, CAROL.peer_id]
    )

    order = Order(7, NOW_MS << 16, "purge", "its device was stolen")
    signed = signer.revoke_admin(ROOT, SECOND.peer_id, [BOB.peer_id], order, LATER_MS)

    assert books(signed) == [(MEMBERS, False), (REVOKED, False), (REVOKED, True)]
    take_in(standing, signed.records)
    assert of(standing, BOB).zones == {"east"}
    assert standing.is_void(CAROL.peer_id)
    assert standing.is_void(SECOND.peer_id)
    assert standing.is_void(DAVE.peer_id), "its own revocation was voided with it, and is repeated"
    with pytest.raises(Misuse, match="not let in by it"):
        signer.revoke_admin(ROOT, SECOND.peer_id, [DAVE.peer_id], ORDER, LATER_MS)


def test_the_root_makes_and_renews_admins_and_no_other_meshs_root_does() -> None:
    standing = heard(learned(ADMIN_CHAIN), learned(member(BOB, "east")))
    made = registrar(standing).appoint(ROOT, BOB.peer_id, None, NOW_MS)
    take_in(standing, made.records)
    assert (of(standing, BOB).role, of(standing, BOB).zones) == ("admin", {"east"})

    renewed = registrar(standing).renew_admin(ROOT, BOB.peer_id, LATER_MS)
    take_in(standing, renewed.records)
    assert of(standing, BOB).not_after_ms == LATER_MS + 730 * DAY_MS
    signer = registrar(standing)
    calls: list[Callable[[], object]] = [
        lambda: signer.appoint(OTHER_ROOT, BOB.peer_id, None, LATER_MS),
        lambda: signer.renew_admin(OTHER_ROOT, BOB.peer_id, LATER_MS),
        lambda: signer.revoke_admin(OTHER_ROOT, BOB.peer_id, (), ORDER, LATER_MS),
    ]
    for call in calls:
        with pytest.raises(Misuse, match="another mesh"):
            call()


def test_who_was_an_admin_may_become_a_member_and_is_none_by_its_old_certificate() -> None:
    standing = heard(learned(SECOND_CHAIN), revoked(SECOND, 5, by=None))
    take_in(standing, registrar(standing).admit(SECOND.peer_id, (), ORDER, LATER_MS).records)
    assert of(standing, SECOND).role == "member"
    assert not heard(learned(SECOND_CHAIN), revoked(SECOND, 5, by=None)).may_read(
        SECOND.peer_id, "mesh"
    )


@pytest.mark.parametrize("zones", [[f"zone-{n}" for n in range(33)], ["z" * 65]])
def test_zones_that_no_certificate_holds_are_refused(zones: list[str]) -> None:
    standing = heard(learned(member(BOB)))
    with pytest.raises(Misuse, match="at most 32 zones"):
        registrar(standing).admit(BOB.peer_id, zones, ORDER, LATER_MS)


def test_a_revocations_number_is_never_nothing_and_fits() -> None:
    assert number_of(bytes(NUMBER_BYTES)) == 1
    assert number_of(b"\xff" * NUMBER_BYTES) <= 2**63 - 1


# Over a link


def test_a_member_takes_only_what_makes_it_a_member_for_longer() -> None:
    standing = heard(learned(member(BOB, "east")))
    me = of(standing, BOB)

    chain, is_new = grant(ask(b"1"), BOB.peer_id, registrar(standing), standing, LATER_MS)

    assert is_new
    assert accepted(answer(chain), me, MESH, LATER_MS) == chain
    assert check_chain(chain, mesh=MESH, subject=BOB.peer_id, now_ms=LATER_MS).zones == {"east"}
    for other, code in (
        (member(BOB, at_ms=NOW_MS - DAY_MS), "no-gain"),
        (member(CAROL, at_ms=LATER_MS), "bad-chain"),
        (member(BOB, at_ms=LATER_MS + DAY_MS), "not-yet-valid"),
    ):
        with pytest.raises(NotAdmitted) as caught:
            accepted(encode(Renewed(other)), me, MESH, LATER_MS)
        assert caught.value.code == code
    with pytest.raises(Malformed):
        accepted(b"\x80", me, MESH, LATER_MS)


@pytest.mark.parametrize(("after_ms", "is_new"), [(PAUSE_MS - 1, False), (PAUSE_MS, True)])
def test_who_asks_again_within_the_hour_gets_the_same_certificate(
    after_ms: int, is_new: bool
) -> None:
    last = member(BOB, at_ms=LATER_MS)
    standing = heard(learned(last))
    chain, made = grant(ask(b"1"), BOB.peer_id, registrar(standing), standing, LATER_MS + after_ms)
    assert made is is_new
    assert (chain == last) is not is_new


def test_a_certificate_is_due_at_half_of_its_life() -> None:
    own = issue(ADMIN, BOB.peer_id, mesh=MESH, role="member", now_ms=NOW_MS, days=90)
    me = member_of((*ADMIN_CHAIN, own), mesh=MESH, subject=BOB.peer_id)
    assert half_of_life_ms(me) == NOW_MS + 45 * DAY_MS
