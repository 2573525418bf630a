"""A no-op task of 1 KiB from a script through the local API, across the mesh and back."""

import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import trio
from bare_echo import measure
from measure import Report, Row, cpu_ms, p50, p99, times_ms

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.schema import Database
from covey.peer.store import Change, open_store

PAYLOAD = {"text": "x" * 1010}
COMMITS = 3
OWN_MS = 4.0
RATE = 600
IN_FLIGHT = 64


def enable_echo(peer: LocalPeer) -> None:
    """Offer `covey.echo`, which is off by default."""
    file = peer.home / "config.toml"
    file.write_text(file.read_text().replace("skills = [", 'skills = ["covey.echo", ', 1))


def bench_echo(report: Report, count: int, seconds: float) -> None:
    """Measure one at a time, then 64 in flight."""
    report.heading(
        "A no-op task of 1 KiB: script, local API, mesh, another peer's process, and back"
    )
    root = Path(tempfile.mkdtemp(prefix="cv"))
    with LocalMesh(root) as mesh:
        origin = mesh.found("origin")
        origin.start()
        executor = mesh.join("executor", inviter=origin)
        enable_echo(executor)
        executor.start()
        wait_until(lambda: _offered(origin), "the executor's offer is known")
        _one_at_a_time(report, origin, executor, root, count)
        _in_flight(report, origin, executor, seconds)


def _offered(origin: LocalPeer) -> bool:
    return any("covey.echo" in one.skills and one.state == "up" for one in origin.client.peers())


def _one_at_a_time(
    report: Report, origin: LocalPeer, executor: LocalPeer, root: Path, count: int
) -> None:
    client = origin.client

    def task() -> None:
        assert client.run("covey.echo", PAYLOAD, wait_s=10).state == "done"

    times_ms(task, 0, warm=50)
    cpu = [cpu_ms(peer.pid) for peer in (origin, executor)]
    # Interleaved with its baselines, so that all see the same machine.
    tasks: list[float] = []
    calls: list[float] = []
    commits: list[float] = []
    bare: list[float] = []
    for _ in range(4):
        before = [cpu_ms(peer.pid) for peer in (origin, executor)]
        tasks += times_ms(task, count // 4)
        after = [cpu_ms(peer.pid) for peer in (origin, executor)]
        cpu = [now - then for now, then in zip(after, before, strict=True)]
        calls += times_ms(client.status, count // 4, warm=5)
        commits += trio.run(_commits, root / "bench-store", count // 4)
        bare += _bare(count // 4)
    commit, whole = p50(commits), p50(tasks)
    allowed = COMMITS * commit + OWN_MS
    rows = [
        Row("one commit of one row, p50 (p99)", f"{commit:.2f} ms ({p99(commits):.2f})"),
        Row("bare libp2p stream echo, p50 (p99)", f"{p50(bare):.2f} ms ({p99(bare):.2f})"),
        Row("plain local API call, p50 (p99)", f"{p50(calls):.2f} ms ({p99(calls):.2f})"),
        Row(
            "task p50",
            f"{whole:.2f} ms",
            f"bare echo {p50(bare):.2f} ms",
            f"{whole / p50(bare):.1f} x",
            f"<= {allowed:.2f} ms (3c+4)",
            whole <= allowed,
        ),
        Row("task p99", f"{p99(tasks):.2f} ms", f"API call {p50(calls):.2f} ms", ""),
    ]
    for row in rows:
        report.add(row)
    each = [one / (count // 4) for one in cpu]
    report.add(Row("CPU for each task: origin, executor", f"{each[0]:.2f}, {each[1]:.2f} ms"))
    report.facts["echo"] = {
        "task_p50_ms": whole,
        "task_p99_ms": p99(tasks),
        "bare_p50_ms": p50(bare),
        "api_p50_ms": p50(calls),
        "commit_p50_ms": commit,
        "cpu_origin_ms": each[0],
        "cpu_executor_ms": each[1],
    }


async def _commits(path: Path, count: int) -> list[float]:
    taken: list[float] = []
    async with open_store(path) as store:
        for number in range(count):
            change = Change(Database.META, b"bench", number.to_bytes(8, "big") * 32)
            started = perf_counter()
            await store.commit([change])
            taken.append((perf_counter() - started) * 1000)
    return taken


def _bare(count: int) -> list[float]:
    command = [sys.executable, str(Path(__file__).parent / "bare_echo.py")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        try:
            return trio.run(measure, other.stdout.readline().strip(), count, 30)
        finally:
            other.stdin.close()


def _in_flight(report: Report, origin: LocalPeer, executor: LocalPeer, seconds: float) -> None:
    trio.run(_drive, origin.home / "run/api.sock", 1.0)
    before = [cpu_ms(peer.pid) for peer in (origin, executor)]
    taken = trio.run(_drive, origin.home / "run/api.sock", seconds)
    after = [cpu_ms(peer.pid) for peer in (origin, executor)]
    rate = len(taken) / seconds
    each = [(now - then) / len(taken) for now, then in zip(after, before, strict=True)]
    report.add(
        Row(
            f"durable tasks/s, {IN_FLIGHT} in flight",
            f"{rate:.0f} /s",
            "",
            "",
            f">= {RATE} /s",
            rate >= RATE,
        )
    )
    report.add(Row("  p50 (p99) then", f"{p50(taken):.0f} ms ({p99(taken):.0f})"))
    report.add(Row("  CPU for each task: origin, executor", f"{each[0]:.2f}, {each[1]:.2f} ms"))
    report.facts["echo_64"] = {
        "tasks_per_s": rate,
        "p50_ms": p50(taken),
        "p99_ms": p99(taken),
        "cpu_origin_ms": each[0],
        "cpu_executor_ms": each[1],
    }


async def _drive(socket: Path, seconds: float) -> list[float]:
    """Keep 64 tasks in flight, each on a connection of its own, as 64 scripts would."""
    body = b'{"skill":"covey.echo","input":{"text":"%b"}}' % (b"x" * 1000)
    request = (
        b"POST /v1/tasks?wait=30 HTTP/1.1\r\nhost: covey\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(body), body)
    )
    taken: list[float] = []
    ends_at = perf_counter() + seconds

    async def one() -> None:
        stream = await trio.open_unix_socket(str(socket))
        async with stream:
            while perf_counter() < ends_at:
                started = perf_counter()
                await stream.send_all(request)
                await _answer(stream)
                taken.append((perf_counter() - started) * 1000)

    async with trio.open_nursery() as nursery:
        for _ in range(IN_FLIGHT):
            nursery.start_soon(one)
    return taken


async def _answer(stream: trio.SocketStream) -> None:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, rest = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(rest) < length:
        rest += await stream.receive_some()
    assert b'"state":"done"' in rest, rest
