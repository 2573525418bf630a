"""What may a delivery core want done? Records to be kept, messages to be sent, runs to be begun and
halted.

All effects of one event belong together: its records are one transaction, and none of its messages
or runs starts before that transaction, and every earlier one of the same core, is durable.
`driver.py` does this; nothing else carries out effects.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import msgspec

from covey.identity.keys import PeerId

from .messages import Message
from .task import Need, TaskId
from .task_state import TaskState


class Table(StrEnum):
    """Where a record of delivery is kept."""

    TASK = "task"
    """At the origin, by task id: the `Task`, written once."""
    STATE = "state"
    """At the origin, by task id: its `TaskState`, written at each change."""
    RESULT = "result"
    """At the origin, by task id: the accepted outcome and result, written once."""
    CANCEL = "cancel"
    """At the origin, by task id and peer: the `CancelRecord` of a cancel not yet acknowledged."""
    RUN = "run"
    """At the executor, by origin and task id: the `RunRecord`."""


@dataclass(frozen=True, slots=True)
class Save:
    """Keep a record.

    `lazy`: it may wait for the next commit, since losing it costs only a repetition.
    """

    table: Table
    key: bytes
    value: msgspec.Struct
    lazy: bool = False


@dataclass(frozen=True, slots=True)
class Erase:
    """Forget a record."""

    table: Table
    key: bytes
    lazy: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a peer; it may be this one, and it may be gone."""

    to: PeerId
    message: Message


@dataclass(frozen=True, slots=True)
class Run:
    """A task as its executor sees it."""

    origin: PeerId
    task_id: TaskId
    need: Need
    input: bytes
    ends_at: float
    """On the clock of `now`."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Run the skill; tell `Executions.finished` how it ended."""

    run: Run


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask the origin for an input that did not ride with the offer."""

    origin: PeerId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Halt:
    """Stop a run that was begun; its end is not reported."""

    origin: PeerId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Changed:
    """The origin's view of a task changed: tell who watches."""

    task_id: TaskId
    state: TaskState


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended, as its runner reports it."""

    state: Literal["done", "failed"]
    result: bytes
    """JSON; empty unless done."""
    reason: str = ""
    run_s: float = 0.0
    model: str = ""


Effect = Save | Erase | Send | Begin | Fetch | Halt | Changed
