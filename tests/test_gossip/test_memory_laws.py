"""What holds of the shared memory, whatever is written, by whom, and in whichever order it arrives?

The invariants I1 to I13 of MEMORY 4.7 that are the replica's. `memory_ideal.py` says what a replica
should hold, over the set of all that was signed; each law compares that with what rows say after a
history. Quotas are small, so that they bind. The last test plants mistakes that the laws must see.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    rule,
    run_state_machine_as_test,
)
from test_gossip.members import NOW_MS
from test_gossip.memory_entries import (
    ADMIN,
    ALICE,
    BOB,
    CAROL,
    CERTIFICATE,
    MESH,
    PUMPS,
    note,
    removal,
    shared,
    unsigned,
)
from test_gossip.memory_ideal import Ideal, ideal, place
from test_gossip.memory_tables import DictTables

from covey.gossip.memory.books import compose
from covey.gossip.memory.entry import (
    AHEAD_MS_MAX,
    ID_BYTES,
    SHORT_ID_BYTES,
    Entry,
    Header,
    NamespaceId,
    digest_of,
    hash_of,
    namespace_id,
    read_entry,
)
from covey.gossip.memory.hybrid_clock import COUNTER_BITS, HybridClock
from covey.gossip.memory.kinds import DAY_MS, Lifetime, Type
from covey.gossip.memory.namespace import NAMESPACES, namespace_of
from covey.gossip.memory.payload import SALT_BYTES, decode_payload
from covey.gossip.memory.policies import Changed, Policies, Policy, Writers, policy_record
from covey.gossip.memory.replica import (
    FORGETS_ID,
    Applied,
    Arrival,
    Fate,
    Place,
    Quotas,
    Replica,
    bucket_of,
    index_rows,
    is_counted_by_day,
    is_superseded,
    place_of,
)
from covey.gossip.memory.tables import Table
from covey.identity.certificate import Member, Role
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import Keypair
from covey.identity.wire import encode_plain

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
LAW = settings(
    max_examples=10_000 if LONG else 300,
    deadline=None,
    # What is tried to explain a failure takes minutes with histories as long as these.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
# A day's beginning, so that days and their quotas are met in the same way every time.
START_MS = NOW_MS // DAY_MS * DAY_MS + 2 * MINUTE_MS
MEET_MS = START_MS + HOUR_MS
BOOK = namespace_id(MESH, "mesh", "_mesh/members")
TEXT = b"P-12: rising vibration precedes seal failure"
TEXT_DIGEST = digest_of(TEXT)
NAMES = {
    namespace: [hash_of(namespace, name) for name in ("pumps", "P-12", "P-13", "P-14")]
    for namespace in (PUMPS, BOOK)
}
QUOTAS = Quotas(entries=2, records_a_day=1)


def few(_: NamespaceId) -> Quotas:
    return QUOTAS


def plenty(_: NamespaceId) -> Quotas:
    return Quotas()


# What is written

Shape = tuple[int, Lifetime]
SHAPES: list[Shape] = [
    *[(Type.NOTE, Lifetime.NORMAL)] * 3,
    *[(Type.REGISTER, Lifetime.NORMAL)] * 2,
    *[(Type.ELEMENT, Lifetime.PINNED)] * 3,
    *[(Type.FORGETTING, Lifetime.PINNED)] * 4,
    *[(Type.REMOVAL, Lifetime.PINNED)] * 2,
    *[(Type.REGISTER, Lifetime.BOOK)] * 2,
    (Type.NOTE, Lifetime.SCRATCH),
    (Type.SHARED, Lifetime.NORMAL),
    (Type.COUNTER, Lifetime.PINNED),
    (Type.MAXIMUM, Lifetime.PINNED),
    (Type.MINIMUM, Lifetime.PINNED),
    (Type.LINE, Lifetime.NORMAL),
    (0, Lifetime.NORMAL),
    (9, Lifetime.SCRATCH),
    (13, Lifetime.NORMAL),
]
AUTHORS = [ALICE, BOB, ADMIN, CAROL]
BY = [0, 0, 0, 0, 1, 1, 2, 2, 3]
WRITTEN_AFTER_MS = [
    *(0, 0, 1, MINUTE_MS, 2 * MINUTE_MS, 3 * MINUTE_MS, HOUR_MS, HOUR_MS + 1, HOUR_MS + 2),
    *(HOUR_MS + 5 * MINUTE_MS + 1, DAY_MS - 2 * MINUTE_MS, DAY_MS),
]
EXPIRES_AFTER_MS = [*[10_000 * DAY_MS] * 4, 0, 2 * HOUR_MS, 30 * DAY_MS]

NO_TARGET = 20
TARGETS = 3


class Plan(NamedTuple):
    """What somebody will write."""

    shape: Shape
    author: int
    after_ms: int
    counter: int
    name: int
    expires_after_ms: int
    targets: tuple[int, ...] = ()
    """Which of the entries before it it names, modulo their number."""
    reach: int = 4
    """Below 4: whom a forgetting reaches over. 7: there is no payload."""


def _plan(drawn: tuple[Shape, int, int, int]) -> Plan:
    """Make a plan of few draws, which are what a property spends its time on."""
    shape, who_when, what, named = drawn
    author, after_ms = BY[who_when % len(BY)], WRITTEN_AFTER_MS[who_when // len(BY)]
    what, counter = divmod(what, 2)
    what, name = divmod(what, 4)
    reach, expires = divmod(what, len(EXPIRES_AFTER_MS))
    digits = [named // (NO_TARGET + 1) ** place % (NO_TARGET + 1) for place in range(TARGETS)]
    targets = tuple(digit for digit in digits if digit != NO_TARGET)
    return Plan(shape, author, after_ms, counter, name, EXPIRES_AFTER_MS[expires], targets, reach)


PLANS = st.tuples(
    st.sampled_from(SHAPES),
    st.integers(0, len(BY) * len(WRITTEN_AFTER_MS) - 1),
    st.integers(0, 2 * 4 * 8 * len(EXPIRES_AFTER_MS) - 1),
    st.integers(0, (NO_TARGET + 1) ** TARGETS - 1),
).map(_plan)


def written(plans: Sequence[Plan]) -> list[Arrival]:
    """Return the entries; each may name those before it, whatever their clocks say."""
    arrivals: list[Arrival] = []
    for plan in plans:
        arrivals.append(written_after(arrivals, plan, START_MS))
    return arrivals


def written_after(before: Sequence[Arrival], plan: Plan, start_ms: int) -> Arrival:
    (type_, lifetime), author, after_ms, counter, name, expires_ms, targets, reach = plan
    namespace = BOOK if lifetime is Lifetime.BOOK else PUMPS
    at_ms = start_ms + after_ms
    clock = at_ms << COUNTER_BITS | counter
    # Half of the forgettings reach over an author, up to some time that is not after their own.
    subject = AUTHORS[reach % 4].public_key if type_ == Type.FORGETTING and reach < 4 else b""
    elements = [one for one in before if one.entry.header.kind & 15 == Type.ELEMENT]
    named = elements if type_ == Type.REMOVAL else before
    cut = clock if expires_ms else clock - (HOUR_MS << COUNTER_BITS)
    payload = b"" if reach == 7 else TEXT
    header = Header(
        version=1,
        namespace=namespace,
        author=AUTHORS[author].public_key,
        clock=clock,
        expires_s=(at_ms + min(expires_ms, lifetime.ms)) // 1000,
        kind=lifetime << 4 | type_,
        parent=NAMES[namespace][0],
        key=NAMES[namespace][name],
        seen=tuple(
            named[index % len(named)].entry.id[:SHORT_ID_BYTES] for index in targets if named
        ),
        payload_digest=TEXT_DIGEST,
        payload_bytes=len(payload),
        certificate=CERTIFICATE,
        subject=subject,
        cut=cut if subject else 0,
    )
    return Arrival(unsigned(header), payload or None, by_admin=author == 2)


ENTRIES = st.lists(PLANS, min_size=10, max_size=24)

# What happens to one replica

STEPS_MS = [
    *(1, HOUR_MS, DAY_MS, MINUTE_MS, HOUR_MS, DAY_MS, 1, HOUR_MS, DAY_MS, 1, HOUR_MS, DAY_MS),
    *(2 * DAY_MS, 30 * DAY_MS, 90 * DAY_MS, 400 * DAY_MS, 2190 * DAY_MS),
]
Event = tuple[int, int]
HISTORIES = st.lists(
    st.integers(0, 14 * 56 - 1).map(lambda drawn: divmod(drawn, 56)), min_size=16, max_size=48
)


class Peer:
    """One device's rows, and all that reached it while it could be taken."""

    def __init__(
        self,
        rules: type[Replica] = Replica,
        quotas: Callable[[NamespaceId], Quotas] = few,
        now_ms: int = MEET_MS,
        durable: bool = False,
    ) -> None:
        self.durable = durable
        self.rules, self.quotas, self.now_ms = rules, quotas, now_ms
        self.tables = DictTables()
        self.reached: dict[Place, Arrival] = {}
        self._durable = deepcopy((self.tables, self.reached)) if durable else None
        self._begin()

    def _begin(self) -> None:
        self._before = self._sets()
        self._replica = self.rules(self.tables, self.now_ms, self.quotas)

    def commit(self) -> Applied:
        """End a transaction; what it says that it changed is what has changed."""
        applied = self._replica.applied
        _check_told(applied, self._before, self._sets())
        for row in self.shown:
            self.tables.put(Table.VECTOR, row[-ID_BYTES:] + b"model", b"vector")
        if self.durable:
            self._durable = deepcopy((self.tables, self.reached))
        self._begin()
        return applied

    def deliver(self, arrival: Arrival) -> Fate:
        fate = self._replica.apply(arrival)
        if fate != "early":
            self.reached[place(arrival)] = arrival
        return fate

    def deliver_all(self, arrivals: Iterable[Arrival]) -> None:
        for one in arrivals:
            self.deliver(one)
        self.commit()

    def kill(self) -> None:
        """Lose what was not committed."""
        assert self._durable is not None
        self.tables, self.reached = deepcopy(self._durable)
        self._begin()

    def pass_time(self, limit: int) -> bool:
        return self._replica.pass_time(limit)

    def advance(self, step_ms: int) -> None:
        self.commit()
        self.now_ms += step_ms
        self._begin()

    def settle(self) -> None:
        while self.pass_time(2):
            pass
        self.commit()

    def trim(self, namespace: NamespaceId, limit: int) -> bool:
        return self._replica.trim(namespace, limit)

    def purge(self, author: bytes, still_counts: Callable[[Entry], bool]) -> None:
        for namespace in (PUMPS, BOOK):
            self._replica.purge(namespace, author, still_counts)
        self.commit()

    def live(self, history: Iterable[Event], entries: Sequence[Arrival]) -> None:
        """Go through a history: mostly arrivals, one in twelve of them without its payload."""
        for what, which in history:
            if what <= 11:
                arrival = entries[which % len(entries)]
                self.deliver(arrival if what else replace(arrival, payload=None))
            elif what == 12:
                self.advance(STEPS_MS[which % len(STEPS_MS)])
            else:
                self.pass_time(1 + which % 3)
        self.settle()

    def offer(self) -> list[Arrival]:
        """Return all that it holds, as another would get it."""
        return [
            Arrival(entry, self.tables.get(Table.PAYLOAD, row), by_admin=_is_admins(entry))
            for row, entry in self.entries()
        ]

    def entries(self) -> list[tuple[Place, Entry]]:
        return [(row, read_entry(data)) for row, data in self.tables.scan(Table.ENTRY, b"")]

    def _sets(self) -> Ideal:
        return Ideal(self._keys(Table.ENTRY), self._keys(Table.PAYLOAD))

    def _keys(self, table: Table) -> frozenset[Place]:
        return frozenset(row for row, _ in self.tables.scan(table, b""))

    @property
    def held(self) -> frozenset[Place]:
        return self._keys(Table.ENTRY)

    @property
    def shown(self) -> frozenset[Place]:
        return self._keys(Table.PAYLOAD)

    @property
    def wanted(self) -> frozenset[Place]:
        return self._keys(Table.WANTED)

    @property
    def rows(self) -> dict[Table, dict[bytes, bytes]]:
        """Everything that follows from what it heard of, but not in which order.

        Without vectors, which are made here, and proofs of doubles, which are of those that it
        happened to see together. A payload that is missing counts as the payload: a record that the
        quota let go afterwards may have forgotten it, and it is asked for again.
        """
        rows = self.tables.rows()
        del rows[Table.DOUBLE], rows[Table.VECTOR]
        readable = rows.pop(Table.WANTED).keys() | rows[Table.PAYLOAD].keys()
        return rows | {Table.PAYLOAD: dict.fromkeys(readable, b"")}


def _is_admins(entry: Entry) -> bool:
    return entry.header.author == ADMIN.public_key


def _check_told(applied: Applied, before: Ideal, after: Ideal) -> None:
    added, removed = (
        [namespace + key for namespace, key in keys] for keys in (applied.added, applied.removed)
    )
    for come, gone, then, now in (
        (added, removed, before.held, after.held),
        (applied.shown, applied.hidden, before.shown, after.shown),
    ):
        change = Counter(come)
        change.subtract(gone)
        assert {row for row, count in change.items() if count > 0} == now - then
        assert {row for row, count in change.items() if count < 0} == then - now
    # A payload may go and come back, if a quota lets go what had forgotten it. A header never does:
    # who takes all that came and then drops all that went has the same.
    assert (before.held | set(added)) - set(removed) == after.held


def check_ideal(peer: Peer) -> None:
    """What is held is the ideal; what is shown is, but for payloads that it knows that it lacks."""
    expected = ideal(peer.reached.values(), peer.now_ms, peer.quotas)
    assert peer.held == expected.held
    assert peer.shown | peer.wanted == expected.shown
    assert not peer.shown & peer.wanted


def check_indexes(peer: Peer) -> None:
    """All other rows follow from the entries, once what is due has been done."""
    expected: dict[Table, dict[bytes, bytes]] = {
        table: {}
        for table in (
            *(Table.SHORT, Table.HEAD, Table.GROUP, Table.AGE, Table.COUNT, Table.COVER),
            Table.DUE,
        )
    }
    counts: Counter[bytes] = Counter()
    for row, entry in peer.entries():
        assert row == place_of(entry)
        for table, key, value in index_rows(entry, by_admin=_is_admins(entry)):
            expected[table][key] = value
        counts[bucket_of(entry)] += 1
        expires_ms, ends_ms = entry.header.expires_s * 1000, entry.at_ms + entry.lifetime.ms
        due_ms = expires_ms if expires_ms > peer.now_ms else ends_ms
        expected[Table.DUE][due_ms.to_bytes(8, "big") + row] = b""
    expected[Table.COUNT] = {key: number.to_bytes(4, "big") for key, number in counts.items()}
    rows = peer.rows
    assert {table: rows[table] for table in expected} == expected
    vectors = {row[:ID_BYTES] for row, _ in peer.tables.scan(Table.VECTOR, b"")}
    assert vectors <= {row[-ID_BYTES:] for row in peer.shown}


def merged(*peers: Peer) -> Peer:
    """Return a peer that got all that the first holds, then all that the second does, and so on."""
    into = Peer(quotas=peers[0].quotas, now_ms=peers[0].now_ms)
    for one in peers:
        into.deliver_all(one.offer())
    into.settle()
    return into


def sync(*peers: Peer) -> None:
    """Let each pair exchange all that they hold, and settle, until what one has all have.

    It takes more than one round: a payload that a forgetting had taken is asked for once more when
    the quota has let that forgetting go.
    """
    for _ in range(3):
        for left, right in combinations(peers, 2):
            ours, theirs = left.offer(), right.offer()
            left.deliver_all(theirs)
            right.deliver_all(ours)
        for one in peers:
            one.settle()


def check_alike(*peers: Peer) -> None:
    for one in peers[1:]:
        assert one.rows == peers[0].rows
        assert (one.shown, one.wanted) == (peers[0].shown, peers[0].wanted)


# I2, I13, and the indexes: whatever the history


def holds_the_ideal(rules: type[Replica], plans: list[Plan], history: list[Event]) -> None:
    entries, peer = written(plans), Peer(rules)
    peer.live(history, entries)
    check_ideal(peer)
    check_indexes(peer)

    peer.deliver_all(reversed(entries))

    expected = ideal(entries, peer.now_ms, few)
    assert (peer.held, peer.shown | peer.wanted) == expected
    peer.deliver_all(entries)
    assert (peer.held, peer.shown, peer.wanted) == (*expected, frozenset())
    check_indexes(peer)


@LAW
@given(ENTRIES, HISTORIES)
def test_what_is_held_and_shown_follows_from_what_was_signed_and_the_time(
    plans: list[Plan], history: list[Event]
) -> None:
    holds_the_ideal(Replica, plans, history)


# I1: the join

PART = st.lists(st.integers(0, 55), min_size=4, max_size=16)


def _at_one_time(entries: Sequence[Arrival], part: Iterable[int]) -> Peer:
    peer = Peer(now_ms=MEET_MS + DAY_MS)
    peer.live([(0 if index >= 50 else 1, index) for index in part], entries)
    return peer


@LAW
@given(ENTRIES, PART, PART, PART)
def test_merging_commutes_associates_and_is_idempotent(
    plans: list[Plan], one: list[int], two: list[int], three: list[int]
) -> None:
    entries = written(plans)
    a, b, c = (_at_one_time(entries, part) for part in (one, two, three))

    assert merged(a, b).rows == merged(b, a).rows
    assert merged(merged(a, b), c).rows == merged(a, merged(b, c)).rows
    assert merged(a, a).rows == a.rows


# I4: replay


@LAW
@given(ENTRIES, HISTORIES, PART, st.sampled_from(STEPS_MS))
def test_a_replay_of_any_part_of_the_past_brings_nothing_back(
    plans: list[Plan], history: list[Event], part: list[int], step_ms: int
) -> None:
    peer = Peer()
    peer.live(history, written(plans))
    past = list(peer.reached.values())
    replayed = [past[index % len(past)] for index in part if past]
    held, allowed = peer.held, peer.shown | peer.wanted

    peer.deliver_all(replayed)
    accomplice = Peer(now_ms=peer.now_ms)
    accomplice.deliver_all(replayed)
    sync(peer, accomplice)

    assert peer.held == held
    assert peer.shown <= allowed

    peer.advance(step_ms)
    peer.deliver_all(replayed)
    peer.settle()

    assert peer.held <= held
    assert peer.shown <= allowed


# I5: away, and back


@LAW
@given(ENTRIES, HISTORIES, PART, PART, st.sampled_from(STEPS_MS))
def test_peers_that_were_apart_for_any_time_are_alike_after_they_meet(
    plans: list[Plan], history: list[Event], one: list[int], two: list[int], away_ms: int
) -> None:
    entries = written(plans)
    alice, bob, carol = Peer(), Peer(), Peer()
    alice.live(history, entries)
    bob.deliver_all(entries[index % len(entries)] for index in one)
    carol.deliver_all(entries[index % len(entries)] for index in two)
    carol.advance(away_ms)
    now_ms = max(alice.now_ms, carol.now_ms)

    for peer in (alice, bob, carol):
        peer.advance(now_ms - peer.now_ms)
        peer.settle()
    sync(alice, bob, carol)

    check_alike(alice, bob, carol)
    reached = alice.reached | bob.reached | carol.reached
    expected = ideal(reached.values(), now_ms, few)
    assert (alice.held, alice.shown | alice.wanted) == expected
    check_indexes(alice)


# I8: the future

FUTURE = st.lists(
    st.tuples(
        st.integers(-DAY_MS, DAY_MS) | st.sampled_from([0, AHEAD_MS_MAX]),
        st.integers(0, 2**16 - 1) | st.just(2**16 - 1),
    ),
    max_size=20,
)


@LAW
@given(FUTURE, st.lists(st.integers(0, DAY_MS), max_size=5))
def test_no_clock_of_others_carries_ours_beyond_what_others_admit(
    seen: list[tuple[int, int]], waits_ms: list[int]
) -> None:
    clock, now_ms, stamps = HybridClock(), MEET_MS, [0]
    for wait_ms in [0, *waits_ms]:
        now_ms += wait_ms
        for ahead_ms, counter in seen:
            clock.observe(now_ms + ahead_ms << COUNTER_BITS | counter, now_ms)
        stamps.append(clock.stamp(now_ms))

        # A minute less: so much may the clocks of those differ who are to take it at once.
        assert now_ms << COUNTER_BITS <= stamps[-1]
        assert stamps[-1] >> COUNTER_BITS <= now_ms + AHEAD_MS_MAX - MINUTE_MS + 1
        assert stamps[-1] > stamps[-2]


def test_what_is_too_far_ahead_is_not_kept_and_is_taken_when_its_time_comes() -> None:
    peer = Peer(now_ms=START_MS)
    flood = [
        note(ALICE, f"reading {number}", at_ms=START_MS + AHEAD_MS_MAX + 1 + number, signed=False)
        for number in range(9)
    ]
    last = note(ALICE, "at the bound", at_ms=START_MS + AHEAD_MS_MAX, signed=False)

    assert [peer.deliver(one) for one in flood] == ["early"] * 9
    assert peer.deliver(last) == "kept"
    assert peer.held == {place(last)}

    peer.advance(1)
    assert [peer.deliver(one) for one in flood[:2]] == ["kept", "early"]


# I9: a flood


@LAW
@given(ENTRIES, HISTORIES)
def test_a_flood_takes_nothing_of_other_authors_but_elements_that_it_removes(
    plans: list[Plan], history: list[Event]
) -> None:
    entries = written(plans)
    flooded, spared = Peer(), Peer()
    for peer, part in (
        (flooded, entries),
        (spared, [one for one in entries if not _is_alices(one)]),
    ):
        for what, which in history:
            if what == 12:
                peer.advance(STEPS_MS[which % len(STEPS_MS)])
            elif entries[which % len(entries)] in part:
                peer.deliver(entries[which % len(entries)])
        peer.settle()

    mine = {place(one) for one in entries if _is_alices(one)}
    removable = {place(one) for one in entries if one.entry.header.kind & 15 == Type.ELEMENT}
    assert flooded.held - mine == spared.held
    assert flooded.shown - mine - removable == spared.shown - removable


def _is_alices(arrival: Arrival) -> bool:
    return arrival.entry.header.author == ALICE.public_key


# I11: types of later versions


@pytest.mark.parametrize("type_", [0, 9, 10, 11, 12, 13])
@pytest.mark.parametrize("lifetime", [Lifetime.SCRATCH, Lifetime.NORMAL, Lifetime.PINNED])
def test_an_entry_of_an_unknown_type_is_passed_on_as_it_came(
    type_: int, lifetime: Lifetime
) -> None:
    shape = (type_, lifetime)
    [first, second] = written(
        [Plan(shape, 0, after_ms, 0, 0, 10_000 * DAY_MS) for after_ms in (0, 1)]
    )
    alice, bob, carol = Peer(), Peer(), Peer()
    alice.deliver_all([first, second])

    bob.deliver_all(alice.offer())
    carol.deliver_all(bob.offer())

    assert carol.tables.rows()[Table.ENTRY] == {place(second): second.entry.data}
    assert carol.tables.rows()[Table.PAYLOAD] == {place(second): TEXT}


# Revocation


@LAW
@given(ENTRIES, HISTORIES, st.sampled_from(AUTHORS), st.sampled_from(WRITTEN_AFTER_MS))
def test_a_purge_takes_exactly_what_does_not_count(
    plans: list[Plan], history: list[Event], author: Keypair, cut_ms: int
) -> None:
    entries, peer = written(plans), Peer()
    peer.live(history, entries)
    held = peer.held

    def counts(entry: Entry) -> bool:
        return entry.header.author != author.public_key or entry.at_ms <= START_MS + cut_ms

    peer.purge(author.public_key, counts)

    counting = {place(one): one for one in entries if counts(one.entry)}
    assert peer.held == {one for one in held if one in counting}
    check_indexes(peer)
    # What the purged entries had pushed out is not here any more. It comes with the next
    # exchanges, from peers that hold it, and so does what they had forgotten or removed.
    peer.deliver_all(counting.values())
    peer.deliver_all(counting.values())
    assert (peer.held, peer.shown) == ideal(counting.values(), peer.now_ms, few)
    check_indexes(peer)


# Policies


class Policed(Peer):
    """A device that does what the policies which it has heard of say."""

    def __init__(self) -> None:
        self.policies = Policies(MESH)
        super().__init__(quotas=self.policies.quotas)

    def deliver(self, arrival: Arrival) -> Fate:
        return super().deliver(arrival) if self.lets_in(arrival.entry) else "full"

    def lets_in(self, entry: Entry) -> bool:
        if entry.header.namespace != PUMPS:
            return True
        try:
            author = next(one for one in AUTHORS if one.public_key == entry.header.author)
            self.policies.judge(entry, PUMPS_THERE, _members(author))
        except NotAdmitted:
            return False
        return True

    def hear(self, policy: Arrival) -> None:
        assert policy.payload is not None
        self._changed(
            self.policies.learn(POLICY_BOOK, policy.entry, decode_payload(policy.payload))
        )

    def lose(self, policy: Arrival) -> None:
        self._changed(self.policies.forget(POLICY_BOOK.id, policy.entry.key))

    def _changed(self, changed: Changed | None) -> None:
        if changed is None:
            return
        start: bytes | None = (changed.after + 1).to_bytes(8, "big")
        while start is not None:
            start = self._replica.purge_after(changed.namespace.id, start, self.lets_in, 3)
            self.commit()
        while self._replica.trim(changed.namespace.id, 2):
            self.commit()
        self.commit()


POLICY_BOOK = namespace_of(MESH, "mesh", NAMESPACES)
PUMPS_THERE = namespace_of(MESH, "mesh", "plant/pumps")


def _members(author: Keypair) -> Member:
    role: Role = "admin" if author is ADMIN else "member"
    zones = frozenset({"east"}) if author is BOB else frozenset[str]()
    return Member(author.peer_id, role, zones, START_MS, START_MS, START_MS)


def _policy(at_ms: int, writers: Writers | None, entries: int | None, ttl_s: int | None) -> Arrival:
    policy = Policy("plant/pumps", writers, entries, ttl_s)
    clock = START_MS + at_ms << COUNTER_BITS
    record = policy_record("mesh", policy)
    return compose(ADMIN, MESH, POLICY_BOOK, (), clock, bytes(SALT_BYTES), record)


POLICIES = st.lists(
    st.builds(
        _policy,
        st.sampled_from(WRITTEN_AFTER_MS),
        st.sampled_from([None, Writers(("admin",)), Writers(zones=("east",)), Writers()]),
        st.sampled_from([1, 1, 2, 4, None]),
        st.sampled_from([None, None, 30 * 86_400]),
    ),
    min_size=1,
    max_size=4,
)


@LAW
@given(ENTRIES, HISTORIES)
def test_a_smaller_quota_leaves_what_it_would_have_let_in(
    plans: list[Plan], history: list[Event]
) -> None:
    peer = Peer(quotas=lambda _: Quotas(4, 1))
    peer.live(history, written(plans))

    peer.quotas = few
    peer.advance(1)
    for namespace in (PUMPS, BOOK):
        while peer.trim(namespace, 2):
            pass
    peer.settle()

    check_ideal(peer)
    check_indexes(peer)


@LAW
@given(ENTRIES, POLICIES, st.data())
def test_peers_that_heard_policies_and_entries_in_any_order_are_alike_after_they_meet(
    plans: list[Plan], policies: list[Arrival], data: st.DataObject
) -> None:
    entries = written(plans)
    lost = data.draw(st.sets(st.integers(0, len(policies) - 1)))
    kept = [one for at, one in enumerate(policies) if at not in lost]
    peers = [Policed() for _ in range(3)]
    for peer in peers:
        for at in data.draw(st.permutations(range(len(policies) + 8))):
            # What is written is heard in eight parts, before, between and after the policies.
            if at < len(policies):
                peer.hear(policies[at])
            else:
                which = data.draw(st.sampled_from([3, 5, 7]))
                peer.deliver_all(
                    one for index, one in enumerate(entries) if (index * which + at) % 8 < 3
                )

    for peer in peers:
        for at in lost:
            if policies[at] not in kept:
                peer.lose(policies[at])
    sync(*peers)

    check_alike(*peers)
    check_indexes(peers[0])
    quota = peers[0].policies.quotas(PUMPS).entries
    shares = Counter(bucket_of(entry) for _, entry in peers[0].entries() if _is_shared(entry))
    assert max(shares.values(), default=0) <= quota
    assert all(peers[0].lets_in(entry) for _, entry in peers[0].entries())


def _is_shared(entry: Entry) -> bool:
    return entry.header.namespace == PUMPS and not is_counted_by_day(entry)


# What has one example, or few


def test_a_quota_that_was_lowered_holds_from_what_its_author_writes_next() -> None:
    peer = Peer(quotas=plenty)
    texts = [note(ALICE, f"reading {at}", at_ms=START_MS + at, signed=False) for at in range(6)]
    peer.deliver_all(texts[:5])

    peer.quotas = few
    peer.advance(1)
    peer.deliver_all(texts[5:])

    assert peer.held == {place(one) for one in texts[4:]}
    check_indexes(peer)


@pytest.mark.parametrize("what", [note(ALICE, "text"), removal(ALICE)], ids=["note", "removal"])
def test_whose_quota_is_nothing_may_keep_nothing(what: Arrival) -> None:
    peer = Peer(quotas=lambda _: Quotas(0, 0), now_ms=NOW_MS)

    assert peer.deliver(what) == "full"
    assert peer.held == frozenset()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_an_author_that_writes_twice_at_one_time_is_told_with_both_entries_as_proof(
    order: tuple[int, int],
) -> None:
    pair = [note(ALICE, text, at_ms=START_MS) for text in ("on one device", "on another")]
    stranger = note(BOB, "on a third", at_ms=START_MS)
    peer = Peer()

    for one in (stranger, *(pair[index] for index in order)):
        peer.deliver(one)

    assert peer.commit().doubled == [(PUMPS, ALICE.public_key)]
    assert peer.held == {place(one) for one in (stranger, *pair)}
    proof = encode_plain([pair[index].entry.data for index in order])
    assert peer.tables.get(Table.DOUBLE, PUMPS + ALICE.public_key) == proof


def test_a_value_is_superseded_by_those_of_its_own_key_that_have_seen_it() -> None:
    at_ms = START_MS
    theirs = shared(ALICE, "limit", "7 mm/s", at_ms=at_ms)
    elsewhere = shared(BOB, "another limit", "9 mm/s", theirs, at_ms=at_ms + 1)
    before_it = shared(CAROL, "limit", "8 mm/s", theirs, at_ms=at_ms - 1)
    ours = shared(BOB, "limit", "8 mm/s", theirs, at_ms=at_ms + 2)
    peer = Peer(quotas=plenty)
    peer.deliver_all([theirs, elsewhere, before_it])

    assert not is_superseded(peer.tables, theirs.entry)
    peer.deliver_all([ours])
    assert is_superseded(peer.tables, theirs.entry)
    assert not is_superseded(peer.tables, ours.entry)


def test_a_payload_that_comes_after_it_has_expired_is_not_shown() -> None:
    short = note(ALICE, "for two hours", at_ms=START_MS, expires_ms=START_MS + 2 * HOUR_MS)
    peer = Peer(now_ms=START_MS)
    assert peer.deliver(replace(short, payload=None)) == "kept"

    peer.advance(2 * HOUR_MS)

    assert peer.deliver(short) == "known"
    assert peer.shown == frozenset()


# Several devices, partitions, time, and kills


class Mesh(RuleBasedStateMachine):
    """Three devices with clocks a minute apart; what is written anywhere ends everywhere."""

    SKEWS_MS = (0, MINUTE_MS, -MINUTE_MS)

    def __init__(self) -> None:
        super().__init__()
        self.peers = [Peer(now_ms=MEET_MS + skew, durable=True) for skew in self.SKEWS_MS]
        self.written: list[Arrival] = []
        self.cut: set[tuple[int, int]] = set()
        self.now_ms = MEET_MS

    @rule(peer=st.integers(0, 2), plans=st.lists(PLANS, min_size=1, max_size=6))
    def write(self, peer: int, plans: list[Plan]) -> None:
        for plan in plans:
            self.written.append(written_after(self.written, plan, self.now_ms - HOUR_MS))
            self.peers[peer].deliver(self.written[-1])

    @rule(peer=st.integers(0, 2), which=PART)
    def replay(self, peer: int, which: list[int]) -> None:
        for index in which:
            if self.written:
                self.peers[peer].deliver(self.written[index % len(self.written)])

    @rule(pair=st.sampled_from([(0, 1), (0, 2), (1, 2)]), payloads=st.booleans())
    def meet(self, pair: tuple[int, int], payloads: bool) -> None:
        left, right = (self.peers[index] for index in pair)
        if pair not in self.cut:
            # Nothing is told to others before it is durable.
            left.commit()
            right.commit()
            ours, theirs = (
                [one if payloads else replace(one, payload=None) for one in peer.offer()]
                for peer in (left, right)
            )
            left.deliver_all(theirs)
            right.deliver_all(ours)

    @rule(pair=st.sampled_from([(0, 1), (0, 2), (1, 2)]))
    def part_or_heal(self, pair: tuple[int, int]) -> None:
        self.cut ^= {pair}

    @rule(peer=st.integers(0, 2))
    def commit(self, peer: int) -> None:
        self.peers[peer].commit()

    @rule(peer=st.integers(0, 2))
    def kill(self, peer: int) -> None:
        self.peers[peer].kill()

    @rule(step_ms=st.sampled_from(STEPS_MS))
    def wait(self, step_ms: int) -> None:
        self.now_ms += step_ms
        for peer in self.peers:
            peer.advance(step_ms)

    @rule(peer=st.integers(0, 2), limit=st.integers(1, 3))
    def pass_time(self, peer: int, limit: int) -> None:
        self.peers[peer].pass_time(limit)

    def teardown(self) -> None:
        self.now_ms += 10 * MINUTE_MS
        for peer in self.peers:
            peer.advance(self.now_ms - peer.now_ms)
            peer.settle()

        sync(*self.peers)

        check_alike(*self.peers)
        reached: dict[Place, Arrival] = {}
        for peer in self.peers:
            reached |= peer.reached
            check_indexes(peer)
        expected = ideal(reached.values(), self.now_ms, few)
        assert (self.peers[0].held, self.peers[0].shown | self.peers[0].wanted) == expected


def test_devices_that_part_wait_and_die_agree_when_they_meet() -> None:
    run_state_machine_as_test(
        Mesh, settings=settings(LAW, max_examples=LAW.max_examples // 5, stateful_step_count=30)
    )


# What the laws must see


class TakesOlderHeads(Replica):
    def _head_of(self, entry: Entry) -> Entry | None:
        head = super()._head_of(entry)
        return head if head is not None and head.key < entry.key else None


class EvictsTheOldestOfAnybody(Replica):
    def _make_room(self, entry: Entry, bucket: bytes) -> bool:
        held = [read_entry(data) for _, data in self._tables.scan(Table.ENTRY, b"")]
        if len(held) >= 6:
            self._remove(place_of(held[0]), held[0])
        return super()._make_room(entry, bucket)


class LetsAnybodyForget(Replica):
    def _is_covered(self, entry: Entry) -> bool:
        target = entry.header.namespace + FORGETS_ID + entry.id[:SHORT_ID_BYTES]
        named = next(self._tables.scan(Table.COVER, target), None)
        return named is not None or super()._is_covered(entry)


class TakesPayloadsBack(Replica):
    def _fill(self, place: Place, arrival: Arrival) -> Fate:
        if arrival.payload is not None and self._tables.get(Table.PAYLOAD, place) is None:
            self._tables.delete(Table.WANTED, place)
            self._tables.put(Table.PAYLOAD, place, arrival.payload)
            self.applied.shown.append(place)
        return super()._fill(place, arrival)


class TakesWhatIsOver(Replica):
    def apply(self, arrival: Arrival) -> Fate:
        now_ms, self._now_ms = self._now_ms, min(self._now_ms, arrival.entry.at_ms)
        fate = super().apply(arrival)
        self._now_ms = now_ms
        return fate


class TakesWhatIsEarly(Replica):
    def _apply(self, arrival: Arrival) -> Fate:
        now_ms, self._now_ms = self._now_ms, max(self._now_ms, arrival.entry.at_ms)
        fate = super()._apply(arrival)
        self._now_ms = now_ms
        return fate


class LeavesWhatIsDue(Replica):
    def _remove(self, place: Place, entry: Entry, *, replaced: bool = False) -> None:
        due = [row for row, _ in self._tables.scan(Table.DUE, b"") if row.endswith(place)]
        super()._remove(place, entry, replaced=replaced)
        for row in due:
            self._tables.put(Table.DUE, row, b"")


class ForgetsOnlyWhatItHolds(Replica):
    def _insert_payload(self, place: Place, arrival: Arrival) -> None:
        if arrival.payload is not None and arrival.entry.header.payload_bytes:
            self._tables.put(Table.PAYLOAD, place, arrival.payload)
            self.applied.shown.append(place)
        else:
            super()._insert_payload(place, arrival)


class GivesNothingBack(Replica):
    def _uncover(self, entry: Entry) -> None:
        pass


class KeepsNoCount(Replica):
    def _make_room(self, entry: Entry, bucket: bytes) -> bool:
        return True

    def _count_one_less(self, bucket: bytes) -> None:
        pass


class TellsNothingHidden(Replica):
    def _drop_payload(self, place: Place) -> None:
        super()._drop_payload(place)
        self.applied.hidden.clear()


@pytest.mark.parametrize(
    "rules",
    [
        TakesOlderHeads,
        EvictsTheOldestOfAnybody,
        LetsAnybodyForget,
        TakesPayloadsBack,
        TakesWhatIsOver,
        TakesWhatIsEarly,
        LeavesWhatIsDue,
        ForgetsOnlyWhatItHolds,
        GivesNothingBack,
        KeepsNoCount,
        TellsNothingHidden,
    ],
)
def test_a_replica_that_breaks_a_rule_breaks_the_law(rules: type[Replica]) -> None:
    @settings(
        max_examples=2_000,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
    )
    @given(ENTRIES, HISTORIES)
    def law(plans: list[Plan], history: list[Event]) -> None:
        holds_the_ideal(rules, plans, history)

    with pytest.raises((AssertionError, Malformed)):  # an index that names nothing is found as well
        law()
