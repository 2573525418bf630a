"""How is work handed in from the command line, waited for, and shown?"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from covey.peer.client.client import Client
from covey.peer.views import TERMINAL_STATES, TaskView

from .group import command
from .shell import Duration, Exit, KeyValue, Shell, duration, table

FIRST_LOOK_S = 1.0
LOOK_S = 2.0
INPUT_BYTES_MAX = 1 << 20
_Options = list[Callable[[Any], Any]]


def _task_options(function: Any) -> Any:
    options: _Options = [
        click.option("-m", "--model", help="Name of the model; any that fits if not given."),
        click.option("--at", "labels", type=KeyValue(), multiple=True, help="Only where so."),
        click.option("--peer", help="Only on this peer: its name or id."),
        click.option("--zone", type=click.Choice(["mesh", "device"]), default="mesh"),
        click.option("--timeout", type=Duration(), default="120s", show_default=True),
        click.option("--detach", is_flag=True, help="Hand it in, show its id, and do not wait."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def _data_options(tail: int) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        function = click.option(
            "--tail", type=click.IntRange(1, 2000), default=tail, show_default=True
        )(function)
        return click.option("--data", help="Name of a data source; runs where it is.")(function)

    return decorate


@command(example="covey ask \"What does 'stale NFS handle' mean?\"")
@click.argument("question")
@click.option("--max-tokens", type=click.IntRange(1, 512), default=128, show_default=True)
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
    asked: dict[str, Any] = {"labels": [one.strip() for one in names.split(",") if one.strip()]}
    asked |= _lines(items, data, tail)
    if threshold is not None:
        asked["threshold"] = threshold
    task = _do(shell, "classify", asked, data, **where)
    if task is None:
        return
    result = _result(task)
    rows = [
        [str(one["line"]), one["label"] or "-", f"{one['score']:.2f}"] for one in result["items"]
    ]
    shell.show("Task", task, table(("LINE", "LABEL", "SCORE"), rows))
    counts = ", ".join(f"{label} {count}" for label, count in result["counts"].items() if count)
    abstained = f", no label {result['abstained']}" if result["abstained"] else ""
    shell.say(f"{counts}{abstained}")


@command(example='covey extract --schema reading.json "pump_a reports a vibration of 9.8 mm/s"')
@click.argument("items", nargs=-1)
@click.option("--schema", "schema_file", required=True, type=click.Path(path_type=Path))
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
    options = {"data": data, "labels": dict(labels), "model": model, "peer": peer, "zone": zone}
    with shell.client() as client:
        if detach:
            task = client.submit(skill, asked, **options)
            shell.show("Task", task, task.id)
            return None
        task = client.run(skill, asked, wait_s=min(FIRST_LOOK_S, timeout), **options)
        return _finished(shell, client, task, timeout - FIRST_LOOK_S)


def _finished(shell: Shell, client: Client, task: TaskView, left_s: float) -> TaskView:
    said = ""
    try:
        while task.state not in TERMINAL_STATES and left_s > 0:
            now = task.reason or task.state
            if now != said:
                shell.say(now)
                said = now
            task = client.wait(task.id, timeout_s=min(LOOK_S, left_s))
            left_s -= LOOK_S
    except KeyboardInterrupt:
        client.close()
        client.cancel(task.id)
        raise Exit(130, f"interrupted; task {task.id[:12]} was cancelled") from None
    if task.state != "done":
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
    return {"items": [line for line in _stdin().splitlines() if line.strip()][-tail:]}


def _text(argument: str) -> str:
    return _stdin() if argument == "-" else argument


def _stdin() -> str:
    text = sys.stdin.read(INPUT_BYTES_MAX + 1)
    if len(text) > INPUT_BYTES_MAX:
        raise Exit(2, f"standard input has more than {INPUT_BYTES_MAX} characters")
    return text


def _schema(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise Exit(2, f"the schema {path} cannot be read: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise Exit(2, f"the schema {path} is not JSON: {error}") from error
