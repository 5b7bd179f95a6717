"""The user at the other end of a connection, from the kernel."""

import os
import socket
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest

from ostler.osapi import peers
from ostler.osapi.peers import PeerGone, TcpPeers, is_local, tcp_owners, unix_peer

ME = {os.geteuid()}
OTHER = 4321


def test_a_unix_socket(tmp_path: Path) -> None:
    """The user of the listening process."""
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))
        assert unix_peer(client) == (os.getpid(), os.geteuid())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_tcp_server(host: str, accepted: bool) -> None:
    """On each kind of address, also before the connection is accepted."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family, dualstack_ipv6=host == "::") as server:
        port = server.getsockname()[1]
        target = {"::": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(host, host)
        with socket.create_connection((target, port)) as client:
            assert is_local(client)
            if not accepted:
                assert tcp_owners(client) == ME
                return
            with closing(server.accept()[0]):
                server.close()
                assert tcp_owners(client) == ME


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Copies of the kernel's tables that a test writes."""
    paths = [tmp_path / "tcp", tmp_path / "tcp6"]
    monkeypatch.setattr(peers, "_TABLES", tuple(paths))
    return paths


def words(address: str) -> str:
    raw = ip_address(address).packed
    return "".join(raw[at : at + 4][::-1].hex().upper() for at in range(0, len(raw), 4))


def row(local: str, remote: str, state: str, uid: int, inode: int) -> str:
    ends = [f"{words(end.rpartition(':')[0])}:{int(end.rpartition(':')[2]):04X}" for end in (local, remote)]
    return f"   0: {ends[0]} {ends[1]} {state} 00000000:00000000 00:00000000 00000000 {uid:5} 0 {inode} 1 0\n"


OURS = ip_address("127.0.0.1"), 50000
THEIRS = ip_address("127.0.0.1"), 9000
LISTENER = ("127.0.0.1:9000", "0.0.0.0:0", "0A")
ACCEPTED = ("127.0.0.1:9000", "127.0.0.1:50000", "01")


@pytest.mark.parametrize(
    ("v4", "v6", "owners"),
    [
        ([row(*LISTENER, OTHER, 7)], [], {OTHER}),
        # The listener was replaced after we connected: the user of the connection counts as well.
        ([row(*LISTENER, 0, 7), row(*ACCEPTED, OTHER, 8)], [], {0, OTHER}),
        # Not accepted yet: the kernel shows no owner, which must not count as root.
        ([row(*LISTENER, OTHER, 7), row(*ACCEPTED, 0, 0)], [], {OTHER}),
        # The kernel delivers to the most specific address.
        ([row("0.0.0.0:9000", "0.0.0.0:0", "0A", 0, 7), row(*LISTENER, OTHER, 7)], [], {OTHER}),
        ([row("0.0.0.0:9000", "0.0.0.0:0", "0A", OTHER, 7)], [], {OTHER}),
        ([], [row(":::9000", ":::0", "0A", OTHER, 7)], {OTHER}),
        ([], [row("::ffff:127.0.0.1:9000", "::ffff:127.0.0.1:50000", "01", OTHER, 7)], {OTHER}),
        # Other ports, other addresses, other connections to the port.
        ([row("127.0.0.1:9001", "0.0.0.0:0", "0A", OTHER, 7)], [], set()),
        ([row("127.0.0.2:9000", "0.0.0.0:0", "0A", OTHER, 7)], [], set()),
        ([row("127.0.0.1:9000", "127.0.0.1:50001", "01", OTHER, 7)], [], set()),
    ],
)
def test_what_the_tables_say(tables: list[Path], v4: list[str], v6: list[str], owners: set[int]) -> None:
    """The users of the listener and of the accepted connection."""
    for path, rows in zip(tables, (v4, v6), strict=True):
        path.write_text("  sl  local_address rem_address   st\n" + "".join(rows))
    assert peers._owners(OURS, THEIRS) == owners


def test_without_tables(tables: list[Path]) -> None:
    """No IPv6, or no tables at all: the user is unknown."""
    assert peers._owners(OURS, THEIRS) == set()


FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.mark.parametrize(("family", "host"), FAMILIES, ids=["IPv4", "IPv6"])
def test_the_user_of_a_tcp_client(family: socket.AddressFamily, host: str) -> None:
    """The uid of the process that has created the client's socket."""
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
    """The kernel reports uid 0 for a socket without a process; it must not count as root."""
    peers = TcpPeers()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            client.close()
            with pytest.raises(PeerGone):
                peers.uid(accepted)
    peers.close()
