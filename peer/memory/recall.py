"""Which of the summaries that this peer holds answer a question? Words and meaning, fused by rank.

The index is local and derived: it is never replicated, is in memory only, so that a forgotten text
is on no disk, and is filled again from the store at every start. It knows passages, not entries,
zones or models: who asks names the namespaces that may be searched, and brings the vectors.

Every call may come from any thread; one lock lets them through one at a time. A search of 100,000
passages takes about 10 ms, so the daemon calls from a worker thread.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey.identity.errors import Misuse, Unavailable
from covey.identity.keys import PeerId

from .recall_keywords import SLOTS_MAX, Keywords
from .recall_terms import Tokenizer
from .recall_vectors import Vectors

ID_BYTES = 32
NAMESPACE_BYTES = 16
# Longer ones are texts, not questions; each word costs up to 1 ms for 100,000 passages.
QUESTION_CHARACTERS_MAX = 1000
QUESTION_WORDS_MAX = 64
K_MAX = 100
# Each ranking gives its best 100 to the fusion, so that k hits come out whenever k exist.
RANKED = K_MAX
# Reciprocal rank fusion: a passage scores 1 / (60 + rank) in each ranking that names it. Source:
# Cormack, Clarke and Buettcher, "Reciprocal Rank Fusion", 2009.
FUSION_K0 = 60
_TIME_MS_MAX = 2**63 - 1
_NEVER = -(2**63)
_SLOTS_MIN = 1024


@dataclass(frozen=True, slots=True)
class Passage:
    """The text of one summary, as the index takes it."""

    id: bytes
    namespace: bytes
    author: PeerId
    text: str
    at_ms: int
    expires_ms: int
    """From then on it is not found."""
    vector: NDArray[np.float32] | None = field(compare=False, repr=False)
    """Of unit length; None while it is not embedded."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One passage that answers, and its rank (from 1) by words and by meaning.

    None: it is not among the best 100 there.
    """

    id: bytes
    score: float
    keyword_rank: int | None
    vector_rank: int | None


class Recall:
    """The passages that this peer holds, ready to be searched."""

    def __init__(self, dimensions: int | None = None) -> None:
        """Begin empty. Without `dimensions`, the first vector tells the size of all."""
        self._lock = threading.Lock()
        self._tokenizer = Tokenizer()
        self._keywords = Keywords()
        self._vectors = Vectors(dimensions)
        self._slots: dict[bytes, int] = {}
        self._ids: list[bytes] = []
        """By slot; b"" where it is free."""
        self._free: list[int] = []
        self._unembedded: dict[bytes, str] = {}
        # A mesh has few of these, and none of them is a text: they are never taken out.
        self._namespaces: dict[bytes, int] = {}
        self._authors: dict[PeerId, int] = {}
        self._namespace = np.zeros(0, np.int32)
        self._author = np.zeros(0, np.int32)
        self._at_ms = np.zeros(0, np.int64)
        self._expires_ms = np.zeros(0, np.int64)

    def close(self) -> None:
        """Let go of the tokenizer; texts and questions are refused from now on."""
        with self._lock:
            self._tokenizer.close()

    def __len__(self) -> int:
        return len(self._slots)

    def add(self, passages: Sequence[Passage]) -> None:
        """Hold all of these, each in place of the one with its id; on an error, none of them.

        Raises:
            Misuse: an id, a namespace, a time or a vector is not as it must be.
            Unavailable: SQLite failed, or there are too many passages.
        """
        with self._lock:
            newest = {passage.id: passage for passage in passages}
            vectors = [p.vector for p in newest.values() if p.vector is not None]
            for passage in newest.values():
                _check(passage)
            self._vectors.check(vectors)
            if len(self._slots) + len(newest) > SLOTS_MAX:
                raise Unavailable(f"recall holds at most {SLOTS_MAX} passages")
            terms = self._tokenizer.terms([passage.text for passage in newest.values()])
            for passage, counts in zip(newest.values(), terms, strict=True):
                self._remove(passage.id)
                self._insert(passage, counts)

    def embed(self, vectors: Sequence[tuple[bytes, NDArray[np.float32]]]) -> None:
        """Give passages their vectors; an id that is not held (any more) is passed over.

        Raises:
            Misuse: a vector is not of the size of the others, or not of unit length; none is taken.
        """
        with self._lock:
            self._vectors.check([vector for _, vector in vectors])
            for id_, vector in vectors:
                slot = self._slots.get(id_)
                if slot is not None:
                    self._vectors.put(slot, vector)
                    self._unembedded.pop(id_, None)

    def remove(self, ids: Collection[bytes]) -> None:
        """Forget these passages, by words and by meaning; one that is not held is passed over."""
        with self._lock:
            for id_ in ids:
                self._remove(id_)

    def unembedded(self, limit: int) -> list[tuple[bytes, str]]:
        """Return up to `limit` passages that have no vector, in the order they came."""
        with self._lock:
            return list(islice(self._unembedded.items(), max(0, limit)))

    def search(
        self,
        question: str,
        vector: NDArray[np.float32] | None,
        *,
        k: int,
        namespaces: Collection[bytes],
        author: PeerId | None = None,
        now_ms: int,
    ) -> list[Hit]:
        """Return the best `k` passages in these namespaces that have not expired, best first.

        By words, a passage is found that holds one of them; by meaning (where the question has a
        vector), each that has a vector. Equal ones come newest first.

        Raises:
            Misuse: `k`, the question or its vector is out of bounds.
            Unavailable: SQLite failed.
        """
        if not 1 <= k <= K_MAX:
            raise Misuse(f"k must be 1 to {K_MAX}, not {k}")
        if len(question) > QUESTION_CHARACTERS_MAX:
            raise Misuse(
                f"a question has at most {QUESTION_CHARACTERS_MAX} characters, not {len(question)};"
                " ask a shorter one"
            )
        with self._lock:
            (terms,) = self._tokenizer.terms([question])
            words = max(len(question.split()), terms.total())
            if words > QUESTION_WORDS_MAX:
                raise Misuse(
                    f"a question has at most {QUESTION_WORDS_MAX} words, not {words};"
                    " ask a shorter one"
                )
            if vector is not None:
                self._vectors.check([vector])
            allowed = self._allowed(namespaces, author, now_ms)
            scores = self._keywords.scores(terms, len(self._ids))
            matching = np.flatnonzero(allowed & (scores > 0))
            by_words = self._best(matching, scores[matching])
            by_meaning: list[int] = []
            if vector is not None:
                by_meaning = self._best(*self._vectors.near(vector, allowed))
            return self._fused(by_words, by_meaning)[:k]

    def _insert(self, passage: Passage, terms: Mapping[str, int]) -> None:
        if self._free:
            slot = self._free.pop()
            self._ids[slot] = passage.id
        else:
            slot = len(self._ids)
            self._ids.append(passage.id)
            self._grow()
        self._slots[passage.id] = slot
        self._keywords.put(slot, terms)
        if passage.vector is None:
            self._unembedded[passage.id] = passage.text
        else:
            self._vectors.put(slot, passage.vector)
        self._namespace[slot] = self._namespaces.setdefault(
            passage.namespace, len(self._namespaces)
        )
        self._author[slot] = self._authors.setdefault(passage.author, len(self._authors))
        self._at_ms[slot] = passage.at_ms
        self._expires_ms[slot] = passage.expires_ms

    def _remove(self, id_: bytes) -> None:
        slot = self._slots.pop(id_, None)
        if slot is None:
            return
        self._keywords.drop(slot)
        self._vectors.drop(slot)
        self._unembedded.pop(id_, None)
        self._ids[slot] = b""
        self._expires_ms[slot] = _NEVER
        self._free.append(slot)

    def _grow(self) -> None:
        if len(self._ids) > len(self._at_ms):
            size = max(2 * len(self._at_ms), _SLOTS_MIN)
            self._namespace = _grown(self._namespace, size)
            self._author = _grown(self._author, size)
            self._at_ms = _grown(self._at_ms, size)
            self._expires_ms = _grown(self._expires_ms, size)

    def _allowed(
        self, namespaces: Collection[bytes], author: PeerId | None, now_ms: int
    ) -> NDArray[np.bool_]:
        """Return which slots may be found at all: filters come before every ranking."""
        end = len(self._ids)
        named = np.zeros(len(self._namespaces), np.bool_)
        named[[self._namespaces[one] for one in namespaces if one in self._namespaces]] = True
        allowed: NDArray[np.bool_] = self._expires_ms[:end] > now_ms
        allowed &= named[self._namespace[:end]]
        if author is not None:
            allowed &= self._author[:end] == self._authors.get(author, -1)
        return allowed

    def _best(self, slots: NDArray[np.intp], scores: NDArray[np.float32]) -> list[int]:
        """Return the slots of the highest scores, highest first, equal ones newest first."""
        if len(slots) > RANKED:
            least = np.partition(scores, -RANKED)[-RANKED]
            above, level = slots[scores > least], slots[scores == least]
            room = RANKED - len(above)
            newest = np.argpartition(self._at_ms[level], -room)[-room:]
            kept = np.concatenate([above, level[newest]])
            kept_scores = np.concatenate([scores[scores > least], np.full(room, least)])
        else:
            kept, kept_scores = slots, scores
        order = np.lexsort((-self._at_ms[kept], -kept_scores))
        best: list[int] = kept[order].tolist()
        return best

    def _fused(self, by_words: Sequence[int], by_meaning: Sequence[int]) -> list[Hit]:
        words = {slot: rank for rank, slot in enumerate(by_words, 1)}
        meaning = {slot: rank for rank, slot in enumerate(by_meaning, 1)}
        scores = {slot: fused_score(words.get(slot), meaning.get(slot)) for slot in words | meaning}
        order = sorted(scores, key=lambda one: (-scores[one], -self._at_ms[one], self._ids[one]))
        return [
            Hit(self._ids[slot], scores[slot], words.get(slot), meaning.get(slot)) for slot in order
        ]


def fused_score(*ranks: int | None) -> float:
    """Return the reciprocal rank fusion of ranks from 1; None where a ranking does not name it."""
    return sum(1 / (FUSION_K0 + rank) for rank in ranks if rank is not None)


def _check(passage: Passage) -> None:
    if len(passage.id) != ID_BYTES:
        raise Misuse(f"an id has {ID_BYTES} bytes, not {len(passage.id)}")
    if len(passage.namespace) != NAMESPACE_BYTES:
        raise Misuse(f"a namespace has {NAMESPACE_BYTES} bytes, not {len(passage.namespace)}")
    for name, value in (("at_ms", passage.at_ms), ("expires_ms", passage.expires_ms)):
        if not 0 <= value <= _TIME_MS_MAX:
            raise Misuse(f"{name} must be 0 to 2**63 - 1, not {value}")


def _grown(old: NDArray[Any], size: int) -> NDArray[Any]:
    new = np.zeros(size, old.dtype)
    new[: len(old)] = old
    return new
