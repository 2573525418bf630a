"""Who is in the mesh, and who decides? Revoking, admitting, renewing, and answering who waits."""

import sys
import time
from pathlib import Path

import click

from covey.peer.client.client import Client
from covey.peer.member_views import MemberView, PendingView

from .group import command
from .shell import Exit, Shell, duration

DAY_MS = 86_400_000
# Tables show the last eight characters of an id.
END_CHARACTERS_MIN = 6
PASSPHRASE_BYTES_MAX = 1024
_COLUMNS = ("NAME", "ID", "ROLE", "ZONES", "STATE", "ENDS", "WHY")

_passphrase_file = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where the root key's passphrase is, - for standard input; asked for on a terminal.",
)
_yes = click.option("--yes", is_flag=True, help="Do not ask.")
_zones = click.option("--zone", "zones", multiple=True, help="A zone that it is in from now on.")


@command(example="covey members")
def members(shell: Shell) -> None:
    """Show everybody who is, or was, a member, admins first."""
    with shell.client() as client:
        _show(shell, client.members())


@command(example='covey revoke line-3 --reason "stolen"')
@click.argument("peer")
@click.option("--purge", is_flag=True, help="Nothing that it ever wrote counts any more.")
@click.option("--reason", default="", help="Told at the door, and read by every member.")
@click.option(
    "--keep",
    help="Of an admin: whom it let in and this one signs anew: `all`, `none`, or NAME,NAME.",
)
@_passphrase_file
@_yes
def revoke(
    shell: Shell,
    peer: str,
    purge: bool,
    reason: str,
    keep: str | None,
    passphrase_file: Path | None,
    yes: bool,
) -> None:
    """Put PEER (name, id, or the end of an id) out of the mesh, on every peer that hears of it.

    What it wrote until now stays, unless it is purged; what it has read it keeps. An admin is revoked
    with the root key, and whoever it let in falls with it, but for those that are kept.
    """
    with shell.client() as client:
        found = client.member(peer)
        passphrase, kept = None, None
        if _is_admin(found):
            kept = _kept(shell, client.resting_on(found.id), keep)
        elif keep is not None:
            raise Exit(2, f"{found.name} is no admin: nobody falls with it; leave --keep out")
        what = "everything that it wrote" if purge else "what it writes from now on"
        _confirm(yes, f"Revoke {found.name} ({found.id}), and let {what} count no more?")
        if _is_admin(found):
            passphrase = _passphrase(passphrase_file)
        done = client.revoke(found.id, purge=purge, reason=reason, keep=kept, passphrase=passphrase)
    shell.show("Revoked", done, f"revoked {done.member.name}  {done.member.id}")
    for one in done.kept:
        shell.say(f"kept {one.name}  {one.id}")
    for one in done.fallen:
        shell.say(f"fallen with it: {one.name}  {one.id}")
    shell.say(f"to let it in again: covey admit {found.id}")


@command(example="covey admit line-3 --zone plant-7")
@click.argument("peer")
@_zones
@click.option("--no-zones", is_flag=True, help="It is in no zone but `mesh` from now on.")
@click.option("--admin", is_flag=True, help="Make it an admin, with the root key.")
@_passphrase_file
def admit(
    shell: Shell,
    peer: str,
    zones: tuple[str, ...],
    no_zones: bool,
    admin: bool,
    passphrase_file: Path | None,
) -> None:
    """Let PEER in again that was revoked or is over its time, change its zones, or make it an admin.

    Without --zone it is in the zones of before. What others hold of zones that it leaves is theirs
    alone from now on; what it holds itself it keeps.
    """
    if zones and no_zones:
        raise Exit(2, "give either --zone or --no-zones")
    wanted = zones if zones or no_zones else None
    with shell.client() as client:
        found = client.member(peer)
        passphrase = _passphrase(passphrase_file) if admin else None
        done = client.admit(found.id, zones=wanted, admin=admin, passphrase=passphrase)
    shell.show("Member", done, _line(done))


@command(example="covey renew")
@click.argument("peer", default="self")
@_passphrase_file
def renew(shell: Shell, peer: str, passphrase_file: Path | None) -> None:
    """Renew this device's certificate now, or PEER's on an admin's device.

    Members renew by themselves at half of their certificate's life. An admin's is renewed with the
    root key, where that is.
    """
    with shell.client() as client:
        found = client.member(peer)
        passphrase = _passphrase(passphrase_file) if _is_admin(found) else None
        done = client.renew(found.id, passphrase=passphrase)
    shell.show("Member", done, _line(done))


@command(example="covey pending")
def pending(shell: Shell) -> None:
    """Show who waits for this admin's word, with the words that the joiner's side shows, too."""
    with shell.client() as client:
        found = client.pending()
    columns = ("NAME", "ID", "SINCE", "STATE", "ZONES", "WORDS")
    rows = [_pending_row(one) for one in found]
    shell.show_table("PendingList", found, columns, rows, empty="nobody waits")


@command(example="covey approve line-4 --zone plant-7")
@click.argument("peer")
@_zones
@_yes
def approve(shell: Shell, peer: str, zones: tuple[str, ...], yes: bool) -> None:
    """Let PEER in that waits, once its words are the same on both sides."""
    with shell.client() as client:
        found = _waiting(client, peer)
        if found.inviter is None:
            shell.say(f"{found.name or found.id} waits with these words:\n\n    {found.words}\n")
            _confirm(yes, "Does its own side show the same?")
        done = client.approve(found.id, zones=zones or None)
    shell.show("Member", done, _line(done))


@command(example="covey deny line-4")
@click.argument("peer")
def deny(shell: Shell, peer: str) -> None:
    """Tell PEER no that waits; it may ask again in a day."""
    with shell.client() as client:
        done = client.deny(_waiting(client, peer).id)
    shell.show("Pending", done, f"denied {done.name or done.id}")


def _show(shell: Shell, found: list[MemberView]) -> None:
    shell.show_table("MemberList", found, _COLUMNS, [_row(one) for one in found])


def _row(one: MemberView) -> list[str]:
    left_ms = one.not_after_ms - time.time_ns() // 1_000_000
    days = abs(left_ms) // DAY_MS
    ends = f"in {days} d" if left_ms > 0 else f"{days} d ago"
    zones = ",".join(one.zones) or "-"
    return [_name(one), one.id, one.role, zones, one.state, ends, one.why]


def _name(one: MemberView) -> str:
    return one.name if one.name != one.id else "-"


def _line(one: MemberView) -> str:
    days = (one.not_after_ms - time.time_ns() // 1_000_000) // DAY_MS
    zones = f" in {', '.join(one.zones)}" if one.zones else ""
    return f"{one.name}  {one.role}{zones} for {days} days  {one.id}"


def _pending_row(one: PendingView) -> list[str]:
    state = "has said yes" if one.has_confirmed else "looks at the words"
    if one.inviter is not None:
        state = f"holds an invite of {one.inviter_name}"
    since = duration(max(0, time.time_ns() // 1_000_000 - one.asked_ms) / 1000)
    return [one.name or "-", one.id, since, state, ",".join(one.zones) or "-", one.words]


def _waiting(client: Client, peer: str) -> PendingView:
    end = peer.removeprefix("…")
    listed = client.pending()
    found = [one for one in listed if one.id == peer]
    found = found or [
        one
        for one in listed
        if one.name == peer or (len(end) >= END_CHARACTERS_MIN and one.id.endswith(end))
    ]
    if len(found) != 1:
        raise Exit(4, f"{len(found)} joiners are called {peer!r}; see: covey pending")
    return found[0]


def _is_admin(one: MemberView) -> bool:
    return one.role == "admin" and one.state == "member"


def _kept(shell: Shell, resting: list[MemberView], keep: str | None) -> list[str] | None:
    if not resting:
        return []
    if keep is None:
        shell.say("These were let in by it, and fall with it unless this admin signs them anew:")
        for one in resting:
            shell.say(f"  {one.name}  {one.id}")
        if shell.json or not sys.stdin.isatty():
            raise Exit(2, "say whom to keep: --keep all, --keep none, or --keep NAME,NAME")
        keep = str(click.prompt("Keep whom (all, none, or names with commas)", err=True))
    if keep.strip() in ("none", ""):
        return []
    return [one.strip() for one in keep.split(",") if one.strip()]


def _confirm(yes: bool, question: str) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Exit(2, f"{question} Say so: --yes")
    if not click.confirm(question, err=True):
        raise Exit(130, "not done")


def _passphrase(file: Path | None) -> str:
    if file is None:
        if not sys.stdin.isatty():
            raise Exit(2, "this needs the root key's passphrase: --passphrase-file FILE, or -")
        return str(click.prompt("Passphrase of the mesh's root key", hide_input=True, err=True))
    if str(file) == "-":
        return sys.stdin.buffer.read(PASSPHRASE_BYTES_MAX).decode(errors="replace").strip()
    with file.open("rb") as opened:
        return opened.read(PASSPHRASE_BYTES_MAX).decode(errors="replace").strip()
