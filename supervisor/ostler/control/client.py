"""The API's client for `ctl`: synchronous, based on http.client, fast to import.

The route table has the types of bodies and answers: `client.call(SCALE, Scale(delta=2))` is a StatusView.
Never imports aiohttp or asyncio.
"""

import errno
import http.client
import os
import socket
import stat
import urllib.parse
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec

from ostler.control.routes import STATUS, Ask, Route, View
from ostler.control.sockets import UntrustedFolder, candidate_dirs, trusted_owners
from ostler.control.views import ErrorView, StatusView
from ostler.errors import OstlerError
from ostler.osapi.peers import account_name, is_local, tcp_owners, unix_peer

SECONDS = 10.0
"""Time-out of one request; the end of a reload is polled, so no request takes long."""
LARGEST_ANSWER = 64 << 20
"""Bytes; answers of a daemon with 500 workers and 1,000 tracebacks are far smaller."""

Judge = Callable[[int], object]
"""Called with the uid of the server before anything is sent to it; raises if that user is not trusted."""

_NO_API = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Exceptions of msgspec for bytes that are not JSON, or not of the type."""


class UnreachableError(OstlerError):
    """No server answers there, or the connection broke."""


class UntrustedServerError(OstlerError):
    """The server's process belongs to a user that is not trusted; nothing was sent to it."""


class RefusedError(OstlerError):
    """The daemon answered with an ErrorView; `str()` is its message."""

    def __init__(self, status: int, view: ErrorView) -> None:
        super().__init__(view.message)
        self.status = status
        self.code = view.error


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float, judge: Judge | None) -> None:
        super().__init__("localhost", timeout=seconds)
        self._path = path
        self._judge = judge

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(os.fspath(self._path))
            if self._judge is not None:
                self._judge(unix_peer(self.sock).uid)
        except BaseException:
            self.close()
            raise


class _TcpConnection(http.client.HTTPConnection):
    """Checks the server's user before the token is sent.

    Any user may listen on a port that the daemon has left.
    """

    def __init__(self, host: str, port: int, seconds: float, trusted: Collection[int]) -> None:
        super().__init__(host, port, timeout=seconds)
        self._trusted = trusted

    def connect(self) -> None:
        try:
            super().connect()
            if is_local(self.sock):
                self._check(tcp_owners(self.sock))
        except UnicodeError:
            raise OSError(errno.EINVAL, "invalid host name") from None
        except BaseException:
            self.close()
            raise

    def _check(self, owners: set[int]) -> None:
        where = f"http://{self.host}:{self.port}"
        if not owners:
            raise UntrustedServerError(
                f"can't find the user of the process that listens at {where}; the token was not sent "
                "(use the control socket, or an SSH tunnel of your own)"
            )
        for uid in owners.difference(self._trusted):
            raise UntrustedServerError(
                f"at {where} a process of {account_name(uid)} listens, not yours or root's; the token was "
                "not sent (--owner USER accepts that user's)"
            )


class Client:
    """A client of one daemon. Keeps its connection; not thread-safe."""

    def __init__(self, connection: http.client.HTTPConnection, where: str, token: str | None = None) -> None:
        self.where = where
        self._connection = connection
        self._token = token

    @classmethod
    def unix(cls, path: Path, seconds: float = SECONDS, judge: Judge | None = None) -> "Client":
        """`judge`: None to trust the server at the path, whatever its user is."""
        return cls(_UnixConnection(path, seconds, judge), str(path))

    @classmethod
    def tcp(
        cls, url: str, token: str, seconds: float = SECONDS, trusted: Collection[int] | None = None
    ) -> "Client":
        """A client of a daemon at a TCP port.

        Args:
            trusted: uids whose processes on this machine may get the token; None: our own and root.

        Raises:
            OstlerError: `url` is not like http://127.0.0.1:PORT.
        """
        try:
            parts = urllib.parse.urlsplit(url)
            scheme, host, port = parts.scheme, parts.hostname, parts.port
        except ValueError:
            scheme, host, port = "", None, None
        if scheme != "http" or not host or port is None:
            raise OstlerError(f"{url!r} is no control address; it looks like http://127.0.0.1:PORT")
        trusted = {0, os.geteuid()} if trusted is None else trusted
        return cls(_TcpConnection(host, port, seconds, trusted), url, token)

    def call(self, route: Route[Ask, View], ask: Ask | None = None, **numbers: int) -> View:
        """Send one request.

        Args:
            ask: the request's body; None: all defaults.
            numbers: for the path's `{parameters}` and for its query.

        Raises:
            RefusedError: an error answer. UnreachableError: no answer.
            UntrustedServerError: nothing was sent.
        """
        body = self.raw(route, ask, **numbers)
        if route.view is None:
            return cast("View", None)
        try:
            return msgspec.json.decode(body, type=route.view)
        except _NO_API as error:
            raise UnreachableError(f"{self.where} answers, but not as Ostler's API: {error}") from error

    def raw(self, route: Route[Ask, View], ask: Ask | None = None, **numbers: int) -> bytes:
        """As `call`, but returns the unparsed body, including fields that a newer daemon may have added."""
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
        except _NO_API:
            view = ErrorView(
                "unknown", f"{self.where} answered {url} with status {status}, not as Ostler's API"
            )
        raise RefusedError(status, view)

    def server_pid(self) -> int | None:
        """The process at the other end of the Unix socket, in our own pid namespace; else None."""
        sock = self._connection.sock
        if sock is None or sock.family != socket.AF_UNIX:
            return None
        return unix_peer(sock).pid or None

    def close(self) -> None:
        self._connection.close()

    def _exchange(
        self, method: str, url: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, bytes]:
        # A kept connection may have been closed meanwhile: then a GET is sent again, a change never.
        attempts = 2 if self._connection.sock is not None and method == "GET" else 1
        while True:
            attempts -= 1
            try:
                self._connection.request(method, url, body, headers)
                with self._connection.getresponse() as answer:
                    data = answer.read(LARGEST_ANSWER)
                    if answer.read(1):
                        limit = f"{LARGEST_ANSWER >> 20} MiB"
                        raise http.client.HTTPException(f"its answer is larger than {limit}")
                    return answer.status, data
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
    trusted: Collection[int]
    """Users whose processes are trusted there."""

    def client(self) -> Client:
        return Client.unix(self.path, judge=_only(self.trusted, self.path))


@dataclass(frozen=True, slots=True)
class Discovery:
    found: list[Found]
    denied: list[Path]
    """Sockets, or folders of them, without permission to use them."""
    looked_in: list[Path]
    untrusted: list[str] = field(default_factory=list)
    """Sockets and folders that were skipped because another user may have made them: one line each."""
    silent: list[Path] = field(default_factory=list)
    """Sockets whose server did not answer in time: it is busy, stopped, or hangs."""


def discover() -> Discovery:
    """Request the status from every control socket in the usual folders.

    Nothing is sent to another user's process, unless root has given the folder to that user: see
    `trusted_owners`.
    """
    found: list[Found] = []
    denied: list[Path] = []
    untrusted: list[str] = []
    silent: list[Path] = []
    folders = candidate_dirs()
    for folder in folders:
        try:
            trusted = trusted_owners(folder)
            paths = sorted(folder.iterdir())
        except UntrustedFolder as error:
            untrusted.append(str(error))
            continue
        except PermissionError:
            denied.append(folder)
            continue
        except OSError:
            continue  # most of the usual folders do not exist
        for path in paths:
            if path.suffix != ".sock":
                continue
            client = Client.unix(path, SECONDS, judge=_only(trusted, path))
            try:
                if _is_socket_of(trusted, path):
                    found.append(Found(path, client.call(STATUS), trusted))
            except UntrustedServerError as error:
                untrusted.append(str(error))
            except (UnreachableError, RefusedError) as error:
                refused = isinstance(error, RefusedError) and error.status == 403
                if refused or isinstance(error.__cause__, PermissionError):
                    denied.append(path)
                elif isinstance(error.__cause__, TimeoutError):
                    silent.append(path)
            finally:
                client.close()
    return Discovery(found, denied, folders, untrusted, silent)


def _is_socket_of(trusted: Collection[int], path: Path) -> bool:
    """Whether there is a socket; raises UntrustedServerError if it is another user's."""
    try:
        info = path.lstat()
    except OSError:
        return False  # it has just ended
    if info.st_uid not in trusted:
        raise UntrustedServerError(f"{path} belongs to {account_name(info.st_uid)}")
    return stat.S_ISSOCK(info.st_mode)


def _only(trusted: Collection[int], path: Path) -> Judge:
    def judge(uid: int) -> None:
        if uid not in trusted:
            raise UntrustedServerError(f"{path} is served by a process of {account_name(uid)}")

    return judge
