"""The messages of delivery: what is one, and what is refused before anything sees it."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from covey.gossip.messages import (
    MESSAGE_BYTES_MAX,
    PAYLOAD,
    Accepted,
    Acknowledged,
    Cancel,
    CancelAcknowledged,
    Declined,
    Delivered,
    Message,
    Offer,
    Progress,
    as_reason,
    decode_message,
    encode_message,
)
from covey.gossip.task import (
    INPUT_BYTES_MAX,
    INPUT_WITH_OFFER_BYTES_MAX,
    LABELS_MAX,
    NAME_CHARACTERS_MAX,
    RESULT_BYTES_MAX,
    Need,
    check_need,
)
from covey.identity.envelope import ENVELOPE_OVERHEAD_BYTES
from covey.identity.errors import Malformed, Misuse
from covey.identity.wire import encode_plain

ID = b"i" * 16
NEED = Need("see", labels=(("line", "1"),), size_bytes=5)
MESSAGES: tuple[Message, ...] = (
    Offer(ID, 1, b"n" * 16, NEED, b"input", b"d" * 32, 1000, -3, once=True),
    Offer(ID, 1, b"n" * 16, NEED, None, b"d" * 32, 1000, 0, once=False),
    Accepted(ID, 1, 7),
    Declined(ID, 1, "busy", 1000, begun=True),
    Progress(ID, 1, "3 of 7"),
    Delivered(ID, b"sealed", b"result"),
    Acknowledged(ID),
    Cancel(ID),
    CancelAcknowledged(ID),
)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: type(one).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("nothing", b""),
        ("no array", encode_plain({"task_id": ID})),
        ("an unknown kind", encode_plain(["bribe", ID])),
        ("too little of it", encode_plain(["accepted", ID, 1])),
        ("another type", encode_plain(["accepted", ID, "1", 7])),
        ("a short id", encode_plain(["cancel", ID[:15]])),
        ("an id that is no key of a store", encode_plain(["cancel", ID * 40])),
        ("a long nonce", encode_message(MESSAGES[0]).replace(b"P" + b"n" * 16, b"Q" + b"n" * 17)),
        ("something after it", encode_message(Cancel(ID)) + b"\0"),
        ("too much of it", encode_message(Delivered(ID, b"", bytes(MESSAGE_BYTES_MAX)))),
    ],
)
def test_what_is_no_message_is_refused(what: str, data: bytes) -> None:
    with pytest.raises(Malformed):
        decode_message(data)


def test_what_a_newer_peer_adds_is_ignored() -> None:
    assert decode_message(encode_plain(["cancel", ID, "and why"])) == Cancel(ID)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = decode_message(data)
    except Malformed:
        return
    assert encode_message(message)


def test_the_largest_of_each_kind_fits() -> None:
    outcome = bytes(4096 + ENVELOPE_OVERHEAD_BYTES)
    decode_message(encode_message(Delivered(ID, outcome, bytes(RESULT_BYTES_MAX))))
    rides = bytes(INPUT_WITH_OFFER_BYTES_MAX)
    decode_message(encode_message(Offer(ID, 1, b"n" * 16, NEED, rides, ID * 2, 1, 0, once=False)))


def test_only_what_is_made_from_content_counts_as_payload() -> None:
    payload = {type(one).__name__ for one in MESSAGES if isinstance(one, PAYLOAD)}
    assert payload == {"Offer", "Progress", "Delivered"}


@given(st.text(max_size=600))
@example("a name that is no text: \udcff")
def test_any_text_can_be_told_as_a_reason(text: str) -> None:
    told = as_reason(text)
    assert len(told) <= 500
    assert decode_message(encode_message(Progress(ID, 1, told))) == Progress(ID, 1, told)


@pytest.mark.parametrize(
    ("need", "complaint"),
    [
        (Need(""), "a task names a skill"),
        (Need("s" * (NAME_CHARACTERS_MAX + 1)), "a name has at most 128 characters, not 129"),
        (Need("see", data="d" * 200), "not 200"),
        (Need("see", model="m" * 200), "not 200"),
        (Need("see", peer="p" * 200), "not 200"),
        (Need("see", labels=(("line", "l" * 200),)), "not 200"),
        (Need("see", labels=(("line", "1"),) * (LABELS_MAX + 1)), "at most 16 labels, not 17"),
        (Need("see", zone="moon"), "zone 'moon' is not known here; use one of: device, mesh"),
        (Need("see", size_bytes=INPUT_BYTES_MAX + 1), "put it into a data source and name that"),
    ],
)
def test_a_need_that_no_peer_could_read_is_refused(need: Need, complaint: str) -> None:
    with pytest.raises(Misuse, match=complaint):
        check_need(need)


def test_a_need_at_every_limit_is_none_too_large() -> None:
    long = "x" * NAME_CHARACTERS_MAX
    check_need(
        Need(long, "device", long, ((long, long),) * LABELS_MAX, long, long, INPUT_BYTES_MAX)
    )
