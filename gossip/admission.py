"""Who is let in? The door's judgement: hello by certificates, join by this peer's invites."""

from collections.abc import Awaitable, Callable

from covey.identity.certificate import Chain, Member, check_chain
from covey.identity.envelope import MeshId
from covey.identity.keys import PeerId

from . import hello
from .joining import CHALLENGE_BYTES, DeskEffect, InviteDesk, denied


class Admission:
    """The door of one member of one mesh.

    Args:
        mesh: the mesh.
        chain: this peer's own chain.
        incarnation: of this start.
        name: what this peer calls itself.
        now_ms: reads the wall clock.
        is_known: whether a peer is a member that we know of.
        desk: this admin's invites; None on a peer that is no admin.
        keep: stores what the desk decided, and returns once it is durable.
        draw: draws entropy.
    """

    def __init__(
        self,
        *,
        mesh: MeshId,
        chain: Chain,
        incarnation: int,
        name: str,
        now_ms: Callable[[], int],
        is_known: Callable[[PeerId], bool],
        desk: InviteDesk | None,
        keep: Callable[[list[DeskEffect]], Awaitable[None]],
        draw: Callable[[int], bytes],
    ) -> None:
        self._mesh = mesh
        self._chain = chain
        self._incarnation = incarnation
        self._name = name
        self._now_ms = now_ms
        self._is_known = is_known
        self._desk = desk
        self._keep = keep
        self._draw = draw
        self._nonces: dict[PeerId, bytes] = {}
        self.skew_ms: dict[PeerId, int] = {}
        """Wall clock of each peer minus ours, as its last hello showed."""

    @property
    def chain(self) -> Chain:
        """This peer's own chain, which what it publishes carries."""
        return self._chain

    def judge_author(self, chain: Chain, author: PeerId) -> Member:
        """Judge who wrote what another peer may have passed on.

        Raises:
            NotAdmitted: the chain does not make a member of it now.
        """
        return check_chain(chain, mesh=self._mesh, subject=author, now_ms=self._now_ms())

    def is_known(self, peer: PeerId) -> bool:
        """Tell whether this is a member that we know of."""
        return self._is_known(peer)

    def greeting(self) -> bytes:
        """Return our own hello."""
        return hello.encode_hello(
            hello.Hello(
                version=hello.VERSION,
                mesh=self._mesh,
                chain=self._chain,
                wall_ms=self._now_ms(),
                incarnation=self._incarnation,
                name=self._name,
            )
        )

    def judge_hello(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a dialler's hello."""
        return self._noted(
            remote, hello.judge_hello(data, remote, mesh=self._mesh, now_ms=self._now_ms())
        )

    def judge_answer(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a listener's answer."""
        return self._noted(
            remote, hello.judge_answer(data, remote, mesh=self._mesh, now_ms=self._now_ms())
        )

    def challenge(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's ask; the challenge is drawn for this connection's key."""
        if self._desk is None:
            return denied("not-admin", "this peer is no admin and grants nothing")
        nonce = self._draw(CHALLENGE_BYTES)
        while len(self._nonces) >= 64:
            del self._nonces[next(iter(self._nonces))]
        self._nonces[joiner] = nonce
        return self._desk.challenge(data, nonce)

    async def prove(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's proof, once the answer is durable."""
        nonce = self._nonces.pop(joiner, None)
        if self._desk is None or nonce is None:
            return denied("not-asked", "ask first")
        answer, effects = self._desk.prove(data, joiner, nonce, self._now_ms())
        if effects:
            await self._keep(effects)
        return answer

    def _noted(
        self, remote: PeerId, verdict: hello.Accepted | hello.Refused
    ) -> hello.Accepted | hello.Refused:
        if isinstance(verdict, hello.Accepted):
            self.skew_ms[remote] = verdict.skew_ms
        return verdict
