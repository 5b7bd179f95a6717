"""The route table: all that the API can be asked, one row each.

Handlers (`handlers`), dispatch (`app`), the OpenAPI document (`openapi`), the client (`client`) and the tests
are derived from these rows; nothing about a route is written down twice. This module imports only the views,
because `ctl` loads it too.
"""

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from supervisor.control.views import (
    ConfigView,
    Login,
    LoginLink,
    Reload,
    ReloadView,
    Scale,
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
    ask: type[Ask] | None = None
    view: type[View] | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    """Further statuses that carry the same view."""
    errors: tuple[int, ...] = ()
    """Statuses of its own that carry an ErrorView; those that any route can have are not repeated here."""
    media: str = JSON
    open: bool = False
    """Needs no authentication (Host, Origin and peer credentials are checked all the same)."""

    @property
    def is_change(self) -> bool:
        return self.method != "GET"


HEALTHZ: Route[None, str] = Route(
    "healthz", "GET", "/healthz", "Whether the supervisor lives", view=str, media=TEXT, open=True
)
READYZ: Route[None, str] = Route(
    "readyz",
    "GET",
    "/readyz",
    "Whether the fleet takes requests: 503 unless a worker is ready and the daemon is not stopping",
    view=str,
    also=(503,),
    media=TEXT,
    open=True,
)
OPENAPI: Route[None, dict[str, Any]] = Route(
    "openapi", "GET", "/openapi.json", "This document", view=dict[str, Any]
)
STATUS: Route[None, StatusView] = Route("status", "GET", "/v1/status", "How the fleet is", view=StatusView)
WORKERS: Route[None, list[WorkerView]] = Route(
    "workers", "GET", "/v1/workers", "All workers, sorted by slot", view=list[WorkerView]
)
WORKER: Route[None, WorkerView] = Route(
    "worker", "GET", "/v1/workers/{slot}", "The worker that serves in a slot", view=WorkerView, errors=(404,)
)
CONFIG: Route[None, ConfigView] = Route(
    "config", "GET", "/v1/config", "All settings, with where each value comes from", view=ConfigView
)
RELOAD_STATUS: Route[None, ReloadView] = Route(
    "reload_status",
    "GET",
    "/v1/reload",
    "The newest reload, running or ended",
    view=ReloadView,
    errors=(404,),
)
STREAM: Route[None, None] = Route(
    "stream",
    "GET",
    "/v1/stream",
    "Server-sent events: history, events, status, workers, then status, workers, sample each second "
    "and event as they happen",
    media=SSE,
    errors=(503,),
)
SCALE: Route[Scale, StatusView] = Route(
    "scale",
    "POST",
    "/v1/scale",
    "Set or change the wanted number of workers",
    scope="operate",
    ask=Scale,
    view=StatusView,
    errors=(409, 422),
)
RELOAD: Route[Reload, ReloadView] = Route(
    "reload",
    "POST",
    "/v1/reload",
    "Load configuration and app anew and replace all workers: 202 asked; with `wait` 200 done, 409 failed "
    "or superseded",
    scope="operate",
    ask=Reload,
    view=ReloadView,
    status=202,
    also=(200, 409),
)
RECYCLE: Route[None, WorkerView] = Route(
    "recycle",
    "POST",
    "/v1/workers/{slot}/recycle",
    "Replace the worker in a slot, successor first",
    scope="operate",
    view=WorkerView,
    status=202,
    errors=(404, 409),
)
STOP: Route[Stop, StatusView] = Route(
    "stop", "POST", "/v1/stop", "End the daemon", scope="admin", ask=Stop, view=StatusView, status=202
)
LOGIN: Route[Login, None] = Route(
    "login",
    "POST",
    "/v1/login",
    "Exchange a one-time code for a session cookie",
    ask=Login,
    status=204,
    open=True,
    errors=(409, 429),
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
    STREAM,
    SCALE,
    RELOAD,
    RECYCLE,
    STOP,
    LOGIN,
    LOGOUT,
    LOGIN_LINK,
)
