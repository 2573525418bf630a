"""A peer's home: its folders, its lock, and what it says when something is not there."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.identity.errors import Conflict, Malformed, Misuse, NotFound, Unavailable
from covey.peer.config import ConfigError
from covey.peer.home import (
    SOCKET_PATH_BYTES_MAX,
    Home,
    MeshFile,
    free_port,
    model_cache,
)


@pytest.fixture
def home() -> Iterator[Home]:
    # Short: a socket's path has a limit, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        yield Home(Path(folder) / "home")


def test_a_home_is_its_owners_alone(home: Home) -> None:
    home.make()
    for folder in (home.path, home.run_folder, home.models_folder):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    home.run_folder.chmod(0o755)
    home.make()
    assert stat.S_IMODE(home.run_folder.stat().st_mode) == 0o700
    assert not home.is_made


def test_a_path_too_long_for_the_socket_is_refused_before_anything_is_made(home: Home) -> None:
    longest = SOCKET_PATH_BYTES_MAX - len("/run/api.sock") - len(os.fsencode(home.path)) - 1
    fits, too_long = (Home(home.path / ("x" * length)) for length in (longest, longest + 1))
    with pytest.raises(Misuse, match="choose a shorter COVEY_HOME"):
        too_long.make()
    assert not too_long.path.exists()
    fits.make()


def test_a_path_that_cannot_be_a_folder_says_so(home: Home) -> None:
    home.path.write_text("")
    with pytest.raises(Unavailable, match="choose another COVEY_HOME"):
        home.make()


def test_what_is_not_there_says_how_it_is_made(home: Home) -> None:
    with pytest.raises(NotFound, match="covey init"):
        home.config()
    with pytest.raises(NotFound, match="covey init"):
        home.keypair()
    with pytest.raises(NotFound, match="covey join"):
        home.mesh()
    assert not home.is_running()


def test_what_cannot_be_read_says_which_file(home: Home) -> None:
    home.make()
    home.config_file.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read"):
        home.config()
    home.mesh_file.write_bytes(b"garbage")
    with pytest.raises(Malformed, match=r"mesh\.cbor is damaged"):
        home.mesh()
    home.mesh_file.unlink()
    home.mesh_file.mkdir()
    with pytest.raises(Unavailable, match=r"mesh\.cbor cannot be read"):
        home.mesh()


def test_a_configuration_is_utf_8_whatever_the_locale(home: Home) -> None:
    home.make()
    home.config_file.write_bytes('name = "a"\nlabels.hall = "Köln"'.encode())
    assert home.config().labels == {"hall": "Köln"}


def test_the_mesh_is_stored_whole_and_private(home: Home) -> None:
    home.make()
    mesh = MeshFile(b"m" * 32, "plant", (b"one", b"two"), (("peer", ("/ip4/192.0.2.1/tcp/1",)),))
    home.write_mesh(mesh)
    assert home.mesh() == mesh
    assert home.mesh().id == b"m" * 32
    assert stat.S_IMODE(home.mesh_file.stat().st_mode) == 0o600


# The lock


def lock(home: Home) -> None:
    with home.lock():
        pass


def test_a_home_is_held_by_one_at_a_time_and_the_other_is_told_by_whom(home: Home) -> None:
    with home.lock():
        assert home.is_running()
        with pytest.raises(Conflict, match=rf"\(pid {os.getpid()}\).*covey down"):
            lock(home)
        assert home.is_running(), "who was refused did not let it go"
    assert not home.is_running()
    lock(home)


def test_two_homes_do_not_collide(home: Home) -> None:
    with home.lock(), Home(home.path / "2").lock():
        assert home.is_running()


HOLD = """
import sys, time
from pathlib import Path
from covey.peer.home import Home

with Home(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_held_is_free(home: Home) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(home.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert home.is_running()
        with pytest.raises(Conflict, match=f"pid {process.pid}"):
            lock(home)
        process.send_signal(signal.SIGKILL)
    assert (home.run_folder / "lock").exists(), "its file stays"
    assert not home.is_running()
    lock(home)


def test_asking_whether_a_daemon_runs_does_not_keep_one_from_starting(home: Home) -> None:
    """Who asks holds the lock for an instant."""
    lock(home)
    ask = (
        "import sys; from pathlib import Path; from covey.peer.home import Home\n"
        "home = Home(Path(sys.argv[1])); print('asking', flush=True)\n"
        "while True: home.is_running()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", ask, str(home.path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"asking\n"
        try:
            for _ in range(100):
                lock(home)
        finally:
            process.kill()


# Ports and caches


def test_a_port_is_free_and_an_address_that_is_not_ours_is_refused() -> None:
    assert 0 < free_port("127.0.0.1") < 65536
    with pytest.raises(Misuse, match=r"cannot listen on '192\.0\.2\.1'"):
        free_port("192.0.2.1")
    with pytest.raises(Misuse, match="cannot listen on"):
        free_port("nonsense")


def test_fetched_models_are_shared_by_a_users_homes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert model_cache() == Path("/somewhere/covey/models")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/alice")
    assert model_cache() == Path("/home/alice/.cache/covey/models")
