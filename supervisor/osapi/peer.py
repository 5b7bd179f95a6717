"""Which user is at the other end of a connection on this machine.

For a Unix socket the kernel says so itself (SO_PEERCRED, unix(7)). For TCP over loopback it is asked for the
client's own socket (sock_diag(7)): a look-up in a hash table, some 10 µs however many sockets there are.
"""

import errno
import socket
import struct

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid (unix(7))

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


class PeerGone(Exception):
    """The other end is closed already, so that it belongs to no process and no user."""


def unix_peer_uid(sock: socket.socket) -> int:
    """As the kernel saw it at connect(2). Raises OSError."""
    uid: int = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))[1]
    return uid


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
        """Whose socket is at the other end of `sock`; None if the kernel knows none, as in another namespace.

        Raises:
            PeerGone: it is closed. The kernel would call its user root.
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
        # Without an inode it is no process's any more, and the uid is 0 whoever has made it (sock_i_uid).
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
            # The kernel has answered before send(2) returns. An answer to an earlier question is left over
            # if that was interrupted.
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
