"""Accepts connections of asgi workers, receives them from siblings, and hands them off to siblings.

Connections are accepted one at a time: taking all that wait, as asyncio's own servers do, would leave
siblings idle. A worker that drains hands off connections between two requests to its siblings, so that
clients notice nothing (see `workers.handoff`). Websockets, and connections under TLS, can't be handed off.
"""

import asyncio
import errno
import select
import socket
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from ostler.http1.errors import RequestTimeout
from ostler.logs.limiter import LimitedLog
from ostler.logs.worker_log import Log
from ostler.osapi import refusing
from ostler.osapi.original import Socket
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.table import Settings
from ostler.workers import accept_pause
from ostler.workers.accept_pause import AcceptPause
from ostler.workers.acceptor import FULL_CHECK_SECONDS
from ostler.workers.asgi import client_speed
from ostler.workers.asgi.refusals import Report
from ostler.workers.connection_limits import AddressCounts, most_connections, network_of
from ostler.workers.eviction import IDLE, MIN_AGE_NS, MOVING, ONE_IN, SLOW, EvictionLog, lowest_ranked
from ostler.workers.handoff import INVALID_RECEIVED, HandOff
from ostler.workers.units import SECOND

if TYPE_CHECKING:
    from ssl import SSLContext

# Seconds without receiving connections from siblings, after much that was no connection.
_HANDOFF_PAUSE = 1.0
# After clients had to wait for room, for so many seconds: so many connections are accepted at once, and
# connections are evicted as soon as the worker is full.
_PRESSURE, _PRESSURE_ARRIVALS = 1.0, 16
# Seconds after which asyncio cuts a TLS connection that was closed, even if its client is still reading. That
# is for `close_slow` to decide.
_TLS_SHUTDOWN = 86_400.0
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 16\r\n\r\n"
)
_TOO_SLOW_BODY = b"Request Timeout\n"


@dataclass(slots=True)
class _IdleConnection:
    """A connection that is to be handed off, as `HandOff.send` takes it."""

    fd: int
    listener: str
    answered_at: int = 0
    waiting_since: int = 0
    tls: bool = False
    peer_info: dict[str, str] | None = None


class _AcceptedSocket(Socket):
    """Knows its peer's address also when that has reset the connection.

    Without an address it would pass for a proxy behind a Unix socket, which is trusted.
    """

    __slots__ = ("_peer",)

    def __init__(self, sock: socket.socket, peer: Any) -> None:
        super().__init__(sock.family, sock.type, sock.proto, sock.detach())
        self._peer = peer

    def getpeername(self) -> Any:
        try:
            return super().getpeername()
        except OSError:
            return self._peer


class AsgiAcceptor:
    """Accepts connections and connects them to uvicorn's protocol. Used by the loop's thread only.

    Args:
        slot: the loop's, which counts connections.
        log: for events that clients can't cause at will.
        limited: for those that they can cause.
        report: called for each request that is refused because it is late.
        protocol: makes the protocol of one connection.
        connections: uvicorn's set of those that are open.

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
        slot: RequestSlot,
        log: Log,
        limited: LimitedLog,
        report: Report,
        protocol: Callable[[], Any],
        connections: set[Any],
    ) -> None:
        self.listeners = listeners
        self.count = 0
        self._loop = loop
        self._handoff = handoff
        self._tls = tls
        self._slot = slot
        self._log = log
        self._limited = limited
        self._pause = AcceptPause(limited)
        self._report = report
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
        self._pressure_until = 0.0
        self._eviction_log = EvictionLog(log)
        self._addresses = AddressCounts(settings.limit_connections_per_address)
        self._header_timeout = settings.header_timeout
        self._wanted = self._open = False
        # Connections that are not open yet, such as those in a TLS handshake: the socket, and since when (the
        # loop's time). The oldest come first.
        self._arriving: dict[asyncio.Task[None], tuple[socket.socket, float]] = {}
        self._keepalive = settings.keepalive
        # By how long they may take: connections, and by when a request must have come (the loop's time), in
        # that order. Weak: those that have ended would fill memory for that long.
        self._fresh: dict[float, weakref.WeakKeyDictionary[Any, float]] = {}
        self._handed_off: set[Any] = set()
        self._handoff_paused = False

    def open(self) -> None:
        """Begin to accept."""
        self._wanted = True
        self._open_if_room()

    def close(self) -> None:
        """Accept no more. The listeners stay open: siblings have them as well."""
        self._wanted = False
        self._shut()

    def keep_only(self, listeners: list[socket.socket]) -> None:
        """Stop for good to accept from all others."""
        for listener in self.listeners:
            if listener not in listeners:
                self._backlog.unregister(listener.fileno())
                if self._open:
                    self._loop.remove_reader(listener.fileno())
        self.listeners = listeners

    def _open_if_room(self) -> None:
        if self._wanted and not self._open and self.count < self._most:
            self._open = True
            for listener in self.listeners:
                self._loop.add_reader(listener.fileno(), self._accept, listener)
            if self._handoff is not None:
                self._loop.add_reader(self._handoff.fileno(), self._receive)

    def _shut(self) -> None:
        if self._open:
            self._open = False
            for listener in self.listeners:
                self._loop.remove_reader(listener.fileno())
            if self._handoff is not None:
                self._loop.remove_reader(self._handoff.fileno())

    # -- accepting --------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        arrivals = _PRESSURE_ARRIVALS if self._loop.time() < self._pressure_until else 1
        while arrivals and self._open:
            arrivals -= 1
            try:
                sock, peer = listener.accept()
            except OSError as error:
                if error.errno == errno.EINVAL:
                    self._listener_shut(listener)
                elif accept_pause.is_exhaustion(error) and not self._evict(
                    MOVING, error.strerror or "no descriptors"
                ):
                    self._shut()
                    self._loop.call_later(accept_pause.SECONDS, self._open_if_room)
                    self._pause.begin(error, time.monotonic_ns())
                return  # or a sibling was quicker, or the client has gone
            sock.setblocking(False)
            self._slot.connection_opened()
            self._adopt(sock, peer, self._header_timeout)

    def _listener_shut(self, listener: socket.socket) -> None:
        """The supervisor has shut a listener down, because the daemon stops: it is "ready" for ever."""
        self._loop.remove_reader(listener.fileno())
        if all(refusing.is_shut(each.fileno()) for each in self.listeners):
            self.close()

    @property
    def is_open(self) -> bool:
        """Whether connections are accepted, or will be when there is room."""
        return self._wanted

    def _receive(self) -> None:
        """Receive a connection that a sibling hands off; its next request is probably there."""
        assert self._handoff is not None
        if (received := self._handoff.receive()) is None:
            if self._handoff.only_invalid_received:
                self._pause_handoff()
            return
        if self._tls is not None or received.peer_info:
            # From a worker with other settings: it can't be continued here.
            received.sock.close()
            return
        self._slot.connection_received()
        self._adopt(received.sock, received.peer, self._keepalive)

    def _pause_handoff(self) -> None:
        """Receive nothing for a while: siblings send what is no connection."""
        assert self._handoff is not None
        if not self._handoff_paused:
            self._log.warning(
                "hand_off_paused",
                reason=INVALID_RECEIVED,
            )
            self._handoff_paused = True
        self._loop.remove_reader(self._handoff.fileno())
        self._loop.call_later(_HANDOFF_PAUSE, self._resume_handoff)

    def _resume_handoff(self) -> None:
        if self._open and self._handoff is not None:
            self._loop.add_reader(self._handoff.fileno(), self._receive)

    def _adopt(self, accepted: socket.socket, peer: Any, request_within: float) -> None:
        sock = _AcceptedSocket(accepted, peer)
        address = None
        if self._addresses.most and isinstance(peer, tuple):
            address = self._addresses.add(peer[0])
            if address is None:
                sock.close()
                self._slot.connection_closed()
                where = {"address": network_of(peer[0]), "limit": self._addresses.most}
                self._limited.write("warning", "too_many_connections", "", **where)
                return
        self.count += 1
        protocol = self._protocol()
        protocol.address, protocol.sock = address, sock
        task = self._loop.create_task(self._connect(sock, protocol, request_within))
        self._arriving[task] = sock, self._loop.time()
        task.add_done_callback(lambda task: self._arrived(task, sock, protocol))
        if self.count >= self._most:
            pressed = self._loop.time() < self._pressure_until and self._clients_wait()
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
        """While full: evict connections if clients wait that no sibling accepts."""
        self._looking = None
        self._open_if_room()
        if self._open or not self._wanted:
            return
        now = self._loop.time()
        if not self._clients_wait():
            self._waiting = False
        elif not self._waiting and now >= self._pressure_until:
            self._waiting = True
        elif self._evict(MOVING, "worker_connections is reached"):
            self._pressure_until = now + _PRESSURE
        self._look_for_room_in(FULL_CHECK_SECONDS)

    def _evict(self, highest: int, reason: str = "") -> int:
        """Close the connections that are worth least, as `workers.eviction` says; returns their number."""
        now, rate = self._loop.time(), self._settings.body_min_rate
        connections = list(self._connections)
        number, least = lowest_ranked(connections, lambda each: client_speed.rank(each, now, rate), highest)
        if number >= SLOW:
            # Handshakes, the oldest first, unless all have only just begun.
            old = [task for task, (_, began) in self._arriving.items() if now - began > MIN_AGE_NS / 1e9]
            old = old[: len(old) // ONE_IN[SLOW] + 1]
            if old and number > SLOW:
                number, least = SLOW, []
            for task in old:
                task.cancel()
        else:
            old = []
        for protocol in least:
            self._refuse(protocol, "worker_connections", at_once=True)
        closed = len(least) + len(old)
        self._eviction_log.add(number, closed, int(now * SECOND), reason)
        return closed

    def _refuse(self, protocol: Any, rule: str, at_once: bool = False) -> None:
        """End a connection, with 408 if a request has begun that is not answered.

        `rule`: why, one of http1.errors.RULES.
        `at_once`: without waiting for the client's part of the end of TLS.
        """
        transport = protocol.transport
        if transport.is_closing():
            if at_once or client_speed.unsent(transport):
                client_speed.abort(protocol)
            return
        if client_speed.has_begun(protocol) and protocol.stalled is None and not protocol.is_answered():
            text = "it makes room for others" if rule == "worker_connections" else RequestTimeout.text
            reason = RequestTimeout(text, rule).reason
            self._report(protocol, 408, len(_TOO_SLOW_BODY), rule, reason)
            transport.write(_TOO_SLOW + _TOO_SLOW_BODY)
        if client_speed.unsent(transport) or (at_once and self._tls is not None):
            transport.abort()
        else:
            transport.close()

    def close_slow(self, connections: set[Any]) -> None:
        """Close those of `connections` that take too long for a head or a body, to read, or to close.

        And those whose client has closed its side and is gone.
        """
        now, settings = self._loop.time(), self._settings
        for protocol in list(connections):
            if getattr(protocol, "half_closed", 0):  # a websocket never is
                protocol.look_for_client()
            if self._tls is not None and client_speed.lingers(protocol, now):
                self._refuse(protocol, "body_timeout", at_once=True)
            elif client_speed.is_late(protocol, now, settings):
                cycle = getattr(protocol, "cycle", None)
                in_head = cycle is None or cycle.response_complete
                self._refuse(protocol, "header_timeout" if in_head else "body_timeout")

    async def _connect(self, sock: socket.socket, protocol: Any, request_within: float) -> None:
        limits = {}
        if self._tls is not None:
            limits["ssl_handshake_timeout"] = self._header_timeout or None
            limits["ssl_shutdown_timeout"] = _TLS_SHUTDOWN
        try:
            await self._loop.connect_accepted_socket(lambda: protocol, sock, ssl=self._tls, **limits)
        except (OSError, asyncio.CancelledError) as error:
            # The client has gone already, or does not speak TLS (ssl.SSLError is an OSError).
            # asyncio's frames refer to what the exception is stored in: a cycle, with TLS buffers of 256 KiB.
            traceback.clear_frames(error.__traceback__)
            return
        if request_within:
            fresh = self._fresh.setdefault(request_within, weakref.WeakKeyDictionary())
            fresh[protocol] = self._loop.time() + request_within

    def _arrived(self, task: "asyncio.Task[None]", sock: socket.socket, protocol: Any) -> None:
        """`_connect` is done; or it was cancelled, even before it began."""
        del self._arriving[task]
        if protocol.transport is None:
            sock.close()
            protocol.drop_parser()
            self.lost(protocol)

    def lost(self, protocol: Any) -> None:
        """A connection has ended, or was handed off."""
        self.count -= 1
        if (address := getattr(protocol, "address", None)) is not None:
            self._addresses.remove(address)
        if protocol in self._handed_off:
            self._handed_off.remove(protocol)
        else:
            self._slot.connection_closed()
        if not self._open:
            self._open_if_room()

    # -- closing and handing off -------------------------------------------------------------------------

    def close_late(self, connections: set[Any]) -> None:
        """Close those of `connections` whose first request here has not come in time."""
        now = self._loop.time()
        for fresh in self._fresh.values():
            late = [protocol for protocol, _ in takewhile(lambda entry: entry[1] <= now, fresh.items())]
            for protocol in late:
                del fresh[protocol]
                # Those that have become websockets are not among uvicorn's connections.
                if protocol in connections and protocol.cycle is None:
                    protocol.transport.close()

    def hand_off(self, protocol: Any) -> bool:
        """Hand off a connection that has answered and received nothing since; True if that was done."""
        if self._handoff is None or self._tls is not None or protocol.timeout_keep_alive_task is None:
            return False
        sock = protocol.transport.get_extra_info("socket")
        if sock is None or not self._handoff.send(_IdleConnection(sock.fileno(), str(sock.getsockname()))):
            return False
        self._slot.connection_handed_off()
        self._handed_off.add(protocol)
        # At once, and without a shutdown: the connection itself lives on in the sibling.
        protocol.transport.abort()
        return True

    @property
    def arriving(self) -> bool:
        """Whether a connection was accepted that uvicorn does not know yet."""
        return bool(self._arriving)

    def descriptors(self) -> set[int]:
        """Of the connections that uvicorn does not know yet."""
        return {sock.fileno() for sock, _ in list(self._arriving.values())}
