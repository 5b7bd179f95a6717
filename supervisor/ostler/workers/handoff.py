"""Handing connections off from worker to worker.

All workers of a daemon share one pair of connected sockets. A worker that hands a connection off sends its
descriptor into one end (SCM_RIGHTS, unix(7)). The other end is in every worker's epoll, with EPOLLEXCLUSIVE,
so that the kernel wakes one worker that waits; if all are busy, the first that polls again receives it: one
queue for all. Only connections between two requests are handed off, and never under TLS, whose state can't
leave its process.

A worker in a long request hands off what would have to wait for it. A worker that leaves hands its idle
connections off to those that stay, so that clients notice nothing.

The app in a sibling may write anything into the pair, make its sockets block, or shut them down: what is not
a connection is closed, and only so much of it is read at once.
"""

import array
import os
import select
import socket
from dataclasses import dataclass
from time import monotonic_ns
from typing import Annotated, Any, Protocol

import msgspec

from ostler.osapi import original, received

# Bytes of a message at most: what is sent of a connection besides its descriptor.
_MESSAGE = 4096
# Messages that are read for one connection at most.
_TRIES = 16
_KINDS = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# What the PROXY protocol says of a client.
_PEER_INFO = {"PROXY_PROTOCOL", "REMOTE_ADDR", "REMOTE_PORT", "PROXY_ADDR", "PROXY_PORT"}

INVALID_RECEIVED = "descriptors received from sibling workers were not connections; receiving pauses for 1 s"
"""Why a worker pauses to receive, for the log."""


class IdleConnection(Protocol):
    """What is read of a connection that is handed off; see Connection."""

    fd: int
    tls: bool
    listener: str
    peer_info: dict[str, str] | None
    answered_at: int
    waiting_since: int


class _HandOffMessage(msgspec.Struct, array_like=True):
    """What is sent with a descriptor. sender: the worker's pid; the rest: see Connection."""

    sender: int
    listener: str
    peer_info: dict[str, str]
    answered_at: Annotated[int, msgspec.Meta(ge=0)]
    waiting_since: Annotated[int, msgspec.Meta(ge=0)] = 0


@dataclass(frozen=True, slots=True)
class HandedOff:
    """A connection that a worker handed off.

    Attributes:
        returned: this worker itself had handed it off: no sibling had time for it.
        peer: its getpeername(); the rest: see Connection.
    """

    returned: bool
    sock: socket.socket
    peer: Any
    listener: str
    peer_info: dict[str, str]
    answered_at: int
    waiting_since: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_HandOffMessage)


class HandOff:
    """The shared pair of sockets. Called only by the thread that polls.

    Args:
        sending, receiving: its two ends.

    Attributes:
        only_invalid_received: `receive` read only what is not a connection, again and again: pause.
    """

    def __init__(self, sending: socket.socket, receiving: socket.socket) -> None:
        self._sending = sending
        self._receiving = receiving
        self.only_invalid_received = False
        sending.setblocking(False)
        receiving.setblocking(False)

    def fileno(self) -> int:
        """Readable while a connection waits to be received."""
        return self._receiving.fileno()

    def send(self, connection: IdleConnection) -> bool:
        """Hand an idle connection off; False if it can't be. What is left to do then is to close our copy."""
        if connection.tls:
            return False
        message = _HandOffMessage(
            *(os.getpid(), connection.listener, connection.peer_info or {}),
            *(connection.answered_at, connection.waiting_since),
        )
        try:
            descriptor = array.array("i", [connection.fd])
            self._sending.sendmsg(
                [_encoder.encode(message)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)],
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
            )
        except (OSError, UnicodeError):
            return False  # the queue is full, or the pair is gone with the supervisor
        return True

    def receive(self) -> HandedOff | None:
        """The next connection whose client is still there; None if there is none."""
        self.only_invalid_received = False
        for _ in range(_TRIES):
            try:
                # Not socket.recv_fds, which forgets its flags.
                data, ancillary, _, _ = self._receiving.recvmsg(
                    _MESSAGE, received.SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except OSError:
                return None  # a sibling was quicker
            descriptors = received.descriptors(ancillary)
            found = _unpack(data, descriptors[0]) if len(descriptors) == 1 else None
            if found is not None:
                return found
            for fd in descriptors:
                received.discard(fd)
            if not data and self._has_ended():
                break
        self.only_invalid_received = True
        return None

    def _has_ended(self) -> bool:
        """Whether the pair was shut down: it is readable for ever then."""
        poll = original.poll()
        poll.register(self._receiving, select.POLLRDHUP)
        return bool(poll.poll(0))


def _unpack(data: bytes, descriptor: int) -> HandedOff | None:
    """None if it is not a connection; the descriptor is still the caller's then."""
    try:
        message = _decoder.decode(data)
        sock = original.Socket(fileno=descriptor)
    except (OSError, ValueError, RecursionError):
        return None
    try:
        sock.setblocking(False)  # an app may have set a default time-out
        received.never_linger(sock)
        if sock.type == socket.SOCK_STREAM and sock.family in _KINDS and _is_peer_info(message.peer_info):
            returned = message.sender == os.getpid()
            now = monotonic_ns()
            times = min(message.answered_at, now), min(message.waiting_since, now)
            return HandedOff(returned, sock, sock.getpeername(), message.listener, message.peer_info, *times)
    except OSError:
        pass  # it listens, or its client has gone
    sock.detach()
    return None


def _is_peer_info(texts: dict[str, str]) -> bool:
    return texts.keys() <= _PEER_INFO and all(
        text.isascii() and text.isprintable() for text in texts.values()
    )
