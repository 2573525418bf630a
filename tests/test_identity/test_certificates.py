"""Who may act in a mesh: chains that hold, and every way in which one does not."""

from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.identity.certificate import (
    ADMIN_DAYS,
    DAY_S,
    GRACE_DAYS,
    KIND,
    Certificate,
    Chain,
    check_chain,
    found_mesh,
    issue,
    subject_of,
)
from covey.identity.envelope import mesh_id_of, open_envelope, seal
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import Keypair, PeerId

NOW = 1_790_000_000_000
DAY_MS = DAY_S * 1000
ROOT, ADMIN, MEMBER, STRANGER = (Keypair(bytes([n]) * 32) for n in (1, 2, 3, 4))
MESH = mesh_id_of(ROOT.public_key)
OTHER_MESH = mesh_id_of(STRANGER.public_key)
ADMIN_CHAIN = found_mesh(ROOT, ADMIN.peer_id, now_ms=NOW)


def member_of(issuer: Keypair = ADMIN, **named: object) -> bytes:
    settings = {"mesh": MESH, "role": "member", "now_ms": NOW} | named
    return issue(issuer, MEMBER.peer_id, **settings)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def code_of(chain: Chain, *, subject: PeerId = MEMBER.peer_id, now_ms: int = NOW) -> str:
    with pytest.raises(NotAdmitted) as caught:
        check_chain(chain, mesh=MESH, subject=subject, now_ms=now_ms)
    return caught.value.code


def test_a_founder_is_an_admin_and_who_it_signs_is_a_member() -> None:
    founder = check_chain(ADMIN_CHAIN, mesh=MESH, subject=ADMIN.peer_id, now_ms=NOW)
    assert (founder.role, founder.priority) == ("admin", 1)
    chain = (*ADMIN_CHAIN, member_of(zones=("ward-3",)))
    member = check_chain(chain, mesh=MESH, subject=MEMBER.peer_id, now_ms=NOW)
    assert (member.role, member.zones) == ("member", frozenset({"ward-3"}))
    assert member.is_in("mesh")
    assert member.is_in("ward-3")
    assert not member.is_in("ward-4")
    assert subject_of(chain, mesh=MESH) == MEMBER.peer_id


FORGERIES: dict[str, tuple[str, Callable[[], Chain]]] = {
    "no certificate": ("bad-chain", lambda: ()),
    "too many": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of(), member_of())),
    "garbage": ("bad-chain", lambda: (b"garbage",)),
    "empty": ("bad-chain", lambda: (b"",)),
    "cut": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of()[:-1])),
    "signed by itself": ("other-mesh", lambda: (member_of(MEMBER, role="admin"),)),
    "a mesh of its own": (
        "bad-signature",
        lambda: found_mesh(STRANGER, MEMBER.peer_id, now_ms=NOW),
    ),
    "for another mesh": (
        "bad-signature",
        lambda: (*ADMIN_CHAIN, member_of(mesh=OTHER_MESH)),
    ),
    "signed by no admin": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of(STRANGER))),
    "a member's signature": ("bad-chain", lambda: (member_of(ROOT), member_of(MEMBER))),
    "an admin by an admin": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of(role="admin"))),
    "a member by the root": ("bad-chain", lambda: (member_of(ROOT),)),
    "only the end of the chain": ("other-mesh", lambda: (member_of(),)),
    "another peer's": ("bad-chain", lambda: ADMIN_CHAIN),
    "a life without end": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of(days=20_000))),
    "a grace without end": ("bad-chain", lambda: (*ADMIN_CHAIN, member_of(grace_days=20_000))),
    "too many zones": (
        "bad-chain",
        lambda: (*ADMIN_CHAIN, member_of(zones=tuple(f"zone-{n}" for n in range(33)))),
    ),
}


@pytest.mark.parametrize("what", FORGERIES)
def test_a_forged_chain_is_refused_with_its_reason(what: str) -> None:
    code, make = FORGERIES[what]
    assert code_of(make()) == code


def test_a_certificate_of_another_mesh_is_refused_even_if_it_is_signed_for_this_one() -> None:
    body = open_envelope(member_of(), Certificate, kind=KIND, mesh=MESH).body
    other = seal(
        msgspec.structs.replace(body, mesh=OTHER_MESH), kind=KIND, mesh=MESH, keypair=ADMIN
    )
    assert code_of((*ADMIN_CHAIN, other)) == "other-mesh"


def test_time_is_judged_with_skew_and_grace() -> None:
    chain = (*ADMIN_CHAIN, member_of(days=10, grace_days=5))
    ends = NOW + 15 * DAY_MS
    for good in (NOW - 60_000, NOW, NOW + 10 * DAY_MS + 1, ends):
        check_chain(chain, mesh=MESH, subject=MEMBER.peer_id, now_ms=good)
    assert code_of(chain, now_ms=NOW - 60_001) == "not-yet-valid"
    assert code_of(chain, now_ms=ends + 1) == "expired"


def test_a_member_outlives_no_admin() -> None:
    late = NOW + (ADMIN_DAYS + GRACE_DAYS) * DAY_MS
    chain = (*ADMIN_CHAIN, member_of(now_ms=late - DAY_MS))
    check_chain(chain, mesh=MESH, subject=MEMBER.peer_id, now_ms=late)
    assert code_of(chain, now_ms=late + 1) == "expired"


@given(st.integers(0, 1), st.data())
def test_no_single_changed_bit_is_let_in(which: int, data: st.DataObject) -> None:
    chain = [*ADMIN_CHAIN, member_of()]
    changed = bytearray(chain[which])
    bit = data.draw(st.integers(0, len(changed) * 8 - 1))
    changed[bit // 8] ^= 1 << bit % 8
    chain[which] = bytes(changed)
    code_of(tuple(chain))


@given(st.binary(max_size=300))
def test_garbage_is_no_envelope(data: bytes) -> None:
    with pytest.raises((Malformed, NotAdmitted)):
        open_envelope(data, Certificate, kind=KIND, mesh=MESH)


def test_an_envelope_serves_no_other_purpose() -> None:
    with pytest.raises(Malformed, match="of kind 'certificate' where 'advert' was expected"):
        open_envelope(member_of(), Certificate, kind="advert", mesh=MESH)
    body = open_envelope(member_of(), Certificate, kind=KIND, mesh=MESH).body
    relabelled = seal(body, kind="advert", mesh=MESH, keypair=ADMIN).replace(
        b"fadvert", b"kcertificate"
    )
    with pytest.raises(NotAdmitted) as caught:
        open_envelope(relabelled, Certificate, kind=KIND, mesh=MESH)
    assert caught.value.code == "bad-signature"
