"""What does a peer say about its memory, to whom, and when does it leave off? Decisions one by one.

The whole of it, among many peers and over time: tests/simulation/test_spreading.py.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import TypeVar

import pytest
from test_gossip.members import key
from test_gossip.memory_entries import ALICE, MESH, NOW_MS, note, shorts

from covey.gossip.memory.asking import ASKED_MAX, HAS_MAX
from covey.gossip.memory.comparing import MARGIN_MS, ROUNDS_MAX
from covey.gossip.memory.effects import Effect, Ingest, Ingested, Say, StepChanged
from covey.gossip.memory.entry import AHEAD_MS_MAX, HASH_BYTES, Key, NamespaceId
from covey.gossip.memory.messages import (
    BATCH_ENTRIES,
    IDS_MAX,
    ROWS_MAX,
    TIME_MS_MAX,
    Ask,
    Compare,
    Compared,
    Contents,
    Digest,
    Entries,
    Gone,
    Item,
    Message,
    Offer,
    Refused,
    Rest,
    Row,
    Run,
    Took,
    Want,
    decode_message,
    encode_message,
)
from covey.gossip.memory.namespace import Namespace, namespace_of
from covey.gossip.memory.neighbour import REFUSALS_MAX, Neighbour
from covey.gossip.memory.reconciliation import Ranges, Session, answer
from covey.gossip.memory.replica import Arrival
from covey.gossip.memory.settings import SpreadSettings
from covey.gossip.memory.spreading import Spreading
from covey.gossip.memory.summary import END, Summary
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId

M = TypeVar("M")
Said = list[tuple[PeerId, Message]]

# Of two linked peers the one with the greater id compares: ME with LEAST and LESS, not with GREATER.
LEAST, LESS, ME, GREATER = sorted(key(number).peer_id for number in range(1, 5))
PUMPS = namespace_of(MESH, "mesh", "plant/pumps")
MEMBERS = namespace_of(MESH, "mesh", "_mesh/members")
REVOKED = namespace_of(MESH, "mesh", "_mesh/revoked")
ADVERTS = namespace_of(MESH, "mesh", "_mesh/adverts")
FINANCE = namespace_of(MESH, "eu", "finance")
OF_EU = namespace_of(MESH, "eu", "_mesh/namespaces")
LATER = namespace_of(MESH, "mesh", "_mesh/of-a-later-version")
OWN = namespace_of(MESH, "device", "own")
SETTINGS = SpreadSettings()
UNTIL_MS = NOW_MS + MARGIN_MS
OF_NOTHING = hashlib.sha256(b"").digest()[:HASH_BYTES]
OF_SOMETHING = b"\x07" * HASH_BYTES


class Held:
    """What a peer holds, in memory."""

    def __init__(self) -> None:
        self.arrivals: dict[Namespace, dict[Key, Arrival]] = {}
        self.summaries: dict[NamespaceId, Summary] = {}
        self.without_payload: set[bytes] = set()

    def hold(self, namespace: Namespace, *arrivals: Arrival) -> list[Key]:
        box = self.arrivals.setdefault(namespace, {})
        summary = self.summaries.setdefault(namespace.id, Summary())
        for one in arrivals:
            box[one.entry.key] = one
            summary.add(one.entry.key)
        return [one.entry.key for one in arrivals]

    def drop(self, namespace: Namespace, *arrivals: Arrival) -> list[Key]:
        for one in arrivals:
            del self.arrivals[namespace][one.entry.key]
            self.summaries[namespace.id].discard(one.entry.key)
        return [one.entry.key for one in arrivals]

    def namespaces(self) -> Iterable[Namespace]:
        return list(self.arrivals)

    def summary(self, namespace: NamespaceId) -> Summary:
        return self.summaries.get(namespace, Summary())

    def salted(self, namespace: NamespaceId, salt: bytes) -> Summary:
        return Summary(self._box(namespace), salt=salt)

    def items(self, namespace: NamespaceId, keys: Sequence[Key], limit_bytes: int) -> list[Item]:
        box = self._box(namespace)
        found = [box.get(one) for one in keys]
        return [item_of(one) if one is not None else Item(b"", None) for one in found]

    def find(self, namespace: NamespaceId, short_ids: Sequence[bytes]) -> list[Key]:
        by_id = {one[8:24]: one for one in self._box(namespace)}
        return [by_id[one] for one in short_ids if one in by_id]

    def unpaid(self, namespace: NamespaceId, limit: int) -> list[bytes]:
        found = [one[8:24] for one in self._box(namespace) if one[8:24] in self.without_payload]
        return found[:limit]

    def _box(self, namespace: NamespaceId) -> dict[Key, Arrival]:
        empty: dict[Key, Arrival] = {}
        return next((box for of, box in self.arrivals.items() if of.id == namespace), empty)


class Desk:
    """One peer's spreading, by itself: what it is told, and what it then says."""

    def __init__(self, me: PeerId = ME, settings: SpreadSettings = SETTINGS) -> None:
        self.me = me
        self.held = Held()
        self.now = 0.0
        self.outsiders: set[tuple[PeerId, str]] = set()
        self.spreading = Spreading(
            me,
            MESH,
            self.held,
            lambda peer, zone: (peer, zone) not in self.outsiders,
            Random(1),
            settings,
        )
        self.ingests: list[Ingest] = []

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.now * 1000)

    def carry_out(self, effects: Iterable[Effect]) -> Said:
        effects = list(effects)
        self.ingests += [one for one in effects if isinstance(one, Ingest)]
        return [(one.to, decode_message(one.body)) for one in effects if isinstance(one, Say)]

    def link(self, *peers: PeerId, same_books: bool = True) -> Said:
        links = [
            self.spreading.link_up(one, self.now, self.now_ms, same_books=same_books)
            for one in peers
        ]
        return [said for effects in links for said in self.carry_out(effects)]

    def unlink(self, peer: PeerId) -> Said:
        return self.carry_out(self.spreading.link_down(peer, self.now))

    def in_step_with(self, *peers: PeerId) -> "Desk":
        """Link peers; neither holds anything yet."""
        self.link(*peers)
        for one in peers:
            self.hear(one, Digest(UNTIL_MS, OF_NOTHING, answer=False))
            assert self.look(one).state == "in step"
        return self

    def hear(self, sender: PeerId, message: Message) -> Said:
        return self.hear_bytes(sender, encode_message(message))

    def hear_bytes(self, sender: PeerId, body: bytes) -> Said:
        return self.carry_out(self.spreading.receive(sender, body, self.now, self.now_ms))

    def write(self, namespace: Namespace, *arrivals: Arrival, source: PeerId | None = None) -> Said:
        keys = self.held.hold(namespace, *arrivals)
        return self.carry_out(self.spreading.written(namespace, keys, source, self.now))

    def remove(self, namespace: Namespace, *arrivals: Arrival) -> Said:
        keys = self.held.drop(namespace, *arrivals)
        return self.carry_out(self.spreading.removed(namespace, keys, self.now))

    def take(
        self, *taken: Arrival, refused: Sequence[Arrival] = (), bad: str | None = None
    ) -> Said:
        """Finish the first batch that is being taken in: these of it are held, those refused."""
        batch = self.ingests.pop(0)
        keys = self.held.hold(batch.namespace, *taken)
        said = self.carry_out(self.spreading.written(batch.namespace, keys, batch.sender, self.now))
        done = Ingested(batch.sender, batch.number, batch.namespace, keys, shorts(refused), bad)
        return said + self.carry_out(self.spreading.ingested(done, self.now, self.now_ms))

    def wait(self, seconds: float) -> Said:
        """Let time pass, ticking whenever it is due."""
        said: Said = []
        end = self.now + seconds
        while (due := self.spreading.deadline) <= end:
            self.now = max(self.now, due)
            said += self.carry_out(self.spreading.tick(self.now, self.now_ms))
            assert self.spreading.deadline > self.now, "it would tick for ever"
        self.now = end
        return said

    def look(self, peer: PeerId) -> Neighbour:
        found = self.spreading.neighbour(peer)
        assert found is not None
        return found


def talk(one: Desk, other: Desk, said: Said) -> list[Message]:
    """Let two peers hear each other out; return all that was said, from `said` by `one` on."""
    heard: list[Message] = []
    waiting = [(one, other, message) for to, message in said if to == other.me]
    while waiting:
        sender, hearer, message = waiting.pop(0)
        heard.append(message)
        answers = hearer.hear(sender.me, message)
        while hearer.ingests:
            items = hearer.ingests[0].items
            has = sender.held.arrivals[hearer.ingests[0].namespace].values()
            answers += hearer.take(*[it for it in has if item_of(it) in items])
        waiting += [(hearer, sender, answer) for to, answer in answers if to == sender.me]
        assert len(heard) < 1000
    return heard


def of_kind(said: Iterable[tuple[PeerId, Message]], kind: type[M]) -> list[tuple[PeerId, M]]:
    return [(to, one) for to, one in said if isinstance(one, kind)]


def item_of(arrival: Arrival) -> Item:
    return Item(arrival.entry.data, arrival.payload)


def notes(count: int, *, namespace: Namespace = PUMPS, first: int = 0) -> list[Arrival]:
    return [
        note(
            ALICE, f"note {number}", namespace=namespace.id, at_ms=NOW_MS - 1 - number, signed=False
        )
        for number in range(first, first + count)
    ]


def ids_of(*arrivals: Arrival) -> bytes:
    return b"".join(shorts(arrivals))


def offer(*arrivals: Arrival, namespace: Namespace = PUMPS) -> Offer:
    return Offer(namespace.zone, namespace.name, ids_of(*arrivals))


def want(*arrivals: Arrival, namespace: Namespace = PUMPS, payloads: bool = False) -> Want:
    return Want(namespace.zone, namespace.name, ids_of(*arrivals), payloads)


def gone(*arrivals: Arrival, namespace: Namespace = PUMPS) -> Gone:
    return Gone(namespace.zone, namespace.name, ids_of(*arrivals))


def entries(number: int, *arrivals: Arrival, namespace: Namespace = PUMPS) -> Entries:
    return Entries(number, namespace.zone, namespace.name, tuple(map(item_of, arrivals)))


def a_step(namespace: Namespace, *, salt: bytes = b"", session: int = 1) -> Compare:
    ranges = Session(Summary(), until=END).begin()
    return Compare(session, namespace.zone, namespace.name, ranges, salt)


# Comparing


def test_the_peer_with_the_greater_id_begins() -> None:
    desk = Desk()
    assert desk.link(GREATER) == []
    ((to, said),) = desk.link(LESS)
    assert (to, said) == (LESS, Digest(UNTIL_MS, OF_NOTHING, answer=True))


def test_nothing_to_do_costs_one_small_message_for_each_of_a_few_peers() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    desk.write(PUMPS, *notes(3))
    desk.hear(LEAST, Took(0))
    said = Desk().in_step_with(LEAST, LESS).wait(61)
    assert sorted(to for to, _ in said) == [LEAST, LESS]
    assert all(isinstance(one, Digest) and len(encode_message(one)) < 50 for _, one in said)
    (until_ms,) = {one.until_ms for _, one in of_kind(said, Digest)}
    assert until_ms < NOW_MS + 60_000, "what was written just now may be on its way"


def test_an_equal_digest_is_answered_only_if_that_is_asked_for() -> None:
    desk = Desk().in_step_with(GREATER)
    assert desk.hear(GREATER, Digest(UNTIL_MS, OF_NOTHING, answer=False)) == []
    answered = desk.hear(GREATER, Digest(UNTIL_MS, OF_NOTHING, answer=True))
    assert answered == [(GREATER, Digest(UNTIL_MS, OF_NOTHING, answer=False))]


def test_of_two_different_digests_the_lesser_tells_its_contents_and_the_greater_asks() -> None:
    desk = Desk().in_step_with(LESS, GREATER)
    other = Digest(UNTIL_MS, OF_SOMETHING, answer=False)
    assert desk.hear(GREATER, other) == [(GREATER, Contents(UNTIL_MS, (), whole=True))]
    assert desk.hear(LESS, other) == [(LESS, Ask(UNTIL_MS))]


def test_two_peers_end_with_the_same_and_know_it() -> None:
    less, me = Desk(LESS), Desk(ME)
    less.held.hold(PUMPS, *notes(40))
    me.held.hold(PUMPS, *notes(40, first=20))
    me.held.hold(FINANCE, *notes(3, namespace=FINANCE))
    less.link(ME)
    heard = talk(me, less, me.link(LESS))
    assert less.held.arrivals == me.held.arrivals
    assert less.look(ME).state == me.look(LESS).state == "in step"
    exchange = me.look(LESS).exchange
    assert (exchange.sent, exchange.received) == (23, 20)
    assert sorted(exchange.namespaces) == ["finance", "plant/pumps"]
    assert sum(len(one.items) for one in heard if isinstance(one, Entries)) == 43


@pytest.mark.parametrize("lacking", [0, 50, 100])
def test_a_hundred_recent_differences_in_ten_thousand_cost_little_besides_the_entries(
    lacking: int,
) -> None:
    less, me = Desk(LESS), Desk(ME)
    common = notes(10_000, first=100)
    less.held.hold(PUMPS, *common, *notes(lacking))
    me.held.hold(PUMPS, *common, *notes(100 - lacking, first=lacking))
    less.link(ME)
    heard = talk(me, less, me.link(LESS))
    assert less.held.arrivals == me.held.arrivals
    moved = [item for one in heard if isinstance(one, Entries) for item in one.items]
    assert len(moved) == 100
    content = sum(len(one.header) + len(one.payload or b"") for one in moved)
    assert sum(len(encode_message(one)) for one in heard) - content < 4_000


def test_who_holds_more_goes_through_the_differences_whoever_asked() -> None:
    less, me = Desk(LESS), Desk(ME)
    less.held.hold(PUMPS, *notes(2_000))
    less.link(ME)
    heard = talk(me, less, me.link(LESS))
    assert less.held.arrivals == me.held.arrivals
    assert less.look(ME).state == me.look(LESS).state == "in step"
    assert (me.look(LESS).exchange.received, less.look(ME).exchange.sent) == (2_000, 2_000)
    assert not any(isinstance(one, Want) for one in heard), "no id is said twice, or at all"


def test_a_comparison_is_handed_over_once_and_then_run_here() -> None:
    desk = Desk()
    desk.link(LESS)
    contents = Contents(UNTIL_MS, (Row("mesh", PUMPS.name, 10**9, OF_SOMETHING),), whole=True)
    assert [type(one) for _, one in desk.hear(LESS, contents)] == [Run]
    assert desk.look(LESS).state == "comparing"
    asked = desk.hear(LESS, Digest(NOW_MS, OF_SOMETHING, answer=True))
    assert asked == [(LESS, Ask(NOW_MS))]
    assert [type(one) for _, one in desk.hear(LESS, contents)] == [Compare]


def test_who_does_not_run_what_was_handed_to_it_is_left() -> None:
    desk = Desk()
    desk.link(LESS)
    contents = Contents(UNTIL_MS, (Row("mesh", PUMPS.name, 10**9, OF_SOMETHING),), whole=True)
    desk.hear(LESS, contents)
    desk.wait(SETTINGS.answer_s)
    assert (desk.look(LESS).state, desk.look(LESS).why) == ("apart", "it did not go on in time")


def test_nobody_is_made_to_compare_out_of_the_blue() -> None:
    desk = Desk().in_step_with(LESS, GREATER)
    desk.held.hold(PUMPS, *notes(3))
    run = Run(UNTIL_MS, (Row("mesh", PUMPS.name, 0, OF_NOTHING),))
    assert desk.hear(GREATER, run) == []
    assert desk.spreading.refused == 0, "the comparison may have ended meanwhile"
    desk.hear(GREATER, Ask(UNTIL_MS))
    assert [type(one) for _, one in desk.hear(GREATER, run)] == [Compare]
    assert desk.hear(LESS, run) == []
    assert desk.spreading.refused == 1


def test_an_audit_finds_what_a_digest_does_not_show() -> None:
    less, me = Desk(LESS).in_step_with(ME), Desk(ME).in_step_with(LESS)
    less.held.hold(PUMPS, *notes(5))
    me.held.hold(PUMPS, *notes(4, first=1))
    effects = less.spreading.compare(ME, 0.0, NOW_MS, salt=b"salt")
    steps = [one for one in talk(less, me, less.carry_out(effects)) if isinstance(one, Compare)]
    assert {one.salt for one in steps} == {b"salt"}
    assert less.held.arrivals == me.held.arrivals


def test_an_audit_under_ever_new_salts_is_not_worked_for() -> None:
    desk = Desk().in_step_with(GREATER)
    desk.held.hold(PUMPS, *notes(2))
    desk.held.hold(FINANCE, *notes(2, namespace=FINANCE))
    first, again, other = (a_step(PUMPS, salt=salt) for salt in (b"1", b"1", b"2"))
    assert len(desk.hear(GREATER, first)) == len(desk.hear(GREATER, again)) == 1
    assert desk.hear(GREATER, other) == []
    assert len(desk.hear(GREATER, a_step(FINANCE, salt=b"1"))) == 1
    assert desk.hear(GREATER, first) == [], "to and fro makes all of it anew each time"
    desk.wait(SETTINGS.audit_s)
    assert len(desk.hear(GREATER, other)) == 1


def test_what_one_side_does_not_take_ends_the_comparison_and_both_know_why() -> None:
    less, me = Desk(LESS), Desk(ME)
    less.held.hold(PUMPS, *(some := notes(3)))
    less.link(ME)
    me.link(LESS)
    me.hear(LESS, Digest(UNTIL_MS, OF_SOMETHING, answer=False))
    me.hear(LESS, entries(1, *some))
    me.take(refused=some)
    rest = talk(less, me, less.carry_out(less.spreading.compare(ME, 0.0, NOW_MS)))
    assert rest[-1:] == [], "one is under way"
    heard = talk(
        me,
        less,
        me.hear(LESS, Contents(UNTIL_MS, (Row("mesh", PUMPS.name, 3, OF_SOMETHING),), whole=True)),
    )
    assert heard[-1] == Rest(3)
    assert not any(isinstance(one, Want | Entries) for one in heard)
    for desk, peer in ((me, LESS), (less, ME)):
        assert desk.look(peer).state == "apart"
        assert desk.look(peer).why == "3 entries are not taken by one side"


def test_a_difference_that_nothing_explains_is_no_reason_to_go_on() -> None:
    desk = Desk().in_step_with(LESS)
    desk.hear(LESS, Digest(UNTIL_MS, OF_SOMETHING, answer=True))
    said: Said = []
    for _ in range(10):
        said += desk.hear(LESS, Contents(UNTIL_MS, (), whole=True))
        said += desk.hear(LESS, Digest(UNTIL_MS, OF_SOMETHING, answer=True))
    assert len(of_kind(said, Digest)) == 1
    assert len(of_kind(said, Rest)) == 1
    assert desk.look(LESS).state == "apart"
    assert of_kind(desk.wait(SETTINGS.retry_s), Digest), "and later it is tried again"


def test_a_peer_whose_clock_is_far_ahead_is_compared_with_up_to_ours() -> None:
    desk = Desk().in_step_with(LESS)
    ahead = Digest(NOW_MS + AHEAD_MS_MAX + 1, OF_NOTHING, answer=False)
    assert desk.hear(LESS, ahead) == [(LESS, Digest(UNTIL_MS, OF_NOTHING, answer=True))]
    within = Digest(NOW_MS + AHEAD_MS_MAX, OF_SOMETHING, answer=False)
    assert desk.hear(LESS, within) == [(LESS, Ask(UNTIL_MS))]


def test_contents_that_were_not_asked_for_begin_nothing() -> None:
    desk = Desk().in_step_with(LESS)
    contents = Contents(UNTIL_MS, (Row("mesh", PUMPS.name, 3, OF_SOMETHING),), whole=True)
    assert of_kind(desk.hear(LESS, contents), Compare) != [], "the first digest asked for them"
    desk = Desk().in_step_with(LESS)
    desk.hear(LESS, contents)
    desk.hear(LESS, Refused(PUMPS.zone, PUMPS.name))
    desk.hear(LESS, Digest(UNTIL_MS, OF_NOTHING, answer=False))
    desk.look(LESS).expects_contents = False
    assert desk.hear(LESS, contents) == []


def test_contents_that_do_not_fit_hold_the_books_and_some_of_the_others() -> None:
    desk = Desk().in_step_with(GREATER)
    desk.held.hold(MEMBERS, *notes(1, namespace=MEMBERS))
    for number in range(ROWS_MAX + 5):
        # Names of covey's own that any member may take have no room before the others.
        namespace = namespace_of(MESH, "mesh", f"_n/{number}")
        desk.held.hold(namespace, *notes(1, namespace=namespace))
    ((_, contents),) = of_kind(desk.hear(GREATER, Ask(UNTIL_MS)), Contents)
    assert contents.whole is False
    assert len(contents.rows) == ROWS_MAX
    assert contents.rows[0].name == "_mesh/members"
    in_order = sorted(f"_n/{number}" for number in range(ROWS_MAX + 5))
    assert [row.name for row in contents.rows[1:]] != in_order[: ROWS_MAX - 1]


def test_of_contents_that_are_not_whole_nothing_follows_for_what_they_do_not_name() -> None:
    desk = Desk()
    desk.held.hold(PUMPS, *notes(1))
    desk.link(LESS)
    said = desk.hear(LESS, Contents(UNTIL_MS, (), whole=False))
    assert of_kind(said, Compare) == []


def test_an_answer_that_leads_nowhere_ends_the_session_and_counts_against_its_sender() -> None:
    desk = Desk()
    desk.held.hold(PUMPS, *notes(3))
    desk.link(LESS)
    ((_, step),) = of_kind(desk.hear(LESS, Contents(UNTIL_MS, (), whole=True)), Compare)
    desk.hear(LESS, Compared(step.session, step.ranges))
    assert desk.spreading.refused == 1
    assert desk.look(LESS).state == "apart"


def test_a_session_that_stalls_is_given_up_and_tried_again() -> None:
    desk = Desk()
    desk.held.hold(PUMPS, *notes(3))
    desk.link(LESS)
    desk.hear(LESS, Contents(UNTIL_MS, (), whole=True))
    assert desk.wait(SETTINGS.answer_s - 1) == []
    desk.wait(1.5)
    assert (desk.look(LESS).state, desk.look(LESS).why) == ("apart", "it did not answer in time")
    assert of_kind(desk.wait(SETTINGS.retry_s), Digest) != []


def test_a_peer_that_is_apart_is_compared_with_again_and_again_but_not_often() -> None:
    desk = Desk()
    desk.link(LESS)
    said = of_kind(desk.wait(3600), Digest)
    assert 40 < len(said) < 70


def test_what_is_written_while_two_compare_is_sent_once() -> None:
    less, me = Desk(LESS), Desk(ME)
    before, meanwhile, later = notes(3)
    me.held.hold(PUMPS, before)
    me.link(LESS)
    ((_, step),) = of_kind(me.hear(LESS, Contents(UNTIL_MS, (), whole=True)), Compare)
    me.write(PUMPS, meanwhile)
    said = me.wait(SETTINGS.gather_s)
    me.write(PUMPS, later)
    ranges = answer(less.held.summary(PUMPS.id), step.ranges)
    said += me.hear(LESS, Compared(step.session, ranges)) + me.wait(SETTINGS.gather_s)
    # The session began before it was written, and finds it too.
    sent = [item for _, one in of_kind(said, Entries) for item in one.items]
    assert sorted(map(repr, sent)) == sorted(
        repr(item_of(one)) for one in (before, meanwhile, later)
    )


def test_a_comparison_that_always_finds_more_is_left_after_some_rounds() -> None:
    desk = Desk()
    desk.link(LESS)
    rounds = 0
    said: Said = []
    while not of_kind(said, Rest):
        rounds += 1
        assert rounds < 50
        row = Row("mesh", PUMPS.name, 1, rounds.to_bytes(HASH_BYTES, "big"))
        said = desk.hear(LESS, Contents(UNTIL_MS, (row,), whole=True))
        ((_, step),) = of_kind(said, Compare)
        (one,) = notes(1, first=100_000 + rounds)
        ranges = answer(Summary([one.entry.key]), step.ranges)
        said = desk.hear(LESS, Compared(step.session, ranges)) + desk.hear(LESS, gone(one))
    assert rounds == ROUNDS_MAX


# Pushing


def test_what_is_written_here_is_sent_whole_once_it_was_gathered() -> None:
    desk = Desk().in_step_with(LEAST, GREATER)
    first, second = notes(2)
    assert desk.write(PUMPS, first) == desk.write(PUMPS, second) == []
    said = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    assert [to for to, _ in said] == [LEAST, GREATER]
    assert said[0][1].items == (item_of(first), item_of(second))


def test_what_a_peer_brought_is_offered_to_the_others() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.write(PUMPS, one, source=LESS)
    assert desk.wait(SETTINGS.gather_s) == [(LEAST, offer(one))]


def test_what_a_peer_offers_is_not_offered_to_it() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.hear(LEAST, offer(one))
    desk.write(PUMPS, one, source=LESS)
    assert of_kind(desk.wait(SETTINGS.gather_s), Offer) == []
    (two,) = notes(1, first=1)
    desk.write(PUMPS, two, source=LESS)
    said = desk.hear(LEAST, offer(two)) + desk.wait(SETTINGS.gather_s)
    assert of_kind(said, Offer) == []


def test_only_what_is_lacking_is_asked_for() -> None:
    desk = Desk().in_step_with(LESS)
    held, lacking = notes(2)
    desk.held.hold(PUMPS, held)
    assert desk.hear(LESS, offer(held, lacking)) == [(LESS, want(lacking))]


def test_what_is_being_taken_in_is_not_asked_for() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.hear(LESS, entries(7, one))
    assert desk.hear(LEAST, offer(one)) == []
    assert desk.take(one) == [(LESS, Took(7))]


def test_what_turns_out_bad_is_asked_of_another_that_has_it() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.hear(LESS, entries(7, one))
    desk.hear(LEAST, offer(one))
    said = desk.take(bad="the signature does not hold")
    assert of_kind(said, Want) == [(LEAST, want(one))]


def test_an_entry_is_asked_of_one_peer_and_of_another_if_that_does_not_send_it() -> None:
    (one,) = notes(1)

    def asked_of_less() -> Desk:
        desk = Desk().in_step_with(LEAST, LESS)
        assert desk.hear(LESS, offer(one)) == [(LESS, want(one))]
        assert desk.hear(LEAST, offer(one)) == []
        return desk

    ended, lacks, silent = asked_of_less(), asked_of_less(), asked_of_less()
    assert of_kind(ended.unlink(LESS) + ended.wait(0), Want) == [(LEAST, want(one))]
    assert of_kind(lacks.hear(LESS, gone(one)) + lacks.wait(0), Want) == [(LEAST, want(one))]
    assert of_kind(silent.wait(SETTINGS.answer_s), Want) == [(LEAST, want(one))]
    assert silent.look(LESS).state == "apart"


def test_a_peer_that_keeps_dripping_does_not_keep_others_from_being_asked() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    one, *drips = notes(5)
    desk.hear(LESS, offer(one, *drips))
    desk.hear(LEAST, offer(one))
    said: Said = []
    for number, drip in enumerate(drips):
        said += desk.wait(SETTINGS.answer_s / 2)
        desk.hear(LESS, entries(number, drip))
        desk.take(drip)
    assert (LEAST, want(one)) in said


@pytest.mark.parametrize("payloads", [False, True])
def test_what_is_wanted_and_not_held_is_said_to_be_gone(payloads: bool) -> None:
    desk = Desk().in_step_with(LESS)
    held, lacking = notes(2)
    bare = Arrival(held.entry, None if payloads else held.payload, by_admin=False)
    desk.held.hold(PUMPS, bare)
    said = desk.hear(LESS, want(held, lacking, payloads=payloads)) + desk.wait(0)
    told_gone = {one.ids for _, one in of_kind(said, Gone)}
    assert told_gone == ({ids_of(held), ids_of(lacking)} if payloads else {ids_of(lacking)})
    assert len(of_kind(said, Entries)) == (0 if payloads else 1)


def test_what_is_removed_while_somebody_waits_for_it_is_said_to_be_gone() -> None:
    desk = Desk(settings=SpreadSettings(window=1)).in_step_with(LESS)
    first, second = notes(2)
    desk.held.hold(PUMPS, first, second)
    desk.hear(LESS, want(first))
    desk.hear(LESS, want(second))
    desk.remove(PUMPS, second)
    assert desk.wait(SETTINGS.gather_s) == [(LESS, gone(second))]


def test_what_is_on_its_way_is_not_sent_again_for_the_asking() -> None:
    desk = Desk().in_step_with(LESS)
    (one,) = notes(1)
    desk.held.hold(PUMPS, one)
    assert len(of_kind(desk.hear(LESS, want(one)), Entries)) == 1
    assert desk.hear(LESS, want(one)) == []


def test_what_was_asked_on_an_earlier_link_is_asked_of_another() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.hear(LESS, offer(one))
    desk.link(LESS)
    assert of_kind(desk.hear(LEAST, offer(one)), Want) == [(LEAST, want(one))]


def test_when_a_peer_does_not_send_what_it_has_others_are_compared_with_soon() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    desk.wait(61)
    (one,) = notes(1)
    desk.hear(LESS, offer(one))
    said = desk.wait(SETTINGS.answer_s + SETTINGS.retry_s)
    assert LEAST in [to for to, _ in of_kind(said, Digest)]


def test_a_peer_that_is_slow_but_goes_on_is_not_given_up() -> None:
    desk = Desk().in_step_with(LESS)
    slow, own = notes(5), notes(BATCH_ENTRIES * 4, first=10)
    desk.hear(LESS, offer(*slow))
    desk.write(PUMPS, *own)
    batches = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    for one, (_, batch) in zip(slow, batches, strict=False):
        desk.wait(SETTINGS.answer_s * 0.7)
        desk.hear(LESS, Took(batch.number))
        desk.hear(LESS, entries(1, one))
        desk.take(one)
        assert desk.look(LESS).state == "in step"


@pytest.mark.parametrize(
    ("namespace", "is_payload"), [(PUMPS, True), (MEMBERS, False), (ADVERTS, False)]
)
def test_what_users_write_is_sent_as_payload_and_what_is_covey_s_own_as_control(
    namespace: Namespace, is_payload: bool
) -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(namespace, *notes(1, namespace=namespace))
    effects = desk.spreading.tick(desk.spreading.deadline, desk.now_ms)
    assert [one.payload for one in effects if isinstance(one, Say)] == [is_payload]


def test_who_watches_is_told_when_all_that_was_under_way_has_come() -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(PUMPS, *notes(1))
    ((_, batch),) = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    took = encode_message(Took(batch.number))
    effects = desk.spreading.receive(LESS, took, desk.now, desk.now_ms)
    assert effects == [StepChanged(LESS)]


# Limits


def test_few_batches_are_under_way_and_more_go_when_they_are_acknowledged() -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(PUMPS, *notes(BATCH_ENTRIES * 6))
    first = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    assert len(first) == SETTINGS.window
    assert desk.hear(LESS, Took(123_456)) == []
    assert len(of_kind(desk.hear(LESS, Took(first[0][1].number)), Entries)) == 1


def test_a_peer_that_does_not_acknowledge_is_given_up_and_compared_with_later() -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(PUMPS, *notes(BATCH_ENTRIES * 6))
    desk.wait(SETTINGS.gather_s + SETTINGS.answer_s)
    assert (desk.look(LESS).state, desk.look(LESS).waiting) == ("apart", 0)
    assert len(desk.look(LESS).under_way) == 0
    assert of_kind(desk.wait(SETTINGS.retry_s), Digest) != []


def test_what_a_full_link_did_not_take_is_found_by_a_comparison() -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(PUMPS, *notes(3))
    desk.wait(SETTINGS.gather_s)
    desk.carry_out(desk.spreading.unsent(LESS, desk.now))
    assert desk.look(LESS).state == "apart"
    assert [type(one) for _, one in desk.wait(SETTINGS.retry_s)] == [Digest]


def test_too_much_that_waits_for_a_peer_is_left_to_a_comparison() -> None:
    desk = Desk(settings=SpreadSettings(outbox_max=10)).in_step_with(LESS)
    desk.write(PUMPS, *notes(6))
    desk.write(PUMPS, *notes(6, first=6))
    assert desk.look(LESS).waiting == 0
    assert of_kind(desk.wait(SETTINGS.retry_s), Digest) != []


def test_who_wants_more_than_may_wait_gets_as_much_as_may() -> None:
    desk = Desk(settings=SpreadSettings(outbox_max=10, window=1)).in_step_with(LESS)
    first, *others = notes(30)
    desk.held.hold(PUMPS, first, *others)
    desk.hear(LESS, want(first))
    said = desk.hear(LESS, want(*others))
    assert desk.look(LESS).waiting == 10
    assert len(of_kind(said, Gone)[0][1].ids) == 19 * 16


def test_more_than_is_sent_at_once_is_sent_round_after_round() -> None:
    less = Desk(LESS)
    me = Desk(ME, SpreadSettings(outbox_max=20))
    me.held.hold(PUMPS, *notes(250))
    less.link(ME)
    heard = talk(me, less, me.link(LESS))
    assert less.held.arrivals == me.held.arrivals
    assert me.look(LESS).state == "in step"
    assert {len(one.items) for one in heard if isinstance(one, Entries)} == {20, 10}


def test_offers_without_end_take_no_more_than_so_many() -> None:
    desk = Desk().in_step_with(LESS)
    for number in range(40):
        ids = b"".join((number * IDS_MAX + at).to_bytes(16, "big") for at in range(IDS_MAX))
        desk.hear(LESS, Offer(PUMPS.zone, PUMPS.name, ids))
    assert desk.look(LESS).lacking <= HAS_MAX
    assert sum(map(len, desk.look(LESS).asked.values())) == ASKED_MAX


def test_of_one_peer_few_batches_are_taken_in_at_once() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    for number, one in enumerate(notes(20)):
        desk.hear(LESS, entries(number, one))
    assert len(desk.ingests) == 2 * SETTINGS.window
    desk.unlink(LESS)
    desk.link(LESS)
    desk.hear(LESS, entries(99, *notes(1)))
    assert len(desk.ingests) == 2 * SETTINGS.window, "also when it links anew"
    desk.spreading.not_ingested(desk.ingests.pop(0).number)
    desk.hear(LESS, entries(99, *notes(1)))
    assert len(desk.ingests) == 2 * SETTINGS.window


def test_a_batch_of_an_earlier_link_is_not_acknowledged_on_the_next() -> None:
    desk = Desk().in_step_with(LESS)
    (one,) = notes(1)
    desk.hear(LESS, entries(1, one))
    desk.unlink(LESS)
    desk.link(LESS)
    assert of_kind(desk.take(one), Took) == []


def test_refusals_are_remembered_but_not_without_end() -> None:
    neighbour = Neighbour(LESS)
    some = [number.to_bytes(16, "big") for number in range(REFUSALS_MAX + 10)]
    neighbour.refuse(PUMPS, some, until=5.0)
    assert len(neighbour.refusals) == REFUSALS_MAX
    assert neighbour.refused(PUMPS, some[-1], 4.9)
    assert not neighbour.refused(FINANCE, some[-1], 4.9)
    assert not neighbour.refused(PUMPS, some[-1], 5.0)


def test_an_entry_that_was_refused_is_not_asked_of_its_sender_again_but_of_others() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.hear(LESS, entries(1, one))
    assert desk.take(refused=[one]) == [(LESS, Took(1, ids_of(one)))]
    assert desk.hear(LESS, offer(one)) == []
    assert desk.hear(LEAST, offer(one)) == [(LEAST, want(one))]
    desk.wait(SETTINGS.unwelcome_s)
    assert desk.hear(LESS, offer(one)) == [(LESS, want(one))]


def test_what_a_peer_refused_is_not_sent_to_it_again_for_a_while() -> None:
    less, me = Desk(LESS).in_step_with(ME), Desk(ME).in_step_with(LESS)
    (one,) = notes(1)
    me.write(PUMPS, one)
    ((_, batch),) = of_kind(me.wait(SETTINGS.gather_s), Entries)
    me.hear(LESS, Took(batch.number, ids_of(one)))
    effects = me.spreading.compare(LESS, me.now, me.now_ms)
    heard = talk(me, less, me.carry_out(effects))
    assert not any(isinstance(one, Entries) for one in heard)
    assert len([one for one in heard if isinstance(one, Compare)]) == 1
    assert heard[-1] == Rest(1)


# Who may read


@pytest.mark.parametrize("outsider", [ME, LESS])
@pytest.mark.parametrize(
    "message",
    [
        offer(*notes(1), namespace=FINANCE),
        want(*notes(1), namespace=FINANCE),
        entries(1, *notes(1), namespace=FINANCE),
        a_step(FINANCE),
    ],
    ids=lambda one: type(one).__name__,
)
def test_of_a_namespace_that_not_both_may_read_nothing_is_said_or_taken(
    message: Message, outsider: PeerId
) -> None:
    desk = Desk().in_step_with(LESS)
    desk.held.hold(FINANCE, *notes(2, namespace=FINANCE))
    desk.outsiders.add((outsider, "eu"))
    assert desk.hear(LESS, message) == [(LESS, Refused(FINANCE.zone, FINANCE.name))]
    assert desk.ingests == []
    assert desk.look(LESS).state == "in step", "it is no fault: certificates travel, too"


@pytest.mark.parametrize("outsider", [ME, LESS])
def test_a_digest_and_contents_are_of_what_both_may_read(outsider: PeerId) -> None:
    desk = Desk()
    desk.held.hold(FINANCE, *notes(2, namespace=FINANCE))
    desk.held.hold(OWN, *notes(2, namespace=OWN))
    desk.outsiders.add((outsider, "eu"))
    assert desk.link(LESS) == [(LESS, Digest(UNTIL_MS, OF_NOTHING, answer=True))]
    said = desk.link(GREATER) + desk.hear(GREATER, Ask(UNTIL_MS))
    ((_, contents),) = of_kind(said, Contents)
    names = [row.name for row in contents.rows]
    assert names == ([] if outsider == ME else ["finance"])


def test_what_was_noted_for_a_peer_is_not_told_to_it_once_it_may_not_read_it() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    one, two, three = notes(3, namespace=FINANCE)
    desk.write(FINANCE, one)
    desk.write(FINANCE, two, source=LEAST)
    desk.hear(LEAST, offer(three, namespace=FINANCE))
    desk.outsiders |= {(LEAST, "eu"), (LESS, "eu")}
    assert desk.wait(SETTINGS.gather_s) == []
    assert (desk.look(LESS).waiting, desk.look(LEAST).waiting) == (0, 0)


def test_a_session_goes_no_further_once_the_other_may_not_read() -> None:
    less, me = Desk(LESS), Desk(ME)
    me.held.hold(FINANCE, *notes(100, namespace=FINANCE))
    less.held.hold(FINANCE, *notes(100, namespace=FINANCE, first=50))
    me.link(LESS)
    ((_, step),) = of_kind(me.hear(LESS, Contents(UNTIL_MS, (), whole=True)), Compare)
    ranges = answer(less.held.summary(FINANCE.id), step.ranges)
    me.outsiders.add((LESS, "eu"))
    said = me.hear(LESS, Compared(step.session, ranges))
    assert [type(one) for _, one in said] == [Digest]


def test_a_namespace_that_the_other_refuses_is_left_out_and_the_rest_goes_on() -> None:
    less, me = Desk(LESS), Desk(ME)
    me.held.hold(FINANCE, *notes(3, namespace=FINANCE))
    me.held.hold(PUMPS, *notes(3))
    less.outsiders.add((LESS, "eu"))
    less.link(ME)
    heard = talk(me, less, me.link(LESS))
    assert less.held.arrivals == {PUMPS: me.held.arrivals[PUMPS]}
    assert len([one for one in heard if isinstance(one, Refused)]) == 1
    assert me.look(LESS).state == less.look(ME).state == "apart"


# The books first


BOOKS = pytest.mark.parametrize("of", [MEMBERS, LATER, OF_EU], ids=lambda one: one.name)


@BOOKS
def test_nothing_else_is_sent_before_the_books_are_durable_there(of: Namespace) -> None:
    desk = Desk().in_step_with(LESS)
    book, other = notes(1, namespace=of), notes(1)
    desk.write(PUMPS, *other)
    desk.write(of, *book)
    ((_, first),) = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    assert first.name == of.name
    ((_, second),) = of_kind(desk.hear(LESS, Took(first.number)), Entries)
    assert second.name == PUMPS.name


@BOOKS
def test_nothing_else_is_asked_for_before_the_books_are_held(of: Namespace) -> None:
    desk = Desk().in_step_with(LESS)
    book, other = notes(1, namespace=of), notes(1)
    assert len(desk.hear(LESS, offer(*book, namespace=of))) == 1
    assert desk.hear(LESS, offer(*other)) == []
    desk.hear(LESS, entries(1, *book, namespace=of))
    assert (LESS, want(*other)) in desk.take(*book)


@BOOKS
def test_nothing_else_is_compared_before_the_books_are_the_same(of: Namespace) -> None:
    desk = Desk()
    desk.link(LESS)
    rows = tuple(Row(one.zone, one.name, 1, OF_SOMETHING) for one in (PUMPS, of))
    ((_, step),) = of_kind(desk.hear(LESS, Contents(UNTIL_MS, rows, whole=True)), Compare)
    assert step.name == of.name
    book = notes(1, namespace=of)
    summary = Summary([book[0].entry.key])
    said = desk.hear(LESS, Compared(step.session, answer(summary, step.ranges)))
    assert said == [(LESS, want(*book, namespace=of))]
    desk.hear(LESS, entries(1, *book, namespace=of))
    ((_, next_step),) = of_kind(desk.take(*book), Compare)
    assert next_step.name == PUMPS.name


def test_what_says_who_is_in_a_zone_goes_before_the_zones_own_book() -> None:
    desk = Desk().in_step_with(LESS)
    desk.write(OF_EU, *notes(1, namespace=OF_EU))
    desk.write(MEMBERS, *notes(1, namespace=MEMBERS))
    ((_, first),) = of_kind(desk.wait(SETTINGS.gather_s), Entries)
    assert first.name == "_mesh/members"
    ((_, second),) = of_kind(desk.hear(LESS, Took(first.number)), Entries)
    assert (second.zone, second.name) == ("eu", "_mesh/namespaces")


# The books first, on a new link


def named(said: Iterable[Message]) -> list[str]:
    """Return the namespaces that messages name, in order and each once."""
    names = [getattr(one, "name", None) for one in said]
    of_rows = [[row.name for row in getattr(one, "rows", ())] for one in said]
    pairs = zip(names, of_rows, strict=True)
    return list(dict.fromkeys(name for one, rows in pairs for name in (one, *rows) if name))


def told(said: Said) -> list[str]:
    return named([one for _, one in said])


@pytest.mark.parametrize("peer", [LESS, GREATER])
def test_while_books_differ_nothing_else_goes_out_until_the_time_is_up(peer: PeerId) -> None:
    desk = Desk()
    book, pushed, brought, wanted, lacking = (
        *notes(1, namespace=MEMBERS),
        *notes(4),
    )
    desk.held.hold(PUMPS, wanted)
    desk.link(peer, same_books=False)
    desk.write(PUMPS, pushed)
    desk.write(PUMPS, brought, source=LEAST)
    desk.write(MEMBERS, book)
    said = desk.wait(SETTINGS.gather_s)
    assert told(said) == ["_mesh/members"]
    said = desk.hear(peer, Took(of_kind(said, Entries)[0][1].number))
    assert told(said + desk.wait(SETTINGS.books_first_s - SETTINGS.gather_s - 0.01)) == []
    assert desk.look(peer).books_come_first
    said = desk.wait(0.01)
    assert of_kind(said, Offer) == [(peer, offer(brought))]
    assert [item_of(pushed)] == [item for _, one in of_kind(said, Entries) for item in one.items]
    assert desk.hear(peer, offer(lacking)) == [(peer, want(lacking))]


def test_what_is_wanted_or_offered_too_early_waits_for_the_books() -> None:
    desk = Desk()
    held, lacking, unknown = notes(3)
    desk.held.hold(PUMPS, held)
    desk.link(LESS, same_books=False)
    for early in (want(held), offer(lacking), want(unknown), a_step(PUMPS)):
        assert desk.hear(LESS, early) == []
    said = desk.wait(SETTINGS.books_first_s)
    assert of_kind(said, Gone) == [(LESS, gone(unknown))]
    assert of_kind(said, Want) == [(LESS, want(lacking))]
    assert [one.items for _, one in of_kind(said, Entries)] == [(item_of(held),)]
    assert len(desk.hear(LESS, a_step(PUMPS))) == 1


def test_whose_books_are_the_same_waits_for_nothing() -> None:
    desk = Desk()
    desk.link(LESS)
    desk.write(PUMPS, *notes(1))
    assert told(desk.wait(SETTINGS.gather_s)) == [PUMPS.name]


def test_whose_digest_of_all_is_the_same_has_the_same_books_whatever_it_showed() -> None:
    desk = Desk()
    desk.link(LESS, same_books=False)
    desk.hear(LESS, Digest(UNTIL_MS, OF_NOTHING, answer=False))
    desk.write(PUMPS, *notes(1))
    assert told(desk.wait(SETTINGS.gather_s)) == [PUMPS.name]


def test_books_are_not_left_to_who_holds_more_of_them() -> None:
    desk = Desk()
    desk.link(LESS, same_books=False)
    rows = tuple(Row("mesh", one.name, 10**9, OF_SOMETHING) for one in (MEMBERS, PUMPS))
    said = desk.hear(LESS, Contents(UNTIL_MS, rows, whole=True))
    assert [type(one) for _, one in said] == [Compare]
    assert told(said) == ["_mesh/members"]


def test_what_waits_goes_out_once_the_books_have_moved_both_ways() -> None:
    desk = Desk()
    ours, theirs = notes(2, namespace=MEMBERS)
    desk.held.hold(MEMBERS, ours)
    desk.link(LESS, same_books=False)
    desk.write(PUMPS, *notes(1))
    row = Row("mesh", MEMBERS.name, 1, OF_SOMETHING)
    ((_, step),) = of_kind(desk.hear(LESS, Contents(UNTIL_MS, (row,), whole=False)), Compare)
    assert told(desk.wait(SETTINGS.gather_s)) == []
    said = desk.hear(LESS, Compared(step.session, answer(Summary([theirs.entry.key]), step.ranges)))
    assert told(said + desk.wait(SETTINGS.gather_s)) == [MEMBERS.name]
    desk.hear(LESS, entries(1, theirs, namespace=MEMBERS))
    assert told(desk.take(theirs)) == [], "ours is not durable there yet"
    said = desk.hear(LESS, Took(of_kind(said, Entries)[0][1].number))
    assert told(said) == [PUMPS.name]
    assert len(of_kind(said, Digest)) == 1, "and so it is told"


def test_who_does_not_run_the_comparison_learns_from_who_does_that_the_books_are_through() -> None:
    for word in (a_step(PUMPS), offer(*notes(1)), Rest(3)):
        desk = Desk()
        desk.link(GREATER, same_books=False)
        desk.write(PUMPS, *notes(1, first=5))
        assert desk.hear(GREATER, a_step(MEMBERS)) != []
        assert desk.look(GREATER).books_come_first
        said = desk.hear(GREATER, word) + desk.wait(SETTINGS.gather_s)
        assert PUMPS.name in [one.name for _, one in of_kind(said, Entries)]


def test_the_books_are_named_first_and_the_rest_when_asked_again() -> None:
    desk = Desk()
    desk.held.hold(MEMBERS, *notes(1, namespace=MEMBERS))
    desk.held.hold(PUMPS, *notes(1))
    desk.link(GREATER, same_books=False)
    other = Digest(UNTIL_MS, OF_SOMETHING, answer=True)
    ((_, first),) = of_kind(desk.hear(GREATER, other), Contents)
    ((_, second),) = of_kind(desk.hear(GREATER, other), Contents)
    assert (named([first]), first.whole) == (["_mesh/members"], False)
    assert (named([second]), second.whole) == (["_mesh/members", PUMPS.name], True)


@pytest.mark.parametrize("peer", [LESS, GREATER])
def test_a_zones_book_is_not_spoken_of_before_it_is_known_who_is_in_the_zone(
    peer: PeerId,
) -> None:
    desk = Desk()
    desk.held.hold(MEMBERS, *notes(1, namespace=MEMBERS))
    desk.held.hold(OF_EU, *(held := notes(1, namespace=OF_EU)))
    desk.link(peer, same_books=False)
    desk.write(OF_EU, *notes(1, namespace=OF_EU, first=5))
    said = desk.hear(peer, Digest(UNTIL_MS, OF_SOMETHING, answer=True))
    if peer == LESS:  # the other would be through with the books itself, if it spoke of more
        said += desk.hear(peer, want(*held, namespace=OF_EU))
        said += desk.hear(peer, a_step(OF_EU))
        said += desk.hear(peer, Contents(UNTIL_MS, (), whole=False))
    said += desk.wait(SETTINGS.gather_s)
    assert set(told(said)) == {"_mesh/members"}


def test_a_book_that_is_not_named_is_one_that_the_other_has_nothing_of() -> None:
    desk = Desk()
    desk.held.hold(MEMBERS, *notes(1, namespace=MEMBERS))
    desk.held.hold(PUMPS, *notes(1))
    desk.link(LESS, same_books=False)
    said = desk.hear(LESS, Contents(UNTIL_MS, (), whole=False))
    assert told(said) == ["_mesh/members"]


@pytest.mark.parametrize(("mine", "theirs"), [(3, 3), (3, 2_000), (2_000, 3)])
def test_books_that_differ_cost_one_round_trip_more_than_those_that_are_the_same(
    mine: int, theirs: int
) -> None:
    heard: dict[bool, list[Message]] = {}
    for same in (True, False):
        less, me = Desk(LESS), Desk(ME)
        for desk, first, count in ((me, 0, mine), (less, 3_000, theirs)):
            desk.held.hold(MEMBERS, *notes(2, namespace=MEMBERS, first=first))
            desk.held.hold(PUMPS, *notes(count, first=first))
        less.link(ME, same_books=same)
        heard[same] = talk(me, less, me.link(LESS, same_books=same))
        assert less.held.arrivals == me.held.arrivals
        assert less.look(ME).state == me.look(LESS).state == "in step"
        assert not less.look(ME).books_come_first
        assert not me.look(LESS).books_come_first
    kinds = [type(one) for one in heard[False]]
    steps = {
        same: len([one for one in said if not isinstance(one, Entries | Took)])
        for same, said in heard.items()
    }
    assert steps[False] <= steps[True] + 2
    others = [at for at, one in enumerate(heard[False]) if PUMPS.name in named([one])]
    of_books = [
        at
        for at, one in enumerate(heard[False])
        if isinstance(one, Entries | Want) and one.name == MEMBERS.name
    ]
    assert len(of_books) > 1
    assert max(of_books) < min(others)
    assert (Run in kinds) is (theirs == 2_000), "who holds more still goes through the rest"


def test_books_that_one_side_does_not_take_end_no_comparison_of_the_rest() -> None:
    less, me = Desk(LESS), Desk(ME)
    less.held.hold(MEMBERS, *(some := notes(3, namespace=MEMBERS)))
    less.held.hold(PUMPS, *notes(4))
    less.link(ME, same_books=False)
    said = me.link(LESS, same_books=False)
    me.hear(LESS, entries(1, *some, namespace=MEMBERS))
    me.take(refused=some)
    heard = talk(me, less, said)
    assert me.held.arrivals[PUMPS] == less.held.arrivals[PUMPS]
    assert heard[-1] == Rest(3)
    assert me.look(LESS).state == less.look(ME).state == "apart"


def test_the_digest_of_the_books_is_of_all_that_every_member_holds_of_them_and_nothing_else() -> (
    None
):
    one, other = Desk(LESS), Desk(ME)
    book, late = notes(2, namespace=MEMBERS)
    empty = one.spreading.books_digest()
    assert len(empty) == HASH_BYTES, "holding none is not the same as saying nothing"
    one.held.hold(MEMBERS, book)
    other.held.hold(REVOKED)
    other.held.hold(MEMBERS, book)
    other.held.hold(PUMPS, *notes(2))
    other.held.hold(ADVERTS, *notes(1, namespace=ADVERTS))
    other.held.hold(OF_EU, *notes(1, namespace=OF_EU))
    assert one.spreading.books_digest() == other.spreading.books_digest() != empty
    for of in (MEMBERS, LATER):
        one.held.hold(of, late)
        assert one.spreading.books_digest() != other.spreading.books_digest()
        other.held.hold(of, late)
        assert one.spreading.books_digest() == other.spreading.books_digest()


# Payloads


def test_a_payload_that_was_withheld_is_asked_of_who_is_in_step() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    desk.held.without_payload.update(shorts([one]))
    desk.held.hold(PUMPS, Arrival(one.entry, None, by_admin=False))
    less = Desk(LESS)
    less.held.hold(PUMPS, one)
    desk.wait(31)
    less.link(ME)
    heard = talk(less, desk, less.carry_out(less.spreading.compare(ME, less.now, NOW_MS)))
    assert heard == []
    ((_, digest),) = of_kind(desk.carry_out(desk.spreading.compare(LESS, desk.now, NOW_MS)), Digest)
    said = desk.hear(LESS, Digest(digest.until_ms, digest.digest, answer=False))
    assert said == [(LESS, want(one, payloads=True))]
    assert desk.hear(LESS, gone(one)) == [], "it has none either, and is not asked again"
    assert desk.hear(LESS, Digest(digest.until_ms, digest.digest, answer=False)) == []


# Faults of others


def test_who_sends_what_is_not_allowed_is_not_listened_to_for_a_while_also_on_a_new_link() -> None:
    desk = Desk().in_step_with(LEAST, LESS)
    (one,) = notes(1)
    for _ in range(SETTINGS.strikes_max):
        assert desk.look(LESS).state == "in step"
        desk.hear_bytes(LESS, b"\xff")
    assert desk.look(LESS).state == "muted"
    assert desk.hear(LESS, offer(one)) == []
    desk.write(PUMPS, one)
    assert {to for to, _ in desk.wait(SETTINGS.gather_s)} == {LEAST}
    desk.unlink(LESS)
    assert desk.link(LESS) == []
    assert desk.look(LESS).state == "muted"
    said = desk.wait(SETTINGS.mute_s)
    assert [to for to, one in said if to == LESS and isinstance(one, Digest)] == [LESS]
    assert desk.hear(LESS, Want("mesh", PUMPS.name, ids_of(one))) != []


def test_strikes_long_past_do_not_count() -> None:
    desk = Desk().in_step_with(LESS)
    for _ in range(SETTINGS.strikes_max - 1):
        desk.hear_bytes(LESS, b"\xff")
    desk.wait(SETTINGS.mute_s)
    desk.hear_bytes(LESS, b"\xff")
    assert desk.look(LESS).state != "muted"


def test_a_bad_entry_is_a_strike() -> None:
    desk = Desk().in_step_with(LESS)
    for number in range(SETTINGS.strikes_max):
        desk.hear(LESS, entries(number, *notes(1)))
        desk.take(bad="the signature does not hold")
    assert desk.look(LESS).state == "muted"
    assert "the signature does not hold" in desk.look(LESS).why


@pytest.mark.parametrize(
    "body",
    [
        b"",
        encode_message(Offer("mesh", PUMPS.name, b"cut off")),
        encode_message(Want("mesh", "a//b", bytes(16))),
        encode_message(Entries(1, "mesh", PUMPS.name, ())),
        encode_message(Ask(TIME_MS_MAX + 1)),
        encode_message(Contents(TIME_MS_MAX + 1, (), whole=True)),
        encode_message(Digest(2**63, OF_NOTHING, answer=True)),
        encode_message(Digest(UNTIL_MS, b"short", answer=True)),
        encode_message(Offer("mesh", PUMPS.name, bytes(16 * (IDS_MAX + 1)))),
        encode_message(Compare(1, "mesh", PUMPS.name, Ranges(b"", b"", (), b"", b""))),
        encode_message(
            Compare(1, "mesh", PUMPS.name, Session(Summary(), until=END).begin(), bytes(33))
        ),
        encode_message(Contents(NOW_MS + AHEAD_MS_MAX + 1, (), whole=True)),
        encode_message(Run(UNTIL_MS, ())),
    ],
    ids=str,
)
def test_what_is_no_message_is_a_strike(body: bytes) -> None:
    desk = Desk().in_step_with(LESS)
    assert desk.hear_bytes(LESS, body) == []
    assert desk.spreading.refused == 1


def test_messages_of_who_is_not_linked_are_not_heard() -> None:
    desk = Desk().in_step_with(LESS)
    desk.unlink(LESS)
    assert desk.hear(LESS, offer(*notes(1))) == []
    assert desk.spreading.deadline == math.inf


@pytest.mark.parametrize(
    "message",
    [
        Ask(UNTIL_MS),
        Contents(UNTIL_MS, (Row("mesh", "a/b", 3, OF_SOMETHING),), whole=False),
        Rest(4),
        Run(UNTIL_MS, (Row("mesh", "a/b", 3, OF_SOMETHING),)),
        want(*notes(2), payloads=True),
        gone(*notes(1)),
        Took(3, ids_of(*notes(1))),
        entries(1, *notes(1)),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_message_survives_the_way(message: Message) -> None:
    assert decode_message(encode_message(message)) == message
    with pytest.raises(Malformed):
        decode_message(encode_message(message)[:-1])
