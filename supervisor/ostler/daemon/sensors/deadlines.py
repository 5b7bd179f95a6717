"""Finds requests that take too long and event loops that do not run; it reads the scoreboard.

After a look the sensor waits until the earliest deadline of the requests in flight, or for `timeout` or
`limit_request_time`: a request that starts meanwhile can't be overdue before. A loop without requests makes a
pass once a second and notes its time (HEARTBEAT); the sensor checks that about as often.

It only reports: `fleet/overdue.py` decides, `daemon/children/overdue_requests.py` signals the worker.
"""

import asyncio
import math
import time
from collections.abc import Callable

from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.ports import Ports
from ostler.daemon.configurations import Configurations
from ostler.fleet import events
from ostler.fleet.model import WorkerState
from ostler.scoreboard.cell_reader import InFlight, Reading
from ostler.scoreboard.reader import Scoreboard
from ostler.token_bucket import TokenBucket

_LOOK = 1.0
# Of one worker's overdue requests: how many are reported at once, in a look, and a second in the long run.
# Others wait: they are still overdue at a later look. A worker can write anything about its requests.
_REPORTS, _REPORTS_IN_A_LOOK, _REPORTS_RATE = 512, 64, 50
# While something is overdue: how often to look whether it still is, and whether anything else is left.
_WATCH = 0.1
_LEAST = 0.01
# A pause after a look, in multiples of the processor time that it took: workers decide when to look.
_PAUSES = 9
# Seconds that a loop which serves all requests may be stalled beyond the time-out of a request: by then the
# request has got its exception.
_GRACE = 2.0
# A loop that has not run for so long (s) is blocked by code that computes, or that waits in C.
_BLOCKED = 1.0
# Seconds between two reports about one worker whose loop is blocked.
_BLOCKED_PAUSE = 10.0
# Seconds that a loop may be stalled in any case: a busy machine also delays loops that have nothing to do.
_STILL = 5.0


class DeadlineSensor:
    """Turns overdue requests and stalled loops into events. Called only by the event loop's thread.

    Args:
        ports, configurations, scoreboard: what it works with.
        report_blocked: called with a worker whose loop is blocked, and for how many seconds it has been.
    """

    def __init__(
        self,
        ports: Ports,
        configurations: Configurations,
        scoreboard: Scoreboard,
        report_blocked: Callable[[WorkerHandle, float], None],
    ) -> None:
        self._ports = ports
        self._configurations = configurations
        self._scoreboard = scoreboard
        self._report_blocked = report_blocked
        # What was reported and is still so: requests by worker id, thread, start, and which setting is over.
        self._reported: set[tuple[int, int, int, bool]] = set()
        self._overdue: set[int] = set()
        # Loops that may be stalled, by worker id: what they had done, and since when that is known.
        self._still: dict[int, tuple[tuple[float, int], float]] = {}
        self._stalled: set[int] = set()
        # When a blocked loop was reported, by worker id.
        self._blocked: dict[int, float] = {}
        # How many overdue requests may be reported, by worker id.
        self._buckets: dict[int, TokenBucket] = {}
        self._timer: asyncio.TimerHandle | None = None

    def timeout(self) -> float:
        """Seconds that a request may take without progress; 0: no limit."""
        loaded = self._configurations.current
        return loaded.settings.timeout if loaded else 0.0

    def limit(self) -> float:
        """Seconds that a request may take in all; 0: no limit."""
        loaded = self._configurations.current
        return loaded.settings.limit_request_time if loaded else 0.0

    def deadline_of(self, request: InFlight) -> float | None:
        """When a request will be overdue (CLOCK_MONOTONIC, seconds), as far as is known; None: never."""
        return request.deadline(self.timeout(), self.limit())

    def resume(self) -> None:
        """After an upgrade in place: what the program before this one has reported may be over by now."""
        workers = self._ports.state().workers.values()
        self._overdue = {worker.worker_id for worker in workers if worker.overdue_since is not None}

    def start(self) -> None:
        """Start to look; also to be called when the time-out may have changed."""
        if self._timer is not None:
            self._timer.cancel()
        wait, began = _LOOK, time.thread_time()
        try:
            wait = max(self.look(time.monotonic()), _PAUSES * (time.thread_time() - began))
        finally:
            self._timer = self._ports.loop.call_later(wait, self.start)

    def look(self, now: float) -> float:
        """Report what is to be reported; returns when to look again, in seconds."""
        timeout, limit = self.timeout(), self.limit()
        wait = min(timeout or _LOOK, limit or _LOOK, _LOOK)
        live: set[tuple[int, int, int, bool]] = set()
        overdue: set[int] = set()
        for handle in list(self._ports.children.workers.values()):
            reading = self._scoreboard.look(handle.cell)
            if not self._scoreboard.trusted(handle.cell):
                continue
            in_flight = reading.in_flight
            late = 0
            reported = len(self._reported)
            for request in in_flight:
                deadline = request.deadline(timeout, limit)
                if deadline is None or deadline > now:
                    wait = min(wait, deadline - now) if deadline is not None else wait
                    continue
                late += 1
                by_limit = request.timeout_at(timeout) > now
                live.add((handle.worker_id, request.thread, request.started_ns, by_limit))
                if len(self._reported) - reported < _REPORTS_IN_A_LOOK:
                    self._report_overdue(handle, request, now, limit if by_limit else timeout, by_limit)
            if late:
                wait = min(wait, _WATCH)
                overdue.add(handle.worker_id)
                if late == len(in_flight):
                    self._report_only_overdue_left(handle.worker_id)
            if handle.one_loop:
                wait = min(wait, self._look_at_one_loop(handle, reading, timeout, now))
            else:
                self._look_at_loop(handle, reading, timeout, now)
        ended = self._overdue - overdue
        self._reported &= live
        self._overdue = overdue
        self._forget_ended()
        for worker_id in sorted(ended & self._ports.children.workers.keys()):
            self._ports.submit(events.OverdueEnded(worker_id))
        return max(wait, _LEAST)

    def _report_overdue(
        self, handle: WorkerHandle, request: InFlight, now: float, limit: float, by_limit: bool
    ) -> None:
        """by_limit: it is `limit_request_time` that is over, and not `timeout`; limit: its value."""
        key = (handle.worker_id, request.thread, request.started_ns, by_limit)
        if key in self._reported:
            return
        bucket = self._buckets.get(handle.worker_id)
        if bucket is None:
            bucket = self._buckets[handle.worker_id] = TokenBucket(_REPORTS_RATE, _REPORTS, now)
        if not bucket.take(now):
            return
        self._reported.add(key)
        # Marked here, where it is known which request is meant: its thread may serve another one by the time
        # that the fleet has decided what to do.
        self._scoreboard.mark_overdue(
            handle.cell, request.thread, request.started_ns, int(now * 1e9), by_limit
        )
        what = handle.worker_id, request.thread, request.method, request.path, now - request.started
        setting = "limit_request_time" if by_limit else "timeout"
        self._ports.submit(events.RequestOverdue(*what, setting, limit))

    def _report_only_overdue_left(self, worker_id: int) -> None:
        # At each look: requests may still come to it on connections that are open.
        worker = self._ports.state().workers.get(worker_id)
        if worker is not None and worker.state is WorkerState.DRAINING:
            self._ports.submit(events.OnlyOverdueLeft(worker_id))

    def _look_at_loop(self, handle: WorkerHandle, reading: Reading, timeout: float, now: float) -> None:
        """Report a stalled loop: one that makes no pass although no request occupies it.

        The age of its heartbeat alone is not enough: the loop may have been busy with requests until a moment
        ago. What counts is how long it has been seen like this: no request, no heartbeat, no answer.
        """
        worker = self._ports.state().workers.get(handle.worker_id)
        if worker is None or worker.state is not WorkerState.READY:
            self._still.pop(handle.worker_id, None)
            return
        beat = reading.heartbeat or worker.since
        if not timeout or reading.in_flight or now - beat < 2 * _LOOK:
            self._still.pop(handle.worker_id, None)
            self._stalled.discard(handle.worker_id)
            return
        done = beat, self._scoreboard.counts(handle.cell).requests
        before, since = self._still.get(handle.worker_id, (None, now))
        if done != before:
            since = now
        self._still[handle.worker_id] = done, since
        limit = max(timeout, _STILL)
        if now - beat >= limit and now - since >= limit - 2 * _LOOK and handle.worker_id not in self._stalled:
            self._stalled.add(handle.worker_id)
            self._ports.submit(events.LoopStalled(handle.worker_id, now - beat))

    def _look_at_one_loop(self, handle: WorkerHandle, reading: Reading, timeout: float, now: float) -> float:
        """The same for a loop that serves all requests; returns when to look, in seconds.

        The request that blocks it is overdue at the latest when this has lasted for the time-out, and gets
        its exception. What blocks the loop after that is no request, or does not react. Requests without any
        deadline, such as websockets, must wait for others; those that have extended theirs may be computing.
        """
        worker = self._ports.state().workers.get(handle.worker_id)
        ready = worker is not None and worker.state is WorkerState.READY
        in_flight = reading.in_flight
        beat = reading.heartbeat or (worker.since if worker and ready else 0.0)
        age = now - beat
        if not beat or age < _BLOCKED:
            self._stalled.discard(handle.worker_id)
            return _BLOCKED - age if beat else _LOOK
        # The loop of one that drains and has no requests has perhaps ended, and its process is about to.
        reported = self._blocked.get(handle.worker_id, -_BLOCKED_PAUSE)
        if (ready or in_flight) and now - reported >= _BLOCKED_PAUSE:
            self._blocked[handle.worker_id] = now
            self._report_blocked(handle, age)
        extended = any(now < request.extended_until < math.inf for request in in_flight)
        limit = max(timeout + _GRACE, _STILL)
        if timeout and ready and not extended and age >= limit and handle.worker_id not in self._stalled:
            self._stalled.add(handle.worker_id)
            self._ports.submit(events.LoopStalled(handle.worker_id, age))
        return _LOOK

    def _forget_ended(self) -> None:
        live = self._ports.children.workers.keys()
        self._stalled &= live
        for known in (self._still, self._blocked, self._buckets):
            for worker_id in known.keys() - live:
                del known[worker_id]
