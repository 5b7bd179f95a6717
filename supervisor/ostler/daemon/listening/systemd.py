"""Listening sockets that systemd hands over (socket activation, sd_listen_fds(3))."""

import os
import socket

from ostler.errors import OstlerError
from ostler.osapi.files import most_open_files


def systemd_listeners() -> list[int]:
    """The descriptors that were handed over. The variables are removed from the environment, so that no child
    takes them for its own.

    Raises:
        OstlerError: one of them is no listening stream socket.
    """
    pid, count = os.environ.pop("LISTEN_PID", ""), os.environ.pop("LISTEN_FDS", "")
    os.environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()) or not count.isdecimal():
        return []
    descriptors: list[int] = []
    for fd in range(3, 3 + min(int(count[:9]), most_open_files())):
        try:
            os.set_inheritable(fd, False)
            listens = _listens(fd)
        except OSError as error:
            raise _not_handed_over(count, fd, error.strerror or "error") from None
        if not listens:
            raise _not_handed_over(count, fd, "it is no stream socket that listens")
        descriptors.append(fd)
    return descriptors


def _listens(fd: int) -> bool:
    sock = socket.socket(fileno=fd)
    try:
        return sock.type == socket.SOCK_STREAM and bool(
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        )
    finally:
        sock.detach()


def _not_handed_over(count: str, fd: int, problem: str) -> OstlerError:
    return OstlerError(
        f"LISTEN_FDS={count[:20]}: descriptor {fd}: {problem}; "
        "hand over sockets that listen, or unset LISTEN_FDS and LISTEN_PID"
    )
