"""The PROXY protocol, versions 1 and 2: a proxy sends the client's address before the client's own bytes.

Source: https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt. One pure function parses the first bytes
of a connection; the caller decides which peers may send such a header, and how long that may take.

As in gunicorn, a connection that begins with something else is plain HTTP (or TLS), so that a proxy's health
check without a header is served, too. A client gains nothing by omitting the header: then the address of the
peer itself counts.
"""

import re
from ipaddress import AddressValueError, IPv6Address
from typing import NamedTuple

from ostler.http1.errors import ProtocolViolation

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
# Section 2.1: the longest line of version 1, its CRLF included.
_V1_SIZE = 107
# Version 2 allows 64 KiB of extensions (TLVs), but no proxy sends as much; nginx has the same limit.
MOST = 4096

_V1_START = b"PROXY "
_V1_LINE = re.compile(rb"PROXY (TCP[46]) ([0-9A-Fa-f.:]+) ([0-9A-Fa-f.:]+) (0|[1-9][0-9]*) (0|[1-9][0-9]*)")
# IPv4Address takes ten times as long, and some proxies open a connection for each request.
_IPV4 = re.compile(r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])(?:\.(?!$)|$)){4}", re.ASCII)
_V1_UNKNOWN = re.compile(rb"PROXY UNKNOWN(?: [^\r\n]*)?")
_V2_FIXED = 16
# Size of an address block by family (the high half of byte 13): IPv4, IPv6, Unix.
_V2_BLOCKS = {1: 12, 2: 36, 3: 216}
# Both halves of byte 13: family and transport. Version 2 defines these and no others.
_V2_TRANSPORTS = frozenset((0x00, 0x11, 0x12, 0x21, 0x22, 0x31, 0x32))


class Addresses(NamedTuple):
    """The two ends of the client's connection to the proxy, and its kind: `TCP4` or `TCP6`."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: str


def read_proxy_header(data: bytes, mode: str) -> tuple[Addresses | None, int] | None:
    """Parse the header at the beginning of a connection.

    Args:
        data: all bytes received so far.
        mode: `off`, `v1`, `v2` or `auto` (both).

    Returns:
        The addresses, and the size of the header in bytes. Addresses are None if those of the peer count:
        the proxy itself is the client, or it sends no TCP addresses. The size is 0 if there is no header,
        and all of `data` is the client's.

        None while more bytes are needed. All of `data` then belongs to a header, or may become one: a caller
        that must not read beyond it (TLS follows) may take that much from the socket and no more.

    Raises:
        ProtocolViolation: it begins like a header and is not a valid one.
    """
    if mode in ("v2", "auto"):
        if data[:12] == SIGNATURE:
            return _read_v2(data)
        if len(data) < 12 and SIGNATURE.startswith(data):
            return None
    if mode in ("v1", "auto"):
        if data[:6] == _V1_START:
            return _read_v1(data)
        if len(data) < 6 and _V1_START.startswith(data):
            return None
    return None, 0


def _read_v1(data: bytes) -> tuple[Addresses | None, int] | None:
    end = data.find(b"\n", 0, _V1_SIZE)
    if end < 0:
        if len(data) < _V1_SIZE:
            return None
        raise ProtocolViolation(f"PROXY header: the line is longer than {_V1_SIZE} bytes", "proxy_protocol")
    line, size = data[: end - 1], end + 1
    if data[end - 1 : end] != b"\r":
        raise ProtocolViolation("PROXY header: the line must end with CR LF", "proxy_protocol")
    if _V1_UNKNOWN.fullmatch(line):
        return None, size
    match = _V1_LINE.fullmatch(line)
    if match is None:
        raise ProtocolViolation("PROXY header: the line is malformed", "proxy_protocol")
    protocol, client, server, client_port, server_port = (group.decode("ascii") for group in match.groups())
    if protocol == "TCP6":
        client, server = _ipv6(client), _ipv6(server)
    elif not (_IPV4.fullmatch(client) and _IPV4.fullmatch(server)):
        raise ProtocolViolation("PROXY header: invalid IPv4 address", "proxy_protocol")
    ports = int(client_port), int(server_port)
    if max(ports) > 65535:
        raise ProtocolViolation("PROXY header: port out of range", "proxy_protocol")
    return Addresses(client, ports[0], server, ports[1], protocol), size


def _read_v2(data: bytes) -> tuple[Addresses | None, int] | None:
    if len(data) < _V2_FIXED:
        return None
    command, transport = data[12], data[13]
    size = _V2_FIXED + int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21):
        raise ProtocolViolation("PROXY header: unknown version or command", "proxy_protocol")
    if size > MOST:
        raise ProtocolViolation(f"PROXY header: longer than {MOST} bytes", "proxy_protocol")
    if command == 0x20:  # LOCAL; the rest of the header is to be ignored
        return (None, size) if len(data) >= size else None
    family = transport >> 4
    if transport not in _V2_TRANSPORTS:
        raise ProtocolViolation("PROXY header: unknown address family or transport", "proxy_protocol")
    if size < _V2_FIXED + _V2_BLOCKS.get(family, 0):
        raise ProtocolViolation("PROXY header: too short for its addresses", "proxy_protocol")
    if len(data) < size:
        return None
    # Any known transport will do: a proxy may have received the request over QUIC, that is UDP.
    block = data[_V2_FIXED:size]  # the extensions behind the addresses (TLVs) are skipped
    if family == 1:
        ports = int.from_bytes(block[8:10], "big"), int.from_bytes(block[10:12], "big")
        hosts = ".".join(map(str, block[:4])), ".".join(map(str, block[4:8]))
        return Addresses(hosts[0], ports[0], hosts[1], ports[1], "TCP4"), size
    if family == 2:
        ports = int.from_bytes(block[32:34], "big"), int.from_bytes(block[34:36], "big")
        hosts = _ipv6(block[:16]), _ipv6(block[16:32])
        return Addresses(hosts[0], ports[0], hosts[1], ports[1], "TCP6"), size
    return None, size


def _ipv6(packed: str | bytes) -> str:
    """An address in its usual spelling.

    Raises:
        ProtocolViolation: it is no IPv6 address.
    """
    try:
        address = IPv6Address(packed)
    except AddressValueError:
        raise ProtocolViolation("PROXY header: invalid IPv6 address", "proxy_protocol") from None
    # As the kernel writes it; Python does so only since 3.13.
    return f"::ffff:{address.ipv4_mapped}" if address.ipv4_mapped is not None else str(address)
