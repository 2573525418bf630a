"""Which peer should run a task? This one, else the best of the directory.

Pure: reads what is known now. Candidates outside the zone do not exist. The order is DESIGN's: this
peer, the directory, and, when the directory has nobody, who said so themselves: asked by a hint of
the DHT, or in answer to a call for bids (`search.py`). A coordinator's shortlist will be a further
`Finder`.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from covey.identity.certificate import Member
from covey.identity.keys import PeerId

from .directory import Directory, Entry
from .network import LinkInfo
from .search import Found, Search
from .task import Need

Way = Literal["here", "directory", "dht", "bid"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that may be offered the task, and why it was chosen, in plain words."""

    peer: PeerId
    way: Way
    why: str


@dataclass(frozen=True, slots=True)
class Nobody:
    """No peer can be offered the task now, and what is missing, in plain words."""

    reason: str
    soon: bool = False
    """A linked peer can do it, and will be asked again in a moment."""


class Finder(Protocol):
    """How an origin finds an executor. The seam for coordinator, DHT and bids."""

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        """Return the best candidate now, none of `exclude`; the task has `left_s` more seconds."""
        ...


class DirectoryFinder:
    """Finds this peer first, then the directory's best linked peer.

    Args:
        me: this peer.
        directory: the adverts.
        links: the current links, by peer.
        able_here: tells what this peer lacks for a need; None if it can run it now.
    """

    def __init__(
        self,
        me: PeerId,
        directory: Directory,
        links: Callable[[], Mapping[PeerId, LinkInfo]],
        able_here: Callable[[Need], str | None],
    ) -> None:
        self._me = me
        self._directory = directory
        self._links = links
        self._able_here = able_here

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        """Return the best candidate now, none of `exclude`."""
        lacks_here = self._lacks_here(need)
        if lacks_here is None and self._me not in exclude:
            return Candidate(self._me, "here", f"here: {_fit(need)}, and no network is needed")
        if need.zone == "device":
            return Nobody(f"zone 'device' keeps it here, but {lacks_here or 'this peer is busy'}")
        links = self._links()
        able = [
            entry
            for entry in self._directory
            if entry.peer != self._me and lacks(entry, need) is None
        ]
        ready = [entry for entry in able if entry.peer in links and entry.peer not in exclude]
        if not ready:
            soon = any(entry.peer in links for entry in able)
            return Nobody(self._why_nobody(need, able, links), soon)
        best = min(ready, key=lambda entry: _rank(links[entry.peer], entry.peer))
        return Candidate(
            best.peer, "directory", _why(need, best, links[best.peer], len(ready), lacks_here)
        )

    def _lacks_here(self, need: Need) -> str | None:
        own = self._directory.get(self._me)
        if own is not None and (lack := lacks(own, need)) is not None:
            return lack
        return self._able_here(need)

    def _why_nobody(self, need: Need, able: list[Entry], links: Mapping[PeerId, LinkInfo]) -> str:
        if able:
            names = ", ".join(sorted(entry.advert.name for entry in able)[:3])
            if all(entry.peer not in links for entry in able):
                return f"{names} could do it, but cannot be reached now"
            return f"{names} could do it, and will be asked again soon"
        return why_none(need, self._directory)


class SearchingFinder:
    """Finds by the directory, and lets those be searched for whom it does not know.

    Args:
        directory: this peer first, then the directory.
        search: the searches of this peer.
        links: the current links, by peer.
        member: who a linked peer is by the chain that it showed.
        seek: told that a search may be due.
    """

    def __init__(
        self,
        directory: Finder,
        search: Search,
        links: Callable[[], Mapping[PeerId, LinkInfo]],
        member: Callable[[PeerId], Member | None],
        seek: Callable[[], None],
    ) -> None:
        self._directory = directory
        self._search = search
        self._links = links
        self._member = member
        self._seek = seek

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        """Return the best candidate now, none of `exclude`; if there is none, begin to search."""
        answer = self._directory.find(need, exclude, now, left_s)
        if isinstance(answer, Candidate) or answer.soon:
            return answer
        links = self._links()
        found = [
            one
            for one in self._search.found(need, now)
            if one.peer in links
            and one.peer not in exclude
            and (member := self._member(one.peer)) is not None
            and member.is_in(need.zone)
        ]
        if found:
            best = min(found, key=lambda one: _rank_found(links[one.peer], one))
            return Candidate(best.peer, best.by, _why_found(best, len(found)))
        doing = self._search.want(need, now, left_s)
        self._seek()
        return Nobody(f"{answer.reason}; {doing}" if doing else answer.reason)


def _rank_found(link: LinkInfo, found: Found) -> tuple[int, int, PeerId]:
    waiting, _, peer = _rank(link, found.peer)
    return waiting, found.done_in_ms, peer


def _why_found(found: Found, of: int) -> str:
    how = {
        "dht": "the DHT named it, and it said itself that it can",
        "bid": "it answered a call for bids",
    }[found.by]
    run = f", {found.bid.run_ms} ms a run of late" if found.bid.run_ms else ""
    best = f"; the best of {of}" if of > 1 else ""
    starts = f"in {found.bid.starts_in_ms} ms" if found.bid.starts_in_ms else "at once"
    return f"nobody is known that offers it; {how}: starts {starts}{run}{best}"


def why_none(need: Need, entries: Iterable[Entry]) -> str:
    """Return what is missing in the whole directory, the hardest condition first."""
    known = list(entries)
    if need.peer is not None and not any(_is_named(entry, need.peer) for entry in known):
        return f"no peer known is {need.peer!r}"
    if need.data is not None and not any(_has_data(entry, need.data) for entry in known):
        return f"no peer known has data {need.data!r}"
    if need.model is not None and not any(_has_model(entry, need.model) for entry in known):
        return f"no peer known has model {need.model!r}"
    if not any(need.skill in entry.advert.skills for entry in known):
        return f"no peer known offers skill {need.skill!r}"
    return f"no single peer known has all of: {_fit(need)}"


def lacks(entry: Entry, need: Need) -> str | None:
    """Return what a peer lacks for a need by its advert, in plain words; None if nothing."""
    advert = entry.advert
    if not entry.member.is_in(need.zone) and need.zone != "device":
        return f"it is not in zone {need.zone!r}"
    if need.peer is not None and not _is_named(entry, need.peer):
        return f"it is not {need.peer!r}"
    if need.data is not None and not _has_data(entry, need.data):
        return f"it has no data {need.data!r}"
    for label in need.labels:
        if label not in advert.labels:
            return f"it has no label {label[0]}={label[1]}"
    if need.skill not in advert.skills:
        return f"it does not offer skill {need.skill!r}"
    if need.model is not None and not _has_model(entry, need.model):
        return f"it has no model {need.model!r}"
    return None


def _is_named(entry: Entry, named: str) -> bool:
    return named in (entry.peer, entry.advert.name)


def _has_data(entry: Entry, name: str) -> bool:
    return any(offer.name == name for offer in entry.advert.data)


def _has_model(entry: Entry, name: str) -> bool:
    return any(name in (offer.name, offer.digest) for offer in entry.advert.models)


def _rank(link: LinkInfo, peer: PeerId) -> tuple[int, float, PeerId]:
    load = link.load
    waiting = (load.running + load.waiting) if load is not None else 0
    return waiting, round(link.round_trip_ms or 0.0, 0), peer


def _fit(need: Need) -> str:
    parts = [f"skill {need.skill!r}"]
    if need.data is not None:
        parts.insert(0, f"data {need.data!r}")
    parts += [f"label {key}={value}" for key, value in need.labels]
    if need.model is not None:
        parts.append(f"model {need.model!r}")
    return ", ".join(parts)


def _why(need: Need, entry: Entry, link: LinkInfo, ready: int, lacks_here: str | None) -> str:
    has = f"it has {_fit(need)}"
    if ready == 1:
        why = f"{has}; no other peer in reach does"
    else:
        load = link.load
        busy = (
            f"{load.running} running, {load.waiting} waiting"
            if load is not None
            else "load unknown"
        )
        why = f"{has}; the least busy of {ready} ({busy})"
    if lacks_here is None:
        return why
    # What a peer lacks is told of "it"; here that would be read as the other one.
    return f"{why}; this peer {lacks_here.removeprefix('it ')}"
