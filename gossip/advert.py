"""What does a peer offer? Its signed, slow description, and how adverts travel over links. Wire
types.

Load is never in an advert: links carry it. An advert travels with its author's chain, so that a
peer which has never met the author can judge it, whoever passes it on.
"""

import msgspec

from covey.identity.certificate import Member, check_time, member_of
from covey.identity.envelope import MeshId, Signed, open_envelope, seal
from covey.identity.errors import NotAdmitted
from covey.identity.keys import Keypair
from covey.identity.wire import KIB

KIND = "advert"
CHANNEL = "advert"
ADVERT_BYTES_MAX = 16 * KIB
ITEMS_MAX = 64
NAME_CHARACTERS_MAX = 128
ADDRESSES_MAX = 16
ADVERT_LIFE_MS = 30 * 86_400_000
# An author signs anew at half of life, so a peer that is in reach now and then never lapses.
RENEW_MS = ADVERT_LIFE_MS // 2
AHEAD_MS_MAX = 5 * 60_000


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
    """One peer's description of itself; of two, the greater (incarnation, number) counts."""

    incarnation: int
    number: int
    issued_ms: int
    name: str
    version: str
    addresses: tuple[str, ...]
    labels: tuple[tuple[str, str], ...]
    data: tuple[DataOffer, ...]
    skills: tuple[str, ...]
    models: tuple[ModelOffer, ...]

    @property
    def order(self) -> tuple[int, int]:
        """What decides between two adverts of one peer."""
        return self.incarnation, self.number


class Item(msgspec.Struct, frozen=True, array_like=True):
    """An advert on its way: sealed by its author, beside the author's chain."""

    advert: bytes
    chain: tuple[bytes, ...]


class Have(msgspec.Struct, frozen=True, array_like=True, tag="have"):
    """What the sender has, as (peer, incarnation, number); sent once on a new link."""

    entries: tuple[tuple[str, int, int], ...]


class News(msgspec.Struct, frozen=True, array_like=True, tag="news"):
    """Adverts that the receiver may not have."""

    items: tuple[Item, ...]


AdvertMessage = Have | News


def only_addresses(advert: Advert) -> Advert:
    """Return the advert without what the peer offers: it is found by who knows a name to ask for."""
    return msgspec.structs.replace(advert, labels=(), data=(), skills=(), models=())


def seal_advert(advert: Advert, *, mesh: MeshId, keypair: Keypair) -> bytes:
    """Return the advert signed by its author."""
    return seal(advert, kind=KIND, mesh=mesh, keypair=keypair)


def open_item(item: Item, *, mesh: MeshId, now_ms: int) -> tuple[Signed[Advert], Member]:
    """Return the advert and who its author is, once chain and signature hold now.

    Raises:
        Malformed: it is no advert, or breaks a limit.
        NotAdmitted: the author is no member, or the advert is out of its time.
    """
    signed, member = read_item(item, mesh=mesh)
    check_time(member, now_ms)
    if signed.body.issued_ms > now_ms + AHEAD_MS_MAX:
        raise NotAdmitted("not-yet-valid", "the advert is signed ahead of time")
    if signed.body.issued_ms + ADVERT_LIFE_MS < now_ms:
        raise NotAdmitted("expired", "the advert is over its life")
    return signed, member


def read_item(item: Item, *, mesh: MeshId) -> tuple[Signed[Advert], Member]:
    """Return the advert and who its author is, whatever the time: for one's own.

    Raises:
        Malformed: it is no advert, or breaks a limit.
        NotAdmitted: the author never was a member.
    """
    signed = open_envelope(item.advert, Advert, kind=KIND, mesh=mesh, limit_bytes=ADVERT_BYTES_MAX)
    member = member_of(item.chain, mesh=mesh, subject=signed.signer)
    _check_limits(signed.body)
    return signed, member


def _check_limits(advert: Advert) -> None:
    groups = (advert.labels, advert.data, advert.skills, advert.models)
    if any(len(group) > ITEMS_MAX for group in groups) or len(advert.addresses) > ADDRESSES_MAX:
        raise NotAdmitted("over-limit", f"an advert lists at most {ITEMS_MAX} of a kind")
    if len(advert.name) > NAME_CHARACTERS_MAX:
        raise NotAdmitted("over-limit", "an advert's name is too long")
