"""What became of this device's tasks?"""

import time
from pathlib import Path
from typing import get_args

import click
import msgspec

from covey.peer.views import TERMINAL_STATES, AttemptView, TaskState, TaskView

from .group import command, shared_options, shell_of
from .shell import Exit, Shell, duration, echo, pairs, print_json, table


@click.group(invoke_without_command=True, epilog="Example: covey tasks; covey tasks show last")
@shared_options()[0]
@shared_options()[1]
@click.pass_context
def tasks(context: click.Context, home: Path | None, as_json: bool) -> None:
    """Show, watch and cancel this device's tasks; without a command: list them.

    A task is named by its id, a beginning of it, or `last`.
    """
    shell = shell_of(home, as_json)
    if context.invoked_subcommand is None:
        _list(shell, None, 20)


@command(name="ls", example="covey tasks ls --state failed")
@click.option("--state", type=click.Choice(get_args(TaskState)), help="Only those in this state.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many."
)
def list_tasks(shell: Shell, state: str | None, limit: int) -> None:
    """List tasks, newest first."""
    _list(shell, state, limit)


def _list(shell: Shell, state: str | None, limit: int) -> None:
    with shell.client() as client:
        found = client.tasks(state=state, limit=limit)
    now_ms = time.time_ns() // 1_000_000
    columns = ("ID", "SKILL", "STATE", "WHERE", "TOOK", "AGE", "REASON")
    rows = [_row(task, now_ms) for task in found]
    none = f"no task is {state}" if state else 'no tasks yet; hand one in, such as: covey ask "Hi"'
    shell.show_table("TaskList", found, columns, rows, empty=none)


def _row(task: TaskView, now_ms: int) -> list[str]:
    return [
        task.id[:12],
        task.skill,
        task.state,
        task.peer_name or "",
        duration((task.ended_ms - task.submitted_ms) / 1000) if task.ended_ms else "",
        duration(max(0, now_ms - task.submitted_ms) / 1000),
        "" if task.state == "done" else task.reason,
    ]


@command(name="show", example="covey tasks show last", short_help="Show one task and its attempts.")
@click.argument("task")
@click.option("--result", is_flag=True, help="Only its result, as JSON.")
def show(shell: Shell, task: str, result: bool) -> None:
    """Show one task: its state, where it ran, why there, how long, every attempt."""
    with shell.client() as client:
        if result:
            click.echo(msgspec.json.encode(client.result(client.task(task))).decode())
            return
        found = client.task(task)
    shell.show("Task", found, _text(found))


def _text(task: TaskView) -> str:
    ended = task.ended_ms
    rows = [
        ("task", task.id),
        ("skill", task.skill),
        ("state", _state(task)),
        ("needs", _needs(task)),
        ("ran on", f"{task.peer_name}  {task.peer}" if task.peer else ""),
        ("model", task.model_used or ""),
        ("took", _took(task)),
        ("handed in", _when(task.submitted_ms)),
        ("ended", _when(ended) if ended else f"no; not after {_when(task.deadline_ms)}"),
    ]
    lines = [f"{name:10} {value}" for name, value in rows if value]
    if task.attempts:
        columns = ("", "PEER", "STATE", "TOOK", "WHY THERE", "REASON")
        lines += ["", table(columns, [_attempt(one) for one in task.attempts])]
    return "\n".join(lines)


def _state(task: TaskView) -> str:
    # Most reasons begin so: `done at line-1`.
    if task.reason.startswith(task.state):
        return task.reason
    return f"{task.state}: {task.reason}" if task.reason else task.state


def _needs(task: TaskView) -> str:
    asked = [f"zone {task.zone}"]
    asked += [f"data {task.data}"] if task.data else []
    asked += [f"model {task.model}"] if task.model else []
    asked += [f"labels {pairs(task.labels)}"] if task.labels else []
    return ", ".join(asked)


def _took(task: TaskView) -> str:
    if not task.ended_ms:
        return ""
    whole = duration((task.ended_ms - task.submitted_ms) / 1000)
    return f"{whole}, {duration(task.run_ms / 1000)} of it the skill" if task.run_ms else whole


def _attempt(one: AttemptView) -> list[str]:
    took = duration((one.ended_ms - one.offered_ms) / 1000) if one.ended_ms else ""
    return [str(one.number), one.peer_name, one.state, took, one.why, one.reason]


def _when(at_ms: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_ms / 1000))


@command(name="watch", example="covey tasks watch last", short_help="Show changes as they happen.")
@click.argument("task", required=False)
def watch(shell: Shell, task: str | None) -> None:
    """Show changes as they happen: of one TASK until it ends, or of all until Ctrl-C."""
    with shell.client() as client:
        # `last` is the newest one now, also after the connection broke.
        wanted = client.task(task).id if task else None
        for event in client.events(task=wanted):
            if event.task is not None:
                _change(shell, event.task)
                if wanted is not None and event.task.state in TERMINAL_STATES:
                    return
    raise Exit(3, "the daemon stopped; tasks that are not finished go on when it is up again")


def _change(shell: Shell, task: TaskView) -> None:
    if shell.json:
        print_json("Task", task)
        return
    echo(f"{task.id[:12]}  {task.skill}  {_state(task)}")


@command(name="cancel", example="covey tasks cancel last")
@click.argument("task")
def cancel(shell: Shell, task: str) -> None:
    """Cancel a task. A finished one stays as it is."""
    with shell.client() as client:
        ended = client.cancel(task)
    shell.show("Task", ended, f"{ended.id[:12]}  {ended.state}")


for one in (list_tasks, show, watch, cancel):
    tasks.add_command(one)
