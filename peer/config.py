"""What did the owner of this device decide? The configuration, as one frozen tree. Pure: text in,
tree out.

Every field says its unit, what it means, and what raising it costs. An unknown key is an error that
names its neighbour: a mistyped limit must not silently be no limit.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_type_hints

import msgspec

from covey.gossip.task import LABELS_MAX, NAME_CHARACTERS_MAX, ZONES
from covey.identity.errors import Misuse
from covey.inference.engine import AUTO, ENGINES

SKILLS_DEFAULT = ("chat", "classify", "embed", "extract", "summarize")
ECHO_SKILL = "covey.echo"


class ConfigError(Misuse):
    """The configuration cannot be used."""


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class Listen(_Part, frozen=True, kw_only=True):
    """Where other peers reach this one."""

    address: str = "0.0.0.0"
    """IP address to listen on; 0.0.0.0 is every address of this device."""
    port: int = 0
    """TCP port; chosen by `covey init`, so that an address in an invite survives a restart."""
    announce: tuple[str, ...] = ()
    """Multiaddrs told to others instead of this device's own, such as `/ip4/203.0.113.7/tcp/4001`."""


class Api(_Part, frozen=True, kw_only=True):
    """The local API. The Unix socket in the home is always there."""

    tcp: bool = True
    """Also on 127.0.0.1, with a token: for browsers and programs without Unix sockets."""
    port: int = 0
    """TCP port on 127.0.0.1; chosen by `covey init`."""


class DataSource(_Part, frozen=True, kw_only=True):
    """Named local data that tasks may use where it lies.

    Exactly one of file, directory, command.
    """

    file: str | None = None
    """A file; its last lines are the data."""
    directory: str | None = None
    """A directory; the last lines of its newest files are the data."""
    pattern: str = "*.log"
    """Which files of the directory, newest last."""
    command: tuple[str, ...] = ()
    """Program and arguments; its standard output is the data. It runs as this daemon's user."""
    timeout_s: float = 10.0
    """In seconds. A command that takes longer is ended, and its task fails."""

    @property
    def kind(self) -> str:
        """`file`, `directory` or `command`."""
        return (
            "file"
            if self.file is not None
            else "directory"
            if self.directory is not None
            else "command"
        )


class Models(_Part, frozen=True, kw_only=True):
    """Models on this device."""

    text: str | None = None
    """Default text model; the first found if not given."""
    embedding: str | None = None
    """Default embedding model; the first found if not given."""
    threads: int = 0
    """For each model; 0: one less than there are cores.

    More than the free cores makes it slower.
    """
    context_tokens: int = 4096
    """Over all slots; a text model of 135 M parameters takes 23 kB for each."""
    slots: int = 4
    """Requests that a model works on at once; each may have context_tokens / slots tokens."""
    waiting: int = 16
    """Requests that wait for a slot; a task that needs one more tries again every 2 s."""
    engine: str = AUTO
    """`auto`, `llama.cpp` or `ctransformers`: which engine is preferred where both can run a model."""
    idle_s: float = 600.0
    """A model that nobody asked for so long gives its memory back; the next request waits about 1 s."""


class Tasks(_Part, frozen=True, kw_only=True):
    """Work for others and for this device."""

    running: int = 4
    """Tasks that run here at once."""
    waiting: int = 64
    """Tasks that wait here for a place; more are declined, to be tried elsewhere."""


class Discovery(_Part, frozen=True, kw_only=True):
    """How peers are found, and this one by others."""

    advert: str = "all"
    """`all`: every member is told what this peer offers. `addresses`: only where it is; who knows the
    name of what is wanted still finds it, by the DHT or a call for bids."""
    dht: bool = True
    """Take part in the DHT, and be found there by keyed hashes of what this peer offers."""
    bids: bool = True
    """Answer calls for bids, and call when nobody is known."""
    mdns: bool = True
    """Find members on this network segment, and be found there, without a bootstrap address."""


class Log(_Part, frozen=True, kw_only=True):
    """What the daemon says."""

    level: str = "info"
    """`debug`, `info`, `warning` or `error`."""


class Config(_Part, frozen=True, kw_only=True):
    """One device."""

    name: str
    """What people call this peer; others see it."""
    labels: dict[str, str] = {}
    """Free `key = "value"` that find this peer; they protect nothing."""
    data: dict[str, DataSource] = {}
    """Data sources by name; others see the names, and never what is in them."""
    skills: tuple[str, ...] = SKILLS_DEFAULT
    """What this peer does for others. `covey.echo` is for measuring, and off by default."""
    listen: Listen = Listen()
    """Where other peers reach this one."""
    api: Api = Api()
    """The local API."""
    models: Models = Models()
    """Models on this device, and what they may use."""
    tasks: Tasks = Tasks()
    """How much work is taken on."""
    discovery: Discovery = Discovery()
    """How peers are found."""
    log: Log = Log()
    """What the daemon says."""


LEVELS = ("debug", "info", "warning", "error")
ADVERTS = ("all", "addresses")
# No wait without an end, and nothing that a mistyped zero makes a hundred times too much.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("listen.port", 0, 65535),
    ("api.port", 0, 65535),
    ("models.threads", 0, 256),
    ("models.context_tokens", 256, 1_048_576),
    ("models.slots", 1, 64),
    ("models.waiting", 0, 10_000),
    ("models.idle_s", 1, 365 * 86_400),
    ("tasks.running", 1, 256),
    ("tasks.waiting", 0, 10_000),
)
TIMEOUT_S_RANGE = (0.1, 3600)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def parse_config(text: str, *, where: str) -> Config:
    """Return the configuration in `text` (TOML); `where` is its file, for messages.

    Raises:
        ConfigError: naming file, key and what is allowed.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from error
    for trouble in _unknown_keys(tree, Config, ""):
        raise ConfigError(f"{where}: {trouble}")
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_mistyped(tree, error)}") from error
    for trouble in _troubles(config):
        raise ConfigError(f"{where}: {trouble}")
    return config


def check_name(name: str, what: str) -> None:
    """Refuse a name that would be awkward to type.

    Raises:
        Misuse: saying what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise Misuse(f"{what} {name!r}: use letters, digits, '.', '_' and '-', at most 63")


def check_zone(zone: str) -> None:
    """Refuse the name of a zone that could not be granted.

    Raises:
        Misuse: saying what is allowed.
    """
    check_name(zone, "zone")
    if zone in ZONES:
        raise Misuse(f"zone {zone!r} is every device's; name another")


def write_config(config: Config) -> str:
    """Return a configuration as TOML, with a comment; `parse_config` reads it back."""
    lines = [
        "# covey: this peer. See docs/OPERATING.md; after a change: covey down; covey up -d",
        f"name = {_toml(config.name)}",
        f"skills = {_toml(config.skills)}",
    ]
    sections: list[tuple[str, Mapping[str, object]]] = [
        ("listen", {"address": config.listen.address, "port": config.listen.port}),
        ("api", {"tcp": config.api.tcp, "port": config.api.port}),
        ("labels", config.labels),
    ]
    if config.listen.announce:
        sections[0] = ("listen", {**sections[0][1], "announce": config.listen.announce})
    rest = ("models", "tasks", "discovery", "log")
    sections += [(name, chosen) for name in rest if (chosen := _chosen(getattr(config, name)))]
    sections += [(f"data.{_toml(name)}", _chosen(source)) for name, source in config.data.items()]
    for name, rows in sections:
        bare = name == "labels"
        lines += ["", f"[{name}]"]
        lines += [f"{_toml(key) if bare else key} = {_toml(value)}" for key, value in rows.items()]
    return "\n".join(lines) + "\n"


def _chosen(part: msgspec.Struct) -> dict[str, object]:
    """Return the fields that are not as they would be anyway."""
    usual = type(part)()
    return {
        name: getattr(part, name)
        for name in part.__struct_fields__
        if getattr(part, name) != getattr(usual, name)
    }


def _toml(value: object) -> str:
    # JSON's texts, numbers, booleans and lists are TOML's, too; but for DEL, which TOML wants escaped.
    return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")


def _unknown_keys(tree: Mapping[str, Any], part: type[msgspec.Struct], place: str) -> Iterator[str]:
    hints = get_type_hints(part)
    for key, value in tree.items():
        if key not in part.__struct_fields__:
            yield f"unknown key {key!r}{f' in [{place}]' if place else ''}{_hint(key, part)}"
        elif not isinstance(value, dict):
            continue
        elif key == "data":
            for name, source in cast("dict[str, object]", value).items():
                if isinstance(source, dict):
                    inner = cast("dict[str, Any]", source)
                    yield from _unknown_keys(inner, DataSource, f"data.{name}")
        elif isinstance(hints[key], type) and issubclass(hints[key], _Part):
            yield from _unknown_keys(cast("dict[str, Any]", value), hints[key], key)


def _hint(key: str, part: type[msgspec.Struct]) -> str:
    """Name the neighbour that may be meant: in the same section, else in another."""
    if near := difflib.get_close_matches(key, part.__struct_fields__, n=1):
        return f"; did you mean {near[0]!r}?"
    for place, kind in _SECTIONS.items():
        if kind is not part and key in kind.__struct_fields__:
            return f"; {key!r} belongs in [{place}]" if place else f"; {key!r} belongs at the top"
    return f"; there are: {', '.join(part.__struct_fields__)}"


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "": Config,
    "listen": Listen,
    "api": Api,
    "models": Models,
    "tasks": Tasks,
    "discovery": Discovery,
    "log": Log,
    "data.NAME": DataSource,
}


def _mistyped(tree: Mapping[str, Any], error: msgspec.ValidationError) -> str:
    """Return a type error with the place that it is at, by name."""
    tables: list[tuple[str, object, Any]] = []
    for section, kind in (("data", DataSource), ("labels", str)):
        rows: object = tree.get(section)
        if isinstance(rows, dict):
            named = cast("dict[str, object]", rows)
            tables += [(f"{section}.{name}", value, kind) for name, value in named.items()]
    for place, value, kind in tables:
        try:
            msgspec.convert(value, kind, strict=True)
        except msgspec.ValidationError as inner:
            return _placed(inner, place)
    return _placed(error, "")


def _placed(error: msgspec.ValidationError, place: str) -> str:
    what, _, path = str(error).partition(" - at `$")
    if missing := re.fullmatch(r"Object missing required field `(\w+)`", what):
        return f"{missing[1]} is missing"
    where = f"{place}{path.rstrip('`')}".strip(".")
    what = what[:1].lower() + what[1:].replace("`object`", "a table").replace("`", "")
    return f"{where}: {what}" if where else what


def _troubles(config: Config) -> Iterator[str]:
    """Yield what types cannot say."""
    yield from _awkward_names(config)
    for name, source in config.data.items():
        yield from _troubles_of_source(f"data.{name}", source)
    known = (*SKILLS_DEFAULT, ECHO_SKILL)
    for skill in config.skills:
        if skill not in known:
            yield f"skill {skill!r} is not known; there are: {', '.join(known)}"
    for name, low, high in RANGES:
        section, field = name.split(".")
        value = getattr(getattr(config, section), field)
        if not low <= value <= high:
            yield f"{name} is {low} to {high}, not {value}"
    for place, value, allowed in (
        ("log.level", config.log.level, LEVELS),
        ("models.engine", config.models.engine, (AUTO, *ENGINES)),
        ("discovery.advert", config.discovery.advert, ADVERTS),
    ):
        if value not in allowed:
            yield f"{place} is {', '.join(allowed[:-1])} or {allowed[-1]}, not {value!r}"
    try:
        ipaddress.ip_address(config.listen.address)
    except ValueError:
        yield (
            f"listen.address is an IP address of this device, such as 0.0.0.0 for all, "
            f"not {config.listen.address!r}"
        )
    for address in config.listen.announce:
        if not address.startswith("/"):
            yield f"listen.announce takes multiaddrs such as /ip4/203.0.113.7/tcp/4001, not {address!r}"


def _awkward_names(config: Config) -> Iterator[str]:
    names = [(config.name, "name"), *((key, "label") for key in config.labels)]
    names += [(name, "data source") for name in config.data]
    for name, what in names:
        try:
            check_name(name, what)
        except Misuse as error:
            yield str(error)
    if len(config.labels) > LABELS_MAX:
        yield f"there are at most {LABELS_MAX} labels, not {len(config.labels)}"
    for key, value in config.labels.items():
        if len(value) > NAME_CHARACTERS_MAX:
            yield f"label {key!r} has at most {NAME_CHARACTERS_MAX} characters, not {len(value)}"


def _troubles_of_source(place: str, source: DataSource) -> Iterator[str]:
    given = [source.file is not None, source.directory is not None, bool(source.command)]
    if sum(given) != 1:
        yield f"[{place}] needs exactly one of file, directory, command"
    low, high = TIMEOUT_S_RANGE
    if not low <= source.timeout_s <= high:
        yield f"{place}.timeout_s is {low} to {high}, not {source.timeout_s}"
    if not source.pattern or source.pattern.startswith("/"):
        yield f"{place}.pattern names files below the directory, such as '*.log', not {source.pattern!r}"
