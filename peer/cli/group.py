"""Which commands are there, what do they share, and with which exit code do they end?

The commands' modules are imported when they are needed: help and `status` must not wait for them.
"""

import difflib
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from covey.identity.errors import (
    Conflict,
    CoveyError,
    Malformed,
    Misuse,
    NotAdmitted,
    NotFound,
    Unavailable,
)
from covey.inference.errors import BadModel, ModelError
from covey.peer.client.client import default_home

from .shell import EXIT_CODES, Exit, Shell, echo, print_json

_COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("setup:init", "Make this device a peer: key, configuration, perhaps a new mesh."),
    "up": ("running:up", "Start the daemon."),
    "down": ("running:down", "End the daemon."),
    "daemon": ("running:daemon", "Run the daemon in the foreground, as a service manager does."),
    "invite": ("setup:invite", "Make a token that lets other devices join."),
    "join": ("joining:join", "Join a mesh with a token, or by asking at an address."),
    "pending": ("members:pending", "Show who waits to be let in."),
    "approve": ("members:approve", "Let in who waits."),
    "deny": ("members:deny", "Tell who waits no."),
    "members": ("members:members", "Show who is, or was, a member of the mesh."),
    "admit": ("members:admit", "Let a peer in again, change its zones, make it an admin."),
    "revoke": ("members:revoke", "Put a peer out of the mesh."),
    "renew": ("members:renew", "Renew a certificate now."),
    "peers": ("looking:peers", "Show every peer, and what it offers."),
    "status": ("looking:status", "Show this device at a glance."),
    "doctor": ("looking:doctor", "Look for what is wrong, or will be."),
    "ask": ("asking:ask", "Ask a text model, here or on the peer that has it."),
    "classify": ("asking:classify", "Give lines labels, next to the data."),
    "extract": ("asking:extract", "Take fields out of text, each one found in it."),
    "summarize": ("asking:summarize", "Say what lines contain; every number is checked."),
    "remember": (
        "remembering:remember",
        "Share what was learned: notes, values, counts, sets, logs.",
    ),
    "recall": ("remembering:recall", "Find what anyone remembered that answers a question."),
    "memory": ("memory:memory", "Look into the shared memory, compare it, forget."),
    "tasks": ("tasks:tasks", "Show, watch and cancel this device's tasks."),
    "models": ("models:models", "Show, fetch, add and remove this device's models."),
    "version": ("looking:version", "Show covey's version."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        found: click.Command = getattr(
            importlib.import_module(f"covey.peer.cli.{module}"), attribute
        )
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        near = difflib.get_close_matches(args[0], _COMMANDS, n=1)
        if args[0] not in _COMMANDS and near and not args[0].startswith("-"):
            ctx.fail(f"No such command {args[0]!r}. Did you mean {near[0]!r}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Who read our output has enough of it. (click would end with 1.)
            raise Exit(0) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, about) for name, (_, about) in _COMMANDS.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
def covey() -> None:
    """A peer-to-peer network of AI agents with no fixed coordinator.

    Each command works on the peer in --home, or COVEY_HOME, or ~/.local/share/covey. Data goes to
    standard output, everything else to standard error.
    """


def command(
    *, example: str, name: str | None = None, short_help: str | None = None
) -> Callable[[Callable[..., None]], click.Command]:
    """Make a click command with the options that all share; the function is given a `Shell`."""

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(home: Path | None, as_json: bool, **values: Any) -> None:
            function(shell_of(home, as_json), **values)

        wrapped: Any = run
        for option in reversed(shared_options()):
            wrapped = option(wrapped)
        make = click.command(
            name, epilog=f"Example: {example}", short_help=short_help, cls=click.Command
        )
        return make(wrapped)

    return decorate


def shell_of(home: Path | None, as_json: bool) -> Shell:
    """Return the shell of a command; a group's own options hold for its commands, too."""
    context = click.get_current_context()
    outer: Shell | None = context.obj
    path = home.absolute() if home else outer.path if outer else default_home()
    shell = Shell(path, as_json or (outer is not None and outer.json))
    context.obj = shell
    return shell


def shared_options() -> list[Callable[[Any], Any]]:
    """Return the options that every command has."""
    return [
        click.option(
            "--home",
            type=click.Path(path_type=Path, file_okay=False),
            help="The peer's folder; COVEY_HOME if not given.",
        ),
        click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
    ]


def main() -> NoReturn:
    """Run the command line and end the process."""
    for stream in (sys.stdout, sys.stderr):
        # A letter that this terminal's encoding does not have must not end the command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        covey.main(prog_name="covey", standalone_mode=False)
    except click.exceptions.Exit as end:
        _end(end.exit_code)
    except click.ClickException as error:
        if _wants_json():
            _say(error.format_message(), error.exit_code)
        else:
            error.show()
        _end(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _say("interrupted", 130)
        _end(130)
    except Exit as end:
        _say(end.message, end.code)
        _end(end.code)
    except UnicodeEncodeError:
        _say("an argument is not valid UTF-8", 2)
        _end(2)
    except Exception as error:
        known = covey_error_in(error)
        if known is not None:
            code = exit_code(known)
            _say(str(known), code)
            _end(code)
        if not isinstance(error, OSError):
            raise
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}", 8)
        _end(8)
    _end(0)


def covey_error_in(error: BaseException) -> CoveyError | ModelError | None:
    """Return the covey error in `error`, or in the groups that nurseries make of it."""
    if isinstance(error, CoveyError | ModelError):
        return error
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return next((one for one in map(covey_error_in, inner) if one is not None), None)


def exit_code(error: CoveyError | ModelError) -> int:
    """Return the stable exit code for an error."""
    own: int | None = getattr(error, "exit_code", None)
    if own is not None:
        return own
    codes: tuple[tuple[type[Exception], int], ...] = (
        (NotFound, 4),
        (NotAdmitted, 5),
        (Conflict, 6),
        (Unavailable, 8),
        (Misuse, 2),
        (Malformed, 2),
        (BadModel, 2),
    )
    return next((code for kind, code in codes if isinstance(error, kind)), 1)


def _wants_json() -> bool:
    arguments = sys.argv[1:]
    return "--json" in (arguments[: arguments.index("--")] if "--" in arguments else arguments)


def _say(message: str, code: int) -> None:
    if not message:
        return
    if _wants_json():
        print_json("Error", {"message": message, "exit_code": code}, err=True)
    else:
        echo(f"covey: {message}", err=True)


def _end(code: int) -> NoReturn:
    if sys.stdout is None:  # pyright: ignore[reportUnnecessaryComparison]  # started with it closed
        sys.exit(code)
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _say(f"standard output: {error.strerror or error}", 8)
        code = code or 8
    sys.exit(code)
