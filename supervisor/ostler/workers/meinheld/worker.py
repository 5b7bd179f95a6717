"""The worker class `meinheld`: the C server of that name in our worker's life cycle.

Its loop runs no Python code unless a request comes or a second passes, not even for signals. So that these
and the supervisor's messages, each of which comes with a signal, are noticed at once, the process is one of
its own server's clients: Python writes the number of each signal into that connection (set_wakeup_fd), the
server takes it for a bad request, refuses it, and calls its access log, which is our code. A connection lasts
for one such event, or for a second.

The server can't put an answer off until its client takes more of it: it has added the connection to its epoll
in a way that allows no change (EPOLLEXCLUSIVE, epoll_ctl(2)), and so waits for ever; or, built with its own
header of greenlet 0.4, it sends an error page in the middle of the answer. Therefore connections are made to
block: a client that takes its answer slowly keeps its worker busy, but only while it takes 64 KiB of it
within `timeout` (`answer_parts`). A file of `wsgi.file_wrapper` is sent in one go, so it must take it whole.

What is written here about the server is of its release 1.0.2, the last. It also offers apps greenlets of its
own; these only work where it was built with the header of the greenlet that is installed.
"""

import math
import os
import select
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic_ns
from types import FrameType
from typing import Any, Self

from meinheld import server

from ostler.errors import SettingError
from ostler.osapi import refusing, tcp_info
from ostler.osapi.files import is_socket, most_open_files, open_files
from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker, Context
from ostler.workers.meinheld.calls import MeinheldCalls, is_in_app
from ostler.workers.soft_interrupt import SoftInterrupts
from ostler.wsgi.interruption import QuitWorker

# The loop's timeouts are whole seconds, and none is longer than this (picoev.h, PICOEV_TIMEOUT_VEC_SIZE).
_LONGEST = 127
# When so many seconds of such a timeout are left, it is set again.
_RENEW_AT = 60
# A timer that never comes to its end (s).
_NEVER = 10**8
# A connection of a descriptor beyond this is never read from, and each possible one costs 40 bytes.
_MOST_DESCRIPTORS = 32768
_LARGEST_BODY = 2**31 - 1
# As in the engine: an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = 500_000_000
# The server sets handlers of its own for the first two. The third's handler may raise.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class MeinheldWorker(BaseWorker):
    """One thread, and one request at a time unless the app itself uses the server's greenlets."""

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
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
        self._readers: dict[int, Callable[[], None]] = {}
        self._poll = select.poll()
        self._handlers: dict[int, Any] = {}
        self._running = self._stopping = False
        # When draining began and by when it is to be over (CLOCK_MONOTONIC, ns); and until when the server's
        # own timeout for that is set.
        self._drain_began = self._drain_until = 0
        self._loop_until = 0
        self._accepting_stopped = False
        self._empties: list[socket.socket] = []
        self._listeners: list[int] = []
        # The listener for our connections to our own server, and these connections; see above.
        self._wake_listener: socket.socket | None = None
        self._wakes: list[socket.socket] = []
        self._inner: set[int] = set()
        self._soft_interrupts = SoftInterrupts(context.accounting, is_in_app)
        self._calls = MeinheldCalls(context, self._soft_interrupts, self._look)

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
        # The server closes the listeners that it gets.
        self._listeners = [os.dup(listener.fileno()) for listener in self._context.listeners]
        before = open_files()
        self._wake_listener = wake_listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wake_listener.bind("")  # a name of the kernel's choice (unix(7), autobind)
        wake_listener.listen()
        server.set_listen_socket([*self._listeners, os.dup(wake_listener.fileno())])
        server.schedule_call(0, self._begin, before)
        self._handlers = {signum: signal.getsignal(signum) for signum in _SIGNALS}
        # The server's own handlers would end it: no signal may come before they are replaced again.
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
        hand_over: bool = False,  # noqa: ARG002 - the server can't let go of a connection
        seconds: float | None = None,
    ) -> None:
        now = monotonic_ns()
        if seconds is not None or not self._drain_until:
            allowed = self._settings.graceful_timeout if seconds is None else seconds
            self._drain_until = now + int(allowed * 1_000_000_000)
        if not self.draining:
            self.draining = True
            self._drain_began = now
            if self._running and not self._clients_wait():
                self._stop_accepting()

    def empty_queue(self, listeners: list[socket.socket]) -> None:
        self._empties = listeners  # the server accepts from the others meanwhile

    def stop(self) -> None:
        self._stopping = self.draining = True
        if self._running:
            self._stop_accepting()
            self._cut_connections()

    def abandon(self) -> None:
        self.drain()
        # The server goes on using the descriptors' numbers: they become /dev/null.
        null = os.open(os.devnull, os.O_RDONLY)
        for fd in self._listeners if self._running else ():
            os.dup2(null, fd, inheritable=False)
        os.close(null)
        for listener in self._context.listeners:
            listener.close()

    def on_message(self) -> None:
        self._calls.look_soon()

    def interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._soft_interrupts.interrupt(signum, frame)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._readers[fd] = callback
        self._poll.register(fd, select.POLLIN)

    def remove_reader(self, fd: int) -> None:
        del self._readers[fd]
        self._poll.unregister(fd)

    def descriptors(self) -> set[int]:
        listeners = [self._wake_listener] if self._wake_listener is not None else []
        ours = {sock.fileno() for sock in (*listeners, *self._wakes)}
        # And the server's ends of these connections, which have the listener's name.
        return {*self._inner, *self._listeners, *ours, *self._connections(listeners)}

    def private_descriptors(self) -> set[int]:
        # All but the server's epoll. It would wait for the end of our own connections if a child had them.
        return {fd for fd in self.descriptors() if is_socket(fd)}

    def close(self) -> None:
        self._close_wakes()
        if self._wake_listener is not None:
            self._wake_listener.close()

    # -- called by the server ----------------------------------------------------------------------------

    def _begin(self, before: set[int]) -> None:
        """Called first in the server's loop. `before`: descriptors that were open before it began."""
        # Its epoll, and its copy of the listener for our own connections.
        self._inner = open_files() - before
        for signum in _SIGNALS:
            signal.signal(signum, self._on_signal)
        for listener in self._context.listeners:
            if listener.family != socket.AF_UNIX:
                # It has set this, but the listener is shared with other workers, also of other generations.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
        self._running = True
        self._renew_wake()
        self._look()
        if self._stopping:
            self.stop()
        elif self.draining and not self._clients_wait():
            self._stop_accepting()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)

    def _each_second(self) -> None:
        self._calls.settle()
        self._calls.flush()
        self._renew_wake()
        self._look()
        if self._accepting_stopped:
            self._go_on_draining(monotonic_ns())

    def _look(self) -> bool:
        """Read what has come; True if the server has refused a connection of ours, once for each."""
        self._context.accounting.heartbeat(monotonic_ns())
        refused = any(_has_data(wake) for wake in self._wakes)
        if refused:
            self._renew_wake()
        for fd, _ in self._poll.poll(0):
            if (callback := self._readers.get(fd)) is not None:
                callback()
        if self.draining and self._running and not self._accepting_stopped and not self._clients_wait():
            self._stop_accepting()
        return refused

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        """Call the life cycle's handler. Only the app lets its exception through, the server does not."""
        try:
            self._handlers[signum](signum, frame)
        except QuitWorker:
            if is_in_app(frame):
                raise

    # -- noticing signals --------------------------------------------------------------------------------

    def _renew_wake(self) -> None:
        assert self._wake_listener is not None
        if self._accepting_stopped:
            return
        wake = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        wake.setblocking(False)
        try:
            wake.connect(self._wake_listener.getsockname())
        except OSError:
            wake.close()  # many wait to be accepted; a second later it is tried again
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
        """Stop accepting. The server's loop ends when its last connection has, or when the time is over."""
        if self._accepting_stopped:
            return
        self._accepting_stopped = True
        self._close_wakes()  # they would count as connections
        server.set_keepalive(0)
        self._end_loop_in(monotonic_ns())

    def _clients_wait(self) -> bool:
        """Whether connections wait that are to be accepted, although this worker drains."""
        if monotonic_ns() >= self._drain_until:
            return False
        return any(refusing.has_waiting(listener) for listener in self._empties)

    def _end_loop_in(self, now: int) -> None:
        """Have the server's loop end when the time for draining is over, or after `_LONGEST` seconds."""
        seconds = min(max(1, math.ceil((self._drain_until - now) / 1_000_000_000)), _LONGEST)
        self._loop_until = now + seconds * 1_000_000_000
        server.stop(seconds)

    def _go_on_draining(self, now: int) -> None:
        """Called once a second while draining."""
        if now >= self._drain_until:
            self._cut_connections()
        elif self._loop_until < self._drain_until and self._loop_until - now < _RENEW_AT * 1_000_000_000:
            # For each of its listeners the server takes one from the number of what it waits for, as if it
            # had not stopped accepting before. Timers, each of which adds one, make up for that.
            for _ in range(len(self._listeners) + 1):
                server.schedule_call(_NEVER, self._look)
            self._end_loop_in(now)
        if now - self._drain_began > _DRAIN_IDLE:
            for connection in self._connections():
                if _is_idle(connection):
                    _shut(connection, socket.SHUT_RD)

    def _cut_connections(self) -> None:
        for connection in self._connections():
            _shut(connection, socket.SHUT_RDWR)

    def _connections(self, more: Iterable[socket.socket] = ()) -> Iterator[int]:
        """Descriptors of clients' connections, and of those that were accepted from `more` listeners."""
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
    """A descriptor of the server's as a socket, which does not close it."""
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
    """Whether the last bytes that went over a connection were an answer's."""
    with _borrowed(fd) as sock:
        sent, received = tcp_info.since_last_sent(sock), tcp_info.since_last_received(sock)
    return sent is not None and received is not None and sent <= received


def _shut(fd: int, how: int) -> None:
    with _borrowed(fd) as sock, suppress(OSError):  # it may have ended already
        sock.shutdown(how)
