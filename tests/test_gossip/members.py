"""Keys, a mesh, and members of it, for tests of the pure cores."""

from covey.gossip.advert import Advert, DataOffer, Item, ModelOffer, seal_advert
from covey.identity.certificate import Chain, found_mesh, issue
from covey.identity.envelope import MeshId, mesh_id_of
from covey.identity.keys import Keypair

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
    now_ms: int = NOW_MS,
    name: str = "",
    labels: tuple[tuple[str, str], ...] = (),
    data: tuple[str, ...] = (),
    skills: tuple[str, ...] = ("covey.echo",),
    models: tuple[str, ...] = (),
    zones: tuple[str, ...] = (),
) -> Item:
    """Return a member's advert on its way."""
    advert = Advert(
        incarnation=incarnation,
        number=number,
        issued_ms=now_ms,
        name=name or keypair.peer_id[-6:],
        version="0.1.0",
        addresses=("/ip4/127.0.0.1/tcp/4001",),
        labels=labels,
        data=tuple(DataOffer(one, "file") for one in data),
        skills=skills,
        models=tuple(ModelOffer(one, "text", "00" * 32) for one in models),
    )
    return Item(seal_advert(advert, mesh=MESH, keypair=keypair), chain_of(keypair, zones=zones))
