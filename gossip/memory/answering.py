"""What does a peer answer to who compares with it? Step by step, keeping nothing in between.

Pure. In an audit the answers are of ids under a salt that the other drew, and to sum a namespace up
under another one takes about 1 us an entry: so each peer has that done once in a while.
"""

import math

from .common_ground import CommonGround
from .effects import Decisions
from .messages import Compare, Compared
from .namespace import Namespace
from .neighbour import Neighbour
from .reconciliation import answer
from .settings import SpreadSettings


class Answering:
    """Answers who compares.

    Args:
        ground: what is held, and may be read.
        decisions: where messages go.
        settings: times and limits.
    """

    def __init__(
        self, ground: CommonGround, decisions: Decisions, settings: SpreadSettings
    ) -> None:
        self._ground = ground
        self._decisions = decisions
        self._settings = settings

    def answer(
        self, neighbour: Neighbour, namespace: Namespace, compare: Compare, now: float
    ) -> None:
        """Answer one step about a namespace that both may read.

        Raises:
            Malformed: it is no step.
        """
        summary = self._ground.held.summary(namespace.id)
        if compare.salt and len(summary):
            if not self._may_audit(neighbour, namespace, compare.salt, now):
                return
            summary = self._ground.held.salted(namespace.id, compare.salt)
        answered = Compared(compare.session, answer(summary, compare.ranges))
        self._decisions.say(neighbour, answered)

    def _may_audit(
        self, neighbour: Neighbour, namespace: Namespace, salt: bytes, now: float
    ) -> bool:
        """Tell whether a namespace is summed up under this salt."""
        last = neighbour.audited.pop(namespace.id, (b"", -math.inf))
        is_current = not neighbour.audited or neighbour.auditing == namespace.id
        if (last[0] == salt and is_current) or now >= last[1] + self._settings.audit_s:
            last = (salt, now)
            neighbour.auditing = namespace.id
        neighbour.audited[namespace.id] = last
        return last[0] == salt and neighbour.auditing == namespace.id
