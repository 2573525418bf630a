"""What does the demo tell, and to whom? To a person now, and as one JSON object at the end."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text


@dataclass(slots=True)
class Story:
    """The story so far; `facts` is what was seen, for a program."""

    console: Console
    facts: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())
    _started: float = field(default_factory=perf_counter)

    def chapter(self, title: str) -> None:
        self.console.print()
        self.console.rule(f"[bold]{title}", align="left", style="dim")

    def say(self, text: str) -> None:
        """Print a paragraph; further lines of it are indented as its first is."""
        body = text.lstrip(" ")
        self.console.print(
            Padding(Text.from_markup(body), (0, 0, 0, len(text) - len(body)), expand=False)
        )

    @contextmanager
    def timed(self, what: str) -> Generator[None]:
        started = perf_counter()
        with self.console.status(what):
            yield
        self.say(f"  {what} [dim]({perf_counter() - started:.1f} s)[/]")

    @property
    def elapsed_s(self) -> float:
        return perf_counter() - self._started
