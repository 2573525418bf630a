"""Is this file a model that an engine may see? A probe of GGUF headers that trusts nothing in them.

Native code that loads a crafted file can crash or worse, so it never sees one that this refuses.
Reads the header only; what it cannot catch are changed weights: the digest does. Source: the GGUF
specification, version 3.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, cast

from .architectures import EMBEDDING, TEXT
from .errors import BadModel

KEYS_MAX = 512
TENSORS_MAX = 20_000
STRING_BYTES_MAX = 4 * 1024 * 1024
ARRAY_ITEMS_MAX = 2_000_000
HEADER_BYTES_MAX = 64 * 1024 * 1024
# What a number in the header may be at most; llama.cpp itself takes no more layers.
LAYERS_MAX = 512
WIDTH_MAX = 1 << 20
# Beyond every model's; what a request gets is limited by settings.
CONTEXT_TOKENS_MAX = 1 << 24
# Value types of GGUF: their sizes in bytes; 8 is a string, 9 an array.
_SIZES: Mapping[int, tuple[str, int]] = {
    0: ("<B", 1), 1: ("<b", 1), 2: ("<H", 2), 3: ("<h", 2), 4: ("<I", 4), 5: ("<i", 4),
    6: ("<f", 4), 7: ("<?", 1), 10: ("<Q", 8), 11: ("<q", 8), 12: ("<d", 8),
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_INTEGERS = frozenset({0, 1, 2, 3, 4, 5, 10, 11})
# Tensor types: elements and bytes of a block.
_BLOCKS: Mapping[int, tuple[int, int]] = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17), 40: (64, 36), 41: (128, 18),
}  # fmt: skip
_REMEDY = "fetch it again, or bring another file: covey models add FILE"


@dataclass(frozen=True, slots=True)
class Header:
    """What a model file says of itself."""

    architecture: str
    name: str
    licence: str
    context_tokens: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    kv_width: int
    """Of one head: key and value together."""
    tokenizer: str
    pre: str
    """How a byte-pair vocabulary cuts words."""
    vocabulary: int
    has_chat_template: bool
    tensors: int
    tensor_types: frozenset[int]
    has_output: bool
    """Whether it has an output matrix of its own."""
    is_converted: bool
    """Whether its vocabulary was rewritten for ctransformers (`convert_llama`)."""

    @property
    def is_embedding(self) -> bool:
        """Tell whether it makes vectors rather than text."""
        return self.architecture in EMBEDDING

    @property
    def kv_bytes_per_token(self) -> int:
        """Memory that one token of context takes, in half precision."""
        return self.layers * self.kv_heads * self.kv_width * 2


class _Reader:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._limit = min(size, HEADER_BYTES_MAX)
        self.at = 0

    def take(self, size: int) -> bytes:
        if self.at + size > self._limit:
            raise BadModel(f"the file is cut within its header; {_REMEDY}")
        data = self._file.read(size)
        if len(data) != size:
            raise BadModel(f"the file is cut within its header; {_REMEDY}")
        self.at += size
        return data

    def skip(self, size: int) -> None:
        if self.at + size > self._limit:
            raise BadModel(f"the file is cut within its header; {_REMEDY}")
        self._file.seek(size, 1)
        self.at += size

    def number(self, form: str, size: int) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(size))[0]
        return value

    def u32(self) -> int:
        return int(self.number("<I", 4))

    def u64(self) -> int:
        return int(self.number("<Q", 8))

    def string(self, *, limit: int = STRING_BYTES_MAX) -> str:
        size = self.u64()
        if size > limit:
            raise BadModel(f"a text of {size} bytes in the header, over the limit of {limit}")
        return self.take(size).decode("utf-8", errors="replace")

    def value(self) -> object:
        """Return a value; of a list its length, unless it is one of a number for each layer."""
        kind = self.u32()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array()
        return self._scalar(kind)

    def _scalar(self, kind: int) -> object:
        if kind not in _SIZES:
            raise BadModel(f"a value of unknown type {kind} in the header")
        return self.number(*_SIZES[kind])

    def _array(self) -> int | tuple[int, ...]:
        kind, items = self.u32(), self.u64()
        if items > ARRAY_ITEMS_MAX:
            raise BadModel(
                f"a list of {items} items in the header, over the limit of {ARRAY_ITEMS_MAX}"
            )
        if kind == _STRING:
            for _ in range(items):
                size = self.u64()
                if size > STRING_BYTES_MAX:
                    raise BadModel(f"a text of {size} bytes in the header")
                self.skip(size)
        elif kind in _INTEGERS and items <= LAYERS_MAX:
            return tuple(int(self.number(*_SIZES[kind])) for _ in range(items))
        elif kind in _SIZES:
            self.skip(items * _SIZES[kind][1])
        else:
            raise BadModel(f"a list of unknown type {kind} in the header")
        return items


def probe(file: BinaryIO, size: int) -> Header:
    """Return what the header of a GGUF file of `size` bytes says, once it is found sound.

    Raises:
        BadModel: naming the first thing wrong.
    """
    reader = _Reader(file, size)
    tensors, values = _read_front(reader)
    infos = _read_tensors(reader, tensors)
    alignment = _int(values, "general.alignment", 32)
    if alignment < 8 or alignment > 4096 or alignment & (alignment - 1):
        raise BadModel(f"the header's alignment is {alignment}, not a power of two from 8 to 4096")
    data_at = -(-reader.at // alignment) * alignment
    for name, (_, offset, length) in infos.items():
        if offset % alignment:
            raise BadModel(f"tensor {name[:64]!r} is not aligned")
        if data_at + offset + length > size:
            raise BadModel(
                f"the file is cut: tensor {name[:64]!r} ends beyond its {size} bytes; {_REMEDY}"
            )
    return _header(values, {name: kind for name, (kind, _, _) in infos.items()})


def _read_front(reader: _Reader) -> tuple[int, dict[str, object]]:
    magic = reader.take(4)
    if magic != b"GGUF":
        raise BadModel(f"not a GGUF file: it begins with {magic!r}; {_REMEDY}")
    version = reader.u32()
    if version not in (2, 3):
        raise BadModel(f"GGUF version {version}; versions 2 and 3 (little-endian) are known")
    tensors, keys = reader.u64(), reader.u64()
    if not 0 < tensors <= TENSORS_MAX or keys > KEYS_MAX:
        raise BadModel(
            f"its header claims {tensors} tensors and {keys} keys, more than the {TENSORS_MAX} and "
            f"{KEYS_MAX} allowed: it is damaged; {_REMEDY}"
        )
    values: dict[str, object] = {}
    for _ in range(keys):
        key = reader.string(limit=1024)
        if key in values:
            raise BadModel(f"key {key[:64]!r} twice in the header")
        values[key] = reader.value()
    return tensors, values


def _read_tensors(reader: _Reader, count: int) -> dict[str, tuple[int, int, int]]:
    """Return each tensor's type, offset and length in bytes."""
    infos: dict[str, tuple[int, int, int]] = {}
    for _ in range(count):
        name = reader.string(limit=1024)
        if name in infos:
            raise BadModel(f"tensor {name[:64]!r} twice in the header")
        dimensions = reader.u32()
        if not 1 <= dimensions <= 4:
            raise BadModel(f"tensor {name[:64]!r} has {dimensions} dimensions")
        shape = [reader.u64() for _ in range(dimensions)]
        kind, offset = reader.u32(), reader.u64()
        if kind not in _BLOCKS:
            raise BadModel(f"tensor {name[:64]!r} has unknown type {kind}")
        elements, block_bytes = _BLOCKS[kind]
        if shape[0] % elements or any(not 0 < side < 2**32 for side in shape):
            raise BadModel(f"tensor {name[:64]!r} has an impossible shape")
        total = 1
        for side in shape:
            total *= side
        infos[name] = (kind, offset, total // elements * block_bytes)
    return infos


def _header(values: Mapping[str, object], tensors: Mapping[str, int]) -> Header:
    architecture = values.get("general.architecture", "")
    if not isinstance(architecture, str) or not architecture:
        raise BadModel("the header names no architecture")
    if architecture not in TEXT | EMBEDDING:
        raise BadModel(
            f"architecture {architecture[:64]!r} is not known here; bring a model of another kind, "
            "or a newer covey"
        )

    def number(key: str, default: int, limit: int = WIDTH_MAX) -> int:
        found = _int(values, f"{architecture}.{key}", default)
        if not 0 < found <= limit:
            raise BadModel(f"the header's {key} is {found}, not from 1 to {limit}")
        return found

    width = number("embedding_length", 0)
    heads = number("attention.head_count", 0)
    kv_heads = number("attention.head_count_kv", heads)
    if width % heads or heads % kv_heads:
        raise BadModel(f"{heads} heads ({kv_heads} of keys) do not divide a width of {width}")
    key_width = number("attention.key_length", width // heads)
    value_width = number("attention.value_length", width // heads)
    return Header(
        architecture=architecture,
        name=_text(values, "general.name"),
        licence=_text(values, "general.license"),
        context_tokens=min(number("context_length", 0, 2**64), CONTEXT_TOKENS_MAX),
        layers=number("block_count", 0, LAYERS_MAX),
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        kv_width=key_width + value_width,
        tokenizer=_text(values, "tokenizer.ggml.model"),
        pre=_text(values, "tokenizer.ggml.pre"),
        vocabulary=_int(values, "tokenizer.ggml.tokens", 0),
        has_chat_template="tokenizer.chat_template" in values,
        tensors=len(tensors),
        tensor_types=frozenset(tensors.values()),
        has_output="output.weight" in tensors,
        is_converted="covey.tokenizer.tokens" in values,
    )


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(key, "")
    return value[:128] if isinstance(value, str) else ""


def _int(values: Mapping[str, object], key: str, default: int) -> int:
    """Return a number; of one for each layer the greatest (some layers may have no heads)."""
    value = values.get(key, default)
    if isinstance(value, tuple):
        return max(cast("tuple[int, ...]", value), default=default)
    return value if isinstance(value, int) else default
