"""What the memory promises, across three real peers of which one is away for part of it."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from end_to_end.conftest import wait_for_peers

from covey.peer.client.errors import NotFoundHere
from covey.peer.local_mesh import CommandFailed, LocalMesh, LocalPeer, wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.model]
SEALS = "P-12: rising vibration precedes seal failure by two days"
OBSERVATIONS = "".join(f"2026-11-{day:02d},P-12,{day / 10:.1f} mm/s\n" for day in range(1, 15))


@pytest.fixture(scope="module")
def mesh() -> Iterator[LocalMesh]:
    """`plant-7` founded the mesh and has models; `plant-3` and `office` have none."""
    root = Path(tempfile.mkdtemp(prefix="cv"))
    (root / "observations.csv").write_text(OBSERVATIONS)
    with LocalMesh(root) as mesh:
        founder = mesh.found("plant-7", "--zone", "lab")
        founder.covey("models", "pull", timeout_s=300)
        founder.start()
        mesh.join("plant-3", inviter=founder, zones=["lab"]).start()
        mesh.join("office", inviter=founder).start()
        for peer in mesh.peers.values():
            wait_for_peers(peer, 2)
        yield mesh
    shutil.rmtree(root, ignore_errors=True)


def holds(peer: LocalPeer, text: str) -> bool:
    return any(entry.value == text for entry in peer.client.memory_entries())


def wait_in_step(mesh: LocalMesh) -> None:
    """Wait until every peer says of both others that they hold the same."""

    def in_step() -> bool:
        steps = [step for peer in mesh.peers.values() for step in peer.client.status().memory]
        return [step.state for step in steps] == ["in step"] * 6

    wait_until(in_step, "all are in step", timeout_s=30)


def traces(peer: LocalPeer, text: str | bytes) -> list[str]:
    """Return the files of a peer's home that hold the text."""
    wanted = text.encode() if isinstance(text, str) else text
    found: list[str] = []
    for file in peer.home.rglob("*"):
        # A file that is written anew meanwhile goes under one name and comes under another.
        with suppress(FileNotFoundError):
            if file.is_file() and not file.is_symlink() and wanted in file.read_bytes():
                found.append(file.name)
    return found


def test_what_one_learned_another_recalls_and_sees_where_it_is_from(mesh: LocalMesh) -> None:
    here, there = mesh.peers["plant-7"], mesh.peers["plant-3"]
    source = mesh.root / "observations.csv"

    here.covey("remember", "plant/pumps", SEALS, "--from", str(source), "--ttl", "90d")
    wait_until(lambda: holds(there, SEALS), "it has spread")
    wait_until(lambda: there.client.recall("seals").hits, "it is in the index")
    here.stop()
    said = there.covey("recall", "why do seals fail", "-k", "5", "--namespace", "plant/*")
    here.start()

    assert SEALS in said
    assert "plant-7" in said
    assert "observations.csv" in said
    assert "14" in said, "how many observations"
    for peer in (there, mesh.peers["office"]):
        assert traces(peer, "2026-11-03,P-12") == [], "the raw data stays where it is"


def test_a_summary_is_worded_here_and_only_it_is_shared(mesh: LocalMesh) -> None:
    here, there = mesh.peers["plant-7"], mesh.peers["plant-3"]
    source = mesh.root / "observations.csv"

    here.covey("remember", "plant/notes", "--summarize", "--from", str(source), timeout_s=120)
    summary = wait_until(lambda: there.client.memory_entries("plant/notes"), "it has spread")[0]

    assert summary.method == "summarize"
    assert [(one.name, one.observations) for one in summary.sources] == [("observations.csv", 14)]
    assert traces(there, "2026-11-03,P-12") == []


def test_what_two_wrote_apart_is_shown_as_a_conflict_until_somebody_decides(
    mesh: LocalMesh,
) -> None:
    first, second, third = mesh.peers.values()
    shared = ("remember", "plant/pumps", "--type", "shared", "--key", "P-12/setpoint")

    first.stop()
    second.covey(*shared, "42")
    second.stop()
    third.stop()
    first.start()
    first.covey(*shared, "40")
    second.start()
    third.start()
    wait_in_step(mesh)

    for peer in mesh.peers.values():
        (value,) = peer.client.memory_value("P-12/setpoint")
        assert value.conflict
        assert sorted(entry.value for entry in value.entries) == [40, 42]
        assert "conflict" in peer.covey("memory", "get", "P-12/setpoint")
    third.covey(*shared, "41")

    def is_settled(peer: LocalPeer) -> bool:
        (value,) = peer.client.memory_value("P-12/setpoint")
        return (value.conflict, value.value) == (False, 41)

    wait_until(lambda: all(map(is_settled, mesh.peers.values())), "all know of the decision")


def test_counts_of_all_are_summed_and_sets_forget_what_was_taken_out(mesh: LocalMesh) -> None:
    first, second, third = mesh.peers.values()

    def everywhere(key: str, value: object) -> None:
        def stands(peer: LocalPeer) -> bool:
            try:
                return [one.value for one in peer.client.memory_value(key)] == [value]
            except NotFoundHere:
                return False

        wait_until(lambda: all(map(stands, mesh.peers.values())), f"{key} is {value} everywhere")

    for peer, many in ((first, "3"), (second, "4"), (third, "5")):
        peer.covey("remember", "plant/line", many, "--type", "counter", "--key", "rejects")
        peer.covey("remember", "plant/line", "E-17", "--type", "set-add", "--key", "faults")
    everywhere("rejects", 12)
    everywhere("faults", ["E-17"])
    second.covey("remember", "plant/line", "E-17", "--type", "set-remove", "--key", "faults")
    third.covey("remember", "plant/line", "E-18", "--type", "set-add", "--key", "faults")
    everywhere("faults", ["E-18"])


def test_what_is_forgotten_is_gone_everywhere_also_after_a_replay_of_everything(
    mesh: LocalMesh,
) -> None:
    first, second, third = mesh.peers.values()
    wait_in_step(mesh)
    everything = list(second.client.memory_export())
    (seals,) = [one for one in first.client.memory_entries() if one.value == SEALS]

    third.stop()
    with pytest.raises(CommandFailed, match="only plant-7"):
        second.covey("memory", "forget", seals.id, "--yes")
    said = first.covey("memory", "forget", seals.id[:12], "--yes")
    assert "1" in said
    third.start()
    wait_in_step(mesh)
    for peer in mesh.peers.values():
        assert not holds(peer, SEALS)
        peer.client.memory_import(everything)
        assert not holds(peer, SEALS)
        recalled = [hit.entry.value for hit in peer.client.recall("seal failure").hits]
        assert SEALS not in recalled
        assert peer.client.memory_entry(seals.id).state == "forgotten"
        wait_until(lambda peer=peer: not traces(peer, SEALS), "it is in no file any more")
        assert peer.client.memory_verify().problems == ()
    wait_in_step(mesh)


@pytest.mark.parametrize(
    ("zone", "inside"), [("lab", ["plant-3"]), ("device", [])], ids=["lab", "device"]
)
def test_who_is_outside_a_zone_is_told_nothing_of_it(
    mesh: LocalMesh, zone: str, inside: list[str]
) -> None:
    first = mesh.peers["plant-7"]
    text, name = f"only for {zone}", f"secrets/{zone}"
    first.covey("remember", name, text, "--zone", zone)
    (entry,) = first.client.memory_entries(name)
    first.covey("remember", "notes/shared", f"after {zone}")

    for peer in (mesh.peers["plant-3"], mesh.peers["office"]):
        wait_until(lambda peer=peer: holds(peer, f"after {zone}"), "what came later has spread")
        if peer.name in inside:
            wait_until(lambda peer=peer: holds(peer, text), "it has spread within its zone")
        else:
            for trace in (text.encode(), name.encode(), bytes.fromhex(entry.id), entry.id.encode()):
                assert traces(peer, trace) == []
