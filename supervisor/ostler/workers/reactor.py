"""The reactor: one epoll with everything that a worker waits for, and an eventfd that wakes it.

In the epoll are the listeners, the connections, the supervisor's channel, the hand-off and the eventfd. The
reactor only reports which descriptors are ready.

A connection that the reactor watches belongs to the thread that polls. A thread that serves its request while
another one may poll stops this watching with `unwatch` first, and makes the connection the polling thread's
again with `watch`.
"""

import select
from collections.abc import Callable
from time import monotonic_ns

from ostler.osapi import original
from ostler.osapi.wake import Wake
from ostler.workers.connection import Connection
from ostler.workers.phase import CLOSED
from ostler.workers.system_calls import PLAIN, Events, SystemCalls

IN, OUT = select.EPOLLIN, select.EPOLLOUT
BATCH = 64
"""Events that are taken from the kernel at once."""
# Of all workers that wait at a listener the kernel wakes one.
_SHARED = select.EPOLLIN | select.EPOLLEXCLUSIVE
# Watched for no event: the kernel still reports a hang-up, but only once.
_SILENT = select.EPOLLONESHOT


class Reactor:
    """Waits for events. Called only by the thread that polls, unless a method says otherwise.

    Args:
        wake: what wakes `poll`; belongs to the reactor.
        calls: how system calls are made.

    Attributes:
        now: when `poll` or `read_clock` last returned (CLOCK_MONOTONIC, ns); 0: it has not.
    """

    def __init__(self, wake: Wake, calls: SystemCalls = PLAIN) -> None:
        self._epoll = original.epoll()
        self._poll, self._modify = calls.poll, calls.modify
        self._wake = wake
        self._readers: dict[int, Callable[[], None]] = {}
        self.now = 0
        self.add_reader(wake.fd, wake.clear)

    def poll(self, seconds: float) -> Events:
        """Wait for events, so long at most; (descriptor, mask) of each, `BATCH` at most."""
        events = self._poll(self._epoll, seconds, BATCH)
        self.now = monotonic_ns()
        return events

    def read_clock(self) -> int:
        """Set `now` without polling, as a thread does that begins to."""
        self.now = monotonic_ns()
        return self.now

    def wake(self) -> None:
        """Make `poll` return; any thread and any signal handler may call it."""
        self._wake.send()

    def fileno(self) -> int:
        """Readable while `poll` would return at once, for event loops that wait themselves."""
        return self._epoll.fileno()

    def descriptors(self) -> set[int]:
        """What `close` closes; any thread may call it."""
        return {self._epoll.fileno(), *self._wake.descriptors()}

    def close(self) -> None:
        self._epoll.close()
        self._wake.close()

    # -- descriptors with a callback -----------------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Have `call_back` call `callback` whenever `fd` is readable."""
        self._readers[fd] = callback
        self._epoll.register(fd, IN)

    def remove_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._epoll.unregister(fd)

    def call_back(self, fd: int) -> None:
        """Act on an event of a descriptor that is no connection and no listener."""
        if (callback := self._readers.get(fd)) is not None:
            callback()

    # -- descriptors that workers share --------------------------------------------------------------------

    def add_shared(self, fd: int) -> None:
        """Watch a listener, or the hand-off: the kernel wakes one worker that waits (EPOLLEXCLUSIVE)."""
        try:
            self._epoll.register(fd, _SHARED)
        except OSError:
            pass  # a signal handler has closed the listeners, or the app closed what is not its own

    def remove(self, fd: int) -> None:
        """Watch a descriptor no more; any thread may call it."""
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # as above

    # -- connections ---------------------------------------------------------------------------------------

    def watch(self, connection: Connection) -> None:
        """Make a connection the polling thread's; called by the thread to which it belongs."""
        if connection.phase is CLOSED:
            return
        mask = OUT if connection.output or (connection.tls and connection.sock.wants_write) else IN
        if mask != connection.mask:
            self.watch_for(connection, mask)
        # Last: the polling thread may close a watched connection at any time, and its number be another's.
        connection.watched = True

    def unwatch(self, connection: Connection) -> None:
        """Make a connection the caller's, or that of a thread which serves it.

        Called by the polling thread, or by the serving thread that queues the connection again. The thread
        that serves it may be closing it in this very moment.
        """
        connection.watched = False
        if connection.mask:
            connection.mask = _SILENT
            try:
                self._modify(self._epoll, connection.fd, _SILENT)
            except (OSError, ValueError):
                pass  # it is closed already

    def watch_for(self, connection: Connection, event: int) -> None:
        """Have the kernel report an event of a connection, which stays the caller's."""
        known, connection.mask = connection.mask, event
        if known:
            self._modify(self._epoll, connection.fd, event)
        else:
            self._epoll.register(connection.fd, event)

    def forget(self, connection: Connection) -> None:
        """Watch a connection that is about to be closed no more; called by the thread to which it belongs.

        Not left to close(2): a process that the app forked may hold the same socket, and it would stay in the
        epoll then.
        """
        if connection.mask:
            self.remove(connection.fd)
