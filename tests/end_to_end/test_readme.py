"""The session in the README does what it says, line by line."""

from pathlib import Path

import pytest
from end_to_end.readme import Shell, dpkg_log, lay_out, session_lines

pytestmark = [pytest.mark.end_to_end, pytest.mark.model]


def expected(line: str, said: str, notes: str) -> None:
    """Check what a line of the session is there to show."""
    if line.startswith("covey init --name gateway"):
        assert "mesh plant" in said
        assert "passphrase" in notes
    elif line == "covey peers":
        row = next(one for one in said.splitlines() if one.startswith("line-1"))
        assert " up " in row
        assert "shift-log" in row
        assert "line=1" in row
        assert "smollm2-135m-instruct" in row
    elif line.startswith("covey ask"):
        assert said.strip()
        assert "on line-1 with smollm2-135m-instruct" in notes
    elif line.startswith("covey classify"):
        assert len(said.splitlines()) == 21, "a heading and 20 lines"
    elif line.startswith("covey extract"):
        assert '"machine":"pump_a"' in said
        assert '"value":9.8' in said
    elif line.startswith("covey summarize"):
        assert "50 lines" in said
    elif line == "covey tasks":
        states = [one.split()[2] for one in said.splitlines()[1:]]
        assert states == ["done"] * 5
    elif line == "covey tasks show last":
        assert "summarize" in said
        assert "line-1" in said
        assert "it has data 'shift-log'" in said
    elif line.startswith("covey recall"):
        assert "an unattended upgrade floods the install log" in said
        assert "gateway" in said
    elif line == "covey memory":
        assert "plant/logs" in said
    elif line == "covey status":
        assert "1 linked of 1 known" in said


def test_the_session_in_the_readme_works_line_by_line(short_path: Path) -> None:
    lay_out(short_path)
    with Shell(short_path, short_path, listen="127.0.0.1") as shell:
        try:
            for line in session_lines():
                typed = line.replace("/var/log/dpkg.log", dpkg_log(short_path))
                code, said = shell.type(typed)
                notes = shell.notes()
                assert code == 0, f"{line}\n{said}\n{notes}"
                expected(line, said, notes)
            token = (short_path / "token").read_text()
            assert token.startswith("covey")
            assert len(token.splitlines()) == 1, "the token alone is on standard output"
        finally:
            shell.type("covey down")
            shell.type("COVEY_HOME=~/line-1 covey down")
