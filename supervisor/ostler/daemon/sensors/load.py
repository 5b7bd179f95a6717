"""Measures the load of the workers in the last second, for memory limits, autoscaling and roll-backs.

How busy a worker was is computed from the scoreboard alone. The histogram says how long the requests that
have ended were in the app, and STARTED of each request slot how long the present request has been. The sum of
both grows by the time spent in the app since the last look, whichever requests began or ended in between.
Each request counts with the middle of its bucket: an error of an eighth at most, and on average much less.
Where one loop serves many requests that wait (gevent, asgi), CPU time is used instead.

Own memory (USS) is costly to read: the kernel walks the page tables. It is read only if a limit or the
autoscaler needs it, for a few workers at a time.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import mul

import psutil

from ostler.daemon.children.handles import WorkerHandle
from ostler.daemon.children.registry import ChildRegistry
from ostler.fleet import events
from ostler.fleet.model import Load, WorkerState
from ostler.fleet.state import State
from ostler.logs.setup import get_logger
from ostler.osapi.memory import memory_free
from ostler.scoreboard import layout
from ostler.scoreboard.cell_reader import Reading
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.reader import Scoreboard

# How old a reading of own memory may be, if no limit is near.
_MEMORY_SECONDS = 5.0
# After so long no further reading is begun in a measurement: 0.5 % of the supervisor's time.
_MEMORY_TIME = 0.005
_MEASURED = (WorkerState.READY, WorkerState.DRAINING)

_MIDDLES = [layout.bucket_middle(bucket) for bucket in range(layout.BUCKETS)]


@dataclass(slots=True)
class _LastLook:
    """What was known of a worker at the last look.

    ended: seconds that its answered requests spent in the app; spent: those in flight included, or, of one
    loop, seconds of the processor's.
    """

    at: float
    counts: Counts = field(default_factory=Counts)
    ended: float = 0.0
    spent: float = 0.0


class LoadSensor:
    """Measures all workers that serve. Called only by the event loop's thread.

    Args:
        state: the fleet's state.
        children: the registry.
        scoreboard: where the numbers are.
        clock: CLOCK_MONOTONIC in seconds, as the workers' time stamps are.
        free: returns how many bytes of memory are left, None if that is not known.
    """

    def __init__(
        self,
        state: Callable[[], State],
        children: ChildRegistry,
        scoreboard: Scoreboard,
        clock: Callable[[], float] = time.monotonic,
        free: Callable[[], int | None] = memory_free,
    ) -> None:
        self._state = state
        self._children = children
        self._scoreboard = scoreboard
        self._clock = clock
        self._free = free
        self._looked: dict[int, _LastLook] = {}
        self._memory = MemoryReader(clock)

    def take(self, readings: Mapping[int, Reading] | None = None) -> events.Measured:
        """Measure; to be called about once a second.

        readings: of all cells, taken just now; without it they are read.
        """
        read = self._scoreboard.read if readings is None else readings.__getitem__
        state, handles = self._state(), self._children.workers
        policy = state.policy
        autoscaled = policy is not None and policy.workers_most is not None
        serving = {n: w for n, w in state.workers.items() if w.state in _MEASURED and n in handles}
        self._looked = {n: self._looked.get(n) or _LastLook(at=w.since) for n, w in serving.items()}
        pids = {n: w.pid for n, w in serving.items() if w.pid is not None}
        memory = self._memory.read(pids, policy.max_memory if policy else 0, autoscaled)
        loads = {n: self._load(handles[n], read(handles[n].cell), memory.get(n)) for n in serving}
        return events.Measured(loads, self._free() if autoscaled else None)

    def _load(self, handle: WorkerHandle, reading: Reading, memory: int | None) -> Load:
        looked, now = self._looked[handle.worker_id], self._clock()
        in_flight, counts, before = reading.in_flight, reading.counts, looked.counts
        answered = counts.requests - before.requests
        if handle.one_loop:
            spent = cpu_seconds(handle.pid)
        else:
            if answered:
                looked.ended = sum(map(mul, _MIDDLES, counts.histogram))
            spent = looked.ended + sum(max(0.0, now - request.started) for request in in_flight)
        seconds = max(now - looked.at, 1e-3)
        busy = (spent - looked.spent) / (handle.threads * seconds)
        looked.at, looked.counts, looked.spent = now, counts, spent
        return Load(
            requests=counts.requests,
            errors=counts.errors,
            in_flight=len(in_flight),
            busy=min(max(busy, 0.0), 1.0),
            queue_wait=_waited(before, counts),
            memory=memory,
            rate=answered / seconds,
        )


def cpu_seconds(pid: int | None) -> float:
    """Processor time that a process has used; 0 if it has just ended."""
    try:
        times = psutil.Process(pid).cpu_times() if pid is not None else None
    except psutil.Error:
        times = None
    return times.user + times.system if times is not None else 0.0


def _waited(before: Counts, counts: Counts) -> float:
    """Seconds that 95 % of the requests between two looks waited at most."""
    if counts.queued == before.queued:
        return 0.0
    queued = [a - b for a, b in zip(counts.queued, before.queued, strict=True)]
    statuses = [a - b for a, b in zip(counts.statuses, before.statuses, strict=True)]
    return Counts(statuses=statuses, queued=queued).queue_wait(0.95) or 0.0


@dataclass(slots=True)
class _Memory:
    process: psutil.Process
    uss: int | None = None
    read_at: float = 0.0


class MemoryReader:
    """Reads own memory (USS) of few processes at a time, beginning with those not read for longest.

    Resident memory (RSS) costs next to nothing and is never less, so the own memory of a process whose RSS is
    below a limit need not be read.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._denied = False
        self._known: dict[int, _Memory] = {}

    def read(self, pids: Mapping[int, int], limit: int, wanted: bool) -> dict[int, int | None]:
        """Own memory in bytes by worker id; None where it is not known.

        What is above the limit was read just now; what is not may be some seconds old.

        Args:
            pids: by worker id.
            limit: bytes, 0 for none.
            wanted: read it also if no limit is near.
        """
        if not limit and not wanted:
            self._known.clear()
            return {}
        now, due = self._clock(), []
        known, self._known = self._known, {}
        for worker_id, pid in pids.items():
            try:
                memory = known.get(worker_id) or _Memory(psutil.Process(pid))
                rss = memory.process.memory_info().rss
            except psutil.Error:
                continue  # it has ended, which is about to be reported
            self._known[worker_id] = memory
            if memory.uss is not None:
                memory.uss = min(memory.uss, rss)
            old = memory.uss is None or now - memory.read_at >= _MEMORY_SECONDS
            if 0 < limit < rss or (wanted and old):
                due.append((memory.read_at, worker_id))
        self._read_some([worker_id for _, worker_id in sorted(due)], now)
        return {worker_id: self._usable(memory, limit, now) for worker_id, memory in self._known.items()}

    def _read_some(self, worker_ids: Iterable[int], now: float) -> None:
        began = time.perf_counter()
        for worker_id in worker_ids:
            memory = self._known[worker_id]
            try:
                # A process that is just ending has no memory any more.
                memory.uss, memory.read_at = memory.process.memory_full_info().uss or None, now
            except psutil.AccessDenied:
                self._log_denied()
            except psutil.Error:
                del self._known[worker_id]
            if time.perf_counter() - began > _MEMORY_TIME:
                return

    def _log_denied(self) -> None:
        """Workers are another user's, and the supervisor may not trace them. Logged once: it stays so."""
        if not self._denied:
            self._denied = True
            problem = "own memory of workers can't be read, and not be limited, without CAP_SYS_PTRACE"
            get_logger().warning("memory_unknown", problem=problem)

    def _usable(self, memory: _Memory, limit: int, now: float) -> int | None:
        stale = memory.read_at != now
        return None if stale and memory.uss is not None and 0 < limit < memory.uss else memory.uss
