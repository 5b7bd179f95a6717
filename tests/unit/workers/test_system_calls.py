"""System calls of an engine that keep the interpreter lock: they do the same as Python's own."""

import select
import socket
import time
from collections.abc import Iterator

import pytest

from ostler.osapi import original
from ostler.workers.system_calls import PLAIN, READ_SIZE, SystemCalls, contended_calls, wait_for


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


CALLS = pytest.mark.parametrize(
    "calls", [PLAIN, contended_calls(lambda: False), contended_calls(lambda: True)]
)


@CALLS
def test_reading_and_sending(calls: SystemCalls, ends: tuple[socket.socket, socket.socket]) -> None:
    """Bytes are transferred; without data or room it is BlockingIOError; the end of the stream is empty."""
    ours, theirs = ends
    with pytest.raises(BlockingIOError):
        calls.read(ours.fileno(), 100)
    assert calls.send(theirs, b"hello") == 5
    assert calls.read(ours.fileno(), READ_SIZE) == b"hello"
    with pytest.raises(BlockingIOError):
        [calls.send(theirs, b"x" * READ_SIZE) for _ in range(1000)]
    theirs.close()
    with pytest.raises(BrokenPipeError):
        calls.send(ours, b"x")


@CALLS
def test_events(calls: SystemCalls, ends: tuple[socket.socket, socket.socket]) -> None:
    """Ready descriptors are reported, for the events they are watched for now."""
    ours, theirs = ends
    epoll = original.epoll()
    epoll.register(ours.fileno(), select.EPOLLIN)
    assert calls.poll(epoll, 0.0, 64) == []
    theirs.send(b"x")
    assert calls.poll(epoll, 1.0, 64) == [(ours.fileno(), select.EPOLLIN)]
    calls.modify(epoll, ours.fileno(), select.EPOLLOUT)
    assert calls.poll(epoll, 1.0, 64) == [(ours.fileno(), select.EPOLLOUT)]
    epoll.close()
    with pytest.raises((OSError, ValueError)):
        calls.modify(epoll, ours.fileno(), select.EPOLLIN)


def test_waiting(ends: tuple[socket.socket, socket.socket]) -> None:
    """The wait ends with the event, or at the time-out."""
    ours, theirs = ends
    before = time.monotonic_ns()
    assert not wait_for(ours.fileno(), select.POLLIN, before + 20_000_000)
    assert time.monotonic_ns() - before >= 20_000_000
    theirs.send(b"x")
    assert wait_for(ours.fileno(), select.POLLIN, 0)
