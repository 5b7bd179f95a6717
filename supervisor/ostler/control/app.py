"""One aiohttp application per listener, built from the route table.

All requests pass one middleware: the guard's perimeter, authentication, scope, decoding, the handler. Only
there refusals become ErrorViews, defects become a 500 with a traceback in the log, and changes are written to
the audit log. A refused request costs little more than the parsing of its head: no body is read before these
checks.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from msgspec.structs import fields

from ostler.control.connection import WRITE_SECONDS, ControlConnection, connection_of
from ostler.control.guard import SAFE_METHODS, Guard
from ostler.control.handlers import Answer, Call, Caller, Handler
from ostler.control.problems import (
    CODES,
    Encoded,
    Forbidden,
    Internal,
    Invalid,
    NotJson,
    Refusal,
    SlowBody,
    TooLarge,
    Unsized,
)
from ostler.control.routes import ROUTES, SCOPES, STREAM, Route
from ostler.control.stream import Streams
from ostler.control.views import ErrorView
from ostler.logs.limiter import LimitedLog
from ostler.text import json_of

if TYPE_CHECKING:
    from aiohttp.typedefs import Middleware
    from structlog.typing import FilteringBoundLogger

BODY_LIMIT = 4096
"""Bytes of a request's body; the largest valid body has some 100."""
BODY_SECONDS = 5.0
"""How long a body may take to arrive."""
STREAM_SECONDS = 0.003
"""Seconds of the event loop that the start of a stream is counted as."""
LONGEST_CHARGE = 0.02
"""Seconds of the event loop that a handler is counted as at most.

One that takes longer waits for something.
"""

HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    # A page of another origin can't use an answer as a frame, script or image.
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "ostler",
}

_Inner = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Visit:
    """What is known of the request that the current task answers."""

    identity: str
    what: str
    logged_by_fleet: bool = False


_visit: ContextVar[_Visit] = ContextVar("visit")


def build_app(
    guard: Guard,
    handlers: Mapping[str, Handler],
    streams: Streams,
    limited: LimitedLog,
    log: "FilteringBoundLogger",
) -> web.Application:
    """An application with all routes of the table; `handlers` has one for each but the stream.

    Args:
        limited: for refused requests and defects; log: for changes that were made.
    """
    app = web.Application(middlewares=[_middleware(guard, limited, log)], client_max_size=BODY_LIMIT)
    for route in ROUTES:
        if route.name == STREAM.name:
            app.router.add_get(route.path, _stream(guard, streams), allow_head=False, expect_handler=_expect)
            continue
        handler = _dispatch(route, guard, handlers[route.name])
        if route.method == "GET":
            app.router.add_get(route.path, handler, expect_handler=_expect)
        else:
            app.router.add_route(route.method, route.path, handler, expect_handler=_expect)
    return app


async def _expect(_request: web.Request) -> None:
    """Send nothing yet: `_decode` sends "100 Continue" when it reads the body."""


def _middleware(guard: Guard, limited: LimitedLog, log: "FilteringBoundLogger") -> "Middleware":
    @web.middleware
    async def middleware(request: web.Request, handler: _Inner) -> web.StreamResponse:
        connection = connection_of(request)
        if not await connection.turn():
            return web.Response()  # not sent: the client has left
        with connection.answering():
            response = await answer(request, handler, connection)
            early = not request.content.is_eof()
            if early:
                response.force_close()
            if not response.prepared:
                for name, value in HEADERS.items():
                    response.headers.setdefault(name, value)
            await _send(request, response, connection)
            if early:
                await connection.linger()
        return response

    async def answer(
        request: web.Request, handler: _Inner, connection: ControlConnection
    ) -> web.StreamResponse:
        visit = _Visit("unknown", f"{request.method[:20]} {request.path[:200]}")
        _visit.set(visit)
        outcome, done = "cancelled", False
        try:
            visit.identity = guard.identify(request)
            guard.perimeter(request)
            _refuse_body(request)
            response = await handler(request)
            outcome, done = str(response.status), True
        except Refusal as refusal:
            outcome = f"{refusal.status} {refusal.code}"
            response = _render(refusal.status, refusal.code, refusal.message, refusal.headers)
        except web.HTTPException as error:  # aiohttp's own: 404, 405, 413
            response = _render_aiohttp(request, error)
            outcome = str(response.status)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - the one place that turns a defect into an answer
            fields = {"who": visit.identity, "what": visit.what}
            limited.write(
                "error", "control_request_failed", _peer(visit, connection), exc_info=error, **fields
            )
            outcome = "500 internal"
            problem = "internal error of Ostler; see the daemon's log"
            response = _render(Internal.status, Internal.code, problem, {})
        finally:
            if request.method not in SAFE_METHODS:
                fields = {"who": visit.identity, "what": visit.what, "outcome": outcome}
                if done:
                    # The fleet has logged its own changes already, with their originator.
                    write = log.debug if visit.logged_by_fleet else log.info
                    write("control_change", **fields)
                else:
                    limited.write("info", "control_change", _peer(visit, connection), **fields)
        return response

    return middleware


def _peer(visit: _Visit, connection: ControlConnection) -> str:
    """The key for the log limit: over TCP all users have the same address, so the peer's uid is added."""
    return visit.identity if visit.identity.startswith("unix ") else f"{visit.identity} {connection.peer}"


async def _send(request: web.Request, response: web.StreamResponse, connection: ControlConnection) -> None:
    """Send the answer, or abort the connection if the client does not read it."""
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.prepare(request)
            await response.write_eof()
    except TimeoutError:
        connection.abort()
    except ConnectionError:
        pass  # the client has left


def _refuse_body(request: web.Request) -> None:
    """Refuse a body that no route accepts, before any of it is read. Raises Refusal."""
    if request.headers.get("Transfer-Encoding"):
        # Chunks of one byte are the most expensive input to parse.
        raise Unsized("send the body with Content-Length")
    codings = request.headers.get("Content-Encoding", "identity")
    if codings.strip().lower() != "identity":
        raise Encoded("send the body without Content-Encoding")
    if (request.content_length or 0) > BODY_LIMIT:
        raise TooLarge(f"a body may have at most {BODY_LIMIT} bytes")


def _dispatch(route: Route[object, object], guard: Guard, handler: Handler) -> _Inner:
    async def dispatch(request: web.Request) -> web.StreamResponse:
        visit = _visit.get()
        visit.what = f"{route.name} {request.path[:200]}" if "{" in route.path else route.name
        caller = _admit(route, guard, request, visit.identity)
        ask = await _decode(route, request)
        if isinstance(ask, msgspec.Struct) and not route.open:  # a login's body is a secret
            given = ((field.name, getattr(ask, field.name), field.default) for field in fields(ask))
            visit.what += "".join(f" {name}={value}" for name, value, usual in given if value != usual)
        began = time.monotonic()
        answer = await handler(Call(caller, ask, request.match_info, _query(route, request)))
        response = _respond(route, answer)
        connection_of(request).peer.use(min(time.monotonic() - began, LONGEST_CHARGE))
        visit.logged_by_fleet = route.logged_by_fleet
        return response

    return dispatch


def _stream(guard: Guard, streams: Streams) -> _Inner:
    async def stream(request: web.Request) -> web.StreamResponse:
        caller = _admit(STREAM, guard, request, _visit.get().identity)  # type: ignore[arg-type]
        connection_of(request).peer.use(STREAM_SECONDS)
        return await streams.serve(request, caller, HEADERS)

    return stream


def _admit(route: Route[object, object], guard: Guard, request: web.Request, identity: str) -> Caller:
    if route.open:
        return Caller(identity, "read")
    connection = connection_of(request)
    with connection.peer.measured():
        caller = guard.authenticate(request, identity)
    connection.proven = True
    if SCOPES.index(caller.scope) < SCOPES.index(route.scope):
        what = route.name.replace("_", "-")
        if caller.session is not None:
            raise Forbidden(f"a browser's session may not {what}; use `ctl` or the bearer token")
        raise Forbidden(f"{identity} may not {what}, only {caller.scope}; the daemon's own user and root may")
    return caller


async def _decode(route: Route[object, object], request: web.Request) -> object:
    """The body as the route's type. Raises Refusal, or aiohttp's 413."""
    if route.ask is None:
        return None
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # not part of the answer's size
    try:
        with connection_of(request).body():
            async with asyncio.timeout(BODY_SECONDS):
                body = await request.read()
    except TimeoutError as error:
        raise SlowBody(f"the body did not arrive within {BODY_SECONDS:g} s") from error
    except (ConnectionError, web.RequestPayloadError) as error:
        raise Refusal("the body ended early") from error
    if not body:
        body = b"{}"  # all defaults
    elif request.content_type != "application/json":
        # A web page of another origin can send a form without permission, but no JSON.
        raise NotJson("send `Content-Type: application/json` (with curl: --json instead of -d)")
    try:
        return msgspec.json.decode(body, type=route.ask)
    except msgspec.ValidationError as error:
        raise Invalid(f"the body is not valid: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(f"the body is not JSON: {error}") from error


def _query(route: Route[object, object], request: web.Request) -> dict[str, int]:
    """The query parameters of the route. Raises Invalid."""
    found: dict[str, int] = {}
    for name in route.query:
        text = request.query.get(name)
        if text is None:
            continue
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Invalid(f"{name} must be a whole number, not {text[:40]!r}")
        found[name] = int(text)
    return found


def _respond(route: Route[object, object], answer: Answer) -> web.Response:
    status = route.status if answer.status is None else answer.status
    if answer.view is None:
        return web.Response(status=status, headers=answer.headers)
    if isinstance(answer.view, str):
        return web.Response(status=status, text=answer.view, content_type=route.media, headers=answer.headers)
    body = json_of(answer.view)
    return web.Response(status=status, body=body, content_type=route.media, headers=answer.headers)


def _render(status: int, code: str, message: str, headers: Mapping[str, str]) -> web.Response:
    """Make an error answer; all answers from 400 on are made here."""
    body = json_of(ErrorView(code, message))
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _render_aiohttp(request: web.Request, error: web.HTTPException) -> web.Response:
    headers: dict[str, str] = {}
    path = request.path[:200]
    match error:
        case web.HTTPNotFound():
            message = f"no such path: {path}; see /openapi.json"
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            headers["Allow"] = allowed
            message = f"{path} takes {allowed}, not {request.method}"
        case web.HTTPRequestEntityTooLarge():
            headers["Connection"] = "close"
            message = f"a body may have at most {BODY_LIMIT} bytes"
        case _:
            message = error.reason
    code = CODES.get(error.status, HTTPStatus(error.status).phrase.lower().replace(" ", "_"))
    return _render(error.status, code, message, headers)
