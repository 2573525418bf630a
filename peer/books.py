"""What does this admin write into the mesh's books? Its own chain, whom it let in, whom it revoked.

Whatever was granted before a crash and is not in the books yet is written at the next start. Nothing
is signed while this device's clock is wrong.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from covey.gossip.memory.books import InviteEntry, Record, member_record, membership, read_invite
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.namespace import INVITES, MEMBERS
from covey.identity.certificate import Chain
from covey.identity.errors import Malformed, Unavailable
from covey.identity.invite import Terms
from covey.identity.keys import PeerId, public_key_of
from covey.identity.wire import encode

log = logging.getLogger(__name__)


class BookKeeper:
    """Keeps the books for one admin, and reads them for any peer.

    Args:
        me: this peer.
        memory: where the books are.
        clock_trouble: why this device's clock cannot be trusted to sign with, if so.
    """

    def __init__(self, me: PeerId, memory: Memory, clock_trouble: Callable[[], str | None]) -> None:
        self._me = me
        self._memory = memory
        self._clock_trouble = clock_trouble

    async def take_up(self, own: Chain, granted: Iterable[tuple[PeerId, Chain]]) -> None:
        """Write what the books lack of this admin's own chain and of what it has granted."""
        written = set(self._memory.records(MEMBERS))
        for peer, chain in ((self._me, own), *granted):
            if member_record(chain) not in written:
                await self.admitted(peer, chain)

    async def admitted(self, peer: PeerId, chain: Chain) -> None:
        """Write a member's chain into the books. If that cannot be, the next start does."""
        try:
            await self.write([membership(peer, chain)])
        except Unavailable as error:
            log.error("books.not_written", extra={"member": peer, "why": str(error)})

    async def invited(self, key: bytes, terms: Terms) -> None:
        """Write an invite's public half and its terms into the books.

        Raises:
            Unavailable: the disk does not take it, or this device's clock is wrong.
        """
        entry = InviteEntry(key, terms, public_key_of(self._me))
        await self.write([Record(INVITES, key.hex(), encode(entry))])

    async def write(self, records: Sequence[Record]) -> None:
        """Write records, all or none; durable on return.

        Raises:
            Unavailable: the disk does not take them, or this device's clock is wrong.
        """
        if (trouble := self._clock_trouble()) is not None:
            raise Unavailable(f"nothing is signed while the clock is wrong: {trouble}")
        await self._memory.write_records(records)

    def invite(self, key: bytes) -> InviteEntry | None:
        """Return what the books say of the invite of this key, whoever made it."""
        for record in self._memory.records(INVITES):
            try:
                entry = read_invite(record)
            except Malformed:
                continue
            if entry.key == key:
                return entry
        return None
