"""The threads of an engine that serve besides the main thread.

They are made before the worker reports that it is ready, because making them may fail, and wait until it
begins to serve.
"""

import sys
import threading
from collections.abc import Callable
from time import monotonic_ns

from ostler.osapi import original
from ostler.osapi.process import set_timer_slack
from ostler.workers.units import SECOND

# A thread that computes lets others have the interpreter lock after this time (s). Python's own 5 ms are long
# for a thread that serves quick requests beside one that computes; an app that has chosen knows better.
_USUAL_SWITCH_INTERVAL = 0.005
_SWITCH_INTERVAL = 0.001
# How much later than asked for the kernel may end a wait (ns), instead of 50 µs: threads that wait a
# millisecond for a database should not lose a twentieth of their time.
_TIMER_SLACK = 1_000


class ServingThreads:
    """Threads with the numbers from 1 on; the main thread is 0. Called only by the main thread.

    Args:
        serve: what each thread does, called with its number.
    """

    def __init__(self, serve: Callable[[int], None]) -> None:
        self._serve = serve
        self._threads: list[threading.Thread | original.NativeThread] = []
        self._gate, self._entered = original.Lock(), original.Lock()

    def make(self, count: int) -> None:
        """Make threads, which wait for `release`; also sets how threads of this process take turns.

        Raises:
            RuntimeError: no more threads can be made.
        """
        self._gate.acquire()
        self._entered.acquire()
        set_timer_slack(_TIMER_SLACK)
        if sys.getswitchinterval() == _USUAL_SWITCH_INTERVAL:
            sys.setswitchinterval(_SWITCH_INTERVAL)
        for number in range(1, count + 1):
            thread = original.thread(self._run, f"ostler-{number + 1}", (number,))
            thread.start()
            self._threads.append(thread)

    def release(self) -> None:
        """Let the threads serve; returns when the first of them is about to."""
        if self._threads:
            self._gate.release()
            self._entered.acquire()

    def join(self, deadline: int) -> None:
        """Wait until all threads have ended, but not beyond `deadline` (CLOCK_MONOTONIC, ns)."""
        for thread in self._threads:
            thread.join(max(0, deadline - monotonic_ns()) / SECOND)

    def _run(self, number: int) -> None:
        with self._gate:
            pass
        if number == 1:
            self._entered.release()
        self._serve(number)
