"""What is said on a network segment is anyone's word: what is believed of it is little, and safe."""

import math
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import MESH, OTHER_MESH, key

from covey.gossip.sighting import (
    LOOK_AGAIN_S,
    PEERS_MAX,
    STRANGERS_MAX,
    Announcement,
    LookUp,
    Segment,
    Sighting,
    Stranger,
    Withdrawn,
    judge,
    placed,
    service_of,
)
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId

ME, ALICE, BOB = (key(n).peer_id for n in (1, 2, 3))
SERVICE = service_of(MESH)
HERE = (IPv4Interface("203.0.113.5/24"), IPv4Interface("10.1.0.5/16"))
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16")
SAFE = [HERE[0].network, *(IPv4Network(one) for one in PRIVATE)]


def name_of(peer: str) -> str:
    return f"{peer}.{SERVICE}"


def said(
    name: str = name_of(ALICE),
    port: int | None = 4001,
    text: Mapping[bytes, bytes | None] | None = None,
    addresses: tuple[str, ...] = ("10.1.0.9",),
) -> Announcement:
    usual = {b"id": ALICE.encode(), b"v": b"1"}
    return Announcement(name, port, usual if text is None else text, addresses)


def test_the_service_is_named_by_its_mesh_and_fits_dns() -> None:
    assert SERVICE == "_covey-s5rvs5dt._tcp.local."
    assert service_of(OTHER_MESH) != SERVICE
    assert len(SERVICE.split(".")[0]) <= 16, "RFC 6763: an underscore and at most 15 characters"
    assert MESH.hex()[:8] not in SERVICE


def test_what_is_in_order_is_believed_nearest_address_first() -> None:
    heard = said(addresses=("192.168.7.7", "203.0.113.9", "10.1.0.9"))
    assert judge(heard, SERVICE, HERE) == Sighting(
        ALICE, ("/ip4/203.0.113.9/tcp/4001", "/ip4/10.1.0.9/tcp/4001", "/ip4/192.168.7.7/tcp/4001")
    )


def test_of_many_addresses_four_are_kept() -> None:
    heard = said(addresses=tuple(f"10.1.0.{n}" for n in range(9, 59)))
    assert len(judge(heard, SERVICE, HERE).addresses) == 4


REFUSED: dict[str, tuple[str, Announcement]] = {
    "the internet": ("no address", said(addresses=("8.8.8.8", "1.1.1.1"))),
    "a neighbour's public network": ("no address", said(addresses=("203.0.114.9",))),
    "loopback": ("no address", said(addresses=("127.0.0.1", "127.9.9.9"))),
    "nowhere": ("no address", said(addresses=("0.0.0.0", "224.0.0.251", "255.255.255.255"))),
    "everybody here": ("no address", said(addresses=("10.1.255.255", "10.1.0.0", "203.0.113.255"))),
    "version 6": ("no address", said(addresses=("fe80::1", "::ffff:10.1.0.9"))),
    "no address": ("no address", said(addresses=())),
    "words for addresses": ("no address", said(addresses=("10.1.0.9/tcp/22", "", "10.1"))),
    "a far too long list": ("no address", said(addresses=("8.8.8.8",) * 64 + ("10.1.0.9",))),
    "no port": ("port None", said(port=None)),
    "port zero": ("port 0", said(port=0)),
    "the port of ssh": ("port 22", said(port=22)),
    "a port too large": ("port 65536", said(port=65536)),
    "no text": ("another peer", said(text={})),
    "another's text": ("another peer", said(text={b"id": BOB.encode(), b"v": b"1"})),
    "a text without a value": ("another peer", said(text={b"id": None, b"v": b"1"})),
    "another version": ("another version", said(text={b"id": ALICE.encode(), b"v": b"2"})),
    "another mesh": ("not an instance", said(name=f"{ALICE}.{service_of(OTHER_MESH)}")),
    "the service itself": ("not an instance", said(name=SERVICE)),
    "a printer": ("not the id of an Ed25519 key", said(name=name_of("Printer"))),
    "an id in small letters": ("not", said(name=name_of(ALICE.lower()))),
    "an id and a space": ("as a peer id is written", said(name=name_of(f"{ALICE} "))),
    "an id and a label": ("not a peer id", said(name=name_of(f"{ALICE}.x"))),
    "a name without an end": ("not an instance", said(name=name_of("x" * 300))),
}


@pytest.mark.parametrize(("what", "heard"), REFUSED.values(), ids=REFUSED)
def test_an_announcement_of_this_is_not_believed(what: str, heard: Announcement) -> None:
    with pytest.raises(Malformed, match=what):
        judge(heard, SERVICE, HERE)


PEERS = st.sampled_from([ALICE, BOB]) | st.text(max_size=70)
TEXTS = st.dictionaries(
    st.sampled_from([b"id", b"v"]) | st.binary(max_size=9),
    st.none() | st.sampled_from([ALICE.encode(), b"1"]) | st.binary(max_size=60),
    max_size=6,
)
ADDRESSES = st.lists(
    st.ip_addresses().map(str)
    | st.sampled_from(SAFE).flatmap(lambda net: st.ip_addresses(network=net)).map(str)
    | st.text(max_size=20),
    max_size=80,
)


@given(
    name=PEERS.map(name_of) | st.text(max_size=300),
    port=st.none() | st.integers(-1, 2**17),
    text=TEXTS | st.just({b"id": ALICE.encode(), b"v": b"1"}),
    addresses=ADDRESSES,
)
def test_whatever_is_announced_only_this_segment_is_ever_dialled(
    name: str, port: int | None, text: dict[bytes, bytes | None], addresses: list[str]
) -> None:
    try:
        seen = judge(Announcement(name, port, text, addresses), SERVICE, HERE)
    except Malformed:
        return

    assert seen.peer in (ALICE, BOB)
    assert 1 <= len(seen.addresses) <= 4
    for address in seen.addresses:
        _, kind, ip, transport, at = address.split("/")
        assert (kind, transport) == ("ip4", "tcp")
        assert any(IPv4Address(ip) in network for network in SAFE)
        assert 1024 <= int(at) <= 65535


def test_only_addresses_that_are_this_devices_own_are_announced() -> None:
    own = ("/ip4/203.0.113.5/tcp/4001", "/ip4/10.1.0.5/tcp/4001")
    assert placed(own, HERE) == (4001, (HERE[0].ip, HERE[1].ip))
    assert placed(("/ip4/0.0.0.0/tcp/4001", "/ip4/127.0.0.1/tcp/4001"), HERE) is None
    assert placed(("/ip4/198.51.100.7/tcp/4001", "/dns4/plant.example/tcp/4001"), HERE) is None
    assert placed(("/ip6/fd00::1/tcp/4001", own[1]), HERE) == (4001, (HERE[1].ip,))


def segment(*known: PeerId) -> Segment:
    return Segment(ME, SERVICE, known.__contains__)


def test_a_known_member_is_looked_up_at_once() -> None:
    watched = segment(ALICE)
    assert watched.heard(name_of(ALICE), 7.0) == []
    assert watched.deadline == 7.0
    assert watched.tick(7.0) == [LookUp(ALICE)]
    assert watched.deadline == math.inf


def test_an_id_that_is_not_known_is_told_of_once_and_never_looked_up() -> None:
    watched = segment()
    assert watched.heard(name_of(ALICE), 0.0) == [Stranger(ALICE)]
    assert watched.heard(name_of(ALICE), 1.0) == []
    assert watched.strangers == 1
    assert watched.deadline == math.inf


def test_a_stranger_that_became_a_member_is_looked_up() -> None:
    members: set[PeerId] = set()
    watched = Segment(ME, SERVICE, members.__contains__)
    watched.heard(name_of(ALICE), 0.0)
    members.add(ALICE)
    watched.heard(name_of(ALICE), 1.0)
    assert watched.tick(1.0) == [LookUp(ALICE)]
    assert watched.strangers == 0


def test_ones_own_announcement_and_names_that_are_nobodys_are_passed_over() -> None:
    watched = segment(ME, ALICE)
    for name in (name_of(ME), name_of("Printer"), "", f"{ALICE}.{service_of(OTHER_MESH)}"):
        assert watched.heard(name, 0.0) == []
        assert watched.left(name) == []
    assert watched.deadline == math.inf
    assert watched.refused == 3


def test_who_leaves_is_withdrawn_once() -> None:
    watched = segment(ALICE)
    assert watched.left(name_of(ALICE)) == [], "it was never here"
    watched.heard(name_of(ALICE), 0.0)
    assert watched.left(name_of(ALICE)) == [Withdrawn(ALICE)]
    assert watched.left(name_of(ALICE)) == []
    assert watched.tick(0.0) == [], "it is not looked for any more"


def test_a_device_that_moved_saw_nobody_where_it_is_now() -> None:
    watched = segment(ALICE, BOB)
    watched.heard(name_of(ALICE), 0.0)
    watched.heard(name_of(BOB), 0.0)
    watched.left(name_of(BOB))
    assert watched.moved() == [Withdrawn(ALICE)]
    assert watched.deadline == math.inf


@given(st.lists(st.tuples(st.booleans(), st.floats(0.0, 2.0)), max_size=80))
def test_however_often_a_member_comes_and_goes_it_is_looked_up_once_in_two_seconds(
    events: list[tuple[bool, float]],
) -> None:
    watched = segment(ALICE)
    now, looked_at = 0.0, -math.inf
    for leaves, pause_s in events:
        now += pause_s
        if leaves:
            watched.left(name_of(ALICE))
        else:
            watched.heard(name_of(ALICE), now)
        for _ in watched.tick(now):
            assert now >= looked_at + LOOK_AGAIN_S
            looked_at = now


def test_the_last_word_is_looked_up_when_it_may_be() -> None:
    watched = segment(ALICE)
    watched.heard(name_of(ALICE), 0.0)
    watched.tick(0.0)
    watched.heard(name_of(ALICE), 1.0)
    assert watched.tick(1.0) == []
    assert watched.deadline == 2.0
    assert watched.tick(2.0) == [LookUp(ALICE)]


def test_a_flood_of_names_is_bounded_and_counted() -> None:
    peers = [key(n).peer_id for n in range(1000, 1000 + PEERS_MAX + 4)]
    watched = segment(*peers)
    for peer in peers:
        watched.heard(name_of(peer), 0.0)
    assert len(watched.tick(0.0)) == 256
    assert watched.refused == 4

    watched.left(name_of(peers[0]))
    watched.heard(name_of(peers[-1]), 1.0)
    assert watched.tick(1.0) == [LookUp(peers[-1])], "who left makes room"

    strangers = segment()
    told = [effect for peer in peers for effect in strangers.heard(name_of(peer), 0.0)]
    assert (len(told), strangers.strangers) == (256, STRANGERS_MAX)
    assert strangers.refused == 4
