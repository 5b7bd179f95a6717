"""Ending a request that takes too long, and no other; and giving one more time.

The supervisor sees that a request is overdue, writes into its lane which (OVERDUE), and sends
INTERRUPT_SIGNAL. Python runs the handler in the main thread. It raises `DeadlineExceeded` in the threads that
still serve such a request: in its own by just raising, which ends a system call that the app waits in, too;
in others by PyThreadState_SetAsyncExc, which a thread notices when it runs Python code again.

The exception must not meet the next request, nor our own code:

- The main thread raises only where a function that calls user code for a request (`exchange.interruptible`:
  Exchange.run, and around it the hooks' own) is among the calls that the signal interrupted, and no
  handler of ours for another signal is above it; a worker class that calls the app otherwise says where.
- In another thread it is set while the lock is held and the lane still shows the request. Who ends a request
  clears the lane first and then, under the lock, takes back what has not been noticed by then. What was
  noticed in between ends in the handler in `Serving._serve`.
- Only requests that are older than LONG are touched, so those that ended sooner have nothing to take back.
- `Exchange.run` is more than the app, it sends as well. Therefore an answer that has begun is not continued:
  its connection is closed, and nobody sees what half a step of ours may have left behind.

All of it holds with and without the interpreter lock.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from time import monotonic_ns
from types import FrameType

from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.scoreboard.writer import CellWriter, Words
from ostler.wsgi.exchange import DeadlineExceeded, is_interruptible

# A request that takes this long (ns) tells that there are such; a quicker one is never interrupted.
LONG = 20_000_000
# Modules with handlers of other signals: what these have begun is finished, though the app is below them.
_HANDLERS = ("ostler.workers.boot", "ostler.workers.engine", "ostler.workers.loop")
# The most an app may ask for, in seconds: what can be added to any time and still is one.
LONGEST = 1e9


class Deadlines:
    """What a worker does about the deadlines of its requests.

    Args:
        cell: the worker's scoreboard cell.
        is_in_app: whether the exception may be raised in the main thread, in this frame.
    """

    def __init__(self, cell: CellWriter, is_in_app: Callable[[FrameType | None], bool] | None = None) -> None:
        self._is_in_app = is_in_app
        self._lanes = [cell.lane(thread)[0] for thread in range(cell.threads)]
        # By thread: what STARTED was in the request that was interrupted last.
        self._interrupted: dict[int, int] = {}
        self._lock = original.Lock()
        self._looking = self._look_again = False

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL.

        Raises:
            DeadlineExceeded: it is the main thread whose request is overdue.
        """
        # The next signal may come within this function, and must not wait for the lock that it holds.
        self._look_again = True
        if self._looking:
            return
        self._looking = True
        ours = None
        try:
            while self._look_again:
                self._look_again = False
                ours = self._interrupt_others() or ours
        finally:
            self._looking = False
        if ours is not None and (self._is_in_app or is_in_app)(frame):
            self._interrupted[original.get_ident()] = ours
            raise DeadlineExceeded

    def end(self, started: int) -> None:
        """Called by a thread after a request that took long, when its lane shows it no more.

        Afterwards no exception that was meant for that request can come.
        """
        # The main thread raises its own: nothing waits. And its handler may want the lock at any moment.
        if threading.get_native_id() != os.getpid():
            with self._lock:
                if self._interrupted.get(original.get_ident()) == started:
                    _set_exception(original.get_ident(), None)

    def extend(self, seconds: float) -> None:
        """`environ["ostler.extend_deadline"]`: the request at hand has at least `seconds` from now.

        It never shortens a deadline. To be called by the thread that was given the request.

        Raises:
            ValueError: that is no time.
            RuntimeError: this thread serves no request.
        """
        if not 0 < seconds <= LONGEST:
            raise ValueError(f"the deadline can't be extended by {seconds!r} seconds")
        words = self._at_hand()
        if words is None or not (started := words[layout.STARTED]):
            raise RuntimeError("extend_deadline was called in a thread that serves no request")
        until = monotonic_ns() + int(seconds * 1_000_000_000)
        if words[layout.EXTENDED_FOR] == started:
            until = max(until, words[layout.EXTENDED_UNTIL])
        # In this order: the supervisor reads them the other way round.
        words[layout.EXTENDED_UNTIL] = until
        words[layout.EXTENDED_FOR] = started

    def _at_hand(self) -> Words | None:
        """What tells of the request that the caller serves."""
        here = original.get_ident()
        return next((words for words in self._lanes if words[layout.IDENT] == here), None)

    def _interrupt_others(self) -> int | None:
        """Interrupt other threads' overdue requests; returns what STARTED is in this thread's, if it is."""
        here = original.get_ident()
        found = None
        for words in self._lanes:
            ident = words[layout.IDENT]
            if ident == here:
                started = words[layout.STARTED]
                if self._is_overdue(words, started, here):
                    found = started
                continue
            with self._lock:
                started = words[layout.STARTED]
                if self._is_overdue(words, started, ident):
                    self._interrupted[ident] = started
                    _set_exception(ident, DeadlineExceeded)
        return found

    def _is_overdue(self, words: Words, started: int, ident: int) -> bool:
        """Whether it is to be interrupted: once, and not if the app has asked for time just now."""
        if not started or words[layout.OVERDUE] != started or self._interrupted.get(ident) == started:
            return False
        now = monotonic_ns()
        return now - started > LONG and not is_extended(words, started, now)


def is_extended(words: Words, started: int, now: int) -> bool:
    """Whether the app has been given more time for the request that began at `started`."""
    return words[layout.EXTENDED_FOR] == started and words[layout.EXTENDED_UNTIL] > now


def is_in_app(frame: FrameType | None) -> bool:
    """Whether it may be raised here; if not yet, the supervisor sends the signal again."""
    while frame is not None:
        if is_interruptible(frame):
            return True
        if frame.f_globals.get("__name__") in _HANDLERS:
            return False
        frame = frame.f_back
    return False


def _set_exception(ident: int, kind: type[BaseException] | None) -> None:
    """PyThreadState_SetAsyncExc: `kind` is raised in a thread soon; None: nothing is, if it has not been."""
    value = ctypes.py_object() if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), value)
