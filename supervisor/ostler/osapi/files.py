"""Files: how many may be open, and reading those that a setting names.

What lies where a setting says may be no file, and must not hold us up.
"""

import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable

_MOST = 16 << 20
_PIECE = 1 << 20
_NO_LIMIT = 2**31 - 1
_MOST_TRIED = 4096
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def most_open_files() -> int:
    """How many descriptors this process may have (RLIMIT_NOFILE); very many if there is no limit."""
    try:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        limit = resource.RLIM_INFINITY  # the call is refused; running out of them is noticed then
    return _NO_LIMIT if limit == resource.RLIM_INFINITY else limit


def open_files() -> set[int]:
    """Descriptors of this process; one that is closed again when this returns may be among them."""
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - names are all there is
    except OSError:
        # No /proc, as in a chroot: those with low numbers, which are given out first.
        return {fd for fd in range(min(most_open_files(), _MOST_TRIED)) if _is_open(fd)}


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def read_file(path: str | os.PathLike[str], most: int = _MOST) -> bytes:
    """All of a file that has `most` bytes at most. Never waits, and opens nothing but a file and /dev/null.

    Raises:
        OSError: it can't be read, is a folder, a FIFO, a socket or a device, or is larger; `strerror` says
            which.
    """
    name = os.fspath(path)
    fd = open_file(name)
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
        _check_kind(os.fstat(fd), name)
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
        OSError: as `read_file`, but for the size.
    """
    os.close(open_file(os.fspath(path)))


def unlink_if(path: str | os.PathLike[str], is_it: Callable[[os.stat_result], bool]) -> None:
    """Remove what has this name if it is what is meant; a link is not followed. It may be gone.

    In a folder that is held: others may be able to put another in its place between the look and the removal.

    Raises:
        OSError: it can't be looked at, or not be removed.
    """
    folder, name = os.path.split(os.fspath(path))
    fd = os.open(folder or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if is_it(os.stat(name, dir_fd=fd, follow_symlinks=False)):
            os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    finally:
        os.close(fd)


def open_file(name: str) -> int:
    """A descriptor to read from what `read_file` reads.

    It is looked at before it is opened: to open a device is to use it (a watchdog, a tape). Raises OSError.
    """
    if "\0" in name:
        raise OSError(errno.EINVAL, "a path can't have a NUL character", name)
    held = os.open(name, os.O_PATH | os.O_CLOEXEC)
    try:
        _check_kind(os.fstat(held), name)
        return os.open(f"/proc/self/fd/{held}", _READ)
    except FileNotFoundError:
        return os.open(name, _READ)  # without /proc, as in a chroot
    except OSError as error:
        error.filename = name
        raise
    finally:
        os.close(held)


def _check_kind(info: os.stat_result, name: str) -> None:
    mode = info.st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    if stat.S_ISFIFO(mode):
        raise OSError(errno.EINVAL, "it is a FIFO, not a file", name)
    device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
    if device and (stat.S_ISBLK(mode) or info.st_rdev != os.makedev(1, 3)):  # null(4)
        raise OSError(errno.EINVAL, "it is a device, not a file", name)
