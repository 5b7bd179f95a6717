"""The control plane's listeners: a Unix socket, and if they are configured loopback TCP and the agent check.

Each is started separately and may fail separately: the data plane comes first, and the daemon logs a failure
here as one warning.
"""

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from ostler.control.acceptor import ControlAcceptor
from ostler.control.agent_check import AgentCheck
from ostler.control.app import build_app
from ostler.control.connections import ControlConnections
from ostler.control.control_state import ControlState, TcpControlState, UnixControlState
from ostler.control.guard import (
    Clock,
    Guard,
    LoginHandlers,
    LoopbackGuard,
    UnixGuard,
    loopback_address,
)
from ostler.control.handlers import Backend, FleetHandlers, Handler, shows
from ostler.control.pages import STATIC, add_pages
from ostler.control.routes import ROUTES, STREAM
from ostler.control.sockets import OWN, OwnedSocket, TokenFile, candidate_dirs, default_socket_path
from ostler.control.stream import Streams
from ostler.control.tcp_listener import listen_tcp, url_host
from ostler.errors import SettingError
from ostler.logs.limiter import LimitedLog

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

__all__ = ["ControlServer", "candidate_dirs", "default_socket_path"]

SHUTDOWN_SECONDS = 1.0
"""How long running answers may take at `close`."""


class ControlServer:
    """Serves the API of `backend`. All methods are called in one event loop.

    Args:
        backend: the daemon.
        log: gets `control_change`, `control_request_failed`, `control_stream_dropped`, `control_bad_http`,
            and `log_suppressed` if clients cause too many of them.
        clock: monotonic seconds, for codes and sessions.
        static: the folder of the dashboard's built files.
        streams: a factory, for other limits than the defaults.
    """

    def __init__(
        self,
        backend: Backend,
        log: "FilteringBoundLogger",
        *,
        clock: Clock = time.monotonic,
        static: Path = STATIC,
        streams: Callable[[Backend, LimitedLog], Streams] = Streams,
    ) -> None:
        self._log = log
        self._limited = LimitedLog(log, time.monotonic)
        self._readiness = backend.readiness
        self._clock = clock
        self._static = static
        self._streams = streams(backend, self._limited)
        self._logins = LoginHandlers()
        self._handlers = bind_handlers(backend, self._logins)
        self._runners: list[_Runner] = []
        self._unix: _Unix | None = None
        self._tcp: socket.socket | None = None
        self._agent_check: AgentCheck | None = None
        self._token_file: TokenFile | None = None
        self._problem = ""

    async def start_unix(
        self,
        path: Path,
        inherited: UnixControlState | None = None,
        mode: int = OWN,
        app_uid: int | None = None,
    ) -> None:
        """Serve on the Unix socket `path` for our own user, root, and users that `mode` permits.

        Args:
            inherited: the state of this socket from the program before an upgrade.
            app_uid: the user that the app runs as, if it is another one.

        Raises:
            SettingError: names `control_socket`; nothing is left behind.
        """
        if inherited is None:
            owned = OwnedSocket.claim(path, mode)
        else:
            owned = OwnedSocket.adopt(Path(inherited.path), inherited.fd, inherited.lock_fd, mode)
        await self.serve_unix(owned, mode, app_uid)

    async def serve_unix(self, owned: OwnedSocket, mode: int = OWN, app_uid: int | None = None) -> None:
        """Serve on a Unix socket, which is this server's from now on; see `start_unix`."""
        guard = UnixGuard(shared=bool(mode & 0o077), app_uid=app_uid)
        runner = await self._run(guard, owned.socket)
        self._unix = _Unix(owned, runner)

    async def start_tcp(
        self, host: str, port: int, token: str, inherited: TcpControlState | None = None
    ) -> str:
        """Serve the API and the dashboard on loopback; returns the base URL as bound, without a final slash.

        Args:
            host: 127.0.0.1, localhost or ::1.
            port: 0 for any free one.
            token: the bearer token; must not be empty.
            inherited: the state of this listener from the program before an upgrade.

        Raises:
            SettingError: names `control_bind`.
        """
        address = loopback_address(host)
        sock = (
            listen_tcp("control_bind", address, port)
            if inherited is None
            else socket.socket(fileno=inherited.fd)
        )
        return await self.serve_tcp(sock, token, inherited)

    async def serve_tcp(
        self, sock: socket.socket, token: str, inherited: TcpControlState | None = None
    ) -> str:
        """Serve on a socket that listens on loopback, which is this server's from now on; see `start_tcp`."""
        if not token:
            sock.close()
            raise SettingError("control_bind", "the bearer token is empty")
        address, port = sock.getsockname()[:2]
        guard = LoopbackGuard(address, port, token, self._clock)
        if inherited is not None:
            guard.take_over(inherited)
        await self._run(guard, sock, pages=guard.base_url)
        self._tcp = sock
        self._logins.guard = guard
        return guard.base_url

    def start_agent_check(self, host: str, port: int, inherited: int | None = None) -> str:
        """Answer HAProxy's agent check; returns the address as bound.

        Args:
            host: an IPv4 or IPv6 address.
            port: 0 for any free one.
            inherited: the listener's descriptor from the program before an upgrade, if there is one.

        Raises:
            SettingError: names `agent_check`.
        """
        sock = listen_tcp("agent_check", host, port) if inherited is None else socket.socket(fileno=inherited)
        return self.serve_agent_check(sock)

    def serve_agent_check(self, sock: socket.socket) -> str:
        """Answer on a socket that listens, which is this server's from now on; returns its address."""
        self._agent_check = AgentCheck(sock, self._readiness, self._limited)
        host, port = sock.getsockname()[:2]
        return f"{url_host(host)}:{port}"

    def write_token(self, path: Path, token: str) -> None:
        """Keep the bearer token in a file with mode 0600 until `close`.

        Raises:
            SettingError: names `control_token_file`.
        """
        file = TokenFile(path, token)
        file.write()
        self._token_file = file

    def login_link(self) -> str | None:
        """A dashboard address that logs in once, within ten minutes; None without a TCP listener."""
        return self._logins.guard.login_link() if self._logins.guard else None

    async def ensure(self) -> None:
        """Make the socket and the token file again if they, or their folder, were deleted; call it often.

        Files that others have put in their place are not touched. Open connections stay. Also logs how many
        log lines were suppressed.
        """
        self._limited.report()
        try:
            if self._unix is not None and not self._unix.owned.is_there:
                self._unix.bind_again()
                self._log.warning("control_socket_restored", path=str(self._unix.owned.path))
            # After the socket: another instance that has the socket now may have written a token.
            if self._token_file is not None and not self._token_file.is_there:
                self._token_file.write()
                self._log.warning("control_token_restored", path=str(self._token_file.path))
        except SettingError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._log.warning("control_socket_lost", problem=self._problem)
        else:
            self._problem = ""

    def snapshot(self) -> ControlState:
        """The state for the next program in this process; changes nothing here."""
        guard, owned = self._logins.guard, self._unix and self._unix.owned
        return ControlState(
            UnixControlState(str(owned.path), owned.socket.fileno(), owned.lock) if owned else None,
            guard.snapshot(self._tcp.fileno()) if guard and self._tcp else None,
            str(self._token_file.path) if self._token_file else None,
            self._agent_check.fd if self._agent_check else None,
        )

    async def close(self) -> None:
        """End streams, finish running answers, remove the socket. May be called twice."""
        self._streams.close()
        if self._unix is not None:
            # First, so that the next instance can start at once.
            self._unix.owned.remove()
        if self._token_file is not None:
            self._token_file.remove()
        while self._runners:
            await self._runners.pop().close()
        if self._unix is not None:
            self._unix.owned.release()
        if self._tcp is not None:
            self._tcp.close()
        if self._agent_check is not None:
            self._agent_check.close()
        self._unix = self._tcp = self._token_file = self._logins.guard = self._agent_check = None

    async def _run(self, guard: Guard, sock: socket.socket, pages: str = "") -> "_Runner":
        """Serve on `sock`; `pages`: the base URL if the dashboard is served, too."""
        app = build_app(guard, self._handlers, self._streams, self._limited, self._log)
        if pages:
            add_pages(app, pages, self._static)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=SHUTDOWN_SECONDS)
        await runner.setup()
        running = _Runner(runner, sock, self._limited)
        self._runners.append(running)
        return running


class _Runner:
    """Serves one application on a listening socket, which the caller owns."""

    def __init__(self, runner: web.AppRunner, sock: socket.socket, log: LimitedLog) -> None:
        self._runner = runner
        self._log = log
        assert runner.server is not None  # set by setup()
        self._connections = ControlConnections(runner.server, sock.family, _protocol_logger(log))
        self._acceptor = ControlAcceptor(sock, self._connections.admit, log)

    def accept_from(self, sock: socket.socket) -> None:
        """Accept from another socket in the place of the current one; connections stay."""
        self._acceptor.close()
        self._acceptor = ControlAcceptor(sock, self._connections.admit, self._log)

    async def close(self) -> None:
        """Stop accepting, finish running answers, close all connections."""
        self._acceptor.close()
        await self._runner.cleanup()
        self._connections.close()


class _Unix:
    """The Unix socket and its runner."""

    def __init__(self, owned: OwnedSocket, runner: _Runner) -> None:
        self.owned = owned
        self._runner = runner

    def bind_again(self) -> None:
        """Raises SettingError."""
        before = self.owned
        self.owned = before.claim_again()
        self._runner.accept_from(self.owned.socket)
        before.socket.close()


class _ToStructlog(logging.Handler):
    def __init__(self, log: LimitedLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        problem = " ".join(str(error).split()) if error else record.getMessage()
        self._log.write("debug", "control_bad_http", "", problem=problem[:200])


def _protocol_logger(log: LimitedLog) -> logging.Logger:
    """The logger for aiohttp's protocol layer, which would log a traceback for each malformed request.

    Errors in handlers are logged by the middleware of `app`.
    """
    # Outside of logging's tree: no other handlers get its records.
    logger = logging.Logger("control http")  # noqa: LOG001
    logger.addHandler(_ToStructlog(log))
    return logger


def bind_handlers(backend: Backend, logins: LoginHandlers) -> dict[str, Handler]:
    """Each route's handler by the route's name.

    Raises:
        AttributeError: a route has none.
        KeyError: what the backend shows is no route.
    """
    fleet = FleetHandlers(backend)
    shown = {name: shows(read) for name, read in backend.shown.items()}
    handlers = {}
    for route in ROUTES:
        if route.name in shown:
            handlers[route.name] = shown.pop(route.name)
        elif route.name != STREAM.name:
            handlers[route.name] = getattr(logins if hasattr(logins, route.name) else fleet, route.name)
    if shown:
        raise KeyError(*shown)
    return handlers
