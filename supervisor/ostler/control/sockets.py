"""Where the control socket is and which process owns it. Standard library only: `ctl` loads this too.

Ownership is an flock(2) on `PATH.lock`, not the existence of a file: the kernel releases it with the process,
so it is free after a crash. Only the process that holds the lock may unlink `PATH`. The owner
unlinks the lock file while it still holds it; a process that had opened that file before then locks an inode
without a name, notices that and tries again.
"""

import errno
import fcntl
import os
import re
import socket
import stat
from pathlib import Path

from ostler.errors import SettingError
from ostler.osapi.files import unlink_if
from ostler.osapi.peers import account_name
from ostler.osapi.unix_sockets import Occupant, bind_path, identity, identity_of, remove_dead, remove_own

# The errors of flock(2) where a file system has no locks, or the call is refused (ENOSYS, EPERM).
_NO_LOCKS = (errno.ENOSYS, errno.EPERM, errno.ENOLCK, errno.EOPNOTSUPP)

SETTING = "control_socket"
OWN = 0o600
"""Mode of a socket for its owner alone."""
SUN_PATH_MAX = 107
"""Bytes: sizeof(sun_path) is 108 with the terminating NUL (unix(7))."""

_SYSTEM_DIR = Path("/run/ostler")
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class SocketInUse(SettingError):
    """Another live process has the socket."""


def safe_name(name: str) -> str:
    """An instance's name as a file name: letters, digits, `.`, `_`, `-`; no leading dot, at most 60 long."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip(".")[:60] or "ostler"


def default_socket_path(name: str, mode: int = OWN) -> Path:
    """The control socket of the instance `name`; its folder exists afterwards.

    It is in the first of the usual folders that can be used: a container may have only one writable folder,
    and in a shared folder another user may have made a file of that name.

    mode: the socket's; the folder can be passed by the same users.

    Raises:
        SettingError: none of them can be made or written to, or belongs safely to this user.
    """
    file = f"{safe_name(name)}.sock"
    if folder := _service_dir():
        return folder / file  # systemd has made it with the mode that the unit says
    problems = []
    for folder in _user_dirs():
        problem = _make_own(folder, mode)
        if problem is None:
            return folder / file
        problems.append(f"{folder} ({problem})")
    raise SettingError(
        SETTING,
        f"there is no place for it: {', '.join(problems)}; give --control-socket PATH in a folder that "
        "only you can write to",
    )


def candidate_dirs() -> list[Path]:
    """The folders where `default_socket_path` of this user, or of a service, may have put sockets."""
    service = _service_dir()
    found = [*([service] if service else []), *_user_dirs(), _SYSTEM_DIR, *_temp_dirs()]
    return list(dict.fromkeys(found))


class UntrustedFolder(Exception):
    """A folder that another user may have made; `str()` is one line."""


def trusted_owners(folder: Path) -> frozenset[int]:
    """The users whose sockets in a folder of `candidate_dirs` may be used: root, this user, perhaps one more.

    Where every user may make a folder, in /tmp say, it has to be this user's or root's. Where only root or
    this user could have made it, as in /run, its owner is the user that it was given to: a service's account.

    This finds what can be seen beforehand. Which user's process really answers is known once connected.

    Raises:
        UntrustedFolder: it is another user's, or a link, or others can write to it.
        OSError: it can't be looked at; mostly because there is none.
    """
    ours = frozenset((0, os.geteuid()))
    parent = folder.parent.stat()
    if parent.st_uid in ours and not parent.st_mode & _WRITABLE:
        info = folder.stat()  # may be a link: systemd makes some (systemd.exec(5), DynamicUser=)
        trusted, unwanted = ours | {info.st_uid}, stat.S_IWOTH
    else:
        info = folder.lstat()
        trusted, unwanted = ours, _WRITABLE
    if not stat.S_ISDIR(info.st_mode):
        raise UntrustedFolder(f"{folder} is no folder (a link is not followed)")
    if info.st_uid not in trusted:
        raise UntrustedFolder(f"{folder} belongs to {account_name(info.st_uid)}")
    if info.st_mode & unwanted:
        raise UntrustedFolder(f"others can write to {folder}")
    return trusted


def _service_dir() -> Path | None:
    # systemd.exec(5): several directories are separated by colons.
    first = os.environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    return Path(first) if first else None


def _user_dirs() -> list[Path]:
    """The best one first."""
    found = []
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    # After su or sudo the variable may still name another user's folder, or one that was removed.
    if session and _owner(Path(session)) == os.geteuid():
        found.append(Path(session, "ostler"))
    if os.geteuid() == 0:
        found.append(_SYSTEM_DIR)
    return [*found, *_temp_dirs()]


def _temp_dirs() -> list[Path]:
    """Not by tempfile.gettempdir: that falls back to the current folder, and raises if it is read-only."""
    named = (os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP"))
    # /dev/shm can be written in containers whose file system is read-only.
    places = [*(name for name in named if name.startswith("/")), "/tmp", "/var/tmp", "/dev/shm"]  # noqa: S108
    return [Path(place, f"ostler-{os.geteuid()}") for place in places]


def _owner(folder: Path) -> int | None:
    try:
        return folder.stat().st_uid
    except OSError:
        return None


def _make_own(folder: Path, mode: int) -> str | None:
    """Make `folder`, or check that no other user can put files into the existing one.

    Returns what is wrong with it, None if it can be used.
    """
    try:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        info = folder.lstat()
        if not stat.S_ISDIR(info.st_mode):
            return "no folder; a link is not followed"
        if info.st_uid != os.geteuid():
            return f"belongs to uid {info.st_uid}, not to this user"
        if info.st_mode & _WRITABLE:
            return f"others can write to it; run `chmod 700 {folder}`"
        # One that is there may be on a read-only disk.
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            return "can't be written to"
        if mode & 0o077:
            folder.chmod(0o711)  # passed, not listed; what else is in there has modes of its own
    except OSError as error:
        return (error.strerror or str(error)).lower()
    return None


class OwnedSocket:
    """A bound Unix socket that belongs to this process until `release`. Made by `claim`, or `adopt`."""

    def __init__(self, path: Path, sock: socket.socket, lock: int, mode: int = OWN) -> None:
        self.path = path
        self.socket = sock
        self._lock = lock
        self._mode = mode
        self._identity = identity(path)
        self._folder_mode = _mode(path.parent)
        self._folder_owner = _owner(path.parent)

    @classmethod
    def claim(cls, path: Path, mode: int = OWN) -> "OwnedSocket":
        """Bind `path` with a mode. A dead socket is replaced, a live one never.

        Raises:
            SettingError: of `control_socket`; one line with the reason.
        """
        path = path.absolute()
        if len(os.fsencode(path)) > SUN_PATH_MAX:
            raise SettingError(
                SETTING, f"{path} is longer than the {SUN_PATH_MAX} bytes a socket's path may have"
            )
        lock = -1
        try:
            lock = _take_lock(path)
            return cls(path, _bind(path, mode), lock, mode)
        except BaseException as error:
            if lock >= 0:
                _drop_lock(path, lock)
            if isinstance(error, OSError):
                raise _explain(error, path) from error
            raise

    @classmethod
    def adopt(cls, path: Path, fd: int, lock: int, mode: int = OWN) -> "OwnedSocket":
        """Continue with the descriptors that an `OwnedSocket` of the program before this one had."""
        return cls(path, socket.socket(fileno=fd), lock, mode)

    @property
    def lock(self) -> int:
        """The descriptor that holds the lock."""
        return self._lock

    @property
    def is_there(self) -> bool:
        """Whether the path still leads to this socket."""
        return self._identity is not None and identity(self.path) == self._identity

    def claim_again(self) -> "OwnedSocket":
        """After the socket, its lock or its folder was deleted: a new socket at the path, which owns it.

        This one's connections stay, and the socket has to be closed. What others have put in its place stays
        too; then this raises, and nothing has changed.

        Raises:
            SettingError: as `claim`.
        """
        try:
            if self._folder_mode is not None and not self.path.parent.exists():
                _make_again(self.path.parent, self._folder_mode)
            owner = _owner(self.path.parent)
            if owner is not None and owner not in (self._folder_owner, os.geteuid(), 0):
                # In /tmp another user may have made it.
                raise SettingError(SETTING, f"{self.path.parent} belongs to {account_name(owner)} now")
            if not _names(_lock_path(self.path), self._lock):
                new = _take_lock(self.path)
                os.close(self._lock)
                self._lock = new
            again = OwnedSocket(self.path, _bind(self.path, self._mode), self._lock, self._mode)
        except OSError as error:
            raise _explain(error, self.path) from error
        self._lock = -1
        return again

    def release(self) -> None:
        """Remove the socket's file and its lock, then close it. May be called twice."""
        self.remove()
        self.socket.close()

    def remove(self) -> None:
        """Remove the socket's file and its lock; connections and the descriptor stay.

        What others have put in its place stays too.
        """
        if self._lock < 0:
            return
        if self._identity is not None:
            remove_own(self.path, self._identity)
        _drop_lock(self.path, self._lock)
        self._lock = -1


class TokenFile:
    """A file with mode 0600 that contains the bearer token, until `remove`."""

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self._text = f"{token}\n"

    def write(self) -> None:
        """Write it, and replace what is there.

        Raises:
            SettingError: of `control_token_file`.
        """
        # A new file renamed into place: a reader finds all of it, and a link in its place is not followed.
        draft = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w") as file:
                file.write(self._text)
            draft.replace(self.path)
        except OSError as error:
            try:
                draft.unlink(missing_ok=True)
            except OSError:
                pass  # the folder is read-only: nothing was written
            raise SettingError("control_token_file", f"can't write {self.path}: {error.strerror}") from None

    @property
    def is_there(self) -> bool:
        """Whether there is a file, this one or another."""
        return identity(self.path) is not None

    def remove(self) -> None:
        try:
            # What others may have put there, a FIFO say, must not block.
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                text, opened = os.read(fd, len(self._text) + 1), os.fstat(fd)
            finally:
                os.close(fd)
            if text == self._text.encode():
                unlink_if(self.path, lambda info: os.path.samestat(info, opened))
        except OSError:
            pass  # removed, or another program's by now


def _make_again(folder: Path, mode: int) -> None:
    """Make a folder that was removed, with the mode that it had.

    A user that can write in the folder above may put something else in its place. So its mode is set through
    a descriptor, and only if it is empty.
    """
    folder.mkdir(mode=0o700)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not os.listdir(fd):  # noqa: PTH208 - of a descriptor
            os.fchmod(fd, mode & 0o3777)
    finally:
        os.close(fd)


def _bind(path: Path, mode: int) -> socket.socket:
    """A new socket at `path`; called with the lock held."""
    occupant = remove_dead(os.fspath(path))
    if occupant is Occupant.NO_SOCKET:
        raise SettingError(SETTING, f"{path} exists and is no socket; remove it or name another place")
    if occupant is Occupant.LIVE_SOCKET:
        raise _in_use(path, "")  # the lock says that no Ostler has it: it is another program's
    return bind_path(os.fspath(path), mode)


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _take_lock(path: Path) -> int:
    """A descriptor that holds the flock on a lock file which still has its name."""
    name = _lock_path(path)
    while True:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        lock = os.open(name, flags, 0o600)
        try:
            _check_lock(name, lock)
            _lock(lock)
            if _names(name, lock):
                os.ftruncate(lock, 0)
                os.pwrite(lock, b"%d\n" % os.getpid(), 0)
                return lock
        except BlockingIOError:
            owner = os.pread(lock, 20, 0).decode("ascii", "replace").strip()
            os.close(lock)
            raise _in_use(path, f" (pid {owner})" if owner.isdigit() else "") from None
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # its owner unlinked it between our open and our lock


def _check_lock(name: Path, lock: int) -> None:
    """A file of another user could be locked by that user for ever, or be one that must not be overwritten.

    Raises:
        SettingError: it is no regular file of this user, or has another name as well (link(2)).
    """
    info = os.fstat(lock)
    if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid() or info.st_nlink > 1:
        raise SettingError(SETTING, f"{name} is no lock file of this user; remove it or name another place")


def _lock(lock: int) -> None:
    """Raises BlockingIOError if another process has the lock. Where there are no locks each one gets it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _drop_lock(path: Path, lock: int) -> None:
    try:
        opened = os.fstat(lock)
        unlink_if(_lock_path(path), lambda info: os.path.samestat(info, opened))
    except OSError:
        pass  # the folder became read-only: an unlocked lock file that stays does no harm
    os.close(lock)


def _names(path: Path, fd: int) -> bool:
    """Whether `path` is the file that is open as `fd`."""
    return identity(path) == identity_of(fd)


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _in_use(path: Path, owner: str) -> SocketInUse:
    return SocketInUse(
        SETTING,
        f"{path} is in use by another instance{owner}; give this one another --name or --control-socket",
    )


def _explain(error: OSError, path: Path) -> SettingError:
    folder = path.parent
    match error.errno:
        case errno.ENOENT:
            problem = f"the folder {folder} does not exist; create it or name another place"
        case errno.ENOTDIR:
            problem = f"{folder} is no folder; name another place"
        case errno.EACCES | errno.EPERM:
            problem = f"no permission to make {path.name} in {folder}; name another place"
        case errno.EROFS:
            problem = f"{folder} is on a read-only disk; name another place"
        case errno.ENOSPC:
            problem = f"the disk of {folder} is full"
        case _:
            problem = f"{path}: {error.strerror or error}"
    return SettingError(SETTING, problem)
