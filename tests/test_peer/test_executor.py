"""How an accepted task runs here: its skill, on its data, with its model; failures are outcomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from test_gossip.members import directory_of, key, told_by
from trio.testing import MockClock

from covey.gossip.effects import Ended, Run
from covey.gossip.task import Need, TaskId
from covey.identity.certificate import Member
from covey.inference.engine import Completion, GenerateRequest, ModelInfo, Role
from covey.inference.errors import Busy, ModelError, NoModel
from covey.peer.config import ECHO_SKILL, SKILLS_DEFAULT, DataSource
from covey.peer.data_sources import DataSources
from covey.peer.executor import Executor, able

ALICE, ME = key(1).peer_id, key(2)
BOB, CAROL = key(3).peer_id, key(4).peer_id


class TwoModels:
    """Answers at once, deterministically; keeps what it was asked."""

    def __init__(self, fails: ModelError | None = None, failures: int = 1000) -> None:
        self.asked: list[tuple[str | None, float]] = []
        self._fails = [fails] * failures if fails is not None else []

    def info(self, name: str | None, role: Role) -> ModelInfo:
        chosen = name or {"text": "small", "embedding": "tiny"}[role]
        if chosen not in ("small", "tiny"):
            raise NoModel(f"this device has no model {chosen!r}")
        return ModelInfo(
            name=chosen, role=role, digest="", size_bytes=1, licence="MIT", context_tokens=4096
        )

    async def generate(
        self, request: GenerateRequest, *, model: str | None = None, deadline_s: float
    ) -> Completion:
        self._ask(model, deadline_s)
        name = self.info(model, "text").name
        return Completion(
            text="hello", finish="stop", prompt_tokens=1, completion_tokens=1, model=name
        )

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None, deadline_s: float
    ) -> list[list[float]]:
        self._ask(model, deadline_s)
        return [[1.0, 0.0] if "fault" in text else [0.0, 1.0] for text in texts]

    def _ask(self, model: str | None, deadline_s: float) -> None:
        if self._fails:
            raise self._fails.pop()
        self.asked.append((model, deadline_s))


def a_run(
    need: Need, input_: object = None, *, raw: bytes | None = None, left_s: float = 60.0
) -> Run:
    data = raw if raw is not None else msgspec.json.encode(input_ or {})
    return Run(ALICE, TaskId(bytes(16)), need, data, trio.current_time() + left_s)


def an_executor(models: TwoModels | None = None, **data: Path) -> Executor:
    sources = {name: DataSource(file=str(path)) for name, path in data.items()}
    return Executor((*SKILLS_DEFAULT, ECHO_SKILL), models or TwoModels(), DataSources(sources))


async def ran(executor: Executor, run: Run) -> Ended:
    with trio.fail_after(30):
        return await executor.run(run, lambda _text: None)


def decoded(ended: Ended) -> Any:
    assert ended.state == "done", ended.reason
    return msgspec.json.decode(ended.result)


LABELS = {"labels": ["fault", "usual"], "threshold": 0}


async def test_a_skill_runs_with_what_is_left_of_the_deadline(autojump_clock: MockClock) -> None:
    models = TwoModels()
    need = Need("chat")
    ended = await ran(
        an_executor(models), a_run(need, {"messages": [{"role": "user", "content": "hi"}]})
    )
    assert decoded(ended)["text"] == "hello"
    assert ended.model == "small"
    assert models.asked == [(None, 60.0)]


async def test_the_tasks_model_is_used_unless_its_input_names_another(
    autojump_clock: MockClock,
) -> None:
    models = TwoModels()
    said: dict[str, object] = {"messages": [{"role": "user", "content": "hi"}]}
    await ran(an_executor(models), a_run(Need("chat", model="small"), said))
    await ran(an_executor(models), a_run(Need("chat", model="other"), {**said, "model": "small"}))
    assert [name for name, _ in models.asked] == ["small", "small"]


async def test_the_last_lines_of_the_tasks_data_are_its_items(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"usual\n" * 5 + b"fault\n")
    run = a_run(Need("classify", data="log"), {**LABELS, "tail": 2})
    items = decoded(await ran(an_executor(log=tmp_path / "log"), run))["items"]
    assert [one["label"] for one in items] == ["usual", "fault"]


async def test_what_is_read_does_not_leave_with_labels(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"secret fault\n")
    run = a_run(Need("classify", data="log"), LABELS)
    ended = await ran(an_executor(log=tmp_path / "log"), run)
    assert b"secret" not in ended.result


@pytest.mark.parametrize(
    ("need", "input_", "reason"),
    [
        (Need("classify", data="log"), LABELS, "data source 'log' is not there now"),
        (Need("classify", data="other"), LABELS, "this peer has no data source 'other'"),
        (Need("chat", data="log"), {}, "skill 'chat' works on no data source"),
        (Need("classify"), {"labels": 3}, "the input of skill 'classify' is wrong: "),
        (Need("classify"), {"lables": []}, "the input of skill 'classify' is wrong: "),
        (Need("classify"), LABELS, "there is nothing to work on"),
        (
            Need("chat", model="huge"),
            {"messages": [{"role": "user", "content": "hi"}]},
            "this device has no model 'huge'",
        ),
    ],
)
async def test_an_expected_failure_is_an_outcome_with_its_reason(
    tmp_path: Path, need: Need, input_: object, reason: str
) -> None:
    ended = await ran(an_executor(log=tmp_path / "gone"), a_run(need, input_))
    assert (ended.state, ended.result) == ("failed", b"")
    assert ended.reason.startswith(reason)


async def test_an_input_that_is_no_json_is_a_failure_that_says_so() -> None:
    ended = await ran(an_executor(), a_run(Need("embed"), raw=b"\xff"))
    assert ended.state == "failed"
    assert "the input of skill 'embed' is wrong" in ended.reason


async def test_a_busy_model_is_waited_for(autojump_clock: MockClock) -> None:
    models = TwoModels(Busy("16 requests wait for small already", 1.0), failures=3)
    started = trio.current_time()
    ended = await ran(an_executor(models), a_run(Need("embed"), {"texts": ["a"]}))
    assert ended.state == "done"
    assert trio.current_time() - started == 3.0


async def test_a_model_that_stays_busy_until_the_deadline_is_a_failure_that_says_so(
    autojump_clock: MockClock,
) -> None:
    models = TwoModels(Busy("16 requests wait for small already", 2.0))
    ended = await ran(an_executor(models), a_run(Need("embed"), {"texts": ["a"]}, left_s=9.0))
    assert (ended.state, ended.reason) == ("failed", "16 requests wait for small already")


async def test_a_bug_is_not_hidden_as_an_expected_failure() -> None:
    with pytest.raises(KeyError):
        await ran(an_executor(), a_run(Need("no-such-skill")))


async def test_the_echo_skill_gives_back_its_input() -> None:
    ended = await ran(an_executor(), a_run(Need(ECHO_SKILL), raw=b'{"a":1}'))
    assert (ended.state, ended.result, ended.model) == ("done", b'{"a":1}', "")


@pytest.mark.parametrize(
    ("enabled", "roles", "offered"),
    [
        (SKILLS_DEFAULT, (), ()),
        (SKILLS_DEFAULT, ("embedding",), ("classify", "embed")),
        (("embed", "chat"), ("text", "embedding"), ("chat", "embed")),
        (SKILLS_DEFAULT, ("text", "embedding"), SKILLS_DEFAULT),
        ((ECHO_SKILL, "chat"), (), (ECHO_SKILL,)),
        (("no-such-skill",), ("text", "embedding"), ()),
    ],
)
def test_a_skill_is_offered_if_it_is_enabled_and_its_models_are_here(
    enabled: tuple[str, ...], roles: tuple[str, ...], offered: tuple[str, ...]
) -> None:
    executor = Executor(enabled, TwoModels(), DataSources({}))
    assert executor.offered(roles) == offered


def test_this_device_takes_what_it_says_that_it_can_do_and_nothing_else() -> None:
    starting = able(lambda: None, lambda _peer: None)
    assert starting(ALICE, Need("chat")) == "this peer is just starting"
    directory = directory_of(ME, own=told_by(ME, name="line-1", skills=("chat",), data=("log",)))
    check = able(lambda: directory.get(ME.peer_id), lambda _peer: None)
    assert check(ALICE, Need("chat", data="log")) is None
    assert check(ALICE, Need("classify")) == "it does not offer skill 'classify'"
    assert check(ALICE, Need("chat", data="other")) == "it has no data 'other'"
    assert check(ALICE, Need("chat", peer="line-2")) == "it is not 'line-2'"


def test_a_task_of_a_zone_is_taken_from_a_member_of_the_zone_alone() -> None:
    directory = directory_of(ME, own=told_by(ME, skills=("chat",), zones=("plant-7",)))
    insider = Member(ALICE, "member", frozenset({"plant-7"}), 0, 1 << 60, 1 << 60)
    outsider = Member(BOB, "member", frozenset({"plant-8"}), 0, 1 << 60, 1 << 60)
    members = {ALICE: insider, BOB: outsider}
    check = able(lambda: directory.get(ME.peer_id), members.get)
    need = Need("chat", zone="plant-7")
    assert check(ALICE, need) is None
    assert check(ME.peer_id, need) is None
    assert check(BOB, need) == f"{BOB} is not in zone 'plant-7'"
    assert check(CAROL, need) == f"{CAROL} is not in zone 'plant-7'"
    assert check(BOB, Need("chat", zone="plant-8")) == "it is not in zone 'plant-8'"
