"""Under which keys is it known who offers what? Keyed hashes of the names. Pure.

A key is a hash keyed with the mesh, so that the DHT shows no name of a label, a source or a model. It
hides nothing from a member that guesses a name: it can look up what it guesses. Of a narrower zone
nothing has a key.
"""

import hashlib
from typing import Literal

from covey.identity.envelope import MeshId

from .advert import Advert
from .task import Need

Kind = Literal["skill", "model", "label", "data"]
KEY_BYTES = 32


def provider_key(mesh: MeshId, kind: Kind, name: str) -> bytes:
    """Return the key under which those are found that offer `name`; a label's is `key=value`."""
    named = kind.encode() + b"\0" + name.encode(errors="surrogatepass")
    return hashlib.blake2b(
        named, digest_size=KEY_BYTES, key=mesh[:64], person=b"covey/dht/1"
    ).digest()


def keys_of(advert: Advert, mesh: MeshId) -> frozenset[bytes]:
    """Return the keys of everything that a peer offers; a model has its name's and its digest's."""
    named: dict[Kind, list[str]] = {
        "skill": list(advert.skills),
        "label": [f"{key}={value}" for key, value in advert.labels],
        "data": [one.name for one in advert.data],
        "model": [name for one in advert.models for name in (one.name, one.digest)],
    }
    return frozenset(
        provider_key(mesh, kind, name) for kind, names in named.items() for name in names
    )


def keys_for(need: Need, mesh: MeshId) -> tuple[bytes, ...]:
    """Return the keys of everything that a need names, what fewest offer first; none outside `mesh`.

    A data source lies on few peers, a model on more, a label on a group, a skill on most.
    """
    if need.zone != "mesh":
        return ()
    named: dict[Kind, list[str]] = {
        "data": [need.data] if need.data is not None else [],
        "model": [need.model] if need.model is not None else [],
        "label": [f"{key}={value}" for key, value in need.labels],
        "skill": [need.skill],
    }
    return tuple(provider_key(mesh, kind, name) for kind, names in named.items() for name in names)
