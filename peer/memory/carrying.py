"""How does the memory leave a device as a file, and come into another? As signed, line by line."""

import base64
from collections.abc import AsyncGenerator, Sequence

import msgspec
import trio

from covey.gossip.memory import reading
from covey.gossip.memory.driver import Memory
from covey.gossip.memory.entry import read_entry
from covey.gossip.memory.messages import Item
from covey.gossip.memory.namespace import DEVICE, Namespace, namespace_of
from covey.gossip.memory.tables import Table
from covey.identity.errors import Malformed, Misuse, NotAdmitted

from .held import Held
from .store import MemoryStore
from .surroundings import Surroundings
from .views import IMPORT_LINES_MAX, ExportedEntry, ImportView

PAGE = 200


class Carrying:
    """Exports and imports."""

    def __init__(self, parts: Surroundings, memory: Memory, rows: MemoryStore, held: Held) -> None:
        self._parts = parts
        self._memory = memory
        self._rows = rows
        self._held = held

    async def export(self, namespace: str | None) -> AsyncGenerator[bytes]:
        """Give what is held as JSON lines, each entry as it was signed; nothing of zone device."""
        for one in self._held.matching(namespace, None):
            if one.zone == DEVICE:
                continue
            last = b""
            while True:
                lines, last = await trio.to_thread.run_sync(self._exported, one, last)
                if not lines:
                    break
                yield b"".join(lines)

    def _exported(self, namespace: Namespace, last: bytes) -> tuple[list[bytes], bytes]:
        lines: list[bytes] = []
        now_ms = self._parts.now_ms()
        standing = self._memory.standing
        with self._rows.reading() as rows:
            start = last + b"\x00" if last else namespace.id
            for place, data in rows.scan(Table.ENTRY, start, namespace.id + b"\xff" * 41):
                last = place
                entry = read_entry(data)
                payload = rows.get(Table.PAYLOAD, place)
                known = standing.certificate(entry.header.certificate)
                line = ExportedEntry(
                    zone=namespace.zone,
                    namespace=namespace.name,
                    header=_base64(data),
                    payload=None if payload is None else _base64(payload),
                    chain=tuple(map(_base64, known.chain)) if known is not None else (),
                    shows=None
                    if namespace.is_own
                    else self._held.view(reading.remembered(rows, entry, now_ms), namespace),
                )
                lines.append(msgspec.json.encode(line) + b"\n")
                if len(lines) == PAGE:
                    break
        return lines, last

    async def import_(self, lines: Sequence[ExportedEntry]) -> ImportView:
        """Take in what was exported, each entry judged as if a peer had sent it.

        Raises:
            Malformed: a line is none of an export.
        """
        if len(lines) > IMPORT_LINES_MAX:
            raise Misuse(f"at most {IMPORT_LINES_MAX} lines are imported at once, not {len(lines)}")
        taken = 0
        refused: list[str] = []
        groups: dict[tuple[str, str], list[Item]] = {}
        for line in lines:
            payload = None if line.payload is None else _unbase64(line.payload)
            item = Item(_unbase64(line.header), payload)
            groups.setdefault((line.zone, line.namespace), []).append(item)
            if line.chain:
                try:
                    self._memory.standing.learn(tuple(map(_unbase64, line.chain)))
                except NotAdmitted as error:
                    refused.append(f"{line.namespace}: {error}")
        for (zone, name), items in groups.items():
            if zone == DEVICE:
                refused.append(f"{name}: what belongs to zone device stays on its device")
                continue
            if not self._held.is_in(zone):
                refused.append(f"{name}: this device is not in zone {zone}")
                continue
            namespace = namespace_of(self._memory.mesh, zone, name)
            more, left = await self._memory.take_in(namespace, items)
            taken += more
            refused += [f"{name} {id_}: {why}".replace("  ", " ") for id_, why in left]
        return ImportView(taken=taken, refused=tuple(refused))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Malformed("a line of the export is damaged") from error
