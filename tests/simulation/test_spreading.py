"""MEMORY 4.7 and DESIGN 13.2, 13.3 over seeds: who may read a namespace ends with the same of it.

Whatever is lost, frozen, restarted or lied about; at the price of one copy for each peer, and
nobody else is told anything. The last tests plant mistakes that these must see.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
from simulation.memory_world import Bent, Faults, Liar, Peer, Violation, World, is_a
from test_gossip.members import MESH, NOW_MS
from test_gossip.memory_entries import forgetting, note, register

from covey.gossip.memory import books, spreading
from covey.gossip.memory.asking import Asking
from covey.gossip.memory.common_ground import CommonGround
from covey.gossip.memory.comparing import Comparing
from covey.gossip.memory.effects import Decisions, Effect
from covey.gossip.memory.entry import AHEAD_MS_MAX, HASH_BYTES, SIGNATURE_BYTES, Key, SignedHeader
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.kinds import DAY_MS, Lifetime
from covey.gossip.memory.messages import (
    IDS_MAX,
    Compare,
    Compared,
    Contents,
    Digest,
    Entries,
    Gone,
    Item,
    Message,
    Offer,
    Row,
    Took,
    Want,
    decode_message,
)
from covey.gossip.memory.namespace import MEMBERS, REVOKED, Namespace, namespace_of
from covey.gossip.memory.neighbour import Comparison, Neighbour
from covey.gossip.memory.reconciliation import Session, answer
from covey.gossip.memory.replica import Quotas
from covey.gossip.memory.rounds import Rounds
from covey.gossip.memory.sending import Sending
from covey.gossip.memory.settings import SpreadSettings
from covey.gossip.memory.spreading import Spreading
from covey.gossip.memory.standing import Revocation
from covey.gossip.memory.summary import END, Summary
from covey.identity.keys import PeerId
from covey.identity.wire import encode, read_back

SEEDS = int(os.environ.get("COVEY_SIM_SEEDS", "16"))
ZONES = (("eu", "plant"), ("eu",), ("plant",), (), ("eu", "plant"))
EVERYBODY: tuple[tuple[str, ...], ...] = ((),) * 4
LINE = ((0, 1), (1, 2), (2, 3))
HOUR_S = 3600.0


def world_of(seed: int, zones: Sequence[tuple[str, ...]] = EVERYBODY, **terms: Any) -> World:
    """Return a world whose admin has written down all members."""
    world = World(seed, zones, **terms)
    for peer in world.peers[1:]:
        world.peers[0].write_record(MEMBERS, peer.me, books.member_record(peer.chain))
    return world


def chance(seed: int, **terms: Any) -> World:
    """Return a world of another shape for each seed."""
    random = Random(seed)
    peers = random.randint(3, 8)
    links: Any = None
    zones: list[tuple[str, ...]] = [()] * peers
    if random.random() < 0.3:
        links = [(one, one + 1) for one in range(peers - 1)]
    else:
        zones = [("eu", "plant"), *random.choices(ZONES, k=peers - 1)]
    faults = Faults(
        cuts_per_s=random.choice([0.02, 0.1, 0.5]),
        freezes_per_s=random.choice([0, 0.05, 0.3]),
        partitions_per_s=random.choice([0, 0.02]),
        restarts_per_s=random.choice([0, 0.03, 0.1]),
        slow_disk=random.choice([0, 0.03, 0.3]),
        full_disk=random.choice([0, 0.01, 0.1]),
        skew_ms_max=random.choice([0, 30_000, 240_000]),
        frames_max=random.choice([5, 20, 100]),
    )
    return world_of(
        seed,
        zones,
        faults=faults,
        links=links,
        quotas=random.choice([None, Quotas(entries=8)]),
        settings=SpreadSettings(window=random.choice([1, 4])),
        **terms,
    )


def lived(world: World, seconds: float = 120, writes: int = 80) -> World:
    world.live(seconds, writes)
    world.settle()
    return world


def check_all(world: World) -> None:
    world.check_quiet()
    world.check_complete()
    world.check_in_step()
    world.check_silent(300)
    world.check_secrets()


@pytest.mark.parametrize("seed", range(SEEDS))
def test_all_that_may_read_end_with_the_same_and_nobody_else_is_told_anything(seed: int) -> None:
    check_all(lived(chance(seed)))


def test_a_seed_tells_the_whole_story() -> None:
    first, again, other = (lived(chance(seed), 30, 20).said for seed in (3, 3, 4))
    assert first == again
    assert first != other


# In calm


def in_step(zones: Sequence[tuple[str, ...]] = EVERYBODY, **terms: Any) -> World:
    """Return a world in which everybody is in step already."""
    world = world_of(1, zones, **terms)
    world.run(10)
    return world


def pumps(world: World) -> Namespace:
    return world.namespace("mesh", "plant/pumps")


def check_calm(world: World) -> None:
    """What is written anywhere is everywhere at once, without anybody having to look for it."""
    world.run(5)
    for number, peer in enumerate(world.peers):
        peer.write(pumps(world), note, f"note {number} of {peer.me}")
        peer.write(pumps(world), register, "state", f"set by {peer.me}")
        if peer.may_read("eu"):
            peer.write(world.namespace("eu", "eu/finance-secret"), note, f"note {number}")
        world.run(1.0)
        world.check_quiet()
    world.check_complete()
    if world.apart:
        raise Violation(f"somebody was apart: {world.apart}")
    world.run(300)
    world.check_in_step()
    world.check_silent(300)


def test_what_one_writes_all_have_within_a_second_also_along_a_line() -> None:
    check_calm(in_step(links=LINE))


def test_what_is_not_for_all_keeps_nobody_out_of_step() -> None:
    check_calm(in_step((("eu",), ("eu",), ())))


def check_one_copy_each(world: World) -> None:
    since = len(world.said)
    for number in range(60):
        peer = world.peers[number % len(world.peers)]
        world.at(
            world.now + number * 0.11,
            lambda of=peer, text=f"note {number}": of.write(pumps(world), note, text),
        )
    world.run(20)
    world.check_quiet()
    copies = Counter(world.copies(since).values())
    if (
        copies.total() != 60 * (len(world.peers) - 1)
        or sum(copies.elements()) > copies.total() * 1.02
    ):
        raise Violation(f"copies for each entry and peer: {copies}")


def test_a_write_costs_each_other_peer_one_copy() -> None:
    check_one_copy_each(in_step(((),) * 6))


def test_nothing_to_do_costs_one_small_message_for_each_comparison() -> None:
    world = in_step(((),) * 5)
    since = len(world.said)
    world.run(600)
    said = [body for _, _, _, body in world.said[since:]]
    assert all(is_a(Digest, body) and len(body) < 50 for body in said)
    assert 5 * 3 * 9 < len(said) <= 5 * 3 * 11


def test_writing_all_the_time_does_not_keep_two_peers_comparing() -> None:
    world = in_step(((),) * 2)
    for number in range(600):
        world.at(
            world.now + number * 0.05,
            lambda of=world.peers[number % 2], text=f"note {number}": of.write(
                pumps(world), note, text
            ),
        )
    world.run(5)
    world.cut_one()
    since = len(world.said)
    world.run(30)
    kinds = Counter(type(decode_message(body)) for _, _, _, body in world.said[since:])
    assert kinds[Compare] < 20
    assert kinds[Digest] < 20
    world.check_in_step()
    world.check_quiet()


# The books first


def meeting_again(liar: type[Peer] | None = None, **terms: Any) -> World:
    """Return a world in which the last peer meets the others again: meanwhile the admin wrote in
    the books, and all of them notes.
    """
    world = in_step(liar=liar, settings=SpreadSettings(gather_s=0.001), **terms)
    world.apart_until[world.peers[-1].me] = world.now + 20
    world.relink()
    world.run(10)
    for peer in world.peers[:3]:
        world.write_in_the_books(peer)
    for peer in world.peers:
        peer.write(pumps(world), note, f"of {peer.me}, apart")
    world.run(10)
    for peer in world.peers:
        # What is written just now is pushed, whatever a comparison finds.
        world.at(
            world.now + 0.002,
            lambda of=peer: of.write(pumps(world), note, f"of {of.me}, just met"),
        )
    world.relink()
    return world


def check_books_first(world: World) -> None:
    met_at = world.now
    if not any(world.links[ends].lacking[peer] for ends in world.links for peer in ends):
        raise Violation("the books were to differ")
    world.run(1)
    world.check_quiet()
    world.check_in_step()
    for peer in world.peers:
        for one in peer.spreading.neighbours():
            if (one.in_step_at or math.inf) > met_at + 0.5:
                raise Violation("to have the books first takes longer than some round trips")


def test_nothing_else_is_named_on_a_new_link_before_the_books_are_through() -> None:
    check_books_first(meeting_again())


class ShowsOtherBooks(Bent):
    def books_shown(self) -> bytes:
        return self.world.random.randbytes(HASH_BYTES)


class ShowsNone(Bent):
    def books_shown(self) -> bytes:
        return b""


class KeepsItsOwnBooks(Bent):
    """Holds a record that is not its to write, and nobody takes."""

    def start(self) -> None:
        super().start()
        self.write_record(MEMBERS, self.me, books.member_record(self.chain))


class TellsNothingOfTheBooks(ShowsOtherBooks):
    """And never goes on with what is asked of it."""

    def bend(self, message: Message) -> Message | None:
        return message if isinstance(message, Entries | Took) else None


def check_not_held_up(world: World) -> None:
    """What each writes reaches the liar, and what it writes them, soon after the time is up."""
    world.run(world.settings.books_first_s + 0.5)
    for peer in world.peers:
        shown = b"".join(peer.shown(pumps(world)).values())
        for other in world.peers:
            if f"of {other.me}, just met".encode() not in shown:
                raise Violation("what one wrote is held up by another's books")


@pytest.mark.parametrize("liar_compares", [False, True])
@pytest.mark.parametrize(
    "liar", [ShowsOtherBooks, ShowsNone, KeepsItsOwnBooks, TellsNothingOfTheBooks]
)
def test_whose_books_never_agree_holds_nobody_up_for_long(
    liar: type[Peer], liar_compares: bool
) -> None:
    world = meeting_again(liar, liar_compares=liar_compares)
    check_not_held_up(world)
    world.settle(400)
    world.check_quiet()
    world.check_in_step()


# Members come, go, and change


def test_who_is_let_into_a_zone_gets_what_is_in_it_and_nobody_takes_it_for_a_liar() -> None:
    world = in_step((("eu",), ("eu",), ()))
    admin, _, newcomer = world.peers
    finance = world.namespace("eu", "eu/finance-secret")
    for number in range(5):
        admin.write(finance, note, f"note {number}")
    world.run(5)
    assert newcomer.keys(finance) == []
    newcomer.chain = world.chain_of(newcomer.keypair, ("eu",), issued_ms=NOW_MS)
    newcomer.standing.learn(newcomer.chain)
    admin.write_record(MEMBERS, newcomer.me, books.member_record(newcomer.chain))
    newcomer.write(finance, note, "the newcomer's")
    world.run(200)
    assert len(newcomer.keys(finance)) == 6
    world.check_quiet()
    world.check_in_step()
    assert [why for _, _, _, why in world.apart if "allowed" in why] == []


@pytest.mark.parametrize("mode", ["stop", "purge"])
def test_what_a_revoked_member_wrote_is_gone_everywhere(mode: Any) -> None:
    world = in_step()
    admin, *_, revoked = world.peers
    before = revoked.write(pumps(world), note, "before")
    world.run(5)
    cut = admin.clock.stamp(admin.now_ms)
    world.run(5)
    for number in range(5):
        revoked.write(pumps(world), note, f"after {number}")
    world.run(5)
    word = Revocation(7, revoked.keypair.public_key, cut, mode)
    admin.write_record(REVOKED, "7", books.revocation_record(word))
    revoked.honest = False
    world.settle(700)
    kept = [before.entry.key] if mode == "stop" else []
    assert [peer.keys(pumps(world)) for peer in world.honest] == [kept] * 3
    world.check_in_step()
    assert world.links_of(revoked.me) == []


# Members that lie


def among_liars(
    liar: type[Peer], zones: Sequence[tuple[str, ...]] = EVERYBODY, **terms: Any
) -> World:
    """Return a world whose last peer lies, with something written by each of the others."""
    world = in_step(zones, liar=liar, **terms)
    for peer in world.honest:
        for number in range(4):
            peer.write(pumps(world), note, f"note {number} of {peer.me}")
    return world


def check_honest(world: World) -> None:
    """The others hold and show the same, know so, and are quiet."""
    world.check_quiet()
    world.check_in_step()
    world.check_silent(200)
    for peer in world.honest:
        for other in world.honest:
            written = [f"note {number} of {other.me}" for number in range(4)]
            shown = b"".join(peer.shown(pumps(world)).values())
            assert all(text.encode() in shown for text in written), "nobody's is lost through it"


def states_of(world: World, liar: Peer) -> list[tuple[str, str]]:
    """Return what each of the others thinks of it."""
    found = [peer.spreading.neighbour(liar.me) for peer in world.honest]
    return [(one.state, one.why) for one in found if one is not None]


def liar_of(world: World) -> Any:
    return world.peers[-1]


def test_what_is_dated_back_is_taken_as_far_back_as_its_author_was_a_member() -> None:
    world = among_liars(Liar)
    liar = liar_of(world)
    old = liar.craft(pumps(world), "old", at_ms=NOW_MS - 50 * DAY_MS)
    older = liar.craft(pumps(world), "older", at_ms=NOW_MS - 101 * DAY_MS, expires_ms=NOW_MS)
    liar.push(pumps(world), old, older)
    world.settle(200)
    check_honest(world)
    assert all(old.entry.key in peer.keys(pumps(world)) for peer in world.honest)
    assert not any(older.entry.key in peer.keys(pumps(world)) for peer in world.honest)


def test_what_is_dated_ahead_waits_and_carries_no_clock_away() -> None:
    world = among_liars(Liar)
    liar = liar_of(world)
    soon, later, never = (
        liar.craft(pumps(world), text, at_ms=liar.now_ms + ahead_s * 1000)
        for text, ahead_s in (("soon", 280), ("later", 500), ("never", 100_000))
    )
    for number in range(26):
        world.at(world.now + number * 60, lambda: liar.push(pumps(world), soon, later, never))
    world.run(10)
    held = [peer.keys(pumps(world)) for peer in world.honest]
    assert all(soon.entry.key in keys and later.entry.key not in keys for keys in held)
    bound = world.peers[0].now_ms + AHEAD_MS_MAX << COUNTER_BITS
    assert all(peer.clock.last < bound for peer in world.honest)
    world.settle(1600)
    check_honest(world)
    held = [peer.keys(pumps(world)) for peer in world.honest]
    assert all(later.entry.key in keys and never.entry.key not in keys for keys in held)


def test_two_entries_of_one_time_are_both_held_and_their_author_is_named() -> None:
    world = among_liars(Liar)
    liar = liar_of(world)
    one, other = (liar.craft(pumps(world), text, counter=7) for text in ("one", "other"))
    for peer, arrival in zip(world.honest, (one, other), strict=False):
        item = Item(arrival.entry.data, arrival.payload)
        liar.say(peer.me, Entries(1, "mesh", pumps(world).name, (item,)))
    world.settle(200)
    check_honest(world)
    for peer in world.honest:
        assert {one.entry.key, other.entry.key} <= set(peer.keys(pumps(world)))
        assert peer.doubled == {liar.keypair.public_key}


def test_a_flood_pushes_out_nothing_but_its_own() -> None:
    world = among_liars(Liar, quotas=Quotas(entries=20))
    liar = liar_of(world)
    flood = [liar.craft(pumps(world), f"flood {number}", counter=number) for number in range(300)]
    Random(1).shuffle(flood)
    for at in range(0, 300, 25):
        world.at(world.now + at * 0.2, lambda at=at: liar.push(pumps(world), *flood[at : at + 25]))
    world.settle(400)
    check_honest(world)
    newest = sorted(one.entry.key for one in flood)[-20:]
    for peer in world.honest:
        assert [one for one in peer.keys(pumps(world)) if one in newest] == newest
        assert len(peer.keys(pumps(world))) == 20 + 4 * 3


class Replays(Liar):
    """Says again all that it ever heard."""

    def start(self) -> None:
        super().start()
        self.ever: list[Entries] = []

    def heard(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Entries):
            self.ever.append(message)
            self.say(sender, Took(message.number))

    def replay(self) -> None:
        for one in self.ever:
            self.say_to_all(one)


def test_a_replay_of_everything_brings_nothing_back() -> None:
    world = among_liars(Replays)
    liar, admin = liar_of(world), world.peers[0]
    secret = world.peers[1].write(pumps(world), note, "a text to forget")
    world.run(5)
    assert sum(len(one.items) for one in liar.ever) > 10
    admin.write(pumps(world), forgetting, secret)
    world.run(1)
    for number in range(10):
        world.at(world.now + number * 40, liar.replay)
    world.settle(600)
    check_honest(world)
    for peer in world.honest:
        assert secret.entry.key in peer.keys(pumps(world))
        assert b"a text to forget" not in b"".join(peer.shown(pumps(world)).values())


def garbage(liar: Any, world: World) -> dict[str, Message | bytes]:
    arrival = liar.craft(pumps(world), "proper")
    other = liar.craft(pumps(world), "another")
    signed = read_back(arrival.entry.data, SignedHeader)
    forged = encode(SignedHeader(signed.body, b"\x01" * SIGNATURE_BYTES))

    def batch(header: bytes, payload: bytes | None) -> Entries:
        return Entries(1, "mesh", pumps(world).name, (Item(header, payload),))

    return {
        "no message": b"garbage",
        "a false signature": batch(forged, arrival.payload),
        "a payload of another": batch(arrival.entry.data, other.payload),
        "no entry": batch(b"\x80", None),
        "ids cut off": Offer("mesh", pumps(world).name, b"cut off"),
        "contents of who should ask": Contents(2**48, (), whole=True),
    }


@pytest.mark.parametrize(
    "what", ["no message", "a false signature", "a payload of another", "no entry"]
)
def test_who_sends_garbage_is_not_heard_for_a_while_and_heard_again_after_it(what: str) -> None:
    world = among_liars(Liar)
    liar = liar_of(world)
    body = garbage(liar, world)[what]
    for number in range(12):
        world.at(world.now + number, lambda: liar.say_to_all(body))
    world.run(20)
    assert [state for state, _ in states_of(world, liar)] == ["muted"] * 3
    proper = liar.craft(pumps(world), "proper")
    since = len(world.said)
    liar.push(pumps(world), proper)
    world.peers[0].write(pumps(world), note, "not for it")
    world.run(200)
    assert [one for one in world.said[since:] if one[2] == liar.me] == []
    world.run(450)
    liar.push(pumps(world), proper)
    world.settle(100)
    check_honest(world)
    assert all(proper.entry.key in peer.keys(pumps(world)) for peer in world.honest)


class Stalls(Bent):
    """Leaves some kinds of messages out, for a while."""

    left_out: type[Message]
    until = 400.0
    stalled = 0

    def bend(self, message: Message) -> Message | None:
        if isinstance(message, self.left_out) and self.world.now < self.until:
            self.stalled += 1
            return None
        return message


@pytest.mark.parametrize(
    ("kind", "liar_compares"),
    [
        (Digest, False),
        (Digest, True),
        (Contents, False),
        (Compare, True),
        (Compared, False),
        (Offer, False),
        (Want, True),
        (Entries, False),
        (Took, False),
    ],
)
def test_who_stalls_halfway_holds_nobody_up_and_is_in_step_once_it_goes_on(
    kind: type[Message], liar_compares: bool
) -> None:
    stalls = type("StallsSomewhere", (Stalls,), {"left_out": kind})
    world = among_liars(stalls, liar_compares=liar_compares)
    liar = liar_of(world)
    liar.write(pumps(world), note, "the liar's")
    world.run(60)
    for link in world.links_of(liar.me):
        world.cut(link)
    world.run(100)
    assert liar.stalled > 0
    world.check_in_step()
    world.check_quiet()
    said_to_it = len([one for one in world.said if one[2] == liar.me])
    assert said_to_it < 400
    world.settle(600)
    check_honest(world)
    assert {state for state, _ in states_of(world, liar)} == {"in step"}


class Invents(Liar):
    """Answers every question with ids that nobody has, or leaves it to who asks to go on."""

    holds = 20
    says_gone = False
    wanted = 0

    def heard(self, sender: PeerId, message: Message) -> None:
        random = self.world.random
        match message:
            case Digest(until_ms):
                digest = random.randbytes(HASH_BYTES)
                row = Row("mesh", pumps(self.world).name, self.holds, digest)
                self.say(sender, Digest(until_ms, digest, answer=True))
                self.say(sender, Contents(until_ms, (row,), whole=True))
            case Compare(session, _, _, ranges):
                clocks = [(self.now_ms - number << COUNTER_BITS) for number in range(300)]
                keys = [Key(one.to_bytes(8, "big") + random.randbytes(32)) for one in clocks]
                self.say(sender, Compared(session, answer(Summary(keys), ranges)))
            case Want(zone, name, ids):
                self.wanted += 1
                if self.says_gone:
                    self.say(sender, Gone(zone, name, ids))
            case Entries(number):
                self.say(sender, Took(number))
            case _:
                pass


@pytest.mark.parametrize(("holds", "says_gone"), [(20, False), (20, True), (3_000, False)])
def test_who_invents_ids_makes_nobody_loop_or_wait(holds: int, says_gone: bool) -> None:
    world = among_liars(type("InventsMore", (Invents,), {"holds": holds, "says_gone": says_gone}))
    liar = liar_of(world)
    since = len(world.said)
    world.settle(400)
    check_honest(world)
    # Who says that it holds much more is left to go through the differences itself.
    assert (liar.wanted > 0) is (holds == 20)
    said_to_it = [one for one in world.said[since:] if one[2] == liar.me]
    assert len(said_to_it) < 3 * 600 / 15 * 30, "at most eight rounds each 15 seconds"
    states = states_of(world, liar)
    assert {state for state, _ in states} <= {"apart", "comparing"}


class Withholds(Bent):
    """Passes headers on without their payloads."""

    def bend(self, message: Message) -> Message | None:
        if not isinstance(message, Entries):
            return message
        bare = tuple(Item(one.header, None) for one in message.items)
        return Entries(message.number, message.zone, message.name, bare)


def withheld(**terms: Any) -> World:
    """Return a world in which a liar is nearer to one half of the others than they are to it."""
    world = among_liars(
        Withholds, ((),) * 5, links=((0, 4), (1, 4), (0, 2), (2, 3), (3, 1)), **terms
    )
    liar_of(world).write(pumps(world), note, "never shown")
    for number in range(30):
        world.peers[0].write(pumps(world), note, f"of the admin: {number}")
    return world


def check_withheld(world: World) -> None:
    world.settle(800)
    world.check_quiet()
    world.check_in_step()
    if len(world.peers[1].shown(pumps(world))) != 4 * 4 + 30:
        raise Violation("a payload that others have is lacking")


def test_a_payload_that_one_withholds_comes_from_another() -> None:
    check_withheld(withheld())


class WantsAll(Liar):
    """Asks for everything again and again."""

    takes = True

    def heard(self, sender: PeerId, message: Message) -> None:
        if isinstance(message, Entries) and self.takes:
            self.say(sender, Took(message.number))

    def ask(self) -> None:
        keys = self.world.peers[0].keys(pumps(self.world))
        ids = b"".join(one[8:24] for one in keys)
        for _ in range(5):
            self.say_to_all(Want("mesh", pumps(self.world).name, ids))


@pytest.mark.parametrize("takes", [True, False])
def test_who_wants_everything_all_the_time_gets_no_more_than_its_window(takes: bool) -> None:
    world = among_liars(type("WantsMore", (WantsAll,), {"takes": takes}))
    world.run(5)
    since, liar = len(world.said), liar_of(world)
    for number in range(50):
        world.at(world.now + number * 0.1, liar.ask)
    world.settle(300)
    check_honest(world)
    sent = [one for one in world.said[since:] if one[2] == liar.me and is_a(Entries, one[3])]
    assert len(sent) < (1000 if takes else 4 * 3 * 5)


class OffersWithoutEnd(Liar):
    def offer(self) -> None:
        ids = self.world.random.randbytes(16 * IDS_MAX)
        self.say_to_all(Offer("mesh", pumps(self.world).name, ids))


def test_who_offers_without_end_takes_no_room() -> None:
    world = among_liars(OffersWithoutEnd)
    liar = liar_of(world)
    for number in range(40):
        world.at(world.now + number * 0.05, liar.offer)
    world.settle(300)
    check_honest(world)
    assert all("in time" in why for _, why in states_of(world, liar))


class Pries(Liar):
    """Asks about a zone that it is not in, and offers it entries."""

    def pry(self) -> None:
        finance = self.world.namespace("eu", "eu/finance-secret")
        zone, name = finance.zone, finance.name
        ids = b"".join(one[8:24] for one in self.world.peers[0].keys(finance))
        mine = self.craft(finance, "smuggled in")
        step = Session(Summary(), until=END).begin()
        for one in (
            Compare(1, zone, name, step),
            Compare(1, zone, name, step, b"salt"),
            Want(zone, name, ids),
            Want(zone, name, ids, payloads=True),
            Offer(zone, name, mine.entry.id[:16]),
            Entries(1, zone, name, (Item(mine.entry.data, mine.payload),)),
            Digest(self.now_ms, bytes(HASH_BYTES), answer=True),
            Contents(self.now_ms, (Row(zone, name, 9, bytes(HASH_BYTES)),), whole=True),
        ):
            self.say_to_all(one)


def check_pried(world: World) -> None:
    for peer in world.peers[:3]:
        peer.write(
            world.namespace("eu", "eu/finance-secret"),
            note,
            f"it says {peer.keypair.public_key.hex()}",
        )
    world.run(2)
    for number in range(5):
        world.at(world.now + number * 20, liar_of(world).pry)
    world.settle(300)
    world.check_secrets()
    finance = world.namespace("eu", "eu/finance-secret")
    if any(len(peer.keys(finance)) != 3 for peer in world.peers[:3]):
        raise Violation("an entry from outside the zone is held")


def test_who_is_outside_a_zone_and_asks_all_the_same_is_told_nothing() -> None:
    world = among_liars(Pries, (("eu",), ("eu",), ("eu",), ()))
    check_pried(world)
    check_honest(world)


def check_refusals(world: World) -> None:
    """What one does not take yet is not sent to it again and again, and taken when it is time."""
    ahead, behind, _ = world.peers
    ahead.skew_ms, behind.skew_ms = 240_000, -240_000
    since = len(world.said)
    for number in range(10):
        ahead.write(pumps(world), note, f"note {number}")
    world.run(170)
    if behind.keys(pumps(world)):
        raise Violation("entries were taken that are too far ahead")
    world.settle(900)
    world.check_quiet()
    world.check_in_step()
    most = max(world.copies(since).values())
    if most > 3:
        raise Violation(f"one entry was sent {most} times to one peer that does not take it")


def test_what_is_too_early_for_one_is_tried_again_but_not_all_the_time() -> None:
    check_refusals(in_step(((),) * 3))


def check_untaken(world: World) -> None:
    """What nobody takes ends each comparison, and is not sent again and again."""
    liar, since = liar_of(world), len(world.said)
    for number in range(10):
        # It was no member then.
        old_ms = NOW_MS - (101 + number) * DAY_MS
        liar.write(pumps(world), note, f"n {number}", at_ms=old_ms, lifetime=Lifetime.PINNED)
    world.messages_max = since + 1000
    world.run(200)
    world.check_quiet()
    world.check_in_step()
    if set(states_of(world, liar)) != {("apart", "10 entries are not taken by one side")}:
        raise Violation("it is not said why the liar is apart")
    if max(world.copies(since).values()) > 1:
        raise Violation("the liar is listened to again and again")


@pytest.mark.parametrize("liar_compares", [False, True])
def test_what_nobody_takes_ends_each_comparison_and_is_named(liar_compares: bool) -> None:
    check_untaken(among_liars(Bent, liar_compares=liar_compares))


# Mistakes


class OffersSkipOne(Sending):
    skipped = PeerId("")

    def note_news(self, neighbour: Neighbour, *arguments: Any, **terms: Any) -> bool:
        self.skipped = max(self.skipped, neighbour.peer)
        if neighbour.peer == self.skipped and not terms["whole"]:
            return False
        return super().note_news(neighbour, *arguments, **terms)


class PassesNothingOn(Spreading):
    def written(
        self, namespace: Namespace, keys: Sequence[Key], source: PeerId | None, now: float
    ) -> list[Effect]:
        return super().written(namespace, keys, source, now) if source is None else []


class PushesWhatWasBrought(Spreading):
    """Whole, in place of offering it."""

    def written(
        self, namespace: Namespace, keys: Sequence[Key], source: PeerId | None, now: float
    ) -> list[Effect]:
        return super().written(namespace, keys, None, now)


class AsksEverybody(Asking):
    def _coming_until(
        self, neighbour: Neighbour, namespace: Namespace, short_id: bytes, now: float
    ) -> float | None:
        return None


class LooksAtItsOwnRightAlone(CommonGround):
    def both_may_read(self, peer: PeerId, zone: str) -> bool:
        return super().both_may_read(self._me, zone)


class AnswersWhoeverAsks(Spreading):
    def _readable(self, neighbour: Neighbour, zone: str, name: str) -> Namespace | None:
        return namespace_of(MESH, zone, name)


class SumsUpWhatTheOtherMayNotRead(CommonGround):
    def namespaces(self, peer: PeerId) -> list[Namespace]:
        return super().namespaces(self._me)


class AcknowledgesNothing(Decisions):
    def say(self, neighbour: Neighbour, message: Message, *, payload: bool = False) -> None:
        if not isinstance(message, Took):
            super().say(neighbour, message, payload=payload)


class SendsTheBooksAsTheyCome(Sending):
    def flush(self, neighbour: Neighbour, now: float) -> None:
        neighbour.flush_at = float("inf")
        while neighbour.outbox and len(neighbour.under_way) < 4:
            self._send_batch(neighbour, max(neighbour.outbox), now)
        super().flush(neighbour, now)


class SaysThatContentIsControl(Decisions):
    def say(self, neighbour: Neighbour, message: Message, *, payload: bool = False) -> None:
        super().say(neighbour, message)


class ForgetsRefusals(Spreading):
    def _receive(self, neighbour: Neighbour, message: Message, now: float, now_ms: int) -> None:
        neighbour.refusals.clear()
        super()._receive(neighbour, message, now, now_ms)


class NeverRests(Comparing):
    def _end_round(self, neighbour: Neighbour, comparison: Comparison, now: float) -> None:
        comparison.last_difference, comparison.moved, comparison.rounds = None, True, 0
        super()._end_round(neighbour, comparison, now)


class KeepsWhatItGaveUp(Spreading):
    """The outbox of a peer that does not acknowledge, with nothing to move it on."""

    def _give_up(self, neighbour: Neighbour, why: str, now: float) -> None:
        outbox = {namespace: dict(box) for namespace, box in neighbour.outbox.items()}
        under_way = dict(neighbour.under_way)
        super()._give_up(neighbour, why, now)
        neighbour.outbox, neighbour.under_way = outbox, under_way


class TriesOnce(Comparing):
    def fail(self, neighbour: Neighbour, why: str, now: float) -> None:
        super().fail(neighbour, why, now)
        neighbour.again_at = float("inf")


class BothWait(Comparing):
    """Each thinks that the other compares."""

    def heard_digest(self, neighbour: Neighbour, theirs: Digest, now: float, now_ms: int) -> bool:
        is_ours = theirs.digest == self._ground.digest(neighbour.peer, theirs.until_ms)
        return is_ours and super().heard_digest(neighbour, theirs, now, now_ms)


class NeverAsksForPayloads(Asking):
    def _ask_for_some_payloads(self, neighbour: Neighbour) -> None:
        pass


class PushesBeforeTheBooks(Sending):
    def flush(self, neighbour: Neighbour, now: float) -> None:
        until, neighbour.books_first_until = neighbour.books_first_until, math.inf
        super().flush(neighbour, now)
        neighbour.books_first_until = until


class NamesAllBeforeTheBooks(Comparing):
    def tell_contents(self, neighbour: Neighbour, until_ms: int, now: float, now_ms: int) -> None:
        neighbour.named_books = True
        super().tell_contents(neighbour, until_ms, now, now_ms)


class ComparesAllBeforeTheBooks(Rounds):
    def books_are_through(self, neighbour: Neighbour) -> bool:
        return neighbour.comparison is not None


class TakesAnyBooksForTheSame(Spreading):
    def link_up(self, peer: PeerId, now: float, now_ms: int, *, same_books: bool) -> list[Effect]:
        return super().link_up(peer, now, now_ms, same_books=True)


class WaitsForTheBooksForEver(Spreading):
    def link_up(self, peer: PeerId, now: float, now_ms: int, *, same_books: bool) -> list[Effect]:
        effects = super().link_up(peer, now, now_ms, same_books=same_books)
        for one in self.neighbours():
            if one.peer == peer and one.books_come_first:
                one.books_first_until = now + HOUR_S
        return effects


MISTAKES = (
    PushesBeforeTheBooks,
    NamesAllBeforeTheBooks,
    ComparesAllBeforeTheBooks,
    TakesAnyBooksForTheSame,
    WaitsForTheBooksForEver,
    OffersSkipOne,
    PassesNothingOn,
    PushesWhatWasBrought,
    AsksEverybody,
    LooksAtItsOwnRightAlone,
    AnswersWhoeverAsks,
    SumsUpWhatTheOtherMayNotRead,
    AcknowledgesNothing,
    SendsTheBooksAsTheyCome,
    SaysThatContentIsControl,
    ForgetsRefusals,
    NeverRests,
    KeepsWhatItGaveUp,
    TriesOnce,
    BothWait,
    NeverAsksForPayloads,
)


def something_is_found() -> bool:
    looks: list[Callable[[], None]] = [
        lambda: check_books_first(meeting_again()),
        lambda: check_not_held_up(meeting_again(TellsNothingOfTheBooks)),
        lambda: check_calm(in_step(links=LINE)),
        lambda: check_calm(in_step((("eu",), ("eu",), ()))),
        lambda: check_untaken(among_liars(Bent)),
        lambda: check_pried(among_liars(Pries, (("eu",), ("eu",), ("eu",), ()))),
        lambda: check_refusals(in_step(((),) * 3)),
        lambda: check_withheld(withheld()),
        lambda: check_one_copy_each(in_step(((),) * 6)),
        *(lambda seed=seed: check_all(lived(chance(seed))) for seed in range(3)),
    ]
    for look in looks:
        try:
            look()
        except AssertionError:
            return True
    return False


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.__name__)
def test_a_planted_mistake_is_found(mistake: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the place of the part of `Spreading`, or all of it, that it is derived from."""
    monkeypatch.setattr(spreading, mistake.__bases__[0].__name__, mistake)
    assert something_is_found()


def test_without_a_mistake_nothing_is_found() -> None:
    assert not something_is_found()
