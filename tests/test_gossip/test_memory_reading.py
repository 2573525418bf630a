"""What is read of the memory is what was written, in plain words, and nothing that is not sound."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_gossip.members import ADMIN, MESH, NOW_MS
from test_gossip.memory_entries import (
    ALICE,
    BOB,
    CAROL,
    CERTIFICATE,
    PUMPS,
    counter,
    register,
    shared,
    unsigned,
)
from test_gossip.memory_tables import DictTables

from covey.gossip.memory.commands import (
    Command,
    CounterAdd,
    Forget,
    LogAppend,
    Maximum,
    Minimum,
    Note,
    Register,
    SetAdd,
    SetRemove,
    Shared,
)
from covey.gossip.memory.entry import Header, digest_of
from covey.gossip.memory.forms import is_json
from covey.gossip.memory.hybrid_clock import HybridClock
from covey.gossip.memory.kinds import DAY_MS, Lifetime, Type
from covey.gossip.memory.paths import Path, element_path, line_path, path_of
from covey.gossip.memory.payload import SALT_BYTES, Payload, Provenance, Source
from covey.gossip.memory.reading import State, entries, entry
from covey.gossip.memory.replica import Arrival, Quotas, Replica
from covey.gossip.memory.values import (
    Count,
    CounterValue,
    Extreme,
    LogValue,
    RegisterValue,
    SetValue,
    SharedValue,
    history,
    value,
)
from covey.gossip.memory.writing import Writer
from covey.identity.errors import Misuse, NotFound
from covey.identity.keys import Keypair
from covey.identity.wire import encode, encode_plain

SALT = b"\x05" * SALT_BYTES


class Memory:
    """One replica, into which everybody writes; each write is a millisecond later."""

    def __init__(self) -> None:
        self.tables = DictTables()
        self.now_ms = NOW_MS
        self._clock = HybridClock()

    def write(
        self, author: Keypair, command: Command, ttl_ms: int | None = None
    ) -> tuple[Arrival, ...]:
        self.now_ms += 1
        draw = random.Random(self.now_ms).randbytes
        by_admin = author is ADMIN
        writer = Writer(author, MESH, CERTIFICATE, self._clock, draw, by_admin=by_admin)
        written = writer.write(self.tables, PUMPS, command, self.now_ms, ttl_ms=ttl_ms)
        self.hold(*written)
        return written

    def hold(self, *arrivals: Arrival) -> None:
        replica = Replica(self.tables, self.now_ms, lambda _: Quotas())
        fates = [replica.apply(one) for one in arrivals]
        assert set(fates) <= {"kept"}

    def state_of(self, arrival: Arrival) -> State:
        return entry(self.tables, PUMPS, arrival.entry.id.hex(), self.now_ms).state

    def texts(self) -> list[str]:
        return [one.value for one in entries(self.tables, PUMPS, self.now_ms, shown_only=True)]

    def register(self, name: str) -> RegisterValue:
        [found] = value(self.tables, PUMPS, name, self.now_ms).values
        assert isinstance(found, RegisterValue)
        return found

    def elements(self, name: str) -> list[str]:
        [found] = value(self.tables, PUMPS, name, self.now_ms).values
        assert isinstance(found, SetValue)
        return [one.text for one in found.elements]


def says(
    type_: Type | int,
    path: Path,
    payload: bytes,
    *,
    author: Keypair = ALICE,
    lifetime: Lifetime = Lifetime.PINNED,
    **terms: int,
) -> Arrival:
    """Return an entry that says something in a place, whether it fits there or not."""
    header = Header(
        version=1,
        namespace=PUMPS,
        author=author.public_key,
        clock=(NOW_MS << 16) + terms.get("counter", 0),
        expires_s=(NOW_MS + lifetime.ms) // 1000,
        kind=int(lifetime) << 4 | int(type_),
        parent=path.parent,
        key=path.key,
        seen=(),
        payload_digest=digest_of(payload),
        payload_bytes=len(payload),
        certificate=CERTIFICATE,
    )
    return Arrival(unsigned(header), payload, by_admin=False)


def text_payload(key: str, text: str, *, schema: int = 1, record: bytes = b"") -> bytes:
    return encode(Payload(schema, SALT, key, text, record=record))


# Single entries


def test_an_entry_is_shown_with_who_wrote_it_when_and_from_what() -> None:
    memory = Memory()
    provenance = Provenance((Source("observations.csv", b"\x01" * 32, 4096, 120),), "smollm2")
    [source] = memory.write(BOB, Note("P-12 shook"))
    [written] = memory.write(
        ALICE, Note("rising vibration", provenance, derived_from=(source.entry.id,)), ttl_ms=DAY_MS
    )

    found = entry(memory.tables, PUMPS, written.entry.id.hex(), memory.now_ms)

    assert found.id == written.entry.id
    assert found.namespace == PUMPS
    assert found.author == ALICE.peer_id
    assert found.at_ms == NOW_MS + 2
    assert found.expires_ms == (NOW_MS + 2 + DAY_MS) // 1000 * 1000
    assert (found.type, found.lifetime, found.state) == (Type.NOTE, Lifetime.NORMAL, State.SHOWN)
    assert found.value == "rising vibration"
    assert found.provenance == provenance
    assert found.derived_from == (source.entry.id[:16],)


def test_an_entry_is_found_by_how_its_id_begins() -> None:
    memory = Memory()
    written = [memory.write(ALICE, Note(str(n)))[0].entry.id.hex() for n in range(600)]
    first = written[0]
    alike = sorted(one for one in written if sum(one[:4] == other[:4] for other in written) > 1)
    assert len(alike) >= 2, "with this seed some begin alike"

    for prefix in (first[:5], first[:20], first[:33], first, f" {first[:7].upper()}\n"):
        assert entry(memory.tables, PUMPS, prefix, memory.now_ms).id.hex() == first
    with pytest.raises(Misuse, match=f"several ids begin with {alike[0][:4]}: .*more digits"):
        entry(memory.tables, PUMPS, alike[0][:4], memory.now_ms)
    with pytest.raises(NotFound, match="nothing is held here under the id"):
        entry(memory.tables, PUMPS, first[:-1] + ("0" if first[-1] != "0" else "1"), memory.now_ms)
    for bad in ("", "abc", "xyz1", "0" * 65):
        with pytest.raises(Misuse, match="is named by 4 to 64 hexadecimal digits"):
            entry(memory.tables, PUMPS, bad, memory.now_ms)


def test_the_newest_entries_come_first_page_by_page() -> None:
    memory = Memory()
    for n in range(5):
        memory.write((ALICE, BOB)[n % 2], Note(str(n)))
    memory.write(ALICE, CounterAdd("hours", 1))

    first = entries(memory.tables, PUMPS, memory.now_ms, limit=4)
    rest = entries(memory.tables, PUMPS, memory.now_ms, limit=4, older_than=first[-1].order)
    alices = entries(memory.tables, PUMPS, memory.now_ms, author=ALICE.peer_id, limit=3)
    more = entries(
        memory.tables, PUMPS, memory.now_ms, author=ALICE.peer_id, older_than=alices[-1].order
    )

    assert [one.value for one in first] == ["1 0", "4", "3", "2"]
    assert [one.value for one in rest] == ["1", "0"]
    assert [one.value for one in alices] == ["1 0", "4", "2"]
    assert [one.value for one in more] == ["0"]
    assert entries(memory.tables, PUMPS, memory.now_ms, author=CAROL.peer_id) == ()
    for limit in (0, 50_001):
        with pytest.raises(Misuse, match="the limit is 1 to 50000 entries"):
            entries(memory.tables, PUMPS, memory.now_ms, limit=limit)


def test_each_state_has_its_word_and_only_what_is_held_has_a_text() -> None:
    memory = Memory()
    [ends] = memory.write(ALICE, Note("a"), ttl_ms=DAY_MS)
    [forgotten] = memory.write(ALICE, Note("b"))
    [forgetting] = memory.write(ALICE, Forget((forgotten.entry.id,), "asked to"))
    [older] = memory.write(BOB, Shared("owner", '"bob"'))
    [shown] = memory.write(ALICE, Shared("owner", '"alice"'))
    [element] = memory.write(ALICE, SetAdd("faults", "seal"))
    [removal] = memory.write(ALICE, SetRemove("faults", "seal"))
    [missing] = Memory().write(CAROL, Register("limit", "4"))
    withdrawn = register(CAROL, "other", None)
    unknown = says(9, path_of(PUMPS, "x"), b"\x01")
    memory.hold(Arrival(missing.entry, None, by_admin=False), withdrawn, unknown)
    memory.now_ms += DAY_MS

    found = {
        one.entry.id: entry(memory.tables, PUMPS, one.entry.id.hex(), memory.now_ms)
        for one in (
            ends, forgotten, forgetting, older, shown, element, removal, missing, withdrawn, unknown
        )
    }  # fmt: skip

    assert [(str(one.state), one.value) for one in found.values()] == [
        ("expired", ""),
        ("forgotten", ""),
        ("in force", "asked to"),
        ("superseded", '"bob"'),
        ("shown", '"alice"'),
        ("removed", ""),
        ("in force", ""),
        ("payload missing", ""),
        ("withdrawn", ""),
        ("not of this version", ""),
    ]
    assert memory.texts() == ['"alice"']
    listed = entries(memory.tables, PUMPS, memory.now_ms)
    assert {one.id: one for one in listed} == found


def test_what_is_over_its_lifetime_is_gone_though_nobody_has_dropped_it_yet() -> None:
    memory = Memory()
    [written] = memory.write(ALICE, Register("limit", "4"))
    memory.now_ms += 90 * DAY_MS

    with pytest.raises(NotFound):
        memory.state_of(written)
    assert entries(memory.tables, PUMPS, memory.now_ms) == ()
    assert history(memory.tables, PUMPS, "limit", memory.now_ms) == ()
    assert value(memory.tables, PUMPS, "limit", memory.now_ms).values == ()


# What is not sound


@pytest.mark.parametrize(
    "arrival",
    [
        says(9, path_of(PUMPS, "k"), text_payload("k", "1")),
        says(Type.REGISTER, path_of(PUMPS, "k"), b"\xff not CBOR"),
        says(Type.REGISTER, path_of(PUMPS, "k"), text_payload("k", "1", schema=2)),
        says(Type.REGISTER, path_of(PUMPS, "k"), text_payload("other", "1")),
        says(Type.REGISTER, path_of(PUMPS, "k"), text_payload("k", "not JSON")),
        says(Type.REGISTER, path_of(PUMPS, "k"), encode_plain([1, SALT, "k", b"1"])),
        says(Type.REGISTER, Path(path_of(PUMPS, "k").key, path_of(PUMPS, "k").key), text_payload("k", "1")),
        says(Type.REGISTER, path_of(PUMPS, "k"), text_payload("k", "[" * 33 + "]" * 33)),
        says(Type.SHARED, path_of(PUMPS, "k"), text_payload("k", '{"a":' * 965 + "1" + "}" * 965)),
        says(Type.SHARED, path_of(PUMPS, "k"), text_payload("k", "{")),
        says(Type.COUNTER, path_of(PUMPS, "k"), text_payload("k", "5")),
        says(Type.COUNTER, path_of(PUMPS, "k"), text_payload("k", "-5 0")),
        says(Type.COUNTER, path_of(PUMPS, "k"), text_payload("k", "\u0665 0")),
        says(Type.COUNTER, path_of(PUMPS, "k"), text_payload("k", "1" * 31 + " 0")),
        says(Type.MAXIMUM, path_of(PUMPS, "k"), text_payload("k", "NaN")),
        says(Type.MINIMUM, path_of(PUMPS, "k"), text_payload("k", "1e9999")),
        says(Type.ELEMENT, element_path(PUMPS, "k", "other"), text_payload("k", "seal")),
        says(Type.ELEMENT, path_of(PUMPS, "k/seal"), text_payload("k", "seal")),
        says(Type.LINE, line_path(PUMPS, "k", 0), text_payload("k", "no number")),
        says(Type.LINE, line_path(PUMPS, "k", 0), text_payload("k", "1001 too many")),
        says(Type.LINE, line_path(PUMPS, "k", 0), text_payload("other", "2 text")),
        says(Type.NOTE, path_of(PUMPS, "k"), text_payload("k", "\x1b[2J")),
        says(Type.NOTE, path_of(PUMPS, "k\x07"), text_payload("k\x07", "text")),
        says(Type.NOTE, path_of(PUMPS, "k"), text_payload("k", "")),
        says(
            Type.NOTE,
            path_of(PUMPS, "k"),
            encode(Payload(1, SALT, "k", "text", Provenance(model="\x1b[2J"))),
        ),
    ],
)  # fmt: skip
def test_what_is_unknown_garbled_or_in_a_wrong_place_is_never_shown(arrival: Arrival) -> None:
    memory = Memory()
    memory.hold(arrival)

    [listed] = entries(memory.tables, PUMPS, memory.now_ms)

    assert listed.state is State.UNREADABLE
    assert (listed.key, listed.value, listed.provenance) == ("", "", None)
    for answer in value(memory.tables, PUMPS, "k", memory.now_ms).values:
        match answer:
            case CounterValue(total, counts, lapsed):
                assert (total, counts, lapsed) == (0, (), (listed,))
            case SetValue(elements, lapsed):
                assert (elements, lapsed) == ((), (listed,))
            case Extreme(_, best, lapsed):
                assert (best, lapsed) == (None, (listed,))
            case _:
                pytest.fail(f"{answer} is shown")


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("[" * 32 + "]" * 32, True),
        ("[" * 33 + "]" * 33, False),
        ('{"[":' * 32 + '"]"' + "}" * 32, True),
        ('{"[":' * 33 + '"]"' + "}" * 33, False),
        ("[" + "[]," * 2000 + "[]]", True),
        ('["' + "[" * 2000 + '\\"' + "{" * 2000 + '"]', True),
        ('["\\\\"' + "[" * 40, False),
        ("]" * 40 + "[" * 40, False),
        ('"' + '\\"' * 4000, False),
    ],
)
def test_json_is_taken_by_how_deep_it_is_and_not_by_what_its_texts_hold(
    text: str, is_one: bool
) -> None:
    assert is_json(text) is is_one


@given(
    st.integers(0, 15),
    st.sampled_from([path_of(PUMPS, "k"), element_path(PUMPS, "k", "x"), line_path(PUMPS, "k", 0)]),
    st.one_of(
        st.binary(min_size=1, max_size=60),
        st.builds(
            text_payload,
            st.sampled_from(["k", "", "k/x"]),
            st.text(st.characters(codec="utf-8"), max_size=20),
        ),
    ),
)
def test_no_payload_of_any_type_makes_reading_fail(type_: int, path: Path, payload: bytes) -> None:
    memory = Memory()
    memory.hold(says(type_, path, payload))

    listed = entries(memory.tables, PUMPS, memory.now_ms)
    value(memory.tables, PUMPS, "k", memory.now_ms)
    history(memory.tables, PUMPS, "k", memory.now_ms)

    assert len(listed) == 1


def test_the_meshs_own_records_are_in_no_value() -> None:
    memory = Memory()
    memory.hold(
        says(
            Type.REGISTER,
            path_of(PUMPS, "k"),
            text_payload("k", "", record=b"\x83"),
            lifetime=Lifetime.BOOK,
        )
    )

    [listed] = entries(memory.tables, PUMPS, memory.now_ms)

    assert (listed.state, listed.value) == (State.SHOWN, "")
    assert value(memory.tables, PUMPS, "k", memory.now_ms).values == ()


@pytest.mark.parametrize("name", ["a/b", "a/0", "a/line/0", "a/element/b"])
def test_what_is_inside_a_set_or_a_log_stands_where_no_key_can(name: str) -> None:
    inside = (element_path(PUMPS, "a", "b"), line_path(PUMPS, "a", 0))

    assert path_of(PUMPS, name).key not in {one.key for one in inside}
    assert inside[0].key != inside[1].key
    assert {one.parent for one in inside} == {path_of(PUMPS, "a").key}


# Values


def test_of_a_register_the_newest_is_the_value_and_the_others_are_told() -> None:
    memory = Memory()
    memory.write(BOB, Register("limit", "4"))
    memory.write(CAROL, Register("limit", "5"))
    [newest] = memory.write(ALICE, Register("limit", "6"), ttl_ms=DAY_MS)
    memory.write(ALICE, Note("something else"))

    found = memory.register("limit")
    assert (found.newest.id, found.newest.value) == (newest.entry.id, "6")
    assert [(one.author, one.value) for one in found.others] == [
        (CAROL.peer_id, "5"),
        (BOB.peer_id, "4"),
    ]

    memory.now_ms += DAY_MS
    assert memory.register("limit").newest.value == "5", "what ended does not stand in the way"


def test_an_author_has_one_value_in_a_register_whatever_lifetimes_it_wrote_with() -> None:
    memory = Memory()
    memory.hold(
        register(ALICE, "limit", "4", at_ms=NOW_MS - 2, lifetime=Lifetime.PINNED),
        register(BOB, "limit", "5", at_ms=NOW_MS - 1),
        register(ALICE, "limit", "6"),
    )

    found = memory.register("limit")

    assert found.newest.value == "6"
    assert [one.value for one in found.others] == ["5"]


def test_a_conflict_is_told_until_a_writer_has_seen_both() -> None:
    memory = Memory()
    memory.hold(shared(BOB, "owner", '"bob"'), shared(CAROL, "owner", '"carol"', counter=1))

    [found] = value(memory.tables, PUMPS, "owner", memory.now_ms).values
    assert isinstance(found, SharedValue)
    assert found.is_conflict
    assert [one.value for one in found.values] == ['"carol"', '"bob"']
    assert found.pick.author == CAROL.peer_id

    memory.write(BOB, Shared("owner", '"bob"'))
    [found] = value(memory.tables, PUMPS, "owner", memory.now_ms).values
    assert isinstance(found, SharedValue)
    assert not found.is_conflict
    assert [one.value for one in found.values] == ['"bob"']


def test_two_who_say_the_same_do_not_disagree() -> None:
    memory = Memory()
    memory.hold(shared(BOB, "owner", "7"), shared(CAROL, "owner", "7", counter=1))

    [found] = value(memory.tables, PUMPS, "owner", memory.now_ms).values

    assert isinstance(found, SharedValue)
    assert len(found.values) == 2
    assert not found.is_conflict


def test_a_set_tells_who_put_each_element_in_and_which_have_lapsed() -> None:
    memory = Memory()
    memory.write(BOB, SetAdd("faults", "seal"))
    memory.write(ALICE, SetAdd("faults", "bearing"))
    memory.write(ALICE, SetAdd("faults", "seal"))
    [ends] = memory.write(ALICE, SetAdd("faults", "belt"), ttl_ms=DAY_MS)
    memory.now_ms += DAY_MS

    [found] = value(memory.tables, PUMPS, "faults", memory.now_ms).values

    assert isinstance(found, SetValue)
    assert [(one.text, [add.author for add in one.adds]) for one in found.elements] == [
        ("bearing", [ALICE.peer_id]),
        ("seal", [ALICE.peer_id, BOB.peer_id]),
    ]
    assert found.elements[1].adds[1].at_ms == NOW_MS + 1
    assert [(one.id, one.state) for one in found.lapsed] == [(ends.entry.id, State.EXPIRED)]


def test_a_set_that_was_emptied_is_empty_and_not_unknown() -> None:
    memory = Memory()
    memory.write(ALICE, SetAdd("faults", "seal"))
    memory.write(BOB, SetRemove("faults", "seal"))

    answer = value(memory.tables, PUMPS, "faults", memory.now_ms)

    assert answer.values == (SetValue((), ()),)
    assert value(memory.tables, PUMPS, "unknown", memory.now_ms).values == ()


def test_a_count_that_lapsed_is_told_and_never_silently_absent() -> None:
    memory = Memory()
    memory.write(ALICE, CounterAdd("hours", 5))
    memory.write(ALICE, CounterAdd("hours", -2))
    [ends] = memory.write(BOB, CounterAdd("hours", 7), ttl_ms=DAY_MS)
    missing = counter(CAROL, "hours", 9, 0)
    memory.hold(Arrival(missing.entry, None, by_admin=False))
    memory.now_ms += DAY_MS

    [found] = value(memory.tables, PUMPS, "hours", memory.now_ms).values

    assert isinstance(found, CounterValue)
    assert found.total == 3
    assert found.counts == (Count(ALICE.peer_id, 5, 2, NOW_MS + 2),)
    assert [(one.author, one.state) for one in found.lapsed] == [
        (BOB.peer_id, State.EXPIRED),
        (CAROL.peer_id, State.MISSING),
    ]
    assert found.lapsed[0].id == ends.entry.id


def test_numbers_are_compared_as_numbers() -> None:
    memory = Memory()
    for author, text in ((ALICE, "9"), (BOB, "10"), (CAROL, "-0.10")):
        memory.write(author, Maximum("peak", text))
        memory.write(author, Minimum("peak", text))
    memory.write(ALICE, Minimum("peak", "-1e-1"))

    greatest, smallest = value(memory.tables, PUMPS, "peak", memory.now_ms).values

    assert isinstance(greatest, Extreme)
    assert isinstance(smallest, Extreme)
    assert greatest.best is not None
    assert (greatest.type, greatest.best.value) == (Type.MAXIMUM, "10")
    assert smallest.best is not None
    assert (smallest.best.value, smallest.best.author) == ("-1e-1", ALICE.peer_id), "newest of two"


def test_an_extreme_that_lapsed_is_told() -> None:
    memory = Memory()
    memory.write(ALICE, Maximum("peak", "9"), ttl_ms=DAY_MS)
    memory.now_ms += DAY_MS

    [found] = value(memory.tables, PUMPS, "peak", memory.now_ms).values

    assert isinstance(found, Extreme)
    assert found.best is None
    assert [one.author for one in found.lapsed] == [ALICE.peer_id]


def test_a_log_shows_of_each_author_what_its_newest_line_wants_kept() -> None:
    memory = Memory()
    for n in range(4):
        memory.hold(
            says(
                Type.LINE,
                line_path(PUMPS, "shift", n),
                text_payload("shift", f"{4 - n} line {n}"),
                author=BOB,
                counter=n,
            )
        )
    memory.write(ALICE, LogAppend("shift", "1000\n2 more", 2))

    [found] = value(memory.tables, PUMPS, "shift", memory.now_ms).values

    assert isinstance(found, LogValue)
    assert [one.value for one in found.lines] == ["1000\n2 more", "line 3"]


def test_all_kinds_that_stand_under_one_key_are_told() -> None:
    memory = Memory()
    for command in (
        Register("a/b", "1"),
        Shared("a/b", "2"),
        SetAdd("a/b", "3"),
        CounterAdd("a/b", 4),
        Maximum("a/b", "5"),
        Minimum("a/b", "6"),
        LogAppend("a/b", "7"),
        Register("a/b/c", "8"),
        Register("a", "9"),
    ):
        memory.write(ALICE, command)

    found = value(memory.tables, PUMPS, "a/b", memory.now_ms).values

    assert [type(one) for one in found] == [
        RegisterValue, SharedValue, SetValue, CounterValue, Extreme, Extreme, LogValue
    ]  # fmt: skip


def test_an_answer_of_which_there_is_more_says_so() -> None:
    memory = Memory()
    for text in "abc":
        memory.write(ALICE, SetAdd("faults", text))

    assert value(memory.tables, PUMPS, "faults", memory.now_ms, rows_max=3).complete
    assert not value(memory.tables, PUMPS, "faults", memory.now_ms, rows_max=2).complete


# Histories


def test_a_history_is_what_each_author_said_last_newest_first_with_what_became_of_it() -> None:
    memory = Memory()
    memory.write(ALICE, Shared("owner", "1"))
    memory.write(ALICE, Shared("owner", "2"))
    memory.write(BOB, Shared("owner", "3"))
    memory.write(BOB, Register("owner", "4"))
    memory.write(BOB, Register("owner/since", "5"))
    [forgotten] = memory.write(CAROL, CounterAdd("owner", 6))
    memory.write(CAROL, Forget((forgotten.entry.id,)))

    told = history(memory.tables, PUMPS, "owner", memory.now_ms)

    assert [(one.author, one.value, one.state) for one in told] == [
        (CAROL.peer_id, "", State.FORGOTTEN),
        (BOB.peer_id, "4", State.SHOWN),
        (BOB.peer_id, "3", State.SHOWN),
        (ALICE.peer_id, "2", State.SUPERSEDED),
    ]
    assert history(memory.tables, PUMPS, "owner", memory.now_ms, limit=2) == told[:2]


def test_a_sets_history_has_its_elements_and_removals_and_a_logs_its_lines() -> None:
    memory = Memory()
    memory.write(ALICE, SetAdd("a", "seal"))
    memory.write(BOB, SetRemove("a", "seal"))
    memory.write(ALICE, SetAdd("a", "belt"))
    memory.write(ALICE, LogAppend("a", "began", 1))

    told = history(memory.tables, PUMPS, "a", memory.now_ms)

    assert [(one.type, one.value, one.state) for one in told] == [
        (Type.LINE, "began", State.SHOWN),
        (Type.ELEMENT, "belt", State.SHOWN),
        (Type.REMOVAL, "", State.IN_FORCE),
        (Type.ELEMENT, "", State.REMOVED),
    ]


@pytest.mark.parametrize("key", ["", "/a", "a//b", "x" * 201, "a\x00element\x00b"])
def test_a_key_that_can_be_none_is_told(key: str) -> None:
    memory = Memory()

    with pytest.raises(Misuse):
        value(memory.tables, PUMPS, key, memory.now_ms)
    with pytest.raises(Misuse):
        history(memory.tables, PUMPS, key, memory.now_ms)
