"""Two replicas find exactly what they do not share, for few bytes, and a liar gains nothing."""

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from math import ceil, log

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from covey.gossip.memory.entry import Key
from covey.gossip.memory.reconciliation import Kind, Ranges, Session, answer
from covey.gossip.memory.summary import END, Summary
from covey.identity.errors import Malformed, Misuse
from covey.identity.wire import decode, encode

# 300 cases in `make test`, 10,000 in `make laws`.
LAW = settings(max_examples=5 * settings().max_examples)
SALT = bytes(range(32))
FOREVER = b"\xff" * 8
MESSAGE_BYTES = 200_000
SET_KEYS = 700


def key(clock: int, entry_id: bytes) -> Key:
    return Key(clock.to_bytes(8, "big") + entry_id)


def hashed(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest()


def written(entries: int, *, seed: int = 1, days: int = 90) -> list[Key]:
    """The keys of entries written at random in so many days."""
    draw = random.Random(seed)
    times = sorted(draw.randrange(days * 86_400_000) for _ in range(entries))
    return [key(1_790_000_000_000 + ms << 16, draw.randbytes(32)) for ms in times]


NUMBERS = range(SET_KEYS)
SETS = {
    "spread": written(SET_KEYS),
    "written at once": sorted(key(7 << 16, hashed(number)) for number in NUMBERS),
    "in bursts": sorted(key(number // 50 << 36, hashed(number)) for number in NUMBERS),
    "ids that begin alike": sorted(
        key(number // 100 << 16, bytes(14) + number.to_bytes(2, "big") + hashed(number)[:16])
        for number in NUMBERS
    ),
}


def short(keys: Iterable[Key]) -> list[bytes]:
    return sorted(one[8:24] for one in keys)


def carried(message: Ranges) -> Ranges:
    """The message as it arrives."""
    return decode(encode(message), Ranges, limit_bytes=MESSAGE_BYTES)


def no_change() -> None: ...


def reconcile(
    ours: Summary,
    theirs: Summary,
    *,
    until: bytes = FOREVER,
    between: Callable[[], None] = no_change,
) -> tuple[Session, int]:
    """Run a session to its end; return it, and the bytes of both directions."""
    session = Session(ours, until=until)
    message: Ranges | None = session.begin()
    size = 0
    while message is not None:
        between()
        reply = answer(theirs, carried(message))
        size += len(encode(message)) + len(encode(reply))
        between()
        message = session.receive(carried(reply))
    return session, size


def messages_max(entries: int) -> int:
    return 2 * ceil(log(max(entries, 1), 16)) + 8


@st.composite
def held(draw: st.DrawFn, keys: Sequence[Key]) -> list[Key]:
    """What is left of `keys` without a few runs or scattered ones."""
    gone: set[Key] = set()
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, SET_KEYS))
        length = draw(st.sampled_from([1, 2, 5, 30, 200, SET_KEYS]))
        step = draw(st.sampled_from([1, 2, 17]))
        gone.update(keys[start : start + length : step])
    return [one for one in keys if one not in gone]


@st.composite
def replicas(draw: st.DrawFn) -> tuple[list[Key], list[Key], bytes]:
    """Two sets, and a bound up to which they are compared."""
    keys = SETS[draw(st.sampled_from(list(SETS)))]
    keys = keys[: draw(st.sampled_from([0, 1, 16, 17, 40, 300, SET_KEYS]))]
    until = FOREVER
    up_to_a_key: bool = draw(st.booleans())
    if keys and up_to_a_key:
        until = draw(st.sampled_from(keys))[: draw(st.sampled_from([1, 7, 8, 9, 40]))]
    return draw(held(keys)), draw(held(keys)), until


@LAW
@given(replicas(), st.sampled_from([b"", SALT]))
@example(([], [], FOREVER), b"")
@example(([], SETS["spread"], FOREVER), b"")
@example((SETS["spread"], [], FOREVER), b"")
@example((SETS["spread"], SETS["written at once"], FOREVER), b"")
@example((SETS["spread"][::2], SETS["spread"][1::2], FOREVER), SALT)
@example((SETS["in bursts"][:350], SETS["in bursts"], SETS["in bursts"][600][:8]), b"")
def test_a_session_finds_exactly_what_the_two_do_not_share(
    sets: tuple[list[Key], list[Key], bytes], salt: bytes
) -> None:
    ours, theirs, until = sets

    session, _ = reconcile(Summary(ours, salt=salt), Summary(theirs, salt=salt), until=until)

    assert sorted(session.needs) == short(one for one in {*theirs} - {*ours} if one < until)
    assert sorted(session.haves) == sorted(one for one in {*ours} - {*theirs} if one < until)
    assert 2 * session.rounds <= messages_max(len(ours))
    assert session.complete


@LAW
@given(replicas(), st.data())
def test_changes_meanwhile_hide_no_other_difference_and_make_none(
    sets: tuple[list[Key], list[Key], bytes], data: st.DataObject
) -> None:
    ours, theirs, until = sets
    summaries = Summary(ours), Summary(theirs)
    always, ever = ({*ours}, {*theirs}), ({*ours}, {*theirs})
    universe = sorted({*ours, *theirs})
    steps = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from([0, 1]),
                st.booleans(),
                st.integers(0, SET_KEYS),
                st.sampled_from([1, 20, 300]),
                st.sampled_from([1, 3]),
            ),
            max_size=8,
        )
    )

    def change() -> None:
        if not steps:
            return
        side, adds, start, length, step = steps.pop()
        for one in universe[start : start + length : step]:
            if adds:
                summaries[side].add(one)
                ever[side].add(one)
            else:
                summaries[side].discard(one)
                always[side].discard(one)

    session, _ = reconcile(*summaries, until=until, between=change)

    needs, haves = {*session.needs}, {*session.haves}
    assert needs >= {*short(one for one in always[1] - ever[0] if one < until)}
    assert needs <= {*short(ever[1] - always[0])}
    assert haves >= {one for one in always[0] - ever[1] if one < until}
    assert haves <= ever[0] - always[1]
    assert (len(needs), len(haves)) == (len(session.needs), len(session.haves))


def without(keys: list[Key], gone: Iterable[Key]) -> list[Key]:
    gone = {*gone}
    return [one for one in keys if one not in gone]


@pytest.mark.parametrize("we_lack", [True, False], ids=["we lack them", "they lack them"])
@pytest.mark.parametrize(
    ("entries", "differ", "bytes_most", "rounds_most"),
    [
        (100_000, "none", 75, 1),
        (10_000, "the newest 100", 3_500, 3),
        (100_000, "one", 1_600, 3),
        (100_000, "the newest 1,000", 22_000, 3),
        (100_000, "1,000 scattered", 330_000, 4),
    ],
)
def test_the_cost_follows_what_differs(
    entries: int, differ: str, bytes_most: int, rounds_most: int, we_lack: bool
) -> None:
    keys = written(entries)
    gone = {
        "none": [],
        "one": keys[-38_766:-38_765],
        "the newest 100": keys[-100:],
        "the newest 1,000": keys[-1000:],
        "1,000 scattered": random.Random(2).sample(keys, 1000),
    }[differ]
    ours, theirs = without(keys, gone if we_lack else ()), without(keys, () if we_lack else gone)

    session, size = reconcile(Summary(ours), Summary(theirs))

    assert size <= bytes_most
    assert session.rounds <= rounds_most
    assert sorted(session.needs) == (short(gone) if we_lack else [])
    assert sorted(session.haves) == ([] if we_lack else sorted(gone))


def test_nothing_to_do_is_one_fingerprint_and_an_empty_answer() -> None:
    keys = SETS["spread"]
    first = Session(Summary(keys), until=FOREVER).begin()

    assert first == Ranges(
        until=FOREVER,
        bounds=b"\x40\x00",
        counts=(700,),
        digests=Summary(keys).fingerprint(b"", END)[1],
        ids=b"",
    )
    assert answer(Summary(keys), first) == Ranges(FOREVER, b"", (), b"", b"")


def test_what_a_fast_clock_dated_ahead_is_no_difference_yet() -> None:
    keys = SETS["spread"]
    until = keys[690][:8]

    session, size = reconcile(Summary(keys), Summary(keys[:690]), until=until)
    later, _ = reconcile(Summary(keys), Summary(keys[:690]))

    assert (session.haves, session.needs, session.rounds) == ([], [], 1)
    assert size < 60
    assert later.haves == keys[690:]


@pytest.mark.parametrize(
    ("ours", "theirs", "rounds_most", "bytes_most"),
    [
        pytest.param(slice(0), slice(None), 3, 485_000, id="we have nothing"),
        pytest.param(slice(None), slice(0), 1, 60, id="they have nothing"),
        pytest.param(slice(0, None, 2), slice(None), 5, 560_000, id="we lack every second"),
        pytest.param(slice(None), slice(0, None, 2), 4, 295_000, id="they lack every second"),
        pytest.param(slice(0, None, 2), slice(1, None, 2), 4, 295_000, id="nothing is shared"),
        pytest.param(slice(20_000), slice(10_000, None), 2, 190_000, id="the two overlap"),
    ],
)
def test_a_difference_larger_than_a_message_is_worked_through_in_several(
    ours: slice, theirs: slice, rounds_most: int, bytes_most: int
) -> None:
    keys = written(30_000)

    session, size = reconcile(Summary(keys[ours]), Summary(keys[theirs]))

    assert sorted(session.needs) == short({*keys[theirs]} - {*keys[ours]})
    assert sorted(session.haves) == sorted({*keys[ours]} - {*keys[theirs]})
    assert session.complete
    assert session.rounds <= rounds_most
    assert size <= bytes_most


def test_more_to_ask_and_more_to_answer_than_a_message_holds_is_worked_through() -> None:
    pool = written(112_000)
    ours = [one for at, one in enumerate(pool) if at % 8 < 5]
    theirs = [one for at, one in enumerate(pool) if at % 8 not in (2, 3, 4)]

    session, size = reconcile(Summary(ours), Summary(theirs))

    assert sorted(session.needs) == short({*theirs} - {*ours})
    assert sorted(session.haves) == sorted({*ours} - {*theirs})
    assert session.rounds <= 12
    assert size <= 1_700_000  # all ids of theirs are 1,120,000


def test_a_session_that_needs_too_much_ends_with_the_oldest_and_says_so() -> None:
    keys = written(70_000)
    ours = Summary()

    session, _ = reconcile(ours, Summary(keys))
    for one in keys[:65_536]:  # what was needed has come
        ours.add(one)
    following, _ = reconcile(ours, Summary(keys))

    assert not session.complete
    assert sorted(session.needs) == short(keys[:65_536])
    assert following.complete
    assert sorted(following.needs) == short(keys[65_536:])


def test_a_salted_session_finds_what_a_crafted_collision_hides() -> None:
    a, b, x = 2**250 + 99, 2**249 + 77, 2**199
    common = SETS["written at once"][:100]
    honest = [*common, key(1, a.to_bytes(32, "big")), key(2, b.to_bytes(32, "big"))]
    forged = [*common, key(1, (a + x).to_bytes(32, "big")), key(2, (b - x).to_bytes(32, "big"))]

    plain, _ = reconcile(Summary(honest), Summary(forged))
    salted, _ = reconcile(Summary(honest, salt=SALT), Summary(forged, salt=SALT))

    assert (plain.needs, plain.haves) == ([], [])
    assert sorted(salted.needs) == short(forged[100:])
    assert sorted(salted.haves) == sorted(honest[100:])


# --- what a stranger to the protocol may send ---

JUNK = b"\xab" * 16
FINGERPRINT, IDS, ASK, SKIP = Kind.FINGERPRINT, Kind.IDS, Kind.ASK, Kind.SKIP
Said = tuple[Kind, bytes, int, bytes]
"""Kind, upper bound, count, and digest or ids."""


def said(kind: Kind, upper: bytes, count: int = 0, content: bytes = b"") -> Said:
    return kind, upper, count, content


def listed(upper: bytes, *ids: bytes) -> Said:
    return said(IDS, upper, len(ids), b"".join(ids))


def message(*ranges: Said, until: bytes = FOREVER) -> Ranges:
    """Write ranges as they travel, whatever they are."""
    bounds, counts, lower, before = b"", list[int](), b"", 0
    for kind, upper, count, _ in ranges:
        shared, rest = 0, b""
        if upper != until:
            while lower[: shared + 1] == upper[: shared + 1] and shared < len(lower):
                shared += 1
            rest = upper[shared:]
        bounds += bytes((kind << 6 | len(rest), shared)) + rest
        lower = upper
        if kind in (FINGERPRINT, IDS):
            counts.append(count - before)
            before = count
    digests = b"".join(content for kind, *_, content in ranges if kind is FINGERPRINT)
    ids = b"".join(content for kind, *_, content in ranges if kind is IDS)
    return Ranges(until, bounds, tuple(counts), digests, ids)


# Of these, whatever is said of b"" to 0x30, the parts are cut at 0x14, 0x18, 0x1c and 0x20.
TWENTY = [key(clock << 56, hashed(clock)) for clock in range(0x10, 0x24)]


def session_that_asked(turn: Kind) -> Session:
    """One that has sent FINGERPRINTs of five parts of b"" to 0x30, or ASKed for the ids of it."""
    session = Session(Summary(TWENTY), until=FOREVER)
    session.begin()
    following = session.receive(
        message(said(FINGERPRINT, b"\x30", 20 if turn is FINGERPRINT else 5, JUNK))
    )
    assert following is not None
    assert len(following.digests) == (5 * 16 if turn is FINGERPRINT else 0)
    return session


@pytest.mark.parametrize(
    ("why", "asked", "reply"),
    [
        (
            "the same range",
            FINGERPRINT,
            message(said(SKIP, b"\x14"), said(FINGERPRINT, b"\x18", 4, JUNK)),
        ),
        ("was not sent", FINGERPRINT, message(said(FINGERPRINT, b"\x18", 9, JUNK))),
        (
            "was not sent",
            FINGERPRINT,
            message(said(SKIP, b"\x31"), said(FINGERPRINT, b"\x32", 9, JUNK)),
        ),
        ("was not sent", ASK, message(said(FINGERPRINT, b"\x12", 9, JUNK))),
        ("not asked about", ASK, message(said(SKIP, b"\x10"), listed(b"\x31", JUNK))),
        ("not asked about", ASK, message(said(SKIP, b"\x30"), listed(FOREVER, JUNK))),
        ("nothing of what was asked", FINGERPRINT, message(said(ASK, FOREVER))),
        ("nothing of what was asked", ASK, message(said(ASK, FOREVER))),
        ("only the end", ASK, message(said(SKIP, b"\x10"), said(ASK, b"\x20"))),
        ("only the end", ASK, message(said(SKIP, b"\x10"), said(ASK, b"\x20"), listed(b"\x30"))),
        ("twice", ASK, message(listed(b"\x30", JUNK, JUNK))),
        ("another bound", ASK, message(listed(b"\x30", JUNK), until=b"\xff" * 9)),
    ],
)
def test_an_answer_that_does_not_lead_on_is_refused_and_ends_the_session(
    why: str, asked: Kind, reply: Ranges
) -> None:
    session = session_that_asked(asked)

    with pytest.raises(Malformed, match=why):
        session.receive(reply)

    with pytest.raises(Misuse):
        session.receive(reply)


def test_ids_may_settle_several_of_the_ranges_that_were_asked_about() -> None:
    session = session_that_asked(FINGERPRINT)

    end = session.receive(message(listed(b"\x18", *short(TWENTY[1:8]), JUNK)))

    assert end is None
    assert (session.needs, session.haves) == ([JUNK], TWENTY[:1])


GOOD = message(said(FINGERPRINT, b"\x14", 4, JUNK), said(SKIP, b"\x18"), said(ASK, FOREVER))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param({"until": b""}, id="no until"),
        pytest.param({"until": b"\xff" * 42}, id="until too long"),
        pytest.param({"until": b"\x18"}, id="a bound that is until"),
        pytest.param({"until": b"\x16"}, id="a bound beyond until"),
        pytest.param({"bounds": GOOD.bounds[:-1]}, id="bounds end in the middle"),
        pytest.param({"bounds": GOOD.bounds[:2]}, id="a bound cut short"),
        pytest.param(
            {"bounds": GOOD.bounds + b"\x40\x00", "counts": (4, 0), "digests": JUNK * 2},
            id="a range behind until",
        ),
        pytest.param({"bounds": b"\x41\x00\x14\x01\x00\x13\xc0\x00"}, id="a lesser bound"),
        pytest.param({"bounds": b"\x41\x00\x14\x01\x00\x14\xc0\x00"}, id="the same bound"),
        pytest.param(
            {"bounds": b"\x41\x00\x14\x02\x00\x14\x01\xc0\x00"}, id="not the shortest form"
        ),
        pytest.param(
            {"bounds": b"\x41\x00\x14\x01\x02\x18\xc0\x00"}, id="shares more than there is"
        ),
        pytest.param({"bounds": b"\x41\x00\x14\x00\x01\xc0\x00"}, id="shares all"),
        pytest.param({"bounds": b"\x6a\x00" + b"\x14" * 42 + b"\xc0\x00"}, id="a bound too long"),
        pytest.param({"bounds": GOOD.bounds[:-2]}, id="a skipped range at the end"),
        pytest.param(
            {"bounds": GOOD.bounds[:-2] + b"\x01\x00\x20\xc0\x00"}, id="two skipped in a row"
        ),
        pytest.param(
            {"bounds": GOOD.bounds[:-2] + b"\xc1\x00\x20\xc0\x00"}, id="two asked in a row"
        ),
        pytest.param({"counts": ()}, id="no count"),
        pytest.param({"counts": (-1,)}, id="a negative count"),
        pytest.param({"counts": (2**40 + 1,)}, id="more than there can be"),
        pytest.param({"counts": (4, 0)}, id="a count too many"),
        pytest.param({"digests": JUNK[:15]}, id="a digest too short"),
        pytest.param({"digests": JUNK * 2}, id="a digest too many"),
        pytest.param({"ids": JUNK}, id="ids of no range"),
    ],
)
def test_a_message_in_any_but_its_one_form_is_refused_on_both_sides(
    wrong: dict[str, object],
) -> None:
    answer(Summary(TWENTY), GOOD)
    bad = msgspec.structs.replace(GOOD, **wrong)
    session = Session(Summary(TWENTY), until=bad.until or FOREVER) if len(bad.until) < 42 else None

    with pytest.raises(Malformed):
        answer(Summary(TWENTY), bad)
    if session is not None:
        session.begin()
        with pytest.raises(Malformed):
            session.receive(bad)


def test_more_ranges_than_a_message_may_have_are_refused() -> None:
    parts = [said(FINGERPRINT, number.to_bytes(2, "big"), 1, JUNK) for number in range(1, 4098)]

    answer(Summary(), message(*parts[:4096]))
    with pytest.raises(Malformed, match="more than 4096 ranges"):
        answer(Summary(), message(*parts))


def test_more_bytes_than_a_message_may_have_are_refused() -> None:
    session = Session(Summary(), until=FOREVER)
    session.begin()

    with pytest.raises(Malformed, match="over the limit of 200000"):
        session.receive(
            message(listed(FOREVER, *(hashed(number)[:16] for number in range(12_501))))
        )


def test_an_initiator_lists_no_ids() -> None:
    with pytest.raises(Malformed, match="lists no ids"):
        answer(Summary(TWENTY), message(listed(FOREVER, JUNK)))


def ranges_in(sent: Ranges) -> int:
    count = at = 0
    while at < len(sent.bounds):
        at += 2 + (sent.bounds[at] & 63)
        count += 1
    return count


@pytest.mark.parametrize(
    ("kind", "width", "skips"),
    [
        pytest.param(ASK, 60_000, False, id="all ids"),
        pytest.param(ASK, 30, True, id="the ids of every second of 2,000 ranges"),
        pytest.param(FINGERPRINT, 15, False, id="4,000 ranges of 15 entries"),
        pytest.param(FINGERPRINT, 100, False, id="600 ranges to be cut in 10"),
        pytest.param(FINGERPRINT, 20, True, id="every second of 3,000 ranges, to be cut in 5"),
    ],
)
def test_an_answer_stays_within_a_message_whatever_is_asked(
    kind: Kind, width: int, skips: bool
) -> None:
    keys = written(60_000)
    content = JUNK if kind is FINGERPRINT else b""
    uppers = [*(one[:12] for one in keys[width::width]), FOREVER]
    asked = message(
        *(
            said(SKIP, upper) if skips and at % 2 else said(kind, upper, width + 1, content)
            for at, upper in enumerate(uppers[: len(uppers) - skips])
        )
    )

    reply = answer(Summary(keys), asked)

    assert len(encode(reply)) <= MESSAGE_BYTES
    assert ranges_in(reply) <= 4096
    assert len(reply.ids) > 180_000 or ranges_in(reply) > 4080  # it is full


@pytest.mark.parametrize(
    ("listed", "cut"),
    [
        pytest.param(12_350, 300, id="bytes run out at fingerprints"),
        pytest.param(12_400, 300, id="bytes run out at the first of them"),
        pytest.param(0, 500, id="ranges run out at fingerprints"),
        pytest.param(0, 400, id="ranges run out at ids"),
        pytest.param(10_000, 399, id="bytes and ranges run out at ids"),
    ],
)
def test_an_answer_of_ids_and_fingerprints_stays_within_a_message(listed: int, cut: int) -> None:
    keys = written(60_000)
    asked = message(
        said(ASK, keys[listed]),
        *(said(FINGERPRINT, keys[listed + 100 * part], 99, JUNK) for part in range(1, cut + 1)),
        *(said(ASK if at % 2 else SKIP, upper) for at, upper in enumerate(keys[50_100:52_998:3])),
    )

    reply = answer(Summary(keys), asked)

    assert len(encode(reply)) <= MESSAGE_BYTES
    assert ranges_in(reply) <= 4096


def test_who_puts_off_for_ever_is_given_up_within_the_bound() -> None:
    session = Session(Summary(), until=FOREVER)
    session.begin()

    def put_off() -> None:
        for step in range(1, 1000):
            session.receive(message(said(SKIP, step.to_bytes(8, "big")), said(ASK, FOREVER)))

    with pytest.raises(Malformed, match="no end after 80 messages"):  # 8, and 36 round trips more
        put_off()


def test_ids_without_end_are_not_collected_without_end() -> None:
    session = Session(Summary(TWENTY), until=FOREVER)
    following: Ranges | None = session.begin()
    step = 0

    while following is not None:
        step += 1
        before, upper = step.to_bytes(4, "big"), (step + 1).to_bytes(4, "big")
        ids = [(step << 20 | number).to_bytes(16, "big") for number in range(12_000)]
        following = session.receive(
            message(said(SKIP, before), listed(upper, *ids), said(ASK, FOREVER))
        )

    assert (step, len(session.needs), session.complete) == (6, 65_536, False)


def test_an_id_that_is_listed_in_two_ranges_is_needed_once() -> None:
    session = session_that_asked(FINGERPRINT)

    session.receive(message(listed(b"\x14", JUNK), said(SKIP, b"\x18"), listed(b"\x1c", JUNK)))

    assert session.needs == [JUNK]


def test_a_session_is_used_in_order() -> None:
    session = Session(Summary(TWENTY), until=FOREVER)
    with pytest.raises(Misuse, match="no answer is awaited"):
        session.receive(GOOD)
    reply = answer(Summary(TWENTY), session.begin())
    with pytest.raises(Misuse, match="has begun"):
        session.begin()
    assert session.receive(reply) is None
    with pytest.raises(Misuse, match="no answer is awaited"):
        session.receive(reply)


@pytest.mark.parametrize("until", [b"", bytes(42)])
def test_a_session_has_an_end(until: bytes) -> None:
    with pytest.raises(Misuse, match="until has 1 to 41 bytes"):
        Session(Summary(), until=until)


COLUMNS = ("bounds", "digests", "ids")


@st.composite
def spoilt(draw: st.DrawFn, good: Ranges) -> Ranges:
    """A message with something changed, doubled, cut out or put in."""
    column = draw(st.sampled_from([*COLUMNS, "until", "counts"]))
    if column == "counts":
        counts = draw(st.lists(st.integers(-(2**64), 2**64 - 1) | st.integers(-9, 9), max_size=6))
        at = draw(st.integers(0, len(good.counts)))
        return msgspec.structs.replace(
            good, counts=(*good.counts[:at], *counts, *good.counts[at + len(counts) :])
        )
    data: bytes = getattr(good, column)
    start, stop = sorted(draw(st.integers(0, len(data))) for _ in range(2))
    part = draw(
        st.sampled_from([b"", data[start:stop] * 2, data[start:stop][::-1]]) | st.binary(max_size=3)
    )
    return msgspec.structs.replace(good, **{column: data[:start] + part + data[stop:]})


@LAW
@given(replicas(), st.data())
def test_a_spoilt_message_is_refused_or_does_no_harm(
    sets: tuple[list[Key], list[Key], bytes], data: st.DataObject
) -> None:
    ours, theirs = Summary(sets[0]), Summary(sets[1])
    session = Session(ours, until=sets[2])
    sent: Ranges | None = session.begin()
    names = 0
    with contextlib.suppress(Malformed):
        while sent is not None:
            if data.draw(st.booleans()):
                sent = data.draw(spoilt(sent))
            reply = answer(theirs, sent)
            assert len(encode(reply)) <= MESSAGE_BYTES
            assert {*split(reply.ids)} <= {*short(sets[1])}
            if data.draw(st.booleans()):
                reply = data.draw(spoilt(reply))
            names += len(reply.ids) // 16
            sent = session.receive(reply)

    assert 2 * session.rounds <= messages_max(len(sets[0])) + 2 * 37
    assert len(session.needs) <= names
    assert {*session.haves} <= {one for one in sets[0] if one < sets[2]}
    assert len({*session.haves}) == len(session.haves)


def split(ids: bytes) -> list[bytes]:
    return [ids[start : start + 16] for start in range(0, len(ids), 16)]


NAMES = {*short(SETS["spread"])}
LISTS = [[], [JUNK], short(SETS["spread"][100:140])]


@st.composite
def invented(draw: st.DrawFn) -> Ranges:
    """A message in the right form that says anything."""
    universe = SETS["spread"]
    uppers = sorted({draw(st.sampled_from(universe))[:9] for _ in range(draw(st.integers(0, 6)))})
    ranges: list[Said] = []
    for upper in uppers:
        kind = draw(st.sampled_from(Kind))
        if ranges and kind is ranges[-1][0] and kind is not FINGERPRINT:
            kind = FINGERPRINT
        if kind is IDS:
            ranges.append(listed(upper, *draw(st.sampled_from(LISTS))))
        elif kind is FINGERPRINT:
            ranges.append(said(kind, upper, draw(st.integers(0, 900)), JUNK))
        else:
            ranges.append(said(kind, upper))
    if ranges and ranges[-1][0] is not ASK:
        ranges.append(said(ASK, FOREVER))
    return message(*ranges)


@given(st.lists(invented(), min_size=1, max_size=4))
def test_a_liar_gets_no_more_names_in_than_it_gave(lies: list[Ranges]) -> None:
    ours = Summary(SETS["spread"])
    session = Session(ours, until=FOREVER)
    sent: Ranges | None = session.begin()
    names = 0
    with contextlib.suppress(Malformed):
        for lie in lies:
            if sent is None:
                break
            names += len(lie.ids) // 16
            sent = session.receive(lie)
    assert len(session.needs) <= names
    for lie in lies:
        with contextlib.suppress(Malformed):
            reply = answer(ours, lie)
            assert len(encode(reply)) <= MESSAGE_BYTES
            assert {*split(reply.ids)} <= NAMES


@LAW
@given(
    st.binary(max_size=80) | st.binary(max_size=60).map(lambda data: b"\x85\x48" + FOREVER + data)
)
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    with contextlib.suppress(Malformed):
        answer(Summary(TWENTY), decode(data, Ranges))
