"""The watcher: a worker's thread that looks whether the leader has stayed in the app.

It looks every millisecond while requests come, and sleeps otherwise. When the leader is in the same request
at two looks, it has another thread promoted (`leader_followers`). If no thread waits for the leadership,
because all are in the app, the watcher itself polls meanwhile: it can't serve, but it receives, refuses what
is no request, sends what is left of answers, hands off to siblings what would have to wait, answers what has
waited for `queue_timeout` (`late_requests`), and reads the supervisor's messages.

What the watcher may call: while it polls, what the leader may, i.e. reactor, acceptor, receiver, responder,
siblings, sweeper, late requests and connection table; of the request runner only `refuse_late`, and it
accepts no connection from a listener but one whose request is late. To promote another thread:
`Reactor.unwatch`, for the connection that the leader serves. Otherwise nothing of the engine.
"""

import threading
from collections.abc import Callable
from time import sleep

from ostler.osapi import original

_TICK = 0.001
# Looks without a request before the watcher goes to sleep.
_IDLE_TICKS = 20


class Watcher:
    """The watcher of one engine; its thread does not run before `start`.

    Args:
        is_offered: whether the leadership is offered.
        first_started: when the request began whose leader offers the leadership, on any clock; 0: none does,
            or its request has not begun.
        promote: makes another thread the leader, or polls while there is none; called by the thread.

    Attributes:
        sleeps: the thread waits for `wake`.
        thread: None before `start`.
    """

    def __init__(
        self, is_offered: Callable[[], object], first_started: Callable[[], int], promote: Callable[[], None]
    ) -> None:
        self._is_offered = is_offered
        self._first_started = first_started
        self._promote = promote
        self._woken = original.Lock()
        self._stopped = False
        self.sleeps = False
        self.thread: threading.Thread | original.NativeThread | None = None

    def start(self) -> None:
        """Start the thread, once; called by the leader, or in a signal handler in its thread.

        Raises:
            RuntimeError: no thread can be made.
        """
        if self.thread is None:
            self._woken.acquire()
            thread = original.thread(self._run, "ostler-watcher")
            try:
                thread.start()
            except RuntimeError:
                self._woken.release()
                raise
            self.thread = thread

    def wake(self) -> None:
        """Have it look again; any thread may call it."""
        self.sleeps = False
        try:
            self._woken.release()
        except RuntimeError:
            pass  # it was woken already

    def stop(self) -> None:
        """Make the thread end, after one more look perhaps. Any thread may call it."""
        self._stopped = True
        self.wake()

    def _run(self) -> None:
        while not self._stopped:
            self.sleeps = True
            if not self._is_offered():
                self._woken.acquire()
            self.sleeps = False
            self._look()

    def _look(self) -> None:
        """Look at the offered leadership, until no requests come."""
        idle = seen = 0
        while idle < _IDLE_TICKS and not self._stopped:
            sleep(_TICK)
            started = self._first_started()
            if not started:
                idle += 1
            elif started != seen:
                seen = started
                idle = 0
            else:
                self._promote()
