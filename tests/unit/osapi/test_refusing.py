"""Listening sockets that take no new connections, and lose none."""

import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ostler.osapi import refusing


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(request.param) as sock:
        sock.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
        sock.listen()
        yield sock


def test_what_waits_is_accepted(listener: socket.socket) -> None:
    """Connections from before can be accepted and used; a new one is not made."""
    with socket.create_connection(listener.getsockname()[:2]) as client:
        assert refusing.has_waiting(listener)
        refusing.refuse_new(listener)
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname()[:2], 0.2)
        with listener.accept()[0] as accepted:
            client.sendall(b"question")
            assert accepted.recv(8) == b"question"
            accepted.sendall(b"answer")
            assert client.recv(8) == b"answer"
    assert not refusing.has_waiting(listener)


def test_shut(listener: socket.socket) -> None:
    """It is shut for all that have it, and clients are refused."""
    copy = listener.dup()
    with copy:
        assert not refusing.is_shut(copy.fileno())
        refusing.shut(listener)
        refusing.shut(listener)
        assert refusing.is_shut(copy.fileno())
        assert not refusing.has_waiting(copy)
        with pytest.raises(OSError, match="Invalid argument"):
            copy.accept()
        with socket.socket(listener.family) as client:
            assert client.connect_ex(listener.getsockname()) == errno.ECONNREFUSED


def test_a_unix_socket(tmp_path: Path) -> None:
    """Shut in the same way; a filter is not for it."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        refusing.refuse_new(listener)
        client.connect(str(tmp_path / "s"))
        assert refusing.has_waiting(listener)
        listener.accept()[0].close()
        refusing.shut(listener)
        assert refusing.is_shut(listener.fileno())
