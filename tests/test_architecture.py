"""The repository's own rules, checked by reading its imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("identity", "gossip", "inference", "peer")
# Each folder, and the covey folders it may import from besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "identity": set(),
    "gossip": {"identity"},
    "inference": set(),
    "peer": {"identity", "gossip", "inference"},
}
# The only modules that may touch the world; all the others are pure.
MAY_DO_IO = {
    "identity/keystore.py",
    "gossip/dht.py",
    "gossip/driver.py",
    "gossip/gate.py",
    "gossip/host.py",
    "gossip/lan.py",
    "gossip/libp2p_fixes.py",
    "gossip/links.py",
    "gossip/memory/driver.py",
    "gossip/pubsub.py",
    "gossip/seeking.py",
    "inference/held_sequence.py",
    "inference/llamacpp_engine.py",
    "inference/worker.py",
    "inference/pool.py",
    "inference/worker_process.py",
    "inference/model_files.py",
    "inference/model_pull.py",
    "peer/clock.py",
    "peer/logs.py",
    "peer/environment.py",
    "peer/lmdb_file.py",
    "peer/store.py",
    "peer/memory/store.py",
    "peer/memory/recall_terms.py",
    "peer/records.py",
    "peer/home.py",
    "peer/data_sources.py",
    "peer/discovery.py",
    "peer/memory/erasing.py",
    "peer/events.py",
    "peer/executor.py",
    "peer/service.py",
    "peer/joining.py",
    "peer/first_books.py",
    "peer/members.py",
    "peer/renewing.py",
    "peer/memory/shared.py",
    "peer/memory/carrying.py",
    "peer/memory/exchanging.py",
    "peer/memory/surveying.py",
    "peer/memory/indexing.py",
    "peer/adverts.py",
    "peer/neighbours.py",
    "peer/local_mesh.py",
    "peer/client/",
    "peer/daemon.py",
    "peer/api/",
    "peer/cli/",
}
IO_LIBRARIES = {
    "trio",
    "libp2p",
    "lmdb",
    "sqlite3",
    "subprocess",
    "socket",
    "http",
    "httpx",
    "hypercorn",
    "starlette",
    "ctransformers",
    "xllamacpp",
    "zeroconf",
}
SOURCES = [
    path for folder in (*FOLDERS, "tests", "examples") for path in (ROOT / folder).rglob("*.py")
]


def absolute_imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_our_packages_are_imported_by_their_installed_name(path: Path) -> None:
    bare = [name for name in absolute_imports(path) if name.split(".")[0] in FOLDERS]
    assert bare == [], f"write covey.{bare[0]}: the bare name is a second copy of the module"


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_between_folders_point_downwards(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for name in absolute_imports(path):
            if name.startswith("covey."):
                target = name.split(".")[1]
                assert target in MAY_IMPORT[folder] | {folder}, f"{path.name} imports {name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_only_the_named_modules_do_io(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        place = str(path.relative_to(ROOT))
        if not any(
            place == one or (one.endswith("/") and place.startswith(one)) for one in MAY_DO_IO
        ):
            used = {name.split(".")[0] for name in absolute_imports(path)} & IO_LIBRARIES
            assert not used, f"{path.relative_to(ROOT)} imports {used}: move it behind an effect"


def test_every_exception_to_the_rule_is_still_needed() -> None:
    gone = [place for place in MAY_DO_IO if not (ROOT / place).exists()]
    assert gone == [], f"{gone} may do I/O, but there is no such module"


@pytest.mark.parametrize("library", ["libp2p", "lmdb", "xllamacpp", "ctransformers", "zeroconf"])
def test_each_engine_room_has_one_door(library: str) -> None:
    adapters = {
        "libp2p": {
            "gossip/dht.py",
            "gossip/gate.py",
            "gossip/host.py",
            "gossip/libp2p_fixes.py",
            "gossip/pubsub.py",
        },
        "lmdb": {"peer/environment.py", "peer/lmdb_file.py"},
        "xllamacpp": {"inference/llamacpp_engine.py"},
        "ctransformers": {"inference/held_sequence.py"},
        "zeroconf": {"gossip/lan.py"},
    }
    users = {
        str(path.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if any(name.split(".")[0] == library for name in absolute_imports(path))
    }
    assert users == adapters[library]
