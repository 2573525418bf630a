"""A tiny `llama` model file with a SentencePiece vocabulary and random weights, which engines load."""

from collections.abc import Sequence
from pathlib import Path
from random import Random

import gguf
import numpy as np

from covey.inference.vocabulary import TokenType

WIDTH, LAYERS, HEADS, FEED_FORWARD, CONTEXT_TOKENS = 64, 2, 4, 96, 256
BEGIN, END = 1, 2

Piece = tuple[str, float, TokenType]
"""Text, score, type."""

_SAMPLE = """the pump temperature is high and the motor was stopped in 10 20 25 30 minutes error warning
def return self value == None while true print format café naïve 한국 안녕 é è ü 中文 → ° 😀 user assistant"""


def pieces() -> list[Piece]:
    """Return a vocabulary in which several merges compete, some with the same score."""
    control: list[Piece] = [
        ("<unk>", 0.0, TokenType.UNKNOWN),
        ("<s>", 0.0, TokenType.CONTROL),
        ("</s>", 0.0, TokenType.CONTROL),
    ]
    every_byte: list[Piece] = [(f"<0x{byte:02X}>", 0.0, TokenType.BYTE) for byte in range(256)]
    # Two names overlap, and one holds another: which one is found first is visible.
    added: list[Piece] = [
        (name, 0.0, TokenType.USER_DEFINED) for name in ("<tool>", "<tool>.</tool>", "x<tool", "[[")
    ]
    # The first is reached by merges, and llama.cpp does not mind that it is unused.
    unused: list[Piece] = [("ng", -3.0, TokenType.UNUSED), ("<unused0>", 0.0, TokenType.UNUSED)]
    known = {text for text, _, _ in (*control, *every_byte, *added, *unused)}
    random = Random(7)
    normal: dict[str, float] = dict.fromkeys(["▁▁", "▁▁▁▁", "\n\n", "▁=", "==", "--"], -1.0)
    for letter in sorted({*_SAMPLE, *"abcdefghijklmnopqrstuvwxyz0123456789.,:;()=\n▁"} - {" "}):
        normal[letter] = -1000.0
    for word in _SAMPLE.split():
        for whole in (f"▁{word}", word):
            for size in range(2, len(whole) + 1):
                # Few different scores, so that equal ones meet.
                for some in (whole[:size], whole[-size:]):
                    normal.setdefault(some, -float(random.randrange(40)))
    return [
        *control, *every_byte, *added, *unused,
        *((text, score, TokenType.NORMAL) for text, score in normal.items() if text not in known),
    ]  # fmt: skip


def write_llama_file(
    path: Path, vocabulary: Sequence[Piece] | None = None, *, space_prefix: bool | None = None
) -> Path:
    """Write a model that llama.cpp and ctransformers load; what it says is noise, the same each time."""
    of = pieces() if vocabulary is None else list(vocabulary)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny llama of random weights")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _, _ in of])
    writer.add_token_scores([score for _, score, _ in of])
    writer.add_token_types([int(kind) for _, _, kind in of])
    writer.add_bos_token_id(BEGIN)
    writer.add_eos_token_id(END)
    writer.add_unk_token_id(0)
    if space_prefix is not None:
        writer.add_add_space_prefix(space_prefix)
    _add_weights(writer, len(of))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_weights(writer: gguf.GGUFWriter, tokens: int) -> None:
    random = np.random.default_rng(7)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = random.standard_normal((rows, columns)) / np.sqrt(columns)
        writer.add_tensor(f"{name}.weight", values.astype(np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, dtype=np.float32))

    matrix("token_embd", tokens, WIDTH)
    norm("output_norm")
    matrix("output", tokens, WIDTH)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm")
        norm(f"{block}.ffn_norm")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"{block}.{name}", WIDTH, WIDTH)
        matrix(f"{block}.ffn_gate", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_up", FEED_FORWARD, WIDTH)
        matrix(f"{block}.ffn_down", WIDTH, FEED_FORWARD)
