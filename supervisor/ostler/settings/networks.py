"""Which peers are trusted: addresses and networks, as `forwarded_allow_ips` and `proxy_allow_ips` name them.

Looked up once per connection. Most lists are a few single addresses, so the peer's text is looked up in a set
first, and parsed only if there are networks. Results are remembered, because a proxy connects repeatedly.
"""

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

# How many answers are remembered: peers must not be able to make this grow without bound.
_REMEMBERED = 1024

_Network = IPv4Network | IPv6Network


class Networks:
    """A set of hosts. `host in networks` takes the text that `accept` gave.

    A peer without an address (`""` or None: it came through a Unix socket) is always in it, as in gunicorn:
    the socket's mode decides which accounts may connect.
    """

    __slots__ = ("_everyone", "_hosts", "_known", "_networks")

    def __init__(self, everyone: bool, networks: Iterable[_Network]) -> None:
        several = list(networks)
        self._everyone = everyone
        self._hosts = frozenset(str(n.network_address) for n in several if n.prefixlen == n.max_prefixlen)
        self._networks = tuple(n for n in several if n.prefixlen < n.max_prefixlen)
        self._known: dict[str, bool] = {}

    @classmethod
    def parse(cls, value: str | Iterable[str]) -> "Networks":
        """From `10.0.0.0/8,::1` or a list of such; `*` is everyone.

        Raises:
            ValueError: with a text that names the part which is no address and no network.
        """
        parts = normalized(value)
        return cls("*" in parts, (ip_network(part) for part in parts if part != "*"))

    def __contains__(self, host: str | None) -> bool:
        if self._everyone or not host or host in self._hosts:
            return True
        if not self._networks and ":" not in host:
            return False  # an IPv4 address has one spelling, so it would be among the hosts
        known = self._known.get(host)
        if known is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[host] = self._look(host)
        return known

    def _look(self, host: str) -> bool:
        try:
            address = ip_address(host.partition("%")[0])  # fe80::1%eth0: the interface is no part of it
        except ValueError:
            return False
        if address.version == 6 and address.ipv4_mapped is not None:
            # A client of an IPv6 socket that takes IPv4 as well: the same host as without the prefix.
            address = address.ipv4_mapped
        return str(address) in self._hosts or any(address in network for network in self._networks)


def normalized(value: str | Iterable[str]) -> tuple[str, ...]:
    """The parts of a list of networks, checked, each in its usual spelling.

    Raises:
        ValueError: for the first part that is neither an address, nor a network, nor `*`.
    """
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(_normalized(part.strip()) for part in parts if part.strip())


def _normalized(part: str) -> str:
    if part == "*":
        return part
    try:
        network = ip_network(part)
    except ValueError:
        raise ValueError(_problem(part)) from None
    if network.version == 6 and network.prefixlen >= 96:
        inner = network.network_address.ipv4_mapped
        if inner is not None:
            network = ip_network(f"{inner}/{network.prefixlen - 96}")
    return str(network.network_address) if network.prefixlen == network.max_prefixlen else str(network)


def _problem(part: str) -> str:
    try:
        meant = ip_network(part, strict=False)
    except ValueError:
        return f"expected an address, a network such as 10.0.0.0/8, or *, got {part!r}"
    return f"{part!r} is a host within a network; write {meant} for the network"
