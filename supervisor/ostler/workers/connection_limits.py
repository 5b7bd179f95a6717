"""How many connections a worker may have: in all, as far as its descriptors allow, and from one address."""

from ipaddress import IPv6Address

from ostler.osapi import original
from ostler.osapi.files import most_open_files, open_files

# Descriptors that stay free for the app, at least.
_LEAST_FREE = 16


def most_connections(wanted: int) -> int:
    """`wanted`, or fewer if not enough descriptors would stay free for the app (RLIMIT_NOFILE)."""
    most = most_open_files()
    return max(1, min(wanted, most - len(open_files()) - max(_LEAST_FREE, most // 16)))


def network_of(host: str) -> str:
    """An address, or of IPv6 its /64 network: one client has all addresses of that (RFC 7421)."""
    try:
        address = IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"


class AddressCounts:
    """Open connections by address. Any thread may call it: a thread that serves closes its connection.

    Args:
        most: of one address; 0 is no limit, and nothing is counted.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts: dict[str, int] = {}
        self._lock = original.Lock()

    def add(self, host: str) -> str | None:
        """Count a connection; returns what `remove` takes, None if the address has too many."""
        address = network_of(host)
        with self._lock:
            count = self._counts.get(address, 0)
            if count >= self.most:
                return None
            self._counts[address] = count + 1
        return address

    def remove(self, address: str) -> None:
        with self._lock:
            left = self._counts[address] - 1
            if left:
                self._counts[address] = left
            else:
                del self._counts[address]
