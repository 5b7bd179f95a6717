"""The log of workers and the fork server: structlog's looks without its imports (it loads asyncio).

Lines are written by one write(2) to a descriptor opened for appending, so lines of many processes do not
mix. A log that can't be written (disk full, reader gone) is no reason to stop serving: the line is lost.
"""

import os
import stat
import time
from typing import Any

from supervisor.logs.render import LEVELS, console_line, json_line


class LogFile:
    """A file to append lines to; `-` is an open standard descriptor.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(self, path: str, standard_fd: int) -> None:
        self._path = path
        self._standard_fd = standard_fd
        self._fd = self._open()

    def _open(self) -> int:
        if self._path == "-":
            return self._standard_fd
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def reopen(self) -> None:
        """Open the path anew, as logrotate asks with USR1; on failure the old file stays in use."""
        if self._path == "-":
            return
        try:
            new = self._open()
        except OSError:
            return
        # The number stays: threads may be writing to it (dup3 replaces it atomically).
        os.dup2(new, self._fd, inheritable=False)
        os.close(new)

    def write(self, line: str) -> None:
        try:
            os.write(self._fd, line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError:
            pass  # see above

    @property
    def is_terminal(self) -> bool:
        try:
            return stat.S_ISCHR(os.fstat(self._fd).st_mode) and os.isatty(self._fd)
        except OSError:
            return False


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


def resolve_format(log_format: str, terminal: bool) -> str:
    """`auto` to `console` on a terminal and `json` elsewhere."""
    if log_format != "auto":
        return log_format
    return "console" if terminal else "json"
