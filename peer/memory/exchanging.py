"""How far do others and this device hold the same? Compared on request, and audited once a day."""

import logging
import math

import trio

from covey.gossip.memory.driver import Memory
from covey.gossip.memory.settings import SpreadSettings
from covey.identity.errors import Unavailable
from covey.identity.keys import PeerId

from .auditing import Audits
from .showing import exchange_view, step_view
from .surroundings import Surroundings
from .views import ExchangeView, StepView, SyncRequest

log = logging.getLogger(__name__)

SYNC_S_MAX = 600.0
SALT_BYTES = 32
# A little more than the other side waits.
PAUSE_S = SpreadSettings().audit_s + 2
_ENDED = ("in step", "apart", "muted")


class Exchanging:
    """Compares with others. Run `audit` in a nursery."""

    def __init__(self, parts: Surroundings, memory: Memory) -> None:
        self._parts = parts
        self._memory = memory
        self._audits = Audits(parts.me)
        self._audited: dict[PeerId, float] = {}
        self._stepped = trio.Event()
        memory.on_step(self._step_changed)

    async def sync(self, request: SyncRequest) -> list[ExchangeView]:
        """Compare with a linked peer, or all of them, and return what that found and moved.

        Raises:
            NotFound: there is no such peer.
            Unavailable: it is not linked, or was audited just now.
        """
        spreading = self._memory.spreading
        if request.peer is None:
            peers = [one.peer for one in spreading.neighbours()]
        else:
            peers = [self._parts.find_peer(request.peer)]
        for peer in peers:
            if spreading.neighbour(peer) is None:
                who = self._parts.name_of(peer)
                raise Unavailable(f"{who} is not in reach now; it is compared with when it is back")
            if request.audit:
                self._check_pause(peer)
        for peer in peers:
            self._compare(peer, audit=request.audit)
        with trio.move_on_after(min(request.timeout_s, SYNC_S_MAX)):
            while any(self._is_comparing(peer) for peer in peers):
                await self._stepped.wait()
        now = trio.current_time()
        return [
            exchange_view(one.exchange, self._step(one.peer), now)
            for peer in peers
            if (one := spreading.neighbour(peer)) is not None
        ]

    async def audit(self) -> None:
        """Audit one linked peer a day, until cancelled."""
        spreading = self._memory.spreading
        while True:
            await trio.sleep(self._audits.look_s)
            quiet = [
                one.peer
                for one in spreading.neighbours()
                if one.state == "in step" and not one.is_comparing
            ]
            peer = self._audits.take_next(quiet, self._parts.now_ms())
            if peer is not None:
                log.info("memory.audit_begun", extra={"peer": peer})
                self._compare(peer, audit=True)

    def _compare(self, peer: PeerId, *, audit: bool) -> None:
        if audit:
            self._audited[peer] = trio.current_time()
        self._memory.compare(peer, salt=self._parts.draw(SALT_BYTES) if audit else None)

    def _check_pause(self, peer: PeerId) -> None:
        """Refuse an audit that the other side would not answer yet."""
        ago_s = trio.current_time() - self._audited.get(peer, -math.inf)
        if ago_s < PAUSE_S:
            raise Unavailable(
                f"{self._parts.name_of(peer)} was audited {ago_s:.0f} s ago, and sums up all that it "
                f"holds for one audit in {PAUSE_S:.0f} s; try again in {PAUSE_S - ago_s:.0f} s"
            )

    def steps(self) -> list[StepView]:
        """Return how far each known peer and this one hold the same."""
        return [self._step(peer) for peer in self._parts.known_peers()]

    def _step(self, peer: PeerId) -> StepView:
        neighbour = self._memory.spreading.neighbour(peer)
        name = self._parts.name_of
        if neighbour is None:
            who = name(peer)
            sentence = f"{who} is not in reach; what is new here waits for it"
            return StepView(peer=peer, peer_name=who, state="offline", sentence=sentence)
        return step_view(neighbour, name, trio.current_time(), self._parts.now_ms())

    def _is_comparing(self, peer: PeerId) -> bool:
        neighbour = self._memory.spreading.neighbour(peer)
        return neighbour is not None and (
            neighbour.state not in _ENDED or bool(neighbour.waiting or neighbour.lacking)
        )

    def _step_changed(self, _peer: PeerId) -> None:
        self._stepped.set()
        self._stepped = trio.Event()
