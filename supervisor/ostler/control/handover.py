"""What one program of the daemon leaves to the next one in the same process: listening sockets and secrets.

Whoever waits in a listener's backlog notices nothing of it. Open connections end with the program. All of it
is plain data and descriptors; that of the lock holds the socket's ownership (see `sockets`) while it is open.
"""

import msgspec

Words = list[tuple[bytes, float]]
"""Digests of secrets, and when each expires on the monotonic clock, which goes on over an exec."""


class UnixHandover(msgspec.Struct, frozen=True):
    """The Unix socket `path`: its listener and its lock."""

    path: str
    fd: int
    lock_fd: int


class TcpHandover(msgspec.Struct, frozen=True):
    """The loopback listener, as bound, with the logins that are valid."""

    host: str
    port: int
    fd: int
    token: str
    codes: Words
    sessions: Words = []
    """Those of older programs, which were cookies: every port of the host has seen them, so they end here."""
    page_sessions: Words = []


class Handover(msgspec.Struct, frozen=True):
    """All of a control server; what it does not have is None."""

    unix: UnixHandover | None = None
    tcp: TcpHandover | None = None
    token_file: str | None = None

    def descriptors(self) -> list[int]:
        """What must stay open over the exec."""
        unix = [self.unix.fd, self.unix.lock_fd] if self.unix else []
        return [*unix, self.tcp.fd] if self.tcp else unix
