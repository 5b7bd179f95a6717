"""The epoll engine: the worker classes `sync` and `gthread`.

One epoll holds the listeners, the connections, the supervisor's channel, the relay and an eventfd that wakes
it. One thread at a time leads: it waits at the epoll, receives, and runs the app itself; see `lead` for how
the lead goes to another thread when the app takes long.

Slow clients cost no app time: the app is called when a request has been received whole, and what a client
does not take of an answer is kept and sent when it does.
"""

import os
import select
import socket
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from time import monotonic_ns, time
from types import FrameType
from typing import TYPE_CHECKING, Self

from supervisor.http1.errors import RequestTimeout
from supervisor.logs.access import AccessLog
from supervisor.logs.lean import Log
from supervisor.osapi.held import Held
from supervisor.osapi.process import set_timer_slack
from supervisor.scoreboard import layout
from supervisor.scoreboard.writer import CellWriter
from supervisor.settings.table import Settings
from supervisor.workers.base import BaseWorker, Context
from supervisor.workers.connection import READ_SIZE, Connection
from supervisor.workers.doors import GIFT_PAUSE, Doors, has_data
from supervisor.workers.lane import Lane
from supervisor.workers.lead import Lead
from supervisor.workers.relay import Relay
from supervisor.wsgi.exchange import App, DeadlineExceeded, Exchange

if TYPE_CHECKING:
    from ssl import SSLContext

_IN = select.EPOLLIN
# Times are CLOCK_MONOTONIC in nanoseconds throughout: the scoreboard's unit, and whole numbers are cheap.
_SECOND = 1_000_000_000
_BATCH = 64
_SWEEP = 1.0
_SWEEP_DRAINING = 0.1
# Connections looked at between two waits, so that ten thousand idle ones stop nobody.
_SWEEP_SLICE = 256
# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = _SECOND // 2
_LINGER = 2 * _SECOND
# A connection made ahead of its first request waits at least this long.
_FIRST_REQUEST = 5 * _SECOND
# An answer of which the client takes nothing.
_SEND_STALL = 60 * _SECOND
# The same, and a request of which nothing comes, while draining: one silent client must not hold up a reload.
_DRAIN_STALL = 5 * _SECOND
# When so many events come at once some of them wait long; then a sibling gets a connection.
_CROWD = 8
# A pass of the loop that takes no longer than this (ns) makes nobody wait who came during it...
_BRIEF = 250_000
# ... unless the next one takes longer than this until it is their turn.
_QUICK_PASS = layout.LEAST_QUEUED - _BRIEF
_LONG_AGO = 1_000_000 * _SECOND
# If requests take longer than this on average the lead is passed on before the app is run.
_HURRY = 300_000

# A thread that computes lets others have the interpreter lock after this time (s). Python's own 5 ms are long
# for who serves quick requests beside one that computes; an app that has chosen knows better.
_USUAL_SWITCH_INTERVAL = 0.005
_SWITCH_INTERVAL = 0.001
# How much later than asked for the kernel may end a wait (ns), instead of 50 µs: threads that wait a
# millisecond for a database should not lose a twentieth of their time.
_TIMER_SLACK = 1_000


class Engine(Doors, BaseWorker):
    """Serves one app on inherited listeners, with `settings.threads` threads.

    Args:
        app: the WSGI app.
        listeners: listening sockets, non-blocking.
        settings: of this generation.
        cell: the worker's scoreboard cell.
        log: for the app's errors.
        access: the access log, or None.
        quota: answer this many requests, then call `on_quota` (0: never).
        on_quota: asks for a successor.
        relay: to sibling workers, or None.
        tls: what connections are wrapped with, or None.
        exchange: what serves one request.
    """

    def __init__(
        self,
        app: App,
        listeners: list[socket.socket],
        settings: Settings,
        cell: CellWriter,
        log: Log,
        access: AccessLog | None,
        quota: int,
        on_quota: Callable[[int], None],
        relay: Relay | None = None,
        tls: "SSLContext | None" = None,
        exchange: type[Exchange] = Exchange,
    ) -> None:
        super().__init__(app, listeners, settings, cell, log, access, quota, on_quota, relay, tls, exchange)
        self._cell = cell
        self._keepalive = int(settings.keepalive * _SECOND)
        self._graceful_timeout = int(settings.graceful_timeout * _SECOND)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, _IN)
        self._readers: dict[int, Callable[[], None]] = {self._wake: self._drain_wake}
        self._events: deque[tuple[int, int]] = deque()
        # Whole requests that the watcher has received.
        self._ready: deque[Connection] = deque()
        self._sweeping: list[Connection] = []
        self._lead = Lead(settings.threads, self._let_go, self._mind, self.wake)
        if self._threads > 1:
            self._held = Held(READ_SIZE)
            self._read = self._read_in_a_crowd
            self._modify = self._modify_in_a_crowd
            self._send_now = self._send_in_a_crowd
        self._in_hand: Connection | None = None
        # The lead was lent from within a request, by `attend`.
        self._attended = False
        self._lane: Lane | None = None  # the first thread's
        self._next_sweep = self._next_gift = 0
        self._drain_began = 0
        self._drain_deadline: int | None = None
        self._abandoned = False
        self._done = False
        self._next_second = 0
        # When all that was found in the last pass had been served.
        self._worked_until = 0

    # -- what the worker's life cycle calls --------------------------------------------------------------

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(
            context.app,
            context.listeners,
            context.settings,
            context.cell,
            context.log,
            context.access,
            context.quota,
            context.on_quota,
            context.relay,
            context.tls,
            context.exchange,
        )

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.deadlines.interrupt(signum, frame)

    def extend_deadline(self, seconds: float) -> None:
        self.deadlines.extend(seconds)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call `callback` in the loop whenever `fd` is readable."""
        self._readers[fd] = callback
        self._epoll.register(fd, _IN)

    def remove_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._epoll.unregister(fd)

    def wake(self) -> None:
        """Make the loop look around; may be called from a signal handler."""
        os.eventfd_write(self._wake, 1)

    def drain(self, hand_over: bool = False) -> None:
        """Stop accepting; `run` returns when what is there has been answered or the time is over.

        May be called from a signal handler: it only leaves a note for the loop.

        Args:
            hand_over: others go on serving: give idle connections to them.
        """
        self._hand_over = hand_over and self._relay is not None and self._tls is None
        self.draining = True
        self.wake()

    def attend(self) -> None:
        """A message came, maybe while the only thread is in the app: let a watcher read it and mind the rest.

        Must be called from a signal handler of the main thread, and does nothing unless there is a need.
        """
        lane = self._lane
        if lane is None or not lane.words[layout.STARTED] or self._lead.watched or self._relay is None:
            return
        if self._attended:
            return  # the next message came while this function does its work
        self._attended = True
        if self._start_watcher():
            self._lead.lend(lane)
        else:
            self._attended = False

    def stop(self) -> None:
        """Make `run` return after what is being served right now; may be called from a signal handler."""
        self._done = True
        self.wake()

    def abandon(self) -> None:
        """Drain, and let go of the listeners at once: another daemon may want the addresses.

        May be called from a signal handler of the main thread.
        """
        self._abandoned = True
        self.drain()
        if self._threads == 1 and not self._lead.watched:
            self._let_listeners_go()  # nobody else would while this thread is in the app

    def _let_listeners_go(self) -> None:
        self._accept_off()
        for listener, _ in self._listeners.values():
            listener.close()

    def run(self) -> None:
        """Serve until drained. The calling thread is one of the engine's."""
        others = [
            threading.Thread(target=self._run, args=(number,), name=f"ostler-{number + 1}", daemon=True)
            for number in range(1, self._threads)
        ]
        if others:
            self._lead.watch()
            set_timer_slack(_TIMER_SLACK)
            if sys.getswitchinterval() == _USUAL_SWITCH_INTERVAL:
                sys.setswitchinterval(_SWITCH_INTERVAL)
        for thread in others:
            thread.start()
        try:
            self._run(0)
        finally:
            self._lead.stop()
            if self._access is not None:
                self._access.flush()
        for thread in others:
            thread.join(max(0, (self._drain_deadline or 0) - monotonic_ns()) / _SECOND)

    def descriptors(self) -> set[int]:
        """What `close` will close; called by the leader."""
        return {self._epoll.fileno(), self._wake, *self._connections}

    def run_once(self) -> None:
        """Serve what is there now, without waiting."""
        lane = Lane(self._cell, 0)
        self._wait(lane, 0.0)
        self._serve_events(lane)

    def close(self) -> None:
        """Give back all descriptors but the listeners'."""
        lane = Lane(self._cell, 0)
        for connection in list(self._connections.values()):
            self._close(connection, lane)
        self._epoll.close()
        os.close(self._wake)

    # -- the loop ----------------------------------------------------------------------------------------

    def _run(self, thread: int) -> None:
        lane = Lane(self._cell, thread)
        if thread == 0:
            self._lane = lane
        while not self._done:
            self._lead.take(self._average > _HURRY)
            self._now = monotonic_ns()
            # What another thread has left, and what came meanwhile, waits for longer than this one knows.
            self._worked_until = self._now + _LONG_AGO
            lane.quick_until = 0
            leads = True
            try:
                leads = self._lead_on(lane)
            except Exception:
                # A defect of ours; the main thread's ends the worker, and so must another's.
                self.stop()
                if thread == 0:
                    raise
                self._log.error("internal_error", traceback=traceback.format_exc())
                self._lead.give_up()
                return
            if leads:
                self._lead.give()

    def _lead_on(self, lane: Lane) -> bool:
        """Lead until the end; False if the lead is somebody else's before."""
        while not self._done:
            if not self._events:
                self._wait(lane, self._patience())
            if not self._serve_events(lane):
                return False
        return True

    def _patience(self) -> float:
        if self._done or self._ready or self._sweeping:
            return 0.0
        return _SWEEP_DRAINING if self.draining else _SWEEP

    def _wait(self, lane: Lane, patience: float) -> None:
        """Wait for events, as the leader, and put them into the queue."""
        if self._now >= self._next_sweep or self._sweeping or self.draining:
            # As of the last look at the sockets: what came while the app was busy is not late.
            self._sweep(self._now, lane)
        if not self._accepting:
            self._accept_on_again(monotonic_ns())
        if self._access is not None:
            self._access.flush()
        unseen = self._worked_until - self._now
        events = self._poll(0.0 if self._done else patience)
        self._cell.header[layout.HEARTBEAT] = self._now = now = monotonic_ns()
        # A request has waited at most for as long as nobody looked, plus the time that those before it take.
        lane.quick_until = now + (_QUICK_PASS if unseen < _BRIEF else layout.LEAST_QUEUED - unseen)
        if now >= self._next_second:
            self._tell_time(now)
        if events:
            self._events.extend(events)
        elif self._accepting and not self._sweeping:
            # An idle worker looks for connections that the kernel announced to a sibling which is busy now.
            self._events.extend((fd, _IN) for fd in self._doors)

    def _poll(self, patience: float) -> list[tuple[int, int]]:
        if self._threads > 1 and self._lead.crowded and (events := self._held.poll(self._epoll.fileno())):
            return events
        return self._epoll.poll(patience, _BATCH)

    def _tell_time(self, now: int) -> None:
        """Make the lines that change once a second (RFC 9110 section 6.6.1)."""
        wall = time()
        self._date_server = f"Server: ostler\r\nDate: {formatdate(wall, usegmt=True)}\r\n".encode()
        self._next_second = now + int((1 - wall % 1) * _SECOND)

    def _serve_events(self, lane: Lane) -> bool:
        """Serve what came, as the leader; False if the lead is somebody else's afterwards."""
        while self._ready:
            connection = self._ready.popleft()
            lane.quick_until = connection.idle_since + layout.LEAST_QUEUED
            if not self._serve_next(connection, lane):
                return False
        events = self._events
        connections = self._connections
        now = self._now
        crowd = len(events) >= _CROWD
        if crowd and now >= self._next_gift and self._relay is not None and self._accepting:
            self._share(now, lane)
        arrivals: list[int] = []
        while events:
            fd, _ = events.popleft()
            known = connections.get(fd)
            if known is None:
                if fd in self._doors:
                    arrivals.append(fd)
                else:
                    self._other_event(fd)
            elif known.armed and self._receive(known, lane, now):
                if not self._serve_next(known, lane):
                    events.extend((fd, _IN) for fd in arrivals)
                    return False
                now = known.idle_since  # when its answer was given
        if arrivals:
            # They wait for whoever is free: that we were says nothing of them.
            lane.quick_until = 0
        # Last: a connection that came while the app was busy has gone to a sibling that was not.
        for fd in arrivals:
            newcomer = self._take(lane) if fd == self._relay_fd else self._accept(fd, lane, now)
            if newcomer is not None and self._receive(newcomer, lane, now):
                if not self._serve_next(newcomer, lane):
                    return False
                now = newcomer.idle_since
        # Requests say when they ended. Of other events only many matter.
        self._worked_until = monotonic_ns() if crowd else now
        return True

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

    def _serve_next(self, connection: Connection, lane: Lane) -> bool:
        """Serve a connection's requests, as the leader; whether the caller still leads afterwards."""
        lead = self._lead
        if not lead.watched:
            self._in_hand = connection
            try:
                self._serve(connection, lane)
            except (Exception, DeadlineExceeded):  # noqa: BLE001 - see _fail
                self._fail(connection, lane)
            if self._attended:
                still_leading = lead.come_back(lane)
                self._watch(connection)
                return still_leading
            if connection.outbox or connection.mask != _IN:
                self._watch(connection)
            if self._had_long and self._relay is not None:
                self._start_watcher()
            return True
        if self._average > _HURRY and lead.wanted:
            self._disarm(connection)
            lead.give()
            self._serve_safely(connection, lane)
            self._watch(connection)
            return False
        self._in_hand = connection
        lead.lend(lane)
        self._serve_safely(connection, lane)
        still_leading = lead.come_back(lane)
        self._watch(connection)
        return still_leading

    def _read_in_a_crowd(self, fd: int, size: int) -> bytes:
        return self._held.recv(fd) if self._lead.crowded else os.read(fd, size)

    def _modify_in_a_crowd(self, fd: int, mask: int) -> None:
        if self._lead.crowded:
            self._held.modify(self._epoll.fileno(), fd, mask)
        else:
            self._epoll.modify(fd, mask)

    def _send_in_a_crowd(self, sock: socket.socket, data: bytes) -> int:
        if self._lead.crowded and len(data) <= READ_SIZE:
            return self._held.send(sock.fileno(), data)
        return sock.send(data)

    def _start_watcher(self) -> bool:
        try:
            self._lead.watch()
        except RuntimeError as error:  # no more threads may be made: it goes on as before
            self._had_long = False
            self._log.warning("no_watcher", reason=str(error))
            return False
        return True

    def _let_go(self) -> None:
        if self._in_hand is not None:
            self._disarm(self._in_hand)

    def _mind(self) -> None:
        """Lead without serving while all threads are in the app; called by the watcher."""
        try:
            self._mind_connections(Lane(self._cell, self._threads))
        except Exception:  # noqa: BLE001 - a defect of ours, as in _run
            self._log.error("internal_error", traceback=traceback.format_exc())
            self.stop()

    def _mind_connections(self, lane: Lane) -> None:
        # Siblings that are free take what comes; it must not wake us.
        self._accept_off()
        while not self._done and not self._lead.wanted:
            if not self._events:
                if self._now >= self._next_sweep or self._sweeping or self.draining:
                    self._sweep(self._now, lane)
                # What is ready waits for a thread, not for us.
                self._events.extend(self._epoll.poll(_SWEEP_DRAINING if self.draining else _SWEEP, _BATCH))
                self._cell.header[layout.HEARTBEAT] = self._now = monotonic_ns()
            while self._events and not self._lead.wanted:
                fd, _ = self._events.popleft()
                connection = self._connections.get(fd)
                if connection is None:
                    self._other_event(fd)
                elif (
                    connection.armed
                    and not self._give_waiting(connection, lane)
                    and self._receive(connection, lane, self._now)
                ):
                    self._disarm(connection)
                    connection.idle_since = self._now
                    self._ready.append(connection)

    def _drain_wake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # another thread has read it

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
            self._next_sweep = now + int((_SWEEP_DRAINING if self.draining else _SWEEP) * _SECOND)
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
        if self._relay is not None and not self._hand_over:
            # All workers leave: what one of them gave away just before is nobody else's.
            while (connection := self._take(lane)) is not None:
                self._watch(connection)

    def _look_at(self, connection: Connection, now: int, lane: Lane) -> None:
        if connection.is_idle:
            if self._hand_over and self._give(connection, lane):
                return
            if connection.template is not None and now - connection.idle_since > _SECOND:
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
