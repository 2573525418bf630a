"""What is in the shared memory of this device, and how is it kept?"""

import os
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import click
import msgspec

from covey.peer.client.client import Client
from covey.peer.memory.views import ExportedEntry, MemoryChange

from .group import command, shared_options, shell_of
from .memory_text import (
    COMPARED,
    HELD,
    LISTED,
    WRITTEN,
    checked,
    compared,
    entry_text,
    forgotten,
    held,
    listed,
    many,
    place,
    policy_text,
    short,
    stats_text,
    value_text,
    what,
    when,
    written,
)
from .shell import Duration, Exit, Shell, echo, echo_table, print_json

REFUSALS_SHOWN = 10
PROMISE = (
    "it goes from every honest peer, also from those away now, as they hear of it; a hostile one "
    "may keep its copy, and nobody unlearns what was read"
)


@click.group(invoke_without_command=True, epilog="Example: covey memory; covey memory stats")
@shared_options()[0]
@shared_options()[1]
@click.pass_context
def memory(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Look into the shared memory, compare it with others, and forget; without a command: list it.

    An entry is named by its id or a beginning of it; a namespace to look in may be a pattern: plant/*.
    """
    shell = shell_of(home, as_json)
    if context.invoked_subcommand is None:
        _list(shell, limit=20)


# Looking


@command(name="ls", example='covey memory ls --namespace "plant/*" --author line-7')
@click.option("--namespace", help="Only in this one; * stands for anything, as in plant/*.")
@click.option("--zone", help="Only in this zone.")
@click.option("--author", help="Only what this peer wrote: its name or id.")
@click.option("--all", "all_states", is_flag=True, help="Also what is not shown any more, and why.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many."
)
def list_entries(shell: Shell, **asked: Any) -> None:
    """List what is remembered, newest first."""
    _list(shell, **asked)


def _list(shell: Shell, *, limit: int, **asked: Any) -> None:
    with shell.client() as client:
        found = client.memory_entries(limit=limit, **asked)
    now_ms = _now_ms()
    none = 'nothing is remembered here; begin with: covey remember NAMESPACE "TEXT"'
    if any(asked.values()):
        none = "nothing here is like that; see: covey memory ls --all"
    rows = [listed(one, now_ms) for one in found]
    shell.show_table("EntryList", found, LISTED, rows, empty=none)
    if len(found) == limit:
        shell.say(f"the newest {limit}; more with: --limit")


@command(name="show", example="covey memory show 3f2a9c01be77")
@click.argument("entry")
def show(shell: Shell, entry: str) -> None:
    """Show one entry: what it says, who wrote it when, and from what."""
    with shell.client() as client:
        found = client.memory_entry(entry)
    shell.show("Entry", found, entry_text(found, _now_ms()))


def _place_arguments(function: Any) -> Any:
    function = click.option("--zone", help="Only in this zone.")(function)
    return click.argument("place", nargs=-1, required=True, metavar="[NAMESPACE] KEY")(function)


def _asked(words: tuple[str, ...]) -> tuple[str | None, str]:
    *before, key = words
    if len(before) > 1:
        raise Exit(2, "give a key, or a namespace and a key")
    return (before[0] if before else None), key


@command(name="get", example="covey memory get plant/pumps P-12/setpoint")
@_place_arguments
def get(shell: Shell, place: tuple[str, ...], zone: str | None) -> None:
    """Show what stands under KEY: value, conflicts, and each author's part in it."""
    namespace, key = _asked(place)
    with shell.client() as client:
        found = client.memory_value(key, namespace=namespace, zone=zone)
    now_ms = _now_ms()
    if shell.json:
        shell.show_table("ValueList", found, (), [])
        return
    echo("\n".join(value_text(one, now_ms) for one in found))


@command(name="history", example="covey memory history P-12/setpoint")
@_place_arguments
def history(shell: Shell, place: tuple[str, ...], zone: str | None) -> None:
    """Show the newest that each author wrote under KEY, and what became of it."""
    namespace, key = _asked(place)
    with shell.client() as client:
        found = client.memory_history(key, namespace=namespace, zone=zone)
    shell.show_table("EntryList", found, WRITTEN, [written(one) for one in found])


@command(name="stats", example="covey memory stats --json")
def stats(shell: Shell) -> None:
    """Show how much is held, by namespace, and how far others hold the same."""
    with shell.client() as client:
        found = client.memory_stats()
    if shell.json:
        print_json("MemoryStats", found)
        return
    now_ms = _now_ms()
    if found.namespaces:
        echo_table(HELD, [held(one, now_ms) for one in found.namespaces])
    echo(stats_text(found))


@command(name="watch", example="covey memory watch")
def watch(shell: Shell) -> None:
    """Show what is remembered, and what goes, as it happens, until Ctrl-C."""
    with shell.client() as client:
        for change in client.memory_watch():
            _change(shell, change)
    raise Exit(3, "the daemon stopped; what is remembered is there again when it is up")


def _change(shell: Shell, change: MemoryChange) -> None:
    if shell.json:
        print_json("MemoryChange", change)
        return
    now = time.strftime("%H:%M:%S")
    for entry in change.added:
        echo(f"{now}  + {short(entry.id)}  {place(entry)}  {entry.author_name}  {what(entry)}")
    for gone in change.gone:
        echo(f"{now}  - {short(gone)}  {change.namespace}")


# Forgetting


class Moment(click.ParamType[int]):
    """`90d` ago, `2026-11-24`, `2026-11-24T08:30`: unix milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return unix milliseconds."""
        from datetime import datetime

        text = str(value).strip()
        if text[:4].isdigit() and text[4:5] == "-":
            try:
                # Without an offset, it is meant as the clock on this wall shows it.
                return int(datetime.fromisoformat(text).astimezone().timestamp() * 1000)
            except (ValueError, OverflowError, OSError):
                pass
        try:
            span_s = Duration().convert(text.removesuffix(" ago"), param, ctx)
        except click.BadParameter:
            self.fail(
                f"{text!r} is no time; write 2026-11-24, 2026-11-24T08:30, or 90d for 90 days ago",
                param,
                ctx,
            )
        return _now_ms() - int(span_s * 1000)


@command(name="forget", example="covey memory forget --author line-7 --before 90d")
@click.argument("ids", nargs=-1)
@click.option("--author", help="All that this peer wrote: its name or id.")
@click.option(
    "--before",
    type=Moment(),
    help="With --author: what it wrote before this time, such as 2026-11-24, or 90d for 90 days ago.",
)
@click.option("--namespace", help="With --author: only in this one; a pattern as plant/* is taken.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask on a terminal.")
def forget(
    shell: Shell,
    ids: tuple[str, ...],
    author: str | None,
    before: int | None,
    namespace: str | None,
    yes: bool,
) -> None:
    """Let the whole mesh forget entries: by their IDS, or an author's.

    A member can have its own forgotten, an admin anybody's. It cannot be undone.
    """
    if bool(ids) == bool(author):
        raise Exit(2, "name what to forget: IDS, or --author")
    if author is None and (before is not None or namespace is not None):
        raise Exit(2, "--before and --namespace go with --author")
    with shell.client() as client:
        if not yes and sys.stdin.isatty():
            _confirm(client, ids, author, before, namespace)
        done = client.forget(*ids, author=author, before_ms=before, namespace=namespace)
    shell.show("Forgotten", done, forgotten(done))
    shell.say(PROMISE)


def _confirm(
    client: Client,
    ids: Sequence[str],
    author: str | None,
    before: int | None,
    namespace: str | None,
) -> None:
    for name in ids:
        entry = client.memory_entry(name)
        echo(f"{short(entry.id)}  {entry.author_name}  {place(entry)}  {what(entry)}", err=True)
    asked = "this" if len(ids) == 1 else f"these {len(ids)} entries"
    if author is not None:
        where = f"in {namespace}" if namespace else "in every namespace"
        until = f"before {when(before)}" if before is not None else "until now"
        asked = f"all that {author} wrote {until} {where}"
    if not click.confirm(f"forget {asked}, everywhere and for good?", err=True):
        raise Exit(130, "nothing was forgotten")


# Who may write


@command(name="policy", example="covey memory policy plant/pumps --writers admin --entries 500")
@click.argument("namespace")
@click.option("--zone", default="mesh", show_default=True, help="Of this zone.")
@click.option(
    "--writers",
    multiple=True,
    help="Who may write: admin, member, zone:NAME or peer:NAME; several times, who fits one may.",
)
@click.option(
    "--entries", type=click.IntRange(1, 10_000), help="Held of one author and lifetime at most."
)
@click.option(
    "--ttl", type=Duration(), help="A text ends so long after it is written at the latest."
)
@click.option("--open", "is_open", is_flag=True, help="As without a policy.")
def policy(
    shell: Shell,
    namespace: str,
    zone: str,
    writers: tuple[str, ...],
    entries: int | None,
    ttl: float | None,
    is_open: bool,
) -> None:
    """Show who may write in NAMESPACE, and how much, or say so anew.

    With options an admin says so: what is not named is open from then on. It holds for what is
    written after it. Limit namespaces of notes and logs: counters and sets lose values by it.
    """
    limits = bool(writers) or entries is not None or ttl is not None
    if is_open and limits:
        raise Exit(2, "--open lifts the policy, and goes with no other limit")
    with shell.client() as client:
        if is_open or limits:
            found = client.set_memory_policy(
                namespace,
                zone=zone,
                writers=writers or None,
                entries=entries,
                ttl_s=max(1, int(ttl)) if ttl is not None else None,
            )
        else:
            found = client.memory_policy(namespace, zone=zone)
    shell.show("Policy", found, policy_text(found, _now_ms()))
    if not found.may_write:
        shell.say("note: this device itself may not write there")


# Taking along


@command(name="export", example="covey memory export -o memory.jsonl")
@click.option("--namespace", help="Only of this one; * stands for anything, as in plant/*.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file, written whole or not at all; standard output if not given.",
)
def export(shell: Shell, namespace: str | None, output: Path | None) -> None:
    """Write out what is held, as it was signed: JSON lines. Nothing of zone device."""
    count = 0
    with shell.client() as client, _written_whole(output) as file:
        for entry in client.memory_export(namespace):
            click.echo(msgspec.json.encode(entry), file=file)
            count += 1
    text = many(count, "entry", "entries")
    if output is None:
        shell.say(text)
    else:
        shell.show("Exported", {"entries": count, "file": str(output)}, f"{text} in {output}")


@contextmanager
def _written_whole(path: Path | None) -> Generator[IO[bytes] | None]:
    """Give a file that has its name only once all is in it; None is standard output."""
    if path is None:
        yield None
        return
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@command(name="import", example="covey memory import memory.jsonl")
@click.argument("file", type=click.Path(path_type=Path))
def import_(shell: Shell, file: Path) -> None:
    """Take in what `covey memory export` wrote into FILE, or - for standard input.

    Each entry is judged as if a peer had sent it.
    """
    given = 0

    def counted() -> Iterator[ExportedEntry]:
        nonlocal given
        for one in _exported(file):
            given += 1
            yield one

    with shell.client() as client:
        done = client.memory_import(counted())
    known = 0 if done.refused else given - done.taken
    rest = f"; {known} are known here: held, replaced or forgotten" if known else ""
    shell.show("Imported", done, f"took in {many(done.taken, 'entry', 'entries')}{rest}")
    for why in done.refused[1:REFUSALS_SHOWN]:
        shell.say(f"refused: {why}")
    if done.refused:
        count = many(len(done.refused), "entry was", "entries were")
        raise Exit(1, f"{count} refused, such as: {done.refused[0]}")


def _exported(path: Path) -> Iterator[ExportedEntry]:
    decoder = msgspec.json.Decoder(ExportedEntry)
    try:
        with sys.stdin.buffer if str(path) == "-" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _line(decoder, line, f"line {number} of {path}")
    except OSError as error:
        raise Exit(2, f"{path} cannot be read: {error.strerror or error}") from error


def _line(decoder: msgspec.json.Decoder[ExportedEntry], line: bytes, name: str) -> ExportedEntry:
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Exit(2, f"{name} is none of an export: {error}") from error


# Others


@command(name="sync", example="covey memory sync --with line-7")
@click.option(
    "--with", "peer", help="Only with this peer: its name or id; every linked one if not."
)
@click.option("--audit", is_flag=True, help="Also finds what crafted entries would hide; slower.")
@click.option(
    "--timeout", type=Duration(), default="30s", show_default=True, help="How long to wait at most."
)
def sync(shell: Shell, peer: str | None, audit: bool, timeout: float) -> None:
    """Compare with others now, and take what differs.

    Shows what differed, what moved, how many bytes it took, and in how many rounds.
    """
    with shell.client() as client:
        done = client.memory_sync(peer, timeout_s=min(timeout, 600.0), audit=audit)
    if not done and not shell.json:
        raise Exit(8, "no peer is linked now; what is new here reaches the others when they are")
    shell.show_table("ExchangeList", done, COMPARED, [compared(one) for one in done])
    apart = [one.step for one in done if one.step.state != "in step"]
    for step in apart:
        shell.say(step.sentence)
    if apart:
        going_on = any(step.state in ("comparing", "behind") for step in apart)
        names = ", ".join(step.peer_name for step in apart)
        raise Exit(7 if going_on else 8, f"not in step yet with {names}; see: covey status")


@command(name="verify", example="covey memory verify")
def verify(shell: Shell) -> None:
    """Check every signature, certificate and index of what is held against the store."""
    with shell.client() as client:
        done = client.memory_verify()
    shell.show("Verified", done, checked(done))
    if done.problems:
        raise Exit(1, f"{many(len(done.problems), 'problem')}; the first: {done.problems[0]}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


for one in (
    list_entries,
    show,
    get,
    history,
    forget,
    policy,
    export,
    import_,
    stats,
    sync,
    verify,
    watch,
):
    memory.add_command(one)
