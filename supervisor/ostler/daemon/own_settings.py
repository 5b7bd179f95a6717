"""Applies the settings of the supervisor's own process: working folder, log, pid file, log level, sinks.

Settings that can't change later are taken from the first configuration. The others are also taken from later
generations as they come into effect: when a reload has ended, and when it is rolled back after its end.
"""

import os
from pathlib import Path
from typing import Any

from ostler.daemon.log_forwarder import LogForwarder
from ostler.daemon.process.detach import SHOWN, LauncherLink, log_gets_lost
from ostler.daemon.process.pidfile import PidFile
from ostler.daemon.reporting.journal import Journal
from ostler.daemon.start_request import RunRequest
from ostler.errors import SettingError
from ostler.logs.logfile import LogFile
from ostler.logs.opening import make_for_sharer, share_with
from ostler.logs.setup import set_level, set_up
from ostler.osapi.account import find_account
from ostler.osapi.process import silence
from ostler.settings.load import Loaded
from ostler.settings.opening_rights import account_for_pidfile, others_logs, rights_for
from ostler.settings.table import Settings, rows


class OwnSettings:
    """Applies settings to the supervisor's own process. Called only by the event loop's thread.

    Args:
        request: how the daemon was asked to start.
        journal: for warnings.
        forwarder: gets the settings of the sinks.

    Attributes:
        log_file: the supervisor's own log.
        must_detach: the configuration wants a daemon, and this process is to be its launcher.
        begun: the first configuration was applied.
    """

    def __init__(self, request: RunRequest, journal: Journal, forwarder: LogForwarder) -> None:
        self._request = request
        self._journal = journal
        self._forwarder = forwarder
        self._pidfile: PidFile | None = None
        self.log_file = _first_log(request.command_line, request.launcher is not None)
        self.must_detach = self.begun = False

    def begin(self, loaded: Loaded) -> None:
        """Apply the first configuration.

        Raises:
            SettingError: something can't be used, or `must_detach` is set.
        """
        settings, launcher = loaded.settings, self._request.launcher
        if settings.daemon and launcher is None:
            if self._request.stay is None:
                # The file says so, not the command line. Nothing was bound or written yet.
                self.must_detach = True
                raise SettingError("daemon", "this process is to be the launcher")
            self._warn(f"daemon: stays in the foreground, because {self._request.stay}")
        self.enter(loaded)
        if launcher is not None and log_gets_lost(settings):
            self._warn("errorlog: the log ends here; --error-logfile FILE keeps it")
        if settings.pidfile:
            pidfile = PidFile(settings.pidfile, account=account_for_pidfile(loaded))
            pidfile.write()
            self._pidfile = pidfile
        self.begun = True

    def _warn(self, problem: str) -> None:
        self._journal.record("warning", "configuration", {"problem": problem})

    def enter(self, loaded: Loaded) -> None:
        """Set the working folder and the log. Raises SettingError."""
        settings = loaded.settings
        if settings.chdir:
            # As in gunicorn, relative paths of logs, pid file and sockets count from there, in every process.
            try:
                with rights_for(loaded, "chdir"):
                    os.chdir(Path(self._request.folder, settings.chdir))
            except OSError as error:
                raise SettingError("chdir", f"can't enter {settings.chdir!r}: {error.strerror}") from None
        share_with(find_account(settings.user, settings.group, settings.initgroups), others_logs(loaded))
        only_terminal = settings.errorlog == "-" and not settings.enable_stdio_inheritance
        shown = SHOWN if self._request.launcher is not None and only_terminal else "debug"
        self._open_log(settings, shown)

    def _open_log(self, settings: Settings, shown: str = "debug") -> None:
        self.log_file = set_up(settings.errorlog, settings.log_format, settings.loglevel, shown)
        self._forwarder.settle(settings, self.log_file)

    def follow(self, settings: Settings) -> None:
        """Apply what a reload, or its roll-back, may have changed."""
        set_level(settings.loglevel)
        self._forwarder.follow(settings)

    def leave_launcher(self, launcher: LauncherLink, settings: Settings) -> None:
        """The daemon serves: close the terminal, and let the launcher end."""
        self.log_file.flush()
        kept = settings.enable_stdio_inheritance
        silence(outputs=not kept)
        if settings.errorlog == "-" and not kept:
            self._open_log(settings)
        launcher.serving()

    def reopen_logs(self, loaded: Loaded | None) -> None:
        """After logrotate. loaded: the current settings."""
        self.log_file.reopen()
        if loaded is not None and "accesslog" not in loaded.confined:
            make_for_sharer(loaded.settings.accesslog)

    def flush_log(self) -> None:
        self.log_file.flush()

    def snapshot(self) -> tuple[str, int] | None:
        """Path and descriptor of the pid file, None if there is none."""
        return self._pidfile.snapshot() if self._pidfile is not None else None

    def restore(self, loaded: Loaded, pidfile: tuple[str, int] | None) -> None:
        """After an upgrade in place."""
        self.begun = True
        try:
            self.enter(loaded)
        except SettingError as error:
            # Its log's folder was removed, say. The configuration that comes next may name another one, and
            # the fleet must not be left alone for that.
            self._warn(str(error))
        if pidfile is not None:
            self._pidfile = PidFile(*pidfile, account_for_pidfile(loaded))

    def close(self) -> None:
        """Remove the pid file."""
        if self._pidfile is not None:
            self._pidfile.remove()


def _first_log(command_line: dict[str, Any], launched: bool) -> LogFile:
    """The log until the configuration is known: standard error, in the form the command line asks for.

    No file yet: the configuration may say `chdir`, and a relative path counts from there.
    """
    table = rows()
    given = {
        name: table[name].kind.parse(command_line[name]) if name in command_line else table[name].default
        for name in ("log_format", "loglevel")
    }
    return set_up("-", given["log_format"], given["loglevel"], SHOWN if launched else "debug")
