"""How long requests wait for a worker, and the answer to those that have waited too long.

The wait begins when a request arrives, not when the worker finds it. Most requests are known to have come
since the worker last polled, so that they have not waited. For others the kernel can be asked: it remembers
when the last bytes of a TCP connection came (TCP_INFO), also of one that waited to be accepted or that
another worker handed off. But that costs a microsecond, and where passes of the loop are long nearly every
request may have waited. So it is asked

- always, if `queue_timeout` is set: which requests are answered with 503 must be exact;
- else for the first request of a pass that may have waited, at most every `ASK_EVERY` nanoseconds, and for
  every `STRIDE`th one after it in the same pass. Others of the pass are assumed to have arrived as long
  before it as the one asked about last.

In passes without a question, requests are assumed to have arrived half-way between the earliest time that is
possible and the poll that found them. A connection that a busy worker accepts may have waited for any time:
the kernel is asked about every `STRIDE`th one, and about one in `ASK_EVERY`; the others are assumed to have
waited as long as that.

This is about requests that get a thread. Those that get none in time: `late_requests`.
"""

from collections.abc import Callable, Iterable
from typing import Any

from ostler.osapi.tcp_info import TICK, since_last_received
from ostler.scoreboard.layout import LEAST_QUEUED
from ostler.workers.connection import Connection
from ostler.workers.reactor import Reactor
from ostler.wsgi.environ import Environ

ASK_EVERY = 50_000_000
STRIDE = 8

_BODY_503 = b"Service Unavailable: the server has more requests than it can answer in time\n"
# The least in whole seconds (RFC 9110 section 10.2.3): a queue that is too long now may well
# be gone then, and a client that comes too early costs next to nothing.
_HEADERS_503 = [
    ("Content-Type", "text/plain; charset=utf-8"),
    ("Content-Length", str(len(_BODY_503))),
    ("Retry-After", "1"),
]


class QueueTimes:
    """Measures how long requests have waited. Called by any thread that serves.

    Threads may overwrite each other's counts: then the kernel is asked about a request more or less.

    Args:
        reactor: says when the worker last looked for events.
        exact: ask the kernel about each request that may have waited.
    """

    __slots__ = (
        *("_asked_any_at", "_asked_at", "_before", "_exact", "_pass", "_reactor", "_skipped"),
        *("_skipped_any", "_waited_any"),
    )

    def __init__(self, reactor: Reactor, exact: bool) -> None:
        self._reactor = reactor
        self._exact = exact
        # The last question to the kernel: when it was, in which pass, how long before that pass the request
        # had arrived, and about how many requests of that pass the kernel was not asked since.
        self._asked_at = -ASK_EVERY
        self._pass = -1
        self._before = 0
        self._skipped = 0
        # The same for requests that can have come at any time: when the last question was, and the answer.
        self._asked_any_at = -ASK_EVERY
        self._waited_any = 0
        self._skipped_any = 0

    def waited(self, connection: Connection, now: int, earliest: int) -> int:
        """How long the request at hand has waited (ns); 0 if it was less than LEAST_QUEUED.

        Args:
            now: CLOCK_MONOTONIC in nanoseconds.
            earliest: the request can't have come before; below 0: that is not known.
        """
        look = self._reactor.now
        answered_at = connection.answered_at
        # While the one before it on its connection was not answered, it did not wait for a worker.
        if answered_at > earliest:
            earliest = answered_at
        possible = now - earliest
        if possible < LEAST_QUEUED:
            return 0
        here = max(look, answered_at)  # it was there by then
        if earliest <= 0 and not self._exact:
            waited = self._waited_for_any_time(connection, now, here)
            return waited if waited >= LEAST_QUEUED else 0
        if look == self._pass:
            self._skipped += 1
            ask = self._exact or self._skipped >= STRIDE
        else:
            ask = self._exact or now - self._asked_at >= ASK_EVERY
        if ask:
            waited = waiting_time(connection.sock, now, earliest, here)
            self._asked_at, self._pass, self._skipped = now, look, 0
            self._before = max(0, waited - (now - look))
        elif look == self._pass:
            waited = min(now - look + self._before, possible)
        else:
            # A longer interval is no estimate: it begins when the connection was last used.
            unknown = here - earliest
            waited = now - here + (unknown // 2 if 0 < unknown < ASK_EVERY else 0)
        return waited if waited >= LEAST_QUEUED else 0

    def _waited_for_any_time(self, connection: Connection, now: int, here: int) -> int:
        self._skipped_any += 1
        if self._skipped_any >= STRIDE or now - self._asked_any_at >= ASK_EVERY:
            self._asked_any_at, self._skipped_any = now, 0
            self._waited_any = waiting_time(connection.sock, now, 0, here)
        return self._waited_any


def waiting_time(sock: Any, now: int, earliest: int, latest: int) -> int:
    """How long a request has waited at least (ns), as far as the kernel knows.

    Args:
        sock: its connection's.
        now: CLOCK_MONOTONIC in nanoseconds, as all times.
        earliest: it can't have come before.
        latest: it was there by then, for sockets about which the kernel says nothing (Unix).
    """
    since = since_last_received(sock)
    if since is None:
        return max(0, now - latest)
    return max(0, min(since - TICK, now - earliest))


def queue_timeout_app(_environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
    """A WSGI app that answers requests that have waited longer than `queue_timeout`."""
    start_response("503 Service Unavailable", _HEADERS_503)
    return [_BODY_503]
