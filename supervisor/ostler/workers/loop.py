"""What the engines have in common: an epoll, what is in it, and what time brings.

One epoll holds the listeners, the connections, the supervisor's channel, the hand-off and an eventfd that
wakes it. What waits at it, and in what the app runs, is the engine's own: threads that take turns (`engine`),
or greenlets (`greenlets`).
"""

import select
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic_ns, time
from types import FrameType
from typing import ClassVar, Self

from ostler.http1.errors import RequestTimeout
from ostler.osapi.wake import Wake
from ostler.workers.base import BaseWorker, Context
from ostler.workers.connection import Connection
from ostler.workers.doors import GIFT_PAUSE, Doors, has_data
from ostler.workers.lane import Lane

IN = select.EPOLLIN
# Times are CLOCK_MONOTONIC in nanoseconds throughout: the scoreboard's unit, and whole numbers are cheap.
SECOND = 1_000_000_000
BATCH = 64
SWEEP = 1.0
SWEEP_DRAINING = 0.1
# When so many events come at once some of them wait long; then a sibling gets a connection.
CROWD = 8
# Connections looked at between two waits, so that ten thousand idle ones stop nobody.
_SWEEP_SLICE = 256
# Connections taken at once from siblings that leave as well.
_MOST_LEFT = 256
# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = SECOND // 2
_LINGER = 2 * SECOND
# A connection made ahead of its first request waits at least this long.
_FIRST_REQUEST = 5 * SECOND
# An answer of which the client takes nothing.
_SEND_STALL = 60 * SECOND
# The same, and a request of which nothing comes, while draining: one silent client must not hold up a reload.
_DRAIN_STALL = 5 * SECOND


class Loop(Doors, BaseWorker):
    """Keeps the connections of one app on inherited listeners; a part of the engines."""

    calls_request_hooks: ClassVar[bool] = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings = context.settings
        self._cell = context.cell
        self._keepalive = int(settings.keepalive * SECOND)
        self._graceful_timeout = int(settings.graceful_timeout * SECOND)
        self._wake = Wake()
        self._epoll.register(self._wake.fd, IN)
        self._readers: dict[int, Callable[[], None]] = {self._wake.fd: self._wake.clear}
        self._events: deque[tuple[int, int]] = deque()
        # Whole requests that wait for somebody who serves them.
        self._ready: deque[Connection] = deque()
        self._sweeping: list[Connection] = []
        self._next_sweep = self._next_gift = 0
        self._drain_began = 0
        self._drain_deadline: int | None = None
        self._abandoned = False
        self._done = False
        self._next_second = 0

    # -- what the worker's life cycle calls --------------------------------------------------------------

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(context)

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.deadlines.interrupt(signum, frame)

    def extend_deadline(self, seconds: float) -> None:
        self.deadlines.extend(seconds)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop whenever `fd` is readable."""
        self._readers[fd] = callback
        self._epoll.register(fd, IN)

    def remove_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._epoll.unregister(fd)

    def wake(self) -> None:
        """Make the loop look around; may be called from a signal handler."""
        self._wake.send()

    def drain(self, hand_over: bool = False, seconds: float | None = None) -> None:  # noqa: ARG002
        """Stop accepting; `run` returns when what is there has been answered or the time is over.

        May be called from a signal handler: it only leaves a note for the loop.

        Args:
            hand_over: others go on serving: give idle connections to them.
        """
        self._hand_over = hand_over and self._handoff is not None and self._tls is None
        self.draining = True
        self.wake()

    def stop(self) -> None:
        """Make `run` return after what is being served right now; may be called from a signal handler."""
        self._done = True
        self.wake()

    def _let_listeners_go(self) -> None:
        self._accept_off()
        for listener, _ in self._listeners.values():
            listener.close()

    def descriptors(self) -> set[int]:
        """What `close` will close; called by the leader."""
        return {self._epoll.fileno(), *self._wake.descriptors(), *self._connections}

    def close(self) -> None:
        """Give back all descriptors but the listeners'."""
        lane = Lane(self._cell, 0)
        for connection in list(self._connections.values()):
            self._close(connection, lane)
        self._epoll.close()
        self._wake.close()

    # -- a pass of the loop ------------------------------------------------------------------------------

    def _tell_time(self, now: int) -> None:
        """Make the lines that change once a second (RFC 9110 section 6.6.1), and write those due by then."""
        self._limited.report()
        wall = time()
        self._date_server = f"Server: ostler\r\nDate: {formatdate(wall, usegmt=True)}\r\n".encode()
        self._next_second = now + int((1 - wall % 1) * SECOND)

    def _share(self, now: int, lane: Lane) -> None:
        """Give one of many connections that wait here to whoever looks for work first.

        So workers that are new, or that a burst of connections has passed by, get their share of connections
        that stay open. If all are as busy it comes back, and the next is given later.
        """
        if self._gift_out:
            self._gift_pause = max(self._gift_pause // 2, GIFT_PAUSE)
        self._next_gift = now + self._gift_pause
        connection = self._connections.get(self._events[-1][0])
        if connection is not None and connection.armed and self._give_waiting(connection, lane):
            self._events.pop()
            self._gift_out = True

    def _other_event(self, fd: int) -> None:
        """An event of no connection and no listener."""
        if (callback := self._readers.get(fd)) is not None:
            callback()

    # -- what time brings --------------------------------------------------------------------------------

    def _sweep(self, now: int, lane: Lane) -> None:
        """Look at some connections: close what idles too long, give away what can be, end when drained."""
        if self.draining:
            self._go_on_draining(lane)
        if not self._sweeping:
            self._sweeping = list(self._connections.values())
            self._next_sweep = now + int((SWEEP_DRAINING if self.draining else SWEEP) * SECOND)
            self._handoff_on_again(now)
        size = len(self._sweeping) if self.draining else _SWEEP_SLICE
        batch = self._sweeping[-size:]
        del self._sweeping[-size:]
        for connection in batch:
            if connection.armed and not connection.closed:
                self._look_at(connection, now, lane)
        if (self.draining and not (self._connections or self._events or self._ready)) or (
            self._drain_deadline is not None and now >= self._drain_deadline
        ):
            self._done = True

    def _go_on_draining(self, lane: Lane) -> None:
        if self._abandoned:
            self._let_listeners_go()
        else:
            self._accept_off()
        if self._drain_deadline is None:
            # Who gives its connections away need not tell clients to close them.
            self._keep_connections = self._keep_connections and self._hand_over
            self._drain_began = monotonic_ns()
            self._drain_deadline = self._drain_began + self._graceful_timeout
        if self._handoff is not None and not self._hand_over:
            # All workers leave: what one of them gave away just before is nobody else's. There may be no end
            # of it: the rest waits for the next sweep.
            for _ in range(_MOST_LEFT):
                if (connection := self._take(lane)) is None:
                    break
                self._watch(connection)

    def _look_at(self, connection: Connection, now: int, lane: Lane) -> None:
        if connection.is_idle:
            if self._hand_over and self._give(connection, lane):
                return
            if connection.template is not None and now - connection.idle_since > SECOND:
                # Ten thousand idle connections should not remember ten thousand sets of header fields.
                connection.template = connection.template_head = None
                connection.parser.forget()
        if not self._is_stale(connection, now):
            return
        if connection.parser.receiving and not connection.lingering and not connection.outbox:
            self._refuse(connection, RequestTimeout("the request came too slowly"), lane)
            self._watch(connection)
        else:
            self._close(connection, lane)

    def _is_stale(self, connection: Connection, now: int) -> bool:
        """Whether a connection has idled too long, or takes too long for its request."""
        idle = now - connection.idle_since
        if connection.lingering:
            return idle > _LINGER
        if connection.outbox:
            return idle > (_DRAIN_STALL if self.draining else _SEND_STALL)
        if connection.parser.receiving or connection.is_unprepared:
            deadline = connection.receive_deadline()
            return 0 < deadline < now or (self.draining and idle > _DRAIN_STALL)
        limit = self._keepalive if connection.served else max(self._keepalive, _FIRST_REQUEST)
        if self.draining:
            limit = min(limit, _DRAIN_IDLE)
            idle = min(idle, now - self._drain_began)
        return idle > limit and not has_data(connection)
