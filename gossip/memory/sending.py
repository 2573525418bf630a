"""What is sent to a neighbour next? What is new here and what it asked for, a window at a time.

Pure. What was written here goes out whole; what another brought is offered by id, because a neighbour
may have had it from elsewhere. Batches are acknowledged once durable, and few are under way, so a slow
disk slows its senders down.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar

from .common_ground import CommonGround
from .effects import Decisions
from .entry import Key
from .messages import BATCH_BYTES, BATCH_ENTRIES, IDS_MAX, Entries, Gone, Item, Offer
from .namespace import Namespace
from .neighbour import Batch, Neighbour, short_id_of
from .settings import SpreadSettings

T = TypeVar("T")


class Sending:
    """Sends entries, and offers them.

    Args:
        ground: what is held, and may be read.
        decisions: where messages go.
        numbers: gives each batch its number.
        settings: times and limits.
    """

    def __init__(
        self,
        ground: CommonGround,
        decisions: Decisions,
        numbers: Iterator[int],
        settings: SpreadSettings,
    ) -> None:
        self._ground = ground
        self._decisions = decisions
        self._numbers = numbers
        self._settings = settings

    def note_news(
        self,
        neighbour: Neighbour,
        namespace: Namespace,
        keys: Iterable[Key],
        now: float,
        *,
        whole: bool,
    ) -> bool:
        """Note what is new here, to be sent or, if it is not its first source, offered.

        Returns:
            Whether more waits for the neighbour now than should.
        """
        its_own = (neighbour.has.get(namespace, {}), neighbour.asked.get(namespace, {}))
        news = [key for key in keys if not any(short_id_of(key) in box for box in its_own)]
        if not news:
            return False
        if whole:
            neighbour.note_news(namespace, news)
        else:
            neighbour.offers.setdefault(namespace, {}).update(dict.fromkeys(news))
        neighbour.flush_at = min(neighbour.flush_at, now + self._settings.gather_s)
        offered = sum(map(len, neighbour.offers.values()))
        return neighbour.waiting + offered > self._settings.outbox_max

    def heard_want(
        self, neighbour: Neighbour, namespace: Namespace, ids: Sequence[bytes], *, payloads: bool
    ) -> None:
        """It asks for entries of a namespace that both may read, or for their payloads."""
        lacking = dict.fromkeys(ids)
        on_its_way = neighbour.unacknowledged(namespace)
        box = neighbour.outbox.setdefault(namespace, {})
        room = self._settings.outbox_max - neighbour.waiting
        for key in self._ground.held.find(namespace.id, ids):
            if key in on_its_way and not payloads:
                del lacking[short_id_of(key)]
            elif key in box or room > 0:
                room -= key not in box
                if not payloads or box.get(key) is None:
                    box[key] = "payload" if payloads else "wanted"
                lacking.pop(short_id_of(key), None)
        if not box:
            del neighbour.outbox[namespace]
        if lacking:
            neighbour.gone.setdefault(namespace, {}).update(lacking)

    def heard_took(
        self, neighbour: Neighbour, number: int, refused: Sequence[bytes], now: float
    ) -> bool:
        """It acknowledges a batch, but for what it refuses of it; tell whether one was under way."""
        batch = neighbour.under_way.pop(number, None)
        if batch is None:
            return False
        sent = {short_id_of(key) for key in batch.keys}
        neighbour.refuse(
            batch.namespace,
            [one for one in refused if one in sent],
            now + self._settings.unwelcome_s,
        )
        neighbour.settle_sending(batch.namespace, batch.keys)
        neighbour.took_by = now + self._settings.answer_s if neighbour.under_way else math.inf
        return True

    def flush(self, neighbour: Neighbour, now: float) -> None:
        """Send what waits, as far as the window takes it, the books first."""
        books_alone = neighbour.books_come_first
        for namespace, short_ids in _emptied(neighbour.gone, books_alone=books_alone):
            for some in self._told(neighbour, namespace, short_ids):
                self._decisions.say(neighbour, Gone(namespace.zone, namespace.name, some))
        if neighbour.flush_at <= now:
            neighbour.flush_at = math.inf
            # Not before: what the other offers meanwhile need not be offered to it.
            for namespace, keys in _emptied(neighbour.offers, books_alone=books_alone):
                for some in self._told(neighbour, namespace, list(map(short_id_of, keys))):
                    self._decisions.say(neighbour, Offer(namespace.zone, namespace.name, some))
        while neighbour.outbox and len(neighbour.under_way) < self._settings.window:
            namespace = min(neighbour.outbox)
            if books_alone and not namespace.comes_first:
                return
            if neighbour.turn_unacknowledged < namespace.turn:
                return
            self._send_batch(neighbour, namespace, now)

    def _told(
        self, neighbour: Neighbour, namespace: Namespace, short_ids: Sequence[bytes]
    ) -> Iterator[bytes]:
        """Give the ids as messages carry them, if both may read the namespace."""
        if self._ground.both_may_read(neighbour.peer, namespace.zone):
            for at in range(0, len(short_ids), IDS_MAX):
                yield b"".join(short_ids[at : at + IDS_MAX])

    def _send_batch(self, neighbour: Neighbour, namespace: Namespace, now: float) -> None:
        if not self._ground.both_may_read(neighbour.peer, namespace.zone):
            neighbour.forget(namespace)
            return
        box = neighbour.outbox[namespace]
        some = dict(islice(box.items(), BATCH_ENTRIES))
        items = self._ground.held.items(namespace.id, list(some), BATCH_BYTES)
        there: dict[Key, Item] = {}
        for (key, due), item in zip(some.items(), items, strict=False):
            if item.header and (item.payload is not None or due != "payload"):
                there[key] = item
            else:
                neighbour.lose(namespace, [key])
        if neighbour.gone:
            neighbour.flush_at = now
        if not there:
            return
        neighbour.take_out(namespace, there)
        number = next(self._numbers)
        neighbour.under_way[number] = Batch(namespace, tuple(there))
        if neighbour.took_by == math.inf:
            neighbour.took_by = now + self._settings.answer_s
        neighbour.exchange.sent += len(there)
        message = Entries(number, namespace.zone, namespace.name, tuple(there.values()))
        self._decisions.say(neighbour, message, payload=not namespace.is_own)


def _emptied(
    boxes: dict[Namespace, dict[T, None]], *, books_alone: bool
) -> list[tuple[Namespace, list[T]]]:
    """Return what waits in boxes, or of the books alone, and empty these."""
    some = [one for one in boxes if one.comes_first or not books_alone]
    return [(namespace, list(boxes.pop(namespace))) for namespace in some]
