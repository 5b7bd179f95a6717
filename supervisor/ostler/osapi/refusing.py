"""Ending a listening socket without losing a connection that the kernel has completed.

Closing it would reset the connections that wait to be accepted. So first it takes no new ones, then it is
emptied by those who accept, and then it is shut down, which affects all processes that have it:

- TCP: a socket filter (socket(7), SO_ATTACH_FILTER) drops segments that begin a connection; those that
  complete a handshake pass. A client whose SYN was dropped sends it again a second later, and is refused.
- A Unix socket takes no new connections when its file has been removed, which is the caller's part.
"""

import ctypes
import select
import socket
import struct

from ostler.osapi import original

_SO_ATTACH_FILTER = 26  # asm-generic/socket.h; Python has no name for it


def _code(*instructions: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in instructions)


# Classic BPF (linux/filter.h); a TCP socket's filter sees segments from the TCP header on (RFC 9293, 3.1).
_DROP_SYN = _code(
    (0x30, 0, 0, 13),  # load the byte with the flags
    (0x54, 0, 0, 0x12),  # SYN and ACK
    (0x15, 0, 1, 0x02),  # if only SYN is set:
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse_new(sock: socket.socket) -> None:
    """Let a listening TCP socket take no new connections. Nothing happens if the kernel refuses that."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    program = _Program(len(_DROP_SYN) // 8, _DROP_SYN)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, bytes(program))
    except OSError:
        pass  # then a connection may be lost that comes just before the end


def has_waiting(sock: socket.socket) -> bool:
    """Whether a connection waits to be accepted."""
    return _events(sock.fileno()) & (select.POLLIN | select.POLLHUP) == select.POLLIN


def shut(sock: socket.socket) -> None:
    """End it for all processes that have it; what waits is reset."""
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was shut before


def is_shut(fd: int) -> bool:
    """Whether a listening socket was shut down, or is closed."""
    return bool(_events(fd) & (select.POLLHUP | select.POLLNVAL))


def _events(fd: int) -> int:
    poll = original.poll()
    poll.register(fd, select.POLLIN)
    return next((mask for _, mask in poll.poll(0)), 0)
