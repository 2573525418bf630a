"""What do the named data sources say now?

Their last lines, bounded. What is read here stays here.
"""

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
_CHUNK_BYTES = 64 * 1024


class DataUnavailable(CoveyError):
    """A source cannot be read now; says why, to the peer that asked."""


@dataclass(slots=True)
class DataSources:
    """The sources of this device."""

    sources: Mapping[str, DataSource]
    read_bytes: int = field(default=0)
    """Raw bytes read since start."""

    async def tail(self, name: str, lines: int) -> list[str]:
        """Return the last `lines` non-empty lines of a source.

        Raises:
            DataUnavailable: there is no such source, or it cannot be read now.
        """
        source = self.sources.get(name)
        if source is None:
            raise DataUnavailable(f"this peer has no data source {name!r}")
        wanted = max(1, min(lines, TAIL_MAX))
        data = await trio.to_thread.run_sync(_read, name, source, wanted, abandon_on_cancel=True)
        self.read_bytes += len(data)
        found = [
            line[:LINE_CHARACTERS_MAX]
            for line in data.decode("utf-8", errors="replace").splitlines()
            if line.strip()
        ]
        if not found:
            raise DataUnavailable(f"data source {name!r} has no lines now")
        return found[-wanted:]


def _read(name: str, source: DataSource, lines: int) -> bytes:
    try:
        if source.command:
            return _output(source)
        if source.file is not None:
            return _tail_of_file(Path(source.file), lines)
        return _tail_of_folder(Path(source.directory or ""), source.pattern, lines)
    except FileNotFoundError as error:
        raise DataUnavailable(f"data source {name!r} is not there now: {error.strerror}") from error
    except PermissionError as error:
        raise DataUnavailable(
            f"data source {name!r} may not be read by the daemon's user; give it the right to"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(
            f"the command of data source {name!r} took more than {source.timeout_s:g} s"
        ) from error
    except OSError as error:
        raise DataUnavailable(f"data source {name!r} cannot be read: {error.strerror}") from error


def _tail_of_file(path: Path, lines: int) -> bytes:
    """Read from the end, only as much as is needed."""
    with path.open("rb") as file:
        at = file.seek(0, 2)
        data = b""
        while at > 0 and data.count(b"\n") <= lines and len(data) < READ_BYTES_MAX:
            size = min(_CHUNK_BYTES, at)
            at -= size
            file.seek(at)
            data = file.read(size) + data
    kept = data.splitlines(keepends=True)
    return b"".join(kept[-lines:])[-READ_BYTES_MAX:]


def _tail_of_folder(folder: Path, pattern: str, lines: int) -> bytes:
    if not folder.is_dir():
        raise FileNotFoundError(2, "no such directory")
    files = sorted(
        (path for path in folder.glob(pattern) if path.is_file()),
        key=lambda path: path.stat().st_mtime,
    )
    data = b""
    for path in reversed(files):
        data = _tail_of_file(path, lines) + data
        if data.count(b"\n") >= lines:
            break
    return data


def _output(source: DataSource) -> bytes:
    done = subprocess.run(
        list(source.command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=source.timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise OSError(5, f"its command ended with {done.returncode}")
    return done.stdout[-READ_BYTES_MAX:]
