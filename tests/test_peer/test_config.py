"""The configuration: what is wrong is named with its place and its remedy; what is written is read."""

import ast
import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey.identity.errors import Misuse
from covey.peer import config as config_module
from covey.peer.config import (
    ECHO_SKILL,
    LEVELS,
    SKILLS_DEFAULT,
    Api,
    Config,
    ConfigError,
    DataSource,
    Listen,
    Log,
    Models,
    Tasks,
    check_name,
    parse_config,
    write_config,
)


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, where="config.toml")
    return str(caught.value)


def test_a_name_is_all_that_is_needed() -> None:
    assert parse_config('name = "line-1"', where="config.toml") == Config(name="line-1")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('nme = "a"', "unknown key 'nme'; did you mean 'name'?"),
        ('name = "a"\n[listen]\nprot = 1', "unknown key 'prot' in [listen]; did you mean 'port'?"),
        (
            'name = "a"\n[data.shift-log]\nfil = "x"',
            "unknown key 'fil' in [data.shift-log]; did you mean 'file'?",
        ),
        ('name = "a"\n[modls]\nslots = 2', "unknown key 'modls'; did you mean 'models'?"),
        ('name = "a"\nport = 1', "unknown key 'port'; 'port' belongs in [listen]"),
        (
            'name = "a"\n[api]\nslots = 1',
            "unknown key 'slots' in [api]; 'slots' belongs in [models]",
        ),
        (
            'name = "a"\n[log]\nskills = []',
            "unknown key 'skills' in [log]; 'skills' belongs at the top",
        ),
        ('name = "a"\n[tasks]\nx = 1', "unknown key 'x' in [tasks]; there are: running, waiting"),
    ],
)
def test_an_unknown_key_names_its_section_and_its_neighbour(text: str, complaint: str) -> None:
    assert refusal(text) == f"config.toml: {complaint}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "name is missing"),
        ("name = 3", "name: expected str, got int"),
        ('name = "a"\nlisten = 3', "listen: expected a table, got int"),
        ('name = "a"\n[listen]\nport = "x"', "listen.port: expected int, got str"),
        ('name = "a"\n[labels]\nline = 1', "labels.line: expected str, got int"),
        ('name = "a"\n[data]\nlog = "x"', "data.log: expected a table, got str"),
        ('name = "a"\n[data.log]\nfile = 1', "data.log.file: expected str | null, got int"),
        ('name = "a"\nskills = "chat"', "skills: expected array, got str"),
    ],
)
def test_a_wrong_type_names_its_place(text: str, complaint: str) -> None:
    assert refusal(text) == f"config.toml: {complaint}"


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("[listen]\nport = 65536", "listen.port is 0 to 65535, not 65536"),
        ("[api]\nport = -1", "api.port is 0 to 65535, not -1"),
        ("[models]\nslots = 0", "models.slots is 1 to 64, not 0"),
        ("[models]\ncontext_tokens = 1", "models.context_tokens is 256 to 1048576, not 1"),
        ("[models]\nthreads = -1", "models.threads is 0 to 256, not -1"),
        ("[models]\nwaiting = -1", "models.waiting is 0 to 10000, not -1"),
        ("[models]\nidle_s = nan", "models.idle_s is 1 to 31536000, not nan"),
        ("[tasks]\nrunning = 0", "tasks.running is 1 to 256, not 0"),
        ("[tasks]\nwaiting = 10001", "tasks.waiting is 0 to 10000, not 10001"),
        ('[log]\nlevel = "loud"', "log.level is debug, info, warning or error, not 'loud'"),
        (
            '[listen]\naddress = "localhost"',
            "listen.address is an IP address of this device, such as 0.0.0.0 for all, not 'localhost'",
        ),
        (
            '[listen]\nannounce = ["192.0.2.1"]',
            "listen.announce takes multiaddrs such as /ip4/203.0.113.7/tcp/4001, not '192.0.2.1'",
        ),
        ("[data.log]", "[data.log] needs exactly one of file, directory, command"),
        (
            '[data.log]\nfile = "a"\ndirectory = "b"',
            "[data.log] needs exactly one of file, directory, command",
        ),
        (
            '[data.log]\ncommand = ["a"]\ntimeout_s = inf',
            "data.log.timeout_s is 0.1 to 3600, not inf",
        ),
        (
            '[data.log]\ndirectory = "a"\npattern = "/etc/*"',
            "data.log.pattern names files below the directory, such as '*.log', not '/etc/*'",
        ),
        (
            '[labels]\n"a b" = "c"',
            "label 'a b': use letters, digits, '.', '_' and '-', at most 63",
        ),
        (f'[labels]\nline = "{"x" * 129}"', "label 'line' has at most 128 characters, not 129"),
        (
            "[labels]\n" + "\n".join(f'l{n} = ""' for n in range(17)),
            "there are at most 16 labels, not 17",
        ),
        (
            '[data."../x"]\nfile = "a"',
            "data source '../x': use letters, digits, '.', '_' and '-', at most 63",
        ),
    ],
)
def test_what_is_out_of_range_says_what_is_allowed(section: str, complaint: str) -> None:
    assert refusal(f'name = "a"\n{section}') == f"config.toml: {complaint}"


def test_an_unknown_skill_is_refused_with_those_there_are() -> None:
    assert refusal('name = "a"\nskills = ["chatt"]') == (
        "config.toml: skill 'chatt' is not known; there are: "
        "chat, classify, embed, extract, summarize, covey.echo"
    )


@pytest.mark.parametrize("text", ["name =", "[", 'name = "a"\nname = "b"', "\x00"])
def test_broken_toml_is_refused_with_its_place(text: str) -> None:
    said = refusal(text)
    assert said.startswith("config.toml is not TOML: ")
    assert "(at " in said


@pytest.mark.parametrize("name", ["", "-a", "a b", "a/b", "x" * 64, "é", "a\n"])
def test_a_name_that_is_awkward_to_type_is_refused(name: str) -> None:
    with pytest.raises(Misuse, match="at most 63"):
        check_name(name, "name")


@given(st.text(max_size=200))
def test_any_text_is_a_configuration_or_refused(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_config(text, where="config.toml"), Config)


# Written and read back

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
TIMEOUTS = st.floats(0.1, 3600)
SOURCES = st.one_of(
    st.builds(DataSource, file=TEXTS, timeout_s=TIMEOUTS),
    st.builds(DataSource, directory=TEXTS, pattern=st.sampled_from(["*", "**/*.txt"])),
    st.builds(
        DataSource,
        command=st.lists(TEXTS, min_size=1, max_size=3).map(tuple),
        timeout_s=TIMEOUTS,
    ),
)
PORTS = st.integers(0, 65535)
CONFIGS = st.builds(
    Config,
    name=NAMES,
    labels=st.dictionaries(NAMES, TEXTS, max_size=3),
    data=st.dictionaries(NAMES, SOURCES, max_size=3),
    skills=st.lists(st.sampled_from([*SKILLS_DEFAULT, ECHO_SKILL]), unique=True).map(tuple),
    listen=st.builds(
        Listen,
        address=st.ip_addresses().map(str),
        port=PORTS,
        announce=st.lists(TEXTS.map("/".__add__), max_size=2).map(tuple),
    ),
    api=st.builds(Api, tcp=st.booleans(), port=PORTS),
    models=st.builds(
        Models,
        text=st.none() | TEXTS,
        embedding=st.none() | TEXTS,
        threads=st.integers(0, 256),
        context_tokens=st.integers(256, 1_048_576),
        slots=st.integers(1, 64),
        waiting=st.integers(0, 10_000),
        idle_s=st.floats(1, 365 * 86_400),
    ),
    tasks=st.builds(Tasks, running=st.integers(1, 256), waiting=st.integers(0, 10_000)),
    log=st.builds(Log, level=st.sampled_from(LEVELS)),
)


@given(CONFIGS)
def test_what_is_written_is_read_back_the_same(config: Config) -> None:
    assert parse_config(write_config(config), where="config.toml") == config


def test_a_first_configuration_is_short() -> None:
    assert write_config(Config(name="line-1")) == (
        "# covey: this peer. See docs/OPERATING.md; after a change: covey down; covey up -d\n"
        'name = "line-1"\n'
        'skills = ["chat","classify","embed","extract","summarize"]\n'
        "\n"
        "[listen]\n"
        'address = "0.0.0.0"\n'
        "port = 0\n"
        "\n"
        "[api]\n"
        "tcp = true\n"
        "port = 0\n"
        "\n"
        "[labels]\n"
    )


def test_every_field_says_what_it_means() -> None:
    tree = ast.parse(Path(config_module.__file__).read_text(encoding="utf-8"))
    parts = {
        node.name: node
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any(one.arg == "kw_only" for one in node.keywords)
    }
    assert {"Config", "Listen", "Api", "DataSource", "Models", "Tasks", "Log"} <= set(parts)
    silent = [
        f"{name}.{ast.unparse(field.target)}"
        for name, part in parts.items()
        for field, after in zip(part.body, [*part.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign) and not is_text(after)
    ]
    assert silent == []


def is_text(node: ast.stmt | None) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
