"""Which adverts may lie in the DHT, and which of two is the newer?

The validator of the DHT's value records. Pure; whoever keeps or finds a record asks it.
"""

import hashlib
from collections.abc import Callable
from typing import Protocol

from covey.identity.certificate import Chain, Member
from covey.identity.envelope import MeshId
from covey.identity.errors import CoveyError, Malformed
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode

from .advert import Told, check_age, open_item
from .memory.messages import Item

NAMESPACE = "covey"
RECORD_BYTES_MAX = 32 * KIB


class Judge(Protocol):
    """Whose words count; `admission.py` has the real one."""

    def is_known(self, peer: PeerId) -> bool:
        """Tell whether this is a member that we know of."""
        ...

    def judge_author(self, chain: Chain, author: PeerId) -> Member:
        """Judge who wrote what another peer may have passed on.

        Raises:
            NotAdmitted: the chain does not make a member of it now.
        """
        ...


class AdvertRecords:
    """Value records: under a member's id its own signed advert, newer ones first."""

    def __init__(self, judge: Judge, mesh: MeshId, now_ms: Callable[[], int]) -> None:
        self._judge = judge
        self._mesh = mesh
        self._now_ms = now_ms

    def validate(self, key: str, value: bytes) -> None:
        """Refuse what is not the advert of the member that the key names.

        Raises:
            Malformed, NotAdmitted: saying why.
        """
        told = self._opened(value)
        if key != record_key(told.peer):
            raise Malformed(f"the advert of {told.peer} under the key {key[:80]!r}")
        self._judge.judge_author(told.chain, told.peer)

    def select(self, key: str, values: list[bytes]) -> int:
        """Return the index of the newest advert; of equal ones the last, so that a new put renews it."""
        orders = [self._order(value) for value in values]
        return max(range(len(orders)), key=lambda index: (orders[index], index))

    def read(self, value: bytes) -> Item:
        """Return the advert on its way."""
        return decode(value, Item, limit_bytes=RECORD_BYTES_MAX)

    def _opened(self, value: bytes) -> Told:
        told = open_item(self.read(value), mesh=self._mesh)
        check_age(told, self._now_ms())
        return told

    def _order(self, value: bytes) -> bytes:
        try:
            return self._opened(value).key
        except CoveyError:
            return b""


def record_key(peer: PeerId) -> str:
    """Return the key of a member's advert: a hash, since the library refuses keys over 50 bytes."""
    return f"/{NAMESPACE}/{hashlib.blake2b(peer.encode(), digest_size=16).hexdigest()}"
