"""Whose process is at the other end of a local connection.

Asked of the kernel after connecting and before anything is sent: a name (a path, a port) may belong to
another process by the time it is used, a connection does not change hands unnoticed.
"""

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

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Peer(NamedTuple):
    """Credentials of the process that called listen(2). pid: 0 in another pid namespace."""

    pid: int
    uid: int


def unix_peer(sock: socket.socket) -> Peer:
    """Of a connected Unix socket (SO_PEERCRED, unix(7))."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer(pid, uid)


def is_local(sock: socket.socket) -> bool:
    """Whether a connected TCP socket leads to this machine."""
    peer = _plain(sock.getpeername()[0])
    return peer.is_loopback or peer == _plain(sock.getsockname()[0])


def tcp_owners(sock: socket.socket) -> set[int]:
    """The users of the server of a connected TCP socket to this machine; empty if the kernel shows none.

    There are the listener and, once it was accepted, the server's end of this connection. Both count: a
    listener may have been replaced since we connected. One that is closed resets what it has not accepted.
    """
    for _ in range(_READINGS):
        if owners := _owners(_endpoint(*sock.getsockname()[:2]), _endpoint(*sock.getpeername()[:2])):
            return owners
    return set()


def account_name(uid: int) -> str:
    """For people: `'web' (uid 33)`, or `uid 33` without an account."""
    try:
        return f"{pwd.getpwuid(uid).pw_name!r} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def _owners(ours: tuple[_Address, int], theirs: tuple[_Address, int]) -> set[int]:
    address, port = theirs
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
            elif inode != "0" and (_parsed(local), _parsed(remote)) == (theirs, ours):
                accepted.add(int(uid))
    # The most specific listener gets a connection.
    wildcards = [ipaddress.IPv4Address(0)] if address.version == 4 else []
    for candidate in (address, *wildcards, ipaddress.IPv6Address(0)):
        if candidate in listeners:
            return listeners[candidate] | accepted
    return accepted


def _parsed(text: str) -> tuple[_Address, int]:
    """An address as /proc writes it: 32-bit words in the machine's byte order, in hexadecimal."""
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
    """IPv4 as such, also over a socket that takes both."""
    return (address.ipv4_mapped if address.version == 6 else None) or address
