"""One client's connection: its parser, and the bytes it has not taken yet."""

import select
import socket
from collections import deque

from supervisor.http1.errors import ProtocolViolation
from supervisor.http1.request import RequestParser
from supervisor.wsgi.body import new_body
from supervisor.wsgi.environ import Environ
from supervisor.wsgi.exchange import ClientGone

# How much of an answer in parts is kept for a client that is slow to read, before the app must wait.
KEEP_LIMIT = 1024 * 1024
# How long the app waits for such a client to take anything at all.
STALL_LIMIT = 60.0


class Connection:
    """A connection, owned by one thread at a time.

    Attributes:
        environ: what all its requests share.
        idle_since: when the last bytes came or went (CLOCK_MONOTONIC, ns).
        served: a request was answered on it.
        unsent: bytes of answers the client has not taken yet.
        armed: the kernel watches it, so it is the leader's (several threads only).
        watched: the epoll knows it.
        closed: its descriptor is gone.
        violation: what the client did wrong behind the requests that wait; answered after them.
        closing: nothing more is read; closes when all is sent.
        lingering: everything is sent, what still comes is thrown away until the client closes, so that a
            reset does not take the answer away from it (RFC 9112 section 9.6).
    """

    __slots__ = (
        "armed",
        "closed",
        "closing",
        "environ",
        "fd",
        "idle_since",
        "lingering",
        "parser",
        "served",
        "sock",
        "unsent",
        "unsent_size",
        "violation",
        "watched",
    )

    def __init__(self, sock: socket.socket, environ: Environ, now: int) -> None:
        self.sock = sock
        self.fd = sock.fileno()
        self.environ = environ
        self.parser = RequestParser(new_body)
        self.unsent: deque[memoryview] = deque()
        self.unsent_size = 0
        self.idle_since = now
        self.served = False
        self.armed = False
        self.watched = False
        self.closed = False
        self.closing = False
        self.lingering = False
        self.violation: ProtocolViolation | None = None

    def send(self, data: bytes) -> None:
        """Send what goes and keep the rest; with too much kept, wait until the client takes some.

        Raises:
            ClientGone: the connection broke, or the client took nothing for too long.
        """
        if not self.unsent:
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                raise ClientGone from error
            if sent == len(data):
                return
            self._keep(memoryview(data)[sent:])
        else:
            # Nobody watches the socket while the app runs: the client may have taken something by now.
            self._keep(memoryview(data))
            self.flush()
        # One block beyond the limit is kept whole: it is in memory anyway, and the app may be done.
        while self.unsent_size > KEEP_LIMIT and len(self.unsent) > 1:
            self._wait_writable()
            self.flush()

    def _keep(self, data: memoryview) -> None:
        self.unsent.append(data)
        self.unsent_size += len(data)

    def _wait_writable(self) -> None:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        if not poll.poll(STALL_LIMIT * 1000):
            raise ClientGone("it reads nothing")

    def flush(self) -> bool:
        """Send what was kept; True if nothing is left.

        Raises:
            ClientGone: the connection broke.
        """
        while self.unsent:
            data = self.unsent[0]
            try:
                sent = self.sock.send(data)
            except BlockingIOError:
                return False
            except OSError as error:
                raise ClientGone from error
            self.unsent_size -= sent
            if sent < len(data):
                self.unsent[0] = data[sent:]
            else:
                self.unsent.popleft()
        return True
