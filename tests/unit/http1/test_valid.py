"""Valid requests and their parsed parts. Section numbers are of RFC 9110 and RFC 9112."""

import pytest

from tests.unit.http1.parsing import GET, POST_CHUNKED, bytewise, parsed, parser_of


def get(fields: bytes) -> bytes:
    return b"GET / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n"


def post(fields: bytes, body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body


# Each row: name, target, and the path, query and authority of the target.
TARGETS = [
    ("9112 3.2.1: a path", b"/a/b", "/a/b", "", None),
    ("9112 3.2.1: the root", b"/", "/", "", None),
    ("9112 3.2.1: a query", b"/a?b=c&d", "/a", "b=c&d", None),
    ("9112 3.2.1: an empty query", b"/a?", "/a", "", None),
    ("3986 3.4: question marks in a query", b"/a?b?c", "/a", "b?c", None),
    ("3986 3.3: an empty first segment", b"//a//b/", "//a//b/", "", None),
    ("3986 5.2.4: dots are the app's business", b"/a/../b/.", "/a/../b/.", "", None),
    ("3986 2.1: an escape", b"/a%20b%2Fc?d%20e", "/a b/c", "d%20e", None),
    ("3986 2.1: an escape in UTF-8", b"/caf%C3%A9", "/caf\xc3\xa9", "", None),
    ("3986 2.1: an escaped percent sign", b"/%2525", "/%25", "", None),
    ("3986 2.1: no escape", b"/100%", "/100%", "", None),
    ("PEP 3333: bytes beyond ASCII", b"/caf\xc3\xa9?\xe9", "/caf\xc3\xa9", "\xe9", None),
    ("3986 3.3: sub-delimiters", b"/a;b=c,d!$&'()*+:@", "/a;b=c,d!$&'()*+:@", "", None),
    ("browsers: unescaped signs", b'/a|b{c}^`"<>\\[d]?[e]|', '/a|b{c}^`"<>\\[d]', "[e]|", None),
    ("a URI in a path", b"/http://y/?z", "/http://y/", "z", None),
    ("9112 3.2.2: absolute-form", b"http://y/a?b", "/a", "b", b"y"),
    ("9112 3.2.2: with a port", b"http://y.example:8000/a", "/a", "", b"y.example:8000"),
    ("9112 3.2.2: no path", b"http://y", "/", "", b"y"),
    ("9112 3.2.2: a query without a path", b"http://y?a", "/", "a", b"y"),
    ("9110 4.2.2: https, capitals", b"HTTPS://Y.example/A", "/A", "", b"Y.example"),
    ("3986 3.2.2: an IPv6 address", b"http://[2001:db8::1]:80/", "/", "", b"[2001:db8::1]:80"),
    ("3986 3.2.2: an empty port", b"http://y:/", "/", "", b"y:"),
]


@pytest.mark.parametrize(
    ("target", "path", "query", "authority"), [pytest.param(*row[1:], id=row[0]) for row in TARGETS]
)
def test_targets(target: bytes, path: str, query: str, authority: bytes | None) -> None:
    """The parts of a target that the app gets; the target itself stays as it was sent."""
    (request,) = parser_of(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n").requests
    line = request.line
    assert (line.path, line.query, line.authority) == (path, query, authority)
    assert line.target == target
    assert line.raw_uri == target.decode("latin-1")


METHODS = (
    "GET HEAD POST PUT DELETE OPTIONS PATCH TRACE PROPFIND PROPPATCH MKCOL COPY MOVE LOCK UNLOCK REPORT "
    "M-SEARCH QUERY PURGE BREW X VERSION-CONTROL A_B UPDATEREDIRECTREF1.0 !#$%&'*+-.^_`|~09"
)


@pytest.mark.parametrize("method", METHODS.split())
def test_methods(method: str) -> None:
    """Any token is a method (9110 section 9.1), known to llhttp or not."""
    (got,) = parsed(f"{method} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert got.method == method


@pytest.mark.parametrize(
    "host",
    "x x.example X.EXAMPLE x:80 x: 127.0.0.1 127.0.0.1:8000 [::1] [::1]:8000 [fe80::1:2] [v1.a:b] a_b x%20y "
    "xn--caf-dma.example. x:65535 a~b!$&'()*+,;=".split(),
)
def test_hosts(host: str) -> None:
    """3986 section 3.2.2; an underscore and an empty port occur in practice."""
    (got,) = parsed(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert got.headers == [(b"Host", host.encode())]


def test_an_empty_host() -> None:
    """9112 section 3.2: a client whose target has no authority sends an empty Host."""
    assert parsed(b"GET / HTTP/1.1\r\nHost:\r\n\r\n")[0].headers == [(b"Host", b"")]


VALID = [
    ("9112 2.2: an empty line before", b"\r\n" + GET, None),
    ("9112 2.2: two empty lines before", b"\r\n\r\n" + GET, None),
    ("9112 3.2: 1.0 needs no Host", b"GET / HTTP/1.0\r\n\r\n", None),
    ("9112 3.2: 1.0 with Host", b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", None),
    ("9110 2.5: a higher minor version", b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", None),
    ("9112 3.2.4: asterisk-form", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ("9112 3.2.2: Host is not the target's", b"GET http://y/ HTTP/1.1\r\nHost: x\r\n\r\n", None),
    ("9112 5: no blank behind the colon", get(b"X:y\r\n"), None),
    ("9112 5: blanks and tabs around", get(b"X: \t y\t \r\n"), None),
    ("9112 5: an empty value", get(b"X:\r\n"), None),
    ("9112 5: a blank value", get(b"X: \t \r\n"), None),
    ("9110 5.5: a tab in a value", get(b"X: a\tb\r\n"), None),
    ("9110 5.5: bytes beyond ASCII in a value", get(b"X: caf\xe9 \xc3\xa9\x80\xff\r\n"), None),
    ("9110 5.5: a comma list", get(b"Accept: a, b;q=0.5,, c\r\n"), None),
    ("9110 5.1: signs in a name", get(b"!#$%&'*+-.^`|~: y\r\n"), None),
    ("9110 5.3: a name twice", get(b"X: a\r\nX: b\r\n"), None),
    ("9110 5.1: a long name", get(b"X-" + b"a" * 1000 + b": y\r\n"), None),
    ("9110 5.5: a long value", get(b"Cookie: " + b"a" * 8000 + b"\r\n"), None),
    ("9110 9.3.1: GET with a body", get(b"Content-Length: 2\r\n") + b"hi", b"hi"),
    ("9110 8.6: a length", post(b"Content-Length: 2\r\n", b"hi"), b"hi"),
    ("9110 8.6: zero", post(b"Content-Length: 0\r\n", b""), None),
    ("9110 8.6: leading zeros", post(b"Content-Length: 0002\r\n", b"hi"), b"hi"),
    ("9110 8.6: blanks behind", post(b"Content-Length: 2  \r\n", b"hi"), b"hi"),
    ("9110 8.6: capitals", post(b"CONTENT-LENGTH: 2\r\n", b"hi"), b"hi"),
    ("9112 6.3: neither length nor coding", post(b"", b""), None),
    ("9112 6: a body that looks like a request", post(b"Content-Length: %d\r\n" % len(GET), GET), GET),
    ("9112 6: line ends in a body", post(b"Content-Length: 4\r\n", b"\r\n\r\n"), b"\r\n\r\n"),
    ("9110 8.6: 1.0 with a length", b"POST / HTTP/1.0\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
    ("9112 7.1: chunks", POST_CHUNKED + b"2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", b"hi!"),
    ("9112 7.1: no chunk but the last", POST_CHUNKED + b"0\r\n\r\n", b""),
    ("9112 7.1: the last with many zeros", POST_CHUNKED + b"0000\r\n\r\n", b""),
    (
        "9112 7.1: capitals and zeros in a size",
        POST_CHUNKED + b"00A\r\n0123456789\r\n0\r\n\r\n",
        b"0123456789",
    ),
    ("9112 7.1: many zeros in a size", POST_CHUNKED + b"0" * 100 + b"1\r\nx\r\n0\r\n\r\n", b"x"),
    ("9112 7.1: line ends in a chunk", POST_CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
    ("9112 7: the coding's case", post(b"transfer-encoding: CHUNKED\r\n", b"1\r\nx\r\n0\r\n\r\n"), b"x"),
    ("9112 7.1.1: an extension", POST_CHUNKED + b"1;a\r\nx\r\n0;b\r\n\r\n", b"x"),
    ("9112 7.1.1: with a value", POST_CHUNKED + b"1;a=b;c=d\r\nx\r\n0\r\n\r\n", b"x"),
    ("9112 7.1.1: a quoted value", POST_CHUNKED + b'1;a="b;\\" c"\r\nx\r\n0\r\n\r\n', b"x"),
    ("9112 7.1.1: blanks", POST_CHUNKED + b"1 ; a = b\r\nx\r\n0\r\n\r\n", b"x"),
    ("AWS signatures", POST_CHUNKED + b"1;chunk-signature=" + b"0" * 64 + b"\r\nx\r\n0\r\n\r\n", b"x"),
    ("9112 7.1.2: a trailer", POST_CHUNKED + b"1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n", b"x"),
    ("9112 7.1.2: trailers without a chunk", POST_CHUNKED + b"0\r\nX-Sum: 1\r\nY:\r\n\r\n", b""),
    ("9110 10.1.1: Expect with a body", post(b"Expect: 100-CONTINUE\r\nContent-Length: 2\r\n", b"hi"), b"hi"),
    ("9110 10.1.1: Expect without a body", get(b"Expect: 100-continue\r\n"), None),
    ("9110 10.1.1: Expect in 1.0 is ignored", b"GET / HTTP/1.0\r\nExpect: something\r\n\r\n", None),
    ("9110 7.8: an upgrade", get(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), None),
    (
        "9113 3.1: h2c",
        get(b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: \r\n"),
        None,
    ),
    ("9110 7.6.1: Connection twice", get(b"Connection: keep-alive\r\nConnection: x\r\n"), None),
    ("9110 8.3: a Content-Type", post(b"Content-Type: a/b\r\nContent-Length: 2\r\n", b"hi"), b"hi"),
    ("9110 5.3: 100 fields", b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 99 + b"\r\n", None),
]


@pytest.mark.parametrize(("wire", "body"), [pytest.param(w, b, id=i) for i, w, b in VALID])
def test_valid(wire: bytes, body: bytes | None) -> None:
    """It is one request with that body, in one read and byte by byte, and alone and among others."""
    (got,) = parsed(wire)
    assert got.body == body
    assert parsed(*bytewise(wire)) == [got]
    if got.keep_alive:
        alone = parsed(GET)
        assert parsed(GET + wire + GET + wire) == [*alone, got, *alone, got]


def test_there_are_many_valid_requests() -> None:
    """The table must not become shorter unnoticed."""
    assert len({wire for _, wire, _ in VALID}) >= 50
