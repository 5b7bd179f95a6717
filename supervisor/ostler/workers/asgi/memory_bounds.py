"""Bounds what uvicorn keeps in memory of what a client sends.

- Its HTTP protocol has no limit for heads and trailers, and takes trailers for header fields. It parses all
  that one read gave, so that 256 KiB of pipelined requests become megabytes of objects.
- Its websocket protocols answer each ping, also of a client that does not read, and keep each fragment.
"""

from typing import Any

from httptools import HttpParserUpgrade
from uvicorn.protocols.http.flow_control import FlowControl

from ostler.workers.asgi.refusals import MOST_LINE, Report, is_busy
from ostler.workers.system_calls import READ_SIZE

MOST_HEAD = 1024 * 1024
"""Bytes of a head, its request line included: what a hundred fields of gunicorn's longest take, and more."""
_MOST_FIELDS = 1000
_MOST_TRAILERS = 64 * 1024
# Bytes given to the parser at once; where a head ends, less. What is parsed behind a request that has no
# answer yet is kept as objects that are far larger.
_PIECE = MOST_LINE
# Bytes that wait for the parser; no more is read until they are fewer.
_MOST_KEPT = 64 * 1024
# Bytes that one recv(2) gives; asyncio's own 256 KiB are 43,000 frames of a websocket, half a second's work.
_WEBSOCKET_READ_SIZE = 16 * 1024
# Fragments of a message that are kept apart.
_FRAGMENTS = 1024
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 32\r\n\r\nRequest Header Fields Too Large\n"
)


class _Flow(FlowControl):
    has_room = True
    """More may be read. Set by the protocol, which it must not refer to: that would be a cycle."""

    def resume_reading(self) -> None:
        if self.has_room:
            super().resume_reading()


def bounded(protocol: type[Any], report: Report) -> type[Any]:
    """A protocol of `unusual_requests`, with bounds. The one that uses h11 has bounds of its own.

    report: called for each head that is refused.
    """
    if not hasattr(protocol, "on_headers_complete"):
        return protocol

    class Bounded(protocol):  # type: ignore[misc]
        _kept = b""
        """Bytes that wait for the parser."""
        _unparsed = 0
        """Bytes since the last one that ended a head or belonged to a body."""
        _in_head = True
        _fields = 0
        _too_large = False
        _is_held = False
        """The first of the bytes that are kept is invalid, and requests before it are not answered yet."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            _read_less(transport, READ_SIZE)
            self.flow = _Flow(transport)

        def connection_lost(self, exc: Exception | None) -> None:
            self._kept = b""
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self._kept += data
            self._parse()
            if not self.flow.has_room:
                self.flow.pause_reading()

        def _parse(self) -> None:
            data, at = self._kept, 0
            while at < len(data) and not (self.pipeline or self._is_held):
                if self.parser is None or self.transport.is_closing():
                    at = len(data)  # it was refused, or is a websocket now
                    break
                end = at + _PIECE
                if self._in_head:
                    found = data.find(b"\r\n\r\n", at, end)
                    end = end if found < 0 else found + 4
                piece = data[at:end]
                if not self._unparsed:
                    self.head = piece if self._in_head else b""
                self._unparsed += len(piece)
                try:
                    super().data_received(piece)
                except HttpParserUpgrade as upgrade:
                    end = at + upgrade.args[0]  # what is behind the head belongs to the body
                    self.serve_without_upgrade()
                size = self._unparsed  # 0 behind nearly every piece
                if size > _MOST_TRAILERS and (size > MOST_HEAD or not self._in_head):
                    self._refuse_head()
                if not self._is_held:
                    at = end
            self._kept = data[at:]
            self.flow.has_room = len(self._kept) < _MOST_KEPT

        def _holds(self) -> bool:
            """Whether a head is invalid that is behind a request without an answer: that comes first.

            Then the parser gets the same bytes again, and finds the same.
            """
            self._is_held = self._in_head and is_busy(self)
            return self._is_held

        def is_answered(self) -> bool:
            return super().is_answered() or not (self._in_head or is_busy(self))

        def _refuse_head(self) -> None:
            if self.transport.is_closing() or self._holds():
                return
            size = 0
            if self._in_head:
                self.transport.write(_TOO_LARGE)
                size = len(_TOO_LARGE.partition(b"\r\n\r\n")[2])
            if not self._in_head:
                rule, reason = "chunked", f"trailers of more than {_MOST_TRAILERS} bytes"
            elif self._too_large:
                rule, reason = "limit_request_fields", f"more than {_MOST_FIELDS} fields"
            else:
                rule, reason = "limit_request_field_size", f"a head of more than {MOST_HEAD} bytes"
            report(self, 431, size, rule, reason)
            self.transport.close()

        def send_400_response(self, msg: str) -> None:
            if self._too_large:
                self._refuse_head()
            elif not self._holds():
                super().send_400_response(msg)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._is_held = False
            if self._kept:
                self._parse()
                self.flow.resume_reading()
                if self.half_closed:
                    self.end_after_last()

        def end_after_last(self) -> None:
            if not self._kept:
                super().end_after_last()

        # -- what the parser calls -----------------------------------------------------------------------

        def on_message_begin(self) -> None:
            self._in_head, self._fields = True, 0
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if not self._in_head:
                return  # a trailer, which must not pass for a field that a proxy has checked
            self._fields += 1
            if self._fields > _MOST_FIELDS:
                self._too_large = True
                raise ValueError("too many fields")
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self.expect_100_continue:
                self.check_expectation()
            super().on_headers_complete()
            self._in_head, self._unparsed = False, 0

        def on_body(self, body: bytes) -> None:
            self._unparsed = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_head, self._unparsed = True, 0
            super().on_message_complete()

    return Bounded


def bounded_websocket(protocol: type[Any]) -> type[Any]:
    """uvicorn's websocket protocol, with bounds.

    Attributes:
        stalled: as in `client_speed.measured`.
    """

    class BoundedWebsocket(protocol):  # type: ignore[misc]
        stalled: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            _read_less(transport, _WEBSOCKET_READ_SIZE)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            frames = getattr(self, "frames", None)
            if isinstance(frames, list) and len(frames) > _FRAGMENTS:
                self.frames = [b"".join(frames)]

        def handle_ping(self, *args: Any) -> None:
            if self.writable.is_set():
                super().handle_ping(*args)
            elif hasattr(self.conn, "data_to_send"):
                # RFC 6455 section 5.5.3: a ping may go without an answer of its own.
                self.conn.data_to_send()

    return BoundedWebsocket


def _read_less(transport: Any, size: int) -> None:
    """Read fewer bytes at once. Under TLS, and in other loops than asyncio's own, there is no such thing."""
    if hasattr(transport, "max_size"):
        transport.max_size = min(size, transport.max_size)
