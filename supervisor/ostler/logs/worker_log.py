"""The log of workers and the fork server: the form of structlog's, without its imports (it loads asyncio)."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from ostler.logs import gunicorn_format
from ostler.logs.error_stream import ErrorStream
from ostler.logs.logfile import LogFile
from ostler.logs.render import LEVELS, console_line, json_line

EventSink = Callable[[str, str, dict[str, Any]], object]
"""Takes an event: its level, its name, its fields."""


def wants_colour(file: LogFile) -> bool:
    """Colour on terminals, unless NO_COLOR is set (https://no-color.org)."""
    return file.is_terminal and not os.environ.get("NO_COLOR")


class Log:
    """Writes events with fields.

    Args:
        file: where lines go.
        format: `console`, `json` or `gunicorn`.
        level: the least important level to write.
        fields: fields of every event.

    Attributes:
        divert: takes events of any level in the place of the file; returns False if the file is to get it.
        sinks: more sinks for events.
        errors: where apps write lines of their own (`wsgi.errors`); None: standard error.
    """

    divert: Callable[[str, str, dict[str, Any]], bool] | None = None
    sinks: Sequence[EventSink] = ()
    errors: "ErrorStream | None" = None

    def __init__(self, file: LogFile, format: str, level: str, fields: dict[str, Any]) -> None:  # noqa: A002
        self._file = file
        self._format = format
        self._colour = wants_colour(file)
        self._least = LEVELS[level]
        self._fields = fields
        file.on_lost = self._report_lost

    def event(self, level: str, name: str, **fields: Any) -> None:
        if self.divert is not None and self.divert(level, name, self._fields | fields):
            self._to_sinks(level, name, self._fields | fields)
        elif LEVELS[level] >= self._least:
            self.take(level, name, fields)

    def take(self, level: str, name: str, fields: dict[str, Any]) -> None:
        """Write an event of any level."""
        fields = self._fields | fields
        self.write(level, name, fields)
        self._to_sinks(level, name, fields)

    def take_message(self, level: str, message: str, fields: dict[str, Any]) -> None:
        """Write a message of an app, of any level. In formats that do not distinguish them it is an event."""
        if self._format != gunicorn_format.FORMAT:
            self.take(level, message, fields)
            return
        self._file.write(gunicorn_format.message_line(time.time(), level, message, fields))
        self._to_sinks(level, message, self._fields | fields)

    def write(self, level: str, name: str, fields: dict[str, Any], pid: int | None = None) -> None:
        """Write an event that has all its fields, only to the file. pid: of its process, if not this one."""
        if self._format == "console":
            line = console_line(time.time(), level, name, fields, self._colour)
        elif self._format == gunicorn_format.FORMAT:
            line = gunicorn_format.line(time.time(), level, name, fields, pid)
        else:
            line = json_line(time.time(), level, name, fields)
        if line:
            self._file.write(line)

    def write_text(self, text: str) -> None:
        """Write lines that are formatted already."""
        self._file.write(text)

    def _to_sinks(self, level: str, name: str, fields: dict[str, Any]) -> None:
        if LEVELS[level] >= self._least:
            for sink in self.sinks:
                sink(level, name, fields)

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

    def _report_lost(self, lines: int, reason: str) -> None:
        if lines:  # before that nothing can be written
            self.warning("log_lines_lost", lines=lines, reason=reason)


def resolve_format(log_format: str, terminal: bool) -> str:
    """`auto` to `console` on a terminal and `json` elsewhere."""
    if log_format != "auto":
        return log_format
    return "console" if terminal else "json"
