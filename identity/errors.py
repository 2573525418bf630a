"""Whose fault is it? The root of covey's error tree.

`Misuse`: our caller broke the contract. `PeerMisbehaved`, `Malformed`, `NotAdmitted`: another peer,
or who wrote the bytes, did. `Unavailable`: the world did, and it may be retried. A message says
what was found, what was allowed and what to do.
"""


class CoveyError(Exception):
    """Anything that covey itself reports."""


class Misuse(CoveyError):
    """The caller asked for something that cannot be."""


class NotFound(Misuse):
    """What was named does not exist here."""


class Conflict(Misuse):
    """It is there already, or something else holds it."""


class Malformed(CoveyError):
    """Bytes are not what they claim to be."""


class Unavailable(CoveyError):
    """The world does not allow it now; a retry may succeed."""


class PeerMisbehaved(CoveyError):
    """A peer sent what the protocol forbids; refuse it and carry on."""

    def __init__(self, peer: str, what: str) -> None:
        super().__init__(f"{peer} {what}")
        self.peer = peer
        self.what = what


class NotAdmitted(CoveyError):
    """A certificate, a chain or an invite does not hold.

    Attributes:
        code: a stable word, such as `expired`, `other-mesh`, `bad-chain`, `bad-signature`,
            `not-yet-valid`, `used-up`, `unknown-invite`, `altered`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
