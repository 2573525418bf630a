"""SIGKILL by seed on a standing mesh: each acknowledged task ends in exactly one outcome.

COVEY_CHAOS_ROUNDS (10) and COVEY_CHAOS_SEED (1) choose how long and which.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.conftest import wait_for_peers

from covey.peer.client import Client, ClientError, NotFoundHere, connect
from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.views import TERMINAL_STATES, TaskView

pytestmark = [pytest.mark.end_to_end, pytest.mark.model]
ROUNDS = int(os.environ.get("COVEY_CHAOS_ROUNDS", "10"))
SEED = int(os.environ.get("COVEY_CHAOS_SEED", "1"))
TASKS = 4
MOMENTS = ("amid work", "at once", "later on")
SETTLED_S = 90.0


LONG: dict[str, object] = {"prompt": "Write a long story about a pump.", "max_tokens": 90}
"""Seconds of work: whoever is killed while it is seen to run is killed in the middle of it."""


def work(draw: random.Random, number: int) -> tuple[str, dict[str, object]]:
    """One piece of work: first one that is long, then some that are shorter, or very short."""
    if number == 0:
        return "chat", LONG
    if draw.random() < 0.5:
        tokens = draw.randrange(16, 100)
        return "chat", {"prompt": f"Count from {number}.", "max_tokens": tokens}
    return "classify", {"labels": ["warm", "cold"], "items": [f"pump {number} is hot"]}


def hand_in(origin: LocalPeer, round_: int, acknowledged: dict[str, str]) -> None:
    """Hand in work until the origin is gone; what it acknowledged, it must do."""
    draw = random.Random(f"{SEED}-{round_}")
    with connect(home=origin.home) as client:
        for number in range(TASKS):
            skill, asked = work(draw, number)
            key = f"{SEED}-{round_}-{number}"
            try:
                task = client.submit(skill, asked, key=key, labels={"role": "worker"})
            except ClientError:
                return
            acknowledged[task.id] = key


def who_runs(client: Client, name: str) -> str | None:
    task = client.task(name)
    return task.peer_name if task.state == "running" else None


def finished(client: Client, name: str) -> TaskView | None:
    try:
        task = client.task(name)
    except NotFoundHere:
        pytest.fail(f"task {name} was acknowledged, and is lost")
    except ClientError:
        return None
    return task if task.state in TERMINAL_STATES else None


@pytest.fixture(scope="module")
def mesh() -> Iterator[LocalMesh]:
    """`bootstrap` and `worker` have models and do the work; `origin` hands it in."""
    root = Path(tempfile.mkdtemp(prefix="cv"))
    with LocalMesh(root) as mesh:
        bootstrap = mesh.found("bootstrap", "--label", "role=worker")
        bootstrap.start()
        worker = mesh.join("worker", "--label", "role=worker", inviter=bootstrap)
        origin = mesh.join("origin", inviter=bootstrap)
        for peer in (bootstrap, worker):
            peer.covey("models", "pull", timeout_s=300)
        worker.start()
        origin.start()
        for peer in mesh.peers.values():
            wait_for_peers(peer, 2)
        yield mesh
    shutil.rmtree(root, ignore_errors=True)


def test_a_killed_peer_costs_no_acknowledged_task(
    mesh: LocalMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(SEED)
    peers = mesh.peers
    origin = peers["origin"]
    deck: list[str] = []
    ended: dict[str, TaskView] = {}
    lost_attempts = 0
    for round_ in range(ROUNDS):
        acknowledged: dict[str, str] = {}
        # The kill comes as work is handed in, or hits who runs the long task, or comes later on.
        moment = MOMENTS[round_ % len(MOMENTS)]
        handing_in = threading.Thread(target=hand_in, args=(origin, round_, acknowledged))
        handing_in.start()
        if moment == "at once":
            wait_until(lambda known=acknowledged: len(known) >= 2, "two are acknowledged")
        else:
            handing_in.join(30)
        long, *_, last = acknowledged
        if moment == "later on":
            wait_until(lambda last=last: finished(origin.client, last), "the last is done")
        if moment == "amid work":
            runner = wait_until(lambda long=long: who_runs(origin.client, long), "the long runs")
            victim = peers[runner]
        else:
            if not deck:
                deck = sorted(peers)
                draw.shuffle(deck)
            victim = peers[deck.pop()]
        victim.kill()
        handing_in.join(30)
        assert not handing_in.is_alive()
        victim.start()
        assert acknowledged, "nothing was acknowledged: the round showed nothing"
        for name in acknowledged:
            ended[name] = wait_until(
                lambda name=name: finished(origin.client, name),
                f"task {name} of round {round_} is finished ({victim.name} was killed)",
                timeout_s=SETTLED_S,
            )
            assert ended[name].state == "done", (
                f"round {round_}, {victim.name} killed: {ended[name]}"
            )
            lost_attempts += sum(one.state == "lost" for one in ended[name].attempts)
        for peer in peers.values():
            wait_for_peers(peer, len(peers) - 1)
        tell(
            capsys, f"round {round_}: {victim.name} killed {moment}: {len(acknowledged)} tasks done"
        )
    for name, before in ended.items():
        now = origin.client.task(name)
        assert (now.state, now.peer, now.result) == (before.state, before.peer, before.result)
        assert sum(one.state == "done" for one in now.attempts) == 1
    tell(capsys, f"{len(ended)} acknowledged tasks, each done once; {lost_attempts} lost attempts")
    assert lost_attempts > 0, "no kill hit any work: nothing was shown"


def test_a_frozen_peer_shows_no_error_and_its_work_is_done_by_another(mesh: LocalMesh) -> None:
    """SIGSTOP: its sockets stay open, and nothing says that it is gone."""
    origin = mesh.peers["origin"]
    asked = {"prompt": "Write a long story about a lighthouse.", "max_tokens": 200}
    task = origin.client.submit("chat", asked, labels={"role": "worker"})
    running = wait_until(
        lambda: one if (one := origin.client.task(task.id)).state == "running" else None,
        "it runs",
        timeout_s=30,
    )
    assert running.peer_name is not None
    frozen = mesh.peers[running.peer_name]
    frozen.kill(signal.SIGSTOP)
    try:
        ended = origin.client.wait(task.id, timeout_s=60)
        assert ended.state == "done"
        assert ended.peer_name != frozen.name
        first = ended.attempts[0]
        assert (first.peer_name, first.state) == (frozen.name, "lost")
        assert "silent" in first.reason
    finally:
        frozen.kill(signal.SIGCONT)
    for peer in mesh.peers.values():
        wait_for_peers(peer, len(mesh.peers) - 1)
    again = origin.client.run("chat", {"prompt": "Hi", "max_tokens": 4}, peer=frozen.name)
    assert again.state == "done", "the peer that was frozen works again"
    assert origin.client.task(task.id) == ended


def tell(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Say how it goes, past pytest's capture: a long run should not be silent."""
    with capsys.disabled():
        sys.stdout.write(f"{text}\n")
