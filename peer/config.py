"""What did the owner of this device decide? The configuration, as one frozen tree. Pure: text in,
tree out.

Every field says its unit, what it means, and what raising it costs. An unknown key is an error that
names its neighbour: a mistyped limit must not silently be no limit.
"""

import difflib
import re
import tomllib
from typing import Any

import msgspec

from covey.identity.errors import Misuse

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
    directory: str | None = None
    pattern: str = "*.log"
    """Which files of the directory, newest last."""
    command: tuple[str, ...] = ()
    """Program and arguments; its standard output is the data. It runs as this daemon's user."""
    timeout_s: float = 10.0
    """A command that takes longer is ended, and its task fails."""

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
    """Requests that wait for a slot; more are refused, and tried elsewhere."""
    idle_s: float = 600.0
    """A model that nobody asked for so long gives its memory back; the next request waits about 1 s."""


class Tasks(_Part, frozen=True, kw_only=True):
    """Work for others and for this device."""

    running: int = 4
    """Tasks that run here at once."""
    waiting: int = 64
    """Tasks that wait here for a place; more are declined, to be tried elsewhere."""


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
    skills: tuple[str, ...] = SKILLS_DEFAULT
    """What this peer does for others. `covey.echo` is for measuring, and off by default."""
    listen: Listen = Listen()
    api: Api = Api()
    models: Models = Models()
    tasks: Tasks = Tasks()
    log: Log = Log()


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
    try:
        config = msgspec.convert(tree, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explained(str(error))}") from error
    _check(config, where)
    return config


def check_name(name: str, what: str) -> None:
    """Refuse a name that would be awkward to type.

    Raises:
        Misuse: saying what is allowed.
    """
    if not _NAME.fullmatch(name):
        raise Misuse(f"{what} {name!r}: use letters, digits, '.', '_' and '-', at most 63")


def write_config(config: Config) -> str:
    """Return a first configuration as TOML, with comments."""
    lines = [
        "# covey: this peer. See docs/OPERATING.md; after a change: covey down; covey up -d",
        f"name = {_toml(config.name)}",
        f"skills = {_toml(list(config.skills))}",
        "",
        "[listen]",
        f"address = {_toml(config.listen.address)}",
        f"port = {config.listen.port}",
        *([f"announce = {_toml(list(config.listen.announce))}"] if config.listen.announce else []),
        "",
        "[api]",
        f"tcp = {_toml(config.api.tcp)}",
        f"port = {config.api.port}",
        "",
        "[labels]",
        *(f"{_toml(key)} = {_toml(value)}" for key, value in config.labels.items()),
    ]
    for name, source in config.data.items():
        lines += ["", f"[data.{_toml(name)}]"]
        if source.file is not None:
            lines.append(f"file = {_toml(source.file)}")
        elif source.directory is not None:
            lines += [
                f"directory = {_toml(source.directory)}",
                f"pattern = {_toml(source.pattern)}",
            ]
        else:
            lines.append(f"command = {_toml(list(source.command))}")
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    # JSON's texts, booleans and lists are TOML's, too.
    return msgspec.json.encode(value).decode()


def _explained(error: str) -> str:
    unknown = re.search(r"unknown field `([^`]+)`", error)
    if unknown is None:
        return error
    near = difflib.get_close_matches(unknown[1], _keys(Config), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown key {unknown[1]!r}{_place(error)}{hint}"


def _place(error: str) -> str:
    place = re.search(r"at `\$\.?([^`]*)`", error)
    return f" in [{place[1]}]" if place and place[1] else ""


def _keys(part: Any) -> list[str]:
    parts = (Config, Listen, Api, DataSource, Models, Tasks, Log)
    return [name for one in parts for name in one.__struct_fields__] if part is Config else []


def _check(config: Config, where: str) -> None:
    try:
        check_name(config.name, "name")
        for key in config.labels:
            check_name(key, "label")
        for name in config.data:
            check_name(name, "data source")
    except Misuse as error:
        raise ConfigError(f"{where}: {error}") from error
    for name, source in config.data.items():
        given = [source.file is not None, source.directory is not None, bool(source.command)]
        if sum(given) != 1:
            raise ConfigError(
                f"{where}: [data.{name}] needs exactly one of file, directory, command"
            )
    known = (*SKILLS_DEFAULT, ECHO_SKILL)
    for skill in config.skills:
        if skill not in known:
            raise ConfigError(
                f"{where}: skill {skill!r} is not known; there are: {', '.join(known)}"
            )
    for name, value, low, high in (
        ("listen.port", config.listen.port, 0, 65535),
        ("api.port", config.api.port, 0, 65535),
        ("models.slots", config.models.slots, 1, 64),
        ("models.context_tokens", config.models.context_tokens, 256, 1_048_576),
        ("models.threads", config.models.threads, 0, 256),
        ("tasks.running", config.tasks.running, 1, 256),
        ("tasks.waiting", config.tasks.waiting, 0, 10_000),
    ):
        if not low <= value <= high:
            raise ConfigError(f"{where}: {name} is {low} to {high}, not {value}")
    if config.log.level not in ("debug", "info", "warning", "error"):
        raise ConfigError(
            f"{where}: log.level is debug, info, warning or error, not {config.log.level!r}"
        )
