"""Which model files does this device have? A folder of GGUF files, each beside a note of its
digest.

Every file is probed before an engine may see it, and hashed when it is added; a changed size or
time of change means that it is hashed again. Runs in the calling thread: callers on an event loop
use a worker thread.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from .catalogue import known_by_digest
from .engine import ModelInfo
from .errors import BadModel
from .gguf_header import Header, probe
from .pool import ModelFile

SUFFIX = ".gguf"
NAME_CHARACTERS_MAX = 64
_CHUNK_BYTES = 1 << 20
OnProgress = Callable[[int, int], None]
"""Told (bytes done, bytes in all)."""


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a model file, as JSON."""

    digest: str
    size_bytes: int
    changed_ns: int
    licence: str
    source: str


def list_models(folder: Path) -> tuple[list[ModelFile], dict[str, str]]:
    """Return the sound models in `folder`, and why each other file in it is not one, by file name."""
    found: list[ModelFile] = []
    refused: dict[str, str] = {}
    if not folder.is_dir():
        return found, refused
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            found.append(_load(path))
        except (BadModel, OSError) as error:
            refused[path.name] = str(error)
    return found, refused


def add_model(
    source: Path, folder: Path, *, name: str | None = None, link: bool = False, origin: str = ""
) -> ModelFile:
    """Copy (or, with `link`, hard-link where possible) a model file into `folder`, whole or not at
    all.

    Raises:
        BadModel: it is not a model; the folder is unchanged.
        OSError: it cannot be read, or there is no room.
    """
    header = _probe(source)
    digest = digest_of(source)
    known = known_by_digest(digest)
    wanted = name or (known.name if known else source.stem.lower())
    if not _is_name(wanted):
        raise BadModel(
            f"{wanted!r} is no name for a model: use letters, digits, '.', '_' and '-', at most "
            f"{NAME_CHARACTERS_MAX}: covey models add FILE --name NAME"
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target = folder / f"{wanted}{SUFFIX}"
    temporary = folder / f".{wanted}.{os.getpid()}"
    try:
        _place(source, temporary, link=link)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    stat = target.stat()
    note = Note(
        digest=digest,
        size_bytes=stat.st_size,
        changed_ns=stat.st_mtime_ns,
        licence=known.licence if known else header.licence or "unknown",
        source=origin or str(source),
    )
    _write_note(target, note)
    return _model_file(target, header, note)


def remove_model(name: str, folder: Path) -> bool:
    """Delete a model and its note; False if there is none."""
    target = folder / f"{name}{SUFFIX}"
    if not _is_name(name) or not target.exists():
        return False
    target.unlink()
    _note_path(target).unlink(missing_ok=True)
    return True


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _load(path: Path) -> ModelFile:
    header = _probe(path)
    stat = path.stat()
    note = _read_note(path)
    if note is None or (note.size_bytes, note.changed_ns) != (stat.st_size, stat.st_mtime_ns):
        digest = digest_of(path)
        if note is not None and note.digest != digest:
            raise BadModel(
                "its content is not what was added; remove it and add it again: "
                f"covey models rm {path.stem}"
            )
        known = known_by_digest(digest)
        licence = known.licence if known else header.licence or "unknown"
        note = Note(
            digest=digest,
            size_bytes=stat.st_size,
            changed_ns=stat.st_mtime_ns,
            licence=licence,
            source="found",
        )
        _write_note(path, note)
    return _model_file(path, header, note)


def _model_file(path: Path, header: Header, note: Note) -> ModelFile:
    info = ModelInfo(
        name=path.stem,
        role="embedding" if header.is_embedding else "text",
        digest=note.digest,
        size_bytes=note.size_bytes,
        licence=note.licence,
        context_tokens=header.context_tokens,
        architecture=header.architecture,
    )
    return ModelFile(info, path, header)


def _probe(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return probe(file, path.stat().st_size)
    except FileNotFoundError as error:
        raise BadModel(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise BadModel(f"{path} is a folder, not a model file") from error


def _place(source: Path, target: Path, *, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
        except OSError:
            # Another file system, or one without links: a copy does as well.
            pass
        else:
            return
    with source.open("rb") as reader, target.open("xb") as writer:
        shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
        writer.flush()
        os.fsync(writer.fileno())


def _is_name(name: str) -> bool:
    allowed = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    return (
        0 < len(name) <= NAME_CHARACTERS_MAX and set(name) <= allowed and not name.startswith(".")
    )


def _note_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_note(path: Path) -> Note | None:
    try:
        return msgspec.json.decode(_note_path(path).read_bytes(), type=Note)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write_note(path: Path, note: Note) -> None:
    _note_path(path).write_bytes(msgspec.json.encode(note) + b"\n")
