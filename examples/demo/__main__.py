"""Three real peers on this machine, a real model, one command: `make demo`.

Everything below is done with the covey command line and the Python client, on peers that are processes
of their own: nothing is simulated, and each figure is asked from the peers that made it.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from covey.peer.client import Client
from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.views import TaskView

sys.path.insert(0, str(Path(__file__).parent))
from logs import MachineLog, find_log
from remembering import remember_and_forget
from story import Story

READING_SCHEMA = {
    "type": "object",
    "properties": {
        "machine": {"type": "string"},
        "metric": {"type": "string"},
        "value": {"type": "number"},
        "unit": {"type": "string"},
    },
    "required": ["machine", "value"],
}
READING = "pump_a reports a vibration of 9.8 mm/s"
QUESTION = "In one sentence: what does a log file of a computer contain?"
LONG_QUESTION = "Write a long story about a lighthouse keeper who repairs an old radio."


def main() -> None:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write what was seen")
    parser.add_argument("--keep", action="store_true", help="keep the peers' homes afterwards")
    options = parser.parse_args()
    # Ctrl-C and a polite kill alike unwind through the mesh's block, which ends every peer.
    signal.signal(signal.SIGTERM, _interrupt)
    root = Path(tempfile.mkdtemp(prefix="covey-demo-"))
    story = Story(Console(width=None if sys.stdout.isatty() else 110, soft_wrap=False))
    try:
        with LocalMesh(root) as mesh:
            tell(story, mesh, find_log(root))
    except KeyboardInterrupt:
        story.say("\ninterrupted: every peer has been stopped and its home removed")
        raise SystemExit(130) from None
    finally:
        if options.keep:
            story.say(f"the peers' homes are kept in {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    if options.json:
        options.json.write_text(json.dumps(story.facts, indent=2) + "\n")
        story.say(f"what was seen is in {options.json}")


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def tell(story: Story, mesh: LocalMesh, log: MachineLog) -> None:
    """Run the whole demo; each chapter uses the mesh as the one before left it."""
    story.say("[bold]covey[/]: a mesh of peers, each on its own, working for each other")
    story.say(f"  data: {log.what} of this machine, {log.path.stat().st_size:,} bytes")
    gateway, archive, bench = found_and_join(story, mesh, log)
    introduce(story, gateway)
    learned = work_next_to_the_data(story, gateway, archive, log)
    ask_both_engines(story, gateway, archive, bench)
    keep_to_oneself(story, gateway, bench)
    lose_a_peer(story, gateway, [archive, bench])
    remember_and_forget(story, gateway, archive, bench, log, learned)
    count_the_bytes(story, gateway, archive, log)
    story.facts["elapsed_s"] = round(story.elapsed_s, 1)
    story.say(
        f"\n[bold green]done[/] in {story.elapsed_s:.0f} s; the peers are stopped, their homes removed"
    )


def found_and_join(
    story: Story, mesh: LocalMesh, log: MachineLog
) -> tuple[LocalPeer, LocalPeer, LocalPeer]:
    story.chapter("1. A mesh is founded, and joined by invitation")
    with story.timed("gateway: key, config, and a new mesh 'demo'"):
        gateway = mesh.found("gateway", mesh="demo")
    with story.timed("gateway: daemon is up"):
        gateway.start()
    with story.timed("archive: joins with a one-time invite; it owns the log"):
        archive = mesh.join(
            "archive",
            "--label",
            "role=worker",
            "--data",
            f"machine-log={log.path}",
            inviter=gateway,
        )
    with story.timed(
        "bench: joins likewise; it owns nothing but a model, and runs it on ctransformers"
    ):
        engine = ("--engine", "ctransformers")
        bench = mesh.join("bench", "--label", "role=worker", *engine, inviter=gateway)
    with story.timed("archive and bench: models in place, digests checked"):
        for peer in (archive, bench):
            peer.covey("models", "pull", timeout_s=600)
    with story.timed("archive and bench: daemons are up, and everyone is linked"):
        archive.start()
        bench.start()
        for peer in (gateway, archive, bench):
            wait_until(lambda peer=peer: _up(peer) == 2, f"{peer.name} sees two others")
    return gateway, archive, bench


def _up(peer: LocalPeer) -> int:
    return sum(one.state == "up" and bool(one.name) for one in peer.client.peers())


def introduce(story: Story, gateway: LocalPeer) -> None:
    story.chapter("2. Who offers what (covey peers, asked on the gateway)")
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("name", "id", "state", "round trip", "labels", "data", "models"):
        table.add_column(column, overflow="fold")
    peers = sorted(gateway.client.peers(), key=lambda one: one.state != "self")
    for peer in peers:
        table.add_row(
            peer.name,
            "..." + peer.id[-8:],
            peer.state,
            "" if peer.round_trip_ms is None else f"{peer.round_trip_ms:.1f} ms",
            " ".join(f"{key}={value}" for key, value in peer.labels.items()),
            " ".join(one.name for one in peer.data),
            " ".join(peer.models),
        )
    story.console.print(table)
    story.facts["peers"] = [
        {"name": peer.name, "id": peer.id, "state": peer.state} for peer in peers
    ]


def work_next_to_the_data(
    story: Story, gateway: LocalPeer, archive: LocalPeer, log: MachineLog
) -> str:
    """Let the archive's log be read where it lies; return in a sentence what was counted in it."""
    story.chapter("3. Tasks go to the data; only answers come back (asked on the gateway)")
    client = gateway.client
    with story.timed("classify the last 40 lines, where they lie"):
        classified = client.run(
            "classify", {"labels": list(log.labels), "tail": 40}, data="machine-log", wait_s=120
        )
    _show(story, "classify", classified)
    counts = _result(classified)["counts"] | {"no label": _result(classified)["abstained"]}
    counted = ", ".join(f"{label} {count}" for label, count in counts.items())
    story.say(f"    labels: {counted}")
    fields = {"type": "object", "properties": log.fields}
    with story.timed("extract fields from the last 3 lines, where they lie"):
        taken = client.run("extract", {"schema": fields, "tail": 3}, data="machine-log", wait_s=120)
    _show(story, "extract", taken)
    for item in _result(taken)["items"]:
        story.say(f"    {escape(json.dumps(item['fields']))}")
    with story.timed("extract a reading from a sentence that the gateway has"):
        extracted = client.run("extract", {"schema": READING_SCHEMA, "text": READING}, wait_s=120)
    _show(story, "extract", extracted)
    reading = json.dumps(_result(extracted)["items"][0]["fields"])
    story.say(f"    '{READING}' -> {escape(reading)}")
    asked: list[TaskView] = []
    asking = threading.Thread(target=lambda: asked.append(_ask(archive, QUESTION)))
    with story.timed("summarise 200 lines on archive, while archive itself asks a question"):
        asking.start()
        summed = client.run("summarize", {"tail": 200}, data="machine-log", wait_s=120)
        asking.join(120)
    _show(story, "summarize", summed)
    story.say(f"    {escape(_result(summed)['text'])}")
    if _result(summed)["worded_by"] == "model":
        worded = "worded by the model; its every number and name was checked against counted facts"
    else:
        worded = f"worded by code, since {_result(summed)['why']}"
    story.say(f"    [dim]({escape(worded)})[/]")
    for answer in asked:
        _show(story, "chat", answer)
        story.say(f"    {escape(_result(answer)['text'].strip())}")
    story.say(
        "  [dim]The model is small (135 M parameters): it words and extracts. It decides nothing here: "
        "labels come from embeddings, counts and trends from code, and severity is never judged.[/]"
    )
    return f"of {log.what}, the newest 40 tell of: {counted}"


def _ask(peer: LocalPeer, question: str) -> TaskView:
    return peer.client.run("chat", {"prompt": question, "max_tokens": 60}, wait_s=120)


def _result(task: TaskView) -> dict[str, Any]:
    if task.state != "done":
        raise SystemExit(f"task {task.id} ended as {task.state}: {task.reason}")
    result: dict[str, Any] = task.result
    return result


def _show(story: Story, what: str, task: TaskView) -> None:
    """One task in two lines: where, why there, how long."""
    last = task.attempts[-1]
    whole_ms = (task.ended_ms or task.submitted_ms) - task.submitted_ms
    story.say(
        f"  [bold]{what}[/] ran on [bold]{task.peer_name}[/] in {whole_ms / 1000:.2f} s, "
        f"{(task.run_ms or 0) / 1000:.2f} s of it the skill itself"
    )
    story.say(f"    [dim]why there: {escape(last.why)}[/]")
    story.facts.setdefault("tasks", []).append(
        {
            "id": task.id,
            "skill": task.skill,
            "state": task.state,
            "peer": task.peer_name,
            "why": last.why,
            "total_ms": whole_ms,
            "run_ms": task.run_ms,
            "attempts": len(task.attempts),
        }
    )


def ask_both_engines(
    story: Story, gateway: LocalPeer, archive: LocalPeer, bench: LocalPeer
) -> None:
    story.chapter("4. Two engines, one question (asked on the gateway)")
    facts: list[dict[str, Any]] = []
    for peer in (archive, bench):
        models = {one.name: one.engine for one in peer.client.models()}
        asked = {"prompt": QUESTION, "max_tokens": 60}
        # Its first answer waits for the model to load: this is about the second.
        gateway.client.run("chat", {"prompt": "Hello", "max_tokens": 4}, peer=peer.name, wait_s=120)
        with story.timed(f"{peer.name} is asked"):
            answer = gateway.client.run("chat", asked, peer=peer.name, wait_s=120)
        result = _result(answer)
        used = answer.model_used or ""
        story.say(
            f"    on [bold]{models[used]}[/], model {used}, {(answer.run_ms or 0) / 1000:.2f} s: "
            f"{escape(result['text'].strip())}"
        )
        facts.append({"peer": peer.name, "engine": models[used], "model": used})
    if {one["engine"] for one in facts} != {"llama.cpp", "ctransformers"}:
        raise SystemExit(f"one of the engines did not answer: {facts}")
    story.facts["engines"] = facts


def keep_to_oneself(story: Story, gateway: LocalPeer, bench: LocalPeer) -> None:
    story.chapter(
        "5. A peer that tells nobody what it offers, and is found by who knows what to ask for"
    )
    file = bench.home / "config.toml"
    label = '[labels]\n"press" = "7"\n'
    quiet = '\n[discovery]\nadvert = "addresses"\n'
    file.write_text(file.read_text().replace("[labels]\n", label, 1) + quiet)
    with story.timed("bench: a new label, press=7, and its advert says only where it is"):
        bench.stop()
        bench.start()
        wait_until(lambda: _up(gateway) == 2, "bench is back", timeout_s=30)
    told = next(one for one in gateway.client.peers() if one.name == "bench")
    story.say(
        f"  the gateway is told of bench: labels {dict(told.labels)}, skills {list(told.skills)}"
    )
    asked = {"prompt": "Say hello.", "max_tokens": 8}
    with story.timed("the gateway looks for press=7"):
        found = gateway.client.run("chat", asked, labels={"press": "7"}, wait_s=120)
    _result(found)
    _show(story, "chat", found)
    if found.peer_name != "bench" or found.way not in ("dht", "bid"):
        raise SystemExit(f"it was not found as it should be: {found}")
    story.facts["found_by"] = found.way


def lose_a_peer(story: Story, gateway: LocalPeer, workers: list[LocalPeer]) -> None:
    story.chapter("6. A peer is killed in the middle of its work (SIGKILL)")
    client: Client = gateway.client
    task = client.submit(
        "chat", {"prompt": LONG_QUESTION, "max_tokens": 160}, labels={"role": "worker"}
    )
    running = wait_until(lambda: _running(client, task.id), "the task runs somewhere", timeout_s=60)
    victim = next(worker for worker in workers if worker.name == running.peer_name)
    story.say(f"  a long answer is being written on [bold]{victim.name}[/] (pid {victim.pid})")
    victim.kill()
    story.say(f"  [red]killed {victim.name}[/]; nobody told the gateway")
    with story.timed("the gateway notices, and another peer finishes the task:"):
        ended = client.wait(task.id, timeout_s=120)
    for attempt in ended.attempts:
        reason = attempt.reason or attempt.why
        story.say(
            f"    attempt {attempt.number} on {attempt.peer_name}: {attempt.state}  "
            f"[dim]{escape(reason)}[/]"
        )
    _show(story, "chat", ended)
    _result(ended)
    if len(ended.attempts) < 2:
        raise SystemExit("the task ended before its executor was killed: nothing was shown")
    with story.timed(f"{victim.name} is started again and comes back by itself"):
        victim.start()
        wait_until(lambda: _up(gateway) == 2, f"{victim.name} is back", timeout_s=30)
    story.facts["failover"] = {
        "killed": victim.name,
        "finished_by": ended.peer_name,
        "attempts": [(one.peer_name, one.state) for one in ended.attempts],
    }


def _running(client: Client, task_id: str) -> TaskView | None:
    task = client.task(task_id)
    return task if task.state == "running" else None


def count_the_bytes(story: Story, gateway: LocalPeer, archive: LocalPeer, log: MachineLog) -> None:
    story.chapter("8. What crossed the mesh, and what stayed")
    here = gateway.client.status().traffic
    # The archive counts since its last start, which the kill above may have moved: count a fresh task.
    before = archive.client.status().traffic
    counted = gateway.client.run("summarize", {"tail": 400}, data="machine-log", wait_s=120)
    _result(counted)
    after = archive.client.status().traffic
    stayed = after.data_read_bytes - before.data_read_bytes
    crossed = (after.payload_out_bytes - before.payload_out_bytes) + (
        after.payload_in_bytes - before.payload_in_bytes
    )
    story.say(
        f"  one summary of {log.what}: {stayed:,} raw bytes were read on archive, and stayed there"
    )
    story.say(
        f"  {crossed:,} bytes of payload crossed the mesh for it (the question and the answer)"
    )
    story.say(
        f"  the gateway in all: payload {here.payload_out_bytes:,} out, {here.payload_in_bytes:,} in; "
        f"control {here.control_out_bytes:,} out, {here.control_in_bytes:,} in"
    )
    story.facts["bytes"] = {"raw_stayed": stayed, "payload_crossed": crossed}


if __name__ == "__main__":
    main()
