"""Leader/followers: which of a worker's threads polls (Schmidt et al., "Leader/Followers", 2000).

The leader is the thread that polls: it waits at the reactor, receives, and serves what it can. Waking
another thread costs more than most requests do, and two threads that want the interpreter lock wait for
each other. So the leader serves requests itself and stays the leader, like a worker with one thread. Only
while it is in the app it *offers* the leadership: the watcher (`watcher`, which says what that thread may
call) promotes a follower when the leader has been in the same request for a millisecond or two. If no
follower is waiting, because all threads are in the app, the watcher itself polls meanwhile, without
serving.

An app whose requests usually take long would wait for the watcher each time. Its leader releases the
leadership before it calls the app, and a thread that is done acquires an offered leadership itself.

A worker with one thread gets a watcher only once it has had a long request, or when a message comes while it
is in one: what the supervisor says about a request that hangs must not wait for its end. With `queue_timeout`
it has one from the beginning.

The rule of ownership: an offer is one object in a deque. Whichever thread takes it out, the leader that has
left the app or another one, is the leader. deque.append and pop are atomic with and without the interpreter
lock; so is remove, but it raises IndexError if the deque changes meanwhile.
"""

from collections import deque
from collections.abc import Callable

from ostler.osapi import original
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.watcher import Watcher

# How long a signal's handler may wait (s); as in the reactor, which polls at least so often.
_LONGEST_WAIT = 1.0


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
        self._watcher = Watcher(self._offer.__len__, self._first_started, self._promote)
        self.watcher_polls = False
        self.has_watcher = False

    # -- called by threads that serve ----------------------------------------------------------------------

    def acquire(self, accept_offer: bool, handles_signals: bool = False) -> None:
        """Wait for the leadership.

        Args:
            accept_offer: requests usually take long, so that a leader in the app does not return soon:
                accept its offer at once.
            handles_signals: the caller is the main thread, in which signal handlers run.
        """
        if accept_offer and self._accept_offer():
            return
        self._waiting.append(None)
        if self.watcher_polls:
            self._wake()
        # A signal that arrives between the interpreter's last check and the wait does not end the wait.
        limit = _LONGEST_WAIT if handles_signals else -1
        while not self._leadership.acquire(True, limit):
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
        if self._watcher.sleeps:
            self._watcher.wake()

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
        self._watcher.start()
        self.has_watcher = True

    def stop(self) -> None:
        """Make the watcher end, after one more look perhaps. Any thread may call it."""
        self._watcher.stop()

    def _first_started(self) -> int:
        try:
            return self._offer[0].started
        except IndexError:
            return 0

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
