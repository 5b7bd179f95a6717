"""The connections of one listener of the control plane: their number, deadlines and cost are bounded.

Any user of this machine can connect to loopback, and to a Unix socket whose mode allows others. The event
loop that serves them also replaces dead workers, so the time that they can use of it is bounded:

* `ControlAcceptor` (in `acceptor`) accepts a few connections per pass of the loop, and pauses between passes.
* `ControlConnections` makes room for a new connection by closing the one that is idle for longest, closes
  connections that miss a deadline, and assigns turns: to parse a small piece of the received bytes, or to
  answer a request. There are a few turns per pass of the loop, and per peer as many as its allowance permits.
* `ControlConnection` is aiohttp's protocol, which gets these pieces. It parses nothing while a request waits
for
  its answer: more bytes of the client stay in the kernel.
"""

import asyncio
import math
import socket
import time
from collections import deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from ostler.control.cookies import CookieFilter
from ostler.control.limits import ConnectionLimits, make_room
from ostler.control.peers import Peer, PeerTable
from ostler.logs.limiter import LimitedLog
from ostler.osapi.files import most_open_files
from ostler.osapi.peers import PeerGone

if TYPE_CHECKING:
    import logging

HEAD_SECONDS = 5.0
"""From connecting, or from a later request's first byte, to the end of its head."""
IDLE_SECONDS = 75.0
"""Between two requests."""
WRITE_SECONDS = 5.0
"""For the client to read an answer."""
LINGER_SECONDS = 1.0
LINGER_BYTES = 256 * 1024
"""How long, and how many bytes of a refused request are read and dropped, so that the client can read the
answer."""
TARGET_LIMIT = 1024
"""Bytes of a request's target: the router's time grows with the square of the number of slashes."""
HEAD_LIMIT = 64 * 1024
"""Bytes of a head, all lines together, without cookies. aiohttp limits single lines."""
COOKIES_LIMIT = 1024 * 1024
"""Bytes of a head with the cookies that are dropped; browsers send some 700 KB at most."""

PIECE = 2048
"""Bytes that are parsed per turn. The slowest ones are chunks of one byte: some 0.8 ms."""
TURNS_PER_PASS = 4
SECONDS_PER_PASS = 0.003
REQUEST_SECONDS = 0.0005
CONNECT_SECONDS = 0.0004
"""Seconds of the loop that one request and one connection are counted as; parsing, authentication and
handlers are measured."""
LONGEST_WAIT = 0.5
"""Seconds that a new connection of another user may have to wait; with a longer wait it is closed at once.
Probes often have a time-out of a second."""
SWEEP_SECONDS = 0.5
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class ControlConnection(web.RequestHandler):
    """One connection. `ControlConnections` manages its deadlines and turns.

    Attributes:
        peer: the other end.
        deadline: monotonic seconds at which it is aborted, whatever its state.
        proven, since: see `limits.Seat`.
    """

    def __init__(self, owner: "ControlConnections", peer: Peer, **options: Any) -> None:
        super().__init__(owner.server, **options)
        self._owner = owner
        self.peer = peer
        self.since = time.monotonic()
        self.deadline = self.since + HEAD_SECONDS
        self.proven = False
        self.waits = False
        """It is in the queue for a turn, or is going to be put there."""
        self._turn: asyncio.Future[bool] | None = None
        self._answering = False
        self._answered = 0
        self._reading_body = False
        self._received = bytearray()
        self._cookies = owner.new_cookie_filter()
        self._parsed = 0
        """Bytes of the current head that were parsed; dropped cookies count in `_filtered`."""
        self._filtered = 0
        self._lingering: asyncio.Future[None] | None = None
        self._dropped = 0
        self._ended = False

    @property
    def uid(self) -> int | None:
        return self.peer.uid

    @property
    def trusted(self) -> bool:
        return self.peer.trusted

    # -- called by the transport ------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if not data:
            super().data_received(data)  # called by aiohttp itself, to parse bytes that it has kept
            return
        if self._lingering is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._stop_lingering()
            return
        if not self._answering and not self._received and not self._parsed and not self._filtered:
            self.deadline = min(self.deadline, time.monotonic() + HEAD_SECONDS)
        self._received += data
        # Not more than one recv(2) returns.
        self._hold(True)
        self._owner.ready(self)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to stay open, because requests before the end are not answered yet.

        A running answer is aborted: most clients that close their side have left.
        """
        self._ended = True
        self._stop_lingering()
        return bool(self._received or self._unanswered) and not self._answering

    def connection_lost(self, error: BaseException | None) -> None:
        self._received.clear()
        if self._turn is not None and not self._turn.done():
            # A client may leave after sending a request, but must not exceed its allowance by that.
            self._turn.set_result(self.peer.wait() == 0.0)
        self._stop_lingering()
        self._owner.lost(self)
        super().connection_lost(error)

    # -- called by ControlConnections -------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being answered; not while its body is being received, which depends on the client."""
        return self._answering and not self._reading_body

    @property
    def _unanswered(self) -> int:
        """The number of parsed requests without an answer."""
        return self._request_count - self._answered

    @property
    def wants_turn(self) -> bool:
        if self._turn is not None:
            return not self._turn.done()
        if not self._received or self.transport is None:
            return False
        # A piece may contain many requests. aiohttp keeps each as objects that are far larger than its bytes.
        return self._reading_body or not self._unanswered

    def take_turn(self) -> None:
        if self._turn is not None:
            self.peer.use(REQUEST_SECONDS)
            self._turn.set_result(True)
        else:
            with self.peer.measured():
                self._parse_piece()

    def _parse_piece(self) -> None:
        piece = bytes(self._received[:PIECE])
        del self._received[:PIECE]
        size = len(piece)
        if self._cookies is not None:
            piece = self._cookies.feed(piece)
        if not self._answering:
            self._parsed += len(piece)
            self._filtered += size - len(piece)
            if self._parsed > HEAD_LIMIT or self._filtered > COOKIES_LIMIT:
                self._owner.start(self._refuse_head())
                return
        if piece:
            super().data_received(piece)
        if not self._received:
            self._hold(False)

    async def _refuse_head(self) -> None:
        if self._wire is not None:
            self._wire.write(_HEAD_TOO_LARGE)
            await self.linger()
            self.abort()

    def abort(self) -> None:
        """Close it at once, whatever its state."""
        # aiohttp drops its transport when it closes, but this one may still have data to send.
        if self._wire is not None:
            self._wire.abort()

    _wire: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        super().connection_made(cast("asyncio.Transport", _NoReading(transport)))

    # -- called by handlers of requests -----------------------------------------------------------------

    async def turn(self) -> bool:
        """Wait for a turn to answer a request; False if it is not to be answered.

        Nothing is parsed meanwhile.
        """
        self._turn = asyncio.get_running_loop().create_future()
        self._owner.ready(self)
        try:
            return await self._turn
        finally:
            self._turn = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """The context in which a request is answered: only its body is parsed, and there is no deadline."""
        self._answering = True
        self.deadline = math.inf
        try:
            yield
        finally:
            self._answering = False
            self._answered += 1
            self._parsed = self._filtered = 0
            self.since = time.monotonic()
            self.deadline = self.since + (LINGER_SECONDS if self._lingering else IDLE_SECONDS)
            if self._ended and not (self._received or self._unanswered) and self._wire is not None:
                self._wire.close()
            self._owner.ready(self)

    @contextmanager
    def body(self) -> Iterator[None]:
        """The context in which the request's body is read."""
        self._reading_body = True
        self._owner.ready(self)
        try:
            yield
        finally:
            self._reading_body = False

    async def linger(self) -> None:
        """Let a client read an answer that was sent before the end of its request: drop the rest for a while.

        Closing a socket with unread bytes would be a reset (RFC 9112, section 9.6).
        """
        wire = self._wire
        if wire is None or wire.is_closing() or self._ended:
            return
        self._received.clear()
        self._lingering = asyncio.get_running_loop().create_future()
        self._hold(False)
        try:
            if wire.can_write_eof():
                wire.write_eof()
            async with asyncio.timeout(LINGER_SECONDS):
                await self._lingering
        except (TimeoutError, OSError):
            pass

    def _stop_lingering(self) -> None:
        if self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    def _hold(self, hold: bool) -> None:
        if isinstance(self._wire, asyncio.Transport) and not self._wire.is_closing():
            if hold:
                self._wire.pause_reading()
            else:
                self._wire.resume_reading()


class _NoReading:
    """The transport for aiohttp: only `ControlConnection` pauses and resumes reading.

    aiohttp (since 3.14) also does so when it has room for more requests: each time, the bytes of one recv(2)
    would have to be kept.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def connection_of(request: web.BaseRequest) -> ControlConnection:
    """The connection on which a request came."""
    connection = request.protocol
    assert isinstance(connection, ControlConnection)
    return connection


class ControlConnections:
    """All connections of one listener. Belongs to one event loop.

    Args:
        server: aiohttp's, which routes the requests.
        family: of the listener's address.
        log: for events that clients cause.
        logger: for aiohttp's protocol.
    """

    def __init__(
        self,
        server: web.Server,
        family: int,
        log: LimitedLog,
        logger: "logging.Logger",
        limits: ConnectionLimits | None = None,
    ) -> None:
        self.server = server
        self._log = log
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
        self._trusted: deque[ControlConnection] = deque()
        self._others: deque[ControlConnection] = deque()
        self._queued_pass = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        return len(self._open)

    def new_cookie_filter(self) -> CookieFilter | None:
        """A filter for a connection that may be one of a browser, else None."""
        return CookieFilter() if self._browsers else None

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
        connection = ControlConnection(self, peer, **self._options)
        self._open.add(connection)
        self.start(self._connect(connection, sock))
        if self._sweep_timer is None:
            self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def ready(self, connection: ControlConnection) -> None:
        """Queue the connection if it needs a turn."""
        if connection.wants_turn and not connection.waits:
            connection.waits = True
            (self._trusted if connection.trusted else self._others).append(connection)
            self._pass_soon()

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, connection: ControlConnection) -> None:
        self._open.discard(connection)

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

    def _pass_soon(self) -> None:
        if (self._trusted or self._others) and not self._queued_pass:
            self._queued_pass = True
            self._loop.call_soon(self._run_turns)

    def _run_turns(self) -> None:
        self._queued_pass = False
        end = time.monotonic() + SECONDS_PER_PASS
        for _ in range(min(len(self._trusted) + len(self._others), TURNS_PER_PASS)):
            connection = (self._trusted or self._others).popleft()
            connection.waits = False
            if not connection.wants_turn:
                continue
            if wait := connection.peer.wait():
                connection.waits = True
                self._loop.call_later(wait, self._queue_again, connection)
                continue
            connection.take_turn()
            self.ready(connection)
            if time.monotonic() > end:
                break
        self._pass_soon()

    def _queue_again(self, connection: ControlConnection) -> None:
        connection.waits = False
        self.ready(connection)

    def _sweep(self) -> None:
        """Abort connections that are past their deadline, and remove peers without connections."""
        now = time.monotonic()
        for connection in [one for one in self._open if one.deadline < now]:
            connection.abort()
        self._peers.remove_unused({connection.uid for connection in self._open})
        self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)
