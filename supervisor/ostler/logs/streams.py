"""Standard streams for user code, which must not fail because nobody reads them any more.

An app that prints would else answer each request with 500 from the moment on that `ostler | head` has enough,
and so would one that writes to wsgi.errors.
"""

import io
import os
import sys
from typing import TYPE_CHECKING

from ostler.logs.opening import open_log
from ostler.osapi import original

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Forgiving(io.FileIO):
    """A standard descriptor; what it can't take (reader gone, disk full) is lost."""

    def write(self, data: "ReadableBuffer", /) -> int:
        try:
            return super().write(data)
        except BlockingIOError:
            raise  # another program made the descriptor so; Python's buffer keeps the rest
        except OSError:
            return memoryview(data).nbytes


def forgive() -> None:
    """Replace sys.stdout and sys.stderr by streams of the same kind that lose what can't be written."""
    sys.stdout = _stream(sys.stdout)
    sys.stderr = _stream(sys.stderr)


def _stream(stream: object) -> io.TextIOWrapper:
    assert isinstance(stream, io.TextIOWrapper)
    stream.flush()
    raw = _Forgiving(stream.fileno(), "wb", closefd=False)
    # With PYTHONUNBUFFERED there is no buffer below the text, and nothing would empty one.
    unbuffered = isinstance(stream.buffer, io.RawIOBase)
    return io.TextIOWrapper(
        raw if unbuffered else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def capture(path: str) -> None:
    """Have standard output and error written to the end of a file, whoever writes (`capture_output`).

    To be called again when logrotate has moved the file; may be called from a signal handler.

    Raises:
        OSError: the file can't be opened; all stays as it is.
    """
    fd = open_log(path)
    try:
        os.set_blocking(fd, True)  # programs that the app starts expect no other
        for standard in (1, 2):
            os.dup2(fd, standard)
    finally:
        original.close(fd)


def write_at_once() -> None:
    """Write what is printed line by line: in a log it must stand beside what happened then."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
