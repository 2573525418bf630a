"""Tokens drawn from logits: the likeliest, or by seed among the likelier ones."""

import numpy as np
import pytest
from numpy.typing import NDArray

from covey.inference.sampling import Sampler, log_shares


def logits(*shares: float) -> NDArray[np.float32]:
    with np.errstate(divide="ignore"):
        return np.log(np.array(shares, dtype=np.float32))


def draw(of: NDArray[np.float32], *, temperature: float, seed: int, count: int = 200) -> list[int]:
    sampler = Sampler(temperature, seed)
    return [sampler.next(of) for _ in range(count)]


def test_at_temperature_zero_it_is_the_likeliest_and_of_equal_ones_the_first() -> None:
    assert set(draw(logits(0.2, 0.4, 0.4), temperature=0.0, seed=1)) == {1}


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    of = logits(0.3, 0.3, 0.4)
    first = draw(of, temperature=1.0, seed=1)
    assert draw(of, temperature=1.0, seed=1) == first
    assert draw(of, temperature=1.0, seed=2) != first
    assert set(first) == {0, 1, 2}


@pytest.mark.parametrize(
    ("shares", "drawn"),
    [
        # Of forty and more only forty.
        ([1 / 50] * 50, 38),
        # The fewest that have 95 %.
        ([0.5, 0.46, 0.04], 2),
        # None that has less than a twentieth of the best.
        ([0.8, 0.1, 0.03, 0.03, 0.04], 2),
    ],
)
def test_only_the_likelier_ones_are_drawn(shares: list[float], drawn: int) -> None:
    found = draw(logits(*shares), temperature=1.0, seed=3, count=2000)
    assert len(set(found)) == drawn


def test_a_low_temperature_prefers_the_likeliest_and_a_tiny_one_breaks_nothing() -> None:
    of = logits(0.5, 0.3, 0.2)
    assert draw(of, temperature=0.3, seed=4).count(0) > draw(of, temperature=2.0, seed=4).count(0)
    assert set(draw(of, temperature=1e-30, seed=4)) == {0}


def test_shares_of_huge_logits_still_sum_to_one() -> None:
    shares = np.exp(log_shares(np.array([3e38, 3e38, -3e38], dtype=np.float32)))
    assert shares.tolist() == pytest.approx([0.5, 0.5, 0.0])
