"""Which text do tokens make, told as they come? Pure.

Models write bytes: one character may take several tokens, and half of one is never told.
"""

import codecs
from collections.abc import Sequence


class Decoder:
    """One stream of tokens on its way to text.

    Args:
        pieces: the bytes of each token, by its id.
    """

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self._bytes = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        """Return the text that this token completes; what can never become a character is U+FFFD."""
        return self._bytes.decode(self._pieces[token])

    def end(self) -> str:
        """Return one U+FFFD for a character that was begun and is not finished, else nothing."""
        return self._bytes.decode(b"", final=True)
