"""The header lines `Server` and `Date` of answers; they change once a second (RFC 9110 section 6.6.1)."""

from email.utils import formatdate
from time import time

_SECOND = 1_000_000_000


class ServerDate:
    """The lines.

    Attributes:
        lines: `Server` and `Date`, in this order, each with its line end; any thread may read them.
        due: when to call `update` next (CLOCK_MONOTONIC, ns).
    """

    __slots__ = ("due", "lines")

    def __init__(self) -> None:
        self.lines = b""
        self.due = 0

    def update(self, now: int) -> None:
        """Make the lines of this second; called by the thread that polls."""
        wall = time()
        self.lines = f"Server: ostler\r\nDate: {formatdate(wall, usegmt=True)}\r\n".encode()
        self.due = now + int((1 - wall % 1) * _SECOND)
