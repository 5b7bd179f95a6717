"""The bytes of answers that a client has not taken yet: in memory, and beyond a limit in a temporary file.

Parts are sent in their order. A part is bytes, or a range of a file that the kernel sends by itself
(sendfile(2)): a file that the app answers with, or a temporary file of the buffer's own, which grows at its
end while it is sent from its beginning.
"""

import os
import socket
import tempfile
from collections import deque
from typing import Any

from ostler.osapi import original

# Sent at most in one call: a client that is quick to read must not keep the loop from the others.
_TURN = 4 * 1024 * 1024
# Read at a time where the kernel can't send a file, as under TLS.
_BLOCK = 64 * 1024
# Taken at import time: gevent and eventlet replace the class in its module.
_Plain = socket.socket


class Truncated(OSError):
    """A file ended before the range of it that was to be sent."""


class FilePart:
    """A range of an open file, whose descriptor it closes in the end.

    Args:
        fd: the descriptor, which becomes the part's own.
        offset, left: where the range begins, and its bytes.
        ours: it is a temporary file of the buffer's own, not one that the app answers with.
    """

    __slots__ = ("fd", "left", "offset", "ours")

    def __init__(self, fd: int, offset: int, left: int, ours: bool) -> None:
        self.fd = fd
        self.offset = offset
        self.left = left
        self.ours = ours

    def send(self, sock: Any, most: int) -> int:
        """Send a block of at most `most` bytes; returns how many the kernel has taken.

        Raises:
            BlockingIOError: the client takes nothing right now.
            OSError: the connection broke, or the file is shorter than it was.
        """
        count = min(self.left, most)
        if isinstance(sock, _Plain):
            sent = os.sendfile(sock.fileno(), self.fd, self.offset, count)
        else:
            data = os.pread(self.fd, min(count, _BLOCK), self.offset)
            sent = sock.send(data) if data else 0
        if sent == 0:
            raise Truncated("the file became shorter while it was sent")
        self.offset += sent
        self.left -= sent
        return sent

    def close(self) -> None:
        if self.fd >= 0:
            original.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()


class OutputBuffer:
    """A queue of parts; made when a client first does not take an answer whole.

    Called only by the thread to which the connection belongs.

    Args:
        in_memory: bytes kept in memory.
        in_file: bytes kept beyond that in temporary files; 0: none.
        folder: where temporary files are made; None: where the system wants them.

    Attributes:
        size: bytes in memory; stored: bytes in temporary files.
        began: when the client first did not take all (CLOCK_MONOTONIC, ns).
        taken: bytes of its connection that the client had taken by then; -1: that is not known.
        seen: the same at a later look (`Connection.reads`).
        sent: bytes that the kernel has taken since then.
    """

    __slots__ = (
        "_folder",
        "_in_file",
        "_in_memory",
        "_may_store",
        "_parts",
        "_spill",
        "began",
        "seen",
        "sent",
        "size",
        "stored",
        "taken",
    )

    def __init__(
        self, in_memory: int, in_file: int, folder: str | None, began: int = 0, taken: int = 0
    ) -> None:
        self.began = began
        self.taken = self.seen = taken
        self._in_memory = in_memory
        self._in_file = in_file
        self._folder = folder
        self._parts: deque[memoryview | FilePart] = deque()
        self._spill: FilePart | None = None
        self._may_store = in_file > 0
        self.size = self.stored = self.sent = 0

    def __bool__(self) -> bool:
        return bool(self._parts)

    def add(self, data: memoryview) -> None:
        """Keep bytes. It takes any amount: `full` says when the app should wait."""
        if self._may_store and (self.stored or (self._parts and self.size + len(data) > self._in_memory)):
            data = self._store(data)
            if not data:
                return
        self._parts.append(data)
        self.size += len(data)

    def add_file(self, fd: int, offset: int, count: int) -> None:
        """Keep a range of a file; `fd` becomes the buffer's own."""
        self._spill = None  # what is added from now on comes behind this
        self._parts.append(FilePart(fd, offset, count, ours=False))

    @property
    def unsent_file_bytes(self) -> int:
        """Bytes of the app's files that are not sent yet. They take no memory."""
        return sum(part.left for part in self._parts if isinstance(part, FilePart) and not part.ours)

    @property
    def full(self) -> bool:
        """Whether the app should wait. One block beyond the limit is kept: it is in memory anyway."""
        if self._may_store:
            return self.stored > self._in_file
        return self.size > self._in_memory and len(self._parts) > 1

    def flush(self, sock: Any) -> bool:
        """Send what the client takes now; True if nothing is left.

        Raises:
            OSError: the connection broke.
        """
        budget = _TURN
        parts = self._parts
        while parts:
            if budget <= 0:
                return False
            part = parts[0]
            try:
                if isinstance(part, FilePart):
                    sent = part.send(sock, budget)
                    self.sent += sent
                    budget -= sent
                    if part.ours:
                        self.stored -= sent
                    if part.left:
                        continue
                    if part is self._spill:
                        self._spill = None
                    part.close()
                else:
                    sent = sock.send(part)
                    self.sent += sent
                    budget -= sent
                    self.size -= sent
                    if sent < len(part):
                        parts[0] = part[sent:]
                        continue
            except BlockingIOError:
                return False
            parts.popleft()
        return True

    def close(self) -> None:
        self._spill = None
        self._parts.clear()

    def _store(self, data: memoryview) -> memoryview:
        """Write to a temporary file; returns what did not fit on the disk."""
        spill = self._spill
        # What was sent stays on the disk until its file is closed, so that one file must not take all.
        if spill is None or spill.offset + spill.left >= self._in_file:
            spill = self._open_spill()
            if spill is None:
                return data
        while data:
            try:
                written = os.pwrite(spill.fd, data, spill.offset + spill.left)
            except OSError:
                # The disk is full: what is in the file is sent first, then this. No more files are made.
                self._may_store = False
                self._spill = None
                if not spill.left:
                    self._parts.pop()
                    spill.close()
                break
            spill.left += written
            self.stored += written
            data = data[written:]
        return data

    def _open_spill(self) -> FilePart | None:
        try:
            with tempfile.TemporaryFile(dir=self._folder) as file:
                spill = FilePart(os.dup(file.fileno()), 0, 0, ours=True)
        except OSError:
            self._may_store = False  # no room, no folder: the app waits for the client instead
            return None
        self._spill = spill
        self._parts.append(spill)
        return spill
