"""The request parser.

A `RequestParser` belongs to one connection and lives as long as it does. It is fed the bytes that arrive and
appends complete requests to `requests`, pipelined ones in their order.

A head is collected up to its end, within bounds, and parsed at once; so it does not matter how it was split
into reads. A client may send the same fields byte for byte on its connection: a parser recognizes the block
of its last request.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from ostler import native
from ostler.http1.body import Body, BodySink, ChunkedBody, SizedBody
from ostler.http1.errors import BodyNotStored, BodyTooLarge, HeadTooLarge, LineTooLong, ProtocolViolation
from ostler.http1.head import CHUNKED, MAX_FIELDS, MAX_HEAD, Head, Rules, parse_head
from ostler.http1.line import MAX_LINE, Line, check_beginning, parse_line

__all__ = [
    "MAX_FIELDS",
    "MAX_HEAD",
    "MAX_LINE",
    "BodySink",
    "Head",
    "Line",
    "Request",
    "RequestParser",
    "Rules",
]

# RFC 9112 section 2.2: old clients send an empty line behind a body. A client that sends many wastes CPU
# time.
_MAX_EMPTY_LINES = 8

# Fields are counted and measured when their block is complete. Of a block that is longer than this it is done
# while it comes, so that one that will be refused does not fill memory first.
_LONG_BLOCK = 64 * 1024

# See _native.pyi; called only with rules of the C extension.
_ordinary_request: Any = native.module.ordinary_request if native.module is not None else None

# Bytes that are kept of a request line that is invalid.
_MOST_OF_A_BROKEN_LINE = 4096

# What is known of an incomplete block: how many bytes are measured, their lines, where the last line begins.
_NOTHING = (0, 0, 0)


class Request(msgspec.Struct, gc=False):  # made in a third of the time of a plain class
    """A request.

    Attributes:
        line: its request line; shared by all requests with an equal line.
        head: its fields; shared by all requests of the connection with an equal head.
        keep_alive: whether the client wants to keep the connection open (RFC 9112 section 9.3).
        body: the sink that `new_body` made; None if there is no body.
        length: bytes of the body received so far.
        complete: all of it was received; may be false only with `Rules.stream`.
    """

    line: Line
    head: Head
    keep_alive: bool
    body: BodySink | None
    length: int
    complete: bool = True

    @property
    def method(self) -> str:
        return self.line.method

    @property
    def target(self) -> bytes:
        return self.line.target

    @property
    def protocol(self) -> str:
        return self.line.protocol

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self.head.headers

    @property
    def upgrade(self) -> bool:
        """See `Head`."""
        return self.head.upgrade


class RequestParser:
    """Parses the requests of one connection.

    What comes behind a request that offers an upgrade may be of the other protocol. So it is held, not
    parsed, until the owner calls `resume` or `stop`.

    Args:
        rules: limits and options.
        new_body: makes the sink for a body; may raise OSError.

    Attributes:
        requests: requests not yet removed by the owner: complete ones and, with `Rules.stream`, a last one
            whose body is still being received.
        receiving: a request has begun and is not complete.
        wants_continue: the client waits for `100 Continue` before it sends the body (RFC 9110 section
            10.1.1); the owner resets it.
    """

    __slots__ = (
        "_body",
        "_broken",
        "_empty_lines",
        "_ended",
        "_head",
        "_held",
        "_line",
        "_measured",
        "_native",
        "_new_body",
        "_part",
        "_request",
        "_rules",
        "receiving",
        "requests",
        "wants_continue",
    )

    def __init__(self, rules: Rules, new_body: Callable[[], BodySink]) -> None:
        self._rules = rules
        self._native = rules.native
        self._new_body = new_body
        self.requests: list[Request] = []
        self.receiving = False
        self.wants_continue = False
        self._head: Head | None = None  # of the last request, if it is repeatable
        self._empty_lines = 0
        self._ended = False  # nothing that still comes is a request, or it is not known yet
        self._held: bytearray | None = None  # what came behind a request that offers an upgrade
        # Of a request that comes in several reads: bytes that are not parsed yet, then its parsed parts.
        self._part: bytearray | None = None
        self._line: Line | None = None
        self._measured = _NOTHING
        self._request: Request | None = None
        self._body: Body | None = None
        self._broken: bytes | None = None  # the beginning of the request that has broken the rules

    @property
    def rules(self) -> Rules:
        """May be replaced between requests."""
        return self._rules

    @rules.setter
    def rules(self, rules: Rules) -> None:
        self._rules = rules
        self._native = rules.native
        self._head = None

    @property
    def holds(self) -> bool:
        """Whether what comes is held, because the last request offers an upgrade."""
        return self._held is not None

    @property
    def held(self) -> bytes:
        """What is held so far."""
        return bytes(self._held or b"")

    @property
    def in_body(self) -> bool:
        """Whether the head of the request being received is complete."""
        return self._body is not None

    @property
    def received(self) -> int:
        """Bytes of the body being received so far."""
        return 0 if self._body is None else self._body.length

    @property
    def gathered(self) -> int:
        """Bytes of a head that is not complete."""
        return 0 if self._part is None else len(self._part)

    @property
    def beginning(self) -> bytes:
        """The first bytes of the request that is being received, or that has broken the rules.

        They begin with its line, as far as that has come; empty: they are not known.
        """
        if self._broken is not None:
            return self._broken
        return self._line_at_hand() or bytes((self._part or b"")[:_MOST_OF_A_BROKEN_LINE])

    def _line_at_hand(self) -> bytes:
        line = self._line or (None if self._request is None else self._request.line)
        return (
            b"" if line is None else b"%b %b %b" % (line.method.encode(), line.target, line.protocol.encode())
        )

    def forget(self) -> None:
        """Drop the remembered head, to save memory."""
        self._head = None

    def feed(self, data: bytes) -> None:
        """As `parse`; by the C extension, if the bytes are one ordinary request."""
        if self._native is not None and not (self.receiving or self._ended):
            # Nearly always one read is one request.
            request = _ordinary_request(data, self._native)
            if request is not None:
                self._empty_lines = 0
                self.requests.append(request)
                return
        self.parse(data)

    def parse(self, data: bytes) -> None:
        """Parse bytes that have arrived.

        Bytes after a request that ends the connection are ignored (RFC 9112 section 9.6).

        Raises:
            ProtocolViolation: the bytes are no valid request; requests before it are in `requests`, and
                later bytes are ignored.
        """
        if self._ended:
            if self._held is not None:
                self._held += data
            return
        part, known = self._part, len(self.requests)
        try:
            self._take(data)
        except ProtocolViolation:
            broken = self._line_at_hand()
            if not broken and len(self.requests) == known:
                broken = bytes((data if part is None else part)[:_MOST_OF_A_BROKEN_LINE])
            self._broken = broken
            self._end()
            raise
        self.receiving = self._part is not None or self._body is not None

    def resume(self) -> None:
        """The upgrade was not taken: parse what came behind its request.

        Raises:
            ProtocolViolation: as `feed`.
        """
        held, self._held = self._held, None
        if held is not None:
            self._ended = False
            if held:
                self.feed(bytes(held))

    def stop(self) -> None:
        """The upgrade was taken: nothing is parsed any more."""
        self._held = None

    def _end_behind(self, head: Head) -> None:
        """End, or hold what follows, behind a request with this head if that is needed."""
        if head.upgrade:
            self._end()
            self._held = bytearray()
        elif not head.keep_alive:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self.receiving = self.wants_continue = False
        self._part = self._line = self._request = self._body = self._head = None

    def _take(self, data: bytes) -> None:
        if self._part is not None:
            whole = self._gather(self._part, data)
            if whole is None:
                return
            data = whole
        at = 0
        end = len(data)
        while at < end:
            body = self._body
            at = self._take_head(data, at) if body is None else self._take_body(body, data, at)
            if at < 0:
                return
            if self._ended:
                if self._held is not None:
                    self._held += data[at:]
                return

    def _gather(self, part: bytearray, data: bytes) -> bytes | None:
        """Append to an incomplete head; returns all of it if the line or the head may be complete now."""
        start = len(part)
        part += data
        if self._line is None:
            if part.find(b"\n", start) < 0:
                self._check_part_of_line(part, start)
                return None
        elif part.find(b"\r\n\r\n", max(0, start - 3)) < 0:
            self._check_part_of_block(part, start)
            return None
        self._part = None
        return bytes(part)

    def _take_head(self, data: bytes, at: int) -> int:
        """Parse a head that begins at `at`; returns where it ends, or -1 if it is not complete."""
        rules = self._rules
        line = self._line
        if line is None:
            while data[at] == 13 and data.startswith(b"\r\n", at):
                self._empty_lines += 1
                if self._empty_lines > _MAX_EMPTY_LINES:
                    raise ProtocolViolation("empty lines", "line_ends")
                self._head = None  # so that `feed` can't bypass this counter
                at += 2
                if at == len(data):
                    return at
            stop = data.find(b"\n", at) - 1
            if stop < at or stop - at > rules.max_line or data[stop] != 13:
                self._part = bytearray(data[at:])
                self._check_part_of_line(self._part, 0)
                return -1
            line = parse_line(data[at:stop], rules.line_rules)
            self._empty_lines = 0
            at = stop
        head = self._head
        if head is None or not line.ordinary or not data.startswith(head.block, at):
            self._line = line
            stop = data.find(b"\r\n\r\n", at) + 4
            if stop < 4 or stop - at > rules.max_head:
                self._part = bytearray(data[at:])
                self._measured = _NOTHING
                self._check_part_of_block(self._part, 0)
                return -1
            head = parse_head(data[at:stop], line.protocol, rules)
            if head.repeatable:
                self._head = head
        self._line = None
        at += len(head.block)
        request = Request(line, head, head.keep_alive, None, 0)
        if head.length:
            self._begin(request, at == len(data))
        else:
            self.requests.append(request)
            if not head.repeatable:
                self._end_behind(head)
        return at

    def _check_part_of_line(self, part: bytearray, start: int) -> None:
        """Check the beginning of a request line that has no line end within the limit, from `start` on."""
        check_beginning(part, self._rules.line_rules)
        limit = self._rules.max_line
        start = max(0, start - 1)
        if part.find(b"\n", start, limit + 2) >= 0:
            raise ProtocolViolation("a line end without CR", "line_ends")
        if 0 <= part.find(b"\r", start, limit + 1) < len(part) - 1:
            raise ProtocolViolation("CR in a line", "line_ends")
        if len(part) > limit + 1:
            raise LineTooLong

    def _check_part_of_block(self, part: bytearray, start: int) -> None:
        """Check the line ends of an incomplete block, from `start` on, and the fields of a long one.

        Fields are parsed when the block is complete; but with wrong line ends it would never be.
        """
        rules = self._rules
        start = max(0, start - 1)
        end = min(len(part), rules.max_head)
        lines = part.count(b"\r\n", start, end)
        if part.count(b"\n", start + 1, end) != lines or part.count(b"\r", start, end - 1) != lines:
            raise ProtocolViolation("CR or LF that is not part of CR LF", "line_ends")
        if len(part) > rules.max_head:
            raise HeadTooLarge("too many bytes of fields")
        if len(part) <= _LONG_BLOCK or rules.lenient_fields:
            return  # what is lenient may make one field of several lines, or shorten one
        measured, lines, line = self._measured
        lines += part.count(b"\n", measured)
        line = max(line, part.rfind(b"\n", measured) + 1)
        self._measured = len(part), lines, line
        if lines - 1 > rules.max_fields:  # the first one ends the request line
            raise HeadTooLarge("too many fields", "limit_request_fields")
        if len(part) - line > rules.max_field_size + 1:  # with a CR
            raise HeadTooLarge("a field is too long")

    def _begin(self, request: Request, last: bool) -> None:
        """Begin a body; `last`: no byte of it was received yet."""
        length = request.head.length
        rules = self._rules
        if 0 < rules.limit_request_body < length:
            raise BodyTooLarge
        try:
            sink = self._new_body()
        except OSError as error:
            raise BodyNotStored(str(error)) from error
        request.body = sink
        self._request = request
        self._body = ChunkedBody(sink, rules) if length == CHUNKED else SizedBody(sink, length)
        self.wants_continue = last and request.head.expects_continue
        if rules.stream:
            request.complete = False
            self.requests.append(request)

    def _take_body(self, body: Body, data: bytes, at: int) -> int:
        """Store what belongs to the body; returns where it ends, or -1 if it goes on."""
        request = self._request
        assert request is not None
        assert request.body is not None
        self.wants_continue = False
        try:
            at = body.take(data, at)
            if at >= 0:
                request.body.flush()
        except OSError as error:
            raise BodyNotStored(str(error)) from error
        finally:
            request.length = body.length
        if at >= 0:
            self._body = self._request = None
            self._complete(request)
        return at

    def _complete(self, request: Request) -> None:
        if request.complete:
            self.requests.append(request)
        else:  # it is in `requests` already
            request.complete = True
        self._end_behind(request.head)
