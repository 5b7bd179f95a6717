"""HAProxy's agent check: each connection gets one line that says whether to send requests here.

The protocol is in section 5.2 of HAProxy's configuration manual (`agent-check`). What a word does stays until
another word reverts it: `ready` ends the administrative state DRAIN, `up` ends DOWN, and neither does both.

Load balancers are on other machines, so anybody may be able to connect. Nothing that a client sends is read,
the line is written at once into the new socket's empty buffer, and the number of connections and their time
are bounded.
"""

import asyncio
import socket
from collections.abc import Callable

from ostler.control.acceptor import ControlAcceptor
from ostler.control.readiness import FleetReadiness
from ostler.logs.limiter import LimitedLog

ANSWERS = {
    FleetReadiness.READY: b"ready up\n",
    FleetReadiness.DRAINING: b"drain\n",
    FleetReadiness.STOPPING: b"drain\n",
    FleetReadiness.NO_WORKER: b"down #no worker is ready\n",
}
MOST_OPEN = 32
"""Connections; for another one the oldest is closed, which has its answer."""
CLOSE_SECONDS = 1.0
"""How long a client that has its answer may leave its connection open."""


class AgentCheck:
    """Answers the connections of one listener. Called only by the event loop's thread.

    Args:
        sock: listens; it is closed with this.
        readiness: what is answered.
        log: gets a limited number of warnings if accepting fails.
        close_seconds: see CLOSE_SECONDS.
    """

    def __init__(
        self,
        sock: socket.socket,
        readiness: Callable[[], FleetReadiness],
        log: LimitedLog,
        close_seconds: float = CLOSE_SECONDS,
    ) -> None:
        self._sock = sock
        self._readiness = readiness
        self._close_seconds = close_seconds
        self._loop = asyncio.get_running_loop()
        # By age: when each is closed at the latest.
        self._open: dict[socket.socket, asyncio.TimerHandle] = {}
        self._acceptor = ControlAcceptor(sock, self._answer, log)

    @property
    def open(self) -> int:
        """How many connections are open."""
        return len(self._open)

    @property
    def fd(self) -> int:
        """The listener's descriptor."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the listener and all connections."""
        self._acceptor.close()
        self._sock.close()
        for sock in list(self._open):
            self._close(sock)

    def _answer(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        try:
            sock.send(ANSWERS[self._readiness()])
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            sock.close()  # the client has gone
            return
        if len(self._open) >= MOST_OPEN:
            self._close(next(iter(self._open)))
        self._open[sock] = self._loop.call_later(self._close_seconds, self._close, sock)
        self._loop.add_reader(sock, self._on_readable, sock)

    def _on_readable(self, sock: socket.socket) -> None:
        """The client has closed the connection, or it has sent something (`agent-send`)."""
        try:
            sent = sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            sent = b""
        if sent:
            # Closing a socket with unread bytes resets the connection (RFC 2525 section 2.17): the client may
            # lose the answer. So this one stays open for its time.
            self._loop.remove_reader(sock)
        else:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._open.pop(sock).cancel()
        self._loop.remove_reader(sock)
        sock.close()
