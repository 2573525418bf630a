"""Which log lines of this very machine can the demo work on?

The journal's, else the kernel's, else the package manager's.
"""

import re
import shutil
import subprocess
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LINES_MIN = 20
KINDS_MIN = 8
KEPT_LINES = 400
KERNEL_LOGS = (Path("/var/log/kern.log"), Path("/var/log/messages"))
PACKAGE_LOGS = (
    Path("/var/log/dpkg.log"),
    Path("/var/log/dpkg.log.1"),
    Path("/var/log/dnf.log"),
    Path("/var/log/pacman.log"),
    Path("/var/log/apk.log"),
    Path("/var/log/install.log"),
)


@dataclass(frozen=True, slots=True)
class MachineLog:
    """Real lines of this machine, and what can be asked of such lines."""

    what: str
    path: Path
    labels: tuple[str, ...]
    fields: dict[str, dict[str, Any]]
    """Properties of a JSON schema: what `extract` is to take out of each line."""


# None of them is an answer, too: a line that fits no label gets none.
PACKAGE_LABELS = ("install", "remove", "configure", "upgrade")
SYSTEM_LABELS = ("network", "storage", "memory", "processor", "service", "security")
PACKAGE_FIELDS: dict[str, dict[str, Any]] = {
    "time": {"type": "string"},
    "action": {"enum": ["install", "upgrade", "configure", "trigproc", "remove", "status"]},
}
SYSTEM_FIELDS: dict[str, dict[str, Any]] = {
    "component": {"type": "string", "description": "device or service that the line is about"},
}


def find_log(folder: Path) -> MachineLog:
    """Return the best log of this machine; what only a command shows is first written below `folder`.

    Raises:
        SystemExit: the machine has no readable log with enough lines.
    """
    for what, command in (
        ("the journal", ("journalctl", "-n", str(KEPT_LINES), "--no-pager", "-q")),
        ("the kernel log", ("dmesg",)),
    ):
        lines = _output(command)[-KEPT_LINES:]
        if _is_worth_reading(lines):
            path = folder / f"{command[0]}.log"
            path.write_text("\n".join(lines) + "\n")
            told = f"the last {len(lines)} lines of {what}"
            return MachineLog(told, path, SYSTEM_LABELS, SYSTEM_FIELDS)
    for path in KERNEL_LOGS:
        if _is_worth_reading(_lines(path)):
            return MachineLog("the kernel log", path, SYSTEM_LABELS, SYSTEM_FIELDS)
    for path in PACKAGE_LOGS:
        if _is_worth_reading(_lines(path)):
            return MachineLog("the package manager's log", path, PACKAGE_LABELS, PACKAGE_FIELDS)
    raise SystemExit(
        f"this machine has no readable log with {LINES_MIN} lines: tried journalctl, dmesg, "
        + ", ".join(str(path) for path in (*KERNEL_LOGS, *PACKAGE_LOGS))
    )


def _output(command: tuple[str, ...]) -> list[str]:
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def _lines(path: Path) -> list[str]:
    try:
        with path.open(errors="replace") as lines:
            return list(deque(lines, maxlen=KEPT_LINES))
    except OSError:
        return []


def _is_worth_reading(lines: Sequence[str]) -> bool:
    """Tell whether there are enough lines, and of enough kinds: one crash over and over is no story."""
    kinds = {re.sub(r"[0-9a-f]*\d[0-9a-f]*|\b[0-9a-f]{2}\b", "", line) for line in lines}
    return len(lines) >= LINES_MIN and len(kinds) >= KINDS_MIN
