"""Are these two keys in one mesh the ones that two people mean? Six words to read to each other.

Each side computes them from what it has itself: the mesh, the admin's key and the joiner's, which the
connection proves, and a number that the admin drew when it was asked. Who stands in between has other
keys, and would have to find, after it has seen the admin's number, one of its own that gives the
same 66 bits.
"""

import hashlib

from .envelope import MeshId
from .errors import Misuse
from .keys import PeerId, public_key_of
from .wire import encode_plain
from .word_list import WORDS

COUNT = 6
NONCE_BYTES = 16
_BITS = 11


def words_of(mesh: MeshId, admin: PeerId, joiner: PeerId, nonce: bytes) -> str:
    """Return six words, with spaces between them."""
    named = ["covey/words/1", mesh, public_key_of(admin), public_key_of(joiner), nonce]
    digest = hashlib.sha256(encode_plain(named)).digest()
    kept = int.from_bytes(digest, "big") >> 8 * len(digest) - COUNT * _BITS
    return " ".join(WORDS[kept >> _BITS * at & (1 << _BITS) - 1] for at in reversed(range(COUNT)))


def same_words(typed: str, shown: str) -> bool:
    """Tell whether somebody typed the words that are shown: case, commas and dashes do not matter.

    Raises:
        Misuse: these are not six words.
    """
    words = "".join(one if one.isalpha() else " " for one in typed.lower()).split()
    if len(words) != COUNT:
        raise Misuse(f"{COUNT} words are shown, not {len(words)}; type all of them")
    return words == shown.split()
