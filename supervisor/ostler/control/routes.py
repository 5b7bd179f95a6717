"""The route table: one row for each operation of the API.

Handlers (`handlers`), dispatch (`app`), the OpenAPI document (`openapi`), the client (`client`) and the tests
are derived from these rows; nothing about a route is defined twice. This module imports only the views,
because `ctl` loads it, too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ostler.control.views import (
    Asked,
    ConfigView,
    EventView,
    ExitView,
    Login,
    LoginLink,
    ReforkBody,
    ReloadBody,
    ReloadView,
    Scale,
    SessionView,
    StatusView,
    Stop,
    WorkerView,
)

Ask = TypeVar("Ask")
View = TypeVar("View")

Method = Literal["GET", "POST"]
Scope = Literal["read", "operate", "admin"]

SCOPES: tuple[Scope, ...] = ("read", "operate", "admin")
"""In rising order: each scope includes the ones before it."""

JSON = "application/json"
TEXT = "text/plain"
METRICS_TEXT = "text/plain; version=0.0.4"
"""Prometheus's text exposition format."""
SSE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Route(Generic[Ask, View]):
    """One row. `ask` is the type of the request's body, `view` that of the answer's; None: no body."""

    name: str
    """The handler's name and the OpenAPI operationId."""
    method: Method
    path: str
    """aiohttp's and OpenAPI's common spelling; a `{parameter}` is an integer."""
    summary: str
    scope: Scope = "read"
    query: tuple[str, ...] = ()
    """Names that may follow the path's `?`; their values are whole numbers."""
    ask: type[Ask] | None = None
    view: type[View] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    """Further statuses that carry the same view."""
    errors: tuple[int, ...] = ()
    """Further statuses with an ErrorView; those that any route can have are not repeated here."""
    media: str = JSON
    open: bool = False
    """Needs no authentication (Host, Origin and peer credentials are checked)."""
    logged_by_fleet: bool = False
    """The fleet logs this change itself, with its originator."""

    def shown_by(self, read: Callable[[], View]) -> tuple[str, Callable[[], object]]:
        """An entry of a backend's `shown`; that `read` returns the row's view is checked by its type.

        Raises:
            ValueError: the route is none that only shows something.
        """
        if self.method != "GET" or self.query or "{" in self.path:
            raise ValueError(
                f"{self.name}: only a GET route without parameters can be shown by a method alone"
            )
        return self.name, read


HEALTHZ: Route[None, str] = Route(
    "healthz", "GET", "/healthz", "Whether the supervisor runs", view=str, media=TEXT, open=True
)
READYZ: Route[None, str] = Route(
    "readyz",
    "GET",
    "/readyz",
    "Whether the fleet takes requests: 503 unless a worker is ready and the daemon neither drains nor stops",
    view=str,
    also=(503,),
    media=TEXT,
    open=True,
)
OPENAPI: Route[None, dict[str, Any]] = Route(
    "openapi", "GET", "/openapi.json", "This document", view=dict[str, Any]
)
STATUS: Route[None, StatusView] = Route(
    "status", "GET", "/v1/status", "The state of the fleet", view=StatusView
)
WORKERS: Route[None, list[WorkerView]] = Route(
    "workers", "GET", "/v1/workers", "All workers, sorted by slot", view=list[WorkerView]
)
WORKER: Route[None, WorkerView] = Route(
    "worker", "GET", "/v1/workers/{slot}", "The worker that serves in a slot", view=WorkerView, errors=(404,)
)
CONFIG: Route[None, ConfigView] = Route(
    "config", "GET", "/v1/config", "All settings, with the origin of each value", view=ConfigView
)
RELOAD_STATUS: Route[None, ReloadView] = Route(
    "reload_status",
    "GET",
    "/v1/reload",
    "The newest reload, running or ended",
    view=ReloadView,
    errors=(404,),
)
EVENTS: Route[None, list[EventView]] = Route(
    "events",
    "GET",
    "/v1/events",
    "The newest 1,000 events of the fleet, oldest first; `after`: only events with a larger id",
    query=("after",),
    view=list[EventView],
)
EXITS: Route[None, list[ExitView]] = Route(
    "exits",
    "GET",
    "/v1/exits",
    "How processes ended, newest first (the last 1,000 are kept); `limit`: how many, 100 by default",
    query=("limit",),
    view=list[ExitView],
)
METRICS: Route[None, str] = Route(
    "metrics", "GET", "/metrics", "The fleet's metrics for Prometheus", view=str, media=METRICS_TEXT
)
STREAM: Route[None, None] = Route(
    "stream",
    "GET",
    "/v1/stream",
    "Server-sent events: history, events, exits, status, workers, then status, workers, sample each second, "
    "and event and exit as they happen",
    media=SSE,
    errors=(503,),
)
SCALE: Route[Scale, StatusView] = Route(
    "scale",
    "POST",
    "/v1/scale",
    "Set or change the wanted number of workers",
    scope="operate",
    logged_by_fleet=True,
    ask=Scale,
    view=StatusView,
    errors=(409, 422),
)
RELOAD: Route[ReloadBody, ReloadView] = Route(
    "reload",
    "POST",
    "/v1/reload",
    "Load configuration and app again and replace all workers: 202 started; with `wait` 200 done, 409 failed "
    "or superseded",
    scope="operate",
    logged_by_fleet=True,
    ask=ReloadBody,
    view=ReloadView,
    status=202,
    also=(200, 409),
)
ABORT_RELOAD: Route[None, ReloadView] = Route(
    "abort_reload",
    "POST",
    "/v1/reload/abort",
    "Give up the reload that is running; the generation before serves on, or again",
    scope="operate",
    logged_by_fleet=True,
    view=ReloadView,
    errors=(409,),
)
ROLLBACK: Route[None, StatusView] = Route(
    "rollback",
    "POST",
    "/v1/rollback",
    "Serve with the generation before again, which is kept on probation, and longer with `keep_generations`",
    scope="operate",
    logged_by_fleet=True,
    view=StatusView,
    status=202,
    errors=(409,),
)
RECYCLE: Route[None, WorkerView] = Route(
    "recycle",
    "POST",
    "/v1/workers/{slot}/recycle",
    "Replace the worker in a slot, successor first",
    scope="operate",
    logged_by_fleet=True,
    view=WorkerView,
    status=202,
    errors=(404, 409),
)
REFORK: Route[ReforkBody, Asked] = Route(
    "refork",
    "POST",
    "/v1/refork",
    "Make a warmed-up worker the zygote that the others are forked from; events `refork_done` and "
    "`refork_refused` report the outcome",
    scope="operate",
    logged_by_fleet=True,
    ask=ReforkBody,
    view=Asked,
    status=202,
    errors=(409,),
)
UPGRADE: Route[None, Asked] = Route(
    "upgrade",
    "POST",
    "/v1/upgrade",
    "Replace the supervisor's own program in place, then reload; events `upgraded` and `upgrade_failed` "
    "report the outcome",
    scope="admin",
    logged_by_fleet=True,
    view=Asked,
    status=202,
    errors=(409,),
)
PAUSE: Route[None, StatusView] = Route(
    "pause",
    "POST",
    "/v1/pause",
    "Drain all workers; the daemon stays, and connections wait in the listeners' queues until `resume`",
    scope="operate",
    logged_by_fleet=True,
    view=StatusView,
    errors=(409,),
)
DRAIN: Route[None, StatusView] = Route(
    "drain",
    "POST",
    "/v1/drain",
    "Answer /readyz with 503 so that load balancers send nothing new; the workers serve on until `resume`",
    scope="operate",
    logged_by_fleet=True,
    view=StatusView,
    errors=(409,),
)
RESUME: Route[None, StatusView] = Route(
    "resume",
    "POST",
    "/v1/resume",
    "End a pause and a drain",
    scope="operate",
    logged_by_fleet=True,
    view=StatusView,
    errors=(409,),
)
STOP: Route[Stop, StatusView] = Route(
    "stop",
    "POST",
    "/v1/stop",
    "End the daemon",
    scope="admin",
    logged_by_fleet=True,
    ask=Stop,
    view=StatusView,
    status=202,
)
LOGIN: Route[Login, SessionView] = Route(
    "login",
    "POST",
    "/v1/login",
    "Exchange a one-time code for a session's secret, which is then sent as the bearer token",
    ask=Login,
    view=SessionView,
    open=True,
    errors=(401, 409, 429),
)
LOGOUT: Route[None, None] = Route("logout", "POST", "/v1/logout", "End this session", status=204)
LOGIN_LINK: Route[None, LoginLink] = Route(
    "login_link",
    "POST",
    "/v1/login-link",
    "A dashboard address that logs in once",
    scope="admin",
    view=LoginLink,
    errors=(409,),
)

ROUTES: tuple[Route[object, object], ...] = (  # type: ignore[assignment]  # rows differ in their types
    HEALTHZ,
    READYZ,
    OPENAPI,
    STATUS,
    WORKERS,
    WORKER,
    CONFIG,
    RELOAD_STATUS,
    EVENTS,
    EXITS,
    METRICS,
    STREAM,
    SCALE,
    RELOAD,
    ABORT_RELOAD,
    ROLLBACK,
    RECYCLE,
    REFORK,
    UPGRADE,
    PAUSE,
    DRAIN,
    RESUME,
    STOP,
    LOGIN,
    LOGOUT,
    LOGIN_LINK,
)
