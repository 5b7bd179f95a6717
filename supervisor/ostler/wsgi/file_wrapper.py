"""`wsgi.file_wrapper` (PEP 3333), and which files the kernel can send (sendfile(2))."""

import io
import os
import stat
import tempfile
from typing import IO, Any


class FileWrapper:
    """`wsgi.file_wrapper`: yields blocks of a file and closes it; the kernel sends a regular file."""

    def __init__(self, file: IO[bytes], block_size: int = 64 * 1024) -> None:
        self.file = file
        self.block_size = block_size
        if hasattr(file, "close"):
            self.close = file.close

    def __iter__(self) -> "FileWrapper":
        return self

    def __next__(self) -> bytes:
        if data := self.file.read(self.block_size):
            return data
        raise StopIteration


class BlockWrapper(FileWrapper):
    """The same, but never sent by the kernel (setting `sendfile`)."""


def regular_file(file: Any) -> tuple[int, int, int] | None:
    """Descriptor, position and remaining bytes of a regular file; None for any other object.

    Decided by its type: a GzipFile has a descriptor, too, but reads other bytes than those in the file.
    """
    if isinstance(file, tempfile._TemporaryFileWrapper):
        file = file.file
    raw = file.raw if type(file) in (io.BufferedReader, io.BufferedRandom) else file
    if type(raw) is not io.FileIO or raw.closed:
        return None
    if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
        return None
    file.flush()  # what the app has written to it
    position = file.tell()
    left = os.fstat(raw.fileno()).st_size - position
    if left <= 0:
        return None  # empty or, as in /proc, of a size that is unknown until it is read
    return raw.fileno(), position, left
