"""How many connections wait at a listening socket to be accepted."""

import os
import socket
import struct
from typing import Final

# struct tcp_info, tcpi_unacked and tcpi_sacked (linux/tcp.h): for a listening socket they hold its queue.
_TCP_QUEUE = struct.Struct("=24xII")

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h; see sock_diag(7).
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_RQLEN = 0x10
_UNIX_DIAG_RQLEN = 4
_ANY = 0xFFFF_FFFF
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBHIIIII")
_ANSWER: Final = 16  # struct unix_diag_msg; attributes follow
_ATTRIBUTE = struct.Struct("=HH")
_QUEUE = struct.Struct("=II")
_ANSWER_SIZE = 1024
_PATIENCE = 1.0


def accept_queue(sock: socket.socket) -> tuple[int, int] | None:
    """How many connections wait, and the limit; None if the kernel does not report it."""
    try:
        if sock.family == socket.AF_UNIX:
            return _unix_queue(os.fstat(sock.fileno()).st_ino)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_QUEUE.size)
        return _TCP_QUEUE.unpack(info)
    except (OSError, struct.error):
        return None


def _unix_queue(inode: int) -> tuple[int, int] | None:
    """Ask sock_diag(7); raises OSError if that is not possible."""
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, _ANY, inode, _UDIAG_SHOW_RQLEN, _ANY, _ANY)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(_PATIENCE)  # it answers at once, or never
        size = _HEADER.size + len(request)
        netlink.sendto(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request, (0, 0))
        answer = netlink.recv(_ANSWER_SIZE)
    if _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None  # an error: no such socket, or a kernel without unix_diag
    at = _HEADER.size + _ANSWER
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _UNIX_DIAG_RQLEN:
            return _QUEUE.unpack_from(answer, at + _ATTRIBUTE.size)
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return None
