"""How does a device become a member? The conversation of `join`, and the desk that honours invites.

Joiner: ask -> (challenge) -> proof -> grant. The proof is made with the invite's one-time key over
the mesh, the joiner's key, the challenge and the terms, so a token's proof serves no other key and
its terms cannot be widened. The connection proves that the joiner holds its own key (Noise). Pure;
`gate.py` moves the bytes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from covey.identity.certificate import (
    ZONE_CHARACTERS_MAX,
    ZONES_MAX,
    Chain,
    check_chain,
    issue,
)
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Misuse, NotAdmitted
from covey.identity.invite import EXPIRES_S_MAX, USES_MAX, Invite, Terms
from covey.identity.keys import Keypair, PeerId, public_key_of, verify
from covey.identity.wire import KIB, decode, decode_union, encode, encode_plain

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


DeskEffect = KeepInvite | ForgetInvite


class InviteDesk:
    """Honours the invites of this admin, and only these.

    Args:
        keypair: this admin's key; signs members.
        chain: its own chain, which begins every chain it grants.
        mesh: the mesh.
        mesh_name: what the mesh is called.
    """

    def __init__(self, keypair: Keypair, chain: Chain, mesh: MeshId, mesh_name: str) -> None:
        self._keypair = keypair
        self._chain = chain
        self._mesh = mesh
        self._mesh_name = mesh_name
        self._invites: dict[bytes, InviteRecord] = {}

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
            Misuse: uses or time out of range, too many or too long zones, or too many invites are
                open.
            NotAdmitted: this admin's own certificate does not hold now.
        """
        self._check_own(now_ms)
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
        if len(zones) > ZONES_MAX or any(len(zone) > ZONE_CHARACTERS_MAX for zone in zones):
            raise Misuse(
                f"an invite grants at most {ZONES_MAX} zones, of {ZONE_CHARACTERS_MAX} characters each"
            )
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
        """Answer a proof; the answer may leave once the effects are durable."""
        try:
            proof = decode(data, Proof, limit_bytes=JOIN_BYTES_MAX)
            record = self._honoured(proof, joiner, nonce)
            for known, chain in record.granted:
                if known == joiner:
                    return self._grant(chain, now_ms), []
            _check_terms(record, now_ms)
            self._check_own(now_ms)
        except Malformed as error:
            return denied("malformed", str(error)), []
        except NotAdmitted as error:
            return denied(error.code, str(error)), []
        certificate = issue(
            self._keypair,
            joiner,
            mesh=self._mesh,
            role="member",
            zones=record.terms.zones,
            now_ms=now_ms,
        )
        chain = (*self._chain, certificate)
        record = msgspec.structs.replace(record, granted=(*record.granted, (joiner, chain)))
        self._invites[record.key] = record
        return self._grant(chain, now_ms), [KeepInvite(record)]

    def _honoured(self, proof: Proof, joiner: PeerId, nonce: bytes) -> InviteRecord:
        record = self._invites.get(proof.invite_key)
        if record is None:
            raise NotAdmitted(
                "unknown-invite", "this peer knows no such invite; ask its operator for a new one"
            )
        message = proof_bytes(self._mesh, joiner, nonce, proof.terms)
        if not verify(record.key, message, proof.signature):
            raise NotAdmitted("bad-signature", "the proof is not made with the invite's key")
        if proof.terms != record.terms:
            raise NotAdmitted("altered", "the invite's terms are not those it was made with")
        return record

    def _check_own(self, now_ms: int) -> None:
        """Grant nothing that no other peer would believe."""
        me = self._keypair.peer_id
        check_chain(self._chain, mesh=self._mesh, subject=me, now_ms=now_ms)

    def _grant(self, chain: Chain, now_ms: int) -> bytes:
        return encode(Grant(chain, self._mesh_name, now_ms))

    def _sweep(self, now_ms: int) -> Iterable[ForgetInvite]:
        for key, record in list(self._invites.items()):
            if record.terms.expires_ms + ENDED_KEPT_MS < now_ms:
                del self._invites[key]
                yield ForgetInvite(key)


def ask(invite: Invite) -> bytes:
    """Return the joiner's first message."""
    return encode(Ask(invite.keypair.public_key))


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
    if now_ms > record.terms.expires_ms:
        ago_s = (now_ms - record.terms.expires_ms) // 1000
        raise NotAdmitted(
            "expired", f"the invite ended {ago_s} s ago; ask for a new one: covey invite"
        )
    if len(record.granted) >= record.terms.uses:
        raise NotAdmitted(
            "used-up",
            f"the invite's {record.terms.uses} use(s) are used up; ask for a new one: covey invite",
        )
