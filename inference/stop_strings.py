"""How much of a text may be told while it is written? What cannot become a stop string any more. Pure.

A stop string may come in several tokens: its possible beginning is held back until the next ones decide.
"""

from collections.abc import Sequence


class StopStrings:
    """Lets text through up to the first stop string; none of that, nor what follows, is told."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [one for one in stop if one]
        self._held = ""
        self.is_found = False

    def feed(self, text: str) -> str:
        """Take in what was written and return what may be told now."""
        if self.is_found:
            return ""
        self._held += text
        places = [at for one in self._stop if (at := self._held.find(one)) >= 0]
        if places:
            self.is_found = True
            told, self._held = self._held[: min(places)], ""
            return told
        keep = max((_overlap(self._held, one) for one in self._stop), default=0)
        told, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        return told

    def end(self) -> str:
        """Return what was held back: no more is coming."""
        told, self._held = self._held, ""
        return told


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
