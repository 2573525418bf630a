"""What does this peer tell the mesh that it offers, and what do the others tell it?

Adverts are entries of the shared memory, which keeps and spreads them. This side writes this peer's own,
and lets the directory follow what is held. Nothing is signed while this device's clock is wrong.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import trio

from covey.gossip.advert import (
    RENEW_MS,
    Advert,
    Told,
    advert_record,
    adverts_of,
    only_addresses,
    read_advert,
)
from covey.gossip.directory import Directory, DirectoryEffect
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import (
    HASH_BYTES,
    KEY_BYTES_TOTAL,
    Key,
    read_entry,
)
from covey.gossip.memory.messages import Item
from covey.gossip.memory.replica import Applied
from covey.gossip.memory.rows import Rows
from covey.gossip.memory.tables import Reading, Table
from covey.identity.certificate import Member
from covey.identity.errors import CoveyError, Malformed, NotAdmitted, Unavailable
from covey.identity.keys import PeerId, public_key_of

log = logging.getLogger(__name__)

# Soon, since a clock that is right again tells nobody, and others wait for this peer until then. What
# only another advert mends, such as one that lists too much, waits for that.
RETRY_S = 1.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What adverts are kept with."""

    memory: Memory
    rows: Rows
    directory: Directory
    now_ms: Callable[[], int]
    me: Callable[[], Member]
    """Who this peer is by its newest certificate."""
    describe: Callable[[], Advert]
    """Returns all that it offers."""
    clock_trouble: Callable[[], str | None]
    """Why this device's clock cannot be trusted to sign with, if so."""
    changed: Callable[[Sequence[DirectoryEffect]], None]
    """Told of each change of the directory."""
    announced: Callable[[Advert, Item], None]
    """Told what this peer offers, and what others are given, once that is written."""
    quiet: bool = False
    """Others are told where this peer is, and not what it offers."""


@dataclass(frozen=True, slots=True)
class _Failed:
    """Why an advert was not written."""

    why: str
    may_pass: bool
    """By itself; else only another advert helps."""


class Adverts:
    """Adverts, out and in. Run `serve` in a nursery."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._namespace = adverts_of(around.memory.mesh)
        self._due = trio.Event()
        self.trouble: str | None = None
        """Why others are not told what this peer offers, if so."""
        around.memory.on_applied(self._applied)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up what is stored; then write this peer's own advert whenever it is due, until cancelled."""
        with self._around.rows.reading() as reading:
            keys = [
                Key(row[-KEY_BYTES_TOTAL:])
                for row, _ in reading.scan(Table.ENTRY, self._namespace.id)
            ]
        self._learn(keys)
        task_status.started()
        while True:
            await self._due.wait()
            self._due = trio.Event()
            before, failed = self.trouble, await self._publish()
            self.trouble = None if failed is None else failed.why
            if failed is None:
                continue
            if failed.why != before:
                log.warning("advert.not_written", extra={"why": failed.why})
            if failed.may_pass:
                with trio.move_on_after(RETRY_S):
                    await self._due.wait()
                self._due.set()

    def announce(self) -> None:
        """Tell the mesh what this peer offers now."""
        around = self._around
        around.changed(around.directory.announce(around.describe(), around.me(), around.now_ms()))
        self._due.set()

    async def learn(self, item: Item) -> None:
        """Take in an advert that was found elsewhere than in the shared memory."""
        try:
            await self._around.memory.take_in(self._namespace, [item])
        except Unavailable as error:
            log.warning("advert.not_kept", extra={"why": str(error)})

    def rejudge(self, peer: PeerId) -> None:
        """Look again at a peer whose standing has changed."""
        around = self._around
        if around.directory.get(peer) is not None:
            around.changed(around.directory.rejudge(peer, around.now_ms()))
            return
        # What it said may not have counted when it came.
        with around.rows.reading() as reading:
            prefix = self._namespace.id + public_key_of(peer)[:HASH_BYTES]
            keys = [Key(row[-KEY_BYTES_TOTAL:]) for row, _ in reading.scan(Table.AGE, prefix)]
        self._learn(keys)

    def sweep(self) -> list[DirectoryEffect]:
        """Forget who is over its time, and renew this peer's own advert in time."""
        around = self._around
        forgotten = around.directory.expire(around.now_ms())
        around.changed(forgotten)
        own = around.directory.get(around.me().peer)
        if own is None or own.at_ms + RENEW_MS < around.now_ms():
            self.announce()
        return forgotten

    # This peer's own

    async def _publish(self) -> _Failed | None:
        """Write what others are told, unless that cannot be."""
        around = self._around
        own = around.directory.get(around.me().peer)
        assert own is not None, "it was announced"
        if (trouble := around.clock_trouble()) is not None:
            why = f"nothing is signed while the clock is wrong: {trouble}"
            return _Failed(why, may_pass=True)
        told = only_addresses(own.advert) if around.quiet else own.advert
        try:
            (arrival,) = await around.memory.write_records([advert_record(own.peer, told)])
        except (Malformed, NotAdmitted) as error:
            # What is to be said breaks a limit.
            return _Failed(str(error), may_pass=False)
        except CoveyError as error:
            # The disk is full, or what this device holds of its own leaves no room now.
            return _Failed(str(error), may_pass=True)
        around.announced(own.advert, Item(arrival.entry.data, arrival.payload))
        return None

    # The others'

    def _applied(self, applied: Applied) -> None:
        mine = self._namespace.id
        shown = [Key(place[-KEY_BYTES_TOTAL:]) for place in applied.shown if place.startswith(mine)]
        gone = [Key(place[-KEY_BYTES_TOTAL:]) for place in applied.hidden if place.startswith(mine)]
        # First the newer ones: of whom one is held still, nothing is forgotten.
        if shown:
            self._learn(shown)
        if gone:
            self._around.changed(self._around.directory.withdrawn(gone))

    def _learn(self, keys: Iterable[Key]) -> None:
        around = self._around
        with around.rows.reading() as reading:
            told = [one for key in keys if (one := self._read(reading, key)) is not None]
        around.changed(around.directory.learn(told, around.now_ms()))

    def _read(self, reading: Reading, key: Key) -> Told | None:
        place = self._namespace.id + key
        header, payload = reading.get(Table.ENTRY, place), reading.get(Table.PAYLOAD, place)
        if header is None or payload is None:
            return None
        try:
            return read_advert(read_entry(header), payload, mesh=self._around.memory.mesh)
        except (Malformed, NotAdmitted) as error:
            log.info("advert.unread", extra={"why": str(error)})
            return None
