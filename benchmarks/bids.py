"""A task that only a call for bids can place, beside the same task placed by the directory."""

import tempfile
import time
from pathlib import Path

from echo import PAYLOAD, enable_echo
from measure import Report, Row, p50, times_ms

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until

# Gossip takes at most one message a second from a peer; a round that comes sooner waits for it.
APART_S = 1.1
ROUNDS_MAX = 16


def bench_bids(report: Report, rounds: int) -> None:
    """Measure a first call for each of several labels, then a task while the answer is kept."""
    report.heading("Nobody is known: a call for bids among three peers, and the task it places")
    rounds = min(rounds, ROUNDS_MAX)
    root = Path(tempfile.mkdtemp(prefix="cv"))
    with LocalMesh(root) as mesh:
        origin = mesh.found("origin")
        _configure(origin, "all")
        origin.start()
        known = mesh.join("known", "--label", "unit=known", inviter=origin)
        labels = [one for n in range(rounds) for one in ("--label", f"bench-{n}=1")]
        quiet = mesh.join("quiet", *labels, inviter=origin)
        for peer, advert in ((known, "all"), (quiet, "addresses")):
            enable_echo(peer)
            _configure(peer, advert)
            peer.start()
        wait_until(
            lambda: sum(bool(one.name) and one.state == "up" for one in origin.client.peers()) == 2,
            "both are linked",
        )
        time.sleep(3 * APART_S)  # gossip has its neighbours after a heartbeat or two
        _measure(report, origin, rounds)


def _configure(peer: LocalPeer, advert: str) -> None:
    with (peer.home / "config.toml").open("a") as file:
        file.write(f'\n[discovery]\nadvert = "{advert}"\ndht = false\nmdns = false\n')


def _measure(report: Report, origin: LocalPeer, rounds: int) -> None:
    def task(labels: dict[str, str], way: str) -> None:
        done = origin.client.run("covey.echo", PAYLOAD, labels=labels, wait_s=30)
        assert (done.state, done.way) == ("done", way), done

    by_directory: list[float] = []
    called: list[float] = []
    kept: list[float] = []
    for n in range(rounds):
        label = {f"bench-{n}": "1"}
        by_directory += times_ms(lambda: task({"unit": "known"}, "directory"), 5)
        called += times_ms(lambda label=label: task(label, "bid"), 1, warm=0)
        kept += times_ms(lambda label=label: task(label, "bid"), 5)
        time.sleep(APART_S)
    base = p50(by_directory)
    for name, taken in (("first task, by a call", called), ("next ones, answer kept", kept)):
        report.add(
            Row(
                f"{name}, p50",
                f"{p50(taken):.1f} ms",
                f"directory {base:.1f} ms",
                f"{p50(taken) / base:.1f} x",
            )
        )
    report.facts["bids"] = {
        "directory_ms": base,
        "called_p50_ms": p50(called),
        "called_max_ms": max(called),
        "kept_p50_ms": p50(kept),
    }
