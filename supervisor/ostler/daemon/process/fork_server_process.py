"""Starts the process of a fork server: an interpreter that imports what it needs and waits for `Configure`.

The first one is started before most of the supervisor is imported, so little may be imported here.
"""

import os
import signal
import socket
import sys
import time

from ostler import __version__
from ostler.daemon.environment.finding import Environment
from ostler.daemon.successor import HANDLED
from ostler.ipc.channel import pair
from ostler.osapi.priority import lower_priority, restore_priority
from ostler.osapi.process import is_interactive

# -P keeps the current folder off the module path: a package `ostler` that lies in the app's folder must
# not be taken for ours. Ours is put in front just for the import; all its modules are loaded by then. Root's
# imports are watched before the first that could come from elsewhere. Nothing that they leave is garbage.
#
# The environment may be another one than the supervisor's, and pip may be replacing Ostler in it. So the
# version is compared before anything else is imported. Afterwards the package must still be the same: its
# first file is replaced with the others. A problem is sent as the message LoadFailed, which is written here
# without our modules.
_FORK_SERVER = r"""
import gc, os, sys
collects = gc.isenabled()
gc.disable()
root, version, fd, lowered = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
sys.argv[:] = sys.argv[5:]
def refuse(problem):
    text = problem[:1000].encode("utf-8", "backslashreplace")
    os.write(
        fd,
        b"\x83\xa4type\xaaLoadFailed\xa9traceback\xc0\xa6reason\xda"
        + len(text).to_bytes(2, "big")
        + text,
    )
    sys.exit(1)
def facts():
    found = os.stat(ostler.__file__)
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
try:
    sys.path.insert(0, root)
    import ostler
    if ostler.__version__ != version:
        refuse(
            "Ostler %s is installed in %s, and %s is running; `ctl upgrade` (or USR2) changes to it"
            % (ostler.__version__, sys.prefix, version)
        )
    before = facts()
    from ostler.osapi.imports import guard
    sys.path.remove(root)
    guard()
    sys.path.insert(0, root)
    from ostler.forkserver.main import main
    if facts() != before:
        raise ImportError("it is being replaced")
except Exception as error:
    refuse(
        "the Ostler in %s can't be imported: %s: %s; install it there: %s -m pip install ostler==%s"
        % (sys.prefix, type(error).__name__, error, sys.executable, version)
    )
if collects:
    gc.enable()
sys.path.remove(root)
del refuse, facts
main(fd, lowered)
"""


class ForkServerProcess:
    """A process that was started, and our end of its channel.

    Attributes:
        environment: what it runs in; started_at: monotonic seconds.
    """

    def __init__(self, environment: Environment, pid: int, sock: socket.socket) -> None:
        self.environment = environment
        self.pid = pid
        self._sock = sock
        self.started_at = time.monotonic()
        self._used = False

    def use(self) -> socket.socket:
        """Our end of the channel, for the process's only owner from now on."""
        self._used = True
        return self._sock

    def end_if_unused(self) -> None:
        """End the process, which has run no code but ours, unless `use` was called."""
        if self._used:
            return
        self._used = True
        self._sock.close()
        try:
            os.kill(self.pid, signal.SIGKILL)  # its pid is not free before it was reaped
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass  # it has ended, and was reaped with others

    @classmethod
    def start(cls, environment: Environment, variables: dict[str, str]) -> "ForkServerProcess":
        """Execute an interpreter.

        Args:
            environment: what it runs in.
            variables: its environment variables.

        Raises:
            OSError: no process could be made.
        """
        ours, theirs = pair()
        with theirs:
            # The number stays the same in the child; dup2 onto itself only clears close-on-exec.
            fd = theirs.fileno()
            # The child inherits the priority, which counts from its first instruction on: starting Python
            # takes processor time, too.
            lowered = lower_priority()
            try:
                begin = [environment.python, "-P", "-c", _FORK_SERVER, environment.root, __version__]
                pid = os.posix_spawn(
                    environment.python,
                    [*begin, str(fd), str(lowered), *sys.argv],
                    variables,
                    file_actions=[(os.POSIX_SPAWN_DUP2, fd, fd)],
                    setsigmask=(),
                    # Those that we were started with as ignored, and have no handlers for yet.
                    setsigdef=HANDLED,
                    setpgroup=os.getpgrp() if is_interactive() else 0,
                )
            except BaseException:
                ours.close()
                raise
            finally:
                restore_priority()
        return cls(environment, pid, ours)
