"""Has asyncio keep TLS connections whose client has closed its side, as it does without TLS.

By close_notify a client says that it sends no more (RFC 8446 section 6.1). asyncio takes this, and the end of
what comes by TCP, for the end of both sides, whatever `eof_received` returns.
"""

import asyncio.sslproto
from typing import Any


def keep() -> None:
    """Make asyncio do so. The connections of other loops end as before."""
    protocol: Any = asyncio.sslproto.SSLProtocol
    names = ("_call_eof_received", "_start_shutdown", "eof_received")
    if hasattr(protocol, "half_closed") or not all(hasattr(protocol, name) for name in names):
        return  # another version of Python has other names for these
    call_eof_received, start_shutdown, eof_received = (getattr(protocol, name) for name in names)
    states = asyncio.sslproto

    def call_eof_received_once(self: Any) -> None:
        if self._app_state is not states.AppProtocolState.STATE_CON_MADE:
            return
        app = self._app_protocol
        asked: list[Any] = []
        # Given to asyncio's own method, which handles exceptions, and warns of what returns true.
        self._app_protocol = _Asking(app, asked)
        try:
            call_eof_received(self)
        finally:
            self._app_protocol = app
        self.half_closed = bool(asked and asked[0])

    def start_shutdown_if_closed(self: Any, *args: Any) -> None:
        if not self.half_closed or self._app_transport._closed:
            start_shutdown(self, *args)

    def tcp_eof_received(self: Any) -> Any:
        if self._state is states.SSLProtocolState.WRAPPED and not self._app_reading_paused:
            self._call_eof_received()
            if self.half_closed:
                self._eof_received = True  # no close_notify is to be waited for
                return True
        return eof_received(self)

    protocol.half_closed = False
    protocol._call_eof_received = call_eof_received_once
    protocol._start_shutdown = start_shutdown_if_closed
    protocol.eof_received = tcp_eof_received


def is_kept(transport: Any) -> bool:
    """Whether a TLS connection is one that stays open if `eof_received` returns true."""
    return hasattr(getattr(transport, "_ssl_protocol", None), "half_closed")


class _Asking:
    """Stands for an app's protocol while it is asked by `eof_received`."""

    def __init__(self, app: Any, asked: list[Any]) -> None:
        self._app = app
        self._asked = asked

    def eof_received(self) -> None:
        self._asked.append(self._app.eof_received())
