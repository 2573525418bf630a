"""How heavy is a peer that does nothing, and how quick is it there?"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter, sleep

from measure import Report, Row, cpu_ms, p50, rss_mb, times_ms

from covey.peer.local_mesh import LocalMesh, wait_until

READY_S = 2.0
IDLE_MB = 115.0
IDLE_SHARE = 0.5
STATUS_MS = 150.0


def bench_idle(report: Report, seconds: float) -> None:
    """Measure start, memory, idle CPU, and the command line."""
    report.heading("A peer that does nothing")
    root = Path(tempfile.mkdtemp(prefix="cv"))
    python = times_ms(lambda: subprocess.run([sys.executable, "-c", "pass"], check=True), 10)
    libp2p = times_ms(
        lambda: subprocess.run([sys.executable, "-c", "import libp2p"], check=True), 3
    )
    with LocalMesh(root) as mesh:
        gateway = mesh.found("gateway")
        starts: list[float] = []
        for _ in range(3):
            gateway.stop()
            started = perf_counter()
            gateway.start()
            starts.append(perf_counter() - started)
        ready = p50(starts)
        report.add(
            Row(
                "daemon ready",
                f"{ready:.2f} s",
                f"import libp2p {p50(libp2p) / 1000:.2f} s",
                f"{ready * 1000 / p50(libp2p):.1f} x",
                f"<= {READY_S:g} s",
                ready <= READY_S,
            )
        )
        others = [mesh.join(name, inviter=gateway) for name in ("one", "two")]
        for other in others:
            other.start()
        wait_until(lambda: gateway.client.status().peers_up == 2, "two are linked")
        before = cpu_ms(gateway.pid)
        sleep(seconds)
        share = (cpu_ms(gateway.pid) - before) / seconds / 10
        memory = rss_mb(gateway.pid)
        report.add(
            Row(
                "idle memory, two peers linked",
                f"{memory:.0f} MB",
                "",
                "",
                f"<= {IDLE_MB:g} MB",
                memory <= IDLE_MB,
            )
        )
        report.add(
            Row(
                f"idle CPU over {seconds:g} s, two peers linked",
                f"{share:.2f} % of a core",
                "",
                "",
                f"<= {IDLE_SHARE} %",
                share <= IDLE_SHARE,
            )
        )
        covey = str(Path(sys.executable).parent / "covey")
        environment = {**os.environ, "COVEY_HOME": str(gateway.home)}
        status = times_ms(
            lambda: subprocess.run(
                [covey, "status", "--json"], env=environment, stdout=subprocess.DEVNULL, check=True
            ),
            15,
            warm=2,
        )
        report.add(
            Row(
                "covey status --json, p50",
                f"{p50(status):.0f} ms",
                f"python -c pass {p50(python):.0f} ms",
                f"{p50(status) / p50(python):.1f} x",
                f"<= {STATUS_MS:g} ms",
                p50(status) <= STATUS_MS,
            )
        )
        report.facts["idle"] = {
            "ready_s": ready,
            "rss_mb": memory,
            "cpu_percent": share,
            "status_p50_ms": p50(status),
        }
