"""Files: how many may be open, and reading those that a setting names.

The path in a setting may lead to something that is no file, which must not make the reader wait.
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
        limit = resource.RLIM_INFINITY  # the call is refused; then EMFILE shows the limit
    return _NO_LIMIT if limit == resource.RLIM_INFINITY else limit


def open_files() -> set[int]:
    """Descriptors of this process, including one that is closed when this returns."""
    try:
        return {int(name) for name in os.listdir("/proc/self/fd")}  # noqa: PTH208 - names are all there is
    except OSError:
        # No /proc, as in a chroot: check low numbers, which are used first.
        return {fd for fd in range(min(most_open_files(), _MOST_TRIED)) if _is_open(fd)}


def is_socket(fd: int) -> bool:
    """Whether an open descriptor is a socket's."""
    try:
        return stat.S_ISSOCK(os.fstat(fd).st_mode)
    except OSError:
        return False


def _is_open(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def read_file(path: str | os.PathLike[str], most: int = _MOST) -> bytes:
    """The content of a file of at most `most` bytes. Never waits, and opens only files and /dev/null.

    Raises:
        OSError: it can't be read, is a folder, a FIFO, a socket or a device, or is larger; `strerror` has
            the reason.
    """
    name = os.fspath(path)
    fd = open_file(name)
    try:
        return read_opened(fd, name, most)
    finally:
        os.close(fd)


def read_opened(fd: int, name: str, most: int = _MOST) -> bytes:
    """As `read_file`, for a descriptor with O_NONBLOCK; it stays open.

    Args:
        name: the path, for messages.
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
        raise OSError(errno.EAGAIN, "it is no file, and has nothing to read", name) from None


def check_file(path: str | os.PathLike[str]) -> None:
    """Check that a file can be read, before other code opens it by its path.

    Raises:
        OSError: as `read_file`, but for the size.
    """
    os.close(open_file(os.fspath(path)))


def unlink_if(path: str | os.PathLike[str], is_it: Callable[[os.stat_result], bool]) -> None:
    """Remove the file of this name if `is_it` confirms it; links are not followed. It may not exist.

    The folder is held by a descriptor, as others may be able to replace it between the check and the removal.

    Raises:
        OSError: it can't be examined or removed.
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
    """A descriptor to read what `read_file` accepts.

    Its kind is checked before it is opened: opening a device may have an effect (a watchdog, a tape). Raises
    OSError.
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
