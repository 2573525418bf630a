"""How does all-MiniLM-L6-v2 become a file that llama.cpp loads? From its safetensors and vocabulary
to GGUF, Q8_0.

A program of its own (`python -m covey.inference.convert_minilm SOURCE_DIR TARGET`), run once at
pull, so that the daemon never imports numpy. The same source gives the same bytes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

NAMES = {
    "embeddings.word_embeddings.weight": "token_embd.weight",
    "embeddings.position_embeddings.weight": "position_embd.weight",
    "embeddings.token_type_embeddings.weight": "token_types.weight",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
}
# Looked up by row or added as they are: not worth a loss.
KEPT_WHOLE = ("position_embd.weight", "token_types.weight")


def convert(source: Path, target: Path) -> None:
    """Write the model in folder `source` (config.json, vocab.txt, model.safetensors) to `target`."""
    config = json.loads((source / "config.json").read_text())
    tokens = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
    writer = gguf.GGUFWriter(str(target), "bert")
    writer.add_name("all-MiniLM-L6-v2")
    writer.add_license("apache-2.0")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    _add_vocabulary(writer, tokens, config.get("type_vocab_size", 2))
    for name, tensor in _tensors(source / "model.safetensors"):
        if tensor.ndim == 2 and name not in KEPT_WHOLE:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(tensor, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], types: int) -> None:
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("jina-v2-en")
    # llama.cpp's word pieces: a word's start is marked, its continuation is not.
    writer.add_token_list(
        [
            token
            if _is_special(token)
            else token[2:]
            if token.startswith("##")
            else "\u2581" + token
            for token in tokens
        ]
    )
    kinds = [
        gguf.TokenType.CONTROL if _is_special(token) else gguf.TokenType.NORMAL for token in tokens
    ]
    writer.add_token_types(kinds)
    writer.add_token_type_count(types)
    place = {token: at for at, token in enumerate(tokens)}
    writer.add_bos_token_id(place["[CLS]"])
    writer.add_eos_token_id(place["[SEP]"])
    writer.add_sep_token_id(place["[SEP]"])
    writer.add_unk_token_id(place["[UNK]"])
    writer.add_pad_token_id(place["[PAD]"])
    writer.add_mask_token_id(place["[MASK]"])
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(True)


def _is_special(token: str) -> bool:
    return token.startswith("[") and token.endswith("]") and len(token) > 2


def _tensors(path: Path) -> list[tuple[str, NDArray[np.float32]]]:
    """Return the tensors under their GGUF names, in a fixed order."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header: dict[str, dict[str, Any]] = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    found: list[tuple[str, NDArray[np.float32]]] = []
    for name in sorted(header):
        entry = header[name]
        mapped = _mapped(name)
        if mapped is None:
            continue
        if entry["dtype"] != "F32":
            raise SystemExit(f"tensor {name} is {entry['dtype']}, not F32")
        begin, end = entry["data_offsets"]
        raw = data[8 + size + begin : 8 + size + end]
        shape: list[int] = entry["shape"]
        found.append((mapped, np.frombuffer(raw, dtype=np.float32).reshape(shape)))
    return found


def _mapped(name: str) -> str | None:
    if name.startswith(("pooler.", "embeddings.position_ids")):
        return None
    if name in NAMES:
        return NAMES[name]
    stem, kind = name.rsplit(".", 1)
    if stem in NAMES:
        return f"{NAMES[stem]}.{kind}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[inner]}.{kind}"


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
