"""Finds the user of the process at the other end of a local connection.

A client checks after connecting and before it sends: a path or a port may belong to another process when it
is used, but a connection stays with its process. A server checks after accepting.

For a Unix socket the kernel reports it (SO_PEERCRED, unix(7)). For TCP over loopback a server looks up the
client's socket (sock_diag(7)): that takes some 10 µs, however many sockets there are. A client reads
/proc/net/tcp, also for the listener: its connection may not be accepted yet.
"""

import errno
import ipaddress
import pwd
import socket
import struct
import sys
from pathlib import Path
from typing import NamedTuple

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))
_LISTEN = "0A"  # net/tcp_states.h
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_READINGS = 3
"""The kernel may skip entries while others come and go."""

_NETLINK_SOCK_DIAG = 4  # linux/netlink.h
_SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
# struct inet_diag_req_v2 (linux/inet_diag.h): family, protocol, extensions, padding, states; then struct
# inet_diag_sockid: both ports and both addresses in network order, interface, cookie.
_REQUEST = struct.Struct("=BBBxI")
_PORTS = struct.Struct("!HH")
_REST = struct.Struct("=III")
_NO_COOKIE = 0xFFFFFFFF
_ANY_STATE = 0xFFFFFFFF
# struct inet_diag_msg: family, state, timer, retransmits; sockid (48 bytes); expires, queues, uid, inode.
_ANSWER = struct.Struct("=4x48x3I2I")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Credentials(NamedTuple):
    """Of the process that called connect(2), or listen(2) if we connected. pid: 0 in another namespace."""

    pid: int
    uid: int


class PeerGone(Exception):
    """The other end is closed already, so that it belongs to no process and no user."""


def unix_peer(sock: socket.socket) -> Credentials:
    """Of a connected Unix socket (SO_PEERCRED, unix(7)). Raises OSError."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Credentials(pid, uid)


class TcpPeers:
    """Finds the user of a TCP connection's other end on this machine. Holds one descriptor.

    Raises:
        OSError: the kernel has no sock_diag.
    """

    def __init__(self) -> None:
        kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._netlink = socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)
        self._number = 0

    def uid(self, sock: socket.socket) -> int | None:
        """The user of the other end of `sock`; None if the kernel finds no socket, e.g. in another namespace.

        Raises:
            PeerGone: it is closed. The kernel would report root as its user.
        """
        try:
            peer, own = sock.getpeername(), sock.getsockname()
        except OSError as error:
            raise PeerGone from error
        try:
            answer = self._ask(sock.family, peer, own)
        except OSError:
            return None
        if answer is None:
            return None
        _, _, _, uid, inode = _ANSWER.unpack_from(answer, _HEADER.size)
        # Without an inode no process has it any more, and the uid is always 0 (sock_i_uid).
        if inode == 0:
            raise PeerGone
        return int(uid)

    def close(self) -> None:
        self._netlink.close()

    def _ask(self, family: int, peer: tuple[object, ...], own: tuple[object, ...]) -> bytes | None:
        self._number = (self._number + 1) & 0xFFFFFFFF
        request = b"".join(
            (
                _REQUEST.pack(family, socket.IPPROTO_TCP, 0, _ANY_STATE),
                _PORTS.pack(peer[1], own[1]),
                *(socket.inet_pton(family, str(end[0])).ljust(16, b"\0") for end in (peer, own)),
                _REST.pack(0, _NO_COOKIE, _NO_COOKIE),
            )
        )
        header = _HEADER.pack(
            _HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._number, 0
        )
        self._netlink.send(header + request)
        while True:
            # The kernel answers before send(2) returns. If an earlier call was interrupted, its answer is
            # still in the buffer.
            answer = self._netlink.recv(1024)
            if len(answer) < _HEADER.size:
                return None
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number != self._number:
                continue
            if kind == _NLMSG_ERROR:
                (code,) = struct.unpack_from("=i", answer, _HEADER.size)
                if -code == errno.ENOENT:
                    return None
                raise OSError(-code, "sock_diag")
            whole = len(answer) >= _HEADER.size + _ANSWER.size
            return answer if kind == _SOCK_DIAG_BY_FAMILY and whole else None


def is_local(sock: socket.socket) -> bool:
    """Whether a connected TCP socket leads to this machine."""
    peer = _plain(sock.getpeername()[0])
    return peer.is_loopback or peer == _plain(sock.getsockname()[0])


def tcp_owners(sock: socket.socket) -> set[int]:
    """The users of the server of a connected TCP socket to this machine; empty if the kernel shows none.

    These are the users of the listener and, once it is accepted, of the server's end of this connection. A
    listener may have been replaced since we connected; a closed one resets connections that are not accepted.
    """
    for _ in range(_READINGS):
        if owners := _owners(_endpoint(*sock.getsockname()[:2]), _endpoint(*sock.getpeername()[:2])):
            return owners
    return set()


def account_name(uid: int) -> str:
    """For messages: `'web' (uid 33)`, or `uid 33` without an account."""
    try:
        return f"{pwd.getpwuid(uid).pw_name!r} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _owners(own: tuple[_Address, int], peer: tuple[_Address, int]) -> set[int]:
    address, port = peer
    suffix = f":{port:04X}"
    listeners: dict[_Address, set[int]] = {}
    accepted: set[int] = set()
    for table in _TABLES:
        try:
            text = table.read_text()
        except OSError:
            continue  # no IPv6, or no such file system
        for line in text.splitlines()[1:]:
            # Documentation/networking/proc_net_tcp.rst: sl, local, remote, state, queues, timer, retransmits,
            # uid, time-out, inode.
            _, local, remote, state, _, _, _, uid, _, inode, *_ = line.split()
            if not local.endswith(suffix):
                continue
            if state == _LISTEN:
                listeners.setdefault(_parsed(local)[0], set()).add(int(uid))
            elif inode != "0" and (_parsed(local), _parsed(remote)) == (peer, own):
                accepted.add(int(uid))
    # The most specific listener gets a connection.
    wildcards = [ipaddress.IPv4Address(0)] if address.version == 4 else []
    for candidate in (address, *wildcards, ipaddress.IPv6Address(0)):
        if candidate in listeners:
            return listeners[candidate] | accepted
    return accepted


def _parsed(text: str) -> tuple[_Address, int]:
    """Parse an address of /proc: 32-bit words in the machine's byte order, in hexadecimal."""
    words, _, port = text.partition(":")
    raw = bytes.fromhex(words)
    if sys.byteorder == "little":
        raw = b"".join(raw[at : at + 4][::-1] for at in range(0, len(raw), 4))
    return _unmapped(ipaddress.ip_address(raw)), int(port, 16)


def _endpoint(host: str, port: int) -> tuple[_Address, int]:
    return _plain(host), port


def _plain(host: str) -> _Address:
    return _unmapped(ipaddress.ip_address(host.partition("%")[0]))


def _unmapped(address: _Address) -> _Address:
    """An IPv4 address also for an IPv6 socket that accepts both."""
    return (address.ipv4_mapped if address.version == 6 else None) or address
