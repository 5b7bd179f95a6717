"""`gunicorn.socket`: the connection of a request that offers an upgrade, as a socket for the app.

Libraries for websockets under WSGI (simple-websocket, and on it flask-sock and Flask-SocketIO; eventlet has
its own) look for it in the environ, answer the handshake themselves, and then read and write frames. They
expect a socket whose calls wait: in threads as the kernel waits, in greenlets as their library does.

The connection becomes the app's when the app first reads, writes or closes; until then the request is an
ordinary one. What asks for addresses, options or the descriptor changes nothing.

It has a descriptor of its own (dup(2)). So whatever threads of the app still wait for or select, it is never
another client's connection, however late they notice that theirs has ended.
"""

import os
import select
import socket
import threading
from collections.abc import Callable
from errno import EAGAIN, EBADF
from time import monotonic
from typing import Any, Self

from ostler.http1.frames import Outgoing, close_frame
from ostler.osapi import original
from ostler.workers.readiness import OwnDescriptor, Readiness
from ostler.workers.system_calls import READ_SIZE, WaitInApp

# Bytes that are sent, encrypted or followed at once, so that others get their turn.
_SEND_SIZE = 256 * 1024
# It uses no more of a socket than AppSocket has.
_makefile: Callable[..., Any] = original.Socket.makefile


class AppSocket:
    """A socket-like object over a connection's own socket. Any thread or greenlet of the app may call it.

    The methods are those of `socket.socket` that make sense for an accepted connection, with the same
    arguments and errors. Timeouts are its own: the connection's socket stays non-blocking.

    Args:
        sock: the connection's: plain, or a TlsSocket.
        tls: which of them.
        early: what the client has sent behind the request; `recv` returns it first.
        take: called before the first use, once: the connection is the app's from then on.
        wait: how to wait for the connection; see SystemCalls.wait_in_app.
        websocket: the client offers to speak websocket.

    Attributes:
        taken: the app uses it.
        sent: bytes that were sent.
        timeout: seconds, as of a socket.
    """

    def __init__(
        self, sock: Any, tls: bool, early: bytes, take: Callable[[], object], wait: WaitInApp, websocket: bool
    ) -> None:
        self._sock = sock
        self._tls = tls
        self._plain: socket.socket = sock.plain if tls else sock
        self._buffer = early
        self._take = take
        self._wait = wait
        self._outgoing = Outgoing() if websocket else None
        self._fd: OwnDescriptor | None = None
        self._readiness: Readiness | None = None
        self._waiting = 0
        self._exposed = False  # `fileno` has returned the descriptor
        self._peer_ended = self._shut = self._closed = self._ended = self._said_goodbye = False
        # Nothing waits for others while it holds this one.
        self._lock = original.Lock()
        # Held until all is sent. As the app has them: where threading makes greenlets, these wait in it.
        self._sending = threading.Lock()
        self._io_refs = 0  # of files that `makefile` has made
        self.timeout: float | None = None
        self.taken = False
        self.sent = 0

    # -- reading -------------------------------------------------------------------------------------------

    def recv(self, size: int, flags: int = 0) -> bytes:
        deadline = self._deadline()
        peek = bool(flags & socket.MSG_PEEK)
        if self._tls or not peek:
            self._use()
        while True:
            with self._lock:
                self._check()
                if self._buffer or self._peer_ended or self._shut:
                    return self._from_buffer(size, peek)
                try:
                    if self._tls:
                        # All that OpenSSL decrypts at once has to be kept here.
                        self._keep(self._sock.recv(READ_SIZE))
                        continue
                    data: bytes = self._sock.recv(size, flags)
                except BlockingIOError:
                    if flags & socket.MSG_DONTWAIT:
                        raise
                except OSError:
                    self._peer_ended = True
                    raise
                else:
                    self._peer_ended = not data and size > 0
                    return data
                event = select.POLLOUT if self._tls and self._sock.wants_write else select.POLLIN
            self._wait_for(event, deadline)

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        view = memoryview(buffer).cast("B")
        data = self.recv(nbytes or len(view), flags)
        view[: len(data)] = data
        return len(data)

    def recvfrom(self, size: int, flags: int = 0) -> tuple[bytes, None]:
        return self.recv(size, flags), None

    def pending(self) -> int:
        """How many bytes can be read without asking the kernel, as of ssl.SSLSocket."""
        return len(self._buffer)

    def _from_buffer(self, size: int, peek: bool) -> bytes:
        data = self._buffer[:size]
        if not peek:
            self._buffer = self._buffer[size:]
            self._set_readiness()
        return data

    def _keep(self, data: bytes) -> None:
        self._buffer = data
        self._peer_ended = not data
        self._set_readiness()

    def _set_readiness(self) -> None:
        if self._readiness is not None:
            self._readiness.set(bool(self._buffer) or self._peer_ended)

    # -- writing -------------------------------------------------------------------------------------------

    def send(self, data: Any, _flags: int = 0) -> int:
        """All is sent when it returns, as by a socket that waits. With a timeout it may be a part."""
        deadline = self._deadline()
        self._use()
        view = memoryview(data).cast("B")
        done = 0
        with self._sending:
            try:
                while done < len(view):
                    done += self._send_some(view[done : done + _SEND_SIZE], deadline)
            except (BlockingIOError, TimeoutError):
                if not done:
                    raise
        return done

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self.send(view, flags) :]

    def sendmsg(self, buffers: Any, *_: Any) -> int:
        return self.send(b"".join(buffers))

    def _send_some(self, view: memoryview, deadline: float | None) -> int:
        while True:
            with self._lock:
                self._check()
                if self._said_goodbye:
                    return len(view)  # nothing may follow the close frame, of which the app does not know
                try:
                    sent: int = self._sock.send(view)
                except BlockingIOError:
                    pass
                except OSError:
                    self._peer_ended = True
                    raise
                else:
                    self.sent += sent
                    if self._outgoing is not None:
                        self._outgoing.note(view[:sent])
                    return sent
            self._wait_for(select.POLLOUT, deadline)

    # -- files, descriptors and ends -----------------------------------------------------------------------

    def makefile(self, *args: Any, **kwargs: Any) -> Any:
        return _makefile(self, *args, **kwargs)

    def _decref_socketios(self) -> None:
        """For the files of `makefile`."""
        self._io_refs -= 1
        if self._closed:
            self.close()

    def fileno(self) -> int:
        """For selectors: readable when `recv` would not wait; -1 when it is closed."""
        with self._lock:
            if self._closed or self._ended:
                return -1
            self._exposed = True
            if self._readiness is None and (self._tls or self._buffer):
                self._readiness = Readiness(self._own_fd())
                self._set_readiness()
            return self._own_fd() if self._readiness is None else self._readiness.fileno()

    def dup(self) -> socket.socket:
        """A socket of the same kind as the app makes, which does not wait.

        Raises:
            NotImplementedError: under TLS, as by ssl.SSLSocket; or the client has sent more with its request.
        """
        if self._tls or self._buffer:
            raise NotImplementedError("it has bytes that its descriptor does not know of")
        self._use()
        with self._lock:
            self._check()
            duplicate = os.dup(self._own_fd())
        made = socket.socket(self.family, self.type, self.proto, duplicate)
        made.setblocking(False)
        return made

    def detach(self) -> int:
        """A descriptor that is the caller's; raises as `dup`."""
        descriptor = self.dup().detach()
        self._closed = True
        return descriptor

    def shutdown(self, how: int) -> None:
        self._use()
        with self._lock:
            self._check()
            self._shut = self._tls  # what comes from now on is not decrypted any more
            self._sock.shutdown(int(how))

    def close(self) -> None:
        """End the connection, and what waits in other threads. Its request ends when the app returns."""
        if not self._ended and not self._closed:
            self._use()
        with self._lock:
            self._closed = True
            if self._io_refs <= 0:
                if not self._ended:
                    self._end_connection()
                self._exposed = False
                self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- what does not take the connection -----------------------------------------------------------------

    def settimeout(self, seconds: float | None) -> None:
        if seconds is not None and seconds < 0:
            raise ValueError("Timeout value out of range")
        self.timeout = seconds

    def gettimeout(self) -> float | None:
        return self.timeout

    def setblocking(self, flag: bool) -> None:
        self.timeout = None if flag else 0.0

    def getblocking(self) -> bool:
        return self.timeout != 0

    @property
    def family(self) -> socket.AddressFamily:
        return self._plain.family

    @property
    def type(self) -> socket.SocketKind:
        return self._plain.type

    @property
    def proto(self) -> int:
        return self._plain.proto

    def getpeername(self) -> Any:
        return self._plain.getpeername()

    def getsockname(self) -> Any:
        return self._plain.getsockname()

    def getsockopt(self, *args: Any) -> Any:
        return self._plain.getsockopt(*args)

    def setsockopt(self, *args: Any) -> None:
        self._plain.setsockopt(*args)

    # -- called by the server ------------------------------------------------------------------------------

    def say_goodbye(self, code: int) -> None:
        """Send a close frame, if the app speaks websocket and is not sending a frame; called by any thread.

        What the app sends afterwards is discarded. The client answers, and the app sees that. It never waits.
        """
        outgoing = self._outgoing
        if outgoing is None or self._said_goodbye or not self._sending.acquire(False):
            return
        try:
            with self._lock:
                if self._ended or self._closed or not outgoing.between_frames:
                    return
                self._said_goodbye = True
                self._sock.send(close_frame(code))
        except OSError:
            pass  # the client does not read, or is gone
        finally:
            self._sending.release()

    def cut(self) -> None:
        """End the connection in both directions: what waits in it returns. Any thread may call it."""
        with self._lock:
            if not self._ended:
                try:
                    self._plain.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the client has ended it already

    def withdraw(self) -> bool:
        """The request has ended: every call fails from now on. False if the app has taken the connection."""
        with self._lock:
            if self.taken:
                return False
            self._ended = True
            self._take = _nothing
            self._release()
            return True

    def end(self) -> bool:
        """The request has ended: every call fails from now on. Called by the thread that has served it.

        Returns:
            Whether the client may still be sending. If so, its end was asked for.
        """
        with self._lock:
            open_yet = self.taken and not self._peer_ended
            if open_yet:
                open_yet = self._end_connection()
            self._ended = True
            self._take = _nothing  # it refers to the connection, which refers to this
            self._release()
            return open_yet

    # -- inside --------------------------------------------------------------------------------------------

    def _use(self) -> None:
        """Before what makes the connection the app's."""
        if self.taken:
            return
        with self._lock:
            self._check()
            if not self.taken:
                self._own_fd()  # it may fail, and nothing is changed then
                self._take()
                self.taken = True

    def _check(self) -> None:
        if self._closed or self._ended:
            raise OSError(EBADF, os.strerror(EBADF))

    def _own_fd(self) -> int:
        if self._fd is None:
            self._fd = OwnDescriptor(os.dup(self._plain.fileno()))
        return self._fd.fd

    def _end_connection(self) -> bool:
        """Say that nothing more comes, and wake what waits; False if the client was gone."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR if self._waiting or self._exposed else socket.SHUT_WR)
        except OSError:
            return False
        return True

    def _deadline(self) -> float | None:
        return None if self.timeout is None else monotonic() + self.timeout

    def _wait_for(self, event: int, deadline: float | None) -> None:
        """Wait for an event of poll(2).

        Raises:
            BlockingIOError: it does not wait. TimeoutError: it has waited as long as it may.
        """
        if self.timeout == 0:
            raise BlockingIOError(EAGAIN, os.strerror(EAGAIN))
        seconds = None if deadline is None else max(0.0, deadline - monotonic())
        with self._lock:
            self._check()
            fd = self._own_fd()
            self._waiting += 1
        try:
            if not self._wait(fd, event, seconds):
                raise TimeoutError("timed out")
        finally:
            with self._lock:
                self._waiting -= 1
                self._release()

    def _release(self) -> None:
        """Close the descriptor if nothing can use it any more, rather than with the last reference.

        What the app has got by `fileno` may be in a selector: it is closed when the app closes the socket.
        """
        if (self._closed or self._ended) and not (self._waiting or self._exposed):
            self._fd = self._readiness = None


def _nothing() -> None:
    """The connection can't be taken any more."""
