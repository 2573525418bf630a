"""How is a file of LMDB opened, brought to this version, and written anew without what was erased?

Knows nothing of who writes when: `environment.py` does.
"""

import os
import shutil
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from covey.identity.errors import CoveyError, Unavailable

from .schema import Migrate

# Reserved once and sparse: growing a live map is not safe (MEMORY.md 2.2). The file grows as it
# fills.
MAP_BYTES = 64 * 1024**3
MAP_BYTES_MIN = 1024**3
# A copy has at most this many rows in one transaction: with 16 KiB each, 64 MiB of memory.
COPY_ROWS = 4096
# What a copy needs beside the live pages: its own first ones, and room for the commits meanwhile.
COPY_SPARE_BYTES = 1024**2
COMPACTING = "compacting"
"""The folder of a copy that is being made; one that a crash left behind goes at the next start."""
_VERSION_KEY = b"version"


class StoreTooNew(CoveyError):
    """The store was written by a newer covey."""


@dataclass(slots=True)
class Opened:
    """An open LMDB environment, which is closed when the last one that reads in it is gone."""

    environment: lmdb.Environment
    handles: Mapping[StrEnum, Any]
    readers: int = 0
    is_retired: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self) -> bool:
        """Hold it open; False: it is retired, and another has taken its place."""
        with self.lock:
            if self.is_retired:
                return False
            self.readers += 1
            return True

    def leave(self) -> None:
        """Read in it no more."""
        with self.lock:
            self.readers -= 1
            self._close_if_unused()

    def retire(self) -> None:
        """Let it be closed once nobody reads in it."""
        with self.lock:
            self.is_retired = True
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        # To close it under somebody who reads would crash the process.
        if self.is_retired and not self.readers:
            self.environment.close()


def make_folder(path: Path) -> None:
    """Make the folder of a file, without what a crash left behind in it."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (path / COMPACTING).exists():
            shutil.rmtree(path / COMPACTING)
    except OSError as error:
        raise Unavailable(f"the store at {path} cannot be made: {error.strerror}") from error


def open_file(
    path: Path, map_bytes: int, databases: Sequence[StrEnum], *, sync: bool = True
) -> Opened:
    """Open or make the file in `path` with the databases named.

    Raises:
        Unavailable: it cannot be opened.
    """
    size = map_bytes
    dbs = len(databases) + 8
    while True:
        try:
            environment = lmdb.open(
                str(path), map_size=size, max_dbs=dbs, mode=0o600, max_readers=64, sync=sync
            )
            break
        except (MemoryError, lmdb.MemoryError) as error:
            # A system that limits address space, or one of 32 bits.
            size //= 4
            if size < MAP_BYTES_MIN:
                raise Unavailable(f"no address space for the store at {path}") from error
        except lmdb.Error as error:
            raise explained(error, path) from error
    try:
        # All in one: each of its own would be a commit, where they are new.
        with environment.begin(write=True) as transaction:
            handles = {
                one: environment.open_db(one.value.encode(), transaction) for one in databases
            }
    except lmdb.Error as error:
        environment.close()
        raise explained(error, path) from error
    return Opened(environment, handles)


def migrate(opened: Opened, path: Path, migrations: Sequence[Migrate]) -> None:
    """Bring the rows to this version.

    Raises:
        StoreTooNew: a newer covey wrote them.
    """
    newest = len(migrations)
    meta = next(handle for one, handle in opened.handles.items() if one.value == "meta")
    with opened.environment.begin(write=True) as transaction:
        row = transaction.get(_VERSION_KEY, db=meta)
        version = int.from_bytes(row, "big") if row else 0
        if version > newest:
            raise StoreTooNew(
                f"the store at {path} has version {version}, this covey knows up to {newest}; "
                "install the newer covey again"
            )
        for migration in migrations[version:]:
            migration(transaction, opened.handles)
        transaction.put(_VERSION_KEY, newest.to_bytes(4, "big"), db=meta)


def write_anew(opened: Opened, path: Path, map_bytes: int) -> Opened:
    """Write all rows into a new file, which takes the name of the one that is open, and return it.

    A crash at any point leaves the old file or the new one. That the new name lasts is for
    `sync_folder`.

    Raises:
        Unavailable: there is no room.
    """
    folder = path / COMPACTING
    shutil.rmtree(folder, ignore_errors=True)
    _check_room(opened, path)
    try:
        folder.mkdir(mode=0o700)
        _copy(opened, folder, map_bytes)
        fresh = open_file(folder, map_bytes, tuple(opened.handles))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    # LMDB has both files open, and does not mind that they get other names. The old data stays
    # whole until the new takes its name, in one step; a lock file is made right by who opens it.
    try:
        (folder / "lock.mdb").replace(path / "lock.mdb")
        (folder / "data.mdb").replace(path / "data.mdb")
    except OSError:
        fresh.environment.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return fresh


def _check_room(opened: Opened, path: Path) -> None:
    with opened.environment.begin() as transaction:
        stats = [transaction.stat(handle) for handle in opened.handles.values()]
    pages = sum(one["branch_pages"] + one["leaf_pages"] + one["overflow_pages"] for one in stats)
    needed = pages * stats[0]["psize"] + COPY_SPARE_BYTES
    free = shutil.disk_usage(path).free
    if needed > free:
        raise Unavailable(
            f"the store at {path} was not compacted: that needs {needed:,} bytes beside it "
            f"and the disk has {free:,}; free some space and try again"
        )


def _copy(opened: Opened, folder: Path, map_bytes: int) -> None:
    """Write all rows into a new environment in `folder`.

    LMDB's own copy takes pages as they are, and a page keeps what was erased behind the end of
    what is in it: of payloads of 2 to 4 kB one in eighteen was still found (LMDB 0.9.36).
    """
    # Synced once at the end: until then nobody knows of it.
    copy = open_file(folder, map_bytes, tuple(opened.handles), sync=False)
    try:
        with opened.environment.begin() as source:
            for table, handle in opened.handles.items():
                rows = source.cursor(handle).iternext()
                while some := list(islice(rows, COPY_ROWS)):
                    with copy.environment.begin(write=True) as target:
                        target.cursor(copy.handles[table]).putmulti(some, append=True)
        copy.environment.sync(True)
    finally:
        copy.environment.close()


def sync_folder(path: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: lmdb.Error, path: Path) -> Unavailable:
    """Say what an error of LMDB is: a full disk it reports as an input/output error."""
    text = str(error)
    full = isinstance(error, (lmdb.MapFullError, lmdb.DiskError)) or any(
        words in text for words in ("Input/output error", "No space left", "File too large")
    )
    if full:
        return Unavailable(
            f"the disk under {path} is full or failing (LMDB: {text}); nothing acknowledged is lost: "
            "free some space and it goes on"
        )
    return Unavailable(f"the store at {path} cannot be used: {text}")
