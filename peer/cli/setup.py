"""How does a device become a peer, and get others into its mesh?"""

import os
from pathlib import Path

import click

from covey.inference.engine import AUTO, ENGINES

from .group import command
from .shell import Duration, KeyValue, Shell, duration


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
