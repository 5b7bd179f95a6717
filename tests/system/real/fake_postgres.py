"""A listener that speaks as much of PostgreSQL's protocol as psycopg and SQLAlchemy need to connect and ask.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import itertools
import re
import socket
import socketserver
import struct
from collections.abc import Callable

from tests.kit.threaded_server import ThreadedServer

_SSL_REQUEST = 80877103
_TEXT = 25  # the type's oid
_ANSWERS = {
    "version()": "PostgreSQL 16.0 on a test",
    "current_schema": "public",
    "isolation level": "read committed",
    "standard_conforming": "on",
}
_COMMANDS = re.compile(r"\s*(begin|commit|rollback|set|deallocate)", re.IGNORECASE)


class FakePostgres(ThreadedServer):
    """A context manager. `select 'x'` is answered with the number of the connection, the first one is 1.

    Attributes:
        asked: for each connection how many times `select 'x'` came.
    """

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}
        numbers = itertools.count(1)
        fake = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                number = next(numbers)
                fake.asked[number] = 0
                try:
                    _Session(self.request, self.rfile.read, number, fake.asked).run()
                except OSError:
                    pass  # the client has ended

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        super().__init__(server)
        self.url = f"postgresql+psycopg://shop@127.0.0.1:{self.port}/shop?sslmode=disable"
        self.conninfo = f"host=127.0.0.1 port={self.port} user=shop dbname=shop sslmode=disable"


class _Session:
    """One connection of a client."""

    def __init__(
        self, sock: socket.socket, read: Callable[[int], bytes], number: int, asked: dict[int, int]
    ) -> None:
        self._sock = sock
        self._read = read
        self._number = number
        self._asked = asked
        self._prepared: dict[bytes, str] = {}
        self._query = ""
        self._in_transaction = False

    def run(self) -> None:
        while True:
            (size,) = struct.unpack("!i", self._exactly(4))
            (code,) = struct.unpack("!i", self._exactly(size - 4)[:4])
            if code != _SSL_REQUEST:
                break
            self._sock.sendall(b"N")
        status = [
            ("server_version", "16.0"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
        ]
        greeting = _message(b"R", struct.pack("!i", 0))
        greeting += b"".join(_message(b"S", f"{name}\0{value}\0".encode()) for name, value in status)
        greeting += _message(b"K", struct.pack("!ii", self._number, 0))
        self._sock.sendall(greeting + self._ready())
        while (kind := self._read(1)) not in (b"", b"X"):
            (size,) = struct.unpack("!i", self._exactly(4))
            self._sock.sendall(self._answer(kind, self._exactly(size - 4)))

    def _exactly(self, size: int) -> bytes:
        data = self._read(size)
        if len(data) < size:
            raise ConnectionResetError
        return data

    def _answer(self, kind: bytes, body: bytes) -> bytes:
        match kind:
            case b"Q":
                query = body[:-1].decode()
                return _description(query) + self._rows(query) + self._ready()
            case b"P":
                name, query, _ = body.split(b"\0", 2)
                self._prepared[name] = query.decode()
                return _message(b"1")
            case b"B":
                _, name, _ = body.split(b"\0", 2)
                self._query = self._prepared[name]
                return _message(b"2")
            case b"D":
                return _description(self._query) or _message(b"n")
            case b"E":
                return self._rows(self._query)
            case b"C":
                return _message(b"3")
            case b"S":
                return self._ready()
        return b""

    def _ready(self) -> bytes:
        return _message(b"Z", b"T" if self._in_transaction else b"I")

    def _rows(self, query: str) -> bytes:
        if _COMMANDS.match(query):
            command = query.split()[0].upper()
            self._in_transaction = command != "COMMIT" and command != "ROLLBACK"
            return _message(b"C", command.encode() + b"\0")
        values = [value for name, value in _ANSWERS.items() if name in query]
        if "select 'x'" in query:
            self._asked[self._number] += 1
            values = [str(self._number)]
        rows = b"".join(
            _message(b"D", struct.pack("!hi", 1, len(value)) + value.encode()) for value in values[:1]
        )
        return rows + _message(b"C", b"SELECT 1\0")


def _description(query: str) -> bytes:
    """One column of text; nothing for a command without rows."""
    if _COMMANDS.match(query):
        return b""
    return _message(b"T", struct.pack("!h", 1) + b"x\0" + struct.pack("!ihihih", 0, 0, _TEXT, -1, -1, 0))


def _message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!i", 4 + len(body)) + body
