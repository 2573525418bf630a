"""What is wrong with a device is found, each with its remedy; what is right is said, too."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from test_gossip.members import MESH, NOW_MS, chain_of, key

from covey.identity.certificate import DAY_S, Member, member_of
from covey.peer.clock import Clock, SystemEntropy
from covey.peer.config import DataSource
from covey.peer.doctor import Checked, check_up, check_up_asleep
from covey.peer.founding import begin
from covey.peer.home import Home
from covey.peer.views import Finding

DAY_MS = DAY_S * 1000


def member() -> Member:
    return member_of(chain_of(key(1)), mesh=MESH, subject=key(1).peer_id)


def findings(home: Path, **changes: Any) -> dict[str, Finding]:
    seen: dict[str, Any] = {
        "home": Home(home),
        "member": member(),
        "now_ms": NOW_MS,
        "clock_trouble": None,
        "links": 1,
        "known": 1,
        "models": [("smol", "ready")],
        "refused_models": {},
        "addresses": ("/ip4/192.0.2.1/tcp/4001",),
        "store_failure": None,
        "data": {},
    }
    return {one.check: one for one in check_up(Checked(**{**seen, **changes}))}


def test_a_device_in_order_has_nothing_to_mend(tmp_path: Path) -> None:
    found = findings(tmp_path)
    assert {one.level for one in found.values()} == {"ok"}
    assert found["certificate"].what == "member, valid for 90 more days"


TROUBLE: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "a certificate that ends soon": (
        "certificate",
        "warn",
        "it ends in 10 days",
        {"now_ms": NOW_MS + 80 * DAY_MS},
    ),
    "a certificate past its grace": (
        "certificate",
        "fail",
        "this peer works on alone",
        {"now_ms": NOW_MS + 181 * DAY_MS},
    ),
    "a clock far off": ("clock", "fail", "3 h behind", {"clock_trouble": "it is 3 h behind"}),
    "nobody in reach": ("links", "warn", "none of 4 known peers", {"links": 0, "known": 4}),
    "no address": ("address", "fail", "no address for others", {"addresses": ()}),
    "only loopback": (
        "address",
        "warn",
        "only peers on this machine",
        {"addresses": ("/ip4/127.0.0.1/tcp/1",)},
    ),
    "a segment without multicast": (
        "mdns",
        "warn",
        "nobody is found on this network segment: no multicast",
        {"lan_trouble": "no multicast"},
    ),
    "a disk that is full": ("store", "fail", "it is full", {"store_failure": "it is full"}),
    "a broken model": ("model", "fail", "x.gguf: cut", {"refused_models": {"x.gguf": "cut"}}),
    "a model that crashes": (
        "model",
        "warn",
        "smol crashed too often",
        {"models": [("smol", "quarantined")]},
    ),
    "data that is gone": (
        "data",
        "fail",
        "log: /no/such/file does not exist",
        {"data": {"log": DataSource(file="/no/such/file")}},
    ),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_trouble_is_found_with_its_remedy(what: str, tmp_path: Path) -> None:
    check, level, said, changes = TROUBLE[what]
    found = findings(tmp_path, **changes)[check]
    assert found.level == level
    assert said in found.what
    assert found.remedy


def test_the_root_key_on_the_device_is_told(tmp_path: Path) -> None:
    assert findings(tmp_path)["root key"].level == "ok"
    (tmp_path / "root.sealed").write_bytes(b"sealed")
    assert findings(tmp_path)["root key"].level == "warn"


def test_a_sleeping_device_is_looked_at_without_its_daemon(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    (first,) = check_up_asleep(home.path)
    assert (first.level, "covey init" in first.remedy) == ("fail", True)
    begin(
        home,
        name="solo",
        found="plant",
        labels={},
        data={"log": str(tmp_path)},
        listen="127.0.0.1",
        entropy=SystemEntropy(),
        clock=Clock(),
    )
    found = {one.check: one for one in check_up_asleep(home.path)}
    assert {check: one.level for check, one in found.items()} == {
        "home": "ok",
        "certificate": "ok",
        "data": "ok",
        "daemon": "fail",
    }
    assert msgspec.json.decode(msgspec.json.encode(found["daemon"]))["remedy"] == (
        "start it with: covey up -d"
    )
