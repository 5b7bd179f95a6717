"""Claiming the path of a Unix socket (unix(7)): for the app's listeners and for the control socket.

The file of a socket remains when its process has ended. Whether a process listens at it can only be found out
by connecting. So a dead socket is removed and a live one never. A user that may write in the folder can
replace the file at any time, so a file is removed only if it is still the one that was examined.
"""

import enum
import os
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from ostler.osapi.files import unlink_if


class FileIdentity(NamedTuple):
    """Identifies a file: no other file has the same as long as it is open or bound, even if removed."""

    device: int
    inode: int


class Occupant(enum.Enum):
    """What is at a path after `remove_dead`."""

    NOTHING = "nothing"
    LIVE_SOCKET = "a socket on which a process listens, or may listen"
    NO_SOCKET = "a file that is no socket"


def remove_dead(path: str) -> Occupant:
    """Remove a socket on which no process listens; returns what is there now.

    Raises:
        OSError: the path can't be looked at, or the file can't be removed.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return Occupant.NOTHING
    if not stat.S_ISSOCK(found.st_mode):
        return Occupant.NO_SOCKET
    if _is_live(path):
        return Occupant.LIVE_SOCKET
    unlink_if(path, lambda info: os.path.samestat(info, found))
    return Occupant.NOTHING


def _is_live(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True  # EAGAIN: its backlog is full; EPROTOTYPE: of another type; EACCES: not for us
        return True


def bind_path(path: str, mode: int) -> socket.socket:
    """A new socket that is bound to a path and does not block; it does not listen yet.

    mode: the file's from its first moment on (by the umask, not by chmod afterwards), so that others can't
    connect meanwhile. To be called while no other thread makes files.

    Raises:
        OSError: it can't be bound.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    before = os.umask(0o777 & ~mode)
    try:
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(before)
    return sock


def identity(path: str | Path) -> FileIdentity | None:
    """Of the file itself if it is a link; None if there is no file."""
    try:
        info = os.lstat(path)
    except OSError:
        return None
    return FileIdentity(info.st_dev, info.st_ino)


def identity_of(fd: int) -> FileIdentity:
    """Of an open file."""
    info = os.fstat(fd)
    return FileIdentity(info.st_dev, info.st_ino)


def remove_own(path: str | Path, own: tuple[int, int]) -> None:
    """Remove the file with this identity, and nothing that was put in its place.

    To be called while the socket is open: no other process takes its file for a dead one and replaces it. In
    a folder that has become read-only the file stays, as a dead socket.
    """
    try:
        unlink_if(path, lambda info: (info.st_dev, info.st_ino) == own)
    except OSError:
        pass
