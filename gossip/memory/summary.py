"""Which entries does this replica hold, and what is the fingerprint of a range of them? Pure.

The keys lie in sorted blocks. Each block has the sum of its entries' ids modulo 2^256; running
totals over the blocks and within a block are made when first asked for and kept until something
changes before them, so that new entries, whose keys are the greatest, spoil almost nothing. It is
held in memory alone and made anew at start: what is derived cannot be stale after a crash.

The sum is not collision resistant: whoever may write many entries can craft some whose ids sum to
those of others, and so hide an entry from a peer. With a salt that both peers drew for this once,
each id is hashed with it first, and nothing crafted beforehand holds.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate, islice
from operator import eq

from covey.identity.errors import Misuse

from .entry import CLOCK_BYTES, ID_BYTES, KEY_BYTES_TOTAL, Key

FINGERPRINT_BYTES = 16
SALT_BYTES_MAX = 64  # what blake2b takes as a key

END = b"\xff" * (KEY_BYTES_TOTAL + 1)
"""The bound above every key."""

# Small blocks make a fingerprint cheap, large ones an insertion: with 512 the first fingerprints of
# a session took 16 ms, with 64 they take 5 (100,000 keys). A block is cut when twice as long.
_BLOCK_KEYS = 64
_MODULUS_MASK = 2 ** (8 * ID_BYTES) - 1


class Summary:
    """The set of keys that one replica holds of one namespace.

    A range is of the keys with lower <= key < upper. A bound is any string of bytes, commonly the
    start of a key; `b""` is below every key and `END` above every key.
    """

    def __init__(self, keys: Iterable[Key] = (), *, salt: bytes = b"") -> None:
        if len(salt) > SALT_BYTES_MAX:
            raise Misuse(f"a salt has at most {SALT_BYTES_MAX} bytes, not {len(salt)}")
        self._salt = salt
        ordered = sorted(keys)
        if any(map(eq, ordered, islice(ordered, 1, None))):
            ordered = list(dict.fromkeys(ordered))
        self._blocks = [
            ordered[start : start + _BLOCK_KEYS] for start in range(0, len(ordered), _BLOCK_KEYS)
        ]
        self._firsts = [block[0] for block in self._blocks]
        self._sums = [sum(self._values(block)) for block in self._blocks]
        self._length = len(ordered)
        # Totals of all blocks before each, right up to index _settled.
        self._counts_before = [0]
        self._sums_before = [0]
        self._settled = 0
        # For each block the sums of its first 0, 1, 2 ... keys, once asked for.
        self._inner: list[list[int] | None] = [None] * len(self._blocks)

    def __len__(self) -> int:
        return self._length

    def __contains__(self, key: Key) -> bool:
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return False
        block = self._blocks[at]
        place = bisect_left(block, key)
        return place < len(block) and block[place] == key

    def add(self, key: Key) -> bool:
        """Hold `key` too; return whether it is new."""
        if not self._blocks:
            self._insert_block(0, [key])
            self._length = 1
            return True
        at = max(bisect_right(self._firsts, key) - 1, 0)
        block = self._blocks[at]
        place = bisect_left(block, key)
        if place < len(block) and block[place] == key:
            return False
        block.insert(place, key)
        self._firsts[at] = block[0]
        self._sums[at] += self._value(key)
        self._length += 1
        self._spoil(at)
        if len(block) >= 2 * _BLOCK_KEYS:
            tail = block[_BLOCK_KEYS:]
            del block[_BLOCK_KEYS:]
            self._insert_block(at + 1, tail)
            self._sums[at] -= self._sums[at + 1]
        return True

    def discard(self, key: Key) -> bool:
        """Hold `key` no longer; return whether it was held."""
        at = bisect_right(self._firsts, key) - 1
        if at < 0:
            return False
        block = self._blocks[at]
        place = bisect_left(block, key)
        if place == len(block) or block[place] != key:
            return False
        del block[place]
        self._sums[at] -= self._value(key)
        self._length -= 1
        self._spoil(at)
        if not block:
            self._delete_block(at)
        else:
            self._firsts[at] = block[0]
            # Two neighbours that fit into one become one, or a store that is emptied at random
            # would be left with as many blocks as ever.
            if at and len(self._blocks[at - 1]) + len(block) <= _BLOCK_KEYS:
                self._blocks[at - 1] += block
                self._sums[at - 1] += self._sums[at]
                self._delete_block(at)
                self._spoil(at - 1)
        return True

    def fingerprint(self, lower: bytes, upper: bytes) -> tuple[int, bytes]:
        """Return how many keys are in the range, and a digest of 16 bytes of their sum and count."""
        count, total = self._before(upper)
        count_below, total_below = self._before(lower)
        count = max(count - count_below, 0)
        total = (total - total_below) & _MODULUS_MASK if count else 0
        data = total.to_bytes(ID_BYTES, "big") + count.to_bytes(8, "big")
        return count, hashlib.sha256(data).digest()[:FINGERPRINT_BYTES]

    def keys(self, lower: bytes, upper: bytes) -> list[Key]:
        """Return the keys in the range, in order."""
        found: list[Key] = []
        if lower >= upper:
            return found
        first = max(bisect_right(self._firsts, lower) - 1, 0)
        for at in range(first, bisect_left(self._firsts, upper)):
            block = self._blocks[at]
            if lower <= block[0] and block[-1] < upper:
                found += block
            else:
                found += block[bisect_left(block, lower) : bisect_left(block, upper)]
        return found

    def rank(self, bound: bytes) -> int:
        """Return how many keys are below `bound`."""
        self._settle()
        at = bisect_left(self._firsts, bound) - 1
        return 0 if at < 0 else self._counts_before[at] + bisect_left(self._blocks[at], bound)

    def at(self, rank: int) -> Key:
        """Return the key that has exactly `rank` keys below it.

        Raises:
            Misuse: no key has, because fewer are held.
        """
        if not 0 <= rank < self._length:
            raise Misuse(f"a rank among {self._length} keys is 0 to {self._length - 1}, not {rank}")
        self._settle()
        at = bisect_right(self._counts_before, rank) - 1
        return self._blocks[at][rank - self._counts_before[at]]

    def _before(self, bound: bytes) -> tuple[int, int]:
        """Return the count and the sum of all keys below `bound`."""
        self._settle()
        at = bisect_left(self._firsts, bound) - 1
        if at < 0:
            return 0, 0
        block = self._blocks[at]
        place = bisect_left(block, bound)
        if place == len(block):
            return self._counts_before[at + 1], self._sums_before[at + 1]
        inner = self._inner[at]
        if inner is None:
            inner = self._inner[at] = list(accumulate(self._values(block), initial=0))
        return self._counts_before[at] + place, self._sums_before[at] + inner[place]

    def _settle(self) -> None:
        """Make the running totals right again, from the first block that changed."""
        start = self._settled
        if start == len(self._blocks):
            return
        lengths = map(len, self._blocks[start:])
        counts = accumulate(lengths, initial=self._counts_before[start])
        sums = accumulate(self._sums[start:], initial=self._sums_before[start])
        self._counts_before[start:] = counts
        self._sums_before[start:] = sums
        self._settled = len(self._blocks)

    def _spoil(self, at: int) -> None:
        self._inner[at] = None
        self._settled = min(self._settled, at)

    def _insert_block(self, at: int, block: list[Key]) -> None:
        self._blocks.insert(at, block)
        self._firsts.insert(at, block[0])
        self._sums.insert(at, sum(self._values(block)))
        self._inner.insert(at, None)
        self._settled = min(self._settled, at)

    def _delete_block(self, at: int) -> None:
        for column in (self._blocks, self._firsts, self._sums, self._inner):
            del column[at]
        self._settled = min(self._settled, at)
        del self._counts_before[at + 1 :], self._sums_before[at + 1 :]

    def _values(self, block: list[Key]) -> list[int]:
        if self._salt:
            return [self._value(key) for key in block]
        return [int.from_bytes(key[CLOCK_BYTES:], "big") for key in block]

    def _value(self, key: Key) -> int:
        """Return what `key` adds to a sum."""
        entry_id = key[CLOCK_BYTES:]
        if self._salt:
            entry_id = hashlib.blake2b(entry_id, key=self._salt, digest_size=ID_BYTES).digest()
        return int.from_bytes(entry_id, "big")
