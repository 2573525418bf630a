"""How does what one peer wrote reach those that may read it? Pushing what is new, and comparing.

Pure: `receive`, `tick` and their kin return effects; `driver.py` carries them out. Two ways:

- eagerly (`sending.py`, `asking.py`): what is written here goes to every linked peer that may read it,
  gathered for 50 ms; what came from elsewhere is offered by id, and sent to who wants it;
- surely (`comparing.py`, `rounds.py`, `answering.py`): on a new link, after a gap and now and then, two
  peers compare digests of all that both may read, and where they differ find out what each lacks.

What goes wrong (no answer in time, a full queue, too much that waits) drops all that is under way
with that peer; the next comparison finds it. So nothing here needs to be remembered for long, and
everything is bounded.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from random import Random
from typing import assert_never

from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed
from covey.identity.keys import PeerId

from .answering import Answering
from .asking import Asking
from .common_ground import CommonGround, Held
from .comparing import Comparing
from .effects import Decisions, Effect, Ingested
from .entry import SHORT_ID_BYTES, Key
from .intake import Incoming, Intake
from .messages import (
    Ask,
    Compare,
    Compared,
    Contents,
    Digest,
    Entries,
    Gone,
    Message,
    Offer,
    Refused,
    Rest,
    Run,
    Took,
    Want,
    decode_message,
)
from .namespace import Namespace
from .neighbour import Exchange, Neighbour, short_id_of
from .rounds import Rounds
from .sending import Sending
from .settings import SpreadSettings
from .strikes import Strikes


class Spreading:
    """Spreads the entries of one peer.

    Args:
        me: this peer.
        mesh: the mesh.
        held: what this peer holds.
        may_read: whether a peer, or this one, may read a zone, by what is known now.
        random: draws with whom to compare and when.
        settings: times and limits.
    """

    def __init__(
        self,
        me: PeerId,
        mesh: MeshId,
        held: Held,
        may_read: Callable[[PeerId, str], bool],
        random: Random,
        settings: SpreadSettings | None = None,
    ) -> None:
        self._me = me
        self._settings = settings = settings or SpreadSettings()
        self._decisions = decisions = Decisions()
        self._ground = ground = CommonGround(me, mesh, held, may_read)
        numbers = count(1)
        self._intake = Intake(decisions, numbers, settings)
        self._asking = Asking(ground, self._intake, decisions, settings)
        self._sending = Sending(ground, decisions, numbers, settings)
        self._answering = Answering(ground, decisions, settings)
        self._rounds = Rounds(ground, decisions, numbers, settings)
        self._comparing = Comparing(me, ground, self._rounds, decisions, random, settings)
        self._strikes = Strikes(settings)
        self._neighbours: dict[PeerId, Neighbour] = {}
        self._compare_at = math.inf
        self.refused = 0
        """Messages and entries that were refused."""

    # What happens

    def books_digest(self) -> bytes:
        """Return the books that every member holds, summed up in 16 bytes: what hello shows."""
        return self._comparing.books_digest()

    def link_up(self, peer: PeerId, now: float, now_ms: int, *, same_books: bool) -> list[Effect]:
        """A peer is linked: compare. The one with the greater id begins.

        Unless both showed the same digest of the books, these go first: until they are through, or
        have had their time, nothing else is named, asked for or sent.
        """
        if peer in self._neighbours:
            self._unlink(peer, now)
        neighbour = self._neighbours[peer] = Neighbour(peer, exchange=Exchange(now))
        self._compare_at = min(self._compare_at, now + self._settings.compare_s)
        if not same_books:
            neighbour.books_first_until = now + self._settings.books_first_s
        if self._strikes.muted(peer)[0] > now:
            self._mute(neighbour)
        elif peer < self._me:
            self._comparing.begin(neighbour, now, now_ms)
        else:
            self._comparing.await_word(neighbour, "its digest is awaited", now)
        return self._decisions.take()

    def link_down(self, peer: PeerId, now: float) -> list[Effect]:
        """Its link ended: what waited for it is found by the next comparison."""
        if peer in self._neighbours:
            self._unlink(peer, now)
            self._decisions.step_changed(peer)
        return self._decisions.take()

    def compare(
        self, peer: PeerId, now: float, now_ms: int, *, salt: bytes | None = None
    ) -> list[Effect]:
        """Begin a comparison with a linked peer, unless one is under way; with `salt` an audit."""
        neighbour = self._neighbours.get(peer)
        if neighbour is None or neighbour.muted_until > now or neighbour.is_comparing:
            return []
        if salt:
            self._comparing.begin_audit(neighbour, salt, now, now_ms)
            self._go_on(neighbour, now)
        else:
            self._comparing.begin(neighbour, now, now_ms)
        return self._decisions.take()

    def written(
        self, namespace: Namespace, keys: Sequence[Key], source: PeerId | None, now: float
    ) -> list[Effect]:
        """Entries became durable here: written here, or brought by `source`."""
        for neighbour in self._neighbours.values():
            if neighbour.peer == source or neighbour.state == "muted":
                continue
            if self._ground.both_may_read(neighbour.peer, namespace.zone):
                whole = source is None
                if self._sending.note_news(neighbour, namespace, keys, now, whole=whole):
                    self._give_up(neighbour, "too much waits for it", now)
        return self._decisions.take()

    def removed(self, namespace: Namespace, keys: Sequence[Key], now: float) -> list[Effect]:
        """Entries are held no more."""
        for neighbour in self._neighbours.values():
            if neighbour.lose(namespace, keys):
                neighbour.flush_at = min(neighbour.flush_at, now + self._settings.gather_s)
        return self._decisions.take()

    def receive(self, sender: PeerId, data: bytes, now: float, now_ms: int) -> list[Effect]:
        """Take in what a linked peer said."""
        neighbour = self._neighbours.get(sender)
        if neighbour is None or neighbour.muted_until > now:
            return []
        neighbour.exchange.bytes_in += len(data)
        try:
            self._receive(neighbour, decode_message(data), now, now_ms)
        except Malformed as error:
            self._strike(neighbour, str(error), now)
        return self._decisions.take()

    def ingested(self, batch: Ingested, now: float, now_ms: int) -> list[Effect]:
        """A batch is durable, but for what was refused of it."""
        done = self._intake.end(batch.number)
        if done is None:
            return []
        if self._neighbours.get(done.neighbour.peer) is done.neighbour:
            self._settle_batch(done, batch, now)
        came = {short_id_of(key) for key in batch.taken}
        for one in list(self._neighbours.values()):
            one.settle_missing(done.namespace, came)
            if one is done.neighbour or one.has or one.comparison is not None:
                self._go_on(one, now)
        return self._decisions.take()

    def not_ingested(self, number: int) -> None:
        """A batch could not be stored. Its sender hears nothing, gives up, and compares later."""
        self._intake.end(number)

    def unsent(self, peer: PeerId, now: float) -> list[Effect]:
        """A message to a linked peer did not leave, its queue is full: compare later."""
        neighbour = self._neighbours.get(peer)
        if neighbour is not None and neighbour.state != "muted":
            self._give_up(neighbour, "more waits for it than its link takes", now)
        return self._decisions.take()

    def tick(self, now: float, now_ms: int) -> list[Effect]:
        """Send what was gathered, give up what did not come, compare when it is time."""
        for neighbour in list(self._neighbours.values()):
            if neighbour.books_first_until <= now:
                neighbour.serve_all(now)
            if min(neighbour.flush_at, neighbour.ask_at) <= now:
                self._go_on(neighbour, now)
            self._look_at_the_time(neighbour, now)
            if neighbour.again_at <= now:
                neighbour.again_at = math.inf
                if not neighbour.is_comparing:
                    self._comparing.begin(neighbour, now, now_ms)
        if self._compare_at <= now:
            self._compare_at = now + self._settings.compare_s if self._neighbours else math.inf
            self._comparing.look_at(self._neighbours.values(), now_ms)
        return self._decisions.take()

    @property
    def deadline(self) -> float:
        """When `tick` is next due."""
        times = [self._compare_at if self._neighbours else math.inf]
        for one in self._neighbours.values():
            times += (one.flush_at, one.ask_at, one.answer_by, one.entries_by, one.took_by)
            times += (one.again_at, one.books_first_until)
        return min(times)

    def neighbours(self) -> Iterable[Neighbour]:
        """Return the linked peers; for looking only."""
        return self._neighbours.values()

    def neighbour(self, peer: PeerId) -> Neighbour | None:
        """Return a linked peer; for looking only."""
        return self._neighbours.get(peer)

    # Messages

    def _receive(self, neighbour: Neighbour, message: Message, now: float, now_ms: int) -> None:
        match message:
            case Compare() | Offer() | Want() | Entries():
                namespace = self._readable(neighbour, message.zone, message.name)
                if namespace is not None:
                    self._heard_about(neighbour, namespace, message, now)
            case Gone() | Took() | Refused():
                self._heard_of_our_own(neighbour, message, now)
            case Compared():
                self._heard_answer(neighbour, message, now)
            case _:
                self._heard_of_all(neighbour, message, now, now_ms)
        if neighbour.comparison is None and neighbour.state == "comparing":
            # The other runs it, and goes on.
            neighbour.answer_by = now + self._settings.answer_s

    def _heard_of_all(
        self,
        neighbour: Neighbour,
        message: Digest | Ask | Contents | Run | Rest,
        now: float,
        now_ms: int,
    ) -> None:
        """It says something of all that both may read."""
        match message:
            case Digest():
                if self._comparing.heard_digest(neighbour, message, now, now_ms):
                    self._asking.ask_for_payloads(neighbour, now)
            case Ask(until_ms):
                self._comparing.tell_contents(neighbour, until_ms, now, now_ms)
            case Contents():
                if self._comparing.heard_contents(neighbour, message, now, now_ms):
                    self._go_on(neighbour, now)
            case Run():
                if self._comparing.heard_run(neighbour, message, now_ms):
                    self._go_on(neighbour, now)
            case Rest(entries):
                self._comparing.heard_rest(neighbour, entries, now)
            case _:
                assert_never(message)

    def _readable(self, neighbour: Neighbour, zone: str, name: str) -> Namespace | None:
        """Return a namespace that a peer named, if both may read it. Otherwise tell it.

        That is no fault: one of the two may have heard of its certificate before the other.
        """
        namespace = self._ground.named(zone, name)
        if self._ground.both_may_read(neighbour.peer, zone):
            return namespace
        self.refused += 1
        self._decisions.say(neighbour, Refused(zone, name))
        return None

    def _heard_about(
        self,
        neighbour: Neighbour,
        namespace: Namespace,
        message: Compare | Offer | Want | Entries,
        now: float,
    ) -> None:
        """It says, or wants, something of a namespace that both may read."""
        if not namespace.comes_first and neighbour.comparison is None:
            # It runs the comparison, and is through with the books.
            neighbour.serve_all(now)
        match message:
            case Compare():
                if namespace.comes_first or not neighbour.books_come_first:
                    self._answering.answer(neighbour, namespace, message, now)
            case Offer(ids=ids):
                if not self._asking.heard_offer(neighbour, namespace, _cut_ids(ids), now):
                    self._comparing.compare_soon(neighbour, now)
                self._go_on(neighbour, now)
            case Want(ids=ids, payloads=payloads):
                self._sending.heard_want(neighbour, namespace, _cut_ids(ids), payloads=payloads)
                self._go_on(neighbour, now)
            case Entries(items=items):
                if not self._intake.begin(neighbour, namespace, message):
                    self.refused += len(items)
            case _:
                assert_never(message)

    def _heard_of_our_own(
        self, neighbour: Neighbour, message: Gone | Took | Refused, now: float
    ) -> None:
        """It answers what it was asked for, or sent."""
        match message:
            case Gone(zone, name, ids):
                namespace = self._ground.named(zone, name)
                self._asking.heard_gone(neighbour, namespace, _cut_ids(ids), now)
                self._kick(now)
            case Took(number, ids):
                if not self._sending.heard_took(neighbour, number, _cut_ids(ids), now):
                    return
            case Refused(zone, name):
                namespace = self._ground.named(zone, name)
                self._asking.await_nothing_of(neighbour, namespace, now)
                self._rounds.heard_refusal(neighbour, namespace)
                self._kick(now)
            case _:
                assert_never(message)
        self._go_on(neighbour, now)

    def _heard_answer(self, neighbour: Neighbour, compared: Compared, now: float) -> None:
        try:
            is_over = self._rounds.heard_answer(neighbour, compared, now)
        except Malformed:
            self._give_up(neighbour, "its answers lead nowhere", now)
            raise
        if is_over:
            self._go_on(neighbour, now)

    def _settle_batch(self, done: Incoming, batch: Ingested, now: float) -> None:
        neighbour, namespace = done.neighbour, done.namespace
        neighbour.drop(namespace, batch.taken)
        neighbour.refuse(namespace, batch.refused, now + self._settings.unwelcome_s)
        self._asking.settle(neighbour, namespace, done.ids, now)
        if neighbour.muted_until > now:
            return
        self._decisions.say(neighbour, Took(done.number, b"".join(batch.refused)))
        self._asking.ask_for_more_payloads(neighbour, done.ids)
        if batch.bad is not None:
            self._strike(neighbour, batch.bad, now)

    # How it goes

    def _go_on(self, neighbour: Neighbour, now: float) -> None:
        """Do what is next with a neighbour: send, ask, compare."""
        if neighbour.state == "muted":
            neighbour.flush_at = neighbour.ask_at = math.inf
            return
        if self._rounds.books_are_through(neighbour):
            neighbour.serve_all(now)
        self._sending.flush(neighbour, now)
        self._asking.ask(neighbour, now)
        self._comparing.advance(neighbour, now)
        lags = bool(neighbour.waiting or neighbour.lacking or neighbour.under_way)
        if neighbour.lags and not lags:
            self._decisions.step_changed(neighbour.peer)
        neighbour.lags = lags

    def _look_at_the_time(self, neighbour: Neighbour, now: float) -> None:
        if neighbour.entries_by <= now:
            self._give_up(neighbour, "it did not send what was asked for in time", now)
        elif neighbour.took_by <= now:
            self._give_up(neighbour, "it did not acknowledge in time", now)
        elif neighbour.answer_by <= now and neighbour.comparison is None:
            self._comparing.fail(neighbour, "it did not go on in time", now)
        elif neighbour.answer_by <= now:
            self._give_up(neighbour, "it did not answer in time", now)

    def _give_up(self, neighbour: Neighbour, why: str, now: float) -> None:
        """Drop what is under way with a peer; the next comparison finds it again."""
        lost = self._drop_all(neighbour)
        self._comparing.fail(neighbour, why, now)
        if lost:
            self._look_elsewhere(now)

    def _unlink(self, peer: PeerId, now: float) -> None:
        if self._drop_all(self._neighbours.pop(peer)):
            self._look_elsewhere(now)

    def _drop_all(self, neighbour: Neighbour) -> bool:
        """Drop what is under way with a peer; tell whether it had something that is lacking here."""
        lost = bool(neighbour.lacking)
        self._asking.await_nothing(neighbour)
        neighbour.forget_all()
        return lost

    def _look_elsewhere(self, now: float) -> None:
        """Something that exists did not come from who has it: others may have it too."""
        self._compare_at = min(self._compare_at, now + self._settings.retry_s)
        self._kick(now)

    def _kick(self, now: float) -> None:
        """Let those be asked that have what another did not send."""
        for one in self._neighbours.values():
            if one.has:
                one.ask_at = min(one.ask_at, now)

    def _strike(self, neighbour: Neighbour, why: str, now: float) -> None:
        self.refused += 1
        if self._strikes.strike(neighbour.peer, why, now):
            self._mute(neighbour)
            self._look_elsewhere(now)

    def _mute(self, neighbour: Neighbour) -> None:
        self._drop_all(neighbour)
        until, why = self._strikes.muted(neighbour.peer)
        neighbour.muted_until = neighbour.again_at = until
        self._decisions.become(neighbour, "muted", why)


def _cut_ids(ids: bytes) -> list[bytes]:
    if len(ids) % SHORT_ID_BYTES:
        raise Malformed("a list of ids is cut off")
    return [ids[at : at + SHORT_ID_BYTES] for at in range(0, len(ids), SHORT_ID_BYTES)]
