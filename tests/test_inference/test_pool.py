"""The pool, with real worker processes: whatever a worker does, its requests end with a reason, and
nothing else is harmed.
"""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing
from test_inference.echo_pool import ECHO, echo_model, offer, say, until
from test_inference.gguf_files import gguf

from covey.inference.echo_engine import ABORT, CRASH, EAT, HANG, HOLD, HOLD_S, REFUSE, SLOW
from covey.inference.engine import GenerateRequest
from covey.inference.errors import (
    BadModel,
    BadRequest,
    Busy,
    ModelError,
    NoModel,
    OutOfMemory,
    TookTooLong,
    TooLong,
    WorkerDied,
)
from covey.inference.pool import Pool, open_pool
from covey.inference.supervision import PINGS_MISSED_MAX, Supervision

LONG_S = 30.0


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that workers take for temporary files."""
    folder = tmp_path / "t"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def entries(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


async def echoed(pool: Pool, text: str = "well?", *, model: str | None = None) -> int:
    """See that a model answers, and return its worker's process id."""
    answer = await pool.generate(say(text), model=model, deadline_s=LONG_S)
    assert answer.text == text
    pid = pool.worker_pid(answer.model)
    assert pid is not None
    return pid


async def failure_of(pool: Pool, text: str, *, deadline_s: float = LONG_S) -> ModelError:
    with pytest.raises(ModelError) as failed:
        await pool.generate(say(text), deadline_s=deadline_s)
    return failed.value


async def start_hanging(pool: Pool, nursery: trio.Nursery) -> tuple[int, list[ModelError]]:
    """Let a request hang in the default model's worker; return its process id, and where the
    request's failure will be.
    """
    pid = await echoed(pool)
    failures: list[ModelError] = []

    async def hang() -> None:
        failures.append(await failure_of(pool, HANG))

    nursery.start_soon(hang)
    await trio.testing.wait_all_tasks_blocked()
    return pid, failures


def fail(_text: str) -> None:
    raise ZeroDivisionError


def crash_times(pool: Pool) -> list[float]:
    (supervision,) = pool.supervisions.values()
    return supervision.crashes


async def test_a_worker_that_crashes_fails_its_requests_and_no_others(tmp_path: Path) -> None:
    alpha, beta = echo_model(tmp_path), echo_model(tmp_path, "beta")
    words = f"{SLOW} " + "word " * 20
    async with open_pool(ECHO) as pool, trio.open_nursery() as nursery:
        offer(pool, alpha, beta)
        pid, others = await start_hanging(pool, nursery)
        heard = trio.Event()
        unharmed: list[str] = []

        async def other_model() -> None:
            answer = await pool.generate(
                say(words), model="beta", deadline_s=LONG_S, on_piece=lambda _: heard.set()
            )
            unharmed.append(answer.text)

        nursery.start_soon(other_model)
        await heard.wait()

        failed = await failure_of(pool, CRASH)

        assert type(failed) is WorkerDied
        assert str(failed) == "the process of model alpha ended: killed by SIGSEGV"
        await until(lambda: len(unharmed) == 1, "the other model answers")
        assert unharmed == [words.strip()]
        assert [str(one) for one in others] == [str(failed)]
        assert await echoed(pool) != pid
        crashes = pool.supervisions[alpha.info.digest].crashes
        assert trio.current_time() - crashes[0] >= 0.5, "the first back-off"
        assert pool.supervisions[beta.info.digest].crashes == []


async def test_a_hung_request_ends_at_its_deadline_and_its_worker_after_the_grace(
    tmp_path: Path,
) -> None:
    async with (
        open_pool(replace(ECHO, grace_s=1.0)) as pool,
        trio.open_nursery() as nursery,
    ):
        offer(pool, echo_model(tmp_path))
        pid, others = await start_hanging(pool, nursery)

        failed = await failure_of(pool, f"{HANG} too", deadline_s=0.1)

        assert type(failed) is TookTooLong
        assert str(failed) == "model alpha did not answer within 0.1 s"
        assert psutil.pid_exists(pid), "it is given the grace to reach its next token"
        await until(lambda: others != [], "the worker is killed")
        assert type(others[0]) is WorkerDied
        assert "it hung: a request did not end within 1 s of its deadline" in str(others[0])
        assert await echoed(pool) != pid


async def test_a_stopped_worker_is_killed_for_not_answering_pings(tmp_path: Path) -> None:
    async with (
        open_pool(replace(ECHO, ping_s=0.2)) as pool,
        trio.open_nursery() as nursery,
    ):
        offer(pool, echo_model(tmp_path))
        pid, failures = await start_hanging(pool, nursery)

        os.kill(pid, signal.SIGSTOP)

        await until(lambda: failures != [], "the worker is killed")
        assert type(failures[0]) is WorkerDied
        assert "it hung: no answer to pings" in str(failures[0])
        assert await echoed(pool) != pid


async def test_a_worker_that_loads_is_not_pinged_to_death(tmp_path: Path) -> None:
    """Native code keeps Python waiting while it loads: no ping is answered then."""
    async with open_pool(replace(ECHO, ping_s=0.3)) as pool:
        offer(pool, echo_model(tmp_path, HOLD))
        assert HOLD_S > 0.3 * (PINGS_MISSED_MAX + 1)
        await echoed(pool)
        assert crash_times(pool) == []


async def test_a_request_that_eats_memory_fails_alone(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        pid = await echoed(pool)

        failed = await failure_of(pool, EAT)

        assert type(failed) is OutOfMemory
        assert "ran out of its memory" in str(failed)
        assert await echoed(pool) == pid


@pytest.mark.parametrize(
    ("signal_sent", "kind", "why"),
    [
        (signal.SIGKILL, OutOfMemory, "killed by SIGKILL, as the system does for want of memory"),
        (signal.SIGABRT, WorkerDied, "killed by SIGABRT"),
        (signal.SIGBUS, WorkerDied, "killed by SIGBUS"),
    ],
)
async def test_how_a_worker_ended_is_told(
    tmp_path: Path, signal_sent: signal.Signals, kind: type[ModelError], why: str
) -> None:
    async with open_pool(ECHO) as pool, trio.open_nursery() as nursery:
        offer(pool, echo_model(tmp_path))
        pid, failures = await start_hanging(pool, nursery)

        os.kill(pid, signal_sent)

        await until(lambda: failures != [], "the worker's end is seen")
        assert type(failures[0]) is kind
        assert str(failures[0]) == f"the process of model alpha ended: {why}"


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        (CRASH, WorkerDied, "killed by SIGSEGV"),
        (ABORT, OutOfMemory, "killed by SIGABRT while it loaded"),
        (EAT, OutOfMemory, "ran out of its memory"),
        (REFUSE, BadModel, "told to refuse"),
    ],
)
async def test_a_failure_to_load_counts_for_back_off_and_quarantine(
    tmp_path: Path, name: str, kind: type[ModelError], why: str
) -> None:
    async with open_pool(ECHO) as pool:
        file = echo_model(tmp_path, name)
        offer(pool, file)
        now = trio.current_time()
        earlier = Supervision(crashes=[now - 30, now - 20, now - 10])
        pool.supervisions[file.info.digest] = earlier
        assert pool.models()[0][1] == "ready"

        failed = await failure_of(pool, "hello")

        assert type(failed) is kind
        assert why in str(failed)
        await until(lambda: len(earlier.crashes) == 4, "the failed start is counted")
        assert pool.models()[0][1] == "quarantined"
        assert earlier.wait_s(trio.current_time()) > 0.0
        refused = await failure_of(pool, "again")
        assert type(refused) is BadModel
        assert "failed 4 times in 5 minutes and is set aside (the last time: " in str(refused)
        assert why in str(refused)
        assert pool.worker_pid(name) is None


async def test_a_request_that_crashed_its_worker_twice_is_not_tried_again(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        for _ in range(2):
            assert "SIGSEGV" in str(await failure_of(pool, CRASH))
        await until(lambda: len(crash_times(pool)) == 2, "both crashes are counted")

        refused = await failure_of(pool, CRASH)

        assert type(refused) is WorkerDied
        assert "under way in two crashes; it is not tried again" in str(refused)
        assert len(crash_times(pool)) == 2
        assert pool.worker_pid("alpha") is None


async def test_more_requests_than_may_wait_are_refused_with_a_time_to_come_back(
    tmp_path: Path,
) -> None:
    async with open_pool(replace(ECHO, slots=1, waiting=1)) as pool, trio.open_nursery() as nursery:
        offer(pool, echo_model(tmp_path))
        await start_hanging(pool, nursery)
        nursery.start_soon(failure_of, pool, "waits")
        await trio.testing.wait_all_tasks_blocked()

        refused = await failure_of(pool, "one too many")

        assert type(refused) is Busy
        assert str(refused) == "1 requests wait for model alpha already"
        assert refused.retry_after_s == 2.0
        nursery.cancel_scope.cancel()


async def test_a_deadline_in_the_queue_ends_the_wait(tmp_path: Path) -> None:
    async with open_pool(replace(ECHO, slots=1)) as pool, trio.open_nursery() as nursery:
        offer(pool, echo_model(tmp_path))
        pid, _ = await start_hanging(pool, nursery)
        assert type(await failure_of(pool, "waits", deadline_s=0.1)) is TookTooLong
        assert psutil.pid_exists(pid)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["deadline", "cancel", "listener"])
async def test_who_stops_waiting_frees_the_slot_at_the_next_token(tmp_path: Path, how: str) -> None:
    words = f"{SLOW} " + "word " * 900
    async with open_pool(replace(ECHO, slots=1, grace_s=LONG_S)) as pool:
        offer(pool, echo_model(tmp_path))
        pid = await echoed(pool)

        if how == "deadline":
            assert type(await failure_of(pool, words, deadline_s=0.2)) is TookTooLong
        elif how == "cancel":
            with trio.CancelScope() as scope:
                await pool.generate(
                    say(words), deadline_s=LONG_S, on_piece=lambda _: scope.cancel()
                )
            assert scope.cancelled_caught
        else:
            with pytest.raises(ZeroDivisionError):
                await pool.generate(say(words), deadline_s=LONG_S, on_piece=fail)

        # The words would take 18 s in all.
        with trio.fail_after(10):
            assert await echoed(pool) == pid


async def test_a_slot_is_not_given_away_while_native_code_still_works_in_it(
    tmp_path: Path,
) -> None:
    async with open_pool(replace(ECHO, slots=1, grace_s=LONG_S)) as pool:
        offer(pool, echo_model(tmp_path))
        await echoed(pool)
        assert type(await failure_of(pool, HANG, deadline_s=0.1)) is TookTooLong
        assert type(await failure_of(pool, "next", deadline_s=0.3)) is TookTooLong


async def test_a_worker_that_nobody_asks_is_ended_and_started_again_at_once_when_needed(
    tmp_path: Path,
) -> None:
    async with open_pool(replace(ECHO, idle_s=0.2)) as pool:
        offer(pool, echo_model(tmp_path))
        pid = await echoed(pool)
        assert pool.models()[0][1] == "loaded"

        await until(lambda: pool.worker_pid("alpha") is None, "it is unloaded")

        assert not psutil.pid_exists(pid)
        assert pool.models()[0][1] == "ready"
        await echoed(pool)
        assert crash_times(pool) == []


@pytest.mark.parametrize("name", ["alpha", HOLD])
async def test_a_worker_at_work_or_loading_for_somebody_is_not_idle(
    tmp_path: Path, name: str
) -> None:
    async with open_pool(replace(ECHO, idle_s=0.1)) as pool:
        offer(pool, echo_model(tmp_path, name))
        answer = await pool.generate(say(f"{SLOW} " + "word " * 29), deadline_s=LONG_S)
        assert answer.completion_tokens == 30


async def test_a_removed_models_worker_is_ended_and_that_is_no_crash(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool, trio.open_nursery() as nursery:
        offer(pool, echo_model(tmp_path), echo_model(tmp_path, "beta"))
        pid, failures = await start_hanging(pool, nursery)
        await echoed(pool, model="beta")

        offer(pool, echo_model(tmp_path, "beta"))

        await until(lambda: failures != [], "its request fails")
        assert "its model was removed" in str(failures[0])
        assert not psutil.pid_exists(pid)
        assert [one.crashes for one in pool.supervisions.values()] == [[], []]
        assert pool.worker_pid("beta") is not None
        with pytest.raises(NoModel, match=r"no model 'alpha' \(it has: beta\)"):
            await pool.generate(say("hello"), model="alpha", deadline_s=LONG_S)


async def test_a_file_changed_since_it_was_checked_never_reaches_an_engine(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        file = echo_model(tmp_path)
        offer(pool, file)
        await trio.Path(file.path).write_bytes(gguf(data=b"\x01" * 128))

        failed = await failure_of(pool, "hello")

        assert type(failed) is BadModel
        assert "was changed since it was checked" in str(failed)
        assert pool.worker_pid("alpha") is None


@pytest.mark.parametrize("name", ["alpha", HANG])
async def test_leaving_the_pool_ends_every_worker_and_leaves_nothing_behind(
    tmp_path: Path, temporary: Path, name: str
) -> None:
    """A worker that hangs while it loads, as one that works."""
    files = [echo_model(tmp_path, name), echo_model(tmp_path, "beta")]
    async with trio.open_nursery() as nursery:
        async with open_pool(ECHO) as pool:
            offer(pool, *files)
            nursery.start_soon(failure_of, pool, HANG)
            await until(lambda: pool.worker_pid(name) is not None, "the first runs")
            pids = [pool.worker_pid(name), await echoed(pool, model="beta")]
            assert len(entries(temporary)) == 2

        assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)
        assert entries(temporary) == []


DAEMON = """
import sys, trio
from pathlib import Path
from test_inference.echo_pool import ECHO, echo_model, offer, say, until
from covey.inference.echo_engine import HANG
from covey.inference.pool import open_pool

async def main():
    async with open_pool(ECHO) as pool, trio.open_nursery() as nursery:
        offer(pool, echo_model(Path(sys.argv[1])))
        await pool.generate(say("hello"), deadline_s=30)
        print(pool.worker_pid("alpha"), flush=True)
        await pool.generate(say(HANG), deadline_s=30)

trio.run(main)
"""


def start_daemon(folder: Path, temporary: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DAEMON, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(Path(__file__).parents[1])},
    )


async def test_no_worker_survives_a_killed_daemon_and_the_next_one_cleans_up(
    tmp_path: Path, temporary: Path
) -> None:
    with start_daemon(tmp_path, temporary) as daemon:
        assert daemon.stdout is not None
        worker = psutil.Process(int(await trio.to_thread.run_sync(daemon.stdout.readline)))
        daemon.kill()
        daemon.wait()

    def is_gone() -> bool:
        # Who adopts it may be slow to reap it.
        return not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE

    await until(is_gone, "the worker ends")
    assert len(entries(temporary)) == 1
    async with open_pool(ECHO):
        assert entries(temporary) == []


def write_impostor(folder: Path, does: str) -> Path:
    path = folder / "impostor"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\n"
        f"requests, answers = int(sys.argv[4]), int(sys.argv[5])\n{does}\n"
    )
    path.chmod(0o700)
    return path


ANSWERS_ANOTHER_WAY = """
from covey.inference.worker_protocol import Ready, Vectors, encode_frame
os.read(requests, 65536)
os.write(answers, encode_frame(Ready(0.0)))
os.read(requests, 65536)
os.write(answers, encode_frame(Vectors(1, ((1.0,),))))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("sys.exit(3)", "ended: with exit code 3"),
        ("os.write(answers, bytes([255] * 9)); time.sleep(60)", "it sent what is no frame"),
        ("os.close(answers); time.sleep(60)", "it closed its pipe and did not end"),
        (ANSWERS_ANOTHER_WAY, "an answer of another kind"),
    ],
)
async def test_a_worker_that_does_not_keep_to_the_protocol_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, does: str, why: str
) -> None:
    impostor = write_impostor(tmp_path, does)
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        monkeypatch.setattr(sys, "executable", str(impostor))

        failed = await failure_of(pool, "hello")

        assert type(failed) is WorkerDied
        assert why in str(failed)
        await until(lambda: len(crash_times(pool)) == 1, "it is counted")
        monkeypatch.undo()
        await echoed(pool)


async def test_a_process_that_cannot_be_started_is_a_reason_and_leaves_nothing(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
        before = psutil.Process().num_fds()

        failed = await failure_of(pool, "hello")

        assert type(failed) is WorkerDied
        assert "no process could be started for model alpha" in str(failed)
        assert psutil.Process().num_fds() == before
        assert entries(temporary) == []
        assert pool.worker_pid("alpha") is None


@pytest.mark.parametrize(
    ("request_", "kind", "why"),
    [
        (GenerateRequest(), BadRequest, "the prompt is empty"),
        (GenerateRequest(prompt=""), BadRequest, "the prompt is empty"),
        (say("hello", max_tokens=0), BadRequest, "max_tokens is 0"),
        (say("hello", max_tokens=-1), BadRequest, "max_tokens is -1"),
        (say("half a pair: \ud83d"), BadRequest, "cannot be given to a model"),
        (
            GenerateRequest(prompt="x", grammar="x" * 8_400_000),
            BadRequest,
            "over the limit of 8388608",
        ),
        (
            GenerateRequest(prompt="x", grammar='root ::= "a"', json_schema={}),
            BadRequest,
            "exclude each other",
        ),
        (say("x" * 16_385), TooLong, "has 16385 bytes; model alpha takes 1024 tokens"),
    ],
)  # fmt: skip
async def test_what_cannot_be_answered_is_refused_before_a_worker_starts(
    tmp_path: Path, request_: GenerateRequest, kind: type[ModelError], why: str
) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))

        with pytest.raises(kind, match=why):
            await pool.generate(request_, deadline_s=LONG_S)

        assert pool.worker_pid("alpha") is None


async def test_a_role_without_a_model_says_how_to_get_one(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        with pytest.raises(NoModel, match="no embedding model; get one with: covey models pull"):
            await pool.embed(["hello"], deadline_s=LONG_S)


async def test_texts_beyond_one_batch_come_back_in_their_order(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path, role="embedding"))

        vectors = await pool.embed(["x" * (n % 3) for n in range(150)], deadline_s=LONG_S)

        assert vectors == [[1.0, 0.0] if n % 3 == 1 else [0.0, 1.0] for n in range(150)]
        assert await pool.embed([], deadline_s=LONG_S) == []


@pytest.mark.parametrize(
    ("role", "context_tokens", "in_file", "for_one_request"),
    [("text", 4096, 4096, 1024), ("text", 65_536, 4096, 1024), ("text", 512, 4096, 128),
     ("embedding", 512, 4096, 512)],
)  # fmt: skip
async def test_one_request_may_have_what_file_and_settings_both_allow(
    tmp_path: Path, role: str, context_tokens: int, in_file: int, for_one_request: int
) -> None:
    async with open_pool(replace(ECHO, context_tokens=context_tokens)) as pool:
        file = echo_model(tmp_path, role=role)
        assert file.info.context_tokens == in_file
        offer(pool, file)
        assert [info.context_tokens for info, _ in pool.models()] == [for_one_request]
        assert pool.info(None, file.info.role).context_tokens == for_one_request


async def test_requests_at_once_each_get_their_own_answer(tmp_path: Path) -> None:
    async with open_pool(ECHO) as pool:
        offer(pool, echo_model(tmp_path))
        pids: set[int] = set()

        async def ask(text: str) -> None:
            pids.add(await echoed(pool, text))

        async with trio.open_nursery() as nursery:
            for n in range(12):
                nursery.start_soon(ask, f"{SLOW} request {n}")

        assert len(pids) == 1
