"""Who should run a task: here first, then the least busy of those that have everything."""

from collections.abc import Mapping

import pytest
from test_gossip.members import directory_of, key, told_by

from covey.gossip.bidding import Bid
from covey.gossip.network import LinkInfo, Load
from covey.gossip.routing import Candidate, DirectoryFinder, Nobody, SearchingFinder
from covey.gossip.search import CallOut, Search
from covey.gossip.task import Need
from covey.identity.certificate import Member
from covey.identity.keys import Keypair, PeerId

ME, LOG, BIG, FAR = (key(n) for n in (1, 2, 3, 4))


def finder(
    lacks_here: str | None = None, links: Mapping[PeerId, LinkInfo] | None = None
) -> DirectoryFinder:
    directory = directory_of(
        ME,
        told_by(
            LOG, name="line-1", skills=("chat", "classify"), data=("log",), labels=(("line", "1"),)
        ),
        told_by(BIG, name="line-2", skills=("chat", "classify"), models=("big",)),
        told_by(FAR, name="far", skills=("classify", "rare"), data=("deep",)),
        own=told_by(ME, name="gateway", skills=("chat",)),
    )
    linked = (
        links
        if links is not None
        else {LOG.peer_id: link(LOG.peer_id), BIG.peer_id: link(BIG.peer_id)}
    )
    return DirectoryFinder(ME.peer_id, directory, lambda: linked, lambda _need: lacks_here)


def link(peer: PeerId, waiting: int = 0, round_trip_ms: float = 1.0) -> LinkInfo:
    return LinkInfo(peer, round_trip_ms, 0.0, "", inbound=False, load=Load(0, waiting))


def found(
    need: Need, lacks_here: str | None = None, exclude: tuple[PeerId, ...] = ()
) -> PeerId | str:
    answer = finder(lacks_here).find(need, exclude, 0.0, 60.0)
    return answer.peer if isinstance(answer, Candidate) else answer.reason


def test_what_can_be_done_here_is_done_here() -> None:
    answer = finder().find(Need("chat"), (), 0.0, 60.0)
    assert answer == Candidate(ME.peer_id, "here", "here: skill 'chat', and no network is needed")


@pytest.mark.parametrize(
    ("need", "peer"),
    [
        (Need("classify", data="log"), LOG),
        (Need("classify", labels=(("line", "1"),)), LOG),
        (Need("classify", model="big"), BIG),
        (Need("classify", model="00" * 32), BIG),
        (Need("chat", peer="line-2"), BIG),
        (Need("chat", peer=LOG.peer_id), LOG),
    ],
)
def test_it_goes_to_who_has_everything(need: Need, peer: object) -> None:
    assert found(need, "no model here") == getattr(peer, "peer_id")  # noqa: B009  (a Keypair)


@pytest.mark.parametrize(
    ("need", "reason"),
    [
        (Need("classify", data="nosuch"), "no peer known has data 'nosuch'"),
        (Need("classify", model="nosuch"), "no peer known has model 'nosuch'"),
        (Need("classify", peer="nosuch"), "no peer known is 'nosuch'"),
        (Need("nosuch"), "no peer known offers skill 'nosuch'"),
        (
            Need("classify", data="log", model="big"),
            "no single peer known has all of: data 'log', skill 'classify', model 'big'",
        ),
        (Need("rare"), "far could do it, but cannot be reached now"),
        (
            Need("classify", zone="device"),
            "zone 'device' keeps it here, but it does not offer skill 'classify'",
        ),
    ],
)
def test_nobody_is_said_with_what_is_missing(need: Need, reason: str) -> None:
    assert found(need, "it has no model") == reason


def test_nothing_of_zone_device_is_offered_to_others_whatever_they_have() -> None:
    answer = finder("busy").find(Need("chat", zone="device"), (), 0.0, 60.0)
    assert isinstance(answer, Nobody)
    assert finder().find(Need("chat", zone="device"), (), 0.0, 60.0) == Candidate(
        ME.peer_id, "here", "here: skill 'chat', and no network is needed"
    )


def test_an_unknown_zone_is_nobodys() -> None:
    assert "no single peer" in str(found(Need("chat", zone="ward-9")))


def test_the_least_busy_is_chosen_then_the_nearest() -> None:
    links = {LOG.peer_id: link(LOG.peer_id, 3), BIG.peer_id: link(BIG.peer_id, 1, 90.0)}
    answer = finder("busy", links).find(Need("classify"), (), 0.0, 60.0)
    assert isinstance(answer, Candidate)
    assert answer.peer == BIG.peer_id
    assert answer.why == (
        "it has skill 'classify'; the least busy of 2 (0 running, 1 waiting); "
        "this peer does not offer skill 'classify'"
    )
    links = {LOG.peer_id: link(LOG.peer_id, 1, 2.0), BIG.peer_id: link(BIG.peer_id, 1, 90.0)}
    answer = finder("busy", links).find(Need("classify"), (), 0.0, 60.0)
    assert isinstance(answer, Candidate)
    assert answer.peer == LOG.peer_id


def test_who_just_declined_is_left_out() -> None:
    exclude = (LOG.peer_id, BIG.peer_id)
    assert found(Need("classify"), "busy", exclude) == (
        "far, line-1, line-2 could do it, and will be asked again soon"
    )


# When the directory has nobody


class Wide:
    """A finder that knows the same directory, and whose search has found these."""

    def __init__(self, *zones: str) -> None:
        self.links = {
            LOG.peer_id: link(LOG.peer_id),
            BIG.peer_id: link(BIG.peer_id, waiting=1),
        }
        self.search = Search(
            ME.peer_id,
            members=lambda: 9,
            zone_links=lambda _zone: [LOG.peer_id],
            has_dht=False,
            has_calls=True,
            salt=b"",
        )
        self.zones = frozenset(zones)
        self.seeks = 0
        self.core = SearchingFinder(
            finder("busy", self.links), self.search, lambda: self.links, self.member, self.seek
        )

    def member(self, peer: PeerId) -> Member:
        zones = self.zones if peer == LOG.peer_id else frozenset[str]()
        return Member(peer, "member", zones, 0, 1 << 60, 1 << 60)

    def seek(self) -> None:
        self.seeks += 1

    def find(self, need: Need, exclude: tuple[PeerId, ...] = ()) -> PeerId | str:
        answer = self.core.find(need, exclude, 0.0, 60.0)
        return answer.peer if isinstance(answer, Candidate) else answer.reason

    def bids(self, need: Need, *peers: Keypair) -> None:
        """Let these answer the call."""
        self.find(need)
        for effect in self.search.tick(0.0):
            assert isinstance(effect, CallOut)
            for peer in peers:
                self.search.answered(peer.peer_id, Bid(effect.call.id, 0, 0), 0.0)


SECRET = Need("chat", data="secret-log")


def test_what_nobody_offers_is_searched_for_and_the_task_says_so() -> None:
    wide = Wide()
    assert wide.find(SECRET) == "no peer known has data 'secret-log'; searching"
    assert wide.seeks == 1


def test_what_a_busy_or_unlinked_known_peer_could_do_is_not_called_for_needlessly() -> None:
    wide = Wide()
    wide.find(Need("classify", data="log"), (LOG.peer_id,))
    assert wide.seeks == 0, "it is asked again soon"
    said = wide.find(Need("rare"))
    assert said == "far could do it, but cannot be reached now; searching"
    assert wide.find(Need("chat", zone="device")) == "zone 'device' keeps it here, but busy"


def test_of_those_that_answered_the_least_busy_linked_one_is_chosen() -> None:
    wide = Wide()
    wide.bids(SECRET, FAR, BIG, LOG)
    assert wide.find(SECRET) == LOG.peer_id
    assert wide.find(SECRET, (LOG.peer_id,)) == BIG.peer_id
    nobody = "no peer known has data 'secret-log'; calling for bids"
    assert wide.find(SECRET, (LOG.peer_id, BIG.peer_id)) == nobody
    answer = wide.core.find(SECRET, (), 0.0, 60.0)
    assert isinstance(answer, Candidate)
    assert answer.way == "bid"


def test_who_answered_from_outside_the_zone_does_not_exist() -> None:
    need = Need("chat", zone="plant-7", data="secret-log")
    inside, outside = Wide("plant-7"), Wide()
    for wide in (inside, outside):
        wide.bids(need, LOG, BIG)
    assert inside.find(need) == LOG.peer_id
    assert outside.find(need) == "no peer known has data 'secret-log'; calling for bids"
