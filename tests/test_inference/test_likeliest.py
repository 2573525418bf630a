"""The most probable of several continuations: the one that listing all of them would find."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey.inference.likeliest import likeliest

END, TOKENS = 3, 4


class Model:
    """Knows the probability of each token behind each beginning, and what it was asked."""

    def __init__(self, known: dict[tuple[int, ...], list[float]]) -> None:
        self._known = known
        self.asked: list[tuple[int, ...]] = []

    def shares_after(self, tokens: Sequence[int]) -> NDArray[Any]:
        self.asked.append(tuple(tokens))
        with np.errstate(divide="ignore"):
            return np.log(np.array(self._known[tuple(tokens)]))


def test_the_whole_probability_decides_not_the_first_token_alone() -> None:
    model = Model({(): [0.6, 0.4, 0, 0], (0,): [0.3, 0.3, 0.4, 0], (1,): [0, 0, 0.9, 0.1]})
    assert likeliest([[0, 1], [1, 2]], model.shares_after, {END}) == 1


def test_a_long_continuation_is_not_preferred_for_what_follows_by_itself() -> None:
    """Its mean is the higher one: what is certain within a word says nothing for the word."""
    model = Model({(): [0.5, 0.4, 0.1, 0], (1,): [0, 0, 1, 0], (1, 2): [0, 0, 1, 0]})
    assert likeliest([[0], [1, 2, 2]], model.shares_after, {END}) == 0


@pytest.mark.parametrize(("end", "winner"), [(0.9, 0), (0.2, 1)])
def test_one_that_begins_another_is_weighed_by_whether_the_answer_ends_there(
    end: float, winner: int
) -> None:
    model = Model({(0,): [0, 1 - end, 0, end]})
    assert likeliest([[0], [0, 1]], model.shares_after, {END}) == winner


def test_what_all_begin_with_and_what_has_lost_already_is_never_evaluated() -> None:
    model = Model({(2, 2): [0.9, 0.05, 0.05, 0]})
    assert likeliest([[2, 2, 1, 1, 1], [2, 2, 0], [2, 2, 2, 2, 1]], model.shares_after, {END}) == 1
    assert model.asked == [(2, 2)]


def test_a_single_one_and_the_first_of_equal_ones_need_no_model() -> None:
    model = Model({})
    assert likeliest([[1, 2]], model.shares_after, {END}) == 0
    assert likeliest([[1, 2], [1, 2]], model.shares_after, {END}) == 0
    assert model.asked == []


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6),
    st.integers(0, 10_000),
)
def test_the_search_finds_what_listing_all_would(options: list[list[int]], seed: int) -> None:
    def shares_after(tokens: Sequence[int]) -> NDArray[Any]:
        drawn = np.random.default_rng([seed, *tokens]).random(TOKENS) + 0.01
        return np.log(drawn / drawn.sum())

    def share(option: list[int]) -> float:
        total = sum(float(shares_after(option[:at])[one]) for at, one in enumerate(option))
        begins_another = any(
            len(one) > len(option) and one[: len(option)] == option for one in options
        )
        return total + (float(shares_after(option)[END]) if begins_another else 0.0)

    found = likeliest(options, shares_after, {END})
    assert math.isclose(share(options[found]), max(map(share, options)))
