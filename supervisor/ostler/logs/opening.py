"""Opening logs that processes with fewer rights must be able to open, too.

With the setting `user` the supervisor may be root and workers are not, and all of them append to the same
files. An account that can write to the folder of a log can replace it by a link to another file (e.g. to
/etc/passwd), and root must not follow that. So root opens logs with the rights of the workers' account. If
that account may not create the file, in a folder that only root can write such as /var/log, root creates it.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ostler.osapi.account import Account, files_as

_FLAGS = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_MODE = 0o640
_MOST_LINKS = 40  # as path_resolution(7)
_ACCESS_LIST = "system.posix_acl_access"
# Names of standard descriptors, as settings for containers use them.
_STANDARD = {
    "/dev/stdout": 1,
    "/dev/fd/1": 1,
    "/proc/self/fd/1": 1,
    "/dev/stderr": 2,
    "/dev/fd/2": 2,
    "/proc/self/fd/2": 2,
}

_sharer: Account | None = None
_unmade: frozenset[str] = frozenset()


def share_with(account: Account | None, unmade: Iterable[str] = ()) -> None:
    """Make logs that this process opens from now on openable for `account`, too; None: only for this process.

    unmade: paths of logs that root does not create for the account, because others have chosen them.
    """
    global _sharer, _unmade
    _sharer = account if account is not None and os.geteuid() == 0 and account.uid != 0 else None
    _unmade = frozenset(unmade)


def make_for_sharer(path: str | None) -> None:
    """Create a log for the account that logs are shared with, also after it was moved away."""
    if _sharer is not None and path is not None and path != "-":
        try:
            os.close(open_log(path))
        except OSError:
            pass  # workers keep the file that they have


def open_log(path: str) -> int:
    """A descriptor to append to `path`, which is created if it does not exist.

    Raises:
        OSError: it can't be opened.
    """
    try:
        return _open_shared(path)
    except OSError:
        # A pipe may belong to another account, and a socket can't be opened; but the descriptor is open.
        if (standard := _STANDARD.get(path)) is None:
            raise
        return fcntl.fcntl(standard, fcntl.F_DUPFD_CLOEXEC, 3)


def _open_shared(path: str) -> int:
    if _sharer is None or _sharer.uid is None:
        return _open(path)
    try:
        with files_as(_sharer):
            return _open(path)
    except PermissionError:
        if path in _unmade:
            raise
        _make_for(_resolved(path, _sharer), _sharer)
    with files_as(_sharer):
        return _open(path)


def _open(path: str, more: int = 0) -> int:
    try:
        return os.open(path, os.O_WRONLY | _FLAGS | more, _MODE)
    except OSError as error:
        # A FIFO without a reader (fifo(7)): opened for reading, too, it takes lines until a reader comes.
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116
            raise
        return os.open(path, os.O_RDWR | _FLAGS)


def _make_for(path: str, account: Account) -> None:
    """Give `account` a log that it can't open; create the log if it does not exist."""
    try:
        fd, fresh = os.open(path, os.O_WRONLY | _FLAGS | os.O_EXCL, _MODE), True
    except FileExistsError:
        fd, fresh = _open(path, os.O_NOFOLLOW), False
    try:
        info = os.fstat(fd)
        # With a second link it may be another account's file; a FIFO or a device keeps its owner.
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
            # An existing file keeps its group, which may be one for reading logs.
            gid = account.gid if fresh and account.gid is not None else -1
            os.fchown(fd, -1 if account.uid is None else account.uid, gid)
    finally:
        os.close(fd)


def _resolved(path: str, account: Account) -> str:
    """`path` without links, unless others than root can replace names in one of its folders.

    Raises:
        PermissionError: there is such a folder.
    """
    place = Path("/")
    names = list(Path(path).absolute().parts[1:])
    hops = 0
    while names:
        name = names.pop(0)
        found = place.parent if name == ".." else place / name
        if _changes(account, place, found, last=not names):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        if not found.is_symlink():
            place = found
            continue
        hops += 1
        if hops > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = found.readlink()
        if target.is_absolute():
            place = Path("/")
        names[:0] = [part for part in target.parts if part != "/"]
    return str(place)


def _changes(account: Account, folder: Path, found: Path, last: bool) -> bool:
    """Whether others than root can replace `found` in `folder`; `last`: it is the log.

    Not only `account`: the folder's owner could make root give any file to that account. For a folder with an
    access control list (acl(5)) the answer is always yes.
    """
    info = folder.lstat()
    if info.st_uid != 0 or _has_access_list(folder):
        return True
    groups = {account.gid, *(account.groups or ())}
    if info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and info.st_gid in groups):
        # In a sticky folder such as /tmp only its owner can replace a file.
        return last or not info.st_mode & stat.S_ISVTX or found.lstat().st_uid != 0
    # On some systems a group such as syslog can write to /var/log; its links are not followed.
    return bool(info.st_mode & stat.S_IWGRP) and found.is_symlink() and found.lstat().st_uid != 0


def _has_access_list(folder: Path) -> bool:
    try:
        return _ACCESS_LIST in os.listxattr(folder, follow_symlinks=False)
    except OSError:
        return False  # a file system without such
