"""How does what one peer learned reach the others, and how does it go again? The demo tells it.

One peer is stopped for a while, then alone as the others are frozen, then back among them.
"""

import signal
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from logs import MachineLog
from rich.markup import escape
from story import Story

from covey.peer.local_mesh import LocalPeer, wait_until

PLACE = "site/logs"
KEY = "log/keep-days"
KEPT_BY_ARCHIVE, KEPT_BY_BENCH, KEPT = 30, 90, 60
QUESTION = "what does the newest of the log tell of?"


def remember_and_forget(
    story: Story,
    gateway: LocalPeer,
    archive: LocalPeer,
    bench: LocalPeer,
    log: MachineLog,
    learned: str,
) -> None:
    """Show that memory converges, outlives its author's absence, and can be forgotten."""
    story.chapter("7. What one learned, all know: also who was away, also when it must go")
    peers = (gateway, archive, bench)
    register = ("remember", PLACE, "--type", "shared", "--key", KEY)
    with story.timed(
        "bench is stopped; archive remembers what it learned, and how long to keep it"
    ):
        bench.stop()
        said = archive.covey_json("remember", PLACE, learned, "--from", str(log.path))
        archive.covey(*register, str(KEPT_BY_ARCHIVE))
    story.say(f"    {escape(learned)}")
    with (
        story.timed("bench is started while the others are frozen (SIGSTOP), and says otherwise"),
        _frozen(gateway, archive),
    ):
        bench.start()
        bench.covey(*register, str(KEPT_BY_BENCH))
    with story.timed("they meet; covey status on bench then says:"):
        wait_until(lambda: _are_in_step(peers), "all are in step", timeout_s=30)
    steps = [step.sentence for step in bench.client.status().memory]
    for step in steps:
        story.say(f"    {escape(step)}")
    in_conflict = _show(story, gateway, "memory", "get", KEY)
    if "in conflict: 2 values stand" not in in_conflict:
        raise SystemExit(f"two wrote apart, and it is no conflict:\n{in_conflict}")
    with story.timed(f"the gateway has seen both, and decides: {KEPT}; so it is on all three"):
        gateway.covey(*register, str(KEPT))
        wait_until(lambda: [_kept(peer) for peer in peers] == [KEPT] * 3, "all know of it")
    wait_until(lambda: bench.client.recall(QUESTION).hits, "bench has it in its index")
    archive.stop()
    story.say("  archive is stopped; bench recalls what archive had learned:")
    recalled = _show(story, bench, "recall", QUESTION, "-k", "1")
    if learned not in " ".join(recalled.split()):
        raise SystemExit(f"something else was recalled:\n{recalled}")
    before = _files_with(learned, peers)
    with story.timed("the gateway has it forgotten, archive comes back, and hears of it"):
        gateway.covey("memory", "forget", said["id"], "--yes")
        archive.start()
        wait_until(lambda: _are_in_step(peers), "all are in step", timeout_s=30)
        wait_until(lambda: not _files_with(learned, peers), "it is in no file", timeout_s=30)
    story.say(f"    the text was in {before} files of the three homes, and is in none any more")
    story.facts["memory"] = {
        "in_step": steps,
        "conflict": [KEPT_BY_ARCHIVE, KEPT_BY_BENCH],
        "settled": KEPT,
        "recalled_by": bench.name,
        "files_with_text": {"before": before, "after": _files_with(learned, peers)},
    }


@contextmanager
def _frozen(*peers: LocalPeer) -> Generator[None]:
    """Stop peers where they are for as long as the block lasts: nobody hears a word of them."""
    try:
        for peer in peers:
            peer.kill(signal.SIGSTOP)
        yield
    finally:
        for peer in peers:
            peer.kill(signal.SIGCONT)


def _are_in_step(peers: Sequence[LocalPeer]) -> bool:
    """Tell whether each says of both others that they hold the same."""
    return all(
        [step.state for step in peer.client.status().memory] == ["in step"] * (len(peers) - 1)
        for peer in peers
    )


def _show(story: Story, peer: LocalPeer, *arguments: str) -> str:
    """Run a command, and show what it says."""
    said = peer.covey(*arguments)
    for line in said.splitlines():
        story.say(f"    {escape(line.strip())}")
    return said


def _kept(peer: LocalPeer) -> object:
    """Return what stands under the key here; None while it is in conflict."""
    (value,) = peer.client.memory_value(KEY)
    return None if value.conflict else value.value


def _files_with(text: str, peers: Sequence[LocalPeer]) -> int:
    """Count the files of the homes that hold the text; the models, which are links, aside."""
    files = (file for peer in peers for file in peer.home.rglob("*") if not file.is_symlink())
    return sum(_holds(file, text) for file in files if file.is_file())


def _holds(file: Path, text: str) -> bool:
    try:
        return text.encode() in file.read_bytes()
    except FileNotFoundError:
        # A store is being written anew: its old file, or the new one's first name, is gone.
        return False
