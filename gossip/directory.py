"""Who offers what? The newest valid advert of each peer.

Pure: every change returns effects, which the daemon carries out. Adverts come and go with the entries
of the shared memory, which alone spreads them; of one author's the greatest key counts, so order, loss
and repetition do not matter.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from covey.identity.certificate import Chain, Member
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId

from .advert import ADVERT_LIFE_MS, Advert, Told, check_age
from .memory.entry import Key

PEERS_MAX = 10_000
_OWN = Key(b"")


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one peer."""

    peer: PeerId
    advert: Advert
    member: Member
    at_ms: int
    """When it said so."""
    key: Key = _OWN
    """Of the advert in the shared memory; this peer's own has none."""
    chain: Chain = ()


@dataclass(frozen=True, slots=True)
class Keep:
    """This is what is known of a peer now; its member and addresses may be new."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Forget:
    """Nothing is known of a peer any more; `no_member`: its certificate has ended, so it is cut off, too."""

    peer: PeerId
    no_member: bool = False


DirectoryEffect = Keep | Forget
Judge = Callable[[Chain, PeerId, int], Member]
"""Returns who an author is now (unix ms) by the chain that it shows, or raises NotAdmitted."""


class Directory:
    """One peer's view of all adverts, its own included.

    Args:
        me: this peer.
        judge: whose adverts count.
    """

    def __init__(self, me: PeerId, judge: Judge) -> None:
        self._me = me
        self._judge = judge
        self._entries: dict[PeerId, Entry] = {}
        self._peers: dict[Key, PeerId] = {}
        self.refused = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, peer: PeerId) -> Entry | None:
        """Return what is known of a peer."""
        return self._entries.get(peer)

    def announce(self, advert: Advert, member: Member, now_ms: int) -> list[DirectoryEffect]:
        """Take in what this peer itself offers, all of it, also what others are not told.

        Nothing of it is judged: with a wrong clock, or past its grace, a device works on alone.
        """
        entry = self._entries[self._me] = Entry(self._me, advert, member, now_ms)
        return [Keep(entry)]

    def learn(self, told: Iterable[Told], now_ms: int) -> list[DirectoryEffect]:
        """Take in what others say of themselves, as far as it counts and is newer than what is known."""
        kept = (self._take(one, now_ms) for one in told)
        return [Keep(entry) for entry in kept if entry is not None]

    def withdrawn(self, keys: Iterable[Key]) -> list[DirectoryEffect]:
        """Forget the adverts that the shared memory does not hold any more."""
        gone = [peer for key in keys if (peer := self._peers.get(key)) is not None]
        for peer in gone:
            self.forget(peer)
        return [Forget(peer) for peer in gone]

    def expire(self, now_ms: int) -> list[DirectoryEffect]:
        """Forget peers whose advert is over its life, or whose certificate has ended."""
        gone = [
            (entry.peer, now_ms > entry.member.grace_until_ms)
            for entry in self._entries.values()
            if entry.peer != self._me
            and now_ms > min(entry.member.grace_until_ms, entry.at_ms + ADVERT_LIFE_MS)
        ]
        for peer, _ in gone:
            self.forget(peer)
        return [Forget(peer, no_member=ended) for peer, ended in gone]

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer that is no member any more."""
        entry = self._entries.pop(peer, None)
        if entry is not None:
            self._peers.pop(entry.key, None)

    def rejudge(self, peer: PeerId, now_ms: int) -> list[DirectoryEffect]:
        """Look again whether a peer's advert counts, and as what kind of member it stands there."""
        entry = self._entries.get(peer)
        if entry is None or peer == self._me:
            return []
        try:
            member = self._judge(entry.chain, peer, now_ms)
        except NotAdmitted:
            self.forget(peer)
            return [Forget(peer, no_member=True)]
        if member == entry.member:
            return []
        entry = self._entries[peer] = replace(entry, member=member)
        return [Keep(entry)]

    def _take(self, told: Told, now_ms: int) -> Entry | None:
        """Return the entry if it counts and is newer than what is known."""
        known = self._entries.get(told.peer)
        if told.peer == self._me or (known is not None and known.key >= told.key):
            return None
        try:
            check_age(told, now_ms)
            member = self._judge(told.chain, told.peer, now_ms)
        except (Malformed, NotAdmitted):
            self.refused += 1
            return None
        if known is None and len(self._entries) >= PEERS_MAX:
            self.refused += 1
            return None
        self.forget(told.peer)
        entry = Entry(told.peer, told.advert, member, told.at_ms, told.key, told.chain)
        self._entries[told.peer] = entry
        self._peers[told.key] = told.peer
        return entry
