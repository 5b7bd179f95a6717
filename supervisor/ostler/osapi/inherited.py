"""Resets what a process inherits over execve(2): signals, interval timers, umask.

execve(2) keeps blocked signals, ignored signals and interval timers. A daemon that inherits SIGCHLD blocked
never replaces a dead worker, one with SIGTERM blocked can't be stopped, and an alarm ends it.
"""

import os
import signal
from collections.abc import Collection

# Python ignores these itself: errors of write(2) become exceptions.
_PYTHONS = frozenset((signal.SIGPIPE, signal.SIGXFSZ))
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)


def set_right(handled: Collection[int], blocked: Collection[int] = ()) -> None:
    """Reset what would prevent this process, and those that it starts, from working.

    A umask that removes rights of the owner is widened: we must be able to open the files that we make.

    Args:
        handled: signals that will get handlers soon. Ignored ones stay ignored until then (nohup(1)).
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
            pass  # refused; then such a timer can't have been set either
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.umask(os.umask(0o077) & 0o077)
