"""Addresses in gunicorn's spelling."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ostler.settings.address import Address, parse_address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:80", Address("tcp", host="127.0.0.1", port=80)),
        ("localhost:0", Address("tcp", host="localhost", port=0)),
        (":5000", Address("tcp", host="", port=5000)),
        ("5000", Address("tcp", host="", port=5000)),
        ("example.org", Address("tcp", host="example.org", port=8000)),
        ("[::1]:80", Address("tcp", host="::1", port=80)),
        ("[::1]", Address("tcp", host="::1", port=8000)),
        ("http://h:1", Address("tcp", host="h", port=1)),
        ("tcp://h:1", Address("tcp", host="h", port=1)),
        ("https://h:1", Address("tcp", host="h", port=1)),
        ("tcp://[::1]:80", Address("tcp", host="::1", port=80)),
        ("unix:run/app.sock", Address("unix", path="run/app.sock")),
        ("unix:/run/app.sock", Address("unix", path="/run/app.sock")),
        ("unix:///run/app.sock", Address("unix", path="/run/app.sock")),
        ("unix://run/app.sock", Address("unix", path="run/app.sock")),
        ("unix:////run/app.sock", Address("unix", path="/run/app.sock")),
        ("unix:/run/a:b,c.sock", Address("unix", path="/run/a:b,c.sock")),
        ("unix:@abstract", Address("unix", path="@abstract")),
        ("fd://3", Address("fd", fd=3)),
    ],
)
def test_spellings(text: str, expected: Address) -> None:
    """Each spelling that gunicorn accepts has the same meaning here."""
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("h:", "expected a port from 0 to 65535 in 'h:'"),
        ("h:http", "expected a port from 0 to 65535"),
        ("h:65536", "expected a port from 0 to 65535"),
        ("h:-1", "expected a port from 0 to 65535"),
        ("h:²", "expected a port from 0 to 65535"),
        ("::1", "write an IPv6 address in brackets, as in [::1]:8000"),
        ("::1:8000", "write an IPv6 address in brackets"),
        ("[::1", "expected [V6]:PORT"),
        ("[::1]80", "expected [V6]:PORT"),
        ("unix:", "the path is empty"),
        ("unix://", "the path is empty"),
        ("unix:" + "x" * 108, "at most 107 bytes, got 108"),
        ("unix:" + "é" * 54, "at most 107 bytes, got 108"),
        ("fd://", "expected fd://N"),
        ("fd://x", "expected fd://N"),
        ("fd://-1", "expected fd://N"),
        ("fd://99999999999", "expected fd://N"),
    ],
)
def test_mistakes(text: str, problem: str) -> None:
    """A wrong address is refused with a text that names what is expected."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        parse_address(text)
    assert problem in str(caught.value)


def test_longest_socket_path() -> None:
    """107 bytes fit into sun_path with its closing NUL."""
    assert parse_address("unix:" + "x" * 107).path == "x" * 107


ADDRESSES = st.one_of(
    st.builds(
        lambda host, port: Address("tcp", host=host, port=port),
        st.one_of(st.just(""), st.from_regex(r"[a-z0-9][a-z0-9.-]{0,20}", fullmatch=True)),
        st.integers(0, 65535),
    ),
    st.builds(lambda host: Address("tcp", host=str(host), port=80), st.ip_addresses(v=6)),
    st.builds(
        lambda path: Address("unix", path=path), st.from_regex(r"[/@]?[a-z.][a-z/.]{0,40}", fullmatch=True)
    ),
    st.builds(lambda fd: Address("fd", fd=fd), st.integers(0, 9999)),
)


@given(ADDRESSES)
@settings(derandomize=True, database=None)
def test_text_is_read_back(address: Address) -> None:
    """An address as shown in a log can be used with --bind."""
    assert parse_address(str(address)) == address
