"""How does a peer begin? Its key, its configuration, and, if it founds one, a new mesh."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from covey.identity.certificate import found_mesh
from covey.identity.envelope import mesh_id_of
from covey.identity.errors import Conflict, Misuse, NotFound
from covey.identity.keys import KEY_BYTES, Keypair, PeerId
from covey.identity.keystore import (
    PASSPHRASE_ENTROPY_BYTES,
    open_root,
    passphrase_of,
    seal_root,
    write_key,
    write_private,
)
from covey.inference.engine import AUTO

from .clock import Clock, SystemEntropy
from .config import (
    Api,
    Config,
    DataSource,
    Listen,
    Models,
    check_name,
    check_zone,
    parse_config,
    write_config,
)
from .home import Home, MeshFile, free_port


@dataclass(frozen=True, slots=True)
class Begun:
    """What `begin` made."""

    peer: PeerId
    mesh: str | None
    """Hex id of the new mesh, if one was founded."""
    passphrase: str | None
    """What opens the mesh's root key: shown once, kept nowhere."""


def begin(
    home: Home,
    *,
    name: str,
    found: str | None,
    zones: Sequence[str] = (),
    labels: Mapping[str, str],
    data: Mapping[str, str],
    engine: str = AUTO,
    listen: str,
    entropy: SystemEntropy,
    clock: Clock,
) -> Begun:
    """Make a peer in `home`.

    Args:
        home: where; must hold no peer yet.
        name: what people call it.
        found: name of a mesh to found, or None.
        zones: that the founder is in; others are granted theirs by its invites.
        labels: of this peer.
        data: name to file or directory.
        engine: what runs models where several engines can.
        listen: `ADDRESS` or `ADDRESS:PORT`.
        entropy: for the keys.
        clock: for the certificate.

    Raises:
        Conflict: there is a peer already.
        Misuse: a name, a path or an address cannot be.
        Unavailable: the home cannot be made.
    """
    if home.is_made:
        raise Conflict(f"{home.path} holds a peer already; choose another COVEY_HOME")
    check_name(name, "name")
    if found is not None:
        check_name(found, "mesh name")
    if zones and found is None:
        raise Misuse(
            "only who founds a mesh chooses its own zones; an invite grants them to others"
        )
    for zone in zones:
        check_zone(zone)
    for key in labels:
        check_name(key, "label")
    address, port = _listen(listen)
    port = port or free_port(address)
    config = Config(
        name=name,
        labels=dict(labels),
        data={one: _source(one, place) for one, place in data.items()},
        listen=Listen(address=address, port=port),
        api=Api(port=_another_port(port)),
        models=Models(engine=engine),
    )
    text = write_config(config)
    # What could not be read back would be found only by the first start.
    parse_config(text, where=str(home.config_file))
    home.make()
    keypair = Keypair(entropy.draw(KEY_BYTES))
    mesh = passphrase = None
    if found is not None:
        mesh, passphrase = _found(home, found, keypair, entropy, zones=zones, now_ms=clock.now_ms())
    home.config_file.write_text(text, encoding="utf-8")
    # The key last: it makes the home count as made.
    write_key(home.key_file, keypair)
    return Begun(keypair.peer_id, mesh, passphrase)


def _found(
    home: Home,
    name: str,
    founder: Keypair,
    entropy: SystemEntropy,
    *,
    zones: Sequence[str],
    now_ms: int,
) -> tuple[str, str]:
    root = Keypair(entropy.draw(KEY_BYTES))
    passphrase = passphrase_of(entropy.draw(PASSPHRASE_ENTROPY_BYTES))
    sealed = seal_root(root, passphrase, salt=entropy.draw(16), nonce=entropy.draw(24))
    mesh = mesh_id_of(root.public_key)
    chain = found_mesh(root, founder.peer_id, now_ms=now_ms, zones=zones)
    write_private(home.root_file, sealed)
    home.write_mesh(MeshFile(mesh, name, chain, ()))
    return mesh.hex(), passphrase


def open_root_of(home: Home, passphrase: str) -> Keypair:
    """Return the mesh's root key, opened; slow on purpose, so call it in a thread. Keep it nowhere.

    Raises:
        NotFound: it is not on this device.
        NotAdmitted: the passphrase does not open it.
    """
    try:
        sealed = home.root_file.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(
            f"the mesh's root key is not on this device; copy it to {home.root_file}, or do this on "
            "the founding device"
        ) from error
    return open_root(sealed, passphrase)


def _listen(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or "]" in port or (":" in address and "]" not in address):
        address, port = text, "0"
    try:
        return address.strip("[]"), int(port)
    except ValueError as error:
        raise Misuse(f"--listen takes ADDRESS or ADDRESS:PORT, not {text!r}") from error


def _another_port(taken: int) -> int:
    """Return a free port of loopback for the API that is not the one to listen on."""
    while (port := free_port("127.0.0.1")) == taken:
        pass
    return port


def _source(name: str, place: str) -> DataSource:
    check_name(name, "data source")
    path = Path(place).expanduser().absolute()
    return DataSource(directory=str(path)) if path.is_dir() else DataSource(file=str(path))
