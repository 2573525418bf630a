"""What is an entry, and what is refused as none? Form, limits, signature, every changed byte."""

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import OTHER_MESH
from test_gossip.memory_entries import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    MESH,
    NOW_MS,
    PUMPS,
    element,
    forgetting,
    note,
    register,
    removal,
    write,
)

from covey.gossip.memory.entry import (
    DERIVED_MAX,
    HASH_BYTES,
    HEADER_BYTES_MAX,
    PAYLOAD_BYTES_MAX,
    REASON_BYTES_MAX,
    SEEN_MAX,
    SIGNATURE_BYTES,
    Entry,
    Header,
    SignedHeader,
    check_payload,
    hash_of,
    namespace_id,
    open_entry,
    read_entry,
    sign_entry,
)
from covey.gossip.memory.kinds import (
    DAY_MS,
    Lifetime,
    Type,
    check_kind,
    kind_of,
    lifetime_of,
    pinned_only,
    type_of,
)
from covey.gossip.memory.replica import Arrival
from covey.identity.envelope import seal, signed_bytes
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.wire import decode, encode, encode_plain

HASH = b"\x07" * HASH_BYTES
HASHES = st.binary(min_size=HASH_BYTES, max_size=HASH_BYTES)
CLOCKS = st.integers(0, 2**64 - 1)
TYPES = range(16)
KINDS = st.sampled_from(
    [
        lifetime << 4 | type_
        for lifetime in Lifetime
        for type_ in TYPES
        if lifetime is Lifetime.PINNED or not (type_ in {*Type} and pinned_only(Type(type_)))
    ]
)


@st.composite
def headers(draw: st.DrawFn) -> Header:
    """Any header that is within the limits."""
    clock, kind = draw(CLOCKS), draw(KINDS)
    is_record = kind & 15 in (Type.REMOVAL, Type.FORGETTING)
    return Header(
        version=draw(st.integers(1, 3)),
        namespace=draw(HASHES),
        author=draw(st.sampled_from([ALICE, BOB, CAROL, ADMIN])).public_key,
        clock=clock,
        expires_s=draw(st.integers(0, ((clock >> 16) + lifetime_of(kind).ms) // 1000)),
        kind=kind,
        parent=draw(HASHES),
        key=draw(HASHES),
        seen=tuple(draw(st.lists(HASHES, max_size=4))),
        payload_digest=draw(st.binary(min_size=32, max_size=32)),
        payload_bytes=draw(st.integers(0, REASON_BYTES_MAX if is_record else PAYLOAD_BYTES_MAX)),
        certificate=draw(HASHES),
        derived_from=tuple(draw(st.lists(HASHES, max_size=2))),
        subject=draw(st.sampled_from([b"", BOB.public_key])),
        cut=draw(st.integers(0, clock)),
    )


def signed(header: Header) -> Entry:
    """Return the entry of a header, signed by whoever of ours it names; else by alice."""
    keypairs = {one.public_key: one for one in (ALICE, BOB, CAROL, ADMIN)}
    return sign_entry(header, mesh=MESH, keypair=keypairs.get(header.author, ALICE))


def changed(arrival: Arrival, **fields: Any) -> Entry:
    return signed(msgspec.structs.replace(arrival.entry.header, **fields))


@given(headers())
def test_what_is_signed_is_read_as_it_was(header: Header) -> None:
    entry = signed(header)

    opened = open_entry(entry.data, mesh=MESH)

    assert opened == read_entry(entry.data) == entry
    assert opened.header == header
    assert opened.data is entry.data
    assert encode(SignedHeader(encode(opened.header), entry.data[-SIGNATURE_BYTES:])) == entry.data
    assert opened.id == hashlib.sha256(encode(header)).digest()


@given(headers(), st.data())
def test_a_changed_byte_anywhere_is_refused(header: Header, data: st.DataObject) -> None:
    mutated = bytearray(signed(header).data)
    at = data.draw(st.integers(0, len(mutated) - 1))
    mutated[at] ^= data.draw(st.integers(1, 255))

    with pytest.raises((Malformed, NotAdmitted)):
        open_entry(bytes(mutated), mesh=MESH)


@given(headers(), st.data())
def test_what_is_cut_or_longer_is_refused(header: Header, data: st.DataObject) -> None:
    whole = signed(header).data
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    longer = whole + data.draw(st.binary(min_size=1, max_size=9))

    for other in (cut, longer):
        with pytest.raises(Malformed):
            open_entry(other, mesh=MESH)


@given(st.binary(max_size=300))
def test_any_bytes_are_malformed_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(Malformed):
        open_entry(data, mesh=MESH)
    with pytest.raises(Malformed):
        read_entry(data)


@given(
    st.lists(st.none() | st.integers() | st.binary(max_size=40) | st.text(max_size=9), max_size=17)
)
def test_a_signed_body_that_is_no_header_is_malformed(body: list[Any]) -> None:
    data = encode_plain(body)
    signature = ALICE.sign(signed_bytes("memory", MESH, data))

    with pytest.raises(Malformed):
        open_entry(encode(SignedHeader(data, signature)), mesh=MESH)


@pytest.mark.parametrize("beside", [b"text", "text", 0, None, []])
def test_nothing_that_nobody_signed_travels_beside_body_and_signature(beside: object) -> None:
    parts = decode(note(ALICE, "text").entry.data, SignedHeader)

    with pytest.raises(Malformed, match="which nobody signed"):
        open_entry(encode_plain([parts.body, parts.signature, beside]), mesh=MESH)


def test_a_signature_holds_in_one_mesh_for_one_author_and_one_purpose() -> None:
    header = note(ALICE, "text").entry.header
    elsewhere = sign_entry(header, mesh=OTHER_MESH, keypair=ALICE)
    by_bob = sign_entry(header, mesh=MESH, keypair=BOB)
    sealed = ALICE.sign(signed_bytes("advert", MESH, encode(header)))
    envelope = seal(header, kind="memory", mesh=MESH, keypair=ALICE)

    for data in (elsewhere.data, by_bob.data, encode(SignedHeader(encode(header), sealed))):
        with pytest.raises(NotAdmitted, match="does not hold in this mesh") as refused:
            open_entry(data, mesh=MESH)
        assert refused.value.code == "bad-signature"
    with pytest.raises(Malformed):
        open_entry(envelope, mesh=MESH)


@pytest.mark.parametrize("author", [b"\x01" + bytes(31), bytes(32), b"\xff" * 32])
def test_a_key_that_signs_everything_or_nothing_is_no_author(author: bytes) -> None:
    header = msgspec.structs.replace(note(ALICE, "text").entry.header, author=author)
    # With the neutral point as key, this is a signature over any message for some libraries.
    signature = b"\x01" + bytes(63)

    with pytest.raises(Malformed, match="not an Ed25519 key"):
        open_entry(encode(SignedHeader(encode(header), signature)), mesh=MESH)


CLOCK = NOW_MS << 16


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"version": 0}, "version|>= 1"),
        ({"version": -1}, ">= 1"),
        ({"namespace": HASH[1:]}, "length"),
        ({"author": ALICE.public_key[1:]}, "length"),
        ({"clock": -1}, ">= 0"),
        ({"clock": 1 << 64}, "CBOR"),
        ({"expires_s": (NOW_MS + 90 * DAY_MS) // 1000 + 1}, "expires later than a normal entry"),
        ({"kind": -1}, ">= 0"),
        ({"kind": 4 << 4 | Type.NOTE}, "unknown lifetime 4"),
        ({"kind": 1 << 40 | Type.NOTE}, "unknown lifetime"),
        ({"parent": HASH + b"\x00"}, "length"),
        ({"key": b""}, "length"),
        ({"seen": (HASH,) * (SEEN_MAX + 1)}, "length <= 64"),
        ({"seen": (HASH, HASH[1:])}, "length"),
        ({"payload_digest": HASH}, "length"),
        ({"payload_bytes": PAYLOAD_BYTES_MAX + 1}, "<= 16384"),
        ({"payload_bytes": -1}, ">= 0"),
        ({"certificate": b""}, "length"),
        ({"derived_from": (HASH,) * (DERIVED_MAX + 1)}, "length <= 8"),
        ({"subject": ALICE.public_key + b"\x00"}, "length <= 32"),
        ({"subject": ALICE.public_key[1:]}, "subject is not"),
        ({"cut": CLOCK + 1}, "beyond its own time"),
        ({"clock": 0}, "expires later"),
        ({"author": "alice"}, "not a Header"),
        ({"seen": None}, "not a Header"),
    ],
)
def test_a_header_beyond_a_limit_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Malformed, match=why):
        open_entry(changed(note(ALICE, "text"), **fields).data, mesh=MESH)


def test_what_acts_on_other_entries_gives_no_more_than_a_reason() -> None:
    for record in (removal(ALICE), forgetting(ADMIN)):
        most = changed(record, payload_bytes=REASON_BYTES_MAX)
        assert open_entry(most.data, mesh=MESH) == most
        with pytest.raises(Malformed, match="a reason has at most 1024 bytes"):
            open_entry(changed(record, payload_bytes=REASON_BYTES_MAX + 1).data, mesh=MESH)


@pytest.mark.parametrize("type_", TYPES)
def test_each_type_has_the_lifetimes_that_it_may_have(type_: int) -> None:
    always_pinned = {"element", "counter", "maximum", "minimum", "removal", "forgetting"}
    name = type_of(type_)
    for lifetime in Lifetime:
        kind = lifetime << 4 | type_
        entry = signed(msgspec.structs.replace(removal(ALICE).entry.header, kind=kind, expires_s=0))
        if lifetime is Lifetime.PINNED or name is None or name.name.lower() not in always_pinned:
            assert open_entry(entry.data, mesh=MESH).header.kind == kind
            assert lifetime_of(kind) is lifetime
            check_kind(kind)
        else:
            with pytest.raises(Malformed, match=f"a {name.name.lower()} is pinned, not"):
                open_entry(entry.data, mesh=MESH)


def test_types_of_later_versions_are_not_known_and_do_no_harm() -> None:
    assert [kind for kind in TYPES if type_of(kind) is None] == [0, 9, 10, 11, 12, 13]
    assert type_of(kind_of(Type.NOTE, Lifetime.BOOK)) is Type.NOTE


def test_the_largest_header_is_read() -> None:
    largest = changed(
        forgetting(ADMIN, subject=BOB, up_to_ms=NOW_MS - 1),
        clock=2**64 - 1,
        expires_s=(2**48 - 1) // 1000,
        seen=(HASH,) * SEEN_MAX,
        derived_from=(HASH,) * DERIVED_MAX,
    )

    assert open_entry(largest.data, mesh=MESH) == largest
    assert len(largest.data) <= HEADER_BYTES_MAX // 2 + 200


def test_a_header_over_the_size_limit_is_refused_before_it_is_read() -> None:
    body = [*msgspec.to_builtins(note(ALICE, "text").entry.header, builtin_types=(bytes,))]
    data = encode_plain([*body, b"x" * HEADER_BYTES_MAX])
    signature = ALICE.sign(signed_bytes("memory", MESH, data))

    with pytest.raises(Malformed, match="over the limit of 3072"):
        open_entry(encode(SignedHeader(data, signature)), mesh=MESH)


def test_a_field_of_a_later_version_is_passed_on_as_it_was_signed() -> None:
    body = [*msgspec.to_builtins(note(ALICE, "text").entry.header, builtin_types=(bytes,))]
    data = encode_plain([2, *body[1:], "of a later version"])
    signature = ALICE.sign(signed_bytes("memory", MESH, data))
    wire = encode(SignedHeader(data, signature))

    entry = open_entry(wire, mesh=MESH)

    assert (entry.data, entry.header.version) == (wire, 2)
    assert entry.id == hashlib.sha256(data).digest()


@pytest.mark.parametrize("lifetime", Lifetime)
def test_an_entry_is_kept_for_its_lifetime_and_may_expire_with_it(lifetime: Lifetime) -> None:
    days = {"SCRATCH": 1, "NORMAL": 90, "PINNED": 400, "BOOK": 2190}[lifetime.name]
    entry = note(ALICE, "text", lifetime=lifetime).entry

    assert entry.at_ms == NOW_MS
    assert entry.kept_until_ms == entry.header.expires_s * 1000 == NOW_MS + days * DAY_MS
    assert open_entry(entry.data, mesh=MESH) == entry


def test_what_is_written_later_stands_later_whatever_its_id() -> None:
    written = [
        note(ALICE, f"{at_ms} {counter}", at_ms=at_ms, counter=counter).entry
        for at_ms in (0, 255, 256, NOW_MS)
        for counter in (0, 1, 256, 2**16 - 1)
    ]

    assert sorted(written, key=lambda one: one.key) == written
    assert written[-1].key == (NOW_MS << 16 | 0xFFFF).to_bytes(8, "big") + written[-1].id


def test_a_slot_is_one_place_of_one_author_and_kind() -> None:
    first = register(ALICE, "limit", "7 mm/s").entry
    others = [
        register(BOB, "limit", "7 mm/s"),
        register(ALICE, "another limit", "7 mm/s"),
        register(ALICE, "limit", "7 mm/s", lifetime=Lifetime.PINNED),
        note(ALICE, "7 mm/s", name="limit"),
        write(Type.REGISTER, ALICE, "limit", "7 mm/s", parent="plant"),
        element(ALICE, "limits", "limit"),
    ]

    assert first.slot is not None
    assert register(ALICE, "limit", None, at_ms=NOW_MS + DAY_MS).entry.slot == first.slot
    assert len({first.slot, *(one.entry.slot for one in others)}) == 1 + len(others)
    assert removal(ALICE).entry.slot is None
    assert forgetting(ALICE).entry.slot is None


def test_in_the_books_a_slot_is_of_one_day_as_quotas_are() -> None:
    morning_ms = NOW_MS // DAY_MS * DAY_MS
    first, same_day, next_day = (
        register(ADMIN, "bob", "member", at_ms=at_ms, lifetime=Lifetime.BOOK).entry.slot
        for at_ms in (morning_ms, morning_ms + DAY_MS - 1, morning_ms + DAY_MS)
    )

    assert first == same_day != next_day


def test_a_payload_is_the_one_that_the_header_names() -> None:
    said = note(ALICE, "rising vibration precedes seal failure")
    assert said.payload is not None
    check_payload(said.entry, said.payload)

    other = said.payload[:-1] + bytes((said.payload[-1] ^ 1,))
    for wrong in (other, said.payload[:-1], said.payload + b"\x00", b""):
        with pytest.raises(Malformed, match="not the one that the header names"):
            check_payload(said.entry, wrong)


def test_a_name_is_another_in_another_mesh_zone_or_namespace() -> None:
    namespaces = [
        namespace_id(MESH, "mesh", "plant/pumps"),
        namespace_id(MESH, "plant-7", "plant/pumps"),
        namespace_id(MESH, "mesh", "plant/valves"),
        namespace_id(OTHER_MESH, "mesh", "plant/pumps"),
        namespace_id(MESH, "mesh/plant", "pumps"),
    ]

    assert namespaces[0] == PUMPS
    assert {len(one) for one in namespaces} == {16}
    assert len(set(namespaces)) == 5
    assert len({hash_of(one, "P-12") for one in namespaces}) == 5
    assert hash_of(PUMPS, "P-12") != hash_of(PUMPS, "P-13")


def test_a_header_shows_nothing_of_what_was_written() -> None:
    said = note(ALICE, "rising vibration precedes seal failure", name="P-12")

    for text in (b"vibration", b"P-12", b"plant", b"pumps"):
        assert text not in said.entry.data


@pytest.mark.parametrize("at", [0, 1, 5])
def test_a_damaged_row_is_malformed_and_nothing_worse(at: int) -> None:
    data = bytearray(note(ALICE, "text").entry.data)
    data[at] ^= 0xFF

    with pytest.raises(Malformed):
        read_entry(bytes(data))
