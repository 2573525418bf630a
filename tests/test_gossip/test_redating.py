"""What was signed while a clock was ahead is signed anew, once, and the clock goes back."""

from test_gossip.memory_entries import ALICE, BOB, MESH, NOW_MS, PUMPS, note, shorts
from test_gossip.memory_tables import DictTables

from covey.gossip.memory.entry import Entry, read_entry
from covey.gossip.memory.hybrid_clock import HybridClock
from covey.gossip.memory.redating import is_ahead, redate
from covey.gossip.memory.replica import Arrival, Quotas, Replica
from covey.gossip.memory.tables import Table

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


def replica_at(tables: DictTables, now_ms: int) -> Replica:
    return Replica(tables, now_ms, lambda _namespace: Quotas())


def held(tables: DictTables) -> list[Entry]:
    return [read_entry(data) for _, data in tables.scan(Table.ENTRY, b"")]


def test_only_what_is_dated_too_far_ahead_is_signed_anew_with_what_it_names() -> None:
    tables = DictTables()
    before = note(ALICE, "rising vibration", at_ms=NOW_MS - HOUR_MS)
    near = note(ALICE, "within what all take", at_ms=NOW_MS + 4 * 60_000)
    others = note(BOB, "not alice's", at_ms=NOW_MS)
    first = note(ALICE, "seals fail", at_ms=NOW_MS + DAY_MS, expires_ms=NOW_MS + 3 * DAY_MS)
    second = note(
        ALICE, "because of both", at_ms=NOW_MS + DAY_MS + 1, derived_from=shorts([before, first])
    )
    arrivals: list[Arrival] = [before, near, others, first, second]
    for arrival in arrivals:
        assert replica_at(tables, NOW_MS + DAY_MS).apply(arrival) == "kept"
    clock = HybridClock(second.entry.header.clock)
    assert is_ahead(clock, NOW_MS)

    def again() -> int:
        return redate(
            replica_at(tables, NOW_MS), tables, [PUMPS], ALICE, MESH, clock, NOW_MS, by_admin=False
        )

    assert again() == 2
    kept = {one.id for one in held(tables)}
    assert kept >= {before.entry.id, near.entry.id, others.entry.id}
    anew = sorted(
        (one for one in held(tables) if one.id not in {a.entry.id for a in arrivals}),
        key=lambda one: one.key,
    )
    assert len(kept) == 5
    assert [one.at_ms // 60_000 for one in anew] == [NOW_MS // 60_000 + 4] * 2, "after its others"
    assert anew[0].header.expires_s in range(
        (NOW_MS + 2 * DAY_MS) // 1000, (NOW_MS + 2 * DAY_MS) // 1000 + 300
    ), "for as long as it was to be"
    assert anew[1].header.derived_from == (before.entry.id[:16], anew[0].id[:16])
    payloads = {value for _, value in tables.scan(Table.PAYLOAD, b"")}
    assert payloads == {arrival.payload for arrival in arrivals}
    assert not is_ahead(clock, NOW_MS)
    assert again() == 0


def test_a_device_whose_clock_was_never_ahead_keeps_its_time() -> None:
    clock = HybridClock(NOW_MS + 60_000 << 16)
    assert not is_ahead(clock, NOW_MS)
