"""The connections of an engine: receiving, sending, and ending them.

Who owns a connection: all that are armed belong to the leader; the one that a thread serves without having
the lead is disarmed, so the kernel says nothing of it until that thread arms it again.
"""

import select
import socket
import traceback
from collections.abc import Callable
from time import monotonic
from typing import Any

from ostler.http1 import response
from ostler.http1.errors import BodyNotStored, ProtocolViolation
from ostler.http1.proxy import read_proxy_header
from ostler.logs.limiter import LimitedLog
from ostler.osapi import original
from ostler.scoreboard import layout
from ostler.workers.base import Context
from ostler.workers.connection import READ_SIZE, Connection
from ostler.workers.lane import Lane
from ostler.workers.limits import AddressCounts, network_of
from ostler.wsgi.exchange import ClientGone

_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
# Watched for nothing: what the kernel reports unasked, a hang-up, it reports once.
_DISARMED = select.EPOLLONESHOT


class Wiring:
    """The epoll and the connections in it; a part of the engine."""

    def __init__(self, context: Context) -> None:
        self._log = context.log
        # For what clients can cause.
        self._limited = LimitedLog(context.log, monotonic)
        self._access = context.access
        self._tls = context.tls
        self._threads = context.settings.threads
        self._proxy_mode = context.settings.proxy_protocol
        self._epoll = original.epoll()
        # Other ways to do these are for several threads.
        self._read: Callable[[int, int], bytes] = original.read
        self._send_now: Callable[[socket.socket, bytes], int] | None = None
        self._modify: Callable[[int, int], None] = self._epoll.modify
        # Another way to wait for a client is for greenlets.
        self._wait_for: Callable[[int, int, int], bool] | None = None
        self._connections: dict[int, Connection] = {}
        # Open connections by address, where these are limited.
        self._addresses = AddressCounts(context.settings.limit_connections_per_address)
        self._date_server = b""
        # When the current pass of the loop began (CLOCK_MONOTONIC, ns).
        self._now = 0

    # -- receiving ---------------------------------------------------------------------------------------

    def _receive(self, connection: Connection, lane: Lane, now: int) -> bool:
        """Do the I/O that an event is about; True if there is a request to serve, else it is watched."""
        try:
            if connection.outbox:
                ready = self._flush(connection, lane, now)
            elif connection.odd:
                ready = self._prepare(connection, lane) and self._receive_tls(connection, lane, now)
            else:
                parser = connection.parser
                data = self._read(connection.fd, READ_SIZE)
                try:
                    parser.feed(data)
                except ProtocolViolation as violation:
                    connection.violation = violation.without_traceback()
                # Nearly always this is all: one read, one request, and no less.
                if parser.requests and not (parser.receiving or connection.began):
                    return True
                ready = self._consider(connection, lane, now, data)
            if ready:
                return True
            self._watch(connection)
        except BlockingIOError:
            self._watch(connection)
        except OSError:
            self._close(connection, lane)
        except Exception:  # noqa: BLE001 - see _fail
            self._fail(connection, lane)
        return False

    def _receive_tls(self, connection: Connection, lane: Lane, now: int) -> bool:
        """The same under TLS, and for the first bytes behind a PROXY header."""
        while True:
            data = connection.sock.recv(READ_SIZE)
            try:
                connection.parser.feed(data)
            except ProtocolViolation as violation:
                connection.violation = violation.without_traceback()
            if self._consider(connection, lane, now, data):
                if connection.tls and connection.sock.finished:
                    connection.parser.requests[-1].keep_alive = False
                return True
            # The end that came with these bytes makes no event.
            if connection.closed or connection.closing or not connection.tls or not connection.sock.pending():
                return False

    def _consider(self, connection: Connection, lane: Lane, now: int, data: bytes) -> bool:
        """See what has become of bytes that the parser was fed; True if there is a request to serve."""
        if not data:
            self._close(connection, lane)
            return False
        parser = connection.parser
        connection.note_progress(now)
        connection.idle_since = now
        if parser.requests:
            return True
        if connection.violation is not None:
            self._refuse(connection, connection.violation, lane, data)
        elif parser.wants_continue:
            self._settle(connection, lane)
        return False

    def _fail(self, connection: Connection, lane: Lane) -> None:
        """A defect of ours was met: it costs one connection, not a thread or the worker."""
        lane.flight[layout.STARTED] = 0
        self._log.error("internal_error", traceback=traceback.format_exc())
        self._close(connection, lane)

    def _prepare(self, connection: Connection, lane: Lane) -> bool:
        """What comes before requests, or after them; True if requests may be read."""
        try:
            if connection.lingering:
                if not connection.sock.recv(READ_SIZE):
                    self._close(connection, lane)
                return False
            if connection.preface is not None and not self._read_preface(connection):
                return False
        except BlockingIOError:
            return False
        except ProtocolViolation as violation:
            self._refuse(connection, violation, lane)
            return False
        except OSError:
            self._close(connection, lane)
            return False
        connection.odd = connection.tls
        return True  # after a PROXY header, too: what follows it is probably there

    def _read_preface(self, connection: Connection) -> bool:
        """Read a PROXY header; False while it is not whole.

        Raises:
            ProtocolViolation: it is none.
            OSError: the connection ended.
        """
        sock, before = connection.sock, connection.preface or b""
        # What follows the header is not ours to read here: it may be for TLS.
        data = sock.recv(READ_SIZE, socket.MSG_PEEK)
        if not data:
            raise ConnectionResetError
        found = read_proxy_header(before + data, self._proxy_mode)
        if found is None:
            connection.preface = before + sock.recv(len(data))
            return False
        addresses, size = found
        connection.preface = None
        if self._addresses.most:
            host = addresses.source if addresses is not None else host_of(connection.peer)
            if not self._count_address(connection, host):
                raise ConnectionResetError
        if size > len(before):
            sock.recv(size - len(before))
        elif before and self._tls is not None:
            raise ProtocolViolation("it begins with neither a PROXY header nor TLS")
        elif before:
            connection.parser.feed(before)  # it only looked like a header
        if addresses is not None:
            connection.facts = {
                "PROXY_PROTOCOL": addresses.protocol,
                "REMOTE_ADDR": addresses.source,
                "REMOTE_PORT": str(addresses.source_port),
                "PROXY_ADDR": addresses.destination,
                "PROXY_PORT": str(addresses.destination_port),
            }
        if self._tls is not None:
            connection.wrap(self._tls)
        return True

    # -- connections of one address ----------------------------------------------------------------------

    def _count_address(self, connection: Connection, host: str) -> bool:
        """Count a connection as `host`'s; False if it has too many.

        One that has no address, by a Unix socket, is not counted.
        """
        if not host:
            return True
        connection.address = self._addresses.add(host)
        if connection.address is not None:
            return True
        where = {"address": network_of(host), "limit": self._addresses.most}
        self._limited.write("warning", "too_many_connections", "", **where)
        return False

    def _uncount_address(self, connection: Connection) -> None:
        if connection.address is not None:
            self._addresses.remove(connection.address)
            connection.address = None

    # -- sending -----------------------------------------------------------------------------------------

    def _flush(self, connection: Connection, lane: Lane, now: int) -> bool:
        """Go on with an answer the client was slow to take; True if a request waits behind it."""
        connection.idle_since = now
        try:
            if not connection.flush():
                return False
        except ClientGone:
            self._close(connection, lane)
            return False
        lane.words[layout.BYTES_SENT] += connection.promised
        connection.promised = 0
        connection.outbox = None
        if connection.closing:
            self._linger(connection, lane)
            return False
        if connection.parser.requests:
            connection.served = now  # what comes behind has waited for its own client up to now
            return True
        self._settle(connection, lane)
        return False

    def _settle(self, connection: Connection, lane: Lane) -> None:
        """All requests are answered: say what else the client is to hear."""
        if connection.violation is not None:
            self._refuse(connection, connection.violation, lane)
        elif connection.parser.wants_continue:
            connection.parser.wants_continue = False
            self._send(connection, response.CONTINUE, lane)

    def _send(self, connection: Connection, data: bytes, lane: Lane) -> None:
        try:
            connection.send(data)
        except ClientGone:
            self._close(connection, lane)

    def _refuse(
        self, connection: Connection, violation: ProtocolViolation, lane: Lane, received: bytes = b""
    ) -> None:
        """Answer what is no request, or none that we serve, and end the connection.

        `received`: what came last, for the access log.
        """
        if isinstance(violation, BodyNotStored):
            self._limited.write("error", "body_not_stored", "", reason=str(violation))
        connection.closing = True
        connection.parser.requests.clear()
        text = f"{violation.status[4:]}\n"
        lane.words[layout.STATUS_CLASSES + int(violation.status[0])] += 1
        lane.words[layout.BYTES_SENT] += len(text)
        if self._access is not None:
            client = {"REMOTE_ADDR": host_of(connection.peer)} | (connection.facts or {})
            self._access.refused(client, received, violation.status, len(text))
            self._flush_access()
        self._send(connection, response.plain_answer(violation.status, text, self._date_server), lane)
        if not connection.outbox and not connection.closed:
            self._linger(connection, lane)

    def _flush_access(self) -> None:
        """With several threads at once; else when the pass is over."""
        if self._threads > 1 and self._access is not None:
            self._access.flush()

    # -- ending ------------------------------------------------------------------------------------------

    def _linger(self, connection: Connection, lane: Lane) -> None:
        connection.lingering = connection.odd = True
        try:
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._close(connection, lane)

    def _close(self, connection: Connection, lane: Lane) -> None:
        if connection.closed:
            return
        connection.closed = True
        self._connections.pop(connection.fd, None)
        if connection.address is not None:
            self._uncount_address(connection)
        lane.words[layout.CLOSED] += 1
        # Not left to close(): a process that the app forked may hold the same socket. It would stay in the
        # epoll then, and the client would not see the end.
        if connection.mask:
            try:
                self._epoll.unregister(connection.fd)
            except OSError:
                pass  # the app closed what is not its own
        if connection.outbox is not None:
            if connection.promised:
                left = connection.outbox.promised
                lane.words[layout.BYTES_SENT] += max(0, connection.promised - left)
            connection.outbox.close()
        if connection.streamed is not None:
            connection.streamed.end()
        try:
            connection.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the client was quicker
        connection.sock.close()

    # -- the epoll ---------------------------------------------------------------------------------------

    def _watch(self, connection: Connection) -> None:
        """Make it the leader's, and have the kernel watch for what it needs."""
        if connection.closed:
            return
        mask = _OUT if connection.outbox or (connection.tls and connection.sock.wants_write) else _IN
        if mask != connection.mask:
            known, connection.mask = connection.mask, mask
            if known:
                self._modify(connection.fd, mask)
            else:
                self._epoll.register(connection.fd, mask)
        # Not before: what is armed may be closed by the leader, and its number be another's.
        connection.armed = True

    def _disarm(self, connection: Connection) -> None:
        """Keep the leader's hands off a connection that a thread goes on to serve without the lead."""
        connection.armed = False
        if connection.mask:
            connection.mask = _DISARMED
            try:
                self._modify(connection.fd, _DISARMED)
            except OSError:
                pass  # its thread has closed it in this very moment


def host_of(peer: Any) -> str:
    """A peer's address; a Unix socket's has none."""
    return peer[0] if isinstance(peer, tuple) else ""
