"""Names are found by keyed hashes: of everything a peer offers, and of everything a task needs."""

import pytest
from test_gossip.members import MESH, OTHER_MESH, key, told_by

from covey.gossip.provider_keys import Kind, keys_for, keys_of, provider_key
from covey.gossip.task import Need


def named(kind: Kind, name: str) -> bytes:
    return provider_key(MESH, kind, name)


def test_a_peer_is_found_by_each_thing_that_it_offers() -> None:
    advert = told_by(
        key(1), skills=("chat",), labels=(("line", "7"),), data=("log",), models=("small",)
    ).advert
    assert keys_of(advert, MESH) == {
        named("skill", "chat"),
        named("label", "line=7"),
        named("data", "log"),
        named("model", "small"),
        named("model", "00" * 32),
    }


def test_what_fewest_have_is_looked_up_first() -> None:
    need = Need("chat", labels=(("line", "7"), ("hall", "2")), model="small", data="log")
    assert keys_for(need, MESH) == (
        named("data", "log"),
        named("model", "small"),
        named("label", "line=7"),
        named("label", "hall=2"),
        named("skill", "chat"),
    )
    assert keys_for(Need("chat"), MESH) == (named("skill", "chat"),)


@pytest.mark.parametrize("zone", ["device", "plant-7"])
def test_of_a_narrower_zone_nothing_is_looked_up(zone: str) -> None:
    assert keys_for(Need("chat", zone=zone, data="log"), MESH) == ()


def test_a_name_has_another_key_in_another_mesh_and_of_another_kind() -> None:
    kinds: tuple[Kind, ...] = ("skill", "model", "label", "data")
    keys = {provider_key(mesh, kind, "x") for mesh in (MESH, OTHER_MESH) for kind in kinds}
    assert len(keys) == 8
    assert all(len(one) == 32 for one in keys)
