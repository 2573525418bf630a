"""How is a figure taken and shown? Percentiles, CPU of processes, and one table with baselines."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Row:
    """One figure beside its baseline, from the same run."""

    what: str
    figure: str
    baseline: str = ""
    ratio: str = ""
    aim: str = ""
    met: bool | None = None


@dataclass(slots=True)
class Report:
    """What was measured: rows for a person, facts for a machine."""

    rows: list[Row] = field(default_factory=lambda: list[Row]())
    facts: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())

    def add(self, row: Row) -> None:
        """Keep a row and show it at once: a long run should not be silent."""
        self.rows.append(row)
        print(_line(row), flush=True)

    def heading(self, title: str) -> None:
        """Begin a part."""
        print(f"\n{title}\n{_line(Row('', 'measured', 'baseline', 'ratio', 'aim'))}", flush=True)


def _line(row: Row) -> str:
    verdict = "" if row.met is None else "met" if row.met else "MISSED"
    cells = (
        f"{row.what:46} {row.figure:>20} {row.baseline:>34} {row.ratio:>9} {row.aim:>22} {verdict}"
    )
    return cells.rstrip()


def times_ms(call: Callable[[], object], count: int, *, warm: int = 0) -> list[float]:
    """Return how long each of `count` calls took, in ms, after some that are not counted."""
    for _ in range(warm):
        call()
    taken: list[float] = []
    for _ in range(count):
        started = perf_counter()
        call()
        taken.append((perf_counter() - started) * 1000)
    return taken


def p50(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile (the largest of fewer than 100)."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def cpu_ms(pid: int) -> float:
    """Return the CPU time that a process has used so far, in ms."""
    times = psutil.Process(pid).cpu_times()
    return (times.user + times.system) * 1000


def rss_mb(pid: int) -> float:
    """Return a process's resident memory in MB (10^6)."""
    return psutil.Process(pid).memory_info().rss / 1e6
