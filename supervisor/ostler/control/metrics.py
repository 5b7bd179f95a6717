"""`GET /metrics`: the fleet's numbers in Prometheus's text format.

The backend passes plain numbers, read at one time; here they get names. Counters include ended workers and
survive upgrades in place, so they never go backwards while the daemon runs. Workers are labelled by slot and
not by pid: there are as many series as slots, however often workers are replaced.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from ostler.control.views import (
    ExitCause,
    ExitKind,
    FleetState,
    ReloadPhase,
    StatusView,
    WorkerState,
    WorkerView,
)

if TYPE_CHECKING:
    from prometheus_client.core import Metric

RELOAD_OUTCOMES: tuple[ReloadPhase, ...] = ("done", "failed", "superseded", "rolled back")


@dataclass(frozen=True, slots=True)
class Histogram:
    """Durations, counted by how long they were.

    limits: upper limits in seconds, rising; counts: how many were within each and above the one before, and
    one more, those beyond all limits; total: the sum of all durations in seconds.
    """

    limits: Sequence[float]
    counts: Sequence[int]
    total: float


@dataclass(frozen=True, slots=True)
class AcceptQueue:
    """Connections that the kernel has made and no worker has accepted yet, and how many may wait."""

    waiting: int
    limit: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All numbers for one answer.

    statuses: answers by the status's first digit, ten counts; open_connections: right now; durations: in the
    app; refused: requests that were refused, by rule; queue_waits: from a request's arrival to the app, or
    None if it is not measured; exits: ends of processes by kind and cause; reloads: ended ones by outcome;
    accept_queues: by listener.
    """

    status: StatusView
    workers: Sequence[WorkerView]
    statuses: Sequence[int]
    open_connections: int
    durations: Histogram
    refused: Mapping[str, int]
    queue_waits: Histogram | None
    exits: Mapping[tuple[ExitKind, ExitCause], int]
    reloads: Mapping[ReloadPhase, int]
    accept_queues: Mapping[str, AcceptQueue]


def load() -> None:
    """Import what `render` needs, before it is needed."""
    import prometheus_client.core
    import prometheus_client.exposition
    import prometheus_client.registry  # noqa: F401


def render(figures: Figures) -> str:
    """The exposition, version 0.0.4 (https://prometheus.io/docs/instrumenting/exposition_formats)."""
    # Imported here: it costs some 350 KB and 15 ms, which a daemon without scraping does not need.
    from prometheus_client.exposition import generate_latest
    from prometheus_client.registry import Collector

    class Fixed(Collector):
        def collect(self) -> Iterable["Metric"]:
            return (*_fleet(figures), *_traffic(figures), *_history(figures), *_workers(figures))

    return generate_latest(Fixed()).decode()


def _fleet(figures: Figures) -> Iterable["Metric"]:
    from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily

    status = figures.status
    build = {
        "version": status.version,
        "python": status.python,
        "worker_class": status.worker_class,
        "core": status.core,
    }
    about = "Versions, worker class, and what serves ordinary requests: c, python, or own (of the class)."
    yield InfoMetricFamily("ostler_build", about, value=build)
    yield _gauge("start_time_seconds", "When the supervisor was started, in unix time.", status.started_at)
    yield _gauge(
        "generation", "Number of the current generation of configuration and app.", status.generation
    )
    state = GaugeMetricFamily("ostler_state", "1 for the state of the fleet.", labels=["state"])
    for name in get_args(FleetState):
        state.add_metric([name], float(name == status.state))
    yield state
    yield _gauge("workers_wanted", "How many workers there should be.", status.wanted)
    yield _gauge("workers_ready", "How many of the wanted slots have a ready worker.", status.ready)
    by_state = GaugeMetricFamily("ostler_workers", "Worker processes by state.", labels=["state"])
    for name in get_args(WorkerState):
        by_state.add_metric([name], sum(worker.state == name for worker in figures.workers))
    yield by_state


def _traffic(figures: Figures) -> Iterable["Metric"]:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    totals = figures.status.totals
    requests = CounterMetricFamily(
        "ostler_requests", "Answered requests by the status's first digit.", labels=["status"]
    )
    for digit in range(1, 6):
        requests.add_metric([f"{digit}xx"], figures.statuses[digit])
    if other := figures.statuses[0] + sum(figures.statuses[6:]):
        requests.add_metric(["other"], other)
    yield requests
    refused = CounterMetricFamily(
        "ostler_refused_requests", "Requests that were refused, by the rule.", labels=["rule"]
    )
    for rule, number in figures.refused.items():
        refused.add_metric([rule], number)
    yield refused
    yield _counter("sent_bytes", "Bytes of answers sent.", totals.bytes_sent)
    yield _counter("connections", "Connections accepted.", totals.connections)
    yield _gauge("open_connections", "Connections that are open.", figures.open_connections)
    yield _gauge("requests_in_flight", "Requests in the app.", figures.status.in_flight)
    yield _gauge(
        "upgraded_connections",
        "Requests in the app that have taken their connections, e.g. for websockets.",
        figures.status.upgraded,
    )
    yield _histogram(
        "request_duration_seconds",
        "Time in the app. The sum is estimated from the scoreboard's finer buckets: at most an eighth off.",
        figures.durations,
    )
    if figures.queue_waits is not None:
        yield _histogram(
            "queue_wait_seconds",
            "From a request's arrival to the app. The sum is estimated like that of the durations.",
            figures.queue_waits,
        )
    waiting = GaugeMetricFamily(
        "ostler_accept_queue", "Connections that wait to be accepted.", labels=["listener"]
    )
    limit = GaugeMetricFamily("ostler_accept_queue_limit", "How many may wait.", labels=["listener"])
    for listener, queue in figures.accept_queues.items():
        waiting.add_metric([listener], queue.waiting)
        limit.add_metric([listener], queue.limit)
    yield waiting
    yield limit


def _history(figures: Figures) -> Iterable["Metric"]:
    from prometheus_client.core import CounterMetricFamily

    totals = figures.status.totals
    yield _counter("workers_started", "Workers started.", totals.spawned)
    yield _counter("workers_lost", "Workers that ended without being asked to.", totals.deaths)
    exits = CounterMetricFamily("ostler_exits", "Ends of processes by cause.", labels=["kind", "cause"])
    # A series that begins with its first increment hides that increment from rate().
    known: dict[tuple[ExitKind, ExitCause], int] = {("worker", cause): 0 for cause in get_args(ExitCause)}
    for (kind, cause), count in (known | dict(figures.exits)).items():
        exits.add_metric([kind, cause], count)
    yield exits
    reloads = CounterMetricFamily("ostler_reloads", "Reloads by outcome.", labels=["outcome"])
    for outcome in RELOAD_OUTCOMES:
        reloads.add_metric([outcome], figures.reloads.get(outcome, 0))
    yield reloads


def _workers(figures: Figures) -> Iterable["Metric"]:
    from prometheus_client.core import GaugeMetricFamily

    # While a worker replaces another, two are in its slot; the serving one stands first.
    serving: dict[int, WorkerView] = {}
    for worker in figures.workers:
        serving.setdefault(worker.slot, worker)

    # All are gauges: they describe the process in the slot; its successor begins at 0.
    for name, text, value in (
        ("age_seconds", "Since the worker's start.", lambda w: w.age),
        ("requests", "Requests that the worker has answered.", lambda w: w.requests),
        ("errors", "Requests with a status of 500 and above.", lambda w: w.errors),
        ("connections", "Connections that the worker has open.", lambda w: w.connections),
        ("requests_in_flight", "Requests of the worker that are in the app.", lambda w: len(w.in_flight)),
        ("upgraded_connections", "Those of them that have taken their connections.", lambda w: w.upgraded),
        (
            "cpu_ratio",
            "CPU time used in the last second; 1 is a whole processor.",
            lambda w: None if w.cpu_percent is None else w.cpu_percent / 100,
        ),
        ("resident_memory_bytes", "Resident memory.", lambda w: w.rss),
        ("unique_memory_bytes", "Memory that only this worker uses.", lambda w: w.uss),
    ):
        family = GaugeMetricFamily(f"ostler_worker_{name}", text, labels=["slot"])
        for slot, worker in serving.items():
            if (number := value(worker)) is not None:
                family.add_metric([str(slot)], number)
        yield family


def _gauge(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"ostler_{name}", text, value=value)


def _counter(name: str, text: str, value: float) -> "Metric":
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"ostler_{name}", text, value=value)


def _histogram(name: str, text: str, histogram: Histogram) -> "Metric":
    from prometheus_client.core import HistogramMetricFamily

    buckets: list[tuple[str, float]] = []
    reached = 0
    for limit, count in zip((*histogram.limits, float("inf")), histogram.counts, strict=True):
        reached += count
        buckets.append(("+Inf" if limit == float("inf") else f"{limit:.9g}", reached))
    return HistogramMetricFamily(f"ostler_{name}", text, buckets=buckets, sum_value=histogram.total)
