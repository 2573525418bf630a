"""What is asked is found among what may be seen, and what was forgotten is not found again."""

import math
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from covey.identity.errors import Misuse, Unavailable
from covey.identity.keys import PeerId
from covey.peer.memory.recall import Hit, Passage, Recall
from covey.peer.memory.recall_terms import STOP_WORDS, Tokenizer

PUMPS, OVENS = b"\x01" * 16, b"\x02" * 16
ALICE, BOB = PeerId("alice"), PeerId("bob")
NOW_MS = 1_000_000
EAST, NORTH, WEST = (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)


def id_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def vector_of(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


def turned(degrees: float) -> NDArray[np.float32]:
    return vector_of(math.cos(math.radians(degrees)), math.sin(math.radians(degrees)))


def passage(
    number: int,
    text: str = "",
    *,
    namespace: bytes = PUMPS,
    author: PeerId = ALICE,
    at_ms: int = 1000,
    expires_ms: int = NOW_MS + 1,
    vector: NDArray[np.float32] | None = None,
) -> Passage:
    return Passage(id_of(number), namespace, author, text, at_ms, expires_ms, vector)


def found(
    recall: Recall,
    question: str = "",
    vector: NDArray[np.float32] | None = None,
    *,
    k: int = 10,
    namespaces: Sequence[bytes] = (PUMPS,),
    author: PeerId | None = None,
    now_ms: int = NOW_MS,
) -> list[int]:
    hits = recall.search(question, vector, k=k, namespaces=namespaces, author=author, now_ms=now_ms)
    return [int.from_bytes(hit.id, "big") for hit in hits]


@pytest.fixture
def recall() -> Iterator[Recall]:
    recall = Recall()
    yield recall
    recall.close()


# Words


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("failure", "seal failures"),
        ("Failed", "it was failing"),
        ("PUMPS", "the pump"),
        ("resume", "résumé of the shift"),
        ("e\u0301te\u0301", "été"),
        ("P-12?", "pump p 12"),
        ("Ölpumpe", "olpumpe"),
        ("двигун", "ДВИГУН"),
        ("𐐨", "𐐀 letter"),
    ],
)
def test_case_accents_and_endings_do_not_count(recall: Recall, question: str, text: str) -> None:
    recall.add([passage(1, text), passage(2, "something else")])

    assert found(recall, question) == [1]


@pytest.mark.parametrize(
    "question",
    [
        'pump"',
        '"pump',
        '""pump""',
        "pump*",
        "pum*",
        "^pump",
        "-pump",
        "+pump",
        "NOT pump",
        "(pump",
        "pump)",
        "text:pump",
        "word : pump",
        "{word}:pump",
        "pump AND",
        "pump AND absent",
        "OR pump",
        "NEAR(pump absent, 2)",
        "pump\0seal",
        "pump\ud800",
        "pump'; DROP TABLE words; --",
        "pump\\",
        "%_?:1@pump",
        '["pump"]',
    ],
)
def test_no_character_of_a_question_is_syntax(recall: Recall, question: str) -> None:
    recall.add([passage(1, "the pump"), passage(2, "an oven")])

    assert found(recall, question) == ([] if question == "pum*" else [1])


@pytest.mark.parametrize("question", ["", " \n", "?!", "why is it that they do", "THE the The"])
def test_a_question_of_stop_words_alone_finds_by_meaning_or_nothing(
    recall: Recall, question: str
) -> None:
    recall.add([passage(1, f"why it is that the pump {question}", vector=vector_of(*EAST))])

    assert found(recall, question) == []
    assert found(recall, question, vector_of(*NORTH)) == [1]


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("seal of a pump", "leak of a pump"),
        ("seal seal of the pump", "seal leak of the pump"),
        ("seal", "seal " + "and then the oven was opened by hand " * 3),
        ("seal leak", "seal pump"),
    ],
    ids=["the rarer word", "more often", "in a shorter text", "more of the words"],
)
def test_words_are_ranked_by_rarity_count_and_length(
    recall: Recall, better: str, worse: str
) -> None:
    recall.add([passage(n, "leaks and pumps") for n in range(10, 14)])
    recall.add([passage(1, worse, at_ms=2000), passage(2, better)])

    assert [n for n in found(recall, "seal leak") if n < 10] == [2, 1]


def test_a_word_that_stands_everywhere_still_finds(recall: Recall) -> None:
    recall.add([passage(n, "pump") for n in range(5)])

    assert sorted(found(recall, "pump")) == [0, 1, 2, 3, 4]


def test_a_word_repeated_without_end_counts_for_its_own_passage_alone(recall: Recall) -> None:
    recall.add([passage(1, "pump " * 3000), passage(2, "oven"), passage(3, "door")])
    assert found(recall, "pump") == [1]

    recall.remove([id_of(1)])

    assert found(recall, "pump") == []
    assert sorted(found(recall, "oven door")) == [2, 3]


@given(st.lists(st.text(max_size=30), max_size=4))
@settings(max_examples=150)
def test_terms_are_those_of_the_whole_text_as_fts5_reads_it(texts: list[str]) -> None:
    tokenizer = Tokenizer()
    database = sqlite3.connect(":memory:")
    try:
        database.execute(
            "CREATE VIRTUAL TABLE words USING fts5(word, tokenize="
            "'porter unicode61 remove_diacritics 2')"
        )
        database.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, 'instance')")
        database.executemany(
            "INSERT INTO words (rowid, word) VALUES (?, ?)",
            [(n, text.replace("\0", " ")) for n, text in enumerate([*texts, STOP_WORDS])],
        )
        whole: list[Counter[str]] = [Counter() for _ in [*texts, STOP_WORDS]]
        for term, number in database.execute("SELECT term, doc FROM terms"):
            whole[number][term] += 1
        stop = whole.pop()

        assert tokenizer.terms(texts) == [
            Counter({term: n for term, n in one.items() if term not in stop}) for one in whole
        ]
    finally:
        database.close()
        tokenizer.close()


# Meaning, and both


def test_without_words_the_nearest_comes_first(recall: Recall) -> None:
    recall.add([passage(n, vector=turned(90 * n)) for n in range(3)])

    assert found(recall, "", turned(100)) == [1, 2, 0]


def test_ranks_are_fused_as_one_over_60_plus_rank(recall: Recall) -> None:
    recall.add(
        [
            passage(1, "seal seal", vector=turned(20)),
            passage(2, "seal and pump", vector=turned(10)),
            passage(3, "oven", vector=turned(0)),
            passage(4, "the seal of an oven door"),
        ]
    )

    hits = recall.search("seal", turned(0), k=10, namespaces=[PUMPS], now_ms=NOW_MS)

    assert hits == [
        Hit(id_of(1), 1 / 61 + 1 / 63, 1, 3),
        Hit(id_of(2), 1 / 62 + 1 / 62, 2, 2),
        Hit(id_of(3), 1 / 61, None, 1),
        Hit(id_of(4), 1 / 63, 3, None),
    ]


@pytest.mark.parametrize("share", [0.05, 0.6])
def test_no_nearer_vector_is_missed_whatever_share_may_be_seen(
    recall: Recall, share: float
) -> None:
    seed = np.random.default_rng(1)
    vectors = seed.standard_normal((3000, 8), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    seen = seed.random(3000) < share
    recall.add(
        [passage(n, namespace=PUMPS if seen[n] else OVENS, vector=vectors[n]) for n in range(3000)]
    )

    expected = sorted(np.flatnonzero(seen), key=lambda n: -float(vectors[n] @ vectors[7]))
    assert found(recall, "", vectors[7], k=100) == expected[:100]


@pytest.mark.parametrize("by", ["words", "meaning"])
def test_equal_ones_come_newest_first(recall: Recall, by: str) -> None:
    """Also where more are equal than a ranking names."""
    recall.add([passage(n, "pump", at_ms=n, vector=vector_of(*EAST)) for n in range(150)])

    question, vector = ("pump", None) if by == "words" else ("", vector_of(*EAST))
    assert found(recall, question, vector, k=3) == [149, 148, 147]


def test_a_passage_is_found_by_meaning_once_it_is_embedded(recall: Recall) -> None:
    recall.add([passage(1, "pump"), passage(2, "oven"), passage(3, "door")])
    assert recall.unembedded(2) == [(id_of(1), "pump"), (id_of(2), "oven")]
    assert found(recall, "", vector_of(*EAST)) == []

    recall.embed([(id_of(1), vector_of(*EAST)), (id_of(9), vector_of(*EAST))])

    assert found(recall, "", vector_of(*EAST)) == [1]
    assert recall.unembedded(9) == [(id_of(2), "oven"), (id_of(3), "door")]


# What may be seen


@pytest.mark.parametrize("by", ["words", "meaning"])
@pytest.mark.parametrize(
    "hidden", [{"namespace": OVENS}, {"author": BOB}, {"expires_ms": NOW_MS}], ids=str
)
def test_what_may_not_be_seen_takes_no_place_of_what_may(
    recall: Recall, by: str, hidden: dict[str, Any]
) -> None:
    recall.add([passage(n, "seal", vector=vector_of(*EAST), **hidden) for n in range(300)])
    recall.add([passage(n, "seal of a pump", vector=vector_of(*WEST)) for n in range(300, 305)])

    question, vector = ("seal", None) if by == "words" else ("", vector_of(*EAST))
    hits = found(recall, question, vector, k=5, author=ALICE)

    assert sorted(hits) == [300, 301, 302, 303, 304]


def test_only_the_named_namespaces_and_author_are_searched(recall: Recall) -> None:
    recall.add(
        [
            passage(number, "pump", namespace=namespace, author=author)
            for number, (namespace, author) in enumerate(product((PUMPS, OVENS), (ALICE, BOB)))
        ]
    )

    assert sorted(found(recall, "pump", namespaces=[PUMPS, OVENS])) == [0, 1, 2, 3]
    assert sorted(found(recall, "pump", namespaces=[OVENS, b"\x09" * 16])) == [2, 3]
    assert found(recall, "pump", namespaces=[OVENS], author=BOB) == [3]
    assert found(recall, "pump", namespaces=[]) == []
    assert found(recall, "pump", author=PeerId("carol")) == []


def test_a_passage_is_found_until_the_millisecond_it_expires(recall: Recall) -> None:
    recall.add([passage(1, "pump", expires_ms=5000)])

    assert found(recall, "pump", now_ms=4999) == [1]
    assert found(recall, "pump", now_ms=5000) == []


def test_a_replaced_text_is_found_by_nothing_that_it_was(recall: Recall) -> None:
    recall.add([passage(1, "seal leaks", vector=vector_of(*EAST)), passage(2, "other")])

    recall.add([passage(1, "bearing"), passage(1, "oven door", namespace=OVENS)])

    assert len(recall) == 2
    assert found(recall, "seal leaks bearing", vector_of(*EAST), namespaces=[PUMPS, OVENS]) == []
    assert found(recall, "oven", namespaces=[OVENS]) == [1]
    assert recall.unembedded(9) == [(id_of(2), "other"), (id_of(1), "oven door")]


WORDS = ("pump", "seal", "valve", "leak")
VECTORS = (EAST, NORTH, WEST)
texts = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
numbers = st.integers(1, 6)
namespaces = st.sampled_from((PUMPS, OVENS))
authors = st.sampled_from((ALICE, BOB))
passages = st.builds(
    passage,
    numbers,
    texts,
    namespace=namespaces,
    author=authors,
    at_ms=st.integers(0, 9),
    expires_ms=st.integers(NOW_MS - 5, NOW_MS + 20),
    vector=st.none() | st.sampled_from(VECTORS).map(lambda one: vector_of(*one)),
)


class AgainstAPlainModel(RuleBasedStateMachine):
    """A dict of passages, looked through from end to end, finds the same as the index."""

    def __init__(self) -> None:
        super().__init__()
        self.recall = Recall(2)
        self.model: dict[bytes, Passage] = {}
        self.embedded: set[bytes] = set()
        self.now_ms = NOW_MS

    def teardown(self) -> None:
        self.recall.close()

    @rule(added=st.lists(passages, max_size=4))
    def add(self, added: list[Passage]) -> None:
        self.recall.add(added)
        for one in added:
            self.model[one.id] = one
            (self.embedded.discard if one.vector is None else self.embedded.add)(one.id)

    @rule(ids=st.lists(numbers.map(id_of), max_size=3))
    def remove(self, ids: list[bytes]) -> None:
        self.recall.remove(ids)
        for one in ids:
            self.model.pop(one, None)
            self.embedded.discard(one)

    @rule(ids=st.lists(numbers.map(id_of), max_size=3), vector=st.sampled_from(VECTORS))
    def embed(self, ids: list[bytes], vector: tuple[float, float]) -> None:
        self.recall.embed([(one, vector_of(*vector)) for one in ids])
        self.embedded |= self.model.keys() & set(ids)

    @rule(by_ms=st.integers(1, 6))
    def wait(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule(
        question=texts,
        vector=st.none() | st.sampled_from(VECTORS),
        among=st.sets(namespaces),
        author=st.none() | authors,
        k=st.sampled_from((1, 3, 100)),
    )
    def search(
        self,
        question: str,
        vector: tuple[float, float] | None,
        among: set[bytes],
        author: PeerId | None,
        k: int,
    ) -> None:
        hits = self.recall.search(
            question,
            None if vector is None else vector_of(*vector),
            k=k,
            namespaces=among,
            author=author,
            now_ms=self.now_ms,
        )

        expected = {
            id_
            for id_, one in self.model.items()
            if one.namespace in among
            and author in (None, one.author)
            and one.expires_ms > self.now_ms
            and (
                set(question.split()) & set(one.text.split())
                or (vector is not None and id_ in self.embedded)
            )
        }
        assert len(hits) == min(k, len(expected))
        assert {hit.id for hit in hits} <= expected
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    @invariant()
    def the_same_are_held(self) -> None:
        assert len(self.recall) == len(self.model)
        assert {id_ for id_, _ in self.recall.unembedded(99)} == self.model.keys() - self.embedded


TestAgainstAPlainModel = AgainstAPlainModel.TestCase


# Limits


@pytest.mark.parametrize(
    ("question", "vector", "k", "why"),
    [
        ("pump", None, 0, "k must be 1 to 100, not 0"),
        ("pump", None, 101, "k must be 1 to 100, not 101"),
        ("x" * 1001, None, 5, "at most 1000 characters, not 1001"),
        ("x " * 65, None, 5, "at most 64 words, not 65"),
        ("the " * 65, None, 5, "at most 64 words, not 65"),
        ("x-" * 65, None, 5, "at most 64 words, not 65"),
        ("pump", (1.0, 0.0, 0.0), 5, "a vector has 2 dimensions here, not"),
        ("pump", (2.0, 0.0), 5, "of unit length, not 2"),
        ("pump", (math.nan, 0.0), 5, "of unit length, not nan"),
    ],
)
def test_a_search_out_of_bounds_is_refused(
    question: str, vector: tuple[float, ...] | None, k: int, why: str
) -> None:
    recall = Recall(2)
    with pytest.raises(Misuse, match=why):
        found(recall, question, None if vector is None else vector_of(*vector), k=k)
    recall.close()


def test_the_largest_search_is_answered(recall: Recall) -> None:
    recall.add([passage(n, "x", vector=vector_of(*EAST)) for n in range(101)])

    assert len(found(recall, ("x " * 64).ljust(1000), vector_of(*EAST), k=100)) == 100


@pytest.mark.parametrize(
    "wrong",
    [
        Passage(b"short", PUMPS, ALICE, "pump", 0, NOW_MS, None),
        Passage(id_of(3), b"short", ALICE, "pump", 0, NOW_MS, None),
        passage(3, at_ms=-1),
        passage(3, expires_ms=2**63),
        passage(3, vector=vector_of(1.0, 0.0, 0.0)),
        passage(3, vector=vector_of(1.0, 1.0)),
        passage(3, vector=vector_of(math.inf, 0.0)),
    ],
    ids=["id", "namespace", "time", "expiry", "size", "length", "infinite"],
)
def test_of_a_batch_with_a_wrong_passage_none_is_taken(recall: Recall, wrong: Passage) -> None:
    recall.add([passage(1, "pump", vector=vector_of(*EAST))])

    with pytest.raises(Misuse):
        recall.add([passage(2, "pump"), passage(1, "oven"), wrong])

    assert found(recall, "pump oven") == [1]
    assert len(recall) == 1


def test_of_a_batch_with_a_wrong_vector_none_is_taken(recall: Recall) -> None:
    recall.add([passage(1, "pump"), passage(2, "oven")])

    with pytest.raises(Misuse, match="2 dimensions here"):
        recall.embed([(id_of(1), vector_of(*EAST)), (id_of(2), vector_of(1.0, 0.0, 0.0))])

    assert found(recall, "", vector_of(*EAST)) == []
    assert len(recall.unembedded(9)) == 2


def test_what_sqlite_refuses_is_unavailable(recall: Recall) -> None:
    recall.add([passage(1, "pump")])
    recall.close()

    with pytest.raises(Unavailable, match="SQLite could not read the text"):
        found(recall, "pump")


def test_threads_that_add_and_search_at_once_find_each_their_own(recall: Recall) -> None:
    def work(thread: int) -> list[int]:
        missed: list[int] = []
        for number in range(thread * 1000, thread * 1000 + 60):
            recall.add([passage(number, f"word{number} pump"), passage(number + 500, "gone")])
            recall.remove([id_of(number + 500)])
            if found(recall, f"word{number}") != [number]:
                missed.append(number)
        return missed

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(4))) == [[], [], [], []]
    assert len(recall) == 240
