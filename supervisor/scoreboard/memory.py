"""The scoreboard's memory: made by the supervisor, mapped by whoever reads or writes it."""

import fcntl
import mmap
import os

from supervisor.scoreboard import layout


def create() -> int:
    """A new scoreboard, all zero; returns its descriptor (memfd_create(2), close-on-exec)."""
    fd = os.memfd_create("ostler-scoreboard", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, layout.SIZE)
    # Workers have the descriptor; what one of them cuts off would kill the supervisor when it looks (SIGBUS).
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


def map_whole(fd: int) -> mmap.mmap:
    """All cells, for reading and for clearing a cell before its next use."""
    return mmap.mmap(fd, layout.SIZE, mmap.MAP_SHARED)


def map_cell(fd: int, cell: int) -> mmap.mmap:
    """One worker's own cell: the others are out of its reach."""
    return mmap.mmap(fd, layout.CELL_SIZE, mmap.MAP_SHARED, offset=cell * layout.CELL_SIZE)
