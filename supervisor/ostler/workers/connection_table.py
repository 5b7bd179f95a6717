"""The open connections of a worker: how many there may be, in all and from one address, and how they end."""

import socket
from time import monotonic_ns
from typing import TYPE_CHECKING

from ostler.logs.limiter import LimitedLog
from ostler.scoreboard.request_slot import RequestSlot
from ostler.settings.table import Settings
from ostler.workers.connection import Connection
from ostler.workers.connection_limits import AddressCounts, most_connections, network_of
from ostler.workers.phase import CLOSED, CLOSING, LINGERING, UPGRADED
from ostler.workers.reactor import Reactor

if TYPE_CHECKING:
    from ostler.workers.app_socket import AppSocket


class ConnectionTable:
    """All connections that are not closed.

    `close`, `linger`, `end`, `upgrade` and `end_upgraded` are called by the thread to which the connection
    belongs, all else only by the thread that polls. `slot` is always the calling thread's, for counting.

    Attributes:
        open: the connections by their descriptors.
        upgraded: those that the app has taken; each has two descriptors.
        most: how many there may be.
        addresses: how many there are of each address, where these are limited.
    """

    def __init__(self, settings: Settings, reactor: Reactor, limited: LimitedLog) -> None:
        self._reactor = reactor
        self._limited = limited
        self.open: dict[int, Connection] = {}
        self.upgraded: set[Connection] = set()
        self.most = most_connections(settings.worker_connections)
        self._most_descriptors = most_connections(2 * settings.worker_connections)
        self.addresses = AddressCounts(settings.limit_connections_per_address)

    @property
    def is_full(self) -> bool:
        count = len(self.open)
        return count >= self.most or count + len(self.upgraded) >= self._most_descriptors

    def add(self, connection: Connection, host: str, slot: RequestSlot) -> bool:
        """Take a connection in; False if its address has too many: it is closed then.

        Args:
            host: the address that it counts as; empty: none, or it is not known yet.
        """
        self.open[connection.fd] = connection
        if self.addresses.most and not self.count_address(connection, host):
            self.close(connection, slot)
            return False
        return True

    def count_address(self, connection: Connection, host: str) -> bool:
        """Count a connection as an address's; False, which is logged, if that has too many.

        One without an address, which came by a Unix socket, is not counted.
        """
        if not host or not self.addresses.most:
            return True
        connection.address = self.addresses.add(host)
        if connection.address is not None:
            return True
        where = {"address": network_of(host), "limit": self.addresses.most}
        self._limited.write("warning", "too_many_connections", "", **where)
        return False

    def end(self, connection: Connection, unexpected: bool, slot: RequestSlot) -> None:
        """End a connection when its last answer, which was just given, is sent.

        Args:
            unexpected: the client did not ask for the end.
        """
        connection.enter(CLOSING)
        connection.parser.requests.clear()
        if connection.output:
            return
        if unexpected or connection.parser.receiving:
            # It may be sending the next request already, or the rest of this one.
            self.linger(connection, slot)
        else:
            self.close(connection, slot)

    def linger(self, connection: Connection, slot: RequestSlot) -> None:
        """Send the end of the answers, and discard what comes until the client closes; see LINGERING."""
        connection.enter(LINGERING)
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self.close(connection, slot)

    def upgrade(self, connection: Connection, app_socket: "AppSocket", slot: RequestSlot) -> None:
        """The app takes a connection: from now on only its end is ours, which is `end_upgraded`.

        Also called by another thread of the app, on behalf of the one to which the connection belongs.
        """
        connection.enter(UPGRADED)
        connection.app_socket = app_socket
        connection.parser.stop()
        self._reactor.unwatch(connection)
        self.upgraded.add(connection)
        slot.upgraded()

    def end_upgraded(self, connection: Connection, slot: RequestSlot) -> None:
        """The app's request has ended, and its connection with it."""
        app_socket = connection.app_socket
        if app_socket is None or connection.phase is CLOSED:
            return
        connection.idle_since = monotonic_ns()
        if app_socket.end():
            # As in `linger`: the client may be sending its own close.
            self.upgraded.discard(connection)
            connection.enter(LINGERING)
        else:
            self.close(connection, slot)

    def close(self, connection: Connection, slot: RequestSlot) -> None:
        """Close a connection, whatever its phase; one that is closed already is left alone."""
        if connection.phase is CLOSED:
            return
        connection.enter(CLOSED)
        self._remove(connection)
        slot.connection_closed()
        if connection.output is not None:
            if connection.unconfirmed:
                slot.add_bytes(max(0, connection.unconfirmed - connection.output.unsent_file_bytes))
            connection.output.close()
        if connection.streamed is not None:
            connection.streamed.end()
        if connection.app_socket is not None:
            connection.app_socket.end()
            connection.app_socket = None
        try:
            # A process that the app forked may hold the same socket: the client would not see its end.
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client has closed it already
        connection.close()

    def close_handed_off(self, connection: Connection, slot: RequestSlot) -> None:
        """Close our copy of a connection that was handed off to a sibling, where it goes on."""
        connection.enter(CLOSED)
        self._remove(connection)
        slot.connection_handed_off()
        connection.close()

    def close_all(self, slot: RequestSlot) -> None:
        for connection in list(self.open.values()):
            self.close(connection, slot)

    def _remove(self, connection: Connection) -> None:
        self.open.pop(connection.fd, None)
        self.upgraded.discard(connection)
        if connection.address is not None:
            self.addresses.remove(connection.address)
            connection.address = None
        self._reactor.forget(connection)
