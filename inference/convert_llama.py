"""How does a llama model with a byte-pair vocabulary become a file that ctransformers loads?

Its weights stay as they are. The vocabulary is written the way that SentencePiece would, token by
token under the same ids, since ctransformers knows no other; the output matrix, if it is shared
with the embedding, is written a second time. The tables that the text is really tokenised with
(see `tokenizer`) go along under keys of ours. The same source gives the same bytes.

A program of its own (`python -m covey.inference.convert_llama SOURCE_DIR TARGET`), so that the
daemon never imports numpy.
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf

from .byte_pair import LETTERS
from .engine_choice import PRES, TENSORS
from .errors import BadModel
from .gguf_header import Header, probe
from .gguf_tables import read_tables
from .model_files import digest_of
from .tokenizer import read_tokenizer

TOKENS, TYPES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "merges"))
# Of the tokenizer's keys: the ids that mean something, and whether one is put in front.
KEPT = tuple(
    f"tokenizer.ggml.{name}"
    for name in (
        "bos_token_id",
        "eos_token_id",
        "unknown_token_id",
        "padding_token_id",
        "add_bos_token",
        "add_space_prefix",
    )
)
# The writer has its own for these.
_OWN_OF_FILE = frozenset({"general.architecture", "general.alignment"})
OWN = "covey.tokenizer"
_NORMAL, _UNUSED, _BYTE = 1, 5, 6
_SPACE = "\u2581"
_BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def convert(source: Path, target: Path) -> str:
    """Write a model for ctransformers, whole or not at all; return the SHA-256 of its source.

    Raises:
        BadModel: it cannot be converted; says why.
    """
    tables = _tables_of(source)
    digest = digest_of(source)
    # Begins as the target's does: who cleans up after a killed process finds both.
    temporary = target.with_name(f"{target.name}.converting")
    try:
        _write(source, temporary, tables, digest)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return digest


def _tables_of(source: Path) -> dict[str, Any]:
    try:
        with source.open("rb") as file:
            header = probe(file, source.stat().st_size)
    except OSError as error:
        raise BadModel(f"{source.name} cannot be read: {error.strerror}") from error
    if (why := _why_not(header)) is not None:
        raise BadModel(f"{source.name} is not converted: {why}")
    # Tables that contradict each other are refused there, once.
    read_tokenizer(source)
    tables: dict[str, Any] = read_tables(source, (TOKENS, TYPES, MERGES))
    if not tables[MERGES]:
        raise BadModel(f"{source.name} is not converted: its list of merges is empty")
    return tables


def _why_not(header: Header) -> str | None:
    if header.architecture != "llama":
        return f"only llama models are, not {header.architecture}"
    if header.tokenizer != "gpt2" or header.pre not in PRES:
        kind = f"{header.tokenizer!r} ({header.pre or 'no kind of byte pairs named'})"
        return f"only byte-pair vocabularies of kind {', '.join(sorted(PRES))} are, not {kind}"
    if strange := header.tensor_types - TENSORS:
        return f"ctransformers does not know tensors of type {min(strange)}"
    return None


def _write(source: Path, target: Path, tables: dict[str, Any], digest: str) -> None:
    reader: Any = gguf.GGUFReader(str(source))
    writer: Any = gguf.GGUFWriter(str(target), "llama")
    try:
        for key, field in sorted(reader.fields.items()):
            is_scalar = len(field.types) == 1
            is_model = key.startswith(("general.", "llama.")) and key not in _OWN_OF_FILE
            if is_scalar and (is_model or key in KEPT):
                writer.add_key_value(key, field.contents(), field.types[0])
        pieces, scores, kinds = vocabulary(tables[TOKENS], tables[TYPES], tables[MERGES])
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces)
        writer.add_token_scores(scores)
        writer.add_token_types(kinds)
        writer.add_string(f"{OWN}.pre", tables["tokenizer.ggml.pre"])
        writer.add_array(f"{OWN}.tokens", tables[TOKENS])
        writer.add_array(f"{OWN}.types", tables[TYPES])
        writer.add_array(f"{OWN}.merges", tables[MERGES])
        writer.add_string("covey.source.sha256", digest)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        for name, tensor in tensors.items():
            writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
        if "output.weight" not in tensors:
            if (shared := tensors.get("token_embd.weight")) is None:
                raise BadModel(f"{source.name} is not converted: it has no token_embd.weight")
            writer.add_tensor("output.weight", shared.data, raw_dtype=shared.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def vocabulary(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str]
) -> tuple[list[str], list[float], list[int]]:
    """Return pieces, scores and types as SentencePiece would write them, by the same ids.

    Args:
        tokens: in GPT-2's byte alphabet.
        types: 1 for an ordinary token; any other stays as it is.
        merges: two tokens with a space between, the first merge first.
    """
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        ranks.setdefault(merge.replace(" ", "", 1), rank)
    pieces: list[str] = []
    scores: list[float] = []
    kinds: list[int] = []
    seen: set[str] = set()
    for number, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        piece, written = (token, kind) if kind != _NORMAL else _piece(token, number)
        if piece in seen:
            piece, written = f"<dup{number}>", _UNUSED
        while piece in seen:
            piece = f"<{piece}>"
        seen.add(piece)
        pieces.append(piece)
        kinds.append(written)
        scores.append(float(-ranks.get(token, 0)) if written == _NORMAL else 0.0)
    return pieces, scores, kinds


def _piece(token: str, number: int) -> tuple[str, int]:
    """Return one ordinary token's text, and its type."""
    data = bytes(_BYTES[letter] for letter in token)
    if len(data) == 1 and not 32 <= data[0] <= 126:
        return f"<0x{data[0]:02X}>", _BYTE
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return f"<part{number}>", _UNUSED
    return (text.replace(" ", _SPACE), _NORMAL) if text else (f"<part{number}>", _UNUSED)


def main() -> None:
    """Convert the one model in a folder."""
    (source,) = Path(sys.argv[1]).glob("*.gguf")
    try:
        convert(source, Path(sys.argv[2]))
    except BadModel as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
