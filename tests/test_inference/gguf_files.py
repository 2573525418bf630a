"""Small GGUF files, sound or wrong in one way, for tests of what refuses them."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
_FORMS = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}
F32_TENSOR, Q8_0_TENSOR = 0, 8

Key = tuple[str, int, Any]
"""Name, type, and value; a list's value is (type of its items, items)."""


@dataclass(frozen=True)
class Tensor:
    """One entry of the tensor table."""

    name: str
    shape: Sequence[int] = (32,)
    kind: int = F32_TENSOR
    offset: int = 0


def keys(architecture: str = "llama", **other: Key | None) -> list[Key]:
    """Return a sound header's keys; `other` replaces (or with None leaves out) one by its short name."""
    usual: dict[str, Key] = {
        "architecture": ("general.architecture", STRING, architecture),
        "name": ("general.name", STRING, "Tiny"),
        "licence": ("general.license", STRING, "mit"),
        "context": (f"{architecture}.context_length", U32, 256),
        "layers": (f"{architecture}.block_count", U32, 2),
        "width": (f"{architecture}.embedding_length", U32, 64),
        "heads": (f"{architecture}.attention.head_count", U32, 4),
        "kv_heads": (f"{architecture}.attention.head_count_kv", U32, 2),
        "tokenizer": ("tokenizer.ggml.model", STRING, "gpt2"),
        "tokens": ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "c"])),
    }
    chosen: Mapping[str, Key | None] = {**usual, **other}
    return [key for key in chosen.values() if key is not None]


def gguf(
    of: Sequence[Key] | None = None,
    tensors: Sequence[Tensor] = (Tensor("token_embd.weight"),),
    *,
    version: int = 3,
    data: bytes = bytes(128),
    alignment: int = 32,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """Return the bytes of a GGUF file; `counts` lies about the numbers of tensors and keys."""
    of = keys() if of is None else of
    head = b"GGUF" + struct.pack("<I", version)
    head += struct.pack("<QQ", *(counts or (len(tensors), len(of))))
    head += b"".join(
        text(name) + struct.pack("<I", kind) + value(kind, it) for name, kind, it in of
    )
    for one in tensors:
        head += text(one.name) + struct.pack("<I", len(one.shape))
        head += struct.pack(f"<{len(one.shape)}Q", *one.shape)
        head += struct.pack("<IQ", one.kind, one.offset)
    return head + bytes(-len(head) % alignment) + data


def text(of: str) -> bytes:
    """Return a text as GGUF writes it."""
    encoded = of.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def value(kind: int, of: Any) -> bytes:
    """Return a value as GGUF writes it, without its type."""
    if kind == STRING:
        return text(of)
    if kind == ARRAY:
        inner, items = of
        return struct.pack("<IQ", inner, len(items)) + b"".join(value(inner, one) for one in items)
    return struct.pack(_FORMS[kind], of)
