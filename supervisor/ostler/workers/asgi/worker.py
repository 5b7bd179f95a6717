"""The worker class `asgi`: a loop of asyncio's, or uvloop's, with uvicorn's protocols in it.

uvicorn parses HTTP, speaks to websockets and calls the app. Ours is what lies around it: accepting, the app's
startup before the worker says that it is ready, requests in the scoreboard, deadlines, and the end.

A worker that is told to leave accepts no more, closes websockets with code 1012, announces the end of their
connection in all answers, and gives idle connections to siblings, or closes them after a grace. When all is
answered, the app's shutdown runs, and the loop ends.

Signals have plain handlers, not the loop's: they may come while a request computes, and must be heard then.
Python runs them in the main thread, which is the loop's, also while that waits.
"""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from types import FrameType
from typing import Any, ClassVar, Self

from ostler.logs.limiter import LimitedLog
from ostler.osapi.files import open_files
from ostler.scoreboard import layout
from ostler.settings.table import Settings, rows
from ostler.text import name_and_text, trace_of
from ostler.workers.asgi import bounds, pace, records, server
from ostler.workers.asgi.doors import Doors
from ostler.workers.asgi.requests import Request, Requests, stack_under
from ostler.workers.asgi.warmup import warm_up
from ostler.workers.base import BaseWorker, Context
from ostler.workers.error_page import ErrorPage
from ostler.workers.loader import AppLoadError
from ostler.wsgi.exchange import DeadlineExceeded, QuitWorker

# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = 0.5
_DRAIN_LOOK = 0.05
# Of graceful_timeout, what is kept for the app's shutdown: a part, and no more than so many seconds.
_SHUTDOWN_PART, _SHUTDOWN_MOST = 0.1, 1.0
# How long tasks may take to end once they are cancelled.
_CANCEL = 0.5
# In place of a connection's request, which uvicorn calls a cycle.
_WEBSOCKET = object()
# What uvicorn has no counterpart for.
_WITHOUT_EFFECT = (
    *("limit_request_line", "limit_request_fields", "limit_request_field_size", "limit_request_body"),
    *("buffer_request", "stream_request", "buffer_response"),
    *("buffer_response_file", "queue_timeout", "header_map", "forwarder_headers", "strip_header_spaces"),
    *("permit_obsolete_folding", "permit_unconventional_http_method", "casefold_http_method"),
    *("permit_unconventional_http_version", "secure_scheme_headers", "proxy_protocol", "proxy_allow_ips"),
    "threads",
)


class AsgiWorker(BaseWorker):
    """Serves an ASGI app.

    Attributes:
        config_kwargs: arguments for uvicorn's configuration, which count more than our settings.
    """

    interface: ClassVar[str] = "asgi"
    one_loop: ClassVar[bool] = True
    config_kwargs: ClassVar[dict[str, Any]] = {}

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
        # What it imports is shared by all workers.
        server.make_config(_nothing, settings, cls.config_kwargs).get_loop_factory()
        defaults = rows()
        names = [
            name
            for name in _WITHOUT_EFFECT
            if getattr(settings, name, None) != getattr(defaults.get(name), "default", None)
        ]
        return [f"without effect in asgi workers: {', '.join(names)}"] if names else []

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(context)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = settings = context.settings
        self._log = context.log
        before = open_files()
        self._loop = loop = _new_loop(settings, self.config_kwargs)
        self._descriptors = open_files() - before
        server.drop_cycles_of_asyncio()
        if context.tls is not None:
            records.bound_reading()
        asyncio.set_event_loop(loop)
        self._requests = Requests(
            server.as_asgi3(context.app),
            settings,
            context.cell,
            context.cell.threads,
            threading.get_ident(),
            loop,
            context.log,
            context.access,
            context.quota,
            context.on_quota,
            self._flush_soon,
        )
        unix = any(listener.family == socket.AF_UNIX for listener in context.listeners)
        self._config = server.make_config(self._requests, settings, self.config_kwargs, unix)
        self._state = server.ServerState()
        self._lifespan = self._config.lifespan_class(self._config)
        self._limited = LimitedLog(context.log, loop.time)
        self._doors = Doors(
            loop,
            context.listeners,
            context.handoff,
            context.tls,
            settings,
            self._requests.count,
            context.log,
            self._limited,
            self._protocol,
            self._state.connections,
        )
        http = bounds.bounded(self._config.http_protocol_class)
        self._http = pace.measured(server.count_ends(http, self._doors.lost), settings)
        if self._config.ws_protocol_class is not None:
            websocket = bounds.bounded_websocket(self._config.ws_protocol_class)
            self._config.ws_protocol_class = server.count_ends(websocket, self._doors.lost)
        else:
            self._log.info("no_websockets", reason="neither websockets nor wsproto is installed")
        server.listen(context.log, self._limited, self._requests, settings.loglevel)
        self._main: asyncio.Task[None] | None = None
        self._told: asyncio.Event = asyncio.Event()
        self._ticker: asyncio.TimerHandle | None = None
        self._flushing = False
        self._hand_over = False
        self._stopped = False
        # Requests that wait and are to be ended; signal handlers add to it.
        self._overdue: set[Request] = set()

    def _protocol(self) -> Any:
        return self._http(config=self._config, server_state=self._state, app_state=self._lifespan.state)

    # -- what the worker's life cycle calls --------------------------------------------------------------

    def start(self) -> None:
        self._complete(self._start())

    def run(self) -> None:
        try:
            self._complete(self._serve())
            self._run_until_cancelled(self._end())
        finally:
            if self._context.access is not None:
                self._context.access.flush()

    def drain(self, hand_over: bool = False) -> None:
        self._hand_over = hand_over
        self.draining = True
        self._call(self._told.set)

    def stop(self) -> None:
        self._stopped = self.draining = True
        self._call(self._cancel)

    def abandon(self) -> None:
        self.drain()
        self._call(self._let_listeners_go)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        """End requests that are overdue: at once the one that computes, others when it is the loop's turn."""
        here, computing = None, self._requests.computing(frame)
        for request in self._requests.overdue():
            if request is computing:
                here = request
            else:
                self._overdue.add(request)
        if self._overdue:
            self._call(self._interrupt_overdue)
        if here is not None:
            here.note_overdue(stack_under(frame), self._requests.tasks().get(here))
            raise DeadlineExceeded

    def _interrupt_overdue(self) -> None:
        # All at once: there is a signal for each, and with a look at all tasks each time hundreds that are
        # overdue would hold up the loop until the supervisor takes it for stalled.
        tasks = self._requests.tasks() if self._overdue else {}
        while self._overdue:
            request = self._overdue.pop()
            request.interrupt(tasks.get(request))

    def descriptors(self) -> set[int]:
        transports = [connection.transport for connection in self._state.connections]
        sockets = [transport.get_extra_info("socket") for transport in transports]
        return self._descriptors | {sock.fileno() for sock in sockets if sock is not None}

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.close()

    # -- from signal handlers to the loop ----------------------------------------------------------------

    def _call(self, callback: Callable[[], object]) -> None:
        """Have the loop call; may be used in a signal handler."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop has ended: there is nothing left to do

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _let_listeners_go(self) -> None:
        self._doors.close()
        for listener in self._doors.listeners:
            listener.close()

    # -- running -----------------------------------------------------------------------------------------

    def _complete(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the loop until `work` is done.

        Raises:
            QuitWorker: a signal says so.
        """
        self._main = self._loop.create_task(work)
        try:
            self._loop.run_until_complete(self._main)
        except (QuitWorker, asyncio.CancelledError):
            # The one a signal has raised may have been lost in a task.
            if not self._stopped:
                raise
            self._requests.quitting = True
            self._run_until_cancelled(_cancel_all())
            raise QuitWorker from None

    def _run_until_cancelled(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        try:
            self._loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass

    async def _start(self) -> None:
        """The app's startup, and its warm-up requests."""
        if self.draining:
            return
        told = asyncio.create_task(self._told.wait())
        startup = asyncio.create_task(self._lifespan.startup())
        await asyncio.wait((told, startup), return_when=asyncio.FIRST_COMPLETED)
        told.cancel()
        if not startup.done():
            await _cancel_all()  # it is told to leave, and nobody waits for what it would begin
            return
        await startup
        if self._lifespan.should_exit:
            await _cancel_all()
            raise self._startup_error()
        self._tick()
        if isinstance(self._context.app, ErrorPage):
            return
        settings, requests = self._settings, self._requests
        name = self._context.listeners[0].getsockname() if self._context.listeners else None
        where = (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
        scheme = "https" if self._context.tls is not None else "http"
        await warm_up(requests.app, settings, self._log, scheme, where, self._lifespan.state)

    def _startup_error(self) -> AppLoadError:
        error, message = self._requests.startup_error, self._requests.startup_message.strip()
        trace = trace_of(error) if error is not None else message or None
        said = message.rpartition("\n")[2] or "it said so"
        reason = name_and_text(error) if error is not None else said
        return AppLoadError(f"the app's startup failed: {reason}", trace)

    def _tick(self) -> None:
        """Twice a second: the heartbeat, the date of answers, connections without a request, metrics."""
        self._context.cell.header[layout.HEARTBEAT] = time.monotonic_ns()
        date = [(b"date", formatdate(usegmt=True).encode())] if self._config.date_header else []
        self._state.default_headers = date + self._config.encoded_headers
        self._doors.close_late(self._state.connections)
        self._doors.close_slow(self._state.connections)
        self._limited.report()
        if self._context.access is not None:
            self._context.access.flush()
        # Just after the next second begins, for the date, and between.
        self._ticker = self._loop.call_later(0.501 - time.time() % 0.5, self._tick)

    def _flush_soon(self) -> None:
        """Write the access log when this pass of the loop is done."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        assert self._context.access is not None
        self._context.access.flush()

    async def _serve(self) -> None:
        if not self.draining:
            self._doors.open()
            await self._told.wait()
        self._doors.close()
        graceful = self._settings.graceful_timeout
        until = self._loop.time() + graceful
        kept = min(_SHUTDOWN_MOST, graceful * _SHUTDOWN_PART)
        await self._finish(until - kept)
        try:
            await asyncio.wait_for(self._lifespan.shutdown(), max(until - self._loop.time(), kept))
        except TimeoutError:
            self._log.warning("app_shutdown_cut", reason="graceful_timeout is over")

    async def _finish(self, until: float) -> None:
        """Answer what is there, and let go of what is idle; what is left at `until` (loop's time) is cut."""
        self._requests.closing = True
        state = self._state
        idle_since: dict[Any, float] = {}
        while state.connections or state.tasks or self._doors.arriving:
            now = self._loop.time()
            if now >= until:
                break
            for connection in list(state.connections):
                cycle: Any = getattr(connection, "cycle", _WEBSOCKET)
                if connection.transport.is_closing():
                    pass  # under TLS: a second time would keep what it still has to send from being known
                elif cycle is _WEBSOCKET:
                    connection.shutdown()  # by code 1012 of RFC 6455's registry: clients connect again
                elif cycle is not None and not cycle.response_complete:
                    idle_since.pop(connection, None)
                elif not (self._hand_over and self._doors.give(connection)) and (
                    now - idle_since.setdefault(connection, now) > _DRAIN_IDLE
                ):
                    connection.shutdown()
            await asyncio.sleep(_DRAIN_LOOK)
        for task in list(state.tasks):
            task.cancel("graceful_timeout is over")
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_CANCEL)
        for connection in list(state.connections):
            pace.abort(connection)

    async def _end(self) -> None:
        """Leave nothing in the loop."""
        if self._ticker is not None:
            self._ticker.cancel()
        await _cancel_all()
        await self._loop.shutdown_asyncgens()


def _new_loop(settings: Settings, wanted: dict[str, Any]) -> asyncio.AbstractEventLoop:
    factory = server.make_config(_nothing, settings, wanted).get_loop_factory()
    return (factory or asyncio.new_event_loop)()


async def _nothing(*_: Any) -> None:
    """An app that does nothing."""


async def _cancel_all() -> None:
    """Cancel all other tasks, and wait for them a little."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=_CANCEL)
