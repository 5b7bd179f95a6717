"""Listening at the path of a Unix socket (unix(7)), and changing which users may connect to it."""

import errno
import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from ostler.daemon.listening.reasons import reason
from ostler.errors import SettingError
from ostler.osapi import trust
from ostler.osapi.account import find_account
from ostler.osapi.peers import unix_peer
from ostler.osapi.unix_sockets import FileIdentity, bind_path, identity_of, remove_dead, remove_own
from ostler.settings.table import Settings


class Access(NamedTuple):
    """Which users may connect to a Unix socket: its mode in octal digits, and `USER:GROUP` (either may be
    missing).

    None is the default: every user, and the account that the daemon runs as.
    """

    mode: str | None = None
    owner: str | None = None


def access_of(settings: Settings) -> Access:
    """The access that settings give. By default as in gunicorn: the mode is from the umask, the owner is the
    workers' account.

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


def listen_unix(path: str, backlog: int, access: Access) -> tuple[socket.socket, FileIdentity | None]:
    """A socket that listens, and its file; a name that begins with `@` (abstract) has none.

    Raises:
        SettingError: it can't be bound, or its file not be changed.
    """
    user, group = ids(access.owner)
    sock: socket.socket | None = None
    file = -1
    try:
        if path.startswith("@"):
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            sock.bind(f"\0{path[1:]}")
            sock.listen(backlog)
            return sock, None
        remove_dead(path)  # if anything is left, binding fails and says why
        # By default as in gunicorn, whose umask is 0: a user that can reach the folder, nginx's for one, may
        # connect. A socket that gets another owner admits no client until it has that owner.
        mode = mode_of(access)
        sock = bind_path(path, mode if access.owner is None else 0)
        sock.listen(backlog)
        if access.owner is None:
            file = hold(path)
        else:
            file = hold(path, None if _is_roots(path) else sock, backlog)
            give(file, mode, user, group)
        return sock, identity_of(file)
    except OSError as error:
        if file >= 0:
            remove_own(path, identity_of(file))
        if sock is not None:
            sock.close()
        raise SettingError("bind", f"unix:{path}: {reason_unix(error, access)}") from None
    finally:
        if file >= 0:
            os.close(file)


def mode_of(access: Access) -> int:
    return 0o777 if access.mode is None else int(access.mode, 8)


def hold(path: str, listener: socket.socket | None = None, backlog: int = 0) -> int:
    """A descriptor of a socket's file, to be closed by the caller; with `listener`, of that socket's file.

    The owner of the folder can replace the file between two steps; root must not change the replacement.

    Raises:
        OSError: the file was replaced already.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        info = os.fstat(fd)
        if not stat.S_ISSOCK(info.st_mode):
            raise OSError(errno.ENOTSOCK, "it was replaced by something that is no socket")
        if info.st_nlink != 1:
            # It has a second name: a socket of another program, linked to this name (link(2)).
            raise OSError(errno.EMLINK, "it was replaced by a link to another socket")
        if listener is not None:
            _check_leads_to(fd, listener, backlog)
    except OSError:
        os.close(fd)
        raise
    return fd


def _is_roots(path: str) -> bool:
    """Whether only root can replace this file, or this process is not root and can't give files away."""
    return os.geteuid() != 0 or not trust.writers(str(Path(path).absolute().parent))


def _check_leads_to(file: int, listener: socket.socket, backlog: int) -> None:
    """Raises OSError if an open file is not that of `listener`.

    Only a connection shows that: no call returns which file a socket is bound to.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(f"/proc/self/fd/{file}")
            for _ in range(backlog + 1):
                # Others may have connected before, where an access list of the folder lets them.
                with listener.accept()[0] as connection:
                    if unix_peer(connection).pid == os.getpid():
                        return
        except (PermissionError, FileNotFoundError):
            return  # then it can't be given away either: without the right, or without /proc
        except OSError:
            pass
    raise OSError(errno.ENOTSOCK, "it was replaced by another socket")


def give(file: int, mode: int, user: int, group: int) -> None:
    """Set the owner of a socket's open file, then its mode; -1 leaves user or group as it is."""
    handle = f"/proc/self/fd/{file}"
    if not os.path.lexists(handle):
        raise OSError(errno.EOPNOTSUPP, "its owner and mode can't be set, since /proc is not mounted")
    if (user, group) != (-1, -1):
        os.chown(handle, user, group)
    os.chmod(handle, mode)  # noqa: PTH101 - this is no path to think about, but a descriptor's name


def ids(owner: str | None) -> tuple[int, int]:
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


def reason_unix(error: OSError, access: Access) -> str:
    match error.errno:
        case errno.EACCES:
            return "no permission to write into its folder"
        case errno.EPERM if access.owner is not None:
            return f"no permission to make {access.owner!r} its owner (socket_owner); that needs privileges"
        case errno.ENOTDIR:
            return "a part of the path is no folder"
        case errno.EADDRINUSE:
            return "the address is in use, by another program or by a file that is no socket"
    return reason(error)
