"""The README's session, taken out of the README, typed into shells line by line."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parent.parent.parent
LINE_S = 180.0
_END = "--end-of-line--"


def session_lines() -> list[str]:
    """Return the commands of the README's session, without their comments."""
    text = (ROOT / "README.md").read_text()
    block = re.search(r"run by tests/end_to_end/test_readme.py.*?```sh\n(.*?)```", text, re.DOTALL)
    assert block is not None, "the README has no session"
    lines = [line.split("   #")[0].rstrip() for line in block[1].splitlines()]
    return [line for line in lines if line]


class Shell:
    """One bash, as a person has it open: what a line sets stays set for the next."""

    def __init__(
        self, home: Path, work: Path, *, listen: str | None, within: Sequence[str] = ()
    ) -> None:
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("COVEY_")},
            "HOME": str(home),
            "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
            "PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}",
        }
        environment.pop("XDG_DATA_HOME", None)
        if listen is not None:
            environment["COVEY_LISTEN"] = listen
        self._errors = (work / f"stderr-{home.name}-{id(self)}").open("w+")
        self._bash = subprocess.Popen(
            [*within, "bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=work,
            env=environment,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.stdout.close()
        self._bash.wait(10)
        self._errors.close()

    def type(self, line: str) -> tuple[int, str]:
        """Type a line; return its exit code and standard output."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        # `timeout` is outside of functions and redirections: a whole line is given to it.
        self._bash.stdin.write(f"{line}\nprintf '%s %s\\n' '{_END}' $?\n")
        self._bash.stdin.flush()
        said: list[str] = []
        for answer in self._bash.stdout:
            if answer.startswith(_END):
                return int(answer.split()[1]), "".join(said)
            said.append(answer)
        raise AssertionError(f"the shell ended at {line!r}")

    def notes(self) -> str:
        """Return what came on standard error so far."""
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read()


def lay_out(work: Path) -> None:
    """Make what the session expects around it: the examples, and a log to look into."""
    (work / "examples").symlink_to(ROOT / "examples")


def dpkg_log(work: Path) -> str:
    """Return a package manager's log: this machine's own, else one as such a manager writes it."""
    real = Path("/var/log/dpkg.log")
    if real.exists() and real.stat().st_size > 0:
        return str(real)
    own = work / "dpkg.log"
    verbs = ("install", "configure", "status installed", "remove")
    own.write_text(
        "".join(
            f"2026-11-24 08:00:{at:02d} {verbs[at % 4]} libfoo{at}:amd64 1.{at}\n"
            for at in range(60)
        )
    )
    return str(own)


def remove(path: Path) -> None:
    """Remove a session's folder."""
    shutil.rmtree(path, ignore_errors=True)
