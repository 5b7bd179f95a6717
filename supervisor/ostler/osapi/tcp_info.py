"""What the kernel knows of a TCP connection: getsockopt(2) with TCP_INFO, see tcp(7) and linux/tcp.h.

A call costs about a microsecond. Any thread may call these functions. They raise nothing: where the kernel
does not answer, as for Unix sockets, or fills in less of the structure than Linux 5.10 does, they return that
it is not known.
"""

import socket
import time
from struct import Struct, error
from typing import Any

# Offsets in struct tcp_info: tcpi_last_data_sent, tcpi_last_data_recv (milliseconds), tcpi_bytes_acked.
_LAST_SENT = Struct("=44xI")
_LAST_RECEIVED = Struct("=52xI")
_BYTES_ACKED = Struct("=120xQ")
_MILLISECOND = 1_000_000

TICK = int(time.clock_getres(6) * 1_000_000_000)
"""The kernel counts these times in ticks of so many nanoseconds (CLOCK_MONOTONIC_COARSE, 6), so that each is
wrong by one tick at most."""


def since_last_received(sock: Any) -> int | None:
    """Nanoseconds since the last bytes came, exact to `TICK`, also before accept(2); None: not known."""
    milliseconds = _read(sock, _LAST_RECEIVED)
    return None if milliseconds is None else milliseconds * _MILLISECOND


def since_last_sent(sock: Any) -> int | None:
    """Nanoseconds since the last bytes were sent, exact to `TICK`; None: not known."""
    milliseconds = _read(sock, _LAST_SENT)
    return None if milliseconds is None else milliseconds * _MILLISECOND


def bytes_acked(sock: Any) -> int:
    """How many bytes the client's kernel has taken so far; -1: not known."""
    acked = _read(sock, _BYTES_ACKED)
    return -1 if acked is None else acked


def _read(sock: Any, part: Struct) -> int | None:
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, part.size)
        found: int = part.unpack(info)[0]
    except (OSError, error):
        return None
    return found
