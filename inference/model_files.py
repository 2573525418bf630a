"""Which model files does this device have? A folder of GGUF files, each beside a note of its
digest.

Every file is probed before an engine may see it, and hashed when it is added; a changed size or
time of change means that it is hashed again. Runs in the calling thread: callers on an event loop
use a worker thread.
"""

import hashlib
import importlib.util
import os
import platform
import shutil
import stat as stat_module
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec
import psutil

from .catalogue import known_by_digest
from .engine import AUTO, CTRANSFORMERS, ModelInfo
from .engine_choice import choose, missing_here, needs_conversion, rank
from .errors import BadModel
from .gguf_header import Header, probe

SUFFIX = ".gguf"
NAME_CHARACTERS_MAX = 64
_NAME_RULE = f"use letters, digits, '.', '_' and '-', at most {NAME_CHARACTERS_MAX}"
_PARTIAL = ".adding-"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk that was probed and hashed."""

    info: ModelInfo
    path: Path
    header: Header
    changed_ns: int
    """When it was changed last, as it was probed: what is changed since is not loaded."""
    overruled: str = ""
    """Why the preferred engine does not run it, if it does not."""
    converted_from: str = ""
    """SHA-256 of the file that it was made from when it was added."""

    def check_unchanged(self) -> None:
        """See that the file is still the one that was checked.

        Raises:
            BadModel: it is not.
        """
        try:
            stat = self.path.stat()
        except OSError as error:
            raise BadModel(f"the file of model {self.info.name} is gone: {error}") from error
        if (stat.st_size, stat.st_mtime_ns) != (self.info.size_bytes, self.changed_ns):
            raise BadModel(
                f"the file of model {self.info.name} was changed since it was checked; remove it and "
                f"add it again: covey models rm {self.info.name}"
            )


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept beside a model file, as JSON."""

    digest: str
    size_bytes: int
    changed_ns: int
    licence: str
    source: str
    converted_from: str = ""
    """SHA-256 of the file that it was made from when it was added."""
    engine: str = AUTO
    """Preferred for this model, whatever is preferred for all."""


def list_models(folder: Path, preferred: str = AUTO) -> tuple[list[ModelFile], dict[str, str]]:
    """Return the sound models in `folder`, each with its engine, those on the preferred one first, and
    why each other file in it is not one, by file name.

    Args:
        folder: of model files.
        preferred: an engine, where a file can run on several, or `auto`.
    """
    found: list[ModelFile] = []
    refused: dict[str, str] = {}
    if not folder.is_dir():
        return found, refused
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            found.append(_load(path, preferred))
        except (BadModel, OSError) as error:
            refused[path.name] = str(error)
    found.sort(key=lambda one: rank(one.info.engine, preferred))
    return found, refused


def add_model(
    source: Path,
    folder: Path,
    *,
    name: str | None = None,
    link: bool = False,
    origin: str = "",
    engine: str = AUTO,
    preferred: str = AUTO,
) -> ModelFile:
    """Copy (or, with `link`, hard-link where possible) a model file into `folder`, whole or not at
    all.

    Args:
        source: a GGUF file.
        folder: of model files.
        name: what tasks call it.
        link: whether the same file may be in both places.
        origin: where it comes from.
        engine: preferred for this model; for ctransformers it is converted if it must be.
        preferred: for all models.

    Raises:
        BadModel: it is not a model, or no engine here can run it; the folder is unchanged.
        OSError: it cannot be read, or there is no room.
    """
    header = _probe(source)
    converts = engine == CTRANSFORMERS and needs_conversion(header, missing_engines())
    if not converts:
        choose(header, missing_engines(), engine)
    if name is not None:
        _check_name(name)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _forget_partial(folder)
    temporary = folder / f"{_PARTIAL}{os.getpid()}-{threading.get_ident()}"
    converted_from = ""
    try:
        if converts:
            converted_from = _convert(source, temporary)
        else:
            _place(source, temporary, link=link)
        # What was placed is judged, not the source: that may have changed meanwhile.
        header = _probe(temporary)
        choose(header, missing_engines(), engine)
        digest = digest_of(temporary)
        known = known_by_digest(digest)
        usual = source.stem.lower() + ("-ct" if converts else "")
        wanted = name or (known.name if known else usual)
        _check_name(wanted)
        target = folder / f"{wanted}{SUFFIX}"
        # A crash between these leaves a file without a note, never one with another file's.
        _note_path(target).unlink(missing_ok=True)
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
        converted_from=converted_from,
        engine=engine,
    )
    _write_note(target, note)
    return _model_file(target, header, note, preferred)


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


def missing_engines() -> dict[str, str]:
    """Return the engines that cannot run on this device whatever the file, and why."""
    has_ctransformers = importlib.util.find_spec("ctransformers") is not None
    return missing_here(platform.machine(), has_ctransformers=has_ctransformers)


def _load(path: Path, preferred: str) -> ModelFile:
    if not _is_name(path.stem):
        raise BadModel(f"{path.stem!r} is no name for a model; rename the file: {_NAME_RULE}")
    # Before anything is read: what changes from here on is seen to have changed.
    stat = _stat(path)
    header = _probe(path)
    note = _read_note(path)
    if note is None or (note.size_bytes, note.changed_ns) != (stat.st_size, stat.st_mtime_ns):
        digest = digest_of(path)
        if note is not None and note.digest != digest:
            raise BadModel(
                "its content is not what was added; remove it and add it again: "
                f"covey models rm {path.stem}"
            )
        if note is None:
            known = known_by_digest(digest)
            licence = known.licence if known else header.licence or "unknown"
            note = Note(digest=digest, size_bytes=0, changed_ns=0, licence=licence, source="found")
        # One that was only touched keeps what was chosen for it.
        note = msgspec.structs.replace(note, size_bytes=stat.st_size, changed_ns=stat.st_mtime_ns)
        _write_note(path, note)
    return _model_file(path, header, note, preferred)


def _model_file(path: Path, header: Header, note: Note, preferred: str) -> ModelFile:
    wanted = preferred if note.engine == AUTO else note.engine
    chosen = choose(header, missing_engines(), wanted)
    info = ModelInfo(
        name=path.stem,
        role="embedding" if header.is_embedding else "text",
        digest=note.digest,
        size_bytes=note.size_bytes,
        licence=note.licence,
        context_tokens=header.context_tokens,
        architecture=header.architecture,
        engine=chosen.engine,
        dimensions=header.width if header.is_embedding else 0,
    )
    overruled = chosen.overruled(wanted)
    return ModelFile(info, path, header, note.changed_ns, overruled, note.converted_from)


def _stat(path: Path) -> os.stat_result:
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise BadModel(f"there is no file {path}") from error
    if stat_module.S_ISDIR(found.st_mode):
        raise BadModel(f"{path} is a folder, not a model file")
    if not stat_module.S_ISREG(found.st_mode):
        # Reading a pipe or a device might never end.
        raise BadModel(f"{path} is a device or a pipe, not a model file")
    return found


def _probe(path: Path) -> Header:
    size = _stat(path).st_size
    with path.open("rb") as file:
        return probe(file, size)


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


def _convert(source: Path, target: Path) -> str:
    """Make a file for ctransformers at `target`; return the SHA-256 of what it was made from."""
    # Imports numpy, which the daemon never needs.
    from .convert_llama import convert

    return convert(source, target)


def _forget_partial(folder: Path) -> None:
    """Remove what a killed process had begun to add."""
    for left in folder.glob(f"{_PARTIAL}*"):
        maker = left.name.removeprefix(_PARTIAL).split("-")[0]
        if not maker.isdecimal() or not psutil.pid_exists(int(maker)):
            left.unlink(missing_ok=True)


def _check_name(name: str) -> None:
    if not _is_name(name):
        raise BadModel(
            f"{name!r} is no name for a model: {_NAME_RULE}: covey models add FILE --name NAME"
        )


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
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _write_note(path: Path, note: Note) -> None:
    temporary = path.with_name(f"{_PARTIAL}{os.getpid()}-{threading.get_ident()}")
    try:
        temporary.write_bytes(msgspec.json.encode(note) + b"\n")
        os.replace(temporary, _note_path(path))
    finally:
        temporary.unlink(missing_ok=True)
