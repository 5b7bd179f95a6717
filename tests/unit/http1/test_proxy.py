"""The PROXY protocol: every header of the specification, every split, and what must be refused."""

import ipaddress

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ostler.http1.errors import ProtocolViolation
from ostler.http1.proxy import MOST, SIGNATURE, Addresses, read_proxy_header

CLIENT = Addresses("192.0.2.1", 56324, "198.51.100.2", 443, "TCP4")
CLIENT6 = Addresses("2001:db8::1", 1, "2001:db8::2", 65535, "TCP6")
BLOCK4 = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + (56324).to_bytes(2, "big") + (443).to_bytes(2, "big")
BLOCK6 = bytes.fromhex("20010db8" + 23 * "0" + "1" + "20010db8" + 23 * "0" + "2" + "0001" + "ffff")
BLOCK_UNIX = b"/run/client.sock".ljust(108, b"\0") + b"/run/server.sock".ljust(108, b"\0")
TLV = b"\x02\x00\x0bexample.org" + b"\x04\x00\x03\0\0\0"
REQUEST = b"GET / HTTP/1.1\r\n"


def v2(command: int, family: int, block: bytes) -> bytes:
    return SIGNATURE + bytes([command, family]) + len(block).to_bytes(2, "big") + block


HEADERS = [
    pytest.param(b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", CLIENT, id="v1 TCP4"),
    pytest.param(b"PROXY TCP6 2001:db8::1 2001:DB8:0::2 1 65535\r\n", CLIENT6, id="v1 TCP6"),
    pytest.param(
        b"PROXY TCP6 ::ffff:192.0.2.1 ::1 0 0\r\n",
        Addresses("::ffff:192.0.2.1", 0, "::1", 0, "TCP6"),
        id="v1 TCP6 with IPv4 inside",
    ),
    pytest.param(b"PROXY UNKNOWN\r\n", None, id="v1 UNKNOWN"),
    pytest.param(b"PROXY UNKNOWN what ever 1 2 3\r\n", None, id="v1 UNKNOWN with more"),
    pytest.param(
        b"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff "
        b"65535 65535\r\n",
        None,
        id="v1 of 107 bytes",
    ),
    pytest.param(v2(0x21, 0x11, BLOCK4), CLIENT, id="v2 TCP over IPv4"),
    pytest.param(v2(0x21, 0x12, BLOCK4), CLIENT, id="v2 UDP over IPv4"),
    pytest.param(v2(0x21, 0x11, BLOCK4 + TLV), CLIENT, id="v2 with extensions"),
    pytest.param(v2(0x21, 0x21, BLOCK6), CLIENT6, id="v2 TCP over IPv6"),
    pytest.param(v2(0x21, 0x31, BLOCK_UNIX), None, id="v2 Unix socket"),
    pytest.param(v2(0x21, 0x00, b""), None, id="v2 UNSPEC"),
    pytest.param(v2(0x21, 0x00, b"anything"), None, id="v2 UNSPEC with more"),
    pytest.param(v2(0x20, 0x00, b""), None, id="v2 LOCAL"),
    pytest.param(v2(0x20, 0x11, BLOCK4), None, id="v2 LOCAL with addresses"),
    pytest.param(v2(0x20, 0xFF, b"\0"), None, id="v2 LOCAL with nonsense"),
    pytest.param(v2(0x21, 0x11, BLOCK4 + bytes(MOST - 16 - 12)), CLIENT, id="v2 as long as it may be"),
]


def version(header: bytes) -> str:
    return "v1" if header.startswith(b"PROXY") else "v2"


@pytest.mark.parametrize(("header", "addresses"), HEADERS)
def test_headers(header: bytes, addresses: Addresses | None) -> None:
    """Each header is consumed to its last byte, whatever follows, in its own mode and in auto."""
    for mode in (version(header), "auto"):
        assert read_proxy_header(header, mode) == (addresses, len(header))
        assert read_proxy_header(header + REQUEST, mode) == (addresses, len(header))
        assert read_proxy_header(header + header, mode) == (addresses, len(header))


@pytest.mark.parametrize(("header", "addresses"), HEADERS)
def test_any_beginning_asks_for_more(header: bytes, addresses: Addresses | None) -> None:
    """As long as a byte is missing, the result is to wait."""
    for mode in (version(header), "auto"):
        for end in range(len(header)):
            assert read_proxy_header(header[:end], mode) is None, end


@pytest.mark.parametrize(("header", "addresses"), HEADERS)
def test_other_modes_see_no_header(header: bytes, addresses: Addresses | None) -> None:
    """If one version or none is allowed, a header of the other is passed on as the client's bytes."""
    other = {"v1": "v2", "v2": "v1"}[version(header)]
    assert read_proxy_header(header, other) == (None, 0)
    assert read_proxy_header(header, "off") == (None, 0)


@pytest.mark.parametrize(
    "data",
    [
        REQUEST,
        b"POST / HTTP/1.1\r\n",
        b"PROPFIND / HTTP/1.1\r\n",
        b"PROXYING / HTTP/1.1\r\n",
        b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
        b"\r\nGET / HTTP/1.1\r\n",
        b"\r\n\r\nGET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"G",
    ],
)
def test_no_header(data: bytes) -> None:
    """A connection without a header is recognised at the first byte that differs."""
    for mode in ("off", "v1", "v2", "auto"):
        assert read_proxy_header(data, mode) == (None, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 1\r\n",
        b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY  TCP4 192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n",
        b"PROXY TCP4\t192.0.2.1 198.51.100.2 56324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 65536\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 +5632 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51.100.2 -1 443\r\n",
        b"PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n",
        b"PROXY TCP4 192.0.2.256 198.51.100.2 1 443\r\n",
        b"PROXY TCP4 192.0.2 198.51.100.2 1 443\r\n",
        b"PROXY TCP4 192.0.2.1.5 198.51.100.2 1 443\r\n",
        b"PROXY TCP4 192.0.2.1. 198.51.100.2 1 443\r\n",
        b"PROXY TCP4 192.0.2.1 198.51..2 1 443\r\n",
        b"PROXY TCP4 ::1 ::2 1 443\r\n",
        b"PROXY TCP6 192.0.2.1 198.51.100.2 1 443\r\n",
        b"PROXY TCP6 fe80::1%eth0 ::2 1 443\r\n",
        b"PROXY TCP6 :::1 ::2 1 443\r\n",
        b"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n",
        b"PROXY UNKNOWNS\r\n",
        b"PROXY UNKNOWN \rX\r\n",
        b"PROXY \r\n",
        b"PROXY \n",
        b"PROXY TCP4 \xb9\xb2.0.2.1 198.51.100.2 1 443\r\n",
        b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
        b"PROXY UNKNOWN " + b"x" * 93,
        v2(0x11, 0x11, BLOCK4),
        v2(0x31, 0x11, BLOCK4),
        v2(0x22, 0x11, BLOCK4),
        v2(0x21, 0x10, BLOCK4),
        v2(0x21, 0x13, BLOCK4),
        v2(0x21, 0x01, BLOCK4),
        v2(0x21, 0x41, BLOCK4),
        v2(0x21, 0x11, BLOCK4[:-1]),
        v2(0x21, 0x21, BLOCK4),
        v2(0x21, 0x31, BLOCK6),
        v2(0x21, 0x11, BLOCK4 + bytes(MOST - 16 - 12 + 1)),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_malformed(data: bytes) -> None:
    """Bytes that begin like a header and are malformed are refused, at the latest at the maximum size."""
    for mode in (version(data), "auto"):
        with pytest.raises(ProtocolViolation, match=r"^PROXY header: [^\n]+$"):
            read_proxy_header(data, mode)


@given(
    st.binary(max_size=60),
    st.sampled_from(["v1", "v2", "auto"]),
    st.sampled_from([b"", b"PROXY ", SIGNATURE]),
)
@settings(derandomize=True, database=None, max_examples=500)
def test_random_bytes(data: bytes, mode: str, start: bytes) -> None:
    """Any bytes are parsed or refused, and never more are consumed than there are."""
    try:
        found = read_proxy_header(start + data, mode)
    except ProtocolViolation:
        return
    assert found is None or 0 <= found[1] <= len(start + data)


@given(
    st.lists(
        st.sampled_from(["0", "00", "1", "09", "10", "99", "100", "199", "249", "255", "256", "300", ""]),
        max_size=5,
    )
)
@settings(derandomize=True, database=None, max_examples=500)
def test_addresses_agree_with_the_library(parts: list[str]) -> None:
    """Exactly those texts are IPv4 addresses that Python's ipaddress accepts."""
    host = ".".join(parts)
    header = f"PROXY TCP4 {host} 192.0.2.1 1 2\r\n".encode()
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        with pytest.raises(ProtocolViolation):
            read_proxy_header(header, "v1")
    else:
        expected = Addresses(host, 1, "192.0.2.1", 2, "TCP4")
        assert read_proxy_header(header, "v1") == (expected, len(header))
