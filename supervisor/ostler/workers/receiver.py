"""Receiving: what an event of a connection means, from bytes to whole requests."""

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ostler import native
from ostler.http1.errors import ProtocolViolation
from ostler.http1.proxy import read_proxy_header
from ostler.http1.request import RequestParser
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.addresses import host_of
from ostler.workers.connection import Connection
from ostler.workers.connection_table import ConnectionTable
from ostler.workers.phase import LINGERING, OPEN, PROXY_HEADER
from ostler.workers.reactor import Reactor
from ostler.workers.responder import Responder
from ostler.workers.system_calls import READ_SIZE, SystemCalls

if TYPE_CHECKING:
    from ssl import SSLContext


class Receiver:
    """Reads from connections and feeds their parsers. Called only by the thread that polls.

    Args:
        proxy_mode: the setting `proxy_protocol`.
        tls: what connections speak TLS with behind a PROXY header, or None.
    """

    def __init__(
        self,
        reactor: Reactor,
        table: ConnectionTable,
        responder: Responder,
        calls: SystemCalls,
        proxy_mode: str,
        tls: "SSLContext | None",
    ) -> None:
        self._watch = reactor.watch
        self._table = table
        self._responder = responder
        self._read = calls.read
        self._proxy_mode = proxy_mode
        self._tls = tls
        self._receive_ordinary: Callable[[Connection], bytes | None] | None = None
        if native.module is not None:
            self._receive_ordinary = native.module.OrdinaryReceiver(
                connection_type=Connection, parser_type=RequestParser, size=READ_SIZE
            ).receive

    def receive(self, connection: Connection, slot: RequestSlot, now: int) -> bool:
        """Do the I/O that an event is about.

        Args:
            now: CLOCK_MONOTONIC in nanoseconds.

        Returns:
            Whether there is a request to serve; if not, the reactor watches the connection, or it is closed.
        """
        try:
            if connection.output:
                ready = self._responder.flush(connection, slot, now)
            elif not connection.direct:
                ready = self._read_before_requests(connection, slot) and self._receive_records(
                    connection, slot, now
                )
            else:
                ordinary = self._receive_ordinary
                data = self._read(connection.fd, READ_SIZE) if ordinary is None else ordinary(connection)
                if data is None:
                    return True  # nearly always: one read, one request, and nothing behind it
                parser = connection.parser
                try:
                    parser.parse(data)
                except ProtocolViolation as violation:
                    connection.violation = violation.without_traceback()
                # The same without the C extension.
                if parser.requests and not (parser.receiving or connection.receiving_since):
                    return True
                ready = self._act_on_parsed(connection, slot, now, data)
            if ready:
                return True
            self._watch(connection)
        except BlockingIOError:
            self._watch(connection)
        except OSError:
            self._table.close(connection, slot)
        except Exception:  # noqa: BLE001 - a defect of ours
            self._responder.fail(connection, slot)
        return False

    def _receive_records(self, connection: Connection, slot: RequestSlot, now: int) -> bool:
        """The same under TLS, and for the first bytes behind a PROXY header."""
        while True:
            data = connection.sock.recv(READ_SIZE)
            try:
                connection.parser.feed(data)
            except ProtocolViolation as violation:
                connection.violation = violation.without_traceback()
            if self._act_on_parsed(connection, slot, now, data):
                if connection.tls and connection.sock.finished:
                    connection.parser.requests[-1].keep_alive = False
                return True
            # TLS may hold a close or more bytes already decrypted; the kernel reports no event for them.
            if connection.phase is not OPEN or not connection.tls or not connection.sock.pending():
                return False

    def _act_on_parsed(self, connection: Connection, slot: RequestSlot, now: int, data: bytes) -> bool:
        """Act on what the parser has made of `data`; True if there is a request to serve."""
        if not data:
            self._table.close(connection, slot)
            return False
        parser = connection.parser
        connection.note_progress(now)
        connection.idle_since = now
        if parser.requests:
            return True
        if connection.violation is not None:
            self._responder.refuse(connection, connection.violation, slot)
        elif parser.wants_continue:
            self._responder.settle(connection, slot)
        return False

    def _read_before_requests(self, connection: Connection, slot: RequestSlot) -> bool:
        """Do what comes before requests, or after them; True if requests may be read."""
        try:
            if connection.phase is LINGERING:
                if not connection.sock.recv(READ_SIZE):
                    self._table.close(connection, slot)
                return False
            if connection.phase is PROXY_HEADER and not self._read_proxy_header(connection):
                return False
        except BlockingIOError:
            return False
        except ProtocolViolation as violation:
            self._responder.refuse(connection, violation, slot)
            return False
        except OSError:
            self._table.close(connection, slot)
            return False
        return True  # behind a PROXY header, too: what follows it has probably come

    def _read_proxy_header(self, connection: Connection) -> bool:
        """Read a PROXY header; False while it is not whole.

        Raises:
            ProtocolViolation: it is none.
            OSError: the connection ended.
        """
        sock, before = connection.sock, connection.proxy_header
        # What follows the header must stay in the socket: it may be for TLS.
        data = sock.recv(READ_SIZE, socket.MSG_PEEK)
        if not data:
            raise ConnectionResetError
        found = read_proxy_header(before + data, self._proxy_mode)
        if found is None:
            connection.proxy_header = before + sock.recv(len(data))
            return False
        addresses, size = found
        connection.proxy_header = b""
        connection.enter(OPEN)
        host = addresses.source if addresses is not None else host_of(connection.peer)
        if not self._table.count_address(connection, host):
            raise ConnectionResetError
        if size > len(before):
            sock.recv(size - len(before))
        elif before and self._tls is not None:
            raise ProtocolViolation("it begins with neither a PROXY header nor TLS", "proxy_protocol")
        elif before:
            connection.parser.feed(before)  # it only looked like a header
        if addresses is not None:
            connection.peer_info = {
                "PROXY_PROTOCOL": addresses.protocol,
                "REMOTE_ADDR": addresses.source,
                "REMOTE_PORT": str(addresses.source_port),
                "PROXY_ADDR": addresses.destination,
                "PROXY_PORT": str(addresses.destination_port),
            }
        if self._tls is not None:
            connection.speak_tls(self._tls)
        return True
