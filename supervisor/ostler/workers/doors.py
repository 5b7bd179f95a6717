"""Where connections come from, and where they go: listeners, sibling workers, and how many there may be."""

import select
import socket
from errno import EMFILE, ENFILE, ENOBUFS, ENOMEM
from time import monotonic_ns
from typing import Any

from ostler.http1.errors import RequestTimeout
from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.settings.networks import Networks
from ostler.workers import eviction
from ostler.workers.base import Context
from ostler.workers.connection import Connection, Limits
from ostler.workers.lane import Lane
from ostler.workers.limits import most_connections
from ostler.workers.serving import Serving
from ostler.workers.wiring import host_of
from ostler.wsgi.environ import listener_environ

# Of the workers that wait, the kernel wakes one, not all.
_SHARED = select.EPOLLIN | select.EPOLLEXCLUSIVE
# Out of descriptors or memory: accepting pauses this long instead of spinning on a listener that stays ready.
_ACCEPT_PAUSE = 1_000_000_000
# What siblings give away is not looked at for so long after much that was no connection.
_HANDOFF_PAUSE = 1_000_000_000
# How often a crowded worker gives a connection away (ns), and how seldom if it comes back each time.
GIFT_PAUSE = 10_000_000
_LONGEST_GIFT_PAUSE = 250_000_000
# A full worker looks this often (s) for clients that wait. Only those that no sibling has accepted by the
# next look are a reason to close a connection whose request is incomplete.
ROOM_LOOK = 0.02
# Once that was necessary, the next ones need not wait for a second look, for this long (ns).
_PRESSED = 1_000_000_000
# So many connections are accepted in one pass then: who is no attacker waits behind those that are.
_PRESSED_ARRIVALS = 16
_FULL = "worker_connections is reached"
_REPORT_PAUSE = 10_000_000_000


class Doors(Serving):
    """Accepts connections, takes them from siblings and gives them to siblings; a part of the engine."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        settings, handoff = context.settings, context.handoff
        self._handoff = handoff
        self._handoff_fd = handoff.fileno() if handoff is not None else -1
        self._most_connections = most_connections(settings.worker_connections)
        self._limits = Limits.of(settings)
        self._proxies = Networks.parse(settings.proxy_allow_ips)
        self._forwarders = Networks.parse(settings.forwarded_allow_ips)
        self._listeners: dict[int, tuple[socket.socket, str]] = {}
        for listener in context.listeners:
            address = listener.getsockname()
            self._listeners[listener.fileno()] = listener, str(address)
            self._environs[str(address)] = listener_environ(self._shared, address)
        # All descriptors that connections come from; first the hand-off's, for what is in it waits already.
        self._doors = (*([self._handoff_fd] if handoff is not None else []), *self._listeners)
        self._accepting = False
        self._resume_accepting: int | None = None
        self._resume_handoff: int | None = None
        self._backlog = original.poll()
        for fd in self._listeners:
            self._backlog.register(fd, select.POLLIN)
        self._waiting_since = self._pressed_until = self._next_room_look = 0
        self._evicted = self._next_report = 0
        self._gift_pause = GIFT_PAUSE
        self._gift_out = False
        self._hand_over = False
        self.draining = False

    def _accept_on(self) -> None:
        self._accepting = True
        for fd in self._doors:
            self._epoll_add(fd)

    def _accept_off(self) -> None:
        if self._accepting:
            self._accepting = False
            for fd in self._doors:
                self._epoll_remove(fd)

    def _epoll_add(self, fd: int) -> None:
        try:
            self._epoll.register(fd, _SHARED)
        except OSError:
            pass  # a signal handler has let the listeners go, or the app closed what is not its own

    def _epoll_remove(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass  # as above

    def _accept_on_again(self, lane: Lane, now: int) -> None:
        """Accept, unless the reason not to is still there."""
        if self.draining or (self._is_full and not self._make_room_for_waiting(lane, now)):
            return
        if self._resume_accepting is not None:
            if now < self._resume_accepting:
                return
            self._resume_accepting = None
        self._waiting_since = 0
        self._accept_on()

    def _pause_handoff(self) -> None:
        """Disregard siblings for a while: they send what is no connection."""
        if self._resume_handoff is None:
            self._log.warning("hand_off_paused", reason="what sibling workers hand over is no connection")
        self._resume_handoff = monotonic_ns() + _HANDOFF_PAUSE
        self._doors = tuple(self._listeners)
        if self._accepting:
            self._epoll_remove(self._handoff_fd)

    def _handoff_on_again(self, now: int) -> None:
        if (
            self._resume_handoff is not None
            and now >= self._resume_handoff
            and self._handoff_fd not in self._doors
        ):
            self._doors = (self._handoff_fd, *self._listeners)
            if self._accepting:
                self._epoll_add(self._handoff_fd)

    @property
    def _is_full(self) -> bool:
        return len(self._connections) >= self._most_connections

    def _clients_wait(self) -> bool:
        """Whether a listener has a connection that no worker has accepted."""
        return any(event & select.POLLIN for _, event in self._backlog.poll(0))

    def _make_room_for_waiting(self, lane: Lane, now: int) -> bool:
        """Close slow connections if others wait that no sibling takes; True if there is room now."""
        if now < self._next_room_look:
            return False
        self._next_room_look = now + int(ROOM_LOOK * 1_000_000_000)
        if not self._clients_wait():
            self._waiting_since = 0
            return False
        if not self._waiting_since:
            self._waiting_since = now
            if now >= self._pressed_until:
                return False
        if not self._evict(lane, now, eviction.MOVING, _FULL):
            return False
        self._pressed_until = now + _PRESSED
        self._next_room_look = 0
        return True

    def _accept(self, listener_fd: int, lane: Lane, now: int) -> Connection | None:
        """Take one connection: taking all would leave siblings idle that were woken for the same."""
        if not self._accepting:
            return None
        listener, name = self._listeners[listener_fd]
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                if self._evict(lane, now, eviction.MOVING, error.strerror or "no descriptors"):
                    return None  # there is room now; the listener is still ready
                self._accept_off()
                self._resume_accepting = now + _ACCEPT_PAUSE
                self._limited.write(
                    "error",
                    "accept_paused",
                    "",
                    reason=error.strerror,
                    seconds=_ACCEPT_PAUSE // 1_000_000_000,
                )
            return None  # a sibling was quicker, or the client went away again
        sock.setblocking(False)
        # To the end of the queue: the kernel wakes the first who waits, so workers take turns.
        self._epoll_remove(listener_fd)
        self._epoll_add(listener_fd)
        lane.words[layout.OPENED] += 1
        host = host_of(peer)
        proxied = self._proxy_mode != "off" and host in self._proxies
        # Whose connection a proxy's is, its PROXY header says.
        connection = self._adopt(sock, name, peer, "" if proxied else host, lane)
        if connection.closed:
            return None
        if proxied:
            connection.preface = b""
            connection.odd = True
        elif self._tls is not None:
            try:
                connection.wrap(self._tls)
            except (OSError, ValueError):
                self._close(connection, lane)  # the client has gone already
                return None
        return connection

    def _arrivals_in_a_pass(self, usual: int, now: int) -> int:
        """How many connections to accept from one listener in a pass."""
        return _PRESSED_ARRIVALS if now < self._pressed_until else usual

    def _take(self, lane: Lane) -> Connection | None:
        """Take one connection that a sibling gives away; its next request is probably there."""
        assert self._handoff is not None
        if not (self._accepting or self.draining) or self._handoff_fd not in self._doors:
            return None
        if (taken := self._handoff.take()) is None:
            if self._handoff.useless:
                self._pause_handoff()
            return None
        if self._tls is not None:
            # From a generation before, which did without TLS: it can't go on here.
            taken.sock.close()
            return None
        if taken.ours:
            # Nobody was free: that is not soon tried again.
            self._gift_pause = min(2 * self._gift_pause, _LONGEST_GIFT_PAUSE)
            self._gift_out = False
        lane.words[layout.RECEIVED] += 1
        host = taken.facts.get("REMOTE_ADDR") or host_of(taken.peer)
        connection = self._adopt(taken.sock, taken.listener, taken.peer, host, lane)
        connection.facts = taken.facts
        connection.served = taken.served
        return None if connection.closed else connection

    def _adopt(self, sock: socket.socket, listener: str, peer: Any, host: str, lane: Lane) -> Connection:
        """Take a new connection into the table; it is closed already if there are too many of its host.

        `host`: the address that it counts as; empty: none, or it is not known yet.
        """
        rules = self._trusting_rules if host_of(peer) in self._forwarders else self._rules
        connection = Connection(sock, listener, peer, rules, self._new_body, self._limits, monotonic_ns())
        if self._send_now is not None:
            connection.send_now = self._send_now
        if self._wait_for is not None:
            connection.wait_for = self._wait_for
        self._connections[connection.fd] = connection
        if self._addresses.most and not self._count_address(connection, host):
            self._close(connection, lane)
            return connection
        if self._is_full:
            now = connection.idle_since
            pressed = now < self._pressed_until and self._clients_wait()
            if self._evict(lane, now, eviction.MOVING if pressed else eviction.IDLE, _FULL):
                if pressed:
                    self._pressed_until = now + _PRESSED
            else:
                self._accept_off()
        return connection

    def _evict(self, lane: Lane, now: int, worst: int, reason: str = "") -> bool:
        """Close the connections that are worth least, up to rank `worst`; True if any was.

        `reason`: for the log, where it is a reason to warn.
        """
        rank, least = eviction.least_worth(
            list(self._connections.values()), now, self._limits.body_min_rate, worst
        )
        before = len(self._connections)
        for connection in least:
            if connection.lingering or connection.outbox:
                self._close(connection, lane)
            elif has_data(connection):
                continue  # bytes came that were not looked at yet
            elif connection.parser.receiving and connection.violation is None:
                # Not left to linger: that would make no room.
                self._refuse(connection, RequestTimeout("it makes room for others"), lane)
                self._close(connection, lane)
            else:
                self._close(connection, lane)
        closed = before - len(self._connections)
        if closed and rank >= eviction.SLOW:
            self._evicted += closed
            if now >= self._next_report:
                self._next_report = now + _REPORT_PAUSE
                self._log.warning("connections_evicted", count=self._evicted, reason=reason)
                self._evicted = 0
        return closed > 0

    def _give_waiting(self, connection: Connection, lane: Lane) -> bool:
        """Hand over a connection whose request would have to wait here, if anybody may be free."""
        return (self._hand_over or not self.draining) and self._give(connection, lane)

    def _give(self, connection: Connection, lane: Lane) -> bool:
        """Hand a connection over to a sibling if it can be; True if it is gone."""
        if self._handoff is None or not connection.is_idle or not self._handoff.give(connection):
            return False
        connection.closed = True
        del self._connections[connection.fd]
        self._uncount_address(connection)
        lane.words[layout.HANDED_OFF] += 1
        if connection.mask:
            self._epoll_remove(connection.fd)
        connection.sock.close()  # ours alone: the one that travels lives on
        return True


def has_data(connection: Connection) -> bool:
    """Whether bytes have arrived that nobody has read: a request in the very moment of closing."""
    try:
        return bool(connection.sock.recv(1, socket.MSG_PEEK))
    except OSError:
        return False
