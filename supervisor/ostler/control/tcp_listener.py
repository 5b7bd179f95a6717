"""A TCP socket that listens for the control plane."""

import errno
import socket

from ostler.control.acceptor import BACKLOG
from ostler.errors import SettingError


def listen_tcp(setting: str, address: str, port: int) -> socket.socket:
    """A socket that listens on an IPv4 or IPv6 address; port 0 for any free one.

    Raises:
        SettingError: of `setting`.
    """
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        # Listen already here: with SO_REUSEADDR a port in use is detected only by listen(2).
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        raise SettingError(setting, f"{url_host(address)}:{port}: {_reason(error)}") from error
    return sock


def url_host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _reason(error: Exception) -> str:
    match getattr(error, "errno", None):
        case errno.EADDRINUSE:
            return "the port is in use; choose another"
        case errno.EACCES:
            return "no permission for this port; choose one above 1023"
        case errno.EADDRNOTAVAIL:
            return "this machine has no such address"
        case _:
            return getattr(error, "strerror", None) or str(error)
