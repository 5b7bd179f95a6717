"""Which peers are trusted."""

import ipaddress

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ostler.settings.networks import Networks, normalized


@pytest.mark.parametrize(
    ("networks", "host", "inside"),
    [
        ("127.0.0.1,::1", "127.0.0.1", True),
        ("127.0.0.1, ::1", "::1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::1", False),
        ("10.0.0.0/8", "10.255.0.1", True),
        ("10.0.0.0/8", "11.0.0.1", False),
        ("10.0.0.0/8", "::ffff:10.1.2.3", True),
        ("10.1.2.3", "::ffff:10.1.2.3", True),
        ("10.1.2.3", "::ffff:a01:203", True),
        ("::ffff:10.0.0.0/104", "10.1.2.3", True),
        ("::ffff:10.0.0.0/104", "11.1.2.3", False),
        ("::/0", "10.1.2.3", False),
        ("::/0", "::ffff:10.1.2.3", False),
        ("0.0.0.0/0", "2001:db8::1", False),
        ("2001:DB8::/32", "2001:db8::5", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
        ("fe80::/10", "fe80::1%eth0", True),
        ("fe80::1", "fe80::1%eth0", True),
        ("*", "203.0.113.9", True),
        ("10.0.0.0/8,*", "2001:db8::1", True),
        ("", "127.0.0.1", False),
        ("10.0.0.0/8", "not an address", False),
    ],
)
def test_hosts(networks: str, host: str, inside: bool) -> None:
    """A host is in a network by its number, in any spelling; the second, cached answer is the same."""
    several = Networks.parse(networks)
    assert [host in several, host in several] == [inside, inside]


@pytest.mark.parametrize("networks", ["", "127.0.0.1", "*"])
@pytest.mark.parametrize("host", ["", None])
def test_peer_without_an_address(networks: str, host: str | None) -> None:
    """A peer on a Unix socket is trusted, whatever the list, as in gunicorn."""
    assert host in Networks.parse(networks)


def test_memory_is_bounded() -> None:
    """Any number of unknown hosts is judged correctly, and not cached."""
    networks = Networks.parse("10.0.0.0/24")
    hosts = [str(ipaddress.ip_address((10 << 24) + number)) for number in range(5000)]
    assert sum(host in networks for host in hosts) == 256
    assert sum(host in networks for host in hosts) == 256
    assert len(networks._known) <= 1024


def test_spellings() -> None:
    """Lists and texts have the same meaning; each part gets its usual spelling."""
    expected = ("10.0.0.0/8", "::1", "*", "192.0.2.1", "10.0.0.0/8")
    assert normalized("10.0.0.0/8, 0::1,*,192.0.2.1/32,,::ffff:10.0.0.0/104") == expected
    assert normalized(["10.0.0.0/8", " 0:0::1 ", "*", "192.0.2.1", "::ffff:10.0.0.0/104"]) == expected
    assert normalized("") == normalized([]) == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("localhost", "expected an address, a network such as 10.0.0.0/8, or *, got 'localhost'"),
        ("10.0.0.0/33", "expected an address, a network"),
        ("10.0.0.1/8", "'10.0.0.1/8' is a host within a network; write 10.0.0.0/8 for the network"),
        ("10.0.0.*", "expected an address"),
        ("010.0.0.1", "expected an address"),
    ],
)
def test_mistakes(text: str, problem: str) -> None:
    """A text that is not a network is refused, also when other parts are valid."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        Networks.parse(f"127.0.0.1,{text}")
    assert problem in str(caught.value)


# Except IPv4-mapped IPv6 addresses, which only Ostler treats as IPv4.
HOSTS = st.one_of(
    st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda address: address.ipv4_mapped is None)
)


@given(
    st.lists(HOSTS, max_size=3),
    HOSTS,
    st.integers(0, 32),
)
@settings(derandomize=True, database=None)
def test_agrees_with_the_library(
    addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address],
    host: ipaddress.IPv4Address | ipaddress.IPv6Address,
    prefix: int,
) -> None:
    """Single addresses, found in a set, and networks, found by a search, give the results of ipaddress."""
    networks = [ipaddress.ip_network(f"{address}/{prefix}", strict=False) for address in [*addresses, host]]
    assert str(host) in Networks.parse([str(network) for network in networks])
    others = Networks.parse([str(address) for address in addresses])
    assert (str(host) in others) == (host in addresses)
