"""uvicorn: its configuration from our settings, its protocols with our ends, and its log lines in our log."""

import asyncio.selector_events
import logging
import traceback
from collections.abc import Callable
from types import GeneratorType
from typing import Any, cast

from ostler.errors import SettingError
from ostler.logs.limiter import LimitedLog
from ostler.logs.worker_log import Log
from ostler.settings.table import Settings

try:
    import uvicorn
    import uvicorn.server
    from uvicorn.middleware.asgi2 import ASGI2Middleware
    from uvicorn.protocols.http.flow_control import service_unavailable
except ImportError as error:
    raise SettingError("worker_class", f"asgi needs uvicorn: pip install 'ostler[asgi]' ({error})") from None

from ostler.text import trace_of
from ostler.workers import app_kind
from ostler.workers.asgi.app import AsgiApp
from ostler.workers.asgi.interface import App, Receive, Scope, Send
from ostler.workers.asgi.memory_bounds import MOST_HEAD
from ostler.workers.asgi.proxies import BehindProxies
from ostler.workers.asgi.refusals import INVALID

ServerState = uvicorn.server.ServerState
# Arguments that a subclass of uvicorn's worker may set, but that we do by other means, or not at all.
_OURS = frozenset(
    "app host port uds fd workers reload reload_dirs reload_delay reload_includes reload_excludes "
    "limit_max_requests limit_max_requests_jitter callback_notify timeout_notify timeout_worker_healthcheck "
    "timeout_graceful_shutdown interface factory ssl_keyfile ssl_certfile ssl_keyfile_password ssl_version "
    "ssl_cert_reqs ssl_ca_certs ssl_ciphers ssl_context_factory limit_concurrency".split()
)
_LOGGER = "uvicorn.error"
_LEVELS = {logging.ERROR: "error", logging.WARNING: "warning"}


def make_config(app: App, settings: Settings, wanted: dict[str, Any], unix: bool = False) -> uvicorn.Config:
    """uvicorn's configuration, complete.

    Args:
        app: what uvicorn is to call.
        wanted: uvicorn's own arguments, which take precedence over our settings.
        unix: clients may come through a Unix socket, and so are trusted proxies.

    Raises:
        SettingError: uvicorn does not take them, or what they need is not installed.
    """
    arguments: dict[str, Any] = {
        "loop": settings.asgi_loop,
        "lifespan": settings.asgi_lifespan,
        "ws_max_size": settings.websocket_max_message_size,
        "root_path": settings.root_path,
        "timeout_keep_alive": settings.keepalive,
        "backlog": settings.backlog,
        "h11_max_incomplete_event_size": MOST_HEAD,
        "forwarded_allow_ips": settings.forwarded_allow_ips,
        "log_config": None,
        # If uvicorn's access logger has handlers, its lines are wanted besides ours.
        "access_log": bool(logging.getLogger("uvicorn.access").handlers),
        "workers": 1,
    }
    arguments |= {name: value for name, value in wanted.items() if name not in _OURS}
    if arguments.get("server_header", True):
        arguments["headers"] = [("Server", "ostler"), *(arguments.get("headers") or ())]
        arguments["server_header"] = False
    trusted = arguments.pop("forwarded_allow_ips")
    try:
        if arguments.pop("proxy_headers", True):
            app = BehindProxies(app, settings.forwarded_allow_ips if trusted is None else trusted, unix)
        config = uvicorn.Config(app, **arguments, proxy_headers=False)
        config.interface = "asgi3"
        config.load()
        config.get_loop_factory()
    except (TypeError, ValueError, KeyError, ImportError) as error:
        raise SettingError("worker_class", f"uvicorn can't be set up: {error}") from error
    return config


def as_asgi3(app: Any) -> App:
    """The app in the shape that ASGI has since its version 3."""
    kinds = app_kind.kinds(app)
    return ASGI2Middleware(app) if "asgi2" in kinds and "asgi3" not in kinds else app  # type: ignore[return-value]


def limited(app: App, most: int, connections: set[Any]) -> App:
    """uvicorn's `limit_concurrency`. It answers before it calls the app: nothing would count or log that."""
    calls, answer = 0, cast("App", service_unavailable)

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal calls
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
        elif scope["type"] == "http" and (len(connections) >= most or calls >= most):
            logging.getLogger(_LOGGER).warning("Exceeded concurrency limit.")
            await answer(scope, receive, send)
        else:
            calls += 1
            try:
                await app(scope, receive, send)
            finally:
                calls -= 1

    return call


def count_ends(protocol: type[Any], lost: Callable[[Any], None]) -> type[Any]:
    """A protocol of uvicorn's that calls `lost` with itself at its connection's end.

    It also drops what refers back to it then, and which only the garbage collector would find otherwise: each
    connection would leave some kilobytes behind until that runs, and for good where an app has turned it off.
    """

    class Counted(protocol):  # type: ignore[misc]
        # See `tls_reading`.
        arrived = False

        def data_received(self, data: bytes) -> None:
            self.arrived = True
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            # uvicorn cancels the timer of a connection that has ended cleanly, but not of one that was reset.
            timer = getattr(self, "timeout_keep_alive_task", None)
            if timer is not None:
                timer.cancel()
                self.timeout_keep_alive_task = None
            # Pipelined requests that were never begun call the protocol at their end.
            pipeline = getattr(self, "pipeline", ())
            while pipeline:
                pipeline.pop()[0].on_response = _nothing
            # websockets' parser is a generator whose frame refers back. It waits for more.
            parser = getattr(getattr(self, "conn", None), "parser", None)
            if isinstance(parser, GeneratorType):
                parser.close()
            # websockets keeps why it has refused a handshake, with the frames that refer to what keeps it.
            error = getattr(getattr(self, "conn", None), "handshake_exc", None)
            while error is not None:
                traceback.clear_frames(error.__traceback__)
                before, error.__traceback__ = error.__context__, None
                error.__context__ = error.__cause__ = None
                error = before
            lost(self)

        def handle_websocket_upgrade(self, *args: Any) -> None:
            super().handle_websocket_upgrade(*args)
            # Another protocol has the connection now, and its `connection_lost` will be called.
            successor = self.transport.get_protocol()
            successor.address, successor.sock = getattr(self, "address", None), getattr(self, "sock", None)
            self.drop_parser()

        def drop_parser(self) -> None:
            """httptools' parser refers back; for protocols whose `connection_lost` is not called."""
            if hasattr(self, "parser"):
                self.parser = None

    return Counted


def _nothing() -> None:
    pass


def drop_cycles_of_asyncio() -> None:
    """Have asyncio's transports drop the method of their own that they keep for what comes.

    After the end of a connection it is called no more; but by it each transport refers to itself.
    """
    transport: Any = getattr(asyncio.selector_events, "_SelectorSocketTransport", None)
    original = getattr(transport, "_call_connection_lost", None)
    if original is None or hasattr(original, "drops_cycle"):
        return  # another version of Python has other names; its cycles stay for the garbage collector

    def call_connection_lost(self: Any, exc: Exception | None) -> None:
        try:
            original(self, exc)
        finally:
            self._read_ready_cb = None

    call_connection_lost.drops_cycle = True  # type: ignore[attr-defined]
    transport._call_connection_lost = call_connection_lost


class UvicornLogHandler(logging.Handler):
    """Writes what uvicorn logs into our log; what is less than a warning, for debugging only.

    Warnings and errors are limited: any client can cause one by bytes that are no HTTP.
    """

    def __init__(self, log: Log, limited: LimitedLog, app: AsgiApp) -> None:
        super().__init__()
        self._log = log
        self._limited = limited
        self._app = app

    def emit(self, record: logging.LogRecord) -> None:
        if self._app.quitting or record.msg == INVALID:  # `request_refused` says more
            return
        fields = {}
        if record.exc_info and (error := record.exc_info[1]) is not None:
            if error is self._app.logged:
                self._app.logged = None
                return
            fields["traceback"] = trace_of(error)
        level = next((name for least, name in _LEVELS.items() if record.levelno >= least), "debug")
        fields["message"] = record.getMessage().strip()
        if level == "debug":
            self._log.debug("uvicorn", **fields)
        else:
            self._limited.write(level, "uvicorn", "", **fields)


def forward_logs(log: Log, limited: LimitedLog, app: AsgiApp, level: str) -> None:
    """Write what uvicorn logs into our log, unless the app has set up uvicorn's logger itself."""
    logger = logging.getLogger(_LOGGER)
    if not (logger.handlers or logging.getLogger("uvicorn").handlers):
        logger.handlers = [UvicornLogHandler(log, limited, app)]
        logger.propagate = False
        logger.setLevel(logging.INFO if level == "debug" else logging.WARNING)
    elif logger.level == logging.NOTSET:
        # uvicorn looks at the logger's own level, and takes none for the lowest.
        logger.setLevel(logging.INFO)
