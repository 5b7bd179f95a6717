"""Leader/followers: which of a worker's threads polls (Schmidt et al., "Leader/Followers", 2000).

The leader is the thread that polls: it waits at the reactor, receives, and serves what it can. Waking another
thread costs more than most requests do, and two threads that want the interpreter lock wait for each other.
So the leader serves requests itself and stays the leader, like a worker with one thread. Only while it is in
the app it *offers* the leadership: a watcher thread, which looks every millisecond while requests come and
sleeps otherwise, promotes a follower when the leader is in the same request at two looks. If no follower is
waiting, because all threads are in the app, the watcher itself polls meanwhile: it can't serve, but it
receives, sends, and hands off to siblings what would have to wait.

An app whose requests usually take long would wait for the watcher each time. Its leader releases the
leadership before it calls the app, and a thread that is done acquires an offered leadership itself.

A worker with one thread gets a watcher only once it has had a long request, or when a message comes while it
is in one: what the supervisor says about a request that hangs must not wait for its end.

The watcher may call reactor, receiver, responder, siblings, sweeper and connection table; never the request
runner, and it does not accept.

The rule of ownership: an offer is one object in a deque. Whichever thread takes it out, the leader that has
left the app or another one, is the leader. deque.append and pop are atomic with and without the interpreter
lock; so is remove, but it raises IndexError if the deque changes meanwhile.
"""

import threading
from collections import deque
from collections.abc import Callable
from time import sleep

from ostler.osapi import original
from ostler.scoreboard.accounting import RequestSlot

_TICK = 0.001
# How long a signal's handler may wait (s); as in the reactor, which polls at least so often.
_LONGEST_WAIT = 1.0
# Looks without a request before the watcher goes to sleep.
_IDLE_TICKS = 20


class LeaderFollowers:
    """The leadership of one engine.

    Args:
        threads: how many serve.
        detach: stops the reactor from watching the connection that the leader serves; called in the thread
            that becomes the leader instead, before it does.
        poll_only: polls without serving until a thread waits for the leadership (`is_wanted`) or the engine
            ends; called in the watcher.
        wake: makes `poll_only` look whether it is to end; any thread may call it.

    Attributes:
        has_watcher: the watcher runs.
        watcher_polls: the watcher polls: a thread that wants the leadership must wake it.
    """

    def __init__(
        self,
        threads: int,
        detach: Callable[[], None],
        poll_only: Callable[[], None],
        wake: Callable[[], None],
    ) -> None:
        self._others = threads - 1
        self._detach = detach
        self._poll_only = poll_only
        self._wake = wake
        self._leadership = original.Lock()
        self._offer: deque[RequestSlot] = deque()
        # Held while an offer is accepted: its leader waits until its connection is detached.
        self._offer_lock = original.Lock()
        self._waiting: deque[None] = deque()
        self._watcher: threading.Thread | original.NativeThread | None = None
        self._sleeps = False
        self._stopped = False
        self._watcher_wake = original.Lock()
        self.watcher_polls = False
        self.has_watcher = False

    # -- called by threads that serve ----------------------------------------------------------------------

    def acquire(self, accept_offer: bool) -> None:
        """Wait for the leadership.

        Args:
            accept_offer: requests usually take long, so that a leader in the app does not return soon:
                accept its offer at once.
        """
        if accept_offer and self._accept_offer():
            return
        self._waiting.append(None)
        if self.watcher_polls:
            self._wake()
        # Not without a limit: a signal that arrives between the interpreter's last check and the wait does
        # not end the wait, and only the main thread, which this may be, runs signal handlers.
        while not self._leadership.acquire(True, _LONGEST_WAIT):
            pass
        self._waiting.pop()

    def release(self) -> None:
        """Let another thread lead; called by the leader."""
        self._leadership.release()

    def release_if_held(self) -> None:
        """Let another thread lead, called by a thread that does not know whether it is the leader."""
        try:
            self._leadership.release()
        except RuntimeError:
            pass

    def offer(self, slot: RequestSlot) -> None:
        """Called by the leader before it calls the app; `slot` shows the request."""
        self._offer.append(slot)
        if self._sleeps:
            self._sleeps = False
            self._wake_watcher()

    def withdraw(self, slot: RequestSlot) -> bool:
        """Called by the same thread afterwards, with the same slot: whether it is still the leader."""
        try:
            # Its own offer and no other: the thread that was promoted may have offered the leadership, too.
            self._offer.remove(slot)
        except (ValueError, IndexError):
            # Not before its connection is its own alone.
            with self._offer_lock:
                return False
        return True

    def is_contended(self) -> bool:
        """Whether others are in the app, so that a thread which releases the interpreter lock must queue."""
        return len(self._waiting) < self._others

    @property
    def is_wanted(self) -> bool:
        """Whether a thread waits for the leadership."""
        return bool(self._waiting)

    # -- the watcher ---------------------------------------------------------------------------------------

    def start_watcher(self) -> None:
        """Start the watcher, once; called by the leader, or in a signal handler in its thread.

        Raises:
            RuntimeError: no thread can be made.
        """
        if self._watcher is None:
            self._watcher_wake.acquire()
            watcher = original.thread(self._run, "ostler-watcher")
            try:
                watcher.start()
            except RuntimeError:
                self._watcher_wake.release()
                raise
            self._watcher = watcher
            self.has_watcher = True

    def stop(self) -> None:
        """Make the watcher end, after one more look perhaps. Any thread may call it."""
        self._stopped = True
        self._wake_watcher()

    def _wake_watcher(self) -> None:
        try:
            self._watcher_wake.release()
        except RuntimeError:
            pass  # it was woken already

    def _run(self) -> None:
        while not self._stopped:
            self._sleeps = True
            if not self._offer:
                self._watcher_wake.acquire()
            self._sleeps = False
            self._watch_offers()

    def _watch_offers(self) -> None:
        """Look at the offered leadership, until no requests come."""
        idle = seen = 0
        while idle < _IDLE_TICKS and not self._stopped:
            sleep(_TICK)
            try:
                started = self._offer[0].started
            except IndexError:
                started = 0
            if not started:
                idle += 1
            elif started != seen:
                seen = started
                idle = 0
            else:
                self._promote()

    def _accept_offer(self) -> bool:
        """Become the leader instead of the thread that offers it; False if none does."""
        if not self._offer:
            return False
        with self._offer_lock:
            try:
                self._offer.pop()
            except IndexError:
                return False  # it was withdrawn in this very moment
            self._detach()
        return True

    def _promote(self) -> None:
        """Have a follower lead, or the watcher while there is none."""
        if not self._accept_offer():
            return
        try:
            if not self._waiting:
                self.watcher_polls = True
                self._poll_only()
        finally:
            self.watcher_polls = False
            self._leadership.release()
