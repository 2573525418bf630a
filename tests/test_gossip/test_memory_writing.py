"""What a user writes on one device is what every device reads, in whatever order it comes."""

import random
from collections.abc import Callable, Iterable
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_gossip.members import ADMIN, MESH, NOW_MS, key
from test_gossip.memory_entries import (
    ALICE,
    BOB,
    CAROL,
    CERTIFICATE,
    PUMPS,
    counter,
    register,
    write,
)
from test_gossip.memory_tables import DictTables

from covey.gossip.memory.commands import (
    Command,
    CounterAdd,
    Forget,
    ForgetAuthor,
    LogAppend,
    Maximum,
    Minimum,
    Note,
    Register,
    SetAdd,
    SetRemove,
    Shared,
)
from covey.gossip.memory.entry import (
    Entry,
    EntryId,
    check_payload,
    open_entry,
)
from covey.gossip.memory.hybrid_clock import COUNTER_BITS, HybridClock
from covey.gossip.memory.kinds import DAY_MS, Lifetime, Type, type_of
from covey.gossip.memory.payload import Embedding, Payload, Provenance, Source, decode_payload
from covey.gossip.memory.reading import State, entries, entry
from covey.gossip.memory.replica import Arrival, Quotas, Replica
from covey.gossip.memory.tables import Table
from covey.gossip.memory.values import (
    CounterValue,
    Extreme,
    LogValue,
    RegisterValue,
    SetValue,
    SharedValue,
    Value,
    history,
    value,
)
from covey.gossip.memory.writing import Writer
from covey.identity.errors import Misuse, NotFound, Unavailable
from covey.identity.keys import Keypair

MINUTE_MS = 60_000

law = settings(max_examples=max(300, settings().max_examples))


class Device:
    """One author and its replica; its wall clock may be off by some."""

    def __init__(self, keypair: Keypair, *, off_ms: int = 0) -> None:
        self.keypair = keypair
        self.now_ms = NOW_MS + off_ms
        self.tables = DictTables()
        self.writer = Writer(
            keypair,
            MESH,
            CERTIFICATE,
            HybridClock(),
            random.Random(keypair.public_key).randbytes,
            by_admin=keypair is ADMIN,
        )

    def write(
        self, command: Command, *, lifetime: Lifetime | None = None, ttl_ms: int | None = None
    ) -> tuple[Arrival, ...]:
        written = self.writer.write(
            self.tables, PUMPS, command, self.now_ms, lifetime=lifetime, ttl_ms=ttl_ms
        )
        assert self.receive(written) == ["kept"] * len(written)
        return written

    def receive(self, arrivals: Iterable[Arrival]) -> list[str]:
        replica = Replica(self.tables, self.now_ms, lambda _: Quotas())
        return [replica.apply(one) for one in arrivals]

    def pass_time(self, ms: int) -> None:
        self.now_ms += ms
        Replica(self.tables, self.now_ms, lambda _: Quotas()).pass_time(1000)

    def values(self, name: str) -> tuple[Value, ...]:
        answer = value(self.tables, PUMPS, name, self.now_ms)
        assert answer.complete
        return answer.values

    def texts(self) -> list[str]:
        """What is shown, newest first."""
        return [one.value for one in entries(self.tables, PUMPS, self.now_ms, shown_only=True)]

    def total(self, name: str) -> int:
        return sum(one.total for one in self.values(name) if isinstance(one, CounterValue))

    def elements(self, name: str) -> list[str]:
        found = [one for one in self.values(name) if isinstance(one, SetValue)]
        return [element.text for one in found for element in one.elements]

    def shared(self, name: str) -> list[str]:
        """Sorted: which of concurrent values is the newer is chance."""
        found = [one for one in self.values(name) if isinstance(one, SharedValue)]
        return sorted(said.value for one in found for said in one.values)

    def register(self, name: str) -> str | None:
        found = [one for one in self.values(name) if isinstance(one, RegisterValue)]
        return found[0].newest.value if found else None

    def lines(self, name: str) -> list[str]:
        found = [one for one in self.values(name) if isinstance(one, LogValue)]
        return [line.value for one in found for line in one.lines]

    def extreme(self, name: str) -> str | None:
        [found] = [one for one in self.values(name) if isinstance(one, Extreme)]
        return found.best.value if found.best is not None else None


def devices() -> tuple[Device, Device, Device]:
    """Three, whose clocks are a minute apart each."""
    return Device(ALICE), Device(BOB, off_ms=-MINUTE_MS), Device(CAROL, off_ms=MINUTE_MS)


def in_step(*peers: Device) -> None:
    """Let each have what any has, as far as it can be had."""
    sent = [arrival for peer in peers for arrival in held(peer)]
    for peer in peers:
        peer.receive(sent)


def held(peer: Device) -> list[Arrival]:
    rows = peer.tables.rows()
    return [
        Arrival(
            open_entry(data, mesh=MESH),
            rows[Table.PAYLOAD].get(place),
            by_admin=peer.keypair is ADMIN,
        )
        for place, data in rows[Table.ENTRY].items()
    ]


# Laws: three devices write and hear of each other's writes, any of them, in any order, again and
# again. What each then reads is what a plain model says of the writes that it has heard of.

Step = tuple[int, int, int]
STEPS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2**12 - 1)), max_size=10
)
"""Which device; 0, 1: it writes, 2: it hears; what."""
Written = list[tuple[int, Arrival]]
"""Everybody's writes in the order of their making, by device."""


class Mesh:
    """Three devices, and which writes each has heard of."""

    def __init__(self) -> None:
        self.devices = devices()
        self.written: Written = []
        self.heard: tuple[set[int], ...] = (set(), set(), set())

    def run(self, steps: list[Step], command: Callable[[int, int, int], Command | None]) -> None:
        for who, what, argument in steps:
            if what < 2:
                self.write(who, command(who, what, argument))
            else:
                self.hear(who, argument)

    def write(self, who: int, command: Command | None) -> None:
        if command is None:
            return
        for arrival in self.devices[who].write(command):
            self.heard[who].add(len(self.written))
            self.written.append((who, arrival))

    def hear(self, who: int, argument: int) -> None:
        numbers = [n for n in range(len(self.written)) if argument >> n % 12 & 1]
        if argument & 1:
            numbers.reverse()
        self.devices[who].receive(self.written[n][1] for n in numbers)
        self.heard[who].update(numbers)

    def hear_all(self, order: int) -> None:
        """Let everything reach every device, twice, in an order of its own at each."""
        for who, device in enumerate(self.devices):
            numbers = list(range(len(self.written))) * 2
            random.Random(order + who).shuffle(numbers)
            device.receive(self.written[n][1] for n in numbers)
            self.heard[who].update(numbers)


@law
@given(STEPS, st.integers())
def test_a_counter_is_the_sum_of_what_each_author_is_known_to_have_counted(
    steps: list[Step], order: int
) -> None:
    mesh = Mesh()
    deltas: list[int] = []

    def command(_who: int, what: int, argument: int) -> Command:
        deltas.append((argument + 1) * (-1) ** what)
        return CounterAdd("hours", deltas[-1])

    def model(who: int) -> int:
        total = 0
        for author in range(3):
            mine = [n for n, (writer, _) in enumerate(mesh.written) if writer == author]
            newest = max((n for n in mine if n in mesh.heard[who]), default=-1)
            total += sum(deltas[n] for n in mine if n <= newest)
        return total

    mesh.run(steps, command)
    for who, device in enumerate(mesh.devices):
        assert device.total("hours") == model(who)
    mesh.hear_all(order)

    for device in mesh.devices:
        assert device.total("hours") == sum(deltas)


@law
@given(STEPS, st.integers())
def test_an_element_is_in_a_set_as_long_as_one_add_is_known_that_no_removal_has_seen(
    steps: list[Step], order: int
) -> None:
    mesh = Mesh()
    adds: dict[int, tuple[int, str]] = {}
    removals: dict[int, set[int]] = {}

    def known(who: int, text: str) -> set[int]:
        """Of each author the newest add that has been heard of."""
        newest: dict[int, int] = {}
        for n, (author, added) in sorted(adds.items()):
            if n in mesh.heard[who] and added == text:
                newest[author] = n
        return set(newest.values())

    def model(who: int, text: str) -> set[int]:
        gone = {one for n, seen in removals.items() if n in mesh.heard[who] for one in seen}
        return known(who, text) - gone

    def command(who: int, what: int, argument: int) -> Command | None:
        text = "ab"[argument % 2]
        if what == 0:
            adds[len(mesh.written)] = (who, text)
            return SetAdd("faults", text)
        if not model(who, text):
            return None
        removals[len(mesh.written)] = known(who, text)
        return SetRemove("faults", text)

    mesh.run(steps, command)
    for who, device in enumerate(mesh.devices):
        assert device.elements("faults") == [text for text in "ab" if model(who, text)]
    mesh.hear_all(order)

    for who, device in enumerate(mesh.devices):
        assert device.elements("faults") == [text for text in "ab" if model(who, text)]


@law
@given(STEPS, st.integers())
def test_of_a_shared_key_those_values_stand_that_no_later_writer_had_seen(
    steps: list[Step], order: int
) -> None:
    mesh = Mesh()
    seen: list[set[int]] = []

    def standing(who: int) -> set[int]:
        """Of each author the newest value that has been heard of."""
        newest = {mesh.written[n][0]: n for n in range(len(mesh.written)) if n in mesh.heard[who]}
        return set(newest.values())

    def model(who: int) -> list[str]:
        newest = standing(who)
        return sorted(str(n) for n in newest - {one for n in newest for one in seen[n]})

    def command(who: int, _what: int, _argument: int) -> Command:
        seen.append(standing(who))
        return Shared("owner", str(len(mesh.written)))

    mesh.run(steps, command)
    for who, device in enumerate(mesh.devices):
        assert device.shared("owner") == model(who)
    mesh.hear_all(order)
    for who, device in enumerate(mesh.devices):
        assert device.shared("owner") == model(who)
    mesh.write(0, command(0, 0, 0))
    mesh.hear_all(order)

    for device in mesh.devices:
        assert device.shared("owner") == [str(len(seen) - 1)]


@law
@given(STEPS, st.integers())
def test_the_newest_value_of_a_register_wins_everywhere(steps: list[Step], order: int) -> None:
    mesh = Mesh()

    mesh.run(steps, lambda _who, _what, _argument: Register("limit", str(len(mesh.written))))
    for who, device in enumerate(mesh.devices):
        known = [(mesh.written[n][1].entry.key, n) for n in mesh.heard[who]]
        assert device.register("limit") == (str(max(known)[1]) if known else None)
    mesh.hear_all(order)
    mesh.write(1, Register("limit", '"last"'))
    mesh.hear_all(order)

    for device in mesh.devices:
        assert device.register("limit") == '"last"', "bob's clock is behind, but he had seen all"


@law
@given(STEPS, st.integers(1, 3), st.integers())
def test_a_log_keeps_the_newest_lines_of_each_author(
    steps: list[Step], keep: int, order: int
) -> None:
    mesh = Mesh()

    mesh.run(steps, lambda _who, _what, _argument: LogAppend("shift", f"{len(mesh.written)}", keep))
    mesh.hear_all(order)

    expected = [
        (arrival.entry.key, str(n))
        for author in range(3)
        for n, arrival in [
            (n, arrival) for n, (who, arrival) in enumerate(mesh.written) if who == author
        ][-keep:]
    ]
    for device in mesh.devices:
        assert device.lines("shift") == [text for _, text in sorted(expected, reverse=True)]
        assert len(device.tables.rows()[Table.ENTRY]) <= 3 * keep


@law
@given(STEPS, st.integers())
def test_the_greatest_and_the_smallest_number_of_all_win(steps: list[Step], order: int) -> None:
    mesh = Mesh()
    numbers: list[Decimal] = [Decimal(7)]
    mesh.write(0, Maximum("peak", "7"))
    mesh.write(0, Minimum("low", "7"))

    def command(who: int, _what: int, argument: int) -> Command:
        numbers.append(Decimal(argument - 2000).scaleb(-argument % 4))
        mesh.write(who, Minimum("low", f"{numbers[-1]:f}"))
        return Maximum("peak", f"{numbers[-1]:f}")

    mesh.run(steps, command)
    mesh.hear_all(order)

    for device in mesh.devices:
        assert Decimal(device.extreme("peak") or "") == max(numbers)
        assert Decimal(device.extreme("low") or "") == min(numbers)


# What every entry must be


PROVENANCE = Provenance((Source("observations.csv", b"\x01" * 32, 4096, 120),), "smollm2")


@pytest.mark.parametrize(
    ("command", "type_", "lifetime"),
    [
        (Note("P-12: rising vibration", PROVENANCE), Type.NOTE, Lifetime.NORMAL),
        (
            Note("x", None, Embedding("m", b"\x00" * 768), (b"\x07" * 32,)),
            Type.NOTE,
            Lifetime.NORMAL,
        ),
        (Register("a/b/c", '{"limit": 4.5}'), Type.REGISTER, Lifetime.NORMAL),
        (Shared("owner", '"alice"'), Type.SHARED, Lifetime.NORMAL),
        (SetAdd("faults", "a/b\n"), Type.ELEMENT, Lifetime.PINNED),
        (SetRemove("known", "seal"), Type.REMOVAL, Lifetime.PINNED),
        (CounterAdd("hours", -3), Type.COUNTER, Lifetime.PINNED),
        (Maximum("peak", "-1.50"), Type.MAXIMUM, Lifetime.PINNED),
        (Minimum("low", "1e-6"), Type.MINIMUM, Lifetime.PINNED),
        (LogAppend("shift", "began", 2), Type.LINE, Lifetime.NORMAL),
        (
            ForgetAuthor(ALICE.public_key, NOW_MS << COUNTER_BITS, "moved"),
            Type.FORGETTING,
            Lifetime.PINNED,
        ),
    ],
    ids=lambda one: type(one).__name__ if not isinstance(one, Type | Lifetime) else one.name,
)
def test_what_is_written_is_signed_whole_and_within_the_limits(
    command: Command, type_: Type, lifetime: Lifetime
) -> None:
    alice = Device(ALICE)
    alice.write(SetAdd("known", "seal"))

    [written] = alice.write(command)

    opened = open_entry(written.entry.data, mesh=MESH)
    assert opened == written.entry
    check_payload(opened, written.payload or b"")
    assert type_of(opened.header.kind) is type_
    assert opened.lifetime is lifetime
    assert opened.header.certificate == CERTIFICATE
    assert opened.at_ms == NOW_MS
    assert opened.header.expires_s * 1000 == NOW_MS + lifetime.ms


def said_by(written: Arrival) -> Payload:
    assert written.payload is not None
    return decode_payload(written.payload)


def test_no_two_payloads_of_one_text_are_alike() -> None:
    alice = Device(ALICE)

    one, two = (alice.write(Note("the seal fails"))[0] for _ in range(2))

    assert one.entry.header.payload_digest != two.entry.header.payload_digest
    assert alice.texts() == ["the seal fails", "the seal fails"]


def test_a_removal_carries_no_text_which_would_outlast_its_being_forgotten() -> None:
    alice = Device(ALICE)
    alice.write(SetAdd("faults", "secret"))

    [removal] = alice.write(SetRemove("faults", "secret"))

    assert removal.payload is None
    assert b"secret" not in b"".join(alice.tables.rows()[Table.PAYLOAD].values())


# How long


def test_a_ttl_ends_what_is_shown_and_not_what_is_superseded() -> None:
    alice = Device(ALICE)

    alice.write(Register("limit", "4"))
    alice.write(Register("limit", "5"), ttl_ms=90 * MINUTE_MS)

    alice.now_ms += 90 * MINUTE_MS - 1
    assert alice.register("limit") == "5"
    alice.now_ms += 1
    assert alice.register("limit") is None


@pytest.mark.parametrize(
    ("command", "lifetime", "ttl_ms", "remedy"),
    [
        (Note("x"), None, 91 * DAY_MS, "kept for 90 d, not for 91.0 d; use lifetime pinned"),
        (Note("x"), Lifetime.SCRATCH, 2 * DAY_MS, "use lifetime normal"),
        (Note("x"), Lifetime.PINNED, 401 * DAY_MS, "nothing is kept longer than 400 d"),
        (Note("x"), None, 999, "at least 1000 ms"),
        (Note("x"), Lifetime.BOOK, None, "take scratch, normal or pinned"),
        (CounterAdd("n", 1), Lifetime.SCRATCH, None, "always pinned, not scratch; leave"),
        (SetAdd("n", "x"), Lifetime.NORMAL, None, "always pinned"),
        (Maximum("n", "1"), Lifetime.NORMAL, None, "always pinned"),
        (ForgetAuthor(ALICE.public_key), None, DAY_MS, "holds for good; leave out the ttl"),
    ],
)
def test_a_time_that_cannot_be_is_refused_with_one_that_can(
    command: Command, lifetime: Lifetime | None, ttl_ms: int | None, remedy: str
) -> None:
    with pytest.raises(Misuse, match=remedy):
        Device(ALICE).write(command, lifetime=lifetime, ttl_ms=ttl_ms)


@pytest.mark.parametrize("make", [Register, Shared])
def test_a_value_for_a_day_does_not_when_it_ends_bring_back_the_authors_older_one(
    make: Callable[[str, str], Command],
) -> None:
    alice, bob = Device(ALICE), Device(BOB)
    alice.write(make("limit", "4"), lifetime=Lifetime.PINNED)

    [new, withdrawal] = alice.write(make("limit", "5"), lifetime=Lifetime.SCRATCH)
    bob.receive(held(alice))

    assert said_by(new).value == "5"
    assert withdrawal.payload is None
    for device in (alice, bob):
        device.pass_time(2 * DAY_MS)
        assert device.values("limit") == ()


def test_a_value_that_has_ended_need_not_be_taken_back() -> None:
    alice = Device(ALICE)
    alice.write(Register("limit", "4"), lifetime=Lifetime.PINNED, ttl_ms=DAY_MS)
    alice.pass_time(DAY_MS)

    assert len(alice.write(Register("limit", "5"))) == 1


# Numbers


def test_two_increments_in_one_transaction_both_count() -> None:
    alice = Device(ALICE)
    alice.write(CounterAdd("hours", 5))
    alice.write(CounterAdd("hours", -2))

    [counter] = alice.values("hours")

    assert isinstance(counter, CounterValue)
    assert counter.total == 3
    assert [(one.author, one.added, one.taken) for one in counter.counts] == [(ALICE.peer_id, 5, 2)]


def test_a_count_goes_on_only_from_what_this_device_has() -> None:
    alice, again = Device(ALICE), Device(ALICE)
    [written] = alice.write(CounterAdd("hours", 5))
    again.receive([Arrival(written.entry, None, by_admin=False)])

    with pytest.raises(Unavailable, match="has not come back to it yet"):
        again.write(CounterAdd("hours", 1))

    again.receive([written])
    again.write(CounterAdd("hours", 1))
    assert again.total("hours") == 6


def test_a_count_of_a_later_version_is_not_written_over() -> None:
    alice = Device(ALICE)
    alice.receive([write(Type.COUNTER, ALICE, "hours", "5 2 per day", at_ms=NOW_MS - 1)])

    with pytest.raises(Unavailable, match="is of a later version of covey"):
        alice.write(CounterAdd("hours", 1))


def test_a_count_that_was_forgotten_or_has_ended_begins_anew() -> None:
    alice = Device(ALICE)
    [written] = alice.write(CounterAdd("hours", 5))
    alice.write(Forget((written.entry.id,)))
    alice.write(CounterAdd("hours", 1), ttl_ms=DAY_MS)
    assert alice.total("hours") == 1

    alice.pass_time(DAY_MS)
    assert alice.total("hours") == 0
    alice.write(CounterAdd("hours", 2))
    assert alice.total("hours") == 2


def test_an_extreme_is_said_again_only_when_it_would_end_too_early() -> None:
    alice = Device(ALICE)
    alice.write(Maximum("peak", "7.0"))

    assert alice.write(Maximum("peak", "7")) == ()
    assert alice.write(Maximum("peak", "3")) == ()

    alice.now_ms += 201 * DAY_MS
    [again] = alice.write(Maximum("peak", "3"))
    assert said_by(again).value == "7.0"
    assert len(alice.write(Maximum("peak", "8"))) == 1
    assert alice.extreme("peak") == "8"


# Shared keys


def test_a_value_that_would_outlast_what_is_to_supersede_it_is_not_superseded_for_a_while() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    bob.write(Shared("owner", '"bob"'), lifetime=Lifetime.PINNED)
    alice.receive(held(bob))

    with pytest.raises(Misuse, match="write it pinned, with a ttl"):
        alice.write(Shared("owner", '"alice"'), lifetime=Lifetime.NORMAL)

    [written] = alice.write(Shared("owner", '"alice"'))
    assert written.entry.lifetime is Lifetime.PINNED
    assert alice.shared("owner") == ['"alice"']


def test_a_value_whose_text_has_not_come_stands_beside_a_later_one() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    [unseen] = bob.write(Shared("owner", '"bob"'))
    alice.receive([Arrival(unseen.entry, None, by_admin=False)])

    alice.write(Shared("owner", '"alice"'))
    alice.receive([unseen])

    assert alice.shared("owner") == ['"alice"', '"bob"']


def test_more_values_than_an_entry_can_name_leave_the_rest_beside_it() -> None:
    alice = Device(ALICE)
    for number in range(10, 76):
        alice.receive(Device(key(number)).write(Shared("owner", str(number))))

    [written] = alice.write(Shared("owner", '"alice"'))

    assert len(written.entry.header.seen) == 64
    assert len(alice.shared("owner")) == 3


def test_of_more_values_than_can_be_named_those_that_stand_are_named_first() -> None:
    alice, dave = Device(ALICE), Device(key(80))
    values = [Device(key(number)).write(Shared("owner", "0"))[0] for number in range(10, 74)]
    dave.receive(values)
    values += dave.write(Shared("owner", "1"))
    values += Device(CAROL, off_ms=-MINUTE_MS).write(Shared("owner", "2"))
    alice.receive(values)
    assert alice.shared("owner") == ["1", "2"]

    alice.write(Shared("owner", "3"))

    assert alice.shared("owner") == ["3"]


# Sets


def test_an_add_that_a_removal_has_not_seen_wins_over_it() -> None:
    alice, bob, carol = devices()
    alice.write(SetAdd("faults", "seal"))
    in_step(alice, bob, carol)

    bob.write(SetRemove("faults", "seal"))
    carol.write(SetAdd("faults", "seal"))
    in_step(alice, bob, carol)

    for device in (alice, bob, carol):
        assert device.elements("faults") == ["seal"]


def test_what_was_removed_stays_removed_under_replay_and_comes_back_when_added_again() -> None:
    alice, bob, carol = devices()
    everything = [*alice.write(SetAdd("faults", "seal")), *bob.write(SetAdd("faults", "seal"))]
    carol.receive(everything)
    everything += carol.write(SetRemove("faults", "seal"))

    for device in (alice, bob, carol):
        device.receive(reversed(everything))
        device.receive(everything)
        assert device.elements("faults") == []
        assert device.elements("faults/seal") == []
    everything += bob.write(SetAdd("faults", "seal"))
    for device in (alice, bob, carol):
        device.receive(everything)
        assert device.elements("faults") == ["seal"]


def test_an_element_of_more_authors_than_a_removal_can_name_is_removed_whole() -> None:
    alice = Device(ALICE)
    for number in range(10, 76):
        alice.receive(Device(key(number)).write(SetAdd("faults", "seal")))

    removals = alice.write(SetRemove("faults", "seal"))

    assert [len(one.entry.header.seen) for one in removals] == [64, 2]
    assert alice.elements("faults") == []


def test_what_is_not_in_a_set_cannot_be_taken_out_of_it() -> None:
    alice = Device(ALICE)
    alice.write(SetAdd("faults", "seal"))
    alice.write(SetRemove("faults", "seal"))

    for text in ("seal", "pump"):
        with pytest.raises(NotFound, match=f"the set 'faults' has no element '{text}' here"):
            alice.write(SetRemove("faults", text))


def test_neither_elements_nor_lines_are_ever_taken_for_keys_or_for_each_other() -> None:
    alice = Device(ALICE)
    alice.write(SetAdd("a", "b"))
    alice.write(SetAdd("a", "b/c"))
    alice.write(SetAdd("a/b", "c"))
    alice.write(Register("a/b", "1"))
    alice.write(Register("a/b/c", "2"))
    alice.write(LogAppend("a", "b"))
    alice.write(LogAppend("a/b", "c"))

    kinds = {name: [type(one) for one in alice.values(name)] for name in ("a", "a/b", "a/b/c")}

    assert kinds == {
        "a": [SetValue, LogValue],
        "a/b": [RegisterValue, SetValue, LogValue],
        "a/b/c": [RegisterValue],
    }
    assert alice.elements("a") == ["b", "b/c"]
    assert alice.elements("a/b") == ["c"]
    assert alice.lines("a") == ["b"]


# Logs


def test_a_log_that_is_to_keep_more_or_less_does_so_from_the_next_line_on() -> None:
    alice = Device(ALICE)
    for number in range(6):
        alice.write(LogAppend("shift", str(number), 3))
    assert alice.lines("shift") == ["5", "4", "3"]

    alice.write(LogAppend("shift", "6", 4))
    assert alice.lines("shift") == ["6", "5", "4", "3"]

    for number in (7, 8, 9):
        alice.write(LogAppend("shift", str(number), 2))
        assert alice.lines("shift") == [str(number), str(number - 1)]


def test_lines_of_every_lifetime_are_one_log() -> None:
    alice = Device(ALICE)
    for number, lifetime in enumerate([Lifetime.SCRATCH, Lifetime.NORMAL, Lifetime.PINNED] * 2):
        alice.write(LogAppend("shift", str(number), 4), lifetime=lifetime)

    assert alice.lines("shift") == ["5", "4", "3", "2"]


# Notes


def test_a_renewed_note_takes_the_place_of_the_old_one() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    [old] = alice.write(Note("rising vibration"))

    [new] = alice.write(Note("rising vibration, 2 days before", renews=old.entry.id))
    [third, withdrawal] = alice.write(
        Note("for good", renews=new.entry.id), lifetime=Lifetime.PINNED
    )
    bob.receive([third, new, old, withdrawal])

    assert said_by(new).key == said_by(old).key == said_by(third).key
    assert alice.texts() == bob.texts() == ["for good"]


def test_a_renewed_note_keeps_the_lifetime_that_it_had() -> None:
    alice = Device(ALICE)
    [old] = alice.write(Note("for good"), lifetime=Lifetime.PINNED)

    [new] = alice.write(Note("for good", renews=old.entry.id))

    assert new.entry.lifetime is Lifetime.PINNED


def test_a_note_that_has_ended_is_renewed_under_another_name() -> None:
    alice = Device(ALICE)
    [old] = alice.write(Note("it leaks"), ttl_ms=DAY_MS)
    alice.pass_time(DAY_MS)

    [new] = alice.write(Note("it leaks", renews=old.entry.id))

    assert said_by(new).key != said_by(old).key
    assert alice.texts() == ["it leaks"]


def test_only_a_note_of_ones_own_can_be_renewed() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    [theirs] = bob.write(Note("it leaks"))
    [register] = alice.write(Register("limit", "4"))
    [unread] = Device(ALICE).write(Note("it leaks"))
    alice.receive([theirs, Arrival(unread.entry, None, by_admin=False)])

    with pytest.raises(Misuse, match="write a note of your own that is derived from it"):
        alice.write(Note("it leaks", renews=theirs.entry.id))
    with pytest.raises(Misuse, match="is no note"):
        alice.write(Note("it leaks", renews=register.entry.id))
    with pytest.raises(NotFound, match="nothing is held here"):
        alice.write(Note("it leaks", renews=EntryId(b"\x01" * 32)))
    with pytest.raises(Unavailable, match="has not come yet"):
        alice.write(Note("it leaks", renews=unread.entry.id))


# Forgetting


def test_a_forgotten_text_is_gone_on_every_device_and_no_replay_brings_it_back() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    everything = [one for n in range(66) for one in alice.write(Note(f"secret {n}"))]
    bob.receive(everything)

    forgettings = alice.write(Forget(tuple(one.entry.id for one in everything), "asked to"))
    bob.receive(forgettings)
    bob.receive(everything)

    assert [len(one.entry.header.seen) for one in forgettings] == [64, 2]
    for device in (alice, bob):
        assert device.texts() == []
        assert b"secret" not in b"".join(device.tables.rows()[Table.PAYLOAD].values())
    found = entry(bob.tables, PUMPS, everything[0].entry.id.hex(), NOW_MS)
    assert (found.state, found.value) == (State.FORGOTTEN, "")


def test_all_of_an_author_is_forgotten_up_to_a_time() -> None:
    alice, bob, admin = Device(ALICE), Device(BOB), Device(ADMIN)
    early = alice.write(Note("early"))
    alice.now_ms += 2 * MINUTE_MS
    late = alice.write(Note("late"))
    for device in (bob, admin):
        device.receive([*early, *late])
    assert admin.texts() == ["late", "early"]

    before = late[0].entry.header.clock
    admin.now_ms += 2 * MINUTE_MS
    up_to_a_time = admin.write(ForgetAuthor(ALICE.public_key, before, "left"))
    assert admin.texts() == ["late"]
    admin.now_ms -= MINUTE_MS
    up_to_now = admin.write(ForgetAuthor(ALICE.public_key))
    bob.receive([*up_to_now, *up_to_a_time])

    assert up_to_now[0].entry.header.cut == late[0].entry.header.clock, "though it is ahead"
    assert admin.texts() == bob.texts() == []


def test_only_an_author_and_admins_can_have_something_forgotten() -> None:
    alice, bob, admin = Device(ALICE), Device(BOB), Device(ADMIN)
    [theirs] = bob.write(Note("it leaks"))
    alice.receive([theirs])
    admin.receive([theirs])

    for command in (Forget((theirs.entry.id,)), ForgetAuthor(BOB.public_key)):
        with pytest.raises(Misuse, match="only its author and admins"):
            alice.write(command)
    admin.write(Forget((theirs.entry.id,)))
    assert admin.texts() == []


def test_what_cannot_be_forgotten_is_told() -> None:
    admin = Device(ADMIN)
    [record] = admin.write(ForgetAuthor(ALICE.public_key))
    member = register(ADMIN, "member", '"x"', lifetime=Lifetime.BOOK)
    admin.receive([member])

    refused: list[tuple[Command, str]] = [
        (Forget(()), "nothing to forget is named"),
        (Forget((EntryId(b"\x01" * 32),)), "nothing is held here under the id 0101"),
        (Forget((record.entry.id,)), "stays with its reason"),
        (Forget((member.entry.id,)), "in the mesh's books; revoke or renew instead"),
        (ForgetAuthor(b"\x01" * 32), "name a peer"),
        (ForgetAuthor(ALICE.public_key, (NOW_MS + 9) << COUNTER_BITS), "a time before now"),
        (ForgetAuthor(ALICE.public_key, reason="x" * 5000), "the reason has 5000 bytes"),
    ]
    for command, told in refused:
        with pytest.raises(Misuse, match=told):
            admin.write(command)


# Clocks


@pytest.mark.parametrize(
    "command",
    [Register("n", "1"), Shared("n", "1"), SetRemove("n", "1")],
    ids=lambda one: type(one).__name__,
)
def test_what_is_written_over_something_is_newer_than_it_though_that_is_ahead(
    command: Command,
) -> None:
    alice, bob = Device(ALICE), Device(BOB, off_ms=4 * MINUTE_MS)
    older = [one for add in (SetAdd("n", "1"), Register("n", "0")) for one in bob.write(add)]
    older += bob.write(Shared("n", "0"))
    alice.receive(older)

    [newer] = alice.write(command)

    assert newer.entry.at_ms == NOW_MS + 4 * MINUTE_MS
    same = [one for one in older if one.entry.header.key == newer.entry.header.key]
    named = [one for one in older if one.entry.id[:16] in newer.entry.header.seen]
    assert all(newer.entry.key > one.entry.key for one in same + named)


@pytest.mark.parametrize(
    "command",
    [Register("n", "1"), SetRemove("n", "1")],
    ids=lambda one: type(one).__name__,
)
def test_over_what_is_too_far_ahead_nothing_is_written_in_vain(command: Command) -> None:
    alice, bob = Device(ALICE), Device(BOB, off_ms=5 * MINUTE_MS)
    for older in (SetAdd("n", "1"), Register("n", "0")):
        alice.receive(bob.write(older))

    with pytest.raises(Unavailable, match="written 300 s ahead of this device's clock; try again"):
        alice.write(command)

    alice.now_ms += MINUTE_MS
    assert len(alice.write(command)) == 1


def test_nobody_keeps_others_from_writing_by_being_far_ahead() -> None:
    alice, bob, admin = Device(ALICE), Device(BOB, off_ms=5 * MINUTE_MS), Device(ADMIN)
    for command in (Shared("n", "0"), SetAdd("n", "1"), CounterAdd("n", 1), LogAppend("n", "x")):
        alice.receive(bob.write(command))
    admin.receive(held(bob))

    alice.write(Shared("n", "1"))
    alice.write(SetAdd("n", "1"))
    alice.write(CounterAdd("n", 1))
    alice.write(LogAppend("n", "y"))
    admin.write(ForgetAuthor(BOB.public_key))

    assert alice.shared("n") == ["0", "1"]
    assert alice.total("n") == 2


def test_a_device_whose_clock_went_back_signs_nothing_that_others_would_not_take() -> None:
    alice = Device(ALICE)
    alice.write(Register("n", "1"))
    alice.now_ms -= 5 * MINUTE_MS + 1

    for command in (Register("n", "2"), Note("x")):
        with pytest.raises(Unavailable, match="set the clock right"):
            alice.write(command)

    alice.now_ms += 2
    alice.write(Register("n", "2"))
    assert alice.register("n") == "2"


# Bad input


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (Note(" \n"), "the note is empty"),
        (Note("a\x00b"), "the note has control characters"),
        (Note("\x1b[2J"), "the note has control characters"),
        (Note("\ud800"), "the note has control characters"),
        (Note("ä" * 4097), "the note has 8194 bytes, at most 8192"),
        (Note("x", Provenance(model="m" * 201)), "this cannot be shared: not a Payload"),
        (Note("x", Provenance(method="\x07")), "the provenance has control characters"),
        (Note("x", Provenance((Source("s", b"", 0, 0),) * 17)), "this cannot be shared"),
        (Note("x", None, Embedding("m", b"\x00" * 4098)), "this cannot be shared"),
        (Note("x", None, Embedding("m", b"\x00" * 3)), "an embedding of 3 bytes"),
        (Note("x", derived_from=(b"\x01" * 32,) * 9), "at most 8 entries .*, not 9"),
        (
            Note(
                "x" * 8192,
                Provenance((Source("ß" * 200, b"\x01" * 32, 1, 1),) * 16),
                Embedding("m", b"\x00" * 4096),
            ),
            "over the limit of 16384; share a shorter summary",
        ),
        (Register("", "1"), "the key is empty"),
        (Register("x" * 201, "1"), "at most 200 characters, not 201"),
        (Register("/a", "1"), "a name before and after each slash"),
        (Register("a/", "1"), "a name before and after each slash"),
        (Register("a//b", "1"), "a name before and after each slash"),
        (Register("a\nb", "1"), "no line breaks or control characters"),
        (Register("a", "four"), "the value 'four' is not JSON; a text is written in quotes"),
        (Register("a", "NaN"), "is not JSON"),
        (Shared("a", "[" * 5000), "is not JSON"),
        (Shared("a", ""), "the value is empty"),
        (SetAdd("", "x"), "the set's name is empty"),
        (SetAdd("a", ""), "the element is empty"),
        (CounterAdd("a", 0), "by 1 to 1000000000000000000, up or down, not by 0"),
        (CounterAdd("a", -(10**18) - 1), "up or down"),
        (Maximum("a", "four"), "'four' is not a number such as 12, -0.5 or 1e-6"),
        (Maximum("a", "Infinity"), "is not a number"),
        (Minimum("a", "1_000"), "is not a number"),
        (Minimum("a", "\u0663"), "is not a number"),
        (Minimum("a", "1" * 65), "is not a number .*, of at most 64 characters"),
        (LogAppend("a", "x", 0), "1 to 1000 lines of each author, not 0"),
        (LogAppend("a", "x", 1001), "1 to 1000 lines"),
        (LogAppend("a/", "x"), "a log's name has a name before and after each slash"),
    ],
)
def test_bad_input_is_told_with_what_would_do(command: Command, told: str) -> None:
    alice = Device(ALICE)

    with pytest.raises(Misuse, match=told):
        alice.write(command)

    assert alice.tables.rows()[Table.ENTRY] == {}


def test_a_counter_that_is_full_is_told() -> None:
    alice = Device(ALICE)
    alice.receive([counter(ALICE, "n", 10**30 - 1, 0, at_ms=NOW_MS - 1)])

    with pytest.raises(Misuse, match="the counter 'n' is full"):
        alice.write(CounterAdd("n", 1))

    alice.write(CounterAdd("n", -1))
    assert alice.total("n") == 10**30 - 2


def test_one_key_is_one_key_however_its_letters_are_typed() -> None:
    alice = Device(ALICE)

    alice.write(Register("Pumpe/Öl", "1"))

    assert alice.register("Pumpe/O\u0308l") == "1"
    assert [one.key for one in history(alice.tables, PUMPS, "Pumpe/O\u0308l", NOW_MS)] == [
        "Pumpe/Öl"
    ]


def test_slots_are_an_authors_own() -> None:
    alice, bob = Device(ALICE), Device(BOB)
    for command in (
        Register("n", "1"),
        CounterAdd("n", 1),
        LogAppend("n", "x", 1),
        Shared("n", "1"),
    ):
        alice.write(command)
    before: list[Entry] = [one.entry for one in held(alice)]

    for command in (
        Register("n", "2"),
        CounterAdd("n", 2),
        LogAppend("n", "y", 1),
        Shared("n", "2"),
    ):
        alice.receive(bob.write(command))

    assert {one.id for one in before} <= {one.entry.id for one in held(alice)}
