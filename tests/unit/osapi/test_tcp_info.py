"""What the kernel reports about TCP connections, and that nothing is reported for other sockets."""

import socket
import time
from collections.abc import Iterator

import pytest

from ostler.osapi.tcp_info import TICK, bytes_acked, since_last_received, since_last_sent
from tests.kit.daemon import until

SECOND = 1_000_000_000


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with client, ours:
        yield ours, client


def test_times(ends: tuple[socket.socket, socket.socket]) -> None:
    """The ages of the last received and the last sent bytes."""
    ours, client = ends
    client.sendall(b"x")
    ours.sendall(b"y")
    until(lambda: ours.recv(1, socket.MSG_PEEK), "it has come")
    before = time.monotonic_ns()
    until(lambda: time.monotonic_ns() > before + SECOND // 20, "time passes")
    for since in (since_last_received(ours), since_last_sent(ours)):
        assert since is not None
        assert SECOND // 20 - TICK <= since <= time.monotonic_ns() - before + SECOND


def test_bytes(ends: tuple[socket.socket, socket.socket]) -> None:
    """Bytes count as sent when the client's kernel has them."""
    ours, _ = ends
    before = bytes_acked(ours)
    ours.sendall(b"x" * 1000)
    until(lambda: bytes_acked(ours) == before + 1000, "they have arrived")


def test_other_sockets() -> None:
    """Nothing is known of a Unix socket, nor when a kernel fills in less of the structure."""
    one, other = socket.socketpair()
    with one, other:
        assert (since_last_received(one), since_last_sent(one), bytes_acked(one)) == (None, None, -1)

    class Short:
        def getsockopt(self, *_: int) -> bytes:
            return bytes(8)

    assert (since_last_received(Short()), bytes_acked(Short())) == (None, -1)
