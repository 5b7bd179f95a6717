"""How fast clients of asgi workers send and read, and which connections make room when a worker is full.

The ranks are those of `workers.eviction`. uvicorn calls the app as soon as a request's head has come. So here
a connection whose request is in the app may be closed too, if that request's body is incomplete or its client
does not read: the app gets `http.disconnect`.
"""

import socket
from contextlib import suppress
from math import inf
from typing import Any

from ostler.osapi.tcp_info import bytes_acked
from ostler.settings.table import Settings
from ostler.workers.asgi.refusals import is_busy
from ostler.workers.eviction import (
    CREDIT_BYTES,
    IDLE,
    MIN_AGE_NS,
    MOVING,
    RATE_WINDOW_NS,
    SLOW,
    USUAL_RATE,
)

# As in the engines: from this time on a body must have come at `body_min_rate`; and an answer of which the
# client takes nothing for so long is given up. Seconds.
_EARLY = 3.0
_SEND_STALL = 60.0
# As the engines' lingering: the client's part of the end of TLS is waited for no longer (s).
_LINGER = 2.0


def measured(protocol: type[Any], settings: Settings) -> type[Any]:
    """uvicorn's HTTP protocol, which notes how fast its client sends.

    Attributes:
        began: when the head or body that is coming began (the loop's time); 0: none has.
        got: bytes of it.
        late_at: when a body that is coming is too late, unless more of it comes.
        stalled: since when the client has read nothing, how much it had read then (TCP_INFO; below 0: by a
            Unix socket, how much was left), and the same of when it first did not take all; None: it has all.
    """
    rate, most = settings.body_min_rate, settings.body_timeout

    class Measured(protocol):  # type: ignore[misc]
        began = 0.0
        got = 0
        late_at = 0.0
        stalled: Any = None
        _seen: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.began = self.loop.time()

        def data_received(self, data: bytes) -> None:
            if self.timeout_keep_alive_task is not None:
                self.began = 0.0  # after an idle time the next head begins
            super().data_received(data)
            cycle = self.cycle
            if cycle is not self._seen or not self.began:
                self._seen = cycle
                self.got = len(cycle.body) if cycle is not None else len(data)
                self.began = now = self.loop.time()
                self.late_at = now + most
                if rate:
                    self.late_at = min(now + min(_EARLY, most) + self.got / rate, self.late_at)
            else:
                self.got += len(data)
                if rate and cycle is not None and cycle.more_body:
                    self.late_at = min(self.late_at + len(data) / rate, self.loop.time() + most)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._seen = None

    return Measured


def unsent(transport: Any) -> int:
    """Bytes that the kernel has not taken yet; under TLS also those that asyncio has encrypted already."""
    try:
        size: int = transport.get_write_buffer_size()
    except AttributeError:
        return 0  # in some Pythons a TLS transport that was closed twice has no `_ssl_protocol` any more
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    return size + (below.get_write_buffer_size() if below is not None else 0)


def abort(protocol: Any) -> None:
    """End a connection at once, whatever is still to be sent."""
    transport = protocol.transport
    if getattr(transport, "_ssl_protocol", transport) is not None:
        transport.abort()
        return
    # A TLS transport that was closed twice, as in `unsent`: abort() does nothing, or fails (Python 3.11.2).
    with suppress(OSError):
        protocol.sock.shutdown(socket.SHUT_RDWR)


def is_websocket(protocol: Any) -> bool:
    """Whether it is a websocket: it may be silent for any time."""
    return not hasattr(protocol, "began")


def has_begun(protocol: Any) -> bool:
    """Whether there is a request, or the beginning of one, that is not answered."""
    if is_websocket(protocol):
        return False
    return is_busy(protocol) or (protocol.got > 0 and protocol.timeout_keep_alive_task is None)


def _sends_body(protocol: Any) -> bool:
    cycle = protocol.cycle
    return (
        cycle is not None
        and cycle.more_body
        and not cycle.response_complete
        and not cycle.waiting_for_100_continue
        and not protocol.flow.read_paused
    )


def _sends_head(protocol: Any) -> bool:
    """Whether it has begun no request, or a head that is not complete."""
    return protocol.timeout_keep_alive_task is None and not is_busy(protocol)


def is_late(protocol: Any, now: float, settings: Settings) -> bool:
    """Whether a connection's head or body takes too long, or its client reads nothing; to be asked often."""
    transport = protocol.transport
    if size := unsent(transport):
        acked = bytes_acked(transport.get_extra_info("socket"))
        # Of Unix sockets it is not known. What changes then is how much is left.
        seen = acked if acked >= 0 else -size
        if protocol.stalled is None:
            protocol.stalled = now, seen, now, seen
        elif seen != protocol.stalled[1]:
            protocol.stalled = now, seen, *protocol.stalled[2:]
        return bool(now - protocol.stalled[0] > _SEND_STALL)
    protocol.stalled = None
    if is_websocket(protocol):
        return False
    if _sends_head(protocol):
        return bool(protocol.cycle is not None and 0 < settings.header_timeout < now - protocol.began)
    if not settings.body_timeout or not protocol.cycle.more_body:
        return False
    if not _sends_body(protocol):
        # The app does not read it yet. When it does, the client has this time to go on.
        protocol.late_at = max(protocol.late_at, now + _EARLY)
    return bool(now > protocol.late_at)


def lingers(protocol: Any, now: float) -> bool:
    """Whether a connection was closed here a while ago, all was sent, and only its client has not closed it.

    To be asked often, of connections under TLS. asyncio would wait much longer for the client's part of the
    end, and then also cut answers that are still being read.
    """
    transport = protocol.transport
    if not transport.is_closing() or unsent(transport):
        return False
    acked = bytes_acked(protocol.sock)
    since, before = getattr(protocol, "left", None) or (now, acked)
    if acked != before:
        since = now
    protocol.left = since, acked
    return bool(now - since > _LINGER)


def rank(protocol: Any, now: float, min_rate: int) -> tuple[int, float] | None:
    """As `eviction.rank`."""
    must_move = True
    if unsent(protocol.transport):
        if protocol.stalled is None:
            return None  # `is_late` has not measured it yet
        _, _, since, had = protocol.stalled
        if had < 0:
            return MOVING, 0.0  # a proxy's, by a Unix socket: how much it has taken is not known
        moved = bytes_acked(protocol.transport.get_extra_info("socket")) - had
    elif is_websocket(protocol):
        return None
    elif (timer := protocol.timeout_keep_alive_task) is not None:
        return IDLE, timer.when()
    elif _sends_head(protocol):
        since, moved, must_move = protocol.began, protocol.got, False
    elif _sends_body(protocol):
        since, moved = protocol.began, protocol.got
    else:
        return None
    age = max(1e-9, now - since)
    if must_move and moved >= (min_rate or USUAL_RATE) * max(age, RATE_WINDOW_NS / 1e9):
        return MOVING, moved / age
    return SLOW, ((moved + CREDIT_BYTES) / age if age > MIN_AGE_NS / 1e9 else inf)
