"""Encoding of responses: what an app may send, and what is refused."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ostler.http1 import response
from ostler.http1.errors import ResponseError


def encoded(status: Any, headers: Any) -> list[bytes]:
    """The status line and the header lines."""
    return response.encode_head(status, headers)[0]


def length_of(status: str, *headers: tuple[str, str]) -> int | None:
    return response.encode_head(status, list(headers))[2]


def test_lines_are_encoded_in_order() -> None:
    """A status line, then every header as the app wrote it, repeated ones included."""
    headers = [("Content-Type", "text/plain"), ("Set-Cookie", "a=b"), ("Set-Cookie", "c=d"), ("x-y", "")]
    assert encoded("404 Not Found", headers) == [
        b"HTTP/1.1 404 Not Found\r\n",
        b"Content-Type: text/plain\r\n",
        b"Set-Cookie: a=b\r\n",
        b"Set-Cookie: c=d\r\n",
        b"x-y: \r\n",
    ]


def test_what_is_remembered_is_what_was_encoded() -> None:
    """The second encoding, from the cache, equals the first; so do those of a list and a tuple."""
    first = encoded("200 OK", [("X-A", "caf\xe9"), ("Content-Length", "3"), ("Date", "x")])
    assert encoded("200 OK", [("X-A", "caf\xe9"), ("Content-Length", "3"), ("Date", "x")]) == first
    assert encoded("200 OK", [["X-A", "caf\xe9"], ["Content-Length", "3"], ["Date", "x"]]) == first


def test_latin_1_values_pass() -> None:
    """PEP 3333: native strings carry bytes as latin-1."""
    assert encoded("200 OK", [("X", "\xe9\t\xff")])[1] == b"X: \xe9\t\xff\r\n"


FORGERIES = ["a\r\nSet-Cookie: b=c", "a\nb", "a\rb", "\n", "a\x00b", "a\x1bb", "a\x7fb", "a\r\n"]


@pytest.mark.parametrize("value", [*FORGERIES, "\u20ac", "\u010a"])
def test_a_value_can_not_forge_a_header(value: str) -> None:
    """Line ends, NUL and other control characters are refused.

    So are characters that latin-1 would truncate to them.
    """
    with pytest.raises(ResponseError, match="X-Name"):
        encoded("200 OK", [("X-Name", value)])


@pytest.mark.parametrize("name", [*FORGERIES, "", " ", "a b", "a:b", "a:", "caf\xe9", '"a"', "(a)", "a/b"])
def test_a_name_must_be_a_token(name: str) -> None:
    """RFC 9110 section 5.1."""
    with pytest.raises(ResponseError, match="header name"):
        encoded("200 OK", [(name, "x")])


@pytest.mark.parametrize(
    "header", [(b"a", "b"), ("a", b"b"), ("a", 1), ("a", None), (None, "b"), (1, 2), ["a", 1], [b"a", "b"]]
)
def test_names_and_values_must_be_text(header: Any) -> None:
    """PEP 3333: native strings; a number or bytes would otherwise fail later with a less clear error."""
    with pytest.raises(ResponseError, match="must be str"):
        encoded("200 OK", [header])


@pytest.mark.parametrize("header", [("a",), ("a", "b", "c"), (), "abc", None, 5])
def test_a_header_must_be_a_pair(header: Any) -> None:
    """The message says what a header looks like."""
    with pytest.raises(ResponseError, match="tuple"):
        encoded("200 OK", [header])


@pytest.mark.parametrize(
    "status",
    [
        "",
        "OK",
        "20 OK",
        "2000 OK",
        "200OK",
        "099 Low",
        "abc OK",
        "200 OK\r\nX: y",
        "200 O\nK",
        "200 \x00",
        " 200",
    ],
)
def test_a_status_must_be_a_status(status: str) -> None:
    """Three digits, a space, a reason; nothing that ends the line early."""
    with pytest.raises(ResponseError, match="status must be"):
        encoded(status, [])


@pytest.mark.parametrize("status", [200, b"200 OK", None, "200 \u20ac"])
def test_a_status_must_be_latin_1_text(status: Any) -> None:
    """Numbers, bytes, None and text beyond latin-1 are refused."""
    with pytest.raises(ResponseError, match="status must be"):
        encoded(status, [])


def test_a_status_without_a_reason_keeps_its_blank() -> None:
    """RFC 9112 section 4: the space after the code must be sent even if no reason follows."""
    assert encoded("299", [])[0] == b"HTTP/1.1 299 \r\n"


def test_unusual_statuses_pass() -> None:
    """An unregistered code, an empty reason and a reason in latin-1 are allowed."""
    assert encoded("299 ", [])[0] == b"HTTP/1.1 299 \r\n"
    assert encoded("599 Tr\xe8s loin", [])[0] == b"HTTP/1.1 599 Tr\xe8s loin\r\n"


@pytest.mark.parametrize(
    "name",
    "Connection Keep-Alive Proxy-Connection Transfer-Encoding TE Trailer Upgrade Proxy-Authenticate".split(),
)
def test_hop_by_hop_headers_are_dropped(name: str) -> None:
    """PEP 3333 forbids apps to send them; the server frames its answers itself."""
    assert encoded("200 OK", [(name, "chunked"), (name.upper(), "x")]) == [b"HTTP/1.1 200 OK\r\n"]


def test_content_length_is_a_number() -> None:
    """A Content-Length that is not a number would frame the answer wrongly."""
    assert length_of("200 OK", ("content-length", "12")) == 12
    assert length_of("200 OK") is None
    for value in ("", "-1", "+1", "1.0", "0x10", " 1", "1 ", "1,1", "\u0661"):
        with pytest.raises(ResponseError):
            encoded("200 OK", [("Content-Length", value)])


def test_content_length_twice() -> None:
    """The same value twice is sent once (RFC 9110 section 8.6); two values are an error."""
    headers = [("Content-Length", "3"), ("content-length", "3")]
    assert encoded("200 OK", headers) == [b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n"]
    with pytest.raises(ResponseError, match="twice"):
        encoded("200 OK", [("Content-Length", "3"), ("Content-Length", "4")])


def test_204_has_no_content_length_and_304_may() -> None:
    """RFC 9110 section 8.6."""
    assert encoded("204 No Content", [("Content-Length", "0")]) == [b"HTTP/1.1 204 No Content\r\n"]
    assert encoded("304 Not Modified", [("Content-Length", "9")])[1:] == [b"Content-Length: 9\r\n"]


def test_a_chunk_has_its_size_in_hex() -> None:
    """RFC 9112 section 7.1."""
    assert response.chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert response.LAST_CHUNK == b"0\r\n\r\n"


def test_plain_answer_is_whole() -> None:
    """An answer without an app: framed, with the server's own lines, and it closes the connection."""
    answer = response.plain_answer("400 Bad Request", "Bad Request\n", b"Server: ostler\r\nDate: now\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 400 Bad Request"
    assert {b"Server: ostler", b"Date: now", b"Content-Length: 12", b"Connection: close"} < set(lines)
    assert body == b"Bad Request\n"


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.text(max_size=8), st.text(max_size=8)), max_size=4), st.text(max_size=8))
def test_no_text_breaks_out_of_its_line(headers: list[tuple[str, str]], reason: str) -> None:
    """Any text from an app is refused or is exactly one line."""
    try:
        lines = encoded(f"200 {reason}", headers)
    except ResponseError:
        return
    assert len(lines) <= 1 + len(headers)
    for line in lines:
        assert line.endswith(b"\r\n")
        assert b"\r" not in line[:-2]
        assert b"\n" not in line[:-2]
        assert b"\x00" not in line
