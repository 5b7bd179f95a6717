"""Handing connections from worker to worker.

All workers of a daemon share one pair of connected sockets. Who gives a connection away sends its descriptor
into one end (SCM_RIGHTS, unix(7)); the other end lies in every worker's epoll, EPOLLEXCLUSIVE, so the kernel
wakes one that waits, and if all are busy the first that is done takes it: one queue for all. Only connections
between two requests travel, and never under TLS, whose state can't leave its process.

What is it good for: a worker in a long request gives away what would have to wait for it; a worker that
leaves gives its idle connections to those that stay, so that clients notice nothing.
"""

import os
import socket
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from supervisor.osapi import real

# Bounds what a message costs: what is told of a connection besides its descriptor.
_MESSAGE = 4096
_INT = 4


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
    served: int


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


class Relay:
    """The shared pair; `giving` and `taking` are its two ends."""

    def __init__(self, giving: socket.socket, taking: socket.socket) -> None:
        self._giving = giving
        self._taking = taking
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
            socket.send_fds(self._giving, [_encoder.encode(parcel)], [connection.fd])
        except (OSError, UnicodeError):
            return False  # the queue is full, or the pair is gone with the supervisor
        return True

    def take(self) -> Taken | None:
        """The next connection whose client is still there; None if there is none."""
        while True:
            try:
                # Not socket.recv_fds, which forgets its flags.
                data, ancillary, _, _ = self._taking.recvmsg(
                    _MESSAGE, socket.CMSG_SPACE(_INT), socket.MSG_CMSG_CLOEXEC
                )
            except OSError:
                return None  # a sibling was quicker
            if not data:
                return None  # the pair is gone with the supervisor
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(payload) >= _INT:
                    taken = _unpack(data, int.from_bytes(payload[:_INT], sys.byteorder))
                    if taken is not None:
                        return taken


def _unpack(data: bytes, descriptor: int) -> Taken | None:
    sock = real.Socket(fileno=descriptor)
    sock.setblocking(False)  # and not what an app may have set as default time-out
    try:
        parcel = _decoder.decode(data)
        ours = parcel.giver == os.getpid()
        return Taken(ours, sock, sock.getpeername(), parcel.listener, parcel.facts, parcel.served)
    except (OSError, msgspec.DecodeError):
        sock.close()
        return None
