"""Which rule a refused request has broken, as uvicorn's parsers say it."""

import h11
import httptools
import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from ostler.workers.asgi.refusals import rule_of


class Nothing:
    """Takes no notice of what httptools finds."""


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (b"G{T / HTTP/1.1\r\n\r\n", "method"),
        (b"GET \x01 HTTP/1.1\r\n\r\n", "request_line"),
        (b"GET / HTTP/4.1\r\n\r\n", "version"),
        (b"GET / HTTP/1.1\r\nA b: c\r\n\r\n", "fields"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "content_length"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "transfer_encoding"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "chunked"),
    ],
)
def test_httptools(request_: bytes, rule: str) -> None:
    """Each exception has a rule and a text."""
    with pytest.raises(httptools.HttpParserError) as caught:
        httptools.HttpRequestParser(Nothing()).feed_data(request_)
    assert rule_of(caught.value) == (rule, str(caught.value))


@pytest.mark.parametrize(
    ("request_", "rule"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "missing_host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "host"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA b: c\r\n\r\n", "fields"),
        (b"what is this\r\n\r\n", "request_line"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", "content_length"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "chunked"),
    ],
)
def test_h11(request_: bytes, rule: str) -> None:
    """The same for uvicorn's other protocol."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(request_)
    events = iter(connection.next_event, h11.NEED_DATA)
    with pytest.raises(h11.RemoteProtocolError) as caught:
        list(events)
    assert rule_of(caught.value) == (rule, str(caught.value))


def test_what_the_parsers_do_not_refuse() -> None:
    """Without an exception it is CONNECT; an exception that is not known counts as `other`."""
    assert rule_of(None) == rule_of(httptools.HttpParserUpgrade(40)) == ("method", "CONNECT is for proxies")
    assert rule_of(ValueError("x" * 1000)) == ("other", "x" * 200)
