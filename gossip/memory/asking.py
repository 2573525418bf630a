"""What is asked of a neighbour? What it has and is lacking here, each entry of one peer at a time.

Pure. What one peer was asked for, or sent and is being taken in, is asked of no other for a while. What
did not come by then is asked of the next that has it. Payloads that somebody withheld are asked for
apart, of each that is in step.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import islice

from covey.identity.keys import PeerId

from .common_ground import CommonGround
from .effects import Decisions
from .entry import NamespaceId
from .intake import Intake
from .messages import BATCH_ENTRIES, IDS_MAX, Want
from .namespace import Namespace
from .neighbour import Neighbour, short_id_of
from .settings import SpreadSettings

# Entries that one peer was asked for at once: two full windows of small ones.
ASKED_MAX = 1024
# Ids that one peer has and that wait to be asked for; 65,536 take about 8 MB. What it offers beyond
# is left to the next comparison.
HAS_MAX = 65_536


class Asking:
    """Asks neighbours for entries.

    Args:
        ground: what is held, and may be read.
        intake: what is being taken in.
        decisions: where messages go.
        settings: times and limits.
    """

    def __init__(
        self,
        ground: CommonGround,
        intake: Intake,
        decisions: Decisions,
        settings: SpreadSettings,
    ) -> None:
        self._ground = ground
        self._intake = intake
        self._decisions = decisions
        self._settings = settings
        self._asked: dict[tuple[NamespaceId, bytes], tuple[PeerId, float]] = {}

    def heard_offer(
        self, neighbour: Neighbour, namespace: Namespace, ids: Sequence[bytes], now: float
    ) -> bool:
        """It has entries of a namespace that both may read; tell whether that was all noted."""
        held = self._ground.held.find(namespace.id, ids)
        neighbour.drop(namespace, held)
        known = {short_id_of(key) for key in held}
        known.update(neighbour.asked.get(namespace, ()))
        fresh = [
            one for one in ids if one not in known and not neighbour.refused(namespace, one, now)
        ]
        room = max(HAS_MAX - neighbour.lacking, 0)
        neighbour.note_has(namespace, fresh[:room])
        return len(fresh) <= room

    def heard_gone(
        self, neighbour: Neighbour, namespace: Namespace, ids: Sequence[bytes], now: float
    ) -> None:
        """It has not, or no more, what it was asked for."""
        self.settle(neighbour, namespace, ids, now)
        self.ask_for_more_payloads(neighbour, ids)

    def ask(self, neighbour: Neighbour, now: float) -> None:
        """Ask for what it has and is lacking here, the books first, a window at a time."""
        neighbour.ask_at = math.inf
        for namespace in sorted(neighbour.has):
            if neighbour.books_come_first and not namespace.comes_first:
                return
            boxes = (neighbour.has, neighbour.asked)
            if any(one.turn < namespace.turn for box in boxes for one in box):
                return
            if not self._ground.both_may_read(neighbour.peer, namespace.zone):
                neighbour.forget(namespace)
                continue
            while namespace in neighbour.has and self._ask_some(neighbour, namespace, now):
                pass

    def settle(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Iterable[bytes], now: float
    ) -> None:
        """Await none of these from it any more: they have come, or never will."""
        short_ids = list(short_ids)
        self._unask(neighbour, namespace, short_ids, now)
        neighbour.settle_missing(namespace, short_ids)

    def await_nothing(self, neighbour: Neighbour) -> None:
        """Await nothing of what it was asked for any more: others may be asked for it."""
        for namespace, short_ids in neighbour.asked.items():
            for one in short_ids:
                self._release(neighbour, namespace, one)

    def await_nothing_of(self, neighbour: Neighbour, namespace: Namespace, now: float) -> None:
        """Await nothing of one namespace from it any more."""
        self._unask(neighbour, namespace, list(neighbour.asked.get(namespace, ())), now)

    def ask_for_payloads(self, neighbour: Neighbour, now: float) -> None:
        """Ask a neighbour that is in step for the payloads that are missing, if it is time.

        What it has not now it may have later, but hardly the more often it is asked.
        """
        if now < neighbour.unpaid_at:
            return
        pause_s = max(neighbour.unpaid_pause_s, self._settings.compare_s / 2)
        neighbour.unpaid_at = now + pause_s
        neighbour.unpaid_pause_s = min(2 * pause_s, self._settings.unwelcome_s)
        neighbour.unpaid.clear()
        neighbour.unpaid_tried.clear()
        self._ask_for_some_payloads(neighbour)

    def ask_for_more_payloads(self, neighbour: Neighbour, came: Iterable[bytes]) -> None:
        """Ask for more of the missing payloads, once those asked for have come."""
        if not neighbour.unpaid:
            return
        neighbour.unpaid.difference_update(came)
        if not neighbour.unpaid:
            self._ask_for_some_payloads(neighbour)

    def _ask_some(self, neighbour: Neighbour, namespace: Namespace, now: float) -> bool:
        """Look at the first of what it has; tell whether that made room for more."""
        room = ASKED_MAX - sum(map(len, neighbour.asked.values()))
        has = neighbour.has[namespace]
        if room <= 0:
            return False
        settled: list[bytes] = []
        free: list[bytes] = []
        for one in islice(has, IDS_MAX):
            if len(free) == room:
                break
            if neighbour.refused(namespace, one, now):
                settled.append(one)
            elif (again_at := self._coming_until(neighbour, namespace, one, now)) is not None:
                neighbour.ask_at = min(neighbour.ask_at, again_at)
            else:
                free.append(one)
        held = {short_id_of(key) for key in self._ground.held.find(namespace.id, free)}
        settled += held
        wanted = [one for one in free if one not in held]
        for one in (*settled, *wanted):
            del has[one]
        if not has:
            del neighbour.has[namespace]
        neighbour.settle_missing(namespace, settled)
        if wanted:
            neighbour.asked.setdefault(namespace, {}).update(dict.fromkeys(wanted))
            self._asked.update(((namespace.id, one), (neighbour.peer, now)) for one in wanted)
            message = Want(namespace.zone, namespace.name, b"".join(wanted))
            self._decisions.say(neighbour, message)
            if neighbour.entries_by == math.inf:
                neighbour.entries_by = now + self._settings.answer_s
        return bool(settled or wanted)

    def _coming_until(
        self, neighbour: Neighbour, namespace: Namespace, short_id: bytes, now: float
    ) -> float | None:
        """Tell until when an entry is not asked for, because it is being taken in or another was
        asked for it.
        """
        if self._intake.is_coming(namespace.id, short_id):
            return now + self._settings.answer_s
        peer, at = self._asked.get((namespace.id, short_id), (neighbour.peer, now))
        until = at + self._settings.answer_s
        return until if peer != neighbour.peer and now < until else None

    def _unask(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Iterable[bytes], now: float
    ) -> None:
        asked = neighbour.asked.get(namespace)
        if asked is None:
            return
        before = len(asked)
        for one in short_ids:
            if one in asked:
                del asked[one]
                self._release(neighbour, namespace, one)
        if len(asked) < before:
            neighbour.entries_by = now + self._settings.answer_s
        if not asked:
            del neighbour.asked[namespace]
        if not neighbour.asked:
            neighbour.entries_by = math.inf

    def _release(self, neighbour: Neighbour, namespace: Namespace, short_id: bytes) -> None:
        """Let another be asked for an entry, unless that has happened already."""
        if self._asked.get((namespace.id, short_id), ("", 0.0))[0] == neighbour.peer:
            del self._asked[namespace.id, short_id]

    def _ask_for_some_payloads(self, neighbour: Neighbour) -> None:
        tried = neighbour.unpaid_tried
        for namespace in self._ground.namespaces(neighbour.peer):
            unpaid = self._ground.held.unpaid(namespace.id, IDS_MAX)
            ids = [one for one in unpaid if one not in tried][:BATCH_ENTRIES]
            if ids and len(tried) <= IDS_MAX:
                tried.update(ids)
                neighbour.unpaid.update(ids)
                wanted = Want(namespace.zone, namespace.name, b"".join(ids), payloads=True)
                self._decisions.say(neighbour, wanted)
                return
