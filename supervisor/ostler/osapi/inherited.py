"""What a process inherits from the one that executes it, set right: signals, interval timers, umask.

execve(2) keeps blocked signals, ignored signals and interval timers. A daemon that inherits SIGCHLD blocked
never replaces a dead worker, one with SIGTERM blocked can't be stopped, and an alarm ends it.
"""

import os
import signal
from collections.abc import Collection

# Python ignores these by itself, for errors of write(2) are reported as exceptions.
_PYTHONS = frozenset((signal.SIGPIPE, signal.SIGXFSZ))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def set_right(handled: Collection[int], blocked: Collection[int] = ()) -> None:
    """Forget what would keep this process, and those that it starts, from working.

    A umask that takes rights away from ourselves is widened: a file that we make must be open to us.

    Args:
        handled: signals that will get handlers soon. Those that are ignored stay so until then (nohup(1)).
        blocked: signals that stay blocked; all others are unblocked.
    """
    for signum in signal.valid_signals():
        ignored = signal.getsignal(signum) == signal.SIG_IGN
        if ignored and signum not in _PYTHONS and signum not in handled:
            signal.signal(signum, signal.SIG_DFL)
    for timer in _TIMERS:
        try:
            signal.setitimer(timer, 0)
        except OSError:
            pass  # refused; then no such timer could be set either
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.umask(os.umask(0o077) & 0o077)
