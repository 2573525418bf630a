"""Which passages mean what a question means? Cosine of every vector, without an index.

Pure: knows slots and unit vectors, not whose passage a slot is or who may read it. `recall.py`
drives it. Every allowed vector is looked at, so that nothing near is missed: 100,000 of 384
dimensions are 154 MB and take 7 ms, which is how fast memory is read. Half the bytes (float16)
would take 86 ms here, because numpy widens them first.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from covey.identity.errors import Misuse

# A vector from another peer went through 16-bit floats; one that is further off was never unit.
LENGTH_TOLERANCE = 0.01
# Below this share, copying out the allowed rows is faster than reading all.
_GATHER_SHARE = 0.2
# Rows copied at a time: 512 of 384 dimensions are 0.8 MB and stay in the cache.
_GATHER_ROWS = 512


class Vectors:
    """One matrix, a row for each slot. Its width is given, or that of the first vector."""

    def __init__(self, dimensions: int | None) -> None:
        if dimensions is not None and dimensions < 1:
            raise Misuse(f"dimensions must be at least 1, not {dimensions}")
        self.dimensions = dimensions
        self._matrix = np.zeros((0, dimensions or 0), np.float32)
        self._held = np.zeros(0, np.bool_)

    def check(self, vectors: Sequence[NDArray[np.float32]]) -> None:
        """Refuse vectors that cannot be held beside each other and those that are.

        Raises:
            Misuse: one is of another size, or not of unit length.
        """
        dimensions = self.dimensions
        for vector in vectors:
            dimensions = dimensions or vector.size
            if vector.ndim != 1 or vector.size != dimensions:
                raise Misuse(f"a vector has {dimensions} dimensions here, not {vector.shape}")
            length = float(np.linalg.norm(vector))
            if not abs(length - 1) <= LENGTH_TOLERANCE:  # so that nan is refused too
                raise Misuse(f"a vector must be of unit length, not {length:.3g}")

    def put(self, slot: int, vector: NDArray[np.float32]) -> None:
        """Hold a checked vector in a slot."""
        if self.dimensions is None:
            self.dimensions = vector.size
            self._matrix = np.zeros((0, vector.size), np.float32)
        if slot >= len(self._held):
            self._grow(slot + 1)
        self._matrix[slot] = vector
        self._held[slot] = True

    def drop(self, slot: int) -> None:
        """Forget the slot's vector, if it has one: much of a text can be read from it."""
        if slot < len(self._held) and self._held[slot]:
            self._matrix[slot] = 0
            self._held[slot] = False

    def near(
        self, question: NDArray[np.float32], allowed: NDArray[np.bool_]
    ) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return the allowed slots that have a vector, and the cosine of each."""
        reach = min(len(allowed), len(self._held))
        slots = np.flatnonzero(allowed[:reach] & self._held[:reach])
        question = np.ascontiguousarray(question, np.float32)
        # vecdot and not `@`: OpenBLAS's product of matrix and vector is half as fast on one thread.
        if len(slots) > _GATHER_SHARE * reach:
            return slots, np.vecdot(self._matrix[:reach], question)[slots]
        cosines = np.empty(len(slots), np.float32)
        for start in range(0, len(slots), _GATHER_ROWS):
            rows = slots[start : start + _GATHER_ROWS]
            cosines[start : start + len(rows)] = np.vecdot(self._matrix[rows], question)
        return slots, cosines

    def _grow(self, size: int) -> None:
        capacity = max(size, 2 * len(self._held), 1024)
        matrix = np.zeros((capacity, self._matrix.shape[1]), np.float32)
        matrix[: len(self._matrix)] = self._matrix
        held = np.zeros(capacity, np.bool_)
        held[: len(self._held)] = self._held
        self._matrix, self._held = matrix, held
