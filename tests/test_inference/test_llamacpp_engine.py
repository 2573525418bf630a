"""llama.cpp in its worker: what it is told, and what it must not leave open."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import trio
from test_inference.echo_pool import until

from covey.inference.engine import GenerateRequest, LoadSpec
from covey.inference.errors import BadModel, TooLong
from covey.inference.llamacpp_engine import parameters_of
from covey.inference.model_files import ModelFile, add_model, list_models
from covey.inference.pool import Pool, open_pool
from covey.inference.worker_process import PoolSettings

pytestmark = pytest.mark.model
LONG_S = 60.0
HELLO = GenerateRequest(prompt="Hello", max_tokens=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, cached_models: Path) -> ModelFile:
    (path,) = cached_models.glob(f"smollm2-135m-instruct-{'?' * 16}.gguf")
    return add_model(path, tmp_path_factory.mktemp("models"), link=True)


def offer(pool: Pool, file: ModelFile) -> None:
    pool.offer([file], {"text": file.info.name})


def test_llama_cpp_is_told_every_limit() -> None:
    told = parameters_of(
        LoadSpec(path="/m", name="m", role="text", context_tokens=2048, slots=2, threads=3)
    )
    assert (told.n_ctx, told.n_parallel) == (2048, 2)
    assert (told.cpuparams.n_threads, told.cpuparams_batch.n_threads) == (3, 3)
    assert told.cache_ram_mib == 64
    assert (told.ui, told.endpoint_slots, told.embedding) == (False, False, False)


def test_a_context_of_zero_never_means_the_files_own() -> None:
    told = parameters_of(LoadSpec(path="/m", name="m", role="text", context_tokens=0))
    assert told.n_ctx == 1


def test_an_encoder_has_room_for_a_whole_text_in_one_batch() -> None:
    told = parameters_of(LoadSpec(path="/m", name="m", role="embedding", context_tokens=2048))
    assert told.embedding is True
    assert (told.n_batch, told.n_ubatch) == (512, 512)


SOCKETS = """
import json, sys, psutil
from covey.inference.engine import GenerateRequest, LoadSpec
from covey.inference.llamacpp_engine import LlamaCppEngine

engine = LlamaCppEngine(LoadSpec(path=sys.argv[1], name="m", role="text"))
answer = engine.generate(GenerateRequest(prompt="Hello", max_tokens=2), lambda _: False)
sockets = [str(one) for one in psutil.Process().net_connections("all")]
print(json.dumps([sockets, answer.completion_tokens]), flush=True)
"""


def test_no_socket_is_open_while_a_model_is_loaded(model: ModelFile, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SOCKETS, str(model.path)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        check=True,
        timeout=LONG_S,
    )
    assert json.loads(done.stdout) == [[], 2]
    assert list(tmp_path.iterdir()) == []


async def test_a_worker_has_the_threads_that_were_asked_for(model: ModelFile) -> None:
    async def threads(asked: int) -> int:
        async with open_pool(PoolSettings(threads=asked)) as pool:
            offer(pool, model)
            await pool.generate(HELLO, deadline_s=LONG_S)
            pid = pool.worker_pid(model.info.name)
            # The thread of the request ends a moment after its answer.
            least = [1000]

            def is_settled() -> bool:
                before, least[0] = least[0], psutil.Process(pid).num_threads()
                return before == least[0]

            await until(is_settled, "its threads are as many as a moment ago")
            return least[0]

    assert await threads(3) - await threads(1) == 2


async def test_an_absurd_context_in_the_file_is_clamped(
    cached_models: Path, tmp_path: Path
) -> None:
    def absurd_copy() -> ModelFile:
        (path,) = cached_models.glob(f"smollm2-135m-instruct-{'?' * 16}.gguf")
        data = bytearray(path.read_bytes())
        at = data.index(b"llama.context_length") + len(b"llama.context_length") + 4
        data[at : at + 4] = b"\xff\xff\xff\x7f"
        (tmp_path / "absurd.gguf").write_bytes(data)
        ((found,), _) = list_models(tmp_path)
        return found

    file = await trio.to_thread.run_sync(absurd_copy)
    assert file.header.context_tokens == 1 << 24
    async with open_pool(PoolSettings()) as pool:
        offer(pool, file)
        with pytest.raises(TooLong, match="the model takes 1024"):
            await pool.generate(GenerateRequest(prompt="x " * 1100), deadline_s=LONG_S)


async def test_a_sound_header_over_no_weights_is_refused_by_the_engine_and_counted(
    cached_models: Path, tmp_path: Path
) -> None:
    """What the probe cannot see: tensors that the architecture needs, under other names."""

    def misnamed_copy() -> ModelFile:
        (path,) = cached_models.glob(f"smollm2-135m-instruct-{'?' * 16}.gguf")
        data = path.read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
        (tmp_path / "misnamed.gguf").write_bytes(data)
        ((found,), _) = list_models(tmp_path)
        return found

    file = await trio.to_thread.run_sync(misnamed_copy)
    async with open_pool(PoolSettings()) as pool:
        offer(pool, file)
        with pytest.raises(BadModel, match=r"llama\.cpp cannot load misnamed\.gguf"):
            await pool.generate(HELLO, deadline_s=LONG_S)
        crashes = pool.supervisions[file.info.digest].crashes
        await until(lambda: len(crashes) == 1, "the failed start is counted")


async def test_a_worker_killed_while_it_loads_leaves_no_folder_behind(
    model: ModelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def sockets() -> list[Path]:
        return list(tmp_path.glob("covey-worker-*/covey-*"))

    def left() -> list[Path]:
        return list(tmp_path.iterdir())

    async with open_pool(PoolSettings()) as pool, trio.open_nursery() as nursery:
        offer(pool, model)

        async def ask() -> None:
            await pool.generate(HELLO, deadline_s=LONG_S)

        nursery.start_soon(ask)
        await until(lambda: sockets() != [], "it has made its private folder")
        nursery.cancel_scope.cancel()
    assert left() == []
