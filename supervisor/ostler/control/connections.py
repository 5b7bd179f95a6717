"""The connections of one listener of the control plane: their number, deadlines and cost are bounded.

Any user of this machine can connect to loopback, and to a Unix socket whose mode allows others. The event
loop that serves them also replaces dead workers, so the time that they can use of it is bounded:

* `ControlAcceptor` (in `acceptor`) accepts a few connections per pass of the loop, and pauses between passes.
* `ControlConnections` makes room for a new connection by closing the one that is idle for longest, and closes
  connections that miss a deadline.
* `Turns` (in `turns`) assigns turns: to parse a small piece of the received bytes, or to answer a request.
  There are a few turns per pass of the loop, and per peer as many as its allowance permits.
* `ControlConnection` (in `connection`) is aiohttp's protocol, which gets these pieces.
"""

import asyncio
import socket
import time
from typing import TYPE_CHECKING

from aiohttp import web

from ostler.control.allowances import PeerTable
from ostler.control.connection import IDLE_SECONDS, ControlConnection
from ostler.control.cookies import CookieFilter
from ostler.control.limits import ConnectionLimits, make_room
from ostler.control.turns import Turns
from ostler.osapi.files import most_open_files
from ostler.osapi.peers import PeerGone

if TYPE_CHECKING:
    import logging

TARGET_LIMIT = 1024
"""Bytes of a request's target: the router's time grows with the square of the number of slashes."""
CONNECT_SECONDS = 0.0004
"""Seconds of the loop that one connection is counted as."""
LONGEST_WAIT = 0.5
"""Seconds that a new connection of another user may have to wait; with a longer wait it is closed at once.
Probes often have a time-out of a second."""
SWEEP_SECONDS = 0.5


class ControlConnections:
    """All connections of one listener. Belongs to one event loop.

    Args:
        server: aiohttp's, which routes the requests.
        family: of the listener's address.
        logger: for aiohttp's protocol.
    """

    def __init__(
        self,
        server: web.Server,
        family: int,
        logger: "logging.Logger",
        limits: ConnectionLimits | None = None,
    ) -> None:
        self._server = server
        self._options = {
            "loop": asyncio.get_running_loop(),
            "logger": logger,
            "access_log": None,
            # No coding is accepted; decoding would be the most expensive step.
            "auto_decompress": False,
            "lingering_time": 0.0,
            "keepalive_timeout": IDLE_SECONDS,
            "max_line_size": TARGET_LIMIT,
        }
        if limits is None:
            limits = ConnectionLimits.for_descriptors(most_open_files())
        self._limits = limits
        self._peers = PeerTable(family)
        self._browsers = family != socket.AF_UNIX
        self._open: set[ControlConnection] = set()
        self._loop = asyncio.get_running_loop()
        self._turns = Turns(self._loop)
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        return len(self._open)

    def admit(self, sock: socket.socket) -> None:
        """Take over an accepted socket, or close it."""
        try:
            peer = self._peers.find(sock)
        except PeerGone:
            sock.close()
            return
        if not peer.trusted and peer.uid is not None and peer.wait() > LONGEST_WAIT:
            sock.close()
            return
        peer.use(CONNECT_SECONDS)
        admitted, leaves = make_room(peer.uid, peer.trusted, self._open, self._limits)
        if leaves is not None:
            self._open.discard(leaves)
            leaves.abort()
        if not admitted:
            sock.close()
            return
        # Browsers connect over TCP only.
        cookies = CookieFilter() if self._browsers else None
        connection = ControlConnection(
            self._server, peer, self._turns, cookies, self._open.discard, **self._options
        )
        self._open.add(connection)
        task = self._loop.create_task(self._connect(connection, sock))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def close(self) -> None:
        """Close connections that the server has not closed: those made while it closed."""
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        for connection in list(self._open):
            connection.abort()
        self._open.clear()
        self._peers.close()

    async def _connect(self, connection: ControlConnection, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock)
        except OSError:
            self._open.discard(connection)
            sock.close()
        if connection not in self._open:
            connection.abort()  # it was closed to make room before it was connected

    def _sweep(self) -> None:
        """Abort connections that are past their deadline, and remove peers without connections."""
        now = time.monotonic()
        for connection in [one for one in self._open if one.deadline < now]:
            connection.abort()
        self._peers.remove_unused({connection.uid for connection in self._open})
        self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
