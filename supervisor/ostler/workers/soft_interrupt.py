"""Ending a request that takes too long, and no other; and giving a request more time.

The supervisor finds that a request is overdue, notes in its request slot which one, and sends
INTERRUPT_SIGNAL. Python runs the handler in the main thread. It raises `DeadlineExceeded` in the threads that
still serve such a request: in its own by just raising, which ends a system call that the app waits in, too;
in others by PyThreadState_SetAsyncExc, which a thread notices when it runs Python code again.

The exception must not meet the next request, nor our own code:

- The main thread raises only where a function that calls user code for a request (see
  `interruption.interruptible`: Exchange.run, and around it the hooks' own) is among the calls that the signal
  interrupted, and no handler of ours for another signal is above it. A worker class that calls the app
  otherwise says where.
- In another thread it is set while the lock is held and the slot still shows the request. A thread that ends
  a request first makes its slot show none (`leave_app`) and then, under the lock, takes back what it has not
  noticed by then (`end`). What it notices in between ends in the handler in `WsgiRunner`, which makes the
  slot show none again: each request is counted once, after that handler.
- Only requests that are older than LONG_REQUEST_NS are interrupted: those that ended sooner have nothing to
  take back.
- `Exchange.run` is more than the app, it sends as well. Therefore an answer that has begun is not continued:
  its connection is closed, so that nothing is sent of what half a step of ours may have left behind.

All of it holds with and without the interpreter lock.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from time import monotonic_ns
from types import FrameType

from ostler.osapi import original
from ostler.scoreboard.accounting import Accounting
from ostler.scoreboard.request_slot import RequestSlot, check_extension
from ostler.wsgi.interruption import DeadlineExceeded, is_interruptible

LONG_REQUEST_NS = 20_000_000
"""A request that takes longer (ns) is a long one; a quicker one is never interrupted."""
# Modules with handlers of other signals, and with what is done at an app's forks: what these have begun is
# finished, although the app has called them.
_HANDLERS = (
    "ostler.workers.boot",
    "ostler.workers.signals",
    "ostler.workers.app_forks",
    "ostler.workers.thread_engine",
)


class SoftInterrupts:
    """What a worker does about the deadlines of its requests, each of which has a thread.

    Args:
        accounting: has the slots of the threads.
        is_in_app: whether the exception may be raised in the main thread, in this frame; None: as
            `is_in_app` says.
    """

    def __init__(
        self, accounting: Accounting, is_in_app: Callable[[FrameType | None], bool] | None = None
    ) -> None:
        self._is_in_app = is_in_app
        self._slots = accounting.slots
        # Slots by thread, as far as they were looked for. The threads live as long as the worker serves.
        self._slot_of: dict[int, RequestSlot] = {}
        # By thread: when the request had started that was interrupted last.
        self._interrupted: dict[int, int] = {}
        self._lock = original.Lock()
        self._looking = self._look_again = False

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """The handler of INTERRUPT_SIGNAL, in the main thread.

        Raises:
            DeadlineExceeded: the main thread's own request is overdue.
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
        """Called by a thread after a long request, when its slot shows it no more.

        Afterwards no exception that was meant for that request can come.

        Args:
            started: when the request began.
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
        check_extension(seconds)
        slot = self.slot_at_hand()
        if slot is None or not slot.started:
            raise RuntimeError("extend_deadline was called in a thread that serves no request")
        slot.extend(seconds)

    def slot_at_hand(self) -> RequestSlot | None:
        """The slot of the request that the caller serves; None: it is no thread that serves."""
        here = original.get_ident()
        found = self._slot_of.get(here)
        if found is None:
            found = next((slot for slot in self._slots if slot.ident == here), None)
            if found is not None:
                self._slot_of[here] = found
        return found

    def _interrupt_others(self) -> int | None:
        """Interrupt other threads' overdue requests; returns when this thread's began, if it is overdue."""
        here = original.get_ident()
        found = None
        for slot in tuple(self._slots):
            ident = slot.ident
            if ident == here:
                started = slot.started
                if self._is_to_end(slot, started, here):
                    found = started
                continue
            with self._lock:
                started = slot.started
                if self._is_to_end(slot, started, ident):
                    self._interrupted[ident] = started
                    _set_exception(ident, DeadlineExceeded)
        return found

    def _is_to_end(self, slot: RequestSlot, started: int, ident: int) -> bool:
        """Whether to interrupt the request that began at `started`: once, and not if it has more time now."""
        if not started or self._interrupted.get(ident) == started:
            return False
        now = monotonic_ns()
        return now - started > LONG_REQUEST_NS and slot.started == started and slot.is_overdue(now)


def is_in_app(frame: FrameType | None) -> bool:
    """Whether DeadlineExceeded may be raised here; if not yet, the supervisor sends the signal again."""
    while frame is not None:
        if is_interruptible(frame):
            return True
        if frame.f_globals.get("__name__") in _HANDLERS:
            return False
        frame = frame.f_back
    return False


def _set_exception(ident: int, kind: type[BaseException] | None) -> None:
    """PyThreadState_SetAsyncExc: have `kind` raised in a thread soon; None: take that back."""
    value = ctypes.py_object() if kind is None else ctypes.py_object(kind)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), value)
