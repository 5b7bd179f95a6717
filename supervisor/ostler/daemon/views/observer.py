"""What the API shows: the fleet's state, the scoreboard's numbers and the kernel's, put together as views."""

import os
import platform
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import msgspec

from ostler import __version__
from ostler.control.metrics import AcceptQueue, Figures
from ostler.control.readiness import FleetReadiness, readiness
from ostler.control.routes import CONFIG, STATUS, WORKERS
from ostler.control.views import (
    ConfigView,
    EventView,
    ExitView,
    ReloadView,
    RequestView,
    SampleView,
    SettingView,
    StatusView,
    Totals,
    WorkerView,
)
from ostler.daemon.children.ports import Ports
from ostler.daemon.configurations import Configurations
from ostler.daemon.listening.listeners import Listeners
from ostler.daemon.reporting.journal import JournalSubscription
from ostler.daemon.reporting.ledger import Ledger
from ostler.daemon.views.histograms import QUEUE_WAITS, coarse_histogram
from ostler.daemon.views.reloads import Reloads, ReloadsState
from ostler.daemon.views.usage import ProcessUsage
from ostler.fleet import events, health
from ostler.fleet.model import Worker, WorkerState
from ostler.osapi.backlog import accept_queue
from ostler.scoreboard.cell_reader import InFlight, Reading
from ostler.scoreboard.counts import Counts
from ostler.scoreboard.layout import RULES, percentile
from ostler.scoreboard.reader import Scoreboard
from ostler.settings import capacity
from ostler.settings.render import shown
from ostler.settings.table import rows

# Samples that are kept, one a second.
_HISTORY = 600
_ORDER = {
    WorkerState.READY: 0,
    WorkerState.BOOTING: 1,
    WorkerState.DRAINING: 2,
    WorkerState.STOPPING: 3,
}


class ObserverState(msgspec.Struct, frozen=True):
    """What an upgrade in place carries. `started` is CLOCK_MONOTONIC, which exec does not change."""

    started_at: float
    started: float
    samples: list[SampleView]
    last_totals: Counts
    last_sample: float
    unqueued: int
    reloads: ReloadsState


class Observer:
    """The control server's backend. Called only by the event loop's thread.

    The methods that the control server calls change nothing but caches. Those that change the state are
    called by the daemon.

    Args:
        ports, configurations, scoreboard, listeners, ledger: what it works with.
        name: returns the instance's name.
        deadline_of: when a request will be overdue (CLOCK_MONOTONIC, seconds); None: never.

    Attributes:
        reloads: what is known of reloads.
        shown: what makes the view of a route, by the route's name.
    """

    def __init__(
        self,
        ports: Ports,
        configurations: Configurations,
        scoreboard: Scoreboard,
        listeners: Listeners,
        ledger: Ledger,
        name: Callable[[], str],
        deadline_of: Callable[[InFlight], float | None],
    ) -> None:
        self._ports = ports
        self._configurations = configurations
        self._scoreboard = scoreboard
        self._listeners = listeners
        self._ledger = ledger
        self._name = name
        self._deadline_of = deadline_of
        self._started_at = self._program_since = time.time()
        self._started = time.monotonic()
        self._usage: dict[int, ProcessUsage] = {}
        self._samples: deque[SampleView] = deque(maxlen=_HISTORY)
        self._last_totals = Counts()
        self._last_sample = self._started
        self._unqueued = 0
        self.reloads = Reloads(ports, configurations)
        self.shown = dict(
            (
                STATUS.shown_by(self.status),
                WORKERS.shown_by(self.workers),
                CONFIG.shown_by(self.config),
            )
        )

    # -- what the control server calls -----------------------------------------------------------------

    def submit(self, event: events.Event) -> None:
        self._ports.submit(event)

    def status(self) -> StatusView:
        return self._status(self._scoreboard.read_all())

    def readiness(self) -> FleetReadiness:
        state = self._ports.state()
        return readiness(health.state(state), state.ready)

    def _status(self, readings: Mapping[int, Reading]) -> StatusView:
        state = self._ports.state()
        generation = state.current
        loaded = self._configurations.current
        settings = loaded.settings if loaded else None
        fork_server = self._ports.children.fork_servers.get(generation)
        totals = self._scoreboard.totals(readings)
        return StatusView(
            name=self._name(),
            version=__version__,
            pid=os.getpid(),
            app=(settings.wsgi_app if settings else None) or "",
            python=platform.python_version(),
            state=health.state(state),
            health=health.sentence(state),
            wanted=state.wanted,
            ready=state.ready,
            booting=state.count(WorkerState.BOOTING),
            draining=state.count(WorkerState.DRAINING) + state.count(WorkerState.STOPPING),
            generation=generation,
            worker_class=settings.worker_class if settings else "",
            core=loaded.core if loaded else "own",
            threads=capacity.threads(loaded.settings, loaded.one_loop) if loaded else 0,
            timeout=settings.timeout if settings else 0.0,
            listeners=self._listeners.urls(
                fork_server.record.listener_keys if fork_server else [],
                "https" if loaded is not None and loaded.tls else "http",
            ),
            started_at=self._started_at,
            uptime=time.monotonic() - self._started,
            in_flight=_in_flight(readings),
            upgraded=sum(r.upgraded for reading in readings.values() for r in reading.in_flight),
            totals=Totals(
                requests=totals.requests,
                errors=totals.errors,
                bytes_sent=totals.bytes_sent,
                connections=totals.opened,
                spawned=state.spawned,
                deaths=state.deaths,
            ),
            reload=self.reload(),
            override=state.override,
            rollback_to=state.probation.fallback if state.probation is not None else None,
            workers_range=(
                settings.workers if settings is not None and isinstance(settings.workers, tuple) else None
            ),
            program_since=self._program_since,
        )

    def workers(self) -> list[WorkerView]:
        return self._workers(self._scoreboard.read_all())

    def _workers(self, readings: Mapping[int, Reading]) -> list[WorkerView]:
        workers = self._ports.state().workers.values()
        known = sorted(workers, key=lambda w: (w.slot, _ORDER[w.state], -w.worker_id))
        return [self._worker(worker, readings) for worker in known]

    def config(self) -> ConfigView:
        generation = self._ports.state().current
        loaded = self._configurations.current
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
        return self.reloads.view()

    async def reload_ended(self, generation: int) -> ReloadView:
        return await self.reloads.ended(generation)

    def samples(self) -> Sequence[SampleView]:
        return list(self._samples)

    def subscribe(self) -> JournalSubscription:
        return self._ports.journal.subscribe()

    def recent_events(self) -> Sequence[EventView]:
        return list(self._ports.journal.recent)

    def exits(self, limit: int) -> list[ExitView]:
        return self._ledger.newest_first(limit)

    def figures(self) -> Figures:
        readings = self._scoreboard.read_all()
        totals, status = self._scoreboard.totals(readings), self._status(readings)
        fork_server = self._ports.children.fork_servers.get(status.generation)
        listening = self._listeners.sockets(fork_server.record.listener_keys) if fork_server else []
        # A wait is counted before its request is: without the highest value so far, the number of requests
        # that did not wait would shrink for a moment, and counters must never shrink.
        self._unqueued = max(self._unqueued, totals.requests - sum(totals.queued))
        queues = {url: accept_queue(sock) for url, sock in zip(status.listeners, listening, strict=True)}
        return Figures(
            status=status,
            workers=self._workers(readings),
            statuses=totals.statuses,
            open_connections=totals.connections,
            durations=coarse_histogram(totals.histogram),
            refused=dict(zip(RULES, totals.refused, strict=True)),
            queue_waits=coarse_histogram(totals.queued, QUEUE_WAITS, self._unqueued),
            exits=self._ledger.counts,
            reloads=self.reloads.counts,
            accept_queues={url: AcceptQueue(*queue) for url, queue in queues.items() if queue is not None},
        )

    # -- what the daemon calls --------------------------------------------------------------------------

    def take_sample(self, readings: Mapping[int, Reading]) -> None:
        """Add the second that has passed to the history. readings: of all cells, taken just now."""
        state = self._ports.state()
        totals, now = self._scoreboard.totals(readings), time.monotonic()
        before, seconds = self._last_totals, max(now - self._last_sample, 1e-3)
        self._last_totals, self._last_sample = totals, now
        histogram = [a - b for a, b in zip(totals.histogram, before.histogram, strict=True)]
        for worker_id in self._usage.keys() - state.workers.keys():
            del self._usage[worker_id]
        for worker in state.workers.values():
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
                ready=state.ready,
                wanted=state.wanted,
            )
        )

    def snapshot(self) -> ObserverState:
        """For `restore` in the program that comes next."""
        return ObserverState(
            self._started_at,
            self._started,
            list(self._samples),
            self._last_totals,
            self._last_sample,
            self._unqueued,
            self.reloads.snapshot(),
        )

    def restore(self, state: ObserverState) -> None:
        """Continue where the program before this one stopped."""
        self._started_at, self._started = state.started_at, state.started
        self._samples.extend(state.samples)
        self._last_totals, self._last_sample = state.last_totals, state.last_sample
        self._unqueued = state.unqueued
        self.reloads.restore(state.reloads)

    # -- views ------------------------------------------------------------------------------------------

    def _worker(self, worker: Worker, readings: Mapping[int, Reading]) -> WorkerView:
        now = time.monotonic()
        handle = self._ports.children.workers.get(worker.worker_id)
        reading = readings[handle.cell] if handle else Reading()
        in_flight = [
            RequestView(
                slot=worker.slot,
                pid=worker.pid or 0,
                thread=request.thread + 1,
                method=request.method,
                path=request.path,
                age=round(max(0.0, now - request.started), 3),
                deadline_in=None if (due := self._deadline_of(request)) is None else round(due - now, 3),
                upgraded=request.upgraded,
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
            upgraded=sum(request.upgraded for request in in_flight),
            cpu_percent=usage.cpu_percent if usage else None,
            rss=usage.rss if usage else None,
            uss=usage.uss if usage else None,
            deadline_in=min((r.deadline_in for r in in_flight if r.deadline_in is not None), default=None),
            implausible=handle is not None and not self._scoreboard.trusted(handle.cell),
        )

    def _usage_of(self, worker: Worker) -> ProcessUsage | None:
        """A cache: psutil measures from one call to the next."""
        if worker.pid is None:
            return None
        usage = self._usage.get(worker.worker_id)
        if usage is None:
            usage = self._usage[worker.worker_id] = ProcessUsage(worker.pid)
        return usage


def _in_flight(readings: Mapping[int, Reading]) -> int:
    return sum(len(reading.in_flight) for reading in readings.values())
