"""Handing connections from worker to worker.

All workers of a daemon share one pair of connected sockets. Who gives a connection away sends its descriptor
into one end (SCM_RIGHTS, unix(7)); the other end lies in every worker's epoll, EPOLLEXCLUSIVE, so the kernel
wakes one that waits, and if all are busy the first that is done takes it: one queue for all. Only connections
between two requests travel, and never under TLS, whose state can't leave its process.

What is it good for: a worker in a long request gives away what would have to wait for it; a worker that
leaves gives its idle connections to those that stay, so that clients notice nothing.

The app in a sibling may write anything into the pair, and may also make its sockets block or shut them down:
what is no connection is closed, and never more than some of it at once.
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

# Bounds what a message costs: what is told of a connection besides its descriptor.
_MESSAGE = 4096
# Messages looked at for one connection.
_TRIES = 16
_KINDS = (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX)
# What the PROXY protocol says of a connection.
_FACTS = {"PROXY_PROTOCOL", "REMOTE_ADDR", "REMOTE_PORT", "PROXY_ADDR", "PROXY_PORT"}


class Idle(Protocol):
    """What is to be known of a connection that is given away; see Connection."""

    fd: int
    tls: bool
    listener: str
    facts: dict[str, str] | None
    served: int


class _Parcel(msgspec.Struct, array_like=True):
    """giver: its pid; listener: its address as the giver knows it; facts, served: see Connection."""

    giver: int
    listener: str
    facts: dict[str, str]
    served: Annotated[int, msgspec.Meta(ge=0)]


@dataclass(frozen=True, slots=True)
class Taken:
    """A connection that a worker gave away, perhaps this one."""

    ours: bool
    sock: socket.socket
    peer: Any
    listener: str
    facts: dict[str, str]
    served: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Parcel)


class HandOff:
    """The shared pair; `giving` and `taking` are its two ends.

    Attributes:
        useless: there is no end of what is no connection: do not look for one for a while.
    """

    def __init__(self, giving: socket.socket, taking: socket.socket) -> None:
        self._giving = giving
        self._taking = taking
        self.useless = False
        giving.setblocking(False)
        taking.setblocking(False)

    def fileno(self) -> int:
        """Readable while a connection waits to be taken."""
        return self._taking.fileno()

    def give(self, connection: Idle) -> bool:
        """Hand an idle connection over; False if it can't be. What is left to do is to close our copy."""
        if connection.tls:
            return False
        parcel = _Parcel(os.getpid(), connection.listener, connection.facts or {}, connection.served)
        try:
            descriptor = array.array("i", [connection.fd])
            self._giving.sendmsg(
                [_encoder.encode(parcel)],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)],
                socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL,
            )
        except (OSError, UnicodeError):
            return False  # the queue is full, or the pair is gone with the supervisor
        return True

    def take(self) -> Taken | None:
        """The next connection whose client is still there; None if there is none."""
        self.useless = False
        for _ in range(_TRIES):
            try:
                # Not socket.recv_fds, which forgets its flags.
                data, ancillary, _, _ = self._taking.recvmsg(
                    _MESSAGE, received.SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
            except OSError:
                return None  # a sibling was quicker
            descriptors = received.descriptors(ancillary)
            taken = _unpack(data, descriptors[0]) if len(descriptors) == 1 else None
            if taken is not None:
                return taken
            for fd in descriptors:
                received.discard(fd)
            if not data and self._has_ended():
                break
        self.useless = True
        return None

    def _has_ended(self) -> bool:
        """Whether the pair was shut down: it is readable for ever then."""
        poll = original.poll()
        poll.register(self._taking, select.POLLRDHUP)
        return bool(poll.poll(0))


def _unpack(data: bytes, descriptor: int) -> Taken | None:
    """None if it is no connection; the descriptor is still the caller's then."""
    try:
        parcel = _decoder.decode(data)
        sock = original.Socket(fileno=descriptor)
    except (OSError, ValueError, RecursionError):
        return None
    try:
        sock.setblocking(False)  # and not what an app may have set as default time-out
        received.never_linger(sock)
        if sock.type == socket.SOCK_STREAM and sock.family in _KINDS and _are_facts(parcel.facts):
            ours = parcel.giver == os.getpid()
            served = min(parcel.served, monotonic_ns())
            return Taken(ours, sock, sock.getpeername(), parcel.listener, parcel.facts, served)
    except OSError:
        pass  # it listens, or its client has gone
    sock.detach()
    return None


def _are_facts(facts: dict[str, str]) -> bool:
    return facts.keys() <= _FACTS and all(text.isascii() and text.isprintable() for text in facts.values())
