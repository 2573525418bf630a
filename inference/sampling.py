"""Which token comes next? The likeliest, or one drawn by seed from the likelier ones. Pure.

What llama.cpp does unless told otherwise: the forty best tokens, of those the fewest that have 95 % of
the probability, without any that has less than a twentieth of the best one's.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05


class Sampler:
    """Chooses one token after another; the same seed and logits give the same tokens."""

    def __init__(self, temperature: float, seed: int) -> None:
        self._temperature = temperature
        self._random = np.random.default_rng(abs(seed))

    def next(self, logits: NDArray[np.float32]) -> int:
        """Return the next token; at temperature 0 the likeliest, of equal ones the first."""
        if self._temperature <= 0.0:
            return int(logits.argmax())
        kept = min(TOP_K, len(logits))
        best = np.argpartition(logits, -kept)[-kept:]
        # Sorted by token as well: the partition's order is nobody's promise.
        best = best[np.lexsort((best, -logits[best]))]
        # In double precision, so that a tiny temperature overflows to nothing worse than 0.
        scaled = (logits[best].astype(np.float64) - float(logits[best[0]])) / self._temperature
        shares = np.exp(scaled)
        before = np.cumsum(shares) / shares.sum() - shares / shares.sum()
        shares[(before >= TOP_P) | (shares < MIN_P)] = 0.0
        return int(self._random.choice(best, p=shares / shares.sum()))


def log_shares(logits: NDArray[np.float32]) -> NDArray[Any]:
    """Return the logarithm of each token's probability."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= np.log(np.exp(wide).sum())
    return wide
