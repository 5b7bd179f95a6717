"""Addresses, networks, the PROXY protocol: what a user may write, and the text of a refusal."""

from typing import Any

import pytest

from ostler.settings.kinds import addresses
from ostler.settings.kinds.kind import Kind
from tests.unit.settings.kinds.checks import assert_becomes, assert_refused


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (addresses.ADDRESSES, "a:1,b:2", ("a:1", "b:2")),
        (addresses.ADDRESSES, ["a:1", "unix:/x,y"], ("a:1", "unix:/x,y")),
        (addresses.ADDRESSES, "localhost", ("localhost:8000",)),
        (addresses.ADDRESSES, None, ()),
        (addresses.ADDRESSES, "", ()),
        (addresses.OWN_ADDRESS, "127.0.0.1:9000", "127.0.0.1:9000"),
        (addresses.OWN_ADDRESS, " localhost:0 ", "127.0.0.1:0"),
        (addresses.OWN_ADDRESS, "0.0.0.0:9000", "0.0.0.0:9000"),
        (addresses.OWN_ADDRESS, "[::1]:9000", "[::1]:9000"),
        (addresses.OWN_ADDRESS, "", None),
        (addresses.OWN_ADDRESS, None, None),
        (addresses.NETWORKS, "127.0.0.1, 10.0.0.0/8,*", ("127.0.0.1", "10.0.0.0/8", "*")),
        (addresses.NETWORKS, ["::1", "10.0.0.0/8"], ("::1", "10.0.0.0/8")),
        (addresses.NETWORKS, "", ()),
        (addresses.NETWORKS, None, ()),
        (addresses.PROXY_MODE, None, "off"),
        (addresses.PROXY_MODE, False, "off"),
        (addresses.PROXY_MODE, True, "auto"),
        (addresses.PROXY_MODE, "False", "off"),
        (addresses.PROXY_MODE, "true", "auto"),
        (addresses.PROXY_MODE, "1", "auto"),
        (addresses.PROXY_MODE, "V1", "v1"),
        (addresses.PROXY_MODE, "v2", "v2"),
    ],
)
def test_values(kind: Kind, given: Any, value: Any) -> None:
    """Text and Python objects become the typed value."""
    assert_becomes(kind, given, value)


@pytest.mark.parametrize(
    ("kind", "given", "problem"),
    [
        (addresses.ADDRESSES, 5, "expected a list of texts, got 5"),
        (addresses.ADDRESSES, [5], "expected text, got 5"),
        (addresses.ADDRESSES, "a:1,b:x", "expected a port from 0 to 65535 in 'b:x'"),
        (addresses.NETWORKS, "localhost", "expected an address, a network such as 10.0.0.0/8, or *"),
        (addresses.NETWORKS, "10.0.0.1/8", "write 10.0.0.0/8 for the network"),
        (addresses.NETWORKS, 5, "expected a list of addresses and networks, got 5"),
        (addresses.NETWORKS, [5], "expected text, got 5"),
        (addresses.NETWORKS, b"::1", "expected a list of addresses and networks"),
        (addresses.PROXY_MODE, "v3", "expected one of off, v1, v2, auto, got 'v3'"),
        (addresses.PROXY_MODE, 2, "expected one of off, v1, v2, auto, got '2'"),
        (addresses.STATSD_ADDRESS, "http://a:1", "expected an address such as 127.0.0.1:8125"),
        (addresses.STATSD_ADDRESS, "a:b", "expected a port"),
        # A port alone would be all interfaces in `bind`, and loopback elsewhere: the user has to say which.
        *(
            (addresses.OWN_ADDRESS, text, "such as 127.0.0.1:9000")
            for text in ("9000", ":9000", "127.0.0.1", "[::1]", "example.com:9000", "unix:/x", "fd://3")
        ),
        (addresses.OWN_ADDRESS, "127.0.0.1:70000", "expected a port from 0 to 65535"),
        (addresses.SYSLOG_ADDRESS, "unix://", "expected an address such as udp://localhost:514"),
    ],
)
def test_mistakes(kind: Kind, given: Any, problem: str) -> None:
    """A wrong value is refused in one line that names what is expected."""
    assert_refused(kind, given, problem)


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        (addresses.STATSD_ADDRESS, "", None),
        (addresses.STATSD_ADDRESS, "localhost", "localhost"),
        (addresses.SYSLOG_ADDRESS, None, "udp://localhost:514"),
        (addresses.SYSLOG_ADDRESS, "unix:///dev/log#dgram", "unix:///dev/log#dgram"),
    ],
)
def test_values_as_gunicorn_takes_them(kind: Kind, given: Any, value: Any) -> None:
    """Forms that its files and command lines have, with the meaning that they have there."""
    assert kind.parse(given) == value
