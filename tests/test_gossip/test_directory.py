"""The directory is the newest advert of each member, whatever came when, as long as it counts."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import (
    ADMIN,
    ADMIN_CHAIN,
    MESH,
    NOW_MS,
    OTHER_MESH,
    chain_of,
    directory_of,
    item_of,
    judge,
    key,
    signed_item,
    told_by,
)

from covey.gossip.advert import (
    ADVERT_LIFE_MS,
    AHEAD_MS_MAX,
    Advert,
    DataOffer,
    ModelOffer,
    Told,
    advert_record,
    only_addresses,
    open_item,
)
from covey.gossip.directory import Directory, Forget, Keep
from covey.gossip.memory.entry import NO_CERTIFICATE, Key
from covey.gossip.memory.messages import Item
from covey.gossip.memory.standing import Revocation, Standing
from covey.identity.certificate import issue
from covey.identity.errors import CoveyError, NotAdmitted
from covey.identity.keys import PeerId
from covey.identity.wire import encode

KEYS = [key(n) for n in range(1, 6)]
ME = KEYS[0]
SUBJECT = KEYS[1].peer_id
TOLD = [told_by(one, number=number) for one in KEYS[1:] for number in (1, 2)]
FIRST = TOLD[0]


def book(directory: Directory) -> dict[PeerId, Key]:
    return {entry.peer: entry.key for entry in directory}


@given(st.lists(st.sampled_from(TOLD), max_size=14))
def test_only_the_newest_of_each_author_counts_in_any_order(told: list[Told]) -> None:
    directory = directory_of(ME)
    for one in told:
        directory.learn([one], NOW_MS)
    expected: dict[PeerId, Key] = {}
    for one in told:
        expected[one.peer] = max(expected.get(one.peer, one.key), one.key)
    assert book(directory) == expected


def test_what_is_heard_twice_or_is_older_changes_nothing() -> None:
    directory = directory_of(ME)
    (kept,) = directory.learn([TOLD[1]], NOW_MS)
    assert isinstance(kept, Keep)
    assert kept.entry.key == TOLD[1].key
    assert directory.learn([TOLD[1], TOLD[0]], NOW_MS) == []


WHOLE = Advert(
    incarnation=1,
    name="quiet",
    version="0.1.0",
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    labels=(("secret-label", "secret"),),
    data=(DataOffer("secret-log", "file"),),
    skills=("secret-skill",),
    models=(ModelOffer("secret-model", "text", "00" * 32),),
)
REFUSED: dict[str, Told] = {
    "no chain": told_by(KEYS[1], chain=()),
    "another peer's chain": told_by(KEYS[1], chain=chain_of(KEYS[2])),
    "a chain of another mesh": told_by(KEYS[1], chain=chain_of(KEYS[1], mesh=OTHER_MESH)),
    "signed ahead of time": told_by(KEYS[1], at_ms=NOW_MS + AHEAD_MS_MAX + 1),
    "over its life": told_by(KEYS[1], at_ms=NOW_MS - ADVERT_LIFE_MS - 1),
}
ITEM = item_of(KEYS[1])


def altered(**changes: object) -> Callable[[], Item]:
    advert = msgspec.structs.replace(FIRST.advert, **changes)
    return lambda: signed_item(KEYS[1], advert, chain_of(KEYS[1]), clock=NOW_MS << 16)


NO_ADVERT: dict[str, Callable[[], Item]] = {
    "garbage": lambda: Item(b"garbage", b""),
    "no payload": lambda: Item(ITEM.header, None),
    "another payload": lambda: Item(ITEM.header, item_of(KEYS[2]).payload),
    "an altered header": lambda: Item(
        ITEM.header[:-1] + bytes([ITEM.header[-1] ^ 1]), ITEM.payload
    ),
    "too many labels": altered(labels=tuple((f"k{n}", "v") for n in range(65))),
    "too many addresses": altered(addresses=tuple(f"/ip4/10.0.0.{n}/tcp/1" for n in range(17))),
    "an endless name": altered(name="x" * 129),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_advert_that_does_not_count_changes_nothing(what: str) -> None:
    directory = directory_of(ME)
    assert directory.learn([REFUSED[what]], NOW_MS) == []
    assert book(directory) == {}
    assert directory.refused == 1


@pytest.mark.parametrize("what", NO_ADVERT)
def test_what_is_no_advert_is_refused(what: str) -> None:
    with pytest.raises(CoveyError):
        open_item(NO_ADVERT[what](), mesh=MESH)


def test_an_advert_stands_under_its_authors_name_alone() -> None:
    chain, clock = chain_of(KEYS[1]), NOW_MS << 16
    item = signed_item(KEYS[1], FIRST.advert, chain, clock=clock, under=KEYS[2].peer_id)
    with pytest.raises(CoveyError, match="under its author's id"):
        open_item(item, mesh=MESH)


def test_nobody_can_say_more_than_an_advert_holds() -> None:
    with pytest.raises(NotAdmitted, match="at most 64 of a kind"):
        advert_record(SUBJECT, msgspec.structs.replace(WHOLE, skills=("x",) * 65))


def test_what_this_peer_keeps_to_itself_is_known_here() -> None:
    directory = directory_of(ME)
    member = judge(chain_of(ME), ME.peer_id, NOW_MS)
    (kept,) = directory.announce(WHOLE, member, NOW_MS)
    assert kept == Keep(directory.get(ME.peer_id) or pytest.fail("nothing is known"))
    assert directory.learn([told_by(ME, number=9)], NOW_MS) == [], "of itself it knows best"
    own = directory.get(ME.peer_id)
    assert own is not None
    assert own.advert == WHOLE
    told = encode(only_addresses(WHOLE))
    assert b"secret" not in told
    assert WHOLE.addresses[0].encode() in told


def test_who_is_silent_for_a_month_is_forgotten_and_oneself_never() -> None:
    directory = directory_of(ME, FIRST, own=told_by(ME))
    assert directory.expire(NOW_MS + ADVERT_LIFE_MS) == []
    assert directory.expire(NOW_MS + ADVERT_LIFE_MS + 1) == [Forget(SUBJECT)]
    assert list(book(directory)) == [ME.peer_id]


def test_an_advert_goes_with_its_entry_and_not_with_an_older_one() -> None:
    older, newer = TOLD[0], TOLD[1]
    directory = directory_of(ME, older)
    directory.learn([newer], NOW_MS)
    assert directory.withdrawn([older.key]) == []
    assert directory.withdrawn([newer.key]) == [Forget(SUBJECT)]
    assert book(directory) == {}
    directory.learn([older], NOW_MS)
    assert book(directory) == {SUBJECT: older.key}, "what is held again counts again"


def test_what_is_years_old_does_not_count() -> None:
    directory = directory_of(ME)
    assert directory.learn(TOLD, NOW_MS + 3 * 365 * 86_400_000) == []


def test_a_device_past_its_grace_still_knows_itself() -> None:
    directory = directory_of(ME, own=told_by(ME))
    directory.expire(NOW_MS + 3 * 365 * 86_400_000)
    assert list(book(directory)) == [ME.peer_id]


def test_who_is_no_member_any_more_is_forgotten_and_to_be_cut_off() -> None:
    end_ms = judge(chain_of(KEYS[1]), SUBJECT, NOW_MS).grace_until_ms
    late = told_by(KEYS[1], at_ms=end_ms, chain=chain_of(KEYS[1]))
    directory = directory_of(ME)
    assert directory.learn([late], end_ms)
    assert directory.expire(end_ms) == []
    assert directory.expire(end_ms + 1) == [Forget(SUBJECT, no_member=True)]


def test_a_revoked_peers_advert_goes_and_is_not_taken_again_whoever_passes_it_on() -> None:
    standing = Standing(MESH)
    directory = Directory(ME.peer_id, standing.admit)
    told = told_by(KEYS[1], zones=("east",))
    directory.learn([told], NOW_MS)
    assert directory.rejudge(SUBJECT, NOW_MS) == []

    said = Revocation(1, KEYS[1].public_key, 0, "stop")
    standing.revoke(said, by=NO_CERTIFICATE, clock=0)

    assert directory.rejudge(SUBJECT, NOW_MS) == [Forget(SUBJECT, no_member=True)]
    assert directory.learn([told], NOW_MS) == []
    assert directory.get(SUBJECT) is None

    # Let in again, in another zone: its old advert does, as what it is now.
    narrow = issue(
        ADMIN, SUBJECT, mesh=MESH, role="member", now_ms=NOW_MS, zones=("west",), lifts=(1,)
    )
    standing.learn((*ADMIN_CHAIN, narrow))
    directory.learn([told], NOW_MS)
    entry = directory.get(SUBJECT)
    assert entry is not None
    assert entry.member.zones == {"west"}
