"""Answers requests that have waited for `queue_timeout` when that is over, although no thread is free.

Requests may wait in four places:

- A connection has a request that was received whole, and is queued for a thread.
- A connection stands in a listener's backlog: idle siblings accept at once, so all workers are busy.
- A connection stands in the hand-off, whose queue all workers share, because its worker was busy.
- A request is behind another one of its own connection: that is the client's own doing, and not counted.

While all threads of a worker are in the app its watcher looks at the first three. It takes the connection
that has waited longest. If that is due it is answered with 503; if it is not, it goes (back) to the hand-off,
where any worker that becomes free finds it.

How long a connection has waited is known from the kernel for TCP (TCP_INFO). For Unix sockets it is not:
their connections are taken early, and handed off with the time when that was. Under TLS connections can't be
handed off, and their requests come only after a handshake: they are taken when half of the time is over.

Greenlets wait for no thread; there the same is done while `worker_connections` is reached.
"""

import select
import socket
from collections import deque
from collections.abc import Callable
from time import monotonic_ns

from ostler.osapi import original
from ostler.osapi.tcp_info import since_last_received
from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.acceptor import Acceptor
from ostler.workers.connection import Connection
from ostler.workers.drain import DrainState
from ostler.workers.phase import OPEN
from ostler.workers.reactor import Reactor
from ostler.workers.receiver import Receiver
from ostler.workers.request_runner import RequestRunner
from ostler.workers.siblings import Siblings
from ostler.workers.units import SECOND

# How often it looks: so many times within `queue_timeout`, but no more, and no less often than this (ns).
_LOOKS = 20
_SHORTEST, _LONGEST = 5_000_000, 100_000_000
# Connections that are taken from one source in a look.
_MOST = 64


class LateRequests:
    """Called only by the thread that polls; `slot` is that thread's.

    Args:
        limit: `queue_timeout`, in nanoseconds.
        listeners: what the acceptor accepts from.
        tls: connections of the listeners speak TLS.
        flush: writes the access log.

    Attributes:
        pause: seconds between two looks.
    """

    def __init__(
        self,
        limit: int,
        listeners: list[socket.socket],
        tls: bool,
        reactor: Reactor,
        acceptor: Acceptor,
        siblings: Siblings,
        receiver: Receiver,
        runner: RequestRunner,
        drain: DrainState,
        flush: Callable[[], object],
    ) -> None:
        self._limit = limit
        self._reactor = reactor
        self._acceptor = acceptor
        self._siblings = siblings
        self._receiver = receiver
        self._runner = runner
        self._drain = drain
        self._flush = flush
        pause = min(max(limit // _LOOKS, _SHORTEST), _LONGEST)
        self.pause = pause / SECOND
        # How long a source must have had connections before one is taken, and since when it has had some.
        self._patience: dict[int, int] = {}
        self._waiting_since: dict[int, int] = {}
        for listener in listeners:
            early = listener.family == socket.AF_UNIX and bool(siblings) and not tls
            self._patience[listener.fileno()] = 2 * pause if early else limit // 2 if tls else limit
        if siblings:
            self._patience[siblings.fd] = limit
        self._sources = original.poll()
        for fd in self._patience:
            self._sources.register(fd, select.POLLIN)

    def begin(self) -> None:
        """No thread is free from now on: what was seen before may have been accepted meanwhile."""
        self._waiting_since.clear()

    def answer(
        self, ready: deque[Connection], slot: RequestSlot, keep: Callable[[Connection], object]
    ) -> None:
        """Look for requests that have waited for too long, and answer them.

        Args:
            ready: connections with whole requests that wait for a thread, those that wait longest first.
            keep: called with a connection that has a whole request, is not due, and was not handed off.
        """
        now = monotonic_ns()
        while ready and now - ready[0].idle_since >= self._limit:
            self._refuse(ready.popleft(), slot, keep)
        if not self._drain.asked:
            self._look_at_sources(now, slot, keep)
        self._flush()

    def _look_at_sources(self, now: int, slot: RequestSlot, keep: Callable[[Connection], object]) -> None:
        ready = {fd for fd, event in self._sources.poll(0) if event & select.POLLIN}
        for fd, patience in self._patience.items():
            if fd not in ready or (fd == self._siblings.fd and self._siblings.is_paused):
                self._waiting_since.pop(fd, None)
                continue
            since = self._waiting_since.setdefault(fd, now)
            for _ in range(_MOST):
                if now - since < patience or (connection := self._acceptor.take_waiting(fd, slot)) is None:
                    break
                # Those behind it came later.
                since = self._waiting_since[fd] = self._came(connection, since, now)
                self._decide(connection, since, now, slot, keep)

    def _came(self, connection: Connection, since: int, now: int) -> int:
        """When the request of a connection came; `since`: when its source was first seen with connections."""
        told = since_last_received(connection.sock)
        if told is not None:
            return now - told
        known = connection.waiting_since
        return known if known > connection.answered_at else since

    def _decide(
        self,
        connection: Connection,
        came: int,
        now: int,
        slot: RequestSlot,
        keep: Callable[[Connection], object],
    ) -> None:
        is_due = now - came >= self._limit
        connection.waiting_since = came
        if not is_due and self._siblings.hand_off(connection, slot):
            return
        if not self._receiver.receive(connection, slot, now):
            return  # its request is not whole; or it has left
        self._reactor.unwatch(connection)
        connection.idle_since = came
        if is_due:
            self._refuse(connection, slot, keep)
        else:
            keep(connection)

    def _refuse(
        self, connection: Connection, slot: RequestSlot, keep: Callable[[Connection], object]
    ) -> None:
        self._runner.refuse_late(connection, slot)
        if connection.parser.requests and connection.phase is OPEN and not connection.output:
            keep(connection)
        else:
            self._reactor.watch(connection)
