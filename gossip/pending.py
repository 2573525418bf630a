"""Who waits for an admin's word? Joiners without an invite that this admin honours.

Pure. The list is this admin's alone. Both sides show the same words, which follow from a number that
is drawn here when a joiner is first heard of; it stays the same for as long as the joiner is listed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from covey.identity.certificate import DAY_S
from covey.identity.errors import NotAdmitted
from covey.identity.keys import PeerId

PENDING_MAX = 64
PENDING_MS = DAY_S * 1000
NAME_CHARACTERS_MAX = 128


class PendingRecord(msgspec.Struct, frozen=True, array_like=True):
    """A joiner that waits."""

    peer: str
    name: Annotated[str, msgspec.Meta(max_length=NAME_CHARACTERS_MAX)]
    """What it calls itself: nobody has looked."""
    asked_ms: int
    nonce: bytes
    has_confirmed: bool = False
    """Whoever sits there has seen the words and said yes."""
    zones: tuple[str, ...] = ()
    """Those of the invite that it holds."""
    inviter: str = ""
    """The admin whose invite it has proved to hold; empty: it holds none."""
    answer: Literal["", "yes", "no"] = ""
    """What was decided; it is told so until its day is over."""


@dataclass(frozen=True, slots=True)
class KeepPending:
    """Store this record before the answer leaves."""

    record: PendingRecord


@dataclass(frozen=True, slots=True)
class ForgetPending:
    """Remove a record."""

    peer: PeerId


PendingEffect = KeepPending | ForgetPending


class PendingList:
    """The joiners that wait at one admin."""

    def __init__(self) -> None:
        self._records: dict[PeerId, PendingRecord] = {}

    def restore(self, records: Iterable[PendingRecord]) -> None:
        """Take up what was stored."""
        self._records.update({PeerId(record.peer): record for record in records})

    def listed(self, now_ms: int) -> list[PendingRecord]:
        """Return who waits for a word, the longest first."""
        return [
            one
            for one in self._records.values()
            if not one.answer and one.asked_ms + PENDING_MS > now_ms
        ]

    def get(self, peer: PeerId, now_ms: int) -> PendingRecord | None:
        """Return a joiner that is listed, or was given an answer within the day."""
        record = self._records.get(peer)
        return record if record is not None and record.asked_ms + PENDING_MS > now_ms else None

    def knock(self, peer: PeerId, name: str, nonce: bytes, now_ms: int) -> PendingRecord:
        """List a joiner that asks for the first time; return its record. Not stored yet.

        Raises:
            NotAdmitted: the list is full of joiners that mean it.
        """
        known = self.get(peer, now_ms)
        if known is not None:
            return known
        self._make_room(now_ms)
        record = PendingRecord(peer, name[:NAME_CHARACTERS_MAX], now_ms, nonce)
        self._records[peer] = record
        return record

    def confirm(
        self,
        peer: PeerId,
        nonce: bytes,
        now_ms: int,
        *,
        zones: Sequence[str] = (),
        inviter: PeerId | None = None,
    ) -> Sequence[PendingEffect]:
        """Note that a joiner means it, or what invite it holds.

        Raises:
            NotAdmitted: code `denied`, or the list is full.
        """
        record = self.knock(peer, "", nonce, now_ms)
        if record.answer == "no":
            raise NotAdmitted("denied", "an admin has said no")
        meant = msgspec.structs.replace(
            record,
            has_confirmed=True,
            zones=tuple(sorted(zones)) or record.zones,
            inviter=inviter or record.inviter,
        )
        if meant == record:
            return []
        self._records[peer] = meant
        return [*self._sweep(now_ms), KeepPending(meant)]

    def decide(
        self, peer: PeerId, answer: Literal["yes", "no"], now_ms: int
    ) -> Sequence[PendingEffect]:
        """Note what was decided of a joiner that is listed: it hears so for a day from now."""
        record = self._records.get(peer)
        if record is None or record.answer == answer:
            return []
        decided = msgspec.structs.replace(record, answer=answer, asked_ms=now_ms)
        self._records[peer] = decided
        return [KeepPending(decided)]

    def _make_room(self, now_ms: int) -> None:
        """The oldest of those that nobody has confirmed give way, then of those that were answered."""
        self._sweep(now_ms)
        while len(self._records) >= PENDING_MAX:
            idle = [one for one in self._records.values() if not one.has_confirmed]
            idle += [one for one in self._records.values() if one.answer]
            if not idle:
                raise NotAdmitted(
                    "busy", f"{PENDING_MAX} others wait already; ask the admin to look at them"
                )
            del self._records[PeerId(idle[0].peer)]

    def _sweep(self, now_ms: int) -> list[PendingEffect]:
        gone = [peer for peer, one in self._records.items() if one.asked_ms + PENDING_MS <= now_ms]
        for peer in gone:
            del self._records[peer]
        return [ForgetPending(peer) for peer in gone]
