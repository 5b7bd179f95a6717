"""Listening sockets: bound here, inherited by every worker, closed when no generation names them."""

import errno
import os
import socket
import stat
from pathlib import Path

from supervisor.errors import SettingError
from supervisor.settings.address import Address, parse_address


class Listeners:
    """All listening sockets, by the address that was asked for.

    Args:
        inherited: descriptors handed over by systemd (sd_listen_fds(3)); they take the place of what `bind`
            asks for, as in gunicorn.
    """

    def __init__(self, inherited: list[int]) -> None:
        self._inherited = [socket.socket(fileno=fd) for fd in inherited]
        self._sockets: dict[str, socket.socket] = {}

    def bind(self, addresses: tuple[str, ...], backlog: int) -> list[str]:
        """Make sure that all `addresses` are bound; returns the keys for `fileno`, in their order.

        Raises:
            SettingError: one can't be bound; those bound by this call are closed again.
        """
        if self._inherited:
            keys = []
            for sock in self._inherited:
                sock.setblocking(False)
                key = f"fd://{sock.fileno()}"
                self._sockets[key] = sock
                keys.append(key)
            return keys
        fresh: list[str] = []
        try:
            for text in dict.fromkeys(addresses):
                if text in self._sockets:
                    self._sockets[text].listen(backlog)  # it may be another one now
                else:
                    self._sockets[text] = _listen(parse_address(text), backlog)
                    fresh.append(text)
        except SettingError:
            for text in fresh:
                self._close(text)
            raise
        return list(dict.fromkeys(addresses))

    def fileno(self, key: str) -> int:
        return self._sockets[key].fileno()

    def urls(self, keys: list[str]) -> list[str]:
        """The addresses as really bound, for people."""
        return [_url(self._sockets[key]) for key in keys if key in self._sockets]

    def keep_only(self, keys: set[str]) -> list[str]:
        """Close all others; returns what was closed."""
        gone = [key for key in self._sockets if key not in keys]
        for key in gone:
            self._close(key)
        return gone

    def _close(self, key: str) -> None:
        sock = self._sockets.pop(key)
        name = sock.getsockname()
        sock.close()
        if sock in self._inherited:
            return
        if key.startswith("unix:") and isinstance(name, str) and name:
            try:
                Path(name).unlink(missing_ok=True)
            except OSError:
                pass  # the disk became read-only: a dead socket is replaced at the next start


def systemd_listeners() -> list[int]:
    """Descriptors passed by socket activation (sd_listen_fds(3)); the variables are taken out of the
    environment, so that no child takes them for its own."""
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors = list(range(3, 3 + int(count)))
    for fd in descriptors:
        os.set_inheritable(fd, False)
    return descriptors


def _listen(address: Address, backlog: int) -> socket.socket:
    if address.kind == "fd":
        return _adopt(address.fd)
    if address.kind == "unix":
        return _listen_unix(address.path, backlog)
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(
            address.host or "0.0.0.0",  # noqa: S104 - an empty host is what the user wrote for all interfaces
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingError("bind", f"{address}: {error.strerror}") from None
    except UnicodeError:
        raise SettingError("bind", f"{address}: this is no host name") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Inherited by accepted connections: an answer in two parts must not wait for an acknowledgement.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise SettingError("bind", f"{address}: {_reason(error)}") from None
    sock.setblocking(False)
    return sock


def _listen_unix(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.startswith("@"):
            sock.bind(f"\0{path[1:]}")
        else:
            _remove_dead(path)
            # As in gunicorn, whose umask is 0: who may reach the folder may connect, nginx for one.
            before = os.umask(0)
            try:
                sock.bind(path)
            finally:
                os.umask(before)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise SettingError("bind", f"unix:{path}: {_reason(error)}") from None
    sock.setblocking(False)
    return sock


def _remove_dead(path: str) -> None:
    """Unlink a socket nobody listens on; a live one stays, and bind will say that it is in use."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except OSError:
            return


def _adopt(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=os.dup(fd))
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingError("bind", f"fd://{fd}: {error.strerror}") from None
    if not listening:
        sock.close()
        raise SettingError("bind", f"fd://{fd}: the socket does not listen")
    sock.setblocking(False)
    return sock


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return "the address is in use; stop the program that has it or choose another"
        case errno.EACCES:
            return "no permission; ports below 1024 need privileges"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case errno.ENOENT:
            return "the folder does not exist"
    return error.strerror or str(error)


def _url(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
        return f"http://{host}:{name[1]}"
    return f"unix:{name if isinstance(name, str) else name.decode()}"
