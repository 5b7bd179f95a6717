"""How long requests wait for a worker, and what those hear that have waited too long.

What matters is when a request arrived, not when somebody looked. The kernel remembers when the last bytes of
a TCP connection came (TCP_INFO, tcp(7)), also of one that waited to be accepted or that another worker gave
away. Asking costs a microsecond, so only those requests are asked about that may have waited.
"""

import socket
import time
from collections.abc import Callable, Iterable
from struct import Struct, error
from typing import Any

from ostler.wsgi.environ import Environ

# struct tcp_info up to tcpi_last_data_recv, in milliseconds (linux/tcp.h).
_LAST_RECEIVED = Struct("=52xI")
_MILLISECOND = 1_000_000
# The kernel counts in ticks, so what it says is wrong by one at most. CLOCK_MONOTONIC_COARSE (6) counts them.
_TICK = int(time.clock_getres(6) * 1_000_000_000)

_SORRY = b"Service Unavailable: the server has more requests than it can answer in time\n"
# The least that can be said in whole seconds (RFC 9110 section 10.2.3): a queue that is too long now may well
# be gone then, and whoever comes too early costs next to nothing.
_SORRY_HEADERS = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(_SORRY))),
    ("Retry-After", "1"),
]


def waiting_time(sock: Any, now: int, earliest: int, latest: int) -> int:
    """How long a request has waited at least (ns); the kernel knows it to some milliseconds.

    Args:
        sock: its connection's.
        now: CLOCK_MONOTONIC in nanoseconds, as all times.
        earliest: it can't have come before.
        latest: it was there by then, for sockets of which the kernel tells nothing (Unix).
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_RECEIVED.size)
        milliseconds: int = _LAST_RECEIVED.unpack(info)[0]
    except (OSError, error):
        return max(0, now - latest)
    return max(0, min(milliseconds * _MILLISECOND - _TICK, now - earliest))


def overloaded(_environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI app that says that there is no time."""
    start_response("503 Service Unavailable", _SORRY_HEADERS)
    return [_SORRY]
