"""Descriptors received over a socket (SCM_RIGHTS, unix(7)) from a process that is not trusted."""

import array
import socket
import struct
from collections.abc import Iterable

from ostler.osapi import original

MOST = 253
"""In one message (SCM_MAX_FD, linux/net/scm.h)."""
SPACE = socket.CMSG_SPACE(4 * MOST)
"""For `recvmsg`. With less space the kernel would close the rest, which can block: see `discard`."""

_NO_LINGER = struct.pack("ii", 0, 0)


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors in the ancillary data of `recvmsg`; the caller owns them."""
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    return list(found)


def discard(fd: int) -> None:
    """Close a descriptor without waiting.

    The last close of a TCP socket waits until its data is sent, for as long as the sender of the descriptor
    has set (SO_LINGER, socket(7)), even for a non-blocking socket.
    """
    try:
        with original.Socket(fileno=fd) as sock:
            never_linger(sock)
    except OSError:
        original.close(fd)  # no socket


def never_linger(sock: socket.socket) -> None:
    """See `discard`."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    except OSError:
        pass  # a kind of socket without SO_LINGER
