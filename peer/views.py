"""What does the local API show? The shapes that daemon, API, client and command line share.

Pure data. JSON field names are the attribute names; fields are only ever added. Times ending in
`_ms` are unix milliseconds by this device's clock; durations end in `_s` or `_ms`.
"""

from typing import Any, Literal

import msgspec

from .memory.views import MemoryChange, StepView

TaskState = Literal["queued", "offered", "running", "done", "failed", "expired", "cancelled"]
TERMINAL_STATES: frozenset[TaskState] = frozenset({"done", "failed", "expired", "cancelled"})


class SubmitRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task as a client asks for it: `POST /v1/tasks`."""

    skill: str
    input: msgspec.Raw = msgspec.Raw(b"{}")
    """The skill's own JSON, passed on untouched."""
    data: str | None = None
    """Name of a data source: the task runs only on a peer that has it."""
    labels: dict[str, str] = {}
    """Labels that the executing peer must carry."""
    model: str | None = None
    peer: str | None = None
    """Id or name of the one peer that may run it."""
    zone: str = "mesh"
    deadline_s: float | None = None
    """How long the task may take in all; the default is 1 day, the most 90 days."""
    priority: int = 0
    once: bool = False
    """Not offered again once a peer has begun it."""
    key: str | None = None
    """Idempotency key: the same key from this device names the same task."""


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """One try at a task on one peer."""

    number: int
    peer: str
    peer_name: str
    why: str
    """Why this peer was chosen, in plain words."""
    state: str
    """`offered`, `running`, `done`, `failed`, `declined`, `lost` or `cancelled`."""
    reason: str = ""
    offered_ms: int = 0
    ended_ms: int | None = None


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """A task of this device, as its owner sees it."""

    id: str
    skill: str
    state: TaskState
    reason: str
    """Why it is in that state, in plain words; never empty for a task that waits or failed."""
    zone: str
    submitted_ms: int
    deadline_ms: int
    ended_ms: int | None = None
    data: str | None = None
    labels: dict[str, str] = {}
    model: str | None = None
    peer: str | None = None
    """The peer that runs it or ran it."""
    peer_name: str | None = None
    way: str | None = None
    """How that peer was found: `here`, `directory`, `dht` or `bid`."""
    attempts: tuple[AttemptView, ...] = ()
    result: Any = None
    """The skill's JSON answer, when `done`; lists of tasks leave it out."""
    run_ms: float | None = None
    """How long the skill itself ran on its peer."""
    model_used: str | None = None


class DataView(msgspec.Struct, frozen=True, kw_only=True):
    """A data source that a peer offers to work on."""

    name: str
    kind: str


class PeerView(msgspec.Struct, frozen=True, kw_only=True):
    """One peer of the mesh, as this device knows it."""

    id: str
    name: str
    state: Literal["self", "up", "suspect", "down"]
    addresses: tuple[str, ...] = ()
    round_trip_ms: float | None = None
    labels: dict[str, str] = {}
    data: tuple[DataView, ...] = ()
    skills: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    running: int | None = None
    waiting: int | None = None
    version: str = ""
    seen_ms: int | None = None
    role: str = "member"
    zones: tuple[str, ...] = ()
    """Zones that its certificate grants, besides `mesh`."""


class TrafficView(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes that went over links since the daemon started, by kind."""

    payload_out_bytes: int
    payload_in_bytes: int
    control_out_bytes: int
    control_in_bytes: int
    data_read_bytes: int
    """Raw bytes of data sources that skills read here; they stayed here."""


class DiscoveryView(msgspec.Struct, frozen=True, kw_only=True):
    """How this device finds others, and is found, since the daemon started."""

    dht_peers: int | None = None
    """In the DHT's routing table; None: this device takes no part in it."""
    calls_made: int = 0
    """Calls for bids that went out, widened ones included."""
    calls_heard: int = 0
    bids_made: int = 0
    """Calls that this device answered."""


class StatusView(msgspec.Struct, frozen=True, kw_only=True):
    """This device at a glance: `GET /v1/status`."""

    peer: str
    name: str
    mesh: str
    mesh_name: str
    role: str
    version: str
    incarnation: int
    started_ms: int
    addresses: tuple[str, ...]
    api: tuple[str, ...]
    peers_up: int
    peers_known: int
    tasks: dict[str, int]
    """Number of this device's tasks in each state."""
    models: tuple[str, ...]
    skills: tuple[str, ...]
    traffic: TrafficView
    discovery: DiscoveryView = DiscoveryView()
    memory: tuple[StepView, ...] = ()
    """Of each other peer: whether it holds the same, or how far it is behind and why."""
    warnings: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `covey doctor`."""

    check: str
    level: Literal["ok", "warn", "fail"]
    what: str
    remedy: str = ""


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model file of this device."""

    name: str
    role: Literal["text", "embedding"]
    engine: str
    size_bytes: int
    digest: str
    licence: str
    context_tokens: int
    state: str
    """`ready`, `loaded`, `quarantined`, or why it cannot be used."""


class InviteRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms of an invite: `POST /v1/invites`."""

    uses: int = 1
    expires_s: float = 3600.0
    role: Literal["member"] = "member"
    zones: tuple[str, ...] = ()
    """Zones that whoever joins with it is in, besides `mesh`."""


class InviteView(msgspec.Struct, frozen=True, kw_only=True):
    """A fresh invite. The token is shown once and kept nowhere."""

    token: str
    id: str
    uses: int
    expires_ms: int


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened on this device, as `GET /v1/events` tells it."""

    id: int
    """Grows from 1 at each start; 0: a task as it stands, which has no place in the order."""
    kind: str
    """`task`, `peer`, `memory`, `model`, `bye`."""
    at_ms: int
    task: TaskView | None = None
    peer: PeerView | None = None
    memory: MemoryChange | None = None
    text: str = ""


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """An error as the API tells it: RFC 9457 `application/problem+json`."""

    type: str
    """Stable: `covey:not-found`, `covey:bad-request`, ..."""
    title: str
    status: int
    detail: str
    remedy: str = ""
