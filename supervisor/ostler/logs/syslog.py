"""Sends lines to syslog (RFC 3164) without waiting for it.

The handler of the standard library resolves its host for each datagram and waits for the reader of a stream;
either would stop serving. Here the address is resolved once, the socket does not block, and lines that it
does not accept are lost and counted. One warning reports the first lost line, another one the number of lost
lines.

A line is `<PRI>gunicorn.PREFIX.NAME: [PID] TEXT`, as gunicorn writes it, so that existing syslog rules match.
In a datagram it ends with NUL, in a stream with a line feed (RFC 6587 section 3.4.2).
"""

import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any

from ostler.logs.render import plain_text
from ostler.osapi import original
from ostler.settings.address import host_and_port
from ostler.settings.table import Settings
from ostler.settings.table.logs import SYSLOG_FACILITIES

# RFC 3164 section 4.1.1.
_FACILITIES = {
    **{
        name: number
        for number, name in enumerate("kern user mail daemon auth syslog lpr news uucp cron".split())
    },
    "authpriv": 10,
    "ftp": 11,
    **{f"local{number}": 16 + number for number in range(8)},
}
assert _FACILITIES.keys() == set(SYSLOG_FACILITIES)
_SEVERITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}
# rsyslog's limit, in bytes; a Unix socket takes much more, UDP does not.
_LONGEST = 8 * 1024
# Bytes of lines that are kept for a stream with a slow reader.
_KEPT = 64 * 1024
_PAUSE = 1.0  # seconds between two attempts to connect
_GONE = (errno.ENOTCONN, errno.EPIPE, errno.ECONNRESET, errno.ECONNREFUSED, errno.ENOENT)

_SocketAddress = tuple[int, int, Any]
"""Family, type and address of a socket."""


class Syslog:
    """Sends lines to one syslog.

    Args:
        address: as `syslog_addr`.
        facility: its name.
        prefix: the beginning of the names of programs.
        warn: logs a warning about lost lines; must not log to this syslog.
        clock: seconds.
    """

    def __init__(
        self,
        address: str,
        facility: str,
        prefix: str,
        warn: Callable[..., object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._address = address
        self._facility = _FACILITIES[facility] << 3
        self._prefix = f"gunicorn.{prefix}"
        self._warn = warn
        self._clock = clock
        self._sock: socket.socket | None = None
        self._stream = False
        self._rest = b""  # bytes that a stream has not accepted yet
        self._try_at = 0.0
        self._lost = 0
        # Signal handlers log, too.
        self._lock = original.RLock()
        self._reason = ""
        self._addresses: list[_SocketAddress] = []
        try:
            # Resolved only here: a name server may be slow, and requests must not wait for it.
            self._addresses = _addresses(address)
        except OSError as error:
            self._reason = error.strerror or str(error)
        except UnicodeError:
            self._reason = f"{address} has no valid host name"
        self._connect()

    def event(self, level: str, name: str, fields: dict[str, Any]) -> None:
        """Send an event of the log."""
        self._send(level, "error", plain_text(name, fields).encode("utf-8", "backslashreplace"))

    def access(self, line: bytes) -> None:
        """Send a line of the access log, which is escaped already and includes its line end."""
        self._send("info", "access", line[:-1])

    def fileno(self) -> int:
        """-1 while there is no connection."""
        return self._sock.fileno() if self._sock is not None else -1

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _send(self, level: str, name: str, text: bytes) -> None:
        head = f"<{self._facility | _SEVERITIES[level]}>{self._prefix}.{name}: [{os.getpid()}] "
        report: tuple[int, str] | None = None
        with self._lock:
            if self._put(head.encode() + text[:_LONGEST]):
                if self._lost:
                    report, self._lost = (self._lost, self._reason), 0
            else:
                self._lost += 1
                if self._lost == 1:
                    report = 0, self._reason
        if report is not None:
            lines, reason = report
            if lines:
                self._warn("syslog_lines_lost", syslog=self._address, lines=lines, reason=reason)
            else:
                self._warn("syslog_unreachable", syslog=self._address, reason=reason)

    def _put(self, line: bytes) -> bool:
        """Send a line; False if there is no connection or no room for it."""
        for _ in range(2):
            if self._sock is None and (self._clock() < self._try_at or not self._connect()):
                return False
            try:
                if self._stream:
                    return self._put_to_stream(line)
                assert self._sock is not None
                self._sock.send(line + b"\0")
            except OSError as error:
                self._reason = error.strerror or str(error)
                if error.errno not in _GONE:
                    return False
                # The error of a datagram may concern an earlier one, and a restarted syslog needs a new
                # connection.
                self._disconnect()
                self._addresses.append(self._addresses.pop(0))
                self._try_at = 0.0
            else:
                return True
        self._try_at = self._clock() + _PAUSE
        return False

    def _put_to_stream(self, line: bytes) -> bool:
        assert self._sock is not None
        # One line each: a line feed ends it.
        line = line.replace(b"\n", b"#012") + b"\n"
        if len(self._rest) + len(line) > _KEPT:
            self._write_rest()
            if len(self._rest) + len(line) > _KEPT:
                self._reason = "the reader is not reading"
                return False
        self._rest += line
        try:
            self._write_rest()
        except OSError:
            self._rest = self._rest.removesuffix(line)  # it is sent again on the next connection
            raise
        return True

    def _write_rest(self) -> None:
        assert self._sock is not None
        while self._rest:
            try:
                sent = self._sock.send(self._rest)
            except BlockingIOError:
                return
            self._rest = self._rest[sent:]

    def _connect(self) -> bool:
        self._try_at = self._clock() + _PAUSE
        for family, kind, address in self._addresses:
            sock = original.Socket(family, kind)
            sock.setblocking(False)
            try:
                sock.connect(address)
            except BlockingIOError:
                pass  # the stream is connecting, or will report an error
            except OSError as error:
                self._reason = error.strerror or str(error)
                sock.close()
                continue
            self._sock, self._stream = sock, kind == socket.SOCK_STREAM
            return True
        return False

    def _disconnect(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        # Complete lines in the buffer are lost with the connection.
        self._lost += self._rest.count(b"\n")
        self._rest = b""


def syslog_of(settings: Settings, warn: Callable[..., object]) -> Syslog | None:
    """The syslog of the settings; None without `syslog`."""
    if not settings.syslog:
        return None
    name = settings.proc_name or settings.wsgi_app or "ostler"
    prefix = settings.syslog_prefix or name.replace(":", ".")
    return Syslog(settings.syslog_addr, settings.syslog_facility, prefix, warn)


def _addresses(address: str) -> list[_SocketAddress]:
    """The addresses of a `syslog_addr`, the preferred one first; asks a name server at most once.

    Raises:
        OSError: the host is unknown.
    """
    scheme, _, rest = address.rpartition("://")
    if scheme == "unix":
        path, _, kind = rest.partition("#")
        kinds = {"dgram": [socket.SOCK_DGRAM], "stream": [socket.SOCK_STREAM]}.get(
            kind, [socket.SOCK_DGRAM, socket.SOCK_STREAM]
        )
        return [(socket.AF_UNIX, one, path) for one in kinds]
    host, port = host_and_port(rest, 514)
    kind_of = socket.SOCK_STREAM if scheme == "tcp" else socket.SOCK_DGRAM
    found = original.getaddrinfo(host, port, type=kind_of)
    # localhost resolves to ::1 first, where many syslog servers do not listen; UDP reports that too late.
    found.sort(key=lambda one: one[0] != socket.AF_INET)
    return [(family, kind, where) for family, kind, _, _, where in found]
