"""One end of a SOCK_SEQPACKET socket pair that carries messages and descriptors.

The kernel keeps message boundaries and order, and end of file means that the other process is gone, however
it went. No framing, no threads, no locks.
"""

import array
import socket
from typing import Any, Generic, Self, TypeVar

import msgspec

from supervisor.ipc import wire
from supervisor.osapi import real

Incoming = TypeVar("Incoming")

# Larger than any message we build (tracebacks are cut to TRACEBACK_LIMIT), below the kernel's default limit
# for a socket buffer.
_MAX_MESSAGE = 160 * 1024
TRACEBACK_LIMIT = 48 * 1024
_MAX_DESCRIPTORS = 250  # SCM_MAX_FD is 253 (linux/net/scm.h)


class Channel(Generic[Incoming]):
    """Sends any message, receives those of one union.

    Args:
        sock: a SOCK_SEQPACKET socket; owned from now on.
        incoming: the union of message types that the other side may send.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._sock = sock
        self._decode: Any = wire.decoder(incoming)

    @classmethod
    def from_fd(cls, fd: int, incoming: Any) -> Self:
        return cls(real.Socket(fileno=fd), incoming)

    @classmethod
    def carried(cls, fd: int, incoming: Any) -> Self:
        """As `from_fd`; a descriptor of -1 gives a channel that is closed."""
        if fd >= 0:
            return cls.from_fd(fd, incoming)
        with real.Socket(socket.AF_UNIX) as sock:
            return cls(sock, incoming)

    def fileno(self) -> int:
        return self._sock.fileno()

    def set_blocking(self, blocking: bool) -> None:
        self._sock.setblocking(blocking)

    def send(self, message: msgspec.Struct, descriptors: list[int] | None = None) -> None:
        """Send one message, whole or not at all.

        Raises:
            BlockingIOError: the other side does not read and the socket does not block.
            OSError: the other side is gone (EPIPE, ECONNRESET).
        """
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        self._sock.sendmsg([wire.encode(message)], ancillary, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Incoming, list[int]] | None:
        """The next message with its descriptors (close-on-exec, owned by the caller); None at the end.

        Raises:
            BlockingIOError: nothing there and the socket does not block.
        """
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _MAX_MESSAGE, socket.CMSG_SPACE(4 * _MAX_DESCRIPTORS), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionResetError:
            return None
        if not data:
            return None
        descriptors = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(payload[: len(payload) - len(payload) % descriptors.itemsize])
        try:
            return self._decode(data), list(descriptors)
        except msgspec.DecodeError:
            for fd in descriptors:
                real.close(fd)
            raise

    def close(self) -> None:
        self._sock.close()

    def detach(self) -> int:
        """Give the descriptor away, for a channel that expects other messages."""
        return self._sock.detach()


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel, with room for the largest message."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_MESSAGE)
    return ends


def shorten(traceback: str) -> str:
    """Cut a traceback so that it fits a message; the end says most, so the middle goes."""
    if len(traceback) <= TRACEBACK_LIMIT // 4:
        return traceback
    half = TRACEBACK_LIMIT // 8
    return f"{traceback[:half]}\n  [...]\n{traceback[-half:]}"
