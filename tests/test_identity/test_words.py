"""Six words that two people compare: the same on both sides, and known by their first letters."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.identity.envelope import mesh_id_of
from covey.identity.errors import Misuse
from covey.identity.keys import Keypair
from covey.identity.word_list import WORDS
from covey.identity.words import same_words, words_of

ALICE, BOB = Keypair(b"\x01" * 32).peer_id, Keypair(b"\x02" * 32).peer_id
MESH = mesh_id_of(Keypair(b"\x03" * 32).public_key)
SHOWN = words_of(MESH, ALICE, BOB, bytes(16))


def test_the_words_of_two_keys_never_change() -> None:
    assert SHOWN == "yard only potato gravity effort orange"


def test_the_list_is_whole_and_each_word_is_known_by_four_letters() -> None:
    assert len(WORDS) == 2048
    assert len({word[:4] for word in WORDS}) == 2048
    assert list(WORDS) == sorted(WORDS)
    assert (WORDS[0], WORDS[-1]) == ("abandon", "zoo")


@given(st.binary(min_size=16, max_size=16))
def test_there_are_always_six_words_and_another_number_gives_others(nonce: bytes) -> None:
    words = words_of(MESH, ALICE, BOB, nonce)
    assert len(words.split()) == 6
    assert set(words.split()) <= set(WORDS)
    assert (words == SHOWN) is (nonce == bytes(16))


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        (SHOWN, True),
        (SHOWN.upper().replace(" ", ", "), True),
        (SHOWN.replace(" ", "-"), True),
        (" ".join(reversed(SHOWN.split())), False),
    ],
)
def test_words_are_compared_whatever_stands_between_them(typed: str, same: bool) -> None:
    assert same_words(typed, SHOWN) is same


def test_some_of_the_words_are_not_enough() -> None:
    with pytest.raises(Misuse, match="6 words are shown, not 5"):
        same_words(" ".join(SHOWN.split()[:5]), SHOWN)
