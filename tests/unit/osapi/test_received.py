"""Descriptors from untrusted processes are closed without waiting."""

import os
import socket
import struct
import time
from contextlib import suppress
from pathlib import Path

from ostler.osapi import received


def lingering() -> tuple[socket.socket, socket.socket]:
    """A connection whose close waits for a minute, and its other end, which reads nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
    ours.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            ours.send(b"x" * 65536)
    return ours, theirs


def test_lingering() -> None:
    """The last close of a connection with SO_LINGER takes no time."""
    ours, theirs = lingering()
    began = time.monotonic()
    received.discard(ours.detach())
    assert time.monotonic() - began < 30
    theirs.close()


def test_no_socket() -> None:
    """Any descriptor is closed."""
    fd = os.open(os.devnull, os.O_RDONLY)
    received.discard(fd)
    assert not Path(f"/proc/self/fd/{fd}").exists()


def test_all_arrive() -> None:
    """As many as the kernel allows are received, so that the kernel itself has to close none."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, other:
        socket.send_fds(one, [b"x"], [one.fileno()] * received.MOST)
        _, ancillary, flags, _ = other.recvmsg(1, received.SPACE, socket.MSG_CMSG_CLOEXEC)
        found = received.descriptors(ancillary)
        assert len(found) == received.MOST
        assert not flags & socket.MSG_CTRUNC
        for fd in found:
            received.discard(fd)
