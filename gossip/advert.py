"""What does a peer offer, and where is it? Its signed, slow description: an entry of `_mesh/adverts`.

Load is never in an advert: links carry it. An advert carries its author's chain, so that a peer which
has never met the author can judge it, whoever passes it on: the shared memory, or the DHT.
"""

from dataclasses import dataclass

import msgspec

from covey.identity.certificate import Chain
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId
from covey.identity.wire import decode, encode

from .memory.books import Record
from .memory.entry import (
    PAYLOAD_BYTES_MAX,
    Entry,
    Key,
    author_of,
    check_payload,
    hash_of,
    open_entry,
)
from .memory.messages import Item
from .memory.namespace import ADVERTS, MESH, Namespace, namespace_of
from .memory.payload import decode_payload
from .memory.replica import Quotas

ITEMS_MAX = 64
NAME_CHARACTERS_MAX = 128
ADDRESSES_MAX = 16
ADVERT_LIFE_MS = 30 * 86_400_000
# An author signs anew at half of life, so a peer that is in reach now and then never lapses.
RENEW_MS = ADVERT_LIFE_MS // 2
AHEAD_MS_MAX = 5 * 60_000
QUOTAS = Quotas(entries=1, records_a_day=0)
"""Each author has one advert, and nobody takes another's away."""


class ModelOffer(msgspec.Struct, frozen=True, array_like=True):
    """A model that the peer can run."""

    name: str
    role: str
    """`text` or `embedding`."""
    digest: str


class DataOffer(msgspec.Struct, frozen=True, array_like=True):
    """A data source that tasks may use on the peer."""

    name: str
    kind: str


class Advert(msgspec.Struct, frozen=True, array_like=True):
    """One peer's description of itself."""

    incarnation: int
    name: str
    version: str
    addresses: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    data: tuple[DataOffer, ...]
    skills: tuple[str, ...]
    models: tuple[ModelOffer, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What an author says of itself; whether it is a member is for the directory to judge."""

    peer: PeerId
    advert: Advert
    at_ms: int
    """When it said so."""
    key: Key
    """Of two of its author's, the greater counts."""
    chain: Chain
    """By which it is a member."""


def adverts_of(mesh: MeshId) -> Namespace:
    """Return the namespace in which each member of a mesh says what it offers."""
    return namespace_of(mesh, MESH, ADVERTS)


def only_addresses(advert: Advert) -> Advert:
    """Return the advert without what the peer offers: it is found by who knows a name to ask for."""
    return msgspec.structs.replace(advert, labels=(), data=(), skills=(), models=())


def advert_record(peer: PeerId, advert: Advert) -> Record:
    """Return a peer's advert as it is written into the shared memory.

    Raises:
        NotAdmitted: `over-limit`, saying which.
    """
    _check_limits(advert)
    return Record(ADVERTS, peer, encode(advert), ttl_ms=ADVERT_LIFE_MS)


def open_item(item: Item, *, mesh: MeshId) -> Told:
    """Return what a whole entry from elsewhere says, once its signature holds.

    Raises:
        Malformed: it is no advert.
        NotAdmitted: its author did not sign it, or it breaks a limit.
    """
    entry = open_entry(item.header, mesh=mesh)
    if item.payload is None:
        raise Malformed("an advert without its payload")
    check_payload(entry, item.payload)
    return read_advert(entry, item.payload, mesh=mesh)


def read_advert(entry: Entry, payload: bytes, *, mesh: MeshId) -> Told:
    """Return what an entry says whose signature is known to hold.

    Raises:
        Malformed: it is no advert.
        NotAdmitted: `over-limit`: it lists too much.
    """
    header = entry.header
    namespace = adverts_of(mesh)
    peer = author_of(header.author)
    if header.namespace != namespace.id or header.key != hash_of(namespace.id, peer):
        raise Malformed("an advert stands under its author's id in the mesh's adverts")
    held = decode_payload(payload)
    advert = decode(held.record, Advert, limit_bytes=PAYLOAD_BYTES_MAX)
    _check_limits(advert)
    return Told(peer, advert, entry.at_ms, entry.key, held.chain)


def check_age(told: Told, now_ms: int) -> None:
    """Refuse an advert that is out of its time.

    Raises:
        NotAdmitted: `not-yet-valid` or `expired`.
    """
    if told.at_ms > now_ms + AHEAD_MS_MAX:
        raise NotAdmitted("not-yet-valid", "the advert is signed ahead of time")
    if told.at_ms + ADVERT_LIFE_MS < now_ms:
        raise NotAdmitted("expired", "the advert is over its life")


def _check_limits(advert: Advert) -> None:
    groups = (advert.labels, advert.data, advert.skills, advert.models)
    if any(len(group) > ITEMS_MAX for group in groups) or len(advert.addresses) > ADDRESSES_MAX:
        raise NotAdmitted("over-limit", f"an advert lists at most {ITEMS_MAX} of a kind")
    if len(advert.name) > NAME_CHARACTERS_MAX:
        raise NotAdmitted("over-limit", "an advert's name is too long")
