"""Signals in workers and fork servers: tools. What a worker does at each signal is in
`boot.WorkerProcess._install_signals`.

Signals that reach a whole process group, e.g. from a terminal, are for the supervisor: it decides what they
mean, and workers and fork servers ignore them.
"""

import faulthandler
import fcntl
import os
import signal
import struct
from collections.abc import Callable

from ostler.osapi import original
from ostler.osapi.process import DUMP_SIGNAL, INTERRUPT_SIGNAL

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
"""Signals that end a worker; blocked from its fork until its handlers are installed."""

FOR_SUPERVISOR = (signal.SIGHUP, signal.SIGWINCH, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU)
"""Signals that a worker ignores, e.g. when a terminal is closed or changes its size."""

HANDLED = (
    *(*ENDING, signal.SIGABRT, signal.SIGUSR1, signal.SIGIO, signal.SIGCHLD, DUMP_SIGNAL, INTERRUPT_SIGNAL),
    *FOR_SUPERVISOR,
)
"""Signals that a worker unblocks; user code may have blocked them in the process that forks."""

# linux/fcntl.h
_F_SETOWN_EX, _F_OWNER_TID = 15, 0


def ignore_group_signals() -> None:
    """Ignore signals that may reach the whole process group."""
    for signum in (
        *(signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP),
        *(signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2),
    ):
        ignore(signum)


def ignore(signum: int) -> None:
    """Ignore a signal by a handler, which programs started by the app do not inherit, unlike SIG_IGN."""
    signal.signal(signum, lambda _signum, _frame: None)


def on_hang_up(
    fd: int, callback: Callable[[], object], on_message: Callable[[], object] | None = None
) -> None:
    """Call `callback` when the other end of socket `fd` is closed, in the main thread, also during user code.

    May call it more than once. Uses SIGIO (fcntl(2), F_SETOWN_EX), which also comes with each message; then
    `on_message` is called.
    """

    def check(*_: object) -> None:
        poll = original.poll()
        poll.register(fd, 0)  # POLLHUP needs no request
        if poll.poll(0):
            callback()
        if on_message is not None:
            on_message()

    signal.signal(signal.SIGIO, check)
    # Sent to the main thread only: it runs the handlers, and only a signal to it interrupts its system calls.
    fcntl.fcntl(fd, _F_SETOWN_EX, struct.pack("ii", _F_OWNER_TID, os.getpid()))
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    check()  # it may be closed already


def reset_for_zygote() -> None:
    """Remove the signal set-up of a worker that becomes a fork server; call `ignore_group_signals` before."""
    # The app's own set-up for this process; forked workers may make it again.
    signal.set_wakeup_fd(-1)
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    faulthandler.disable()
    signal.signal(signal.SIGABRT, signal.SIG_DFL)
    # A signal that was sent to the worker may still come, and would end a process without a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, (DUMP_SIGNAL,))
    faulthandler.unregister(DUMP_SIGNAL)
    ignore(DUMP_SIGNAL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (DUMP_SIGNAL,))
    ignore(INTERRUPT_SIGNAL)
