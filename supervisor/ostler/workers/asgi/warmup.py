"""Warm-up requests of ASGI apps: the app is called as uvicorn would call it, after its startup."""

import asyncio
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote

from ostler.logs.worker_log import Log
from ostler.settings.kinds.http import WarmupRequest
from ostler.settings.table import Settings
from ostler.text import trace_of
from ostler.workers.asgi.interface import EXTEND, App, Message, Scope
from ostler.workers.warmup import WarmupError, judge


async def warm_up(
    app: App, settings: Settings, log: Log, scheme: str, server: tuple[str, int] | None, state: dict[str, Any]
) -> None:
    """Have `app` answer all of `settings.warmup_request`, one after the other.

    Args:
        log: for what does not make the worker fail.
        scheme: `http` or `https`, as in clients' requests.
        server: the address that clients connect to.
        state: what the app's startup has left for all requests.

    Raises:
        WarmupError: for the first that has no answer, one of 500 or more, or makes the app raise.
    """
    for request in settings.warmup_request:
        statuses: list[int] = []
        left: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive(left: list[Message] = left) -> Message:
            if not left:
                await asyncio.get_running_loop().create_future()  # the client stays connected
            return left.pop()

        async def send(message: Message, statuses: list[int] = statuses) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        trace = None
        try:
            await app(_scope(request, settings, scheme, server, dict(state)), receive, send)
        except Exception as error:  # noqa: BLE001 - whatever the app raises is the reason
            trace = trace_of(error)
        if not statuses and trace is not None:
            raise WarmupError(f"warmup_request {request.method} {request.path} was not answered", trace)
        judge(request, _line(statuses[0]) if statuses else None, trace, log)


def _line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _scope(
    request: WarmupRequest,
    settings: Settings,
    scheme: str,
    server: tuple[str, int] | None,
    state: dict[str, Any],
) -> Scope:
    target, _, query = request.path.partition("?")
    fields = {"host": "localhost", "user-agent": "ostler"}
    fields |= {name.lower(): value for name, value in request.headers.items()}
    raw = (settings.root_path + target).encode("latin-1")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": scheme,
        "path": settings.root_path + unquote(target),
        "raw_path": raw,
        "query_string": query.encode("latin-1"),
        "root_path": settings.root_path,
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()],
        "client": ("127.0.0.1", 0),
        "server": server,
        "state": state,
        EXTEND: lambda _seconds: None,
    }
