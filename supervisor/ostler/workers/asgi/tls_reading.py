"""Bounds how much of what a TLS client sends asyncio reads, and gives to OpenSSL, at once."""

import asyncio.sslproto
from typing import Any

from ostler.workers.system_calls import READ_SIZE
from ostler.workers.tls_records import Records

# Bytes: records of bodies are larger.
_SMALL = 256


def bound_reading() -> None:
    """Make asyncio's TLS read so, see `tls_records`. Its protocols must set `arrived` when data comes."""
    protocol: Any = asyncio.sslproto.SSLProtocol
    original = getattr(protocol, "buffer_updated", None)
    if original is None or hasattr(original, "bounds_reading"):
        return  # another version of Python has other names for these
    states = asyncio.sslproto.SSLProtocolState

    def buffer_updated(self: Any, size: int) -> None:
        records = self.__dict__.setdefault("_records", Records())
        for part, count in records.parts(bytes(self._ssl_buffer_view[:size])):
            app = self._app_protocol
            app.arrived = False
            self._ssl_buffer_view[: len(part)] = part
            original(self, len(part))
            if self._transport is None:
                return
            # Or a body that the client goes on sending after the answer.
            closed = self._state is states.SHUTDOWN and len(part) > count * _SMALL
            useful = app.arrived or self._app_protocol is not app or self._state is states.DO_HANDSHAKE
            if not useful and (closed or self._app_reading_paused):
                continue
            try:
                records.note(count, useful)
            except OSError:
                self._transport.abort()
                return

    buffer_updated.bounds_reading = True  # type: ignore[attr-defined]
    protocol.buffer_updated = buffer_updated
    # Each connection has a buffer of this size; asyncio's own has 256 KiB.
    protocol.max_size = READ_SIZE
