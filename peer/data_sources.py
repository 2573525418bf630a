"""What do the named data sources say now?

Their last lines, bounded in size and time. What is read here stays here.
"""

import contextlib
import os
import signal
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import trio

from covey.identity.errors import CoveyError

from .config import DataSource

TAIL_MAX = 2000
READ_BYTES_MAX = 4 * 1024 * 1024
LINE_CHARACTERS_MAX = 4000
# Of a directory: enough for any log that is rotated, and a bound for one that is a heap.
FILES_MAX = 1000
# A disk or a share that does not answer within this is not waited for.
READ_S = 30.0
# A command that writes more than this is not telling its last lines.
OUTPUT_BYTES_MAX = 64 * 1024 * 1024
_CHUNK_BYTES = 64 * 1024
# Threads of their own: a share that hangs must not hold those that the daemon lives on.
_READERS_MAX = 8


class DataUnavailable(CoveyError):
    """A source cannot be read now; says why, to the peer that asked."""


@dataclass(slots=True)
class DataSources:
    """The sources of this device."""

    sources: Mapping[str, DataSource]
    read_bytes: int = field(default=0)
    """Raw bytes read since start."""
    _readers: trio.CapacityLimiter = field(
        default_factory=lambda: trio.CapacityLimiter(_READERS_MAX)
    )

    async def tail(self, name: str, lines: int) -> list[str]:
        """Return the last `lines` non-empty lines of a source.

        Raises:
            DataUnavailable: there is no such source, or it cannot be read now.
        """
        source = self.sources.get(name)
        if source is None:
            raise DataUnavailable(f"this peer has no data source {name!r}")
        wanted = max(1, min(lines, TAIL_MAX))
        try:
            data = await self._read(source, wanted)
        except DataUnavailable as error:
            raise DataUnavailable(f"data source {name!r} {error}") from error
        except FileNotFoundError as error:
            raise DataUnavailable(
                f"data source {name!r} is not there now: {error.strerror}"
            ) from error
        except PermissionError as error:
            raise DataUnavailable(
                f"data source {name!r} may not be read by the daemon's user; give it the right to"
            ) from error
        except OSError as error:
            raise DataUnavailable(
                f"data source {name!r} cannot be read: {error.strerror}"
            ) from error
        self.read_bytes += len(data)
        if b"\0" in data:
            raise DataUnavailable(f"data source {name!r} is not text")
        found = [
            line[:LINE_CHARACTERS_MAX]
            for line in data.decode("utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        if not found:
            raise DataUnavailable(f"data source {name!r} has no lines now")
        return found[-wanted:]

    async def _read(self, source: DataSource, lines: int) -> bytes:
        if source.command:
            return await _output(source)
        with trio.move_on_after(READ_S):
            return await trio.to_thread.run_sync(
                _tail_of_files, source, lines, abandon_on_cancel=True, limiter=self._readers
            )
        raise DataUnavailable(f"did not answer within {READ_S:g} s")


def _tail_of_files(source: DataSource, lines: int) -> bytes:
    if source.file is not None:
        return _tail_of_file(Path(source.file), lines)
    return _tail_of_folder(Path(source.directory or ""), source.pattern, lines)


def _tail_of_file(path: Path, lines: int) -> bytes:
    """Read from the end, only as much as is needed: whole lines, but for one longer than all."""
    if stat.S_ISDIR(mode := path.stat().st_mode):
        raise IsADirectoryError(21, "it is a directory")
    if not stat.S_ISREG(mode):
        # Opening a pipe or a device may wait for ever.
        raise DataUnavailable("is not an ordinary file")
    with path.open("rb") as file:
        end = file.seek(0, 2)
        size = _CHUNK_BYTES
        while True:
            begin = max(0, end - min(size, READ_BYTES_MAX))
            file.seek(begin)
            data = file.read(end - begin)
            if (now := os.fstat(file.fileno()).st_size) < end:
                # Cut while it was read: what lay past the new end may have been read as zeros.
                end = now
                continue
            if begin > 0:
                # Its first line is cut, unless there is no other.
                whole = data[data.find(b"\n") + 1 :]
                data = whole if whole.strip() else data
            if begin == 0 or size >= READ_BYTES_MAX or _count(data) >= lines:
                return data
            size *= 4


def _tail_of_folder(folder: Path, pattern: str, lines: int) -> bytes:
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such directory")
    aged: list[tuple[float, Path]] = []
    for path in folder.glob(pattern):
        # One that was rotated away between the two looks is as good as not there.
        with contextlib.suppress(FileNotFoundError):
            seen = path.stat()
            if stat.S_ISREG(seen.st_mode):
                aged.append((seen.st_mtime, path))
    data = b""
    for _, path in sorted(aged, reverse=True)[:FILES_MAX]:
        with contextlib.suppress(FileNotFoundError):
            tail = _tail_of_file(path, lines)
            data = tail + (b"" if tail.endswith(b"\n") else b"\n") + data
        if len(data) >= READ_BYTES_MAX or _count(data) >= lines:
            break
    return data[-READ_BYTES_MAX:]


def _count(data: bytes) -> int:
    return sum(1 for line in data.splitlines() if line.strip())


async def _output(source: DataSource) -> bytes:
    """Return the end of what a command writes. It, and what it started, has ended after this."""
    tail = bytearray()
    written = 0
    try:
        process = await trio.lowlevel.open_process(
            list(source.command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise DataUnavailable(f"has no command {source.command[0]!r} here") from error
    assert process.stdout is not None
    try:
        with trio.move_on_after(source.timeout_s) as scope:
            async for chunk in process.stdout:
                written += len(chunk)
                tail += chunk
                if len(tail) > 2 * READ_BYTES_MAX:
                    del tail[:-READ_BYTES_MAX]
                if written > OUTPUT_BYTES_MAX:
                    raise DataUnavailable(
                        f"has a command that writes more than {OUTPUT_BYTES_MAX // 1024**2} MiB; "
                        "let it write its last lines only"
                    )
            await process.wait()
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stdout.aclose()
    if scope.cancelled_caught:
        raise DataUnavailable(f"has a command that took more than {source.timeout_s:g} s")
    if process.returncode != 0:
        raise DataUnavailable(f"has a command that ended with {process.returncode}")
    return bytes(tail[-READ_BYTES_MAX:])
