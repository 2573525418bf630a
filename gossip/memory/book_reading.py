"""What do the books say, as their entries become durable? Read, and told to who follows from it."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from covey.identity.errors import Malformed, NotAdmitted, Unavailable

from . import books
from .entry import Key, read_entry
from .namespace import NAMESPACES, Namespace
from .payload import decode_payload
from .policies import Changed, Policies
from .rows import Rows
from .standing import Revocation, Standing
from .tables import Table

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Said:
    """What of what was read makes what is held count differently."""

    revocations: list[Revocation] = field(default_factory=lambda: list[Revocation]())
    policies: list[Changed] = field(default_factory=lambda: list[Changed]())


class BookReading:
    """Lets `Standing` and `Policies` follow the books."""

    def __init__(self, rows: Rows, standing: Standing, policies: Policies) -> None:
        self._rows = rows
        self._standing = standing
        self._policies = policies
        self._unread: list[tuple[Namespace, list[Key]]] = []

    def came(self, book: Namespace, keys: list[Key]) -> None:
        """Note entries that are durable now, to be read next."""
        self._unread.append((book, keys))

    def went(self, book: Namespace, keys: Iterable[Key]) -> list[Changed]:
        """Take entries as gone; return what policies changed by that."""
        told = (self._policies.forget(book.id, key) for key in keys)
        return [one for one in told if one is not None]

    def read(self) -> Said:
        """Read what came.

        What the disk does not give now is tried again next time, and at the next start.
        """
        unread, self._unread = self._unread, []
        said = Said()
        for book, keys in unread:
            try:
                self.read_book(book, keys, said)
            except Unavailable as error:
                self._unread.append((book, keys))
                why = f"{error}; if it goes on, look at the disk and start covey again"
                log.error("memory.books_put_off", extra={"book": book.name, "why": why})
        return said

    def read_book(self, book: Namespace, keys: Iterable[Key], said: Said) -> None:
        """Read entries of a book into `said`.

        Raises:
            Unavailable: the disk does not give them.
        """
        with self._rows.reading() as reading:
            rows = [
                (reading.get(Table.ENTRY, book.id + key), reading.get(Table.PAYLOAD, book.id + key))
                for key in keys
            ]
        for header, data in rows:
            if header is None or data is None:
                continue
            try:
                self._read_entry(book, header, data, said)
            except (Malformed, NotAdmitted) as error:
                log.warning("memory.book_unread", extra={"why": str(error)})

    def _read_entry(self, book: Namespace, header: bytes, data: bytes, said: Said) -> None:
        entry, payload = read_entry(header), decode_payload(data)
        books.learn_author(self._standing, book, data)
        revocation = books.learn(self._standing, book, entry, payload)
        if revocation is not None:
            said.revocations.append(revocation)
        if book.name == NAMESPACES:
            changed = self._policies.learn(book, entry, payload)
            if changed is not None:
                said.policies.append(changed)
