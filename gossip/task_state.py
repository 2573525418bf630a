"""Which states can a task be in at its origin, and what is kept of it there?"""

from typing import Literal

import msgspec

State = Literal["queued", "offered", "running", "done", "failed", "expired", "cancelled"]

MOVES: dict[State, frozenset[State]] = {
    "queued": frozenset({"offered", "done", "failed", "expired", "cancelled"}),
    "offered": frozenset(
        {"queued", "offered", "running", "done", "failed", "expired", "cancelled"}
    ),
    "running": frozenset({"queued", "offered", "done", "failed", "expired", "cancelled"}),
    "done": frozenset(),
    "failed": frozenset(),
    "expired": frozenset(),
    "cancelled": frozenset(),
}
TERMINAL: frozenset[State] = frozenset(state for state, after in MOVES.items() if not after)


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """One try on one peer."""

    number: int
    peer: str
    way: str
    why: str
    state: str
    reason: str
    offered_ms: int
    ended_ms: int = 0


class TaskState(msgspec.Struct, frozen=True, array_like=True):
    """Where a task stands. Replaced as a whole at each change."""

    state: State
    reason: str
    attempts: tuple[Attempt, ...] = ()
    ended_ms: int = 0
    run_us: int = 0
    model: str = ""
    executor: str = ""


class CancelRecord(msgspec.Struct, frozen=True, array_like=True):
    """A peer that must still hear that a task is not wanted any more."""

    peer: str
    task_id: bytes
    until_ms: int


class Verdict(msgspec.Struct, frozen=True, array_like=True):
    """The one outcome that counts, sealed as it came, and the result that it names."""

    outcome: bytes
    result: bytes
