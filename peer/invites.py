"""Which invites has this device made, and to whom were they granted? The desk, kept in the store.

Every decision of the desk is durable before its answer leaves.
"""

from collections.abc import Callable, Sequence

from covey.gossip.joining import DeskEffect, ForgetInvite, InviteDesk, InviteRecord, KeepInvite
from covey.identity.errors import Misuse
from covey.identity.invite import token_of
from covey.identity.keys import KEY_BYTES
from covey.identity.wire import decode, encode

from .config import check_zone
from .schema import Database
from .store import Change, Store
from .views import InviteRequest, InviteView


class Invites:
    """The invites of one device.

    Args:
        desk: decides; None on a device that is no admin.
        store: where they rest; those already there are taken up.
        draw: draws entropy.
        now_ms: reads the wall clock.
    """

    def __init__(
        self,
        desk: InviteDesk | None,
        store: Store,
        draw: Callable[[int], bytes],
        now_ms: Callable[[], int],
    ) -> None:
        self.desk = desk
        self._store = store
        self._draw = draw
        self._now_ms = now_ms
        if desk is not None:
            desk.restore(decode(row, InviteRecord) for _, row in store.scan(Database.INVITE))

    async def mint(self, request: InviteRequest, addresses: Sequence[str]) -> InviteView:
        """Make an invite that names `addresses`; it is durable when this returns.

        Raises:
            Misuse: this device is no admin, or the terms cannot be.
            NotAdmitted: this device's own certificate does not hold now.
            Unavailable: the disk does not take it.
        """
        for zone in request.zones:
            check_zone(zone)
        if self.desk is None:
            raise Misuse("only an admin of the mesh can invite; ask one, such as the founder")
        invite, effects = self.desk.mint(
            self._draw(KEY_BYTES),
            addresses,
            uses=request.uses,
            expires_s=request.expires_s,
            zones=request.zones,
            now_ms=self._now_ms(),
        )
        await self.keep(effects)
        return InviteView(
            token=token_of(invite),
            id=invite.keypair.public_key.hex()[:16],
            uses=invite.terms.uses,
            expires_ms=invite.terms.expires_ms,
        )

    async def keep(self, effects: list[DeskEffect]) -> None:
        """Store what the desk decided, and return once it is durable."""
        changes: list[Change] = []
        for effect in effects:
            match effect:
                case KeepInvite(record):
                    changes.append(Change(Database.INVITE, record.key, encode(record)))
                case ForgetInvite(key):
                    changes.append(Change(Database.INVITE, key, None))
        await self._store.commit(changes)
