"""Request bodies: find where they end and remove the transfer coding (RFC 9112 sections 6 and 7).

Both kinds of body take the bytes of one read from a position on and return where the body ended in them.
A line that is split over two reads is joined before it is parsed, so the split makes no difference.
"""

import re
from typing import Protocol

from ostler.http1.errors import BodyTooLarge, HeadTooLarge, ProtocolViolation
from ostler.http1.head import Rules

_MAX_SIZE_LINE = 1024  # bytes of a chunk's size with its extensions
_MAX_TRAILERS = 16 * 1024  # bytes of the trailer section
# Bytes that size lines may have in excess of what chunks of their sizes justify: extensions that outgrow the
# body are an attack, signatures of large chunks are not.
_MAX_EXCESS = 16 * 1024
_MAX_DIGITS = 15  # of a chunk's size, hexadecimal, without leading zeros

# Possessive quantifiers stand only behind single characters: behind groups Python 3.11.2 matches what it
# should not (CPython's issue 106052). Each of these expressions can match a text in one way only.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_PLAIN = rb"[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]*+"
_QUOTED = rb'"' + _PLAIN + rb"(?:\\[\t\x20-\x7e\x80-\xff]" + _PLAIN + rb')*"'
_EXTENSION = rb"[ \t]*+;[ \t]*+" + _TOKEN + rb"(?:[ \t]*+=[ \t]*+(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]++)(?:" + _EXTENSION + rb")*")
_TRAILER = re.compile(rb"(" + _TOKEN + rb"):[\t\x20-\x7e\x80-\xff]*+")

# RFC 9110 section 6.5.1: fields for framing, routing, authentication, request modifiers and content format
# must not come as trailers. A client that sends one may try to smuggle a field past a proxy.
_FORBIDDEN = frozenset(
    b"authorization cache-control connection content-encoding content-length content-location content-range "
    b"content-type cookie expect forwarded host if-match if-modified-since if-none-match if-range "
    b"if-unmodified-since keep-alive max-forwards pragma proxy-authorization proxy-connection range te "
    b"trailer transfer-encoding upgrade".split()
)


class BodySink(Protocol):
    """Stores a request's body, in memory or in a file; made by the caller of the parser."""

    def write(self, data: bytes, /) -> int:
        """Raises OSError: there is no room."""
        ...

    def flush(self) -> None:
        """Called once, when all of it has come: write what is still buffered. Raises OSError as `write`."""
        ...


class Body(Protocol):
    """The body of a request that is being received."""

    length: int
    """Bytes received so far, without the coding."""

    def take(self, data: bytes, at: int) -> int:
        """Store what belongs to the body, from `at` on; returns where the body ended, or -1 if it goes on.

        Raises:
            ProtocolViolation: the coding is invalid, or a limit is exceeded.
            OSError: the sink can't store it.
        """
        ...


class SizedBody:
    """A body with a Content-Length."""

    __slots__ = ("_left", "_sink", "length")

    def __init__(self, sink: BodySink, length: int) -> None:
        self._sink = sink
        self._left = length
        self.length = 0

    def take(self, data: bytes, at: int) -> int:
        size = len(data) - at
        if size < self._left:
            if size:
                self._sink.write(data[at:] if at else data)
                self._left -= size
                self.length += size
            return -1
        end = at + self._left
        self._sink.write(data[at:end])
        self.length += self._left
        self._left = 0
        return end


class ChunkedBody:
    """A chunked body; trailers are checked and dropped, never merged into the header fields."""

    __slots__ = ("_excess", "_in_trailers", "_left", "_part", "_rules", "_sink", "_trailers", "length")

    def __init__(self, sink: BodySink, rules: Rules) -> None:
        self._sink = sink
        self._rules = rules
        self.length = 0
        self._left = 0  # bytes of the chunk to come, with its line end
        self._part = b""  # the beginning of a line, or of a chunk's line end
        self._excess = 0
        self._in_trailers = False
        self._trailers = (0, 0)  # number of fields, and their bytes, so far

    def take(self, data: bytes, at: int) -> int:
        shift = 0
        if self._part:
            shift = at - len(self._part)
            data = self._part + data[at:]
            at = 0
            self._part = b""
        if not self._in_trailers:
            at = self._take_chunks(data, at)
        if self._in_trailers:
            at = self._take_trailers(data, at)
            if at >= 0:
                return at + shift
        return -1

    def _take_chunks(self, data: bytes, at: int) -> int:
        """Store chunks up to the last chunk or the end of the data; returns where it stopped."""
        left = self._left
        end = len(data)
        write = self._sink.write
        while True:
            if left > 2:
                if end - at < left - 2:
                    if at < end:
                        write(data[at:] if at else data)
                        self.length += end - at
                    self._left = left - (end - at)
                    return end
                stop = at + left - 2
                write(data[at:stop])
                self.length += left - 2
                at = stop
                left = 2
            if left:
                line_end = data[at : at + 2]
                if line_end != b"\r\n":
                    if line_end not in (b"", b"\r"):
                        raise ProtocolViolation("a chunk is longer than its size", "chunked")
                    self._left = left
                    self._part = line_end
                    return end
                at += 2
            stop = data.find(b"\n", at, at + _MAX_SIZE_LINE)
            if stop < 0:
                if end - at >= _MAX_SIZE_LINE:
                    raise ProtocolViolation("a chunk's size has no end", "chunked")
                self._left = 0
                self._part = data[at:]
                return end
            size = self._size(data[at : stop + 1])
            at = stop + 1
            if not size:
                self._in_trailers = True
                return at
            left = size + 2

    def _size(self, line: bytes) -> int:
        """The chunk size in a size line (RFC 9112 section 7.1)."""
        match = _SIZE_LINE.fullmatch(line, 0, len(line) - 2)
        if match is None or line[-2:] != b"\r\n":
            raise ProtocolViolation("invalid chunk size", "chunked")
        digits = match[1]
        if len(digits) > _MAX_DIGITS and len(digits.lstrip(b"0")) > _MAX_DIGITS:
            raise ProtocolViolation("chunk size out of range", "chunked")
        size = int(digits, 16)
        limit = self._rules.limit_request_body
        if limit and self.length + size > limit:
            raise BodyTooLarge
        self._excess = max(0, self._excess + len(line) - 16 - size)
        if self._excess > _MAX_EXCESS:
            raise ProtocolViolation("more chunk extensions than body", "chunked")
        return size

    def _take_trailers(self, data: bytes, at: int) -> int:
        rules = self._rules
        count, size = self._trailers
        while True:
            room = min(_MAX_TRAILERS - size, rules.max_field_size)
            stop = data.find(b"\n", at, at + room + 2)
            if stop < 0:
                if len(data) - at >= room + 2:
                    raise HeadTooLarge("too many bytes of trailers", "chunked")
                self._part = data[at:]
                self._trailers = count, size
                return -1
            line = data[at : stop + 1]
            at = stop + 1
            if line == b"\r\n":
                return at
            match = _TRAILER.fullmatch(line, 0, len(line) - 2)
            if match is None or line[-2:] != b"\r\n":
                raise ProtocolViolation("invalid trailer", "chunked")
            if match[1].lower() in _FORBIDDEN:
                raise ProtocolViolation(f"{match[1].decode()} as a trailer", "chunked")
            count += 1
            size += len(line)
            if count > rules.max_fields:
                raise HeadTooLarge("too many trailers", "chunked")
