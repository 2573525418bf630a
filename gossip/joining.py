"""How does a device become a member? The conversation of `join`, and the desk that honours invites.

With an invite: ask -> (challenge) -> proof -> grant. The proof is made with the invite's one-time
key over the mesh, the joiner's key, the challenge and the terms, so a token's proof serves no other
key and its terms cannot be widened. Only the inviter honours it; another admin, who finds its public
half in the books, lists the joiner as pending.

Without one: knock -> (show) -> wait -> grant, or `pending`: come back and ask again. Both sides show
the same words, and both people say yes.

The connection proves that the joiner holds its own key (Noise). Pure; `gate.py` moves the bytes.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from covey.identity.certificate import Chain, check_chain
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Misuse, NotAdmitted
from covey.identity.invite import EXPIRES_S_MAX, USES_MAX, Invite, Terms
from covey.identity.keys import Keypair, PeerId, peer_id_of, public_key_of, verify
from covey.identity.wire import KIB, decode, decode_union, encode, encode_plain
from covey.identity.words import NONCE_BYTES

from .memory.books import InviteEntry
from .memory.standing import Standing
from .pending import NAME_CHARACTERS_MAX, PendingEffect, PendingList
from .registrar import Registrar, check_zones

PROTOCOL = "/covey/join/1"
JOIN_BYTES_MAX = 16 * KIB
CHALLENGE_BYTES = 32
INVITES_MAX = 256
ENDED_KEPT_MS = 86_400_000


class Ask(msgspec.Struct, frozen=True, array_like=True, tag="ask"):
    """Joiner: I hold the invite of this key, and want in."""

    invite_key: bytes


class Challenge(msgspec.Struct, frozen=True, array_like=True, tag="challenge"):
    """Inviter: then sign this."""

    nonce: bytes


class Proof(msgspec.Struct, frozen=True, array_like=True, tag="proof"):
    """Joiner: signed, with the terms as my token states them."""

    invite_key: bytes
    terms: Terms
    signature: bytes


class Knock(msgspec.Struct, frozen=True, array_like=True, tag="knock"):
    """Joiner: I hold no invite, and want in."""

    name: str


class Show(msgspec.Struct, frozen=True, array_like=True, tag="show"):
    """Admin: this is the mesh, and I am an admin of it; the words follow from the nonce."""

    mesh: bytes
    mesh_name: str
    chain: tuple[bytes, ...]
    nonce: bytes
    wall_ms: int


class Wait(msgspec.Struct, frozen=True, array_like=True, tag="wait"):
    """Joiner: whoever sits here has seen the words, and says yes."""


class Grant(msgspec.Struct, frozen=True, array_like=True, tag="grant"):
    """Inviter: you are a member; this is your chain."""

    chain: tuple[bytes, ...]
    mesh_name: str
    wall_ms: int
    """What the inviter's clock shows: a joiner whose own is far off must hear of it."""


class Denied(msgspec.Struct, frozen=True, array_like=True, tag="denied"):
    """Inviter: no, and why."""

    code: str
    reason: str


class InviteRecord(msgspec.Struct, frozen=True, array_like=True):
    """What the inviter keeps: the public half, the terms, and whom it let in."""

    key: bytes
    terms: Terms
    granted: tuple[tuple[str, tuple[bytes, ...]], ...] = ()
    """(joiner, its chain): who asks again with the same key gets the same answer, and uses nothing up."""


@dataclass(frozen=True, slots=True)
class KeepInvite:
    """Store this record before the answer leaves."""

    record: InviteRecord


@dataclass(frozen=True, slots=True)
class ForgetInvite:
    """Remove a record that ended long ago."""

    key: bytes


DeskEffect = KeepInvite | ForgetInvite | PendingEffect
InBooks = Callable[[bytes], InviteEntry | None]
"""Returns what the mesh's books say of the invite of a key."""


class InviteDesk:
    """Honours the invites of this admin, and only these; lists who else asks.

    Args:
        keypair: this peer's key.
        chain: its own chain.
        mesh: the mesh.
        mesh_name: what the mesh is called.
        registrar: signs members for this admin; without it a new one, which knows of nobody yet.
        standing: what is known of the mesh's members.
        in_books: finds the invites of other admins.
        clock_trouble: why this device's clock cannot be trusted to sign with, if so.
    """

    def __init__(
        self,
        keypair: Keypair,
        chain: Chain,
        mesh: MeshId,
        mesh_name: str,
        *,
        standing: Standing | None = None,
        registrar: Registrar | None = None,
        in_books: InBooks = lambda _key: None,
        clock_trouble: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._keypair = keypair
        self._mesh = mesh
        self._mesh_name = mesh_name
        self._standing = standing or Standing(mesh)
        self._registrar = registrar or Registrar(keypair, chain, mesh, self._standing)
        self._in_books = in_books
        self._clock_trouble = clock_trouble
        self._invites: dict[bytes, InviteRecord] = {}
        self.pending = PendingList()
        """Who waits for this admin's word."""

    def restore(self, records: Iterable[InviteRecord]) -> None:
        """Take up the stored invites."""
        self._invites.update({record.key: record for record in records})

    def mint(
        self,
        seed: bytes,
        addresses: Sequence[str],
        *,
        uses: int,
        expires_s: float,
        now_ms: int,
        zones: Sequence[str] = (),
    ) -> tuple[Invite, list[DeskEffect]]:
        """Make an invite. It is valid once its record is durable.

        Raises:
            Misuse: this peer is no admin, uses or time out of range, too many or too long zones, or
                too many invites are open.
            NotAdmitted: this admin's own certificate does not hold now, or its clock is wrong.
        """
        self._check_able(now_ms)
        if not 1 <= uses <= USES_MAX:
            raise Misuse(f"an invite has 1 to {USES_MAX} uses, not {uses}")
        if not 1 <= expires_s <= EXPIRES_S_MAX:
            raise Misuse(
                f"an invite lasts 1 s to {EXPIRES_S_MAX // 86_400} days, not {expires_s:g} s"
            )
        if not addresses:
            raise Misuse(
                "this peer has no address that others could dial; set `announce` in its config"
            )
        check_zones(zones)
        effects: list[DeskEffect] = list(self._sweep(now_ms))
        if len(self._invites) >= INVITES_MAX:
            raise Misuse(f"{INVITES_MAX} invites are open already; wait until some end")
        terms = Terms("member", tuple(sorted(set(zones))), uses, now_ms + int(expires_s * 1000))
        key = Keypair(seed)
        record = InviteRecord(key.public_key, terms)
        self._invites[record.key] = record
        invite = Invite(
            mesh=self._mesh,
            mesh_name=self._mesh_name,
            seed=seed,
            inviter=self._keypair.public_key,
            addresses=tuple(addresses),
            terms=terms,
        )
        return invite, [*effects, KeepInvite(record)]

    def challenge(self, data: bytes, nonce: bytes) -> bytes:
        """Answer an ask with a challenge. Any key is challenged alike: asking tells nothing.

        Raises:
            Malformed: it is no ask.
        """
        decode(data, Ask, limit_bytes=JOIN_BYTES_MAX)
        return encode(Challenge(nonce))

    def prove(
        self, data: bytes, joiner: PeerId, nonce: bytes, now_ms: int
    ) -> tuple[bytes, list[DeskEffect]]:
        """Answer a proof, or one that waits; the answer may leave once the effects are durable."""
        try:
            said: Proof | Wait = decode_union(data, Proof | Wait, limit_bytes=JOIN_BYTES_MAX)
            self._check_able(now_ms)
            if isinstance(said, Wait):
                return self._wait(joiner, now_ms)
            if said.invite_key not in self._invites:
                return self._prove_elsewhere(said, joiner, nonce, now_ms)
            return self._prove_here(said, joiner, nonce, now_ms)
        except Malformed as error:
            return denied("malformed", str(error)), []
        except NotAdmitted as error:
            return denied(error.code, str(error)), []
        except Misuse as error:
            return denied("not-admin", str(error)), []

    def knock(self, data: bytes, joiner: PeerId, nonce: bytes, now_ms: int) -> bytes:
        """Answer a joiner without an invite: show who is here, and list it.

        Raises:
            Malformed: it is no knock.
        """
        knock = decode(data, Knock, limit_bytes=JOIN_BYTES_MAX)
        try:
            self._check_able(now_ms)
            if (why := self._registrar.why_barred(joiner)) is not None:
                raise NotAdmitted("revoked", why)
            name = knock.name[:NAME_CHARACTERS_MAX]
            nonce = self.pending.knock(joiner, name, nonce[:NONCE_BYTES], now_ms).nonce
        except NotAdmitted as error:
            return denied(error.code, str(error))
        except Misuse as error:
            return denied("not-admin", str(error))
        return encode(Show(self._mesh, self._mesh_name, self._registrar.chain, nonce, now_ms))

    def _wait(self, joiner: PeerId, now_ms: int) -> tuple[bytes, list[DeskEffect]]:
        chain = self._chain_of(joiner, now_ms)
        if chain is not None:
            return self._grant(chain, now_ms), list(self.pending.decide(joiner, "yes", now_ms))
        record = self.pending.get(joiner, now_ms)
        if record is None:
            raise NotAdmitted("not-asked", "knock first")
        effects = self.pending.confirm(joiner, record.nonce, now_ms)
        answer = denied("pending", "an admin has to say yes: covey pending, covey approve")
        return answer, list(effects)

    def _chain_of(self, joiner: PeerId, now_ms: int) -> Chain | None:
        """Return the chain by which a joiner is a member already."""
        known = self._standing.of(joiner)
        if known is None or self._standing.why_void(known) is not None:
            return None
        try:
            check_chain(known.chain, mesh=self._mesh, subject=joiner, now_ms=now_ms)
        except NotAdmitted:
            return None
        return known.chain

    def _prove_here(
        self, proof: Proof, joiner: PeerId, nonce: bytes, now_ms: int
    ) -> tuple[bytes, list[DeskEffect]]:
        record = self._honoured(proof, joiner, nonce)
        if (why := self._registrar.why_barred(joiner)) is not None:
            raise NotAdmitted("revoked", why)
        for known, chain in record.granted:
            if known == joiner:
                return self._grant(chain, now_ms), []
        _check_terms(record, now_ms)
        chain = self._registrar.grant(joiner, record.terms.zones, now_ms)
        record = msgspec.structs.replace(record, granted=(*record.granted, (joiner, chain)))
        self._invites[record.key] = record
        return self._grant(chain, now_ms), [KeepInvite(record)]

    def _prove_elsewhere(
        self, proof: Proof, joiner: PeerId, nonce: bytes, now_ms: int
    ) -> tuple[bytes, list[DeskEffect]]:
        """List who holds another admin's invite: only that one counts its uses."""
        entry = self._in_books(proof.invite_key)
        inviter = peer_id_of(entry.inviter) if entry is not None else None
        if entry is None or inviter is None or not self._is_admin(inviter):
            raise _unknown_invite()
        self._check_proof(proof, entry.key, entry.terms, joiner, nonce)
        if (why := self._registrar.why_barred(joiner)) is not None:
            raise NotAdmitted("revoked", why)
        if (chain := self._chain_of(joiner, now_ms)) is not None:
            return self._grant(chain, now_ms), list(self.pending.decide(joiner, "yes", now_ms))
        _check_time(entry.terms, now_ms)
        effects = self.pending.confirm(
            joiner, nonce[:NONCE_BYTES], now_ms, zones=entry.terms.zones, inviter=inviter
        )
        answer = denied("pending", "its inviter is another admin, so this one has to say yes")
        return answer, list(effects)

    def _is_admin(self, peer: PeerId) -> bool:
        known = self._standing.of(peer)
        is_admin = known is not None and known.member.role == "admin"
        return is_admin and not self._standing.is_void(peer)

    def _honoured(self, proof: Proof, joiner: PeerId, nonce: bytes) -> InviteRecord:
        record = self._invites.get(proof.invite_key)
        if record is None:
            raise _unknown_invite()
        self._check_proof(proof, record.key, record.terms, joiner, nonce)
        return record

    def _check_proof(
        self, proof: Proof, key: bytes, terms: Terms, joiner: PeerId, nonce: bytes
    ) -> None:
        message = proof_bytes(self._mesh, joiner, nonce, proof.terms)
        if not verify(key, message, proof.signature):
            raise NotAdmitted("bad-signature", "the proof is not made with the invite's key")
        if proof.terms != terms:
            raise NotAdmitted("altered", "the invite's terms are not those it was made with")

    def _check_able(self, now_ms: int) -> None:
        """Grant nothing that no other peer would believe, and nothing by a wrong clock."""
        if (trouble := self._clock_trouble()) is not None:
            raise NotAdmitted("clock", f"the admin can sign nothing now: {trouble}")
        self._registrar.check_own(now_ms)

    def _grant(self, chain: Chain, now_ms: int) -> bytes:
        return encode(Grant(chain, self._mesh_name, now_ms))

    def _sweep(self, now_ms: int) -> Iterable[ForgetInvite]:
        for key, record in list(self._invites.items()):
            if record.terms.expires_ms + ENDED_KEPT_MS < now_ms:
                del self._invites[key]
                yield ForgetInvite(key)


def ask(invite: Invite) -> bytes:
    """Return the first message of a joiner with an invite."""
    return encode(Ask(invite.keypair.public_key))


def knock(name: str) -> bytes:
    """Return the first message of a joiner without an invite."""
    return encode(Knock(name[:NAME_CHARACTERS_MAX]))


def wait() -> bytes:
    """Return the second message of a joiner without an invite: it means it."""
    return encode(Wait())


def is_knock(data: bytes) -> bool:
    """Tell whether a joiner's first message is that of one without an invite.

    Raises:
        Malformed: it is no first message at all.
    """
    said: Ask | Knock = decode_union(data, Ask | Knock, limit_bytes=JOIN_BYTES_MAX)
    return isinstance(said, Knock)


def shown(data: bytes) -> Show:
    """Return what an admin shows to who knocked.

    Raises:
        Malformed: it shows nothing.
        NotAdmitted: it refused instead.
    """
    answer: Show | Denied = decode_union(data, Show | Denied, limit_bytes=JOIN_BYTES_MAX)
    match answer:
        case Denied(code, reason):
            raise NotAdmitted(code[:64], reason[:400])
        case Show():
            return answer


def prove(data: bytes, invite: Invite, joiner: PeerId) -> bytes:
    """Return the joiner's proof for the challenge in `data`.

    Raises:
        Malformed: it is no challenge.
        NotAdmitted: the inviter refused instead.
    """
    answer: Challenge | Denied = decode_union(data, Challenge | Denied, limit_bytes=JOIN_BYTES_MAX)
    match answer:
        case Denied(code, reason):
            raise NotAdmitted(code[:64], reason[:400])
        case Challenge(nonce):
            message = proof_bytes(MeshId(invite.mesh), joiner, nonce, invite.terms)
            key = invite.keypair
            return encode(Proof(key.public_key, invite.terms, key.sign(message)))


def granted(data: bytes) -> Grant:
    """Return the grant in the inviter's last message.

    Raises:
        Malformed: it is neither grant nor refusal.
        NotAdmitted: it is a refusal.
    """
    answer: Grant | Denied = decode_union(data, Grant | Denied, limit_bytes=JOIN_BYTES_MAX)
    match answer:
        case Denied(code, reason):
            raise NotAdmitted(code[:64], reason[:400])
        case Grant():
            return answer


def denied(code: str, reason: str) -> bytes:
    """Return a refusal as the joiner hears it."""
    return encode(Denied(code, reason[:400]))


def proof_bytes(mesh: MeshId, joiner: PeerId, nonce: bytes, terms: Terms) -> bytes:
    """Return what a proof signs: for this mesh, this joiner, this challenge and these terms only."""
    named = msgspec.to_builtins(terms, builtin_types=(bytes,))
    return encode_plain(["covey/join/1", mesh, public_key_of(joiner), nonce, named])


def _check_terms(record: InviteRecord, now_ms: int) -> None:
    _check_time(record.terms, now_ms)
    if len(record.granted) >= record.terms.uses:
        raise NotAdmitted(
            "used-up",
            f"the invite's {record.terms.uses} use(s) are used up; ask for a new one: covey invite",
        )


def _check_time(terms: Terms, now_ms: int) -> None:
    if now_ms > terms.expires_ms:
        ago_s = (now_ms - terms.expires_ms) // 1000
        raise NotAdmitted(
            "expired", f"the invite ended {ago_s} s ago; ask for a new one: covey invite"
        )


def _unknown_invite() -> NotAdmitted:
    return NotAdmitted(
        "unknown-invite", "this peer knows no such invite; ask its operator for a new one"
    )
