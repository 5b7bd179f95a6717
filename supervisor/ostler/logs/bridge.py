"""The loggers `gunicorn.error` and `gunicorn.access` of the standard library's logging.

Apps use their handlers and levels for their own loggers, configurations give them others. As they are made
here their handlers write to our logs, in our format. Where an app or `logconfig` has changed them, they get
what happens in this process as records: events as `gunicorn.error`'s, answered requests as
`gunicorn.access`'s with all atoms as `record.args`. For events that is looked at anew each time, as it costs
little; an app may well configure logging while it is loaded.

Made once, in the fork server, before user code looks for them. Workers inherit them, and whatever has their
handlers by then; only what these write to is changed.
"""

import logging
import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ostler.logs.access import Answered, all_atoms
from ostler.logs.lean import Log, LogFile
from ostler.logs.render import LEVELS, indented, plain_text, traceback_of
from ostler.osapi import original
from ostler.terminal import one_line
from ostler.text import trace_of

ERROR, ACCESS = "gunicorn.error", "gunicorn.access"

_error, _access = logging.getLogger(ERROR), logging.getLogger(ACCESS)
# By number, so that levels of an app's own making find the nearest below.
_NAMES = sorted(((number, name) for name, number in LEVELS.items()), reverse=True)
# Events that carry these would hide what every record has.
_TAKEN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _Ours(logging.Handler):
    """Marks handlers of this module; they stand for files that are not theirs to close."""


class ErrorHandler(_Ours):
    """Writes records to the log of this process.

    A formatter, if it was given one, decides how; else they look like all its lines.
    """

    log: Log | None = None

    def emit(self, record: logging.LogRecord) -> None:
        log = self.log
        if log is None:
            return
        try:
            if self.formatter is not None:
                log.write_text(self.format(record))
                return
            level = next((name for number, name in _NAMES if record.levelno >= number), "debug")
            own = getattr(record, "ostler", None)
            if own is not None:
                log.write(level, *own)  # its outlets have it already
            else:
                log.take(level, *_as_event(record))
        except Exception:  # noqa: BLE001 - what a handler does
            self.handleError(record)


class AccessHandler(_Ours):
    """Writes records to the access log of this process."""

    file: LogFile | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.file is not None:
            try:
                self.file.write(one_line(self.format(record)))
            except Exception:  # noqa: BLE001 - what a handler does
                self.handleError(record)


_error_handler, _access_handler = ErrorHandler(), AccessHandler()


def set_up(level: str, access: bool) -> None:
    """Make the loggers, as gunicorn does: with a handler each, for the access log if there is one.

    Handlers that they have already stay.
    """
    _error.propagate = _access.propagate = False
    _error.setLevel(LEVELS[level])
    _access.setLevel(logging.INFO)
    if _error_handler not in _error.handlers:
        _error.addHandler(_error_handler)
    if access and _access_handler not in _access.handlers:
        _access.addHandler(_access_handler)


def attach(log: Log) -> None:
    """Have `gunicorn.error`'s handler write to the log of this process, and that know of the loggers."""
    _error_handler.log = log
    log.divert = take_event


def attach_access(file: LogFile | None) -> None:
    """The same for the access log."""
    _access_handler.file = file


def diverted() -> bool:
    """Whether events go to `gunicorn.error` and not, or not only, to our log."""
    if _error.disabled:
        # Django's settings say `disable_existing_loggers` more often than anybody means it. What goes wrong
        # in a server must stand somewhere.
        return False
    return bool(_error.handlers != [_error_handler] or _error.propagate or _error.filters)


def access_diverted() -> bool:
    """Whether requests go to `gunicorn.access` and not, or not only, to our access log."""
    if _access.disabled:
        return False
    handlers = _access.handlers not in ([], [_access_handler])
    return bool(handlers or _access.propagate or _access.filters)


def take_event(level: str, name: str, fields: dict[str, Any], supervisor: int | None = None) -> bool:
    """Give an event to `gunicorn.error`; False if it is for our own log.

    Args:
        supervisor: its pid, if the event is its.
    """
    if not diverted():
        return False
    if _error.isEnabledFor(LEVELS[level]):
        try:
            record = _event_record(level, name, fields)
            if supervisor is not None:
                record.process, record.processName = supervisor, "supervisor"
            _error.handle(record)
        except Exception:  # noqa: BLE001 - a handler's or a filter's own; the event must not be lost for that
            _tell_failure(ERROR)
            return False
    return True


def access_to_logger(format: str, file: Answered | None) -> Answered:  # noqa: A002
    """What gives requests to `gunicorn.access`; `file`: takes them where that has failed."""

    def answered(*request: Any) -> None:
        if not _access.isEnabledFor(logging.INFO):
            return
        try:
            atoms = all_atoms(*request)
            record = _access.makeRecord(ACCESS, logging.INFO, "ostler", 0, format, (atoms,), None)
            _access.handle(record)
        except Exception:  # noqa: BLE001 - as above
            _tell_failure(ACCESS)
            if file is not None:
                file(*request)

    return answered


_failures: set[str] = set()


def _tell_failure(logger: str) -> None:
    """Once for each: what fails for one record fails for all."""
    if logger not in _failures and (log := _error_handler.log) is not None:
        _failures.add(logger)
        log.take("error", "logger_failed", {"logger": logger, "traceback": traceback.format_exc()})


def reopen_files() -> None:
    """Open the files of all handlers anew, as logrotate asks; may be called from a signal handler."""
    loggers = [logging.root, *list(logging.root.manager.loggerDict.values())]
    handlers = {handler for logger in loggers for handler in getattr(logger, "handlers", ())}
    for handler in handlers:
        stream = getattr(handler, "stream", None)
        if isinstance(handler, logging.FileHandler) and stream is not None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            try:
                fd = stream.fileno()
                new = os.open(handler.baseFilename, flags, 0o666)
            except (OSError, ValueError):
                continue  # the old file stays in use
            # The stream stays: whatever thread is about to write to it, this very one perhaps, can do so.
            os.dup2(new, fd, inheritable=False)
            original.close(new)


def write_errors(own: Callable[[str], object]) -> Callable[[str], None]:
    """What takes an app's lines for `wsgi.errors`: the streams of `gunicorn.error`'s handlers.

    Args:
        own: takes them where that has none but ours.
    """

    def write_lines(text: str) -> None:
        streams = [
            (handler, handler.stream)
            for handler in _error.handlers
            if isinstance(handler, logging.StreamHandler) and handler.stream is not None
        ]
        if not streams or _error_handler in _error.handlers:
            own(text)
        for handler, stream in streams:
            with handler.lock or nullcontext():
                try:
                    stream.write(text)
                    stream.flush()
                except (OSError, ValueError):
                    pass  # closed or full: what can't be logged is no reason to fail

    return write_lines


# -- records ---------------------------------------------------------------------------------------------


def _event_record(level: str, name: str, fields: dict[str, Any]) -> logging.LogRecord:
    """An event as a record: text as its message, each field as an attribute, a traceback as `exc_text`."""
    plain = {key: value for key, value in fields.items() if key not in ("traceback", "stack")}
    record = _error.makeRecord(ERROR, LEVELS[level], "ostler", 0, plain_text(name, plain), (), None)
    if trace := traceback_of(fields):
        record.exc_text = indented(trace)
    for key, value in plain.items():
        if key not in _TAKEN:
            setattr(record, key, value)
    record.ostler = (name, fields)
    return record


def _as_event(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """A record of an app's as an event that is called like its message."""
    parts = []
    if record.exc_info:
        error = record.exc_info[1]
        parts.append(trace_of(error) if error is not None else "NoneType: None")
    elif record.exc_text:
        parts.append(record.exc_text)
    if record.stack_info:
        parts.append(record.stack_info)
    fields: dict[str, Any] = {} if record.name == ERROR else {"logger": record.name}
    if parts:
        fields["traceback"] = "\n".join(parts)
    return record.getMessage(), fields
