"""How does work find a peer that the directory does not know, and how is this one found?

Opens gossip and the DHT as the configuration says, and keeps them told: who is linked, what this peer
offers, which advert it has. What the DHT names is only a hint; `gossip/seeking.py` asks further.
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from covey.gossip.admission import Admission
from covey.gossip.advert import Advert
from covey.gossip.bidding import CALL_ID_BYTES, TOPIC, Bidder, Outlook
from covey.gossip.dht import Dht, DhtSettings, open_dht
from covey.gossip.directory import Directory
from covey.gossip.host import Host
from covey.gossip.links import Links
from covey.gossip.memory.messages import Item
from covey.gossip.network import LinkDown, LinkUp
from covey.gossip.provider_keys import keys_for, keys_of
from covey.gossip.pubsub import PubsubSettings, open_pubsub
from covey.gossip.routing import DirectoryFinder, SearchingFinder
from covey.gossip.search import HINTS_MAX, Search
from covey.gossip.seeking import Seeking
from covey.gossip.task import Need
from covey.identity.certificate import Member
from covey.identity.envelope import MeshId
from covey.identity.errors import Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode, encode

from .config import Config
from .schema import Database
from .store import Change, Store
from .views import DiscoveryView

log = logging.getLogger(__name__)

LOOKUP_S = 2.0
KEEP_S = 600.0
ROW_BYTES_MAX = 256 * KIB
_TABLE_KEY = b"dht"
# A lookup may connect members that are no neighbours, within reason.
LINKS_MAX = 64


class TableRecord(msgspec.Struct, frozen=True, array_like=True):
    """The DHT's routing table, as it was."""

    peers: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Circle:
    """What discovery works with."""

    me: Member
    mesh: MeshId
    config: Config
    store: Store
    links: Links
    directory: Directory
    now_ms: Callable[[], int]
    draw: Callable[[int], bytes]


class Discovery:
    """One daemon's ways to find and to be found.

    Args:
        circle: what it works with.
        able: what this peer lacks for a need of another.
        outlook: how soon it could do it.
        reach: returns once there is a link to a member.
        learn: takes in an advert that the DHT had.
        wake: told when waiting tasks should be looked at again.
    """

    def __init__(
        self,
        circle: Circle,
        *,
        able: Callable[[PeerId, Need], str | None],
        outlook: Callable[[Need], Outlook],
        reach: Callable[[PeerId], Awaitable[None]],
        learn: Callable[[Item], Awaitable[None]],
        wake: Callable[[], None],
    ) -> None:
        self._circle = circle
        self._reach = reach
        self._learn = learn
        self._dht: Dht | None = None
        self._offers: tuple[Advert, Item] | None = None
        self._told = trio.Event()
        wanted = circle.config.discovery
        self._search = Search(
            circle.me.peer,
            members=lambda: sum(1 for _ in circle.directory),
            zone_links=self._linked_in,
            has_dht=wanted.dht,
            has_calls=wanted.bids,
            salt=circle.draw(CALL_ID_BYTES),
        )
        self._bidder = Bidder(circle.me, able, outlook) if wanted.bids or wanted.dht else None
        self._seeking = Seeking(
            circle.links,
            self._search,
            self._bidder,
            answers_calls=wanted.bids,
            hints=self._hints if wanted.dht else None,
            reach=reach,
            changed=wake,
        )
        circle.links.on_link(self._link_changed)

    def finder(self, directory: DirectoryFinder) -> SearchingFinder:
        """Return the finder that searches further where the directory has nobody."""
        seeking = self._seeking
        links = self._circle.links.links
        return SearchingFinder(directory, self._search, links, seeking.member, seeking.poke)

    def use(self, me: Member) -> None:
        """This peer has a new certificate, and it may be in other zones."""
        if self._bidder is not None:
            self._bidder.use(me)

    def member(self, peer: PeerId) -> Member | None:
        """Return who a linked peer is by the chain that it showed."""
        return self._seeking.member(peer)

    def offer(self, whole: Advert, item: Item) -> None:
        """Let it be found what this peer offers now; `item` is the advert that others are given."""
        self._offers = (whole, item)
        self._told.set()

    def met(self) -> None:
        """The directory has changed."""
        if self._dht is not None:
            self._dht.met(sum(1 for _ in self._circle.directory))

    def view(self) -> DiscoveryView:
        """Return what came of it so far."""
        return DiscoveryView(
            dht_peers=self._dht.size if self._dht is not None else None,
            calls_made=self._seeking.called,
            calls_heard=self._seeking.heard,
            bids_made=self._seeking.bids,
        )

    @asynccontextmanager
    async def open(self, host: Host, admission: Admission) -> AsyncGenerator[None]:
        """Take part for as long as the block lasts; open it before anyone is dialled."""
        circle = self._circle
        wanted = circle.config.discovery
        async with AsyncExitStack() as stack:
            pubsub = None
            if wanted.bids:
                settings = PubsubSettings((TOPIC,))
                gossip = open_pubsub(host, admission, circle.now_ms, settings)
                pubsub = await stack.enter_async_context(gossip)
            if wanted.dht:
                await self._open_dht(host, admission, stack)
            async with trio.open_nursery() as nursery:
                if wanted.dht:
                    nursery.start_soon(self._keep_told)
                await nursery.start(self._seeking.serve, pubsub)
                try:
                    yield
                finally:
                    nursery.cancel_scope.cancel()
                    with trio.CancelScope(shield=True), trio.move_on_after(2):
                        await self._keep_table()
                    self._dht = None

    # The DHT

    async def _open_dht(self, host: Host, admission: Admission, stack: AsyncExitStack) -> None:
        circle = self._circle
        announced = bool(circle.config.listen.announce)
        row = circle.store.get(Database.META, _TABLE_KEY)
        known = decode(row, TableRecord, limit_bytes=ROW_BYTES_MAX).peers if row else ()
        dht = open_dht(
            host,
            admission,
            circle.now_ms,
            DhtSettings(circle.mesh, announced=announced),
            dial=self._dial,
            known=[(PeerId(peer), addresses) for peer, addresses in known],
        )
        self._dht = await stack.enter_async_context(dht)
        self.met()

    async def _dial(self, peer: PeerId) -> None:
        if len(self._circle.links.links()) >= LINKS_MAX:
            raise Unavailable(f"{LINKS_MAX} peers are linked already")
        await self._reach(peer)

    async def _keep_told(self) -> None:
        """Tell the DHT what this peer offers, and keep its table, until cancelled."""
        keep_at = trio.current_time() + KEEP_S
        while True:
            with trio.move_on_at(keep_at):
                await self._told.wait()
            self._told = trio.Event()
            if self._dht is not None and self._offers is not None:
                whole, item = self._offers
                self._dht.provide(keys_of(whole, self._circle.mesh))
                await self._dht.put_advert(item)
            if trio.current_time() >= keep_at:
                await self._keep_table()
                keep_at = trio.current_time() + KEEP_S

    async def _keep_table(self) -> None:
        if self._dht is None or not (table := self._dht.table()):
            return
        row = encode(TableRecord(tuple(table)))
        try:
            await self._circle.store.commit([Change(Database.META, _TABLE_KEY, row)])
        except Unavailable as error:
            log.warning("dht.table_not_kept", extra={"why": str(error)})

    async def _hints(self, need: Need) -> Collection[PeerId]:
        """Return whom the DHT names: under the rarest key, first who has the others, too, then freshest."""
        dht, circle = self._dht, self._circle
        keys = keys_for(need, circle.mesh)
        if dht is None or not keys:
            return ()
        named = await dht.find_providers(keys[0], timeout_s=LOOKUP_S)
        also: set[PeerId] = set()
        if len(named) > HINTS_MAX and len(keys) > 1:
            also = set(await dht.find_providers(keys[1], timeout_s=LOOKUP_S))
        async with trio.open_nursery() as nursery:
            for peer in named[:HINTS_MAX]:
                if circle.directory.get(peer) is None:
                    nursery.start_soon(self._learn_of, dht, peer)
        linked = circle.links.links()

        def worth(peer: PeerId) -> tuple[bool, bool, int]:
            entry = circle.directory.get(peer)
            at_ms = entry.at_ms if entry is not None else 0
            return peer in also, peer in linked, at_ms

        return sorted(named, key=worth, reverse=True)[:HINTS_MAX]

    async def _learn_of(self, dht: Dht, peer: PeerId) -> None:
        item = await dht.find_advert(peer, timeout_s=LOOKUP_S)
        if item is not None:
            await self._learn(item)

    # Links

    def _linked_in(self, zone: str) -> list[PeerId]:
        """Return the linked members of a zone."""
        return [
            peer
            for peer in self._circle.links.links()
            if (member := self.member(peer)) is not None and member.is_in(zone)
        ]

    def _link_changed(self, event: LinkUp | LinkDown) -> None:
        if self._dht is None:
            return
        match event:
            case LinkUp(peer, _):
                link = self._circle.links.links().get(peer)
                self._dht.connected(peer, inbound=link is not None and link.inbound)
            case LinkDown(peer, _):
                self._dht.disconnected(peer)
