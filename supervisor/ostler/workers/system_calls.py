"""The system calls of an engine on its epoll and its sockets: how they are made is a strategy.

Worker classes that serve in one thread use `SystemCalls()` as it is. Several threads wait for each other's
interpreter lock, so that their engine takes `contended_calls`. Greenlets replace `wait_for` and
`wait_in_app`, which would stop all of them.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from ostler.osapi import original
from ostler.osapi.gil_holding import GilHoldingCalls
from ostler.workers.units import SECOND

READ_SIZE = 64 * 1024
"""Bytes that are received at most in one call."""
# An exception for a thread that waits in the kernel reaches it when the wait ends (ns).
_LONGEST_WAIT = SECOND // 2

Events = list[tuple[int, int]]


def wait_for(fd: int, event: int, deadline: int) -> bool:
    """Wait for an event of poll(2) until a time (CLOCK_MONOTONIC, ns; 0: for ever); False if none came."""
    poll = original.poll()
    poll.register(fd, event)
    while True:
        left = deadline - monotonic_ns() if deadline else _LONGEST_WAIT
        if poll.poll(max(0, min(left, _LONGEST_WAIT)) / 1_000_000):
            return True
        if left <= _LONGEST_WAIT and deadline:
            return False


WaitInApp = Callable[[int, int, float | None], bool]


def wait_in_app(fd: int, event: int, seconds: float | None) -> bool:
    """Wait for an event of poll(2) in a thread of the app; None: for ever. False if none came."""
    poll = original.poll()
    poll.register(fd, event)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


@dataclass(frozen=True, slots=True)
class SystemCalls:
    """The calls, each raising OSErrors as Python's own does.

    `poll` and `wait_for` may wait; the others never do.

    Attributes:
        poll: (epoll, seconds, most): waits for events; called by the thread that polls.
        read: (descriptor, size): what a plain socket has received; called by the thread that polls.
        send: (socket, data): sends what goes now; called by the thread that serves the connection.
        modify: (epoll, descriptor, mask): changes what the epoll watches a descriptor for; any thread.
        wait_for: (descriptor, event of poll(2), deadline): as the function of this name; called where the app
            runs, while its client is slow.
        wait_in_app: (descriptor, event of poll(2), seconds): as the function of this name; called by any
            thread or greenlet of the app, for a connection that the app has taken.
    """

    poll: Callable[[original.epoll, float, int], Events] = original.epoll.poll
    read: Callable[[int, int], bytes] = original.read
    send: Callable[[Any, bytes], int] = socket.socket.send
    modify: Callable[[original.epoll, int, int], None] = original.epoll.modify
    wait_for: Callable[[int, int, int], bool] = wait_for
    wait_in_app: WaitInApp = wait_in_app


PLAIN = SystemCalls()


def contended_calls(is_contended: Callable[[], bool]) -> SystemCalls:
    """Calls that keep the interpreter lock whenever other threads would take it.

    Args:
        is_contended: whether other threads are in the app, so that one which releases the lock must queue.
    """
    holding = GilHoldingCalls(READ_SIZE)
    plain_poll, plain_send, plain_modify = PLAIN.poll, PLAIN.send, PLAIN.modify

    def poll(epoll: original.epoll, seconds: float, most: int) -> Events:
        if is_contended() and (events := holding.poll(epoll.fileno())):
            return events
        return plain_poll(epoll, seconds, most)

    def read(fd: int, size: int) -> bytes:
        return holding.recv(fd) if is_contended() else original.read(fd, size)

    def send(sock: Any, data: bytes) -> int:
        if is_contended() and len(data) <= READ_SIZE:
            return holding.send(sock.fileno(), data)
        return plain_send(sock, data)

    def modify(epoll: original.epoll, fd: int, mask: int) -> None:
        if is_contended():
            holding.modify(epoll.fileno(), fd, mask)
        else:
            plain_modify(epoll, fd, mask)

    return SystemCalls(poll, read, send, modify)
