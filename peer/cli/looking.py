"""How does this device stand, and who else is there?"""

import time

import covey
from covey.peer.client.errors import DaemonNotRunning
from covey.peer.views import DiscoveryView, Finding, PeerView, StatusView

from .group import command
from .shell import Exit, Shell, duration, pairs, size


@command(example="covey peers --json")
def peers(shell: Shell) -> None:
    """Show every peer known, this one first: where it is, and what it offers."""
    with shell.client() as client:
        found = client.peers()
    columns = ("NAME", "ID", "STATE", "ADDRESS", "ROUND TRIP", "LABELS", "DATA", "SKILLS", "MODELS")
    shell.show_table("PeerList", found, (*columns, "LOAD"), [_peer_row(peer) for peer in found])
    if len(found) == 1:
        shell.say("no other peer is known yet; let one join with a token from: covey invite")


def _peer_row(peer: PeerView) -> list[str]:
    return [
        peer.name or "-",
        # Every id begins alike; its end tells peers apart. The whole one: --json.
        "…" + peer.id[-8:],
        peer.state,
        _short(peer.addresses[0]) if peer.addresses else "-",
        f"{peer.round_trip_ms:.1f} ms" if peer.round_trip_ms is not None else "-",
        pairs(peer.labels) or "-",
        ",".join(one.name for one in peer.data) or "-",
        ",".join(peer.skills) or "-",
        ",".join(peer.models) or "-",
        _load(peer),
    ]


def _load(peer: PeerView) -> str:
    if peer.running is None:
        return "-"
    if not peer.running and not peer.waiting:
        return "idle"
    return f"{peer.running} running" + (f", {peer.waiting} waiting" if peer.waiting else "")


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
    sent, got = size(traffic.payload_out_bytes), size(traffic.payload_in_bytes)
    control = size(traffic.control_out_bytes + traffic.control_in_bytes)
    up_s = max(0.0, time.time_ns() / 1e9 - seen.started_ms / 1000)
    tasks = ", ".join(f"{count} {state}" for state, count in seen.tasks.items())
    rows = [
        ("peer", f"{seen.name}  {seen.peer}"),
        ("mesh", f"{seen.mesh_name}  {seen.mesh[:16]}  as {seen.role}"),
        ("up", f"for {duration(up_s)}"),
        ("peers", f"{seen.peers_up} linked of {seen.peers_known} known"),
        ("tasks", tasks or "none yet"),
        ("models", ", ".join(seen.models) or "none; fetch the default ones: covey models pull"),
        ("skills", ", ".join(seen.skills) or "none (they need models)"),
        ("moved", f"{sent} of payload sent, {got} received, {control} of control messages"),
        ("stayed", f"{size(traffic.data_read_bytes)} of raw data read here"),
        ("finding", _finding_text(seen.discovery)),
        *(("" if at else "memory", step.sentence) for at, step in enumerate(seen.memory)),
        ("at", "  ".join(seen.addresses)),
        ("api", "  ".join(seen.api)),
        ("version", seen.version),
    ]
    return "\n".join(f"{name:8} {value}" for name, value in rows)


def _finding_text(seen: DiscoveryView) -> str:
    dht = "no DHT" if seen.dht_peers is None else f"{seen.dht_peers} peers in the DHT"
    calls = f"{seen.calls_made} made, {seen.calls_heard} heard, {seen.bids_made} answered"
    return f"{dht}; calls for bids: {calls}"


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
        raise Exit(1, "1 finding needs care" if failed == 1 else f"{failed} findings need care")


def _finding(one: Finding) -> list[str]:
    mark = "FAIL" if one.level == "fail" else one.level
    return [mark, one.check, f"{one.what}; {one.remedy}" if one.remedy else one.what]


@command(example="covey version")
def version(shell: Shell) -> None:
    """Show covey's version."""
    shell.show("Version", {"version": covey.__version__}, f"covey {covey.__version__}")
