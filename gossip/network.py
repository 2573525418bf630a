"""How do the cores reach other peers? The port over links; `links.py` is the real one."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from covey.identity.certificate import Member
from covey.identity.keys import PeerId


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How busy a peer is; travels in pings."""

    running: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """One live link."""

    peer: PeerId
    round_trip_ms: float | None
    heard_at: float
    """When anything was last heard, on the monotonic clock."""
    address: str
    inbound: bool
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class LinkUp:
    """A link to this member is open in both directions."""

    peer: PeerId
    member: Member


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The link ended."""

    peer: PeerId
    why: str


@dataclass(slots=True)
class Traffic:
    """Bytes of frames since start, by channel; `payload` is what was made from content."""

    payload_out: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    payload_in: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    control_out: dict[str, int] = field(default_factory=lambda: dict[str, int]())
    control_in: dict[str, int] = field(default_factory=lambda: dict[str, int]())


MessageHandler = Callable[[PeerId, bytes], None]
RequestHandler = Callable[[PeerId, bytes], Awaitable[bytes]]
LinkHandler = Callable[[LinkUp | LinkDown], None]


class Network(Protocol):
    """What links offer to those above them."""

    @property
    def me(self) -> PeerId:
        """This peer."""
        ...

    def send(self, to: PeerId, channel: str, body: bytes, *, payload: bool = False) -> bool:
        """Queue a message; False if there is no link, or its queue is full. Never waits."""
        ...

    async def request(
        self, to: PeerId, channel: str, body: bytes, *, timeout_s: float, payload: bool = False
    ) -> bytes:
        """Ask and return the answer.

        Raises:
            Unavailable: no link, no answer in time, or the link ended.
            PeerMisbehaved: the peer answered with an error.
        """
        ...

    def links(self) -> Mapping[PeerId, LinkInfo]:
        """Return the live links."""
        ...

    def on_message(self, channel: str, handler: MessageHandler) -> None:
        """Call `handler` for each message on `channel`. It must not wait."""
        ...

    def on_request(self, channel: str, handler: RequestHandler) -> None:
        """Answer requests on `channel` by `handler`."""
        ...

    def on_link(self, handler: LinkHandler) -> None:
        """Call `handler` whenever a link comes or goes."""
        ...

    def traffic(self) -> Traffic:
        """Return the counters."""
        ...
