"""Addresses of listeners, of syslog and of statsd; networks of trusted peers, and the PROXY protocol."""

from collections.abc import Callable, Iterable, Mapping
from ipaddress import ip_address
from typing import Any

from ostler.settings.address import Address, host_and_port, parse_address
from ostler.settings.kinds.kind import Kind, shown
from ostler.settings.kinds.texts import choice, list_of, optional_text, text
from ostler.settings.networks import normalized


def _address(value: Any) -> str:
    return str(parse_address(text(value)))


ADDRESSES = Kind(list_of(_address), "ADDRESS", several=True)


def _own_address(value: Any) -> str | None:
    """HOST:PORT, both written out. Not a name: the supervisor must not wait for its resolution."""
    spec = optional_text(value)
    if spec is None:
        return None
    address = parse_address(spec)
    host = "127.0.0.1" if address.host.lower() == "localhost" else address.host
    try:
        ip_address(host)
    except ValueError:
        host = ""
    if address.kind != "tcp" or not host or not spec.rpartition(":")[2].isdecimal():
        raise ValueError(f"expected an IP address and a port, such as 127.0.0.1:9000, got {shown(spec)}")
    return str(Address("tcp", host=host, port=address.port))


OWN_ADDRESS = Kind(_own_address, "ADDRESS")


def _remote(schemes: tuple[str, ...], example: str) -> Callable[[Any], str | None]:
    """Parser of where to send something: SCHEME://HOST:PORT or unix://PATH."""

    def parse(value: Any) -> str | None:
        address = optional_text(value)
        if address is None:
            return None
        scheme, found, rest = address.rpartition("://")
        if (found and scheme not in schemes) or not rest:
            raise ValueError(f"expected an address such as {example}, got {shown(address)}")
        if scheme != "unix":
            host_and_port(rest, 0)
        return address

    return parse


def _syslog_address(value: Any) -> str:
    # None is gunicorn's own default in some files.
    return _remote(("unix", "udp", "tcp"), "udp://localhost:514")(value) or "udp://localhost:514"


SYSLOG_ADDRESS = Kind(_syslog_address, "ADDRESS")
STATSD_ADDRESS = Kind(_remote(("unix", "udp"), "127.0.0.1:8125"), "ADDRESS")


def _networks(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        return normalized(value if isinstance(value, str) else [text(part) for part in value])
    raise ValueError(f"expected a list of addresses and networks, got {shown(value)}")


NETWORKS = Kind(_networks, "NETWORKS", shown=",".join, blank=True)

_PROXY_MODES = choice(
    "off",
    "v1",
    "v2",
    "auto",
    aliases={"false": "off", "0": "off", "none": "off", "true": "auto", "1": "auto"},
)


def _proxy_mode(value: Any) -> str:
    # Until gunicorn 24 it was a switch: both versions or none.
    mode: str = _PROXY_MODES.parse("off" if value is None else str(value))
    return mode


PROXY_MODE = Kind(_proxy_mode, "off|v1|v2|auto", bare="auto")
