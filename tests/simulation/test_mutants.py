"""The simulator must notice what it is there for: each of these mistakes, planted, is found."""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import msgspec
import pytest
from simulation.world import Cores, Device, Violation, World
from test_gossip.members import MESH

from covey.gossip.effects import Effect, Save, Send, Table
from covey.gossip.executions import Executions, Limits
from covey.gossip.origin import Origin
from covey.gossip.routing import Candidate, DirectoryFinder, Nobody
from covey.gossip.task import OUTCOME_KIND, Need, Outcome
from covey.identity.envelope import open_envelope
from covey.identity.keys import PeerId

# The rarest of these mistakes shows in one seed of five.
SEEDS = range(40)


class ForgetsRunning(Origin):
    def restore(self, records: Any, cancels: Any, now: float, now_ms: int) -> list[Effect]:
        queued = [(task, state) for task, state in records if state.state == "queued"]
        return super().restore(queued, cancels, now, now_ms)


class RetriesWhatMayRunOnce(Origin):
    def _lost(self, live: Any, why: str, now: float, now_ms: int) -> list[Effect]:
        return self._replace_attempt(live, "lost", why, now, now_ms)


class BelievesAnyMember(Origin):
    def _verified(self, live: Any, sender: PeerId, message: Any) -> Outcome | None:
        outcome = open_envelope(message.outcome, Outcome, kind=OUTCOME_KIND, mesh=MESH).body
        return outcome if live.state.attempts else None


class AcknowledgesWithoutRecord(Origin):
    def _take_outcome(self, sender: PeerId, message: Any, now: float, now_ms: int) -> list[Effect]:
        effects = super()._take_outcome(sender, message, now, now_ms)
        return [one for one in effects if not isinstance(one, Save)]


class AcknowledgesOnlyWhatItWaitsFor(Origin):
    def _take_outcome(self, sender: PeerId, message: Any, now: float, now_ms: int) -> list[Effect]:
        known = self.state(message.task_id) is not None
        return super()._take_outcome(sender, message, now, now_ms) if known else []


class CancelsOnce(Origin):
    def _cancel_again(self, now: float) -> list[Effect]:
        self._cancels_due = float("inf")
        return []


class ChangesWhatHasEnded(Origin):
    def _finish(self, live: Any, *others: Any, **named: Any) -> list[Effect]:
        task_id = live.task.id
        effects = super()._finish(live, *others, **named)
        live.state = msgspec.structs.replace(live.state, state="queued", reason="again")
        self._live[task_id] = live
        self._queued[task_id] = None
        return effects


class KeepsNoOutcome(Executions):
    def finished(self, *arguments: Any, **named: Any) -> list[Effect]:
        effects = super().finished(*arguments, **named)
        return [one for one in effects if not (isinstance(one, Save) and one.table is Table.RUN)]


class ForgetsWhatItBegan(Executions):
    def restore(self, records: Iterable[Any], now: float, now_ms: int) -> list[Effect]:
        return super().restore([one for one in records if one.state != "begun"], now, now_ms)


class DeliversOnce(Executions):
    def _resend(self, *arguments: Any, **named: Any) -> list[Effect]:
        return []

    def link_up(self, peer: PeerId) -> list[Effect]:
        return []


class RunsEveryOffer(Executions):
    """Also one that it runs already."""

    def _offered(self, key: Any, offer: Any, now: float, now_ms: int) -> list[Effect]:
        return self._take(key, offer, now, now_ms)


class IgnoresZones(DirectoryFinder):
    def find(
        self, need: Need, exclude: Collection[PeerId], now: float, left_s: float
    ) -> Candidate | Nobody:
        everywhere = msgspec.structs.replace(need, zone="mesh")
        return super().find(everywhere, exclude, now, left_s)


def with_parts(
    origin: type[Origin] = Origin,
    executions: type[Executions] = Executions,
    finder: type[DirectoryFinder] = DirectoryFinder,
) -> Cores:
    def cores(device: Device) -> tuple[Origin, Executions]:
        found = finder(device.me, device.directory, device.links, lambda _need: None)
        return (
            origin(device.me, MESH, found),
            executions(device.keypair, MESH, device.incarnation, device.able, Limits(2, 4)),
        )

    return cores


MUTANTS: dict[str, Cores] = {
    mutant.__name__: with_parts(**{part: mutant})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    for part, mutants in {
        "origin": (
            ForgetsRunning,
            RetriesWhatMayRunOnce,
            BelievesAnyMember,
            AcknowledgesWithoutRecord,
            AcknowledgesOnlyWhatItWaitsFor,
            CancelsOnce,
            ChangesWhatHasEnded,
        ),
        "executions": (KeepsNoOutcome, ForgetsWhatItBegan, DeliversOnce, RunsEveryOffer),
        "finder": (IgnoresZones,),
    }.items()
    for mutant in mutants
}


def live_and_settle(world: World) -> None:
    for _ in range(6):
        world.live(10, 25)
        world.check_safety()
    world.calm_down(260)
    world.check_quiet()


def is_found(cores: Cores) -> bool:
    for seed in SEEDS:
        try:
            live_and_settle(World(seed, peers=15, cores=cores))
        except (Violation, AssertionError):
            return True
    return False


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_mistake_is_found(name: str) -> None:
    assert is_found(MUTANTS[name]), f"{name} lived through {len(SEEDS)} seeds"


def test_a_driver_that_sends_before_its_records_are_durable_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proper = Device.carry_out

    def hasty(
        self: Device, effects: Sequence[Effect], caller: Callable[[bool], None] | None = None
    ) -> None:
        for one in effects:
            if isinstance(one, Send) and one.to != self.me:
                self.world.check_send(self, one.to, one.message)
        proper(self, effects, caller)

    monkeypatch.setattr(Device, "carry_out", hasty)
    assert is_found(with_parts())


def test_without_a_mistake_nothing_is_found() -> None:
    assert not is_found(with_parts())
