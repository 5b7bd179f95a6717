"""All that one worker or fork server writes to: files, loggers, syslog, statsd; see the settings for each."""

import sys
from typing import Any

from ostler.logs import bridge, logconfig
from ostler.logs.access import AccessLog, Answered, compile_format
from ostler.logs.lean import ErrorStream, Log, LogFile
from ostler.logs.statsd import statsd_of
from ostler.logs.streams import capture
from ostler.logs.syslog import syslog_of
from ostler.settings.table import Settings


class Outlets:
    """Opens them; what logging's handlers write goes there from now on, too.

    Args:
        settings: of the generation.
        log_format: `console` or `json`.
        fields: what every event carries.

    Attributes:
        log: takes events.

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
        self.log.outlets = [outlet.event for outlet in (self._syslog, self._statsd) if outlet is not None]
        if settings.errorlog != "-" or logconfig.is_given(settings):
            self.log.errors = ErrorStream(bridge.write_errors(self._write_errors))
        bridge.attach(self.log)
        self._capture()

    def open_access(self) -> AccessLog | None:
        """What is to be told of requests; None if nobody wants to know. To be called once, when the app is
        loaded: it may have changed where that goes."""
        settings, syslog, statsd = self._settings, self._syslog, self._statsd
        wanted = bool(settings.accesslog) or logconfig.is_given(settings)
        diverted = wanted and bridge.access_diverted()
        file = LogFile(settings.accesslog, 1) if settings.accesslog else None
        bridge.attach_access(file)
        requests: list[Answered] = [statsd.answered] if statsd is not None else []
        flushes = [statsd.flush] if statsd is not None else []
        if diverted:
            fallback = None if file is None else compile_format(settings.access_log_format, file.gather)
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
        """Open all files anew, as logrotate asks; may be called from a signal handler."""
        self.log.reopen()
        self._capture()
        if self._access_file is not None:
            self._access_file.reopen()
        bridge.reopen_files()

    def close(self) -> None:
        """Write what is left and let go of all files and sockets."""
        if self.log.errors is not None:
            self.log.errors.flush_all()
        self.log.close()
        if self._access is not None:
            self._access.close()
        if self._access_file is not None:
            self._access_file.close()
        for outlet in (self._syslog, self._statsd):
            if outlet is not None:
                outlet.close()

    def drop(self) -> None:
        """Let go of all that a fork has brought along; whose it is will write what is left."""
        if self._statsd is not None:
            self._statsd.forget()
        self.close()

    def descriptors(self) -> set[int]:
        """Of sockets, which `close` will close."""
        return {self._syslog.fileno()} - {-1} if self._syslog is not None else set()

    def _capture(self) -> None:
        if self._settings.capture_output and self._settings.errorlog != "-":
            try:
                capture(self._settings.errorlog)
            except OSError:
                pass  # it can't be written as a log either; what is printed goes where it went before

    def _write_errors(self, text: str) -> None:
        if self._settings.errorlog == "-":
            sys.stderr.write(text)
            sys.stderr.flush()
        else:
            self._file.gather(text.encode("utf-8", "backslashreplace"))
            self._file.flush()
