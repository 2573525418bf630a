"""How is work handed in from the command line, waited for, and shown?"""

import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from covey.peer.client.client import Client
from covey.peer.views import TERMINAL_STATES, TaskView

from .group import command
from .shell import Duration, Exit, KeyValue, Shell, duration, echo_table, print_json

FIRST_LOOK_S = 1.0
LOOK_S = 2.0
ITEM_CHARACTERS_MAX = 60
INPUT_BYTES_MAX = 1 << 20
_Options = list[Callable[[Any], Any]]


def _task_options(function: Any) -> Any:
    options: _Options = [
        click.option("-m", "--model", help="Name of the model; any that fits if not given."),
        click.option(
            "--at", "labels", type=KeyValue(), multiple=True, help="Only on a peer with this label."
        ),
        click.option("--peer", help="Only on this peer: its name or id."),
        click.option(
            "--zone",
            default="mesh",
            show_default=True,
            help="How far it may go: `mesh`, `device` (not off this one), or a zone this device is in.",
        ),
        click.option(
            "--timeout",
            type=Duration(),
            default="120s",
            show_default=True,
            help="How long to wait for the answer; the task goes on after that.",
        ),
        click.option("--detach", is_flag=True, help="Hand it in, show its id, and do not wait."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _data_options(tail: int) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        function = click.option(
            "--tail",
            type=click.IntRange(1, 2000),
            default=tail,
            show_default=True,
            help="How many lines, the last ones, of a data source or standard input.",
        )(function)
        return click.option("--data", help="Name of a data source; runs where it is.")(function)

    return decorate


@command(example="covey ask \"What does 'stale NFS handle' mean?\"")
@click.argument("question")
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 512),
    default=128,
    show_default=True,
    help="How long the answer may be; a word has 1 to 2 tokens.",
)
@_task_options
def ask(shell: Shell, question: str, max_tokens: int, **where: Any) -> None:
    """Ask a text model, here or on the peer that has it. QUESTION may be - for standard input."""
    asked = {"prompt": _text(question), "max_tokens": max_tokens}
    task = _do(shell, "chat", asked, None, **where)
    if task is not None:
        shell.show("Task", task, _result(task)["text"].strip())


@command(example="covey classify --labels install,remove,other --data shift-log --tail 20")
@click.argument("items", nargs=-1)
@click.option("--labels", "names", required=True, help="The labels, with commas between them.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Below it an item gets no label.")
@_data_options(100)
@_task_options
def classify(
    shell: Shell,
    items: tuple[str, ...],
    names: str,
    threshold: float | None,
    data: str | None,
    tail: int,
    **where: Any,
) -> None:
    """Give each of ITEMS, or each line of a data source or of standard input, a label or none."""
    lines = _lines(items, data, tail)
    asked: dict[str, Any] = {"labels": [one.strip() for one in names.split(",") if one.strip()]}
    asked |= lines
    if threshold is not None:
        asked["threshold"] = threshold
    task = _do(shell, "classify", asked, data, **where)
    if task is None:
        return
    result = _result(task)
    if shell.json:
        print_json("Task", task)
        return
    # A data source's lines stay where they are: only its labels are here.
    texts: list[str] = lines.get("items", [])
    rows: list[list[str]] = []
    for one in result["items"]:
        line: int = one["line"]
        text = _cut(texts[line - 1]) if texts else ""
        rows.append([str(line), one["label"] or "-", f"{one['score']:.2f}", text])
    echo_table(("LINE", "LABEL", "SCORE", "TEXT"), rows)
    counts = ", ".join(f"{label} {count}" for label, count in result["counts"].items() if count)
    abstained = f", no label {result['abstained']}" if result["abstained"] else ""
    shell.say(f"{counts}{abstained}")


@command(example='covey extract --schema reading.json "pump_a reports a vibration of 9.8 mm/s"')
@click.argument("items", nargs=-1)
@click.option(
    "--schema",
    "schema_file",
    required=True,
    type=click.Path(path_type=Path),
    help="A file with a JSON schema of the fields.",
)
@_data_options(20)
@_task_options
def extract(
    shell: Shell,
    items: tuple[str, ...],
    schema_file: Path,
    data: str | None,
    tail: int,
    **where: Any,
) -> None:
    """Take the schema's fields out of each of ITEMS, or of lines. Each value stands in its text."""
    asked: dict[str, Any] = {"schema": _schema(schema_file)} | _lines(items, data, tail)
    task = _do(shell, "extract", asked, data, **where)
    if task is None:
        return
    lines = [msgspec.json.encode(one["fields"]).decode() for one in _result(task)["items"]]
    shell.show("Task", task, "\n".join(lines))


@command(example="covey summarize --data shift-log --tail 50")
@click.argument("items", nargs=-1)
@click.option("--words/--no-words", default=True, help="Let the model word the facts.")
@_data_options(200)
@_task_options
def summarize(
    shell: Shell, items: tuple[str, ...], words: bool, data: str | None, tail: int, **where: Any
) -> None:
    """Say what ITEMS, or lines, contain: facts that code computed, worded by a model."""
    task = _do(shell, "summarize", {"words": words} | _lines(items, data, tail), data, **where)
    if task is None:
        return
    result = _result(task)
    shell.show("Task", task, result["text"])
    if result["worded_by"] != "model" and words:
        shell.say(f"worded by code: {result['why']}")


def _do(
    shell: Shell,
    skill: str,
    asked: dict[str, Any],
    data: str | None,
    *,
    labels: tuple[tuple[str, str], ...],
    model: str | None,
    peer: str | None,
    zone: str,
    timeout: float,
    detach: bool,
) -> TaskView | None:
    """Hand a task in and return it done; None if it was only handed in."""
    options = {
        "data": data,
        "labels": dict(labels),
        "model": model,
        "peer": peer,
        "zone": zone,
        # Makes it safe to repeat: after a broken connection, and after Ctrl-C.
        "key": f"cli-{secrets.token_hex(16)}",
    }
    with shell.client() as client:
        if detach:
            task = client.submit(skill, asked, **options)
            shell.show("Task", task, task.id)
            return None
        try:
            task = _waited(shell, client, client.submit(skill, asked, **options), timeout)
        except KeyboardInterrupt:
            # Handed in again under its key: it may have been taken just before.
            ended = client.cancel(client.submit(skill, asked, **options).id)
            raise Exit(130, f"interrupted; task {ended.id[:12]} is {ended.state}") from None
    return _finished(shell, task)


def _waited(shell: Shell, client: Client, task: TaskView, left_s: float) -> TaskView:
    """Return the task once it has ended, or as it stands after left_s; says what it waits for."""
    said = ""
    step_s = min(FIRST_LOOK_S, left_s)
    while task.state not in TERMINAL_STATES and left_s > 0:
        task = client.wait(task.id, timeout_s=step_s)
        left_s -= step_s
        step_s = min(LOOK_S, left_s)
        now = task.reason or task.state
        if task.state not in TERMINAL_STATES and left_s > 0 and now != said:
            shell.say(now)
            said = now
    return task


def _finished(shell: Shell, task: TaskView) -> TaskView:
    if task.state != "done":
        if shell.json:
            print_json("Task", task)
        raise _not_done(task)
    where = task.attempts[-1] if task.attempts else None
    took = duration(((task.ended_ms or task.submitted_ms) - task.submitted_ms) / 1000)
    model = f" with {task.model_used}" if task.model_used else ""
    why = f": {where.why}" if where is not None else ""
    shell.say(f"task {task.id[:12]}  {took}  on {task.peer_name}{model}{why}")
    return task


def _not_done(task: TaskView) -> Exit:
    name = task.id[:12]
    if task.state == "cancelled":
        return Exit(9, f"task {name} was cancelled: {task.reason}")
    if task.state in TERMINAL_STATES:
        return Exit(7 if task.state == "expired" else 1, f"task {name} {task.state}: {task.reason}")
    later = f"it goes on; see: covey tasks show {name}, or end it: covey tasks cancel {name}"
    code = 8 if task.state == "queued" else 7
    return Exit(code, f"task {name} is still {task.state}: {task.reason}; {later}")


def _result(task: TaskView) -> dict[str, Any]:
    result: dict[str, Any] = task.result
    return result


def _lines(items: tuple[str, ...], data: str | None, tail: int) -> dict[str, Any]:
    if data is not None:
        if items:
            raise Exit(2, "give either items or --data, not both")
        return {"tail": tail}
    if items and items != ("-",):
        return {"items": list(items)}
    if sys.stdin.isatty():
        raise Exit(2, "there is nothing to work on: give items, --data NAME, or standard input")
    lines = [line for line in _stdin().splitlines() if line.strip()][-tail:]
    if not lines:
        raise Exit(2, "standard input holds no line; give items, --data NAME, or lines")
    return {"items": lines}


def _text(argument: str) -> str:
    if argument == "-" and sys.stdin.isatty():
        raise Exit(2, "there is no question: '-' means standard input, and that is this terminal")
    return _stdin() if argument == "-" else argument


def _stdin() -> str:
    data = sys.stdin.buffer.read(INPUT_BYTES_MAX + 1)
    if len(data) > INPUT_BYTES_MAX:
        raise Exit(
            2,
            f"standard input has more than {INPUT_BYTES_MAX} bytes; cut it, such as with: tail, or "
            "name it as a data source: [data] in config.toml",
        )
    # Logs hold bytes of any kind; one that is no letter is no reason to stop.
    return data.decode(errors="replace")


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= ITEM_CHARACTERS_MAX else text[: ITEM_CHARACTERS_MAX - 1] + "…"


def _schema(path: Path) -> Any:
    try:
        return msgspec.json.decode(_stdin() if str(path) == "-" else path.read_bytes())
    except OSError as error:
        raise Exit(2, f"the schema {path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise Exit(2, f"the schema {path} is not JSON: {error}") from error
