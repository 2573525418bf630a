"""Has this device the mesh's books yet? Until then it believes nobody but who let it in.

It cannot know who was revoked before it came: a chain alone says that somebody was a member once.
"""

import logging

import trio

from covey.gossip.admission import Admission
from covey.gossip.memory.books import member_record
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.namespace import MEMBERS
from covey.identity.certificate import Chain
from covey.identity.errors import Unavailable
from covey.identity.keys import PeerId

from .home import MeshFile
from .schema import Database
from .store import Change, Store

log = logging.getLogger(__name__)

_KEY = b"books"


class FirstBooks:
    """Watches for the mesh's books on a device that has joined.

    Args:
        mesh: which mesh, and who let this device in; nobody did if it founded it.
        admission: the door, which is told whom to believe.
        memory: where the books are.
        store: keeps that they have come.
    """

    def __init__(self, mesh: MeshFile, admission: Admission, memory: Memory, store: Store) -> None:
        self._chain: Chain = mesh.chain
        self._admission = admission
        self._memory = memory
        self._store = store
        self._come = trio.Event()
        self._from = PeerId(mesh.bootstrap[0][0]) if mesh.bootstrap else None
        if self._from is None or store.get(Database.META, _KEY) is not None:
            self._come.set()
            return
        admission.only = {self._from}
        memory.on_step(lambda _peer: self._look())

    @property
    def awaited_from(self) -> PeerId | None:
        """Who is to bring the books; None: they have come."""
        return None if self._come.is_set() else self._from

    async def believed(self, peer: PeerId) -> None:
        """Return once this device would believe a peer's chain."""
        if not self._admission.believes(peer):
            await self._come.wait()

    def _look(self) -> None:
        assert self._from is not None, "nobody is waited for otherwise"
        neighbour = self._memory.spreading.neighbour(self._from)
        if self._come.is_set() or neighbour is None or neighbour.books_under_way:
            return
        # Not in step for another reason: the books go first, and its own record is among them.
        if neighbour.state not in ("in step", "apart"):
            return
        if member_record(self._chain) in self._memory.records(MEMBERS):
            self._admission.only = None
            self._come.set()
            self._store.put([Change(Database.META, _KEY, b"\x01")], _log_failure)
            log.info("books.came", extra={"from": self._from})


def _log_failure(error: Unavailable | None) -> None:
    if error is not None:
        log.error("store.commit_failed", extra={"why": str(error)})
