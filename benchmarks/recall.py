"""Recall over 100,000 passages of 300 B: how long a search takes, beside FTS5's own ranking.

The index alone, one thread; then with the question embedded by a worker process. Not in it: the local
API, and reading the ten entries that are shown.
"""

import hashlib
import os
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import trio
from measure import Report, Row, p50, rss_mb, times_ms
from numpy.typing import NDArray

from covey.identity.keys import PeerId
from covey.inference.catalogue import CATALOGUE
from covey.inference.model_files import SUFFIX, add_model, list_models
from covey.inference.pool import open_pool
from covey.inference.worker_process import PoolSettings
from covey.peer.home import model_cache
from covey.peer.memory.recall import Hit, Passage, Recall

DIMENSIONS = 384
WORDS = 48
VOCABULARY = 20_000
NAMESPACES = [bytes([number]) * 16 for number in range(20)]
AUTHORS = [PeerId(f"author-{number}") for number in range(30)]
NOW_MS = 10**9
AIM_MS = 15.0
WHOLE_MS = 30.0
"""With the question embedded."""
EMBED_S = 30.0
SYMPTOMS = ("vibrates", "leaks", "stalls", "overheats", "trips", "drifts", "rattles", "jams")
MACHINES = ("the pump", "a valve", "the feeder", "this motor", "the press", "a gearbox")
BATCH = 1000


@dataclass(frozen=True, slots=True)
class _Corpus:
    """Texts whose words are as unevenly frequent as in a language, and a vector for each."""

    texts: list[str]
    questions: list[str]
    vectors: NDArray[np.float32]


def _corpus(count: int, questions: int) -> _Corpus:
    random = np.random.default_rng(1)
    frequency = 1 / (np.arange(VOCABULARY) + 2.7)
    frequency /= frequency.sum()
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    drawn = random.integers(0, len(syllables), (VOCABULARY, 4))
    lengths = random.integers(1, 5, VOCABULARY)
    words = [
        "".join(syllables[int(one)] for one in drawn[number, : lengths[number]])
        for number in range(VOCABULARY)
    ]

    def texts(number: int, length: int) -> list[str]:
        picked = random.choice(VOCABULARY, (number, length), p=frequency)
        return [" ".join(words[int(one)] for one in picked[row])[:300] for row in range(number)]

    vectors = random.standard_normal((count, DIMENSIONS), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return _Corpus(texts(count, WORDS), texts(questions, 8), vectors)


def bench_recall(report: Report, count: int, searches: int) -> None:
    """Fill an index, then search it with every kind of filter."""
    report.heading(f"Recall: {count} passages of 300 B, {DIMENSIONS} dimensions, one thread")
    corpus = _corpus(count, searches)
    recall = Recall(DIMENSIONS)
    _fill(report, recall, corpus)
    fts5 = _fts5(corpus.texts)

    everywhere: Sequence[bytes] = NAMESPACES
    cases: list[tuple[str, bool, Sequence[bytes], PeerId | None]] = [
        ("words and meaning, all namespaces", True, everywhere, None),
        ("  half of the namespaces", True, NAMESPACES[:10], None),
        ("  a fifth of the namespaces", True, NAMESPACES[:4], None),
        ("  one author of 30", True, everywhere, AUTHORS[3]),
        ("words alone", False, everywhere, None),
    ]
    p95s: dict[str, float] = {}
    for what, with_vector, namespaces, author in cases:
        ours: list[float] = []
        bare: list[float] = []
        for number, question in enumerate(corpus.questions):
            vector = corpus.vectors[number % count] if with_vector else None

            def search(
                question: str = question,
                vector: NDArray[np.float32] | None = vector,
                namespaces: Sequence[bytes] = namespaces,
                author: PeerId | None = author,
            ) -> object:
                return recall.search(
                    question, vector, k=10, namespaces=namespaces, author=author, now_ms=NOW_MS
                )

            ours += times_ms(search, 1)
            if vector is not None:
                bare += times_ms(_one_pass(corpus.vectors, vector), 1)
            elif number % 10 == 0:  # a tenth: it is slow
                bare += times_ms(_ranked_by_fts5(fts5, question), 1)
        baseline = "one pass over vectors" if with_vector else "FTS5 bm25"
        p95s[what.strip()] = _p95(ours)
        report.add(
            Row(
                f"{what}, p50 (p95)",
                f"{p50(ours):.1f} ms ({_p95(ours):.1f})",
                f"{baseline} {p50(bare):.1f} ms ({_p95(bare):.1f})",
                f"{p50(ours) / p50(bare):.2f} x",
                f"p95 <= {AIM_MS:.0f} ms",
                _p95(ours) <= AIM_MS,
            )
        )
    report.facts["recall"] = {"passages": count, "p95_ms": p95s}
    trio.run(_embedding, report, recall, corpus)
    fts5.close()
    recall.close()


async def _embedding(report: Report, recall: Recall, corpus: _Corpus) -> None:
    """Measure what a user waits for: the question is embedded by a worker, then searched for."""
    (known,) = [one for one in CATALOGUE if one.is_default and one.role == "embedding"]
    whole: list[float] = []
    embedding: list[float] = []
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        path = model_cache() / f"{known.name}-{known.digest[:16]}{SUFFIX}"
        add_model(path, Path(folder), link=True)
        files, refused = list_models(Path(folder))
        assert not refused, refused
        # As the daemon has it: one core is left to everything else.
        async with open_pool(PoolSettings(threads=max(1, (os.cpu_count() or 2) - 1))) as pool:
            pool.offer(files, {"embedding": known.name})
            await pool.embed(("warm",), deadline_s=EMBED_S)
            for number, made_up in enumerate(corpus.questions):
                # Of words that the model knows, and two of the passages'.
                symptom = SYMPTOMS[number % len(SYMPTOMS)]
                machine = MACHINES[number // len(SYMPTOMS) % len(MACHINES)]
                question = (
                    f"why is it that {machine} {symptom} after {' '.join(made_up.split()[:2])}"
                )
                started = perf_counter()
                (vector,) = await pool.embed((question,), deadline_s=EMBED_S)
                embedded = perf_counter()
                hits = await trio.to_thread.run_sync(
                    _searching(recall, question, np.asarray(vector, dtype=np.float32))
                )
                whole.append((perf_counter() - started) * 1000)
                embedding.append((embedded - started) * 1000)
                assert len(hits) == 10
    report.add(
        Row(
            "a question embedded and answered, p50 (p95)",
            f"{p50(whole):.1f} ms ({_p95(whole):.1f})",
            f"embedding alone {p50(embedding):.1f} ms ({_p95(embedding):.1f})",
            f"{p50(whole) / p50(embedding):.2f} x",
            f"p95 <= {WHOLE_MS:.0f} ms",
            _p95(whole) <= WHOLE_MS,
        )
    )
    report.facts["recall_embedded"] = {
        "p50_ms": p50(whole),
        "p95_ms": _p95(whole),
        "embedding_p50_ms": p50(embedding),
        "embedding_p95_ms": _p95(embedding),
    }


def _searching(
    recall: Recall, question: str, vector: NDArray[np.float32]
) -> Callable[[], Sequence[Hit]]:
    return lambda: recall.search(
        question, vector, k=10, namespaces=NAMESPACES, author=None, now_ms=NOW_MS
    )


def _fill(report: Report, recall: Recall, corpus: _Corpus) -> None:
    count = len(corpus.texts)
    ids = [hashlib.sha256(number.to_bytes(8, "big")).digest() for number in range(count)]
    passages = [
        Passage(
            ids[number],
            NAMESPACES[number % len(NAMESPACES)],
            AUTHORS[number // 7 % len(AUTHORS)],
            text,
            number,
            # One in 50 has expired.
            NOW_MS + (1 if number % 50 else 0),
            None,
        )
        for number, text in enumerate(corpus.texts)
    ]
    before = rss_mb(os.getpid())
    started = perf_counter()
    for start in range(0, count, BATCH):
        recall.add(passages[start : start + BATCH])
    rate = count / (perf_counter() - started)
    words = rss_mb(os.getpid())
    for start in range(0, count, BATCH):
        rows = range(start, min(start + BATCH, count))
        recall.embed([(ids[number], corpus.vectors[number]) for number in rows])
    vectors = rss_mb(os.getpid())
    report.add(Row("passages indexed by words", f"{rate:.0f} /s"))
    report.add(Row("memory: words, vectors", f"{words - before:.0f}, {vectors - words:.0f} MB"))


def _fts5(texts: Sequence[str]) -> sqlite3.Connection:
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE passages USING fts5(text, tokenize='porter unicode61')")
    database.executemany("INSERT INTO passages (text) VALUES (?)", [(text,) for text in texts])
    database.commit()
    return database


def _one_pass(vectors: NDArray[np.float32], question: NDArray[np.float32]) -> Callable[[], object]:
    """Read every vector once: no exact search by meaning is faster."""
    return lambda: np.vecdot(vectors, question)


def _ranked_by_fts5(database: sqlite3.Connection, question: str) -> Callable[[], object]:
    match = " OR ".join(f'"{word}"' for word in question.split())
    query = "SELECT rowid FROM passages WHERE passages MATCH ? ORDER BY rank LIMIT 10"
    return lambda: database.execute(query, (match,)).fetchall()


def _p95(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.95))]


if __name__ == "__main__":
    bench_recall(Report(), count=int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, searches=200)
