"""Websockets under WSGI, with the real libraries on both sides.

An app gets its connection as `gunicorn.socket`. Servers: flask-sock and Flask-SocketIO (on simple-websocket),
simple-websocket alone, gevent-websocket, eventlet's own. Clients: websocket-client, websockets,
python-socketio, and plain sockets for what no library sends.
"""

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest
import websocket
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.kit.certificates import Authority
from tests.kit.daemon import Daemon, Place
from tests.kit.waiting import PATIENCE, until

pytestmark = pytest.mark.system

KINDS = ("sync", "gthread", "gevent", "eventlet")
EACH = pytest.mark.parametrize("kind", KINDS)

# flask-sock; `SOCK_SERVER_OPTIONS` as its documentation recommends them.
FLASK_SOCK = """\
import os

from flask import Flask
from flask_sock import Sock

app = Flask(__name__)
app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25} if os.environ.get("PINGS") else {}
sock = Sock(app)

@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())

@sock.route("/once")
def once(ws):
    ws.send(ws.receive())

@sock.route("/bug")
def bug(ws):
    ws.receive()
    raise KeyError("a bug of the app")

@app.get("/")
def plain():
    return "plain"
"""


def arguments(kind: str) -> list[str]:
    return ["-k", kind, *(("--threads", "8") if kind == "gthread" else ())]


def url(daemon: Daemon, path: str) -> str:
    return f"{daemon.url.replace('http', 'ws', 1)}{path}"


@contextmanager
def opened(daemon: Daemon, path: str = "/echo", **options: Any) -> Iterator[websocket.WebSocket]:
    with closing(websocket.create_connection(url(daemon, path), PATIENCE, **options)) as ws:
        yield ws


def echoes(ws: websocket.WebSocket, text: str = "hello") -> bool:
    ws.send(text)
    return bool(ws.recv() == text)


@EACH
def test_flask_sock(place: Place, kind: str) -> None:
    """Messages of all sizes come back; the connection is shown as what it is, and counted when it has ended."""
    place.add("ws.py", FLASK_SOCK)
    daemon = place.start(*arguments(kind), "-w", "2", "ws:app", "--access-logfile", "-")
    with opened(daemon) as ws:
        for text in ("hello", "x" * 5000, "y" * 300_000, "äöü"):
            assert echoes(ws, text)
        ws.send_binary(b"\0\1\2" * 50_000)
        assert ws.recv() == b"\0\1\2" * 50_000
        request = daemon.in_app("/echo")
        assert request.upgraded
        assert request.deadline_in is None
    daemon.until(lambda: not any(w.in_flight for w in daemon.workers()), "its end")
    daemon.counted(requests=1, errors=0)
    assert daemon.events("request_failed") == []
