"""The log of workers and the fork server: structlog's looks without its imports (it loads asyncio).

Lines are written whole to a descriptor opened for appending, so lines of many processes do not mix. A log
that can't be written (disk full, reader gone) is no reason to stop serving: the line is lost.

Lines can be gathered and written together, which costs one write(2) instead of one each. Threads share the
list without a lock: they only append to it, and only the one that holds the try-lock takes lines out. Who
does not get that lock need not wait: its holder looks again after it has let go.
"""

import os
import select
import stat
import threading
import time
from collections.abc import Iterator
from typing import Any

from supervisor.logs.render import LEVELS, console_line, json_line

# Lines; some 15 KiB of an access log. More would save next to nothing and be lost in a crash.
_LARGEST_BATCH = 64


class LogFile:
    """A file to append lines to; `-` is an open standard descriptor.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: str, standard_fd: int) -> None:
        self._path = path
        self._standard_fd = standard_fd
        self._fd = self._open()
        self._regular = _is_regular(self._fd)
        self._lines: list[bytes] = []
        self._writing = threading.Lock()
        self._torn = False  # the last thing written was a part of a line

    def _open(self) -> int:
        if self._path == "-":
            return self._standard_fd
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def reopen(self) -> None:
        """Open the path anew, as logrotate asks with USR1; on failure the old file stays in use."""
        if self._path == "-":
            return
        self.flush()
        try:
            new = self._open()
        except OSError:
            return
        # The number stays: threads may be writing to it (dup3 replaces it atomically).
        os.dup2(new, self._fd, inheritable=False)
        os.close(new)
        self._regular = _is_regular(self._fd)
        self._torn = False

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self.flush()
        if self._path != "-":
            os.close(self._fd)

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
        while lines and self._writing.acquire(False):
            try:
                batch = lines[:]
                del lines[: len(batch)]
                if self._regular:
                    self._put(b"".join(batch))
                else:
                    for piece in _pieces(batch):
                        self._put(piece)
            finally:
                self._writing.release()

    def _put(self, data: bytes) -> None:
        """Write lines. What there is no room for is lost; the next line begins on a line of its own."""
        if self._torn:
            data = b"\n" + data
        try:
            while (written := os.write(self._fd, data)) < len(data):
                self._torn = data[written - 1 : written] != b"\n"
                data = data[written:]
            self._torn = False
        except OSError:
            pass  # see above

    @property
    def is_terminal(self) -> bool:
        try:
            return stat.S_ISCHR(os.fstat(self._fd).st_mode) and os.isatty(self._fd)
        except OSError:
            return False


def _is_regular(fd: int) -> bool:
    try:
        return stat.S_ISREG(os.fstat(fd).st_mode)
    except OSError:
        return False


def _pieces(lines: list[bytes]) -> Iterator[bytes]:
    """Lines put together to what a pipe takes as a whole (pipe(7)); a regular file takes any size."""
    piece: list[bytes] = []
    size = 0
    for line in lines:
        size += len(line)
        if piece and size > select.PIPE_BUF:
            yield b"".join(piece)
            piece, size = [], len(line)
        piece.append(line)
    yield b"".join(piece)


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
    """

    def __init__(self, file: LogFile, format: str, level: str, fields: dict[str, Any]) -> None:  # noqa: A002
        self._file = file
        self._console = format == "console"
        self._colour = wants_colour(file)
        self._least = LEVELS[level]
        self._fields = fields

    def event(self, level: str, name: str, **fields: Any) -> None:
        if LEVELS[level] < self._least:
            return
        fields = self._fields | fields
        if self._console:
            line = console_line(time.time(), level, name, fields, self._colour)
        else:
            line = json_line(time.time(), level, name, fields)
        self._file.write(line)

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


def resolve_format(log_format: str, terminal: bool) -> str:
    """`auto` to `console` on a terminal and `json` elsewhere."""
    if log_format != "auto":
        return log_format
    return "console" if terminal else "json"
