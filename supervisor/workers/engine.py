"""The epoll engine: the worker classes `sync` and `gthread`.

One epoll holds the listeners, the connections, the supervisor's channel and an eventfd that wakes it. With
one thread the loop is just that. With N threads they take turns (leader/follower): the leader waits for
events, takes one connection that has a whole request, hands the lead to the next thread, and runs the app
itself. No queue, no hand-off: the thread that read the request answers it.

Who owns a connection is the kernel's word: with several threads connections are armed EPOLLONESHOT, so a
connection belongs to the thread that got its event until that thread arms it again, and all armed ones
belong to the leader.

Slow clients cost no app time: the app is called when a request has been received whole, and what a client
does not take of an answer is kept and sent when it does.
"""

import os
import select
import socket
import threading
import traceback
from collections import deque
from collections.abc import Callable
from email.utils import formatdate
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from time import monotonic_ns, time

from supervisor.http1 import response
from supervisor.http1.errors import BodyNotStored, ProtocolViolation
from supervisor.http1.request import Request
from supervisor.logs.access import AccessLog, Served
from supervisor.logs.lean import Log
from supervisor.scoreboard import layout
from supervisor.scoreboard.writer import CellWriter
from supervisor.settings.table import Settings
from supervisor.workers.connection import Connection
from supervisor.wsgi.environ import (
    Environ,
    connection_environ,
    listener_environ,
    request_environ,
    worker_environ,
)
from supervisor.wsgi.exchange import App, ClientGone, Exchange

# Names of this module are found quicker than another's, and these are read for every request.
_STARTED, _STATUS_CLASSES, _BYTES_SENT, _HISTOGRAM = (
    layout.STARTED,
    layout.STATUS_CLASSES,
    layout.BYTES_SENT,
    layout.HISTOGRAM,
)
# The histogram's bucket for what takes less than 4 ms, by its length in 1.024 µs.
_QUICK = [layout.bucket_of(units << 10) for units in range(4096)]
_QUICK_NS = len(_QUICK) << 10

_IN, _OUT, _ONESHOT = select.EPOLLIN, select.EPOLLOUT, select.EPOLLONESHOT
# Times are CLOCK_MONOTONIC in nanoseconds throughout: the scoreboard's unit, and whole numbers are cheap.
_SECOND = 1_000_000_000
_READ_SIZE = 64 * 1024
_BATCH = 64
# Out of descriptors or memory: accepting pauses this long instead of spinning on a listener that stays ready.
_ACCEPT_PAUSE = 1 * _SECOND
_SWEEP = 1.0
_SWEEP_DRAINING = 0.1
# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = _SECOND // 2
_LINGER = 2 * _SECOND
# A connection made ahead of its first request waits at least this long.
_FIRST_REQUEST = 5 * _SECOND
# A request that has begun and of which nothing more comes.
_RECEIVE_STALL = 60 * _SECOND
# The same while draining: one silent client must not hold up a reload.
_DRAIN_STALL = 5 * _SECOND


class Lane:
    """One thread's scoreboard lane and what it remembers of its last request."""

    __slots__ = ("last_method", "last_target", "text", "words")

    def __init__(self, cell: CellWriter, thread: int) -> None:
        self.words, self.text = cell.lane(thread)
        self.words[layout.IDENT] = threading.get_ident()
        self.last_method = ""
        self.last_target = b""


class Engine:
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
    ) -> None:
        self._app = app
        self._cell = cell
        self._log = log
        self._access = access
        self._quota = quota
        self._on_quota = on_quota
        self._threads = settings.threads
        self._keepalive = int(settings.keepalive * _SECOND)
        self._graceful_timeout = int(settings.graceful_timeout * _SECOND)
        self._keep_connections = settings.keepalive > 0
        self._oneshot = _ONESHOT if self._threads > 1 else 0
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, _IN)
        self._readers: dict[int, Callable[[], None]] = {self._wake: self._drain_wake}
        shared = worker_environ(multithread=self._threads > 1)
        self._listeners: dict[int, tuple[socket.socket, Environ]] = {
            listener.fileno(): (listener, listener_environ(shared, listener.getsockname()))
            for listener in listeners
        }
        self._connections: dict[int, Connection] = {}
        self._events: deque[tuple[int, int]] = deque()
        self._leader = threading.Lock()
        self._arming = threading.Lock()
        self._accepting = False
        self._resume_accepting: int | None = None
        self._next_sweep = 0
        self._drain_began = 0
        self._drain_deadline: int | None = None
        self._done = False
        self._date_second = 0
        self._date_server = b""
        self._answered = 0
        self.draining = False

    # -- what the worker's life cycle calls --------------------------------------------------------------

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

    def drain(self) -> None:
        """Stop accepting; `run` returns when what is there has been answered or the time is over.

        May be called from a signal handler: it only leaves a note for the loop.
        """
        self.draining = True
        self.wake()

    def stop(self) -> None:
        """Make `run` return after what is being served right now; may be called from a signal handler."""
        self._done = True
        self.wake()

    def abandon(self) -> None:
        """Drain, and let go of the listeners at once: another daemon may want the addresses.

        May be called from a signal handler of the main thread.
        """
        self._accept_off()
        for listener, _ in self._listeners.values():
            listener.close()
        self.drain()

    def run(self) -> None:
        """Serve until drained. The calling thread is one of the engine's."""
        self._accept_on()
        others = [
            threading.Thread(
                target=self._run_shared, args=(number,), name=f"ostler-{number + 1}", daemon=True
            )
            for number in range(1, self._threads)
        ]
        for thread in others:
            thread.start()
        if others:
            self._run_shared(0)
            for thread in others:
                thread.join(max(0, (self._drain_deadline or 0) - monotonic_ns()) / _SECOND)
        else:
            self._run_alone()

    def run_once(self) -> None:
        """Serve what is there now, without waiting."""
        if not self._accepting:
            self._accept_on()
        self._pass(Lane(self._cell, 0), 0)

    def close(self) -> None:
        """Give back all descriptors but the listeners'."""
        for connection in list(self._connections.values()):
            self._close(connection, Lane(self._cell, 0))
        self._epoll.close()
        os.close(self._wake)

    # -- the loops ---------------------------------------------------------------------------------------

    def _run_alone(self) -> None:
        lane = Lane(self._cell, 0)
        while not self._done:
            self._pass(lane, self._patience())

    def _pass(self, lane: Lane, patience: float) -> None:
        """One pass of the only thread: wait, then serve all that came."""
        events = self._epoll.poll(patience, _BATCH)
        self._cell.header[layout.HEARTBEAT] = now = monotonic_ns()
        self._tick()
        connections = self._connections
        others: list[int] = []
        for fd, _ in events:
            connection = connections.get(fd)
            if connection is None:
                others.append(fd)
            elif self._receive(connection, lane, now):
                self._serve_safely(connection, lane)
        if not events:
            # An idle worker looks for connections that the kernel announced to a sibling which is busy now.
            others.extend(self._listeners)
        # Last: a connection that came while the app was busy has gone to a sibling that was not.
        for fd in others:
            connection = self._other_event(fd, lane, now)
            if connection is not None and self._receive(connection, lane, now):
                self._serve_safely(connection, lane)
        if now >= self._next_sweep or self.draining:
            self._sweep(now, lane)

    def _run_shared(self, thread: int) -> None:
        lane = Lane(self._cell, thread)
        while True:
            with self._leader:
                connection = self._lead(lane)
            if connection is None:
                return
            self._serve_safely(connection, lane)
            self._arm(connection)

    def _lead(self, lane: Lane) -> Connection | None:
        """Wait, as the leader, for a connection with a whole request; None when the engine is done."""
        while not self._done:
            if not self._events:
                now = monotonic_ns()
                if now >= self._next_sweep or self.draining:
                    # While no event is pending: whatever is armed is the leader's to close.
                    self._sweep(now, lane)
                events = self._epoll.poll(self._patience(), _BATCH)
                self._events.extend(events or [(listener, _IN) for listener in self._listeners])
                self._cell.header[layout.HEARTBEAT] = monotonic_ns()
                self._tick()
            now = monotonic_ns()
            while self._events:
                fd, _ = self._events.popleft()
                connection = self._connections.get(fd) or self._other_event(fd, lane, now)
                if connection is None:
                    continue
                connection.armed = False
                if self._receive(connection, lane, now):
                    return connection
                self._arm(connection)
        return None

    def _patience(self) -> float:
        return _SWEEP_DRAINING if self.draining else _SWEEP

    def _tick(self) -> None:
        second = int(time())
        if second != self._date_second:
            self._date_second = second
            self._date_server = f"Server: ostler\r\nDate: {formatdate(second, usegmt=True)}\r\n".encode()

    def _drain_wake(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # another thread has read it

    def _other_event(self, fd: int, lane: Lane, now: int) -> Connection | None:
        """An event of no connection; a listener's brings a new one, whose request is probably there."""
        if fd in self._listeners:
            return self._accept(fd, lane, now)
        if fd in self._readers:
            self._readers[fd]()
        return None

    # -- accepting ---------------------------------------------------------------------------------------

    def _accept_on(self) -> None:
        for fd in self._listeners:
            # Of the workers that wait, the kernel wakes one, not all.
            self._epoll.register(fd, _IN | select.EPOLLEXCLUSIVE)
        self._accepting = True

    def _accept_off(self) -> None:
        if self._accepting:
            for fd in self._listeners:
                self._epoll.unregister(fd)
        self._accepting = False

    def _accept(self, listener_fd: int, lane: Lane, now: int) -> Connection | None:
        """Take one connection: taking all would leave siblings idle that were woken for the same."""
        listener, environ = self._listeners[listener_fd]
        if not self._accepting:
            return None
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                self._accept_off()
                self._resume_accepting = now + _ACCEPT_PAUSE
                self._log.error("accept_paused", reason=error.strerror, seconds=_ACCEPT_PAUSE // _SECOND)
            return None  # a sibling was quicker, or the client went away again
        sock.setblocking(False)
        connection = Connection(sock, connection_environ(environ, peer), monotonic_ns())
        self._connections[connection.fd] = connection
        lane.words[layout.OPENED] += 1
        if not self._oneshot:
            self._watch(connection, _IN)
        # With several threads it belongs to the one that accepted it, until that one arms it: a descriptor
        # that the epoll knows reports hang-ups whatever it was registered for.
        return connection

    # -- one connection ----------------------------------------------------------------------------------

    def _receive(self, connection: Connection, lane: Lane, now: int) -> bool:
        """Do the I/O that an event is about; True if there is a request to serve."""
        try:
            return self._do_io(connection, lane, now)
        except Exception:  # noqa: BLE001 - as in _serve_safely
            self._log.error("internal_error", traceback=traceback.format_exc())
            self._close(connection, lane)
            return False

    def _do_io(self, connection: Connection, lane: Lane, now: int) -> bool:
        if connection.unsent:
            return self._flush(connection, lane, now)
        try:
            data = connection.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            self._close(connection, lane)
            return False
        if not data:
            self._close(connection, lane)
            return False
        if connection.lingering:
            return False
        connection.idle_since = now
        parser = connection.parser
        try:
            parser.feed(data)
        except ProtocolViolation as violation:
            connection.violation = violation
        if parser.requests:
            return True
        self._settle(connection, lane)
        return False

    def _flush(self, connection: Connection, lane: Lane, now: int) -> bool:
        """Go on with an answer the client was slow to take; True if a request waits behind it."""
        connection.idle_since = now
        try:
            if not connection.flush():
                return False
        except ClientGone:
            self._close(connection, lane)
            return False
        if not self._oneshot:
            self._epoll.modify(connection.fd, _IN)
        if connection.closing:
            self._linger(connection, lane)
            return False
        if connection.parser.requests:
            return True
        self._settle(connection, lane)
        return False

    def _settle(self, connection: Connection, lane: Lane) -> None:
        """All requests are answered: say what else the client is to hear."""
        if connection.violation is not None:
            self._refuse(connection, connection.violation, lane)
        elif connection.parser.wants_continue:
            connection.parser.wants_continue = False
            self._send(connection, response.CONTINUE, lane)

    def _arm(self, connection: Connection) -> None:
        """Give a connection back to the leader (several threads only)."""
        # The lock keeps the leader from closing it between the two steps, after which its number could
        # already be another connection's.
        with self._arming:
            if not connection.closed:
                connection.armed = True
                self._watch(connection, (_OUT if connection.unsent else _IN) | _ONESHOT)

    def _watch(self, connection: Connection, mask: int) -> None:
        if connection.watched:
            self._epoll.modify(connection.fd, mask)
        else:
            connection.watched = True
            self._epoll.register(connection.fd, mask)

    def _send(self, connection: Connection, data: bytes, lane: Lane) -> None:
        try:
            connection.send(data)
        except ClientGone:
            self._close(connection, lane)
            return
        if connection.unsent and not self._oneshot:
            self._epoll.modify(connection.fd, _OUT)

    def _refuse(self, connection: Connection, violation: ProtocolViolation, lane: Lane) -> None:
        if isinstance(violation, BodyNotStored):
            self._log.error("body_not_stored", reason=str(violation))
        connection.closing = True
        text = f"{violation.status[4:]}\n"
        self._send(connection, response.plain_answer(violation.status, text, self._date_server), lane)
        if not connection.unsent:
            self._linger(connection, lane)

    def _linger(self, connection: Connection, lane: Lane) -> None:
        connection.lingering = True
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection, lane)

    def _close(self, connection: Connection, lane: Lane) -> None:
        if not connection.closed:
            connection.closed = True
            del self._connections[connection.fd]
            lane.words[layout.CLOSED] += 1
            # Not left to close(): a process that the app forked may hold the same socket. It would stay in
            # the epoll then, and the client would not see the end.
            if connection.watched:
                self._epoll.unregister(connection.fd)
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was quicker
            connection.sock.close()

    # -- one request -------------------------------------------------------------------------------------

    def _serve_safely(self, connection: Connection, lane: Lane) -> None:
        try:
            self._serve(connection, lane)
        except Exception:  # noqa: BLE001 - a defect of ours must cost one connection, not a thread or worker
            lane.words[_STARTED] = 0
            self._log.error("internal_error", traceback=traceback.format_exc())
            self._close(connection, lane)

    def _serve(self, connection: Connection, lane: Lane) -> None:
        """Answer the requests that are there, as far as the client takes the answers."""
        words = lane.words
        requests = connection.parser.requests
        while requests and not connection.unsent:
            request = requests.pop(0)
            keep_alive = request.keep_alive and self._keep_connections
            exchange = Exchange(request, connection, self._date_server, keep_alive)
            environ = request_environ(connection.environ, request)
            if request.target != lane.last_target or request.method != lane.last_method:
                self._note_request(lane, request.method, request.target)
            words[_STARTED] = started = monotonic_ns()
            gone = False
            try:
                exchange.run(self._app, environ)
            except ClientGone:
                gone = True
            words[_STARTED] = 0
            connection.idle_since = ended = monotonic_ns()
            took = ended - started
            words[_STATUS_CLASSES + exchange.code // 100] += 1
            words[_HISTOGRAM + (_QUICK[took >> 10] if took < _QUICK_NS else layout.bucket_of(took))] += 1
            words[_BYTES_SENT] += exchange.sent
            if exchange.error is not None or self._access is not None:
                self._log_request(request, exchange, environ, took)
            if self._quota:
                self._count_down()
            connection.served = True
            if gone:
                self._close(connection, lane)
                return
            if not exchange.keep_alive:
                self._end(connection, request.keep_alive, lane)
                return
        if connection.unsent:
            if not self._oneshot:
                self._epoll.modify(connection.fd, _OUT)
        else:
            self._settle(connection, lane)

    def _log_request(self, request: Request, exchange: Exchange, environ: Environ, took: int) -> None:
        if exchange.error is not None:
            self._log.error(
                "request_failed",
                method=request.method,
                path=request.target.partition(b"?")[0].decode("latin-1"),
                traceback=exchange.error,
            )
        if self._access is not None:
            self._access.write(
                Served(
                    request.method,
                    request.target.decode("latin-1"),
                    request.protocol,
                    environ,
                    exchange.status,
                    exchange.headers,
                    exchange.sent,
                    took,
                )
            )

    def _end(self, connection: Connection, surprise: bool, lane: Lane) -> None:
        """The last answer of a connection was given; `surprise`: the client did not ask for the end."""
        connection.closing = True
        connection.parser.requests.clear()
        if connection.unsent:
            if not self._oneshot:
                self._epoll.modify(connection.fd, _OUT)
        elif surprise:
            # It may be sending the next request already; a plain close would answer that with a reset,
            # which can take away the answer that is on its way.
            self._linger(connection, lane)
        else:
            self._close(connection, lane)

    def _note_request(self, lane: Lane, method: str, target: bytes) -> None:
        """Put the request's name into the scoreboard; only while nothing is in flight in the lane."""
        lane.last_method, lane.last_target = method, target
        name = method.encode("latin-1")[: layout.METHOD_SIZE]
        path = target[: layout.PATH_SIZE]
        lane.text[: len(name)] = name
        lane.text[layout.METHOD_SIZE : layout.METHOD_SIZE + len(path)] = path
        lane.words[layout.METHOD_LENGTH] = len(name)
        lane.words[layout.PATH_LENGTH] = len(path)

    def _count_down(self) -> None:
        self._answered += 1
        if self._answered >= self._quota:
            self._quota = 0
            self._on_quota(self._answered)

    # -- what time brings --------------------------------------------------------------------------------

    def _sweep(self, now: int, lane: Lane) -> None:
        """Close what idles too long, go on accepting after a pause, end when drained."""
        self._next_sweep = now + int(self._patience() * _SECOND)
        if self.draining:
            self._keep_connections = False
            if self._drain_deadline is None:
                self._accept_off()
                self._drain_began = now
                self._drain_deadline = now + self._graceful_timeout
            self._resume_accepting = None
        elif self._resume_accepting is not None and now >= self._resume_accepting:
            self._resume_accepting = None
            self._accept_on()
        for connection in list(self._connections.values()):
            with self._arming:
                if self._is_stale(connection, now):
                    self._close(connection, lane)
        if (self.draining and not self._connections and not self._events) or (
            self._drain_deadline is not None and now >= self._drain_deadline
        ):
            self._done = True

    def _is_stale(self, connection: Connection, now: int) -> bool:
        """Whether a connection has idled too long and no thread is serving it."""
        if self._oneshot and not connection.armed:
            return False
        if connection.lingering:
            return now - connection.idle_since > _LINGER
        if connection.unsent or connection.parser.receiving:
            return now - connection.idle_since > (_DRAIN_STALL if self.draining else _RECEIVE_STALL)
        limit = self._keepalive if connection.served else max(self._keepalive, _FIRST_REQUEST)
        idle_since = connection.idle_since
        if self.draining:
            limit = min(limit, _DRAIN_IDLE)
            idle_since = max(idle_since, self._drain_began)
        return now - idle_since > limit and not _has_data(connection.sock)


def _has_data(sock: socket.socket) -> bool:
    """Whether bytes have arrived that nobody has read: a request in the very moment of closing."""
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
