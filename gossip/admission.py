"""Who is let in? The door's judgement: hello by certificates, join by this peer's invites."""

from collections.abc import Awaitable, Callable, Collection

from covey.identity.certificate import Chain, Member
from covey.identity.envelope import MeshId
from covey.identity.errors import NotAdmitted
from covey.identity.keys import PeerId

from . import hello
from .joining import CHALLENGE_BYTES, DeskEffect, InviteDesk, denied, is_knock
from .memory.standing import Standing


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
        standing: which certificates are known, and which are revoked; None: nothing yet.
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
        standing: Standing | None = None,
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
        self._standing = standing or Standing(mesh)
        self.only: Collection[PeerId] | None = None
        """Whom this peer believes; None: every member. Who has joined just now, and has not the mesh's
        books yet, cannot know who was revoked."""
        self._nonces: dict[PeerId, bytes] = {}
        self.skew_ms: dict[PeerId, int] = {}
        """Wall clock of each peer minus ours, as its last hello showed."""
        self.own_books: Callable[[], bytes] = lambda: b""
        """Returns the digest of the mesh's books as they are held here now, which hello shows."""
        self.books: dict[PeerId, bytes] = {}
        """Digest of the mesh's books as each peer holds them, as its last hello showed."""

    @property
    def chain(self) -> Chain:
        """This peer's own chain, which what it publishes carries."""
        return self._chain

    def use(self, chain: Chain) -> None:
        """Show this chain from now on."""
        self._chain = chain

    def believes(self, peer: PeerId) -> bool:
        """Tell whether this peer's chain would be believed by now."""
        return self.only is None or peer in self.only

    def judge_author(self, chain: Chain, author: PeerId) -> Member:
        """Judge who wrote what another peer may have passed on.

        Raises:
            NotAdmitted: the chain does not make a member of it now.
        """
        return self._standing.admit(chain, author, self._now_ms())

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
                books=self.own_books(),
            )
        )

    def judge_hello(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a dialler's hello."""
        return self._noted(
            remote,
            hello.judge_hello(
                data, remote, mesh=self._mesh, now_ms=self._now_ms(), admit=self._admit
            ),
        )

    def judge_answer(self, data: bytes, remote: PeerId) -> hello.Accepted | hello.Refused:
        """Judge a listener's answer."""
        return self._noted(
            remote,
            hello.judge_answer(
                data, remote, mesh=self._mesh, now_ms=self._now_ms(), admit=self._admit
            ),
        )

    def challenge(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's first message; what is drawn for it is for this connection's key."""
        if self._desk is None:
            return denied("not-admin", "this peer is no admin and grants nothing")
        without_invite = is_knock(data)
        nonce = self._draw(CHALLENGE_BYTES)
        while len(self._nonces) >= 64:
            del self._nonces[next(iter(self._nonces))]
        self._nonces[joiner] = nonce
        if without_invite:
            return self._desk.knock(data, joiner, nonce, self._now_ms())
        return self._desk.challenge(data, nonce)

    async def prove(self, data: bytes, joiner: PeerId) -> bytes:
        """Answer a joiner's second message, once the answer is durable."""
        nonce = self._nonces.pop(joiner, None)
        if self._desk is None or nonce is None:
            return denied("not-asked", "ask first")
        answer, effects = self._desk.prove(data, joiner, nonce, self._now_ms())
        if effects:
            await self._keep(effects)
        return answer

    def _admit(self, chain: Chain, peer: PeerId, now_ms: int) -> Member:
        if not self.believes(peer):
            raise NotAdmitted(
                "no-books",
                "this device has joined just now, and believes nobody but who let it in until it has "
                "the mesh's books; it comes by itself then",
            )
        return self._standing.admit(chain, peer, now_ms)

    def _noted(
        self, remote: PeerId, verdict: hello.Accepted | hello.Refused
    ) -> hello.Accepted | hello.Refused:
        if isinstance(verdict, hello.Accepted):
            self.skew_ms[remote] = verdict.skew_ms
            self.books[remote] = verdict.books
        return verdict
