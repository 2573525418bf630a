"""Keys, a mesh, and members of it, for tests of the pure cores."""

from typing import Any

from covey.gossip.advert import (
    ADVERT_LIFE_MS,
    Advert,
    DataOffer,
    ModelOffer,
    Told,
    adverts_of,
    open_item,
)
from covey.gossip.directory import Directory
from covey.gossip.memory import books
from covey.gossip.memory.hybrid_clock import COUNTER_BITS
from covey.gossip.memory.messages import Item
from covey.gossip.memory.namespace import ADVERTS
from covey.gossip.memory.payload import SALT_BYTES
from covey.identity.certificate import Chain, Member, check_chain, found_mesh, issue
from covey.identity.envelope import MeshId, mesh_id_of
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import encode

NOW_MS = 1_790_000_000_000
ROOT = Keypair(b"\xee" * 32)
MESH = mesh_id_of(ROOT.public_key)
ADMIN = Keypair(b"\xdd" * 32)
ADMIN_CHAIN = found_mesh(ROOT, ADMIN.peer_id, now_ms=NOW_MS)
OTHER_ROOT = Keypair(b"\xcc" * 32)
OTHER_MESH = mesh_id_of(OTHER_ROOT.public_key)


def key(number: int) -> Keypair:
    """Return the key of member `number`."""
    return Keypair(number.to_bytes(32, "big"))


def chain_of(
    keypair: Keypair,
    *,
    mesh: MeshId = MESH,
    now_ms: int = NOW_MS,
    zones: tuple[str, ...] = (),
) -> Chain:
    """Return the chain that makes it a member."""
    return (
        *ADMIN_CHAIN,
        issue(ADMIN, keypair.peer_id, mesh=mesh, role="member", now_ms=now_ms, zones=zones),
    )


def item_of(
    keypair: Keypair,
    *,
    number: int = 1,
    incarnation: int = 1,
    at_ms: int = NOW_MS,
    chain: Chain | None = None,
    name: str = "",
    labels: tuple[tuple[str, str], ...] = (),
    data: tuple[str, ...] = (),
    skills: tuple[str, ...] = ("covey.echo",),
    models: tuple[str, ...] = (),
    zones: tuple[str, ...] = (),
) -> Item:
    """Return a member's advert on its way; of two of one time the greater `number` is the newer one."""
    advert = Advert(
        incarnation=incarnation,
        name=name or keypair.peer_id[-6:],
        version="0.1.0",
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        labels=labels,
        data=tuple(DataOffer(one, "file") for one in data),
        skills=skills,
        models=tuple(ModelOffer(one, "text", "00" * 32) for one in models),
    )
    chain = chain_of(keypair, zones=zones) if chain is None else chain
    return signed_item(keypair, advert, chain, clock=(at_ms << COUNTER_BITS) + number)


def signed_item(
    keypair: Keypair, advert: Advert, chain: Chain, *, clock: int, under: PeerId | None = None
) -> Item:
    """Return this advert on its way, under its author's name or another, whatever its limits."""
    record = books.Record(ADVERTS, under or keypair.peer_id, encode(advert), ttl_ms=ADVERT_LIFE_MS)
    arrival = books.compose(
        keypair, MESH, adverts_of(MESH), chain, clock, bytes(SALT_BYTES), record
    )
    return Item(arrival.entry.data, arrival.payload)


def told_by(keypair: Keypair, **terms: Any) -> Told:
    """Return what a member says of itself; `terms` as of `item_of`."""
    return open_item(item_of(keypair, **terms), mesh=MESH)


def judge(chain: Chain, peer: PeerId, now_ms: int) -> Member:
    """Return who a peer is by its chain alone."""
    return check_chain(chain, mesh=MESH, subject=peer, now_ms=now_ms)


def directory_of(me: Keypair, *others: Told, own: Told | None = None) -> Directory:
    """Return what a member knows that has heard of these; `own`: what it offers itself."""
    directory = Directory(me.peer_id, judge)
    if own is not None:
        directory.announce(own.advert, judge(own.chain, me.peer_id, NOW_MS), NOW_MS)
    directory.learn(others, NOW_MS)
    return directory
