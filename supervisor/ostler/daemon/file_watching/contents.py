"""Whether a file has changed: by its content, and where that is not read by its size and times.

The app names the files, and the supervisor may be root. So a path may lead to anything: only regular files of
a limited size are read. They are opened without effect first (O_PATH, open(2)), because opening a device may
have one, and a FIFO can block.
"""

import os
import stat
import time
from hashlib import blake2b
from typing import NamedTuple

# Bytes of one file, and of all files in one check, that are read at most.
LARGEST, MOST_BYTES = 1024 * 1024, 64 * 1024 * 1024
_PIECE = 64 * 1024
# Files there look regular, but reading one may have an effect.
_NOT_FILES = ("/proc/", "/sys/", "/dev/")
# How often a file is read that is being written at the same time.
_ATTEMPTS = 3
# The kernel's clock for files is coarse: a file may be written twice without a new time. So one that was
# written that many ns before it was read is read again.
_COARSE = 100_000_000

_Times = tuple[int, int, int, int]


class Seen(NamedTuple):
    """A file as it was found.

    times: inode, size, time of modification and of the inode's change in ns; None if there is no file.
    digest: of its content; None if that was not read. fresh: it may have changed since without a new time.
    """

    times: _Times | None
    digest: bytes | None = None
    fresh: bool = False

    def differs(self, later: "Seen") -> bool:
        """Whether the file has changed."""
        if self.times is None or later.times is None:
            return self.times is not later.times
        if self.digest is not None and later.digest is not None:
            return self.digest != later.digest
        return self.times[:3] != later.times[:3]

    @property
    def is_empty(self) -> bool:
        """Whether there is no file, or nothing in it."""
        return self.times is None or self.times[1] == 0

    @property
    def put_there(self) -> float:
        """When the file was written, or was moved there (unix time); 0 if there is none.

        The time of its inode's change, because a file that is moved, unpacked or synchronised may keep an old
        time of modification.
        """
        return self.times[3] / 1e9 if self.times is not None else 0.0


NONE = Seen(None)


class Reader:
    """Finds out what files are now; made for each check.

    Attributes:
        left: bytes that may still be read.
    """

    def __init__(self) -> None:
        self.left = MOST_BYTES

    def see(self, path: str, before: Seen = NONE, by_times: bool = False) -> Seen:
        """The file as it is now; it is read only if its times differ from those before.

        by_times: do not read it.
        """
        try:
            times = _times(os.stat(path))  # noqa: PTH116 - thousands of them
        except (OSError, ValueError):
            return NONE  # not there, or no path
        if by_times:
            return Seen(times)
        if times == before.times and not before.fresh:
            return before
        # What is compared by its times goes on being so: there is no content to compare with.
        if times[1] > LARGEST or self.left < times[1]:
            return Seen(times)
        try:
            return self._read(path)
        except (OSError, ValueError):
            return Seen(times)

    def _read(self, path: str) -> Seen:
        """Raises OSError: it can't be read, or is no regular file."""
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            found = os.fstat(place)
            link = f"/proc/self/fd/{place}"
            if not stat.S_ISREG(found.st_mode) or os.readlink(link).startswith(_NOT_FILES):  # noqa: PTH115
                raise OSError("no regular file")
            fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(place)
        try:
            for _ in range(_ATTEMPTS):
                times = _times(os.fstat(fd))
                digest = self._digest(fd, times[1])
                if times == _times(os.fstat(fd)):
                    break
        finally:
            os.close(fd)
        return Seen(times, digest, fresh=times[3] > time.time_ns() - _COARSE)

    def _digest(self, fd: int, size: int) -> bytes:
        digest, at = blake2b(digest_size=16), 0
        while at < min(size, LARGEST) and (piece := os.pread(fd, _PIECE, at)):
            digest.update(piece)
            at += len(piece)
        self.left -= at
        return digest.digest()


def _times(found: os.stat_result) -> _Times:
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
