"""Which tokens are a text, and which text are tokens? By the model file's own tables.

ctransformers has a tokenizer, which writes past its buffer on what is not ASCII; this takes its place.
"""

from pathlib import Path
from typing import Protocol, TypeVar

from .byte_pair import BytePair
from .decoding import Decoder as Decoder
from .errors import BadModel
from .gguf_tables import Value, read_tables
from .sentence_piece import SentencePiece
from .vocabulary import Vocabulary

_T = TypeVar("_T")
# A file converted for ctransformers has its source's tables under names of ours, since what stands under
# the usual ones is for the library alone.
_CONVERTED, _USUAL = "covey.tokenizer", "tokenizer.ggml"
_LISTS = frozenset(
    {
        f"{_CONVERTED}.tokens", f"{_CONVERTED}.types", f"{_CONVERTED}.merges",
        f"{_USUAL}.tokens", f"{_USUAL}.token_type", f"{_USUAL}.merges", f"{_USUAL}.scores",
    }
)  # fmt: skip
_NAMED = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown"}
# What SentencePiece files mean that do not say it.
_SENTENCE_PIECE_NAMED = {"unk": 0, "bos": 1, "eos": 2}


class Tokenizer(Protocol):
    """Makes tokens of text, and text of tokens."""

    @property
    def vocabulary_size(self) -> int:
        """How many tokens there are; their ids are below."""
        ...

    @property
    def begin(self) -> int | None:
        """The token that the model wants in front of a text; `encode` does not put it there."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """The tokens after which nothing follows."""
        ...

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the text's tokens.

        Args:
            text: any.
            special: names of special tokens in the text are those tokens. Never for what a user wrote.
        """
        ...

    def decoder(self) -> Decoder:
        """Return what makes text of a stream of tokens."""
        ...


def read_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a GGUF file.

    Raises:
        BadModel: it has none that is known here, or its tables contradict each other.
    """
    tables = read_tables(path, _LISTS)
    try:
        return _tokenizer(tables)
    except BadModel as error:
        raise BadModel(f"{path.name}: {error}") from error


def _tokenizer(tables: dict[str, Value]) -> Tokenizer:
    if f"{_CONVERTED}.tokens" in tables:
        return _byte_pair(tables, _CONVERTED, types="types")
    kind = _one(tables, f"{_USUAL}.model", str)
    if kind == "gpt2":
        return _byte_pair(tables, _USUAL, types="token_type")
    if kind == "llama":
        return SentencePiece(
            _vocabulary(tables, _USUAL, "token_type", defaults=_SENTENCE_PIECE_NAMED),
            _numbers(tables, f"{_USUAL}.scores", float),
            prefixed=_one(tables, f"{_USUAL}.add_space_prefix", bool, default=True),
            begins=_one(tables, f"{_USUAL}.add_bos_token", bool, default=True),
        )
    raise BadModel(f"its vocabulary is of kind {kind[:64]!r}; known are gpt2 and llama")


def _byte_pair(tables: dict[str, Value], where: str, *, types: str) -> Tokenizer:
    return BytePair(
        _vocabulary(tables, where, types, defaults={}),
        _texts(tables, f"{where}.merges"),
        _one(tables, f"{where}.pre", str),
        begins=_one(tables, f"{_USUAL}.add_bos_token", bool, default=False),
    )


def _vocabulary(
    tables: dict[str, Value], where: str, types: str, *, defaults: dict[str, int]
) -> Vocabulary:
    tokens = _texts(tables, f"{where}.tokens")
    named = {name: token for name, token in defaults.items() if token < len(tokens)}
    for name, of in _NAMED.items():
        if (key := f"{_USUAL}.{of}_token_id") in tables:
            named[name] = _one(tables, key, int)
    return Vocabulary(tokens, _numbers(tables, f"{where}.{types}", int), named)


def _texts(tables: dict[str, Value], key: str) -> list[str]:
    found = tables.get(key)
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise BadModel(f"it has no list of texts {key}")
    return [one for one in found if isinstance(one, str)]


def _numbers(tables: dict[str, Value], key: str, kind: type[_T]) -> list[_T]:
    found = tables.get(key)
    if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
        raise BadModel(f"it has no list of numbers {key}")
    return [one for one in found if isinstance(one, kind)]


def _one(tables: dict[str, Value], key: str, kind: type[_T], *, default: _T | None = None) -> _T:
    found = tables.get(key, default)
    if not isinstance(found, kind):
        raise BadModel(f"it has no {key} that is a {kind.__name__}")
    return found
