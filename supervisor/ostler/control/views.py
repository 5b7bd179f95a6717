"""The types of the API: every request and response body, with the names that `ctl --json` and the dashboard
use.

Units: seconds for ages and durations, bytes for sizes, unix time for instants (`at`, `started_at`).
"""

from typing import Any, Literal

import msgspec

WorkerState = Literal["booting", "ready", "draining", "stopping"]
FleetState = Literal["starting", "ready", "degraded", "reloading", "paused", "draining", "stopping"]
ReloadPhase = Literal["loading", "canary", "rolling", "done", "failed", "superseded", "rolled back"]
TakesEffect = Literal["live", "generation", "restart"]
ExitKind = Literal["worker", "fork server"]
ExitCause = Literal[
    # It was asked to end, and why:
    "recycled",
    "aged",
    "memory",
    "asked",
    "scaled down",
    "rolled",
    "rolled back",
    "reforked",
    "deadline",
    "stalled",
    "boot failed",
    "boot timeout",
    "paused",
    "stopped",
    # It was killed because it sent something that a worker or a fork server never sends:
    "protocol error",
    # It ended without being asked:
    "crashed",
    "killed by the kernel for memory",
    "killed by an outsider",
    "exited",
    "unknown",
]
UNPLANNED: frozenset[ExitCause] = frozenset(
    {
        "deadline",
        "stalled",
        "boot failed",
        "boot timeout",
        "protocol error",
        "crashed",
        "killed by the kernel for memory",
        "killed by an outsider",
        "exited",
        "unknown",
    }
)


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
    upgraded: bool = False
    """It has taken its connection, e.g. for a websocket, and occupies its thread while that is open."""


class WorkerView(msgspec.Struct, frozen=True):
    slot: int
    pid: int | None
    """None until the fork server has reported it."""
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
    upgraded: int = 0
    """How many of its requests in flight have taken their connections, e.g. for websockets."""
    implausible: bool = False
    """Its scoreboard has impossible values: they are not counted, and its requests are not shown."""


class Totals(msgspec.Struct, frozen=True):
    """Totals since the supervisor's start, including ended workers; they never go backwards."""

    requests: int
    errors: int
    bytes_sent: int
    connections: int
    spawned: int
    """Workers started."""
    deaths: int
    """Workers that ended without being asked to."""


class ChangeView(msgspec.Struct, frozen=True):
    """A setting that a reload has changed."""

    name: str
    before: Any
    after: Any
    takes_effect: TakesEffect
    """`restart`: the daemon keeps using the value from its start."""


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
    """Why it failed, in one line."""
    traceback: str | None
    changes: list[ChangeView] = []
    """Settings that differ from those of the generation before."""
    on_probation: bool = False
    """Its failures still bring the generation before back by themselves."""
    environment: list[ChangeView] = []
    """`environment` (its folder), `Python` and `Ostler` (their versions), as far as they differ."""


class StatusView(msgspec.Struct, frozen=True):
    name: str
    version: str
    pid: int
    app: str
    python: str
    state: FleetState
    health: str
    """The state of the fleet in one sentence."""
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
    # With defaults, because `ctl` may be newer than the daemon that it upgrades.
    override: int | None = None
    """The number of workers that was set by hand; valid until the configured number changes."""
    workers_range: tuple[int, int] | None = None
    """The range in which the load determines the number of workers; None if the number is fixed."""
    rollback_to: int | None = None
    """The older generation that is kept, so that it can serve again; None: none is."""
    program_since: float = 0.0
    """When this version of the supervisor took over: `started_at`, unless it was upgraded in place."""
    core: str = "own"
    """What serves ordinary requests: `c` (the C extension), `python`, or `own` (code of the worker class)."""
    upgraded: int = 0
    """How many of the requests in flight have taken their connections, e.g. for websockets."""


class SampleView(msgspec.Struct, frozen=True):
    """One second of the fleet, for charts."""

    at: float
    requests_per_second: float
    errors_per_second: float
    p50: float | None
    """Latency in the app, seconds, within this second; None without requests."""
    p95: float | None
    p99: float | None
    in_flight: int
    ready: int
    wanted: int


class EventView(msgspec.Struct, frozen=True):
    """An event of the fleet."""

    id: int
    at: float
    name: str
    fields: dict[str, Any]


class ExitView(msgspec.Struct, frozen=True):
    """The end of a process."""

    id: int
    at: float
    kind: ExitKind
    slot: int | None
    """None for a fork server."""
    pid: int
    generation: int
    cause: ExitCause
    status: str
    """`exit code 0`, `signal 9 (KILL)`, or `unknown`."""
    code: int | None
    signal: int | None
    age: float
    requests: int
    last_requests: list[str]
    """The last request of each of its threads, as `GET /path`; those running at its end come first."""
    peak_memory: int | None
    """The maximum of its resident memory."""
    stack: str | None
    """Its protocol error, if any, and its last stack dump or traceback. Only the newest exits keep theirs."""
    planned: bool = True
    """Whether it ended for an ordinary reason that needs no attention."""


class SettingView(msgspec.Struct, frozen=True):
    name: str
    value: Any
    origin: str
    """`default`, `environment WEB_CONCURRENCY`, `command line`, `gunicorn.conf.py`, ..."""
    takes_effect: TakesEffect


class ConfigView(msgspec.Struct, frozen=True):
    generation: int
    settings: list[SettingView]


class ErrorView(msgspec.Struct, frozen=True):
    """The body of every answer from 400 on."""

    error: str
    """A stable error code, e.g. `not_found`."""
    message: str
    """One line for people: what is wrong, where, and what to do."""


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of the three; `auto` removes a number that was set by hand."""

    workers: int | None = None
    delta: int | None = None
    auto: bool = False


class ReloadBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    wait: bool = False
    """Answer when the reload has ended."""


class ReforkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    slot: int | None = None
    """The slot of the worker that becomes the zygote; None: the worker that has served most requests."""
    force: bool = False
    """Also if the audit finds problems."""


class Asked(msgspec.Struct, frozen=True):
    """The request is in progress; events report its outcome."""

    after: int
    """The id of the newest event before it.

    `/v1/events?after=` this returns all events that follow from it.
    """


class Stop(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    graceful: bool = True


class Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    code: str


class SessionView(msgspec.Struct, frozen=True):
    """A dashboard's session. It ends at logout, `seconds` after its beginning, or with the daemon."""

    token: str
    """A secret, to be sent as `Authorization: Bearer TOKEN`; its scope is `operate`."""
    seconds: float


class LoginLink(msgspec.Struct, frozen=True):
    """A dashboard address that logs in once, within ten minutes."""

    url: str
