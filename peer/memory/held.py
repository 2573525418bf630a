"""Which namespace or entry does a user mean, and how is an entry shown?"""

import fnmatch
from collections.abc import Callable, Iterable

from covey.gossip.memory import reading
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import EntryId
from covey.gossip.memory.namespace import DEVICE, MESH, Namespace, named_by_user
from covey.gossip.memory.reading import Remembered
from covey.gossip.memory.tables import Reading
from covey.identity.errors import Misuse, NotFound
from covey.identity.keys import public_key_of

from .showing import entry_view
from .store import MemoryStore
from .surroundings import Surroundings
from .views import EntryView


class Held:
    """What this device holds, by the names that users give it."""

    def __init__(self, parts: Surroundings, memory: Memory, rows: MemoryStore) -> None:
        self._parts = parts
        self._memory = memory
        self._rows = rows
        self._doubtful: set[bytes] = set()

    def writable(self, zone: str, name: str) -> Namespace:
        """Return a namespace that this device may write to, or raise Misuse."""
        if not self.is_in(zone):
            mine = ", ".join(sorted(self._parts.zones)) or "none besides mesh"
            raise Misuse(
                f"this device is not in zone {zone!r} (it is in: {mine}); "
                "an admin grants zones with: covey invite --zone"
            )
        return named_by_user(self._memory.mesh, zone, name)

    def is_in(self, zone: str) -> bool:
        """Return whether this device may hold what belongs to a zone."""
        return zone in (MESH, DEVICE) or zone in self._parts.zones

    def matching(self, pattern: str | None, zone: str | None) -> list[Namespace]:
        """Return the namespaces of a name, or that a pattern as plant/* matches; not the books."""
        return [
            one
            for one in self._memory.namespaces()
            if (zone is None or one.zone == zone)
            and (not one.is_own if pattern is None else fnmatch.fnmatchcase(one.name, pattern))
        ]

    def find(self, id_or_prefix: str) -> tuple[Remembered, Namespace]:
        """Return the entry of that id, or that alone begins so, and where it is.

        Raises:
            NotFound: there is none.
            Misuse: there are several.
        """
        now_ms = self._parts.now_ms()
        found: list[tuple[Remembered, Namespace]] = []
        with self._rows.reading() as rows:
            for one in self._memory.namespaces():
                try:
                    found.append((reading.entry(rows, one.id, id_or_prefix, now_ms), one))
                except NotFound:
                    continue
        if not found:
            raise NotFound(
                f"nothing is held here under the id {id_or_prefix}; see: covey memory ls"
            )
        if len(found) > 1:
            raise Misuse(f"several ids begin with {id_or_prefix}; give more digits")
        return found[0]

    def id_of(self, id_or_prefix: str) -> EntryId:
        """Return the whole id of what `find` finds."""
        return self.find(id_or_prefix)[0].id

    def by_id(self, rows: Reading, entry_id: bytes) -> tuple[Remembered, Namespace] | None:
        """Return an entry and where it is, if it is held."""
        now_ms = self._parts.now_ms()
        for one in self._memory.namespaces():
            found = reading.held_by_id(rows, one.id, entry_id, now_ms)
            if found is not None:
                return reading.remembered(rows, found, now_ms), one
        return None

    def doubt(self, authors: Iterable[bytes]) -> None:
        """Say from now on, with each entry of these authors (public keys), that they are doubtful."""
        self._doubtful.update(authors)

    def view(self, entry: Remembered, namespace: Namespace) -> EntryView:
        """Return an entry as it is shown."""
        doubtful = ""
        if public_key_of(entry.author) in self._doubtful:
            doubtful = "its author wrote two entries at one time: it, or its key, is in two places"
        return entry_view(entry, namespace, self._parts.name_of, doubtful=doubtful)

    def viewer(self, namespace: Namespace) -> Callable[[Remembered], EntryView]:
        """Return `view` for one namespace."""
        return lambda entry: self.view(entry, namespace)
