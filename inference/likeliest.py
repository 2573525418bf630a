"""Which of several continuations is the most probable one? A best-first search of their tokens. Pure.

A continuation's score is the logarithm of its whole probability: the sum over its tokens, not their
mean. The sum compares what the model would really say, and no continuation is more probable than its
beginning: so the first complete one that is reached has won, and most others need no evaluation.
"""

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SharesAfter = Callable[[Sequence[int]], NDArray[Any]]
"""Told some tokens, returns the logarithm of each token's probability to be the next."""


def likeliest(
    options: Sequence[Sequence[int]], shares_after: SharesAfter, ends: Iterable[int]
) -> int:
    """Return the place of the most probable of `options`; of equal ones the first.

    An option that begins another is scored with the end of the answer behind it: else it would
    always win.

    Args:
        options: at least one, each some tokens.
        shares_after: asked about beginnings of options only, as few as possible.
        ends: tokens that end an answer.
    """
    last = sorted(ends)
    # (score as loss, order of coming, tokens so far, options that begin so, whether it has ended)
    waiting: list[tuple[float, int, int, list[int], bool]] = [
        (0.0, 0, _shared(options), list(range(len(options))), False)
    ]
    pushed = 0
    while True:
        loss, _, depth, group, has_ended = heapq.heappop(waiting)
        going = [one for one in group if len(options[one]) > depth]
        ending = [one for one in group if len(options[one]) == depth]
        if has_ended or not going:
            return ending[0]
        shares = shares_after(options[going[0]][:depth])
        by_token: dict[int, list[int]] = {}
        for one in going:
            by_token.setdefault(options[one][depth], []).append(one)
        nexts = [(float(shares[token]), depth + 1, same, False) for token, same in by_token.items()]
        if ending:
            end = float(np.logaddexp.reduce(shares[last])) if last else 0.0
            nexts.append((end, depth, ending, True))
        for share, deep, same, ended in nexts:
            pushed += 1
            heapq.heappush(waiting, (loss - share, pushed, deep, same, ended))


def _shared(options: Sequence[Sequence[int]]) -> int:
    """Return how many tokens all of them begin with: those tell nothing apart."""
    first = options[0]
    same = min(map(len, options))
    for one in options:
        same = next((at for at in range(same) if one[at] != first[at]), same)
    return same
