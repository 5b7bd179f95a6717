"""All log sinks of one worker or fork server: files, loggers, syslog, statsd."""

import sys
from typing import Any

from ostler.logs import bridge, logconfig
from ostler.logs.access import AccessLog, renderer
from ostler.logs.access_format import Answered
from ostler.logs.error_stream import ErrorStream
from ostler.logs.logfile import LogFile
from ostler.logs.standard_streams import capture
from ostler.logs.statsd import statsd_of
from ostler.logs.syslog import syslog_of
from ostler.logs.worker_log import Log
from ostler.settings.table import Settings


class LogSinks:
    """Opens the sinks, and has the loggers of `bridge` write to them, too.

    Args:
        settings: of the generation.
        log_format: `console`, `json` or `gunicorn`.
        fields: fields of every event.

    Attributes:
        log: the log for events.

    Raises:
        OSError: a file can't be opened.
    """

    def __init__(self, settings: Settings, log_format: str, fields: dict[str, Any]) -> None:
        self._settings = settings
        self._file = LogFile(settings.errorlog, 2)
        self.log = Log(self._file, log_format, settings.loglevel, fields)
        self._access: AccessLog | None = None
        self._access_file: LogFile | None = None
        self._syslog = syslog_of(settings, self.log.warning)
        self._statsd = statsd_of(settings)
        self.log.sinks = [sink.event for sink in (self._syslog, self._statsd) if sink is not None]
        if settings.errorlog != "-" or logconfig.is_given(settings):
            self.log.errors = ErrorStream(bridge.write_errors(self._write_errors))
        bridge.attach(self.log)
        self._capture()

    def open_access(self) -> AccessLog | None:
        """The access log; None if no sink gets requests.

        To be called once, when the app is loaded: the app may have configured the loggers.
        """
        settings, syslog, statsd = self._settings, self._syslog, self._statsd
        wanted = bool(settings.accesslog) or logconfig.is_given(settings)
        diverted = wanted and bridge.access_diverted()
        file = LogFile(settings.accesslog, 1) if settings.accesslog else None
        bridge.attach_access(file)
        requests: list[Answered] = [statsd.answered] if statsd is not None else []
        flushes = [statsd.flush] if statsd is not None else []
        if diverted:
            fallback = None if file is None else renderer(settings.access_log_format, file.gather)
            requests.append(bridge.access_to_logger(settings.access_log_format, fallback))
            if file is not None:
                flushes.append(file.flush)
        lines = [syslog.access] if syslog and not settings.disable_redirect_access_to_syslog else []
        own = None if diverted else file
        if own is None and not (lines or requests):
            return None
        self._access = AccessLog(own, settings.access_log_format, self.log, lines, requests, flushes)
        self._access_file = file
        return self._access

    def reopen(self) -> None:
        """Open all files again, as logrotate asks; may be called from a signal handler."""
        self.log.reopen()
        self._capture()
        if self._access_file is not None:
            self._access_file.reopen()
        bridge.reopen_files()

    def close(self) -> None:
        """Write remaining lines and close all files and sockets."""
        if self.log.errors is not None:
            self.log.errors.flush_all()
        self.log.close()
        if self._access is not None:
            self._access.close()
        if self._access_file is not None:
            self._access_file.close()
        for sink in (self._syslog, self._statsd):
            if sink is not None:
                sink.close()

    def drop(self) -> None:
        """Close all copies that a fork has made; the parent writes the remaining lines."""
        if self._statsd is not None:
            self._statsd.drop()
        self.close()

    def descriptors(self) -> set[int]:
        """The descriptors of the sockets that `close` closes."""
        return {self._syslog.fileno()} - {-1} if self._syslog is not None else set()

    def _capture(self) -> None:
        if self._settings.capture_output and self._settings.errorlog != "-":
            try:
                capture(self._settings.errorlog)
            except OSError:
                pass  # the log can't be written either; the streams stay as they are

    def _write_errors(self, text: str) -> None:
        if self._settings.errorlog == "-":
            sys.stderr.write(text)
            sys.stderr.flush()
        else:
            self._file.gather(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
