"""Under which name are entries kept, and within which zone? Namespaces, and those of the mesh itself.

The zone is part of a namespace's id, and so of what every entry in it signs: no later policy can move
data to another zone. Names are told only to peers that may read them.
"""

from dataclasses import dataclass
from typing import Annotated

import msgspec

from covey.identity.certificate import ZONE_CHARACTERS_MAX
from covey.identity.envelope import MeshId
from covey.identity.errors import Malformed, Misuse

from .entry import NamespaceId, namespace_id

NAME_CHARACTERS_MAX = 128
DEVICE = "device"
"""The zone of what never leaves this device."""
MESH = "mesh"
"""The zone that every member is in."""
_OWN = "_"
_MESH_OWN = "_mesh/"

Zone = Annotated[str, msgspec.Meta(min_length=1, max_length=ZONE_CHARACTERS_MAX)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARACTERS_MAX)]


class NamespaceRecord(msgspec.Struct, frozen=True, array_like=True):
    """A namespace as it is named to others, and kept."""

    zone: Zone
    name: Name


@dataclass(frozen=True, slots=True, order=True)
class Namespace:
    """One namespace; in order the books come first, members before all."""

    rank: int
    zone: str
    name: str
    id: NamespaceId

    @property
    def is_book(self) -> bool:
        """Tell whether it is one of the mesh's books: admins alone write them.

        Whatever begins with `_mesh/` is one, also where this version does not know the name, so that
        it keeps and passes on what a later version writes; and nobody else takes such a name.
        """
        return self.rank <= _ZONES_BOOK

    @property
    def comes_first(self) -> bool:
        """Tell whether it is a book of zone mesh: every member holds it whole, before all else."""
        return self.rank <= _OTHER_BOOK

    @property
    def turn(self) -> int:
        """What is of a later turn waits for what is of an earlier one: the books of zone mesh, those of
        other zones, which say who writes there, all the rest.
        """
        return 0 if self.comes_first else 1 if self.is_book else 2

    @property
    def is_own(self) -> bool:
        """Tell whether it is covey's own, not users': nothing in it is content.

        What is written there carries its author's chain.
        """
        return self.name.startswith(_OWN)

    @property
    def record(self) -> NamespaceRecord:
        """How it is named to others, and kept."""
        return NamespaceRecord(self.zone, self.name)


MEMBERS = "_mesh/members"
REVOKED = "_mesh/revoked"
INVITES = "_mesh/invites"
NAMESPACES = "_mesh/namespaces"
"""Who writes in the namespaces of a zone, and how much. In each zone but `device`: those outside it are
told no name of its namespaces."""
ADVERTS = "_mesh/adverts"
"""What each member offers, and where it is: each writes its own. In zone mesh, and no book."""
_FIRST = (MEMBERS, REVOKED, INVITES)
"""In the order in which they are reconciled: who is a member, before anything that a member says."""
# Digests are over what is held in this order, so it is the same for ever: WIRE.md has it.
_OTHER_BOOK, _ZONES_BOOK, _ADVERTS, _LAST = range(len(_FIRST), len(_FIRST) + 4)
TURNS = 3


def namespace_of(mesh: MeshId, zone: str, name: str) -> Namespace:
    """Return a namespace by zone and name.

    Raises:
        Malformed: neither covey nor a user would name one so.
    """
    problem = _problem(zone, name)
    if problem is not None:
        raise Malformed(problem)
    return Namespace(_rank(zone, name), zone, name, namespace_id(mesh, zone, name))


def named_by_user(mesh: MeshId, zone: str, name: str) -> Namespace:
    """Return a namespace for what a user writes.

    Raises:
        Misuse: it has no such form, or is one that only covey writes.
    """
    if name.startswith(_OWN):
        raise Misuse(f"namespaces that begin with _ are covey's own, as {name!r} is; name another")
    try:
        return namespace_of(mesh, zone, name)
    except Malformed as error:
        raise Misuse(str(error)) from error


def _rank(zone: str, name: str) -> int:
    if zone == DEVICE or not name.startswith(_MESH_OWN):
        return _LAST
    if zone != MESH:
        return _ZONES_BOOK
    if name == ADVERTS:
        return _ADVERTS
    return _FIRST.index(name) if name in _FIRST else _OTHER_BOOK


def _problem(zone: str, name: str) -> str | None:
    if not 0 < len(zone) <= ZONE_CHARACTERS_MAX:
        return f"a zone has 1 to {ZONE_CHARACTERS_MAX} characters"
    if not 0 < len(name) <= NAME_CHARACTERS_MAX:
        return f"a namespace has 1 to {NAME_CHARACTERS_MAX} characters, as in plant/pumps"
    parts = name.split("/")
    if not all(parts) or not (zone + name).isprintable() or " " in zone + name:
        return (
            f"a namespace is words with / between, without spaces, as in plant/pumps; not {name!r}"
        )
    if "*" in name or "?" in name:
        return f"a namespace has no wildcard; {name!r} would match others"
    return None
