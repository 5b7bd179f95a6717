"""The log of workers and the fork server: structlog's looks without its imports (it loads asyncio).

Lines are written whole to a descriptor opened for appending, so lines of many processes do not mix. A log
that can't be written (disk full, reader gone, reader asleep) is no reason to stop serving: lines are lost,
counted, and their number is told once there is room again.

Lines can be gathered and written together, which costs one write(2) instead of one each. Threads share the
list without a lock: they only append to it, and only the one that holds the try-lock takes lines out. Who
does not get that lock need not wait: its holder looks again after it has let go.
"""

import io
import os
import select
import stat
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

from ostler.logs.opening import open_log
from ostler.logs.render import LEVELS, console_line, json_line
from ostler.osapi import original

# Lines; some 15 KiB of an access log. More would save next to nothing and be lost in a crash.
_LARGEST_BATCH = 64
# Seconds to wait for a reader that is behind. One that only is slow loses nothing by it; for one that reads
# nothing at all a process waits once.
_PATIENCE = 0.5
# Characters of a line without its end, and how many threads and greenlets may have such a line.
_LONGEST_PIECE = 8 * 1024
_MOST_PIECES = 256
_ASLEEP = "the reader is not reading"

Outlet = Callable[[str, str, dict[str, Any]], object]
"""Takes an event: its level, its name, its fields."""

Trouble = Callable[[int, str], object]
"""Told how many lines were lost and why; 0 when the first one can't be written."""


class LogFile:
    """A file to append lines to; `-` is an open standard descriptor.

    Args:
        path: the file's; standard_fd: what `-` means.
        patience: seconds to wait for the reader of a pipe; 0 for whoever must not wait.
        kept: bytes of lines to keep, beyond that, until it reads again.

    Attributes:
        name: for people.
        trouble: see there; the file is written to again when it is told a number.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: str, standard_fd: int, patience: float = _PATIENCE, kept: int = 0) -> None:
        self._fd = -1
        self.name = path if path != "-" else {1: "stdout", 2: "stderr"}.get(standard_fd, "-")
        self.trouble: Trouble | None = None
        self._path = path
        self._standard_fd = standard_fd
        self._patience = patience
        self._most_kept = kept
        self._fd = _without_waiting(standard_fd) if path == "-" else open_log(path)
        self._look()
        self._lines: list[bytes] = []
        self._writing = original.Lock()
        self._torn = 0  # bytes of a part of a line, which were the last that was written
        self._asleep = False  # the reader let us wait in vain, and has read nothing since
        self._lost = 0
        self._reason = ""

    def _look(self) -> None:
        """See what kind of file it is."""
        try:
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._waits = not self._regular and os.get_blocking(self._fd)
        except OSError:
            self._regular, self._waits = False, False  # closed: each line will be lost

    def reopen(self) -> None:
        """Open the path anew, as logrotate asks with USR1; on failure the old file stays in use."""
        if self._path == "-":
            return
        self.flush()
        try:
            new = open_log(self._path)
        except OSError:
            return
        # The number stays: threads may be writing to it (dup3 replaces it atomically).
        os.dup2(new, self._fd, inheritable=False)
        original.close(new)
        self._look()
        self._torn = 0
        self._asleep = False

    def write(self, line: str) -> None:
        self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()

    def gather(self, line: bytes) -> None:
        """Keep a line, which ends with its line end, for the next `flush`."""
        lines = self._lines
        lines.append(line)
        if len(lines) >= _LARGEST_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered. It may be another thread that does it, and is doing it still."""
        lines = self._lines
        left: list[bytes] = []
        while lines and not left and self._writing.acquire(False):
            told: int | None = None
            try:
                before = self._lost
                batch = lines[:]
                del lines[: len(batch)]
                if self._regular:
                    self._put(b"".join(batch))
                elif left := self._put_pieces(batch):
                    lines[:0] = left
                if self._lost > before:
                    told = None if before else 0
                elif before and not left:
                    told, self._lost = before, 0
            finally:
                self._writing.release()
            if told is not None and self.trouble is not None:
                self.trouble(told, self._reason)

    def close(self) -> None:
        """Write what was kept, if its reader is quick now."""
        self._patience, self._asleep = self._patience or _PATIENCE, False
        self.flush()
        if self._fd >= 0 and self._fd != self._standard_fd:
            original.close(self._fd)
        self._fd = -1

    def _put_pieces(self, batch: list[bytes]) -> list[bytes]:
        """Write lines to what is no regular file; returns those to keep."""
        pieces = _pieces(batch)
        for number, piece in enumerate(pieces):
            if not self._put(b"".join(piece)):
                return self._keep([line for lines in pieces[number:] for line in lines])
        return []

    def _keep(self, lines: list[bytes]) -> list[bytes]:
        """As many of these lines as may be kept; the rest, which is the newest, is lost."""
        size = 0
        for number, line in enumerate(lines):
            size += len(line)
            if size > self._most_kept:
                self._lose(b"".join(lines[number:]), _ASLEEP)
                return lines[:number]
        return lines

    def _put(self, data: bytes) -> bool:
        """Write lines; False if none of them was written because the reader is behind.

        What there is no room for otherwise is lost; the next line begins on a line of its own.
        """
        if self._torn:
            data = b"\n" + data
        whole = len(data)
        # Opened by others, it may make us wait; not if there is room, and no more is written than that.
        limit = select.PIPE_BUF if self._waits else whole
        ready = not self._waits
        while data:
            try:
                if not ready and not self._reader_comes():
                    raise BlockingIOError
                written = original.write(self._fd, data[:limit] if limit < whole else data)
            except BlockingIOError:
                if not self._waits and self._reader_comes():
                    continue
                if len(data) == whole:
                    return False
                self._lose(data, _ASLEEP)
                return True
            except OSError as error:
                self._lose(data, error.strerror or str(error))
                self._mend()
                return True
            ended = data.rfind(b"\n", 0, written)
            self._torn = self._torn + written if ended < 0 else written - ended - 1
            self._asleep = False
            data = data[written:]
        return True

    def _reader_comes(self) -> bool:
        """Wait until there is room, or an error that write(2) will tell; not again before somebody read."""
        poll = original.poll()
        poll.register(self._fd, select.POLLOUT)
        if poll.poll(0 if self._asleep else self._patience * 1000):
            return True
        self._asleep = True
        return False

    def _mend(self) -> None:
        """Take back a part of a line, before another process puts its own behind it."""
        if not self._torn or not self._regular:
            return
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)  # where our own writing ended
            if end == os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, end - self._torn)
                self._torn = 0
        except OSError:
            pass  # then the next line begins on a line of its own, if it is ours

    def _lose(self, data: bytes, reason: str) -> None:
        self._lost += data.count(b"\n", 0, -1) + 1
        self._reason = reason

    def __del__(self) -> None:
        if self._fd >= 0 and self._fd != self._standard_fd:
            original.close(self._fd)

    @property
    def is_terminal(self) -> bool:
        try:
            return stat.S_ISCHR(os.fstat(self._fd).st_mode) and os.isatty(self._fd)
        except OSError:
            return False


def _without_waiting(fd: int) -> int:
    """A pipe or terminal opened once more, so that writing to it never waits; else the descriptor itself.

    O_NONBLOCK set on what we were given would be set for all who have it, the shell that started us too.
    """
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        pass  # closed, somebody else's, or without a reader
    return fd


def _pieces(lines: list[bytes]) -> list[list[bytes]]:
    """Lines that go together into what a pipe takes as a whole (pipe(7)); a regular file takes any size."""
    pieces = [[lines[0]]]
    size = len(lines[0])
    for line in lines[1:]:
        size += len(line)
        if size > select.PIPE_BUF:
            pieces.append([line])
            size = len(line)
        else:
            pieces[-1].append(line)
    return pieces


def wants_colour(file: LogFile) -> bool:
    """Colour on terminals, unless https://no-color.org says no."""
    return file.is_terminal and not os.environ.get("NO_COLOR")


class Log:
    """Writes events with fields.

    Args:
        file: where to.
        format: `console` or `json`.
        level: least important level to write.
        fields: what every event carries.

    Attributes:
        divert: takes events of any level instead of the file; False if it has no use for one.
        outlets: what takes events as well.
        errors: where apps may write lines of their own (`wsgi.errors`); None is standard error.
    """

    divert: Callable[[str, str, dict[str, Any]], bool] | None = None
    outlets: Sequence[Outlet] = ()
    errors: "ErrorStream | None" = None

    def __init__(self, file: LogFile, format: str, level: str, fields: dict[str, Any]) -> None:  # noqa: A002
        self._file = file
        self._console = format == "console"
        self._colour = wants_colour(file)
        self._least = LEVELS[level]
        self._fields = fields
        file.trouble = self._say_lost

    def event(self, level: str, name: str, **fields: Any) -> None:
        if self.divert is not None and self.divert(level, name, self._fields | fields):
            self._let_out(level, name, self._fields | fields)
        elif LEVELS[level] >= self._least:
            self.take(level, name, fields)

    def take(self, level: str, name: str, fields: dict[str, Any]) -> None:
        """Write an event, however important."""
        fields = self._fields | fields
        self.write(level, name, fields)
        self._let_out(level, name, fields)

    def write(self, level: str, name: str, fields: dict[str, Any]) -> None:
        """Write an event that carries all its fields, to the file and nowhere else."""
        if self._console:
            line = console_line(time.time(), level, name, fields, self._colour)
        else:
            line = json_line(time.time(), level, name, fields)
        self._file.write(line)

    def write_text(self, text: str) -> None:
        """Write lines that have a form of their own already."""
        self._file.write(text)

    def _let_out(self, level: str, name: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._least:
            for outlet in self.outlets:
                outlet(level, name, fields)

    def debug(self, name: str, **fields: Any) -> None:
        self.event("debug", name, **fields)

    def info(self, name: str, **fields: Any) -> None:
        self.event("info", name, **fields)

    def warning(self, name: str, **fields: Any) -> None:
        self.event("warning", name, **fields)

    def error(self, name: str, **fields: Any) -> None:
        self.event("error", name, **fields)

    def reopen(self) -> None:
        self._file.reopen()

    def close(self) -> None:
        self._file.close()

    def _say_lost(self, lines: int, reason: str) -> None:
        if lines:  # of ourselves there is nothing to be said before
            self.warning("log_lines_lost", lines=lines, reason=reason)


class ErrorStream(io.TextIOBase):
    """`wsgi.errors` (PEP 3333): what an app writes goes to the log unchanged, in whole lines.

    A line may be written in pieces, by several threads or greenlets at once: each has a piece of its own. A
    piece is written as a line when its thread or greenlet has ended, when it gets too long, and when there
    are too many others.

    Args:
        write_lines: takes text that ends with a line end; may be called by any thread, also during a run of
            the garbage collector.
    """

    def __init__(self, write_lines: Callable[[str], object]) -> None:
        self._write_lines = write_lines
        # By the thread or greenlet that writes; the oldest first.
        self._pieces: dict[weakref.ref[object], str] = {}
        self._thread = original.ThreadLocal()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        writer = weakref.ref(self._writer(), self._write_piece)
        whole, end, rest = (self._pieces.pop(writer, "") + text).rpartition("\n")
        if end:
            self._write_lines(whole + end)
        if rest:
            self._pieces[writer] = rest
            if len(rest) > _LONGEST_PIECE:
                self._write_piece(writer)
            elif len(self._pieces) > _MOST_PIECES:
                self._write_piece(list(self._pieces)[0])  # noqa: RUF015 - atomic, unlike an iterator
        return len(text)

    def flush(self) -> None:
        """Write the piece of the calling thread or greenlet as a line."""
        self._write_piece(weakref.ref(self._writer()))

    def flush_all(self) -> None:
        """Write the pieces of all threads and greenlets."""
        for writer in list(self._pieces):
            self._write_piece(writer)

    def _writer(self) -> object:
        """An object that lives as long as the calling thread or greenlet."""
        if (greenlet := sys.modules.get("greenlet")) is not None:
            return cast("object", greenlet.getcurrent())
        try:
            return self._thread.token
        except AttributeError:
            token = self._thread.token = _Token()
            return token

    def _write_piece(self, writer: weakref.ref[object]) -> None:
        if rest := self._pieces.pop(writer, ""):
            self._write_lines(f"{rest}\n")


class _Token:
    """Stands for a thread."""


def resolve_format(log_format: str, terminal: bool) -> str:
    """`auto` to `console` on a terminal and `json` elsewhere."""
    if log_format != "auto":
        return log_format
    return "console" if terminal else "json"
