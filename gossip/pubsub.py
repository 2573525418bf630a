"""How does news reach peers that are not linked? GossipSub among members, behind the gate.

A topic cannot be closed: every member that is connected gets what is published, messages from
before it came included, and each delivery costs 3 to 4 ms. So it carries only what every member may
read: a message a second and peer, never a guarantee. The gate judges connections, not authors; so
each message carries its author's chain, which is judged again by everyone that it passes. What is
here of py-libp2p's habits is in `libp2p_fixes.py` (LIBP2P.md 5 and 12).
"""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import trio
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub as LibraryPubsub
from libp2p.tools.anyio_service import background_trio_service

from covey.identity.certificate import Chain, Member
from covey.identity.errors import CoveyError, Malformed, Misuse, PeerMisbehaved
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode, encode

from . import libp2p_fixes
from .host import Host

log = logging.getLogger(__name__)

# 1.2 announces each message to each peer before it is sent: twice the messages, half the speed.
PROTOCOL = TProtocol("/meshsub/1.1.0")
BODY_BYTES_MAX = 48 * KIB
# The rest is the author's chain (8 KiB at most) and the library's envelope.
NEWS_BYTES_MAX = 60 * KIB
# How old a message may be, and how far ahead its author's clock. The library forgets after SEEN_S
# that it has had a message; by then it is too old for anyone to pass it on again as news.
AGE_MS_MAX = 60_000
SEEN_S = 120
# Below SEEN_S, or a message that is too old would pass once more unjudged.
JUDGED_S = 60
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12
AUTHORS_MAX = 4096
# Of one message; more than we know ourselves, since a newer peer names them all in one.
SUBSCRIPTIONS_MAX = 64


class News(msgspec.Struct, frozen=True, array_like=True, tag="news"):
    """What is published: by whom says the library's signature."""

    chain: tuple[bytes, ...]
    sent_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """What a member published."""

    topic: str
    author: Member
    body: bytes


@dataclass(slots=True)
class Pace:
    """At most one message a second, and `burst` at once after a silence. Pure."""

    burst: float = 1.0
    left: float = -1.0
    at: float = 0.0

    def take(self, now: float) -> bool:
        """Tell whether one more may pass now, and count it if so."""
        if self.left < 0:
            self.left, self.at = self.burst, now
        self.left = min(self.burst, self.left + max(0.0, now - self.at))
        self.at = max(self.at, now)
        if self.left < 1.0:
            return False
        self.left -= 1.0
        return True


class Judge(Protocol):
    """Whose words count; `admission.py` has the real one."""

    @property
    def chain(self) -> Chain:
        """This peer's own chain."""
        ...

    def judge_author(self, chain: Chain, author: PeerId) -> Member:
        """Judge who wrote what another peer may have passed on.

        Raises:
            NotAdmitted: the chain does not make a member of it now.
        """
        ...


@dataclass(frozen=True, slots=True)
class PubsubSettings:
    """What is talked of, and how much of it is kept."""

    topics: tuple[str, ...]
    """All of them: other peers' subscriptions to anything else are ignored."""
    heartbeat_s: float = 1.0
    inbox_max: int = 256
    """Messages that wait to be received here; more are dropped and counted."""
    author_burst: float = 8.0
    """What one author may have published at once: after a cut its last seconds come together."""


class Pubsub:
    """This peer's part in gossip. Use `open_pubsub`."""

    def __init__(
        self,
        host: Host,
        judge: Judge,
        now_ms: Callable[[], int],
        settings: PubsubSettings,
        nursery: trio.Nursery,
    ) -> None:
        self._host = host
        self._judge = judge
        self._now_ms = now_ms
        self._settings = settings
        self._nursery: trio.Nursery | None = nursery
        self._pace = Pace()
        self._paces: dict[PeerId, Pace] = {}
        self._put, self.inbox = trio.open_memory_channel[Heard](settings.inbox_max)
        self.refused = 0
        """Messages that were not believed."""
        self.dropped = 0
        """Messages for which the inbox had no room."""
        router: Any = GossipSub(
            [PROTOCOL],
            DEGREE,
            DEGREE_LOW,
            DEGREE_HIGH,
            heartbeat_interval=settings.heartbeat_s,  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
            # Below some health that it computes, adaptive gossip slows the heartbeat to 30 s.
            adaptive_gossip_enabled=False,
            # It counts by forwarder, so it throttles whoever relays.
            spam_protection_enabled=False,
            eclipse_protection_enabled=False,
        )
        self.library: Any = LibraryPubsub(
            host.libp2p,
            router,
            seen_ttl=SEEN_S,
            validation_cache_ttl=JUDGED_S,
            max_subscriptions_per_rpc=SUBSCRIPTIONS_MAX,
            max_inbound_rpc_size=libp2p_fixes.RPC_BYTES_MAX,
            allowed_topics=frozenset(settings.topics),
        )
        libp2p_fixes.fresh_sequence_numbers(self.library, now_ms())
        libp2p_fixes.contain_messages(self.library)
        libp2p_fixes.cut_when_deaf(self.library, self._cut)
        host.pubsub = self.library

    async def publish(self, topic: str, body: bytes) -> bool:
        """Tell every member that can be reached; False if this peer published within the second.

        Raises:
            Misuse: the topic is none of ours, or the body too long.
        """
        if topic not in self._settings.topics:
            raise Misuse(f"topic {topic!r} is not one of {self._settings.topics}")
        if len(body) > BODY_BYTES_MAX:
            raise Misuse(f"news of {len(body)} bytes, over the limit of {BODY_BYTES_MAX}")
        if not self._pace.take(trio.current_time()):
            return False
        await self.library.publish(topic, encode(News(self._judge.chain, self._now_ms(), body)))
        return True

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Subscribe, and deliver until cancelled."""
        async with trio.open_nursery() as nursery:
            for topic in self._settings.topics:
                # Synchronous, or a message is delivered several times while it is judged.
                self.library.set_topic_validator(topic, self._validate, False)
                nursery.start_soon(self._deliver, topic, await self.library.subscribe(topic))
            # Who was connected before has asked for this protocol in vain, and does not ask again.
            for visit in self._host.gate.visits():
                if visit.state == "open":
                    nursery.start_soon(self._host.gate.cut, visit)
            task_status.started()

    def close(self) -> None:
        """Serve nobody from now on."""
        self._nursery = None
        self._host.pubsub = None
        self._host.libp2p.remove_stream_handler(PROTOCOL)

    def _validate(self, _forwarder: Any, message: Any) -> bool:
        """Tell whether a message may be delivered and passed on; its signature holds already."""
        try:
            heard = self._judge_message(message)
            self._keep_pace(heard.author.peer)
        except CoveyError as error:
            self.refused += 1
            log.info("news.refused", extra={"why": str(error)})
            return False
        return True

    def _judge_message(self, message: Any) -> Heard:
        topics = list(message.topicIDs)
        if len(topics) != 1:
            raise Malformed(f"a message for {len(topics)} topics, not for one")
        news = decode(message.data, News, limit_bytes=NEWS_BYTES_MAX)
        age_ms = self._now_ms() - news.sent_ms
        if abs(age_ms) > AGE_MS_MAX:
            raise Malformed(f"news of {age_ms} ms ago, not within {AGE_MS_MAX}")
        if len(news.body) > BODY_BYTES_MAX:
            raise Malformed(f"news of {len(news.body)} bytes, over the limit of {BODY_BYTES_MAX}")
        author = PeerId(str(ID(message.from_id)))
        return Heard(topics[0], self._judge.judge_author(news.chain, author), news.body)

    def _keep_pace(self, author: PeerId) -> None:
        pace = self._paces.get(author)
        if pace is None:
            while len(self._paces) >= AUTHORS_MAX:
                del self._paces[next(iter(self._paces))]
            pace = self._paces[author] = Pace(self._settings.author_burst)
        if not pace.take(trio.current_time()):
            raise PeerMisbehaved(author, "publishes more than one message a second")

    async def _deliver(self, topic: str, subscription: Any) -> None:
        async for message in subscription:
            try:
                heard = self._judge_message(message)
            except CoveyError as error:
                # Its time ran out while it waited.
                log.debug("news.late", extra={"topic": topic, "why": str(error)})
                continue
            if heard.author.peer == self._host.me:
                continue
            try:
                self._put.send_nowait(heard)
            except (trio.WouldBlock, trio.BrokenResourceError):
                # Full, or closed by who read it.
                self.dropped += 1

    def _cut(self, peer: Any) -> None:
        visit = self._host.gate.open_visit(PeerId(str(peer)))
        if visit is None or self._nursery is None:
            return
        log.info("pubsub.deaf", extra={"peer": visit.peer})
        self._host.gate.shut(visit)
        self._nursery.start_soon(self._host.gate.cut, visit)


@asynccontextmanager
async def open_pubsub(
    host: Host, judge: Judge, now_ms: Callable[[], int], settings: PubsubSettings
) -> AsyncGenerator[Pubsub]:
    """Take part in gossip for as long as the block lasts; open it before anyone is dialled.

    Connections that are open already are cut, to be made again with gossip on them.

    Args:
        host: this peer's host.
        judge: whose words count.
        now_ms: reads the wall clock.
        settings: the topics, and limits.
    """
    async with trio.open_nursery() as nursery:
        pubsub = Pubsub(host, judge, now_ms, settings, nursery)
        try:
            async with (
                background_trio_service(pubsub.library),
                background_trio_service(pubsub.library.router),
            ):
                await pubsub.library.wait_until_ready()
                await nursery.start(pubsub.serve)
                yield pubsub
        finally:
            pubsub.close()
            nursery.cancel_scope.cancel()
