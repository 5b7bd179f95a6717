"""Signal handlers for the event loop that any number of signals can't block.

asyncio has Python's handler, which is in C, write each signal's number into a socket. An app that leaves
thousands of orphans to the supervisor fills that socket with SIGCHLD. Then other signals are lost, and the
code that would report the loss can wait without end for a lock that the interrupted code holds (CPython's
trip_signal and _PyEval_AddPendingCall). So nothing is written in C: a handler in Python wakes the loop.
"""

import asyncio
import signal
from collections.abc import Callable
from types import FrameType

_taken: set[int] = set()


def on_signal(
    loop: asyncio.AbstractEventLoop, signum: int, callback: Callable[[], object], *, once: bool = False
) -> None:
    """Call back in the loop when a signal has come. To be called in the main thread.

    once: one call for all signals that come before it.
    """
    due = False

    def handle(_signum: int, _frame: FrameType | None) -> None:
        nonlocal due
        if not (due or loop.is_closed()):
            due = once
            loop.call_soon_threadsafe(call)

    def call() -> None:
        nonlocal due
        due = False
        callback()

    signal.signal(signum, handle)
    signal.siginterrupt(signum, False)
    _taken.add(signum)


def release() -> None:
    """Give all signals the disposition that a Python program has by default."""
    while _taken:
        signum = _taken.pop()
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
