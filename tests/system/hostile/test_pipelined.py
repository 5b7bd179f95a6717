"""Thousands of requests in one packet: other clients are served in between."""

import socket
from contextlib import ExitStack

import pytest

from tests.kit.daemon import Place
from tests.kit.hostile import CLASSES, SLACK, client_time
from tests.kit.waiting import PATIENCE

pytestmark = pytest.mark.system

APP = """
import time
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.005)
    start_response("200 OK", [("Content-Length", "1")])
    return [b"x"]
"""
ONE = b"GET /slow HTTP/1.1\r\nHost:\r\n\r\n"
COUNT = 2000
"""Requests, which take ten seconds together."""


@pytest.mark.parametrize("words", [CLASSES["sync"], CLASSES["threads"]], ids=["sync", "threads"])
def test_pipelined_requests_let_others_go_first(hostile_place: Place, words: tuple[str, ...]) -> None:
    """A connection whose turn is over continues after others were served; all its answers arrive."""
    hostile_place.add("slow.py", APP)
    daemon = hostile_place.start("-w", "1", *(word.replace("attacked:", "slow:") for word in words))
    with ExitStack() as stack:
        socks = [
            stack.enter_context(socket.create_connection(daemon.address, timeout=PATIENCE)) for _ in range(5)
        ]
        for sock in socks[1:]:
            sock.sendall(ONE * COUNT)
        socks[0].sendall(ONE * 50 + b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        daemon.in_app("/slow")
        took = [client_time(daemon) for _ in range(5)]
        assert max(took) < SLACK, took
        answers = b"".join(iter(lambda: socks[0].recv(1 << 16), b""))
        assert answers.count(b"HTTP/1.1 200 OK\r\n") == 51
    assert daemon.events("internal_error") == []
