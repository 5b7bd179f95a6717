"""The sensor for requests that take too long and for loops that stand still: it reads the scoreboard.

Requests need no polling. One that starts after a look can't be overdue before `timeout` from then, and of
those in flight the one whose deadline is next says when to look again. A loop without requests passes once a
second and says so (HEARTBEAT); it is looked at about as often.
"""

import asyncio
import math
import time

from ostler.daemon.bucket import Bucket
from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.shell import Shell
from ostler.fleet import events
from ostler.fleet.model import WorkerState
from ostler.scoreboard.cell import InFlight, Reading

_LOOK = 1.0
# Of one worker's overdue requests: how many are reported at once, in a look, and a second in the long run.
# Others wait: they are still overdue at a later look. A worker can say what it likes of its requests.
_REPORTS, _REPORTS_IN_A_LOOK, _REPORTS_RATE = 512, 64, 50
# While something is overdue: how often to look whether it still is, and whether anything else is left.
_WATCH = 0.1
_LEAST = 0.01
# After a look comes a pause of so many times what it took of the processor: when to look workers say.
_PAUSES = 9
# How much longer than a request a loop that serves all may stand still: by then its exception has come.
_GRACE = 2.0
# One that has not run for so long is blocked by what computes or waits in C.
_BLOCKED = 1.0
# A worker whose loop is blocked time and again is told of this often.
_BLOCKED_PAUSE = 10.0
# The least that makes a standing loop: a machine that has too much to do also holds up those that are idle.
_STILL = 5.0


class DeadlineSensor:
    """Turns overdue requests and standing loops into events."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        # What was reported and is still so: requests by worker id, thread and start.
        self._reported: set[tuple[int, int, int]] = set()
        self._overdue: set[int] = set()
        # Loops that may stand still, by worker_id: what they had done, and since when that is known.
        self._still: dict[int, tuple[tuple[float, int], float]] = {}
        self._stalled: set[int] = set()
        # When a blocked loop was told of, by worker id.
        self._blocked: dict[int, float] = {}
        # How many overdue requests may be reported, by worker id.
        self._buckets: dict[int, Bucket] = {}
        self._timer: asyncio.TimerHandle | None = None

    def timeout(self) -> float:
        """Seconds a request may take, 0 for as long as it likes."""
        loaded = self._shell.loaded.get(self._shell.fleet.current)
        return loaded.settings.timeout if loaded else 0.0

    def resume(self) -> None:
        """After an upgrade in place: what the program before us has reported may be over by now."""
        workers = self._shell.fleet.workers.values()
        self._overdue = {worker.worker_id for worker in workers if worker.overdue_since is not None}

    def start(self) -> None:
        """Begin to look; also when the time-out may have changed."""
        if self._timer is not None:
            self._timer.cancel()
        wait, began = _LOOK, time.thread_time()
        try:
            wait = max(self.look(time.monotonic()), _PAUSES * (time.thread_time() - began))
        finally:
            self._timer = asyncio.get_running_loop().call_later(wait, self.start)

    def look(self, now: float) -> float:
        """Report what is to be reported; returns when to look again, in seconds."""
        timeout = self.timeout()
        wait = min(timeout, _LOOK) if timeout else _LOOK
        live: set[tuple[int, int, int]] = set()
        overdue: set[int] = set()
        for handle in list(self._shell.workers.values()):
            reading = self._shell.scoreboard.look(handle.cell)
            if not self._shell.scoreboard.trusted(handle.cell):
                continue
            in_flight = reading.in_flight
            late = 0
            reported = len(self._reported)
            for request in in_flight:
                deadline = request.deadline(timeout)
                if deadline is None or deadline > now:
                    wait = min(wait, deadline - now) if deadline is not None else wait
                    continue
                late += 1
                live.add((handle.worker_id, request.thread, request.started_ns))
                if len(self._reported) - reported < _REPORTS_IN_A_LOOK:
                    self._report_overdue(handle, request, now)
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
        self._forget_the_dead()
        for worker_id in sorted(ended & self._shell.workers.keys()):
            self._shell.submit(events.OverdueEnded(worker_id))
        return max(wait, _LEAST)

    def _report_overdue(self, handle: WorkerHandle, request: InFlight, now: float) -> None:
        key = (handle.worker_id, request.thread, request.started_ns)
        if key in self._reported:
            return
        bucket = self._buckets.get(handle.worker_id)
        if bucket is None:
            bucket = self._buckets[handle.worker_id] = Bucket(_REPORTS, _REPORTS_RATE, now)
        if not bucket.take(now):
            return
        self._reported.add(key)
        # Here, where it is known which request is meant: its thread may serve another one by the time that
        # the fleet has decided what to do.
        self._shell.scoreboard.mark_overdue(handle.cell, request.thread, request.started_ns)
        age = now - request.started
        self._shell.submit(
            events.RequestOverdue(handle.worker_id, request.thread, request.method, request.path, age)
        )

    def _report_only_overdue_left(self, worker_id: int) -> None:
        # Each time: requests may still come to it on connections that are open.
        worker = self._shell.fleet.workers.get(worker_id)
        if worker is not None and worker.state is WorkerState.DRAINING:
            self._shell.submit(events.OnlyOverdueLeft(worker_id))

    def _look_at_loop(self, handle: WorkerHandle, reading: Reading, timeout: float, now: float) -> None:
        """Report a loop that stands still although no request keeps it.

        Its age alone says nothing: the loop may have been busy with requests until a moment ago. So what
        counts is how long it has been seen like this: no request, no beat, no answer.
        """
        worker = self._shell.fleet.workers.get(handle.worker_id)
        if worker is None or worker.state is not WorkerState.READY:
            self._still.pop(handle.worker_id, None)
            return
        beat = reading.heartbeat or worker.since
        if not timeout or reading.in_flight or now - beat < 2 * _LOOK:
            self._still.pop(handle.worker_id, None)
            self._stalled.discard(handle.worker_id)
            return
        done = beat, self._shell.scoreboard.counts(handle.cell).requests
        before, since = self._still.get(handle.worker_id, (None, now))
        if done != before:
            since = now
        self._still[handle.worker_id] = done, since
        limit = max(timeout, _STILL)
        if now - beat >= limit and now - since >= limit - 2 * _LOOK and handle.worker_id not in self._stalled:
            self._stalled.add(handle.worker_id)
            self._shell.submit(events.LoopStalled(handle.worker_id, now - beat))

    def _look_at_one_loop(self, handle: WorkerHandle, reading: Reading, timeout: float, now: float) -> float:
        """The same of a loop whose requests are no reason to stand still; returns when it may be blocked.

        The request that blocks it is overdue at the latest when this has lasted for the time-out, and gets
        its exception. What does not let go after that is no request, or does not hear. Requests without any
        deadline, as websockets are, must wait for others; those that have asked for time may be computing.
        """
        worker = self._shell.fleet.workers.get(handle.worker_id)
        ready = worker is not None and worker.state is WorkerState.READY
        in_flight = reading.in_flight
        beat = reading.heartbeat or (worker.since if worker and ready else 0.0)
        age = now - beat
        if not beat or age < _BLOCKED:
            self._stalled.discard(handle.worker_id)
            return _BLOCKED - age if beat else _LOOK
        # One that drains and has no requests any more has perhaps ended, and its process is about to.
        told = self._blocked.get(handle.worker_id, -_BLOCKED_PAUSE)
        if (ready or in_flight) and now - told >= _BLOCKED_PAUSE:
            self._blocked[handle.worker_id] = now
            self._shell.overdue.report_blocked(handle, age)
        extended = any(now < request.extended_until < math.inf for request in in_flight)
        limit = max(timeout + _GRACE, _STILL)
        if timeout and ready and not extended and age >= limit and handle.worker_id not in self._stalled:
            self._stalled.add(handle.worker_id)
            self._shell.submit(events.LoopStalled(handle.worker_id, age))
        return _LOOK

    def _forget_the_dead(self) -> None:
        live = self._shell.workers.keys()
        self._stalled &= live
        for known in (self._still, self._blocked, self._buckets):
            for worker_id in known.keys() - live:
                del known[worker_id]
