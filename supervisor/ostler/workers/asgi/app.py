"""The app as uvicorn calls it: each request is shown in the scoreboard, counted, and logged.

A request is over with the last part of its answer. What an app does afterwards, as background tasks of
Starlette's do, keeps a worker from leaving, but has no deadline and is not shown. A request has the deadline
that the supervisor gives all requests; what it receives of its body, and what it sends of an answer in parts,
is progress. Websockets have no deadline, and event streams only that of `limit_request_time` while their
client is there.

An answer that is cut counts, and is logged, with the status that says why: 504 its deadline, 500 the app, 499
its client has left.
"""

import asyncio
from collections.abc import Callable
from time import monotonic_ns
from typing import Any

from ostler.http1.frames import SERVICE_RESTART
from ostler.logs.access import AccessLog
from ostler.logs.worker_log import Log
from ostler.scoreboard.accounting import Accounting
from ostler.settings.table import Settings
from ostler.text import frames_of, name_of, trace_of
from ostler.workers.asgi.access import log_access
from ostler.workers.asgi.framing import BODILESS
from ostler.workers.asgi.interface import EXTEND, App, Message, Receive, Scope, Send
from ostler.workers.asgi.request import AsgiRequest
from ostler.workers.asgi.tasks import current
from ostler.wsgi.interruption import QuitWorker

_SWITCHED = 101
# Exceptions by which frameworks let an app know that its client has gone: Starlette's.
_SAYS_GONE = ("ClientDisconnect",)


class AsgiApp:
    """The app of a worker, with its requests' accounting. Used by the loop's thread only.

    Args:
        app: an ASGI 3 app.
        accounting: the worker's; `thread_slot(0)` was made.
        loop: what the requests are served in.
        extend: `scope["ostler.extend_deadline"]`.
        quota: after so many answers `on_quota` is called with their number, which returns after how many it
            is to be called again; 0: never.
        flush_soon: called when there are lines in the access log's buffer.

    Attributes:
        closing: answers announce the end of their connection.
        leaving: the worker drains, and has closed all websockets.
        quitting: the worker ends at once: what fails from now on fails for that reason, and is not logged.
        event_streams: requests that are answered with one, and whose client is there.
        logged: an exception that was logged already, and that uvicorn will log next.
        startup_error, startup_message: why the app's startup failed.
    """

    def __init__(
        self,
        app: App,
        settings: Settings,
        accounting: Accounting,
        loop: asyncio.AbstractEventLoop,
        extend: Callable[[float], object],
        log: Log,
        access: AccessLog | None,
        quota: int,
        on_quota: Callable[[int], int | None],
        flush_soon: Callable[[], None],
    ) -> None:
        self.app = app
        self.loop = loop
        self._begin = accounting.begin
        self._extend = extend
        self._access = access
        self._quota = quota
        self._on_quota = on_quota
        self._flush_soon = flush_soon
        self._count = 0
        self.log = log
        self.closing = settings.keepalive == 0
        self.leaving = False
        self.quitting = False
        self.event_streams: set[AsgiRequest] = set()
        self.logged: BaseException | None = None
        self.startup_error: BaseException | None = None
        self.startup_message = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            method, started = scope["method"], monotonic_ns()
            slot = self._begin(method, scope["raw_path"], started)
            request = slot.owner = AsgiRequest(self, slot, method, started, scope, send)
            scope[EXTEND] = self._extend
            current.set(started)
            cycle = getattr(send, "__self__", None)
            if getattr(cycle, "more_body", False):
                receive = request.receiving(receive)
            if getattr(getattr(cycle, "flow", None), "write_paused", False):
                request.waits_to_begin = True
            try:
                await self.app(scope, receive, request.send)
            except BaseException as error:
                if await self._failed(request, error):
                    raise
            else:
                if not request.answered:
                    await self._left_unanswered(request)
        elif kind == "websocket":
            await self._serve_websocket(scope, receive, send)
        else:
            await self._run_lifespan(scope, receive, send)

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = monotonic_ns()
        slot = self._begin("WS", scope.get("raw_path", b""), started)
        request = slot.owner = AsgiRequest(self, slot, "WS", started, scope, send)
        slot.upgraded()
        scope[EXTEND] = self._extend
        current.set(started)
        try:
            await self.app(scope, receive, request.send_on_websocket)
        except BaseException as error:
            if self.leaving and request.status == _SWITCHED and _says_closed(error):
                self.logged = error  # its end was ours, which one line has said for all
            elif not _is_uvicorns(error):
                self._log_failure(request, error)
            raise
        finally:
            request.status = request.status or 500
            self.end(request)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The app's startup and shutdown; uvicorn does not report why they failed."""

        async def noting_failure(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.startup_message = message.get("message", "")
            await send(message)

        try:
            await self.app(scope, receive, noting_failure)
        except BaseException as error:
            self.startup_error = error
            raise

    # -- the ends of requests ----------------------------------------------------------------------------

    def end(self, request: AsgiRequest) -> None:
        """It has been answered, or will not be."""
        request.answered = True
        if request.is_silent:
            self.event_streams.discard(request)
        if request.method == "HEAD" or request.status in BODILESS:
            request.sent = 0  # the body was left out
        if request.status == 500 and request.client_is_gone:
            request.status = request.refused or 499
        slot, ended = request.slot, monotonic_ns()
        if request.status == _SWITCHED:
            slot.refused(101, request.sent)  # how long a websocket was open is no duration of an answer
            slot.release()
        else:
            slot.end(request.status, request.sent, ended)
        if self._access is not None:
            log_access(self._access, request, ended - request.started)
            self._flush_soon()
        if self._quota:
            self._count += 1
            if self._count >= self._quota:
                self._quota = self._on_quota(self._count) or 0

    async def _left_unanswered(self, request: AsgiRequest) -> None:
        """The app returned before the last part of its answer: it has a defect, or its client is gone.

        Or it has caught what was to end it.
        """
        if request.overdue:
            if not request.status:
                await request.give_up()
                return
            request.status = 504
        elif not request.has_no_body:
            if not request.client_is_gone:
                what = "before the end of its answer" if request.status else "without an answer"
                self.log.error("request_failed", **request.name(), reason=f"the app returned {what}")
            request.status = 500
        self.end(request)

    async def _failed(self, request: AsgiRequest, error: BaseException) -> bool:
        """The app raised; True if uvicorn is to answer with 500 or to end the connection.

        The caller raises it again, not this: its traceback would lead to the frame that refers to it.
        """
        if not request.overdue:
            self._log_failure(request, error)
            if not request.answered:
                request.status = 500
                self.end(request)
            return True
        if not request.status:
            await request.give_up()
            return False
        self.logged = error
        if not request.answered:
            request.status = 504
            self.end(request)
        return True

    def _log_failure(self, request: AsgiRequest, error: BaseException) -> None:
        self.logged = error
        if self.quitting or isinstance(error, QuitWorker):
            return
        if request.client_is_gone and name_of(error) in _SAYS_GONE:
            return
        if isinstance(error, asyncio.CancelledError):
            self.log.warning("request_cut", **request.name(), reason="the worker leaves")
        else:
            trace = trace_of(error, _app_part(error))
            self.log.error("request_failed", **request.name(), traceback=trace)


SERVING = (AsgiApp.__call__.__code__, AsgiApp._serve_websocket.__code__)
"""Functions whose local variable `request` is the one that their task serves."""


def _says_closed(error: BaseException) -> bool:
    """Whether an exception only says that its websocket was closed, as those of frameworks do."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_says_closed, BaseExceptionGroup.exceptions.__get__(error)))
    return (
        isinstance(error, asyncio.CancelledError)
        or name_of(error).endswith(("Disconnect", "Disconnected", "ConnectionClosed"))
        or _is_uvicorns(error)
        or _code_of(error) == SERVICE_RESTART
    )


def _code_of(error: BaseException) -> object:
    try:
        return getattr(error, "code", None)
    except BaseException:  # noqa: BLE001 - the app's own code
        return None


def _is_uvicorns(error: BaseException) -> bool:
    """Whether it is one of uvicorn's own, which only say that the client has gone."""
    # Not by the attribute: a metaclass of the app may do anything there.
    module = type.__dict__["__module__"].__get__(type(error))
    return isinstance(module, str) and module.startswith("uvicorn.")


def _app_part(error: BaseException) -> Any:
    """The traceback from the app's first frame on."""
    frames = frames_of(error)
    while frames is not None and frames.tb_frame.f_globals.get("__name__", "") == __name__:
        frames = frames.tb_next
    return frames or frames_of(error)
