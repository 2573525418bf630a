"""A summary holds what a plain sorted set would, and its fingerprint tells sets apart."""

import hashlib
import time
from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey.gossip.memory.entry import Key
from covey.gossip.memory.summary import END, Summary
from covey.identity.errors import Misuse

# 300 cases in `make test`, 10,000 in `make laws`.
LAW = settings(max_examples=5 * settings().max_examples)
SALT = bytes(range(32))


def key(number: int, *, same_time: int = 3) -> Key:
    """The key of an entry; `same_time` neighbours were written in the same millisecond."""
    clock = (number // same_time) << 16
    return Key(clock.to_bytes(8, "big") + hashlib.sha256(b"%d" % number).digest())


def crafted(clock: int, id_value: int) -> Key:
    return Key(clock.to_bytes(8, "big") + id_value.to_bytes(32, "big"))


KEYS = [key(number) for number in range(1000)]
KEYS.sort()


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[bool, list[Key]]]:
    """Batches to add (True) or to discard, of so many neighbours that blocks are cut and joined."""
    batches: list[tuple[bool, list[Key]]] = []
    for _ in range(draw(st.integers(1, 5))):
        start, stop = sorted((draw(st.integers(0, 1000)), draw(st.integers(0, 1000))))
        step = draw(st.sampled_from([1, 1, 2, 7, -1, -3]))
        batches.append((draw(st.booleans()), KEYS[start:stop][::step]))
    return batches


@st.composite
def bounds(draw: st.DrawFn) -> bytes:
    near = draw(st.sampled_from(KEYS))
    return draw(st.sampled_from([b"", END, near, near[: draw(st.integers(0, 40))], near + b"\0"]))


@LAW
@given(changes(), bounds(), bounds(), st.sampled_from([b"", SALT]), st.booleans())
def test_a_summary_is_a_sorted_set_whatever_was_added_and_discarded(
    batches: list[tuple[bool, list[Key]]], lower: bytes, upper: bytes, salt: bytes, read: bool
) -> None:
    summary, held = Summary(salt=salt), set[Key]()
    for adds, batch in batches:
        for one in batch:
            assert (one in summary) == (one in held)
            if adds:
                assert summary.add(one) == (one not in held)
                held.add(one)
            else:
                assert summary.discard(one) == (one in held)
                held.discard(one)
        if read:  # so that totals made before a change would show in those read behind it
            summary.fingerprint(lower, upper)

    ordered = sorted(held)
    inside = [one for one in ordered if lower <= one < upper]
    assert len(summary) == len(ordered)
    assert summary.keys(lower, upper) == inside
    assert summary.fingerprint(lower, upper) == Summary(inside, salt=salt).fingerprint(b"", END)
    assert summary.fingerprint(lower, upper)[0] == len(inside)
    assert summary.rank(lower) == bisect_left(ordered, lower)
    assert [summary.at(rank) for rank in range(len(ordered))] == ordered


def test_a_fingerprint_is_of_the_sum_of_the_ids_and_the_count() -> None:
    summary = Summary([crafted(5, 2**256 - 1), crafted(7, 3), crafted(9, 100)])

    assert summary.fingerprint(b"", crafted(9, 0)) == (
        2,
        hashlib.sha256((2).to_bytes(32, "big") + (2).to_bytes(8, "big")).digest()[:16],
    )


def test_a_range_begins_with_its_lower_bound_and_ends_before_its_upper() -> None:
    early, middle, late = key(0), key(30), key(60)
    summary = Summary([early, middle, late])

    assert summary.keys(early, late) == [early, middle]
    assert summary.keys(middle[:8], middle[:8] + b"\xff") == [middle]
    assert summary.keys(middle[:8], middle[:9]) == []
    assert summary.keys(b"", END) == [early, middle, late]
    assert summary.keys(END, b"") == []
    assert summary.fingerprint(late, early) == summary.fingerprint(b"", b"")


def test_the_greatest_key_there_can_be_is_below_the_end() -> None:
    greatest = Key(b"\xff" * 40)

    assert Summary([greatest]).fingerprint(b"", END)[0] == 1


@pytest.mark.parametrize("salt", [b"", SALT])
def test_order_and_repetition_of_what_is_given_do_not_matter(salt: bytes) -> None:
    once = Summary(KEYS, salt=salt)
    again = Summary([*reversed(KEYS), *KEYS[::3]], salt=salt)

    assert len(again) == 1000
    assert again.keys(b"", END) == KEYS
    assert again.fingerprint(b"", END) == once.fingerprint(b"", END)


def test_a_crafted_collision_is_seen_with_a_salt_alone() -> None:
    a, b, x = 2**200 + 12345, 2**130 + 678, 2**77
    honest = [crafted(1, a), crafted(2, b)]
    forged = [crafted(1, a + x), crafted(2, b - x)]

    assert Summary(honest).fingerprint(b"", END) == Summary(forged).fingerprint(b"", END)
    assert Summary(honest, salt=SALT).fingerprint(b"", END) != (
        Summary(forged, salt=SALT).fingerprint(b"", END)
    )


def test_another_salt_gives_another_fingerprint_of_the_same_set() -> None:
    digests = {
        Summary(KEYS[:5], salt=salt).fingerprint(b"", END)[1] for salt in (b"", b"one", b"two")
    }

    assert len(digests) == 3


def test_what_cannot_be_asked_is_refused() -> None:
    with pytest.raises(Misuse, match="at most 64 bytes, not 65"):
        Summary(salt=bytes(65))
    with pytest.raises(Misuse, match="0 to 1, not 2"):
        Summary(KEYS[:2]).at(2)
    with pytest.raises(Misuse, match="-1"):
        Summary(KEYS[:2]).at(-1)


def test_a_new_entry_does_not_make_the_whole_set_be_read_again() -> None:
    numbers = range(102_000)
    keys = [crafted(number << 16, number) for number in numbers]
    summary = Summary(keys[:100_000])
    # Reading all would take 2,000 times 30 ms; it takes 0.1 s in all.
    deadline = time.monotonic() + 10

    for one in keys[100_000:]:
        summary.add(one)
        summary.fingerprint(b"", END)

    assert time.monotonic() < deadline
    assert summary.fingerprint(b"", END)[0] == 102_000
