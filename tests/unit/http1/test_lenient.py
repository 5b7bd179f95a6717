"""What the settings for malformed requests permit, and what is still refused."""

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ostler.http1.errors import NotSupported, ProtocolViolation, VersionNotSupported
from ostler.http1.request import RequestParser, Rules
from tests.unit.http1.parsing import Got, parsed, refused, taken

FOLDING = Rules(permit_obsolete_folding=True)
SPACES = Rules(strip_header_spaces=True)
METHODS = Rules(permit_unconventional_http_method=True)
CASE = Rules(casefold_http_method=True)
VERSIONS = Rules(permit_unconventional_http_version=True)
ALL = Rules(
    permit_obsolete_folding=True,
    strip_header_spaces=True,
    permit_unconventional_http_method=True,
    casefold_http_method=True,
    permit_unconventional_http_version=True,
)


def fields(*lines: bytes) -> bytes:
    return b"\r\n".join([b"POST /a HTTP/1.1", b"Host: x", *lines, b"", b""])


@pytest.mark.parametrize(
    ("lines", "value"),
    [
        ((b"X: a", b" b"), b"a b"),
        ((b"X: a \t", b"\t  b  ", b" c"), b"a b c"),
        ((b"X:", b" a"), b"a"),
        ((b"X: a", b" "), b"a"),
        ((b"X: a", b" Content-Length: 3"), b"a Content-Length: 3"),
    ],
)
def test_folding(lines: tuple[bytes, ...], value: bytes) -> None:
    """The lines of a field are one value, joined by a space; by default they are refused."""
    (got,) = parsed(fields(*lines), rules=FOLDING)
    assert (got.headers[-1], got.body) == ((b"X", value), None)
    for rules in (Rules(), SPACES):
        refused(fields(*lines), rules=rules)


@pytest.mark.parametrize(
    "lines",
    [
        (b"Content-Length: 1", b" 0"),
        (b"Content-Length:", b" 3"),
        (b"Transfer-Encoding:", b"\tchunked"),
        (b"Connection: close", b" , x"),
        (b"X", b" : a"),
        (b"X", b" a"),
        (b"X: a\n b",),
        (b"X: a", b" b\rc"),
        (b"X: a", b" b\x00"),
    ],
)
def test_never_folded(lines: tuple[bytes, ...]) -> None:
    """Fields that frame a request may not be folded, nor may names; line ends must still be correct."""
    refused(fields(*lines), rules=FOLDING)
    refused(fields(*lines), rules=ALL)


def test_folded_request_line() -> None:
    """A first field that begins with spaces does not continue the request line."""
    refused(b"GET / HTTP/1.1\r\n X: a\r\nHost: x\r\n\r\n", rules=ALL)


def test_folded_fields_count_as_long_as_they_are() -> None:
    """The limit of a field's size applies to all its lines together."""
    rules = Rules(permit_obsolete_folding=True, limit_request_field_size=20, limit_request_fields=2)
    assert parsed(fields(b"X: a", b" b"), rules=rules)
    assert parsed(fields(b"X: a", *[b" b"] * 8), rules=rules), "line ends within it do not count"
    violation, _ = refused(fields(b"X: aaaaaaaaa", b" bbbbbbbbb"), rules=rules)
    assert violation.status.startswith("431")


def test_spaces() -> None:
    """Spaces before the colon are removed, and the field keeps its meaning; by default it is refused."""
    (got,) = parsed(fields(b"Content-Length \t: 3") + b"abc", rules=SPACES)
    assert (got.headers[-1], got.body) == ((b"Content-Length", b"3"), b"abc")
    refused(fields(b"Content-Length : 3", b"content-length: 4") + b"abc", rules=SPACES)
    for wrong in (b" X: a", b"X Y : a", b" : a", b"X"):
        refused(fields(wrong), rules=SPACES)
    refused(fields(b"X : a"), rules=FOLDING)


@pytest.mark.parametrize("method", [b"get", b"Get", b"x" * 100, b"A" * 100])
def test_methods(method: bytes) -> None:
    """Any token is a method with the setting, also when read byte by byte; without it, it is refused."""
    data = method + b" / HTTP/1.1\r\nHost: x\r\n\r\n"
    (got,) = parsed(*(data[at : at + 1] for at in range(len(data))), rules=METHODS)
    assert got.method == method.decode()
    refused(data)
    for wrong in (b"g@t", b"g\xe9t", b"", b"g(t"):
        refused(data.replace(method, wrong), rules=METHODS)


def test_case() -> None:
    """With the setting `get` is GET and connect is CONNECT; a method that is too long stays unknown."""
    (got,) = parsed(b"get / HTTP/1.1\r\nHost: x\r\n\r\n", rules=CASE)
    assert got.method == "GET"
    for data in (b"connect x:80 HTTP/1.1\r\nHost: x\r\n\r\n", b"a" * 30 + b" / HTTP/1.1\r\nHost: x\r\n\r\n"):
        violation, _ = refused(data, rules=CASE)
        assert isinstance(violation, NotSupported)


@pytest.mark.parametrize(
    ("version", "protocol"), [(b"2.0", "HTTP/1.1"), (b"9.9", "HTTP/1.1"), (b"0.9", "HTTP/1.0")]
)
def test_versions(version: bytes, protocol: str) -> None:
    """An unknown version is treated as the nearest supported one, with its framing."""
    data = b"POST / HTTP/%b\r\nHost: x\r\n" % version
    (got,) = parsed(data + b"\r\n", rules=VERSIONS)
    assert (got.protocol, got.keep_alive) == (protocol, protocol == "HTTP/1.1")
    chunked = data + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    if protocol == "HTTP/1.0":
        refused(chunked, rules=VERSIONS)
    else:
        assert parsed(chunked, rules=VERSIONS)[0].body == b""
    violation, _ = refused(data + b"\r\n")
    assert isinstance(violation, VersionNotSupported)
    for wrong in (b"11.1", b"1.10", b"2", b"x.1"):
        refused(data.replace(version, wrong) + b"\r\n", rules=VERSIONS)


def test_the_preface_of_http2() -> None:
    """It is refused even with that setting."""
    refused(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", rules=ALL)


def test_strict_parsers_learn_nothing_from_lenient_ones() -> None:
    """A line that one parser accepts is refused by a strict one, although both share the cache of lines."""
    for rules, data in (
        (METHODS, b"get /learned HTTP/1.1\r\nHost: x\r\n\r\n"),
        (CASE, b"post /learned HTTP/1.1\r\nHost: x\r\n\r\n"),
        (VERSIONS, b"GET /learned HTTP/3.0\r\nHost: x\r\n\r\n"),
    ):
        assert parsed(data, data, rules=rules)
        refused(data)


PIECES = st.sampled_from(
    [
        *(b"\r\n", b"\r\n", b"\r\n ", b"\r\n\t", b" ", b"\t", b":", b": ", b" :", b","),
        *(b"\n", b"\r", b"\x00", b"0", b"3", b"X", b"X: a", b"Host: x", b"Connection: close"),
        *(b"Content-Length", b"Content-Length: 3", b"Transfer-Encoding", b"Transfer-Encoding: chunked"),
        *(b"chunked", b"abc", b"0\r\n\r\n", b"\r\n\r\n", b"GET / HTTP/1.1\r\n"),
    ]
)


def outcome(data: bytes, rules: Rules) -> tuple[list[Got], bool]:
    """The requests, and whether something was refused."""
    parser = RequestParser(rules, io.BytesIO)
    try:
        parser.feed(data)
    except ProtocolViolation:
        return taken(parser), True
    return taken(parser), False


@given(st.lists(PIECES, max_size=24))
def test_only_the_spelling_is_lenient(pieces: list[bytes]) -> None:
    """A lenient parser accepts only what a strict one accepts after the bytes are corrected."""
    data = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(pieces)
    head, end, body = data.partition(b"\r\n\r\n")
    line, _, lines = head.partition(b"\r\n")
    lines = re.sub(rb"(?m)^([^: \t\r\n]+)[ \t]+:", rb"\1:", lines)
    lines = re.sub(rb"[ \t]*\r\n[ \t]+", b" ", lines)
    right = line + b"\r\n" + lines + end + body
    strict, wrong = outcome(data, Rules())
    lenient, _ = outcome(data, ALL)
    assert lenient[:1] in ([], outcome(right, Rules())[0][:1])
    if not wrong:
        assert lenient == strict
