"""What a data source says: its last lines, bounded; and if it cannot, why, without harm."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from covey.peer import data_sources as module
from covey.peer.config import DataSource
from covey.peer.data_sources import (
    FILES_MAX,
    LINE_CHARACTERS_MAX,
    OUTPUT_BYTES_MAX,
    READ_BYTES_MAX,
    TAIL_MAX,
    DataSources,
    DataUnavailable,
)


async def tail(source: DataSource, lines: int = 3) -> list[str]:
    with trio.fail_after(30):
        return await DataSources({"log": source}).tail("log", lines)


async def refusal(source: DataSource) -> str:
    with pytest.raises(DataUnavailable) as caught:
        await tail(source)
    return str(caught.value)


def file_of(folder: Path, data: bytes) -> DataSource:
    path = folder / "shift.log"
    path.write_bytes(data)
    return DataSource(file=str(path))


# Files


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"one\ntwo\nthree\nfour\n", ["two", "three", "four"]),
        (b"one\ntwo\nthree\nfour", ["two", "three", "four"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\n \n\ntwo\n\n", ["one", "two"]),
        ("Köln\n".encode(), ["Köln"]),
        (b"K\xf6ln\n", ["K\N{REPLACEMENT CHARACTER}ln"]),
    ],
)
async def test_the_last_lines_that_say_something_are_read(
    tmp_path: Path, data: bytes, lines: list[str]
) -> None:
    assert await tail(file_of(tmp_path, data)) == lines


async def test_of_a_large_file_little_is_read(tmp_path: Path) -> None:
    source = file_of(tmp_path, b"".join(b"%07d some words\n" % n for n in range(500_000)))
    sources = DataSources({"log": source})
    assert await sources.tail("log", 2) == ["0499998 some words", "0499999 some words"]
    assert sources.read_bytes < 100_000


async def test_lines_are_found_behind_many_empty_ones(tmp_path: Path) -> None:
    assert await tail(file_of(tmp_path, b"one\ntwo\n" + b"\n" * 300_000)) == ["one", "two"]


async def test_more_lines_than_the_limit_are_not_given(tmp_path: Path) -> None:
    source = file_of(tmp_path, b"line\n" * (TAIL_MAX + 100))
    assert len(await tail(source, 10**9)) == TAIL_MAX
    assert await tail(source, -5) == ["line"]


@pytest.mark.parametrize("end", [b"", b"\n"])
async def test_a_line_without_an_end_is_cut(tmp_path: Path, end: bytes) -> None:
    source = file_of(tmp_path, b"first\n" + b"x" * (READ_BYTES_MAX + 10) + end)
    assert await tail(source) == ["x" * LINE_CHARACTERS_MAX]


async def test_a_file_is_read_as_it_is_now(tmp_path: Path) -> None:
    sources = DataSources({"log": file_of(tmp_path, b"one\n")})
    assert await sources.tail("log", 3) == ["one"]
    file_of(tmp_path, b"one\ntwo\n")
    assert await sources.tail("log", 3) == ["one", "two"]
    file_of(tmp_path, b"2\n")
    assert await sources.tail("log", 3) == ["2"]
    os.unlink(tmp_path / "shift.log")
    with pytest.raises(DataUnavailable, match="data source 'log' is not there now"):
        await sources.tail("log", 3)
    file_of(tmp_path, b"back\n")
    assert await sources.tail("log", 3) == ["back"]


async def test_a_file_that_shrinks_while_it_is_read_does_no_harm(tmp_path: Path) -> None:
    source = file_of(tmp_path, b"a line\n" * 100_000)
    path = Path(source.file or "")
    sources = DataSources({"log": source})
    async with trio.open_nursery() as nursery:

        async def shrink() -> None:
            for size in range(100_000, 0, -500):
                os.truncate(path, size)
                await trio.lowlevel.checkpoint()

        nursery.start_soon(shrink)
        for _ in range(20):
            lines = await sources.tail("log", 3)
            assert lines[0] == "a line"


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "data source 'log' has no lines now"),
        (b"\n \n", "data source 'log' has no lines now"),
        (b"SQLite format 3\0\x10\0\n", "data source 'log' is not text"),
    ],
)
async def test_what_has_no_lines_says_so(tmp_path: Path, data: bytes, complaint: str) -> None:
    assert await refusal(file_of(tmp_path, data)) == complaint


async def test_what_is_no_ordinary_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ordinary = "data source 'log' is not an ordinary file"
    assert await refusal(DataSource(file=str(tmp_path / "pipe"))) == ordinary
    assert await refusal(DataSource(file="/dev/zero")) == ordinary
    said = await refusal(DataSource(file=str(tmp_path)))
    assert said == "data source 'log' cannot be read: it is a directory"


async def test_what_may_not_be_read_says_so(tmp_path: Path) -> None:
    source = file_of(tmp_path, b"secret\n")
    os.chmod(tmp_path / "shift.log", 0o000)
    is_root = os.geteuid() == 0
    if is_root:
        # Root may read everything: be someone else for a moment.
        os.seteuid(65534)
    try:
        said = await refusal(source)
    finally:
        if is_root:
            os.seteuid(0)
    assert "may not be read by the daemon's user; give it the right to" in said


async def test_a_source_of_another_name_is_not_known() -> None:
    with pytest.raises(DataUnavailable, match="this peer has no data source 'other'"):
        await DataSources({}).tail("other", 3)


async def test_a_share_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    release = os.pipe()

    def hangs(*_arguments: object) -> bytes:
        os.read(release[0], 1)
        return b""

    monkeypatch.setattr(module, "_tail_of_files", hangs)
    with pytest.raises(DataUnavailable, match="data source 'log' did not answer within 30 s"):
        await DataSources({"log": file_of(tmp_path, b"one\n")}).tail("log", 3)
    os.write(release[1], b"x")
    for one in release:
        os.close(one)


# Directories


def folder_of(folder: Path, *files: tuple[str, bytes]) -> DataSource:
    for age, (name, data) in enumerate(reversed(files)):
        path = folder / name
        path.write_bytes(data)
        os.utime(path, (1000 - age, 1000 - age))
    return DataSource(directory=str(folder))


async def test_the_newest_files_of_a_directory_are_read_in_order(tmp_path: Path) -> None:
    source = folder_of(
        tmp_path, ("b.log", b"1\n2\n"), ("a.log", b"3"), ("c.txt", b"no\n"), ("d.log", b"4\n")
    )
    assert await tail(source, 3) == ["2", "3", "4"]
    assert await tail(source, 9) == ["1", "2", "3", "4"]


async def test_only_files_are_read(tmp_path: Path) -> None:
    source = folder_of(tmp_path, ("a.log", b"one\n"))
    (tmp_path / "b.log").mkdir()
    os.mkfifo(tmp_path / "c.log")
    (tmp_path / "d.log").symlink_to(tmp_path / "gone")
    assert await tail(source) == ["one"]


async def test_of_a_heap_of_files_the_newest_are_read(tmp_path: Path) -> None:
    source = folder_of(tmp_path, *((f"{n}.log", b"\n") for n in range(FILES_MAX + 5)))
    assert await refusal(source) == "data source 'log' has no lines now"
    os.utime(tmp_path / "0.log", (2000, 2000))
    (tmp_path / "0.log").write_bytes(b"new\n")
    assert await tail(source) == ["new"]


async def test_files_of_endless_lines_do_not_add_up(tmp_path: Path) -> None:
    endless = b"x" * READ_BYTES_MAX
    source = folder_of(tmp_path, *((f"{n}.log", endless) for n in range(4)))
    sources = DataSources({"log": source})
    await sources.tail("log", 100)
    assert sources.read_bytes <= READ_BYTES_MAX


async def test_a_directory_that_is_gone_or_empty_says_so(tmp_path: Path) -> None:
    assert (
        await refusal(DataSource(directory=str(tmp_path))) == "data source 'log' has no lines now"
    )
    gone = await refusal(DataSource(directory=str(tmp_path / "gone")))
    assert gone == "data source 'log' is not there now: no such directory"


# Commands


def command(code: str, timeout_s: float = 20.0) -> DataSource:
    return DataSource(command=(sys.executable, "-c", code), timeout_s=timeout_s)


async def test_what_a_command_writes_is_the_data(tmp_path: Path) -> None:
    code = (
        "import sys; print(1); print(2); print('aside', file=sys.stderr); print(sys.stdin.read())"
    )
    assert await tail(command(code)) == ["1", "2"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (command("raise SystemExit(3)"), "has a command that ended with 3"),
        (DataSource(command=("/no/such/program",)), "has no command '/no/such/program' here"),
        (command("import os; os.kill(os.getpid(), 9)"), "has a command that ended with -9"),
        (
            command("import time; time.sleep(600)", timeout_s=0.3),
            "has a command that took more than 0.3 s",
        ),
        (command("pass"), "has no lines now"),
    ],
    ids=["fails", "is not there", "dies", "hangs", "is silent"],
)
async def test_a_command_that_fails_says_how(source: DataSource, complaint: str) -> None:
    assert await refusal(source) == f"data source 'log' {complaint}"


async def test_a_command_that_writes_endlessly_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OUTPUT_BYTES_MAX == 64 * 1024**2
    monkeypatch.setattr(module, "OUTPUT_BYTES_MAX", 2 * 1024**2)
    said = await refusal(command("while True: print('y' * 100000)"))
    assert said == (
        "data source 'log' has a command that writes more than 2 MiB; "
        "let it write its last lines only"
    )


async def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    """A child that keeps the output open must not be waited for, nor stay."""
    code = (
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "print('one', flush=True)"
    )
    said = await refusal(command(code, timeout_s=1.0))
    assert said == "data source 'log' has a command that took more than 1 s"
    child = int(read(tmp_path / "pid"))
    await until(lambda: not is_alive(child))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    with trio.fail_after(20):
        while not holds():  # noqa: ASYNC110  (it tells us nothing when it does)
            await trio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def test_a_command_ends_with_the_task_that_asked(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tail, command(code))
        await until(lambda: pid.exists() and pid.read_text() != "")
        nursery.cancel_scope.cancel()
    assert not is_alive(int(read(pid)))


def read(path: Path) -> str:
    return path.read_text()
