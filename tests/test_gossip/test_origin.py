"""A task at its origin, by the effects: where it goes, how it ends, and what counts as its outcome."""

import runpy
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import msgspec
import pytest
from test_gossip.members import MESH, NOW_MS, OTHER_MESH, key

from covey.gossip.effects import Changed, Effect, Erase, Save, Send, Table
from covey.gossip.executions import RUN_MOVES
from covey.gossip.messages import (
    Accepted,
    Acknowledged,
    Cancel,
    CancelAcknowledged,
    Declined,
    Delivered,
    Message,
    Offer,
    Progress,
)
from covey.gossip.origin import (
    ATTEMPTS_MAX,
    CANCEL_RETRY_S,
    LEASE_S,
    OFFER_S,
    RETENTION_MS,
    WAKE_BATCH,
    Origin,
    forget,
)
from covey.gossip.routing import Candidate, Nobody
from covey.gossip.task import (
    INPUT_WITH_OFFER_BYTES_MAX,
    OUTCOME_KIND,
    Need,
    Outcome,
    Task,
    TaskId,
    digest_of,
    task_digest,
    task_id_of,
)
from covey.gossip.task_state import MOVES, Attempt, CancelRecord, TaskState, Verdict
from covey.gossip.timers import Timers
from covey.identity.envelope import MeshId, seal
from covey.identity.keys import Keypair, PeerId
from covey.identity.wire import KIB, encode

ROOT = Path(__file__).parent.parent.parent
ME, BOB_KEY, CAROL_KEY = key(1), key(2), key(3)
BOB, CAROL = BOB_KEY.peer_id, CAROL_KEY.peer_id
DAY_MS = 86_400_000


class Able:
    """A finder that knows these peers, the best first."""

    def __init__(self, *peers: PeerId) -> None:
        self.peers = list(peers)

    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        for peer in self.peers:
            if peer not in exclude:
                return Candidate(peer, "directory", "it has what is needed")
        return Nobody("nobody is in reach")


def a_task(
    number: int = 1, *, once: bool = False, deadline_s: float = 100.0, input_: bytes = b"input"
) -> Task:
    nonce = number.to_bytes(16, "big")
    return Task(
        id=task_id_of(ME.peer_id, nonce),
        origin=ME.peer_id,
        nonce=nonce,
        need=Need("see"),
        input=input_,
        submitted_ms=NOW_MS,
        deadline_ms=NOW_MS + int(deadline_s * 1000),
        once=once,
    )


class Alice:
    """An origin with its clock, and what it has done last."""

    def __init__(self, *able: PeerId, started_at: float = 0.0) -> None:
        self.finder = Able(*able)
        self.core = Origin(ME.peer_id, MESH, self.finder)
        self.now = started_at
        self.effects: list[Effect] = []

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.now * 1000)

    def did(self, effects: list[Effect]) -> list[Effect]:
        self.effects = effects
        return effects

    def submit(self, task: Task) -> list[Effect]:
        return self.did(self.core.submit(task, self.now, self.now_ms))

    def hear(self, sender: PeerId, message: Message) -> list[Effect]:
        assert not isinstance(message, Offer | Acknowledged | Cancel)
        return self.did(self.core.receive(sender, message, self.now, self.now_ms))

    def wait(self, seconds: float) -> list[Effect]:
        """Let time pass; nobody says anything."""
        self.now += seconds
        return self.did(self.core.tick(self.now, self.now_ms))

    def cut(self, peer: PeerId) -> list[Effect]:
        return self.did(self.core.link_down(peer, "no power", self.now, self.now_ms))

    def restart(
        self, tasks: Sequence[tuple[Task, TaskState]], cancels: Sequence[CancelRecord] = ()
    ) -> list[Effect]:
        self.core = Origin(ME.peer_id, MESH, self.finder)
        return self.did(self.core.restore(tasks, cancels, self.now, self.now_ms))

    # What came of it

    @property
    def sent(self) -> list[tuple[PeerId, Message]]:
        return [(one.to, one.message) for one in self.effects if isinstance(one, Send)]

    @property
    def offers(self) -> list[tuple[PeerId, int]]:
        return [(to, one.attempt) for to, one in self.sent if isinstance(one, Offer)]

    def saved(self, task: Task) -> TaskState:
        """The state that was last to be kept."""
        states = [
            one.value
            for one in self.effects
            if isinstance(one, Save) and one.table is Table.STATE and one.key == task.id
        ]
        assert states, "nothing was to be kept"
        assert isinstance(states[-1], TaskState)
        return states[-1]


def accepted(task: Task, attempt: int = 1) -> Accepted:
    return Accepted(task.id, attempt, 7)


def an_outcome(
    task: Task,
    by: Keypair = BOB_KEY,
    *,
    attempt: int = 1,
    state: str = "done",
    result: bytes = b'"seen"',
    reason: str = "",
    mesh: MeshId = MESH,
    **changed: object,
) -> Delivered:
    outcome = msgspec.structs.replace(
        Outcome(
            origin=task.origin,
            task_id=task.id,
            attempt=attempt,
            task_digest=task_digest(task.origin, task.id, task.need, task.input),
            result_digest=digest_of(result),
            state="done" if state == "done" else "failed",
            reason=reason,
            run_us=1_500,
            model="small",
            ended_ms=NOW_MS,
        ),
        **changed,
    )
    return Delivered(task.id, seal(outcome, kind=OUTCOME_KIND, mesh=mesh, keypair=by), result)


def running_at_bob(
    *, once: bool = False, others: tuple[PeerId, ...] = (CAROL,)
) -> tuple[Alice, Task]:
    alice, task = Alice(BOB, *others), a_task(once=once)
    alice.submit(task)
    alice.hear(BOB, accepted(task))
    assert alice.saved(task).state == "running"
    return alice, task


# Where it goes


def test_a_task_its_state_and_its_first_offer_are_one_step() -> None:
    alice, task = Alice(BOB), a_task()

    effects = alice.submit(task)

    state, offer = alice.saved(task), alice.sent[0][1]
    assert effects == [
        Save(Table.TASK, task.id, task),
        Save(Table.STATE, task.id, state),
        Send(BOB, offer),
        Changed(TaskId(task.id), state),
    ]
    attempt = Attempt(1, BOB, "directory", "it has what is needed", "offered", "", NOW_MS)
    assert state == TaskState("offered", f"offered to {BOB}", (attempt,))
    assert offer == Offer(
        task.id, 1, task.nonce, task.need, b"input", digest_of(b"input"), 100_000, 0, once=False
    )


def test_a_task_submitted_twice_is_one_task() -> None:
    alice, task = Alice(BOB), a_task()
    alice.submit(task)
    assert alice.submit(task) == []


def test_a_large_input_does_not_ride_with_the_offer() -> None:
    alice, task = Alice(BOB), a_task(input_=b"x" * (INPUT_WITH_OFFER_BYTES_MAX + 1))
    alice.submit(task)
    offer = alice.sent[0][1]
    assert isinstance(offer, Offer)
    assert (offer.input, offer.input_digest) == (None, digest_of(task.input))


def test_an_input_is_given_to_who_was_offered_the_task_and_to_nobody_else() -> None:
    alice, task = Alice(BOB), a_task()
    alice.submit(task)
    assert alice.core.input_for(TaskId(task.id), BOB) == b"input"
    assert alice.core.input_for(TaskId(task.id), CAROL) is None
    assert alice.core.input_for(TaskId(bytes(16)), BOB) is None
    alice.hear(BOB, an_outcome(task))
    assert alice.core.input_for(TaskId(task.id), BOB) is None, "it is over"


def test_an_acceptance_makes_it_running_and_needs_no_commit_of_its_own() -> None:
    alice, task = Alice(BOB), a_task()
    alice.submit(task)

    effects = alice.hear(BOB, accepted(task))

    state = alice.saved(task)
    assert effects == [
        Save(Table.STATE, task.id, state, lazy=True),
        Changed(TaskId(task.id), state),
    ]
    assert (state.state, state.reason) == ("running", f"running at {BOB}")
    assert alice.hear(BOB, accepted(task)) == [], "a repetition changes nothing"


def test_progress_is_shown_and_not_kept() -> None:
    alice, task = running_at_bob()
    effects = alice.hear(BOB, Progress(task.id, 1, "3 of 7" + "." * 1000))
    assert [type(one) for one in effects] == [Changed]
    assert alice.core.progress(TaskId(task.id)) == "3 of 7" + "." * 494


@pytest.mark.parametrize(
    ("message", "sender"),
    [(Accepted(bytes(16), 1, 1), BOB), (accepted(a_task()), CAROL), (accepted(a_task(), 2), BOB)],
    ids=["another task", "another peer", "another attempt"],
)
def test_words_about_anything_but_the_current_attempt_have_no_effect(
    message: Accepted, sender: PeerId
) -> None:
    alice = Alice(BOB)
    alice.submit(a_task())
    assert alice.hear(sender, message) == []
    assert alice.hear(sender, Declined(message.task_id, message.attempt, "no", 0)) == []


def test_a_peer_that_can_never_do_it_is_not_asked_again() -> None:
    alice, task = Alice(BOB, CAROL), a_task()
    alice.submit(task)
    alice.hear(BOB, Declined(task.id, 1, "it has no eyes", 0))
    assert alice.offers == [(CAROL, 2)]
    first = alice.saved(task).attempts[0]
    assert (first.state, first.reason, first.ended_ms) == ("declined", "it has no eyes", NOW_MS)

    alice.hear(CAROL, Declined(task.id, 2, "neither", 0))

    assert alice.saved(task).state == "queued"
    assert alice.saved(task).reason == "nobody is in reach"
    alice.core.wake()
    assert alice.wait(99) == []


def test_a_busy_peer_is_asked_again_later_each_time_and_uses_up_no_attempt() -> None:
    alice, task = Alice(BOB), a_task(deadline_s=10_000)
    alice.submit(task)
    waits: list[float] = []
    for _ in range(ATTEMPTS_MAX + 20):
        declined_at = alice.now
        alice.hear(BOB, Declined(task.id, 1, "busy", 1000))
        while not alice.offers:
            alice.wait(1)
        assert alice.offers == [(BOB, 1)]
        waits.append(alice.now - declined_at)
    assert waits[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert len(alice.saved(task).attempts) == 1


def test_a_peer_that_asks_for_patience_gets_it() -> None:
    alice, task = Alice(BOB), a_task()
    alice.submit(task)
    alice.hear(BOB, Declined(task.id, 1, "busy", 50_000))
    assert alice.wait(49) == []
    alice.wait(1)
    assert alice.offers == [(BOB, 1)]


def test_a_task_is_not_tried_for_ever() -> None:
    alice, task = Alice(BOB), a_task(deadline_s=10_000)
    alice.submit(task)
    for _ in range(ATTEMPTS_MAX - 1):
        alice.wait(OFFER_S)
        alice.wait(2)
    alice.wait(OFFER_S)
    state = alice.saved(task)
    assert (state.state, state.reason) == ("failed", f"tried {ATTEMPTS_MAX} times in vain")
    assert len(state.attempts) == ATTEMPTS_MAX


# Lost


def test_an_offer_that_is_not_answered_is_made_to_another() -> None:
    alice, task = Alice(BOB, CAROL), a_task()
    alice.submit(task)
    assert alice.wait(OFFER_S - 0.1) == []
    alice.wait(0.1)
    assert alice.offers == [(CAROL, 2)]
    assert alice.saved(task).attempts[0].reason == "no answer within 5 s"


def test_an_offer_that_cannot_be_sent_is_made_to_another_at_once() -> None:
    alice, task = Alice(BOB, CAROL), a_task(once=True)
    alice.submit(task)
    alice.did(alice.core.undelivered(BOB, TaskId(task.id), alice.now, alice.now_ms))
    assert alice.offers == [(CAROL, 2)]
    assert alice.core.undelivered(BOB, TaskId(task.id), alice.now, alice.now_ms) == []


def test_a_running_task_is_lost_when_its_peer_is_silent_and_not_before() -> None:
    alice, task = running_at_bob()
    alice.now += LEASE_S - 1
    alice.core.heard(BOB, alice.now)
    assert alice.wait(LEASE_S - 1) == []
    assert alice.wait(0.9) == []
    alice.wait(0.1)
    assert alice.offers == [(CAROL, 2)]
    assert alice.saved(task).attempts[0].reason == "not heard for 12 s"


def test_what_this_device_runs_itself_is_never_lost_to_silence() -> None:
    alice, task = Alice(ME.peer_id, BOB), a_task()
    alice.submit(task)
    assert alice.wait(OFFER_S * 2) == [], "it may wait for the disk"
    alice.hear(ME.peer_id, accepted(task))
    assert alice.wait(LEASE_S * 3) == []


def test_a_cut_off_peer_loses_what_ran_there() -> None:
    alice, task = running_at_bob()
    alice.cut(BOB)
    assert alice.offers == [(CAROL, 2)]
    assert alice.saved(task).attempts[0].reason == "cut off: no power"


def test_a_peer_in_reach_again_is_asked_about_what_it_has() -> None:
    alice, task = running_at_bob(once=True)
    alice.cut(BOB)
    assert alice.offers == []
    assert alice.saved(task).reason == f"unknown at {BOB}: cut off: no power"

    alice.did(alice.core.link_up(BOB, alice.now))
    assert alice.offers == [(BOB, 1)]
    alice.hear(BOB, accepted(task))

    assert (alice.saved(task).state, alice.saved(task).reason) == ("running", f"running at {BOB}")


# Once


@pytest.mark.parametrize("how", ["unanswered", "cut off", "silent"])
def test_a_task_that_may_run_once_goes_to_nobody_else_once_it_may_have_begun(how: str) -> None:
    alice, task = Alice(BOB, CAROL), a_task(once=True)
    alice.submit(task)
    if how == "unanswered":
        alice.wait(OFFER_S)
    else:
        alice.hear(BOB, accepted(task))
        _ = alice.cut(BOB) if how == "cut off" else alice.wait(LEASE_S)
    assert alice.offers == []
    assert alice.saved(task).reason.startswith(f"unknown at {BOB}: ")

    alice.wait(101)

    state = alice.saved(task)
    assert state.state == "failed"
    assert state.reason == f"unknown at {BOB}: its deadline passed without word"


def test_a_second_offer_that_cannot_be_sent_says_nothing_about_the_first() -> None:
    alice, task = Alice(BOB, CAROL), a_task(once=True)
    alice.submit(task)
    alice.core.link_up(BOB, alice.now)
    assert alice.core.undelivered(BOB, TaskId(task.id), alice.now, alice.now_ms) == []


def test_a_peer_that_says_it_has_not_begun_frees_a_task_that_may_run_once() -> None:
    alice, task = running_at_bob(once=True)
    alice.hear(BOB, Declined(task.id, 1, "no input", 2000))
    assert alice.offers == [(CAROL, 2)]


def test_a_peer_that_says_it_may_have_begun_keeps_a_task_that_may_run_once() -> None:
    alice, task = running_at_bob(once=True)
    alice.hear(BOB, Declined(task.id, 1, "it was cut short" + "." * 500, 0, begun=True))
    assert alice.offers == []
    assert alice.saved(task).reason == f"unknown at {BOB}: it was cut short".ljust(500, ".")


def test_a_late_decline_is_not_taken_for_an_answer_to_the_next_offer() -> None:
    alice, task = Alice(BOB), a_task(once=True)
    alice.submit(task)
    alice.hear(BOB, Declined(task.id, 1, "busy", 1000))
    alice.wait(1)
    assert alice.offers == [(BOB, 2)]
    assert alice.hear(BOB, Declined(task.id, 1, "busy", 1000)) == []


# Cancelled


def test_a_task_that_nobody_has_is_cancelled_without_a_word() -> None:
    alice, task = Alice(), a_task()
    alice.submit(task)
    assert alice.saved(task).state == "queued"
    alice.did(alice.core.cancel(TaskId(task.id), alice.now, alice.now_ms))
    assert (alice.saved(task).state, alice.saved(task).reason) == (
        "cancelled",
        "cancelled by its owner",
    )
    assert alice.sent == []
    assert alice.core.cancel(TaskId(task.id), alice.now, alice.now_ms) == []


def test_a_cancel_is_repeated_until_acknowledged_and_does_not_end_with_the_task() -> None:
    alice, task = running_at_bob()
    alice.did(alice.core.cancel(TaskId(task.id), alice.now, alice.now_ms))
    cancel_key = task.id + BOB.encode()
    until_ms = task.deadline_ms + RETENTION_MS
    assert Save(Table.CANCEL, cancel_key, CancelRecord(BOB, task.id, until_ms)) in alice.effects
    assert alice.sent == [(BOB, Cancel(task.id))]

    for _ in range(3):
        assert alice.wait(CANCEL_RETRY_S) == [Send(BOB, Cancel(task.id))]
    assert alice.core.link_up(BOB, alice.now) == [Send(BOB, Cancel(task.id))]
    assert alice.hear(CAROL, CancelAcknowledged(task.id)) == []
    assert alice.hear(BOB, CancelAcknowledged(task.id)) == [Erase(Table.CANCEL, cancel_key)]
    assert alice.wait(CANCEL_RETRY_S) == []
    assert alice.core.deadline > alice.now + 10


def test_a_peer_that_never_comes_back_is_not_told_for_ever() -> None:
    alice, task = running_at_bob()
    alice.core.cancel(TaskId(task.id), alice.now, alice.now_ms)
    record = CancelRecord(BOB, task.id, task.deadline_ms + RETENTION_MS)
    erased = [Erase(Table.CANCEL, task.id + BOB.encode())]
    assert alice.wait(8 * 86_400) == erased
    alice.restart([], [record])
    assert alice.wait(0) == erased, "nor after a start"


def test_a_cancel_survives_a_restart() -> None:
    alice = Alice()
    alice.restart([], [CancelRecord(BOB, a_task().id, NOW_MS + DAY_MS)])
    assert alice.wait(0) == [Send(BOB, Cancel(a_task().id))]


# Expired


def submit_only(alice: Alice, task: Task) -> None:
    alice.submit(task)


def accept(alice: Alice, task: Task) -> None:
    alice.submit(task)
    alice.hear(BOB, accepted(task))


@pytest.mark.parametrize(
    ("able", "until_then", "reason"),
    [
        ((), submit_only, "its deadline passed while it waited: nobody is in reach"),
        ((BOB,), submit_only, f"its deadline passed while offered to {BOB}"),
        ((BOB,), accept, f"its deadline passed while it ran at {BOB}"),
    ],
    ids=["queued", "offered", "running"],
)
def test_a_deadline_ends_a_task_in_every_state_and_says_where_it_was(
    able: tuple[PeerId, ...], until_then: Callable[[Alice, Task], None], reason: str
) -> None:
    alice, task = Alice(*able), a_task(deadline_s=4)
    until_then(alice, task)
    alice.wait(3.9)
    assert alice.effects == []
    alice.wait(0.2)
    state = alice.saved(task)
    assert (state.state, state.reason, state.ended_ms) == ("expired", reason, alice.now_ms)
    assert alice.sent == [(peer, Cancel(task.id)) for peer in able]
    assert alice.core.state(TaskId(task.id)) is None


# Outcomes


@pytest.mark.parametrize(
    ("state", "said", "reason"),
    [("done", "", f"done at {BOB}"), ("failed", "no such file", "no such file")],
)
def test_an_outcome_is_kept_with_the_state_and_acknowledged_in_one_step(
    state: str, said: str, reason: str
) -> None:
    alice, task = running_at_bob()
    alice.now = 3
    delivered = an_outcome(task, state=state, reason=said)

    effects = alice.hear(BOB, delivered)

    kept = alice.saved(task)
    assert effects == [
        Save(Table.RESULT, task.id, Verdict(delivered.outcome, delivered.result)),
        Save(Table.STATE, task.id, kept),
        Changed(TaskId(task.id), kept),
        Send(BOB, Acknowledged(task.id)),
    ]
    assert (kept.state, kept.reason, kept.executor) == (state, reason, BOB)
    assert (kept.run_us, kept.model, kept.ended_ms) == (1_500, "small", NOW_MS + 3000)
    assert (kept.attempts[0].state, kept.attempts[0].ended_ms) == (state, NOW_MS + 3000)


def test_an_outcome_that_comes_before_its_acceptance_counts() -> None:
    alice, task = Alice(BOB), a_task()
    alice.submit(task)
    alice.hear(BOB, an_outcome(task))
    assert alice.saved(task).state == "done"


def test_the_first_outcome_counts_and_other_attempts_are_cancelled() -> None:
    alice, task = running_at_bob()
    alice.cut(BOB)
    assert alice.offers == [(CAROL, 2)]

    alice.hear(BOB, an_outcome(task))

    state = alice.saved(task)
    assert (state.state, state.executor) == ("done", BOB)
    assert [one.state for one in state.attempts] == ["done", "cancelled"]
    assert all(one.ended_ms for one in state.attempts)
    assert alice.sent == [(CAROL, Cancel(task.id)), (BOB, Acknowledged(task.id))]


def test_an_outcome_counts_while_its_task_waits_to_be_tried_again() -> None:
    alice, task = running_at_bob(others=())
    alice.cut(BOB)
    assert alice.saved(task).state == "queued"
    alice.hear(BOB, an_outcome(task))
    assert alice.saved(task).state == "done"


def test_a_late_outcome_is_acknowledged_and_changes_nothing() -> None:
    alice, task = running_at_bob()
    alice.hear(BOB, an_outcome(task))
    again = [Send(CAROL, Acknowledged(task.id))]
    assert alice.hear(CAROL, an_outcome(task, CAROL_KEY, attempt=2)) == again
    unknown = an_outcome(a_task(9))
    assert alice.hear(BOB, unknown) == [Send(BOB, Acknowledged(unknown.task_id))]


TASK = a_task()
GOOD = an_outcome(TASK)


FORGED: dict[str, tuple[PeerId, Delivered]] = {
    "signed by another": (BOB, an_outcome(TASK, CAROL_KEY)),
    "of a peer that was not asked": (CAROL, an_outcome(TASK, CAROL_KEY)),
    "passed on by another": (CAROL, GOOD),
    "of an attempt that was not made": (BOB, an_outcome(TASK, attempt=2)),
    "of another's attempt": (BOB, an_outcome(TASK, attempt=0)),
    "of another mesh": (BOB, an_outcome(TASK, mesh=OTHER_MESH)),
    "of another input": (BOB, an_outcome(TASK, task_digest=digest_of(b"other"))),
    "of another origin": (BOB, an_outcome(TASK, origin=CAROL)),
    "of another task": (BOB, an_outcome(TASK, task_id=bytes(16))),
    "with another result": (BOB, msgspec.structs.replace(GOOD, result=b'"not seen"')),
    "that names another result": (BOB, an_outcome(TASK, result_digest=bytes(32))),
    "altered": (BOB, msgspec.structs.replace(GOOD, outcome=GOOD.outcome[:-1] + b"\0")),
    "that is none": (BOB, msgspec.structs.replace(GOOD, outcome=b"")),
    "signed as something else": (
        BOB,
        Delivered(
            TASK.id,
            seal(CancelRecord(BOB, TASK.id, 1), kind=OUTCOME_KIND, mesh=MESH, keypair=BOB_KEY),
            b"",
        ),
    ),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_outcome_is_refused(what: str) -> None:
    sender, forged = FORGED[what]
    alice, _ = running_at_bob()
    assert alice.hear(sender, forged) == []
    assert alice.core.refused == 1
    alice.hear(BOB, GOOD)
    assert alice.saved(TASK).state == "done", "and the true one still counts"


# Restored


def at(peer: PeerId, state: str) -> TaskState:
    attempt = Attempt(1, peer, "directory", "able", state, "", NOW_MS)
    assert state in ("offered", "running")
    return TaskState("offered" if state == "offered" else "running", "as before", (attempt,))


def test_what_waited_is_taken_up_again_after_a_start() -> None:
    alice, task = Alice(BOB), a_task()
    alice.restart([(task, TaskState("queued", "nobody was there"))])
    alice.wait(0)
    assert alice.offers == [(BOB, 1)]


@pytest.mark.parametrize("state", ["offered", "running"])
def test_a_peer_that_had_a_task_is_asked_about_it_before_anyone_else(state: str) -> None:
    alice, task = Alice(CAROL, BOB), a_task()
    assert alice.restart([(task, at(BOB, state))]) == []
    alice.did(alice.core.link_up(BOB, alice.now))
    assert alice.offers == [(BOB, 1)]


@pytest.mark.parametrize("state", ["offered", "running"])
def test_a_peer_that_does_not_come_back_loses_it_within_the_lease(state: str) -> None:
    alice, task = Alice(CAROL), a_task()
    alice.restart([(task, at(BOB, state))])
    assert alice.wait(LEASE_S - 0.1) == []
    alice.wait(0.1)
    assert alice.offers == [(CAROL, 2)]


def test_a_second_offer_after_a_start_says_nothing_about_the_first() -> None:
    alice, task = Alice(CAROL), a_task(once=True)
    alice.restart([(task, at(BOB, "offered"))])
    alice.core.link_up(BOB, alice.now)
    assert alice.core.undelivered(BOB, TaskId(task.id), alice.now, alice.now_ms) == []


def test_what_this_device_ran_itself_is_offered_to_it_again() -> None:
    alice, task = Alice(ME.peer_id), a_task()
    alice.restart([(task, at(ME.peer_id, "running"))])
    assert alice.core.deadline == float("-inf")
    alice.wait(0)
    assert alice.offers == [(ME.peer_id, 1)]
    assert alice.wait(0) == []


def test_what_had_ended_is_left_alone_and_what_is_overdue_expires() -> None:
    alice = Alice(BOB)
    ended, overdue = a_task(1), a_task(2, deadline_s=-1)
    alice.restart([(ended, TaskState("done", "done")), (overdue, TaskState("queued", "waited"))])
    alice.wait(0)
    assert alice.core.state(TaskId(ended.id)) is None
    assert alice.saved(overdue).state == "expired"


# What it costs


def test_many_waiting_tasks_are_looked_at_in_short_steps() -> None:
    alice = Alice()
    for number in range(WAKE_BATCH + 10):
        alice.submit(a_task(number))
    alice.finder.peers = [BOB]
    alice.core.wake()
    assert alice.core.deadline == float("-inf")
    alice.wait(0)
    assert len(alice.offers) == WAKE_BATCH
    alice.wait(0)
    assert len(alice.offers) == 10


def test_timers_stay_in_proportion_to_what_lives() -> None:
    live = set(range(10))
    timers = Timers[int](live.__contains__)
    for number in range(100_000):
        timers.arm(86_400.0 + number % 100, number)
    assert len(timers) < 200
    assert sorted(timers.due(1e6)) == list(range(10))


def test_a_state_of_the_most_and_longest_attempts_stays_small_enough_to_be_read() -> None:
    alice, task = Alice(BOB), a_task(once=True, deadline_s=100_000)
    alice.submit(task)
    for number in range(1, ATTEMPTS_MAX):
        alice.hear(BOB, Declined(task.id, number, "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 9999, 1))
        alice.wait(31)
    state = alice.saved(task)
    assert len(state.attempts) == ATTEMPTS_MAX
    assert len(encode(state)) < 256 * KIB


def test_finished_tasks_are_forgotten_when_nobody_can_ask_about_them() -> None:
    task = a_task(deadline_s=1)
    after_ms = task.deadline_ms + RETENTION_MS + 1
    done, waiting = TaskState("done", "done"), TaskState("queued", "waits")
    assert list(forget([(task, done), (task, waiting)], after_ms - 1)) == []
    assert list(forget([(task, done), (task, waiting)], after_ms)) == [
        Erase(table, task.id) for table in (Table.TASK, Table.STATE, Table.RESULT)
    ]


# The table of moves


def test_a_move_that_is_not_in_the_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MOVES, "offered", frozenset({"queued"}))
    alice, task = Alice(BOB), a_task()
    alice.submit(task)
    with pytest.raises(AssertionError):
        alice.hear(BOB, accepted(task))


@pytest.mark.parametrize(("name", "moves"), [("task", MOVES), ("execution", RUN_MOVES)])
def test_the_drawn_state_machine_is_the_table(name: str, moves: dict[str, frozenset[str]]) -> None:
    folder = ROOT / "docs" / "state-machines"
    draw = runpy.run_path(str(folder / "draw.py"))["draw"]
    drawn = (folder / f"{name}.dot").read_text()
    assert drawn == draw(name, moves), "draw it again: python docs/state-machines/draw.py"
