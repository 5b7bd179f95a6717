"""The daemon's control server: loaded and started beside the app, as the settings say.

A failure is a warning, never a reason not to serve.
"""

import asyncio
import gc
import os
import re
import secrets
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from ostler.control.acceptor import BACKLOG
from ostler.control.control_state import ControlState, UnixControlState
from ostler.control.guard import loopback_address
from ostler.control.sockets import OwnedSocket, SocketInUse, default_socket_path, safe_name
from ostler.control.tcp_listener import listen_tcp
from ostler.daemon.reporting.journal import Journal
from ostler.errors import OstlerError, SettingError
from ostler.logs.setup import get_logger
from ostler.osapi import trust
from ostler.osapi.account import find_account
from ostler.osapi.files import read_file
from ostler.osapi.needed import look_at_variables
from ostler.settings.address import Address, parse_address
from ostler.settings.table import Settings
from ostler.text import name_and_text

if TYPE_CHECKING:
    from ostler.control.handlers import Backend
    from ostler.control.server import ControlServer

T = TypeVar("T")

_LONGEST_TOKEN = 4096  # bytes
# As http.client and servers take it in a header: RFC 6750 section 2.1 (b68token), and what else is printed.
_TOKEN = re.compile(rb"[!-~]+")
# Seconds that a thread which loads modules keeps the interpreter lock while the event loop waits for it.
_SWITCH = 0.0005


class _Unserved(NamedTuple):
    """The Unix socket before the server is loaded.

    app_uid: the user that the app runs as, if it is another one.
    """

    owned: OwnedSocket
    mode: int
    app_uid: int | None


class ControlPlane:
    """The control server and its listeners. Called only by the event loop's thread.

    The server and its libraries are loaded in a thread, while the fleet starts. That is not put off until the
    first client comes: the files may be those of another version by then.

    Args:
        backend, journal: what it works with.
        any_port: if the port in `control_bind` is taken, any other will do.
        before: what the program before this one left, after an upgrade in place.
        read_files: the files of this release may be removed while it runs, so all are read at the start.
    """

    def __init__(
        self, backend: "Backend", journal: Journal, any_port: bool, before: ControlState, read_files: bool
    ) -> None:
        self._backend = backend
        self._journal = journal
        self._any_port = any_port
        self._before = before
        self._read_files = read_files
        self._unserved: _Unserved | None = None
        self._server: ControlServer | None = None

    async def start(self, settings: Settings, name: str) -> None:
        """Open the listeners that the settings name, and serve them. name: the instance's."""
        # All are opened before the server is loaded: clients that come meanwhile wait in their queues.
        tcp = agents = None
        if not settings.control_socket_disable:
            needs_file = settings.control_bind and not settings.control_token_file
            hint = "; --control-bind then needs --control-token-file too" if needs_file else ""
            self._unserved = self._attempt(lambda: self._claim(settings, name), hint)
        if settings.control_bind:
            tcp = self._attempt(lambda: self._listen_tcp(settings))
        if settings.agent_check:
            agents = self._attempt(lambda: self._listen_for_agents(settings))
        elif self._before.agent_check is not None:
            os.close(self._before.agent_check)
        if not (self._unserved or tcp or agents):
            return
        path = self._unserved.owned.path if self._unserved is not None else None
        await self._load()
        if self._server is None:
            for sock in (tcp, agents):
                if sock is not None:
                    sock.close()
            return
        if tcp is not None:
            try:
                await self._serve_tcp(self._server, tcp, settings, path)
            except (OstlerError, OSError) as error:
                tcp.close()
                self._unavailable(str(error))
        if agents is not None:
            bound = self._server.serve_agent_check(agents)
            if self._before.agent_check is None:
                self._journal.record("info", "agent_check", {"address": bound})

    async def _load(self) -> None:
        """Load the server, and let it serve the Unix socket, if there is one."""
        try:
            server = (await _loaded(self._read_files))(self._backend, get_logger())
            if self._unserved is not None:
                await server.serve_unix(*self._unserved)
        except Exception as error:  # noqa: BLE001 - an incomplete installation, say
            self._unavailable(f"can't load what it needs: {name_and_text(error)}{look_at_variables()}")
            self._release_unserved()
        else:
            self._server, self._unserved = server, None

    def login_link(self) -> str | None:
        """See `ControlServer`; None before it is loaded."""
        return self._server.login_link() if self._server is not None else None

    async def ensure(self) -> None:
        """See `ControlServer`."""
        if self._server is not None:
            await self._server.ensure()

    def snapshot(self) -> ControlState:
        """The state for the next program in this process; changes nothing here."""
        if self._server is not None:
            return self._server.snapshot()
        if self._unserved is None:
            return self._before
        owned = self._unserved.owned
        unix = UnixControlState(str(owned.path), owned.socket.fileno(), owned.lock)
        return msgspec.structs.replace(self._before, unix=unix)

    async def close(self) -> None:
        """See `ControlServer`. May be called twice."""
        if self._server is not None:
            await self._server.close()
        self._release_unserved()

    def _release_unserved(self) -> None:
        if self._unserved is not None:
            self._unserved.owned.release()
            self._unserved = None

    # -- listeners ------------------------------------------------------------------------------------------

    def _attempt(self, action: Callable[[], T], hint: str = "") -> T | None:
        """Open a listener; a failure is reported, with `hint` at its end."""
        try:
            return action()
        except (OstlerError, OSError) as error:
            self._unavailable(f"{error}{hint}")
            return None

    def _unavailable(self, problem: str) -> None:
        self._journal.record("warning", "control_unavailable", {"problem": problem})

    def _claim(self, settings: Settings, name: str) -> _Unserved:
        """Raises OstlerError, OSError."""
        mode = int(settings.control_socket_mode, 8)
        account = find_account(settings.user, settings.group, settings.initgroups)
        app_uid = account.uid if account is not None else None
        if (left := self._before.unix) is not None:
            owned = OwnedSocket.adopt(Path(left.path), left.fd, left.lock_fd, mode)
        elif settings.control_socket:
            owned = OwnedSocket.claim(Path(settings.control_socket), mode)
        else:
            try:
                owned = OwnedSocket.claim(default_socket_path(name, mode), mode)
            except SocketInUse:
                # A second instance of the same app: its socket gets another name.
                owned = OwnedSocket.claim(default_socket_path(f"{safe_name(name)}-{os.getpid()}", mode), mode)
        owned.socket.listen(BACKLOG)
        return _Unserved(owned, mode, app_uid)

    def _listen_tcp(self, settings: Settings) -> socket.socket:
        """Raises SettingError."""
        if (left := self._before.tcp) is not None:
            return socket.socket(fileno=left.fd)
        wanted = _address(settings)
        address = loopback_address(wanted.host)
        try:
            return listen_tcp("control_bind", address, wanted.port)
        except SettingError:
            if not self._any_port:
                raise
            return listen_tcp("control_bind", address, 0)

    def _listen_for_agents(self, settings: Settings) -> socket.socket:
        """Raises SettingError."""
        if (left := self._before.agent_check) is not None:
            return socket.socket(fileno=left)
        address = parse_address(settings.agent_check or "")
        return listen_tcp("agent_check", address.host, address.port)

    async def _serve_tcp(
        self, server: "ControlServer", sock: socket.socket, settings: Settings, socket_path: Path | None
    ) -> None:
        """Raises SettingError."""
        if (left := self._before.tcp) is not None:
            if self._before.token_file is not None:
                try:
                    server.write_token(Path(self._before.token_file), left.token)
                except SettingError as error:
                    # The listener is open already and has to be served.
                    self._journal.record("warning", "control_unavailable", {"problem": str(error)})
            await server.serve_tcp(sock, left.token, left)
            return
        url = await server.serve_tcp(sock, self._token(server, settings, socket_path))
        self._journal.record("info", "control", {"url": url, "socket": str(socket_path or "")})

    def _token(self, server: "ControlServer", settings: Settings, socket_path: Path | None) -> str:
        """The bearer token: read from the file that was named, else a new one.

        Raises:
            SettingError: the file can't be read, or a new one can't be written.
        """
        if settings.control_token_file:
            return self._read_token(settings.control_token_file)
        token = secrets.token_urlsafe(32)
        if socket_path is not None:  # without it the token stays unknown; one-time login links work
            server.write_token(socket_path.with_suffix(".token"), token)
        return token

    def _read_token(self, path: str) -> str:
        """Raises SettingError."""
        setting = "control_token_file"
        if os.geteuid() == 0 and (others := trust.writers(path)):
            problem = (
                f"{trust.shown(others)} and so choose the token; let only root write {path} and its folders"
            )
            raise SettingError(setting, problem)
        try:
            text = read_file(path, _LONGEST_TOKEN).strip()
            mode = Path(path).stat().st_mode
        except OSError as error:
            raise SettingError(setting, f"can't read {path}: {error.strerror}") from None
        if not text:
            raise SettingError(setting, f"{path} is empty; write the bearer token into it")
        if not _TOKEN.fullmatch(text):
            problem = "a bearer token consists of printable ASCII characters without spaces"
            raise SettingError(setting, f"{path} holds no token; {problem}")
        if mode & 0o077:
            problem = f"{setting}: {path} is open to other users (mode {mode & 0o777:04o}); chmod 600 it"
            self._journal.record("warning", "configuration", {"problem": problem})
        return text.decode("ascii")


async def _loaded(read_files: bool) -> "type[ControlServer]":
    """As `_load`, in a thread, since the fleet starts meanwhile; without one if there can be none.

    Not in asyncio's own threads: their end would need one more.
    """
    loop = asyncio.get_running_loop()
    loaded: asyncio.Future[type[ControlServer]] = loop.create_future()

    def give(function: Callable[[Any], None], result: Any) -> None:
        if not loaded.done():
            function(result)

    def load() -> None:
        try:
            function, result = loaded.set_result, _load(read_files)
        except Exception as error:  # noqa: BLE001 - it is raised in the loop
            function, result = loaded.set_exception, error  # type: ignore[assignment]
        with suppress(RuntimeError):  # the loop is closed: the daemon has ended meanwhile
            loop.call_soon_threadsafe(give, function, result)

    try:
        threading.Thread(target=load, name="ostler-load").start()
    except RuntimeError:
        return _load(read_files)
    return await loaded


def _load(read_files: bool) -> "type[ControlServer]":
    """Import the control server and its libraries."""
    interval, collects = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(_SWITCH)
    gc.disable()
    try:
        with _no_certificates():
            from ostler.control.server import ControlServer
        if read_files:
            from ostler.control import metrics, pages

            metrics.load()
            pages.read_all()
        gc.freeze()  # what was loaded is needed until the end
        return ControlServer
    finally:
        sys.setswitchinterval(interval)
        if collects:
            gc.enable()


@contextmanager
def _no_certificates() -> Iterator[None]:
    """For the import of aiohttp, which reads the certificates of all authorities that the machine trusts, for
    clients. The supervisor is none: it saves time, and 2 MB."""
    load = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]


def _address(settings: Settings) -> Address:
    try:
        address = parse_address(settings.control_bind or "")
    except ValueError as error:
        raise SettingError("control_bind", str(error)) from None
    if address.kind != "tcp":
        raise SettingError("control_bind", f"expected HOST:PORT, got {settings.control_bind!r}")
    return address
