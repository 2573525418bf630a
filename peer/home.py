"""Where does one peer keep its things? The layout of its home, and the lock that only one daemon
holds.

config.toml, key (0600), mesh.cbor, root.sealed (on the founding device), store/, models/, run/
(0700: api.sock, token, lock, daemon.log). Several homes on one machine do not collide.
"""

import contextlib
import fcntl
import os
import socket
import time  # a pause before the lock is tried again; nothing is decided by it
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from covey.identity.envelope import MeshId
from covey.identity.errors import Conflict, Malformed, Misuse, NotFound, Unavailable
from covey.identity.keys import Keypair
from covey.identity.keystore import read_key, write_private
from covey.identity.wire import decode, encode

from .config import Config, ConfigError, parse_config

# A Unix socket's path has at most 107 bytes on Linux and 103 on macOS.
SOCKET_PATH_BYTES_MAX = 103
# Who only asks whether a daemon runs holds the lock for an instant: that is no daemon.
LOCK_TRIES, LOCK_PAUSE_S = 10, 0.01


class MeshFile(msgspec.Struct, frozen=True, array_like=True):
    """Which mesh this peer is in, and by what right."""

    mesh: bytes
    name: str
    chain: tuple[bytes, ...]
    bootstrap: tuple[tuple[str, tuple[str, ...]], ...]
    """(peer, addresses): whom to dial first."""

    @property
    def id(self) -> MeshId:
        """The mesh's id."""
        return MeshId(self.mesh)


@dataclass(frozen=True, slots=True)
class Home:
    """The folder of one peer."""

    path: Path

    @property
    def config_file(self) -> Path:
        """The configuration."""
        return self.path / "config.toml"

    @property
    def key_file(self) -> Path:
        """The peer's key."""
        return self.path / "key"

    @property
    def root_file(self) -> Path:
        """The mesh's root key, sealed; on the founding device only."""
        return self.path / "root.sealed"

    @property
    def mesh_file(self) -> Path:
        """Which mesh, and by what right."""
        return self.path / "mesh.cbor"

    @property
    def store_folder(self) -> Path:
        """The LMDB environment."""
        return self.path / "store"

    @property
    def memory_folder(self) -> Path:
        """Where the shared memory rests."""
        return self.path / "memory"

    @property
    def models_folder(self) -> Path:
        """Model files."""
        return self.path / "models"

    @property
    def run_folder(self) -> Path:
        """What belongs to a running daemon."""
        return self.path / "run"

    @property
    def socket(self) -> Path:
        """The local API's Unix socket."""
        return self.run_folder / "api.sock"

    @property
    def token_file(self) -> Path:
        """The local API's token for TCP."""
        return self.run_folder / "token"

    @property
    def log_file(self) -> Path:
        """What a daemon in the background says."""
        return self.run_folder / "daemon.log"

    @property
    def is_made(self) -> bool:
        """Tell whether `covey init` was run here."""
        return self.key_file.exists() and self.config_file.exists()

    def make(self) -> None:
        """Make the folders.

        Raises:
            Misuse: the path is too long for the socket.
            Unavailable: the folders cannot be made.
        """
        if len(os.fsencode(self.socket)) > SOCKET_PATH_BYTES_MAX:
            raise Misuse(
                f"{self.path} is too long: the socket below it would have more than "
                f"{SOCKET_PATH_BYTES_MAX} bytes; choose a shorter COVEY_HOME"
            )
        try:
            for folder in (self.path, self.run_folder, self.models_folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.run_folder.chmod(0o700)
        except OSError as error:
            raise Unavailable(
                f"{self.path} cannot hold a peer: {error.strerror}; choose another COVEY_HOME"
            ) from error

    def config(self) -> Config:
        """Return the configuration.

        Raises:
            NotFound: there is no peer here yet.
            ConfigError: it cannot be used.
        """
        try:
            text = self.config_file.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise NotFound(
                f"no peer in {self.path}; make one with: covey init --name NAME"
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self.config_file} cannot be read: {error}") from error
        return parse_config(text, where=str(self.config_file))

    def keypair(self) -> Keypair:
        """Return the peer's key."""
        return read_key(self.key_file)

    def mesh(self) -> MeshFile:
        """Return which mesh this peer is in.

        Raises:
            NotFound: none yet.
            Malformed: the file is damaged.
            Unavailable: it cannot be read.
        """
        try:
            data = self.mesh_file.read_bytes()
        except FileNotFoundError as error:
            raise NotFound(
                "this peer is in no mesh yet; join one with: covey join TOKEN"
            ) from error
        except OSError as error:
            raise Unavailable(f"{self.mesh_file} cannot be read: {error.strerror}") from error
        try:
            return decode(data, MeshFile)
        except Malformed as error:
            raise Malformed(f"{self.mesh_file} is damaged: {error}") from error

    def write_mesh(self, mesh: MeshFile) -> None:
        """Store which mesh this peer is in."""
        write_private(self.mesh_file, encode(mesh))

    @contextlib.contextmanager
    def lock(self) -> Generator[None]:
        """Hold this home for as long as the block lasts: one daemon, or one join.

        Raises:
            Conflict: another process holds it.
        """
        self.make()
        handle = os.open(self.run_folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _try_lock(handle):
                pid = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
                raise Conflict(
                    f"a daemon (pid {pid}) is running on {self.path} already; end it with: covey down"
                )
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
            yield
        finally:
            os.close(handle)

    def is_running(self) -> bool:
        """Tell whether a process holds this home now."""
        try:
            handle = os.open(self.run_folder / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False


def _try_lock(handle: int) -> bool:
    """Lock the file, and tell whether that was possible."""
    for left in reversed(range(LOCK_TRIES)):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            if left:
                time.sleep(LOCK_PAUSE_S)
        else:
            return True
    return False


def model_cache() -> Path:
    """Return the folder of fetched models that all homes of this user share."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "covey" / "models"


def free_port(address: str) -> int:
    """Return a TCP port that is free on `address` now.

    Raises:
        Misuse: the address is not this device's.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError as error:
            raise Misuse(f"cannot listen on {address!r}: {error.strerror or error}") from error
        return int(probe.getsockname()[1])
