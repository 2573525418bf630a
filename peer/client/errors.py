"""Why did a request to the daemon fail? One class for each thing a caller can do about it."""

from covey.identity.errors import CoveyError


class ClientError(CoveyError):
    """The local API did not do it.

    Attributes:
        kind: the stable end of the problem's type, such as `not-found`.
        remedy: what to do, if it says so.
    """

    exit_code = 1

    def __init__(self, message: str, *, kind: str = "failed", remedy: str = "") -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.kind = kind
        self.remedy = remedy


class DaemonNotRunning(ClientError):
    """Nothing listens on the home's socket."""

    exit_code = 3


class AnswerLost(ClientError):
    """The connection broke after the request was sent: it may have been taken, or not."""


class NotFoundHere(ClientError):
    """The daemon does not know what was named."""

    exit_code = 4


class Denied(ClientError):
    """No right to that."""

    exit_code = 5


class AlreadyThere(ClientError):
    """It conflicts with what is."""

    exit_code = 6


class BadRequest(ClientError):
    """The request is wrong."""

    exit_code = 2


class UnavailableNow(ClientError):
    """It cannot be done now; a retry may succeed."""

    exit_code = 8


class TaskFailed(ClientError):
    """A task ended otherwise than done."""


OF_KIND: dict[str, type[ClientError]] = {
    "not-found": NotFoundHere,
    "not-admitted": Denied,
    "no-token": Denied,
    "wrong-host": Denied,
    "wrong-origin": Denied,
    "conflict": AlreadyThere,
    "bad-request": BadRequest,
    "too-large": BadRequest,
    "too-slow": BadRequest,
    "wrong-method": BadRequest,
    "unavailable": UnavailableNow,
}
