"""One end of a SOCK_SEQPACKET socket pair that carries messages and descriptors.

The kernel keeps message boundaries and order, and end of file means that the other process has ended, in
whatever way. No framing, no threads, no locks.

A child runs an app that may be hostile. So the supervisor reads with `receive_unvouched`, which receives no
descriptors and reports what is wrong with a message. Children trust the supervisor and read with `receive`.
"""

import array
import select
import socket
from typing import Any, Generic, Self, TypeVar

import msgspec

from ostler.ipc import wire
from ostler.osapi import original, received

Incoming = TypeVar("Incoming")

# Larger than any message we build (tracebacks are cut to TRACEBACK_LIMIT), below the kernel's default limit
# for a socket buffer.
_MAX_MESSAGE = 160 * 1024
TRACEBACK_LIMIT = 48 * 1024
# The same where decoding takes Python (`wire.is_escaped`): more than settings, or a batch of paths, need. And
# how many bytes one of these counts as.
_MAX_ESCAPED, _ESCAPED_COST = 72 * 1024, 8
LINE_LIMIT = 2000
"""Characters of a reason, a warning and the like."""
# Characters of an error that are quoted.
_QUOTED = 200


class BadMessage(Exception):
    """What was received is no message that the other side may send; the text continues "it sent"."""


class Channel(Generic[Incoming]):
    """Sends any message, receives those of one union.

    Args:
        sock: a SOCK_SEQPACKET socket; owned from now on.
        incoming: the union of message types that the other side may send.

    Attributes:
        sent: how many messages were sent.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        self._sock = sock
        self.sent = 0
        self._decode: Any = wire.decoder(incoming)

    @classmethod
    def from_fd(cls, fd: int, incoming: Any) -> Self:
        return cls(original.Socket(fileno=fd), incoming)

    @classmethod
    def carried(cls, fd: int, incoming: Any) -> Self:
        """As `from_fd`; a descriptor of -1 gives a channel that is closed."""
        if fd >= 0:
            return cls.from_fd(fd, incoming)
        with original.Socket(socket.AF_UNIX) as sock:
            return cls(sock, incoming)

    def fileno(self) -> int:
        return self._sock.fileno()

    def set_blocking(self, blocking: bool) -> None:
        self._sock.setblocking(blocking)

    def send(self, message: msgspec.Struct, descriptors: list[int] | None = None) -> None:
        """Send one message, whole or not at all.

        Raises:
            BlockingIOError: the other side does not read, and the socket does not block.
            OSError: the other side has ended (EPIPE, ECONNRESET).
        """
        ancillary = (
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        )
        self._sock.sendmsg([wire.encode(message)], ancillary, socket.MSG_NOSIGNAL)
        self.sent += 1

    def receive(self) -> tuple[Incoming, list[int]] | None:
        """The next message with its descriptors (close-on-exec, owned by the caller); None at the end.

        Raises:
            BlockingIOError: there is no message, and the socket does not block.
        """
        data, ancillary, _, _ = self._recvmsg(received.SPACE, socket.MSG_CMSG_CLOEXEC)
        if not data:
            return None
        descriptors = received.descriptors(ancillary)
        try:
            return self._decode(data), descriptors
        except msgspec.DecodeError:
            for fd in descriptors:
                original.close(fd)
            raise

    def receive_unvouched(self) -> tuple[Incoming, int] | None:
        """The next message of a side that may send anything, and its size; None at the end.

        The size is in bytes, or a multiple of that where they are costly to decode.

        Descriptors are not received: closing them can block for as long as their sender likes (see
        `received.discard`). A message with some stays in the socket.

        Raises:
            BadMessage: what was received is no message.
            BlockingIOError: there is no message, and the socket does not block.
        """
        if self._recvmsg(0, socket.MSG_PEEK, 0)[2] & socket.MSG_CTRUNC:
            raise BadMessage("descriptors, which it never has to give")
        data, _, flags, _ = self._recvmsg(0, 0)
        if flags & socket.MSG_TRUNC:
            raise BadMessage(f"a message of more than {_MAX_MESSAGE} bytes")
        if not data:
            if self._has_ended():
                return None
            raise BadMessage("an empty message")
        size = len(data)
        if wire.is_escaped(data):
            if size > _MAX_ESCAPED:
                raise BadMessage(f"an escaped message of more than {_MAX_ESCAPED} bytes")
            size *= _ESCAPED_COST
        try:
            return self._decode(data), size
        except (ValueError, RecursionError) as error:  # also of text that is no UTF-8: no msgspec.DecodeError
            why = ascii(str(error)[:_QUOTED])[1:-1]
            raise BadMessage(f"{len(data)} bytes that are no message ({why})") from None

    def _recvmsg(self, ancillary: int, flags: int, size: int = _MAX_MESSAGE) -> Any:
        """recvmsg(2). The end of the other side with messages unread is reported once, as ECONNRESET and
        before what it has sent (`unix_release_sock` in Linux): that is read all the same."""
        try:
            return self._sock.recvmsg(size, ancillary, flags)
        except ConnectionResetError:
            return self._sock.recvmsg(size, ancillary, flags)

    def _has_ended(self) -> bool:
        """Whether no more comes: an empty message looks like the end."""
        poll = original.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def hang_up(self) -> int:
        """Let the other side see the end; returns the descriptor, which the caller has to close."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more
        return self._sock.detach()

    def close(self) -> None:
        self._sock.close()

    def detach(self) -> int:
        """Returns the descriptor, for a channel that expects other messages."""
        return self._sock.detach()


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new channel, with room for the largest message."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_MESSAGE)
    return ends


def shorten(traceback: str) -> str:
    """Cut a traceback so that it fits a message; what is cut out is the middle."""
    traceback = _encodable(traceback)
    if len(traceback) <= TRACEBACK_LIMIT // 4:
        return traceback
    half = TRACEBACK_LIMIT // 8
    return f"{traceback[:half]}\n  [...]\n{traceback[-half:]}"


def line(text: str) -> str:
    """Cut a reason or a warning so that it fits a message."""
    text = _encodable(text)
    return text if len(text) <= LINE_LIMIT else f"{text[: LINE_LIMIT - 3]}..."


def lines(texts: list[str], most: int) -> list[str]:
    """The same for several, of which at most so many are kept."""
    found = [line(text) for text in texts]
    return found if len(found) <= most else [*found[: most - 1], f"{len(found) - most + 1} more"]


def _encodable(text: str) -> str:
    """An app may put half of a surrogate pair into an exception, which UTF-8 can't encode."""
    return text.encode("utf-8", "backslashreplace").decode()
