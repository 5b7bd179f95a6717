"""The connections of one listener of the control plane: who may have one, for how long, at what cost.

Any user of this machine can connect to loopback, and to a Unix socket whose mode lets others in. The event
loop that serves them also replaces dead workers, so what they can make it do is bounded:

* `ControlAcceptor` accepts a few connections a pass of the loop, and pauses between passes.
* `ControlConnections` makes room for a new connection by ending the one that is idle for longest, closes what
  is late, and gives turns: to parse a small piece of what was received, or to answer a request. There are a
  few turns a pass of the loop, and for a peer as many as its allowance has.
* `ControlConnection` is aiohttp's protocol, which gets these pieces. It parses nothing while a request
  waits for its answer: what a client sends ahead waits in the kernel.
"""

import asyncio
import errno
import math
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from ostler.control.cookies import CookieFilter
from ostler.control.limits import ConnectionLimits, make_room
from ostler.logs.limiter import LimitedLog
from ostler.osapi.files import most_open_files
from ostler.osapi.peers import PeerGone, TcpPeers, unix_peer
from ostler.token_bucket import TokenBucket

if TYPE_CHECKING:
    import logging

HEAD_SECONDS = 5.0
"""From connecting, or from a later request's first byte, to the end of its head."""
IDLE_SECONDS = 75.0
"""Between two requests."""
WRITE_SECONDS = 5.0
"""For an answer to be taken by the client."""
LINGER_SECONDS = 1.0
LINGER_BYTES = 256 * 1024
"""So long and so many: what a refused client still sends is dropped, so that it can read the answer."""
TARGET_LIMIT = 1024
"""Bytes of a request's target: the router's work grows with the square of the slashes."""
HEAD_LIMIT = 64 * 1024
"""Bytes of a head, all lines together, without cookies. aiohttp bounds the single line."""
COOKIES_LIMIT = 1024 * 1024
"""Bytes of a head with the cookies that are dropped; browsers send some 700 KB at most."""

PIECE = 2048
"""Bytes that are parsed in a turn. Those that take longest are chunks of one byte: some 0.8 ms."""
TURNS_PER_PASS = 4
SECONDS_PER_PASS = 0.003
REQUEST_SECONDS = 0.0005
CONNECT_SECONDS = 0.0004
"""What one is reckoned to cost the loop; parsing, authentication and handlers are measured."""
STRANGER = 0.05, 0.1
STRANGERS = 0.1, 0.15
TRUSTED = 0.1, 0.2
"""Rate and burst of allowances: one stranger, all of them together, the daemon's user and root over TCP."""
LONGEST_WAIT = 0.5
"""Seconds for which a stranger's new connection may have to wait; beyond them it is closed at once. Probes
often have a time-out of a second."""
UNKNOWN_SHARE = 0.1
"""Of a stranger's allowance, for each connection whose user is not known."""

ACCEPTS_PER_PASS = 16
ACCEPT_PAUSE = 0.002
EXHAUSTED_PAUSE = 1.0
SWEEP_SECONDS = 0.5
BACKLOG = 128

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class Peer:
    """All connections of one uid at one listener; of an unknown one, a single connection.

    uid: None if it is not known; trusted: the daemon's own user, or root; allowances: all must let it go on.
    """

    def __init__(self, uid: int | None, trusted: bool, *allowances: TokenBucket) -> None:
        self.uid = uid
        self.trusted = trusted
        self._allowances = allowances

    def __str__(self) -> str:
        return "unknown uid" if self.uid is None else f"uid {self.uid}"

    @contextmanager
    def measured(self) -> Iterator[None]:
        """Count what is done here for it; nothing that waits."""
        before = time.thread_time()
        try:
            yield
        finally:
            self.use(time.thread_time() - before)

    def use(self, seconds: float) -> None:
        """Count what the loop has spent for it."""
        now = time.monotonic()
        for allowance in self._allowances:
            allowance.use(seconds, now)

    def wait(self) -> float:
        """Seconds until more may be done for it."""
        now = time.monotonic()
        return max((allowance.wait(now) for allowance in self._allowances), default=0.0)

    def owes_nothing(self) -> bool:
        now = time.monotonic()
        return all(allowance.is_full(now) for allowance in self._allowances)


class _Peers:
    """Finds out who connects."""

    def __init__(self, family: int) -> None:
        self._unix = family == socket.AF_UNIX
        self._tcp: TcpPeers | None = None
        self._trusted = {0, os.geteuid()}
        self._known: dict[int, Peer] = {}
        self._strangers = TokenBucket(*STRANGERS, time.monotonic())
        if not self._unix:
            try:
                self._tcp = TcpPeers()
            except OSError:
                pass  # no sock_diag here: all are strangers

    def find(self, sock: socket.socket) -> Peer:
        """Raises PeerGone."""
        if self._unix:
            try:
                uid: int | None = unix_peer(sock).uid
            except OSError as error:
                raise PeerGone from error
        else:
            uid = self._tcp.uid(sock) if self._tcp is not None else None
        now = time.monotonic()
        if uid is None:
            rate, burst = STRANGER
            share = TokenBucket(rate * UNKNOWN_SHARE, burst * UNKNOWN_SHARE, now)
            return Peer(None, False, share, self._strangers)
        if uid not in self._known:
            self._known[uid] = self._make(uid, now)
        return self._known[uid]

    def _make(self, uid: int, now: float) -> Peer:
        if uid not in self._trusted:
            return Peer(uid, False, TokenBucket(*STRANGER, now), self._strangers)
        # Over TCP a proxy of ours may pass on what others send.
        return Peer(uid, True) if self._unix else Peer(uid, True, TokenBucket(*TRUSTED, now))

    def forget_all_but(self, used: set[int | None]) -> None:
        gone = [uid for uid, peer in self._known.items() if uid not in used and peer.owes_nothing()]
        for uid in gone:
            del self._known[uid]

    def close(self) -> None:
        if self._tcp is not None:
            self._tcp.close()


class ControlConnection(web.RequestHandler):
    """One connection. Its deadlines and turns are kept by `ControlConnections`.

    Attributes:
        peer: who is at the other end.
        deadline: monotonic seconds at which it is aborted, whatever it is at.
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
        """It is in the queue for a turn, or will be put there."""
        self._turn: asyncio.Future[bool] | None = None
        self._answering = False
        self._answered = 0
        self._reading_body = False
        self._received = bytearray()
        self._cookies = owner.new_cookie_filter()
        self._parsed = 0
        """Bytes of the head at hand that were parsed; dropped cookies count in `_filtered`."""
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

    # -- what the transport calls -----------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if not data:
            super().data_received(data)  # aiohttp itself, to go on with what it has kept
            return
        if self._lingering is not None:
            self._dropped += len(data)
            if self._dropped > LINGER_BYTES:
                self._stop_lingering()
            return
        if not self._answering and not self._received and not self._parsed and not self._filtered:
            self.deadline = min(self.deadline, time.monotonic() + HEAD_SECONDS)
        self._received += data
        # As much as one recv(2) gives, no more.
        self._hold(True)
        self._owner.ready(self)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether to stay open: what came before the end is not answered yet.

        An answer that takes long is given up: most clients that end their side have left.
        """
        self._ended = True
        self._stop_lingering()
        return bool(self._received or self._unanswered) and not self._answering

    def connection_lost(self, error: BaseException | None) -> None:
        self._received.clear()
        if self._turn is not None and not self._turn.done():
            # A client may leave once it has sent a wish; but not to have more done than is its share.
            self._turn.set_result(self.peer.wait() == 0.0)
        self._stop_lingering()
        self._owner.lost(self)
        super().connection_lost(error)

    # -- what ControlConnections calls ------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A request is being answered. Not while its body is still to come: that is up to the client."""
        return self._answering and not self._reading_body

    @property
    def _unanswered(self) -> int:
        """How many of the requests that were parsed have no answer yet."""
        return self._request_count - self._answered

    @property
    def wants_turn(self) -> bool:
        if self._turn is not None:
            return not self._turn.done()
        if not self._received or self.transport is None:
            return False
        # A piece may hold many requests. aiohttp keeps each as objects that are far larger than its bytes.
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
        """Close it at once, whatever it is at."""
        # aiohttp forgets its transport when it closes; ours is the one that still has data to send.
        if self._wire is not None:
            self._wire.abort()

    _wire: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._wire = transport
        super().connection_made(cast("asyncio.Transport", _NoReading(transport)))

    # -- what handlers of requests call -----------------------------------------------------------------

    async def turn(self) -> bool:
        """Wait for a turn to answer a request; whether to do so. Nothing is parsed meanwhile."""
        self._turn = asyncio.get_running_loop().create_future()
        self._owner.ready(self)
        try:
            return await self._turn
        finally:
            self._turn = None

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While a request is answered: nothing but its body is parsed, and the connection has no deadline."""
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
        """The request's body is wanted."""
        self._reading_body = True
        self._owner.ready(self)
        try:
            yield
        finally:
            self._reading_body = False

    async def linger(self) -> None:
        """Let a client read the answer that came before its request was all sent: drop the rest for a while.

        To close at once, with bytes unread, would be a reset (RFC 9112, section 9.6).
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
    """A transport as aiohttp gets it: `ControlConnection` alone pauses and resumes its reading.

    aiohttp (since 3.14) does so, too, when it has room for more requests: each time we would have to keep all
    that one recv(2) gives.
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
        log: for what strangers cause.
        logger: gets what aiohttp's protocol logs.
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
            # No coding is accepted; to decode one would cost more than all else.
            "auto_decompress": False,
            "lingering_time": 0.0,
            "keepalive_timeout": IDLE_SECONDS,
            "max_line_size": TARGET_LIMIT,
        }
        if limits is None:
            limits = ConnectionLimits.for_descriptors(most_open_files())
        self._limits = limits
        self._peers = _Peers(family)
        self._browsers = family != socket.AF_UNIX
        self._open: set[ControlConnection] = set()
        self._trusted: deque[ControlConnection] = deque()
        self._strangers: deque[ControlConnection] = deque()
        self._queued_pass = False
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweep_timer: asyncio.TimerHandle | None = None

    @property
    def open(self) -> int:
        return len(self._open)

    def new_cookie_filter(self) -> CookieFilter | None:
        """For a connection that may be a browser's."""
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
        """It may want a turn."""
        if connection.wants_turn and not connection.waits:
            connection.waits = True
            (self._trusted if connection.trusted else self._strangers).append(connection)
            self._pass_soon()

    def start(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def lost(self, connection: ControlConnection) -> None:
        self._open.discard(connection)

    def close(self) -> None:
        """End what the server has not ended: connections that were made while it closed."""
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
            connection.abort()  # it has made room before it was there

    def _pass_soon(self) -> None:
        if (self._trusted or self._strangers) and not self._queued_pass:
            self._queued_pass = True
            self._loop.call_soon(self._give_turns)

    def _give_turns(self) -> None:
        self._queued_pass = False
        end = time.monotonic() + SECONDS_PER_PASS
        for _ in range(min(len(self._trusted) + len(self._strangers), TURNS_PER_PASS)):
            connection = (self._trusted or self._strangers).popleft()
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
        """Abort what is late, and forget who has left."""
        now = time.monotonic()
        for connection in [one for one in self._open if one.deadline < now]:
            connection.abort()
        self._peers.forget_all_but({connection.uid for connection in self._open})
        self._sweep_timer = self._loop.call_later(SWEEP_SECONDS, self._sweep)


class ControlAcceptor:
    """Accepts a listening socket's connections, in turns with all else that the loop does.

    Args:
        sock: bound; it stays the caller's.
        admit: takes over what was accepted.
        log: hears once a while that nothing can be accepted.
    """

    def __init__(self, sock: socket.socket, admit: Callable[[socket.socket], None], log: LimitedLog) -> None:
        self._sock = sock
        self._admit = admit
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._pause_timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._resume()

    def close(self) -> None:
        """Stop accepting. May be called twice."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        elif self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
        self._pause_timer = None

    def _accept(self) -> None:
        began = time.monotonic()
        for _ in range(ACCEPTS_PER_PASS):
            try:
                sock, _ = self._sock.accept()
            except ConnectionAbortedError:
                continue
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    problem = f"can't accept connections: {error.strerror}"
                    self._log.write("warning", "control_unavailable", "accept", problem=problem)
                self._pause(EXHAUSTED_PAUSE)
                return
            self._admit(sock)
        # There may be more. A third of the time at most is theirs.
        self._pause(max(ACCEPT_PAUSE, 2 * (time.monotonic() - began)))

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._pause_timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._pause_timer = None
        self._loop.add_reader(self._sock, self._accept)
