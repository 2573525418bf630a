"""Which passages hold the words of a question, and how well? An inverted index with BM25.

Pure: knows slots and terms, not whose passage a slot is or who may read it. `recall.py` drives it.
Source: Robertson and Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond", 2009.

Postings are kept here and not in FTS5: its bm25 takes 2 us for each passage that holds a word, so
that one common word in 100,000 passages takes 190 ms, where a look at the postings takes 1 ms. A
removed passage leaves nothing behind either, where FTS5 keeps its words until segments merge.
"""

from array import array
from bisect import bisect_left, insort
from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

# BM25's usual constants: how soon a repeated word stops to count, how much length is held against.
K1 = 1.2
B = 0.75
# A posting is 32 bits: the slot, and how often the passage holds the term (255: that or more).
_COUNT_BITS = 8
_COUNT_MAX = (1 << _COUNT_BITS) - 1
SLOTS_MAX = 1 << (32 - _COUNT_BITS)


class Keywords:
    """Postings by term, for passages in numbered slots."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._terms: list[str] = []
        self._postings: list[array[int]] = []
        self._free: list[int] = []
        self._held: dict[int, bytes] = {}
        """By slot: the numbers of its terms, packed: 100,000 arrays would weigh twice as much."""
        self._lengths = np.zeros(0, np.float32)
        self._length_sum = 0

    def put(self, slot: int, terms: Mapping[str, int]) -> None:
        """Index the terms of an empty slot."""
        if slot >= len(self._lengths):
            self._lengths = _grown(self._lengths, slot + 1)
        numbers = array("I")
        number_of = self._numbers.get
        first = slot << _COUNT_BITS
        # The hot loop of filling the index: 30 rounds a passage.
        for term, count in terms.items():
            number = number_of(term)
            if number is None:
                number = self._take(term)
            numbers.append(number)
            posting = first | min(count, _COUNT_MAX)
            postings = self._postings[number]
            if not postings or postings[-1] < posting:
                postings.append(posting)
            else:
                insort(postings, posting)
        self._held[slot] = numbers.tobytes()
        length = sum(terms.values())
        self._lengths[slot] = length
        self._length_sum += length

    def drop(self, slot: int) -> None:
        """Empty a slot; a term that stood nowhere else is gone."""
        for number in array("I", self._held.pop(slot)):
            postings = self._postings[number]
            del postings[bisect_left(postings, slot << _COUNT_BITS)]
            if not postings:
                del self._numbers[self._terms[number]]
                self._terms[number] = ""
                self._free.append(number)
        self._length_sum -= int(self._lengths[slot])
        self._lengths[slot] = 0

    def scores(self, terms: Collection[str], slots_end: int) -> NDArray[np.float32]:
        """Return BM25 of the slots below `slots_end`; above 0 where a term stands."""
        scores = np.zeros(slots_end, np.float32)
        known = [self._postings[self._numbers[term]] for term in terms if term in self._numbers]
        if not known:
            return scores
        average = max(1.0, self._length_sum / len(self._held))
        norms = self._lengths[:slots_end] * np.float32(K1 * B / average) + np.float32(K1 * (1 - B))
        for postings in known:
            view = np.frombuffer(postings, np.uint32)
            slots = (view >> _COUNT_BITS).astype(np.intp)
            counts = (view & _COUNT_MAX).astype(np.float32)
            # Never 0 or less, also for a term that stands everywhere: who holds it is a hit.
            rarity = np.log1p((len(self._held) - len(view) + 0.5) / (len(view) + 0.5))
            scores[slots] += np.float32(rarity * (K1 + 1)) * counts / (counts + norms[slots])
        return scores

    def _take(self, term: str) -> int:
        if self._free:
            number = self._free.pop()
            self._terms[number] = term
        else:
            number = len(self._terms)
            self._terms.append(term)
            self._postings.append(array("I"))
        self._numbers[term] = number
        return number


def _grown(old: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    new = np.zeros(max(size, 2 * len(old), 1024), np.float32)
    new[: len(old)] = old
    return new
