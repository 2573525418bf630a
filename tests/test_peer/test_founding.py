"""How a peer begins: what `covey init` makes, and what it refuses before it has made anything."""

import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.identity.certificate import check_chain
from covey.identity.envelope import mesh_id_of
from covey.identity.errors import Conflict, Misuse
from covey.identity.keystore import open_root
from covey.peer.clock import Clock, SystemEntropy
from covey.peer.config import DataSource
from covey.peer.founding import Begun, begin
from covey.peer.home import Home


@pytest.fixture
def home() -> Iterator[Home]:
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        yield Home(Path(folder) / "home")


def begun(
    home: Home,
    *,
    name: str = "line-1",
    found: str | None = None,
    labels: dict[str, str] | None = None,
    data: dict[str, str] | None = None,
    listen: str = "127.0.0.1",
) -> Begun:
    return begin(
        home,
        name=name,
        found=found,
        labels=labels or {},
        data=data or {},
        listen=listen,
        entropy=SystemEntropy(),
        clock=Clock(),
    )


def test_a_peer_has_a_key_of_its_own_and_a_configuration_and_no_mesh_yet(home: Home) -> None:
    made = begun(home, labels={"line": "1"})
    assert home.is_made
    assert home.keypair().peer_id == made.peer
    assert stat.S_IMODE(home.key_file.stat().st_mode) == 0o600
    config = home.config()
    assert (config.name, config.labels) == ("line-1", {"line": "1"})
    assert config.listen.address == "127.0.0.1"
    assert 0 != config.listen.port != config.api.port != 0
    assert (made.mesh, made.passphrase) == (None, None)
    assert not home.mesh_file.exists()


def test_a_founder_is_the_admin_of_a_new_mesh_whose_root_only_the_passphrase_opens(
    home: Home,
) -> None:
    made = begun(home, found="plant")
    mesh = home.mesh()
    assert (mesh.name, mesh.id.hex()) == ("plant", made.mesh)
    now_ms = Clock().now_ms()
    member = check_chain(mesh.chain, mesh=mesh.id, subject=made.peer, now_ms=now_ms)
    assert member.role == "admin"
    assert made.passphrase is not None
    root = open_root(home.root_file.read_bytes(), made.passphrase)
    assert mesh_id_of(root.public_key) == mesh.id
    assert all(made.passphrase.encode() not in one.read_bytes() for one in home.path.glob("*.*"))


def test_what_is_there_already_is_not_touched(home: Home) -> None:
    begun(home)
    before = {path: path.read_bytes() for path in home.path.iterdir() if path.is_file()}
    with pytest.raises(Conflict, match="choose another COVEY_HOME"):
        begun(home, name="other")
    assert {path: path.read_bytes() for path in before} == before


def test_data_is_taken_as_a_file_or_a_directory_by_what_it_is(home: Home, tmp_path: Path) -> None:
    begun(home, data={"log": str(tmp_path / "not-yet.log"), "logs": str(tmp_path)})
    assert home.config().data == {
        "log": DataSource(file=str(tmp_path / "not-yet.log")),
        "logs": DataSource(directory=str(tmp_path)),
    }


@pytest.mark.parametrize(
    ("listen", "address", "port"),
    [
        ("127.0.0.1", "127.0.0.1", None),
        ("127.0.0.1:4001", "127.0.0.1", 4001),
        ("0.0.0.0:4001", "0.0.0.0", 4001),
        ("[::1]:4001", "::1", 4001),
        ("[::1]", "::1", None),
        ("::1", "::1", None),
    ],
)
def test_where_to_listen_is_an_address_with_or_without_a_port(
    home: Home, listen: str, address: str, port: int | None
) -> None:
    begun(home, listen=listen)
    found = home.config().listen
    assert found.address == address
    assert found.port == port if port is not None else 0 < found.port < 65536


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"name": "line 1"}, "name 'line 1': use letters"),
        ({"found": "my plant"}, "mesh name 'my plant': use letters"),
        ({"labels": {"a b": "c"}}, "label 'a b': use letters"),
        ({"labels": {"line": "x" * 200}}, "at most 128 characters"),
        ({"data": {"../log": "x"}}, r"data source '\.\./log': use letters"),
        ({"listen": "127.0.0.1:http"}, "--listen takes ADDRESS or ADDRESS:PORT"),
        ({"listen": "127.0.0.1:70000"}, "listen.port is 0 to 65535, not 70000"),
        ({"listen": "192.0.2.1"}, r"cannot listen on '192\.0\.2\.1'"),
        ({"listen": "example.org:4001"}, "listen.address is an IP address"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(
    home: Home, changed: dict[str, str], complaint: str
) -> None:
    with pytest.raises(Misuse, match=complaint):
        begun(home, **changed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert not home.path.exists()


def test_who_was_interrupted_begins_again(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.make()
    home.root_file.write_bytes(b"of a mesh that nobody has heard of")
    home.config_file.write_text("name = ")
    made = begun(home, found="plant")
    assert home.mesh().id.hex() == made.mesh
    assert home.config().name == "line-1"
