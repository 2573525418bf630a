"""Which peer should run a task? This one, else the best of the directory.

Pure: reads what is known now. Candidates outside the zone do not exist. The order of asking is
DESIGN's: this peer, the directory; a coordinator's shortlist, the DHT and calls for bids will be
further `Finder`s.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from covey.identity.keys import PeerId

from .directory import Directory, Entry
from .network import LinkInfo
from .task import Need

Way = Literal["here", "directory"]


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


class Finder(Protocol):
    """How an origin finds an executor. The seam for coordinator, DHT and bids."""

    def find(self, need: Need, exclude: Collection[PeerId]) -> Candidate | Nobody:
        """Return the best candidate now, none of `exclude`."""
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

    def find(self, need: Need, exclude: Collection[PeerId]) -> Candidate | Nobody:
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
            return Nobody(self._why_nobody(need, able, links))
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
