"""What time is it, and where does chance come from? The only reader of wall clock and entropy."""

import os
import random
import time


class Clock:
    """Wall time of this device."""

    def now_ms(self) -> int:
        """Return unix milliseconds."""
        return time.time_ns() // 1_000_000


class SystemEntropy:
    """Entropy of the operating system."""

    def draw(self, size_bytes: int) -> bytes:
        """Return that many unpredictable bytes."""
        return os.urandom(size_bytes)

    def random(self) -> random.Random:
        """Return a generator for jitter; never for keys."""
        return random.Random(os.urandom(16))
