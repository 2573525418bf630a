"""Is who just connected a member? The three steps of hello, before anything else is served.

The dialler shows its chain first, to the peer id that it meant to dial (Noise proves it); the
listener answers with its own, or says why not; the dialler confirms. Pure: bytes in, a verdict and
bytes out; `gate.py` moves them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from covey.identity.certificate import Chain, Member, check_chain
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId
from covey.identity.wire import KIB, decode, decode_union, encode

PROTOCOL = "/covey/hello/1"
VERSION = 1
HELLO_BYTES_MAX = 16 * KIB
# A clock this far from most others is told to its owner (DESIGN 4).
SKEW_WARN_MS = 60_000
BOOKS_BYTES_MAX = 32
# A re-dial within this of our own open dial is taken for the other half of a simultaneous dial.
DUPLICATE_S = 10.0


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """Here is who I am."""

    version: int
    mesh: bytes
    chain: tuple[bytes, ...]
    wall_ms: int
    incarnation: int
    name: str
    books: Annotated[bytes, msgspec.Meta(max_length=BOOKS_BYTES_MAX)] = b""
    """Digest of the mesh's books as they are held here; empty: nothing is said of them."""


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Not here, and why."""

    code: str
    reason: str


class Confirm(msgspec.Struct, frozen=True, array_like=True, tag="confirm"):
    """I take you for a member, too."""


Answer = Hello | Refusal
Admit = Callable[[Chain, PeerId, int], Member]
"""Returns who a peer is now by the chain that it shows, or raises NotAdmitted."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The other side is a member."""

    member: Member
    incarnation: int
    name: str
    skew_ms: int
    """Its wall clock minus ours, within a round trip."""
    books: bytes = b""
    """Digest of the mesh's books as it holds them; empty: it said nothing of them."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The other side is not let in."""

    code: str
    reason: str

    def encoded(self) -> bytes:
        """Return what the other side is told."""
        return encode(Refusal(self.code[:64], self.reason[:400]))


def encode_hello(hello: Hello | Confirm) -> bytes:
    """Return a step of hello as bytes."""
    return encode(hello)


def judge_hello(
    data: bytes, remote: PeerId, *, mesh: MeshId, now_ms: int, admit: Admit | None = None
) -> Accepted | Refused:
    """Judge a dialler's hello, shown by the peer whose id Noise proved.

    Without `admit` the chain alone is judged: nothing is known that was revoked.
    """
    try:
        hello = decode(data, Hello, limit_bytes=HELLO_BYTES_MAX)
    except Malformed as error:
        return Refused("malformed", str(error))
    return _judge(hello, remote, mesh, now_ms, admit)


def judge_answer(
    data: bytes, remote: PeerId, *, mesh: MeshId, now_ms: int, admit: Admit | None = None
) -> Accepted | Refused:
    """Judge a listener's answer to our hello; `admit` as in `judge_hello`."""
    try:
        answer: Answer = decode_union(data, Answer, limit_bytes=HELLO_BYTES_MAX)
    except Malformed as error:
        return Refused("malformed", str(error))
    match answer:
        case Hello():
            return _judge(answer, remote, mesh, now_ms, admit)
        case Refusal(code, reason):
            return Refused(code[:64], reason[:400])


def is_confirmed(data: bytes) -> bool:
    """Tell whether a dialler confirmed."""
    try:
        decode(data, Confirm, limit_bytes=64)
    except Malformed:
        return False
    return True


def _judge(
    hello: Hello, remote: PeerId, mesh: MeshId, now_ms: int, admit: Admit | None
) -> Accepted | Refused:
    if hello.version != VERSION:
        return Refused(
            "version",
            f"hello version {hello.version}, this peer speaks {VERSION}; update the older",
        )
    if hello.mesh != mesh:
        return Refused("other-mesh", "this peer is in another mesh")
    try:
        chain: Chain = hello.chain
        if admit is None:
            member = check_chain(chain, mesh=mesh, subject=remote, now_ms=now_ms)
        else:
            member = admit(chain, remote, now_ms)
    except NotAdmitted as error:
        return Refused(error.code, str(error))
    skew_ms = hello.wall_ms - now_ms
    return Accepted(member, hello.incarnation, hello.name[:128], skew_ms, hello.books)


Simultaneous = Literal["replace", "duplicate"]


def second_connection(
    *, me: PeerId, remote: PeerId, dialling: bool, own_open_age_s: float | None
) -> Simultaneous:
    """Decide what a listener does with a further connection of a peer.

    Two connections of one pair make pubsub deaf (LIBP2P.md 12), so one must go, the same on both
    sides: where both dial at once, the one that the lower id dialled stays. Any other new
    connection replaces the old.

    `me` is the listener and `remote` who dialled; `dialling` tells whether the listener is dialling
    that peer right now; `own_open_age_s` is how long ago the listener's own dial of it opened, None
    if the open one is not its own.
    """
    ours_is_fresh = own_open_age_s is not None and own_open_age_s < DUPLICATE_S
    return "duplicate" if me < remote and (dialling or ours_is_fresh) else "replace"
