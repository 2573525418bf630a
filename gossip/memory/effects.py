"""What does spreading want done? Messages to send, entries to take in, and news for who watches."""

from collections.abc import Sequence
from dataclasses import dataclass

from covey.identity.keys import PeerId

from .entry import Key
from .messages import Item, Message, encode_message
from .namespace import Namespace
from .neighbour import Neighbour, State


@dataclass(frozen=True, slots=True)
class Say:
    """Send a message on channel `memory`; `payload`: it is made from content."""

    to: PeerId
    body: bytes
    payload: bool


@dataclass(frozen=True, slots=True)
class Ingest:
    """Check these entries and take them in, then tell `ingested`, or `not_ingested`."""

    sender: PeerId
    number: int
    """This peer's own, of no meaning to the sender."""
    namespace: Namespace
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of a batch."""

    sender: PeerId
    number: int
    namespace: Namespace
    taken: Sequence[Key]
    """What is held now, or is known to be superseded: none of it is asked for again."""
    refused: Sequence[bytes]
    """Short ids of what is not taken now: too early, too old, its author unknown or without right."""
    bad: str | None
    """Why an entry was malformed or its signature false; that is its sender's fault."""


@dataclass(frozen=True, slots=True)
class StepChanged:
    """A peer fell in step or out of it, or all that was on its way has come: tell who watches."""

    peer: PeerId


Effect = Say | Ingest | StepChanged


class Decisions:
    """What was decided since it was last taken, in order. All parts of one `Spreading` share it."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []

    def say(self, neighbour: Neighbour, message: Message, *, payload: bool = False) -> None:
        """Send a message to a neighbour."""
        body = encode_message(message)
        neighbour.exchange.bytes_out += len(body)
        self._effects.append(Say(neighbour.peer, body, payload))

    def ingest(self, batch: Ingest) -> None:
        """Have entries checked and taken in."""
        self._effects.append(batch)

    def become(self, neighbour: Neighbour, state: State, why: str) -> None:
        """Note how it goes with a neighbour from now on."""
        if neighbour.state != state:
            self.step_changed(neighbour.peer)
        neighbour.state = state
        neighbour.why = why

    def step_changed(self, peer: PeerId) -> None:
        """Tell who watches that something is new about a peer."""
        self._effects.append(StepChanged(peer))

    def take(self) -> list[Effect]:
        """Return it, and begin anew."""
        effects, self._effects = self._effects, []
        return effects
