"""Accepting connections: from the listeners, which all workers share, and from siblings by the hand-off.

Workers take turns: each accepts one connection at a time and then goes to the end of the kernel's queue of
workers that wait. A worker stops accepting while it drains and while its table is full. When there are no
descriptors or no memory, it closes the connections that are worth least (`eviction`); if none could be
closed, it stops accepting for a second (`accept_pause`).

A full worker checks every `FULL_CHECK_SECONDS` whether connections wait that no sibling accepts. Only then it
closes slow clients to make room; afterwards it does so at once for a while, and accepts several connections
in a pass: other clients wait in the backlog behind those that send nothing.

The worker class `asgi` has an acceptor of its own: asgi/acceptor.py.
"""

import errno
import select
import socket
from typing import TYPE_CHECKING, Any

from ostler.logs.limiter import LimitedLog
from ostler.osapi import original, refusing
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers import eviction
from ostler.workers.accept_pause import AcceptPause, is_exhaustion
from ostler.workers.addresses import host_of, listener_name
from ostler.workers.connection import Connection
from ostler.workers.connection_factory import ConnectionFactory
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.drain import DrainState
from ostler.workers.eviction import Evictor
from ostler.workers.handoff import HandedOff
from ostler.workers.phase import CLOSED
from ostler.workers.reactor import Reactor
from ostler.workers.siblings import Siblings
from ostler.workers.units import SECOND

if TYPE_CHECKING:
    from ssl import SSLContext

FULL_CHECK_SECONDS = 0.02
"""Seconds between two checks of a full worker."""
_FULL_CHECK_NS = int(FULL_CHECK_SECONDS * SECOND)
# For so long (ns) after a slow client was closed the next one may be closed without a second look.
_EVICTING_NS = SECOND
# So many connections are accepted from one listener in a pass then.
_EVICTING_ARRIVALS = 16
_FULL = "worker_connections is reached"


class Acceptor:
    """Accepts connections. Called only by the thread that polls, but for `close_listeners`.

    `slot` is the calling thread's, `now` is CLOCK_MONOTONIC in nanoseconds.

    Args:
        tls: what connections speak TLS with, or None.

    Attributes:
        accepting: the reactor watches the listeners.
        sources: all descriptors that connections come from, the hand-off first: its clients wait already.
    """

    def __init__(
        self,
        listeners: list[socket.socket],
        reactor: Reactor,
        table: ConnectionTable,
        factory: ConnectionFactory,
        evictor: Evictor,
        siblings: Siblings,
        drain: DrainState,
        limited: LimitedLog,
        tls: "SSLContext | None",
    ) -> None:
        self._reactor = reactor
        self._table = table
        self._factory = factory
        self._evictor = evictor
        self._siblings = siblings
        self._drain = drain
        self._tls = tls
        self._listeners = {sock.fileno(): (sock, listener_name(sock.getsockname())) for sock in listeners}
        self._all_sources = (*([siblings.fd] if siblings else []), *self._listeners)
        self.sources: tuple[int, ...] = self._all_sources
        self.accepting = False
        self._pause = AcceptPause(limited)
        self._backlog = original.poll()
        for fd in self._listeners:
            self._backlog.register(fd, select.POLLIN)
        self._waiting_since = self._evicting_until = self._next_full_check = 0

    # -- on and off ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self.accepting = True
        for fd in self.sources:
            self._reactor.add_shared(fd)

    def stop(self) -> None:
        """Stop watching the listeners and the hand-off; open connections are still served."""
        if self.accepting:
            self.accepting = False
            for fd in self.sources:
                self._reactor.remove(fd)

    def close_listeners(self) -> None:
        """Stop for good; may be called from a signal handler of the main thread."""
        self.stop()
        for listener, _ in self._listeners.values():
            listener.close()

    def try_start(self, slot: RequestSlot, now: int) -> None:
        """Start, unless the reason not to accept is still there."""
        if not self.may_accept or (self._table.is_full and not self._make_room_for_waiting(slot, now)):
            return
        if self._pause.is_over(now):
            self._waiting_since = 0
            self.start()

    @property
    def may_accept(self) -> bool:
        """False while draining, unless connections in the listeners' queues would be lost otherwise."""
        drain = self._drain
        return not drain.asked or (not drain.abandoned and not all(map(refusing.is_shut, drain.empties)))

    def leave_others(self) -> None:
        """Stop for good to accept from listeners that are not to be emptied; the worker drains."""
        others = self._listeners.keys() - self._drain.empties
        if not others:
            return
        for fd in others:
            self._backlog.unregister(fd)
            if self.accepting:
                self._reactor.remove(fd)
        # A new dictionary: a signal handler may be closing those of the old one.
        self._listeners = {fd: entry for fd, entry in self._listeners.items() if fd not in others}
        self.sources = tuple(fd for fd in self.sources if fd not in others)
        self._all_sources = tuple(fd for fd in self._all_sources if fd not in others)

    def try_resume_siblings(self, now: int) -> None:
        """Receive from siblings again, if that was paused for long enough."""
        if self._siblings.may_resume(now):
            self.sources = self._all_sources
            if self.accepting:
                self._reactor.add_shared(self._siblings.fd)

    @property
    def waits_for_room(self) -> bool:
        """The table is full, so that `try_start` is to be called every FULL_CHECK_SECONDS seconds."""
        return not self.accepting and self._table.is_full

    # -- accepting -----------------------------------------------------------------------------------------

    def arrivals_in_a_pass(self, usual: int, now: int) -> int:
        """How many connections to accept from one source in a pass."""
        return _EVICTING_ARRIVALS if now < self._evicting_until else usual

    def accept(self, source: int, slot: RequestSlot, now: int) -> Connection | None:
        """One connection from one of the `sources`; None if there is none, or it is closed already."""
        if source == self._siblings.fd:
            return self.receive(slot)
        if not self.accepting:
            return None
        listener, name = self._listeners[source]
        try:
            sock, peer = listener.accept()
        except OSError as error:
            if error.errno == errno.EINVAL:
                self._reactor.remove(source)  # it was shut down: it is "ready" for ever
            elif is_exhaustion(error):
                reason = error.strerror or "no descriptors"
                # If room was made: the listener is still ready, so the next pass accepts.
                if not self._evictor.make_room(slot, now, eviction.MOVING, reason):
                    self.stop()
                    self._pause.begin(error, now)
            # Other errors: a sibling was quicker, or the client went away again.
            return None
        sock.setblocking(False)
        # To the end of the queue: the kernel wakes the first worker that waits.
        self._reactor.remove(source)
        self._reactor.add_shared(source)
        slot.connection_opened()
        return self._admit(sock, name, peer, slot)

    def take_waiting(self, source: int, slot: RequestSlot) -> Connection | None:
        """As `accept`, also while not accepting: a connection that waits although no worker is free."""
        if source == self._siblings.fd:
            found = self._siblings.receive()
            return self._admit_handed_off(found, slot) if found is not None else None
        listener, name = self._listeners[source]
        try:
            sock, peer = listener.accept()
        except OSError:
            return None  # a sibling was quicker, or there are no descriptors
        sock.setblocking(False)
        slot.connection_opened()
        return self._admit(sock, name, peer, slot)

    def receive(self, slot: RequestSlot) -> Connection | None:
        """One connection that a sibling has handed off; also while draining. None as in `accept`."""
        siblings = self._siblings
        if not (self.accepting or self._drain.asked) or siblings.fd not in self.sources:
            return None
        if (found := siblings.receive()) is None:
            if siblings.is_paused:
                self.sources = tuple(self._listeners)
                if self.accepting:
                    self._reactor.remove(siblings.fd)
            return None
        return self._admit_handed_off(found, slot)

    def _admit(self, sock: socket.socket, name: str, peer: Any, slot: RequestSlot) -> Connection | None:
        host = host_of(peer)
        proxied = self._factory.is_proxy(host)
        connection = self._factory.make(sock, name, peer, proxied)
        # Which client a proxy's connection counts for is in its PROXY header.
        if not self._enter_table(connection, "" if proxied else host, slot):
            return None
        if self._tls is not None and not proxied:
            try:
                connection.speak_tls(self._tls)
            except (OSError, ValueError):
                self._table.close(connection, slot)  # the client has gone already
                return None
        return connection

    def _admit_handed_off(self, found: HandedOff, slot: RequestSlot) -> Connection | None:
        slot.connection_received()
        connection = self._factory.make(found.sock, found.listener, found.peer)
        connection.peer_info = found.peer_info
        host = found.peer_info.get("REMOTE_ADDR") or host_of(found.peer)
        if not self._enter_table(connection, host, slot):
            return None
        # Not before: as an idle connection it would be the first to make room, for itself.
        connection.answered_at = found.answered_at
        connection.waiting_since = found.waiting_since
        return connection

    def _enter_table(self, connection: Connection, host: str, slot: RequestSlot) -> bool:
        """Take a connection in, and make room for the next one, or stop; False if it is closed already."""
        table = self._table
        if not table.add(connection, host, slot):
            return False
        if table.is_full:
            now = connection.idle_since
            evicting = now < self._evicting_until and self._clients_wait()
            if not self._evictor.make_room(slot, now, eviction.MOVING if evicting else eviction.IDLE, _FULL):
                self.stop()
            elif evicting:
                self._evicting_until = now + _EVICTING_NS
        return connection.phase is not CLOSED

    # -- room ----------------------------------------------------------------------------------------------

    def _clients_wait(self) -> bool:
        """Whether a listener has a connection that no worker has accepted."""
        return any(event & select.POLLIN for _, event in self._backlog.poll(0))

    def _make_room_for_waiting(self, slot: RequestSlot, now: int) -> bool:
        """Close slow clients if others wait that no sibling accepts; True if there is room now."""
        if now < self._next_full_check:
            return False
        self._next_full_check = now + _FULL_CHECK_NS
        if not self._clients_wait():
            self._waiting_since = 0
            return False
        if not self._waiting_since:
            self._waiting_since = now
            if now >= self._evicting_until:
                return False
        if not self._evictor.make_room(slot, now, eviction.MOVING, _FULL):
            return False
        self._evicting_until = now + _EVICTING_NS
        self._next_full_check = 0
        return True
