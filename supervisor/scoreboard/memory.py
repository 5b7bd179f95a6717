"""The scoreboard's memory: made by the supervisor, mapped by whoever reads or writes it."""

import mmap
import os

from supervisor.scoreboard import layout


def create() -> int:
    """A new scoreboard, all zero; returns its descriptor (memfd_create(2), close-on-exec)."""
    fd = os.memfd_create("ostler-scoreboard", os.MFD_CLOEXEC)
    os.ftruncate(fd, layout.SIZE)
    return fd


def map_whole(fd: int) -> mmap.mmap:
    """All cells, for reading and for clearing a cell before its next use."""
    return mmap.mmap(fd, layout.SIZE, mmap.MAP_SHARED)


def map_cell(fd: int, cell: int) -> mmap.mmap:
    """One worker's own cell: the others are out of its reach."""
    return mmap.mmap(fd, layout.CELL_SIZE, mmap.MAP_SHARED, offset=cell * layout.CELL_SIZE)
