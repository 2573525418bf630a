"""Does a standing mesh stay as it is under steady work? Memory, descriptors and tasks: `make soak`.

Three real peers work for as long as asked; every so often one worker is killed and comes back. In
the end every task is done, and what the two peers that were never killed hold has not grown.
"""

import argparse
import itertools
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import psutil
from echo import enable_echo
from measure import p50

from covey.peer.client import Client
from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.views import TERMINAL_STATES

LOG = [f"2026-11-24 08:{at % 60:02d}:00 install pump-{at} at 4.{at % 10} bar" for at in range(400)]
# Pools, caches and the store's page cache fill first; from then on nothing may grow.
WARM_SHARE = 0.3
GROWTH_MB = 12.0
GROWTH_DESCRIPTORS = 6
KILL_EVERY_S = 60.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one daemon held at one moment; its models' workers are not counted."""

    at_s: float
    own_mb: float
    """Resident memory of its own, without pages of files: the store's mapping grows as it fills."""
    descriptors: int
    threads: int


def sample(peer: LocalPeer, at_s: float) -> Sample:
    process = psutil.Process(peer.pid)
    memory = process.memory_info()
    own_mb = (memory.rss - memory.shared) / 1e6
    return Sample(at_s, own_mb, process.num_fds(), process.num_threads())


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0)
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="cv"))
    log = root / "shift.log"
    log.write_text("\n".join(LOG) + "\n")
    with LocalMesh(root) as mesh:
        origin = mesh.found("origin")
        origin.start()
        workers = [
            mesh.join(name, "--label", "role=worker", "--data", f"log={log}", inviter=origin)
            for name in ("steady", "victim")
        ]
        for worker in workers:
            enable_echo(worker)
            worker.covey("models", "pull", timeout_s=600)
            worker.start()
        wait_until(lambda: origin.client.status().peers_up == 2, "all are linked")
        return soak(origin, workers, options.seconds)


def soak(origin: LocalPeer, workers: list[LocalPeer], seconds: float) -> int:
    steady, victim = workers
    samples: dict[str, list[Sample]] = {"origin": [], "steady": []}
    submitted: list[str] = []
    states: Counter[str] = Counter()
    began, next_look_s, next_kill_s = perf_counter(), 0.0, KILL_EVERY_S
    print(f"{'s':>6} {'tasks':>7}   origin MB  fds   steady MB  fds")
    for number in itertools.count():
        now_s = perf_counter() - began
        if now_s > seconds:
            break
        if now_s > next_look_s:
            next_look_s += max(10.0, seconds / 60)
            for name, peer in (("origin", origin), ("steady", steady)):
                samples[name].append(sample(peer, now_s))
            last = [samples[name][-1] for name in ("origin", "steady")]
            held = "".join(f"{one.own_mb:11.1f} {one.descriptors:4}" for one in last)
            print(f"{now_s:6.0f} {sum(states.values()) + len(submitted):7} {held}", flush=True)
        if now_s > next_kill_s:
            next_kill_s += KILL_EVERY_S
            victim.kill()
            victim.start(wait=False)
        submitted += hand_in(origin.client, number)
        submitted = [one for one in submitted if not ended(origin.client, one, states)]
        sleep(0.05 if len(submitted) < 32 else 1.0)
    for one in submitted:
        states[origin.client.wait(one, timeout_s=120).state] += 1
    return verdict(samples, states)


def hand_in(client: Client, number: int) -> list[str]:
    """Hand in a little of everything, most of it small."""
    asked: list[tuple[str, dict[str, object], str | None]] = [("covey.echo", {"n": number}, None)]
    if number % 10 == 0:
        asked.append(("classify", {"labels": ["install", "remove"], "tail": 20}, "log"))
    if number % 40 == 0:
        asked.append(("chat", {"prompt": f"Count from {number}.", "max_tokens": 24}, None))
    if number % 60 == 0:
        asked.append(("covey.echo", {"text": "x" * 200_000}, None))
    return [client.submit(skill, input_, data=data).id for skill, input_, data in asked]


def ended(client: Client, name: str, states: Counter[str]) -> bool:
    task = client.task(name)
    if task.state not in TERMINAL_STATES:
        return False
    states[task.state] += 1
    return True


def verdict(samples: dict[str, list[Sample]], states: Counter[str]) -> int:
    """Compare the level after warming up with the level at the end."""
    print(f"\ntasks: {dict(states)}")
    held = set(states) == {"done"}
    for name, taken in samples.items():
        warm = taken[int(len(taken) * WARM_SHARE) :]
        third = max(1, len(warm) // 3)
        early, late = warm[:third], warm[-third:]
        more_mb = p50([one.own_mb for one in late]) - p50([one.own_mb for one in early])
        more = p50([one.descriptors for one in late]) - p50([one.descriptors for one in early])
        threads = max(one.threads for one in late)
        flat = more_mb < GROWTH_MB and more < GROWTH_DESCRIPTORS
        held = held and flat
        print(
            f"{name}: {more_mb:+.1f} MB, {more:+.0f} descriptors since warm, {threads} threads: "
            + ("flat" if flat else "GROWS")
        )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
