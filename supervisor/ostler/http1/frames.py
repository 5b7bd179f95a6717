"""Frames of websockets (RFC 6455 section 5.2), as far as a server needs them that only passes them on.

An app sends its frames itself. To end its connection politely from outside, a close frame must not be put
into the middle of one of them. `Outgoing` follows what the app sends, and knows when a frame may begin.
"""

GOING_AWAY = 1001
SERVICE_RESTART = 1012

_END_OF_HEAD = b"\r\n\r\n"
# A longer answer to the request is none that takes the upgrade.
_MOST_HEAD = 64 * 1024
_CLOSE = 8
# Bytes of a frame's header behind its first two, by the length in the second.
_EXTENDED = {126: 2, 127: 8}


def close_frame(code: int) -> bytes:
    """A close frame of a server, without a reason. code: RFC 6455 section 7.4."""
    return bytes((0x80 | _CLOSE, 2)) + code.to_bytes(2, "big")


class Outgoing:
    """Follows the bytes that a server sends on one connection: the head of its answer, then frames.

    Attributes:
        accepted: the head was sent, and it was a 101.
        closed: a close frame has begun: no other frame may follow.
    """

    __slots__ = ("_head", "_header", "_left", "accepted", "closed")

    def __init__(self) -> None:
        self._head: bytes | None = b""  # of the answer, until its end; None: no websocket is spoken
        self._header = b""  # of a frame, while it is incomplete
        self._left = 0  # bytes of a frame's payload that are to come
        self.accepted = False
        self.closed = False

    @property
    def between_frames(self) -> bool:
        """Whether a frame may be sent now."""
        return self.accepted and not (self.closed or self._left or self._header)

    def note(self, data: bytes | memoryview) -> None:
        """Note that these bytes were sent."""
        if not self.accepted:
            if self._head is None:
                return
            self._head += data
            head, end, rest = self._head.partition(_END_OF_HEAD)
            if not end:
                if len(self._head) > _MOST_HEAD:
                    self._head = None
                return
            self._head = None
            self.accepted = head.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 101\r\n"))
            if not self.accepted:
                return
            data = rest
        at, size = 0, len(data)
        while at < size:
            if self._left:
                step = min(self._left, size - at)
                self._left -= step
                at += step
                continue
            self._header += bytes(data[at : at + 1])
            at += 1
            self._end_header()

    def _end_header(self) -> None:
        """Begin the payload if the frame's header is whole."""
        header = self._header
        if len(header) < 2:
            self.closed = self.closed or header[0] & 0x0F == _CLOSE
            return
        length = header[1] & 0x7F
        extended = _EXTENDED.get(length, 0)
        masked = 4 if header[1] & 0x80 else 0
        if len(header) < 2 + extended + masked:
            return
        self._left = int.from_bytes(header[2 : 2 + extended], "big") if extended else length
        self._header = b""
