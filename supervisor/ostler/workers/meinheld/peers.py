"""Addresses of the clients of meinheld workers."""

import socket

from ostler.wsgi.environ import Environ


class PeerAddresses:
    """Clients' addresses. The server itself only gives that of the connection accepted last, and only IPv4.

    Args:
        listeners: the worker's.

    Attributes:
        needed: False if all clients are on this machine.
    """

    def __init__(self, listeners: list[socket.socket]) -> None:
        names = [listener.getsockname() for listener in listeners]
        self.needed = any(not (isinstance(name, tuple) and name[0].startswith("127.")) for name in names)
        self._paths = {name for name in names if not isinstance(name, tuple)}
        # By descriptor: making a socket costs more than asking one. None of them ever closes its descriptor.
        self._sockets: dict[int, socket.socket] = {}

    def correct(self, environ: Environ) -> bool:
        """Correct the client's address; False if the connection is one of our own, not a client's."""
        fd = environ["meinheld.client"].get_fd()
        try:
            sock = self._sockets[fd]
        except KeyError:
            # The family only says how long an address may be, and this one's is the longest.
            sock = self._sockets[fd] = _BorrowedSocket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)
        try:
            name = sock.getpeername()
        except OSError:
            name = ""  # the client has gone
        if type(name) is tuple:
            environ["REMOTE_ADDR"] = name[0]
            return True
        environ["REMOTE_ADDR"] = ""
        environ.pop("REMOTE_PORT", None)
        try:
            return isinstance(here := sock.getsockname(), tuple) or here in self._paths
        except OSError:
            return False


class _BorrowedSocket(socket.socket):
    """Does not close its descriptor, which belongs to the server."""

    def __del__(self) -> None:
        self.detach()
