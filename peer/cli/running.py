"""How is the daemon started and ended?"""

import os
import subprocess
import sys
import time

import click
import msgspec

from covey.peer.client.errors import ClientError, DaemonNotRunning
from covey.peer.views import StatusView

from .group import command
from .shell import Exit, Shell, duration

START_S = 30.0
STOP_S = 20.0
LOG_BYTES_MAX = 10 * 1024 * 1024


@command(example="covey up -d")
@click.option("-d", "--detach", is_flag=True, help="In the background; return when it is ready.")
def up(shell: Shell, detach: bool) -> None:
    """Start the daemon: in the foreground, or with -d in the background."""
    if not detach:
        _run(shell)
        return
    from covey.peer.home import Home

    home = Home(shell.path)
    home.config()
    home.mesh()
    if home.is_running():
        with home.lock():
            pass
    home.make()
    if home.log_file.exists() and home.log_file.stat().st_size > LOG_BYTES_MAX:
        home.log_file.replace(home.log_file.with_suffix(".log.1"))
    with home.log_file.open("ab") as log:
        began_at = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "covey.peer.cli", "daemon"],
            env={**os.environ, "COVEY_HOME": str(home.path)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )
    started = time.perf_counter()
    status = _ready(shell, process)
    if status is None:
        tail = home.log_file.read_bytes()[began_at:][-4000:].decode(errors="replace").strip()
        code = process.poll()
        if code is None:
            process.kill()
            last = tail.splitlines()[-1:] or ["nothing"]
            raise Exit(
                7,
                f"the daemon was not ready after {START_S:g} s and was ended; the last it said: "
                f"{last[0]}; see {home.log_file}",
            )
        # A refusal is one line that starts so; of anything else the last line says most.
        lines = tail.splitlines() or ["nothing was said"]
        reasons = [line for line in lines if line.startswith("covey: ")]
        if reasons:
            raise Exit(code, reasons[-1].removeprefix("covey: "))
        raise Exit(code or 1, f"the daemon ended with {code}: {lines[-1]}; see {home.log_file}")
    text = f"ready in {duration(time.perf_counter() - started)}: {status.name}  {status.peer}"
    shell.show("Status", status, "\n".join([text, *status.addresses]))


def _ready(shell: Shell, process: subprocess.Popen[bytes]) -> StatusView | None:
    ends_at = time.perf_counter() + START_S
    while time.perf_counter() < ends_at and process.poll() is None:
        try:
            with shell.client() as client:
                status = client.status()
        except ClientError:
            time.sleep(0.02)
        else:
            # Another daemon may hold the home: then ours ends, and says so.
            return status if process.poll() is None else None
    return None


@command(example="covey down")
def down(shell: Shell) -> None:
    """End the daemon; what it runs is given back or taken up at its next start."""
    from covey.peer.home import Home

    home = Home(shell.path)
    try:
        with shell.client() as client:
            client.shutdown()
    except DaemonNotRunning as error:
        if home.is_running():
            raise Exit(
                8,
                "the daemon does not answer: it starts, stops or hangs; try again, or look into "
                f"{home.log_file}",
            ) from error
        raise Exit(3, f"no daemon is running on {home.path}; there is nothing to end") from error
    ends_at = time.perf_counter() + STOP_S
    while home.is_running():
        if time.perf_counter() > ends_at:
            raise Exit(7, f"the daemon has not ended after {STOP_S:g} s; see {home.log_file}")
        time.sleep(0.02)
    shell.show("Stopped", {"home": str(home.path)}, "stopped")


@command(example="covey daemon    # in a systemd unit: ExecStart=/opt/covey/bin/covey daemon")
def daemon(shell: Shell) -> None:
    """Run the daemon in the foreground; SIGTERM or Ctrl-C ends it."""
    _run(shell)


def _run(shell: Shell) -> None:
    from covey.peer.daemon import run

    def ready(status: StatusView) -> None:
        if shell.json:
            click.echo(msgspec.json.encode({"v": 1, "kind": "Ready", "peer": status.peer}).decode())
        elif sys.stderr.isatty():
            shell.say(f"ready: {status.name}  {' '.join(status.addresses)}   (Ctrl-C ends it)")

    run(shell.path, ready)
