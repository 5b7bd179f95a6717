"""Detaching from the terminal (setting `daemon`).

Who types the command wants to know whether it worked. So the process that was started, the launcher, stays
until the daemon serves or has failed, and ends with the exit code that it would have had in the foreground.
The two have a socket pair for that: should the launcher be interrupted, the daemon notices its end and ends.

    launcher ── fork ── session leader ── fork ── daemon      (the middle one ends at once: what is no session
                                                               leader never gets a terminal again)
"""

import os
import socket
import sys

from ostler.errors import ExitCode, OstlerError
from ostler.settings.table import Settings

# What gunicorn sets in this place.
_UMASK = 0o022
_SERVING = b"+"
# Of a log that only the launcher's terminal sees: the level from which on it is worth being told to a user.
SHOWN = "warning"


class Launch:
    """The daemon's end of its line to the launcher."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Readable when the launcher is gone; -1 once it is not wanted any more."""
        return self._sock.fileno()

    def serving(self) -> None:
        """Let the launcher end well."""
        self._say(_SERVING)
        self._sock.close()

    def failing(self, code: int) -> None:
        """Let the launcher end with `code` as soon as this process has ended, unless it has gone already."""
        if self._sock.fileno() >= 0:
            self._say(b"%d" % code)

    def _say(self, word: bytes) -> None:
        try:
            self._sock.send(word)
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


def detach() -> Launch:
    """Go on as a daemon; in the launcher this does not return.

    Standard descriptors stay as they are: what can't be said over the socket pair still has to be printed.

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
        daemon = -1  # the launcher will find that nobody answers
    if daemon:
        os._exit(0)
    os.umask(_UMASK)
    return Launch(theirs)


def _wait(line: socket.socket) -> None:
    """Raises SystemExit when it is known how the start went."""
    said = b""
    while data := line.recv(16):
        said += data
        if said.startswith(_SERVING):
            if sys.stdout is not None and sys.stdout.isatty():
                print("ostler: serving in the background; ctl status tells more")
            sys.exit(ExitCode.OK)
    if said.isdigit():
        sys.exit(int(said))
    print("ostler: error: the daemon was killed while it started", file=sys.stderr)
    sys.exit(ExitCode.FAILED)


def log_gets_lost(settings: Settings) -> bool:
    """Whether, once detached, it is written nowhere."""
    elsewhere = settings.syslog or settings.logconfig or settings.logconfig_dict or settings.logconfig_json
    return settings.errorlog == "-" and not (settings.enable_stdio_inheritance or elsewhere)
