"""Closing channels in which there may be descriptors that we have not received.

The kernel closes these with the channel, which can take as long as their sender likes (see
`osapi.received.discard`). So it is a thread's work; it receives them before, which makes them harmless.
"""

import os
import socket
import threading
from typing import Any

from ostler.ipc.channel import Channel
from ostler.osapi import received

# More than fit into a socket's buffer.
_MOST = 2000


def close(chan: Channel[Any]) -> None:
    """The other side sees the end now; what is left is done soon."""
    if chan.fileno() < 0:
        return
    fd = chan.hang_up()
    try:
        threading.Thread(target=_empty, args=(fd,), name="ostler-disposal", daemon=True).start()
    except RuntimeError:
        os.close(fd)  # there may be no more threads


def _empty(fd: int) -> None:
    with socket.socket(fileno=fd) as sock:
        try:
            for _ in range(_MOST):
                _, ancillary, _, _ = sock.recvmsg(
                    1, received.SPACE, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
                )
                for left in received.descriptors(ancillary):
                    received.discard(left)
        except OSError:
            return  # nothing is left, or we are out of descriptors
