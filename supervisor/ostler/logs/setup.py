"""structlog for the supervisor. Workers and the fork server use `worker_log`, with the same form of lines."""

import atexit
import sys
import time
from collections.abc import Callable
from typing import Any

from ostler.errors import SettingError
from ostler.logs import gunicorn_format
from ostler.logs.logfile import LogFile
from ostler.logs.render import LEVELS, console_line, json_line
from ostler.logs.worker_log import resolve_format, wants_colour

# structlog imports rich where it is installed, for a renderer that is not used here. That would be a tenth
# of the supervisor's start.
_without_rich = "rich" not in sys.modules
if _without_rich:
    sys.modules["rich"] = None  # type: ignore[assignment]  # makes its import raise ImportError
try:
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger
finally:
    if _without_rich:
        del sys.modules["rich"]

Logger = FilteringBoundLogger

# The supervisor must not wait for the reader of its log. It keeps this many bytes until the reader goes on;
# the supervisor calls the file's `flush` from time to time.
_KEPT = 256 * 1024
_file: LogFile | None = None

LineHandler = Callable[[str, str, dict[str, Any], str], bool]
"""Takes the level, name, fields and line of an event; True if the line need not be written."""
_handler: LineHandler | None = None


class _Line:
    """The last structlog processor: formats the event as a line."""

    def __init__(self, format: str, colour: bool, shown: str) -> None:  # noqa: A002
        self._format = format
        self._colour = colour
        self._shown = LEVELS[shown]

    def __call__(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
        fields: dict[str, Any] = dict(event_dict)
        event = str(fields.pop("event", ""))
        if self._format == "console":
            line = console_line(time.time(), method, event, fields, self._colour)
        elif self._format == gunicorn_format.FORMAT:
            line = gunicorn_format.line(time.time(), method, event, fields)
        else:
            line = json_line(time.time(), method, event, fields)
        handled = _handler is not None and _handler(method, event, fields, line)
        if handled or not line or LEVELS[method] < self._shown:
            raise structlog.DropEvent
        return line


class _Writer:
    """structlog's innermost logger: every level appends a line to one file."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        self._file.write(message)

    debug = info = warning = error = critical = msg


def set_up(errorlog: str, log_format: str, level: str, shown: str = "debug") -> LogFile:
    """Configure structlog; may be called again. Returns the log's file, to reopen it.

    Args:
        level: of the events that the handler gets; shown: of those that are written as lines.

    Raises:
        SettingError: the file can't be opened.
    """
    try:
        file = LogFile(errorlog, 2, reader_timeout=0.0, kept=_KEPT)
    except OSError as error:
        raise SettingError("errorlog", f"can't open {errorlog!r}: {error.strerror}") from None
    format_ = resolve_format(log_format, file.is_terminal)
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            _rename_exception,
            _Line(format_, wants_colour(file), shown),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_args: _Writer(file),
        cache_logger_on_first_use=False,
    )
    file.on_lost = _report_lost
    _replace(file)
    return file


def set_handler(handler: LineHandler | None) -> None:
    """Have `handler` called for each event from now on."""
    global _handler
    _handler = handler


def set_level(level: str) -> None:
    """Log events that are at least as important as `level` from now on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]))


def _replace(file: LogFile) -> None:
    """Write the lines that the previous file keeps now, and those of this file at exit."""
    global _file
    if _file is not None:
        atexit.unregister(_file.close)
        _file.close()
    atexit.register(file.close)
    _file = file


def _report_lost(lines: int, reason: str) -> None:
    if lines:
        get_logger().warning("log_lines_lost", lines=lines, reason=reason)


def _rename_exception(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    if trace := event_dict.pop("exception", None):
        event_dict["traceback"] = trace
    return event_dict


def get_logger() -> Logger:
    logger: Logger = structlog.get_logger()
    return logger
