"""Which rows do the stores have, and how did they become so?

Databases, and migrations in order. The memory's databases are `gossip.memory.tables.Table`.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from covey.gossip.memory.tables import Table


class Database(StrEnum):
    """A named LMDB database.

    Keys and values are bytes; values are canonical CBOR of the struct named.
    """

    META = "meta"
    """b"version", b"incarnation": big-endian integers; b"dht": discovery.TableRecord; b"books": there
    once the mesh's books have come."""
    TASK = "task"
    """task id -> gossip.task.Task"""
    ORDER = "order"
    """number (8 bytes, big-endian) -> task id: the tasks in the order in which they were handed in"""
    STATE = "state"
    """task id -> gossip.task_state.TaskState"""
    RESULT = "result"
    """task id -> gossip.task_state.Verdict"""
    CANCEL = "cancel"
    """task id, peer -> gossip.task_state.CancelRecord"""
    RUN = "run"
    """task id, origin -> gossip.executions.RunRecord"""
    INVITE = "invite"
    """public key -> gossip.joining.InviteRecord"""
    PENDING = "pending"
    """peer -> gossip.pending.PendingRecord"""
    ADDRESS = "address"
    """peer -> gossip.dialling.AddressRecord"""


Migrate = Callable[[Any, Any], None]
"""Takes the transaction, and the handles by database."""
Migration = Callable[[Any, Mapping[Database, Any]], None]
MemoryMigration = Callable[[Any, Mapping[Table, Any]], None]


def m001_begin(_transaction: Any, _handles: Mapping[Database, Any]) -> None:
    """Begin with empty databases."""


MIGRATIONS: tuple[Migration, ...] = (m001_begin,)
SCHEMA_VERSION = len(MIGRATIONS)


def m001_begin_memory(_transaction: Any, _handles: Mapping[Table, Any]) -> None:
    """Begin with empty tables."""


MEMORY_MIGRATIONS: tuple[MemoryMigration, ...] = (m001_begin_memory,)
