"""How does a device enter a mesh with a token?

One conversation with the inviter, then a file is written.
"""

from dataclasses import dataclass
from pathlib import Path

import trio

from covey.gossip import joining
from covey.gossip.admission import Admission
from covey.gossip.gate import Visit
from covey.gossip.host import HostSettings, open_host
from covey.identity.certificate import member_of
from covey.identity.envelope import MeshId
from covey.identity.errors import Conflict, NotAdmitted, NotFound, Unavailable
from covey.identity.invite import Invite, parse_token
from covey.identity.keys import Keypair, PeerId, peer_id_of

from .clock import Clock, SystemEntropy
from .home import Home, MeshFile

JOIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Joined:
    """What joining gave."""

    mesh: MeshFile
    skew_ms: int
    """The inviter's wall clock minus this device's, within a round trip."""


def join_mesh(path: Path, token: str, *, clock: Clock | None = None) -> Joined:
    """Join the mesh that `token` invites to; what was granted is stored when this returns.

    A member that joins its own mesh again gets a new certificate.

    Raises:
        NotFound: there is no peer in this home.
        Conflict: it is in another mesh, or an admin of this one, or its daemon runs.
        Malformed: it is no token.
        NotAdmitted: the inviter refused, or what it granted does not hold.
        Unavailable: the inviter cannot be reached.
    """
    home = Home(path)
    if not home.is_made:
        raise NotFound(f"no peer in {path}; make one first with: covey init --name NAME")
    invite = parse_token(token)
    with home.lock():
        me = home.keypair().peer_id
        if home.mesh_file.exists():
            _check_renewal(home.mesh(), invite, me)
        clock = clock or Clock()
        joined = trio.run(_join, home.keypair(), invite, clock)
        # Its time is not judged by this device's clock, which may be the wrong one.
        member_of(joined.mesh.chain, mesh=joined.mesh.id, subject=me)
        home.write_mesh(joined.mesh)
    return joined


def _check_renewal(mesh: MeshFile, invite: Invite, me: PeerId) -> None:
    if mesh.mesh != invite.mesh:
        raise Conflict(f"this peer is in mesh {mesh.name!r} already; use another COVEY_HOME")
    if member_of(mesh.chain, mesh=mesh.id, subject=me).role == "admin":
        raise Conflict(f"this peer is an admin of mesh {mesh.name!r}; joining would make it less")


class _NoListener:
    def opened(self, visit: Visit) -> None:
        """A joiner's connection never opens."""

    def closed(self, visit: Visit) -> None:
        """Nor does it close."""


async def _join(keypair: Keypair, invite: Invite, clock: Clock) -> Joined:
    inviter = peer_id_of(invite.inviter)
    door = Admission(
        mesh=MeshId(invite.mesh),
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
        why: Unavailable | None = None
        for address in invite.addresses:
            conversation = _Conversation(invite, keypair.peer_id)
            try:
                await host.gate.join(inviter, address, conversation.step, timeout_s=JOIN_S)
            except Unavailable as error:
                why = error
                continue
            grant = conversation.grant
            assert grant is not None
            mesh = MeshFile(
                invite.mesh, grant.mesh_name, grant.chain, ((inviter, invite.addresses),)
            )
            return Joined(mesh, grant.wall_ms - clock.now_ms())
    raise why or Unavailable("the invite names no address")


class _Conversation:
    """The joiner's side, step by step."""

    def __init__(self, invite: Invite, me: PeerId) -> None:
        self._invite = invite
        self._me = me
        self._steps = 0
        self.grant: joining.Grant | None = None

    def step(self, heard: bytes | None) -> bytes | None:
        self._steps += 1
        if heard is None:
            return joining.ask(self._invite)
        if self._steps == 2:
            return joining.prove(heard, self._invite, self._me)
        self.grant = joining.granted(heard)
        return None


async def _keep_nothing(_effects: list[joining.DeskEffect]) -> None:
    """A joiner honours no invites."""
    raise NotAdmitted("not-admin", "a joiner honours no invites")
