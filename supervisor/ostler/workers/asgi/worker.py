"""The worker class `asgi`: a loop of asyncio's, or uvloop's, with uvicorn's protocols in it.

uvicorn parses HTTP, speaks to websockets and calls the app. Around it we do the rest: accepting, the app's
startup before the worker says that it is ready, requests in the scoreboard, deadlines, and the end.

A worker that drains accepts no more, closes websockets with code 1012, announces the end of their connection
in all answers, and hands off idle connections to siblings, or closes them after a grace. When all is
answered, the app's shutdown runs, and the loop ends.

Signals have plain handlers, not the loop's: they may come while a request computes, and must be handled then.
Python runs them in the main thread, which is the loop's, also while that waits.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from email.utils import formatdate
from types import FrameType
from typing import Any, ClassVar, Self

from ostler.logs.limiter import LimitedLog
from ostler.osapi.files import is_socket, open_files
from ostler.settings.table import Settings
from ostler.text import name_and_text, trace_of
from ostler.workers import stacks
from ostler.workers.asgi import (
    client_speed,
    memory_bounds,
    refusals,
    tls_reading,
    unix_server,
    unusual_requests,
    uvicorn_setup,
)
from ostler.workers.asgi.acceptor import AsgiAcceptor
from ostler.workers.asgi.app import AsgiApp
from ostler.workers.asgi.request import AsgiRequest
from ostler.workers.asgi.soft_interrupt import AsgiSoftInterrupts
from ostler.workers.asgi.warmup import warm_up
from ostler.workers.base import BaseWorker, Context
from ostler.workers.load_error_page import ErrorPage
from ostler.workers.load_errors import AppLoadError
from ostler.wsgi.forked import leave_answered
from ostler.wsgi.interruption import QuitWorker

# When draining begins, an idle connection is given this long to send a request that may be on its way.
_DRAIN_IDLE = 0.5
# And a head that has begun, as in the engines.
_DRAIN_STALL = 5.0
_DRAIN_POLL = 0.05
# Of graceful_timeout, what is kept for the app's shutdown: a part, and no more than so many seconds.
_SHUTDOWN_PART, _SHUTDOWN_MOST = 0.1, 1.0
# How long tasks may take to end once they are cancelled.
_CANCEL = 0.5
# Stands for a connection's request, which uvicorn calls a cycle.
_WEBSOCKET = object()


class AsgiWorker(BaseWorker):
    """Serves an ASGI app.

    Attributes:
        config_kwargs: arguments for uvicorn's configuration, which take precedence over our settings.
    """

    interface: ClassVar[str] = "asgi"
    one_loop: ClassVar[bool] = True
    serves_tls: ClassVar[bool] = True
    config_kwargs: ClassVar[dict[str, Any]] = {}

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
        # What it imports is shared by all workers.
        uvicorn_setup.make_config(_nothing, settings, cls.config_kwargs).get_loop_factory()
        return []

    @classmethod
    def create(cls, context: Context) -> Self:
        return cls(context)

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settings = settings = context.settings
        self._log = context.log
        before = open_files()
        self._loop = loop = _new_loop(settings, self.config_kwargs)
        loop.set_exception_handler(_log_unless_quitting)
        self._descriptors = open_files() - before
        uvicorn_setup.drop_cycles_of_asyncio()
        if context.tls is not None:
            tls_reading.bound_reading()
        asyncio.set_event_loop(loop)
        accounting = context.accounting
        accounting.own_idents = True
        loop_slot = accounting.thread_slot(0)
        self._soft_interrupts = AsgiSoftInterrupts(accounting, loop, self._call)
        app = uvicorn_setup.as_asgi3(context.app)
        unix = [listener for listener in context.listeners if listener.family == socket.AF_UNIX]
        if unix:
            app = unix_server.from_host(app, os.fsdecode(unix[0].getsockname()))
        self._state = uvicorn_setup.ServerState()
        if (most := self.config_kwargs.get("limit_concurrency")) is not None:
            app = uvicorn_setup.limited(app, most, self._state.connections)
        self._app = AsgiApp(
            app,
            settings,
            accounting,
            loop,
            self._soft_interrupts.extend,
            context.log,
            context.access,
            context.quota,
            context.on_quota,
            self._flush_soon,
        )
        self._config = uvicorn_setup.make_config(self._app, settings, self.config_kwargs, bool(unix))
        self._lifespan = self._config.lifespan_class(self._config)
        self._limited = LimitedLog(context.log, loop.time)
        report = refusals.Refusals(loop_slot, self._limited, context.access, self._flush_soon).report
        self._acceptor = AsgiAcceptor(
            loop,
            context.listeners,
            context.handoff,
            context.tls,
            settings,
            loop_slot,
            context.log,
            self._limited,
            report,
            self._protocol,
            self._state.connections,
        )
        tolerant = unusual_requests.tolerant(self._config.http_protocol_class)
        http = memory_bounds.bounded(refusals.reporting(tolerant, report), report)
        self._http = client_speed.measured(uvicorn_setup.count_ends(http, self._acceptor.lost), settings)
        if self._config.ws_protocol_class is not None:
            websocket = memory_bounds.bounded_websocket(self._config.ws_protocol_class)
            self._config.ws_protocol_class = uvicorn_setup.count_ends(websocket, self._acceptor.lost)
        else:
            self._log.info("no_websockets", reason="neither websockets nor wsproto is installed")
        uvicorn_setup.forward_logs(context.log, self._limited, self._app, settings.loglevel)
        self._main: asyncio.Task[None] | None = None
        # Set when the worker is to drain; how long that may take (s), and until when it may (the loop's time;
        # None: it has not begun).
        self._drain_asked = asyncio.Event()
        self._drain_seconds = settings.graceful_timeout
        self._drain_until: float | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._flushing = False
        self._hand_over = self._empties_queue = False
        self._stopped = False

    def _protocol(self) -> Any:
        return self._http(config=self._config, server_state=self._state, app_state=self._lifespan.state)

    # -- what the worker's life cycle calls --------------------------------------------------------------

    def start(self) -> None:
        self._complete(self._start())

    def run(self) -> None:
        stacks.write_too(self._soft_interrupts.stacks, self._context.stacks_fd)
        try:
            self._complete(self._serve())
            self._run_until_cancelled(self._end())
        finally:
            if self._context.access is not None:
                self._context.access.flush()

    def drain(self, hand_over: bool = False, seconds: float | None = None) -> None:
        self._hand_over = hand_over
        if seconds is not None:
            self._drain_seconds = seconds
            if self._drain_until is not None:
                self._drain_until = self._loop.time() + seconds
        self.draining = True
        self._call(self._drain_asked.set)

    def empty_queue(self, listeners: list[socket.socket]) -> None:
        self._empties_queue = True
        self._call(lambda: self._acceptor.keep_only(listeners))

    def stop(self) -> None:
        self._stopped = self.draining = True
        self._call(self._cancel)

    def abandon(self) -> None:
        self.drain()
        self._call(self._close_listeners)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)

    def interrupt(self, _signum: int, frame: FrameType | None) -> None:
        self._soft_interrupts.interrupt(frame)

    def descriptors(self) -> set[int]:
        return self._descriptors | self._client_descriptors()

    def forked_by_app(self) -> None:
        # When the app answers, waits, or returns in a thread of a pool. Its loop is the worker's.
        self._app.end = leave_answered  # type: ignore[method-assign]
        AsgiRequest._send_part = AsgiRequest._send_last = leave_answered  # type: ignore[method-assign]
        self._loop.call_soon(leave_answered)
        with suppress(AttributeError):  # a loop in C has no such attributes
            self._loop.call_soon_threadsafe = leave_answered  # type: ignore[method-assign]

    def private_descriptors(self) -> set[int]:
        # With the pair that wakes the loop. Its epoll is left: the loop may run until `leave_answered`.
        return {fd for fd in self._descriptors if is_socket(fd)} | self._client_descriptors()

    def _client_descriptors(self) -> set[int]:
        transports = [connection.transport for connection in list(self._state.connections)]
        sockets = [transport.get_extra_info("socket") for transport in transports]
        found = {sock.fileno() for sock in sockets if sock is not None}
        return found | self._acceptor.descriptors()

    def close(self) -> None:
        if not self._loop.is_closed():
            self._loop.close()

    # -- from signal handlers to the loop ----------------------------------------------------------------

    def _call(self, callback: Callable[[], object]) -> None:
        """Have the loop call a function; may be used in a signal handler."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            pass  # the loop has ended: there is nothing left to do

    def _cancel(self) -> None:
        if self._main is not None:
            self._main.cancel()

    def _close_listeners(self) -> None:
        self._acceptor.close()
        for listener in self._acceptor.listeners:
            listener.close()

    # -- running -----------------------------------------------------------------------------------------

    def _complete(self, work: Coroutine[Any, Any, None]) -> None:
        """Run the loop until `work` is done.

        Raises:
            QuitWorker: raised by a signal's handler.
        """
        self._main = self._loop.create_task(work)
        try:
            self._loop.run_until_complete(self._main)
        except (QuitWorker, asyncio.CancelledError):
            # The exception that a signal's handler has raised may have been lost in a task.
            if not self._stopped:
                raise
            self._app.quitting = True
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
        drain_asked = asyncio.create_task(self._drain_asked.wait())
        startup = asyncio.create_task(self._lifespan.startup())
        await asyncio.wait((drain_asked, startup), return_when=asyncio.FIRST_COMPLETED)
        drain_asked.cancel()
        if not startup.done():
            await _cancel_all()  # the worker is to end, so that what the app starts would not be used
            return
        await startup
        if self._lifespan.should_exit:
            await _cancel_all()
            raise self._startup_error()
        self._tick()
        if isinstance(self._context.app, ErrorPage):
            return
        name = self._context.listeners[0].getsockname() if self._context.listeners else None
        where = (str(name[0]), int(name[1])) if isinstance(name, tuple) else None
        scheme = "https" if self._context.tls is not None else "http"
        await warm_up(self._app.app, self._settings, self._log, scheme, where, self._lifespan.state)

    def _startup_error(self) -> AppLoadError:
        error, message = self._app.startup_error, self._app.startup_message.strip()
        trace = trace_of(error) if error is not None else message or None
        last_line = message.rpartition("\n")[2] or "it sent lifespan.startup.failed"
        reason = name_and_text(error) if error is not None else last_line
        return AppLoadError(f"the app's startup failed: {reason}", trace)

    def _tick(self) -> None:
        """Twice a second: the heartbeat, the date of answers, connections without a request, metrics."""
        self._context.accounting.heartbeat(time.monotonic_ns())
        date = [(b"date", formatdate(usegmt=True).encode())] if self._config.date_header else []
        self._state.default_headers = date + self._config.encoded_headers
        self._acceptor.close_late(self._state.connections)
        self._acceptor.close_slow(self._state.connections)
        for request in list(self._app.event_streams):
            request.look_for_client()
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
            self._acceptor.open()
            await self._drain_asked.wait()
        if not self._empties_queue:
            self._acceptor.close()
        self._drain_until = self._loop.time() + self._drain_seconds
        await self._finish()
        left = max(self._drain_until - self._loop.time(), self._shutdown_seconds())
        try:
            await asyncio.wait_for(self._lifespan.shutdown(), left)
        except TimeoutError:
            self._log.warning("app_shutdown_cut", reason="graceful_timeout is over")

    def _shutdown_seconds(self) -> float:
        """How much of the time for draining is kept for the app's lifespan shutdown."""
        return min(_SHUTDOWN_MOST, self._drain_seconds * _SHUTDOWN_PART)

    async def _finish(self) -> None:
        """Answer what is there, and close what is idle; what is left when the time is over is cut."""
        assert self._drain_until is not None
        self._app.closing = self._app.leaving = True
        state = self._state
        idle_since: dict[Any, float] = {}
        while state.connections or state.tasks or self._acceptor.arriving or self._acceptor.is_open:
            now = self._loop.time()
            if now >= self._drain_until - self._shutdown_seconds():
                break
            websockets = 0
            for connection in list(state.connections):
                cycle: Any = getattr(connection, "cycle", _WEBSOCKET)
                if connection.transport.is_closing():
                    pass  # under TLS: after a second close it is not known what is still to be sent
                elif cycle is _WEBSOCKET:
                    connection.shutdown()  # by code 1012 of RFC 6455's registry: clients connect again
                    websockets += 1
                elif cycle is not None and not cycle.response_complete:
                    idle_since.pop(connection, None)
                elif not (self._hand_over and self._acceptor.hand_off(connection)):
                    grace = _DRAIN_STALL if client_speed.has_begun(connection) else _DRAIN_IDLE
                    if now - idle_since.setdefault(connection, now) > grace:
                        connection.shutdown()
            if websockets:
                # One line for all: their apps end by an exception each, which is no failure.
                self._log.info("upgraded_closed", count=websockets, reason="the worker leaves")
            await asyncio.sleep(_DRAIN_POLL)
        self._acceptor.close()
        for task in list(state.tasks):
            task.cancel("graceful_timeout is over")
        if state.tasks:
            await asyncio.wait(state.tasks, timeout=_CANCEL)
        for connection in list(state.connections):
            client_speed.abort(connection)

    async def _end(self) -> None:
        """Leave nothing in the loop."""
        if self._ticker is not None:
            self._ticker.cancel()
        await _cancel_all()
        await self._loop.shutdown_asyncgens()


def _log_unless_quitting(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The loop's handler for exceptions in callbacks, in which a signal's handler may raise QuitWorker.

    It is lost there; the loop ends because `stop` was called as well.
    """
    if not isinstance(context.get("exception"), QuitWorker):
        loop.default_exception_handler(context)


def _new_loop(settings: Settings, wanted: dict[str, Any]) -> asyncio.AbstractEventLoop:
    factory = uvicorn_setup.make_config(_nothing, settings, wanted).get_loop_factory()
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
