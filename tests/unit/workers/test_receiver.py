"""The receiver and the responder: from bytes to requests, and answers to bytes that are not a request."""

import socket
from pathlib import Path

import pytest

from ostler.http1.errors import BodyNotStored, RequestTimeout
from ostler.workers.phase import CLOSED, LINGERING, OPEN, PROXY_HEADER
from tests.unit.workers.pieces import GET, Pieces, received


def test_a_request_in_pieces(pieces: Pieces) -> None:
    """There is a request when its last byte has arrived; until then the reactor watches the connection."""
    connection, client = pieces.connect()
    for byte in GET[:-1]:
        client.send(bytes([byte]))
        assert not pieces.receive(connection)
        assert connection.watched
    client.send(GET[-1:])
    assert pieces.receive(connection)
    assert [request.target for request in connection.parser.requests] == [b"/"]


def test_a_spurious_event(pieces: Pieces) -> None:
    """A spurious event changes nothing."""
    connection, _ = pieces.connect()
    assert not pieces.receive(connection)
    assert (connection.phase, connection.is_idle) == (OPEN, True)


def test_the_client_closes(pieces: Pieces) -> None:
    """Between requests, and during one: the connection is closed, nothing is logged."""
    for begun in (b"", GET[:10]):
        connection, client = pieces.connect()
        client.sendall(begun)
        if begun:
            pieces.receive(connection)
        client.close()
        assert not pieces.receive(connection)
        assert connection.phase is CLOSED
    assert pieces.counts().closed == 2
    assert pieces.log() == ""


def test_what_is_no_request(tmp_path: Path) -> None:
    """It is refused, counted, and in the access log; later bytes are discarded so that there is no reset."""
    with Pieces(tmp_path, access=True) as pieces:
        connection, client = pieces.connect()
        client.sendall(b"nonsense\r\n\r\n")
        assert not pieces.receive(connection)
        assert connection.phase is LINGERING
        assert received(client).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert pieces.counts().statuses[4] == pieces.counts().requests == 1
        assert len(pieces.access_log()) == 1
        client.setblocking(True)
        client.sendall(b"more")
        assert not pieces.receive(connection)
        assert connection.phase is LINGERING
        client.shutdown(socket.SHUT_WR)
        assert not pieces.receive(connection)
        assert connection.phase is CLOSED


def test_a_client_that_waits_for_100_continue(pieces: Pieces) -> None:
    """`100 Continue` is sent at once."""
    connection, client = pieces.connect()
    client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert not pieces.receive(connection)
    assert received(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.setblocking(True)
    client.sendall(b"ok")
    assert pieces.receive(connection)


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_proxy_header_in_pieces(tmp_path: Path, cut: int) -> None:
    """There is no request before it is complete; then the client is the one that the header names."""
    header = b"PROXY TCP4 192.0.2.7 192.0.2.9 1 2\r\n"
    with Pieces(tmp_path, proxy_protocol="auto") as pieces:
        connection, client = pieces.connect(proxied=True)
        client.sendall(header[:cut])
        assert not pieces.receive(connection)
        assert connection.phase is PROXY_HEADER
        client.sendall(header[cut:] + GET)
        assert pieces.receive(connection)
        assert connection.phase is OPEN
        assert connection.direct
        assert connection.peer_info is not None
        assert connection.peer_info["PROXY_ADDR"] == "192.0.2.9"


def test_output_goes_first(pieces: Pieces) -> None:
    """Unsent output is sent before anything is read; then the next request is ready."""
    connection, client = pieces.connect()
    connection.send(b"x" * (1 << 20))
    assert connection.output
    connection.parser.feed(GET)
    ready = False
    got = 0
    while not ready:
        got += len(received(client))
        ready = pieces.receive(connection)
    assert got + len(received(client)) == 1 << 20
    assert connection.output is None
    assert connection.answered_at > 0, "the request has waited for its own client"


def test_a_body_that_is_not_stored_is_logged(pieces: Pieces) -> None:
    """507 for the client; the log has the reason."""
    connection, client = pieces.connect()
    pieces.parts.responder.refuse(connection, BodyNotStored("no room"), pieces.slot)
    assert received(client).startswith(b"HTTP/1.1 507 ")
    assert "no room" in pieces.log()


def test_a_client_that_has_gone_before_it_is_refused(pieces: Pieces) -> None:
    """The connection is closed instead; the refusal is counted nevertheless."""
    connection, client = pieces.connect()
    client.close()
    pieces.parts.responder.refuse(connection, RequestTimeout("too slow"), pieces.slot)
    assert connection.phase is CLOSED
    assert pieces.counts().statuses[4] == 1


def test_a_defect_of_ours(pieces: Pieces) -> None:
    """An internal error ends the connection, and its traceback is in the log."""
    connection, client = pieces.connect()

    def broken(_data: bytes) -> None:
        raise RuntimeError("a defect")

    class Parser:
        parse = staticmethod(broken)

    connection.parser = Parser()  # type: ignore[assignment]
    client.sendall(GET)
    assert not pieces.receive(connection)
    assert connection.phase is CLOSED
    assert "a defect" in pieces.log()
