"""structlog for the supervisor. Workers and the fork server have `lean`, which looks the same."""

import time
from typing import Any

import structlog
from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

from supervisor.errors import SettingError
from supervisor.logs.lean import LogFile, resolve_format, wants_colour
from supervisor.logs.render import LEVELS, console_line, json_line

Logger = FilteringBoundLogger


class _Line:
    """The last structlog processor: the event as a line."""

    def __init__(self, console: bool, colour: bool) -> None:
        self._console = console
        self._colour = colour

    def __call__(self, _logger: WrappedLogger, method: str, event_dict: EventDict) -> str:
        fields: dict[str, Any] = dict(event_dict)
        event = str(fields.pop("event", ""))
        if self._console:
            return console_line(time.time(), method, event, fields, self._colour)
        return json_line(time.time(), method, event, fields)


class _Writer:
    """structlog's innermost logger: every level appends a line to one file."""

    def __init__(self, file: LogFile) -> None:
        self._file = file

    def msg(self, message: str) -> None:
        self._file.write(message)

    debug = info = warning = error = critical = msg


def set_up(errorlog: str, log_format: str, level: str) -> LogFile:
    """Configure structlog; may be called again. Returns the log's file, to reopen it.

    Raises:
        SettingError: the file can't be opened.
    """
    try:
        file = LogFile(errorlog, 2)
    except OSError as error:
        raise SettingError("errorlog", f"can't open {errorlog!r}: {error.strerror}") from None
    console = resolve_format(log_format, file.is_terminal) == "console"
    structlog.configure(
        processors=[
            structlog.processors.format_exc_info,
            _rename_exception,
            _Line(console, wants_colour(file)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_args: _Writer(file),
        cache_logger_on_first_use=False,
    )
    return file


def _rename_exception(_logger: WrappedLogger, _method: str, event_dict: EventDict) -> EventDict:
    if trace := event_dict.pop("exception", None):
        event_dict["traceback"] = trace
    return event_dict


def get_logger() -> Logger:
    logger: Logger = structlog.get_logger()
    return logger
