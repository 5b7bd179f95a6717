"""The pid file: written atomically, never taken from a live daemon.

The daemon keeps its file locked (flock(2)), so another Ostler can test whether it is in use. Of a file
without a lock only the pid in it is known, and pids are used again: after a reboot, and in containers all the
time. A process that started after the file was written can't have written it.
"""

import fcntl
import os
import stat
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from ostler.errors import SettingError
from ostler.logs.setup import get_logger
from ostler.osapi.account import Account, files_as
from ostler.osapi.files import open_file, unlink_if

# Seconds that the times of a process and of a file may differ by: each is only so exact.
_TOLERANCE = 1.0
_LONGEST = 32  # bytes; the largest pid has seven digits


class PidFile:
    """A pid file that is ours from `write` to `remove`.

    account: with whose rights the file is accessed; None: with the supervisor's own.
    """

    def __init__(self, path: str, fd: int = -1, account: Account | None = None) -> None:
        self._path = Path(path).absolute()
        self._fd = fd
        self._account = account

    def snapshot(self) -> tuple[str, int]:
        """What `PidFile` is made from by the next program in this process: path and descriptor."""
        return str(self._path), self._fd

    def write(self) -> None:
        """Write our pid.

        Raises:
            SettingError: another live process has the file, or it can't be written.
        """
        with self._rights():
            self._write()

    def _rights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._account is None else files_as(self._account)

    def _write(self) -> None:
        owner, stale = self._owner()
        if owner is not None:
            raise SettingError(
                "pidfile", f"{self._path} belongs to process {owner}, which is alive; is this a second start?"
            )
        # A new file renamed into place: a reader sees the old pid or the new one, never half of it. A link
        # in its place is not followed.
        draft = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        fd = -1
        try:
            draft.unlink(missing_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            os.write(fd, b"%d\n" % os.getpid())
            _lock(fd)
            draft.replace(self._path)
        except OSError as error:
            self._discard(draft, fd)
            raise SettingError("pidfile", f"can't write {self._path}: {error.strerror}") from None
        self._fd = fd
        if stale:
            get_logger().info("pidfile_taken_over", path=str(self._path), problem=stale)

    def remove(self) -> None:
        """Remove the file if it is still ours."""
        try:
            with self._rights():
                if self._fd >= 0:
                    ours = os.fstat(self._fd)
                    unlink_if(self._path, lambda info: os.path.samestat(info, ours))
        except OSError:
            pass  # removed, or another program's by now
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _discard(self, draft: Path, fd: int) -> None:
        try:
            if fd >= 0:
                os.close(fd)
                draft.unlink(missing_ok=True)
        except OSError:
            pass  # the disk became read-only: the draft stays

    def _owner(self) -> tuple[int | None, str]:
        """The live process that the file belongs to, else why the pid in it is ignored.

        Raises:
            SettingError: it is no regular file.
        """
        try:
            fd = open_file(str(self._path))
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            raise SettingError("pidfile", f"can't read {self._path}: {error.strerror}") from None
        try:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise SettingError("pidfile", f"{self._path} is no file; name another place")
            text = os.read(fd, _LONGEST).strip()
            if not text.isdigit() or int(text) in (0, os.getpid()):
                return None, ""
            pid = int(text)
            return (pid, "") if not _lock(fd) else _author(pid, info.st_mtime)
        finally:
            os.close(fd)


def _lock(fd: int) -> bool:
    """Take the lock; False if another process has it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks
    return True


def _author(pid: int, written: float) -> tuple[int | None, str]:
    """The process `pid` if it lives and may have written a file at `written`, else why not."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None, f"process {pid} is gone"
    except PermissionError:
        pass
    try:
        # proc_pid_stat(5): the command's name may hold anything, so from its last bracket on.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return pid, ""  # hidden from us, but it lives
    if fields[0] in "ZX":
        return None, f"process {pid} has ended"
    # The one place where the wall clock counts: a file has no other time.
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    if booted + started > written + _TOLERANCE:
        return None, f"process {pid} is younger than the file: another one that got the number"
    return pid, ""
