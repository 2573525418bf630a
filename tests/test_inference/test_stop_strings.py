"""Stop strings in a text that comes in pieces: wherever it is cut, the same is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.inference.stop_strings import StopStrings


def told(pieces: list[str], *stop: str) -> tuple[list[str], bool]:
    strings = StopStrings(stop)
    heard = [strings.feed(piece) for piece in pieces]
    return [*heard, strings.end()], strings.is_found


def test_a_stop_string_across_pieces_is_found_and_nothing_of_it_told() -> None:
    assert told(["one E", "N", "D two"], "END") == (["one ", "", "", ""], True)


def test_what_only_began_like_one_is_told_as_soon_as_that_is_sure() -> None:
    assert told(["one E", "Ndless", " E"], "END") == (["one ", "ENdless", " ", "E"], False)


@pytest.mark.parametrize("stop", [("ab", "b"), ("b", "ab"), ("", "ab", "b")])
def test_of_several_the_first_in_the_text_ends_it(stop: tuple[str, ...]) -> None:
    assert told(["xab"], *stop) == (["x", ""], True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_wherever_a_text_is_cut_the_same_is_told(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    places = [at for one in stop if (at := whole.find(one)) >= 0]

    heard, is_found = told(pieces, *stop)

    if is_found:
        assert whole.startswith("".join(heard))
        assert not any(one in "".join(heard) for one in stop)
    else:
        assert "".join(heard) == whole
    assert is_found is (places != [])
