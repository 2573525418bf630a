"""Where does what an entry says stand? The places of keys, of a set's elements and a log's lines. Pure."""

import hashlib
import unicodedata
from typing import NamedTuple

from covey.identity.errors import Misuse

from .entry import NamespaceId, hash_of
from .forms import has_controls
from .payload import KEY_CHARACTERS_MAX


class Path(NamedTuple):
    """Where an entry stands, as its header carries it."""

    parent: bytes
    key: bytes


def path_of(namespace: NamespaceId, key: str) -> Path:
    """Return where a key stands: `a/b/c` under `a/b`."""
    return Path(hash_of(namespace, key.rpartition("/")[0]), hash_of(namespace, key))


# No key has a NUL, so what stands under one of these names can be no key's path.


def element_path(namespace: NamespaceId, of_set: str, text: str) -> Path:
    """Return where an element stands: by its digest, for it may hold anything."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Path(hash_of(namespace, of_set), hash_of(namespace, f"{of_set}\0element\0{digest}"))


def removal_path(namespace: NamespaceId, of_set: str) -> Path:
    """Return where the removals from a set stand."""
    return Path(hash_of(namespace, of_set), hash_of(namespace, f"{of_set}\0removal"))


def line_path(namespace: NamespaceId, log: str, position: int) -> Path:
    """Return where each author's line at a position of a log stands."""
    return Path(hash_of(namespace, log), hash_of(namespace, f"{log}\0line\0{position}"))


def forgetting_path(namespace: NamespaceId) -> Path:
    """Return where forgettings stand."""
    hashed = hash_of(namespace, "\0forgetting")
    return Path(hashed, hashed)


def checked_key(text: str, what: str = "key") -> str:
    """Return a key or a name as it is used: the same letters are the same key on every keyboard.

    Raises:
        Misuse: it is none.
    """
    key = unicodedata.normalize("NFC", text)
    if not key:
        raise Misuse(f"the {what} is empty; name it, such as plant-7/pump-12")
    if len(key) > KEY_CHARACTERS_MAX:
        raise Misuse(f"a {what} has at most {KEY_CHARACTERS_MAX} characters, not {len(key)}")
    if has_controls(key, also="\t\n\r"):
        raise Misuse(f"a {what} has no line breaks or control characters, as {key!r} has")
    if "" in key.split("/"):
        raise Misuse(f"a {what} has a name before and after each slash, {key!r} has not")
    return key
