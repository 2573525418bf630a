"""Hello and join, stepped without a network: who is let in, and why not."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.hosts import door_of
from test_gossip.members import ADMIN, ADMIN_CHAIN, MESH, NOW_MS, OTHER_MESH, chain_of, key

from covey.gossip.hello import (
    Accepted,
    Confirm,
    Hello,
    Refused,
    encode_hello,
    is_confirmed,
    judge_answer,
    judge_hello,
    second_connection,
)
from covey.gossip.joining import (
    ENDED_KEPT_MS,
    INVITES_MAX,
    Challenge,
    DeskEffect,
    ForgetInvite,
    InviteDesk,
    InviteRecord,
    KeepInvite,
    Proof,
    ask,
    granted,
    proof_bytes,
    prove,
)
from covey.identity.certificate import DAY_S, check_chain
from covey.identity.errors import Malformed, Misuse, NotAdmitted
from covey.identity.invite import Invite, Terms
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import encode, encode_plain, strict_cbor

ME, OTHER = key(1), key(2)
NONCE = b"n" * 32


def hello(keypair: Keypair = OTHER, **changes: object) -> bytes:
    made = Hello(1, MESH, chain_of(keypair), NOW_MS, 3, "line-1")
    return encode_hello(msgspec.structs.replace(made, **changes))


def judged(data: bytes, remote: PeerId = OTHER.peer_id, now_ms: int = NOW_MS) -> Accepted | Refused:
    return judge_hello(data, remote, mesh=MESH, now_ms=now_ms)


def test_a_member_is_let_in_and_its_clock_is_noted() -> None:
    verdict = judged(hello(wall_ms=NOW_MS + 90_000))
    assert isinstance(verdict, Accepted)
    assert (verdict.member.peer, verdict.incarnation, verdict.name) == (OTHER.peer_id, 3, "line-1")
    assert verdict.skew_ms == 90_000


@pytest.mark.parametrize(
    ("what", "data", "code"),
    [
        ("garbage", b"\xff\xff", "malformed"),
        ("nothing", b"", "malformed"),
        ("cut", hello()[:-1], "malformed"),
        ("oversized", hello(name="x" * 20_000), "malformed"),
        ("a later version", hello(version=2), "version"),
        ("another mesh", hello(mesh=OTHER_MESH), "other-mesh"),
        ("no chain", hello(chain=()), "bad-chain"),
        ("another's chain", hello(chain=chain_of(ME)), "bad-chain"),
        ("a digest that is none", hello(books=b"\x01" * 33), "malformed"),
        ("a confirmation", encode_hello(Confirm()), "malformed"),
    ],
)
def test_who_does_not_hold_up_is_refused(what: str, data: bytes, code: str) -> None:
    verdict = judged(data)
    assert isinstance(verdict, Refused)
    assert verdict.code == code
    told = judge_answer(verdict.encoded(), OTHER.peer_id, mesh=MESH, now_ms=NOW_MS)
    assert isinstance(told, Refused)
    assert told.code == code


def test_each_side_shows_its_books_as_they_are_then_and_keeps_what_the_other_showed() -> None:
    doors = {keypair.peer_id: door_of(keypair) for keypair in (ME, OTHER)}
    mine, other = doors[ME.peer_id], doors[OTHER.peer_id]
    mine.own_books = lambda: b"mine"
    other.own_books = lambda: b"other"
    other.judge_hello(mine.greeting(), ME.peer_id)
    mine.judge_answer(other.greeting(), OTHER.peer_id)
    assert (mine.books, other.books) == ({OTHER.peer_id: b"other"}, {ME.peer_id: b"mine"})
    mine.own_books = lambda: b"mine, later"
    other.judge_answer(mine.greeting(), ME.peer_id)
    assert other.books == {ME.peer_id: b"mine, later"}


def test_an_older_peer_that_shows_no_books_is_let_in() -> None:
    assert strict_cbor(hello())[-1] == b""
    verdict = judged(encode_plain(strict_cbor(hello())[:-1]))
    assert isinstance(verdict, Accepted)
    assert verdict.books == b""


def test_who_is_not_let_in_has_shown_nothing() -> None:
    door = door_of(ME)
    door.judge_hello(hello(mesh=OTHER_MESH, books=b"any"), OTHER.peer_id)
    assert door.books == {}


def test_a_replayed_hello_serves_no_other_key() -> None:
    # who overheard it (say, a former member's device) holds another key, which Noise proves
    verdict = judged(hello(), remote=key(9).peer_id)
    assert isinstance(verdict, Refused)


def test_an_expired_member_and_a_clock_far_off_are_told_apart() -> None:
    late = judged(hello(), now_ms=NOW_MS + 400 * DAY_S * 1000)
    assert isinstance(late, Refused)
    assert (late.code, "new invite" in late.reason) == ("expired", True)
    early = judged(hello(), now_ms=NOW_MS - 3_600_000)
    assert isinstance(early, Refused)
    assert (early.code, "check the clocks" in early.reason) == ("not-yet-valid", True)


@given(st.binary(max_size=200))
def test_any_bytes_are_judged(data: bytes) -> None:
    assert isinstance(judged(data), Refused)
    assert isinstance(judge_answer(data, OTHER.peer_id, mesh=MESH, now_ms=NOW_MS), Refused)
    assert is_confirmed(data) == (data == encode_hello(Confirm()))


@given(st.booleans(), st.booleans())
def test_of_two_connections_that_cross_the_same_one_stays_on_both_sides(a: bool, b: bool) -> None:
    """Both dial at once; each hears the other's hello while its own dial is open or under way."""
    low, high = sorted([ME.peer_id, OTHER.peer_id])
    at_low = second_connection(me=low, remote=high, dialling=a, own_open_age_s=None if a else 0.1)
    at_high = second_connection(me=high, remote=low, dialling=b, own_open_age_s=None if b else 0.1)
    assert (at_low, at_high) == ("duplicate", "replace"), "what the lower id dialled stays"


def test_an_old_connection_gives_way_to_a_new_one() -> None:
    for me, remote in ((ME.peer_id, OTHER.peer_id), (OTHER.peer_id, ME.peer_id)):
        for age in (None, 60.0):
            assert (
                second_connection(me=me, remote=remote, dialling=False, own_open_age_s=age)
                == "replace"
            )


# Joining


def desk_and_invite(uses: int = 2) -> tuple[InviteDesk, Invite, list[DeskEffect]]:
    desk = InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant")
    invite, effects = desk.mint(
        b"\x11" * 32, ["/ip4/192.0.2.1/tcp/4001"], uses=uses, expires_s=3600, now_ms=NOW_MS
    )
    return desk, invite, effects


def join(
    desk: InviteDesk, invite: Invite, joiner: Keypair, now_ms: int = NOW_MS
) -> tuple[object, list[DeskEffect]]:
    """Run the whole conversation; return the grant or the refusal's code, and the effects."""
    try:
        challenge = desk.challenge(ask(invite), NONCE)
        answer, effects = desk.prove(
            prove(challenge, invite, joiner.peer_id), joiner.peer_id, NONCE, now_ms
        )
        return granted(answer), effects
    except NotAdmitted as error:
        return error.code, []


def test_an_invite_makes_members_as_often_as_it_says() -> None:
    desk, invite, _ = desk_and_invite(uses=2)
    for number in (1, 2):
        grant, effects = join(desk, invite, key(number))
        chain = getattr(grant, "chain")  # noqa: B009  (a Grant)
        member = check_chain(chain, mesh=MESH, subject=key(number).peer_id, now_ms=NOW_MS)
        assert member.role == "member"
        assert len(effects) == 1
    assert join(desk, invite, key(3))[0] == "used-up"


def test_who_asks_again_gets_the_same_answer_and_uses_nothing_up() -> None:
    desk, invite, _ = desk_and_invite(uses=1)
    first, _ = join(desk, invite, ME)
    again, effects = join(desk, invite, ME)
    assert again == first
    assert effects == []


def test_a_desk_remembers_across_a_restart() -> None:
    desk, invite, minted = desk_and_invite(uses=1)
    _, effects = join(desk, invite, ME)
    kept = {
        one.record.key: one.record for one in [*minted, *effects] if isinstance(one, KeepInvite)
    }
    fresh = InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant")
    fresh.restore(kept.values())
    assert join(fresh, invite, OTHER)[0] == "used-up"
    assert join(InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant"), invite, ME)[0] == "unknown-invite"


def test_an_invite_ends() -> None:
    desk, invite, _ = desk_and_invite()
    assert join(desk, invite, ME, now_ms=NOW_MS + 3_600_001)[0] == "expired"


def test_terms_cannot_be_widened() -> None:
    desk, invite, _ = desk_and_invite(uses=1)
    join(desk, invite, ME)
    wide = msgspec.structs.replace(invite, terms=Terms("member", (), 1000, NOW_MS + 10**9))
    assert join(desk, wide, OTHER)[0] == "altered"


def test_a_proof_serves_no_other_key_and_no_other_challenge() -> None:
    desk, invite, _ = desk_and_invite()
    proof = prove(desk.challenge(ask(invite), NONCE), invite, ME.peer_id)
    for joiner, nonce in ((OTHER.peer_id, NONCE), (ME.peer_id, b"m" * 32)):
        answer, effects = desk.prove(proof, joiner, nonce, NOW_MS)
        with pytest.raises(NotAdmitted) as caught:
            granted(answer)
        assert caught.value.code == "bad-signature"
        assert effects == []


def test_a_proof_made_without_the_invites_key_is_refused() -> None:
    desk, invite, _ = desk_and_invite()
    thief = key(66)
    message = proof_bytes(MESH, ME.peer_id, NONCE, invite.terms)
    forged = encode(Proof(invite.keypair.public_key, invite.terms, thief.sign(message)))
    with pytest.raises(NotAdmitted, match="not made with the invite's key"):
        granted(desk.prove(forged, ME.peer_id, NONCE, NOW_MS)[0])


@given(st.binary(max_size=200))
def test_any_bytes_at_the_desk_are_refused(data: bytes) -> None:
    desk, invite, _ = desk_and_invite()
    with pytest.raises(NotAdmitted):
        granted(desk.prove(data, ME.peer_id, NONCE, NOW_MS)[0])
    with pytest.raises(Malformed):
        desk.challenge(data, NONCE)
    with pytest.raises((Malformed, NotAdmitted)):
        prove(data, invite, ME.peer_id)
    with pytest.raises((Malformed, NotAdmitted)):
        granted(data)


def test_asking_tells_nothing_of_which_invites_exist() -> None:
    desk, invite, _ = desk_and_invite()
    unknown = msgspec.structs.replace(invite, seed=b"\x12" * 32)
    assert desk.challenge(ask(unknown), NONCE) == desk.challenge(ask(invite), NONCE)
    assert desk.challenge(ask(invite), NONCE) == encode(Challenge(NONCE))


def test_what_cannot_be_minted_is_said() -> None:
    desk, _, _ = desk_and_invite()
    for uses, expires_s, addresses in ((0, 60, ["a"]), (1, 0, ["a"]), (1, 1e9, ["a"]), (1, 60, [])):
        with pytest.raises(Misuse):
            desk.mint(b"\x13" * 32, addresses, uses=uses, expires_s=expires_s, now_ms=NOW_MS)


def test_ended_invites_are_swept_and_open_ones_bounded() -> None:
    desk = InviteDesk(ADMIN, ADMIN_CHAIN, MESH, "plant")
    records = [
        InviteRecord(key(n).public_key, Terms("member", (), 1, NOW_MS))
        for n in range(1, INVITES_MAX + 1)
    ]
    assert all(one.key != other.key for one, other in pairwise(records))
    desk.restore(records)
    with pytest.raises(Misuse, match="open already"):
        desk.mint(b"\x14" * 32, ["a"], uses=1, expires_s=60, now_ms=NOW_MS)
    later = NOW_MS + ENDED_KEPT_MS + 1
    _, effects = desk.mint(b"\x14" * 32, ["a"], uses=1, expires_s=60, now_ms=later)
    assert sum(isinstance(one, ForgetInvite) for one in effects) == INVITES_MAX
