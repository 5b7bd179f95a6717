"""The daemon's control server: loaded and started beside the app, as the settings say.

A failure is a warning, never a reason not to serve.
"""

import asyncio
import gc
import os
import re
import secrets
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ostler.control.control_state import ControlState, UnixControlState
from ostler.control.sockets import SocketInUse, default_socket_path, safe_name
from ostler.daemon.reporting.journal import Journal
from ostler.errors import OstlerError, SettingError
from ostler.logs.setup import get_logger
from ostler.osapi import trust
from ostler.osapi.account import find_account
from ostler.osapi.files import read_file
from ostler.settings.address import Address, parse_address
from ostler.settings.table import Settings
from ostler.text import name_and_text

if TYPE_CHECKING:
    from ostler.control.handlers import Backend
    from ostler.control.server import ControlServer

_LONGEST_TOKEN = 4096  # bytes
# As http.client and servers take it in a header: RFC 6750 section 2.1 (b68token), and what else is printed.
_TOKEN = re.compile(rb"[!-~]+")
# Seconds that a thread which loads modules keeps the interpreter lock while the event loop waits for it.
_SWITCH = 0.0005


class ControlPlane:
    """The control server, once it is loaded, and its listeners. Called only by the event loop's thread.

    Args:
        backend, journal: what it works with.
        any_port: if the port in `control_bind` is taken, any other will do.
        before: what the program before this one left, after an upgrade in place.
        read_files: the files of this release may be removed while it runs, so they are read at the start.
    """

    def __init__(
        self, backend: "Backend", journal: Journal, any_port: bool, before: ControlState, read_files: bool
    ) -> None:
        self._backend = backend
        self._journal = journal
        self._any_port = any_port
        self._before = before
        self._read_files = read_files
        self._loaded: ControlServer | None = None

    @property
    def _server(self) -> "ControlServer":
        assert self._loaded is not None, "listeners are started when the server is loaded"
        return self._loaded

    def login_link(self) -> str | None:
        """See `ControlServer`; None before it is loaded."""
        return self._loaded.login_link() if self._loaded is not None else None

    async def ensure(self) -> None:
        """See `ControlServer`."""
        if self._loaded is not None:
            await self._loaded.ensure()

    def snapshot(self) -> ControlState:
        """The state for the next program in this process; changes nothing here."""
        return self._loaded.snapshot() if self._loaded is not None else self._before

    async def close(self) -> None:
        """See `ControlServer`."""
        if self._loaded is not None:
            await self._loaded.close()

    async def start(self, settings: Settings, name: str) -> None:
        """Load the server, and start the listeners that the settings name. name: the instance's."""
        try:
            server = await asyncio.to_thread(_load, self._read_files)
        except Exception as error:  # noqa: BLE001 - an incomplete installation, say
            self._unavailable(f"can't load what it needs: {name_and_text(error)}")
            return
        self._loaded = server(self._backend, get_logger())
        socket_path: Path | None = None
        if not settings.control_socket_disable:
            try:
                socket_path = await self._start_socket(settings, name)
            except (OstlerError, OSError) as error:
                hint = ""
                if settings.control_bind and not settings.control_token_file:
                    hint = "; --control-bind then needs --control-token-file too"
                self._unavailable(f"{error}{hint}")
        if settings.control_bind:
            try:
                await self._start_tcp(settings, socket_path)
            except (OstlerError, OSError) as error:
                self._unavailable(str(error))
        try:
            self._start_agent_check(settings)
        except (OstlerError, OSError) as error:
            self._unavailable(str(error))

    def _unavailable(self, problem: str) -> None:
        self._journal.record("warning", "control_unavailable", {"problem": problem})

    async def _start_socket(self, settings: Settings, name: str) -> Path:
        mode = int(settings.control_socket_mode, 8)
        account = find_account(settings.user, settings.group, settings.initgroups)
        app_uid = account.uid if account is not None else None

        async def start(path: Path, inherited: UnixControlState | None = None) -> Path:
            await self._server.start_unix(path, inherited, mode, app_uid)
            return path

        if (left := self._before.unix) is not None:
            return await start(Path(left.path), left)
        if settings.control_socket:
            return await start(Path(settings.control_socket))
        try:
            return await start(default_socket_path(name, mode))
        except SocketInUse:
            # A second instance of the same app: its socket gets another name.
            return await start(default_socket_path(f"{safe_name(name)}-{os.getpid()}", mode))

    async def _start_tcp(self, settings: Settings, socket_path: Path | None) -> None:
        if (left := self._before.tcp) is not None:
            if self._before.token_file is not None:
                try:
                    self._server.write_token(Path(self._before.token_file), left.token)
                except SettingError as error:
                    # The listener is open already and has to be served.
                    self._journal.record("warning", "control_unavailable", {"problem": str(error)})
            await self._server.start_tcp(left.host, left.port, left.token, left)
            return
        address = _address(settings)
        token = self._token(settings, socket_path)
        try:
            url = await self._server.start_tcp(address.host, address.port, token)
        except SettingError:
            if not self._any_port:
                raise
            url = await self._server.start_tcp(address.host, 0, token)
        self._journal.record("info", "control", {"url": url, "socket": str(socket_path or "")})

    def _start_agent_check(self, settings: Settings) -> None:
        left = self._before.agent_check
        if settings.agent_check:
            address = parse_address(settings.agent_check)
            bound = self._server.start_agent_check(address.host, address.port, left)
            if left is None:
                self._journal.record("info", "agent_check", {"address": bound})
        elif left is not None:
            os.close(left)

    def _token(self, settings: Settings, socket_path: Path | None) -> str:
        """The bearer token: read from the file that was named, else a new one.

        Raises:
            SettingError: the file can't be read, or a new one can't be written.
        """
        if settings.control_token_file:
            return self._read_token(settings.control_token_file)
        token = secrets.token_urlsafe(32)
        if socket_path is not None:  # without it the token stays unknown; one-time login links work
            self._server.write_token(socket_path.with_suffix(".token"), token)
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


def _load(read_files: bool) -> "type[ControlServer]":
    """Import the control server and its libraries; in a thread, as the fleet is starting meanwhile."""
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
