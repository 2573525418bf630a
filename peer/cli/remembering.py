"""How is something remembered, and recalled, from the command line?"""

import hashlib
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click
import msgspec

from covey.peer.memory.views import EntryView, LifetimeName, SourceView, WriteRequest, WriteType

from .group import command
from .memory_text import hit_text, many, short, what, when
from .shell import Duration, Exit, Shell, echo, print_json

# What one request to the daemon holds, with room for what JSON adds.
TEXT_BYTES_MAX = 1 << 20
BLOCK_BYTES = 1 << 20


@command(example='covey remember plant/pumps "P-12: vibration precedes seal failure" --ttl 90d')
@click.argument("namespace", required=False)
@click.argument("text", required=False)
@click.option(
    "--type",
    "type_",
    type=click.Choice(get_args(WriteType)),
    default="note",
    show_default=True,
    help="What it is; all but a note stand under a key.",
)
@click.option("--key", help="What it is about, such as P-12/vibration.")
@click.option(
    "--from",
    "sources",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A file that it was made from: its name, digest and size go along, never its content.",
)
@click.option(
    "--summarize",
    is_flag=True,
    help="Let this device's model word a summary of the text, or of --from; only that is shared.",
)
@click.option("--ttl", type=Duration(), help="How long its text is kept, such as 90d or 12h.")
@click.option(
    "--lifetime",
    type=click.Choice(get_args(LifetimeName)),
    help="How long its header is kept: 1, 90 or 400 days; as the type needs if not given.",
)
@click.option(
    "--zone",
    default="mesh",
    show_default=True,
    help="How far it may go: `mesh`, `device` (not off this one), or a zone this device is in.",
)
@click.option(
    "--keep", type=click.IntRange(1, 1000), help="Of a log: so many of this peer's lines."
)
@click.option(
    "--renew",
    "renews",
    metavar="ID",
    help="Let a note of this peer's last on; without NAMESPACE and TEXT as it is, where it is.",
)
def remember(
    shell: Shell, namespace: str | None, text: str | None, sources: tuple[Path, ...], **asked: Any
) -> None:
    """Remember TEXT in NAMESPACE, and share it within its zone.

    Without TEXT: standard input; with --summarize, the file of --from; for a counter, 1; with --renew,
    what the note says. The value of a register may be JSON. A negative number comes after --.
    """
    renews: str | None = asked["renews"]
    if namespace is None and renews is None:
        raise Exit(2, "name where to remember it, such as: covey remember plant/pumps TEXT")
    type_: WriteType = asked["type_"]
    read = [_read(path) for path in sources]
    raw, summarize = text, asked["summarize"]
    if raw is None and summarize and sources:
        if len(sources) > 1:
            raise Exit(2, "one file at a time is summarized; give one --from, or a text")
        raw = _text_of(*sources)
    elif raw == "-" or (raw is None and renews is None):
        raw = "1" if type_ == "counter" and raw is None else _standard_input()
    request = WriteRequest(
        namespace=namespace or "",
        zone=asked["zone"],
        type=type_,
        key=asked["key"],
        value=None if raw is None else _value(type_, raw),
        keep=asked["keep"],
        ttl_s=asked["ttl"],
        lifetime=asked["lifetime"],
        sources=tuple(read),
        renews=renews,
        summarize=summarize,
    )
    _say_what_stays(shell, read, summarize=summarize)
    with shell.client() as client:
        if namespace is None and renews is not None:
            held = client.memory_entry(renews)
            request = msgspec.structs.replace(request, namespace=held.namespace, zone=held.zone)
        (entry,) = client.remember_all([request])
    # A note's text was just typed; what became of a count, or of a raw text, is news.
    is_news = summarize or raw is None or type_ != "note"
    shell.show("Entry", entry, _remembered(entry, is_news=is_news))


def _remembered(entry: EntryView, *, is_news: bool) -> str:
    reach = "on this device only" if entry.zone == "device" else f"shared within {entry.zone}"
    line = f"{short(entry.id)}  in {entry.namespace}, {reach}, until {when(entry.expires_ms)}"
    return f"{what(entry)}\n{line}" if is_news else line


def _say_what_stays(shell: Shell, read: Sequence[SourceView], *, summarize: bool) -> None:
    for one in read:
        stays = "only the summary is shared" if summarize else "its content stays here"
        shell.say(f"read {one.name} ({many(one.observations, 'line')}) here; {stays}")


def _read(path: Path) -> SourceView:
    """Return what is told of a file; it is read whole, a block at a time."""
    digest, size_bytes, lines, rest = hashlib.sha256(), 0, 0, b""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                digest.update(block)
                size_bytes += len(block)
                *whole, rest = (rest + block).split(b"\n")
                lines += sum(1 for line in whole if line.strip())
    except OSError as error:
        raise Exit(2, f"{path} cannot be read: {error.strerror or error}") from error
    lines += bool(rest.strip())
    return SourceView(
        name=path.name, sha256=digest.hexdigest(), size_bytes=size_bytes, observations=lines
    )


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise Exit(2, f"{path} cannot be read: {error.strerror or error}") from error
    return _decoded(data, str(path))


def _standard_input() -> str:
    if sys.stdin.isatty():
        raise Exit(2, "there is nothing to remember: give a text, or standard input")
    text = _decoded(sys.stdin.buffer.read(TEXT_BYTES_MAX + 1), "standard input").strip()
    if not text:
        raise Exit(2, "standard input was empty; give a text to remember")
    return text


def _decoded(data: bytes, name: str) -> str:
    if len(data) > TEXT_BYTES_MAX:
        raise Exit(2, f"{name} has more than {TEXT_BYTES_MAX} bytes; cut it, such as with: tail")
    return data.decode(errors="replace")


def _value(type_: WriteType, text: str) -> Any:
    if type_ not in ("register", "shared"):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError):
        return text


@command(example='covey recall "why do seals fail" --namespace "plant/*"')
@click.argument("question")
@click.option(
    "-k", "k", type=click.IntRange(1, 100), default=5, show_default=True, help="At most so many."
)
@click.option("--namespace", help="Only in this one; * stands for anything, as in plant/*.")
@click.option("--author", help="Only what this peer wrote: its name or id.")
def recall(shell: Shell, question: str, k: int, namespace: str | None, author: str | None) -> None:
    """Show what this device remembers that answers QUESTION, best first, with who says so.

    Nothing is asked of others: all that this device may read is here already.
    """
    with shell.client() as client:
        found = client.recall(question, k=k, namespace=namespace, author=author)
    if shell.json:
        print_json("Recall", found)
    now_ms = time.time_ns() // 1_000_000
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if found.hits and not shell.json:
        hits = enumerate(found.hits, start=1)
        echo("\n".join(hit_text(number, hit, now_ms, width) for number, hit in hits))
    for note in found.notes:
        shell.say(f"note: {note}")
    if not found.hits:
        where = f" in {namespace}" if namespace else ""
        whose = f" by {author}" if author else ""
        held = many(found.searched, "text is", "texts are")
        raise Exit(1, f"nothing found{where}{whose}; {held} held here: covey memory ls")
