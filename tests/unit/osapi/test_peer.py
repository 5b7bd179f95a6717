"""Whose connection it is."""

import os
import socket

import pytest

from supervisor.osapi.peer import PeerGone, TcpPeers, unix_peer_uid

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["IPv4", "IPv6"])
def test_the_user_of_a_tcp_client(family: socket.AddressFamily, host: str) -> None:
    """The uid of the process that has made the client's socket."""
    peers = TcpPeers()
    listener = socket.create_server((host, 0), family=family)
    with listener, socket.create_connection(listener.getsockname()[:2]) as client:
        accepted, _ = listener.accept()
        with accepted:
            assert peers.uid(accepted) == os.geteuid()
            client.shutdown(socket.SHUT_WR)
            assert peers.uid(accepted) == os.geteuid()
    peers.close()


def test_a_client_that_has_left_is_not_root() -> None:
    """The kernel gives uid 0 for a socket that no process has any more; it must not count as root's."""
    peers = TcpPeers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            client.close()
            with pytest.raises(PeerGone):
                peers.uid(accepted)
    peers.close()


def test_the_user_of_a_unix_client() -> None:
    """As at connect(2)."""
    one, two = socket.socketpair()
    with one, two:
        assert unix_peer_uid(one) == os.geteuid()
