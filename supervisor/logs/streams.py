"""Standard streams for user code, which must not fail because nobody reads them any more.

An app that prints would else answer each request with 500 from the moment on that `ostler | head` has enough,
and so would one that writes to wsgi.errors.
"""

import io
import sys
from typing import TYPE_CHECKING

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
