"""Model files: only what is sound, and still what was added, is ever offered to an engine."""

import hashlib
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from test_inference.gguf_files import ARRAY, STRING, Tensor, gguf, keys

from covey.inference.errors import BadModel
from covey.inference.model_files import ModelFile, add_model, digest_of, list_models, remove_model

SOUND = gguf()
DIGEST = hashlib.sha256(SOUND).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "Tiny.gguf"
    path.write_bytes(SOUND)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models"


def only(folder: Path) -> ModelFile:
    (file,), refused = list_models(folder)
    assert refused == {}
    return file


def the_refusal(folder: Path) -> str:
    found, refused = list_models(folder)
    assert found == []
    (why,) = refused.values()
    return why


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


@pytest.mark.parametrize("link", [False, True])
def test_a_model_that_is_added_is_listed_with_its_digest_until_it_is_removed(
    source: Path, folder: Path, link: bool
) -> None:
    added = add_model(source, folder, link=link)

    assert added == only(folder)
    assert added.info.name == "tiny"
    assert added.info.digest == DIGEST == digest_of(source)
    assert added.info.size_bytes == len(SOUND)
    assert (added.info.role, added.info.architecture, added.info.licence) == (
        "text",
        "llama",
        "mit",
    )
    assert files_in(folder) == {"tiny.gguf", "tiny.json"}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (added.path.stat().st_ino == source.stat().st_ino) is link

    assert remove_model("tiny", folder)
    assert files_in(folder) == set()
    assert not remove_model("tiny", folder)
    assert source.exists()


def test_an_encoder_is_listed_as_an_embedding_model(source: Path, folder: Path) -> None:
    source.write_bytes(gguf(keys("nomic-bert")))
    assert add_model(source, folder, name="encoder").info.role == "embedding"


def test_adding_under_a_name_that_is_taken_replaces_the_model(source: Path, folder: Path) -> None:
    add_model(source, folder)
    source.write_bytes(gguf(data=b"\x01" * 128))

    added = add_model(source, folder)

    assert added.info.digest != DIGEST
    assert only(folder) == added


def test_a_file_put_there_by_hand_is_hashed_and_listed(folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.gguf").write_bytes(SOUND)

    assert only(folder).info.digest == DIGEST
    assert files_in(folder) == {"mine.gguf", "mine.json"}


def test_a_file_changed_after_it_was_added_is_refused_with_the_remedy(
    source: Path, folder: Path
) -> None:
    added = add_model(source, folder)
    was = added.path.stat()
    added.path.write_bytes(SOUND[:-1] + b"\x01")
    os.utime(added.path, ns=(was.st_atime_ns, was.st_mtime_ns + 1))
    assert added.path.stat().st_size == was.st_size

    assert "not what was added" in the_refusal(folder)
    assert "covey models rm tiny" in the_refusal(folder)
    with pytest.raises(BadModel, match="covey models rm tiny"):
        added.check_unchanged()


def test_a_file_only_touched_is_hashed_again_and_kept(source: Path, folder: Path) -> None:
    added = add_model(source, folder)
    os.utime(added.path, ns=(0, 0))

    again = only(folder)

    assert again.info == added.info
    again.check_unchanged()
    with pytest.raises(BadModel, match="was changed"):
        added.check_unchanged()


def test_a_file_that_is_gone_is_not_loaded(source: Path, folder: Path) -> None:
    added = add_model(source, folder)
    added.path.unlink()
    with pytest.raises(BadModel, match="is gone"):
        added.check_unchanged()


@pytest.mark.parametrize(
    "note",
    [b"", b"\xff\xfe", b"[1]", b'{"digest": 7}', b"[" * 100_000, b'{"digest": "\xff"}'],
)
def test_a_note_that_is_garbage_counts_as_none(source: Path, folder: Path, note: bytes) -> None:
    added = add_model(source, folder)
    (folder / "tiny.json").write_bytes(note)

    assert only(folder).info == added.info
    assert msgspec.json.decode((folder / "tiny.json").read_bytes())["digest"] == DIGEST


@pytest.mark.parametrize(
    ("why", "data"),
    [
        ("cut within its header", b""),
        ("not a GGUF file", b"PK\x03\x04" + bytes(1000)),
        ("the file is cut", SOUND[:-1]),
        ("architecture 'warp' is not known", gguf(keys("warp"))),
    ],
)
def test_what_is_no_model_is_neither_added_nor_listed(
    source: Path, folder: Path, why: str, data: bytes
) -> None:
    source.write_bytes(data)

    with pytest.raises(BadModel, match=why):
        add_model(source, folder)
    assert files_in(folder) == set()

    folder.mkdir(exist_ok=True)
    (folder / "by-hand.gguf").write_bytes(data)
    assert why in the_refusal(folder)


def test_what_is_no_file_is_refused_without_being_read(tmp_path: Path, folder: Path) -> None:
    folder.mkdir()
    pipe = folder / "pipe.gguf"
    os.mkfifo(pipe)
    (folder / "folder.gguf").mkdir()
    (folder / "nowhere.gguf").symlink_to(tmp_path / "nothing")

    found, refused = list_models(folder)

    assert found == []
    assert "a device or a pipe" in refused["pipe.gguf"]
    assert "is a folder" in refused["folder.gguf"]
    assert "there is no file" in refused["nowhere.gguf"]
    for path, why in ((pipe, "a pipe"), (folder, "a folder"), (tmp_path / "none", "no file")):
        with pytest.raises(BadModel, match=why):
            add_model(path, folder)
    assert list_models(tmp_path / "nowhere") == ([], {})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../evil", "a/b", "/evil", ".hidden", "a b", "a\n", "ä", "x" * 65]
)
def test_a_name_that_could_mean_another_place_is_refused(
    source: Path, folder: Path, name: str
) -> None:
    outside = folder.parent / "evil.gguf"
    outside.write_bytes(SOUND)

    with pytest.raises(BadModel, match="is no name for a model"):
        add_model(source, folder, name=name)

    assert not remove_model(name, folder)
    assert outside.read_bytes() == SOUND
    assert files_in(folder) == set()


def test_a_file_with_such_a_name_is_refused_until_it_is_renamed(folder: Path) -> None:
    folder.mkdir()
    (folder / "my model.gguf").write_bytes(SOUND)
    assert "rename the file" in the_refusal(folder)


def test_an_add_that_fails_midway_leaves_what_was_there(source: Path, folder: Path) -> None:
    before = add_model(source, folder)
    source.write_bytes(gguf(data=b"\x01" * 1_000_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            add_model(source, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert only(folder) == before
    assert files_in(folder) == {"tiny.gguf", "tiny.json"}


def test_what_a_killed_add_left_behind_goes_with_the_next(source: Path, folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    folder.mkdir()
    (folder / f".adding-{gone.pid}-1").write_bytes(SOUND)
    (folder / f".adding-{gone.pid}-1.converting").write_bytes(SOUND)
    under_way = folder / f".adding-{os.getppid()}-1"
    under_way.write_bytes(SOUND)

    add_model(source, folder)

    assert files_in(folder) == {"tiny.gguf", "tiny.json", under_way.name}


def test_a_crash_while_a_model_is_replaced_leaves_no_note_of_another_file(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model(source, folder)
    source.write_bytes(gguf(data=b"\x01" * 128))
    real = os.replace

    def replace_and_crash(old: Path, new: Path) -> None:
        real(old, new)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", replace_and_crash)
    with pytest.raises(KeyboardInterrupt):
        add_model(source, folder)
    monkeypatch.undo()

    assert only(folder).info.digest == digest_of(source)


RUNS_ON_BOTH = gguf(
    keys(tokenizer=("tokenizer.ggml.model", STRING, "llama")),
    [Tensor("token_embd.weight"), Tensor("output.weight")],
)


def test_each_model_has_its_engine_and_those_on_the_preferred_one_come_first(
    source: Path, folder: Path
) -> None:
    add_model(source, folder, name="a-llama-cpp-only")
    source.write_bytes(RUNS_ON_BOTH)
    add_model(source, folder, name="b-both")
    chosen = add_model(source, folder, name="c-chosen", engine="ctransformers")
    assert (chosen.info.engine, chosen.overruled) == ("ctransformers", "")

    def engines(preferred: str) -> list[tuple[str, str]]:
        return [(one.info.name, one.info.engine) for one in list_models(folder, preferred)[0]]

    assert engines("auto") == [
        ("a-llama-cpp-only", "llama.cpp"),
        ("b-both", "llama.cpp"),
        ("c-chosen", "ctransformers"),
    ]
    assert engines("ctransformers") == [
        ("b-both", "ctransformers"),
        ("c-chosen", "ctransformers"),
        ("a-llama-cpp-only", "llama.cpp"),
    ]
    last = list_models(folder, "ctransformers")[0][-1]
    assert last.overruled.startswith("ctransformers cannot run it: ")

    os.utime(chosen.path, ns=(0, 0))
    assert ("c-chosen", "ctransformers") in engines("auto")


def test_where_ctransformers_has_no_library_its_files_are_refused_with_the_reason(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.write_bytes(RUNS_ON_BOTH)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    added = add_model(source, folder, engine="ctransformers")
    assert added.info.engine == "llama.cpp"
    assert "it has no library for aarch64" in added.overruled

    own = ("covey.tokenizer.tokens", ARRAY, (STRING, ["a"]))
    source.write_bytes(gguf(keys(own=own), [Tensor("output.weight")]))
    with pytest.raises(BadModel, match=r"no engine here can run it: .* no library for aarch64"):
        add_model(source, folder, name="converted")
    assert files_in(folder) == {"tiny.gguf", "tiny.json"}
