"""Which tokens does a model know, and which of them may a text name? Pure.

A model file is not trusted: tables that contradict themselves are refused here, once. Types of tokens
and how special ones are cut out of a text are llama.cpp's.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum

from .errors import BadModel

# They end a turn or a text whatever type the file gives them, as in llama.cpp. Were one of them an
# ordinary token, a user's text could forge it; so it is with what the file says are its ends.
TURN_ENDS = frozenset(
    {
        "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>",
        "<end_of_turn>", "<|end_of_text|>", "<EOT>", "_<EOT>", "< EOT >",
    }
)  # fmt: skip
_TURN_BEGINS = frozenset({"<|im_start|>", "<start_of_turn>", "<|start_header_id|>"})


class TokenType(IntEnum):
    """Of a token, as GGUF counts."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Vocabulary:
    """The tokens of a model, by id.

    Args:
        tokens: their texts, each only once.
        types: numbers of `TokenType`, one each.
        named: ids by what the file says they are for, as `eos`.

    Raises:
        BadModel: the tables do not fit each other.
    """

    def __init__(self, tokens: Sequence[str], types: Sequence[int], named: dict[str, int]) -> None:
        if not tokens:
            raise BadModel("its vocabulary is empty")
        if len(types) != len(tokens):
            raise BadModel(f"it lists {len(tokens)} tokens and {len(types)} types of them")
        if strange := set(types) - set(TokenType):
            raise BadModel(f"it has a token of type {min(strange)}; types are 1 to 6")
        if away := [name for name, token in named.items() if not 0 <= token < len(tokens)]:
            raise BadModel(f"its {away[0]} token is {named[away[0]]}, of {len(tokens)}")
        self.tokens = tuple(tokens)
        self.ids = {text: token for token, text in enumerate(tokens)}
        if len(self.ids) != len(tokens):
            twice = next(text for at, text in enumerate(tokens) if self.ids[text] != at)
            raise BadModel(f"its vocabulary has {twice[:64]!r} twice")
        self.types = [TokenType(kind) for kind in types]
        self.named = named
        begins = {self.ids[text] for text in _TURN_BEGINS & self.ids.keys()}
        if "bos" in named:
            begins.add(named["bos"])
        for token in self.ends | begins:
            self.types[token] = TokenType.CONTROL
        self._always = self._longest_first({TokenType.USER_DEFINED})
        self._special = self._longest_first(
            {TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNKNOWN}
        )

    @property
    def ends(self) -> frozenset[int]:
        """The tokens after which nothing follows."""
        named = {self.named[name] for name in ("eos", "eot", "eom") if name in self.named}
        return frozenset(named | {self.ids[text] for text in TURN_ENDS & self.ids.keys()})

    def cut(self, text: str, *, special: bool) -> list[str | int]:
        """Return the text with what it names in it as tokens.

        What the model's maker added as words is found in every text; special ones only if `special`.
        """
        parts: list[str | int] = [text] if text else []
        for name in self._special if special else self._always:
            # A longer name wins over one that begins before it: not what one search for all would find.
            if name in text:
                parts = [piece for part in parts for piece in self._cut_out(name, part)]
        return parts

    def _cut_out(self, name: str, part: str | int) -> list[str | int]:
        if isinstance(part, int):
            return [part]
        pieces: list[str | int] = []
        for at, rest in enumerate(part.split(name)):
            if at:
                pieces.append(self.ids[name])
            if rest:
                pieces.append(rest)
        return pieces

    def _longest_first(self, types: Collection[TokenType]) -> list[str]:
        names = [
            text
            for text, kind in zip(self.tokens, self.types, strict=True)
            if kind in types and text
        ]
        return sorted(names, key=lambda name: len(name.encode()), reverse=True)
