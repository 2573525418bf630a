"""Who offers something that the directory does not know? A DHT among members: hints, never proof.

py-libp2p's Kademlia under covey's own protocol, behind the gate. Provider records say under keyed
hashes who offers what; value records are members' signed adverts. What an answer names is only asked
further: records may be stale, their peers dead, and a member may lie. The library's own service is not
run: its refresh connects everyone to everyone, and its lookup of providers returns each of them many
times and then only what it has heard itself (LIBP2P.md 6).
"""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio
from libp2p.identity.identify_push.identify_push import push_identify_to_peers
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from libp2p.records.validator import NamespacedValidator
from multiaddr import Multiaddr

from covey.identity.envelope import MeshId
from covey.identity.errors import CoveyError, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import encode

from .advert import ADDRESSES_MAX, ITEMS_MAX
from .advert_records import NAMESPACE, AdvertRecords, Judge, record_key
from .gate import reach
from .host import Host
from .libp2p_fixes import DHT_PROTOCOL, DHT_QUERY_S
from .memory.messages import Item
from .provider_keys import KEY_BYTES

log = logging.getLogger(__name__)

# In a mesh of so many everybody is close to every key: all serve, whoever can be dialled.
SMALL_MESH = 20
# In a larger one, who was dialled by nobody in this time cannot be.
PROBATION_S = 600.0
TABLE_MAX = 64
REPLICAS = 8
AT_ONCE = 4
"""Questions of one lookup under way."""
ASKED_MAX = 24
"""Peers that one lookup asks."""
NAMED_MAX = 32
"""Providers that one answer may name."""
# A peer takes ten records of ours in ten seconds.
PUBLISH_EVERY_S = 1.1
# A quarter of a record's life, so that a lost one is soon made good.
REPUBLISH_S = 900.0
# After nobody took it.
RETRY_S = 60.0
TIDY_S = 60.0
STREAM_S = 10.0
STREAMS_PER_PEER_MAX = 4
IDENTIFY_S = 5.0
KEYS_MAX = 20_000
"""Of others, that are kept here."""
# All that an advert can list; each model has two.
KEYS_PER_PEER_MAX = 5 * ITEMS_MAX
PROVIDERS_PER_KEY_MAX = 20


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """How this peer takes part."""

    mesh: MeshId
    announced: bool = False
    """Its address was set by hand, so others are meant to dial it."""
    republish_s: float = REPUBLISH_S
    publish_every_s: float = PUBLISH_EVERY_S


def serves(members: int, *, reachable: bool, up_s: float) -> bool:
    """Tell whether a peer answers others or only asks.

    Args:
        members: how many it knows, itself included.
        reachable: somebody has dialled it, or it announces an address.
        up_s: for how long it has been there to be dialled, in seconds.
    """
    return reachable or members <= SMALL_MESH or up_s < PROBATION_S


class _Kad(KadDHT):
    """The library's, with bounds on what others may ask and have kept here."""

    def __init__(
        self, host: Any, is_member: Callable[[PeerId], bool], validator: Any, mode: DHTMode
    ) -> None:
        self._streams: dict[Any, int] = {}
        super().__init__(
            host,
            mode,
            validator=NamespacedValidator({NAMESPACE: validator}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        table: Any = self.routing_table
        enter = table.add_peer

        async def add_peer(peer: Any, *, skip_server_mode_check: bool = False) -> bool:
            # Whoever asks is not for that reason someone who answers: the check is never left out.
            peer_id = peer.peer_id if isinstance(peer, PeerInfo) else peer
            is_new = not table.peer_in_table(peer_id)
            if not is_member(PeerId(str(peer_id))) or (is_new and table.size() >= TABLE_MAX):
                return False
            entered: bool = await enter(peer)
            return entered

        table.add_peer = add_peer
        providers: Any = self.provider_store
        keep = providers.add_provider

        def add_provider(key: bytes, provider: Any) -> None:
            if _has_room(providers, key, provider.peer_id):
                # Where it is, its advert says.
                keep(key, PeerInfo(provider.peer_id, []))

        providers.add_provider = add_provider

    async def handle_stream(self, stream: Any) -> None:
        """Serve one stream, for a while, and few at once for one peer."""
        peer = stream.muxed_conn.peer_id
        if self._streams.get(peer, 0) >= STREAMS_PER_PEER_MAX:
            await stream.reset()
            return
        self._streams[peer] = self._streams.get(peer, 0) + 1
        try:
            with trio.move_on_after(STREAM_S):
                await super().handle_stream(stream)
        finally:
            self._streams[peer] -= 1
            if not self._streams[peer]:
                del self._streams[peer]
        # The library leaves a stream open on some of its ways out.
        await stream.reset()


def _has_room(store: Any, key: bytes, provider: ID) -> bool:
    """Tell whether a record may be kept, and make room for it; the records of a key are in order of age."""
    if len(key) != KEY_BYTES:
        return False
    records = store.providers.get(key, {})
    if records.pop(str(provider), None) is not None:
        return True
    if not records and len(store.providers) >= KEYS_MAX:
        return False
    if len(store.get_provided_keys(provider)) >= KEYS_PER_PEER_MAX:
        return False
    while len(records) >= PROVIDERS_PER_KEY_MAX:
        # The library would keep the oldest, whose peers may be gone, and refuse this one.
        del records[next(iter(records))]
    return True


class Dht:
    """This peer's part in the DHT. Use `open_dht`."""

    def __init__(
        self,
        host: Host,
        judge: Judge,
        now_ms: Callable[[], int],
        settings: DhtSettings,
        dial: Callable[[PeerId], Awaitable[None]],
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._judge = judge
        self._settings = settings
        self._dial = dial
        self._nursery: trio.Nursery | None = nursery
        self._reachable = settings.announced
        self._since = trio.current_time()
        self._members = 1
        self._keys: dict[bytes, float] = {}
        """What this peer offers, and when each key is next to be published."""
        self._advert: Item | None = None
        self._advert_at = 0.0
        self._poked = trio.Event()
        self._records = AdvertRecords(judge, settings.mesh, now_ms)
        self.library: Any = _Kad(host.libp2p, self._is_member, self._records, DHTMode.SERVER)
        host.dht = self.library

    # What this peer offers

    def provide(self, keys: Collection[bytes]) -> None:
        """Say what this peer offers from now on; published one by one, and again in time."""
        for key in set(self._keys) - set(keys):
            del self._keys[key]
            self.library.provider_store.providers.get(key, {}).pop(self._host.me, None)
        for key in sorted(set(keys) - set(self._keys)):
            self._keys[key] = 0.0
            self._keep_own(key)
        self._poked.set()

    async def put_advert(self, item: Item) -> None:
        """Leave this peer's advert with those closest to its id, once anybody is there, and in time again."""
        self._advert, self._advert_at = item, 0.0
        if self.size:
            await self._put(item)

    # What others offer

    async def find_providers(self, key: bytes, *, timeout_s: float) -> list[PeerId]:
        """Return who may offer what has this key, each once: first who is named by most, then the freshest.

        An answer may name anyone: nobody in the list is known to be a member.

        Raises:
            Unavailable: there was nobody to ask.
        """
        named: dict[PeerId, tuple[int, int]] = {}
        store = self.library.provider_store

        def take(providers: Sequence[Any]) -> None:
            # Whoever answers lists the freshest last.
            listed = dict.fromkeys(
                PeerId(str(one.peer_id)) for one in reversed(providers[-NAMED_MAX:])
            )
            for place, peer in enumerate(listed):
                times, first = named.get(peer, (0, place))
                named[peer] = (times + 1, min(first, place))

        async def ask(peer: ID) -> list[ID]:
            providers, closer = await store._get_providers_from_peer_with_closers(peer, key)
            take(providers)
            return list(closer)

        take(store.get_providers(key))
        with trio.move_on_after(timeout_s):
            await self._walk(key, ask)
        named.pop(self._host.me, None)
        return sorted(named, key=lambda peer: (-named[peer][0], named[peer][1], peer))

    async def find_advert(self, peer: PeerId, *, timeout_s: float) -> Item | None:
        """Return the newest advert that a member left in the DHT; None if nobody has one."""
        key = record_key(peer)
        newest: bytes | None = None
        store = self.library.value_store

        def take(value: bytes) -> None:
            nonlocal newest
            try:
                self._records.validate(key, value)
            except CoveyError as error:
                log.info("dht.advert_refused", extra={"peer": peer, "why": str(error)})
                return
            if newest is None or self._records.select(key, [newest, value]) == 1:
                newest = value

        async def ask(other: ID) -> list[ID]:
            value, closer = await store._get_from_peer(
                other, key.encode(), return_closer_peers=True
            )
            if value is not None:
                take(value)
            return list(closer)

        if (kept := store.get(key.encode())) is not None:
            take(kept.value)
        with trio.move_on_after(timeout_s), suppress(Unavailable):
            await self._walk(key.encode(), ask)
        return self._records.read(newest) if newest is not None else None

    # Who is there

    def connected(self, peer: PeerId, *, inbound: bool) -> None:
        """A member is connected: enter it, if it serves."""
        if inbound and not self._reachable:
            self._reachable = True
            self._poked.set()
        if self._nursery is not None:
            self._nursery.start_soon(self._enter, peer)

    def disconnected(self, peer: PeerId) -> None:
        """A member is gone: asking it would only cost time."""
        self.library.routing_table.remove_peer(ID.from_base58(peer))

    def met(self, members: int) -> None:
        """So many members are known now: the role may change with it."""
        self._members = members
        self._poked.set()

    async def look_again(self) -> None:
        """Look again at who is connected: roles change."""
        for visit in self._host.gate.visits():
            if visit.state == "open":
                await self._enter(visit.peer)

    @property
    def size(self) -> int:
        """How many peers are in the routing table."""
        return int(self.library.get_routing_table_size())

    @property
    def is_server(self) -> bool:
        """Whether this peer answers others."""
        return bool(self.library.mode == DHTMode.SERVER)

    def table(self) -> list[tuple[PeerId, tuple[str, ...]]]:
        """Return the routing table as it may be kept: peers with their addresses."""
        return [
            (PeerId(str(one.peer_id)), tuple(str(address) for address in one.addrs))
            for one in self.library.routing_table.get_peer_infos()
        ]

    async def restore(self, known: Sequence[tuple[PeerId, Sequence[str]]]) -> None:
        """Take up a table that was kept; nobody is dialled."""
        for peer, addresses in known[:TABLE_MAX]:
            try:
                listed = [Multiaddr(address) for address in addresses]
                await self.library.routing_table.add_peer(PeerInfo(ID.from_base58(peer), listed))
            except Exception as error:  # noqa: BLE001  (each part of the library has its own)
                log.info("dht.not_restored", extra={"peer": peer, "why": repr(error)})

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish, and tidy up, until cancelled."""
        task_status.started()
        tidy_at = trio.current_time() + TIDY_S
        while True:
            with trio.move_on_at(min(tidy_at, self._publish_at())):
                await self._poked.wait()
            self._poked = trio.Event()
            await self._judge_role()
            now = trio.current_time()
            if now >= tidy_at:
                self.library.provider_store.cleanup_expired()
                self.library.value_store.cleanup_expired()
                self._tidy_peerstore()
                await self.look_again()
                tidy_at = now + TIDY_S
            if now >= self._publish_at():
                await self._publish_next()
                # A pause, whatever happens meanwhile: others count what one peer tells them.
                await trio.sleep(self._settings.publish_every_s)

    def close(self) -> None:
        """Serve nobody from now on."""
        self._nursery = None
        self._host.dht = None
        self._host.libp2p.remove_stream_handler(DHT_PROTOCOL)

    # The inside

    def _publish_at(self) -> float:
        if not self.size:
            return float("inf")
        advert_at = self._advert_at if self._advert is not None else float("inf")
        return min(advert_at, *self._keys.values(), float("inf"))

    async def _publish_next(self) -> None:
        """Publish what has waited longest."""
        if self._advert is not None and self._advert_at <= self._publish_at():
            await self._put(self._advert)
            return
        key = min(self._keys, key=lambda key: self._keys[key])
        self._keep_own(key)
        # At once, so that a key that is withdrawn meanwhile does not come back.
        self._keys[key] = trio.current_time() + self._settings.republish_s
        store = self.library.provider_store
        if not await self._tell(key, lambda peer: store._send_add_provider(peer, key)):
            self._retry(key)

    def _retry(self, key: bytes) -> None:
        if key in self._keys:
            self._keys[key] = trio.current_time() + RETRY_S

    def _keep_own(self, key: bytes) -> None:
        """Whoever asks this peer itself is told at once."""
        self.library.provider_store.add_provider(key, PeerInfo(self.library.local_peer_id, []))

    async def _put(self, item: Item) -> None:
        self._advert_at = trio.current_time() + self._settings.republish_s
        name, value = record_key(self._host.me), encode(item)
        store = self.library.value_store
        try:
            self._records.validate(name, value)
        except CoveyError as error:
            log.warning("dht.advert_not_put", extra={"why": str(error)})
            return
        kept = store.get(name.encode())
        if kept is not None and self._records.select(name, [kept.value, value]) == 0:
            return
        store.put(name.encode(), value)
        if not await self._tell(
            name.encode(), lambda peer: store._store_at_peer(peer, name.encode(), value)
        ):
            self._advert_at = trio.current_time() + RETRY_S

    async def _tell(self, key: bytes, tell: Callable[[ID], Awaitable[bool]]) -> int:
        """Tell those that are closest to a key; return how many took it."""

        async def ask(peer: ID) -> list[ID]:
            return list(await self.library.peer_routing._query_peer_for_closest(peer, key))

        closest: list[ID] = self.library.routing_table.find_local_closest_peers(key, REPLICAS)
        if self._members > self.size + 1:
            # Not everyone is in the table: who is closest must be asked for.
            with trio.move_on_after(STREAM_S):
                closest = (await self._walk(key, ask))[:REPLICAS]
        took: list[ID] = []

        async def tell_one(peer: ID) -> None:
            with self._contained(peer), trio.move_on_after(DHT_QUERY_S):
                if await tell(peer):
                    took.append(peer)

        with self._reaching():
            async with trio.open_nursery() as nursery:
                for peer in closest:
                    nursery.start_soon(tell_one, peer)
        self._tidy_peerstore()
        return len(took)

    async def _walk(self, key: bytes, ask: Callable[[ID], Awaitable[list[ID]]]) -> list[ID]:
        """Ask ever closer peers, until the closest have been asked; returns them, closest first.

        A few at once; one that is slow or dead holds up none of the others.

        Raises:
            Unavailable: there was nobody to ask.
        """
        me = self.library.local_peer_id
        near: list[ID] = self.library.routing_table.find_local_closest_peers(key, ASKED_MAX)
        if not near:
            raise Unavailable("nobody is in the DHT yet")
        asked: set[ID] = set()
        asking: set[ID] = set()
        answered: set[ID] = set()

        def go_on(nursery: trio.Nursery) -> None:
            for peer in near[:REPLICAS]:
                if len(asking) >= AT_ONCE or len(asked) >= ASKED_MAX:
                    return
                if peer not in asked:
                    asked.add(peer)
                    asking.add(peer)
                    nursery.start_soon(ask_one, peer, nursery)

        async def ask_one(peer: ID, nursery: trio.Nursery) -> None:
            closer: list[ID] | None = None
            with self._contained(peer), trio.move_on_after(DHT_QUERY_S):
                closer = await ask(peer)
            asking.discard(peer)
            if not self._was_there(peer):
                closer = None
            if closer is None:
                near.remove(peer)
            else:
                answered.add(peer)
                for one in closer[:ASKED_MAX]:
                    is_new = one != me and one not in asked and one not in near
                    if is_new and self._is_member(PeerId(str(one))):
                        near.append(one)
                near[:] = sort_peer_ids_by_distance(key, near)
            go_on(nursery)

        try:
            with self._reaching():
                async with trio.open_nursery() as nursery:
                    go_on(nursery)
        finally:
            self._tidy_peerstore()
        return [one for one in near if one in answered]

    def _was_there(self, peer: ID) -> bool:
        """Tell whether who was just asked is connected; who could not be reached leaves the table."""
        if self._host.gate.open_visit(PeerId(str(peer))) is not None:
            return True
        self.library.routing_table.remove_peer(peer)
        return False

    @contextmanager
    def _contained(self, peer: ID) -> Generator[None]:
        """Whatever the library raises about one peer ends the talk with that peer only."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (each part of the library has its own)
            log.info("dht.broke", extra={"peer": str(peer), "why": repr(error)})

    @contextmanager
    def _reaching(self) -> Generator[None]:
        """Let the library dial members that it is to ask."""
        token = reach.set(self._dial)
        try:
            yield
        finally:
            reach.reset(token)

    async def _enter(self, peer: PeerId) -> None:
        """Enter a connected peer once it has said which protocols it speaks."""
        peer_id = ID.from_base58(peer)
        store = self._host.libp2p.get_peerstore()
        spoken: list[str] = []
        with trio.move_on_after(IDENTIFY_S):
            while not spoken:
                await trio.sleep(0.05)
                try:
                    spoken = list(store.get_protocols(peer_id))
                except Exception:  # noqa: BLE001  (raised for who is not known yet)
                    spoken = []
        visit = self._host.gate.open_visit(peer)
        if visit is None:
            return
        table = self.library.routing_table
        if str(DHT_PROTOCOL) not in spoken:
            table.remove_peer(peer_id)
            return
        was_empty = not self.size
        await table.add_peer(PeerInfo(peer_id, [Multiaddr(visit.address)]))
        if was_empty and self.size:
            # What was told before was told to nobody that is still there.
            self._keys = dict.fromkeys(self._keys, 0.0)
            self._advert_at = 0.0
            self._poked.set()

    def _is_member(self, peer: PeerId) -> bool:
        """Tell whether it is one: known, or connected, which is before its advert has come."""
        return self._judge.is_known(peer) or self._host.gate.open_visit(peer) is not None

    async def _judge_role(self) -> None:
        up_s = trio.current_time() - self._since
        is_server = serves(self._members, reachable=self._reachable, up_s=up_s)
        if is_server == self.is_server:
            return
        log.info("dht.role", extra={"serves": is_server})
        kept = self.table()
        await self.library.switch_mode(DHTMode.SERVER if is_server else DHTMode.CLIENT)
        # The library empties the table of who only asks; without it, it could ask nobody.
        await self.restore(kept)
        # The others have noted which protocols are spoken here.
        here = {ID.from_base58(one.peer) for one in self._host.gate.visits() if one.state == "open"}
        with trio.move_on_after(STREAM_S):
            await push_identify_to_peers(self._host.libp2p, here)

    def _tidy_peerstore(self) -> None:
        """Answers name whom they like, at as many addresses as they like; the library remembers it."""
        store = self._host.libp2p.get_peerstore()
        here = {visit.peer for visit in self._host.gate.visits()}
        for peer_id in list(store.peer_ids()):
            peer = PeerId(str(peer_id))
            clears: tuple[Any, ...] = (
                store.clear_addrs,
                store.clear_protocol_data,
                store.clear_peerdata,
            )
            if peer == self._host.me:
                continue
            if peer in here or self._judge.is_known(peer):
                # Links dial what adverts say, so that none of these are missed.
                clears = (
                    clears[:1] if len(store.peer_data_map[peer_id].addrs) > ADDRESSES_MAX else ()
                )
            for clear in clears:
                try:
                    clear(peer_id)
                except Exception as error:  # noqa: BLE001  (each raises its own for who is not there)
                    log.debug("peerstore.not_cleared", extra={"why": str(error)})


@asynccontextmanager
async def open_dht(
    host: Host,
    judge: Judge,
    now_ms: Callable[[], int],
    settings: DhtSettings,
    *,
    dial: Callable[[PeerId], Awaitable[None]],
    known: Sequence[tuple[PeerId, Sequence[str]]] = (),
) -> AsyncGenerator[Dht]:
    """Take part in the DHT for as long as the block lasts; open it before anyone is dialled.

    Args:
        host: this peer's host.
        judge: whose words count.
        now_ms: reads the wall clock.
        settings: how to take part.
        dial: returns once a member is connected; refuses strangers.
        known: the routing table as it was kept.
    """
    async with trio.open_nursery() as nursery:
        dht = Dht(host, judge, now_ms, settings, dial, nursery)
        try:
            await dht.restore(known)
            await nursery.start(dht.serve)
            yield dht
        finally:
            dht.close()
            nursery.cancel_scope.cancel()
