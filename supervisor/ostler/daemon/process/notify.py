"""sd_notify(3): reports the daemon's state to systemd."""

import os
import socket

from ostler.text import readable


class SystemdNotifier:
    """Sends state to the socket that systemd named, if it did; never fails and never blocks.

    The variable is removed from the environment: children must not report for the daemon.
    """

    def __init__(self) -> None:
        self.path = os.environ.pop("NOTIFY_SOCKET", "")

    def send(self, *assignments: str) -> None:
        """E.g. `send("READY=1", "STATUS=All 3 workers are ready.")`."""
        if not self.path:
            return
        address = f"\0{self.path[1:]}" if self.path.startswith("@") else self.path
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.setblocking(False)
                sock.sendto(readable("\n".join(assignments)).encode(), address)
        except (OSError, ValueError):
            pass  # the service manager has ended, no descriptor is free, or that is no address of a socket
