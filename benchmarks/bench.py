"""Measured speed, each figure beside its baseline from the same run: `make bench`.

Everything runs on this machine over loopback, on real peers as processes of their own.
"""

import argparse
import json
import os
import platform
import sys
from pathlib import Path

from bids import bench_bids
from dht import bench_dht
from echo import bench_echo
from engines import bench_engines
from idle import bench_idle
from measure import Report
from memory_replica import bench_memory_replica
from memory_sync import bench_memory_sync
from recall import bench_recall
from thinking import bench_thinking

PARTS = ("echo", "bids", "dht", "memory", "recall", "thinking", "engines", "idle")


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the figures")
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    options = parser.parse_args()
    report = Report()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"Python {platform.python_version()}; baselines in the same run, interleaved"
    )
    quick = options.quick
    if options.only in (None, "echo"):
        bench_echo(report, count=80 if quick else 400, seconds=3 if quick else 10)
    if options.only in (None, "bids"):
        bench_bids(report, rounds=4 if quick else 12)
    if options.only in (None, "dht"):
        bench_dht(report, sizes=(3, 10) if quick else (3, 10, 30))
    if options.only in (None, "memory"):
        bench_memory_replica(
            report,
            seconds=1.0 if quick else 4.0,
            many=2_000 if quick else 10_000,
            held=20_000 if quick else 100_000,
        )
        bench_memory_sync(report, count=2_000 if quick else 10_000, more=100, rounds=3)
    if options.only in (None, "recall"):
        bench_recall(report, count=20_000 if quick else 100_000, searches=60 if quick else 200)
    if options.only in (None, "thinking"):
        bench_thinking(report, rounds=2 if quick else 6)
    if options.only in (None, "engines"):
        bench_engines(report, rounds=2 if quick else 6)
    if options.only in (None, "idle"):
        bench_idle(report, seconds=5 if quick else 20)
    judged = [row for row in report.rows if row.met is not None]
    met = sum(row.met is True for row in judged)
    print(f"\n{met} of {len(judged)} aims met")
    if options.json:
        options.json.write_text(json.dumps(report.facts, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
