"""What does a command speak with? Its home, its client, and two streams: data out, notes aside."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from covey.peer.client.client import Client, connect

EXIT_CODES = {
    0: "done",
    1: "failed: the task (also over its input), or a finding of doctor or of a check",
    2: "wrong usage, input or configuration",
    3: "the daemon is not running",
    4: "not found",
    5: "not admitted",
    6: "conflict with what is there already",
    7: "not finished in time; the task goes on",
    8: "unavailable now: no peer fits, or a peer or disk cannot be reached",
    9: "the task was cancelled",
    130: "interrupted",
}


class Exit(Exception):
    """Ends the command with a code and a note."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Shell:
    """What every command is given."""

    path: Path
    json: bool

    def client(self) -> Client:
        """Return a client of this home's daemon."""
        return connect(home=self.path)

    def say(self, text: str) -> None:
        """Note something that is not data; with --json standard error is for an error alone."""
        if not self.json:
            echo(text, err=True)

    def show(self, kind: str, view: object, text: str) -> None:
        """Put out one thing: as JSON if asked, else as text."""
        if self.json:
            print_json(kind, view)
        else:
            echo(text)

    def show_table(
        self,
        kind: str,
        views: Sequence[object],
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        empty: str = "",
    ) -> None:
        """Put out a list: as JSON if asked, else as a table; the note `empty` if it has no row."""
        if self.json:
            click.echo(_headed(kind, b'"items":' + msgspec.json.encode(list(views)) + b"}"))
        elif rows:
            echo_table(columns, rows)
        elif empty:
            self.say(empty)


# Names, labels, reasons and answers come from other peers: they must not drive this terminal.
_CONTROLS = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}
_CONTROLS_OF_CELL = {**_CONTROLS, ord("\t"): " ", ord("\n"): " "}
# A last column narrower than this is no column.
CELL_CHARACTERS_MIN = 20


def echo(text: str, *, err: bool = False) -> None:
    """Print text for a person."""
    click.echo(text.translate(_CONTROLS), err=err)


def echo_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, cut to the terminal if there is one, its heading bold unless NO_COLOR is set."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    heading, _, rest = table(columns, rows, width=width).partition("\n")
    bold = not os.environ.get("NO_COLOR")
    click.echo(click.style(heading, bold=True) if bold else heading)
    click.echo(rest)


def print_json(kind: str, view: object, *, err: bool = False) -> None:
    """Print one JSON object with its version and kind."""
    encoded = msgspec.json.encode(view)
    click.echo(_headed(kind, encoded[1:] if encoded != b"{}" else b"}"), err=err)


def _headed(kind: str, rest: bytes) -> str:
    comma = "" if rest == b"}" else ","
    return f'{{"v":1,"kind":"{kind}"{comma}{rest.decode()}'


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None
) -> str:
    """Return rows below their headings, each column as wide as its widest cell; empty ones go.

    With a `width`, the last column is wrapped into what is left of it; if that is too little, each
    row becomes a block of lines, one for each cell.
    """
    filled = [at for at in range(len(columns)) if any(row[at] for row in rows)] or [0]
    picked = [[row[at].translate(_CONTROLS_OF_CELL) for at in filled] for row in rows]
    heads = [columns[at] for at in filled]
    widths = [max(len(row[at]) for row in [heads, *picked]) for at in range(len(filled))]
    before = sum(widths[:-1]) + 2 * (len(widths) - 1)
    if width is not None and before + widths[-1] > width:
        if width - before < CELL_CHARACTERS_MIN:
            return _blocks(heads, picked)
        widths[-1] = width - before
    lines: list[str] = []
    for row in [heads, *picked]:
        parts = textwrap.wrap(row[-1], widths[-1]) or [""]
        start = "".join(f"{cell:{wide}}  " for cell, wide in zip(row, widths[:-1], strict=False))
        lines.append((start + parts[0]).rstrip())
        lines += [" " * before + part for part in parts[1:]]
    return "\n".join(lines)


def _blocks(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    wide = max(map(len, heads))
    blocks = [
        "\n".join(
            f"  {head:{wide}}  {cell}"
            for head, cell in zip(heads[1:], row[1:], strict=True)
            if cell
        )
        for row in rows
    ]
    named = [f"{row[0]}\n{block}" for row, block in zip(rows, blocks, strict=True)]
    return "\n".join([heads[0], *named])


def pairs(values: dict[str, str]) -> str:
    """Return `a=b c=d`."""
    return " ".join(f"{key}={value}" for key, value in values.items())


def size(count: float) -> str:
    """Return a number of bytes for people: `98.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a time span for people: `12 ms`, `3.1 s`, `5 min`, `2 h`, `3 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 2 * 86400 else f"{seconds / 86400:.0f} d"


class Duration(click.ParamType[float]):
    """`90`, `90s`, `15m`, `1h`, `2d`: seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return seconds."""
        text = str(value).strip()
        factor = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:], 0)
        try:
            seconds = float(text[:-1]) * factor if factor else float(text)
        except ValueError:
            seconds = -1.0
        if not 0 < seconds < 1e9:
            self.fail(f"{text!r} is no time span; write 90s, 15m, 1h or 2d", param, ctx)
        return seconds


class KeyValue(click.ParamType[tuple[str, str]]):
    """`key=value`."""

    name = "key=value"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """Return both."""
        if isinstance(value, tuple):
            return value  # pyright: ignore[reportUnknownVariableType]  # converted before
        key, separator, rest = str(value).partition("=")
        if not separator or not key or not rest:
            self.fail(f"{value!r} is not of the form key=value", param, ctx)
        return key, rest
