"""Reading files that a setting names: what lies there may be no file, and must not hold us up."""

import errno
import os
import stat

_MOST = 16 << 20
_PIECE = 1 << 20


def read_file(path: str | os.PathLike[str], most: int = _MOST) -> bytes:
    """All of a file that has `most` bytes at most. Never waits: a FIFO is refused, a device read as far.

    Raises:
        OSError: it can't be read, is a folder, a FIFO or a socket, or is larger; `strerror` says which.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "a path can't have a NUL character", name)
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return read_opened(fd, name, most)
    finally:
        os.close(fd)


def read_opened(fd: int, name: str, most: int = _MOST) -> bytes:
    """The same of what is open already, with O_NONBLOCK; it stays open.

    Args:
        name: what it was opened by, for messages.
    """
    try:
        _check_kind(os.fstat(fd).st_mode, name)
        parts = []
        size = 0
        while part := os.read(fd, min(_PIECE, most + 1 - size)):
            parts.append(part)
            size += len(part)
            if size > most:
                raise OSError(errno.EFBIG, f"it has more than {most} bytes", name)
        return b"".join(parts)
    except BlockingIOError:
        raise OSError(errno.EAGAIN, "it is no file, and nothing is there to be read", name) from None


def check_file(path: str | os.PathLike[str]) -> None:
    """Look whether a file can be read, for what is going to read it by its name.

    Raises:
        OSError: as `read_file`, but for the size; a device is no file either, but /dev/null.
    """
    name = os.fspath(path)
    if "\0" in name:
        raise OSError(errno.EINVAL, "a path can't have a NUL character", name)
    fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        info = os.fstat(fd)
        _check_kind(info.st_mode, name)
        if not stat.S_ISREG(info.st_mode) and info.st_rdev != os.makedev(1, 3):  # null(4)
            raise OSError(errno.EINVAL, "it is a device, not a file", name)
    finally:
        os.close(fd)


def _check_kind(mode: int, name: str) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if stat.S_ISFIFO(mode):
        raise OSError(errno.EINVAL, "it is a FIFO, not a file", name)
