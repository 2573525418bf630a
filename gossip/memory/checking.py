"""Does everything that is held still hold? Each signature, payload, certificate and index row.

Pure, over the rows of one moment. It finds what a failing disk, or a mistake of ours, has changed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from covey.identity.envelope import MeshId
from covey.identity.errors import CoveyError, Malformed

from .entry import NAMESPACE_BYTES, Entry, NamespaceId, check_payload, open_entry
from .namespace import Namespace
from .replica import bucket_of, index_rows, place_of
from .tables import Reading, Table

PROBLEMS_MAX = 100
_INDEXES = (Table.SHORT, Table.HEAD, Table.GROUP, Table.AGE, Table.COVER)

Judge = Callable[[Entry, Namespace], bool]
"""Tells whether an admin wrote it, or raises: it should not be here."""


@dataclass(slots=True)
class Checked:
    """What was looked at, and what is wrong."""

    entries: int = 0
    payloads: int = 0
    problems: list[str] = field(default_factory=lambda: list[str]())
    """The first 100."""

    def wrong(self, what: str) -> None:
        """Note a problem."""
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(what)


def check_all(
    reading: Reading,
    mesh: MeshId,
    namespaces: Mapping[NamespaceId, Namespace],
    judge: Judge,
    summaries: Mapping[NamespaceId, int],
) -> Checked:
    """Check every row against the signed headers, and these against their signatures.

    Args:
        reading: the rows.
        mesh: the mesh.
        namespaces: those that this peer holds.
        judge: whether an author may write an entry.
        summaries: how many entries this peer believes to hold, by namespace.
    """
    checked = Checked()
    rows: Counter[Table] = Counter()
    buckets: Counter[bytes] = Counter()
    held: Counter[NamespaceId] = Counter()
    for entry in _entries(reading, mesh, checked):
        checked.entries += 1
        held[NamespaceId(entry.header.namespace)] += 1
        buckets[bucket_of(entry)] += 1
        by_admin = _judged(entry, namespaces, judge, checked)
        for table, row, value in index_rows(entry, by_admin=by_admin):
            rows[table] += 1
            if reading.get(table, row) != value:
                checked.wrong(f"entry {_name(entry)}: its row in {table.value} is missing or wrong")
        _check_payload(reading, entry, checked)
    for table in _INDEXES:
        there = sum(1 for _ in reading.scan(table, b""))
        if there != rows[table]:
            checked.wrong(f"{table.value} has {there} rows where the entries make {rows[table]}")
    counts = {row: int.from_bytes(value, "big") for row, value in reading.scan(Table.COUNT, b"")}
    if counts != dict(buckets):
        checked.wrong("the counts by author are not those of the entries")
    if {one: number for one, number in summaries.items() if number} != dict(held):
        checked.wrong("what is held in memory for comparing is not what the store holds")
    _check_strays(reading, checked)
    return checked


def _entries(reading: Reading, mesh: MeshId, checked: Checked) -> Iterator[Entry]:
    for place, data in reading.scan(Table.ENTRY, b""):
        try:
            entry = open_entry(data, mesh=mesh)
        except CoveyError as error:
            checked.wrong(f"entry {place[-32:].hex()[:12]}: {error}")
            continue
        if place_of(entry) != place:
            checked.wrong(f"entry {_name(entry)} stands where another should")
        yield entry


def _judged(
    entry: Entry, namespaces: Mapping[NamespaceId, Namespace], judge: Judge, checked: Checked
) -> bool:
    namespace = namespaces.get(NamespaceId(entry.header.namespace))
    if namespace is None:
        checked.wrong(f"entry {_name(entry)} is in a namespace without a name")
        return False
    try:
        return judge(entry, namespace)
    except CoveyError as error:
        checked.wrong(f"entry {_name(entry)} should not be here: {error}")
        return False


def _check_payload(reading: Reading, entry: Entry, checked: Checked) -> None:
    payload = reading.get(Table.PAYLOAD, place_of(entry))
    if payload is None:
        return
    checked.payloads += 1
    try:
        check_payload(entry, payload)
    except Malformed as error:
        checked.wrong(f"entry {_name(entry)}: {error}")


def _check_strays(reading: Reading, checked: Checked) -> None:
    for table in (Table.PAYLOAD, Table.WANTED):
        for place, _ in reading.scan(table, b""):
            if reading.get(Table.ENTRY, place) is None:
                checked.wrong(
                    f"{table.value} has a row of no entry: {place[NAMESPACE_BYTES:].hex()}"
                )


def _name(entry: Entry) -> str:
    return entry.id.hex()[:12]
