"""Talk to the daemon of this device: `connect()` gives a client of its local API.

    with connect() as peer:
        task = peer.run("classify", {"labels": ["a", "b"], "items": ["x"]}, wait_s=30)

Standard library and msgspec only, so that a script starts fast. One client is for one thread.
"""

from .client import Client, connect
from .errors import (
    AlreadyThere,
    AnswerLost,
    BadRequest,
    ClientError,
    DaemonNotRunning,
    Denied,
    NotFoundHere,
    TaskFailed,
    UnavailableNow,
)

__all__ = [
    "AlreadyThere",
    "AnswerLost",
    "BadRequest",
    "Client",
    "ClientError",
    "DaemonNotRunning",
    "Denied",
    "NotFoundHere",
    "TaskFailed",
    "UnavailableNow",
    "connect",
]
