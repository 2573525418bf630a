"""Who offers what? The newest valid advert of each peer, and how two directories become one.

Pure: `receive` and its kin return effects; the daemon carries them out. On a new link both sides
say what they have, and each sends what the other lacks; what is new is passed on to all other
links. Merging is by the greatest (incarnation, number) of each author, so order, loss and
repetition do not matter.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from covey.identity.certificate import Chain, Member
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, NotAdmitted
from covey.identity.keys import PeerId
from covey.identity.wire import KIB

from .advert import (
    ADVERT_LIFE_MS,
    Advert,
    AdvertMessage,
    Have,
    Item,
    News,
    open_item,
    read_item,
)

PEERS_MAX = 10_000
# An item has about 1 KiB, and 24 KiB at most: a message stays below the link's frame limit.
ITEMS_PER_MESSAGE = 128
NEWS_BYTES_MAX = 512 * KIB


@dataclass(frozen=True, slots=True)
class Entry:
    """What is known of one peer."""

    peer: PeerId
    advert: Advert
    member: Member
    item: Item


@dataclass(frozen=True, slots=True)
class Tell:
    """Send an advert message to a linked peer."""

    to: PeerId
    message: AdvertMessage


@dataclass(frozen=True, slots=True)
class Keep:
    """Store this entry; it replaces the peer's older one. Its member and addresses may be new."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Forget:
    """Remove a peer's stored entry; `no_member`: its certificate has ended, so it is cut off, too."""

    peer: PeerId
    no_member: bool = False


DirectoryEffect = Tell | Keep | Forget
Judge = Callable[[Chain, PeerId, int], Member]


class Directory:
    """One peer's view of all adverts, its own included.

    Args:
        me: this peer.
        mesh: the mesh.
        judge: returns who an author is now by the chain that it shows, or raises NotAdmitted; None:
            the chain alone says it.
    """

    def __init__(self, me: PeerId, mesh: MeshId, judge: Judge | None = None) -> None:
        self._me = me
        self._mesh = mesh
        self._judge = judge
        self._entries: dict[PeerId, Entry] = {}
        # Of what is held, as it came: most of what is heard is a repetition, and costs no signature.
        self._held: set[bytes] = set()
        self._links: set[PeerId] = set()
        self.refused = 0

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, peer: PeerId) -> Entry | None:
        """Return what is known of a peer."""
        return self._entries.get(peer)

    def restore(self, items: Iterable[Item], now_ms: int) -> None:
        """Take in stored items; what no longer holds is left out."""
        for item in items:
            self._take(item, now_ms)

    def announce(self, item: Item, whole: Advert | None = None) -> list[DirectoryEffect]:
        """Take in this peer's own fresh advert and tell every link.

        Its time is not judged: with a wrong clock, or past its grace, a device works on alone.

        Args:
            item: what others are told.
            whole: what this peer offers, if others are told less.
        """
        entry = self._take(item, None)
        if entry is None:
            return []
        if whole is not None:
            entry = self._entries[entry.peer] = replace(entry, advert=whole)
        return [Keep(entry), *(Tell(peer, News((item,))) for peer in sorted(self._links))]

    def link_up(self, peer: PeerId) -> list[DirectoryEffect]:
        """Say what we have to a newly linked peer."""
        self._links.add(peer)
        have = tuple((entry.peer, *entry.advert.order) for entry in self._entries.values())
        return [Tell(peer, Have(have[:PEERS_MAX]))]

    def link_down(self, peer: PeerId) -> None:
        """Note that a link ended."""
        self._links.discard(peer)

    def receive(self, sender: PeerId, message: AdvertMessage, now_ms: int) -> list[DirectoryEffect]:
        """Take in what a linked peer said."""
        match message:
            case Have(entries):
                return self._answer(sender, entries)
            case News(items):
                return self._learn(sender, items, now_ms)

    def expire(self, now_ms: int) -> list[DirectoryEffect]:
        """Forget peers whose advert is over its life, or whose certificate has ended."""
        gone = [
            (entry.peer, now_ms > entry.member.grace_until_ms)
            for entry in self._entries.values()
            if entry.peer != self._me
            and now_ms > min(entry.member.grace_until_ms, entry.advert.issued_ms + ADVERT_LIFE_MS)
        ]
        for peer, _ in gone:
            self._held.discard(self._entries.pop(peer).item.advert)
        return [Forget(peer, no_member=ended) for peer, ended in gone]

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer that is no member any more."""
        entry = self._entries.pop(peer, None)
        if entry is not None:
            self._held.discard(entry.item.advert)

    def rejudge(self, peer: PeerId, now_ms: int) -> list[DirectoryEffect]:
        """Look again whether a peer's advert counts, and as what kind of member it stands there."""
        entry = self._entries.get(peer)
        if entry is None or peer == self._me or self._judge is None:
            return []
        try:
            member = self._judge(entry.item.chain, peer, now_ms)
        except NotAdmitted:
            self.forget(peer)
            return [Forget(peer, no_member=True)]
        if member == entry.member:
            return []
        self._entries[peer] = replace(entry, member=member)
        return [Keep(self._entries[peer])]

    def _answer(
        self, sender: PeerId, entries: tuple[tuple[str, int, int], ...]
    ) -> list[DirectoryEffect]:
        theirs = {peer: (incarnation, number) for peer, incarnation, number in entries}
        lacking = [
            entry.item
            for entry in self._entries.values()
            if theirs.get(entry.peer, (-1, -1)) < entry.advert.order
        ]
        return [Tell(sender, News(part)) for part in _parts(lacking)]

    def _learn(self, sender: PeerId, items: tuple[Item, ...], now_ms: int) -> list[DirectoryEffect]:
        effects: list[DirectoryEffect] = []
        fresh: list[Item] = []
        for item in items[:ITEMS_PER_MESSAGE]:
            entry = self._take(item, now_ms)
            if entry is not None:
                effects.append(Keep(entry))
                fresh.append(item)
        for part in _parts(fresh):
            effects += [Tell(peer, News(part)) for peer in sorted(self._links - {sender})]
        return effects

    def _take(self, item: Item, now_ms: int | None) -> Entry | None:
        """Return the entry if it is valid and newer than what we have."""
        if item.advert in self._held:
            return None
        try:
            if now_ms is None:
                signed, member = read_item(item, mesh=self._mesh)
            else:
                signed, member = open_item(item, mesh=self._mesh, now_ms=now_ms)
                if self._judge is not None:
                    member = self._judge(item.chain, signed.signer, now_ms)
        except (Malformed, NotAdmitted):
            self.refused += 1
            return None
        known = self._entries.get(signed.signer)
        if known is not None and known.advert.order >= signed.body.order:
            return None
        if known is None and len(self._entries) >= PEERS_MAX:
            self.refused += 1
            return None
        if known is not None:
            self._held.discard(known.item.advert)
        self._held.add(item.advert)
        entry = Entry(signed.signer, signed.body, member, item)
        self._entries[signed.signer] = entry
        return entry


def _parts(items: Iterable[Item]) -> Iterator[tuple[Item, ...]]:
    """Cut items into parts that each fit one message."""
    part: list[Item] = []
    size = 0
    for item in items:
        added = len(item.advert) + sum(map(len, item.chain))
        if part and (len(part) >= ITEMS_PER_MESSAGE or size + added > NEWS_BYTES_MAX):
            yield tuple(part)
            part, size = [], 0
        part.append(item)
        size += added
    if part:
        yield tuple(part)
