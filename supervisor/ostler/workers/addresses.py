"""How addresses of sockets are named: a client's host, a listener's name."""

from typing import Any


def host_of(peer: Any) -> str:
    """A peer's address; empty for a Unix socket's."""
    return peer[0] if isinstance(peer, tuple) else ""


def listener_name(address: Any) -> str:
    """What siblings know a listener by; `address` is its getsockname()."""
    return str(address)
