"""Two peers learn things apart, come together, agree, and forget.

It makes its own mesh of two real peers on this machine, and removes it again:
`python examples/shared_memory.py`. It needs no model: recall is by words then.
"""

import sys
import tempfile
from pathlib import Path

from covey.peer.local_mesh import LocalMesh, LocalPeer, wait_until
from covey.peer.memory.views import SourceView, WriteRequest

PLACE = "plant/pumps"
SEALS = "P-12: rising vibration precedes seal failure by two days"


def main() -> int:
    # A short path: a Unix socket is made below it.
    with tempfile.TemporaryDirectory(prefix="cv") as root, LocalMesh(Path(root)) as mesh:
        alice = mesh.found("alice")
        alice.start()
        bob = mesh.join("bob", inviter=alice)

        print("alice learns, while bob is away:")
        source = SourceView(name="observations.csv", observations=14)
        note = alice.client.remember(PLACE, SEALS, sources=(source,), ttl_s=90 * 86_400)
        count(alice, "failures", 2)
        alice.client.remember(PLACE, 7.1, type="shared", key="P-12/limit")
        show(alice)
        alice.stop()

        print("bob learns, while alice is away:")
        bob.start()
        count(bob, "failures", 3)
        bob.client.remember(PLACE, 9.8, type="shared", key="P-12/limit")
        show(bob)

        print("they meet:")
        alice.start()
        wait_until(lambda: knows(alice, bob) and knows(bob, alice), "they hold the same")
        show(bob)
        wait_until(lambda: bob.client.recall("why do seals fail").hits, "bob has it in his index")
        for hit in bob.client.recall("why do seals fail", k=1).hits:
            (told,) = hit.entry.sources
            print(f"  bob recalls: {hit.entry.value}")
            print(f"  as {hit.entry.author_name} saw in {told.name}, {told.observations} times")

        print("alice takes it back:")
        print(f"  texts forgotten here: {alice.client.forget(note.id).forgotten}")
        wait_until(lambda: bob.client.memory_entry(note.id).state == "forgotten", "bob forgets")
        print(f"  bob recalls: {len(bob.client.recall('why do seals fail').hits)} texts")
    return 0


def count(peer: LocalPeer, key: str, times: int) -> None:
    """Count one by one: all in one request, so all or nothing."""
    one = WriteRequest(namespace=PLACE, type="counter", key=key, value=1)
    peer.client.remember_all([one] * times)


def knows(peer: LocalPeer, other: LocalPeer) -> bool:
    """Tell whether a peer has what the other wrote under both keys."""
    (failures,) = peer.client.memory_value("failures")
    (limit,) = peer.client.memory_value("P-12/limit")
    parts = (failures.counts, limit.entries)
    return all(other.name in {one.author_name for one in part} for part in parts)


def show(peer: LocalPeer) -> None:
    """Print what a peer holds under the two keys."""
    (failures,) = peer.client.memory_value("failures")
    (limit,) = peer.client.memory_value("P-12/limit")
    stands = ", ".join(sorted(f"{one.author_name} {one.value}" for one in limit.entries))
    print(f"  failures: {failures.value}; limit: {'in conflict, ' * limit.conflict}{stands}")


if __name__ == "__main__":
    sys.exit(main())
