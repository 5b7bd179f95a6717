"""Opening logs that processes with fewer rights must be able to open, too.

With the setting `user` the supervisor may be root and workers are not, and all of them append to the same
files. Who may write into a log's folder decides what its name means, and root must not be led to a file of
somebody else's choice (a link to /etc/passwd, say). So root opens logs with the rights of the workers'
account. Where that may not, in a folder that is root's alone like /var/log, root makes the file for it.
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
# Names of the descriptors that we have, as containers' settings use them.
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
    """Logs that this process opens from now on can be opened by `account` as well; None: by us.

    unmade: paths of logs that root does not make for it where it can't, because others have named them.
    """
    global _sharer, _unmade
    _sharer = account if account is not None and os.geteuid() == 0 and account.uid != 0 else None
    _unmade = frozenset(unmade)


def make_for_sharer(path: str | None) -> None:
    """Let whom logs are shared with find a log, also after it was moved away."""
    if _sharer is not None and path is not None and path != "-":
        try:
            os.close(open_log(path))
        except OSError:
            pass  # it goes on with the file that it has


def open_log(path: str) -> int:
    """A descriptor to append to `path`, which is made if need be.

    Raises:
        OSError: it can't be opened.
    """
    try:
        return _open_shared(path)
    except OSError:
        # A pipe may be its maker's, and a socket can't be opened at all; but we have it already.
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
        # A FIFO without a reader (fifo(7)): opened like this it takes lines until one comes.
        if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):  # noqa: PTH116
            raise
        return os.open(path, os.O_RDWR | _FLAGS)


def _make_for(path: str, account: Account) -> None:
    """Make a log that `account` can't open the account's, and make it at all if need be."""
    try:
        fd, fresh = os.open(path, os.O_WRONLY | _FLAGS | os.O_EXCL, _MODE), True
    except FileExistsError:
        fd, fresh = _open(path, os.O_NOFOLLOW), False
    try:
        info = os.fstat(fd)
        # A second name may be another's file, and what is no file (a FIFO, a device) is whoever's it was.
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
            # An existing one keeps its group, which may be that of those who read logs.
            gid = account.gid if fresh and account.gid is not None else -1
            os.fchown(fd, -1 if account.uid is None else account.uid, gid)
    finally:
        os.close(fd)


def _resolved(path: str, account: Account) -> str:
    """`path` without links, if no folder on the way is one in which others than root decide what names mean.

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
    """Whether others than root can have `found`, in `folder`, be something else; `last`: it is the log.

    Not `account` alone: the folder's owner could have root give that account any file. Of a folder with an
    access control list (acl(5)) it is taken for granted.
    """
    info = folder.lstat()
    if info.st_uid != 0 or _has_access_list(folder):
        return True
    groups = {account.gid, *(account.groups or ())}
    if info.st_mode & stat.S_IWOTH or (info.st_mode & stat.S_IWGRP and info.st_gid in groups):
        # In a sticky folder such as /tmp only its owner can replace a file.
        return last or not info.st_mode & stat.S_ISVTX or found.lstat().st_uid != 0
    # Some systems let a group such as syslog write into /var/log; its links do not count.
    return bool(info.st_mode & stat.S_IWGRP) and found.is_symlink() and found.lstat().st_uid != 0


def _has_access_list(folder: Path) -> bool:
    try:
        return _ACCESS_LIST in os.listxattr(folder, follow_symlinks=False)
    except OSError:
        return False  # a file system without such
