"""Keys, ids, tokens, and where keys rest."""

import base64
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.identity.errors import Conflict, Malformed, NotAdmitted, NotFound, Unavailable
from covey.identity.invite import PREFIX, Invite, Terms, parse_token, token_of
from covey.identity.keys import (
    Keypair,
    PeerId,
    is_sound_key,
    peer_id_of,
    public_key_of,
    verify,
)
from covey.identity.keystore import open_root, passphrase_of, read_key, seal_root, write_key

KEY = Keypair(b"\x07" * 32)
INVITE = Invite(
    mesh=b"\x01" * 32,
    mesh_name="plant",
    seed=b"\x02" * 32,
    inviter=KEY.public_key,
    addresses=("/ip4/192.0.2.1/tcp/4001",),
    terms=Terms("member", (), 2, 1_790_000_000_000),
)


@given(st.binary(min_size=32, max_size=32))
def test_an_id_is_its_key(seed: bytes) -> None:
    key = Keypair(seed)
    assert public_key_of(key.peer_id) == key.public_key
    assert key.peer_id.startswith("12D3KooW")


@given(st.binary(max_size=40), st.binary(max_size=40))
def test_a_signature_is_for_one_message_only(message: bytes, other: bytes) -> None:
    signature = KEY.sign(message)
    assert verify(KEY.public_key, message, signature)
    assert verify(KEY.public_key, other, signature) == (message == other)
    assert not verify(KEY.public_key, message, signature[:-1])


def test_keys_of_small_order_are_refused() -> None:
    # with such a key, one signature is valid for many messages
    assert not is_sound_key(bytes(32))
    assert not is_sound_key(b"\x01" + bytes(31))
    assert not is_sound_key(b"\xff" * 32)


@pytest.mark.parametrize(
    "text",
    ["", "0OIl", "12D3KooW", "Q" * 64, "1" * 65, "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"],
)
def test_what_is_no_peer_id_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        public_key_of(PeerId(text))


@pytest.mark.parametrize("around", ["{} ", " {}", "{}\n", "\t{}"])
def test_a_key_has_one_name(around: str) -> None:
    peer = Keypair(b"\x05" * 32).peer_id
    assert peer_id_of(public_key_of(peer)) == peer
    with pytest.raises(Malformed):
        public_key_of(PeerId(around.format(peer)))


def test_a_token_is_read_back_also_when_a_mail_program_broke_its_lines() -> None:
    token = token_of(INVITE)
    assert token.startswith(PREFIX)
    assert parse_token(token) == INVITE
    assert parse_token("\n  ".join([token[:30], token[30:]]) + "\r\n") == INVITE


@given(st.data())
def test_a_mistyped_token_says_so(data: st.DataObject) -> None:
    token = token_of(INVITE)
    at = data.draw(st.integers(0, len(token) - 2))
    other = data.draw(st.sampled_from("abcXYZ019-_").filter(lambda one: one != token[at]))
    with pytest.raises(Malformed, match="invite"):
        parse_token(token[:at] + other + token[at + 1 :])


@given(st.text(max_size=200))
def test_any_text_is_refused_politely(text: str) -> None:
    for one in (text, PREFIX + text):
        with pytest.raises(Malformed):
            parse_token(one)


def test_a_cut_or_enormous_token_is_refused() -> None:
    token = token_of(INVITE)
    for end in (10, len(token) // 2, len(token) - 1):
        with pytest.raises(Malformed, match=r"copy it whole|should begin"):
            parse_token(token[:end])
    with pytest.raises(Malformed, match="too long"):
        parse_token(PREFIX + "A" * 100_000)


def test_a_key_rests_in_a_file_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_key(path, KEY)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path).peer_id == KEY.peer_id
    with pytest.raises(Conflict, match="holds a key already"):
        write_key(path, Keypair(b"\x08" * 32))
    assert read_key(path).peer_id == KEY.peer_id
    path.chmod(0o644)
    with pytest.raises(Unavailable, match="chmod 600"):
        read_key(path)


def test_a_damaged_key_is_told(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(NotFound, match="covey init"):
        read_key(path)
    for damage in (b"", b"garbage", base64.b64encode(b"short"), bytes(40)):
        path.write_bytes(damage)
        path.chmod(0o600)
        with pytest.raises(Malformed, match="does not hold a key"):
            read_key(path)


def test_a_root_opens_with_its_passphrase_only() -> None:
    passphrase = passphrase_of(bytes(range(15)))
    sealed = seal_root(KEY, passphrase, salt=b"s" * 16, nonce=b"n" * 24)
    assert KEY.seed not in sealed
    # people type it in capitals, with a space behind it
    assert open_root(sealed, f" {passphrase.upper()} ").peer_id == KEY.peer_id
    with pytest.raises(NotAdmitted) as caught:
        open_root(sealed, passphrase_of(bytes(15)))
    assert caught.value.code == "bad-passphrase"
    for damage in (b"", b"covey-root-1\n", sealed[:40], b"x" + sealed):
        with pytest.raises(Malformed):
            open_root(damage, passphrase)
