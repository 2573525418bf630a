"""Where do keys rest?

A peer's seed in a file for its owner only; a mesh's root sealed by a passphrase.
"""

import base64
import os
import stat
from pathlib import Path

import nacl.exceptions
import nacl.pwhash.argon2id
import nacl.secret

from .errors import Conflict, Malformed, NotAdmitted, NotFound, Unavailable
from .keys import KEY_BYTES, Keypair

_SALT_BYTES = nacl.pwhash.argon2id.SALTBYTES
_NONCE_BYTES = nacl.secret.SecretBox.NONCE_SIZE
PASSPHRASE_ENTROPY_BYTES = 15
_MAGIC = b"covey-root-1\n"


def write_key(path: Path, keypair: Keypair) -> None:
    """Store a peer's key, mode 0600, whole or not at all.

    Raises:
        Conflict: there is a key already; it is never overwritten.
    """
    if path.exists():
        raise Conflict(f"{path} holds a key already; a peer keeps its key for life")
    write_private(path, base64.b64encode(keypair.seed) + b"\n")


def read_key(path: Path) -> Keypair:
    """Return the key stored at `path`.

    Raises:
        NotFound: there is none.
        Unavailable: others may read it, or it cannot be read.
        Malformed: it is not a key.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"no key at {path}; make one with: covey init") from error
    except OSError as error:
        raise Unavailable(f"the key at {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise Unavailable(
            f"the key at {path} is open to others (mode {mode:04o}); close it with: chmod 600 {path}"
        )
    try:
        seed = base64.b64decode(data.strip(), validate=True)
    except ValueError as error:
        raise Malformed(f"{path} does not hold a key") from error
    if len(seed) != KEY_BYTES:
        raise Malformed(f"{path} does not hold a key")
    return Keypair(seed)


def write_private(path: Path, data: bytes) -> None:
    """Write a file of mode 0600 so that it appears whole and durable, or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    # Of a process that was killed and had the same number, as in a container each first one has.
    temporary.unlink(missing_ok=True)
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def passphrase_of(entropy: bytes) -> str:
    """Return 15 bytes of entropy as 120 bits of text that a person can copy: `abcd-efgh-...`."""
    if len(entropy) != PASSPHRASE_ENTROPY_BYTES:
        raise Malformed(f"a passphrase is made of {PASSPHRASE_ENTROPY_BYTES} bytes")
    text = base64.b32encode(entropy).decode("ascii").lower()
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def seal_root(root: Keypair, passphrase: str, *, salt: bytes, nonce: bytes) -> bytes:
    """Return the mesh's root key sealed by a passphrase (Argon2id, then a secret box).

    Args:
        root: the key to seal.
        passphrase: what will open it.
        salt: 16 random bytes.
        nonce: 24 random bytes.
    """
    box = nacl.secret.SecretBox(_stretched(passphrase, salt))
    return _MAGIC + base64.b64encode(salt + box.encrypt(root.seed, nonce)) + b"\n"


def open_root(sealed: bytes, passphrase: str) -> Keypair:
    """Return the root key.

    Raises:
        Malformed: it is not a sealed root key.
        NotAdmitted: `bad-passphrase`.
    """
    if not sealed.startswith(_MAGIC):
        raise Malformed("not a sealed root key")
    try:
        data = base64.b64decode(sealed[len(_MAGIC) :].strip(), validate=True)
    except ValueError as error:
        raise Malformed("not a sealed root key") from error
    if len(data) < _SALT_BYTES + _NONCE_BYTES + KEY_BYTES:
        raise Malformed("not a sealed root key: cut")
    box = nacl.secret.SecretBox(_stretched(passphrase, data[:_SALT_BYTES]))
    try:
        seed = box.decrypt(data[_SALT_BYTES:])
    except nacl.exceptions.CryptoError as error:
        raise NotAdmitted("bad-passphrase", "the passphrase does not open the root key") from error
    return Keypair(seed)


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return nacl.pwhash.argon2id.kdf(
        nacl.secret.SecretBox.KEY_SIZE,
        passphrase.strip().lower().encode(),
        salt,
        opslimit=nacl.pwhash.argon2id.OPSLIMIT_MODERATE,
        memlimit=nacl.pwhash.argon2id.MEMLIMIT_INTERACTIVE,
    )
