"""What is a skill?

A request type, a result type, and a coroutine between them that uses `Models`.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from covey.inference.engine import Models
from covey.inference.errors import BadRequest

Progress = Callable[[str], None]
ITEMS_MAX = 2000
ITEM_BYTES_MAX = 16 * 1024
TEXT_BYTES_MAX = 512 * 1024


@dataclass(frozen=True, slots=True)
class Context:
    """What a run is given besides its request."""

    models: Models
    deadline_s: float
    progress: Progress


Run = Callable[[Any, Context], Awaitable[msgspec.Struct]]


@dataclass(frozen=True, slots=True)
class Skill:
    """A built-in skill.

    `needs`: which roles of model the device must have. `takes_data`: whether it may work on a data
    source; `with_lines` then puts the source's lines into the request on the peer that has them.
    """

    name: str
    request: type[msgspec.Struct]
    run: Run
    needs: tuple[Literal["text", "embedding"], ...]
    takes_data: bool = False


def decode_request(skill: Skill, data: bytes) -> Any:
    """Return the skill's request in `data` (JSON).

    Raises:
        BadRequest: naming the field that is wrong.
    """
    try:
        return msgspec.json.decode(data or b"{}", type=skill.request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        # msgspec lets the last two through: bytes that are no UTF-8, and very deep nesting.
        raise BadRequest(f"the input of skill {skill.name!r} is wrong: {error}") from error


def with_lines(request: Any, lines: Sequence[str]) -> Any:
    """Return the request with a data source's lines as its items."""
    return msgspec.structs.replace(request, items=tuple(lines))


def check_items(items: Sequence[str], *, items_max: int = ITEMS_MAX) -> None:
    """Refuse what is too much, or nothing.

    Raises:
        BadRequest: naming the limit.
    """
    if not items:
        raise BadRequest(
            "there is nothing to work on: give text, items, or a data source that has lines"
        )
    if len(items) > items_max:
        raise BadRequest(f"{len(items)} items, over the limit of {items_max}; use a smaller tail")
    longest = max(len(item.encode()) for item in items)
    if longest > ITEM_BYTES_MAX:
        raise BadRequest(f"an item of {longest} bytes, over the limit of {ITEM_BYTES_MAX}")
    if sum(len(item) for item in items) > TEXT_BYTES_MAX:
        raise BadRequest(
            f"the items have more than {TEXT_BYTES_MAX} characters; use a smaller tail"
        )
