"""The scoreboard's memory: a file in memory for each worker, made by the supervisor, mapped by the worker."""

import fcntl
import mmap
import os
import sys
from contextlib import suppress

from ostler.osapi.memfile import memory_file
from ostler.scoreboard import layout


def size(slots: int) -> int:
    """Bytes of a cell with so many request slots: whole pages."""
    return -(-(layout.PAGE + slots * layout.SLOT_SIZE) // layout.PAGE) * layout.PAGE


def create(slots: int) -> int:
    """A new cell, all zero, which takes no memory yet; returns its descriptor (close-on-exec).

    It is sealed: its size stays as it is. The supervisor reads and writes it by its descriptor and does not
    map it: whatever a worker does to the file, the worst result is a read that is too short, never SIGBUS.

    Raises:
        OSError: there is no memory for it, or no descriptor, or the kernel refuses the calls that it takes,
            which `strerror` names.
    """
    fd = memory_file("ostler-scoreboard")
    try:
        os.ftruncate(fd, size(slots))
    except OSError:
        os.close(fd)
        raise
    # A file that is no memfd can't be sealed.
    with suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def map_cell(fd: int) -> mmap.mmap:
    """Map a worker's own cell. The descriptor is not needed afterwards."""
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, 0, mmap.MAP_SHARED, trackfd=False)
    return mmap.mmap(fd, 0, mmap.MAP_SHARED)
