"""HTTP for tests: one request (`ask`), or a keep-alive connection over TCP, TLS or a Unix socket."""

import functools
import http.client
import socket
import ssl
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

from tests.kit.waiting import PATIENCE


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Connection(http.client.HTTPConnection):
    """A keep-alive connection to `http://HOST:PORT`, `https://HOST:PORT` or `unix:PATH`.

    Certificates are not checked.

    `asked` sends a request, `answer` reads its answer, at once or later.
    """

    def __init__(self, url: str, seconds: float = PATIENCE) -> None:
        self._path = url.removeprefix("unix:") if url.startswith("unix:") else None
        parts = urllib.parse.urlsplit(url)
        self._tls = parts.scheme == "https"
        super().__init__(parts.hostname or "localhost", parts.port, timeout=seconds)

    def connect(self) -> None:
        if self._path is None:
            super().connect()
            if self._tls:
                self.sock = _trusting().wrap_socket(self.sock)
            return
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def asked(self, target: str, method: str = "GET", **options: Any) -> Self:
        self.request(method, target, **options)
        return self

    def answer(self) -> Answer:
        """Read the answer to the last request; the connection stays open if the server keeps it open."""
        response = self.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, headers, response.read())

    def ended_by_server(self) -> None:
        """Wait until the server closes the connection; it must not have answered."""
        assert self.sock is not None
        try:
            data = self.sock.recv(1)
        except ConnectionResetError:
            data = b""
        assert data == b"", f"expected the end, got {data!r}"


@functools.cache
def _trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def ask(url: str, target: str = "/", method: str = "GET", **options: Any) -> Answer:
    """Send one request on a connection of its own; return the answer."""
    connection = Connection(url)
    try:
        return connection.asked(target, method, **options).answer()
    finally:
        connection.close()
