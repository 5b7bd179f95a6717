"""Who leads: the one thread of a worker that waits at the epoll, reads requests, and serves what it can.

Waking another thread costs more than most requests do, and two threads that want the interpreter lock wait
for each other. So the leader serves a request itself and keeps the lead, like a worker with one thread. Only
while it runs the app it *lends* the lead: a watcher, which looks every millisecond while requests come and
sleeps otherwise, takes the lead from a leader that is in the same request at two looks and passes it on.
If all threads are in the app the watcher *minds* the connections itself: it can't serve, but it receives,
sends, and gives away to siblings what would have to wait.

An app whose requests take long anyway would wait for the watcher each time. Its leader passes the lead on
before it runs the app, and a thread that is done takes the loan itself.

A worker with one thread has a watcher, too, but only once it has had a request that took long, or gets a
message while it is in one: the supervisor's word that a request hangs must not wait for its end.

The rule of ownership: the loan is one object in a deque. Who takes it out, the leader that has come back or
the watcher, has the lead; deque.append, pop and remove are atomic with and without the interpreter lock.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import sleep

from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.workers.lane import Lane

_TICK = 0.001
# Looks without a request before the watcher goes to sleep.
_IDLE_TICKS = 20


class Lead:
    """The lead of one engine.

    Args:
        threads: how many serve.
        let_go: disarms the connection that a leader has in hand, before somebody else leads.
        mind: leads without serving until `wanted()`.

    Attributes:
        minding: the watcher leads, so who wants the lead must wake it.
    """

    def __init__(
        self, threads: int, let_go: Callable[[], None], mind: Callable[[], None], wake: Callable[[], None]
    ) -> None:
        self._others = threads - 1
        self._let_go = let_go
        self._mind = mind
        self._wake = wake
        self._lock = original.Lock()
        self._loan: deque[Lane] = deque()
        self._passing = original.Lock()
        self._wanting: deque[None] = deque()
        self._watcher: threading.Thread | original.NativeThread | None = None
        self._parked = False
        self._stopped = False
        self._bell = original.Lock()
        self.minding = False
        self.watched = False

    # -- what serving threads call -----------------------------------------------------------------------

    def take(self, hurry: bool) -> None:
        """Wait for the lead. `hurry`: requests take long, so whoever has lent it will not be back soon."""
        if hurry and self._take_loan():
            return
        self._wanting.append(None)
        if self.minding:
            self._wake()
        self._lock.acquire()
        self._wanting.pop()

    def give(self) -> None:
        """Let somebody else lead."""
        self._lock.release()

    def give_up(self) -> None:
        """Give the lead, should the caller have it: it does not know any more."""
        try:
            self._lock.release()
        except RuntimeError:
            pass

    def lend(self, lane: Lane) -> None:
        """Before the app is run, by the leader."""
        self._loan.append(lane)
        if self._parked:
            self._parked = False
            self._ring()

    def come_back(self, lane: Lane) -> bool:
        """After the app was run: whether the caller still leads. `lane`: what it lent."""
        try:
            # Its own loan and no other: whoever was given the lead since may have lent it, too.
            self._loan.remove(lane)
        except (ValueError, IndexError):  # IndexError: it changed while it was looked at
            # Not before what it had in hand is its own alone.
            with self._passing:
                return False
        return True

    @property
    def crowded(self) -> bool:
        """Other threads are in the app: who lets go of the interpreter lock must queue for it."""
        return len(self._wanting) < self._others

    @property
    def wanted(self) -> bool:
        """Some thread waits for the lead."""
        return bool(self._wanting)

    # -- the watcher -------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Start the watcher, once. Raises RuntimeError if no thread can be made."""
        if self._watcher is None:
            self._bell.acquire()
            watcher = original.thread(self._run, "ostler-watcher")
            try:
                watcher.start()
            except RuntimeError:
                self._bell.release()
                raise
            self._watcher = watcher
            self.watched = True

    def stop(self) -> None:
        """End the watcher; it may take one more look."""
        self._stopped = True
        self._ring()

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # it has been rung already

    def _run(self) -> None:
        while not self._stopped:
            self._parked = True
            if not self._loan:
                self._bell.acquire()
            self._parked = False
            self._look_around()

    def _look_around(self) -> None:
        """Look at the loan until no requests come."""
        idle = seen = 0
        while idle < _IDLE_TICKS and not self._stopped:
            sleep(_TICK)
            try:
                started = self._loan[0].words[layout.STARTED]
            except IndexError:
                started = 0
            if not started:
                idle += 1
            elif started != seen:
                seen = started
                idle = 0
            else:
                self._pass_on()

    def _take_loan(self) -> bool:
        """Lead instead of who has lent the lead; False if nobody has."""
        if not self._loan:
            return False
        with self._passing:
            try:
                self._loan.pop()
            except IndexError:
                return False  # it came back in this very moment
            self._let_go()
        return True

    def _pass_on(self) -> None:
        if not self._take_loan():
            return
        try:
            if not self._wanting:
                self.minding = True
                self._mind()
        finally:
            self.minding = False
            self._lock.release()
