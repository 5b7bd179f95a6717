"""Requests that uvicorn's protocols do not serve as HTTP/1.1 wants it.

- An upgrade that is not taken: RFC 9110 section 7.8 lets a server ignore the field, but then the request has
  its body like any other. uvicorn's protocol with httptools loses it, or takes it for the next request. Taken
  are handshakes of websockets, which are GET requests of HTTP/1.1 without a body (RFC 6455 section 4.1).
- `Expect: 100-continue` from a client of HTTP/1.0, which must not get an interim answer (RFC 9110 section
  15.2).
- What turns out to be invalid when its answer has begun, or was given: the connection ends. uvicorn puts
  another answer into that one, or behind it, or fails.
- CONNECT, which only proxies serve. uvicorn's protocol with h11 lets apps answer it, and fails then.
- A client that closes its side behind the request: it gets its answer. uvicorn drops it.

A client that has closed its side may be gone. If so its kernel answers what is sent with a reset. A Unix
socket says it at once, and an answer in parts shows it. Otherwise an interim answer is sent after a while,
which any client of HTTP/1.1 skips. Where that is not possible TCP's keep-alive shows it, when the client's
kernel has forgotten the connection (a minute, tcp_fin_timeout in tcp(7)). That of an event stream is taken
for gone at once: nothing may be sent there for hours. TLS connections can't be half-closed: asyncio does not
support it.

All is called by the loop's thread.
"""

import select
import socket
import sys
from contextlib import suppress
from typing import Any

import httptools

from ostler.workers.asgi.refusals import INVALID, MOST_LINE, is_busy

# Seconds that a request may take for a client that has closed its side before it is checked that it is there.
_ASK_AFTER = 3.0
# Seconds between the probes of TCP's keep-alive.
_PROBES = 10
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def tolerant(protocol: type[Any]) -> type[Any]:
    """uvicorn's HTTP protocol, the one with httptools or the one with h11, which serves such requests.

    With httptools, its subclass in `memory_bounds`, which gives it the bytes, calls `check_expectation` and
    `serve_without_upgrade`. For `head` see `refusals.reporting`.

    Attributes:
        half_closed: since when the client's side is closed (the loop's time); 0: it is open.
    """

    class Tolerant(protocol):  # type: ignore[misc]
        half_closed = 0.0
        _asked = False

        # -- upgrades ------------------------------------------------------------------------------------

        def _should_upgrade_to_ws(self) -> bool:
            # uvicorn asks only if the request wants to be upgraded to a websocket.
            return super()._should_upgrade_to_ws() and _is_handshake(self.scope) and not is_busy(self)

        def _unsupported_upgrade_warning(self) -> None:
            if self.ws_protocol_class is None and self._get_upgrade() == b"websocket":
                super()._unsupported_upgrade_warning()

        # -- invalid requests ----------------------------------------------------------------------------

        def is_answered(self) -> bool:
            """Whether what is invalid belongs to a request whose answer has begun, or was given."""
            return is_busy(self) and bool(self.cycle.response_started)

        def send_400_response(self, msg: str) -> None:
            if self.is_answered():
                self.transport.close()
            else:
                super().send_400_response(msg)

        # -- half-closed connections ---------------------------------------------------------------------

        def eof_received(self) -> bool:
            """Whether the connection is to stay open, although nothing more will come by it."""
            cycle = self.cycle
            if not is_busy(self) or cycle.more_body or getattr(cycle, "endless", False):
                return False
            if self.scheme == "https" or _is_gone(self.transport):
                return False
            self.half_closed = self.loop.time()
            _keep_alive(self.transport)
            self.end_after_last()
            return True

        def end_after_last(self) -> None:
            """Close the connection behind the last answer; called again whenever there are more requests."""
            if is_busy(self):
                self.cycle.keep_alive = False

        def look_for_client(self) -> None:
            """To be called often while the connection is half-closed: end it if the client is gone."""
            if _is_gone(self.transport):
                self.transport.abort()
            elif not self._asked and self.loop.time() - self.half_closed > _ASK_AFTER:
                self._asked = True
                cycle = self.cycle
                waiting = getattr(self, "pipeline", ())
                if not (waiting or cycle.response_started) and cycle.scope["http_version"] == "1.1":
                    self.transport.write(_CONTINUE)

    if hasattr(protocol, "on_headers_complete"):
        return _with_httptools(Tolerant)
    return _with_h11(Tolerant)


def _with_httptools(protocol: type[Any]) -> type[Any]:
    class TolerantHttptools(protocol):  # type: ignore[misc]
        def _should_upgrade(self) -> bool:
            # Of any upgrade, so that uvicorn begins nothing before `handle_websocket_upgrade`.
            return True

        def handle_websocket_upgrade(self) -> None:
            """uvicorn calls it when the parser raises HttpParserUpgrade, which is at the end of the head.

            Raises:
                HttpParserUpgrade: the same again; `serve_without_upgrade` is to be called, with what follows.
            """
            if self._get_upgrade() == b"websocket" and self._should_upgrade_to_ws():
                super().handle_websocket_upgrade()
            else:
                # No name for it: a frame in its traceback must not refer to it.
                raise sys.exception() or RuntimeError("no upgrade is at hand")

        def serve_without_upgrade(self) -> None:
            """Have the head parsed once more, without its `Upgrade`; the body is for the same parser."""
            scope, headers = self.scope, self.headers
            if scope["method"] == "CONNECT":
                self.logger.warning(INVALID)
                self.send_400_response(INVALID)
                return
            self._unsupported_upgrade_warning()
            head = [f"{scope['method']} ".encode(), self.url, f" HTTP/{scope['http_version']}\r\n".encode()]
            for name, value in headers:
                if name != b"upgrade":
                    head += (name, b": ", value, b"\r\n")
            head.append(b"\r\n")
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
            super().data_received(b"".join(head))
            self.headers[:] = headers  # the app sees what the client has sent

        def check_expectation(self) -> None:
            """To be called at the end of a head with `Expect: 100-continue`, before uvicorn sees that."""
            self.expect_100_continue = self.parser.get_http_version() != "1.0"

    return TolerantHttptools


def _with_h11(protocol: type[Any]) -> type[Any]:
    """h11 keeps bodies, and expects nothing of HTTP/1.0."""
    import h11  # not in workers that read by httptools

    class TolerantH11(protocol):  # type: ignore[misc]
        def data_received(self, data: bytes) -> None:
            if not self.conn.trailing_data[0]:
                self.head = data[:MOST_LINE] if self.conn.their_state in (h11.IDLE, h11.DONE) else b""
            super().data_received(data)

        def _should_upgrade(self) -> bool:
            # Whether uvicorn is to call `handle_websocket_upgrade` instead of the app.
            return self.scope["method"] == "CONNECT" or bool(super()._should_upgrade())

        def handle_websocket_upgrade(self, event: Any) -> None:
            if self.scope["method"] == "CONNECT":
                self.logger.warning(INVALID)
                self.send_400_response(INVALID)
            else:
                super().handle_websocket_upgrade(event)

        def is_answered(self) -> bool:
            return bool(self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE))

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.half_closed:
                self.end_after_last()

        def end_after_last(self) -> None:
            if not self.conn.trailing_data[0]:
                super().end_after_last()

    return TolerantH11


def _is_handshake(scope: Any) -> bool:
    return (
        scope["method"] == "GET"
        and scope["http_version"] == "1.1"
        and not any(
            name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
            for name, value in scope["headers"]
        )
    )


def _is_gone(transport: Any) -> bool:
    """Whether the client has closed both sides, as far as the kernel knows; its own side is closed."""
    sock = transport.get_extra_info("socket")
    poll = select.poll()
    poll.register(sock.fileno(), 0)  # POLLHUP and POLLERR are always reported
    return bool(poll.poll(0))


def _keep_alive(transport: Any) -> None:
    sock = transport.get_extra_info("socket")
    with suppress(OSError):  # a Unix socket knows it anyway
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBES)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBES)
