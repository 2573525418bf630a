"""How does an accepted task run here?

Its skill, on the data that it names, with what the device has.
"""

from collections.abc import Callable, Collection

import msgspec
import trio

from covey.gossip.directory import Entry
from covey.gossip.driver import Progress
from covey.gossip.effects import Ended, Run
from covey.gossip.routing import lacks
from covey.gossip.task import ZONES, Need
from covey.identity.certificate import Member
from covey.identity.keys import PeerId
from covey.inference.engine import Models
from covey.inference.errors import Busy, ModelError
from covey.inference.skills import SKILLS, Context, Skill, decode_request, with_lines

from .config import ECHO_SKILL
from .data_sources import DataSources, DataUnavailable

# How much of a skill's mean its last run makes.
LATELY = 0.3


class Executor:
    """Runs skills. Implements `gossip.driver.Runner`.

    Args:
        skills: names of the enabled skills.
        models: of this device.
        data: of this device.
    """

    def __init__(self, skills: Collection[str], models: Models, data: DataSources) -> None:
        self._skills = frozenset(skills)
        self._models = models
        self._data = data
        self._run_s: dict[str, float] = {}

    def run_ms(self, skill: str) -> int:
        """Return what a run of the skill took here of late, in milliseconds; 0 if none has ended."""
        return int(self._run_s.get(skill, 0.0) * 1000)

    def offered(self, roles: Collection[str]) -> tuple[str, ...]:
        """Return the skills that this device can do with models of these roles."""
        able = [
            name
            for name in sorted(self._skills)
            if name == ECHO_SKILL or (name in SKILLS and set(SKILLS[name].needs) <= set(roles))
        ]
        return tuple(able)

    async def run(self, run: Run, progress: Progress) -> Ended:
        """Run a task to its end; every expected failure is an outcome with a reason."""
        began = trio.current_time()
        model = ""
        try:
            if run.need.skill == ECHO_SKILL:
                result = run.input
            else:
                answer = await self._skill(run, progress)
                model = getattr(answer, "model", "")
                result = msgspec.json.encode(answer)
        except (ModelError, DataUnavailable) as error:
            return Ended("failed", b"", str(error), trio.current_time() - began)
        run_s = trio.current_time() - began
        before = self._run_s.get(run.need.skill, run_s)
        self._run_s[run.need.skill] = before + LATELY * (run_s - before)
        return Ended("done", result, "", run_s, model)

    async def _skill(self, run: Run, progress: Progress) -> msgspec.Struct:
        skill = SKILLS[run.need.skill]
        request = decode_request(skill, run.input)
        if run.need.model is not None and hasattr(request, "model") and request.model is None:
            request = msgspec.structs.replace(request, model=run.need.model)
        if run.need.data is not None:
            request = await self._with_data(skill, request, run.need.data)
        while True:
            left_s = run.ends_at - trio.current_time()
            try:
                return await skill.run(request, Context(self._models, left_s, progress))
            except Busy as error:
                # It was accepted, so it waits its turn here; its deadline ends the wait.
                if left_s < error.retry_after_s:
                    raise
                progress(str(error))
                await trio.sleep(error.retry_after_s)

    async def _with_data(self, skill: Skill, request: msgspec.Struct, name: str) -> msgspec.Struct:
        if not skill.takes_data:
            raise DataUnavailable(f"skill {skill.name!r} works on no data source")
        lines = await self._data.tail(name, getattr(request, "tail", 100))
        changed: msgspec.Struct = with_lines(request, lines)
        return changed


def able(
    own: Callable[[], Entry | None], member: Callable[[PeerId], Member | None]
) -> Callable[[PeerId, Need], str | None]:
    """Return the executor's own check of a need.

    Args:
        own: what this peer offers, as it says itself: nothing else is looked at.
        member: who another peer is, as its chain makes it.
    """

    def check(origin: PeerId, need: Need) -> str | None:
        entry = own()
        if entry is None:
            return "this peer is just starting"
        if need.zone not in ZONES and origin != entry.peer:
            asking = member(origin)
            if asking is None or not asking.is_in(need.zone):
                return f"{origin} is not in zone {need.zone!r}"
        return lacks(entry, need)

    return check
