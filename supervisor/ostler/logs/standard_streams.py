"""Standard streams for user code that ignore write errors, e.g. when the reader of a pipe is gone.

They write to descriptors 1 and 2, which are the daemon's own unless `capture_output` is set (`capture`).

Without them, after `ostler | head` has ended, an app that prints or writes to wsgi.errors would answer each
request with 500.
"""

import io
import os
import sys
from typing import TYPE_CHECKING

from ostler.logs.opening import open_log
from ostler.osapi import original

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _LossyFile(io.FileIO):
    """A standard descriptor; bytes that can't be written (reader gone, disk full) are lost."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise  # another program made the descriptor non-blocking; Python's buffer keeps the rest
        except OSError:
            return memoryview(data).nbytes


def ignore_write_errors() -> None:
    """Replace sys.stdout and sys.stderr by streams of the same kind that drop what can't be written."""
    sys.stdout = _stream(sys.stdout)
    sys.stderr = _stream(sys.stderr)


def _stream(stream: object) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    stream.flush()
    raw = _LossyFile(stream.fileno(), "wb", closefd=False)
    # With PYTHONUNBUFFERED there is no buffer below the text layer, and nothing would flush one.
    unbuffered = isinstance(stream.buffer, io.RawIOBase)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def capture(path: str) -> None:
    """Redirect standard output and error of this process to the end of a file (`capture_output`).

    To be called again when logrotate has moved the file; may be called from a signal handler.

    Raises:
        OSError: the file can't be opened; nothing is changed.
    """
    fd = open_log(path)
    try:
        os.set_blocking(fd, True)  # programs that the app starts expect a blocking descriptor
        for standard in (1, 2):
            os.dup2(fd, standard)
    finally:
        original.close(fd)


def write_at_once() -> None:
    """Write printed text line by line, so that it is in order with other lines of the log."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
