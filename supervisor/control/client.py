"""The API's client, as `ctl` uses it: synchronous, on http.client, quick to import.

The route table says what is sent and what comes back: `client.call(SCALE, Scale(delta=2))` is a StatusView.
Never imports aiohttp or asyncio.
"""

import http.client
import os
import socket
import struct
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec

from supervisor.control.routes import STATUS, Ask, Route, View
from supervisor.control.sockets import candidate_dirs
from supervisor.control.views import ErrorView, StatusView
from supervisor.errors import OstlerError

SECONDS = 10.0
"""Time-out of one question; a waiting reload is polled, so none takes long."""
DISCOVERY_SECONDS = 1.0

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))


class UnreachableError(OstlerError):
    """Nobody answers there, or the connection broke."""


class RefusedError(OstlerError):
    """The daemon answered with an ErrorView; `str()` is its message."""

    def __init__(self, status: int, view: ErrorView) -> None:
        super().__init__(view.message)
        self.status = status
        self.word = view.error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._path))
        except BaseException:
            self.close()
            raise


class Client:
    """One daemon. Keeps its connection; not for several threads at once."""

    def __init__(self, connection: http.client.HTTPConnection, where: str, token: str | None = None) -> None:
        self.where = where
        self._connection = connection
        self._token = token

    @classmethod
    def unix(cls, path: Path, seconds: float = SECONDS) -> "Client":
        return cls(_UnixConnection(path, seconds), str(path))

    @classmethod
    def tcp(cls, url: str, token: str, seconds: float = SECONDS) -> "Client":
        """Raises OstlerError if `url` is not like http://127.0.0.1:PORT."""
        parts = urllib.parse.urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None:
            raise OstlerError(f"{url!r} is no control address; it looks like http://127.0.0.1:PORT")
        connection = http.client.HTTPConnection(parts.hostname, port, timeout=seconds)
        return cls(connection, url, token)

    def call(self, route: Route[Ask, View], ask: Ask | None = None, **numbers: int) -> View:
        """Ask one thing.

        Args:
            ask: the request's body; None: all defaults.
            numbers: those of the path's `{parameters}` and of its query.

        Raises:
            RefusedError: an error answer. UnreachableError: no answer.
        """
        body = self.raw(route, ask, **numbers)
        if route.view is None:
            return cast("View", None)
        try:
            return msgspec.json.decode(body, type=route.view)
        except msgspec.DecodeError as error:
            raise UnreachableError(f"{self.where} answers, but not as Ostler's API: {error}") from error

    def raw(self, route: Route[Ask, View], ask: Ask | None = None, **numbers: int) -> bytes:
        """Like `call`; the body as it came, with what a newer daemon may have added."""
        url = route.path.format(**numbers)
        if query := {name: numbers[name] for name in route.query if name in numbers}:
            url = f"{url}?{urllib.parse.urlencode(query)}"
        headers = {"Accept": route.media}
        body = None
        if ask is not None:
            body = msgspec.json.encode(ask)
            headers["Content-Type"] = "application/json"
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        status, answer = self._exchange(route.method, url, body, headers)
        if status in (route.status, *route.also):
            return answer
        try:
            view = msgspec.json.decode(answer, type=ErrorView)
        except msgspec.DecodeError:
            view = ErrorView(
                "unknown", f"{self.where} answered {url} with status {status}, not as Ostler's API"
            )
        raise RefusedError(status, view)

    def server_pid(self) -> int | None:
        """The process at the other end of the Unix socket, in our own pid namespace; else None."""
        sock = self._connection.sock
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        pid, _, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        return pid or None

    def close(self) -> None:
        self._connection.close()

    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        # A kept connection may have been closed meanwhile: a question is then asked again, a wish never.
        attempts = 2 if self._connection.sock is not None and method == "GET" else 1
        while True:
            attempts -= 1
            try:
                self._connection.request(method, url, body, headers)
                answer = self._connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException) as error:
                self._connection.close()
                if not attempts or isinstance(error, TimeoutError):
                    raise UnreachableError(f"no Ostler answers at {self.where} ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class Found:
    """An instance that answered."""

    path: Path
    status: StatusView


@dataclass(frozen=True, slots=True)
class Discovery:
    found: list[Found]
    denied: list[Path]
    """Sockets, or folders of them, that are another user's."""
    looked_in: list[Path]


def discover() -> Discovery:
    """Ask every control socket in the usual folders who it is."""
    found: list[Found] = []
    denied: list[Path] = []
    folders = candidate_dirs()
    for folder in folders:
        try:
            paths = sorted(folder.iterdir())
        except PermissionError:
            denied.append(folder)
            continue
        except OSError:
            continue  # most of the usual folders do not exist
        for path in paths:
            if path.suffix != ".sock":
                continue
            client = Client.unix(path, DISCOVERY_SECONDS)
            try:
                found.append(Found(path, client.call(STATUS)))
            except (UnreachableError, RefusedError) as error:
                refused = isinstance(error, RefusedError) and error.status == 403
                if refused or isinstance(error.__cause__, PermissionError):
                    denied.append(path)
            finally:
                client.close()
    return Discovery(found, denied, folders)
