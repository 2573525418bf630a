"""What rows does one transaction see, and what does it change? Named databases within LMDB.

Valid inside the block that gave them, in one thread at a time.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any


class Snapshot:
    """The rows of one moment."""

    def __init__(self, transaction: Any, handles: Mapping[StrEnum, Any]) -> None:
        self._transaction = transaction
        self._handles = handles
        self.last_read: tuple[StrEnum, bytes] | None = None
        """The row that was read last, to say which it was when it proves to be damaged."""

    def get(self, table: StrEnum, key: bytes) -> bytes | None:
        """Return a row's value."""
        self.last_read = (table, key)
        row: bytes | None = self._transaction.get(key, db=self._handles[table])
        return row

    def scan(
        self, table: StrEnum, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the rows with start <= key < stop in key order; stop None: those that begin with `start`.

        The table must not be changed while it is read.
        """
        if stop is None:
            stop = _after_prefix(start)
        elif stop <= start:
            return
        cursor = self._transaction.cursor(self._handles[table])
        # A cursor that found nothing stands nowhere, and would be iterated from an end.
        if reverse:
            found = cursor.prev() if stop and cursor.set_range(stop) else cursor.last()
            rows = cursor.iterprev() if found else ()
        else:
            found = cursor.set_range(start) if start else cursor.first()
            rows = cursor.iternext() if found else ()
        for row in rows:
            key = row[0]
            if key < start or (stop is not None and key >= stop):
                return
            self.last_read = (table, key)
            yield row

    def keys(self, table: StrEnum) -> Iterator[bytes]:
        """Give all keys of a table in order, without reading what they stand for."""
        keys: Iterator[bytes] = self._transaction.cursor(self._handles[table]).iternext(
            values=False
        )
        return keys

    def count(self, table: StrEnum) -> int:
        """Return how many rows a table has."""
        return int(self._transaction.stat(self._handles[table])["entries"])


class Transaction(Snapshot):
    """Rows that may be changed; it sees its own changes."""

    def __init__(self, transaction: Any, handles: Mapping[StrEnum, Any]) -> None:
        super().__init__(transaction, handles)
        # One for each table: where keys follow each other, it need not seek from the root again.
        self._cursors: dict[StrEnum, Any] = {}
        self.changed = False
        """Whether the job that runs has changed anything."""

    def put(self, table: StrEnum, key: bytes, value: bytes) -> None:
        """Write a row."""
        self.changed = True
        cursor = self._cursors.get(table)
        if cursor is None:
            cursor = self._cursors[table] = self._transaction.cursor(self._handles[table])
        cursor.put(key, value)

    def delete(self, table: StrEnum, key: bytes) -> bool:
        """Erase a row; tell whether there was one."""
        self.changed = True
        return bool(self._transaction.delete(key, db=self._handles[table]))


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the least key above all that begin with `prefix`; None: there is none."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,)) if head else None
