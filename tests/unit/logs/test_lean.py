"""The workers' log: whole lines or none, and nothing that goes wrong with it reaches the app."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.logs.lean import Log, LogFile, resolve_format, wants_colour


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo terminal: where to write, where to read what it shows."""
    ours, theirs = os.openpty()
    yield theirs, ours
    os.close(ours)
    os.close(theirs)


def test_lines_are_appended_to_what_is_there(tmp_path: Path) -> None:
    """A restart must not empty the log."""
    path = tmp_path / "log"
    path.write_text("before\n")
    file = LogFile(str(path), 2)
    file.write("one")
    file.write("zwei \xfc \u20ac")
    assert path.read_text() == "before\none\nzwei \xfc \u20ac\n"


def test_a_new_file_is_not_for_everybody(tmp_path: Path) -> None:
    """Logs hold addresses and paths."""
    LogFile(str(tmp_path / "log"), 2)
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_file_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    """At start the operator is told; only later nothing must stop."""
    with pytest.raises(FileNotFoundError):
        LogFile(str(tmp_path / "missing" / "log"), 2)


def test_each_line_is_one_write() -> None:
    """Lines of many processes in one pipe do not mix."""
    reader, writer = os.pipe()
    try:
        file = LogFile("-", writer)
        file.write("one")
        assert os.read(reader, 100) == b"one\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_reopen_follows_the_path(tmp_path: Path) -> None:
    """logrotate moves the file away; after reopen a new one is written, and the old one left alone."""
    path, moved = tmp_path / "log", tmp_path / "log.1"
    file = LogFile(str(path), 2)
    file.write("one")
    path.rename(moved)
    file.write("two")
    file.reopen()
    file.write("three")
    assert moved.read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_reopen_costs_no_descriptor(tmp_path: Path) -> None:
    """A thousand rotations must not end in EMFILE."""
    file = LogFile(str(tmp_path / "log"), 2)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        file.reopen()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_reopen_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    """A folder that is gone is no reason to lose lines."""
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "log"), 2)
    folder.rename(tmp_path / "moved")
    file.reopen()
    file.write("still here")
    assert (tmp_path / "moved" / "log").read_text() == "still here\n"


def test_reopen_of_a_standard_descriptor_does_nothing() -> None:
    """There is no path to open anew."""
    reader, writer = os.pipe()
    try:
        file = LogFile("-", writer)
        file.reopen()
        file.write("x")
        assert os.read(reader, 100) == b"x\n"
    finally:
        os.close(reader)
        os.close(writer)


def test_a_full_disk_is_silent() -> None:
    """The line is lost, serving goes on."""
    file = LogFile("/dev/full", 2)
    file.write("x" * 100_000)
    Log(file, "json", "info", {}).error("lost", path="/")


def test_a_reader_that_is_gone_is_silent() -> None:
    """`ostler | head` must not end a worker."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        LogFile("-", writer).write("x")
    finally:
        os.close(writer)


def test_a_descriptor_that_is_closed_is_silent() -> None:
    """A daemon without standard descriptors serves as well."""
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    file = LogFile("-", writer)
    file.write("x")
    assert not file.is_terminal


def test_lone_surrogates_are_written() -> None:
    """Paths of the operating system may hold them (PEP 383); a log must not choke on what it reports."""
    reader, writer = os.pipe()
    try:
        file = LogFile("-", writer)
        file.write("a\udc80b")
        assert os.read(reader, 100) == b"a\\udc80b\n"
        Log(file, "json", "info", {}).info("event", path="a\udc80b")
        assert json.loads(os.read(reader, 1000))["path"] == "a\udc80b"
    finally:
        os.close(reader)
        os.close(writer)


# -- Log -------------------------------------------------------------------------------------------------


def test_json_events(tmp_path: Path) -> None:
    """Every line is an object with the event, its level, the process's fields and its own."""
    path = tmp_path / "log"
    log = Log(LogFile(str(path), 2), "json", "info", {"slot": 3, "pid": 17})
    log.info("started", version="1")
    log.warning("slow", seconds=1.5, slot=4)
    log.error("failed", traceback="a\nb")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(record["level"], record["event"]) for record in records] == [
        ("info", "started"),
        ("warning", "slow"),
        ("error", "failed"),
    ]
    assert [record["slot"] for record in records] == [3, 4, 3]
    assert records[2]["traceback"] == "a\nb"


@pytest.mark.parametrize(
    ("level", "written"), [("debug", 3), ("info", 3), ("warning", 2), ("error", 1), ("critical", 0)]
)
def test_levels(tmp_path: Path, level: str, written: int) -> None:
    """What is less important than the level is not written."""
    path = tmp_path / "log"
    log = Log(LogFile(str(path), 2), "console", level, {})
    log.info("one")
    log.warning("two")
    log.error("three")
    assert len(path.read_text().splitlines()) == written


def test_log_reopens(tmp_path: Path) -> None:
    """USR1 reaches the file behind the log."""
    path = tmp_path / "log"
    log = Log(LogFile(str(path), 2), "console", "info", {})
    path.rename(tmp_path / "old")
    log.reopen()
    log.info("new")
    assert " new" in path.read_text()


def test_terminals(terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal `auto` is coloured console; NO_COLOR takes the colour away (https://no-color.org)."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    file = LogFile("-", terminal[0])
    assert file.is_terminal
    assert resolve_format("auto", file.is_terminal) == "console"
    assert wants_colour(file)
    Log(file, "console", "info", {}).info("hello", slot=1)
    assert b"\x1b[" in os.read(terminal[1], 1000)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(file)
    Log(file, "console", "info", {}).info("hello", slot=1)
    assert b"\x1b" not in os.read(terminal[1], 1000)


def test_files_are_json(tmp_path: Path) -> None:
    """Elsewhere `auto` is JSON; what was asked for is kept."""
    file = LogFile(str(tmp_path / "log"), 2)
    assert not file.is_terminal
    assert resolve_format("auto", file.is_terminal) == "json"
    assert resolve_format("console", file.is_terminal) == "console"
    assert not wants_colour(file)
    assert not LogFile("/dev/null", 2).is_terminal
