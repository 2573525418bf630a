"""How does a device enter a mesh from the command line? With a token, or by asking at an address."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .group import command
from .shell import Duration, Exit, Shell, duration

if TYPE_CHECKING:
    # Imported by the command alone: it brings the whole network with it.
    from covey.peer.joining import Joined, Patience

TOKEN_BYTES_MAX = 1 << 16


@command(example="covey join < token")
@click.argument("token", metavar="TOKEN|ADDRESS", required=False)
@click.option(
    "--at",
    metavar="ADDRESS",
    help="With a token whose inviter is away: ask this admin, who has to say yes.",
)
@click.option(
    "--words", help="Without a token: the six words, compared already, instead of a question."
)
@click.option("--timeout", type=Duration(), help="How long to wait for an admin's yes.")
def join(
    shell: Shell, token: str | None, at: str | None, words: str | None, timeout: float | None
) -> None:
    """Join a mesh: with a token (itself, a file, standard input), or by asking at an admin's ADDRESS.

    An address is like /ip4/192.0.2.1/tcp/4001/p2p/12D3..., as covey status shows it. Both sides then
    show six words; if they are the same, both people say yes: here, and there with covey approve.
    """
    from covey.peer.joining import Patience, is_address, join_mesh

    patience = Patience(timeout if timeout is not None else math.inf, shell.say)
    try:
        if token is not None and is_address(token):
            if at is not None:
                raise Exit(2, "--at is for a token; an address needs none")
            _ask(shell, token, words, patience)
        else:
            if words is not None:
                raise Exit(2, "--words is for joining by an address; a token needs none")
            _show(shell, join_mesh(shell.path, _token(token), at=at, patience=patience))
    except KeyboardInterrupt:
        raise Exit(130, "interrupted; the same command goes on where this ended") from None


def _ask(shell: Shell, address: str, typed: str | None, patience: "Patience") -> None:
    from covey.identity.words import same_words
    from covey.peer.joining import join_met, meet

    met = meet(shell.path, address)
    view = {"mesh": met.mesh.hex(), "name": met.mesh_name, "admin": met.door.admin}
    shown = f"mesh {met.mesh_name}, admin {met.door.admin}\n\n    {met.words}\n"
    if typed is not None:
        if not same_words(typed, met.words):
            raise Exit(5, f"these are not the words of {met.mesh_name}: they are: {met.words}")
    elif shell.json or not sys.stdin.isatty():
        shell.show("Words", {**view, "words": met.words}, shown)
        raise Exit(7, f'compare the words with covey pending there; then: --words "{met.words}"')
    else:
        shell.say(f"{shown}\nOn the admin's device, covey pending shows the same words.")
        if not click.confirm("Are they the same?", err=True):
            raise Exit(5, "not joined: somebody may stand in between, or it is another device")
    _show(shell, join_met(shell.path, met, patience=patience))


def _show(shell: Shell, joined: "Joined") -> None:
    from covey.peer.clock_check import REMEDY, SKEW_MS_MAX

    mesh = joined.mesh
    inviter = mesh.bootstrap[0][0]
    view: dict[str, object] = {"mesh": mesh.id.hex(), "name": mesh.name, "inviter": inviter}
    view["clock_skew_ms"] = joined.skew_ms
    shell.show("Joined", view, f"joined mesh {mesh.name}  {mesh.id.hex()}")
    if abs(joined.skew_ms) > SKEW_MS_MAX:
        way = "behind" if joined.skew_ms > 0 else "ahead of"
        off = duration(abs(joined.skew_ms) / 1000)
        shell.say(f"warning: this device's clock is {off} {way} the inviter's; {REMEDY} first")
    shell.say("next: covey up -d")


def _token(given: str | None) -> str:
    if given is None or given == "-":
        if sys.stdin.isatty():
            raise Exit(2, "give a token, a file with one, or a token on standard input")
        token = sys.stdin.buffer.read(TOKEN_BYTES_MAX).decode(errors="replace").strip()
        if not token:
            raise Exit(2, "standard input was empty; give a token: make one with: covey invite")
        return token
    if not given.startswith("covey") and _is_file(given):
        with Path(given).open("rb") as file:
            return file.read(TOKEN_BYTES_MAX).decode(errors="replace").strip()
    return given.strip()


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        # Too long for a path, or with a NUL in it.
        return False
