"""With what is the shared memory of a device asked? Who it is, what it may, and whom it knows."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from covey.identity.keys import PeerId
from covey.peer.events import Changed

Summarize = Callable[[str], Awaitable[tuple[str, str]]]
"""Returns this device's summary of a raw text, and the name of the model that worded it."""


@dataclass(slots=True)
class Surroundings:
    """What the shared memory is asked with."""

    me: PeerId
    is_admin: bool
    zones: frozenset[str]
    now_ms: Callable[[], int]
    draw: Callable[[int], bytes]
    name_of: Callable[[str], str]
    """What a peer calls itself; its id if that is not known."""
    find_peer: Callable[[str], PeerId]
    """Returns the peer of that name or id, or raises NotFound."""
    known_peers: Callable[[], Iterable[PeerId]]
    clock_trouble: Callable[[], str | None]
    """Why this device's clock cannot be trusted to sign with, if so."""
    summarize: Summarize
    tell: Callable[[Changed], None]
    """Tells who watches of a change, which they look at by `change`."""
