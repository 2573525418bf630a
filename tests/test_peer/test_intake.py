"""What is handed in becomes one task, or is refused with its limit."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.gossip.task import INPUT_BYTES_MAX, task_id_of
from covey.identity.errors import Misuse
from covey.identity.keys import Keypair
from covey.peer.intake import task_of
from covey.peer.views import SubmitRequest

ME = Keypair(b"\x01" * 32).peer_id
NOW_MS = 1_790_000_000_000
NONCE = b"n" * 16


def test_a_request_becomes_a_task_of_this_device() -> None:
    request = SubmitRequest(
        skill="classify",
        input=msgspec.Raw(b'{"tail":3}'),
        data="log",
        labels={"line": "1", "hall": "b"},
        deadline_s=1.5,
        priority=2,
    )

    task = task_of(request, ME, zones=(), nonce=NONCE, now_ms=NOW_MS)

    assert task.id == task_id_of(ME, NONCE)
    assert (task.origin, task.input, task.deadline_ms) == (ME, b'{"tail":3}', NOW_MS + 1500)
    assert task.need.labels == (("hall", "b"), ("line", "1"))
    assert task.need.size_bytes == 10


@given(st.text(min_size=1, max_size=200), st.binary(min_size=16, max_size=16))
def test_a_key_names_the_same_task_whatever_was_drawn(key: str, nonce: bytes) -> None:
    request = SubmitRequest(skill="chat", key=key)
    first = task_of(request, ME, zones=(), nonce=NONCE, now_ms=NOW_MS)
    again = task_of(request, ME, zones=(), nonce=nonce, now_ms=NOW_MS + 5)
    assert first.id == again.id


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no skill": ({"skill": ""}, "a task names a skill"),
    "an endless name": ({"data": "x" * 129}, "at most 128 characters"),
    "too many labels": ({"labels": {f"l{n}": "v" for n in range(17)}}, "at most 16 labels"),
    "an unknown zone": ({"zone": "somewhere"}, "use one of: device, mesh"),
    "no time": ({"deadline_s": 0.0}, "deadline_s is above 0"),
    "too much time": ({"deadline_s": 1e9}, "at most 7776000"),
    "no number": ({"deadline_s": float("nan")}, "deadline_s"),
    "an extreme priority": ({"priority": 10}, "-9 to 9"),
    "an empty key": ({"key": ""}, "1 to 200 characters"),
    "an endless key": ({"key": "k" * 201}, "1 to 200 characters"),
    "too large an input": (
        {"input": msgspec.Raw(b"x" * (INPUT_BYTES_MAX + 1))},
        "put it into a data source",
    ),
}


def test_a_zone_of_this_devices_certificate_is_known_and_no_other() -> None:
    request = SubmitRequest(skill="chat", zone="plant-7")
    assert (
        task_of(request, ME, zones={"plant-7"}, nonce=NONCE, now_ms=NOW_MS).need.zone == "plant-7"
    )
    with pytest.raises(Misuse, match="use one of: device, mesh, plant-8"):
        task_of(request, ME, zones={"plant-8"}, nonce=NONCE, now_ms=NOW_MS)


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_peer_could_do_is_refused_with_the_limit(what: str) -> None:
    changes, said = REFUSED[what]
    request = msgspec.structs.replace(SubmitRequest(skill="chat"), **changes)
    with pytest.raises(Misuse, match=said):
        task_of(request, ME, zones=(), nonce=NONCE, now_ms=NOW_MS)
