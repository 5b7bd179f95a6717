"""Request bodies: buffered in memory or in a temporary file, or read by the app while they are received."""

import io
import os
import tempfile
from collections import deque
from collections.abc import Callable
from typing import IO


class _Unlinked(io.BufferedRandom):
    """A temporary file that is closed with its last reference, as nothing else closes it."""

    def __del__(self) -> None:
        try:
            self.close()
        except OSError:
            pass  # what is still buffered does not fit the disk; its request has been refused for that


def _unlinked(folder: str | None) -> _Unlinked:
    with tempfile.TemporaryFile(dir=folder) as file:
        raw = io.FileIO(os.dup(file.fileno()), "rb+")
    return _Unlinked(raw)


class BufferedBody:
    """A body that is received completely before the app sees it.

    Args:
        in_memory: bytes kept in memory; a longer body goes to an unlinked temporary file.
        folder: where to create that; None: the system's folder for temporary files.

    Attributes:
        file: holds what was written.
    """

    __slots__ = ("_folder", "_left", "_spilled", "file")

    def __init__(self, in_memory: int, folder: str | None) -> None:
        self.file: IO[bytes] = io.BytesIO()
        self._left = in_memory
        self._spilled = False
        self._folder = folder

    def write(self, data: bytes) -> int:
        """Append bytes.

        Raises:
            OSError: no space is left; http1/request.py makes it BodyNotStored, whose answer is 507.
        """
        self._left -= len(data)
        if self._left < 0 and not self._spilled:
            file = _unlinked(self._folder)
            file.write(self.file.getbuffer())  # type: ignore[attr-defined]
            self.file = file
            self._spilled = True
        return self.file.write(data)

    def flush(self) -> None:
        """Write what is buffered, so that a full disk is noticed before the app reads. Raises OSError."""
        self.file.flush()

    def input(self) -> IO[bytes]:
        """The body from its beginning."""
        self.file.seek(0)
        return self.file


class _Raw(io.RawIOBase):
    """Reads what `StreamedBody` has received, and has it receive more."""

    def __init__(self, body: "StreamedBody") -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]
        data = self._body.read_some(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class StreamedBody:
    """A body that the app reads while it is being received.

    Attributes:
        pull: receives more, or raises; set by the code that serves the request.
        complete: returns whether all of the body was received.
    """

    __slots__ = ("_parts", "complete", "pull")

    def __init__(self) -> None:
        self._parts: deque[bytes] = deque()
        self.pull: Callable[[], None] = _nothing
        self.complete: Callable[[], bool] = _nothing_more

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def input(self) -> IO[bytes]:
        return io.BufferedReader(_Raw(self))

    def end(self) -> None:
        """The request has ended: drop the references to its connection.

        That refers to the request, and so to this body. Not even the garbage collector would find the cycle.
        """
        self.pull, self.complete = _nothing, _never
        self._parts.clear()

    def read_some(self, most: int) -> bytes:
        """At most `most` bytes, after waiting for the first; b"" at the end of the body."""
        while not self._parts:
            if self.complete():
                return b""
            self.pull()
        data = self._parts.popleft()
        if len(data) > most:
            self._parts.appendleft(data[most:])
            data = data[:most]
        return data


def _nothing() -> None:
    raise OSError("the request has ended")


def _nothing_more() -> bool:
    return True


def _never() -> bool:
    return False
