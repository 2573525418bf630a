"""Which rows does the store have, and how did they become so?

Databases, and migrations in order.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any


class Database(StrEnum):
    """A named LMDB database.

    Keys and values are bytes; values are canonical CBOR of the struct named.
    """

    META = "meta"
    """b"version", b"incarnation": big-endian integers; b"dht": discovery.TableRecord."""
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
    ADVERT = "advert"
    """peer -> gossip.advert.Item"""
    ADDRESS = "address"
    """peer -> gossip.dialling.AddressRecord"""


Migration = Callable[[Any, Mapping[Database, Any]], None]


def m001_begin(_transaction: Any, _handles: Mapping[Database, Any]) -> None:
    """Begin with empty databases."""


MIGRATIONS: tuple[Migration, ...] = (m001_begin,)
SCHEMA_VERSION = len(MIGRATIONS)
