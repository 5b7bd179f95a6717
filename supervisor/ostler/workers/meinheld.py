"""The worker class `meinheld`: the C server of that name in our worker's life cycle.

Its loop runs no Python code unless a request comes or a second passes, not even for signals. So that these
and the supervisor's messages, each of which comes with a signal, are noticed at once, the process is one of
its own server's clients: Python writes the number of each signal into that connection (set_wakeup_fd), the
server takes it for a bad request, refuses it, and tells its access log: that is us. A connection lasts for
one such event, or for a second.

The server can't put an answer off until its client takes more of it: it has added the connection to its epoll
in a way that allows no change (EPOLLEXCLUSIVE, epoll_ctl(2)), and so waits for ever; or, built with its own
header of greenlet 0.4, it sends an error page in the middle of the answer. Therefore connections are made to
block: a client that takes its answer slowly keeps its worker busy, but for no longer than `timeout`.

What is written here about the server is of its release 1.0.2, the last. It also offers apps greenlets of its
own; these only work where it was built with the header of the greenlet that is installed.
"""

import math
import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic_ns
from types import FrameType
from typing import Any, Self

from meinheld import server

from ostler.errors import SettingError
from ostler.osapi.files import most_open_files, open_files
from ostler.scoreboard import layout
from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker, Context
from ostler.workers.interrupt import Deadlines
from ostler.workers.meinheld_calls import Calls, serves
from ostler.wsgi.exchange import QuitWorker

# The loop's timeouts are whole seconds, and none is longer than this (picoev.h, PICOEV_TIMEOUT_VEC_SIZE).
_LONGEST = 127
# A connection of a descriptor beyond this is never read from, and each possible one costs 40 bytes.
_MOST_DESCRIPTORS = 32768
_LARGEST_BODY = 2**31 - 1
# As in the engine: an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = 500_000_000
# The server takes these signals to itself when it begins; the others matter because their handlers may raise.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# linux/tcp.h, struct tcp_info: milliseconds since data was sent and received last, three words apart.
_LAST_SENT, _LAST_RECEIVED, _TCP_INFO = 44, 52, 104


class MeinheldWorker(BaseWorker):
    """One thread, and one request at a time unless the app itself uses the server's greenlets."""

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
        if settings.certfile is not None:
            raise SettingError("certfile", _cant("speak TLS: let a proxy do that"))
        if settings.proxy_protocol != "off":
            raise SettingError("proxy_protocol", _cant("read the PROXY protocol's header"))
        if settings.stream_request:
            raise SettingError("stream_request", _cant("call the app before a request has come whole"))
        return []

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(context)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = context.settings
        self._graceful_timeout = context.settings.graceful_timeout
        self._readers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._handlers: dict[int, Any] = {}
        self._running = self._stopping = False
        self._drain_began = 0
        self._cut_idle = False
        self._listeners: list[int] = []
        # Where the server finds its client that we are, and that client's connections; see above.
        self._door: socket.socket | None = None
        self._wakes: list[socket.socket] = []
        self._inner: set[int] = set()
        context.accounting.thread_slot(0)
        self._deadlines = Deadlines(context.accounting, serves)
        self._calls = Calls(context, self._deadlines, self._look)

    # -- what the life cycle calls ----------------------------------------------------------------------

    def run(self) -> None:
        settings = self._settings
        # 0 is no limit to us, and a limit of nothing to the server.
        server.set_max_content_length(min(settings.limit_request_body or _LARGEST_BODY, _LARGEST_BODY))
        server.set_client_body_buffer_size(max(1, min(settings.buffer_request, _LARGEST_BODY)))
        # A connection to ourselves must outlive a second.
        server.set_keepalive(max(2, math.ceil(settings.keepalive)) if settings.keepalive else 0)
        server.set_picoev_max_fd(min(most_open_files(), _MOST_DESCRIPTORS))
        server.set_access_logger(self._calls)
        server.set_error_logger(self._calls)
        server.set_watchdog(self._each_second)
        # It closes what it was given.
        self._listeners = [os.dup(listener.fileno()) for listener in self._context.listeners]
        before = open_files()
        self._door = door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        door.bind("")  # a name of the kernel's choice (unix(7), autobind)
        door.listen()
        server.set_listen_socket([*self._listeners, os.dup(door.fileno())])
        server.schedule_call(0, self._begin, before)
        self._handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        # The server's own handlers would end it; they are not there for long, and nothing comes meanwhile.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            server.run(self._calls.serve, True)
        finally:
            self._running = False
            self._close_wakes()
            for signum, handler in self._handlers.items():
                signal.signal(signum, handler)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._calls.flush()

    def drain(
        self,
        hand_over: bool = False,  # noqa: ARG002 - its connections are its own
        seconds: float | None = None,
    ) -> None:
        if not self.draining:
            self._graceful_timeout = self._graceful_timeout if seconds is None else seconds
            self.draining = True
            self._drain_began = monotonic_ns()
            if self._running:
                self._stop_accepting()

    def stop(self) -> None:
        self._stopping = self.draining = True
        if self._running:
            self._stop_accepting()
            for connection in self._connections():
                _shut(connection, socket.SHUT_RDWR)

    def abandon(self) -> None:
        self.drain()
        # The server goes on using the numbers: what they mean is changed.
        null = os.open(os.devnull, os.O_RDONLY)
        for fd in self._listeners if self._running else ():
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        for listener in self._context.listeners:
            listener.close()

    def attend(self) -> None:
        self._calls.attend()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._deadlines.interrupt(signum, frame)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._readers[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def remove_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._poll.unregister(fd)

    def descriptors(self) -> set[int]:
        doors = [self._door] if self._door is not None else []
        ours = {sock.fileno() for sock in (*doors, *self._wakes)}
        # And what the server has of these connections: whatever bears the door's name.
        return {*self._inner, *self._listeners, *ours, *self._connections(doors)}

    def close(self) -> None:
        self._close_wakes()
        if self._door is not None:
            self._door.close()

    # -- called by the server ----------------------------------------------------------------------------

    def _begin(self, before: set[int]) -> None:
        """The first thing in its loop."""
        # Its epoll, and the copy of the door that it listens at.
        self._inner = open_files() - before
        for signum in _SIGNALS:
            signal.signal(signum, self._on_signal)
        for listener in self._context.listeners:
            if listener.family != socket.AF_UNIX:
                # It has set this for itself, but the listener is everybody's, of other generations too.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        self._running = True
        self._renew_wake()
        self._look()
        if self._stopping:
            self.stop()
        elif self.draining:
            self._stop_accepting()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _each_second(self) -> None:
        self._calls.settle()
        self._calls.flush()
        self._renew_wake()
        self._look()
        if self._cut_idle and monotonic_ns() - self._drain_began > _DRAIN_IDLE:
            for connection in self._connections():
                if _is_idle(connection):
                    _shut(connection, socket.SHUT_RD)

    def _look(self) -> bool:
        """See what has come; True if the server has refused what it heard from us, which it does once."""
        self._context.cell.header[layout.HEARTBEAT] = monotonic_ns()
        refused = any(_has_data(wake) for wake in self._wakes)
        if refused:
            self._renew_wake()
        for fd, _ in self._poll.poll(0):
            if (callback := self._readers.get(fd)) is not None:
                callback()
        return refused

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """The life cycle's handler, whose exception would be lost in the server unless the app is running."""
        try:
            self._handlers[signum](signum, frame)
        except QuitWorker:
            if serves(frame):
                raise

    # -- noticing ----------------------------------------------------------------------------------------

    def _renew_wake(self) -> None:
        assert self._door is not None
        if self._cut_idle:
            return
        wake = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wake.setblocking(False)
        try:
            wake.connect(self._door.getsockname())
        except OSError:
            wake.close()  # many are waiting to be accepted; a second later it is tried again
            return
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._wakes.append(wake)
        # The last one is kept: the server may not have read what was written into it.
        for old in self._wakes[:-2]:
            old.close()
        del self._wakes[:-2]

    def _close_wakes(self) -> None:
        if self._wakes:
            signal.set_wakeup_fd(-1)
        while self._wakes:
            self._wakes.pop().close()

    # -- draining ----------------------------------------------------------------------------------------

    def _stop_accepting(self) -> None:
        """The server's loop ends when its last connection has; what we are to it must not count."""
        if self._cut_idle:
            return  # a second time would break its count of connections
        self._cut_idle = True
        self._close_wakes()
        server.set_keepalive(0)
        server.stop(min(max(1, math.ceil(self._graceful_timeout)), _LONGEST))

    def _connections(self, more: Iterable[socket.socket] = ()) -> Iterator[int]:
        """Descriptors of clients' connections, and of those that came by `more` listeners."""
        listeners = (*self._context.listeners, *more)
        own = {_name(listener) for listener in listeners if listener.fileno() >= 0}
        for fd in open_files():
            try:
                with _borrowed(fd) as sock:
                    sock.getpeername()
                    found = _name(sock) in own
            except OSError:
                continue  # no socket, or a listener
            if found:
                yield fd


def _cant(what: str) -> str:
    return f"the worker class meinheld can't {what}; choose another one, e.g. gthread"


def _name(sock: socket.socket) -> object:
    """What a listener and the connections that were accepted from it have in common."""
    name = sock.getsockname()
    return name[1] if isinstance(name, tuple) else name


@contextmanager
def _borrowed(fd: int) -> Iterator[socket.socket]:
    """A descriptor of the server's as a socket, for as long as it is one."""
    sock = socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


def _has_data(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False


def _is_idle(fd: int) -> bool:
    """Whether the last that went over a connection was an answer."""
    with _borrowed(fd) as sock:
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO)
        except OSError:
            return False  # not TCP
    (sent,) = struct.unpack_from("I", info, _LAST_SENT)
    (received,) = struct.unpack_from("I", info, _LAST_RECEIVED)
    return bool(sent <= received)


def _shut(fd: int, how: int) -> None:
    with _borrowed(fd) as sock, suppress(OSError):  # it may be gone by itself
        sock.shutdown(how)
