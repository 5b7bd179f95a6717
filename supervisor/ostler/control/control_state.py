"""State that an upgrade passes to the next program in the same process: listening sockets and secrets.

Connections in the backlog of a listener are kept. Open connections are closed. The state consists of plain
data and descriptors; the lock's descriptor keeps the ownership of the socket (see `sockets`) while it is
open.
"""

import msgspec

Digests = list[tuple[bytes, float]]
"""Digests of secrets, and when each expires: monotonic seconds, which go on over execve(2)."""


class UnixControlState(msgspec.Struct, frozen=True):
    """The Unix socket `path`: its listener and its lock."""

    path: str
    fd: int
    lock_fd: int


class TcpControlState(msgspec.Struct, frozen=True):
    """The loopback listener, as bound, with the logins that are valid."""

    host: str
    port: int
    fd: int
    token: str
    codes: Digests
    sessions: Digests = []
    """Sessions of older versions, which were cookies. Every port of the host may have received them, so they
    are not taken over."""
    page_sessions: Digests = []


class ControlState(msgspec.Struct, frozen=True):
    """The state of a control server; None for parts that it does not have."""

    unix: UnixControlState | None = None
    tcp: TcpControlState | None = None
    token_file: str | None = None
    agent_check: int | None = None
    """The descriptor of the agent check's listener."""

    def descriptors(self) -> list[int]:
        """Descriptors that must stay open over execve(2)."""
        unix = [self.unix.fd, self.unix.lock_fd] if self.unix else []
        tcp = [self.tcp.fd] if self.tcp else []
        agent_check = [self.agent_check] if self.agent_check is not None else []
        return [*unix, *tcp, *agent_check]
