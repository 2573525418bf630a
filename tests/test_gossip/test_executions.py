"""A task at its executor, by the effects: what is taken on, what is declined and why, what is kept."""

import msgspec
import pytest
from test_gossip.members import MESH, NOW_MS, key

from covey.gossip.effects import Begin, Effect, Ended, Erase, Fetch, Halt, Run, Save, Send, Table
from covey.gossip.executions import (
    KEEP_CLOSED_MS,
    KEEP_UNACKNOWLEDGED_MS,
    LEFT_MS_MAX,
    OUTCOME_BYTES_MAX,
    OUTCOME_BYTES_PER_ORIGIN_MAX,
    RESEND_S_MAX,
    RUN_MOVES,
    SWEEP_S,
    Executions,
    Limits,
    RunRecord,
)
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
from covey.gossip.past_runs import PastRuns
from covey.gossip.task import (
    OUTCOME_KIND,
    RESULT_BYTES_MAX,
    Need,
    Outcome,
    TaskId,
    digest_of,
    task_digest,
    task_id_of,
)
from covey.identity.envelope import open_envelope
from covey.identity.keys import PeerId

ALICE, CAROL, BOB_KEY = key(1).peer_id, key(3).peer_id, key(2)
BOB = BOB_KEY.peer_id
INCARNATION = 7
NEED = Need("see")
DONE = Ended("done", b'"seen"', run_s=1.5, model="small")


def an_offer(
    number: int = 1,
    *,
    origin: PeerId = ALICE,
    attempt: int = 1,
    need: Need = NEED,
    input_: bytes | None = b"input",
    left_ms: int = 100_000,
    priority: int = 0,
    once: bool = False,
    **changed: object,
) -> Offer:
    nonce = number.to_bytes(16, "big")
    offer = Offer(
        task_id=task_id_of(origin, nonce),
        attempt=attempt,
        nonce=nonce,
        need=need,
        input=input_,
        input_digest=digest_of(b"input"),
        left_ms=left_ms,
        priority=priority,
        once=once,
    )
    return msgspec.structs.replace(offer, **changed)


OFFER = an_offer()
ID = TaskId(OFFER.task_id)


def lack(_origin: PeerId, need: Need) -> str | None:
    return None if need.skill == "see" else f"it does not offer skill {need.skill!r}"


class Bob:
    """Executions with their clock."""

    def __init__(self, *, running: int = 2, waiting: int = 2) -> None:
        self.core = Executions(BOB_KEY, MESH, INCARNATION, lack, Limits(running, waiting))
        self.now = 0.0

    @property
    def now_ms(self) -> int:
        return NOW_MS + int(self.now * 1000)

    def hear(self, message: Offer | Acknowledged | Cancel, origin: PeerId = ALICE) -> list[Effect]:
        return self.core.receive(origin, message, self.now, self.now_ms)

    def finish(self, offer: Offer = OFFER, ended: Ended = DONE) -> list[Effect]:
        return self.core.finished(ALICE, TaskId(offer.task_id), ended, self.now, self.now_ms)

    def wait(self, seconds: float) -> list[Effect]:
        self.now += seconds
        return self.core.tick(self.now, self.now_ms)

    def restore(self, *records: RunRecord) -> list[Effect]:
        return self.core.restore(records, self.now, self.now_ms)


def sent(effects: list[Effect]) -> list[Message]:
    return [one.message for one in effects if isinstance(one, Send)]


def begun(effects: list[Effect]) -> list[TaskId]:
    return [one.run.task_id for one in effects if isinstance(one, Begin)]


def run_key(offer: Offer = OFFER, origin: PeerId = ALICE) -> bytes:
    return offer.task_id + origin.encode()


# Taken


def test_an_offer_is_accepted_under_this_incarnation_and_begun_without_a_commit() -> None:
    assert Bob().hear(OFFER) == [
        Send(ALICE, Accepted(ID, 1, INCARNATION)),
        Begin(Run(ALICE, ID, NEED, b"input", 100.0)),
    ]


def test_an_offer_that_comes_again_is_accepted_again_and_not_begun_again() -> None:
    bob = Bob()
    bob.hear(OFFER)
    again = bob.hear(an_offer(attempt=2))
    assert again == [Send(ALICE, Accepted(ID, 2, INCARNATION))]
    delivered = sent(bob.finish())[0]
    assert isinstance(delivered, Delivered)
    outcome = open_envelope(delivered.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH)
    assert outcome.body.attempt == 2, "the outcome is of the attempt that was asked for last"


def test_a_task_that_may_run_once_is_recorded_before_it_begins() -> None:
    record = RunRecord(ALICE, ID, "begun", NOW_MS + 100_000 + KEEP_CLOSED_MS)
    effects = Bob().hear(an_offer(once=True))
    assert effects[0] == Save(Table.RUN, run_key(), record)
    assert begun(effects) == [ID]


def test_what_finds_no_place_waits_and_the_most_urgent_goes_first() -> None:
    bob = Bob(running=1, waiting=3)
    bob.hear(OFFER)
    usual, urgent, pushing = an_offer(2), an_offer(3, priority=9), an_offer(4, priority=10**9)
    for offer in (usual, urgent, pushing):
        assert begun(bob.hear(offer)) == []
    assert (bob.core.running, bob.core.waiting) == (1, 3)
    order: list[TaskId] = []
    for ended in (OFFER, urgent, pushing):
        order += begun(bob.finish(ended))

    assert order == [urgent.task_id, pushing.task_id, usual.task_id], "9 is as urgent as it gets"


def test_what_is_overdue_when_its_turn_comes_is_not_begun() -> None:
    bob = Bob(running=1)
    bob.hear(OFFER)
    bob.hear(an_offer(2, left_ms=1000))
    bob.now = 1.0
    assert begun(bob.finish()) == []


# Declined


@pytest.mark.parametrize(
    ("offer", "reason", "retry_ms"),
    [
        (an_offer(nonce=b"another nonce..."), "the task's id is not its origin's", 0),
        (an_offer(input_=b"other"), "the input is not what its digest says", 0),
        (an_offer(left_ms=0), "its deadline has passed", 0),
        (an_offer(left_ms=-5), "its deadline has passed", 0),
        (an_offer(left_ms=LEFT_MS_MAX + 1), "its deadline is more than 90 days away", 0),
        (an_offer(left_ms=2**64 - 1), "its deadline is more than 90 days away", 0),
        (
            an_offer(need=Need("see", zone="device")),
            "zone 'device' does not leave its device",
            0,
        ),
        (
            an_offer(need=Need("s" * 129)),
            f"a name has at most 128 characters, not 129: {'s' * 32!r}...",
            0,
        ),
        (an_offer(need=Need("hear")), "it does not offer skill 'hear'", 0),
    ],
)
def test_what_can_never_be_done_here_is_declined_with_the_reason(
    offer: Offer, reason: str, retry_ms: int
) -> None:
    assert Bob().hear(offer) == [Send(ALICE, Declined(ID, 1, reason, retry_ms))]


def test_a_need_that_no_peer_could_read_is_declined_briefly() -> None:
    effects = Bob().hear(an_offer(need=Need("\0" * 1_000_000)))
    declined = sent(effects)[0]
    assert isinstance(declined, Declined)
    assert "a name has at most 128 characters" in declined.reason
    assert len(declined.reason) <= 500


def test_what_there_is_no_room_for_is_declined_for_now() -> None:
    bob = Bob(running=1, waiting=1)
    bob.hear(OFFER)
    bob.hear(an_offer(2))
    declined = sent(bob.hear(an_offer(3)))
    assert declined == [Declined(an_offer(3).task_id, 1, "busy: 1 running, 1 waiting", 1000)]


def test_a_task_of_zone_device_runs_for_this_device_itself() -> None:
    offer = an_offer(origin=BOB, need=Need("see", zone="device"))
    assert begun(Bob().hear(offer, BOB)) == [offer.task_id]


def test_a_record_answers_only_its_origin() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.finish()
    declined = sent(bob.hear(OFFER, CAROL))
    assert declined == [Declined(ID, 1, "the task's id is not its origin's", 0)]
    assert bob.hear(Acknowledged(ID), CAROL) == []
    assert Halt(ALICE, ID) not in bob.hear(Cancel(ID), CAROL)
    assert isinstance(sent(bob.hear(OFFER))[0], Delivered), "and the outcome still waits"


# Inputs that are fetched


def fetching(bob: Bob, **changed: bool) -> Offer:
    offer = an_offer(input_=None, once=changed.get("once", False))
    effects = bob.hear(offer)
    assert effects[-1] == Fetch(ALICE, ID)
    assert begun(effects) == []
    return offer


def test_a_fetched_input_begins_the_run() -> None:
    bob = Bob()
    fetching(bob)
    assert bob.core.fetched(ALICE, ID, b"input", 1.0) == [
        Begin(Run(ALICE, ID, NEED, b"input", 100.0))
    ]
    assert bob.core.fetched(ALICE, ID, b"input", 1.0) == [], "a second answer means nothing"


@pytest.mark.parametrize(
    ("input_", "why"),
    [
        (None, "the input could not be fetched"),
        (b"other", "the input is not what was offered"),
    ],
)
@pytest.mark.parametrize("once", [False, True])
def test_a_missing_or_wrong_input_frees_the_task(
    input_: bytes | None, why: str, once: bool
) -> None:
    bob = Bob()
    fetching(bob, once=once)
    erased = [Erase(Table.RUN, run_key())] if once else []
    declined = Send(ALICE, Declined(ID, 1, why, 2000))
    assert bob.core.fetched(ALICE, ID, input_, 1.0) == [*erased, declined]
    assert bob.core.waiting == 0


# Endings


def test_an_outcome_is_kept_before_it_is_delivered() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.now = 2.0

    effects = bob.finish()

    delivered = sent(effects)[0]
    assert isinstance(delivered, Delivered)
    until_ms = NOW_MS + 2000 + 100_000 + KEEP_UNACKNOWLEDGED_MS
    record = RunRecord(ALICE, ID, "ended", until_ms, delivered.outcome, b'"seen"')
    assert effects == [Save(Table.RUN, run_key(), record), Send(ALICE, delivered)]
    signed = open_envelope(delivered.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH)
    assert signed.signer == BOB
    assert signed.body == Outcome(
        origin=ALICE,
        task_id=ID,
        attempt=1,
        task_digest=task_digest(ALICE, ID, NEED, b"input"),
        result_digest=digest_of(b'"seen"'),
        state="done",
        reason="",
        run_us=1_500_000,
        model="small",
        ended_ms=NOW_MS + 2000,
    )


def outcome_of(effects: list[Effect]) -> Outcome:
    delivered = sent(effects)[0]
    assert isinstance(delivered, Delivered)
    return open_envelope(delivered.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH).body


def test_a_result_over_the_limit_is_a_failure_that_says_so() -> None:
    bob = Bob()
    bob.hear(OFFER)
    outcome = outcome_of(bob.finish(ended=Ended("done", b"x" * (RESULT_BYTES_MAX + 1))))
    assert outcome.state == "failed"
    assert outcome.reason == (
        "the result has 1048577 bytes, over the limit of 1048576; ask for less"
    )
    assert outcome.result_digest == digest_of(b"")


def test_a_reason_that_is_no_text_is_still_told() -> None:
    bob = Bob()
    bob.hear(OFFER)
    outcome = outcome_of(bob.finish(ended=Ended("failed", b"", "no file \udcff" + "." * 999)))
    assert outcome.reason == "no file ?" + "." * 491


def test_progress_is_told_while_it_runs_and_not_after() -> None:
    bob = Bob()
    bob.hear(OFFER)
    assert bob.core.progressed(ALICE, ID, "half") == [Send(ALICE, Progress(ID, 1, "half"))]
    bob.hear(Cancel(ID))
    assert bob.core.progressed(ALICE, ID, "more") == []


def test_an_outcome_is_repeated_ever_more_slowly_until_acknowledged() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.finish()
    at = [bob.now for _ in range(300) if bob.wait(1)]
    assert at == [2, 6, 14, 30, 62, *(62 + RESEND_S_MAX * n for n in range(1, 4))]
    assert isinstance(sent(bob.core.link_up(ALICE))[0], Delivered), "and at once on a new link"
    assert bob.core.link_up(CAROL) == []

    until_ms = NOW_MS + 100_000 + KEEP_CLOSED_MS
    closed = RunRecord(ALICE, ID, "closed", until_ms)
    assert bob.hear(Acknowledged(ID)) == [Save(Table.RUN, run_key(), closed, lazy=True)]
    assert bob.wait(1000) == []
    assert bob.hear(Acknowledged(ID)) == []


def test_an_outcome_that_nobody_fetches_is_dropped_after_ninety_days() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.finish()
    assert bob.wait(KEEP_UNACKNOWLEDGED_MS / 1000 + 101) == [Erase(Table.RUN, run_key())]
    assert bob.core.deadline == float("inf")


def test_a_done_and_acknowledged_task_is_not_done_again() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.finish()
    bob.hear(Acknowledged(ID))
    over = "it is over here: cancelled, or delivered and acknowledged"
    assert bob.hear(OFFER) == [Send(ALICE, Declined(ID, 1, over, 0))]


def test_an_overdue_run_is_halted_and_leaves_no_outcome() -> None:
    bob = Bob(running=1)
    bob.hear(an_offer(left_ms=5000))
    bob.hear(an_offer(2))
    assert bob.wait(4.9) == []
    assert bob.wait(0.1) == [Halt(ALICE, ID)]
    ends = bob.finish(ended=Ended("failed", b"", "stopped"))
    assert begun(ends) == [an_offer(2).task_id], "its place goes to the next"
    assert [type(one) for one in ends] == [Begin]


@pytest.mark.parametrize("once", [False, True])
def test_what_is_overdue_before_it_begins_leaves_nothing(once: bool) -> None:
    bob = Bob(running=1)
    bob.hear(OFFER)
    waiting = an_offer(2, left_ms=5000, once=once)
    bob.hear(waiting)
    assert bob.wait(5) == ([Erase(Table.RUN, run_key(waiting))] if once else [])
    assert bob.core.waiting == 0


def test_a_task_that_may_run_once_and_was_halted_is_not_begun_again() -> None:
    bob = Bob()
    bob.hear(an_offer(left_ms=5000, once=True))
    bob.wait(5)
    bob.finish()
    declined = sent(bob.hear(an_offer(left_ms=50, once=True, attempt=2)))[0]
    assert isinstance(declined, Declined)
    assert (declined.begun, declined.retry_ms) == (True, 0)


# Cancelled


def closed_for(left_ms: int) -> Save:
    record = RunRecord(ALICE, ID, "closed", NOW_MS + left_ms + KEEP_CLOSED_MS)
    return Save(Table.RUN, run_key(), record, lazy=True)


def test_a_cancel_halts_what_runs_and_is_acknowledged_each_time() -> None:
    bob = Bob()
    bob.hear(OFFER)
    acknowledged = Send(ALICE, CancelAcknowledged(ID))
    assert bob.hear(Cancel(ID)) == [closed_for(100_000), acknowledged, Halt(ALICE, ID)]
    assert bob.hear(Cancel(ID)) == [acknowledged]
    assert bob.finish() == [], "its end is nobody's business any more"


def test_a_cancel_drops_what_waits() -> None:
    bob = Bob(running=1)
    bob.hear(an_offer(2))
    bob.hear(OFFER)
    assert bob.hear(Cancel(ID)) == [closed_for(100_000), Send(ALICE, CancelAcknowledged(ID))]
    assert begun(bob.finish(an_offer(2))) == []


def test_a_cancel_that_overtakes_its_offer_holds() -> None:
    bob = Bob()
    assert bob.hear(Cancel(ID)) == [closed_for(LEFT_MS_MAX), Send(ALICE, CancelAcknowledged(ID))]
    declined = sent(bob.hear(OFFER))[0]
    assert isinstance(declined, Declined)
    assert declined.retry_ms == 0


def test_a_cancel_ends_the_delivery_of_an_outcome() -> None:
    bob = Bob()
    bob.hear(OFFER)
    bob.finish()
    bob.hear(Cancel(ID))
    assert bob.wait(100) == []
    assert bob.core.link_up(ALICE) == []


# Restored


def test_an_outcome_is_delivered_after_a_restart() -> None:
    bob = Bob()
    record = RunRecord(ALICE, ID, "ended", NOW_MS + 1, b"sealed", b"result")
    assert bob.restore(record) == []
    assert bob.wait(0) == [Send(ALICE, Delivered(ID, b"sealed", b"result"))]
    assert sent(bob.hear(OFFER)) == [Delivered(ID, b"sealed", b"result")]


def test_what_may_have_begun_before_a_restart_is_said_to_be_unknown() -> None:
    bob = Bob()
    bob.restore(RunRecord(ALICE, ID, "begun", NOW_MS + 1))
    why = "it began here and was cut short; whether it was done is not known"
    assert bob.hear(an_offer(once=True)) == [Send(ALICE, Declined(ID, 1, why, 0, begun=True))]
    bob.hear(Cancel(ID))
    declined = sent(bob.hear(an_offer(once=True)))[0]
    assert isinstance(declined, Declined)
    assert not declined.begun, "a cancel settles it"


def test_what_was_over_before_a_restart_stays_over() -> None:
    bob = Bob()
    bob.restore(RunRecord(ALICE, ID, "closed", NOW_MS + 1))
    assert begun(bob.hear(OFFER)) == []


@pytest.mark.parametrize("state", ["begun", "ended", "closed"])
def test_a_record_is_erased_when_its_time_is_over_at_a_start(state: str) -> None:
    record = msgspec.convert([ALICE, ID, state, NOW_MS - 1], RunRecord, builtin_types=(bytes,))
    bob = Bob()
    assert bob.restore(record) == [Erase(Table.RUN, run_key())]
    assert begun(bob.hear(OFFER)) == [ID]


@pytest.mark.parametrize("state", ["begun", "closed"])
def test_a_record_is_erased_when_its_time_is_over_while_the_daemon_runs(state: str) -> None:
    record = msgspec.convert([ALICE, ID, state, NOW_MS + 9000], RunRecord, builtin_types=(bytes,))
    bob = Bob()
    bob.restore(record)
    assert bob.core.deadline == SWEEP_S
    assert bob.wait(SWEEP_S) == [Erase(Table.RUN, run_key())]
    assert bob.core.deadline == float("inf")


def test_a_core_that_could_not_keep_its_records_tells_the_origins() -> None:
    """Nothing but a word frees them: this device lives, so their leases go on."""
    former, bob = Bob(running=1, waiting=9), Bob()
    kept, unkept, once, own = an_offer(1), an_offer(2), an_offer(3, once=True), an_offer(origin=BOB)
    for offer in (kept, unkept, once, an_offer(4)):
        former.hear(offer)
    former.hear(own, BOB)
    former.hear(Cancel(an_offer(4).task_id))
    ended = former.finish(kept)[0]
    former.finish(unkept)
    assert isinstance(ended, Save)
    assert isinstance(ended.value, RunRecord)
    bob.restore(ended.value, RunRecord(ALICE, once.task_id, "begun", NOW_MS + 1))

    told = bob.core.left_by(former.core)

    why = "this device could not keep its record"
    assert told == [
        Send(ALICE, Declined(once.task_id, 1, why, 2000, begun=True)),
        Send(ALICE, Declined(unkept.task_id, 1, why, 2000)),
    ]


# Limits


# Never touched, so it costs no memory.
TOO_MUCH = bytes(OUTCOME_BYTES_PER_ORIGIN_MAX + 1)


def too_much(number: int, origin: PeerId) -> RunRecord:
    task_id = an_offer(number, origin=origin).task_id
    return RunRecord(origin, task_id, "ended", NOW_MS + 10**9, b"", TOO_MUCH)


def test_an_origin_with_too_much_unacknowledged_is_declined_for_now_and_others_are_not() -> None:
    bob = Bob()
    bob.restore(too_much(9, ALICE))
    why = "too many outcomes of yours wait here to be acknowledged"
    assert sent(bob.hear(OFFER)) == [Declined(ID, 1, why, 10_000)]
    others = an_offer(origin=CAROL)
    assert begun(bob.hear(others, CAROL)) == [others.task_id]
    bob.hear(Acknowledged(an_offer(9).task_id))
    assert begun(bob.hear(OFFER)) == [ID], "what is acknowledged makes room"


def test_all_origins_together_do_not_fill_the_memory() -> None:
    bob = Bob()
    assert 2 * len(TOO_MUCH) > OUTCOME_BYTES_MAX
    bob.restore(too_much(1, key(10).peer_id), too_much(1, key(11).peer_id))
    why = "too many outcomes wait here to be acknowledged"
    assert sent(bob.hear(OFFER)) == [Declined(ID, 1, why, 10_000)]


def test_what_is_over_is_bounded_and_a_flood_displaces_its_own() -> None:
    past = PastRuns(closed_max=3)
    first, second = (TaskId(bytes([n]) * 16) for n in (1, 2))
    assert past.close((CAROL, first), 1) is None
    assert past.close((ALICE, first), 1) is None
    assert past.close((ALICE, second), 1) is None
    displaced = [past.close((ALICE, TaskId(bytes([n]) * 16)), 1) for n in range(3, 100)]
    assert displaced[:2] == [(ALICE, first), (ALICE, second)]
    assert len(past) == 3
    assert past.is_closed((CAROL, first)), "another's is not forgotten for it"
    assert past.close((BOB, first), 1) == (CAROL, first), "but the oldest goes for a newcomer"
    assert past.close((BOB, first), 1) is None, "what is known takes no more room"


def test_offers_that_are_cancelled_while_all_places_are_taken_leave_nothing_behind() -> None:
    bob = Bob(running=1, waiting=2)
    bob.hear(OFFER)
    before = len(bob.core._waiting) + len(bob.core._timers)  # pyright: ignore[reportPrivateUsage]
    for number in range(2, 1000):
        bob.hear(an_offer(number))
        bob.hear(Cancel(an_offer(number).task_id))
    after = len(bob.core._waiting) + len(bob.core._timers)  # pyright: ignore[reportPrivateUsage]
    assert after - before < 200


def test_a_move_that_is_not_in_the_table_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RUN_MOVES, "waiting", frozenset({"over"}))
    with pytest.raises(AssertionError):
        Bob().hear(OFFER)
