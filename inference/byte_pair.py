"""Which tokens is a text to a model of byte pairs? Pure.

Its vocabulary is written in an alphabet of 256 printable letters, one for each byte. A text is cut into
words, and each word's bytes merge in the order in which the pairs were learned. Sources: Sennrich and
others, "Neural Machine Translation of Rare Words with Subword Units", 2016; the byte alphabet of GPT-2;
the cuts of SmolLM as llama.cpp makes them.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import regex  # type: ignore[import-untyped]

from .decoding import Decoder
from .errors import BadModel
from .merging import merged
from .vocabulary import TokenType, Vocabulary

# The library ships no types that a checker can follow.
_regex: Any = regex
# Words that come again are most of a text. A full cache of short ones is some 10 MB.
WORDS_MAX = 32_768
WORD_LETTERS_MAX = 64


def _alphabet() -> list[str]:
    """Return the letter of each byte: itself where that can be seen, else one from U+0100 on."""
    seen = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]


LETTERS = _alphabet()
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}
_IN_LETTERS = dict(enumerate(LETTERS))

_DIGITS = _regex.compile(r"\p{N}|[^\p{N}]+")
# Letters and digits that came with Unicode 16 or later are none to llama.cpp of today: a text that has
# them may be cut otherwise there.
_WORDS = _regex.compile(
    # The last is for one space before what is none.
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)


def _smollm(text: str) -> list[str]:
    """Cut each digit off first: where one follows, spaces before it are at an end."""
    return [word for part in _DIGITS.findall(text) for word in _WORDS.findall(part)]


# By the name that files give to how words are cut: those that were compared with llama.cpp.
CUTS: dict[str, Callable[[str], list[str]]] = {"smollm": _smollm}


class BytePair:
    """A tokenizer of byte pairs; see `Tokenizer`.

    Args:
        vocabulary: its tokens, in the byte alphabet.
        merges: pairs of tokens with a space between, the earliest learned first.
        pre: how words are cut, a key of `CUTS`.
        begins: whether a text begins with the token for that.

    Raises:
        BadModel: the tables do not fit each other, or `pre` is not known.
    """

    def __init__(
        self, vocabulary: Vocabulary, merges: Sequence[str], pre: str, *, begins: bool = False
    ) -> None:
        if pre not in CUTS:
            raise BadModel(f"it cuts words as {pre[:64]!r}; known is {', '.join(CUTS)}")
        self._cut_words = CUTS[pre]
        self._vocabulary = vocabulary
        self._ids = {
            text: token
            for token, text in enumerate(vocabulary.tokens)
            if vocabulary.types[token] == TokenType.NORMAL
        }
        self._ranks = self._read_merges(merges)
        self._pieces = [self._bytes_of(token) for token in range(len(vocabulary.tokens))]
        self._short_word = lru_cache(WORDS_MAX)(self._word)
        self.vocabulary_size = len(vocabulary.tokens)
        self.begin = vocabulary.named.get("bos") if begins else None
        self.ends = vocabulary.ends

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the text's tokens. A byte that has none is left out, as in llama.cpp."""
        tokens: list[int] = []
        for part in self._vocabulary.cut(text, special=special):
            if isinstance(part, int):
                tokens.append(part)
            else:
                for word in self._cut_words(part):
                    is_short = len(word) <= WORD_LETTERS_MAX
                    tokens += self._short_word(word) if is_short else self._word(word)
        return tokens

    def decoder(self) -> Decoder:
        """Return what makes text of a stream of tokens."""
        return Decoder(self._pieces)

    def _word(self, word: str) -> tuple[int, ...]:
        # A surrogate without its other half is no character.
        letters = word.encode("utf-8", errors="replace").decode("latin-1").translate(_IN_LETTERS)
        parts = merged([*letters], self._rank)
        return tuple(self._ids[part] for part in parts if part in self._ids)

    def _rank(self, left: str, right: str) -> float | None:
        return self._ranks.get((left, right))

    def _read_merges(self, merges: Sequence[str]) -> dict[tuple[str, str], int]:
        ranks: dict[tuple[str, str], int] = {}
        for place, merge in enumerate(merges):
            left, _, right = merge.partition(" ")
            if not {left, right, left + right} <= self._ids.keys():
                raise BadModel(f"merge {place} ({merge[:64]!r}) is not of two tokens into a third")
            ranks.setdefault((left, right), place)
        return ranks

    def _bytes_of(self, token: int) -> bytes:
        text, kind = self._vocabulary.tokens[token], self._vocabulary.types[token]
        if kind == TokenType.USER_DEFINED:
            return text.encode()
        if kind != TokenType.NORMAL:
            return b""
        try:
            return bytes(map(_BYTES.__getitem__, text))
        except KeyError as error:
            raise BadModel(f"token {token} ({text[:64]!r}) is not in the byte alphabet") from error
