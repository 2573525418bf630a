"""Real peers as processes of their own, in short temporary homes, on loopback."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path leaves room for a Unix socket's name below it."""
    path = Path(tempfile.mkdtemp(prefix="cv"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def standing() -> Iterator[LocalMesh]:
    """Three linked peers that share a module's tests: `gateway` founded it, two workers have models."""
    root = Path(tempfile.mkdtemp(prefix="cv"))
    log = root / "shift.log"
    log.write_text(
        "".join(f"2026-11-24 08:{minute:02d}:00 install pump-{minute}\n" for minute in range(60))
    )
    with LocalMesh(root) as mesh:
        gateway = mesh.found("gateway")
        gateway.start()
        worker = ("--label", "role=worker")
        first = mesh.join("line-1", *worker, "--data", f"shift-log={log}", inviter=gateway)
        second = mesh.join("line-2", *worker, inviter=gateway)
        for peer in (first, second):
            peer.covey("models", "pull", timeout_s=300)
            peer.start()
        for peer in (gateway, first, second):
            wait_for_peers(peer, 2)
        yield mesh
    shutil.rmtree(root, ignore_errors=True)


def wait_for_peers(peer: LocalPeer, count: int) -> None:
    """Wait until a peer has links to that many others and knows what they offer."""

    def linked() -> bool:
        return sum(one.state == "up" and bool(one.name) for one in peer.client.peers()) == count

    wait_until(linked, f"{peer.name} is linked to {count} others", timeout_s=30)
