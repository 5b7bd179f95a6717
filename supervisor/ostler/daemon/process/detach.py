"""Detaching from the terminal (setting `daemon`).

The user that starts the daemon has to know whether it worked. So the process that was started, the launcher,
stays until the daemon serves or has failed, and ends with the exit code that it would have had in the
foreground. The two have a socket pair for that: if the launcher is interrupted, the daemon sees its end and
ends.

    launcher ── fork ── session leader ── fork ── daemon

The session leader ends at once: a process that is no session leader never gets a terminal again.
"""

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from ostler.errors import ExitCode, OstlerError
from ostler.settings.table import Settings, rows

# As gunicorn sets it here.
_UMASK = 0o022
_SERVING = b"+"
# The lowest level that is written to a log which only the launcher's terminal shows.
SHOWN = "warning"


class LauncherLink:
    """The daemon's end of the socket pair to the launcher."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Readable when the launcher has ended; -1 once it is not waited for any more."""
        return self._sock.fileno()

    def serving(self) -> None:
        """Let the launcher end with exit code 0."""
        self._send(_SERVING)
        self._sock.close()

    def failing(self, code: int) -> None:
        """Let the launcher end with `code` as soon as this process has ended, unless it has ended already."""
        if self._sock.fileno() >= 0:
            self._send(b"%d" % code)

    def _send(self, data: bytes) -> None:
        try:
            self._sock.send(data)
        except OSError:
            pass  # it was interrupted


def reason_to_stay() -> str | None:
    """Why this process must not leave the foreground, if so."""
    if os.environ.get("NOTIFY_SOCKET"):
        return "the service manager supervises this process (NOTIFY_SOCKET)"
    if os.environ.get("LISTEN_PID") == str(os.getpid()):
        return "the service manager gave its sockets to this process (LISTEN_PID)"
    if os.getpid() == 1:
        return "a container ends with its first process"
    return None


def is_wanted(command_line: Mapping[str, Any]) -> bool:
    """Whether the command line asks for a daemon, and nothing prevents it."""
    wanted: bool = rows()["daemon"].kind.parse(command_line.get("daemon", False))
    return wanted and reason_to_stay() is None


def detach() -> LauncherLink:
    """Continue as a daemon; in the launcher this does not return.

    Standard descriptors stay as they are: errors of the start still have to be printed.

    Raises:
        OstlerError: no process could be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        middle = os.fork()
    except OSError as error:
        raise OstlerError(f"can't detach: {error.strerror}") from None
    if middle:
        theirs.close()
        os.waitpid(middle, 0)
        _wait(ours)
    ours.close()
    os.setsid()
    try:
        daemon = os.fork()
    except OSError:
        daemon = -1  # the launcher sees the end of the socket pair
    if daemon:
        os._exit(0)
    os.umask(_UMASK)
    return LauncherLink(theirs)


def _wait(line: socket.socket) -> None:
    """Raises SystemExit when it is known how the start went."""
    received = b""
    while data := line.recv(16):
        received += data
        if received.startswith(_SERVING):
            if sys.stdout is not None and sys.stdout.isatty():
                print("ostler: serving in the background; ctl status shows more")
            sys.exit(ExitCode.OK)
    if received.isdigit():
        sys.exit(int(received))
    print("ostler: error: the daemon was killed while it started", file=sys.stderr)
    sys.exit(ExitCode.FAILED)


def log_gets_lost(settings: Settings) -> bool:
    """Whether the log is written nowhere once the daemon is detached."""
    elsewhere = settings.syslog or settings.logconfig or settings.logconfig_dict or settings.logconfig_json
    return settings.errorlog == "-" and not (settings.enable_stdio_inheritance or elsewhere)
