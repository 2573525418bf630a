"""What is written on the wire and into stores stays readable: frozen vectors.

A change here breaks every mesh that runs: it needs a new version of what changed, not a new vector.
"""

from pathlib import Path

import msgspec
import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from covey.gossip import bidding
from covey.gossip.advert import Advert, DataOffer, ModelOffer, advert_record, adverts_of, open_item
from covey.gossip.bidding import Ask, Bid, Call, Calls, Pass
from covey.gossip.hello import Hello, encode_hello
from covey.gossip.joining import proof_bytes
from covey.gossip.link_session import Frame, FrameReader, Kind, encode_frame
from covey.gossip.memory import books
from covey.gossip.memory import entry as memory_entry
from covey.gossip.memory import messages as memory
from covey.gossip.memory.entry import (
    Header,
    check_payload,
    hash_of,
    open_entry,
    sign_entry,
)
from covey.gossip.memory.kinds import Lifetime, Type, kind_of
from covey.gossip.memory.messages import Entries
from covey.gossip.memory.messages import Item as MemoryItem
from covey.gossip.memory.namespace import MEMBERS, NAMESPACES, namespace_of
from covey.gossip.memory.payload import (
    Embedding,
    Payload,
    Provenance,
    Source,
    decode_payload,
    encode_payload,
)
from covey.gossip.memory.policies import Policy, Writers, policy_record, read_policy
from covey.gossip.memory.reconciliation import Session, answer
from covey.gossip.memory.standing import Standing, certificate_id
from covey.gossip.memory.summary import Summary
from covey.gossip.messages import Accepted, Delivered, Offer, decode_message, encode_message
from covey.gossip.task import (
    OUTCOME_KIND,
    Need,
    Outcome,
    digest_of,
    nonce_of_key,
    task_digest,
    task_id_of,
)
from covey.identity.certificate import check_chain, found_mesh, issue
from covey.identity.envelope import mesh_id_of, open_envelope, seal
from covey.identity.invite import Invite, Terms, parse_token, token_of
from covey.identity.keys import Keypair
from covey.identity.keystore import passphrase_of

FILE = Path(__file__).parent / "vectors" / "v1.json"
FROZEN: dict[str, str] = msgspec.json.decode(FILE.read_bytes())
NOW = 1_790_000_000_000
ROOT, ADMIN, MEMBER = (Keypair(bytes([n]) * 32) for n in (1, 2, 3))
MESH = mesh_id_of(ROOT.public_key)
CHAIN = (
    *found_mesh(ROOT, ADMIN.peer_id, now_ms=NOW),
    issue(ADMIN, MEMBER.peer_id, mesh=MESH, role="member", now_ms=NOW, zones=("ward-3",)),
)
TERMS = Terms("member", (), 2, NOW + 3_600_000)
INVITE = Invite(
    MESH, "plant", bytes([4]) * 32, ADMIN.public_key, ("/ip4/192.0.2.1/tcp/4001",), TERMS
)
ADVERT = Advert(
    incarnation=7,
    name="line-1",
    version="0.1.0",
    addresses=("/ip4/192.0.2.1/tcp/4001",),
    labels=(("line", "1"),),
    data=(DataOffer("shift-log", "file"),),
    skills=("classify",),
    models=(ModelOffer("all-minilm-l6-v2", "embedding", "00" * 32),),
)
NONCE = nonce_of_key("shift 3")
TASK_ID = task_id_of(ADMIN.peer_id, NONCE)
NEED = Need("classify", data="shift-log", labels=(("line", "1"),), size_bytes=2)
OUTCOME = Outcome(
    origin=ADMIN.peer_id,
    task_id=TASK_ID,
    attempt=1,
    task_digest=task_digest(ADMIN.peer_id, TASK_ID, NEED, b"{}"),
    result_digest=digest_of(b"[]"),
    state="done",
    reason="",
    run_us=1500,
    model="all-minilm-l6-v2",
    ended_ms=NOW,
)
SEALED_OUTCOME = seal(OUTCOME, kind=OUTCOME_KIND, mesh=MESH, keypair=MEMBER)
OFFER = Offer(TASK_ID, 1, NONCE, NEED, b"{}", digest_of(b"{}"), 60_000, 0, once=False)
CALL = Call(bytes([5]) * 16, NEED, 60_000, bidding.threshold_for(1000))

PUMPS = namespace_of(MESH, "ward-3", "plant/pumps")
PAYLOAD = encode_payload(
    Payload(
        1,
        bytes([6]) * 16,
        "P-12/vibration",
        "rising",
        Provenance((Source("observations.csv", bytes([7]) * 32, 420, 14),), "smollm2", "summarize"),
        Embedding("00" * 32, bytes([0, 60]) * 4),
    )
)
HEADER = Header(
    version=1,
    namespace=PUMPS.id,
    author=MEMBER.public_key,
    clock=(NOW << 16) + 1,
    expires_s=NOW // 1000 + 86_400,
    kind=kind_of(Type.SHARED, Lifetime.NORMAL),
    parent=hash_of(PUMPS.id, "P-12"),
    key=hash_of(PUMPS.id, "P-12/vibration"),
    seen=(bytes([8]) * 16,),
    payload_digest=memory_entry.digest_of(PAYLOAD),
    payload_bytes=len(PAYLOAD),
    certificate=certificate_id(CHAIN[-1]),
    derived_from=(bytes([9]) * 16,),
)
ENTRY = sign_entry(HEADER, mesh=MESH, keypair=MEMBER)
SUMMARY = Summary([ENTRY.key])
UNTIL = bytes([255]) * 8
RANGES = Session(SUMMARY, until=UNTIL).begin()
ENTRIES = Entries(3, "ward-3", "plant/pumps", (MemoryItem(ENTRY.data, PAYLOAD),))
BOOK = books.compose(
    ADMIN,
    MESH,
    namespace_of(MESH, "mesh", MEMBERS),
    CHAIN[:1],
    NOW << 16,
    bytes(16),
    books.Record(MEMBERS, MEMBER.peer_id, books.member_record(CHAIN)),
)
POLICY = Policy(
    "plant/pumps", Writers(("admin",), ("ward-3",), (MEMBER.public_key,)), 100, 30 * 86_400
)
POLICY_BOOK = namespace_of(MESH, "ward-3", NAMESPACES)
POLICY_ENTRY = books.compose(
    ADMIN,
    MESH,
    POLICY_BOOK,
    CHAIN[:1],
    NOW << 16,
    bytes(16),
    policy_record("ward-3", POLICY),
)
ADVERT_ENTRY = books.compose(
    MEMBER,
    MESH,
    adverts_of(MESH),
    CHAIN,
    NOW << 16,
    bytes(16),
    advert_record(MEMBER.peer_id, ADVERT),
)

MADE: dict[str, str] = {
    "peer id": MEMBER.peer_id,
    "mesh id": MESH.hex(),
    "admin certificate": CHAIN[0].hex(),
    "member certificate": CHAIN[1].hex(),
    "token": token_of(INVITE),
    "passphrase": passphrase_of(bytes(range(15))),
    "join proof": proof_bytes(MESH, MEMBER.peer_id, bytes(32), TERMS).hex(),
    "hello": encode_hello(Hello(1, MESH, CHAIN, NOW, 7, "line-1")).hex(),
    "advert entry": ADVERT_ENTRY.entry.data.hex(),
    "advert payload": (ADVERT_ENTRY.payload or b"").hex(),
    "task id": TASK_ID.hex(),
    "offer": encode_message(OFFER).hex(),
    "accepted": encode_message(Accepted(TASK_ID, 1, 7)).hex(),
    "outcome": encode_message(Delivered(TASK_ID, SEALED_OUTCOME, b"[]")).hex(),
    "calls": bidding.encode_message(Calls((CALL,))).hex(),
    "ask": bidding.encode_message(Ask(CALL)).hex(),
    "bid": bidding.encode_message(Bid(CALL.id, 100, 40)).hex(),
    "pass": bidding.encode_message(Pass(CALL.id, "it has no data 'shift-log'")).hex(),
    "lot": f"{bidding.lot(CALL.id, MEMBER.peer_id):x}",
    "namespace id": PUMPS.id.hex(),
    "memory entry": ENTRY.data.hex(),
    "memory entry id": ENTRY.id.hex(),
    "memory payload": PAYLOAD.hex(),
    "memory book entry": BOOK.entry.data.hex(),
    "memory book payload": (BOOK.payload or b"").hex(),
    "memory policy entry": POLICY_ENTRY.entry.data.hex(),
    "memory policy payload": (POLICY_ENTRY.payload or b"").hex(),
    "memory digest": memory.encode_message(memory.Digest(NOW, bytes(16), answer=True)).hex(),
    "memory compare": memory.encode_message(
        memory.Compare(1, "ward-3", "plant/pumps", RANGES)
    ).hex(),
    "memory compared": memory.encode_message(memory.Compared(1, answer(Summary(), RANGES))).hex(),
    "memory want": memory.encode_message(memory.Want("ward-3", "plant/pumps", ENTRY.id[:16])).hex(),
    "memory entries": memory.encode_message(ENTRIES).hex(),
    "memory took": memory.encode_message(memory.Took(3)).hex(),
    "memory range digest": SUMMARY.fingerprint(b"", UNTIL)[1].hex(),
    "memory salted digest": Summary([ENTRY.key], salt=bytes([10]) * 32)
    .fingerprint(b"", UNTIL)[1]
    .hex(),
    "frame": encode_frame(Frame(Kind.REQUEST, "input", b"body", 9, 1500, payload=True)).hex(),
}


@pytest.mark.parametrize("name", MADE)
def test_what_is_made_today_is_what_was_frozen(name: str) -> None:
    assert MADE[name] == FROZEN[name]


def test_nothing_frozen_is_left_untested() -> None:
    assert set(FROZEN) == set(MADE)


def test_what_was_frozen_is_still_understood() -> None:
    texts = ("peer id", "token", "passphrase", "lot")
    frozen = {name: bytes.fromhex(text) for name, text in FROZEN.items() if name not in texts}
    chain = (frozen["admin certificate"], frozen["member certificate"])
    assert check_chain(chain, mesh=MESH, subject=MEMBER.peer_id, now_ms=NOW).zones == {"ward-3"}
    assert parse_token(FROZEN["token"]) == INVITE
    item = MemoryItem(frozen["advert entry"], frozen["advert payload"])
    told = open_item(item, mesh=MESH)
    assert (told.advert, told.at_ms, told.chain) == (ADVERT, NOW, CHAIN)
    assert decode_message(frozen["offer"]) == OFFER
    assert bidding.decode_message(frozen["calls"]) == Calls((CALL,))
    delivered = decode_message(frozen["outcome"])
    assert isinstance(delivered, Delivered)
    assert open_envelope(delivered.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH).body == OUTCOME
    entry = open_entry(frozen["memory entry"], mesh=MESH)
    assert entry.header == HEADER
    check_payload(entry, frozen["memory payload"])
    assert decode_payload(frozen["memory payload"]).value == "rising"
    assert memory.decode_message(frozen["memory entries"]) == ENTRIES
    standing = Standing(MESH)
    members = namespace_of(MESH, "mesh", MEMBERS)
    books.learn_author(standing, members, frozen["memory book payload"])
    book = open_entry(frozen["memory book entry"], mesh=MESH)
    assert standing.judge(book, members)
    stated = open_entry(frozen["memory policy entry"], mesh=MESH)
    check_payload(stated, frozen["memory policy payload"])
    assert (
        read_policy(POLICY_BOOK, stated, decode_payload(frozen["memory policy payload"])) == POLICY
    )
    (frame,) = FrameReader().feed(frozen["frame"])
    assert (frame.channel, frame.body, frame.left_ms) == ("input", b"body", 1500)


def test_an_id_is_the_one_that_libp2p_gives_the_key() -> None:
    theirs = ID.from_pubkey(create_new_key_pair(MEMBER.seed).public_key)
    assert str(theirs) == MEMBER.peer_id


if __name__ == "__main__":
    FILE.write_bytes(msgspec.json.format(msgspec.json.encode(MADE), indent=1) + b"\n")
