"""Where connections come from and go to: our listeners, and siblings.

Connections are accepted one at a time: taking all that wait, as asyncio's own servers do, would leave
siblings idle. A worker that leaves gives connections between two requests to those that stay, so that clients
notice nothing (see `workers.handoff`); websockets, and connections under TLS, can't travel.
"""

import asyncio
import select
import socket
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ostler.logs.lean import Log
from ostler.logs.limiter import LimitedLog
from ostler.osapi.original import Socket
from ostler.scoreboard import layout
from ostler.scoreboard.writer import Words
from ostler.settings.table import Settings
from ostler.workers.acceptor import ROOM_LOOK
from ostler.workers.asgi import pace
from ostler.workers.eviction import IDLE, MOVING, ONE_IN, SLOW, YOUTH
from ostler.workers.handoff import HandOff
from ostler.workers.limits import AddressCounts, most_connections, network_of

if TYPE_CHECKING:
    from ssl import SSLContext

# Seconds without accepting when there are no descriptors left.
_ACCEPT_PAUSE = 1.0
# The same for what siblings give away, after much that was no connection.
_HANDOFF_PAUSE = 1.0
# As in the engines, in seconds: see `workers.doors`.
_PRESSED, _PRESSED_ARRIVALS, _REPORT_PAUSE = 1.0, 16, 10.0
# Seconds after which asyncio cuts a TLS connection that was closed, even if its client is still reading. That
# is for `close_slow` to decide.
_TLS_SHUTDOWN = 86_400.0
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 16\r\n\r\n"
    b"Request Timeout\n"
)


@dataclass(slots=True)
class _Parcel:
    """A connection on its way to a sibling; what `HandOff.send` reads of it."""

    fd: int
    listener: str
    served: int = 0
    tls: bool = False
    peer_info: dict[str, str] | None = None


class _Accepted(Socket):
    """Knows its peer also when that has reset the connection: it is no proxy behind a Unix socket then."""

    __slots__ = ("_peer",)

    def __init__(self, sock: socket.socket, peer: Any) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self._peer = peer

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError:
            return self._peer


class Doors:
    """Accepts connections and hands them to uvicorn's protocol.

    Args:
        words: of the scoreboard's lane that counts connections.
        log: for what clients can't cause at will.
        limited: for what clients can cause.
        protocol: makes the protocol of one connection.
        connections: uvicorn's, those that are open.

    Attributes:
        listeners: what is accepted from.
        count: connections that are open, or on their way there.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listeners: list[socket.socket],
        handoff: HandOff | None,
        tls: "SSLContext | None",
        settings: Settings,
        words: Words,
        log: Log,
        limited: LimitedLog,
        protocol: Callable[[], Any],
        connections: set[Any],
    ) -> None:
        self.listeners = listeners
        self.count = 0
        self._loop = loop
        self._handoff = handoff
        self._tls = tls
        self._words = words
        self._log = log
        self._limited = limited
        self._protocol = protocol
        self._most = most_connections(settings.worker_connections)
        self._settings = settings
        self._backlog = select.poll()
        for listener in listeners:
            self._backlog.register(listener.fileno(), select.POLLIN)
        self._connections = connections
        self._waiting = False
        # The one timer of `_look_for_room`.
        self._looking: asyncio.TimerHandle | None = None
        self._pressed_until = 0.0
        self._evicted, self._next_report = 0, 0.0
        self._addresses = AddressCounts(settings.limit_connections_per_address)
        self._header_timeout = settings.header_timeout
        self._wanted = self._open = False
        # Connections that are not open yet, such as those in a TLS handshake; the oldest come first.
        self._arriving: dict[asyncio.Task[None], float] = {}
        self._keepalive = settings.keepalive
        # By how long they may take: connections, and by when a request must have come (the loop's time), in
        # that order. Weak: those that have ended would fill memory for that long.
        self._fresh: dict[float, weakref.WeakKeyDictionary[Any, float]] = {}
        self._given: set[Any] = set()
        self._handoff_paused = False

    def open(self) -> None:
        """Begin to accept."""
        self._wanted = True
        self._open_if_room()

    def close(self) -> None:
        """Accept no more; the listeners stay open, they are the siblings' too."""
        self._wanted = False
        self._shut()

    def _open_if_room(self) -> None:
        if self._wanted and not self._open and self.count < self._most:
            self._open = True
            for listener in self.listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)
            if self._handoff is not None:
                self._loop.add_reader(self._handoff.fileno(), self._take)

    def _shut(self) -> None:
        if self._open:
            self._open = False
            for listener in self.listeners:
                self._loop.remove_reader(listener.fileno())
            if self._handoff is not None:
                self._loop.remove_reader(self._handoff.fileno())

    # -- in ----------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        arrivals = _PRESSED_ARRIVALS if self._loop.time() < self._pressed_until else 1
        while arrivals and self._open:
            arrivals -= 1
            try:
                sock, peer = listener.accept()
            except OSError as error:
                if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM) and not self._evict(
                    MOVING, error.strerror or "no descriptors"
                ):
                    self._shut()
                    self._loop.call_later(_ACCEPT_PAUSE, self._open_if_room)
                    self._limited.write(
                        "error", "accept_paused", "", reason=error.strerror, seconds=_ACCEPT_PAUSE
                    )
                return  # or a sibling was quicker, or the client went away again
            sock.setblocking(False)
            self._words[layout.OPENED] += 1
            self._adopt(sock, peer, self._header_timeout)

    def _take(self) -> None:
        """Take a connection that a sibling gives away; its next request is probably there."""
        assert self._handoff is not None
        if (taken := self._handoff.receive()) is None:
            if self._handoff.useless:
                self._pause_handoff()
            return
        if self._tls is not None or taken.peer_info:
            # From workers that were set up otherwise: it can't go on here.
            taken.sock.close()
            return
        self._words[layout.RECEIVED] += 1
        self._adopt(taken.sock, taken.peer, self._keepalive)

    def _pause_handoff(self) -> None:
        """Disregard siblings for a while: they send what is no connection."""
        assert self._handoff is not None
        if not self._handoff_paused:
            self._log.warning("hand_off_paused", reason="what sibling workers hand over is no connection")
            self._handoff_paused = True
        self._loop.remove_reader(self._handoff.fileno())
        self._loop.call_later(_HANDOFF_PAUSE, self._resume_handoff)

    def _resume_handoff(self) -> None:
        if self._open and self._handoff is not None:
            self._loop.add_reader(self._handoff.fileno(), self._take)

    def _adopt(self, accepted: socket.socket, peer: Any, patience: float) -> None:
        sock = _Accepted(accepted, peer)
        address = None
        if self._addresses.most and isinstance(peer, tuple):
            address = self._addresses.add(peer[0])
            if address is None:
                sock.close()
                self._words[layout.CLOSED] += 1
                where = {"address": network_of(peer[0]), "limit": self._addresses.most}
                self._limited.write("warning", "too_many_connections", "", **where)
                return
        self.count += 1
        protocol = self._protocol()
        protocol.address, protocol.sock = address, sock
        task = self._loop.create_task(self._connect(sock, protocol, patience))
        self._arriving[task] = self._loop.time()
        task.add_done_callback(lambda task: self._arrived(task, sock, protocol))
        if self.count >= self._most:
            pressed = self._loop.time() < self._pressed_until and self._clients_wait()
            self._evict(MOVING if pressed else IDLE, "worker_connections is reached")
            self._shut()
            self._look_for_room_in(0.0)

    # -- making room -------------------------------------------------------------------------------------

    def _clients_wait(self) -> bool:
        """Whether a listener has a connection that no worker has accepted."""
        return any(event & select.POLLIN for _, event in self._backlog.poll(0))

    def _look_for_room_in(self, seconds: float) -> None:
        if self._looking is not None:
            self._looking.cancel()
        self._looking = self._loop.call_later(seconds, self._look_for_room)

    def _look_for_room(self) -> None:
        """While full: close slow connections if others wait that no sibling takes."""
        self._looking = None
        self._open_if_room()
        if self._open or not self._wanted:
            return
        now = self._loop.time()
        if not self._clients_wait():
            self._waiting = False
        elif not self._waiting and now >= self._pressed_until:
            self._waiting = True
        elif self._evict(MOVING, "worker_connections is reached"):
            self._pressed_until = now + _PRESSED
        self._look_for_room_in(ROOM_LOOK)

    def _evict(self, worst: int, reason: str = "") -> int:
        """Have the connections that are worth least closed, as `workers.eviction` says; how many they are."""
        now, rate = self._loop.time(), self._settings.body_min_rate
        number, least = pace.least_worth(list(self._connections), now, rate, worst)
        if number >= SLOW:
            # Handshakes, the oldest first, unless all have only just begun.
            old = [task for task, began in self._arriving.items() if now - began > YOUTH / 1e9]
            old = old[: len(old) // ONE_IN[SLOW] + 1]
            if old and number > SLOW:
                number, least = SLOW, []
            for task in old:
                task.cancel()
        else:
            old = []
        for protocol in least:
            self._refuse(protocol, at_once=True)
        closed = len(least) + len(old)
        if closed and number >= SLOW:
            self._evicted += closed
            if now >= self._next_report:
                self._next_report = now + _REPORT_PAUSE
                self._log.warning("connections_evicted", count=self._evicted, reason=reason)
                self._evicted = 0
        return closed

    def _refuse(self, protocol: Any, at_once: bool = False) -> None:
        """End a connection, with 408 if a request has begun that is not answered.

        `at_once`: without waiting for the client's part of the end of TLS.
        """
        transport, cycle = protocol.transport, getattr(protocol, "cycle", None)
        if transport.is_closing():
            if at_once or pace.unsent(transport):
                pace.abort(protocol)
            return
        begun = getattr(protocol, "got", 0) or (cycle is not None and not cycle.response_complete)
        if begun and protocol.stalled is None and (cycle is None or not cycle.response_started):
            transport.write(_TOO_SLOW)
            self._words[layout.STATUS_CLASSES + 4] += 1
        if pace.unsent(transport) or (at_once and self._tls is not None):
            transport.abort()
        else:
            transport.close()

    def close_slow(self, connections: set[Any]) -> None:
        """Close those of `connections` that take too long for a head or a body, to read, or to close."""
        now, settings = self._loop.time(), self._settings
        for protocol in list(connections):
            if self._tls is not None and pace.lingers(protocol, now):
                self._refuse(protocol, at_once=True)
            elif pace.is_late(protocol, now, settings):
                self._refuse(protocol)

    async def _connect(self, sock: socket.socket, protocol: Any, patience: float) -> None:
        limits = {}
        if self._tls is not None:
            limits["ssl_handshake_timeout"] = self._header_timeout or None
            limits["ssl_shutdown_timeout"] = _TLS_SHUTDOWN
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock, ssl=self._tls, **limits)
        except (OSError, asyncio.CancelledError) as error:
            # Gone before it was there, or no TLS (ssl.SSLError is an OSError).
            # asyncio's frames refer to what the exception is stored in: a cycle, with TLS buffers of 256 KiB.
            traceback.clear_frames(error.__traceback__)
            return
        if patience:
            fresh = self._fresh.setdefault(patience, weakref.WeakKeyDictionary())
            fresh[protocol] = self._loop.time() + patience

    def _arrived(self, task: "asyncio.Task[None]", sock: socket.socket, protocol: Any) -> None:
        """`_connect` is done; or it was cancelled, even before it began."""
        del self._arriving[task]
        if protocol.transport is None:
            sock.close()
            protocol.drop_parser()
            self.lost(protocol)

    def lost(self, protocol: Any) -> None:
        """A connection has ended here."""
        self.count -= 1
        if (address := getattr(protocol, "address", None)) is not None:
            self._addresses.remove(address)
        if protocol in self._given:
            self._given.remove(protocol)
        else:
            self._words[layout.CLOSED] += 1
        if not self._open:
            self._open_if_room()

    # -- out ---------------------------------------------------------------------------------------------

    def close_late(self, connections: set[Any]) -> None:
        """Close those of `connections` whose first request here has not come in time."""
        now = self._loop.time()
        for fresh in self._fresh.values():
            late = [protocol for protocol, _ in takewhile(lambda entry: entry[1] <= now, fresh.items())]
            for protocol in late:
                del fresh[protocol]
                # Those that have become websockets are not among uvicorn's connections any more.
                if protocol in connections and protocol.cycle is None:
                    protocol.transport.close()

    def give(self, protocol: Any) -> bool:
        """Hand over a connection that has answered and received nothing since; True if it is gone."""
        if self._handoff is None or self._tls is not None or protocol.timeout_keep_alive_task is None:
            return False
        sock = protocol.transport.get_extra_info("socket")
        if sock is None or not self._handoff.send(_Parcel(sock.fileno(), str(sock.getsockname()))):
            return False
        self._words[layout.HANDED_OFF] += 1
        self._given.add(protocol)
        # At once, without a goodbye: the one that travels lives on.
        protocol.transport.abort()
        return True

    @property
    def arriving(self) -> bool:
        """Whether a connection was accepted that uvicorn does not know yet."""
        return bool(self._arriving)
