"""Listening sockets: bound here, inherited by every worker, closed when no generation names them."""

import errno
import grp
import os
import pwd
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from ostler.errors import OstlerError, SettingError
from ostler.osapi import trust
from ostler.osapi.account import find_account
from ostler.osapi.files import most_open_files
from ostler.osapi.peers import unix_peer
from ostler.osapi.unix_sockets import bind_path, identity_of, remove_dead, remove_own
from ostler.settings.address import Address, parse_address
from ostler.settings.table import Settings


class ListenersState(msgspec.Struct, frozen=True):
    """What they are made from again after an upgrade in place.

    sockets: descriptors by key; access: see `Access`; inherited: they were handed over by systemd; files: of
    Unix sockets, device and inode.
    """

    sockets: dict[str, int]
    access: dict[str, tuple[str | None, str | None]]
    inherited: bool
    files: dict[str, tuple[int, int]] = {}


# A socket that listens; of a Unix socket with a file, device and inode of that.
_Bound = tuple[socket.socket, tuple[int, int] | None]


class Access(NamedTuple):
    """Who may connect to a Unix socket: its mode in octal digits, and `USER:GROUP` (either may be missing).

    None leaves it as it comes: everybody, and whoever runs the daemon.
    """

    mode: str | None = None
    owner: str | None = None


def access_of(settings: Settings) -> Access:
    """Unless the settings say more, as in gunicorn: the umask gives the mode, the workers' account owns it.

    Raises:
        SettingError: there is no such account.
    """
    mode, owner = settings.socket_mode, settings.socket_owner
    if mode is None and settings.umask != "0000":
        mode = f"{0o777 & ~int(settings.umask, 8):04o}"
    account = find_account(settings.user, settings.group, settings.initgroups)
    if owner is None and account is not None and os.geteuid() == 0:
        owner = ":".join("" if number is None else str(number) for number in account[:2]).rstrip(":")
    return Access(mode, owner)


class Listeners:
    """All listening sockets, by the address that was asked for.

    Args:
        inherited: descriptors handed over by systemd (sd_listen_fds(3)); they take the place of what `bind`
            asks for, as in gunicorn.
    """

    def __init__(self, inherited: list[int]) -> None:
        self._inherited = [socket.socket(fileno=fd) for fd in inherited]
        self._sockets: dict[str, socket.socket] = {}
        self._access: dict[str, Access] = {}
        self._files: dict[str, tuple[int, int]] = {}

    def snapshot(self) -> ListenersState:
        return ListenersState(
            {key: sock.fileno() for key, sock in self._sockets.items()},
            {key: (access.mode, access.owner) for key, access in self._access.items()},
            bool(self._inherited),
            self._files,
        )

    def restore(self, state: ListenersState) -> None:
        """Go on with what another program in this process listened on."""
        self._sockets = {key: socket.socket(fileno=fd) for key, fd in state.sockets.items()}
        self._access = {key: Access(*pair) for key, pair in state.access.items()}
        self._inherited = list(self._sockets.values()) if state.inherited else []
        self._files = dict(state.files)

    def bind(
        self,
        addresses: tuple[str, ...],
        backlog: int,
        access: Access = Access(),  # noqa: B008 - frozen
        reuse_port: bool = False,
    ) -> list[str]:
        """Make sure that all `addresses` are bound; returns the keys for `fileno`, in their order.

        `access` is to Unix sockets. Of one that is bound already they are changed if others were
        asked for before; what an administrator did to it by hand meanwhile stays.

        reuse_port: other programs may listen there, too (SO_REUSEPORT in socket(7)).

        Raises:
            SettingError: one can't be bound; those bound by this call are closed again.
        """
        if self._inherited:
            keys = []
            for sock in self._inherited:
                sock.setblocking(False)
                _send_at_once(sock)
                key = f"fd://{sock.fileno()}"
                self._sockets[key] = sock
                keys.append(key)
            return keys
        fresh: list[str] = []
        try:
            for text in dict.fromkeys(addresses):
                if text in self._sockets:
                    self._sockets[text].listen(backlog)  # it may be another one now
                    self._change_access(text, access)
                else:
                    sock, file = self._listen(parse_address(text), backlog, access, reuse_port)
                    self._sockets[text] = sock
                    self._access[text] = access
                    fresh.append(text)
                    if file is not None:
                        self._files[text] = file
        except SettingError:
            for text in fresh:
                self._close(text)
            raise
        return list(dict.fromkeys(addresses))

    def _listen(self, address: Address, backlog: int, access: Access, reuse_port: bool) -> _Bound:
        """As the function; if it is ourselves who have the port, the error says so."""
        try:
            return _listen(address, backlog, access, reuse_port)
        except SettingError as error:
            why = error.__context__
            if isinstance(why, OSError) and why.errno == errno.EADDRINUSE and address.kind == "tcp":
                for key, sock in self._sockets.items():
                    name = sock.getsockname()
                    if isinstance(name, tuple) and name[1] == address.port:
                        problem = f"this daemon listens on {key}, which overlaps; a restart can change that"
                        raise SettingError("bind", f"{address}: {problem}") from None
            raise

    def _change_access(self, key: str, access: Access) -> None:
        address = parse_address(key)
        if access == self._access.get(key, access) or address.kind != "unix" or address.path.startswith("@"):
            return
        try:
            file = _held(address.path)
            try:
                if self._files.get(key) not in (None, identity_of(file)):
                    raise OSError(errno.ENOTSOCK, "it was replaced by another socket")
                _give(file, _mode(access), *_ids(access.owner))
            finally:
                os.close(file)
        except OSError as error:
            raise SettingError("bind", f"{key}: {_reason_unix(error, access)}") from None
        self._access[key] = access

    def fileno(self, key: str) -> int:
        return self._sockets[key].fileno()

    def urls(self, keys: list[str], scheme: str = "http") -> list[str]:
        """The addresses as really bound, for people; `scheme`: what is spoken there."""
        return [_url(self._sockets[key], scheme) for key in keys if key in self._sockets]

    def sockets(self, keys: list[str]) -> list[socket.socket]:
        """In the order of `urls`."""
        return [self._sockets[key] for key in keys if key in self._sockets]

    def keep_only(self, keys: set[str]) -> list[str]:
        """Close all others; returns what was closed."""
        gone = [key for key in self._sockets if key not in keys]
        for key in gone:
            self._close(key)
        return gone

    def _close(self, key: str) -> None:
        sock = self._sockets.pop(key)
        self._access.pop(key, None)
        file = self._files.pop(key, None)
        if file is not None:
            remove_own(sock.getsockname(), file)
        sock.close()


def systemd_listeners() -> list[int]:
    """Descriptors passed by socket activation (sd_listen_fds(3)); the variables are taken out of the
    environment, so that no child takes them for its own.

    Raises:
        OstlerError: one of them is no listening stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors: list[int] = []
    for fd in range(3, 3 + min(int(count[:9]), most_open_files())):
        try:
            os.set_inheritable(fd, False)
            listens = _listens(fd)
        except OSError as error:
            raise _not_handed_over(count, fd, error.strerror or "error") from None
        if not listens:
            raise _not_handed_over(count, fd, "it is no stream socket that listens")
        descriptors.append(fd)
    return descriptors


def _listens(fd: int) -> bool:
    sock = socket.socket(fileno=fd)
    try:
        return sock.type == socket.SOCK_STREAM and bool(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    finally:
        sock.detach()


def _not_handed_over(count: str, fd: int, problem: str) -> OstlerError:
    return OstlerError(
        f"LISTEN_FDS={count[:20]}: descriptor {fd}: {problem}; "
        "hand over sockets that listen, or unset LISTEN_FDS and LISTEN_PID"
    )


def _listen(address: Address, backlog: int, access: Access, reuse_port: bool) -> _Bound:
    if address.kind == "fd":
        return _adopt(address.fd), None
    if address.kind == "unix":
        return _listen_unix(address.path, backlog, access)
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
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        _send_at_once(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise SettingError("bind", f"{address}: {_reason(error)}") from None
    sock.setblocking(False)
    return sock, None


def _listen_unix(path: str, backlog: int, access: Access) -> _Bound:
    user, group = _ids(access.owner)
    sock: socket.socket | None = None
    file = -1
    try:
        if path.startswith("@"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.bind(f"\0{path[1:]}")
            sock.listen(backlog)
            return sock, None
        with suppress(OSError):
            remove_dead(path)  # if anything is left, binding fails and says why
        # By default as in gunicorn, whose umask is 0: who reaches the folder may connect, nginx for one.
        # A socket that gets another owner admits no client until it has that owner.
        mode = _mode(access)
        sock = bind_path(path, mode if access.owner is None else 0)
        sock.listen(backlog)
        if access.owner is None:
            file = _held(path)
        else:
            file = _held(path, None if _is_roots(path) else sock, backlog)
            _give(file, mode, user, group)
        return sock, identity_of(file)
    except OSError as error:
        if file >= 0:
            remove_own(path, identity_of(file))
        if sock is not None:
            sock.close()
        raise SettingError("bind", f"unix:{path}: {_reason_unix(error, access)}") from None
    finally:
        if file >= 0:
            os.close(file)


def _mode(access: Access) -> int:
    return 0o777 if access.mode is None else int(access.mode, 8)


def _held(path: str, listener: socket.socket | None = None, backlog: int = 0) -> int:
    """A descriptor of a socket's file, to be closed; with `listener` it is that socket's.

    The owner of the folder can replace the file between two steps; root must not change the replacement.
    Raises OSError if the file was replaced already.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISSOCK(info.st_mode):
            raise OSError(errno.ENOTSOCK, "it was replaced by something that is no socket")
        if info.st_nlink != 1:
            # A second name for it lies elsewhere: a socket of another program, linked to this name (link(2)).
            raise OSError(errno.EMLINK, "it was replaced by a link to another socket")
        if listener is not None:
            _check_leads_to(fd, listener, backlog)
    except OSError:
        os.close(fd)
        raise
    return fd


def _is_roots(path: str) -> bool:
    """Whether what this name means is up to root alone, or we are not root, who alone can give files away."""
    return os.geteuid() != 0 or not trust.writers(str(Path(path).absolute().parent))


def _check_leads_to(file: int, listener: socket.socket, backlog: int) -> None:
    """Raises OSError if the socket's file that is held is not that of `listener`.

    Only a connection tells: no call says which file a socket is bound to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(f"/proc/self/fd/{file}")
            for _ in range(backlog + 1):
                # Others may have been quicker, where an access list of the folder lets them.
                with listener.accept()[0] as connection:
                    if unix_peer(connection).pid == os.getpid():
                        return
        except (PermissionError, FileNotFoundError):
            return  # then we have no right to give it away either, or no /proc, which that takes
        except OSError:
            pass
    raise OSError(errno.ENOTSOCK, "it was replaced by another socket")


def _give(file: int, mode: int, user: int, group: int) -> None:
    """Set the owner of a socket's file that is held, then its mode; -1 leaves user or group as it is."""
    handle = f"/proc/self/fd/{file}"
    if not os.path.lexists(handle):
        raise OSError(errno.EOPNOTSUPP, "its owner and mode can't be set, since /proc is not mounted")
    if (user, group) != (-1, -1):
        os.chown(handle, user, group)
    os.chmod(handle, mode)  # noqa: PTH101 - this is no path to think about, but a descriptor's name


def _ids(owner: str | None) -> tuple[int, int]:
    """User and group by name or number; -1 for the one that is not given.

    Raises:
        SettingError: there is no such user or group.
    """
    user, _, group = (owner or "").partition(":")
    try:
        uid = -1 if not user else int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise SettingError("socket_owner", f"there is no user {user!r}") from None
    try:
        gid = -1 if not group else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise SettingError("socket_owner", f"there is no group {group!r}") from None
    return uid, gid


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
    _send_at_once(sock)
    return sock


def _send_at_once(sock: socket.socket) -> None:
    """Inherited by accepted connections: an answer in two parts must not wait for an acknowledgement."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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


def _reason_unix(error: OSError, access: Access) -> str:
    match error.errno:
        case errno.EACCES:
            return "no permission to write into its folder"
        case errno.EPERM if access.owner is not None:
            return f"no permission to make {access.owner!r} its owner (socket_owner); that needs privileges"
        case errno.ENOTDIR:
            return "a part of the path is no folder"
        case errno.EADDRINUSE:
            return "the address is in use, by another program or by a file that is no socket"
    return _reason(error)


def _url(sock: socket.socket, scheme: str) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        host = f"[{name[0]}]" if sock.family == socket.AF_INET6 else name[0]
        return f"{scheme}://{host}:{name[1]}"
    return f"unix:{name if isinstance(name, str) else name.decode()}"
