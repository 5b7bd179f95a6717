"""Making a socket that listens on an address of any kind."""

import os
import socket

from ostler.daemon.listening.reasons import reason
from ostler.daemon.listening.unix import Access, listen_unix
from ostler.errors import SettingError
from ostler.osapi.unix_sockets import FileIdentity
from ostler.settings.address import Address

Bound = tuple[socket.socket, FileIdentity | None]
"""A socket that listens, and the file of a Unix socket that has one."""


def listen(address: Address, backlog: int, access: Access, reuse_port: bool, only_v6: bool = False) -> Bound:
    """A socket that listens on an address, and does not block.

    reuse_port: other programs may listen there, too (SO_REUSEPORT in socket(7)); only_v6: if it is `[::]`, it
    takes no IPv4 connections (IPV6_V6ONLY in ipv6(7)).

    Raises:
        SettingError: it can't be bound.
    """
    if address.kind == "fd":
        return _adopt(address.fd), None
    if address.kind == "unix":
        return listen_unix(address.path, backlog, access)
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(
            address.host or "0.0.0.0",  # noqa: S104 - an empty host is what the user wrote for all interfaces
            address.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingError("bind", f"{address}: {error.strerror}") from None
    except UnicodeError:
        raise SettingError("bind", f"{address}: this is no host name") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        send_at_once(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only_v6)
        sock.bind(name)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise SettingError("bind", f"{address}: {reason(error)}") from None
    sock.setblocking(False)
    return sock, None


def _adopt(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        sock = socket.socket(fileno=os.dup(fd))
        listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise SettingError("bind", f"fd://{fd}: {error.strerror}") from None
    if not listening:
        sock.close()
        raise SettingError("bind", f"fd://{fd}: the socket does not listen")
    sock.setblocking(False)
    send_at_once(sock)
    return sock


def takes_v4(sock: socket.socket) -> bool:
    """Whether an IPv6 socket takes IPv4 connections as well."""
    return not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)


def send_at_once(sock: socket.socket) -> None:
    """Inherited by accepted connections: the end of an answer must not wait for an acknowledgement."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
