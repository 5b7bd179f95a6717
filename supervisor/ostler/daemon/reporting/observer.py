"""What the API shows: the fleet's state, the scoreboard's numbers and the kernel's, put together as views."""

import asyncio
import itertools
import os
import platform
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress

import msgspec
import psutil

from ostler import __version__
from ostler.control.metrics import AcceptQueue, Figures, Histogram
from ostler.control.views import (
    ChangeView,
    ConfigView,
    EventView,
    ExitView,
    ReloadPhase,
    ReloadView,
    RequestView,
    SampleView,
    SettingView,
    StatusView,
    Totals,
    WorkerView,
)
from ostler.control.wording import change
from ostler.daemon.reporting.changes import changes
from ostler.daemon.reporting.journal import JournalSubscription
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.sensors.deadlines import DeadlineSensor
from ostler.daemon.shell import Shell
from ostler.fleet import health
from ostler.fleet.events import Event
from ostler.fleet.model import Reload, Worker, WorkerState
from ostler.fleet.model import ReloadPhase as Phase
from ostler.osapi.backlog import accept_queue
from ostler.scoreboard.cell import Reading
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.layout import (
    BUCKETS,
    LEAST_QUEUED,
    bucket_limit,
    bucket_middle,
    bucket_of,
    percentile,
)
from ostler.settings import classes
from ostler.settings.render import shown
from ostler.settings.table import rows

_HISTORY = 600
# Reading USS walks a process's page tables; nobody needs it more often than this.
_USAGE_SECONDS = 1.0
_ORDER = {
    WorkerState.READY: 0,
    WorkerState.BOOTING: 1,
    WorkerState.DRAINING: 2,
    WorkerState.STOPPING: 3,
}


class _Usage:
    """CPU and memory of one process, as psutil tells; None once it is gone."""

    def __init__(self, pid: int) -> None:
        self.cpu_percent: float | None = None
        self.rss: int | None = None
        self.uss: int | None = None
        self._read_at = 0.0
        try:
            self._process: psutil.Process | None = psutil.Process(pid)
            # The first call only starts the measuring; until the second, the average since its start.
            self._process.cpu_percent()
            times, age = self._process.cpu_times(), time.time() - self._process.create_time()
            self.cpu_percent = round(100 * (times.user + times.system) / max(age, 0.01), 1)
        except psutil.Error:
            self._process = None

    def read_cpu(self) -> None:
        """Once a second, so that the figure is of the last second and not since somebody last looked."""
        if self._process is not None:
            try:
                self.cpu_percent = round(self._process.cpu_percent(), 1)
            except psutil.Error:
                self._process = None

    def read_memory(self, now: float) -> None:
        if self._process is None or now - self._read_at < _USAGE_SECONDS:
            return
        self._read_at = now
        try:
            memory = self._process.memory_full_info()
        except psutil.AccessDenied:
            # It runs as another user, and we may not trace it (CAP_SYS_PTRACE).
            memory = None
        except psutil.Error:
            self._process = None
            return
        if memory is None:
            with suppress(psutil.Error):
                self.rss = self._process.memory_info().rss or None
            return
        # A process that is just ending has no memory any more.
        self.rss, self.uss = memory.rss or None, memory.uss or None


class ObserverState(msgspec.Struct, frozen=True):
    """What a re-exec'ed supervisor goes on with. `started` is CLOCK_MONOTONIC, which exec does not touch."""

    started_at: float
    started: float
    samples: list[SampleView]
    last_totals: Counts
    last_sample: float
    reloads: dict[ReloadPhase, int]
    counted: tuple[int, ReloadPhase]
    unqueued: int
    settled: int
    changes_of: int
    changes: list[ChangeView]


class Observer:
    """The control plane's backend."""

    def __init__(self, shell: Shell, sensor: DeadlineSensor, ledger: Ledger) -> None:
        self._shell = shell
        self._sensor = sensor
        self._ledger = ledger
        self._started_at = self._program_since = time.time()
        self._started = time.monotonic()
        self._usage: dict[int, _Usage] = {}
        self._samples: deque[SampleView] = deque(maxlen=_HISTORY)
        self._last_totals = Counts()
        self._last_sample = self._started
        self._reload_waiters: dict[int, list[asyncio.Future[ReloadView]]] = {}
        self._reloads: dict[ReloadPhase, int] = {}
        self._counted: tuple[int, ReloadPhase] = (0, "done")
        self._unqueued = 0
        # The generation that served before the newest reload, and what the newest one that ended has changed:
        # the settings of generations that are gone are forgotten.
        self._settled = 1
        self._changes: tuple[int, list[ChangeView]] = (0, [])

    # -- what the control plane calls -------------------------------------------------------------------

    def submit(self, event: Event) -> None:
        self._shell.submit(event)

    def status(self) -> StatusView:
        return self._status(self._shell.scoreboard.read_all())

    def _status(self, readings: Mapping[int, Reading]) -> StatusView:
        fleet, shell = self._shell.fleet, self._shell
        generation = fleet.current
        loaded = shell.loaded.get(generation)
        settings = loaded.settings if loaded else None
        fork_server = shell.fork_servers.get(generation)
        totals = shell.scoreboard.totals(readings)
        return StatusView(
            name=shell.name,
            version=__version__,
            pid=os.getpid(),
            app=(settings.wsgi_app if settings else None) or "",
            python=platform.python_version(),
            state=health.state(fleet),
            health=health.sentence(fleet),
            wanted=fleet.wanted,
            ready=fleet.ready,
            booting=fleet.count(WorkerState.BOOTING),
            draining=fleet.count(WorkerState.DRAINING) + fleet.count(WorkerState.STOPPING),
            generation=generation,
            worker_class=settings.worker_class if settings else "",
            threads=classes.threads(loaded.settings, loaded.one_loop) if loaded else 0,
            timeout=settings.timeout if settings else 0.0,
            listeners=shell.listeners.urls(
                fork_server.listener_keys if fork_server else [],
                "https" if loaded is not None and loaded.tls else "http",
            ),
            started_at=self._started_at,
            uptime=time.monotonic() - self._started,
            in_flight=_in_flight(readings),
            totals=Totals(
                requests=totals.requests,
                errors=totals.errors,
                bytes_sent=totals.bytes_sent,
                connections=totals.opened,
                spawned=fleet.spawned,
                deaths=fleet.deaths,
            ),
            reload=self.reload(),
            override=fleet.override,
            workers_range=(
                settings.workers if settings is not None and isinstance(settings.workers, tuple) else None
            ),
            program_since=self._program_since,
        )

    def workers(self) -> list[WorkerView]:
        return self._workers(self._shell.scoreboard.read_all())

    def _workers(self, readings: Mapping[int, Reading]) -> list[WorkerView]:
        known = sorted(
            self._shell.fleet.workers.values(), key=lambda w: (w.slot, _ORDER[w.state], -w.worker_id)
        )
        views = [self._worker(worker, readings) for worker in known]
        for worker_id in self._usage.keys() - self._shell.fleet.workers.keys():
            del self._usage[worker_id]
        return views

    def config(self) -> ConfigView:
        generation = self._shell.fleet.current
        loaded = self._shell.loaded.get(generation)
        if loaded is None:
            return ConfigView(generation, [])
        return ConfigView(
            generation,
            [
                SettingView(
                    name,
                    shown(name, getattr(loaded.settings, name)),
                    loaded.origins.get(name, "default"),
                    row.takes_effect.value,
                )
                for name, row in rows().items()
            ],
        )

    def reload(self) -> ReloadView | None:
        reload = self._shell.fleet.reload
        self._follow_reload()
        if reload is None:
            return None
        end = time.monotonic() if reload.ended is None else reload.ended
        return ReloadView(
            generation=reload.generation,
            phase=reload.phase.value,
            replaced=reload.replaced,
            of=reload.of,
            seconds=round(end - reload.started, 3),
            asked_by=reload.asked_by,
            reason=reload.reason,
            traceback=reload.traceback,
            changes=self._changes_of(reload),
        )

    async def reload_ended(self, generation: int) -> ReloadView:
        reload = self._shell.fleet.reload
        view = self.reload()
        if view is not None and reload is not None and reload.generation == generation and not reload.running:
            return view
        waiter: asyncio.Future[ReloadView] = asyncio.get_running_loop().create_future()
        self._reload_waiters.setdefault(generation, []).append(waiter)
        return await waiter

    def samples(self) -> Sequence[SampleView]:
        return list(self._samples)

    def subscribe(self) -> JournalSubscription:
        return self._shell.journal.subscribe()

    def recent_events(self) -> Sequence[EventView]:
        return list(self._shell.journal.recent)

    def exits(self, limit: int) -> list[ExitView]:
        return self._ledger.newest_first(limit)

    def figures(self) -> Figures:
        readings = self._shell.scoreboard.read_all()
        totals, status = self._shell.scoreboard.totals(readings), self._status(readings)
        fork_server = self._shell.fork_servers.get(status.generation)
        listening = self._shell.listeners.sockets(fork_server.listener_keys) if fork_server else []
        # A wait is counted before its request is: without this, the rest would shrink for a moment, and
        # counters must never.
        self._unqueued = max(self._unqueued, totals.requests - sum(totals.queued))
        queues = {url: accept_queue(sock) for url, sock in zip(status.listeners, listening, strict=True)}
        return Figures(
            status=status,
            workers=self._workers(readings),
            statuses=totals.statuses,
            open_connections=totals.connections,
            durations=_histogram(totals.histogram),
            queue_waits=_histogram(totals.queued, _QUEUED_LIMITS, self._unqueued),
            exits=self._ledger.counts,
            reloads=self._reloads,
            accept_queues={url: AcceptQueue(*queue) for url, queue in queues.items() if queue is not None},
        )

    # -- what the daemon calls --------------------------------------------------------------------------

    def tell_reload_ended(self, generation: int) -> None:
        """Count it, keep what it has changed, wake those who wait for it.

        Called while the shell still has the settings of the generation before.
        """
        reload = self._shell.fleet.reload
        if reload is not None and reload.generation == generation:
            self._count_reload(generation, reload.phase.value)
            self._changes = (generation, self._changes_of(reload))
            self._report_changes(reload)
        else:
            # Another one is in its place already.
            self._count_reload(generation, "superseded")
        view = self.reload()
        for waiter in self._reload_waiters.pop(generation, []):
            if view is not None and not waiter.done():
                waiter.set_result(view)

    def take_sample(self, readings: Mapping[int, Reading]) -> None:
        """Add the second that has passed to the history. `readings`: what all cells say just now."""
        self._ledger.look()
        self._follow_reload()
        totals, now = self._shell.scoreboard.totals(readings), time.monotonic()
        before, seconds = self._last_totals, max(now - self._last_sample, 1e-3)
        self._last_totals, self._last_sample = totals, now
        histogram = [a - b for a, b in zip(totals.histogram, before.histogram, strict=True)]
        fleet = self._shell.fleet
        for worker in fleet.workers.values():
            if usage := self._usage_of(worker):
                usage.read_cpu()
        self._samples.append(
            SampleView(
                at=round(time.time(), 3),
                requests_per_second=round((totals.requests - before.requests) / seconds, 2),
                errors_per_second=round((totals.errors - before.errors) / seconds, 2),
                p50=percentile(histogram, 0.5),
                p95=percentile(histogram, 0.95),
                p99=percentile(histogram, 0.99),
                in_flight=_in_flight(readings),
                ready=fleet.ready,
                wanted=fleet.wanted,
            )
        )

    def snapshot(self) -> ObserverState:
        return ObserverState(
            self._started_at,
            self._started,
            list(self._samples),
            self._last_totals,
            self._last_sample,
            self._reloads,
            self._counted,
            self._unqueued,
            self._settled,
            *self._changes,
        )

    def restore(self, state: ObserverState) -> None:
        """Go on where another left off."""
        self._started_at, self._started = state.started_at, state.started
        self._samples.extend(state.samples)
        self._last_totals, self._last_sample = state.last_totals, state.last_sample
        self._reloads = dict(state.reloads)
        self._counted, self._settled = state.counted, state.settled
        self._unqueued = state.unqueued
        self._changes = (state.changes_of, state.changes)

    # -- views ------------------------------------------------------------------------------------------

    def _follow_reload(self) -> None:
        """See which generation it is that a reload replaces, and whether one was undone after its end."""
        fleet = self._shell.fleet
        reload = fleet.reload
        if reload is None or not reload.running or fleet.candidate is not None:
            self._settled = fleet.current
        if reload is not None and reload.phase is Phase.ROLLED_BACK:
            self._count_reload(reload.generation, "rolled back")

    def _count_reload(self, generation: int, outcome: ReloadPhase) -> None:
        if self._counted != (generation, outcome):
            self._counted = (generation, outcome)
            self._reloads[outcome] = self._reloads.get(outcome, 0) + 1

    def _report_changes(self, reload: Reload) -> None:
        """Who asked by a signal reads the log; a change that needs more than a reload must not go unseen."""
        generation, found = self._changes
        if reload.phase is Phase.DONE and found:
            late = any(view.takes_effect == "restart" for view in found)
            fields = {"generation": generation, "changes": "; ".join(map(change, found))}
            self._shell.journal.record("warning" if late else "info", "settings_changed", fields)

    def _changes_of(self, reload: Reload) -> list[ChangeView]:
        generation, kept = self._changes
        if generation == reload.generation:
            return kept
        before = self._shell.loaded.get(self._settled)
        after = self._shell.loaded.get(reload.generation)
        return changes(before, after) if before is not None and after is not None else []

    def _worker(self, worker: Worker, readings: Mapping[int, Reading]) -> WorkerView:
        now = time.monotonic()
        handle = self._shell.workers.get(worker.worker_id)
        reading = readings[handle.cell] if handle else Reading()
        timeout = self._sensor.timeout()
        in_flight = [
            RequestView(
                slot=worker.slot,
                pid=worker.pid or 0,
                thread=request.thread + 1,
                method=request.method,
                path=request.path,
                age=round(max(0.0, now - request.started), 3),
                deadline_in=None if (due := request.deadline(timeout)) is None else round(due - now, 3),
            )
            for request in reading.in_flight
        ]
        if usage := self._usage_of(worker):
            usage.read_memory(now)
        return WorkerView(
            slot=worker.slot,
            pid=worker.pid,
            generation=worker.generation,
            state=worker.state.value,
            leaving=worker.leaving.value if worker.leaving else None,
            age=round(now - worker.spawned_at, 3),
            threads=handle.threads if handle else 0,
            connections=reading.counts.connections,
            requests=reading.counts.requests,
            errors=reading.counts.errors,
            in_flight=in_flight,
            cpu_percent=usage.cpu_percent if usage else None,
            rss=usage.rss if usage else None,
            uss=usage.uss if usage else None,
            deadline_in=min((r.deadline_in for r in in_flight if r.deadline_in is not None), default=None),
            implausible=handle is not None and not self._shell.scoreboard.trusted(handle.cell),
        )

    def _usage_of(self, worker: Worker) -> _Usage | None:
        if worker.pid is None:
            return None
        usage = self._usage.get(worker.worker_id)
        if usage is None:
            usage = self._usage[worker.worker_id] = _Usage(worker.pid)
        return usage


def _in_flight(readings: Mapping[int, Reading]) -> int:
    return sum(len(reading.in_flight) for reading in readings.values())


# Every doubling from 33 µs to 69 s: a fourth of the scoreboard's buckets is fine enough to keep for years.
_LIMITS = range(15, BUCKETS - 4, 4)
# Waits are told from a millisecond on: those below were not counted one by one.
_QUEUED_LIMITS = range(bucket_of(LEAST_QUEUED), BUCKETS - 4, 4)


def _histogram(counts: Sequence[int], chosen: range = _LIMITS, zeros: int = 0) -> Histogram:
    """The scoreboard's buckets in fewer, those that end with the `chosen`; `zeros`: more, of no length."""
    edges = [0, *(last + 1 for last in chosen), BUCKETS]
    fewer = [sum(counts[low:high]) for low, high in itertools.pairwise(edges)]
    return Histogram(
        limits=[bucket_limit(last) for last in chosen],
        counts=[fewer[0] + zeros, *fewer[1:]],
        total=sum(count * bucket_middle(bucket) for bucket, count in enumerate(counts) if count),
    )
