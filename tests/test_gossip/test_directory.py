"""Directories of peers that can talk become the same, whatever the order, loss and repetition."""

from collections.abc import Iterable

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
    item_of,
    key,
)

from covey.gossip.advert import (
    ADVERT_LIFE_MS,
    AHEAD_MS_MAX,
    CHANNEL,
    Advert,
    DataOffer,
    Have,
    Item,
    ModelOffer,
    News,
    only_addresses,
    open_item,
    seal_advert,
)
from covey.gossip.directory import Directory, DirectoryEffect, Forget, Keep, Tell
from covey.gossip.link_session import Frame, Kind, encode_frame
from covey.gossip.memory.entry import NO_CERTIFICATE
from covey.gossip.memory.standing import Revocation, Standing
from covey.identity.certificate import check_chain, issue
from covey.identity.keys import PeerId
from covey.identity.wire import encode

KEYS = [key(n) for n in range(1, 6)]
ITEMS = [item_of(one, number=number) for one in KEYS for number in (1, 2)]


def book(directory: Directory) -> dict[PeerId, tuple[int, int]]:
    return {entry.peer: entry.advert.order for entry in directory}


@given(st.lists(st.sampled_from(ITEMS), max_size=14))
def test_only_the_newest_of_each_author_counts_in_any_order(items: list[Item]) -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    other = PeerId("somebody")
    for item in items:
        directory.receive(other, News((item,)), NOW_MS)
    expected: dict[PeerId, tuple[int, int]] = {}
    for item in items:
        signed, _ = open_item(item, mesh=MESH, now_ms=NOW_MS)
        known = expected.get(signed.signer, (-1, -1))
        expected[signed.signer] = max(known, signed.body.order)
    assert book(directory) == expected


@given(st.data())
def test_peers_that_can_talk_end_with_one_directory(data: st.DataObject) -> None:
    """A random connected graph, messages delivered in a random order, some twice."""
    directories = {one.peer_id: Directory(one.peer_id, MESH) for one in KEYS}
    waiting: list[tuple[PeerId, Tell]] = []

    def carry_out(me: PeerId, effects: Iterable[DirectoryEffect]) -> None:
        waiting.extend((me, one) for one in effects if isinstance(one, Tell))

    for at, one in enumerate(KEYS):
        number = data.draw(st.integers(1, 2))
        carry_out(one.peer_id, directories[one.peer_id].announce(ITEMS[2 * at + number - 1]))
    for at in range(1, len(KEYS)):
        near = KEYS[data.draw(st.integers(0, at - 1))].peer_id
        for me, peer in ((KEYS[at].peer_id, near), (near, KEYS[at].peer_id)):
            carry_out(me, directories[me].link_up(peer))
    while waiting:
        sender, tell = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        for _ in range(data.draw(st.integers(1, 2))):
            carry_out(tell.to, directories[tell.to].receive(sender, tell.message, NOW_MS))
    books = [book(one) for one in directories.values()]
    assert all(one == books[0] for one in books)
    assert len(books[0]) == len(KEYS)


def test_news_goes_to_all_others_and_never_back() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    for one in KEYS[1:4]:
        directory.link_up(one.peer_id)
    effects = directory.receive(KEYS[1].peer_id, News((ITEMS[8],)), NOW_MS)
    assert {one.to for one in effects if isinstance(one, Tell)} == {
        KEYS[2].peer_id,
        KEYS[3].peer_id,
    }
    assert sum(isinstance(one, Keep) for one in effects) == 1
    assert directory.receive(KEYS[2].peer_id, News((ITEMS[8],)), NOW_MS) == [], "heard twice"


def altered(**changes: object) -> Item:
    advert = open_item(ITEMS[2], mesh=MESH, now_ms=NOW_MS)[0].body
    changed = msgspec.structs.replace(advert, **changes)
    return Item(seal_advert(changed, mesh=MESH, keypair=KEYS[1]), ITEMS[2].chain)


WHOLE = Advert(
    incarnation=1,
    number=1,
    issued_ms=NOW_MS,
    name="quiet",
    version="0.1.0",
    addresses=("/ip4/127.0.0.1/tcp/4001",),
    labels=(("secret-label", "secret"),),
    data=(DataOffer("secret-log", "file"),),
    skills=("secret-skill",),
    models=(ModelOffer("secret-model", "text", "00" * 32),),
)

REFUSED: dict[str, Item] = {
    "garbage": Item(b"garbage", chain_of(KEYS[1])),
    "no chain": Item(ITEMS[2].advert, ()),
    "another peer's chain": Item(ITEMS[2].advert, chain_of(KEYS[2])),
    "a chain of another mesh": Item(ITEMS[2].advert, chain_of(KEYS[1], mesh=OTHER_MESH)),
    "signed ahead of time": altered(issued_ms=NOW_MS + AHEAD_MS_MAX + 1),
    "over its life": altered(issued_ms=NOW_MS - ADVERT_LIFE_MS - 1),
    "too many labels": altered(labels=tuple((f"k{n}", "v") for n in range(65))),
    "too many addresses": altered(addresses=tuple(f"/ip4/10.0.0.{n}/tcp/1" for n in range(17))),
    "an endless name": altered(name="x" * 129),
    "an altered advert": Item(
        ITEMS[2].advert[:-1] + bytes([ITEMS[2].advert[-1] ^ 1]), ITEMS[2].chain
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_an_advert_that_does_not_hold_changes_nothing(what: str) -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    directory.link_up(KEYS[2].peer_id)
    assert directory.receive(KEYS[2].peer_id, News((REFUSED[what],)), NOW_MS) == []
    assert book(directory) == {}
    assert directory.refused == 1


def test_what_this_peer_keeps_to_itself_is_known_here_and_told_nobody() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    directory.link_up(KEYS[1].peer_id)
    told = Item(seal_advert(only_addresses(WHOLE), mesh=MESH, keypair=KEYS[0]), ITEMS[0].chain)
    effects = directory.announce(told, WHOLE)
    own = directory.get(KEYS[0].peer_id)
    assert own is not None
    assert own.advert == WHOLE
    assert effects == [Keep(own), Tell(KEYS[1].peer_id, News((told,)))]
    assert b"secret" not in told.advert
    assert WHOLE.addresses[0].encode() in told.advert
    (answer,) = directory.receive(KEYS[1].peer_id, Have(()), NOW_MS)
    assert answer == Tell(KEYS[1].peer_id, News((told,)))


def test_who_is_silent_for_a_month_is_forgotten() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    directory.announce(ITEMS[0])
    directory.receive(KEYS[1].peer_id, News((ITEMS[2],)), NOW_MS)
    assert directory.expire(NOW_MS + ADVERT_LIFE_MS) == []
    assert directory.expire(NOW_MS + ADVERT_LIFE_MS + 1) == [Forget(KEYS[1].peer_id)]
    assert list(book(directory)) == [KEYS[0].peer_id], "never oneself"


def test_a_stored_directory_is_judged_anew() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    directory.restore([*ITEMS[:2], REFUSED["garbage"]], NOW_MS)
    assert book(directory) == {KEYS[0].peer_id: (1, 2)}
    years_later = Directory(KEYS[0].peer_id, MESH)
    years_later.restore(ITEMS, NOW_MS + 3 * 365 * 86_400_000)
    assert book(years_later) == {}


def test_an_advert_is_its_type() -> None:
    assert isinstance(open_item(ITEMS[0], mesh=MESH, now_ms=NOW_MS)[0].body, Advert)


def test_what_a_newcomer_lacks_is_told_in_messages_that_fit_a_frame() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    many = [key(number) for number in range(100, 140)]
    wide = tuple((f"label-{number}", "x" * 200) for number in range(64))
    for one in many:
        directory.receive(one.peer_id, News((item_of(one, labels=wide),)), NOW_MS)

    effects = directory.receive(KEYS[1].peer_id, Have(()), NOW_MS)

    messages = [one.message for one in effects if isinstance(one, Tell)]
    told = [item for one in messages if isinstance(one, News) for item in one.items]
    assert len(told) == len(many)
    assert len(messages) > 1
    for message in messages:
        encode_frame(Frame(Kind.MESSAGE, CHANNEL, encode(message)))


def test_a_device_past_its_grace_still_knows_itself() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    years_later = item_of(KEYS[0], number=3, now_ms=NOW_MS + 3 * 365 * 86_400_000)
    directory.announce(Item(years_later.advert, ITEMS[0].chain))
    assert book(directory) == {KEYS[0].peer_id: (1, 3)}


def test_who_is_no_member_any_more_is_forgotten_and_to_be_cut_off() -> None:
    directory = Directory(KEYS[0].peer_id, MESH)
    end = check_chain(chain_of(KEYS[1]), mesh=MESH, subject=KEYS[1].peer_id, now_ms=NOW_MS)
    late = item_of(KEYS[1], number=3, now_ms=end.grace_until_ms)
    assert directory.receive(
        KEYS[2].peer_id, News((Item(late.advert, ITEMS[2].chain),)), end.grace_until_ms
    )
    assert directory.expire(end.grace_until_ms) == []
    assert directory.expire(end.grace_until_ms + 1) == [Forget(KEYS[1].peer_id, no_member=True)]


def test_a_revoked_peers_advert_goes_and_is_not_taken_again_whoever_passes_it_on() -> None:
    standing = Standing(MESH)
    directory = Directory(KEYS[0].peer_id, MESH, standing.admit)
    subject, item = KEYS[1].peer_id, item_of(KEYS[1], zones=("east",))
    directory.receive(KEYS[2].peer_id, News((item,)), NOW_MS)
    assert directory.rejudge(subject, NOW_MS) == []

    said = Revocation(1, KEYS[1].public_key, 0, "stop")
    standing.revoke(said, by=NO_CERTIFICATE, clock=0)

    assert directory.rejudge(subject, NOW_MS) == [Forget(subject, no_member=True)]
    assert directory.receive(KEYS[2].peer_id, News((item,)), NOW_MS) == []
    assert directory.get(subject) is None

    # Let in again, in another zone: its old advert does, as what it is now.
    narrow = issue(
        ADMIN, subject, mesh=MESH, role="member", now_ms=NOW_MS, zones=("west",), lifts=(1,)
    )
    standing.learn((*ADMIN_CHAIN, narrow))
    directory.receive(KEYS[2].peer_id, News((item,)), NOW_MS)
    entry = directory.get(subject)
    assert entry is not None
    assert entry.member.zones == {"west"}
