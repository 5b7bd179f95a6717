"""Closing channels in which there may be descriptors that were not received.

The kernel closes these with the channel, which can take as long as their sender likes (see
`osapi.received.discard`). So a thread closes the channel; it receives them before, which makes them harmless.
"""

import os
import socket
import threading
from typing import Any

from ostler.ipc.channel import Channel
from ostler.osapi import received

# Messages; more than fit into a socket's buffer.
_MOST = 2000


def close(chan: Channel[Any]) -> None:
    """The other side sees the end at once; the descriptor is closed soon."""
    if chan.fileno() < 0:
        return
    fd = chan.hang_up()
    try:
        threading.Thread(target=_empty, args=(fd,), name="ostler-close-channel", daemon=True).start()
    except RuntimeError:
        os.close(fd)  # no thread could be started


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
            return  # nothing is left, or no descriptor is free
