"""The driver's promise: records first, everything else after; and the daemon outlives what goes wrong.

Commits end only when a test releases them. Time is trio's mock clock, which each test asks for itself:
only so does pytest-trio run the test on it.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio
import trio.testing
from test_gossip.delivery_ports import HeldRecords, MemoryNetwork, Skill, Skills
from test_gossip.members import MESH, NOW_MS, key
from trio.testing import MockClock

from covey.gossip import driver
from covey.gossip.driver import ACCEPT_S, CALM_S, FETCH_S, LAZY_ROWS_MAX, LAZY_S, Cores, Delivery
from covey.gossip.driver import Progress as Tell
from covey.gossip.effects import Ended, Run, Table
from covey.gossip.executions import Executions, Limits, RunRecord
from covey.gossip.messages import (
    INPUT_CHANNEL,
    MESSAGE_BYTES_MAX,
    Accepted,
    Acknowledged,
    Cancel,
    CancelAcknowledged,
    Declined,
    Delivered,
    Message,
    Offer,
    Progress,
    encode_message,
)
from covey.gossip.origin import OFFER_S, Origin
from covey.gossip.routing import Candidate, Nobody
from covey.gossip.task import (
    INPUT_BYTES_MAX,
    OUTCOME_KIND,
    Need,
    Outcome,
    Task,
    TaskId,
    digest_of,
    task_digest,
    task_id_of,
)
from covey.gossip.task_state import TERMINAL, TaskState
from covey.identity.envelope import open_envelope, seal
from covey.identity.errors import Malformed, Misuse, PeerMisbehaved, Unavailable
from covey.identity.keys import PeerId
from covey.identity.wire import decode, encode

ALICE_KEY, BOB_KEY = key(1), key(2)
ALICE, BOB, CAROL = ALICE_KEY.peer_id, BOB_KEY.peer_id, key(3).peer_id
RESULT = b'"seen"'
LARGE = b"x" * 100_000


class Finder:
    """Finds who may do it: `at`, if it is not to be avoided."""

    def __init__(self) -> None:
        self.at: PeerId | None = BOB

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        if self.at is None or self.at in exclude:
            return Nobody("nobody is in reach")
        return Candidate(self.at, "directory", "it has what is needed")


class Rig:
    """Alice's delivery over ports in memory; bob is linked."""

    def __init__(self) -> None:
        self.network = MemoryNetwork(ALICE)
        self.records = HeldRecords()
        self.skills = Skills()
        self.finder = Finder()
        self.made = 0
        self.delivery = Delivery(self._make, self.network, self.records, self.skills, self.now_ms)

    def _make(self) -> Cores:
        self.made += 1
        executions = Executions(ALICE_KEY, MESH, 7, lambda _origin, _need: None, Limits(4, 64))
        return Origin(ALICE, MESH, self.finder), executions

    def now_ms(self) -> int:
        return NOW_MS + int(trio.current_time() * 1000)

    @property
    def sent(self) -> list[Message]:
        return [message for _, message in self.network.sent]

    def state(self, task: Task) -> TaskState:
        """As it is durable."""
        return decode(self.records.rows[Table.STATE, task.id], TaskState)

    def skill(self, name: str) -> Callable[[Skill], Skill]:
        def known(skill: Skill) -> Skill:
            self.skills.known[name] = skill
            return skill

        return known


@pytest.fixture
async def rig(autojump_clock: MockClock) -> AsyncIterator[Rig]:
    made = Rig()

    @made.skill("see")
    async def see(run: Run, tell: Tell) -> Ended:
        return Ended("done", RESULT)

    @made.skill("look-long")
    async def look_long(run: Run, tell: Tell) -> Ended:
        await trio.sleep(50)
        return Ended("done", RESULT)

    async with trio.open_nursery() as nursery:
        await nursery.start(made.delivery.serve)
        made.network.up(BOB_KEY)
        yield made
        nursery.cancel_scope.cancel()


async def quiet() -> None:
    """Wait until nothing happens any more but by time."""
    await trio.testing.wait_all_tasks_blocked()


def a_task(number: int = 1, *, skill: str = "see", input_: bytes = b"input") -> Task:
    nonce = number.to_bytes(16, "big")
    return Task(
        id=task_id_of(ALICE, nonce),
        origin=ALICE,
        nonce=nonce,
        need=Need(skill),
        input=input_,
        submitted_ms=NOW_MS,
        deadline_ms=NOW_MS + 1_000_000,
    )


def an_offer(
    number: int = 1, *, skill: str = "see", input_: bytes | None = b"input", once: bool = False
) -> Offer:
    nonce = number.to_bytes(16, "big")
    task_id = task_id_of(BOB, nonce)
    digest = digest_of(LARGE if input_ is None else input_)
    return Offer(task_id, 1, nonce, Need(skill), input_, digest, 1_000_000, 0, once)


def an_outcome(task: Task) -> Delivered:
    outcome = Outcome(
        origin=ALICE,
        task_id=task.id,
        attempt=1,
        task_digest=task_digest(ALICE, task.id, task.need, task.input),
        result_digest=digest_of(RESULT),
        state="done",
        reason="",
        run_us=1,
        model="",
        ended_ms=NOW_MS,
    )
    return Delivered(task.id, seal(outcome, kind=OUTCOME_KIND, mesh=MESH, keypair=BOB_KEY), RESULT)


@asynccontextmanager
async def submitting(rig: Rig, *tasks: Task) -> AsyncGenerator[list[str]]:
    """Submit in the background; yields what the callers hear, as it comes."""
    heard: list[str] = []

    async def submit(task: Task) -> None:
        try:
            await rig.delivery.submit(task)
        except Unavailable as error:
            heard.append(str(error))
        else:
            heard.append("durable")

    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(submit, task)
            await quiet()
        try:
            yield heard
        except BaseException:
            # A test that fails must not wait for ever for a commit that it would have released.
            rig.records.release()
            raise


async def submit_at_bob(rig: Rig, task: Task) -> None:
    async with submitting(rig, task):
        rig.records.release()
    rig.network.hear(BOB, Accepted(task.id, 1, 1))


# Records first


async def test_an_offer_and_its_callers_answer_wait_until_the_task_is_durable(
    autojump_clock: MockClock, rig: Rig
) -> None:
    task = a_task()
    told: list[str] = []
    rig.delivery.on_changed(lambda _task_id, state: told.append(state.state))
    async with submitting(rig, task) as heard:
        assert (rig.sent, heard, told) == ([], [], [])
        assert len(rig.records.queued) == 1, "the task and its state are one transaction"

        rig.records.release()
        await quiet()

        assert [type(one) for one in rig.sent] == [Offer]
        assert (heard, told) == (["durable"], ["offered"])


async def test_a_message_without_a_record_waits_for_every_earlier_one(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with submitting(rig, a_task(1), a_task(2)):
        rig.network.hear(BOB, an_outcome(a_task(9)))
        rig.network.hear(BOB, Cancel(bytes(16)))
        assert rig.sent == [], "neither needs a record of its own before it leaves"

        rig.records.release(1)
        assert [type(one) for one in rig.sent] == [Offer]
        rig.records.release(1)

    assert [type(one) for one in rig.sent] == [Offer, Offer, Acknowledged, CancelAcknowledged]


async def test_nothing_waits_when_nothing_is_to_be_durable(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_outcome(a_task(9)))
    assert rig.sent == [Acknowledged(a_task(9).id)]


async def test_a_run_begins_only_after_every_earlier_record(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with submitting(rig, a_task()):
        rig.network.hear(BOB, an_offer())
        await quiet()
        assert rig.skills.began == []
        rig.records.release()
        await quiet()
        assert [run.task_id for run in rig.skills.began] == [an_offer().task_id]


async def test_a_task_that_may_run_once_is_durably_begun_before_it_begins(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_offer(once=True))
    await trio.sleep(1)
    assert (rig.skills.began, rig.sent) == ([], [])
    rig.records.release()
    await quiet()
    assert len(rig.skills.began) == 1


async def test_an_outcome_leaves_only_once_it_is_durable(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_offer())
    await trio.sleep(1)
    assert [type(one) for one in rig.sent] == [Accepted]
    rig.records.release()
    delivered = rig.sent[1]
    assert isinstance(delivered, Delivered)
    assert delivered.result == RESULT


async def test_an_outcome_is_acknowledged_only_once_its_acceptance_is_durable(
    autojump_clock: MockClock, rig: Rig
) -> None:
    task = a_task()
    await submit_at_bob(rig, task)
    rig.network.hear(BOB, an_outcome(task))
    async with trio.open_nursery() as nursery:
        finished: list[bool] = []

        async def wait() -> None:
            finished.append(await rig.delivery.wait_finished(TaskId(task.id), 100))

        nursery.start_soon(wait)
        await quiet()
        assert (finished, len(rig.sent)) == ([], 1)
        rig.records.release()
    assert finished == [True]
    assert rig.sent[1] == Acknowledged(task.id)
    assert rig.state(task).state == "done"


# Lazy records


async def test_a_lazy_record_goes_with_the_next_commit(autojump_clock: MockClock, rig: Rig) -> None:
    task = a_task()
    await submit_at_bob(rig, task)
    assert not rig.records.queued, "an acceptance has no commit of its own"
    async with submitting(rig, a_task(2)):
        rig.records.release()
    assert rig.state(task).state == "running"
    assert rig.records.puts == 2


async def test_a_lazy_record_goes_alone_after_a_while(autojump_clock: MockClock, rig: Rig) -> None:
    task = a_task()
    await submit_at_bob(rig, task)
    await trio.sleep(LAZY_S + 0.1)
    rig.records.release()
    assert rig.state(task).state == "running"
    await trio.sleep(LAZY_S * 2)
    assert rig.records.puts == 2


async def test_lazy_records_are_bounded(autojump_clock: MockClock, rig: Rig) -> None:
    for number in range(LAZY_ROWS_MAX):
        rig.network.hear(BOB, Cancel(number.to_bytes(16, "big")))
    assert rig.records.puts == 0
    rig.network.hear(BOB, Cancel(bytes([1]) * 16))
    assert rig.records.puts == 1


# Acceptances


async def test_an_outcome_that_follows_at_once_replaces_the_acceptance(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.records.at_once = True
    rig.network.hear(BOB, an_offer())
    await trio.sleep(ACCEPT_S * 10)
    assert [type(one) for one in rig.sent] == [Delivered]


async def test_a_run_that_takes_longer_is_accepted_in_a_moment(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_offer(skill="look-long"))
    assert rig.sent == []
    await trio.sleep(ACCEPT_S * 2)
    assert rig.sent == [Accepted(an_offer().task_id, 1, 7)]


# This device for itself


async def test_what_this_device_does_itself_touches_no_network(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.finder.at, rig.records.at_once = ALICE, True
    await rig.delivery.submit(a_task())
    assert await rig.delivery.wait_finished(TaskId(a_task().id), 10)
    assert rig.sent == []
    assert rig.state(a_task()).state == "done"
    verdict = rig.records.verdict(TaskId(a_task().id))
    assert verdict is not None
    assert verdict.result == RESULT


async def test_a_large_input_reaches_this_device_itself(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.finder.at, rig.records.at_once = ALICE, True
    task = a_task(input_=LARGE)
    await rig.delivery.submit(task)
    assert await rig.delivery.wait_finished(TaskId(task.id), 10)
    assert rig.skills.began[0].input == LARGE


# Runs that go wrong


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (ValueError("a bug"), "the skill broke; the daemon's log says where"),
        (MemoryError(), "the skill broke; the daemon's log says where"),
        (SystemExit(3), "the skill broke; the daemon's log says where"),
        (
            ExceptionGroup("two", [ValueError(), KeyError()]),
            "the skill broke; the daemon's log says where",
        ),
        (Unavailable("the camera is off"), "the camera is off"),
    ],
)
async def test_whatever_a_skill_raises_is_an_outcome_and_the_daemon_lives(
    autojump_clock: MockClock, rig: Rig, broken: BaseException, reason: str
) -> None:
    rig.records.at_once = True

    @rig.skill("break")
    async def break_(run: Run, tell: Tell) -> Ended:
        raise broken

    rig.network.hear(BOB, an_offer(1, skill="break"))
    await quiet()
    rig.network.hear(BOB, an_offer(2))
    await quiet()

    outcomes = [
        open_envelope(one.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH).body
        for one in rig.sent
        if isinstance(one, Delivered)
    ]
    assert [(one.state, one.reason) for one in outcomes] == [("failed", reason), ("done", "")]


async def test_progress_is_told_and_a_cancelled_run_ends(
    autojump_clock: MockClock, rig: Rig
) -> None:
    @rig.skill("count")
    async def count(run: Run, tell: Tell) -> Ended:
        tell("1")
        await trio.sleep_forever()
        raise AssertionError

    rig.network.hear(BOB, an_offer(skill="count"))
    await trio.sleep(1)
    assert Progress(an_offer().task_id, 1, "1") in rig.sent
    rig.network.hear(BOB, Cancel(an_offer().task_id))
    await quiet()
    assert len(rig.skills.cut_short) == 1
    assert rig.delivery.executions.running == 0


async def test_a_run_that_is_cancelled_before_its_first_step_never_takes_it(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_offer(skill="look-long"))
    rig.network.hear(BOB, Cancel(an_offer().task_id))
    await quiet()
    assert rig.skills.began == []
    assert rig.delivery.executions.running == 0


# Inputs


async def test_an_input_that_did_not_ride_with_the_offer_is_fetched(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.answers[an_offer().task_id] = LARGE
    rig.network.hear(BOB, an_offer(input_=None))
    await quiet()
    assert [run.input for run in rig.skills.began] == [LARGE]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "the input could not be fetched"),
        (PeerMisbehaved(BOB, "refused"), "the input could not be fetched"),
        (bytes(INPUT_BYTES_MAX + 1), "the input could not be fetched"),
        (b"something else", "the input is not what was offered"),
    ],
    ids=["none in time", "refused", "too large", "another"],
)
async def test_an_input_that_cannot_be_had_is_declined(
    autojump_clock: MockClock, rig: Rig, answer: bytes | PeerMisbehaved | None, why: str
) -> None:
    if answer is not None:
        rig.network.answers[an_offer().task_id] = answer
    rig.network.hear(BOB, an_offer(input_=None))
    await trio.sleep(FETCH_S + 1)
    assert rig.sent[-1] == Declined(an_offer().task_id, 1, why, 2000)
    assert rig.skills.began == []


async def test_an_input_is_given_to_who_was_offered_its_task_alone(
    autojump_clock: MockClock, rig: Rig
) -> None:
    task = a_task(input_=LARGE)
    await submit_at_bob(rig, task)
    assert await rig.network.ask(BOB, INPUT_CHANNEL, task.id) == LARGE
    for sender, asked in ((CAROL, task.id), (BOB, bytes(16)), (BOB, b"")):
        with pytest.raises(Misuse):
            await rig.network.ask(sender, INPUT_CHANNEL, asked)


# Failed commits


async def test_a_failed_commit_is_told_to_whose_record_it_was_and_nobody_is_told_wrongly(
    autojump_clock: MockClock, rig: Rig
) -> None:
    lost, again = a_task(2), a_task(2)
    async with submitting(rig, a_task(1), lost, a_task(3), again) as heard:
        assert len(rig.records.queued) == 3, "a repetition waits for what is on its way"
        rig.records.release(1)
        rig.records.fail("the disk is full")
        with pytest.raises(Unavailable, match="the disk is full"):
            await rig.delivery.submit(a_task(5))
        rig.records.release()
        await quiet()

    assert sorted(heard) == ["durable", "durable", "the disk is full", "the disk is full"]
    for task, is_kept in ((a_task(1), True), (lost, False), (a_task(3), True), (a_task(5), False)):
        assert (rig.delivery.origin.state(TaskId(task.id)) is not None) == is_kept
    offered = {one.task_id for one in rig.sent if isinstance(one, Offer)}
    assert offered == {a_task(1).id, a_task(3).id}


async def test_after_a_failed_commit_the_next_is_tried_at_once(
    autojump_clock: MockClock, rig: Rig
) -> None:
    async with submitting(rig, a_task(1)):
        rig.records.fail("the disk is full")
        await quiet()
    async with submitting(rig, a_task(2)) as heard:
        rig.records.release()
    assert heard == ["durable"]
    assert rig.made == 2


async def test_what_was_acknowledged_is_done_after_a_failed_commit(
    autojump_clock: MockClock, rig: Rig
) -> None:
    task = a_task()
    await submit_at_bob(rig, task)
    await trio.sleep(LAZY_S + 0.1)
    rig.records.release()
    rig.network.hear(BOB, an_outcome(task))
    rig.records.fail("the disk is full")
    await quiet()
    assert Acknowledged(task.id) not in rig.sent
    assert isinstance(rig.sent[-1], Offer), "its peer is asked about it again"

    rig.network.hear(BOB, an_outcome(task))
    rig.records.release()
    assert rig.sent[-1] == Acknowledged(task.id)
    assert rig.state(task).state == "done"


async def test_a_failed_commit_cuts_runs_short_and_tells_their_origins(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.hear(BOB, an_offer(1, skill="look-long"))
    await trio.sleep(1)
    async with submitting(rig, a_task()):
        rig.records.fail("the disk is full")
        await quiet()
    assert len(rig.skills.cut_short) == 1
    why = "this device could not keep its record"
    assert Declined(an_offer().task_id, 1, why, 2000) in rig.sent
    await trio.sleep(100)
    assert not [one for one in rig.sent if isinstance(one, Delivered)]

    rig.network.hear(BOB, an_offer(1))
    rig.records.at_once = True
    rig.records.release()
    await trio.sleep(10)
    assert isinstance(rig.sent[-1], Delivered), "and it is taken on again"


async def test_a_disk_that_stays_full_is_not_tried_without_a_pause(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.finder.at, rig.records.at_once = ALICE, True
    for number in range(1, 11):
        await rig.delivery.submit(a_task(number, skill="look-long"))
    rig.records.broken = "the disk is full"
    with pytest.raises(Unavailable):
        await rig.delivery.submit(a_task(11))
    before = rig.records.puts
    await trio.sleep(100)
    assert before + 2 < rig.records.puts < before + 1000, "it goes on trying, in its time"

    rig.records.broken = None
    for number in range(1, 11):
        assert await rig.delivery.wait_finished(TaskId(a_task(number).id), 1000)
        assert rig.state(a_task(number)).state == "done"


async def test_a_store_that_cannot_be_read_after_a_failure_is_tried_again(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.records.unreadable = Malformed("row 00 of task is damaged")
    async with submitting(rig, a_task(1)):
        rig.records.fail("the disk is full")
        await trio.sleep(CALM_S * 3)
    with pytest.raises(Unavailable, match="the disk is full"):
        await rig.delivery.submit(a_task(2))
    rig.network.hear(BOB, an_offer())
    assert rig.made == 1

    rig.records.unreadable = None
    await trio.sleep(CALM_S * 2)
    async with submitting(rig, a_task(2)) as heard:
        rig.records.release()
    assert heard == ["durable"]


async def test_a_disk_that_does_not_answer_stops_the_intake(
    autojump_clock: MockClock, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PENDING_MAX", 3)
    async with submitting(rig, *(a_task(number) for number in range(5))) as heard:
        assert heard == ["3 records wait for the disk already; try again later"] * 2
        rig.network.hear(BOB, an_offer(9))
        rig.records.release()
        await quiet()
        assert heard[2:] == ["durable"] * 3
        assert rig.skills.began == [], "what came meanwhile was as if lost on the way"
        rig.network.hear(BOB, an_offer(9))
        await quiet()
        assert len(rig.skills.began) == 1


async def test_a_commit_that_ends_after_the_driver_begins_nothing(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.delivery.serve)
        rig.network.up(BOB_KEY)
        rig.network.hear(BOB, an_offer(once=True))
        nursery.cancel_scope.cancel()
    rig.records.release()
    assert rig.skills.began == []


# Restarted


async def test_unfinished_work_is_taken_up_at_a_start(
    autojump_clock: MockClock,
) -> None:
    rig = Rig()
    task, ended = a_task(), an_offer()
    sealed = RunRecord(BOB, ended.task_id, "ended", NOW_MS + 10**9, b"sealed", RESULT)
    rig.records.rows = {
        (Table.TASK, task.id): encode(task),
        (Table.STATE, task.id): encode(TaskState("queued", "nobody was there")),
        (Table.RUN, ended.task_id + BOB.encode()): encode(sealed),
    }
    rig.records.at_once = True
    async with trio.open_nursery() as nursery:
        await nursery.start(rig.delivery.serve)
        rig.network.up(BOB_KEY)
        await trio.sleep(1)
        assert Delivered(ended.task_id, b"sealed", RESULT) in rig.sent
        assert {one.task_id for one in rig.sent if isinstance(one, Offer)} == {task.id}
        nursery.cancel_scope.cancel()


# Links


async def test_an_offer_to_a_peer_that_is_gone_is_tried_again(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.network.down(BOB)
    rig.records.at_once = True
    await rig.delivery.submit(a_task())
    await quiet()
    assert (rig.sent, rig.state(a_task()).state) == ([], "queued")
    await trio.sleep(1)
    rig.network.up(BOB_KEY)
    await trio.sleep(OFFER_S)
    assert isinstance(rig.sent[0], Offer)


async def test_a_task_whose_peer_is_cut_off_is_tried_elsewhere(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.records.at_once = True
    task = a_task()
    await submit_at_bob(rig, task)
    rig.finder.at = ALICE
    rig.network.down(BOB)
    assert await rig.delivery.wait_finished(TaskId(task.id), 10)
    assert rig.state(task).executor == ALICE


async def test_what_waits_is_looked_at_again_when_woken(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.records.at_once = True
    rig.finder.at = None
    await rig.delivery.submit(a_task())
    rig.finder.at = BOB
    rig.delivery.wake()
    await quiet()
    assert isinstance(rig.sent[0], Offer)


# Who waits


async def test_waiting_ends_with_the_task_or_with_its_time(
    autojump_clock: MockClock, rig: Rig
) -> None:
    task = a_task()
    await submit_at_bob(rig, task)
    assert not await rig.delivery.wait_finished(TaskId(task.id), 0.5)
    rig.network.hear(BOB, an_outcome(task))
    rig.records.release()
    assert await rig.delivery.wait_finished(TaskId(task.id), 0), "it has ended before"
    assert not await rig.delivery.wait_finished(TaskId(bytes(16)), 5), "none of that name"
    assert not rig.delivery._waiters  # pyright: ignore[reportPrivateUsage]


async def test_a_cancel_is_final_when_it_returns(autojump_clock: MockClock, rig: Rig) -> None:
    rig.records.at_once = True
    task = a_task()
    await submit_at_bob(rig, task)
    await rig.delivery.cancel(TaskId(task.id))
    assert rig.state(task).state == "cancelled"
    assert rig.sent[-1] == Cancel(task.id)
    rig.network.hear(BOB, an_outcome(task))
    assert rig.sent[-1] == Acknowledged(task.id)
    assert rig.state(task).state in TERMINAL - {"done"}


async def test_a_caller_that_leaves_does_not_leave_before_it_is_known_whether_it_counts(
    autojump_clock: MockClock,
    rig: Rig,
) -> None:
    scope = trio.CancelScope()
    left = trio.Event()

    async def submit() -> None:
        with scope:
            await rig.delivery.submit(a_task())
        left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit)
        await quiet()
        scope.cancel()
        await quiet()
        left_early = left.is_set()
        rig.records.release()
    assert not left_early
    assert rig.state(a_task()).state == "offered"


# What others send


async def test_whatever_a_peer_sends_is_a_message_or_its_misbehaviour(
    autojump_clock: MockClock, rig: Rig
) -> None:
    rig.records.at_once = True
    random = Random(1)
    good = [
        encode_message(one)
        for one in (an_offer(), an_outcome(a_task()), Cancel(bytes(16)), Accepted(bytes(16), 1, 1))
    ]
    spoilt = [
        *(message[:cut] for message in good for cut in range(0, len(message), 3)),
        *(message + b"\0" for message in good),
        b"\x83" + good[0],
        bytes(MESSAGE_BYTES_MAX + 1),
        encode_message(Cancel(bytes(15))),
        encode_message(Cancel(b"x" * 600)),
    ]
    for _ in range(300):
        message = bytearray(random.choice(good))
        message[random.randrange(len(message))] ^= 1 << random.randrange(8)
        spoilt.append(bytes(message))

    def is_refused(data: bytes) -> bool:
        try:
            rig.network.hear_bytes(BOB, data)
        except PeerMisbehaved:
            return True
        return False

    verdicts = [is_refused(one) for one in spoilt]

    assert all(verdicts[:-300])
    assert 0 < sum(verdicts[-300:]) < 300, "with a bit turned over, some are messages still"
    assert not any(is_refused(message) for message in good)
    rig.finder.at = ALICE
    await rig.delivery.submit(a_task(77))
    assert await rig.delivery.wait_finished(TaskId(a_task(77).id), 10), "and the daemon lives"
