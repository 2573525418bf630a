"""How does a device enter a mesh: with a token, or by asking at an address?

One conversation with the inviter, then a file is written. Without a token, or where another admin is
asked than the inviter, an admin has to say yes: the conversation is repeated until then.
"""

import math
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from covey.gossip import joining
from covey.gossip.admission import Admission
from covey.gossip.gate import Visit
from covey.gossip.host import Host, HostSettings, open_host
from covey.identity.certificate import member_of
from covey.identity.envelope import MeshId
from covey.identity.errors import Conflict, Malformed, NotAdmitted, NotFound, Unavailable
from covey.identity.invite import Invite, parse_token
from covey.identity.keys import KEY_BYTES, Keypair, PeerId, peer_id_of, public_key_of
from covey.identity.words import NONCE_BYTES, words_of

from .clock import Clock, SystemEntropy
from .home import Home, MeshFile

T = TypeVar("T")
JOIN_S = 10.0
ASK_AGAIN_S = 2.0
_ID = "/p2p/"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an admin's yes is waited for."""

    timeout_s: float = math.inf
    waiting: Callable[[str], None] = lambda _what: None
    """Is told what is waited for, each time that this changes."""


PATIENCE = Patience()


@dataclass(frozen=True, slots=True)
class Door:
    """An admin, and where it is."""

    admin: PeerId
    address: str


@dataclass(frozen=True, slots=True)
class Met:
    """Whom a device without a token found at an address."""

    door: Door
    mesh: MeshId
    mesh_name: str
    words: str
    """The admin sees the same, if nobody stands in between."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What joining gave."""

    mesh: MeshFile
    skew_ms: int
    """The inviter's wall clock minus this device's, within a round trip."""


def join_mesh(
    path: Path,
    token: str,
    *,
    at: str | None = None,
    patience: Patience = PATIENCE,
    clock: Clock | None = None,
) -> Joined:
    """Join the mesh that `token` invites to; what was granted is stored when this returns.

    A member that joins its own mesh again gets a new certificate.

    Args:
        path: this device's home.
        token: the invite.
        at: the address of another admin, who is asked in place of the inviter, and has to say yes.
        patience: how long another admin's yes is waited for.
        clock: this device's.

    Raises:
        NotFound: there is no peer in this home.
        Conflict: it is in another mesh, or an admin of this one, or its daemon runs.
        Malformed: it is no token, or no address.
        NotAdmitted: the inviter refused, or what it granted does not hold.
        Unavailable: the inviter cannot be reached.
    """
    home = _made(path)
    invite = parse_token(token)
    inviter = peer_id_of(invite.inviter)
    doors = [door_of(at)] if at else [Door(inviter, address) for address in invite.addresses]
    with home.lock():
        me = home.keypair().peer_id
        if home.mesh_file.exists():
            _check_renewal(home.mesh(), invite.mesh, me)
        clock = clock or Clock()
        joined = _run(_join, home.keypair(), invite, doors, patience, clock)
        _store(home, joined, me)
    return joined


def meet(path: Path, address: str, *, clock: Clock | None = None) -> Met:
    """Ask at an admin's address to be let in; the admin lists this device as waiting.

    Raises:
        NotFound, Conflict, Malformed: as for `join_mesh`.
        NotAdmitted: whoever is there is no admin, or refuses.
        Unavailable: nobody is there.
    """
    home = _made(path)
    door, name = door_of(address), home.config().name
    with home.lock():
        me = home.keypair().peer_id
        met = _run(_meet, home.keypair(), door, name, clock or Clock())
        if home.mesh_file.exists():
            _check_renewal(home.mesh(), met.mesh, me)
    return met


def join_met(
    path: Path, met: Met, *, patience: Patience = PATIENCE, clock: Clock | None = None
) -> Joined:
    """Join the mesh of an admin whose words somebody has compared, once that admin has said yes.

    Ended in between, it goes on when `meet` and this are called again.

    Raises: as for `join_mesh`, and
        NotAdmitted: code `denied`: the admin said no; code `words`: these are not the words any more.
    """
    home = _made(path)
    name = home.config().name
    with home.lock():
        joined = _run(_wait, home.keypair(), met, name, patience, clock or Clock())
        _store(home, joined, home.keypair().peer_id)
    return joined


def door_of(address: str) -> Door:
    """Return the admin whom an address names, as `covey status` shows it.

    Raises:
        Malformed: it does not end in `/p2p/` and an id.
    """
    place, found, peer = address.strip().rpartition(_ID)
    if not found or not place.startswith("/"):
        raise Malformed(
            f"not the address of a peer: {address!r}; it is like /ip4/192.0.2.1/tcp/4001/p2p/12D3..., "
            "as covey status shows it"
        )
    public_key_of(PeerId(peer))
    return Door(PeerId(peer), place)


def is_address(text: str) -> bool:
    """Tell whether somebody means a peer's address rather than a file."""
    return text.startswith(("/ip4/", "/ip6/", "/dns")) and _ID in text


def _run(main: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run `main`; what ends it comes as it is, not in the groups that nurseries make of it."""
    try:
        return trio.run(main, *arguments)
    except BaseExceptionGroup as group:
        raise _alone(group) from None


def _alone(error: BaseException) -> BaseException:
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _alone(inner[0]) if len(inner) == 1 else error


def _made(path: Path) -> Home:
    home = Home(path)
    if not home.is_made:
        raise NotFound(f"no peer in {path}; make one first with: covey init --name NAME")
    return home


def _store(home: Home, joined: Joined, me: PeerId) -> None:
    # Its time is not judged by this device's clock, which may be the wrong one.
    member_of(joined.mesh.chain, mesh=joined.mesh.id, subject=me)
    home.write_mesh(joined.mesh)


def _check_renewal(mesh: MeshFile, wanted: bytes, me: PeerId) -> None:
    if mesh.mesh != wanted:
        raise Conflict(f"this peer is in mesh {mesh.name!r} already; use another COVEY_HOME")
    if member_of(mesh.chain, mesh=mesh.id, subject=me).role == "admin":
        raise Conflict(f"this peer is an admin of mesh {mesh.name!r}; joining would make it less")


class _NoListener:
    def opened(self, visit: Visit) -> None:
        """A joiner's connection never opens."""

    def closed(self, visit: Visit) -> None:
        """Nor does it close."""


@asynccontextmanager
async def _open(keypair: Keypair, mesh: bytes, clock: Clock) -> AsyncGenerator[Host]:
    """A host that only dials, as a guest."""
    door = Admission(
        mesh=MeshId(mesh),
        chain=(),
        incarnation=0,
        name="",
        now_ms=clock.now_ms,
        is_known=lambda _peer: False,
        desk=None,
        keep=_keep_nothing,
        draw=SystemEntropy().draw,
    )
    settings = HostSettings(address="127.0.0.1")
    async with open_host(keypair, settings, door, _NoListener()) as host:
        yield host


async def _join(
    keypair: Keypair, invite: Invite, doors: list[Door], patience: Patience, clock: Clock
) -> Joined:
    async with _open(keypair, invite.mesh, clock) as host:

        async def attempt() -> tuple[Door, joining.Grant]:
            why: Unavailable | None = None
            for door in doors:
                conversation = _WithInvite(invite, keypair.peer_id)
                try:
                    await _converse(host, door, conversation)
                except Unavailable as error:
                    why = error
                    continue
                return door, conversation.granted
            away = why or Unavailable("the invite names no address")
            raise Unavailable(f"{away}; if the inviter is away, ask another admin: --at ADDRESS")

        door, grant = await _until_granted(attempt, patience)
        addresses = tuple(one.address for one in doors)
        return _joined(MeshId(invite.mesh), door.admin, addresses, grant, clock)


async def _meet(keypair: Keypair, door: Door, name: str, clock: Clock) -> Met:
    conversation = _WithoutInvite(name, door, keypair.peer_id, None)
    async with _open(keypair, bytes(KEY_BYTES), clock) as host:
        await _converse(host, door, conversation)
    return conversation.met


async def _wait(keypair: Keypair, met: Met, name: str, patience: Patience, clock: Clock) -> Joined:
    async with _open(keypair, met.mesh, clock) as host:

        async def attempt() -> joining.Grant:
            conversation = _WithoutInvite(name, met.door, keypair.peer_id, met)
            await _converse(host, met.door, conversation)
            return conversation.granted

        grant = await _until_granted(attempt, patience)
        return _joined(met.mesh, met.door.admin, (met.door.address,), grant, clock)


async def _until_granted(attempt: Callable[[], Awaitable[T]], patience: Patience) -> T:
    """Ask until an admin has said yes; an admin that is away meanwhile is waited for, too."""
    has_asked, told = False, ""
    ends_at = trio.current_time() + patience.timeout_s
    while True:
        try:
            return await attempt()
        except NotAdmitted as error:
            if error.code != "pending":
                raise
            has_asked, now = True, str(error)
        except Unavailable as error:
            if not has_asked:
                raise
            now = str(error)
        if trio.current_time() + ASK_AGAIN_S > ends_at:
            raise Unavailable(f"not let in yet: {now}; come back with the same command")
        if now != told:
            patience.waiting(now)
        told = now
        await trio.sleep(ASK_AGAIN_S)


async def _converse(host: Host, door: Door, conversation: "_WithInvite | _WithoutInvite") -> None:
    await host.gate.join(door.admin, door.address, conversation.step, timeout_s=JOIN_S)


def _joined(
    mesh: MeshId, admin: PeerId, addresses: tuple[str, ...], grant: joining.Grant, clock: Clock
) -> Joined:
    file = MeshFile(mesh, grant.mesh_name, grant.chain, ((admin, addresses),))
    return Joined(file, grant.wall_ms - clock.now_ms())


class _WithInvite:
    """The side of a joiner with an invite, step by step."""

    def __init__(self, invite: Invite, me: PeerId) -> None:
        self._invite = invite
        self._me = me
        self._steps = 0
        self._grant: joining.Grant | None = None

    @property
    def granted(self) -> joining.Grant:
        assert self._grant is not None, "the conversation has ended well"
        return self._grant

    def step(self, heard: bytes | None) -> bytes | None:
        self._steps += 1
        if heard is None:
            return joining.ask(self._invite)
        if self._steps == 2:
            return joining.prove(heard, self._invite, self._me)
        self._grant = joining.granted(heard)
        return None


class _WithoutInvite:
    """The side of a joiner without one. It ends with what is shown, or once that was confirmed goes on.

    Args:
        name: what this device calls itself.
        door: whom it dials: the connection proves that it is that admin.
        me: this device.
        confirmed: what somebody has said yes to.
    """

    def __init__(self, name: str, door: Door, me: PeerId, confirmed: Met | None) -> None:
        self._name = name
        self._door = door
        self._me = me
        self._confirmed = confirmed
        self._met: Met | None = None
        self._grant: joining.Grant | None = None

    @property
    def met(self) -> Met:
        assert self._met is not None, "the conversation has ended well"
        return self._met

    @property
    def granted(self) -> joining.Grant:
        assert self._grant is not None, "the conversation has ended well"
        return self._grant

    def step(self, heard: bytes | None) -> bytes | None:
        if heard is None:
            return joining.knock(self._name)
        if self._met is not None:
            self._grant = joining.granted(heard)
            return None
        self._met = self._seen(joining.shown(heard))
        if self._confirmed is None:
            return None
        if (self._met.mesh, self._met.words) != (self._confirmed.mesh, self._confirmed.words):
            raise NotAdmitted(
                "words", "the admin shows other words than those you compared; ask again"
            )
        return joining.wait()

    def _seen(self, shown: joining.Show) -> Met:
        if len(shown.mesh) != KEY_BYTES or len(shown.nonce) != NONCE_BYTES:
            raise Malformed("what the admin shows has the wrong length")
        mesh = MeshId(shown.mesh)
        if member_of(shown.chain, mesh=mesh, subject=self._door.admin).role != "admin":
            raise NotAdmitted("not-admin", f"{self._door.admin} is no admin and can let nobody in")
        words = words_of(mesh, self._door.admin, self._me, shown.nonce)
        return Met(self._door, mesh, shown.mesh_name[:128], words)


async def _keep_nothing(_effects: list[joining.DeskEffect]) -> None:
    """A joiner honours no invites."""
    raise NotAdmitted("not-admin", "a joiner honours no invites")
