"""How does a device become a peer, and get others into its mesh?"""

import os
import sys
from pathlib import Path

import click

from covey.inference.engine import AUTO, ENGINES

from .group import command
from .shell import Duration, Exit, KeyValue, Shell, duration

TOKEN_BYTES_MAX = 1 << 16


@command(example="covey init --name line-1 --label line=1 --data shift-log=/var/log/dpkg.log")
@click.option("--name", required=True, help="What people call this peer; others see it.")
@click.option("--found", metavar="MESH", help="Found a new mesh of this name.")
@click.option("--zone", "zones", multiple=True, help="With --found: a zone that this peer is in.")
@click.option("--label", "labels", type=KeyValue(), multiple=True, help="Finds this peer.")
@click.option(
    "--data", "data", type=KeyValue(), multiple=True, help="Name a file or directory: NAME=PATH."
)
@click.option(
    "--engine",
    type=click.Choice([AUTO, *ENGINES]),
    default=AUTO,
    show_default=True,
    help="What runs models where several engines can.",
)
@click.option(
    "--listen",
    metavar="ADDRESS[:PORT]",
    default=lambda: os.environ.get("COVEY_LISTEN", "0.0.0.0"),
    show_default="COVEY_LISTEN or 0.0.0.0",
    help="Where other peers reach this one; the port is chosen once if not given.",
)
def init(
    shell: Shell,
    name: str,
    found: str | None,
    zones: tuple[str, ...],
    labels: tuple[tuple[str, str], ...],
    data: tuple[tuple[str, str], ...],
    engine: str,
    listen: str,
) -> None:
    """Make this device a peer.

    Writes its key and configuration and, with --found, a new mesh whose only admin it is.
    """
    from covey.peer.clock import Clock, SystemEntropy
    from covey.peer.founding import begin
    from covey.peer.home import Home

    home = Home(shell.path)
    begun = begin(
        home,
        name=name,
        found=found,
        zones=zones,
        labels=dict(labels),
        data=dict(data),
        engine=engine,
        listen=listen,
        entropy=SystemEntropy(),
        clock=Clock(),
    )
    view = {"peer": begun.peer, "name": name, "home": str(home.path), "mesh": begun.mesh}
    view["passphrase"] = begun.passphrase
    lines = [f"peer {name}  {begun.peer}", f"home {home.path}"]
    if begun.mesh is not None:
        lines.append(f"mesh {found}  {begun.mesh}")
    shell.show("Peer", view, "\n".join(lines))
    for one, place in data:
        if not Path(place).expanduser().exists():
            shell.say(f"note: data source {one!r}: {place} is not there (yet)")
    if begun.passphrase is not None:
        if not shell.json:
            shell.say(
                f"\nThe mesh's root key is in {home.root_file}, sealed with this passphrase, which "
                f"is shown only now:\n\n    {begun.passphrase}\n\n"
                "Write it down, and copy the file to a safe place: both are needed to replace "
                "this admin.\n"
            )
        shell.say("next: covey up -d")
    else:
        shell.say("next: covey join TOKEN   (a token comes from: covey invite, on an admin's peer)")


@command(example="covey invite --uses 2 --expires 1h > token")
@click.option(
    "--uses",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="How many devices may join with it.",
)
@click.option(
    "--expires",
    type=Duration(),
    default="1h",
    show_default=True,
    help="How long it holds: 90s, 15m, 1h or 2d.",
)
@click.option("--zone", "zones", multiple=True, help="Grants this zone to who joins.")
def invite(shell: Shell, uses: int, expires: float, zones: tuple[str, ...]) -> None:
    """Make a token that lets other devices join.

    The token alone goes to standard output. Who has it can join: send it like a password.
    """
    with shell.client() as client:
        made = client.invite(uses=uses, expires_s=expires, zones=zones)
    shell.show("Invite", made, made.token)
    who = "1 device" if uses == 1 else f"{uses} devices"
    shell.say(f"lets {who} join within {duration(expires)}, while this peer is up")
    shell.say("on the other device: covey init --name NAME; covey join < token; covey up -d")


@command(example="covey join < token")
@click.argument("token", required=False)
def join(shell: Shell, token: str | None) -> None:
    """Join a mesh with TOKEN: the token itself, a file with it, or standard input."""
    from covey.peer.clock_check import REMEDY, SKEW_MS_MAX
    from covey.peer.joining import join_mesh

    joined = join_mesh(shell.path, _token(token))
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
