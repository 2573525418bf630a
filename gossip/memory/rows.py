"""What does the memory need of its store?"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from .entry import NamespaceId
from .replica import Applied, Replica
from .summary import Summary
from .tables import Reading, Tables

T = TypeVar("T")


class Rows(Protocol):
    """The store of the memory; `peer/memory/store.py` has the real one."""

    @property
    def summaries(self) -> Mapping[NamespaceId, Summary]:
        """What is held, by namespace; follows what is durable."""
        ...

    def reading(self) -> AbstractContextManager[Reading]:
        """Give the rows as they are now, for a moment: not over an await."""
        ...

    async def run(self, job: Callable[[Replica, Tables], T]) -> T:
        """Run a job in one transaction; return what it returned once that is durable.

        Raises:
            Unavailable: the disk did not take it.
        """
        ...

    async def pass_time(self) -> None:
        """Drop what is over its time."""
        ...

    def on_applied(self, handler: Callable[[Applied], None]) -> None:
        """Call `handler` on the trio thread with each transaction's changes, in order, once durable."""
        ...
