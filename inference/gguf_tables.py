"""What do a GGUF file's keys hold, lists included? For the few that a tokenizer is made from.

`gguf_header` judges a whole file and passes over its lists; this reads chosen ones, within the same
limits, and trusts as little. Source: the GGUF specification, version 3.
"""

import struct
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from .errors import BadModel
from .gguf_header import ARRAY_ITEMS_MAX, HEADER_BYTES_MAX, KEYS_MAX, STRING_BYTES_MAX

KEY_BYTES_MAX = 1024
_STRING, _ARRAY = 8, 9
# Value types of GGUF and how `struct` calls them.
_FORMS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip

Value = str | int | float | list[str] | list[int] | list[float]


def read_tables(path: Path, lists: Collection[str]) -> dict[str, Value]:
    """Return the file's keys with their values; of lists only those named in `lists`.

    Raises:
        BadModel: naming the first thing wrong.
    """
    try:
        with path.open("rb") as file:
            return _Keys(file).read(lists)
    except OSError as error:
        raise BadModel(f"{path.name} cannot be read: {error.strerror}") from error
    except BadModel as error:
        raise BadModel(f"{path.name}: {error}") from error


class _Keys:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = HEADER_BYTES_MAX

    def read(self, lists: Collection[str]) -> dict[str, Value]:
        magic, version, _, keys = struct.unpack("<4sIQQ", self._take(24))
        if magic != b"GGUF" or version not in (2, 3):
            raise BadModel("not a GGUF file of version 2 or 3")
        if keys > KEYS_MAX:
            raise BadModel(f"it claims {keys} keys, over the limit of {KEYS_MAX}")
        found: dict[str, Value] = {}
        seen: set[str] = set()
        for _ in range(keys):
            key, (kind,) = self._text(KEY_BYTES_MAX), struct.unpack("<I", self._take(4))
            if key in seen:
                raise BadModel(f"key {key[:64]!r} is there twice")
            seen.add(key)
            if kind == _STRING:
                found[key] = self._text(STRING_BYTES_MAX)
            elif kind != _ARRAY:
                found[key] = self._numbers(kind, 1)[0]
            elif key in lists:
                found[key] = self._list()
            else:
                self._pass_list()
        return found

    def _list(self) -> list[str] | list[int] | list[float]:
        kind, items = self._list_head()
        if kind == _STRING:
            return [self._text(STRING_BYTES_MAX) for _ in range(items)]
        return self._numbers(kind, items)

    def _pass_list(self) -> None:
        kind, items = self._list_head()
        if kind == _STRING:
            for _ in range(items):
                self._take(self._length(STRING_BYTES_MAX))
        else:
            self._take(items * struct.calcsize(self._form(kind)))

    def _list_head(self) -> tuple[int, int]:
        kind, items = struct.unpack("<IQ", self._take(12))
        if items > ARRAY_ITEMS_MAX:
            raise BadModel(f"it has a list of {items} items, over the limit of {ARRAY_ITEMS_MAX}")
        return kind, items

    def _text(self, limit: int) -> str:
        taken = self._take(self._length(limit))
        try:
            return taken.decode()
        except UnicodeDecodeError as error:
            raise BadModel(f"a text in it is not UTF-8: {taken[:64]!r}") from error

    def _length(self, limit: int) -> int:
        (length,) = struct.unpack("<Q", self._take(8))
        if length > limit:
            raise BadModel(f"it has a text of {length} bytes, over the limit of {limit}")
        return int(length)

    def _numbers(self, kind: int, count: int) -> list[int] | list[float]:
        form = self._form(kind)
        return list(struct.unpack(f"<{count}{form}", self._take(count * struct.calcsize(form))))

    @staticmethod
    def _form(kind: int) -> str:
        # Standard sizes: without the sign "q" would have what size the machine likes.
        if kind not in _FORMS:
            raise BadModel(f"it has a value of unknown type {kind}")
        return _FORMS[kind]

    def _take(self, size: int) -> bytes:
        # Checked before anything is reserved for it.
        self._left -= size
        taken = self._file.read(size) if self._left >= 0 else b""
        if len(taken) != size:
            raise BadModel("it is cut within its header, or that is too long; fetch it again")
        return taken
