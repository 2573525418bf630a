"""What is wrong with this device, or will be? One line for each check, with a remedy."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from covey.identity.certificate import DAY_S, Member, check_time, member_of
from covey.identity.errors import CoveyError, NotAdmitted

from . import clock_check
from .clock import Clock
from .config import DataSource
from .home import Home
from .views import Finding

DISK_FREE_BYTES_MIN = 1024**3
CERTIFICATE_WARN_DAYS = 30


@dataclass(frozen=True, slots=True)
class Checked:
    """What there is to look at."""

    home: Home
    member: Member
    now_ms: int
    clock_trouble: str | None
    links: int
    known: int
    models: list[tuple[str, str]]
    refused_models: Mapping[str, str]
    addresses: tuple[str, ...]
    store_failure: str | None
    data: Mapping[str, DataSource]
    lan_trouble: str | None = None
    right_trouble: Finding | None = None
    """What is wrong with this device's right to be in its mesh."""


def check_up(seen: Checked) -> list[Finding]:
    """Return every finding, the good ones too. Looks at files: call it in a thread."""
    return [
        _right(seen),
        _clock(seen),
        _root(seen),
        _links(seen),
        _addresses(seen),
        *_lan(seen),
        _store(seen),
        _disk(seen),
        *_models(seen),
        *_data(seen),
    ]


def check_up_asleep(path: Path) -> list[Finding]:
    """Return what can be found while no daemon runs in the home `path`."""
    home = Home(path)
    try:
        config, mesh, me = home.config(), home.mesh(), home.keypair().peer_id
    except CoveyError as error:
        what, _, remedy = str(error).partition("; ")
        return [_fail("home", what, remedy or "correct it, or restore it from a backup")]
    try:
        member = member_of(mesh.chain, mesh=mesh.id, subject=me)
    except NotAdmitted as error:
        return [_fail("certificate", str(error), "join again with a new invite")]
    return [
        _ok("home", f"{config.name} in mesh {mesh.name}"),
        _certificate(member, Clock().now_ms()),
        *_data_of(config.data),
        _fail("daemon", "it is not running", "start it with: covey up -d"),
    ]


def _ok(check: str, what: str) -> Finding:
    return Finding(check=check, level="ok", what=what)


def _warn(check: str, what: str, remedy: str) -> Finding:
    return Finding(check=check, level="warn", what=what, remedy=remedy)


def _fail(check: str, what: str, remedy: str) -> Finding:
    return Finding(check=check, level="fail", what=what, remedy=remedy)


def _right(seen: Checked) -> Finding:
    return seen.right_trouble or _certificate(seen.member, seen.now_ms)


def _certificate(member: Member, now_ms: int) -> Finding:
    try:
        check_time(member, now_ms)
    except NotAdmitted as error:
        what, _, remedy = str(error).partition("; ")
        return _fail("certificate", f"{what}: this peer works on alone", remedy)
    days = (member.not_after_ms - now_ms) / 1000 / DAY_S
    if days < CERTIFICATE_WARN_DAYS:
        what = f"it ends in {days:.0f} days"
        return _warn("certificate", what, "bring an admin in reach, and: covey renew")
    return _ok("certificate", f"{member.role}, valid for {days:.0f} more days")


def _clock(seen: Checked) -> Finding:
    if seen.clock_trouble is not None:
        return _fail("clock", seen.clock_trouble, clock_check.REMEDY)
    if not seen.links:
        return _ok("clock", "no peer to compare with yet")
    return _ok("clock", "agrees with its peers'")


def _root(seen: Checked) -> Finding:
    if not seen.home.root_file.exists():
        return _ok("root key", "not on this device")
    return _warn(
        "root key",
        "the mesh's root key is on this device, sealed with the passphrase that was shown at its founding",
        f"copy {seen.home.root_file} to a safe place and delete it here; nothing needs it from day to day",
    )


def _links(seen: Checked) -> Finding:
    if seen.known == 0:
        return _ok("links", "no other peer is known yet")
    if seen.links == 0:
        remedy = "check the network between them, and that their daemons run"
        return _warn("links", f"none of {seen.known} known peers can be reached", remedy)
    return _ok("links", f"{seen.links} of {seen.known} known peers are linked")


def _addresses(seen: Checked) -> Finding:
    if not seen.addresses:
        return _fail("address", "this peer has no address for others", "set [listen] announce")
    if all("/127.0.0.1/" in address for address in seen.addresses):
        what = "only peers on this machine can reach this one"
        return _warn("address", what, "for others, listen on 0.0.0.0: [listen] in config.toml")
    return _ok("address", ", ".join(seen.addresses))


def _lan(seen: Checked) -> list[Finding]:
    if seen.lan_trouble is None:
        return []
    remedy = "mend it, or look for nobody there: mdns = false under [discovery] in config.toml"
    return [_warn("mdns", f"nobody is found on this network segment: {seen.lan_trouble}", remedy)]


def _store(seen: Checked) -> Finding:
    if seen.store_failure is not None:
        return _fail("store", seen.store_failure, "free some space")
    return _ok("store", "commits")


def _disk(seen: Checked) -> Finding:
    free = shutil.disk_usage(seen.home.path).free
    if free < DISK_FREE_BYTES_MIN:
        return _warn("disk", f"{free // 1024**2} MiB are free", "free some space")
    return _ok("disk", f"{free // 1024**3} GiB are free")


def _models(seen: Checked) -> list[Finding]:
    found = [
        _fail("model", f"{name}: {why}", "remove it, or fetch it again: covey models pull")
        for name, why in seen.refused_models.items()
    ]
    found += [
        _warn("model", f"{name} crashed too often and is set aside", "replace its file")
        for name, state in seen.models
        if state == "quarantined"
    ]
    if not seen.models:
        found.append(_ok("model", "none; tasks that need one run on other peers"))
    elif not found:
        found.append(_ok("model", ", ".join(name for name, _ in seen.models)))
    return found


def _data(seen: Checked) -> list[Finding]:
    return _data_of(seen.data)


def _data_of(sources: Mapping[str, DataSource]) -> list[Finding]:
    found: list[Finding] = []
    for name, source in sources.items():
        place = source.file or source.directory
        if place is not None and not Path(place).exists():
            found.append(
                _fail("data", f"{name}: {place} does not exist", "correct [data] in config.toml")
            )
    return found or [_ok("data", ", ".join(sources) or "no sources")]
