"""Which engine runs a model: what `covey init` and `covey models` take, and what they say of it."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_inference.gguf_files import ARRAY, F32, STRING, Tensor, gguf, keys

from covey.inference.catalogue import known
from covey.peer.home import Home

Keys = dict[str, Any]


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cv") as folder:
        yield Path(folder) / "home"


def covey(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "covey.peer.cli", *arguments],
        env={**os.environ, "COVEY_HOME": str(home), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def init(home: Path, *arguments: str) -> None:
    done = covey(home, "init", "--name", "line-1", "--listen", "127.0.0.1", *arguments)
    assert done.returncode == 0, done.stderr


def model(
    folder: Path, name: str, *, vocabulary: str = "llama", architecture: str = "llama"
) -> Path:
    """A file with an output matrix, which either engine can run if its vocabulary is `llama`."""
    of = keys(
        architecture,
        tokenizer=("tokenizer.ggml.model", STRING, vocabulary),
        scores=("tokenizer.ggml.scores", ARRAY, (F32, [0.0, 0.0, 0.0])),
    )
    path = folder / f"{name}.gguf"
    path.write_bytes(gguf(of, [Tensor("token_embd.weight"), Tensor("output.weight")]))
    return path


def listed(home: Path) -> tuple[dict[str, str], str]:
    """Return the engine of each model, as JSON tells it, and the notes of the table."""
    found = json.loads(covey(home, "models", "ls", "--json").stdout)["items"]
    table = covey(home, "models", "ls")
    assert "ENGINE" in table.stdout.splitlines()[0]
    for one in found:
        (row,) = [line for line in table.stdout.splitlines() if line.startswith(one["name"] + " ")]
        assert one["engine"] in row.split()
    return {one["name"]: one["engine"] for one in found}, table.stderr


def test_init_writes_the_preferred_engine_and_refuses_one_that_is_none(home: Path) -> None:
    init(home, "--engine", "ctransformers")
    assert Home(home).config().models.engine == "ctransformers"
    assert 'engine = "ctransformers"' in (home / "config.toml").read_text()

    done = covey(home, "init", "--name", "x", "--engine", "vllm")
    assert done.returncode == 2
    assert "'auto', 'llama.cpp', 'ctransformers'" in done.stderr


def test_a_preference_is_followed_where_a_file_allows_it_and_explained_where_not(
    home: Path, tmp_path: Path
) -> None:
    init(home, "--engine", "ctransformers")
    for path in (model(tmp_path, "both"), model(tmp_path, "one", architecture="gemma3")):
        assert covey(home, "models", "add", str(path)).returncode == 0

    engines, notes = listed(home)

    assert engines == {"both": "ctransformers", "one": "llama.cpp"}
    assert "note: one runs on llama.cpp; ctransformers cannot run it: it runs architecture" in notes
    assert "both runs" not in notes


def test_an_engine_chosen_for_one_model_holds_for_it_whatever_is_preferred(
    home: Path, tmp_path: Path
) -> None:
    init(home)
    chosen = covey(
        home, "models", "add", str(model(tmp_path, "chosen")), "--engine", "ctransformers"
    )
    covey(home, "models", "add", str(model(tmp_path, "usual")))
    strange = model(tmp_path, "strange", architecture="gemma3")
    refused = covey(home, "models", "add", str(strange), "--engine", "ctransformers")

    assert "runs on ctransformers" in chosen.stdout
    assert refused.returncode == 0
    assert "note: strange runs on llama.cpp; ctransformers cannot run it: " in refused.stderr
    assert listed(home)[0] == {
        "usual": "llama.cpp",
        "strange": "llama.cpp",
        "chosen": "ctransformers",
    }


@pytest.mark.model
def test_a_file_is_converted_when_it_is_added_and_is_the_one_that_a_pull_fetches(
    home: Path, cached_models: Path
) -> None:
    source, made = known("smollm2-135m-instruct"), known("smollm2-135m-instruct-ct")
    assert source is not None
    assert made is not None
    init(home)
    path = cached_models / f"{source.name}-{source.digest[:16]}.gguf"

    added = covey(home, "models", "add", str(path), "--engine", "ctransformers", "--json")

    told = json.loads(added.stdout)
    assert (told["name"], told["engine"]) == ("smollm2-135m-instruct-ct", "ctransformers")
    assert (told["digest"], told["converted_from"]) == (made.digest, source.digest)
    assert path.exists()

    # With an engine chosen, the same file comes from the cache; llama.cpp makes the vectors.
    pulled = covey(home, "models", "pull", "--engine", "ctransformers")
    assert pulled.returncode == 0, pulled.stderr
    assert listed(home)[0] == {
        "smollm2-135m-instruct-ct": "ctransformers",
        "all-minilm-l6-v2": "llama.cpp",
    }
    # One that only ctransformers can run goes there whatever is asked for.
    path = cached_models / f"{made.name}-{made.digest[:16]}.gguf"
    again = covey(home, "models", "add", str(path), "--engine", "llama.cpp")
    assert "note: smollm2-135m-instruct-ct runs on ctransformers; llama.cpp cannot" in again.stderr
