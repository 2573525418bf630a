"""Which tokens is a text to a model of SentencePiece? Pure.

Characters merge into the piece with the highest score, until none is in the vocabulary; what is no piece
then is written byte by byte. Sources: Kudo and Richardson, "SentencePiece", 2018; llama.cpp, for the order
of merges and where a space is put in front.
"""

import math
import re
from collections.abc import Sequence

from .decoding import Decoder
from .errors import BadModel
from .merging import merged
from .vocabulary import TokenType, Vocabulary

SPACE = "\u2581"
"""Stands for a space in pieces."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# What a text may become of itself. llama.cpp takes control tokens, too, if merges happen to lead there.
_OF_TEXT = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED})


class SentencePiece:
    """A tokenizer of pieces with scores; see `Tokenizer`.

    Args:
        vocabulary: its pieces.
        scores: one for each; the higher the sooner is it made.
        prefixed: whether a space is put in front of a text, and behind each token named in it.
        begins: whether a text begins with the token for that.

    Raises:
        BadModel: the tables do not fit each other.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        scores: Sequence[float],
        *,
        prefixed: bool = True,
        begins: bool = True,
    ) -> None:
        size = len(vocabulary.tokens)
        if len(scores) != size:
            raise BadModel(f"it lists {size} tokens and {len(scores)} scores of them")
        if not all(map(math.isfinite, scores)):
            raise BadModel("it has a token whose score is no number")
        self._vocabulary = vocabulary
        self._scores = scores
        self._ids = {
            text: token
            for token, text in enumerate(vocabulary.tokens)
            if vocabulary.types[token] in _OF_TEXT
        }
        self._byte_ids: dict[int, int] = {}
        self._pieces = [self._bytes_of(token) for token in range(size)]
        self._prefix = " " if prefixed else ""
        self.vocabulary_size = size
        self.begin = vocabulary.named.get("bos") if begins else None
        self.ends = vocabulary.ends

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the text's tokens. A byte that has none is the unknown token, or left out."""
        tokens: list[int] = []
        for part in self._vocabulary.cut(text, special=special):
            if isinstance(part, int):
                tokens.append(part)
            else:
                for piece in merged([*(self._prefix + part).replace(" ", SPACE)], self._rank):
                    tokens += self._tokens_of(piece)
        return tokens

    def decoder(self) -> Decoder:
        """Return what makes text of a stream of tokens; a space in front is told as one."""
        return Decoder(self._pieces)

    def _rank(self, left: str, right: str) -> float | None:
        token = self._ids.get(left + right)
        return None if token is None else -self._scores[token]

    def _tokens_of(self, piece: str) -> list[int]:
        token = self._ids.get(piece)
        if token is not None:
            return [token]
        unknown = self._vocabulary.named.get("unk")
        # A surrogate without its other half is no character.
        found = [self._byte_ids.get(byte, unknown) for byte in piece.encode(errors="replace")]
        return [one for one in found if one is not None]

    def _bytes_of(self, token: int) -> bytes:
        text, kind = self._vocabulary.tokens[token], self._vocabulary.types[token]
        if kind == TokenType.BYTE:
            named = _BYTE.fullmatch(text)
            if named is None:
                raise BadModel(
                    f"token {token} ({text[:64]!r}) is a byte by its type, not by its text"
                )
            byte = int(named[1], 16)
            self._byte_ids[byte] = token
            return bytes([byte])
        if kind in (TokenType.NORMAL, TokenType.USER_DEFINED):
            return text.replace(SPACE, " ").encode()
        return b""
