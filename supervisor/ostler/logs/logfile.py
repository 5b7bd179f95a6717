"""A log file that many processes and threads append to.

Lines are written whole to a descriptor opened for appending, so lines of many processes do not mix. A log
that can't be written (disk full, reader gone, reader stopped) is no reason to stop serving: lines are lost
and counted, and their number is reported as soon as there is room again.

Lines can be collected and written together, which costs one write(2) instead of one each. Threads share the
list without a lock: they only append to it, and only the thread that holds the try-lock removes lines. A
thread that does not get the lock need not wait: the holder checks the list again after releasing it.
"""

import os
import select
import stat
from collections.abc import Callable

from ostler.logs.opening import open_log
from ostler.osapi import original

# Lines; some 15 KiB of an access log. More would save next to nothing and be lost in a crash.
_LARGEST_BATCH = 64
# Seconds to wait for a reader that is behind. If it is only slow nothing is lost; if it does not read at all,
# a process waits once.
_READER_TIMEOUT = 0.5
_STALLED = "the reader is not reading"

OnLost = Callable[[int, str], object]
"""Called with the number of lost lines and the reason; with 0 when the first line can't be written."""


class LogFile:
    """A file to append lines to; `-` is an open standard descriptor.

    Args:
        path: the file's; standard_fd: what `-` means.
        reader_timeout: seconds to wait for the reader of a pipe; 0 if the caller must not wait.
        kept: bytes of lines to keep, after that, until the reader reads again.

    Attributes:
        name: for messages.
        on_lost: called about lost lines; with a number when the file can be written again.

    Raises:
        OSError: the file can't be opened.
    """

    def __init__(
        self, path: str, standard_fd: int, reader_timeout: float = _READER_TIMEOUT, kept: int = 0
    ) -> None:
        self._fd = -1
        self.name = path if path != "-" else {1: "stdout", 2: "stderr"}.get(standard_fd, "-")
        self.on_lost: OnLost | None = None
        self._path = path
        self._standard_fd = standard_fd
        self._reader_timeout = reader_timeout
        self._most_kept = kept
        self._fd = _without_waiting(standard_fd) if path == "-" else open_log(path)
        self._check_kind()
        self._lines: list[bytes] = []
        self._writing = original.Lock()
        self._torn = 0  # bytes at the end of the file that are only a part of a line
        self._stalled = False  # a wait for the reader has timed out, and it has read nothing since
        self._lost = 0
        self._reason = ""

    def _check_kind(self) -> None:
        """Find out the kind of the file."""
        try:
            self._regular = stat.S_ISREG(os.fstat(self._fd).st_mode)
            self._waits = not self._regular and os.get_blocking(self._fd)
        except OSError:
            self._regular, self._waits = False, False  # closed: each line is going to be lost

    def reopen(self) -> None:
        """Open the path again, as logrotate asks with USR1; on failure the old file stays in use."""
        if self._path == "-":
            return
        self.flush()
        try:
            new = open_log(self._path)
        except OSError:
            return
        # The descriptor's number stays: threads may be writing to it (dup3(2) replaces it atomically).
        os.dup2(new, self._fd, inheritable=False)
        original.close(new)
        self._check_kind()
        self._torn = 0
        self._stalled = False

    def write(self, line: str) -> None:
        self._lines.append(line.encode("utf-8", "backslashreplace") + b"\n")
        self.flush()

    def gather(self, line: bytes) -> None:
        """Collect a line, which includes its line end, for the next `flush`."""
        lines = self._lines
        lines.append(line)
        if len(lines) >= _LARGEST_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write collected lines, unless another thread is doing it; it may still do so at the return."""
        lines = self._lines
        left: list[bytes] = []
        while lines and not left and self._writing.acquire(False):
            report: int | None = None
            try:
                before = self._lost
                batch = lines[:]
                del lines[: len(batch)]
                if self._regular:
                    self._put(b"".join(batch))
                elif left := self._put_pieces(batch):
                    lines[:0] = left
                if self._lost > before:
                    report = None if before else 0
                elif before and not left:
                    report, self._lost = before, 0
            finally:
                self._writing.release()
            if report is not None and self.on_lost is not None:
                self.on_lost(report, self._reason)

    def close(self) -> None:
        """Write the kept lines, if the reader reads them soon, and close the file."""
        self._reader_timeout, self._stalled = self._reader_timeout or _READER_TIMEOUT, False
        self.flush()
        if self._fd >= 0 and self._fd != self._standard_fd:
            original.close(self._fd)
        self._fd = -1

    def _put_pieces(self, batch: list[bytes]) -> list[bytes]:
        """Write lines to a pipe, terminal or device; returns the lines to keep."""
        pieces = _pieces(batch)
        for number, piece in enumerate(pieces):
            if not self._put(b"".join(piece)):
                return self._keep([line for lines in pieces[number:] for line in lines])
        return []

    def _keep(self, lines: list[bytes]) -> list[bytes]:
        """As many of these lines as may be kept; the rest, which are the newest, are lost."""
        size = 0
        for number, line in enumerate(lines):
            size += len(line)
            if size > self._most_kept:
                self._lose(b"".join(lines[number:]), _STALLED)
                return lines[:number]
        return lines

    def _put(self, data: bytes) -> bool:
        """Write lines; False if none of them was written because the reader is behind.

        Otherwise lines without room are lost; the next one begins on a new line.
        """
        if self._torn:
            data = b"\n" + data
        whole = len(data)
        # The descriptor may be a blocking one of another program. A write of at most PIPE_BUF does not wait
        # if poll(2) reports room.
        limit = select.PIPE_BUF if self._waits else whole
        ready = not self._waits
        while data:
            try:
                if not ready and not self._wait_for_room():
                    raise BlockingIOError
                written = original.write(self._fd, data[:limit] if limit < whole else data)
            except BlockingIOError:
                if not self._waits and self._wait_for_room():
                    continue
                if len(data) == whole:
                    return False
                self._lose(data, _STALLED)
                return True
            except OSError as error:
                self._lose(data, error.strerror or str(error))
                self._remove_partial_line()
                return True
            ended = data.rfind(b"\n", 0, written)
            self._torn = self._torn + written if ended < 0 else written - ended - 1
            self._stalled = False
            data = data[written:]
        return True

    def _wait_for_room(self) -> bool:
        """Wait for room, or an error that write(2) will report; not again until the reader has read."""
        poll = original.poll()
        poll.register(self._fd, select.POLLOUT)
        if poll.poll(0 if self._stalled else self._reader_timeout * 1000):
            return True
        self._stalled = True
        return False

    def _remove_partial_line(self) -> None:
        """Remove a part of a line, before another process appends a line to it."""
        if not self._torn or not self._regular:
            return
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)  # where our last write ended
            if end == os.fstat(self._fd).st_size:
                os.ftruncate(self._fd, end - self._torn)
                self._torn = 0
        except OSError:
            pass  # then the next line of this process begins on a new line

    def _lose(self, data: bytes, reason: str) -> None:
        self._lost += data.count(b"\n", 0, -1) + 1
        self._reason = reason

    def __del__(self) -> None:
        if self._fd >= 0 and self._fd != self._standard_fd:
            original.close(self._fd)

    @property
    def is_terminal(self) -> bool:
        try:
            return stat.S_ISCHR(os.fstat(self._fd).st_mode) and os.isatty(self._fd)
        except OSError:
            return False


def _without_waiting(fd: int) -> int:
    """A pipe or terminal opened again, so that writing to it never waits; else the descriptor itself.

    O_NONBLOCK on the inherited description would affect all processes that share it, e.g. the shell.
    """
    try:
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
            return os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        pass  # closed, of another account, or without a reader
    return fd


def _pieces(lines: list[bytes]) -> list[list[bytes]]:
    """Group lines into writes that a pipe takes atomically (pipe(7)); a regular file takes any size."""
    pieces = [[lines[0]]]
    size = len(lines[0])
    for line in lines[1:]:
        size += len(line)
        if size > select.PIPE_BUF:
            pieces.append([line])
            size = len(line)
        else:
            pieces[-1].append(line)
    return pieces
