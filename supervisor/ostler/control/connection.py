"""One connection of the control plane: aiohttp's protocol, which gets the received bytes in small pieces.

It parses nothing while a request waits for its answer: more bytes of the client stay in the kernel. Pieces
are parsed, and requests answered, in turns that `Turns` assigns.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from aiohttp import web

from ostler.control.allowances import Peer
from ostler.control.cookies import CookieFilter
from ostler.control.turns import Turns

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
HEAD_LIMIT = 64 * 1024
"""Bytes of a head, all lines together, without cookies. aiohttp limits single lines."""
COOKIES_LIMIT = 1024 * 1024
"""Bytes of a head with the cookies that are dropped; browsers send some 700 KB at most."""
PIECE = 2048
"""Bytes that are parsed per turn. The slowest ones are chunks of one byte: some 0.8 ms."""
REQUEST_SECONDS = 0.0005
"""Seconds of the loop that one request is counted as; parsing, authentication and handlers are measured."""
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)


class ControlConnection(web.RequestHandler):
    """One connection. `ControlConnections` aborts it at its deadline. Called only by the event loop's thread.

    Args:
        server: aiohttp's, which routes the requests.
        peer: the other end.
        turns: assigns its turns.
        cookies: a filter for the received bytes, or None.
        on_lost: called when it has ended.
        options: for aiohttp's protocol.

    Attributes:
        peer: the other end.
        deadline: monotonic seconds at which it is aborted, whatever its state.
        proven, since: see `limits.Seat`.
    """

    def __init__(
        self,
        server: web.Server,
        peer: Peer,
        turns: Turns,
        cookies: CookieFilter | None,
        on_lost: Callable[["ControlConnection"], None],
        **options: Any,
    ) -> None:
        super().__init__(server, **options)
        self.peer = peer
        self._turns = turns
        self._cookies = cookies
        self._on_lost = on_lost
        self.since = time.monotonic()
        self.deadline = self.since + HEAD_SECONDS
        self.proven = False
        self.waits = False
        self._turn: asyncio.Future[bool] | None = None
        self._answering = False
        self._answered = 0
        self._reading_body = False
        self._received = bytearray()
        self._parsed = 0
        """Bytes of the current head that were parsed; dropped cookies count in `_filtered`."""
        self._filtered = 0
        self._lingering: asyncio.Future[None] | None = None
        self._refusing: asyncio.Task[None] | None = None  # the loop refers to its tasks weakly
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
        self._turns.add(self)

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
        self._on_lost(self)
        super().connection_lost(error)

    # -- called by ControlConnections and Turns ----------------------------------------------------------

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

    def delay(self) -> float:
        return self.peer.wait()

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
                self._refusing = asyncio.get_running_loop().create_task(self._refuse_head())
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
        self._turns.add(self)
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
            self._turns.add(self)

    @contextmanager
    def body(self) -> Iterator[None]:
        """The context in which the request's body is read."""
        self._reading_body = True
        self._turns.add(self)
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
