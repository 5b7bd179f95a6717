"""Bytes to requests, on httptools (llhttp).

A `RequestParser` belongs to one connection and lives as long as it does. It is fed what arrives and gathers
whole requests in `requests`, pipelined ones in their order. Callbacks are methods because httptools looks
them up by name; they do as little as possible, for they run for every request.
"""

from collections.abc import Callable
from typing import Protocol

import httptools
import msgspec

from supervisor.http1.errors import BodyNotStored, HeadTooLarge, ProtocolViolation

# A head that has not ended by then never will. Finer limits are settings of their own.
MAX_HEAD = 64 * 1024
MAX_FIELDS = 256

_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
}
_VERSIONS = {"1.0": "HTTP/1.0", "1.1": "HTTP/1.1"}

# With one of these a request has a body, perhaps an empty one (RFC 9112 section 6).
_BODY_FIELDS = (b"content-length", b"transfer-encoding")


class BodySink(Protocol):
    """Takes a request's body; made by whoever feeds the parser, who may spill it to a file."""

    def write(self, data: bytes, /) -> int: ...


class Request(msgspec.Struct):  # made in a third of the time of a plain class
    """A request that was received whole.

    Attributes:
        method: e.g. `GET`.
        target: the request target as sent (RFC 9112 section 3.2).
        protocol: `HTTP/1.0` or `HTTP/1.1`.
        headers: (name, value) as sent, in order; values without surrounding blanks.
        keep_alive: whether the client wants the connection to go on (RFC 9112 section 9.3).
        body: what `new_body` made, filled; None if there was no body.
        length: the body's length in bytes.
    """

    method: str
    target: bytes
    protocol: str
    headers: list[tuple[bytes, bytes]]
    keep_alive: bool
    body: BodySink | None
    length: int


class RequestParser:
    """Turns one connection's bytes into requests.

    Args:
        new_body: makes the sink for a body that begins.

    Attributes:
        requests: whole requests not yet taken by the owner.
        receiving: a request has begun and not ended.
        wants_continue: the client waits for `100 Continue` before it sends the body (RFC 9110 section
            10.1.1); the owner resets it.
    """

    __slots__ = (
        "_body",
        "_head_ended",
        "_head_size",
        "_headers",
        "_headers_of_chunked",
        "_length",
        "_length_before",
        "_new_body",
        "_parser",
        "_tail",
        "_target",
        "_version",
        "receiving",
        "requests",
        "wants_continue",
    )

    def __init__(self, new_body: Callable[[], BodySink]) -> None:
        self._new_body = new_body
        self._parser = httptools.HttpRequestParser(self)
        self.requests: list[Request] = []
        self.receiving = False
        self.wants_continue = False
        self._version: bytes | None = None
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._headers_of_chunked: list[tuple[bytes, bytes]] | None = None
        self._body: BodySink | None = None
        self._length = 0
        # These matter only to a request that comes in several reads.
        self._head_size = 0
        self._head_ended = False
        self._length_before = 0
        self._tail = b""

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            ProtocolViolation: the bytes are no valid request; requests before it are in `requests`.
        """
        # Nearly always one read is one request. Its version is at hand then, which saves asking llhttp.
        end = 0 if self.receiving else data.find(b"\r\n")
        self._version = data[end - 8 : end] if end > 8 else b""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._go_on_behind(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            raise _violation(error) from None
        if self._target:
            self._check_unfinished(data)
            self.receiving = True
        else:
            self.receiving = False

    def _go_on_behind(self, rest: bytes) -> None:
        """Take what follows a request for an upgrade.

        We offer none, and RFC 9110 section 7.8 lets a server ignore the wish. llhttp stops behind the head;
        a new parser goes on. If there is a body, it gets the head once more, without the wish.
        """
        while True:
            self._version = None
            request = self.requests[-1]
            if request.method != "CONNECT" and any(n.lower() in _BODY_FIELDS for n, _ in request.headers):
                del self.requests[-1]
                rest = _without_upgrade(request) + rest
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._parser.feed_data(rest)
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]
            except httptools.HttpParserError as error:
                raise _violation(error) from None
            else:
                return

    def _check_unfinished(self, data: bytes) -> None:
        """Bound what an endless head may cost; see whether the client waits to be told to go on."""
        self._tail = (self._tail + data)[-4:]
        if self._length != self._length_before:
            self._length_before = self._length
            self._head_size = 0
        elif self._length or self._head_ended:
            # No byte of the body: chunk sizes without end, or trailers.
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                raise HeadTooLarge
        if not self._head_ended and not self._length:
            if self._version is not None:  # else the read, of a bounded size, began with another request
                self._head_size += len(data)
            if self._tail == b"\r\n\r\n":
                self._head_ended = True
                # RFC 9110 section 10.1.1: not for HTTP/1.0.
                self.wants_continue = self._parser.get_http_version() == "1.1" and any(
                    name.lower() == b"expect" and value.lower() == b"100-continue"
                    for name, value in self._headers
                )
            elif self._head_size > MAX_HEAD:
                raise HeadTooLarge
        if len(self._headers) > MAX_FIELDS:
            raise HeadTooLarge

    # -- called by httptools ----------------------------------------------------------------------------

    def on_url(self, part: bytes) -> None:
        self._target = self._target + part if self._target else part

    def on_header(self, name: bytes, value: bytes) -> None:
        # llhttp leaves blanks behind a value (RFC 9112 section 5.1).
        self._headers.append((name, value.rstrip(b" \t")))

    def on_chunk_header(self) -> None:
        # Fields that come from now on are trailers, no headers (RFC 9110 section 6.5.1).
        if self._headers_of_chunked is None:
            self._headers_of_chunked = self._headers
            self._headers = []

    def on_body(self, data: bytes) -> None:
        if self._body is None:
            self._body = self._new_body()
        self._length += len(data)
        self._body.write(data)

    def on_message_complete(self) -> None:
        headers = self._headers
        if self._headers_of_chunked is not None:
            headers, self._headers_of_chunked = self._headers_of_chunked, None
        if len(headers) > MAX_FIELDS:
            raise HeadTooLarge
        parser = self._parser
        name = parser.get_method()
        try:
            method = _METHODS[name]
        except KeyError:
            method = name.decode("latin-1")
        if self._version == b"HTTP/1.1":
            protocol = "HTTP/1.1"
        else:
            version = parser.get_http_version()
            if version not in _VERSIONS:
                raise ProtocolViolation(f"HTTP version {version}")
            protocol = _VERSIONS[version]
        self._version = None  # of the first request in what was read, of no other
        self.requests.append(
            Request(
                method,
                self._target,
                protocol,
                headers,
                parser.should_keep_alive(),
                self._body,
                self._length,
            )
        )
        self._target = b""
        self._headers = []
        if self._length or self._tail:
            self._body = None
            self._length = self._length_before = self._head_size = 0
            self._head_ended = False
            self._tail = b""


def _violation(error: httptools.HttpParserError) -> BaseException:
    """What llhttp refused, or what a callback raised; a signal may have come in the middle of one."""
    cause = error.__context__
    if isinstance(cause, ProtocolViolation) or (cause is not None and not isinstance(cause, Exception)):
        return cause
    if isinstance(cause, OSError):
        return BodyNotStored(str(cause))
    return ProtocolViolation(str(error))


def _without_upgrade(request: Request) -> bytes:
    """A request's head as bytes, but for the wish to upgrade."""
    lines = [request.method.encode("latin-1") + b" " + request.target + b" " + request.protocol.encode()]
    lines += [name + b": " + value for name, value in request.headers if name.lower() != b"upgrade"]
    return b"\r\n".join((*lines, b"", b""))
