"""Ports: one that is free, and the sockets that listen on one."""

import socket
from pathlib import Path


def free_port() -> int:
    """A TCP port that is free for IPv4 and for IPv6."""
    with socket.socket(socket.AF_INET6) as probe:
        probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        probe.bind(("::", 0))
        port: int = probe.getsockname()[1]
        return port


def listening(port: int) -> set[str]:
    """The IPv4 sockets that listen on a port, as /proc shows descriptors."""
    found = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()  # proc_net_tcp.rst of the kernel
        if int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A":
            found.add(f"socket:[{fields[9]}]")
    return found
