"""What the API says: every request and response body, by the names that `ctl --json` and the dashboard use.

Units: seconds for ages and durations, bytes for sizes, unix time for instants (`at`, `started_at`).
"""

from typing import Any, Literal

import msgspec

WorkerState = Literal["booting", "ready", "draining", "stopping"]
FleetState = Literal["starting", "ready", "degraded", "reloading", "paused", "stopping"]
ReloadPhase = Literal["loading", "canary", "rolling", "done", "failed", "superseded", "rolled back"]


class RequestView(msgspec.Struct, frozen=True):
    """A request that is in the app right now."""

    slot: int
    pid: int
    thread: int
    method: str
    path: str
    age: float
    deadline_in: float | None
    """Seconds until the request is overdue; None without a deadline, negative when overdue."""


class WorkerView(msgspec.Struct, frozen=True):
    slot: int
    pid: int | None
    """None until the fork server has told it."""
    generation: int
    state: WorkerState
    leaving: str | None
    """Why the worker must go (`recycle`, `reload`, `scale`, `deadline`, ...), or None."""
    age: float
    threads: int
    connections: int
    requests: int
    errors: int
    """Answers with a status of 500 and above."""
    in_flight: list[RequestView]
    cpu_percent: float | None
    rss: int | None
    uss: int | None
    deadline_in: float | None
    """The nearest deadline of its requests in flight."""


class Totals(msgspec.Struct, frozen=True):
    """Since the supervisor's start, workers that are gone included; never goes backwards."""

    requests: int
    errors: int
    bytes_sent: int
    connections: int
    spawned: int
    """Workers started."""
    deaths: int
    """Workers that ended without being asked to."""


class ReloadView(msgspec.Struct, frozen=True):
    """The newest reload."""

    generation: int
    phase: ReloadPhase
    replaced: int
    of: int
    seconds: float
    """How long it has taken so far, or took."""
    asked_by: str
    reason: str | None
    """Why it failed: one line."""
    traceback: str | None


class StatusView(msgspec.Struct, frozen=True):
    name: str
    version: str
    pid: int
    app: str
    python: str
    state: FleetState
    health: str
    """One sentence that says how the fleet is."""
    wanted: int
    ready: int
    booting: int
    draining: int
    generation: int
    worker_class: str
    threads: int
    timeout: float
    listeners: list[str]
    """Addresses as bound, e.g. `http://127.0.0.1:8000` or `unix:/run/app.sock`."""
    started_at: float
    uptime: float
    in_flight: int
    totals: Totals
    reload: ReloadView | None


class SampleView(msgspec.Struct, frozen=True):
    """One second of the fleet, for charts."""

    at: float
    requests_per_second: float
    errors_per_second: float
    p50: float | None
    """Latency in the app, seconds, over this second; None without requests."""
    p95: float | None
    p99: float | None
    in_flight: int
    ready: int
    wanted: int


class EventView(msgspec.Struct, frozen=True):
    """Something that happened to the fleet."""

    id: int
    at: float
    name: str
    fields: dict[str, Any]


class SettingView(msgspec.Struct, frozen=True):
    name: str
    value: Any
    origin: str
    """`default`, `environment WEB_CONCURRENCY`, `command line`, `gunicorn.conf.py`, ..."""
    takes_effect: Literal["live", "generation", "restart"]


class ConfigView(msgspec.Struct, frozen=True):
    generation: int
    settings: list[SettingView]


class ErrorView(msgspec.Struct, frozen=True):
    """Every answer from 400 on."""

    error: str
    """A stable word, e.g. `not_found`."""
    message: str
    """One line for people: what, where, what to do."""


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of the two."""

    workers: int | None = None
    delta: int | None = None


class Reload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait: bool = False
    """Answer only when the reload has ended."""


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    graceful: bool = True


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


class LoginLink(msgspec.Struct, frozen=True):
    """A dashboard address that logs in once, within ten minutes."""

    url: str
