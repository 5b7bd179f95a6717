"""Polls while all threads of a worker are in the app: it receives, hands off and refuses, but can't serve."""

from collections import deque
from collections.abc import Callable

from ostler.scoreboard.request_slot import RequestSlot
from ostler.workers.connection import Connection
from ostler.workers.parts import Parts
from ostler.workers.sweeper import SWEEP, SWEEP_DRAINING


class BusyPolling:
    """Called only by the watcher, while it polls instead of a leader.

    Args:
        parts: the engine's.
        heartbeat: Accounting.heartbeat.
        events: from the kernel, each a descriptor and its mask; what is left belongs to the next leader.
        ready: connections with whole requests that wait for a thread.
        sweep: does what is due from time to time.
        is_over: whether another thread is to poll now, or none any more.
    """

    def __init__(
        self,
        parts: Parts,
        heartbeat: Callable[[int], None],
        events: deque[tuple[int, int]],
        ready: deque[Connection],
        sweep: Callable[[RequestSlot], None],
        is_over: Callable[[], bool],
    ) -> None:
        self._reactor, self._acceptor, self._siblings = parts.reactor, parts.acceptor, parts.siblings
        self._sweeper, self._drain, self._late = parts.sweeper, parts.drain, parts.late
        self._open = parts.table.open
        self._receive = parts.receiver.receive
        self._heartbeat = heartbeat
        self._events = events
        self._ready = ready
        self._sweep = sweep
        self._is_over = is_over

    def run(self, slot: RequestSlot) -> None:
        """Poll until `is_over`; `slot` is the watcher's."""
        # Siblings that are free accept new connections, which must not wake this worker.
        self._acceptor.stop()
        if self._late is not None:
            self._late.begin()
        while not self._is_over():
            if not self._events:
                self._wait(slot)
            while self._events and not self._is_over():
                self._take(self._events.popleft()[0], slot)

    def _wait(self, slot: RequestSlot) -> None:
        """Wait for events, and put them into the queue."""
        reactor, sweeper = self._reactor, self._sweeper
        if reactor.now >= sweeper.due or sweeper.remaining or self._drain.asked:
            self._sweep(slot)
        # Connections with a whole request wait for a thread, not for this one.
        timeout = SWEEP_DRAINING if self._drain.asked else SWEEP
        if self._late is not None:
            self._late.answer(self._ready, slot, self._ready.append)
            timeout = min(timeout, self._late.pause)
        self._events.extend(reactor.poll(timeout))
        self._heartbeat(reactor.now)

    def _take(self, fd: int, slot: RequestSlot) -> None:
        """Receive what came; a connection whose request is whole is queued, unless a sibling takes it."""
        reactor = self._reactor
        connection = self._open.get(fd)
        if connection is None:
            reactor.call_back(fd)
            return
        connection.waiting_since = reactor.now
        if (
            connection.watched
            and not self._siblings.hand_off_waiting(connection, slot)
            and self._receive(connection, slot, reactor.now)
        ):
            reactor.unwatch(connection)
            connection.idle_since = reactor.now
            self._ready.append(connection)
