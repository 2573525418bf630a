"""Where do the entries rest? Ordered rows by table, as one transaction sees them.

The port of `replica.py`, `reading.py` and `values.py`; `peer/memory/store.py` has the real one over LMDB. All
keys below begin with the namespace's 16 bytes, but for DUE, VECTOR and META.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol


class Table(StrEnum):
    """The tables of the memory. `place` is an entry's namespace and key: 56 bytes."""

    ENTRY = "entry"
    """place -> signed header: what is held, in time order"""
    PAYLOAD = "payload"
    """place -> payload"""
    WANTED = "wanted"
    """place -> b"": its payload should be here and is not"""
    SHORT = "short"
    """namespace, short id -> key"""
    HEAD = "head"
    """namespace, slot -> key: the newest entry of each slot"""
    GROUP = "group"
    """namespace, parent hash, key hash, key -> b"": what stands under a path"""
    AGE = "age"
    """namespace, author's first 16 bytes, bucket, key -> b"": an author's entries by age"""
    COUNT = "count"
    """namespace, author's first 16 bytes, bucket -> number, 4 bytes"""
    COVER = "cover"
    """namespace, what (1 byte), target (16 bytes), key -> what the entry of that key does to it"""
    DUE = "due"
    """milliseconds (8 bytes), place -> b"": when to look at an entry again"""
    DOUBLE = "double"
    """namespace, author -> two signed headers of one time: its key is in two places, or it lies"""
    NAMESPACE = "namespace"
    """namespace -> NamespaceRecord"""
    VECTOR = "vector"
    """id, model's name -> float16 vector, made here"""
    META = "meta"
    """b"version" -> integer, 4 bytes"""


class Reading(Protocol):
    """Rows as one moment has them."""

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a row's value."""
        ...

    def scan(
        self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the rows with start <= key < stop in key order; stop None: those that begin with `start`.

        The table must not be changed while it is read.
        """
        ...


class Tables(Reading, Protocol):
    """A transaction that may change rows; it sees its own changes."""

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Write a row."""
        ...

    def delete(self, table: Table, key: bytes) -> bool:
        """Erase a row; tell whether there was one."""
        ...
