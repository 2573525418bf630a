"""Which terms does a text hold? SQLite's FTS5 tokenizer: case, accents and endings do not count.

It does not know passages or ranks. Terms are what `porter unicode61` makes of a text, so "failures"
and "Failure" are one. What is given is taken as text, never as a query: no character of it is
syntax. The table is in memory and is emptied after each call.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from itertools import chain

from covey.identity.errors import Unavailable

# Too common to tell passages apart. Questions in other languages keep their common words: those
# weigh little by themselves, and only cost some time.
STOP_WORDS = """
a about after again all also am an and any are as at be because been before being both but by can
could did do does doing during each few for from further had has have having he her here hers him
his how i if in into is it its itself just me more most my no nor not of on only or other our out
own same she should so some such than that the their them then there these they this those through
to too under until up very was we were what when where which while who whom why will with would you
your
"""


class Tokenizer:
    """Turns texts into terms. One thread at a time; close it in the end."""

    def __init__(self) -> None:
        try:
            self._database = sqlite3.connect(
                ":memory:", isolation_level=None, check_same_thread=False
            )
            # A forgotten text must be on no disk: nothing is sorted in a temporary file.
            self._database.execute("PRAGMA temp_store = MEMORY")
            self._database.execute(
                "CREATE VIRTUAL TABLE words USING fts5(word, content='', columnsize=0,"
                " tokenize='porter unicode61 remove_diacritics 2')"
            )
            self._database.execute("CREATE VIRTUAL TABLE terms USING fts5vocab(words, 'instance')")
        except sqlite3.Error as error:
            raise Unavailable(f"this SQLite cannot index text: {error}") from error
        self._stop_terms: frozenset[str] = frozenset()
        self._stop_terms = frozenset(chain.from_iterable(self.terms([STOP_WORDS])))

    def close(self) -> None:
        """Let go of the memory. What is asked later is Unavailable."""
        self._database.close()

    def terms(self, texts: Sequence[str]) -> list[Counter[str]]:
        """Return for each text how often it holds each term, without stop words.

        Raises:
            Unavailable: SQLite failed.
        """
        # No term reaches across white space, so a piece that recurs needs one look. A NUL would
        # end the text for SQLite.
        pieces = [text.replace("\0", " ").split() for text in texts]
        distinct = list(dict.fromkeys(chain.from_iterable(pieces)))
        found = dict(zip(distinct, self._terms_of(distinct), strict=True))
        return [Counter(chain.from_iterable([found[one] for one in text])) for text in pieces]

    def _terms_of(self, pieces: Sequence[str]) -> list[list[str]]:
        terms: list[list[str]] = [[] for _ in pieces]
        try:
            # One statement each way. Python's lock is let go at every row that is stepped to, and
            # a busy daemon gives it back after 5 ms: a row for each term would take seconds.
            self._database.execute(
                "INSERT INTO words (rowid, word) SELECT key, value FROM json_each(?)",
                (json.dumps(pieces),),
            )
            try:
                (found,) = self._database.execute(
                    "SELECT group_concat(term || ' ' || doc, char(10)) FROM terms"
                ).fetchone()
            finally:
                self._database.execute("INSERT INTO words (words) VALUES ('delete-all')")
        except sqlite3.Error as error:
            raise Unavailable(f"SQLite could not read the text: {error}") from error
        for line in found.split("\n") if found else ():
            term, _, number = line.partition(" ")
            if term not in self._stop_terms:
                terms[int(number)].append(term)
        return terms
