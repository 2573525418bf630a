"""Where do the entries rest in a pure test? The port `Tables`, in memory and without transactions.

`tests/contracts/test_tables.py` holds it to what the store over LMDB does.
"""

from bisect import bisect_left
from collections.abc import Iterator

from covey.gossip.memory.tables import Table
from covey.identity.errors import Misuse

KEY_BYTES_MAX = 511  # of LMDB, which has no empty key either


class DictTables:
    """Rows by table and key."""

    def __init__(self) -> None:
        self._rows: dict[Table, dict[bytes, bytes]] = {table: {} for table in Table}
        self._keys: dict[Table, list[bytes]] = {table: [] for table in Table}
        self._changes: dict[Table, int] = dict.fromkeys(Table, 0)

    def get(self, table: Table, key: bytes) -> bytes | None:
        """Return a row's value."""
        _check_key(key)
        return self._rows[table].get(key)

    def scan(
        self, table: Table, start: bytes, stop: bytes | None = None, *, reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Give the rows with start <= key < stop; stop None: those that begin with `start`."""
        keys, rows = self._keys[table], self._rows[table]
        changes = self._changes[table]
        first = bisect_left(keys, start)
        if stop is None:
            stop = _after_prefix(start)
        end = len(keys) if stop is None else bisect_left(keys, stop)
        places = range(first, end)
        for place in reversed(places) if reverse else places:
            if self._changes[table] != changes:
                raise RuntimeError(f"the table {table} was changed while it was read")
            key = keys[place]
            yield key, rows[key]

    def put(self, table: Table, key: bytes, value: bytes) -> None:
        """Write a row."""
        _check_key(key)
        rows, keys = self._rows[table], self._keys[table]
        if key not in rows:
            keys.insert(bisect_left(keys, key), key)
        rows[key] = value
        self._changes[table] += 1

    def delete(self, table: Table, key: bytes) -> bool:
        """Erase a row; tell whether there was one."""
        _check_key(key)
        if self._rows[table].pop(key, None) is None:
            return False
        keys = self._keys[table]
        del keys[bisect_left(keys, key)]
        self._changes[table] += 1
        return True

    def rows(self) -> dict[Table, dict[bytes, bytes]]:
        """Return a copy of everything, by table, to compare one replica with another."""
        return {table: dict(rows) for table, rows in self._rows.items()}


def _after_prefix(prefix: bytes) -> bytes | None:
    """Return the least key above all that begin with `prefix`; None: there is no such key."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes((head[-1] + 1,)) if head else None


def _check_key(key: bytes) -> None:
    if not 0 < len(key) <= KEY_BYTES_MAX:
        raise Misuse(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")
