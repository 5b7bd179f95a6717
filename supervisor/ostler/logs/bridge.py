"""The loggers `gunicorn.error` and `gunicorn.access` of the standard library's logging.

Apps use their handlers and levels for their own loggers, and configurations replace them. As they are made
here, their handlers write to Ostler's logs, in Ostler's format. If the app or `logconfig` has changed them,
they get the events of this process as records of `gunicorn.error`, and answered requests as records of
`gunicorn.access` with all atoms as `record.args`. For events this is checked each time, as it costs little:
an app may configure logging while it is loaded.

They are made once, in the fork server, before user code can look for them. Workers inherit them, and all
loggers that have their handlers by then; only the files that the handlers write to are replaced.
"""

import logging
import os
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from ostler.logs import gunicorn_format
from ostler.logs.access_format import Answered, all_atoms
from ostler.logs.access_json import FORMAT as JSON
from ostler.logs.access_json import is_json, json_of
from ostler.logs.logfile import LogFile
from ostler.logs.render import LEVELS, indented, plain_text, traceback_of
from ostler.logs.worker_log import Log
from ostler.osapi import original
from ostler.terminal import one_line
from ostler.text import trace_of

ERROR, ACCESS = "gunicorn.error", "gunicorn.access"

_error, _access = logging.getLogger(ERROR), logging.getLogger(ACCESS)
# By number, so that an app's own levels map to the nearest one below.
_NAMES = sorted(((number, name) for name, number in LEVELS.items()), reverse=True)
# Fields with these names would hide attributes of every record.
_RESERVED = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class _OwnHandler(logging.Handler):
    """Base of the handlers of this module; they do not own the files that they write to."""


class ErrorHandler(_OwnHandler):
    """Writes records to the log of this process.

    With a formatter, that formats them; else they have the form of the log.
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
            own = getattr(record, "ostler", ())
            if own is None:
                return  # a further record of an event
            if own:
                log.write(level, own[0], own[1], record.process)  # the sinks have it already
            else:
                log.take_message(level, *_as_event(record))
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)


class AccessHandler(_OwnHandler):
    """Writes records to the access log of this process."""

    file: LogFile | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.file is not None:
            try:
                self.file.write(one_line(self.format(record)))
            except Exception:  # noqa: BLE001 - as every handler of logging does
                self.handleError(record)


_error_handler, _access_handler = ErrorHandler(), AccessHandler()


_as_gunicorn = False


def set_up(level: str, access: bool, log_format: str = "") -> None:
    """Make the loggers, as gunicorn does: with a handler each, for the access log if there is one.

    Handlers that they have already stay. log_format: `gunicorn` makes events gunicorn's lines.
    """
    global _as_gunicorn
    _as_gunicorn = log_format == gunicorn_format.FORMAT
    _error.propagate = _access.propagate = False
    _error.setLevel(LEVELS[level])
    _access.setLevel(logging.INFO)
    if _error_handler not in _error.handlers:
        _error.addHandler(_error_handler)
    if access and _access_handler not in _access.handlers:
        _access.addHandler(_access_handler)


def attach(log: Log) -> None:
    """Have the handler of `gunicorn.error` write to the log of this process, and `log` use the loggers."""
    _error_handler.log = log
    log.divert = take_event


def attach_access(file: LogFile | None) -> None:
    """The same for the access log."""
    _access_handler.file = file


def diverted() -> bool:
    """Whether events go to `gunicorn.error`, in the place of Ostler's log or besides it."""
    if _error.disabled:
        # Many Django settings have `disable_existing_loggers` by mistake. A server's errors must be logged
        # somewhere.
        return False
    return bool(_error.handlers != [_error_handler] or _error.propagate or _error.filters)


def access_diverted() -> bool:
    """Whether requests go to `gunicorn.access`, in the place of Ostler's access log or besides it."""
    if _access.disabled:
        return False
    handlers = _access.handlers not in ([], [_access_handler])
    return bool(handlers or _access.propagate or _access.filters)


def take_event(level: str, name: str, fields: dict[str, Any], supervisor: int | None = None) -> bool:
    """Pass an event to `gunicorn.error`; False if it is for Ostler's own log.

    Args:
        supervisor: the supervisor's pid, if it is an event of the supervisor.
    """
    if not diverted():
        return False
    if _error.isEnabledFor(LEVELS[level]):
        try:
            for record in _event_records(level, name, fields, supervisor or os.getpid()):
                if supervisor is not None:
                    record.processName = "supervisor"
                _error.handle(record)
        except Exception:  # noqa: BLE001 - raised by a handler or a filter; the event must not be lost
            _report_failure(ERROR)
            return False
    return True


def access_to_logger(format: str, file: Answered | None) -> Answered:  # noqa: A002
    """A function that passes requests to `gunicorn.access`; `file`: takes them if that fails.

    Also with the format `json` the atoms are the record's arguments; its message is then the line.
    """
    as_json = is_json(format)

    def answered(*request: Any) -> None:
        if not _access.isEnabledFor(logging.INFO):
            return
        try:
            atoms = all_atoms(*request)
            message = format
            if as_json:
                message, atoms[JSON] = f"%({JSON})s", json_of(*request)
            record = _access.makeRecord(ACCESS, logging.INFO, "ostler", 0, message, (atoms,), None)
            _access.handle(record)
        except Exception:  # noqa: BLE001 - as above
            _report_failure(ACCESS)
            if file is not None:
                file(*request)

    return answered


_failures: set[str] = set()


def _report_failure(logger: str) -> None:
    """Log a failing logger, once for each: if it fails for one record it fails for all."""
    if logger not in _failures and (log := _error_handler.log) is not None:
        _failures.add(logger)
        log.take("error", "logger_failed", {"logger": logger, "traceback": traceback.format_exc()})


def reopen_files() -> None:
    """Open the files of all handlers again, as logrotate asks; may be called from a signal handler."""
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
            # The stream stays: a thread may be about to write to it, perhaps even this thread.
            os.dup2(new, fd, inheritable=False)
            original.close(new)


def write_errors(own: Callable[[str], object]) -> Callable[[str], None]:
    """A function that writes an app's lines for `wsgi.errors` to the streams of `gunicorn.error`'s handlers.

    Args:
        own: takes the lines if that has only the handler of this module.
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
                    pass  # closed or full: the app must not fail because of the log

    return write_lines


# -- records ---------------------------------------------------------------------------------------------


def _event_records(level: str, name: str, fields: dict[str, Any], pid: int) -> list[logging.LogRecord]:
    """An event as a record: its text as message, each field as an attribute, a traceback as `exc_text`.

    A hook's message is the message of its record, unchanged. In gunicorn's format there may be several
    records, or none. pid: of the process whose event it is.
    """
    plain = {key: value for key, value in fields.items() if key not in ("traceback", "stack")}
    if name == "hook":
        found = [(level, str(fields.get("message")))]
    elif _as_gunicorn:
        found = [(text.level, text.text) for text in gunicorn_format.texts(level, name, fields, pid)]
    else:
        found = [(level, plain_text(name, plain))]
    records = []
    for record_level, text in found:
        record = _error.makeRecord(ERROR, LEVELS[record_level], "ostler", 0, text, (), None)
        for key, value in plain.items():
            if key not in _RESERVED:
                setattr(record, key, value)
        record.process = pid
        records.append(record)
    if records:
        # Once, for the handlers of this module, which write an event and not a text.
        records[0].ostler = (name, fields)
        for record in records[1:]:
            record.ostler = None
        if trace := traceback_of(fields):
            records[-1].exc_text = indented(trace)
    return records


def _as_event(record: logging.LogRecord) -> tuple[str, dict[str, Any]]:
    """An app's record as an event, whose name is the message."""
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
