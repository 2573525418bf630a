"""How does this device stand, and who else is there?"""

import covey
from covey.peer.client.errors import DaemonNotRunning
from covey.peer.views import Finding, PeerView, StatusView

from .group import command
from .shell import Exit, Shell, pairs, size


@command(example="covey peers --json")
def peers(shell: Shell) -> None:
    """Show every peer known, this one first: where it is, and what it offers."""
    with shell.client() as client:
        found = client.peers()
    columns = ("NAME", "ID", "STATE", "ADDRESS", "ROUND TRIP", "LABELS", "DATA", "SKILLS", "MODELS")
    shell.show_table("PeerList", found, (*columns, "LOAD"), [_peer_row(peer) for peer in found])


def _peer_row(peer: PeerView) -> list[str]:
    return [
        peer.name,
        "…" + peer.id[-8:],
        peer.state,
        _short(peer.addresses[0]) if peer.addresses else "",
        f"{peer.round_trip_ms:.1f} ms" if peer.round_trip_ms is not None else "",
        pairs(peer.labels),
        ",".join(one.name for one in peer.data),
        ",".join(peer.skills),
        ",".join(peer.models),
        f"{peer.running}+{peer.waiting}" if peer.running is not None else "",
    ]


def _short(address: str) -> str:
    """`/ip4/192.0.2.1/tcp/4001` as `192.0.2.1:4001`."""
    parts = address.split("/")
    if len(parts) < 5:
        return address
    return f"[{parts[2]}]:{parts[4]}" if parts[1] == "ip6" else f"{parts[2]}:{parts[4]}"


@command(example="covey status --json")
def status(shell: Shell) -> None:
    """Show this device at a glance."""
    with shell.client() as client:
        seen = client.status()
    shell.show("Status", seen, _status_text(seen))
    for warning in seen.warnings:
        shell.say(f"warning: {warning}")


def _status_text(seen: StatusView) -> str:
    traffic = seen.traffic
    payload = f"{size(traffic.payload_out_bytes)} out, {size(traffic.payload_in_bytes)} in"
    control = f"{size(traffic.control_out_bytes)} out, {size(traffic.control_in_bytes)} in"
    tasks = ", ".join(f"{count} {state}" for state, count in seen.tasks.items())
    rows = [
        ("peer", f"{seen.name}  {seen.peer}"),
        ("mesh", f"{seen.mesh_name}  {seen.mesh[:16]}  as {seen.role}"),
        ("peers", f"{seen.peers_up} linked of {seen.peers_known} known"),
        ("tasks", tasks or "none yet"),
        ("models", ", ".join(seen.models) or "none"),
        ("skills", ", ".join(seen.skills) or "none (they need models)"),
        ("sent", f"payload {payload}; control {control}"),
        ("stayed", f"{size(traffic.data_read_bytes)} of raw data were read here"),
        ("at", "  ".join(seen.addresses)),
        ("api", "  ".join(seen.api)),
        ("version", seen.version),
    ]
    return "\n".join(f"{name:8} {value}" for name, value in rows)


@command(example="covey doctor")
def doctor(shell: Shell) -> None:
    """Look for what is wrong, or will be; each finding with its remedy."""
    try:
        with shell.client() as client:
            findings = client.doctor()
    except DaemonNotRunning:
        from covey.peer.doctor import check_up_asleep

        findings = check_up_asleep(shell.path)
    shell.show_table(
        "Findings", findings, ("", "CHECK", "FOUND"), [_finding(one) for one in findings]
    )
    failed = sum(one.level == "fail" for one in findings)
    if failed:
        raise Exit(1, f"{failed} finding(s) need your attention")


def _finding(one: Finding) -> list[str]:
    mark = "FAIL" if one.level == "fail" else one.level
    return [mark, one.check, f"{one.what}; {one.remedy}" if one.remedy else one.what]


@command(example="covey version")
def version(shell: Shell) -> None:
    """Show covey's version."""
    shell.show("Version", {"version": covey.__version__}, f"covey {covey.__version__}")
