"""Which invites has this device made, to whom were they granted, and who waits? The desk, kept in the
store.

Every decision of the desk is durable before its answer leaves.
"""

from collections.abc import Callable, Iterable, Sequence

from covey.gossip.joining import DeskEffect, ForgetInvite, InviteDesk, InviteRecord, KeepInvite
from covey.gossip.pending import ForgetPending, KeepPending, PendingRecord
from covey.identity.certificate import Chain
from covey.identity.invite import token_of
from covey.identity.keys import KEY_BYTES, PeerId
from covey.identity.wire import decode, encode

from .books import BookKeeper
from .config import check_zone
from .schema import Database
from .store import Change, Store
from .views import InviteRequest, InviteView


class Invites:
    """The invites of one device.

    Args:
        desk: decides.
        store: where they rest; those already there are taken up.
        draw: draws entropy.
        now_ms: reads the wall clock.
        books: are told who was let in, and which invites there are.
    """

    def __init__(
        self,
        desk: InviteDesk,
        store: Store,
        draw: Callable[[int], bytes],
        now_ms: Callable[[], int],
        books: BookKeeper,
    ) -> None:
        self.desk = desk
        self._books = books
        self._store = store
        self._draw = draw
        self._now_ms = now_ms
        desk.restore(decode(row, InviteRecord) for _, row in store.scan(Database.INVITE))
        waiting = (decode(row, PendingRecord) for _, row in store.scan(Database.PENDING))
        desk.pending.restore(waiting)

    async def mint(self, request: InviteRequest, addresses: Sequence[str]) -> InviteView:
        """Make an invite that names `addresses`; it is durable when this returns.

        Raises:
            Misuse: this device is no admin, or the terms cannot be.
            NotAdmitted: this device's own certificate does not hold now.
            Unavailable: the disk does not take it, or this device's clock is wrong.
        """
        for zone in request.zones:
            check_zone(zone)
        invite, effects = self.desk.mint(
            self._draw(KEY_BYTES),
            addresses,
            uses=request.uses,
            expires_s=request.expires_s,
            zones=request.zones,
            now_ms=self._now_ms(),
        )
        await self.keep(effects)
        await self._books.invited(invite.keypair.public_key, invite.terms)
        return InviteView(
            token=token_of(invite),
            id=invite.keypair.public_key.hex()[:16],
            uses=invite.terms.uses,
            expires_ms=invite.terms.expires_ms,
        )

    async def keep(self, effects: list[DeskEffect]) -> None:
        """Store what the desk decided, and return once it is durable and in the books."""
        changes: list[Change] = []
        granted: list[tuple[PeerId, Chain]] = []
        for effect in effects:
            match effect:
                case KeepInvite(record):
                    changes.append(Change(Database.INVITE, record.key, encode(record)))
                    # All but the last of it are in the books already.
                    granted += [(PeerId(peer), chain) for peer, chain in record.granted[-1:]]
                case ForgetInvite(key):
                    changes.append(Change(Database.INVITE, key, None))
                case KeepPending(waiting):
                    key = waiting.peer.encode()
                    changes.append(Change(Database.PENDING, key, encode(waiting)))
                case ForgetPending(peer):
                    changes.append(Change(Database.PENDING, peer.encode(), None))
        await self._store.commit(changes)
        for peer, chain in granted:
            await self._books.admitted(peer, chain)

    def granted(self) -> Iterable[tuple[PeerId, Chain]]:
        """Return everybody whom this device's invites let in, as far as they are kept."""
        for _, row in self._store.scan(Database.INVITE):
            for peer, chain in decode(row, InviteRecord).granted:
                yield PeerId(peer), chain
