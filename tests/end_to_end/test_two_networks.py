"""The README's session between two network namespaces: two hosts with addresses of their own."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from end_to_end.readme import Shell, dpkg_log, lay_out, session_lines
from end_to_end.test_readme import expected

from covey.peer.local_mesh import wait_until

pytestmark = [pytest.mark.end_to_end, pytest.mark.model, pytest.mark.netns]
NAMES = (f"covey-a{os.getpid()}", f"covey-b{os.getpid()}")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def namespaces() -> Iterator[tuple[str, str]]:
    """Two namespaces with one cable between them: 10.99.7.1 and 10.99.7.2."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for name in NAMES:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip(
            "-n",
            NAMES[0],
            "link",
            "add",
            "cable",
            "type",
            "veth",
            "peer",
            "name",
            "cable",
            "netns",
            NAMES[1],
        )
        for at, name in enumerate(NAMES):
            ip("-n", name, "address", "add", f"10.99.7.{at + 1}/24", "dev", "cable")
            ip("-n", name, "link", "set", "cable", "up")
        yield NAMES
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def test_the_session_works_between_two_hosts(short_path: Path, namespaces: tuple[str, str]) -> None:
    lay_out(short_path)
    first = Shell(
        short_path, short_path, listen=None, within=("ip", "netns", "exec", namespaces[0])
    )
    second = Shell(
        short_path, short_path, listen=None, within=("ip", "netns", "exec", namespaces[1])
    )
    with first, second:
        try:
            shell = first
            for line in session_lines():
                if line.startswith("export COVEY_HOME"):
                    shell = second
                elif line.startswith("unset COVEY_HOME"):
                    shell = first
                typed = line.replace("/var/log/dpkg.log", dpkg_log(short_path))
                code, said = shell.type(typed)
                assert code == 0, f"{line}\n{said}\n{shell.notes()}"
                expected(line, said, shell.notes())
                if line == "covey peers":
                    assert "10.99.7.2:" in said, "the other host's own address is shown"
        finally:
            first.type("covey down")
            second.type("covey down")


def test_a_host_that_gets_another_address_is_found_again(
    short_path: Path, namespaces: tuple[str, str]
) -> None:
    lay_out(short_path)
    here, there = (
        Shell(short_path, short_path, listen=None, within=("ip", "netns", "exec", name))
        for name in namespaces
    )

    def run(shell: Shell, line: str) -> str:
        code, said = shell.type(line)
        assert code == 0, f"{line}\n{said}\n{shell.notes()}"
        return said

    with here, there:
        try:
            run(here, "covey init --name gateway --found plant && covey up -d")
            run(here, "covey invite > token")
            run(there, "export COVEY_HOME=~/line-1")
            run(there, "covey init --name line-1 && covey join < token && covey up -d")
            wait_until(lambda: "10.99.7.2:" in line_1(run(here, "covey peers")), "it is linked")

            ip("-n", namespaces[1], "address", "delete", "10.99.7.2/24", "dev", "cable")
            ip("-n", namespaces[1], "address", "add", "10.99.7.3/24", "dev", "cable")

            wait_until(
                lambda: "10.99.7.3:" in line_1(run(here, "covey peers")),
                "its new address is known, and it is linked",
                timeout_s=60,
            )
        finally:
            here.type("covey down")
            there.type("covey down")


def line_1(peers: str) -> str:
    """Return the row of `covey peers` for a linked line-1; empty while it is not linked."""
    rows = [row for row in peers.splitlines() if row.startswith("line-1")]
    return rows[0] if rows and " up " in rows[0] else ""
