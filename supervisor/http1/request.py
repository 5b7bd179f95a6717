"""Bytes to requests, on httptools (llhttp).

A `RequestParser` belongs to one connection and lives as long as it does. It is fed what arrives and gathers
whole requests in `requests`, pipelined ones in their order. Callbacks are methods because httptools looks
them up by name; they do as little as possible, for they run for every request.
"""

from collections.abc import Callable
from typing import Protocol

import httptools

from supervisor.http1.errors import HeadTooLarge, ProtocolViolation

# A head that has not ended by then never will. Finer limits are settings of their own.
MAX_HEAD = 64 * 1024
MAX_FIELDS = 256

_METHODS = {
    name.encode(): name for name in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE")
}
_VERSIONS = {"1.0": "HTTP/1.0", "1.1": "HTTP/1.1"}


class BodySink(Protocol):
    """Takes a request's body; made by whoever feeds the parser, who may spill it to a file."""

    def write(self, data: bytes, /) -> int: ...


class Request:
    """A request that was received whole.

    Attributes:
        method: e.g. `GET`.
        target: the request target as sent (RFC 9112 section 3.2).
        protocol: `HTTP/1.0` or `HTTP/1.1`.
        headers: (name, value) as sent, in order; values without surrounding blanks.
        body: what `new_body` made, filled; None if there was no body.
        length: the body's length in bytes.
        keep_alive: whether the client wants the connection to go on (RFC 9112 section 9.3).
    """

    __slots__ = ("body", "headers", "keep_alive", "length", "method", "protocol", "target")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.protocol = "HTTP/1.1"
        self.headers: list[tuple[bytes, bytes]] = []
        self.body: BodySink | None = None
        self.length = 0
        self.keep_alive = False


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
        "_head_size",
        "_headers",
        "_in_head",
        "_new_body",
        "_parser",
        "_request",
        "_target",
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
        self._in_head = False
        self._head_size = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._request = Request()

    def feed(self, data: bytes) -> None:
        """Take what arrived.

        Raises:
            ProtocolViolation: the bytes are no valid request; requests before it are in `requests`.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # We offer no upgrade, and RFC 9110 section 7.8 lets a server ignore the wish. llhttp stops
            # behind the request; a new parser goes on with what follows.
            self._parser = httptools.HttpRequestParser(self)
            rest = data[upgrade.args[0] :]
            if rest:
                self.feed(rest)
            return
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, ProtocolViolation):
                raise cause from None
            raise ProtocolViolation(str(error)) from None
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > MAX_HEAD:
                raise HeadTooLarge
        if len(self._headers) > MAX_FIELDS:
            raise HeadTooLarge

    # -- called by httptools -----------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self.receiving = True
        self._in_head = True
        self._head_size = 0
        self._target = b""

    def on_url(self, part: bytes) -> None:
        self._target = self._target + part if self._target else part

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        parser = self._parser
        self._request = request = Request()
        method = parser.get_method()
        request.method = _METHODS.get(method) or method.decode("latin-1")
        request.target = self._target
        if len(self._headers) > MAX_FIELDS:
            raise HeadTooLarge
        version = parser.get_http_version()
        try:
            request.protocol = _VERSIONS[version]
        except KeyError:
            raise ProtocolViolation(f"HTTP version {version}") from None
        request.headers = self._headers
        # What comes after the body are trailers, no headers (RFC 9110 section 6.5.1).
        self._headers = []
        request.keep_alive = parser.should_keep_alive()
        if version == "1.1":
            for name, value in request.headers:
                if len(name) == 6 and name.lower() == b"expect" and value.lower() == b"100-continue":
                    self.wants_continue = True

    def on_body(self, data: bytes) -> None:
        request = self._request
        if request.body is None:
            request.body = self._new_body()
        request.length += len(data)
        request.body.write(data)

    def on_message_complete(self) -> None:
        self.receiving = False
        self.wants_continue = False
        self._headers.clear()
        self.requests.append(self._request)
