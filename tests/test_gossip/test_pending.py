"""Who waits for an admin's word: joiners without an invite, and those with another admin's."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from test_gossip.members import ADMIN, ADMIN_CHAIN, MESH, NOW_MS, ROOT, key
from test_gossip.test_standing import SECOND, SECOND_CHAIN, heard, learned, member, revoked

from covey.gossip.joining import (
    CHALLENGE_BYTES,
    InviteDesk,
    ask,
    granted,
    is_knock,
    knock,
    prove,
    shown,
    wait,
)
from covey.gossip.memory.books import InviteEntry
from covey.gossip.memory.standing import Standing
from covey.gossip.pending import PENDING_MAX, PENDING_MS, KeepPending, PendingList
from covey.identity.certificate import issue
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.invite import Invite, Terms
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import encode
from covey.identity.words import words_of

BOB, CAROL = key(1), key(2)
NONCE = b"n" * CHALLENGE_BYTES
DAY_MS = 86_400_000


def desk_of(standing: Standing | None = None, **named: Any) -> InviteDesk:
    standing = standing or heard(learned(ADMIN_CHAIN))
    return InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant", standing=standing, **named)


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(NotAdmitted) as caught:
        call()
    return caught.value.code


def waits(desk: InviteDesk, joiner: Keypair = BOB, now_ms: int = NOW_MS) -> str:
    """Ask as a joiner that has said yes; return `granted` or the code of the refusal."""
    answer, _ = desk.prove(wait(), joiner.peer_id, NONCE, now_ms)
    try:
        granted(answer)
    except NotAdmitted as error:
        return error.code
    return "granted"


def test_both_sides_come_to_the_same_words_and_whoever_stands_between_to_others() -> None:
    desk = desk_of()
    seen = shown(desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS))

    (listed,) = desk.pending.listed(NOW_MS)

    assert (listed.peer, listed.name, listed.has_confirmed) == (BOB.peer_id, "line-4", False)
    there = words_of(MESH, ADMIN.peer_id, BOB.peer_id, seen.nonce)
    assert there == words_of(MESH, ADMIN.peer_id, BOB.peer_id, listed.nonce)
    between = CAROL.peer_id
    assert there != words_of(MESH, between, BOB.peer_id, listed.nonce)
    assert there != words_of(MESH, ADMIN.peer_id, between, listed.nonce)


def test_the_words_stay_the_same_while_a_joiner_waits_and_once_it_was_let_in() -> None:
    standing = heard(learned(ADMIN_CHAIN))
    desk = desk_of(standing)

    def nonce() -> bytes:
        return shown(desk.knock(knock("line-4"), BOB.peer_id, bytes([7]) * 32, NOW_MS)).nonce

    first = shown(desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)).nonce
    assert (waits(desk), nonce()) == ("pending", first)
    standing.learn(member(BOB))
    desk.pending.decide(BOB.peer_id, "yes", NOW_MS)
    assert (nonce(), waits(desk), nonce()) == (first, "granted", first)
    assert desk.pending.listed(NOW_MS) == []


def test_a_joiner_that_waits_is_stored_once_it_has_said_yes() -> None:
    desk = desk_of()
    desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)
    _, effects = desk.prove(wait(), BOB.peer_id, NONCE, NOW_MS)
    (kept,) = effects
    assert isinstance(kept, KeepPending)
    assert kept.record.has_confirmed
    assert desk.prove(wait(), BOB.peer_id, NONCE, NOW_MS)[1] == [], "nothing new"
    fresh = PendingList()
    fresh.restore([kept.record])
    assert fresh.listed(NOW_MS) == [kept.record]


def test_no_is_told_for_a_day() -> None:
    desk = desk_of()
    desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)
    desk.pending.decide(BOB.peer_id, "no", NOW_MS)
    assert desk.pending.listed(NOW_MS) == []
    assert waits(desk, now_ms=NOW_MS + PENDING_MS - 1) == "denied"
    desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS + PENDING_MS)
    assert waits(desk, now_ms=NOW_MS + PENDING_MS) == "pending"


def test_a_joiner_that_does_not_come_back_is_forgotten_after_a_day() -> None:
    desk = desk_of()
    desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)
    assert desk.pending.listed(NOW_MS + PENDING_MS) == []
    assert waits(desk, now_ms=NOW_MS + PENDING_MS) == "not-asked"


def test_strangers_that_only_knock_crowd_nobody_out_that_waits() -> None:
    desk = desk_of()
    desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)
    waits(desk)
    for number in range(100, 100 + 2 * PENDING_MAX):
        desk.knock(knock("x"), key(number).peer_id, NONCE, NOW_MS)
    listed = desk.pending.listed(NOW_MS)
    assert len(listed) == PENDING_MAX
    assert listed[0].peer == BOB.peer_id

    for one in listed:
        desk.pending.confirm(PeerId(one.peer), NONCE, NOW_MS)
    full = desk.knock(knock("x"), key(999).peer_id, NONCE, NOW_MS)
    assert code_of(lambda: shown(full)) == "busy"


@pytest.mark.parametrize(
    ("desk", "code"),
    [
        (desk_of(heard(learned(member(BOB)), revoked(BOB))), "revoked"),
        (desk_of(clock_trouble=lambda: "2 h behind"), "clock"),
        (desk_of(heard(learned(ADMIN_CHAIN), revoked(ADMIN, by=None))), "revoked"),
        (InviteDesk(CAROL, member(CAROL), MESH, "plant"), "not-admin"),
    ],
)
def test_whom_nobody_here_can_let_in_is_told_so(desk: InviteDesk, code: str) -> None:
    answer = desk.knock(knock("line-4"), BOB.peer_id, NONCE, NOW_MS)
    assert code_of(lambda: shown(answer)) == code
    assert waits(desk) == code or waits(desk) == "not-asked"


def test_a_knock_is_told_from_an_ask_and_from_anything_else() -> None:
    invite, _ = minted()
    assert is_knock(knock("line-4"))
    assert not is_knock(ask(invite))
    for data in (b"", wait(), encode(Terms("member", (), 1, 1))):
        with pytest.raises(Malformed):
            is_knock(data)


# With another admin's invite


def minted(*zones: str) -> tuple[Invite, InviteEntry]:
    """The second admin's invite, and what the books say of it."""
    desk = InviteDesk(SECOND, SECOND_CHAIN, MESH, "plant")
    invite, _ = desk.mint(
        b"\x21" * 32, ["/ip4/192.0.2.2/tcp/1"], uses=1, expires_s=60, now_ms=NOW_MS, zones=zones
    )
    key_of = invite.keypair.public_key
    return invite, InviteEntry(key_of, invite.terms, SECOND.public_key)


def shows(desk: InviteDesk, invite: Invite, joiner: Keypair = BOB, now_ms: int = NOW_MS) -> str:
    proof = prove(desk.challenge(ask(invite), NONCE), invite, joiner.peer_id)
    answer, _ = desk.prove(proof, joiner.peer_id, NONCE, now_ms)
    try:
        granted(answer)
    except NotAdmitted as error:
        return error.code
    return "granted"


def elsewhere(entry: InviteEntry, standing: Standing | None = None) -> InviteDesk:
    standing = standing or heard(learned(ADMIN_CHAIN), learned(SECOND_CHAIN))

    def in_books(key_of: bytes) -> InviteEntry | None:
        return entry if key_of == entry.key else None

    return desk_of(standing, in_books=in_books)


def test_another_admins_invite_puts_its_holder_on_the_list_with_its_terms() -> None:
    invite, entry = minted("east")
    desk = elsewhere(entry)
    assert shows(desk, invite) == "pending"
    (listed,) = desk.pending.listed(NOW_MS)
    assert (listed.inviter, listed.zones) == (SECOND.peer_id, ("east",))
    assert listed.has_confirmed


def test_who_was_approved_with_another_admins_invite_is_granted_its_chain() -> None:
    invite, entry = minted()
    standing = heard(learned(ADMIN_CHAIN), learned(SECOND_CHAIN))
    desk = elsewhere(entry, standing)
    assert shows(desk, invite) == "pending"
    standing.learn(member(BOB))
    assert shows(desk, invite) == "granted"


def test_another_admins_invite_helps_nobody_who_does_not_hold_it() -> None:
    invite, entry = minted()
    wide = msgspec.structs.replace(invite, terms=Terms("member", ("all",), 9, NOW_MS + 10**9))
    stranger = heard(learned(ADMIN_CHAIN))
    revoked_inviter = heard(learned(ADMIN_CHAIN), learned(SECOND_CHAIN), revoked(SECOND, by=None))
    thief = msgspec.structs.replace(invite, seed=b"\x99" * 32)
    assert shows(elsewhere(entry), wide) == "altered"
    assert shows(elsewhere(entry), thief) == "unknown-invite"
    assert shows(elsewhere(entry), invite, now_ms=NOW_MS + 60_001) == "expired"
    assert shows(elsewhere(entry, stranger), invite) == "unknown-invite", "it knows no such admin"
    assert shows(elsewhere(entry, revoked_inviter), invite) == "unknown-invite"
    assert shows(desk_of(), invite) == "unknown-invite", "the books do not know it"


def test_an_invite_lets_nobody_in_who_was_revoked() -> None:
    standing = heard(learned(member(BOB)), revoked(BOB))
    desk = desk_of(standing)
    invite, _ = desk.mint(b"\x31" * 32, ["a"], uses=1, expires_s=60, now_ms=NOW_MS)
    assert shows(desk, invite) == "revoked"
    assert shows(desk, invite, CAROL) == "granted"
    standing.learn(member(CAROL))
    revoked(CAROL)(standing)
    assert shows(desk, invite, CAROL) == "revoked", "also who was let in by it before"


def test_an_admin_whose_certificate_ended_lets_nobody_wait() -> None:
    old = (issue(ROOT, ADMIN.peer_id, mesh=MESH, role="admin", now_ms=NOW_MS - 900 * DAY_MS),)
    desk = InviteDesk(ADMIN, old, MESH, "plant")
    assert code_of(lambda: shown(desk.knock(knock("x"), BOB.peer_id, NONCE, NOW_MS))) == "expired"
