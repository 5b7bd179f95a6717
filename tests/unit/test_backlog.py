"""The accept queue's depth, of real listening sockets."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ostler.osapi.backlog import accept_queue


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listening(stack: ExitStack, family: int, address: object, backlog: int) -> socket.socket:
    sock = stack.enter_context(socket.socket(family))
    sock.bind(address)
    sock.listen(backlog)
    return sock


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_connections_wait_until_they_are_accepted(stack: ExitStack, tmp_path: Path, family: int) -> None:
    """Each new connection counts until it is accepted; the limit is that of listen()."""
    address = {
        socket.AF_INET: ("127.0.0.1", 0),
        socket.AF_INET6: ("::1", 0),
        socket.AF_UNIX: str(tmp_path / "s"),
    }[socket.AddressFamily(family)]
    sock = listening(stack, family, address, 7)
    assert accept_queue(sock) == (0, 7)
    for _ in range(3):
        client = stack.enter_context(socket.socket(family))
        client.connect(sock.getsockname())
    assert accept_queue(sock) == (3, 7)
    stack.enter_context(sock.accept()[0])
    assert accept_queue(sock) == (2, 7)


def test_an_abstract_unix_socket(stack: ExitStack) -> None:
    """It has no path, but an inode like other sockets."""
    sock = listening(stack, socket.AF_UNIX, "", 3)
    assert accept_queue(sock) == (0, 3)


def test_what_has_no_queue(stack: ExitStack) -> None:
    """A closed socket, or one that is not a stream: None, without an exception."""
    sock = listening(stack, socket.AF_UNIX, "", 3)
    sock.close()
    assert accept_queue(sock) is None
    assert accept_queue(stack.enter_context(socket.socket(type=socket.SOCK_DGRAM))) is None


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_a_kernel_without_sock_diag(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, family: int) -> None:
    """If the request is refused, e.g. in a sandbox, the result is None."""

    class Mute(socket.socket):
        def getsockopt(self, *_: object) -> bytes:  # type: ignore[override]
            raise OSError

    sock = Mute(family)
    stack.enter_context(sock)

    def refuse(*_: object) -> socket.socket:
        raise PermissionError

    monkeypatch.setattr("ostler.osapi.backlog.socket.socket", refuse)
    assert accept_queue(sock) is None
