"""Does any request make the daemon fail? Whatever is sent, it answers with what it means, and lives."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_peer.daemons import Answer, Wire, echo_task, running_peer

from covey.peer.local_mesh import LocalPeer

pytestmark = pytest.mark.end_to_end
# About 150 requests in all, each a few milliseconds. The daemon outlives the examples.
FEW = settings(
    max_examples=50,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Never asked to end, nor for a stream that does not.
PATHS = ("/healthz", "/v1/tasks", "/v1/peers", "/v1/status", "/v1/models", "/v1/doctor")
FIELDS = (
    *("skill", "input", "data", "labels", "model", "peer", "zone", "deadline_s", "priority"),
    *("once", "key", "uses", "expires_s", "role"),
)

anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
bodies = st.one_of(
    st.binary(max_size=300),
    anything.map(lambda value: json.dumps(value).encode()),
    st.dictionaries(st.sampled_from(FIELDS), anything, max_size=8).map(
        lambda fields: json.dumps(fields).encode()
    ),
    # Nearly right: one field of a good task is something else.
    st.tuples(st.sampled_from(FIELDS), anything).map(lambda one: echo_task(**dict([one]))),
)
queries = st.lists(
    st.tuples(
        st.sampled_from(("wait", "limit", "state", "after", "task", "x")), st.text(max_size=20)
    ),
    max_size=3,
).map(lambda pairs: "&".join(f"{name}={quote(value)}" for name, value in pairs))


@pytest.fixture(scope="module")
def peer() -> Iterator[LocalPeer]:
    with running_peer() as peer:
        yield peer


def check(peer: LocalPeer, method: str, path: str, body: bytes | None = None) -> Answer:
    with Wire.to(peer) as wire:
        answer = wire.ask(method, path, body)
    assert answer.status < 500, (method, path, body, answer.body)
    if answer.status >= 400:
        assert answer.json["type"].startswith("covey:")
        assert answer.json["remedy"]
    with Wire.to(peer) as wire:
        assert wire.ask("GET", "/healthz").json == {"ok": True}
    return answer


@FEW
@given(path=st.sampled_from(("/v1/tasks", "/v1/tasks?wait=0.05", "/v1/invites")), body=bodies)
def test_no_body_makes_it_fail(peer: LocalPeer, path: str, body: bytes) -> None:
    check(peer, "POST", path, body)


@FEW
@given(name=st.text(max_size=60), rest=st.sampled_from(("", "/cancel", "?wait=0.01")))
def test_no_path_makes_it_fail(peer: LocalPeer, name: str, rest: str) -> None:
    method = "POST" if rest == "/cancel" else "GET"
    answer = check(peer, method, f"/v1/tasks/{quote(name, safe='')}{rest}")
    assert answer.status == (404 if name else answer.status)


@FEW
@given(method=st.sampled_from(("GET", "POST", "PUT")), path=st.sampled_from(PATHS), query=queries)
def test_no_query_makes_it_fail(peer: LocalPeer, method: str, path: str, query: str) -> None:
    check(peer, method, f"{path}?{query}", b"" if method == "POST" else None)


def test_it_is_the_same_daemon_after_all_that(peer: LocalPeer) -> None:
    task = peer.client.run("covey.echo", {"n": 1}, wait_s=10)
    assert (task.state, task.result) == ("done", {"n": 1})
