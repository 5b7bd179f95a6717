"""The workers' log: lines are written whole or not at all, and its failures do not reach the app."""

import contextlib
import fcntl
import json
import os
import resource
import select
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ostler.logs.error_stream import ErrorStream
from ostler.logs.logfile import LogFile
from ostler.logs.worker_log import Log, resolve_format, wants_colour
from ostler.osapi import original
from tests.kit.threads import run_at_once


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A pseudo terminal: the descriptor to write to, and the one from which its output is read."""
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
    """Logs contain addresses and paths."""
    LogFile(str(tmp_path / "log"), 2)
    assert (tmp_path / "log").stat().st_mode & 0o007 == 0


def test_a_file_that_can_not_be_opened_is_an_error(tmp_path: Path) -> None:
    """Only at the start; later a failure must not stop anything."""
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


def record_writes(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The arguments of each later write(2)."""
    writes: list[bytes] = []
    before = os.write

    def write(fd: int, data: bytes) -> int:
        writes.append(data)
        return before(fd, data)

    monkeypatch.setattr(original, "write", write)
    return writes


def test_gathered_lines_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular file accepts a batch of any size in one write; without lines there is no write."""
    writes = record_writes(monkeypatch)
    file = LogFile(str(tmp_path / "log"), 2)
    file.flush()
    lines = [b"%d" % number * 1000 + b"\n" for number in range(20)]
    for line in lines:
        file.gather(line)
    assert writes == []
    file.flush()
    file.flush()
    assert writes == [b"".join(lines)]


def test_a_written_line_comes_after_the_gathered(tmp_path: Path) -> None:
    """The order is that of the events."""
    file = LogFile(str(tmp_path / "log"), 2)
    file.gather(b"one\n")
    file.write("two")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


def test_a_pipe_gets_what_it_takes_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes of several processes do not mix only up to PIPE_BUF (pipe(7)),
    so a write has only whole lines up to that size.
    """
    reader, writer = os.pipe()
    try:
        writes = record_writes(monkeypatch)
        file = LogFile("-", writer)
        sizes = [1000, 3096, 1, 4095, 4096, 5000, 1, 2, *[300] * 40]
        lines = [b"x" * (size - 1) + b"\n" for size in sizes]
        for line in lines:
            file.gather(line)
        file.flush()
        assert b"".join(writes) == b"".join(lines)
        assert [len(data) for data in writes if len(data) > select.PIPE_BUF] == [5000]
        assert all(data.endswith(b"\n") for data in writes)
        assert len(writes) == 3 + 1 + 4
    finally:
        os.close(reader)
        os.close(writer)


def test_a_line_that_comes_while_another_thread_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second thread does not wait for the disk; the first one writes its line as well."""
    path = tmp_path / "log"
    file = LogFile(str(path), 2)
    entered, leave = threading.Event(), threading.Event()
    before = os.write

    def slow(fd: int, data: bytes) -> int:
        entered.set()
        assert leave.wait(10)
        return before(fd, data)

    monkeypatch.setattr(original, "write", slow)
    first = threading.Thread(target=file.write, args=("one",))
    first.start()
    try:
        assert entered.wait(10)
        file.write("two")
        assert path.read_text() == ""
    finally:
        leave.set()
        first.join(10)
    assert path.read_text() == "one\ntwo\n"


def test_lines_of_threads_are_written_once(tmp_path: Path) -> None:
    """Each line of eight threads is in the file, whole and once, and those of each thread are in order."""
    path = tmp_path / "log"
    file = LogFile(str(path), 2)
    start = threading.Barrier(8)

    def serve(name: int) -> None:
        start.wait(10)
        for number in range(2000):
            file.gather(b"%d %d\n" % (name, number))
            if number % 3 == 0:
                file.flush()
        file.flush()

    run_at_once(partial(serve, name) for name in range(8))
    lines = path.read_text().splitlines()
    assert len(lines) == 8 * 2000
    for name in range(8):
        own = [line.split(" ")[1] for line in lines if line.startswith(f"{name} ")]
        assert own == [str(number) for number in range(2000)]


def test_reopen_follows_the_path(tmp_path: Path) -> None:
    """logrotate moves the file away; after reopen a new one is written, and the old one is not changed."""
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
    """If the folder does not exist any more, lines are not lost."""
    folder = tmp_path / "logs"
    folder.mkdir()
    file = LogFile(str(folder / "log"), 2)
    folder.rename(tmp_path / "moved")
    file.reopen()
    file.write("still here")
    assert (tmp_path / "moved" / "log").read_text() == "still here\n"


def test_reopen_of_a_standard_descriptor_does_nothing() -> None:
    """There is no path that could be opened again."""
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
    """The line is lost, serving continues."""
    file = LogFile("/dev/full", 2)
    file.write("x" * 100_000)
    Log(file, "json", "info", {}).error("lost", path="/")


def test_a_disk_that_gets_full_and_empty_again(tmp_path: Path) -> None:
    """No half line stays in the file, because another process might append its own to it."""
    path = tmp_path / "log"
    file = LogFile(str(path), 2)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        file.write("1234567")
        file.write("abcdef")
        file.write("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.write("next")
    file.write("last")
    assert path.read_text() == "1234567\nnext\nlast\n"


def test_a_pipe_that_is_full() -> None:
    """No process waits for a reader that made the pipe non-blocking; the next line begins on a new line."""
    reader, writer = os.pipe()
    try:
        os.set_blocking(writer, False)
        room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        file = LogFile("-", writer, reader_timeout=0.01)
        file.write("x" * (room + 1000))
        file.write("lost")
        assert os.read(reader, room) == b"x" * room
        file.write("one")
        file.write("two")
        assert os.read(reader, 100) == b"\none\ntwo\n"
    finally:
        os.close(reader)
        os.close(writer)


def full_pipe() -> tuple[int, int]:
    """A pipe of one page without room, whose writers block."""
    reader, writer = os.pipe()
    room = fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
    os.write(writer, b"x" * (room - 1) + b"\n")
    return reader, writer


def full_socket() -> tuple[int, int]:
    """The same as a stream socket, as the journal of a service manager uses it."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            theirs.send(b"x" * 4095 + b"\n")
    theirs.setblocking(True)
    return ours.detach(), theirs.detach()


def drain(fd: int) -> bytes:
    """Everything that can be read."""
    data = b""
    while select.select([fd], [], [], 0)[0] and (piece := os.read(fd, 65536)):
        data += piece
    return data


@pytest.mark.parametrize("full", [full_pipe, full_socket])
def test_a_reader_that_does_not_read(full: Callable[[], tuple[int, int]]) -> None:
    """A worker waits once, then never again.

    The loss is reported when the reader reads again.
    """
    reader, writer = full()
    reported: list[tuple[int, str]] = []
    try:
        file = LogFile("-", writer, reader_timeout=0.05)
        file.on_lost = lambda lines, reason: reported.append((lines, reason))
        for number in range(1000):
            file.write(f"lost {number}")
        assert reported == [(0, "the reader is not reading")]
        drain(reader)
        file.write("one")
        file.write("two")
        assert drain(reader) == b"one\ntwo\n"
        assert reported[1:] == [(1000, "the reader is not reading")]
        assert os.get_blocking(writer), "what others share is as they left it"
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("full", [full_pipe, full_socket])
def test_a_supervisor_keeps_lines_for_its_reader(full: Callable[[], tuple[int, int]]) -> None:
    """It does not wait at all; the buffered lines are limited and stay in order."""
    reader, writer = full()
    reported: list[tuple[int, str]] = []
    try:
        file = LogFile("-", writer, reader_timeout=0.0, kept=1000)
        file.on_lost = lambda lines, reason: reported.append((lines, reason))
        lines = [f"{number:03}" for number in range(300)]
        for line in lines:
            file.write(line)
        assert reported == [(0, "the reader is not reading")]
        drain(reader)
        file.flush()
        assert drain(reader).decode().split() == lines[:250]
        assert reported[1:] == [(50, "the reader is not reading")]
        file.flush()
        assert drain(reader) == b""
    finally:
        os.close(reader)
        os.close(writer)


def test_a_slow_reader_loses_nothing() -> None:
    """A worker waits for a slow reader, line by line."""
    reader, writer = full_pipe()
    found = bytearray()
    try:
        file = LogFile("-", writer, reader_timeout=10.0)
        lines = [b"%d\n" % number * 100 for number in range(200)]

        def read() -> None:
            while not found.endswith(lines[-1]):
                found.extend(os.read(reader, 1000))

        thread = threading.Thread(target=read)
        thread.start()
        for line in lines:
            file.gather(line)
        file.flush()
        thread.join(10)
        assert bytes(found).partition(b"\n")[2] == b"".join(lines)
    finally:
        os.close(reader)
        os.close(writer)


def test_close_writes_what_was_kept() -> None:
    """At the end the supervisor waits a moment for a slow reader of its last lines."""
    reader, writer = full_pipe()
    try:
        file = LogFile("-", writer, reader_timeout=0.0, kept=1000)
        file.write("bye")
        thread = threading.Thread(target=file.close)
        thread.start()
        found = drain(reader)
        thread.join(10)
        assert (found + drain(reader)).endswith(b"x\nbye\n")
        os.fstat(writer)  # the descriptor is not closed here
    finally:
        os.close(reader)
        os.close(writer)


def test_lines_lost_to_a_full_disk_are_counted(tmp_path: Path) -> None:
    """Reported once when it begins, and once when there is room again, with the number."""
    file = LogFile(str(tmp_path / "log"), 2)
    reported: list[tuple[int, str]] = []
    file.on_lost = lambda lines, reason: reported.append((lines, reason))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        file.write("one")
        file.gather(b"two\n")
        file.gather(b"three\n")
        file.flush()
        assert reported == [(0, "File too large")]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.write("next")
    file.write("last")
    assert reported[1:] == [(3, "File too large")]
    assert (tmp_path / "log").read_text() == "next\nlast\n"


def test_lost_lines_are_an_event_in_the_log(tmp_path: Path) -> None:
    """The event follows the first line that could be written."""
    log = Log(LogFile(str(tmp_path / "log"), 2), "json", "info", {"slot": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        log.info("lost")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log.info("found")
    events = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [event["event"] for event in events] == ["found", "log_lines_lost"]
    assert (events[1]["lines"], events[1]["reason"], events[1]["slot"]) == (1, "File too large", 1)


def test_a_fifo_without_a_reader(tmp_path: Path) -> None:
    """A log that is a FIFO does not delay the start; a late reader gets the written lines."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    file = LogFile(str(path), 2, reader_timeout=0.01)
    file.write("one")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert os.read(reader, 100) == b"one\n"
    finally:
        os.close(reader)
    file.write("for the next reader")


def test_of_a_batch_whole_lines_stay(tmp_path: Path) -> None:
    """Only the torn line is removed, and only that is counted as lost."""
    path = tmp_path / "log"
    file = LogFile(str(path), 2)
    reported: list[tuple[int, str]] = []
    file.on_lost = lambda lines, reason: reported.append((lines, reason))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for line in (b"one\n", b"two\n", b"three\n", b"four\n"):
            file.gather(line)
        file.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_text() == "one\ntwo\n"
    file.write("next")
    assert reported == [(0, "File too large"), (2, "File too large")]
    assert path.read_text() == "one\ntwo\nnext\n"


def test_reopen_forgets_half_a_line(tmp_path: Path) -> None:
    """It went to the old reader's pipe; the new file begins with a complete line."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        file = LogFile(str(path), 2, reader_timeout=0.01)
        room = fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)
        file.write("x" * (room + 1000))
        path.unlink()
        file.reopen()
        file.write("next")
        assert path.read_text() == "next\n"
    finally:
        os.close(reader)


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
    """Paths of the operating system may contain them (PEP 383); the log must not fail."""
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
    """Every line is an object with the event, its level, the fields of the process and its own."""
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
    """Events below the level are not written."""
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
    """On a terminal `auto` is the coloured console format;
    NO_COLOR means no colour (https://no-color.org).
    """
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
    """Elsewhere `auto` is JSON; other values are kept."""
    file = LogFile(str(tmp_path / "log"), 2)
    assert not file.is_terminal
    assert resolve_format("auto", file.is_terminal) == "json"
    assert resolve_format("console", file.is_terminal) == "console"
    assert not wants_colour(file)
    assert not LogFile("/dev/null", 2).is_terminal


# -- wsgi.errors -------------------------------------------------------------------------------------------


def test_an_app_s_own_lines_are_whole() -> None:
    """Pieces are joined into a line; flush() ends it; pieces of other threads are not mixed in."""
    written: list[str] = []
    stream = ErrorStream(written.append)
    print("a", "b", file=stream)
    stream.write("begun ")
    other = threading.Thread(target=lambda: print("other", 1, file=stream))
    other.start()
    other.join()
    stream.write("ended\nand ")
    stream.writelines(["so ", "on"])
    assert written == ["a b\n", "other 1\n", "begun ended\n"]
    stream.flush()
    stream.flush()
    assert written[3:] == ["and so on\n"]
    stream.write("x" * 20_000)
    assert len(written[4]) == 20_001


def test_a_traceback_is_written_as_it_is() -> None:
    """Frameworks write tracebacks to `wsgi.errors`."""
    written: list[str] = []
    try:
        raise ValueError("mistake")
    except ValueError:
        traceback.print_exc(file=ErrorStream(written.append))
    assert "".join(written).endswith("ValueError: mistake\n")


def test_the_end_of_a_thread_ends_its_line() -> None:
    """An unfinished line of a thread is written when the thread has ended, not kept for another thread."""
    written: list[str] = []
    stream = ErrorStream(written.append)
    for number in range(3):
        thread = threading.Thread(target=lambda text=f"piece {number}": stream.write(text))
        thread.start()
        thread.join()
        _eventually(lambda number=number: written[number:] == [f"piece {number}\n"])
    stream.write("next line\n")
    assert written[3:] == ["next line\n"]


def test_pieces_of_lines_are_few() -> None:
    """If many threads have begun a line, the oldest pieces are written; all are written at the end."""
    written: list[str] = []
    stream = ErrorStream(written.append)
    count, done = 300, threading.Event()
    begun = threading.Barrier(count + 1)

    def begin(number: int) -> None:
        stream.write(f"piece {number}")
        begun.wait(20)
        done.wait(20)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    begun.wait(20)
    assert len(written) == count - 256
    stream.flush_all()
    assert sorted(written) == sorted(f"piece {number}\n" for number in range(count))
    done.set()
    for thread in threads:
        thread.join()
    assert len(written) == count


_GREENLETS = """\
import gc, sys
from ostler.logs.error_stream import ErrorStream
{patch}
written = []
stream = ErrorStream(written.append)

begun = []

def request(number, wait):
    stream.write(f"piece {{number}}")
    sleep(0)
    stream.write(" and")
    begun.append(number)
    while wait and not ended:
        sleep(0.001)

# Each ends before the next begins.
ended = False
for number in range(1000):
    join(spawn(request, number, False))
sleep(0.01)
gc.collect()
assert written == [f"piece {{number}} and\\n" for number in range(1000)], (len(written), written[:3])
# All at the same time.
del written[:], begun[:]
running = [spawn(request, number, True) for number in range(1000)]
while len(begun) < 1000:
    sleep(0.001)
assert len(written) >= 1000 - 256, len(written)
stream.write("of the main greenlet")
ended = True
for one in running:
    join(one)
del running, one
sleep(0.01)
gc.collect()
stream.write(" is whole\\n")
assert "of the main greenlet is whole\\n" in written, written[-3:]
assert sum(line.count("and") for line in written) == 1000, len(written)
"""
_PATCHES = {
    "gevent": """
import gevent.monkey
gevent.monkey.patch_all()
from gevent import sleep, spawn
join = gevent.Greenlet.join
""",
    "eventlet": """
import eventlet
eventlet.monkey_patch()
from eventlet import sleep, spawn
from eventlet.greenthread import GreenThread
join = GreenThread.wait
""",
}


@pytest.mark.parametrize("library", _PATCHES)
def test_pieces_of_greenlets(library: str) -> None:
    """The end of a greenlet ends its line; of many at once the oldest pieces are written."""
    pytest.importorskip(library)
    program = _GREENLETS.format(patch=_PATCHES[library])
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


def _eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
