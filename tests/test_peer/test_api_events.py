"""Does who listens hear everything, once and in order, and does nobody wait for who does not?"""

import json
import signal
from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from itertools import islice

import pytest
import trio
from test_peer.daemons import Wire, echo_task, request, running_peer, short_folder
from trio.testing import MockClock

from covey.gossip.memory.entry import NamespaceId
from covey.gossip.task import TaskId
from covey.gossip.task_state import TaskState as Kept
from covey.peer.api.routes import PING_S
from covey.peer.api.server import GRACE_S, KEEP_ALIVE_S, serve_api
from covey.peer.events import Changed, Events, Happening
from covey.peer.local_mesh import LocalPeer
from covey.peer.service import Service
from covey.peer.views import Event, TaskState, TaskView


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


def done(peer: LocalPeer) -> str:
    """Hand in a task and wait for its end; returns its id."""
    task = peer.client.run("covey.echo", {"text": "hello"}, wait_s=10)
    assert task.state == "done"
    return task.id


@pytest.mark.end_to_end
def test_events_come_in_order_and_tell_a_tasks_whole_way(peer: LocalPeer) -> None:
    with Wire.to(peer) as wire:
        listening = wire.events("?after=0")
        names = [done(peer) for _ in range(5)]
        heard: list[tuple[int, str, str]] = []
        for place, event in listening:
            if event["kind"] == "task" and event["task"]["id"] in names:
                heard.append((place, event["task"]["id"], event["task"]["state"]))
                if heard[-1][1:] == (names[-1], "done"):
                    break
    places = [place for place, _, _ in heard]
    assert places == sorted(set(places))
    for name in names:
        states = [state for _, one, state in heard if one == name]
        assert states[-1] == "done"
        assert states.count("done") == 1
    finished = [one for _, one, state in heard if state == "done"]
    assert finished == names


@pytest.mark.end_to_end
@pytest.mark.parametrize("by", ["header", "query"])
def test_a_listener_that_comes_back_hears_exactly_what_it_missed(peer: LocalPeer, by: str) -> None:
    name = done(peer)
    with Wire.to(peer) as wire:
        everything: list[int] = []
        for place, event in wire.events("?after=0"):
            everything.append(place)
            if event["task"] and (event["task"]["id"], event["task"]["state"]) == (name, "done"):
                break
    for seen in (everything[0], everything[-3], everything[-2]):
        missed = [place for place in everything if place > seen]
        with Wire.to(peer) as wire:
            again = wire.events(last=seen) if by == "header" else wire.events(f"?after={seen}")
            assert [place for place, _ in islice(again, len(missed))] == missed


@pytest.mark.end_to_end
def test_without_a_place_only_what_happens_from_now_on_is_heard(peer: LocalPeer) -> None:
    before = done(peer)
    with Wire.to(peer) as wire:
        listening = wire.events()
        name = done(peer)
        heard: list[str] = []
        for _, event in listening:
            if event["task"]:
                heard.append(event["task"]["id"])
                if event["task"]["state"] == "done":
                    break
    assert before not in heard
    assert heard[-1] == name


@pytest.mark.end_to_end
@pytest.mark.parametrize("query", ["", "&after=0"])
def test_the_stream_of_one_task_ends_with_it(peer: LocalPeer, query: str) -> None:
    other = done(peer)
    running = peer.client.submit("nobody-can")
    finished = done(peer)
    with Wire.to(peer) as wire:
        states = [
            (event["task"]["id"], event["task"]["state"])
            for _, event in wire.events(f"?task={finished}{query}")
        ]
        assert states[-1] == (finished, "done")
        assert {name for name, _ in states} == {finished}
        assert other not in dict(states)
    with Wire.to(peer) as wire:
        heard = wire.events(f"?task={running.id[:12]}{query}")
        first = next(heard)[1]["task"]
        assert (first["id"], first["state"]) == (running.id, "queued")
        peer.client.cancel(running.id)
        assert [event["task"]["state"] for _, event in heard][-1] == "cancelled"


@pytest.mark.end_to_end
@pytest.mark.parametrize("way", ["SIGTERM", "covey down"])
def test_the_end_is_told_and_a_listener_that_stalls_does_not_hold_it_up(
    peer: LocalPeer, way: str
) -> None:
    try:
        with Wire.to(peer) as wire:
            wire.send(request("POST", "/v1/tasks?wait=10", echo_task()) * 200)
            for _ in range(200):
                wire.answer()
        with Wire.to(peer) as stalled, Wire.to(peer) as listening:
            # Some 600 events, a multiple of what a socket's buffer holds, and nobody reads them.
            stalled.send(request("GET", "/v1/events?after=0"))
            heard = listening.events()
            if way == "SIGTERM":
                peer.kill(signal.SIGTERM)
            else:
                peer.covey("down", timeout_s=15)
                peer.client.close()
            assert [event["kind"] for _, event in heard] == ["bye"]
    finally:
        peer.stop()
        peer.start()


# In one process, under a clock that jumps


class Watched(Service):
    """A service of which only the events, and one task, are real."""

    def __init__(self) -> None:
        self.told = Events(lambda: 0)
        self.state: TaskState = "running"
        self.viewed: list[str] = []

    def events(
        self, after_id: int | None
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Happening]]:
        return self.told.listen(after_id)

    def event(self, seen: Happening) -> Event:
        self.viewed.append(seen.kind)
        task = None if seen.task is None else view(seen.task[0].hex(), seen.task[1].state)
        return Event(id=seen.id, kind=seen.kind, at_ms=seen.at_ms, task=task, text=seen.text)

    def task(self, name: str) -> TaskView:
        return view(name, self.state)

    def request_shutdown(self) -> None:
        self.told.tell("bye")


def view(name: str, state: TaskState) -> TaskView:
    return TaskView(
        id=name, skill="x", state=state, reason="", zone="mesh", submitted_ms=1, deadline_ms=2
    )


@asynccontextmanager
async def listening(
    service: Service, path: str = "/v1/events"
) -> AsyncGenerator[trio.SocketStream]:
    """Serve the service to one listener, whose answer has begun."""
    stop = trio.Event()
    with short_folder() as folder:
        async with trio.open_nursery() as nursery:
            place = folder / "api.sock"
            await nursery.start(partial(serve_api, service, place, None, "", stop))
            stream = await trio.open_unix_socket(str(place))
            async with stream:
                await stream.send_all(request("GET", path))
                assert b": covey\n\n" in await stream.receive_some()
                yield stream
                stop.set()


async def test_a_silent_stream_shows_that_it_lives(autojump_clock: MockClock) -> None:
    async with listening(Watched()) as stream:
        for _ in range(3):
            with trio.fail_after(PING_S + 1):
                assert b": ping\n\n" in await stream.receive_some()


@pytest.mark.parametrize("path", ["/healthz", "/v1/events?task=00"])
async def test_a_connection_that_was_answered_is_closed_once_it_is_idle_for_long(
    autojump_clock: MockClock, path: str
) -> None:
    """The end of an answer must leave the connection ready: for a request, and for this."""
    service = Watched()
    service.state = "done"
    async with listening(service, "/v1/events?task=00") as stream:
        await stream.send_all(request("GET", path))
        said = b""
        with trio.fail_after(KEEP_ALIVE_S + 1):
            while data := await stream.receive_some():
                said += data
        assert said.count(b"HTTP/1.1 200 ") == 1


async def test_a_listener_that_does_not_keep_up_loses_its_place_and_resumes(
    autojump_clock: MockClock,
) -> None:
    service = Watched()
    async with listening(service) as stream:
        for number in range(5000):
            service.told.tell("model", text=str(number))
        said = b""
        while data := await stream.receive_some():
            said += data
            if said.endswith(b"0\r\n\r\n"):
                break
    places = [int(line[4:]) for line in said.splitlines() if line.startswith(b"id: ")]
    assert places == list(range(1, len(places) + 1)), "what it hears before is whole and in order"
    assert 1000 < len(places) < 5000
    async with listening(service, f"/v1/events?after={places[-1]}") as stream:
        said = b""
        while b"id: 5000\n" not in said:
            said += await stream.receive_some()
    resumed = [int(line[4:]) for line in said.splitlines() if line.startswith(b"id: ")]
    assert resumed == list(range(resumed[0], 5001))
    assert resumed[0] > places[-1]


async def test_a_listener_is_let_go_at_once_when_the_daemon_ends(autojump_clock: MockClock) -> None:
    stop = trio.Event()
    with short_folder() as folder:
        async with trio.open_nursery() as nursery:
            place = folder / "api.sock"
            await nursery.start(partial(serve_api, Watched(), place, None, "", stop))
            async with await trio.open_unix_socket(str(place)) as stream:
                await stream.send_all(request("GET", "/v1/events"))
                assert b": covey\n\n" in await stream.receive_some()
                stop.set()
                said = b""
                with trio.fail_after(GRACE_S / 2):
                    while data := await stream.receive_some():
                        said += data
    assert b"event: bye\n" in said
    assert said.endswith(b"0\r\n\r\n"), "the answer is whole"


async def test_a_task_that_ended_before_the_daemons_last_start_ends_its_stream_at_once(
    autojump_clock: MockClock,
) -> None:
    """A listener of an earlier daemon, whose clock was ahead, comes back with an id far ahead."""
    service = Watched()
    service.told.tell("peer")
    service.state = "done"
    async with listening(service, "/v1/events?after=5000&task=00") as stream:
        said = b""
        with trio.fail_after(1):
            while not said.endswith(b"0\r\n\r\n"):
                said += await stream.receive_some()
    assert said.count(b"event: task\n") == 1
    assert b"id: " not in said, "it has no place among the events"


async def test_who_follows_one_task_costs_nothing_for_what_happens_besides(
    autojump_clock: MockClock,
) -> None:
    service = Watched()
    name = bytes(16)
    for _ in range(3):
        service.told.tell("memory", memory=Changed(NamespaceId(bytes(16))))
        service.told.tell("task", task=(TaskId(b"another task...."), Kept("running", "")))
    service.told.tell("task", task=(TaskId(name), Kept("done", "")))
    async with listening(service, f"/v1/events?after=0&task={name.hex()}") as stream:
        said = b""
        with trio.fail_after(1):
            while not said.endswith(b"0\r\n\r\n"):
                said += await stream.receive_some()
    assert said.count(b"event: task\n") == 1
    assert service.viewed == ["task"]


async def test_the_stream_of_a_task_whose_end_is_not_kept_ends_at_the_next_look(
    autojump_clock: MockClock,
) -> None:
    service = Watched()
    name = bytes(16)
    service.told.tell("task", task=(TaskId(name), Kept("running", "")))
    async with listening(service, f"/v1/events?after=0&task={name.hex()}") as stream:
        service.state = "done"
        said = b""
        with trio.fail_after(PING_S + 1):
            while data := await stream.receive_some():
                said += data
                if said.endswith(b"0\r\n\r\n"):
                    break
    told = [json.loads(line[6:]) for line in said.splitlines() if line.startswith(b"data: ")]
    assert [one["task"]["state"] for one in told] == ["running", "done"]
