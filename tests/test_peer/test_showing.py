"""Tasks and peers as a client sees them: names for ids, and reasons a person can read."""

import msgspec
from test_gossip.members import NOW_MS, directory_of, key, told_by

from covey.gossip.network import LinkInfo, Load, Traffic
from covey.gossip.task import Need, Task
from covey.gossip.task_state import Attempt, TaskState
from covey.peer.showing import peer_view, task_view, traffic_view

ALICE, BOB = key(1).peer_id, key(2).peer_id
NAMES: dict[str, str] = {ALICE: "alice", BOB: "bob"}
TASK = Task(b"t" * 16, ALICE, b"n" * 16, Need("chat"), b"{}", NOW_MS, NOW_MS + 1000)
ATTEMPTS = (
    Attempt(1, ALICE, "directory", "it has a model", "lost", "cut off", NOW_MS, NOW_MS + 5),
    Attempt(2, BOB, "directory", "the least busy of 2", "running", "", NOW_MS + 6),
)


def name(peer: str) -> str:
    return NAMES.get(peer, peer)


def test_a_running_task_says_where_by_name_and_how_far_it_is() -> None:
    view = task_view(
        TASK,
        TaskState("running", f"running at {BOB}", ATTEMPTS),
        name=name,
        progress="3 of 20",
    )
    assert view.reason == "running at bob (3 of 20)"
    assert (view.peer, view.peer_name, view.way) == (BOB, "bob", "directory")
    assert [(one.peer_name, one.state) for one in view.attempts] == [
        ("alice", "lost"),
        ("bob", "running"),
    ]
    assert (view.ended_ms, view.run_ms, view.result) == (None, None, None)


def test_a_done_task_has_its_result_and_how_long_it_ran() -> None:
    state = TaskState("done", f"done at {BOB}", ATTEMPTS, NOW_MS + 9, 2500, "smol", BOB)
    view = task_view(TASK, state, name=name, result=b'{"text":"hi"}')
    assert (view.state, view.reason, view.run_ms, view.model_used) == (
        "done",
        "done at bob",
        2.5,
        "smol",
    )
    assert b'"result":{"text":"hi"}' in msgspec.json.encode(view)


def test_a_task_that_waits_names_no_peer() -> None:
    view = task_view(TASK, TaskState("queued", "no peer known offers 'chat'"), name=name)
    assert (view.peer, view.peer_name, view.way, view.attempts) == (None, None, None, ())


def test_a_peer_is_self_up_or_down() -> None:
    own = told_by(key(1), name="alice")
    directory = directory_of(key(1), told_by(key(2), name="bob"), own=own)
    alice, bob = directory.get(ALICE), directory.get(BOB)
    assert alice is not None
    assert bob is not None
    link = LinkInfo(BOB, 1.234, 0.0, "", inbound=True, load=Load(2, 3))

    own = peer_view(alice, None, own_load=Load(1, 0), now_ms=NOW_MS + 7)
    up = peer_view(bob, link, own_load=None, now_ms=NOW_MS + 7)
    down = peer_view(bob, None, own_load=None, now_ms=NOW_MS + 7)

    assert [one.state for one in (own, up, down)] == ["self", "up", "down"]
    assert [(one.running, one.waiting) for one in (own, up, down)] == [(1, 0), (2, 3), (None, None)]
    assert (up.round_trip_ms, up.seen_ms, down.seen_ms) == (1.23, NOW_MS + 7, NOW_MS)


def test_traffic_is_summed_over_channels() -> None:
    traffic = Traffic({"task": 5, "input": 6}, {"task": 1}, {"advert": 2}, {})
    view = traffic_view(traffic, data_read_bytes=9)
    assert (view.payload_out_bytes, view.payload_in_bytes) == (11, 1)
    assert (view.control_out_bytes, view.control_in_bytes, view.data_read_bytes) == (2, 0, 9)
