"""How much of what a TLS client sends asyncio gives to OpenSSL at once.

OpenSSL reads on by itself for as long as records come that have no data for us, such as key updates (RFC 8446
section 4.6.3), which cost it more than their sender. asyncio gives it 256 KiB at a time: over a second of
work, while all other clients wait. So it gets some records at a time here, and a connection with too many in
a row that have no data is ended. The engines' own is in `workers.tls`.
"""

import asyncio.sslproto
from collections.abc import Iterator
from typing import Any

# As in the engines.
MOST_USELESS = 32
_HEAD = 5
# Bytes: records of bodies are larger.
_SMALL = 256


class Records:
    """Finds where records end in what comes (RFC 8446 section 5.1).

    Attributes:
        useless: records in a row that had no data.
    """

    __slots__ = ("_head", "_left", "useless")

    def __init__(self) -> None:
        self._head = b""
        self._left = 0
        self.useless = 0

    def parts(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """`data` in parts, each with how many records end in it: `MOST_USELESS` at most."""
        begin = at = count = 0
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                piece = data[at : at + _HEAD - len(self._head)]
                self._head += piece
                at += len(piece)
                if len(self._head) < _HEAD:
                    break
                self._left = self._head[3] << 8 | self._head[4]
                self._head = b""
            if not self._left:
                count += 1
                if count == MOST_USELESS:
                    yield data[begin:at], count
                    begin, count = at, 0
        if begin < len(data):
            yield data[begin:], count


def bound_reading() -> None:
    """Have asyncio's TLS read so. Its protocols must set `arrived` when data comes."""
    protocol: Any = asyncio.sslproto.SSLProtocol
    original = getattr(protocol, "buffer_updated", None)
    if original is None or hasattr(original, "bounds_reading"):
        return  # another version of Python has other names
    states = asyncio.sslproto.SSLProtocolState

    def buffer_updated(self: Any, size: int) -> None:
        records = self.__dict__.setdefault("_records", Records())
        for part, count in records.parts(bytes(self._ssl_buffer_view[:size])):
            app = self._app_protocol
            app.arrived = False
            self._ssl_buffer_view[: len(part)] = part
            original(self, len(part))
            if app.arrived or self._app_protocol is not app or self._state is states.DO_HANDSHAKE:
                records.useless = 0
            elif self._state is states.SHUTDOWN and len(part) > count * _SMALL:
                pass  # a body that it goes on sending after the answer
            elif not self._app_reading_paused:
                records.useless += count
                if records.useless > MOST_USELESS and self._transport is not None:
                    self._transport.abort()
                    return
            if self._transport is None:
                return

    buffer_updated.bounds_reading = True  # type: ignore[attr-defined]
    protocol.buffer_updated = buffer_updated
