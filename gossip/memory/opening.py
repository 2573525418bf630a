"""Do the form, signature and payload of what others sent hold? Pure; for a worker thread."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from covey.identity.envelope import MeshId
from covey.identity.errors import CoveyError

from .entry import Entry, check_payload, open_entry
from .messages import Item


@dataclass(slots=True)
class Checked:
    """What came of a batch's form and signatures."""

    entries: list[tuple[Entry, bytes | None]] = field(
        default_factory=lambda: list[tuple[Entry, bytes | None]]()
    )
    bad: str | None = None


def check_items(items: Sequence[Item], mesh: MeshId) -> Checked:
    """Return the entries whose form, signature and payload hold."""
    checked = Checked()
    for item in items:
        try:
            entry = open_entry(item.header, mesh=mesh)
            payload = item.payload
            if not entry.header.payload_bytes:
                payload = None
            elif payload is not None:
                check_payload(entry, payload)
        except CoveyError as error:
            checked.bad = str(error)
            continue
        checked.entries.append((entry, payload))
    return checked
